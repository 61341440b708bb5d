"""The form with fixed centers class by class: what was fixed, what each class costs, and limits for
new images whatever the shares of the classes.

    P[nearest c wrong]  <=  sum_k p_k b_k,          b_k = P[not in main_k, or not in S_eps_k | class k],  1 where class k does not hold

The pooled count of `new_images` is binomial with this sum, so it needs no p_k, but its limit is for
images that come in the class shares of those that were counted. An upper limit of each b_k with a
C-th of the risk (Bonferroni) holds for all classes at once; then sum_k p_k upper_k bounds the error
for every p, even one chosen afterwards, and max_k upper_k bounds it whatever the shares are.
Clopper and Pearson, Biometrika 26, 1934.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from marginlab.theory import inputs


class ByClass(NamedTuple):
    """What the form with fixed centers says of each of C classes; `labels` increase.

    Of the images that the centers were fixed on: `p` their class shares (or the priors given),
    `nearest` the distance from c_k to the next center, `delta`, `epsilon` and whether the class
    `holds`; `outside`, `R_epsilon` and `bad`: P[not main | k], P[not in S_eps | k], b_k. Of the new
    images: `n`, how many are `new_bad` and how many `new_wrong` (read as another class); `upper`
    limits of b_k and `direct` ones of the error, each for all classes at once at `confidence`, and
    1 for a class without a new image. `unknown` new images are of other classes, which have no
    center.
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
    new_wrong: Int[Tensor, " C"]
    upper: Float[Tensor, " C"]
    direct: Float[Tensor, " C"]
    confidence: float
    unknown: int = 0

    def limit(self, p: Float[Tensor, " C"] | None = None) -> tuple[float, float]:
        """(certified, direct) limits of the error of new images in class shares p (C,), or, without
        p, in any shares: the worst class.

        Raises ValueError for p that are no class priors of these classes.
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
        """A row for each class."""
        columns = {
            name: column.tolist()
            for name, column in self._asdict().items()
            if isinstance(column, Tensor)
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def upper_limit(
    count: Int[Tensor, " C"], n: Int[Tensor, " C"], confidence: float
) -> Float[Tensor, " C"]:
    """One-sided exact upper limit of a probability from a count among n; 1 where n is 0.

    >>> upper_limit(torch.tensor([0, 3]), torch.tensor([10, 3]), 0.95)
    tensor([0.2589, 1.0000], dtype=torch.float64)
    """
    k, of = count.cpu().double().numpy(), n.cpu().double().numpy()
    # all of them: no upper end
    limit = torch.from_numpy(stats.beta.ppf(confidence, k + 1, of - k)).nan_to_num(nan=1.0)
    return limit.to(count.device)
