"""Other scores of wrong labels, with one result: a score for each image, and which images to keep.

    by_subcenter    angle to the dominant sub-center of the class (`purify`)
    by_mean         angle to the mean direction of the other images of the class
    by_loss         loss under the trained classifier
    by_confidence   1 - p(label), p out of fold; dropped where another class is counted as the true
                    one: j* = argmax of p_j over { j : p_j >= t_j },  t_j = mean of p_j on class j

A larger score is more suspicious. A threshold "mixture" is taken from the scores, see
`marginlab.purify.mixture`.

Sources: Han et al. 2018 (Co-teaching: small losses are clean), Li et al. 2020 (DivideMix: a mixture
on the losses), Northcutt, Jiang and Chuang 2021 (confident learning, JAIR 70).
"""

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from scipy.stats import rankdata
from torch import Tensor, nn

from marginlab import encoding
from marginlab.data import ImageSet
from marginlab.data.labels import places
from marginlab.losses.margin_softmax import margin_softmax
from marginlab.purify.embedding import Head, embedder
from marginlab.purify.mixture import PUBLISHED, Threshold, mixture_threshold
from marginlab.purify.purification import Purification, check_angle
from marginlab.rng import Key
from marginlab.statistics import unit_vectors

_ROWS = 4096  # rows of probabilities at a time


class Suspicion(NamedTuple):
    """Scores of the labels, and the images that are suggested to stay.

    Attributes:
        score: (N,) larger is more suspicious.
        keep: (N,) the images that are suggested to stay.
        threshold: The score up to which they stay, or NaN where no single score decides.
    """

    score: Float64[Tensor, " N"]
    keep: Bool[Tensor, " N"]
    threshold: Threshold


def embeddings_of(
    model: nn.Module,
    images: ImageSet,
    *,
    batch: int = 512,
    device: torch.device | str | None = None,
) -> Float[Tensor, "N D"]:
    """Return the embeddings that a trained classifier compares with its centers; all are held."""
    call: Any = embedder(model).function if hasattr(model, "classifier") else model
    return encoding.encode(call, images.images, batch=batch, device=device)


def by_subcenter(found: Purification) -> Suspicion:
    """Return the angles of a purification and what it keeps."""
    return Suspicion(found.angle, found.keep, found.threshold)


