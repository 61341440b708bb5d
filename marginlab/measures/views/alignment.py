"""Alignment of an image's views: the alignment loss and the probability of distant views.

    L_align = E_x E_{u,v} || f(x_u) - f(x_v) ||^2
    R_eps   = P[ max over views || f(x_u) - f(x_v) || > eps ]

Huang et al., ICLR 2023, eq. 4 and section 3. Over V sampled views, an image's share of L_align is a
U-statistic over u != v,

    1/(V(V-1)) sum over u != v of ||f_u - f_v||^2  =  2/(V-1) sum over u of ||f_u - mean f||^2.

The right side does not cancel. The largest distance among sampled views is at most the supremum
over all views. So R_eps of sampled views is at most R_eps, and it grows with V.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from marginlab.kernels import BUDGET
from marginlab.measures.measure import (
    Measure,
    check_features,
    check_labels,
    constant,
    prepared,
    rows,
    same_views,
)
from marginlab.statistics.intervals import clopper_pearson

Interval = Literal["clopper-pearson", "hoeffding"]


class AlignmentResult(NamedTuple):
    """Alignment of n images with V views each.

    `L_align` is unbiased, and `standard_error` is its error over images (NaN for one image).
    `exceeding` is the fraction of images whose largest view distance exceeds each of `epsilons`. It
    is a LOWER estimate of R_eps that grows with V. `lower` and `upper` are its confidence interval,
    for R_eps of V views. `diameters` (N,) are the largest view distances and `labels` (N,) the
    images' labels (-1: not given), both in order of arrival.
    """

    L_align: Float[Tensor, ""]
    standard_error: Float[Tensor, ""]
    epsilons: Float[Tensor, " E"]
    exceeding: Float[Tensor, " E"]
    lower: Float[Tensor, " E"]
    upper: Float[Tensor, " E"]
    diameters: Float[Tensor, " N"]
    labels: Int[Tensor, " N"]
    n: int
    V: int
    meaning: str

    # R_eps is its name
    def R(self, epsilon: float, label: int | None = None) -> float:  # noqa: N802
        """Return the fraction of images whose largest view distance exceeds epsilon.

        It is a lower estimate of R_eps.

        Args:
            epsilon: The distance.
            label: Count only the images of this class, if it is given.

        Raises:
            ValueError: No image has this label.
        """
        chosen = self.diameters if label is None else self.diameters[self.labels == label]
        if not len(chosen):
            raise ValueError(
                f"No image has the label {label}: there are {sorted(set(self.labels.tolist()))}."
            )
        return float((chosen > epsilon).double().mean())


def alignment(
    features: Float[Tensor, "N V D"], *, normalize: bool = True, budget: int = BUDGET
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Return the mean squared and the largest view distance of each image, both (N,) float64.

    The mean is over u != v. The largest pair of views is found by products of centered features.
    Its distance is then computed again by differences, so that identical views are at distance 0.

    Args:
        features: Features of V >= 2 views of each image.
        normalize: Scale features to length 1 first.
        budget: Bytes of a block of distances.

    Raises:
        ValueError: There are fewer than 2 views, or values are not finite.

    Example:
        >>> alignment(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
        (tensor([2.], dtype=torch.float64), tensor([1.4142], dtype=torch.float64))
    """
    check_features(features, fewest_views=2)
    V = features.shape[1]
    squares, diameters = [], []
    for part in features.split(max(budget // (8 * V * (V + 2 * features.shape[2])), 1)):
        z = prepared(part, normalize)
        centered = z - z.mean(1, keepdim=True)
        norms = torch.linalg.vecdot(centered, centered)
        squares.append(norms.sum(1) * (2 / (V - 1)))
        apart = norms[:, :, None] + norms[:, None] - 2 * centered @ centered.mT
        u, v = (
            apart.flatten(1).argmax(1).div(V, rounding_mode="floor"),
            apart.flatten(1).argmax(1) % V,
        )
        image = torch.arange(len(z), device=z.device)
        diameters.append((z[image, u] - z[image, v]).norm(dim=-1))
    empty = features.new_zeros(0, dtype=torch.float64)
    return torch.cat([*squares, empty]), torch.cat([*diameters, empty])


class Alignment(Measure):
    """L_align and the curve of R_eps, from features (N, V, D) of V >= 2 views.

    It streams, merges and reduces over ranks. It keeps two float64 numbers and a label of each
    image, so `result.R(epsilon)` is exact at every epsilon.

    Args:
        normalize: Scale features to length 1 first (the theory's r = 1, in which distances lie in
            [0, 2]).
        epsilons: Where the curve of R_eps is taken; by default 0 to 2 in 100 steps.
        confidence: Confidence of the interval of the curve.
        interval: "clopper-pearson" (exact binomial) or "hoeffding" (+- sqrt(log(2 / alpha) / 2N)).
        kwargs: Keyword arguments of torchmetrics.Metric.

    Raises:
        ValueError: There are fewer than 2 views or another number of views than before, values are
            not finite, labels are negative, or nothing was measured.

    Example:
        >>> measure = Alignment()
        >>> measure.update(torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [1.0, 0.0]]]))
        >>> result = measure.compute()
        >>> float(result.L_align), result.R(1.0), result.n, result.V
        (1.0, 0.5, 2, 2)
    """

    intervals = ("L_align",)
    square: list[Tensor]
    diameter: list[Tensor]
    label: list[Tensor]
    views: Tensor
    epsilons: Tensor

    def __init__(
        self,
        normalize: bool = True,
        epsilons: Float[Tensor, " E"] | None = None,
        *,
        confidence: float = 0.95,
        interval: Interval = "clopper-pearson",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not 0 < confidence < 1 or interval not in ("clopper-pearson", "hoeffding"):
            raise ValueError(
                "An interval is 'clopper-pearson' or 'hoeffding' with a confidence between 0 and "
                f"1, not {interval!r} with {confidence}."
            )
        self.normalize, self.confidence, self.interval = normalize, confidence, interval
        grid = (
            torch.linspace(0, 2, 101, dtype=torch.float64)
            if epsilons is None
            else epsilons.double()
        )
        self.register_buffer("epsilons", grid, persistent=False)
        for name in ("square", "diameter", "label"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.add_state("views", default=torch.zeros(1, dtype=torch.int64), dist_reduce_fx=constant)

    def update(
        self, features: Float[Tensor, "N V D"], labels: Shaped[Tensor, " N"] | None = None
    ) -> None:
        """Take V views' features of N more images.

        Args:
            features: The features.
            labels: The images' labels, so that `R` can be asked of one class.
        """
        square, diameter = alignment(features, normalize=self.normalize)
        if labels is None:
            labels = torch.full((len(features),), -1, device=features.device)
        else:
            check_labels(labels, len(features))
        mixed = "R_eps of both together has no meaning."
        self.views = same_views(features, self.views, mixed)
        self.square.append(square)
        self.diameter.append(diameter)
        self.label.append(labels.long().clone())  # a caller may use its buffer again

    def compute(self) -> AlignmentResult:
        """Return the result, over all ranks under a process group."""
        empty = self.epsilons.new_zeros(0)
        squares, diameters, labels = (
            rows(self.square, empty),
            rows(self.diameter, empty),
            rows(self.label, empty.long()),
        )
        n = len(squares)
        if n == 0:
            raise ValueError(
                "Alignment has seen no image yet: call update(features) with features of shape (N, "
                "V, D) first."
            )
        exceed = n - torch.searchsorted(diameters.sort().values, self.epsilons, right=True)
        alpha = 1 - self.confidence
        if self.interval == "hoeffding":
            width = float(torch.tensor(2 / alpha).log().div(2 * n).sqrt())
            lower, upper = (
                (exceed / n - width).clamp(0, 1).double(),
                (exceed / n + width).clamp(0, 1).double(),
            )
        else:
            lower, upper = clopper_pearson(exceed, n, self.confidence)
        return AlignmentResult(
            L_align=squares.mean(),
            standard_error=squares.std() / n**0.5
            if n > 1
            else torch.full_like(squares[0], torch.nan),
            epsilons=self.epsilons,
            exceeding=exceed.double() / n,
            lower=lower,
            upper=upper,
            diameters=diameters,
            labels=labels,
            n=n,
            V=int(self.views),
            meaning=(
                f"L_align is unbiased (mean over u != v of {int(self.views)} views of {n} images). "
                "R_eps is taken over sampled views: a lower estimate of the theory's supremum "
                f"over all views, growing with V; its {self.confidence:.0%} interval "
                f"({self.interval}) is for V = {int(self.views)}."
            ),
        )
