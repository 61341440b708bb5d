"""NC4: how often a classifier and the nearest class center disagree.

    NC4 = P[ prediction(x)  !=  argmin_c || f(x) - mu_c || ]

Papyan, Han and Donoho, PNAS 2020. For self-supervised features it compares a linear probe with the
classifier G_f of Huang et al., ICLR 2023. It is a second pass after `NeuralCollapse` or
`ClassDivergence`, whose results have the centers, over the same images or others. With the labels
as predictions it is the error of G_f.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.kernels import BUDGET
from marginlab.measures.measure import Measure, check_features, constant, prepared, same_views


class MismatchResult(NamedTuple):
    """NC4 over the V views of n images, and its standard error over images.

    The error takes the centers as given. It is NaN for one image.
    """

    NC4: Float[Tensor, ""]
    standard_error: Float[Tensor, ""]
    n: int
    V: int
    meaning: str


def nearest_center_mismatch(
    features: Float[Tensor, "N V D"],
    predictions: Int[Tensor, "N *views"],
    centers: Float[Tensor, "C D"],
    *,
    normalize: bool = False,
    budget: int = BUDGET,
) -> Float[Tensor, " N"]:
    """Return the share of each image's views whose nearest center is not the predicted class.

    The shares are (N,) float64, and NC4 is their mean. Centers with NaN belong to classes without
    one, and are never the nearest. Of equally near centers the first is taken.

    Args:
        features: Features of V views of N images.
        predictions: A class for each view (N, V), or one for all views of an image (N,).
        centers: The class centers.
        normalize: Scale features to length 1 first.
        budget: Bytes of a block of distances.

    Raises:
        ValueError: Shapes do not fit, or values are not finite.

    Example:
        >>> f = torch.tensor([[[1.0, 0.2], [0.2, 1.0]]])
        >>> nearest_center_mismatch(f, torch.tensor([[0, 0]]), torch.eye(2))
        tensor([0.5000], dtype=torch.float64)
    """
    check_features(features, fewest_views=1)
    _check_centers(centers)
    N, V, D = features.shape
    if centers.shape[1] != D:
        raise ValueError(
            f"features of shape {tuple(features.shape)} have dimension {D}, but the centers have "
            f"{centers.shape[1]}."
        )
    if predictions.shape not in ((N,), (N, V)) or predictions.is_floating_point():
        raise ValueError(
            f"predictions are class numbers of shape ({N},), one an image, or ({N}, {V}), one a "
            f"view, not {predictions.dtype} {tuple(predictions.shape)}."
        )
    to = centers.double()
    known = ~to.isnan().any(1)
    origin = to[known].mean(0)  # a shift keeps distances, and less cancels below
    to = to - origin
    half = torch.where(known, to.square().sum(1) / 2, torch.inf)
    to = to.nan_to_num()
    shares = []
    expected = (predictions if predictions.ndim == 2 else predictions[:, None]).expand(N, V)
    rows = max(budget // (8 * V * (2 * len(to) + 2 * D)), 1)
    for part, said in zip(features.split(rows), expected.split(rows), strict=True):
        # half the squared distance minus ||f||^2 / 2, which is the same for all centers
        nearest = (half - (prepared(part, normalize) - origin) @ to.T).argmin(-1)
        shares.append((nearest != said).double().mean(1))
    return torch.cat([*shares, features.new_zeros(0, dtype=torch.float64)])


class NearestCenterMismatch(Measure):
    """NC4 from features (N, V, D) and a classifier's predictions, to given centers.

    It streams, merges and reduces over ranks.

    Args:
        centers: Centers (C, D) of features prepared alike; NaN rows are classes without a center.
        normalize: Scale features to length 1 first, as was done for the centers.
        kwargs: Keyword arguments of torchmetrics.Metric.

    Raises:
        ValueError: Features or predictions do not fit, the number of views differs from before,
            values are not finite, measures to different centers are merged, or there is no image at
            all.

    Example:
        >>> measure = NearestCenterMismatch(torch.eye(2))
        >>> measure.update(torch.tensor([[[1.0, 0.2]], [[0.2, 1.0]]]), torch.tensor([0, 0]))
        >>> float(measure.compute().NC4)
        0.5
    """

    centers: Tensor
    sums: Tensor
    squares: Tensor
    n: Tensor
    views: Tensor

    def __init__(self, centers: Float[Tensor, "C D"], normalize: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        _check_centers(centers)
        self.normalize = normalize
        self.register_buffer("centers", prepared(centers, False).clone(), persistent=False)
        for name in ("sums", "squares"):
            self.add_state(name, default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("views", default=torch.zeros(1, dtype=torch.int64), dist_reduce_fx=constant)

    def update(
        self, features: Float[Tensor, "N V D"], predictions: Int[Tensor, "N *views"]
    ) -> None:
        """Take V views' features of N more images, and their predictions.

        Args:
            features: The features.
            predictions: A class for each image (N,), or for each view (N, V).
        """
        share = nearest_center_mismatch(
            features, predictions, self.centers, normalize=self.normalize
        )
        self.views = same_views(features, self.views)
        self.sums, self.squares, self.n = (
            self.sums + share.sum(),
            self.squares + share.square().sum(),
            self.n + len(share),
        )

    def compute(self) -> MismatchResult:
        """Return the result, over all ranks under a process group."""
        n = int(self.n)
        if n == 0:
            raise ValueError(
                "NearestCenterMismatch has seen no image yet: call update(features, predictions) "
                "first."
            )
        mean = self.sums / n
        variance = (self.squares / n - mean.square()).clamp(min=0) / (n - 1 if n > 1 else torch.nan)
        return MismatchResult(
            mean,
            variance.sqrt(),
            n,
            int(self.views),
            f"Share of the {int(self.views)} views of {n} images whose nearest center is not the "
            "predicted class: unbiased for the given centers and predictions; if these were made "
            "of the same images it leans downwards. The standard error is over images, with "
            "centers as given.",
        )


def _check_centers(centers: Tensor) -> None:
    known = centers[~centers.isnan().any(1)] if centers.ndim == 2 else centers[:0]
    if not len(known) or not bool(known.isfinite().all()):
        raise ValueError(
            "Centers have the shape (C, D), at least one of them without NaN, and no infinity, "
            f"not {tuple(centers.shape)}."
        )
