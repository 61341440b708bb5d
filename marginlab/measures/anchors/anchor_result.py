"""Shares of images near fixed points, over delta, with exact binomial intervals.

sigma_k(delta) = #{ x in C_k : distance(x) <= delta / 2 } / n_k,   Clopper-Pearson intervals
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.measures.concentration.sigma_curve import Deltas
from marginlab.statistics.intervals import clopper_pearson


class AnchorCurve(NamedTuple):
    """sigma of the anchor form at each delta, for fixed points b_k, and its interval.

    The interval holds at each delta taken by itself.
    """

    deltas: Float[Tensor, " T"]
    sigma: Float[Tensor, " T"]
    lower: Float[Tensor, " T"]
    upper: Float[Tensor, " T"]


class AnchorResult(NamedTuple):
    """Concentration around fixed points on n (C,) held-out images of C classes.

    All intervals have the confidence `confidence`, each taken by itself.

    For each class: `members` (C,) counts its members, `sigma_k` is their share, and `lower` to
    `upper` is the exact binomial interval of the share. `together` (C,) are lower bounds that hold
    for all classes at once (Bonferroni: one-sided, each class with a C-th of the risk).

    `sigma` is the least sigma_k over classes. `sigma_lower` is the least of `lower`. It exceeds the
    least sigma_k only if `lower` of that one class does, so it needs no correction. `sigma_upper`
    is the least of upper ends with a C-th of the risk each (Bonferroni), because all of them must
    hold. The estimate `sigma` itself leans downwards, because it is a minimum of estimates.

    `mean` is the share of members among all images. It estimates sum_k p_k sigma_k if images are
    drawn from the population, so that the classes have the shares of the sample. Its interval is
    then exact. (If the numbers of images are fixed beforehand, p_k is their share, and the number
    of members varies less.)

    `distances` (N,) are the distances of the images to the points of their classes, the minimum
    over V views. `labels` (N,) are their classes. Both are in order of arrival.
    """

    classes: Int[Tensor, " C"]
    delta: float
    n: Int[Tensor, " C"]
    members: Int[Tensor, " C"]
    sigma_k: Float[Tensor, " C"]
    lower: Float[Tensor, " C"]
    upper: Float[Tensor, " C"]
    together: Float[Tensor, " C"]
    sigma: Float[Tensor, ""]
    sigma_lower: Float[Tensor, ""]
    sigma_upper: Float[Tensor, ""]
    mean: Float[Tensor, ""]
    mean_lower: Float[Tensor, ""]
    mean_upper: Float[Tensor, ""]
    distances: Float[Tensor, " N"]
    labels: Int[Tensor, " N"]
    V: int
    confidence: float
    meaning: str

    def sigma_at(self, delta: float) -> tuple[float, float, float]:
        """Return the least sigma_k at another delta, as (estimate, lower, upper).

        The points stay the same.

        Args:
            delta: The distance.
        """
        curve = self.curve([delta])
        return float(curve.sigma), float(curve.lower), float(curve.upper)

    def curve(
        self, deltas: Deltas, reduce: Literal["min", "mean"] = "min", label: int | None = None
    ) -> AnchorCurve:
        """Return sigma over delta for the same points, with its intervals.

        The intervals hold at each delta by itself. A delta picked from the curve for the value it
        shows has no valid interval.

        Args:
            deltas: Where the curve is taken.
            reduce: "min" for the least sigma_k, "mean" for their mean weighted by p_k.
            label: Return the curve of this one class, if it is given.

        Raises:
            ValueError: A delta is negative, the class is not there, or `reduce` is unknown.
        """
        if reduce not in ("min", "mean"):
            raise ValueError(
                "Classes are reduced by 'min' (the theory's sigma) or 'mean' (weighted by p_k), "
                f"not {reduce!r}."
            )
        if label is not None and label not in self.classes.tolist():
            raise ValueError(f"No class has the label {label}: there are {self.classes.tolist()}.")
        given = torch.as_tensor(deltas, dtype=torch.float64, device=self.distances.device).reshape(
            -1
        )
        if not len(given) or not bool((given >= 0).all()):
            raise ValueError(f"delta is a distance, at least 0, not {given.tolist()}.")
        counted = count_members(self.distances, self.labels, self.classes, given)
        if label is not None:
            found = self.classes == label
            return AnchorCurve(
                given,
                *(end[0] for end in binomial(counted[found], self.n[found], self.confidence)),
            )
        if reduce == "mean":
            return AnchorCurve(
                given,
                *(
                    end[0]
                    for end in binomial(
                        counted.sum(0, keepdim=True), self.n.sum()[None], self.confidence
                    )
                ),
            )
        return AnchorCurve(given, *least_share(counted, self.n, self.confidence))


def count_members(distances: Tensor, labels: Tensor, classes: Tensor, deltas: Tensor) -> Tensor:
    """Count the images of each class within each delta / 2 of their point: (C, T)."""
    return torch.stack(
        [
            torch.searchsorted(distances[labels == label].sort().values, deltas / 2, right=True)
            for label in classes
        ]
    )


def binomial(members: Tensor, n: Tensor, confidence: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the share of members, (C, T), and the lower and upper ends of its exact interval."""
    ends = [
        clopper_pearson(row, int(all_), confidence) for row, all_ in zip(members, n, strict=True)
    ]
    lower, upper = (torch.stack(part) for part in zip(*ends, strict=True))
    return members.double() / n[:, None], lower, upper


def least_share(members: Tensor, n: Tensor, confidence: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the least share over classes, (T,), and its interval.

    `AnchorResult` explains the corrections.
    """
    sigma_k, lower, _ = binomial(members, n, confidence)
    upper = binomial(members, n, 1 - (1 - confidence) / len(n))[2]
    return sigma_k.amin(0), lower.amin(0), upper.amin(0)
