"""alpha-ReQ: how fast the spectrum of features decays, as the exponent of a power law.

    lambda_j ~ j^-alpha
    alpha = - slope of the least-squares line of log lambda_j on log j,   j = first .. last

Here lambda_1 >= lambda_2 >= ... are the eigenvalues of the covariance of features. Source: Agrawal,
Mondal, Ghosh and Richards, NeurIPS 2022, who find the best generalization near alpha = 1 and leave
out both ends of the spectrum. (A regression on j itself, or on a linear ramp, would fit exp(-c j),
not a power; a test shows what it gives.)

By default the middle half of log j is fitted: j from r^(1/4) to r^(3/4), and all j where r < 7. r
is the number of eigenvalues that float64 moments resolve. These are above max(D, 100) 2^-52 of the
largest one plus the squared mean.

The authors' program is another estimate. It fits j = 11 .. 100 and weights the square of point j by
1/j, so that the upper end of the range counts more. `weights="published"` selects it. On an exact
power law both give alpha; on a spectrum that bends they differ.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.measures.measure import result_of
from marginlab.measures.spectrum.spectrum import SecondMoments, resolved

Weights = Literal["equal", "published"]
PUBLISHED = (11, 100)  # first and last j of the authors' fit


class SpectrumDecayResult(NamedTuple):
    """alpha of n images with V views each, fitted from j = first to last, both included.

    It is NaN where fewer than two eigenvalues are resolved in that range. `error_alpha` is its
    sampling error (jackknife over images). `error_fit` is the standard error of a least-squares
    slope, which says how straight the line is (NaN for two points). `eigenvalues` (D,) are those of
    the covariance, largest first, 0 where not resolved.
    """

    alpha: Float[Tensor, ""]
    error_alpha: Float[Tensor, ""]
    error_fit: Float[Tensor, ""]
    eigenvalues: Float[Tensor, " D"]
    first: int
    last: int
    n: int
    V: int
    meaning: str


def power_law(
    values: Float[Tensor, " J"], first: int, last: int, weights: Weights = "equal"
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return alpha of positive values_j ~ j^-alpha, and the standard error of the slope.

    NaN for fewer than two values (three for the error).

    Args:
        values: The values, j = 1 first.
        first: First j of the fit.
        last: Last j of the fit, included.
        weights: "equal" weighs all squares alike, "published" by 1/j each.

    Example:
        >>> alpha, error = power_law(3 * torch.arange(1, 101).double() ** -0.8, 5, 50)
        >>> round(float(alpha), 6), float(error) < 1e-12
        (0.8, True)
    """
    y = values[first - 1 : last].double().log()
    j = torch.arange(first, first + len(y), device=y.device).double()
    w = 1 / j if weights == "published" else torch.ones_like(j)
    x = j.log()
    if len(y) < 2:
        return values.new_tensor(torch.nan).double(), values.new_tensor(torch.nan).double()
    x = x - (w @ x) / w.sum()
    wx = w * x
    slope = (wx @ y) / (wx @ x)
    if len(y) == 2:
        return -slope, torch.full_like(slope, torch.nan)
    residual = y - (w @ y) / w.sum() - slope * x
    variance = residual @ residual / (len(y) - 2)
    return -slope, (variance * (wx @ wx)).sqrt() / (wx @ x)


def spectrum_decay(
    features: Float[Tensor, "N V D"],
    fit_range: tuple[int, int] | None = None,
    *,
    weights: Weights = "equal",
    normalize: bool = False,
    groups: int = 10,
) -> SpectrumDecayResult:
    """Compute `SpectrumDecay` of the given features.

    Args:
        features: Features of V views of N images.
        fit_range: First and last j of the fit; None is the middle half of log j.
        weights: Weights of the fit.
        normalize: Scale features to length 1 first.
        groups: Number of groups of images for the jackknife.

    Example:
        The variances fall as 1/j.

        >>> scales = torch.arange(1, 9).double() ** -0.5
        >>> f = torch.cat([torch.diag(scales), -torch.diag(scales)])[:, None]
        >>> round(float(spectrum_decay(f).alpha), 6)
        1.0
    """
    measure = SpectrumDecay(
        features.shape[-1],
        fit_range,
        normalize,
        weights=weights,
        groups=groups,
        sync_on_compute=False,
    )
    result: SpectrumDecayResult = result_of(measure, features)
    return result


