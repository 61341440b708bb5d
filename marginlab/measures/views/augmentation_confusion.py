"""Augmentation confusion: how often a view's nearest neighbour is a view of another image.

    ACR = P[ min over images j != i of d(x_i^u, image j)  <=  d(x_i^u, image i) ]
    ARC = (1 - ACR_final) / (1 - ACR_initial)

ARC says how far training has brought ACR down. The probability is over all views u of all images i.
The distance d(x_i^u, image j) is the minimum over the views v of image j of
||f(x_i^u) - f(x_j^v)||, with v != u where j = i, and f has length 1. Source: Wang, Zhang, Wang,
Yang and Lin, ICLR 2022. Zhang, Wang and Wang, JMLR 2025, take the mean or the maximum over the
views instead of the minimum, chosen separately for the own image and for others. This is
GACR, and its ratio is GARC.

Here every view asks, not only the first of an image. Images are told apart by their index, whatever
batches they came in. Distances within 1e-7 of each other are equal, and a tie counts as confused.
So an image whose own views are no nearer than another image's is confused, and an encoder that has
collapsed has ACR = 1.

ACR depends on the bank, of N images with V views. It grows with N, because there are more others.
In the minimum it falls with V, because there are more own views. (There are more views of others
too, but another image has no view left out.) Compare only ACRs of equal N and V.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.kernels import BUDGET, walk
from marginlab.measures.measure import check_features, prepared
from marginlab.measures.views.image_sample import ImageSample

Reduction = Literal["min", "mean", "max"]
# near zero, distances of unit features err by up to 1e-8 in float64, and by this if the features
# are float32
TIE = 1e-7


class ConfusionResult(NamedTuple):
    """ACR among the views of N images with V views each, and its standard error over images.

    The error takes the bank of the other images as given. `chance` is the ACR of an encoder that
    draws its features at random: (N - 1) V / (N V - 1) in the minimum (NaN otherwise). `seen`
    images were given; the N images are a random sample of them.
    """

    ACR: Float[Tensor, ""]
    standard_error: Float[Tensor, ""]
    chance: float
    n: int
    seen: int
    V: int
    within: str
    across: str
    meaning: str


class RelativeConfusion(NamedTuple):
    """ARC (or GARC) and its standard error.

    It is more than 1 if training has brought the views of an image together.
    """

    ARC: Float[Tensor, ""]
    standard_error: Float[Tensor, ""]
    meaning: str


def augmentation_confusion(
    features: Float[Tensor, "N V D"],
    *,
    within: Reduction = "min",
    across: Reduction = "min",
    budget: int = BUDGET,
) -> Float[Tensor, " N"]:
    """Return the share of each image's views that are confused with another image.

    The shares are (N,) float64, and ACR is their mean. Features are scaled to length 1.

    Args:
        features: Features of V views of N images.
        within: How distances to the views of the own image are reduced.
        across: How distances to the views of another image are reduced.
        budget: Bytes of a block of distances.

    Raises:
        ValueError: There are fewer than 2 views or 2 images, or values are not finite.

    Example:
        The second views lie together.

        >>> f = torch.tensor([[[1.0, 0.0], [0.9, 0.1]], [[0.0, 1.0], [0.8, 0.1]]])
        >>> augmentation_confusion(f)
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    _check_reductions(within, across)
    check_features(features, fewest_views=2)
    N, V, D = features.shape
    if N < 2:
        raise ValueError(
            f"A view is confused with a view of another image, but there are {N} image(s). Give at "
            "least 2."
        )
    z = prepared(features, True)
    own = []
    for part in z.split(max(budget // (24 * V * (V + D)), 1)):
        apart = _distances(part @ part.mT)[
            :, ~torch.eye(V, dtype=torch.bool, device=z.device)
        ].view(-1, V, V - 1)
        own.append(_reduced(apart, within))
    flat = z.flatten(0, 1)
    nearest = flat.new_full((N * V,), torch.inf)
    image = torch.arange(N, device=z.device)
    for queries, bank in walk(N * V, N * V, entry=24, budget=budget, unit=(1, V)):
        apart = _reduced(_distances(flat[queries] @ flat[bank].T).unflatten(1, (-1, V)), across)
        others = image[bank.start // V : bank.stop // V]
        asking = torch.arange(queries.start, queries.stop, device=z.device) // V
        apart.masked_fill_(asking[:, None] == others, torch.inf)
        nearest[queries] = torch.minimum(nearest[queries], apart.amin(1))
    return (nearest.view(N, V) <= torch.cat(own) + TIE).double().mean(1)


class AugmentationConfusion(ImageSample):
    """ACR (or GACR) from features (N, V, D) of V >= 2 views.

    It streams, merges and reduces over ranks. It keeps the features of at most 2 max_images images,
    in the dtype they come in. Time grows as (max_images V)^2 D.

    Args:
        within: "min" (ACR), "mean" or "max" (GACR) over the views of the own image.
        across: The same over the views of another image.
        max_images: Most images of the bank. Beyond it the images are a random sample of this size
            without replacement. A key of the seed and of an image's own features draws it, so which
            images are in it depends neither on their order nor on batches or ranks.
        seed: Seed of the sample.
        kwargs: Keyword arguments of torchmetrics.Metric.

    Raises:
        ValueError: There are fewer than 2 views, the number of views differs from before, values
            are not finite, or the bank has fewer than 2 images.

    Example:
        >>> measure = AugmentationConfusion()
        >>> measure.update(torch.tensor([[[1.0, 0.0], [0.9, 0.1]], [[0.0, 1.0], [0.8, 0.1]]]))
        >>> result = measure.compute()
        >>> float(result.ACR), result.n, result.V
        (0.5, 2, 2)
    """

    fewest_views = 2
    equal_views = "ACR changes with V, give equally many."

    def __init__(
        self,
        within: Reduction = "min",
        across: Reduction = "min",
        *,
        max_images: int = 2000,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(max_images, seed, **kwargs)
        _check_reductions(within, across)
        self.within, self.across = within, across

    def compute(self) -> ConfusionResult:
        """Return the result, over all ranks under a process group."""
        sample, seen, V = self.checked(), int(self.seen), int(self.views)
        confused = augmentation_confusion(sample, within=self.within, across=self.across)
        n = len(confused)
        return ConfusionResult(
            ACR=confused.mean(),
            standard_error=confused.std() / n**0.5,
            chance=(n - 1) * V / (n * V - 1)
            if self.within == self.across == "min"
            else float("nan"),
            n=n,
            seen=seen,
            V=V,
            within=self.within,
            across=self.across,
            meaning=(
                f"Share of the {V} views of {n} images (of {seen} seen) whose nearest image is "
                f"another, by the {self.within} over own views and the {self.across} over those of "
                "others; ties count as confused, so it leans upwards by them. It is of this bank "
                "and grows with the number of images. The standard error is over images, with the "
                "bank of the others taken as given: too small for another bank, so that it makes "
                "no interval."
            ),
        )


def relative_confusion(initial: ConfusionResult, final: ConfusionResult) -> RelativeConfusion:
    """Return ARC of an encoder before and after training (GARC for means or maxima over views).

    Source: Wang et al. 2022. The standard error is by linearisation, with both errors independent.
    It is too large rather than too small where the same images are confused before and after.

    Args:
        initial: The result before training.
        final: The result after training.

    Raises:
        ValueError: The results differ in N, V or reductions, or the initial ACR is 1.

    Example:
        >>> f = torch.tensor([[[1.0, 0.0], [0.9, 0.1]], [[0.0, 1.0], [0.8, 0.1]]])
        >>> before = AugmentationConfusion()(f)
        >>> after = AugmentationConfusion()(torch.eye(2)[:, None].repeat(1, 2, 1))
        >>> float(before.ACR), float(after.ACR), float(relative_confusion(before, after).ARC)
        (0.5, 0.0, 2.0)
    """
    made = [(r.n, r.V, r.within, r.across) for r in (initial, final)]
    if made[0] != made[1]:
        raise ValueError(
            f"ACRs of {made[0]} and of {made[1]} (images, views, reductions) have no ratio, for "
            "ACR changes with each: make them alike."
        )
    left = 1 - initial.ACR
    if float(left) == 0:
        raise ValueError(
            "The initial encoder confuses every view (ACR = 1): nothing can be held against it. "
            "Give more views or fewer images."
        )
    ratio = (1 - final.ACR) / left
    error = (
        final.standard_error.square() + ratio.square() * initial.standard_error.square()
    ).sqrt() / left
    return RelativeConfusion(
        ratio,
        error,
        f"(1 - ACR) of the final encoder over that of the initial one, {initial.n} images with "
        f"{initial.V} views. A ratio of estimates leans upwards by the order of the initial one's "
        "relative variance; the standard error takes the two as independent.",
    )


def _distances(cosines: Tensor) -> Tensor:
    return cosines.mul_(-2).add_(2).clamp_(min=0).sqrt_()


def _reduced(distances: Tensor, how: str) -> Tensor:
    if how == "mean":
        return distances.mean(-1)
    return distances.amin(-1) if how == "min" else distances.amax(-1)


def _check_reductions(within: str, across: str) -> None:
    for name, how in (("within", within), ("across", across)):
        if how not in ("min", "mean", "max"):
            raise ValueError(
                "Distances to the views of an image are reduced by 'min', 'mean' or 'max', not by "
                f"{name}={how!r}."
            )
