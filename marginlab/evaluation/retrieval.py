"""Retrieval: the ranks of the images of a query's class when all images are ordered by cosine.

    R           = references of the query's class
    rel(i)      = 1 if the i-th nearest is one of them, else 0
    P@1         = rel(1)
    R-precision = sum of rel(i) over i <= R, / R
    MAP@R       = sum over i <= R of rel(i) (rel(1) + ... + rel(i)) / i, / R

Each is the mean over queries. MAP@R is at most R-precision. Without queries each reference is a
query among the others (leave one out).

Source: Musgrave, Belongie and Lim, "A metric learning reality check", ECCV 2020, section 3.2.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from marginlab.evaluation.check import Array, check_pair
from marginlab.evaluation.knn import check_queries
from marginlab.evaluation.neighbours import Bank
from marginlab.kernels import BUDGET


class Retrieval(NamedTuple):
    """Means over n queries and their standard errors; `lone` queries were left out.

    Errors are over queries, for the references as they are. In leave-one-out every image is both
    query and reference, so queries depend on each other, and the errors are NaN.
    """

    precision_at_1: float
    r_precision: float
    map_at_r: float
    error_precision_at_1: float
    error_r_precision: float
    error_map_at_r: float
    n: int
    lone: int


def retrieval(
    references: Float[Array, "M D"],
    labels: Integer[Array, " M"],
    queries: Float[Array, "N D"] | None = None,
    query_labels: Integer[Array, " N"] | None = None,
    *,
    budget: int = BUDGET,
) -> Retrieval:
    """Return precision at 1, R-precision and MAP@R of queries among references, by cosine.

    Of equal cosines the reference that is given first comes first; a published evaluation may leave
    that open. A query whose class has no reference (but itself) is left out of the means and
    counted as `lone`. Blocks of queries with about equal R are ranked to depth R, so neither the N
    x M similarities nor N x R neighbours are held.

    Args:
        references: Features that are searched; they need not be normalised.
        labels: Their classes, integers from 0 on.
        queries: Features that search; by default each of the references, among the others.
        query_labels: Their classes, given if and only if queries are.
        budget: Bytes of a block of similarities, and of a block of neighbours.

    Raises:
        ValueError: Features are empty or of another width, values are not finite, labels have
            another shape, type or range, queries come without labels or labels without queries, or
            every query is lone.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
        >>> found = retrieval(features, torch.tensor([0, 1, 0, 1]))
        >>> found.precision_at_1, found.r_precision, found.lone
        (0.0, 0.0, 0)
    """
    bank, labels = check_pair("references", references, labels)
    asked, truth = check_queries(bank, labels, queries, query_labels)
    R = _same(labels, truth) - int(asked is None)
    n = int((R > 0).sum())
    if not n:
        raise ValueError(
            f"None of the {len(truth)} queries has another image of its class among the "
            f"{len(labels)} references. Give references of the queries' classes."
        )
    found = torch.zeros(3, n, dtype=torch.float64, device=bank.device)
    search, at = Bank(bank, asked, budget), 0
    for rows in _alike(R, search):
        found[:, at : at + len(rows)] = _precisions(search, rows, R[rows], labels, truth[rows])
        at += len(rows)
    errors = found.new_full((3,), math.nan)
    if asked is not None and n > 1:
        errors = found.std(1) / math.sqrt(n)
    numbers = [*found.mean(1).tolist(), *errors.tolist()]
    return Retrieval._make([*numbers, n, len(truth) - n])


def _same(labels: Tensor, truth: Tensor) -> Tensor:
    """Count the references of each query's class."""
    classes, counts = labels.unique(return_counts=True)  # sorted
    place = torch.searchsorted(classes, truth).clamp(max=len(classes) - 1)
    return torch.where(classes[place] == truth, counts[place], 0)


def _alike(R: Tensor, search: Bank) -> Iterator[Tensor]:
    """Yield blocks of queries that are not lone, whose R differ by a factor of at most 2."""
    order = R.argsort(stable=True)
    order = order[int((R == 0).sum()) :]
    depth = R[order].cpu()
    start = 0
    while start < len(order):
        end = int(torch.searchsorted(depth, 2 * int(depth[start]), right=True))
        end = min(end, start + search.rows(int(depth[end - 1])))
        yield order[start:end]
        start = end


def _precisions(search: Bank, rows: Tensor, R: Tensor, labels: Tensor, truth: Tensor) -> Tensor:
    """Return P@1, R-precision and average precision at R (3, rows)."""
    deepest = int(R.max())
    near = search.nearest(rows, deepest)
    place = torch.arange(1, deepest + 1, device=R.device)
    hits = (labels[near.indices] == truth[:, None]) & (place <= R[:, None])
    gained = (hits.cumsum(1).double() / place).masked_fill_(~hits, 0.0)
    return torch.stack([hits[:, 0].double(), hits.sum(1) / R.double(), gained.sum(1) / R])
