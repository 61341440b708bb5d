"""Weighted k-nearest-neighbour classification of features, without training.

    vote(q, c) = sum over the k nearest m of label c of exp( cos(q, m) / T )
    class of q = argmax over c of vote(q, c)

It gives one number for each checkpoint. Without queries each row of the bank is classified by the
others (leave one out).

Wu et al., CVPR 2018, section 3.4 (k = 200); T = 0.1 as in the protocol of Huang et al., ICLR 2023.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64, Integer
from torch import Tensor

from marginlab.evaluation.check import Array, check_features, check_labels, check_pair
from marginlab.evaluation.neighbours import Bank
from marginlab.kernels import BUDGET


class RankedClasses(NamedTuple):
    """The classes with the most votes of each query, most first, and their shares of all votes.

    Of equal votes the smaller class comes first. Where fewer classes have votes, the class is -1
    and its share 0.
    """

    classes: Int64[Tensor, "N top"]
    shares: Float64[Tensor, "N top"]


def knn_predict(
    bank: Float[Array, "M D"],
    bank_labels: Integer[Array, " M"],
    queries: Float[Array, "N D"] | None = None,
    *,
    k: int = 200,
    temperature: float = 0.1,
    num_classes: int | None = None,
    budget: int = BUDGET,
) -> Int64[Tensor, " N"]:
    """Return the class of each query by a weighted vote of its k nearest bank features in cosine.

    Of equal votes the smallest class wins. Votes are held for the k neighbours of a block of
    queries, so neither the number of classes nor the size of a label costs memory.

    Args:
        bank: Features with known labels; they need not be normalised.
        bank_labels: Their classes, from 0 on; numbers may be left out.
        queries: Features to classify; by default each of the bank, by the others.
        k: Number of neighbours that vote; a smaller bank votes as a whole.
        temperature: Temperature of the weights exp(cosine / temperature).
        num_classes: Number C of classes; labels must lie below it. By default there is no limit.
        budget: Bytes of a block of similarities, and of a block of votes.

    Returns:
        Classes (N,), on the bank's device.

    Raises:
        ValueError: The bank is empty, or has one feature and there are no queries; values are not
            finite; labels have another shape, type or range; k or temperature is not positive.

    Example:
        >>> queries = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
        >>> knn_predict(torch.eye(2), torch.tensor([0, 1]), queries, k=1)
        tensor([0, 1])
        >>> knn_predict(torch.eye(3)[[0, 0, 1, 1, 1]], torch.tensor([4, 4, 7, 7, 4]), k=1)
        tensor([4, 4, 7, 7, 7])
    """
    ranked = knn_rank(
        bank,
        bank_labels,
        queries,
        top=1,
        k=k,
        temperature=temperature,
        num_classes=num_classes,
        budget=budget,
    )
    return ranked.classes[:, 0]


def knn_rank(
    bank: Float[Array, "M D"],
    bank_labels: Integer[Array, " M"],
    queries: Float[Array, "N D"] | None = None,
    *,
    top: int = 5,
    k: int = 200,
    temperature: float = 0.1,
    num_classes: int | None = None,
    budget: int = BUDGET,
) -> RankedClasses:
    """Return the `top` classes of each query in the order of their votes; see `knn_predict`.

    Args:
        bank: Features with known labels; they need not be normalised.
        bank_labels: Their classes, from 0 on.
        queries: Features to classify; by default each of the bank, by the others.
        top: Number of classes to return, at most k.
        k: Number of neighbours that vote.
        temperature: Temperature of the weights exp(cosine / temperature).
        num_classes: Number C of classes; labels must lie below it.
        budget: Bytes of a block.

    Returns:
        Classes and their shares of the votes, (N, top) each.

    Raises:
        ValueError: As for `knn_predict`, or top is outside 1 to k.

    Example:
        >>> bank = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> found = knn_rank(bank, torch.tensor([3, 3, 8]), torch.tensor([[1.0, 1.0]]), top=3)
        >>> found.classes.tolist(), [round(share, 2) for share in found.shares[0].tolist()]
        ([[3, 8, -1]], [0.75, 0.25, 0.0])
    """
    bank, labels = check_pair("bank", bank, bank_labels, num_classes)
    if queries is not None:
        queries = check_features("queries", queries, dim=bank.shape[1])
    elif len(bank) < 2:
        raise ValueError(
            "The bank has 1 row, and nothing to classify it by: give queries, or 2 rows or more."
        )
    if k < 1 or not temperature > 0:
        given = f"k={k} and temperature={temperature}"
        raise ValueError(f"kNN needs at least 1 neighbour and a positive temperature, not {given}.")
    if not 1 <= top <= k:
        raise ValueError(f"k = {k} neighbours vote for 1 to {k} classes, so top is not {top}.")
    blocks = list(_votes(Bank(bank, queries, budget), labels, k, temperature, top))
    return RankedClasses(*(torch.cat(part) for part in zip(*blocks, strict=True)))


def _votes(
    bank: Bank, labels: Tensor, k: int, temperature: float, top: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ranked classes and their shares, a block of queries at a time."""
    k = min(k, bank.others)
    for rows in torch.arange(len(bank.queries), device=labels.device).split(bank.rows(k)):
        near = bank.nearest(rows, k)
        # relative to the nearest, so that a small temperature does not overflow
        weights = ((near.values - near.values[:, :1]).double() / temperature).exp()
        # the neighbours of a class stand together, in the order of their cosines
        ordered, place = labels[near.indices].sort(dim=1, stable=True)
        group = torch.zeros_like(ordered)
        group[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
        votes = weights.new_zeros(weights.shape).scatter_add_(1, group, weights.gather(1, place))
        classes = torch.full_like(ordered, -1).scatter_(1, group, ordered)
        shares = votes / votes.sum(1, keepdim=True)
        # an absent group comes after one whose vote is rounded to 0
        order = votes.masked_fill(classes < 0, -1.0).sort(dim=1, descending=True, stable=True)
        first = order.indices[:, :top]
        out = first.new_full((len(rows), top), -1), shares.new_zeros(len(rows), top)
        out[0][:, : first.shape[1]] = classes.gather(1, first)
        out[1][:, : first.shape[1]] = shares.gather(1, first)
        yield out


def knn_accuracy(
    bank: Float[Array, "M D"],
    bank_labels: Integer[Array, " M"],
    queries: Float[Array, "N D"] | None = None,
    query_labels: Integer[Array, " N"] | None = None,
    k: int = 200,
    temperature: float = 0.1,
    num_classes: int | None = None,
    budget: int = BUDGET,
) -> float:
    """Return the fraction of queries whose class `knn_predict` finds.

    Without queries it is the leave-one-out accuracy. Its standard error over N queries is
    sqrt(a (1 - a) / N), for the bank as it is. Leave-one-out answers depend on each other, so this
    error does not hold for them.

    Args:
        bank: Features with known labels.
        bank_labels: Their classes.
        queries: Features to classify; by default each of the bank, by the others.
        query_labels: Their classes, given if and only if queries are.
        k: Number of neighbours that vote.
        temperature: Temperature of the weights exp(cosine / temperature).
        num_classes: Number C of classes; labels must lie below it.
        budget: Bytes of a block.

    Raises:
        ValueError: As for `knn_predict`; or there are queries without labels, or labels without
            queries.

    Example:
        >>> x, labels = torch.eye(2), torch.tensor([0, 1])
        >>> knn_accuracy(x, labels, x, torch.tensor([0, 0]), k=1)
        0.5
    """
    bank, bank_labels = check_pair("bank", bank, bank_labels, num_classes)
    queries, truth = check_queries(bank, bank_labels, queries, query_labels, num_classes)
    predicted = knn_predict(
        bank,
        bank_labels,
        queries,
        k=k,
        temperature=temperature,
        num_classes=num_classes,
        budget=budget,
    )
    return float((predicted == truth).double().mean())


def check_queries(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Array | None,
    query_labels: Array | None,
    num_classes: int | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Read queries and their labels; without queries return the labels of the bank.

    Raises:
        ValueError: One of the two is given without the other, or they do not fit.
    """
    if (queries is None) != (query_labels is None):
        given, missing = ("labels", "features") if queries is None else ("features", "labels")
        raise ValueError(
            f"Queries have {given}, but no {missing}. Give both, or neither to leave one out."
        )
    if queries is None:
        return None, bank_labels
    found = check_features("queries", queries, dim=bank.shape[1])
    labels = check_labels("queries", query_labels, found, num_classes)
    return found, labels.to(bank.device)
