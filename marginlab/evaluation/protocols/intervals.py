"""Equal error rate, area and TAR at FARs of pairs, with intervals over identities.

    TAR(t) at the point that `Roc.at` takes, drawn again with the people of the pairs

A draw of people has its own threshold: the interval holds the error of the threshold too.
"""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Bool, Float, Integer
from torch import Tensor

from marginlab.evaluation.check import Array
from marginlab.evaluation.protocols.bootstrap import Interval, bootstrap, pair_weights
from marginlab.evaluation.protocols.folds import check_people
from marginlab.evaluation.protocols.roc import Levels, check_scores


def roc_intervals(
    scores: Float[Array, " M"],
    same: Bool[Array, " M"],
    people: tuple[Integer[Array, " M"], Integer[Array, " M"]],
    fars: Sequence[float] = (0.01, 0.001),
    *,
    point: Literal["below", "nearest"] = "below",
    replicates: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Interval, ...]:
    """Return EER, AUC and TAR at each FAR with bootstrap intervals over identities.

    Args:
        scores: The larger, the more alike; any finite numbers.
        same: Marks the genuine pairs.
        people: The identity of each pair's first image, and that of its second.
        fars: False accept rates in (0, 1).
        point: As in `Roc.at`.
        replicates: Number of draws.
        confidence: Confidence of the intervals.
        seed: Seed of the draws.

    Raises:
        ValueError: As for `roc`, `Roc.at` and `bootstrap`; or identities contradict `same`.

    Example:
        >>> import torch
        >>> scores, same = torch.tensor([0.9, 0.1, 0.8, 0.2]), torch.tensor([True, False] * 2)
        >>> a, b = torch.tensor([0, 0, 2, 2]), torch.tensor([0, 1, 2, 3])
        >>> eer, auc, tar = roc_intervals(scores, same, (a, b), (0.5,), replicates=50)
        >>> eer.value, auc.value, tar.value
        (0.0, 1.0, 1.0)
    """
    found, kinds = check_scores(scores, same)
    first, second, number = check_people(*people, kinds)
    found, order = found.sort(descending=True, stable=True)  # so that a draw reads in order
    kinds, first, second = (x[order] for x in (kinds, first, second))
    del order
    levels = Levels(found, kinds, falling=True)
    del found  # its levels are kept; there may be tens of millions of pairs

    def numbers(weights: Tensor) -> list[float]:
        of_pairs = pair_weights(weights, first, second)
        if not float(of_pairs[kinds].sum()) or not float(of_pairs[~kinds].sum()):
            raise ZeroDivisionError("a kind of pair was not drawn")
        curve = levels.curve(of_pairs)
        return [curve.eer, curve.auc, *(curve.at(far, point).tar for far in fars)]

    return bootstrap(numbers, number, replicates=replicates, confidence=confidence, seed=seed)
