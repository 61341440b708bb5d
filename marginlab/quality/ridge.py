"""A linear head on frozen features, by ridge regression, its strength chosen on unseen classes.

    w = argmin  1/N sum over n of |y_n - mean y - w . z_n|^2 + strength |w|^2
    z = (features - mean) / deviation

The strength is the one of least squared error on classes that a fold leaves out, since the head is
for images of classes that it has never seen. All strengths that were tried are in the result.

Source: Hoerl and Kennard 1970. A feature that does not vary has z = 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_FOLDS = 5


@dataclass(frozen=True, eq=False)
class RidgeHead:
    """A fitted linear head.

    Args:
        weight: (D, k) for k targets, of standardised features.
        bias: (k,) mean targets.
        mean, deviation: (D,) of the features.
        strength: The one chosen.
        errors: Mean squared error on left out classes of each strength that was tried, in units of
            the variance of the targets; empty where there was one strength.
    """

    weight: Float64[Tensor, "D k"]
    bias: Float64[Tensor, " k"]
    mean: Float64[Tensor, " D"]
    deviation: Float64[Tensor, " D"]
    strength: float
    errors: dict[float, float]

    def __call__(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N k"]:
        """Return predicted targets, computed in float64.

        Raises:
            ValueError: The features have another dimension.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(
                f"This head takes features (N, {len(self.mean)}), not {tuple(features.shape)}. "
                "Give images of the size that it was fitted on."
            )
        weight, bias, mean, deviation = (
            part.to(features.device) for part in (self.weight, self.bias, self.mean, self.deviation)
        )
        predicted: Tensor = ((features.double() - mean) / deviation) @ weight + bias
        return predicted.to(torch.promote_types(features.dtype, torch.float32))


def fit_ridge(
    features: Float[Tensor, "N D"],
    targets: Float[Tensor, "N k"],
    labels: Int[Tensor, " N"],
    *,
    strengths: Sequence[float] = STRENGTHS,
) -> RidgeHead:
    """Fit a linear head to targets, on the CPU in float64.

    Args:
        features: (N, D) frozen features.
        targets: (N, k) targets.
        labels: (N,) classes, which the folds keep together. With fewer than 5 classes there are as
            many folds as classes.
        strengths: Strengths to try. One is taken as it is.

    Raises:
        ValueError: Shapes do not fit, values are not finite, a strength is not positive, or several
            strengths are to be told apart by one class.

    Example:
        >>> x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        >>> head = fit_ridge(x, x[:, :1] - 2, torch.arange(40) % 4)
        >>> head.strength, float(head(torch.tensor([[1.0, 5.0, 5.0]])).round(decimals=1))
        (0.001, -1.0)
    """
    x, y = features.detach().cpu().double(), targets.detach().cpu().double()
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or labels.shape != x.shape[:1] or len(x) < 2:
        raise ValueError(
            "A head is fitted to features (N, D), targets (N, k) and labels (N,) of 2 images or "
            f"more, not {tuple(x.shape)}, {tuple(y.shape)} and {tuple(labels.shape)}."
        )
    if not bool(x.isfinite().all() & y.isfinite().all()):
        raise ValueError("Features and targets of a head are finite, but some are NaN or infinite.")
    if not strengths or not all(strength > 0 for strength in strengths):
        raise ValueError(f"Strengths are positive, such as {STRENGTHS}, not {tuple(strengths)}.")
    _, number = labels.cpu().long().unique(return_inverse=True)
    folds = min(_FOLDS, int(number.max()) + 1)
    if len(strengths) > 1 and folds < 2:
        raise ValueError("One class leaves none to choose the strength on. Give one strength.")
    errors: dict[float, float] = {}
    if len(strengths) > 1:
        squares = torch.zeros(len(strengths), dtype=torch.float64)
        for fold in range(folds):
            out = number % folds == fold
            for at, head in enumerate(_fitted(x[~out], y[~out], strengths)):
                apart = (head(x[out]) - y[out]) / y.std(0).clamp(min=1e-12)
                squares[at] += float(apart.square().mean(1).sum())
        errors = dict(zip(map(float, strengths), (squares / len(x)).tolist(), strict=True))
    best = min(errors, key=lambda strength: errors[strength]) if errors else strengths[0]
    [head] = _fitted(x, y, (best,))
    return RidgeHead(head.weight, head.bias, head.mean, head.deviation, float(best), errors)


def _fitted(x: Tensor, y: Tensor, strengths: Sequence[float]) -> list[RidgeHead]:
    """Return the heads of all strengths from one decomposition, of the smaller Gram matrix."""
    N, D = x.shape
    mean, deviation, bias = x.mean(0), x.std(0, unbiased=False), y.mean(0)
    deviation = torch.where(deviation > 1e-9 * x.abs().amax(0).clamp(min=1e-300), deviation, 1.0)
    z, r = (x - mean) / deviation, y - bias
    values, vectors = torch.linalg.eigh((z.T @ z if D <= N else z @ z.T) / N)
    turned = vectors.T @ (z.T @ r if D <= N else r) / N
    heads = []
    for strength in strengths:
        solved = vectors @ (turned / (values.clamp(min=0)[:, None] + strength))
        weight = solved if D <= N else z.T @ solved
        heads.append(RidgeHead(weight, bias, mean, deviation, float(strength), {}))
    return heads