def by_mean(
    embeddings: Float[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    *,
    max_angle: float | Literal["mixture"] = "mixture",
) -> Suspicion:
    """Score images by the angle in degrees to the mean direction of their class's other images.

    The image itself is left out of the mean, which it would pull to itself. A class of one image
    cannot be judged: the image has score 0 and stays.

    Args:
        embeddings: (N, D), of any length.
        labels: (N,) from 0.
        max_angle: Largest angle, or "mixture".

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.0, 1.0]])
        >>> by_mean(embeddings, torch.zeros(4, dtype=torch.int64), max_angle=60.0).keep.tolist()
        [True, True, True, False]
    """
    check_angle(max_angle)
    x, labels = unit_vectors(embeddings.detach().double()).cpu(), labels.cpu()
    C = int(labels.max()) + 1
    sums = torch.zeros(C, x.shape[1], dtype=x.dtype).index_add_(0, labels, x)
    cosine = (x * unit_vectors(sums[labels] - x)).sum(1)
    alone = torch.bincount(labels, minlength=C)[labels] == 1
    angle = torch.rad2deg(cosine.clamp(-1, 1).acos()).masked_fill(alone, 0.0)
    return _thresholded(angle, max_angle, ~alone, fallback=PUBLISHED, unit=" degrees")


def by_loss(
    losses: Float[Tensor, " N"], *, share: float | Literal["mixture"] = "mixture"
) -> Suspicion:
    """Score images by their loss, and keep the small ones.

    Args:
        losses: (N,), as `image_losses` gives them.
        share: Share of the images to drop, the known share of noise; or "mixture".

    Raises:
        ValueError: A share outside [0, 1).

    Example:
        >>> by_loss(torch.tensor([0.1, 9.0, 0.2, 0.3]), share=0.25).keep.tolist()
        [True, False, True, True]
    """
    score = losses.detach().cpu().double()
    if share == "mixture":
        every = torch.ones(len(score), dtype=torch.bool)
        return _thresholded(score, "mixture", every, fallback=math.inf, unit="")
    if not isinstance(share, int | float) or not 0 <= share < 1:
        raise ValueError(f"share is a share of the images in [0, 1) or 'mixture', not {share!r}.")
    keep = torch.ones(len(score), dtype=torch.bool)
    dropped = score.argsort(descending=True, stable=True)[: round(share * len(score))]
    keep[dropped] = False
    value = float(score[keep].max()) if bool(keep.any()) else -math.inf
    return Suspicion(score, keep, Threshold(value, f"the share {share:g} is dropped", None))


@torch.no_grad()
def image_losses(
    head: Head, embeddings: Float[Tensor, "N D"], labels: Int64[Tensor, " N"], *, batch: int = 512
) -> Float[Tensor, " N"]:
    """Return the loss of each image over all classes; averages of the margin stay as they are.

    Raises:
        ValueError: Centers that are spread over ranks.
    """
    if len(head.centers) != head.num_classes:
        raise ValueError(
            f"Losses over all classes need all {head.num_classes} centers, not the "
            f"{len(head.centers)} of this rank. Load the run in one process."
        )
    margin = copy.deepcopy(head.margin).eval()
    centers = head.centers.detach()
    parts = zip(embeddings.split(batch), labels.to(embeddings.device).split(batch), strict=True)
    rows = [
        margin_softmax(x, y, centers, margin=margin, scale=head.scale, reduction="none")
        for x, y in parts
    ]
    return torch.cat(rows)


def by_confidence(
    embeddings: Float[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    *,
    folds: int = 5,
    seed: int = 0,
    ridge: float = 1.0,
) -> Suspicion:
    """Score images by their out-of-fold probability under a logistic regression on directions.

    Folds divide each class evenly. A class of one image cannot be judged: it has score 0 and stays.

    Args:
        embeddings: (N, D), of any length.
        labels: (N,) from 0.
        folds: Number of folds.
        seed: Seed of the folds.
        ridge: Inverse strength of the ridge, as in scikit-learn, on standardised directions.

    Raises:
        ValueError: Fewer than two folds, or images of one class only.
        ModuleNotFoundError: Scikit-learn is missing (it comes with the extra `lab`).
    """
    labels = labels.cpu()
    if folds < 2 or len(labels.unique()) < 2:
        raise ValueError(
            f"Out-of-fold probabilities need at least 2 folds and 2 classes, not {folds} and "
            f"{len(labels.unique())}."
        )
    x = unit_vectors(embeddings.detach().double()).cpu()
    x = (x - x.mean(0)) / x.std(0, correction=0).clamp(min=1e-12)
    N, C = len(x), int(labels.max()) + 1
    fold = places(labels, Key(seed).named("folds")) % folds
    parts = []
    for f in range(folds):
        if bool((fold == f).any()):
            probabilities = _fitted(x[fold != f], labels[fold != f], C, ridge)
            parts += [(rows, probabilities) for rows in (fold == f).nonzero()[:, 0].split(_ROWS)]
    own = torch.zeros(N, dtype=torch.float64)
    for rows, probabilities in parts:
        own[rows] = probabilities(x[rows]).gather(1, labels[rows][:, None])[:, 0]
    sizes = torch.bincount(labels, minlength=C)
    able = sizes[labels] > 1
    sums = torch.zeros(C, dtype=torch.float64).index_add_(0, labels, own)
    limits = torch.where(sizes > 1, sums / sizes, math.inf)
    keep = torch.ones(N, dtype=torch.bool)
    for rows, probabilities in parts:  # again: (N, C) probabilities are not held
        p = probabilities(x[rows])
        above = torch.where(p >= limits, p, -1.0)
        best, counted = above.max(1)
        keep[rows] = (best < 0) | (counted == labels[rows])
    score = (1 - own).masked_fill(~able, 0.0)
    reason = "another class is counted as the true one"
    return Suspicion(score, keep | ~able, Threshold(math.nan, reason, None))


def comparison(
    found: Mapping[str, Suspicion], noisy: Bool[Tensor, " N"]
) -> list[dict[str, float | str]]:
    """Compare scores with planted noise: a row for each.

    Args:
        found: Suspicions by name.
        noisy: (N,) whether a label is wrong.

    Returns:
        Rows with `score` (its name), `threshold`, `dropped`, `precision` and `recall` of the noise
        among what is dropped, and `auc`: the probability that a wrong label scores above a right
        one. What is of no images is NaN.

    Example:
        >>> found = by_loss(torch.tensor([0.1, 9.0, 0.2, 0.3]), share=0.25)
        >>> comparison({"loss": found}, torch.tensor([False, True, False, False]))[0]["auc"]
        1.0
    """
    noisy = noisy.cpu()
    rows: list[dict[str, float | str]] = []
    for name, one in found.items():
        if one.keep.shape != noisy.shape:
            raise ValueError(f"{name} is of {len(one.keep)} images, the noise of {len(noisy)}.")
        dropped, hit = int((~one.keep).sum()), int((~one.keep & noisy).sum())
        wrong, right = int(noisy.sum()), int((~noisy).sum())
        above = float(rankdata(one.score.numpy())[noisy.numpy()].sum()) - wrong * (wrong + 1) / 2
        rows.append(
            {
                "score": name,
                "threshold": one.threshold.value,
                "dropped": dropped,
                "precision": hit / dropped if dropped else math.nan,
                "recall": hit / wrong if wrong else math.nan,
                "auc": above / (wrong * right) if wrong and right else math.nan,
            }
        )
    return rows


def _thresholded(
    score: Tensor, limit: float | str, able: Tensor, *, fallback: float, unit: str
) -> Suspicion:
    """Keep what is below a limit, or below that of a mixture, or else below the fallback."""
    if limit == "mixture":
        threshold = mixture_threshold(score[able], fallback, unit=unit)
    else:
        threshold = Threshold(float(limit), "the limit that was asked for", None)
    return Suspicion(score, ~able | (score < threshold.value), threshold)


def _fitted(x: Tensor, labels: Tensor, C: int, ridge: float) -> Callable[[Tensor], Tensor]:
    """Fit a logistic regression, and return its probabilities (B, C) as a function of rows."""
    from sklearn.exceptions import ConvergenceWarning  # an extra (`lab`), and slow to import
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(C=ridge, max_iter=300, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the probabilities stand
        probe.fit(x.numpy(), labels.numpy())
    present = torch.from_numpy(probe.classes_).long()

    def probabilities(rows: Tensor) -> Tensor:
        out = torch.zeros(len(rows), C, dtype=torch.float64)
        out[:, present] = torch.from_numpy(probe.predict_proba(rows.numpy())).double()
        return out

    return probabilities
