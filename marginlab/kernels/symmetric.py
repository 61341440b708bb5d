"""Softmax sum of a symmetric matrix from half of its blocks.

The sum is l_i = log sum_j exp(scale x_i . x_j), over the columns j that row i does not exclude. No
entry exceeds the origin r = scale max |x|^2. With it, e_ij = exp(s_ij - r) serves row i and, as
e_ji, row j:

    S_i = sum_j e_ij,  l_i = r + log S_i,
    and backward  dx_i = scale sum_j (a_i + a_j) e_ij x_j,  a_i = g_i / S_i,

because g_i p_ij + g_j p_ji = (a_i + a_j) e_ij: one exponential and one recomputed product for both.
Each unordered pair of rows is thus computed once forward (half a product instead of one) and once
backward (one and a half instead of three).

One origin for all rows serves as long as exp(-2 r), the smallest possible entry, is a normal
number: r <= 40 in float32 and 350 in float64. A cosine stays within that at temperatures from 0.025
up. Below, the walk over all blocks with a maximum for each row (logsumexp.py) is used.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.kernels.function import Needs, Point, Saved, blockwise, readable, unlowered
from marginlab.kernels.logsumexp import Softmax, blocks, logsumexp
from marginlab.kernels.second import Curvature
from marginlab.kernels.shapes import check_excluded
from marginlab.kernels.walk import BUDGET


def symmetric_logsumexp(
    x: Float[Tensor, "B D"],
    *,
    scale: float | Float[Tensor, ""] = 1.0,
    exclude: Int[Tensor, "B E"] | None = None,
    bound: float | None = None,
    budget: int = BUDGET,
) -> Float[Tensor, " B"]:
    """Return `logsumexp(x, x)` in half its time; differentiable in x and scale.

    Args:
        x: The rows, which are the columns too. Products and sums are float32, or float64 where x
            is, also inside autocast.
        scale: 1/temperature; a tensor without dimensions may learn.
        exclude: Columns that row i leaves out (itself, its positive). Where i leaves out j, j must
            leave out i; this is not checked.
        bound: A number that scale |x_i|^2 does not exceed, such as the scale for rows of length 1.
            It saves reading the largest |x_i|^2, which would wait for a GPU. Without it, the walk
            over all blocks is used wherever reading a number costs something (CUDA, torch.compile,
            torch.func).
        budget: Bytes of the one block that is held, in either pass.

    Returns:
        (B,), float32 or float64; -inf (without gradient) where a row excludes every column.

    Raises:
        ValueError: Shapes that do not fit, or a budget that is not positive.
        RuntimeError: A third derivative is asked for.

    Example:
        >>> itself = torch.tensor([[0], [1]])
        >>> symmetric_logsumexp(torch.eye(2), exclude=itself)  # the other row only: a product of 0
        tensor([0., 0.])
    """
    check_excluded(x, exclude)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    factor = scale.to(x) if isinstance(scale, Tensor) else x.new_full((), scale)
    limit = 350 if x.dtype == torch.float64 else 40
    if bound is None and readable(x) and readable(factor):
        with torch.no_grad():
            bound = float(factor.abs() * x.square().sum(1).amax()) if len(x) else 0.0
    if bound is None or not bound <= limit:
        return logsumexp(x, x, scale=factor, exclude=exclude, budget=budget)
    kernel = _Symmetric(float(bound), budget)
    return blockwise(kernel, x, x.detach()[:0], factor, None if exclude is None else exclude.long())


@dataclass(frozen=True)
class _Symmetric:
    reach: float
    budget: int

    def value(self, point: Point, index: Tensor | None) -> Saved:
        x, _, scale = point
        total = x.new_zeros(len(x))
        for rows, columns, block in blocks(x * scale, x, index, self.budget, upper=True):
            block.sub_(self.reach).exp_()
            total[rows] += block.sum(1)
            if rows != columns:
                total[columns] += block.sum(0)
        return self.reach + total.log(), total

    def slopes(
        self, grad: Tensor, point: Point, index: Tensor | None, saved: Saved, needs: Needs
    ) -> Point:
        (x, y, scale), (_, total) = point, saved
        share = torch.where(total > 0, grad / total, 0.0)  # log 0 has no slope
        expected = torch.zeros_like(x)  # sum_j (a_i + a_j) e_ij x_j
        entry = 2 * x.element_size()
        for rows, columns, block in blocks(
            x * scale, x, index, self.budget, entry=entry, upper=True
        ):
            block.sub_(self.reach).exp_().mul_(share[rows, None] + share[columns])
            with unlowered(x):
                expected[rows].addmm_(block, x[columns])
                if rows != columns:
                    expected[columns].addmm_(block.T, x[rows])
        # Both (i, j) and (j, i) are in the sum for the scale
        return expected * scale, torch.zeros_like(y), (expected * x).sum() / 2

    def curvature(
        self, tangents: Point, grad: Tensor, point: Point, index: Tensor | None, saved: Saved
    ) -> Curvature:
        (x, y, scale), (a, _, e) = point, tangents
        both = Softmax(self.budget).curvature((a, a, e), grad, (x, x, scale), index, saved)
        return both._replace(x=both.x + both.y, y=torch.zeros_like(y))
