"""Checks of the settings and of the batch of InfoNCE, and whether a batch compares anything."""

from typing import Literal

from torch import Tensor

from marginlab.losses.faults import check_labels
from marginlab.losses.pair import check_word, wide, widened

Negatives = Literal["both_views", "other_view", "extra_only"]
Reduction = Literal["mean", "sum", "none"]


def check(
    temperature: float | None,
    negatives: str,
    symmetric: bool,
    tau_plus: float,
    reduction: str,
    grads: str,
) -> None:
    """Check the settings of InfoNCE; raise ValueError for an invalid one."""
    if temperature is not None and not temperature > 0:
        raise ValueError(f"A temperature is positive, such as 0.5, not {temperature}.")
    if not 0 <= tau_plus < 1:
        raise ValueError(
            "tau_plus is the share of an anchor's own class among its negatives, in [0, 1), such "
            f"as 0.1 for ten classes, not {tau_plus}."
        )
    check_word("negatives", negatives, ("both_views", "other_view", "extra_only"))
    check_word("reduction", reduction, ("mean", "sum", "none"))
    check_word("grads", grads, ("mean", "sum"))
    if negatives == "both_views" and not symmetric:
        raise ValueError(
            "With negatives='both_views' both views are anchors. For z1 alone as anchors say "
            "negatives='other_view', symmetric=False."
        )


def checked(
    z1: Tensor,
    z2: Tensor,
    extra_negatives: Tensor | None,
    labels: Tensor | None,
    negatives: str,
    tau_plus: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return this rank's batch in the precision of the sums; raise if it is invalid."""
    z1, z2 = wide(z1, z2)
    if labels is not None:
        check_labels(labels, z1.device)
        if labels.shape != z1.shape[:1]:
            raise ValueError(
                f"Labels are ({len(z1)},), one class for each row of a view, not "
                f"{tuple(labels.shape)}."
            )
        if tau_plus:
            raise ValueError(
                "With labels no negative is of the anchor's class, so tau_plus is 0, not "
                f"{tau_plus}: give labels or tau_plus."
            )
        if negatives == "extra_only":
            raise ValueError(
                "With negatives='extra_only' labels say nothing of the extra negatives. For a bank "
                "with labels there is sup_con(embeddings, labels, references=bank.references())."
            )
    if extra_negatives is None:
        if negatives == "extra_only":
            raise ValueError(
                "With negatives='extra_only' the extra negatives are the only ones. Give "
                "extra_negatives=bank.rows(), as of an EmbeddingBank; also none (0, D)."
            )
        return z1, z2, None
    if extra_negatives.ndim != 2 or extra_negatives.shape[1] != z1.shape[1]:
        raise ValueError(
            f"Extra negatives are a matrix (M, {z1.shape[1]}), as wide as the views, not "
            f"{tuple(extra_negatives.shape)}."
        )
    return z1, z2, widened(extra_negatives, z1.dtype)


def alone(n: int, more: Tensor, negatives: str, labels: Tensor | None, empty: str) -> bool:
    """Return whether no anchor has a negative.

    Labels, which a device holds, are read only if `empty` is "raise".
    """
    if len(more):
        return False
    if n == 1 or negatives == "extra_only":
        return True
    return labels is not None and empty == "raise" and bool((labels == labels[0]).all())