class SpectrumDecay(SecondMoments):
    """alpha-ReQ from features (N, V, D); streams, merges and reduces over ranks.

    Args:
        dim: Dimension D.
        fit_range: (first, last) j of the fit, from 1, both included; its resolved part is used.
            None is the middle half of log j.
        normalize: Scale features to length 1 first.
        weights: "equal" is least squares as in the paper. "published" is the authors' program:
            squares weigh 1/j, and the range is by default 11 to 100 (to D where D < 100). The two
            differ on a spectrum that is no power law. Where the tail is steeper, published weights
            give less.
        groups: Number of groups of images for the jackknife (see `EffectiveRank`, also for memory
            and time).
        kwargs: Keyword arguments of torchmetrics.Metric.

    Raises:
        ValueError: Features have another dimension or another number of views than before, values
            are not finite, the range is invalid, or there is no image at all.

    Example:
        >>> measure = SpectrumDecay(dim=8, fit_range=(1, 8))
        >>> measure.update(torch.diag(torch.arange(1, 9).double() ** -0.5)[:, None])
        >>> measure.update(-torch.diag(torch.arange(1, 9).double() ** -0.5)[:, None])
        >>> round(float(measure.compute().alpha), 6)
        1.0
    """

    def __init__(
        self,
        dim: int,
        fit_range: tuple[int, int] | None = None,
        normalize: bool = False,
        *,
        weights: Weights = "equal",
        groups: int = 10,
        **kwargs: Any,
    ):
        super().__init__(dim, normalize, groups, **kwargs)
        if weights not in ("equal", "published"):
            raise ValueError(f"weights of the fit are 'equal' or 'published', not {weights!r}.")
        if weights == "published" and fit_range is None:
            if dim < PUBLISHED[0] + 1:
                raise ValueError(
                    f"The published fit begins at j = {PUBLISHED[0]}, but there are {dim} "
                    "dimensions: give a fit_range of your own."
                )
            fit_range = (PUBLISHED[0], min(PUBLISHED[1], dim))
        if fit_range is not None and not 1 <= fit_range[0] < fit_range[1] <= dim:
            raise ValueError(
                f"fit_range is (first, last) with 1 <= first < last <= dim = {dim}, not "
                f"{fit_range}."
            )
        self.fit_range, self.weights = fit_range, weights

    def compute(self) -> SpectrumDecayResult:
        """Return the result, over all ranks under a process group."""
        n, moment, sums = self.checked(), self.moment.sum(0), self.sums.sum(0)
        eigenvalues = _spectrum(moment, sums, n)
        r = int((eigenvalues > 0).sum())
        first, last = self.fit_range or _middle(r)
        last = min(last, r)
        alpha, error_fit = power_law(eigenvalues, first, last, self.weights)

        def without(g: int) -> Tensor:
            left = _spectrum(moment - self.moment[g], sums - self.sums[g], n - int(self.n[g]))
            if float(left[max(last - 1, 0)]) == 0:
                return torch.full_like(alpha, torch.nan)
            return power_law(left, first, last, self.weights)[0]

        return SpectrumDecayResult(
            alpha=alpha,
            error_alpha=self.error(alpha, without),
            error_fit=error_fit,
            eigenvalues=eigenvalues,
            first=first,
            last=last,
            n=n,
            V=int(self.views),
            meaning=(
                f"Exponent of a power law, by least squares ({self.weights} weights) of log "
                f"eigenvalues on log j, j from {first} to {last} of {r} that are resolved in "
                f"{self.dim} dimensions, {n} images with {int(self.views)} views each. A sample's "
                "spectrum is steeper than that of what it is drawn from: with few images for the "
                "dimensions alpha leans upwards, and no interval of the population's follows from "
                f"its error. Standard error: jackknife over {self.groups} groups of images."
            ),
        )


def _spectrum(moment: Tensor, sums: Tensor, n: int) -> Tensor:
    """Return the eigenvalues of the covariance, largest first.

    They are 0 where a difference of moments does not resolve them.
    """
    mean = sums / n
    eigenvalues = torch.linalg.eigvalsh(moment / n - mean[:, None] * mean)
    return resolved(eigenvalues, eigenvalues[-1].clamp(min=0) + mean.square().sum())


def _middle(r: int) -> tuple[int, int]:
    return (1, r) if r < 7 else (math.ceil(r**0.25), math.floor(r**0.75))
