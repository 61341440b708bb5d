"""A threshold from the data: where the upper of two normal distributions becomes the likelier one.

    p(a) = w_1 N(a; m_1, s_1^2) + w_2 N(a; m_2, s_2^2),    m_1 < m_2
    t with w_1 N(t; m_1, s_1^2) = w_2 N(t; m_2, s_2^2),    m_1 < t < m_2

The mixture separates if Ashman's D = sqrt(2) (m_2 - m_1) / sqrt(s_1^2 + s_2^2) is above 2, each
component has at least 1 % of the values, one component explains them worse (by BIC), and such a t
exists. Otherwise the threshold is a fixed one, and the reason says which of these fails.

Sources: Ashman, Bird and Zepf 1994 (D > 2 for two modes that are told apart); Li et al. 2020
(DivideMix: a mixture of two normal distributions on losses).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

PUBLISHED = 75.0  # degrees; the best of 70, 75, 80 and 85 in table 3 of the paper
_LEAST = 0.01  # share of a component
_FEWEST = 20  # values of a mixture of two
_MOST = 20_000  # evenly spaced order statistics stand for more: the fit of a million takes minutes
_SEPARATE = 2.0  # Ashman's D


class Threshold(NamedTuple):
    """A threshold and where it is from.

    Attributes:
        value: The threshold; in degrees if it is one of angles.
        reason: A clause that says where it is from.
        separated: Whether the mixture separates; None if none was asked for.
        weights: The two weights; empty without a fitted mixture, as are the next two.
        means: The two means, the smaller one first.
        deviations: The two standard deviations.
    """

    value: float
    reason: str
    separated: bool | None
    weights: tuple[float, ...] = ()
    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()


def mixture_threshold(
    values: Float[Tensor, " N"], fallback: float = PUBLISHED, *, unit: str = " degrees"
) -> Threshold:
    """Return the value that parts two normal components, or the fallback with a reason.

    Args:
        values: Angles, or other numbers of which the large ones are suspected.
        fallback: The threshold where the mixture does not separate.
        unit: The unit behind a value in the reason.

    Raises:
        ValueError: Values that are not finite.
        ModuleNotFoundError: Scikit-learn is missing (it comes with the extra `lab`).

    Example:
        >>> normal = torch.special.ndtri(torch.linspace(0.002, 0.998, 300).double())
        >>> found = mixture_threshold(torch.cat([40 + 8 * normal, 90 + 6 * normal]))
        >>> found.separated, 60 < found.value < 75
        (True, True)
        >>> mixture_threshold(60 + 8 * normal).separated
        False
    """
    x = values.detach().cpu().double().flatten()
    if not bool(x.isfinite().all()):
        wrong = int((~x.isfinite()).sum())
        raise ValueError(
            f"The values of a mixture are finite, and {wrong} of these {len(x)} are not. Leave "
            "them out."
        )
    told = f"{fallback:g}{unit}, since "
    if len(x) < _FEWEST or float(x.std()) < 1e-9 * (1 + float(x.abs().max())):
        return Threshold(fallback, f"{told}{len(x)} values do not tell two components", False)
    from sklearn.mixture import GaussianMixture  # an extra (`lab`), and slow to import

    if len(x) > _MOST:
        x = x.sort().values[torch.linspace(0, len(x) - 1, _MOST).round().long()]
    center, scale = float(x.mean()), float(x.std())
    column = ((x - center) / scale)[:, None].numpy()
    two = GaussianMixture(2, random_state=0, max_iter=500, tol=1e-6).fit(column)
    one = GaussianMixture(1, random_state=0).fit(column)
    order = two.means_[:, 0].argsort()
    weights = tuple(float(two.weights_[k]) for k in order)
    means = tuple(float(two.means_[k, 0]) * scale + center for k in order)
    deviations = tuple(math.sqrt(float(two.covariances_[k, 0, 0])) * scale for k in order)
    said = (
        f"components of {weights[0]:.0%} at {means[0]:.4g} +- {deviations[0]:.3g} and "
        f"{weights[1]:.0%} at {means[1]:.4g} +- {deviations[1]:.3g}{unit}"
    )
    fitted = (weights, means, deviations)
    D = math.sqrt(2) * (means[1] - means[0]) / math.hypot(*deviations)

    def excess(value: float) -> float:
        """Log density of the upper component over that of the lower."""
        logs = [
            math.log(w) - math.log(s) - 0.5 * ((value - m) / s) ** 2
            for w, m, s in zip(*fitted, strict=True)
        ]
        return logs[1] - logs[0]

    why = ""
    if D <= _SEPARATE:
        why = f"they overlap: Ashman's D is {D:.2f}, not above {_SEPARATE:g}"
    elif min(weights) < _LEAST:
        why = f"the smaller one has less than {_LEAST:.0%} of the values"
    elif two.bic(column) >= one.bic(column):
        why = "one component explains them as well (by BIC)"
    elif not excess(means[0]) < 0 < excess(means[1]):
        why = "one is likelier than the other at both means"
    if why:
        return Threshold(fallback, f"{told}the mixture has {said}, and {why}", False, *fitted)
    value = float(brentq(excess, *means))
    return Threshold(value, f"the mixture has {said}, equally likely here", True, *fitted)
