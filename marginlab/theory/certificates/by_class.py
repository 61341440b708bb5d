"""The form with fixed centers, class by class, with limits for new images in any class shares.

It shows what was fixed and what each class costs:

    P[nearest c wrong]  <=  sum_k p_k u_k  <=  sum_k p_k b_k
    u_k = P[the image-wise condition fails | class k]
    b_k = P[not in main_k, or not in S_eps_k | class k],  1 where class k does not hold

A pooled count of new images is binomial with such a sum, so it needs no p_k, but its limit is for
images that come in the class shares of those that were counted. An upper limit of each u_k with a
C-th of the risk (Bonferroni) holds for all classes at once. Then sum_k p_k upper_k bounds the error
for every p, even one chosen afterwards, and max_k upper_k bounds it whatever the shares are.

Source: Clopper and Pearson, Biometrika 26, 1934.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy import special
from torch import Tensor

from marginlab.theory import inputs


class ByClass(NamedTuple):
    """The form with fixed centers for each of C classes; `labels` increase.

    Attributes:
        labels: Labels of the classes.
        p: Class shares of the images that the centers were fixed on (or the priors given).
        nearest: Distance from c_k to the next center.
        delta: delta_k.
        epsilon: epsilon_k.
        holds: Classes that hold.
        outside: P[not main | k] of the images that the centers were fixed on.
        R_epsilon: P[not in S_eps | k] of these images.
        bad: b_k of these images.
        n: Number of new images.
        new_bad: Number of new images that are bad.
        new_uncertified: Number of new images for which the image-wise condition fails.
        new_wrong: Number of new images that are read as another class.
        upper: Upper limits of u_k, for all classes at once at `confidence`; 1 for a class without a
            new image.
        direct: Upper limits of the error, for all classes at once at `confidence`; 1 for a class
            without a new image.
        confidence: The confidence of the limits.
        unknown: Number of new images of other classes, which have no center.
    """

    labels: Int[Tensor, " C"]
    p: Float[Tensor, " C"]
    nearest: Float[Tensor, " C"]
    delta: Float[Tensor, " C"]
    epsilon: Float[Tensor, " C"]
    holds: Bool[Tensor, " C"]
    outside: Float[Tensor, " C"]
    R_epsilon: Float[Tensor, " C"]
    bad: Float[Tensor, " C"]
    n: Int[Tensor, " C"]
    new_bad: Int[Tensor, " C"]
    new_uncertified: Int[Tensor, " C"]
    new_wrong: Int[Tensor, " C"]
    upper: Float[Tensor, " C"]
    direct: Float[Tensor, " C"]
    confidence: float
    unknown: int = 0

    def limit(self, p: Float[Tensor, " C"] | None = None) -> tuple[float, float]:
        """Return (certified, direct) limits of the error of new images.

        Args:
            p: Class shares (C,) of the new images. None allows any shares, and takes the worst
                class.

        Raises:
            ValueError: p are no class priors of these classes.
        """
        if p is None:
            if self.unknown:
                return 1.0, 1.0
            return float(self.upper.max()), float(self.direct.max())
        p = inputs.priors(p)
        if len(p) != len(self.upper):
            raise ValueError(
                f"Class priors are one for each of the classes {self.labels.tolist()}, not "
                f"{len(p)}."
            )
        return float(p @ self.upper), float(p @ self.direct)

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each class."""
        columns = {
            name: column.tolist()
            for name, column in self._asdict().items()
            if isinstance(column, Tensor)
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def upper_limit(
    count: Int[Tensor, " C"], n: Int[Tensor, " C"], confidence: float
) -> Float[Tensor, " C"]:
    """Return the one-sided exact upper limit of a probability from a count among n; 1 where n is 0.

    Example:
        >>> upper_limit(torch.tensor([0, 3]), torch.tensor([10, 3]), 0.95)
        tensor([0.2589, 1.0000], dtype=torch.float64)
    """
    k, of = count.cpu().double().numpy(), n.cpu().double().numpy()
    # NaN where the count is n: there is no upper end
    limit = torch.from_numpy(special.betaincinv(k + 1, of - k, confidence)).nan_to_num(nan=1.0)
    return limit.to(count.device)


def lower_limit(
    count: Int[Tensor, " C"], n: Int[Tensor, " C"], confidence: float
) -> Float[Tensor, " C"]:
    """Return the one-sided exact lower limit of a probability from a count among n; 0 where n is 0.

    Example:
        >>> lower_limit(torch.tensor([10, 0]), torch.tensor([10, 3]), 0.95)
        tensor([0.7411, 0.0000], dtype=torch.float64)
    """
    return 1 - upper_limit(n - count, n, confidence)
