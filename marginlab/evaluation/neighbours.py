"""The k nearest features of a bank in cosine, a block of queries at a time under a byte budget.

    near(q) = the k rows m of the bank with the largest cos(q, m), without q itself if it is a row

Of equal cosines the smaller row comes first. So the answer does not depend on the blocks, unless
blocks of different sizes round two equal cosines differently.
"""

import torch
from torch import Tensor

from marginlab.evaluation.check import directions
from marginlab.kernels import top_k
from marginlab.kernels.topk import TopK

NEIGHBOUR = 64  # bytes held for a neighbour: cosine, row, and their use in votes and precisions


class Bank:
    """Directions of features that are searched, and of the queries that search them.

    Without queries each row of the bank is a query among the others (leave one out).
    """

    def __init__(self, bank: Tensor, queries: Tensor | None, budget: int):
        if budget <= 0:
            raise ValueError(f"A block needs a positive byte budget, not {budget}.")
        of = (bank.dtype,) if queries is None else (bank.dtype, queries.dtype)
        wide = torch.float64 if torch.float64 in of else torch.float32
        self.leave_one_out, self.budget = queries is None, budget
        self.bank = directions(bank, wide)
        self.queries = self.bank if queries is None else directions(queries.to(bank.device), wide)
        self.others = len(bank) - self.leave_one_out
        """Rows that a query may find."""

    def rows(self, k: int) -> int:
        """Return how many queries with k neighbours each fit into a block."""
        held = NEIGHBOUR * k + self.bank.shape[1] * self.bank.element_size()
        return max(1, self.budget // held)

    def nearest(self, rows: Tensor, k: int) -> TopK:
        """Return the k nearest of these queries, nearest first; k is at most `others`."""
        if not self.leave_one_out:
            return top_k(self.queries[rows], self.bank, k, budget=self.budget)
        found = top_k(self.queries[rows], self.bank, k + 1, budget=self.budget)
        own = found.indices == rows[:, None]
        # where k + 1 others are as near, they come before the query: drop the last of them
        own[:, -1] |= ~own.any(1)
        values, indices = (part[~own].view(len(rows), k) for part in found)
        return TopK(values, indices)
