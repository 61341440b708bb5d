"""Second derivatives of softmax sums of a matrix that is never held.

With l_i = log sum_j e^{s_ij}, p_ij = e^{s_ij - l_i} and the upstream gradient g, the first
derivatives are those of s weighted by g_i p_ij. For tangents (A, C, e) of (x, y, scale), the logits
s_ij = scale x_i . y_j change by t_ij = scale (A_i . y_j + x_i . C_j) + e x_i . y_j, and

    phi = sum_ij g_i p_ij t_ij,   m_i = sum_j p_ij t_ij,
    V_ij = g_i p_ij,              W_ij = V_ij (t_ij - m_i),

    dphi/dg_i = m_i,
    dphi/dscale = sum_ij W_ij x_i . y_j + V_ij (A_i . y_j + x_i . C_j),
    dphi/dx_i = sum_j (scale W_ij + e V_ij) y_j + scale V_ij C_j,
    dphi/dy_j likewise with x and A.

So one walk gives m and a second one the rest, each within the byte budget of a block and its three
products.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

Blocks = Callable[[Tensor, Tensor], Iterator[tuple[slice, slice, Tensor, Tensor | None]]]


class Curvature(NamedTuple):
    """Derivatives of phi with respect to the upstream gradient, rows, columns and scale."""

    grad: Tensor
    x: Tensor
    y: Tensor
    scale: Tensor


def curvature(
    blocks: Blocks,
    point: tuple[Tensor, Tensor, Tensor],
    tangents: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
    grad: Tensor,
) -> Curvature:
    """Return derivatives of the product of first derivatives with tangents, from two walks.

    Args:
        blocks: Gives the blocks of logits of rows (already times the scale) and columns, with -inf
            at columns left out, and a mask of what belongs to the first of two sums, or None.
        point: x (B, D), y (M, D), scale ().
        tangents: A (B, D), C (M, D), e ().
        out: The sums, (B, 1) or (B, 2); -inf where a sum is empty.
        grad: The upstream gradient, of the same shape.
    """
    (x, y, scale), (a, c, e) = point, tangents
    empty = out == -torch.inf
    grad = grad.masked_fill(empty, 0.0)
    origin = out.masked_fill(empty, torch.inf)
    moment = torch.zeros_like(out)
    to = Curvature(moment, torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(scale))
    scaled = x * scale
    for rows, columns, block, inside in blocks(scaled, y):
        share = block.sub_(chosen(origin[rows], inside)).exp_()
        turned = _product(point, tangents, rows, columns).mul_(share)
        if inside is None:
            moment[rows, -1] += turned.sum(1)
        else:
            first = turned.masked_fill(~inside, 0.0).sum(1)
            moment[rows] += torch.stack((first, turned.masked_fill_(inside, 0.0).sum(1)), 1)
    total = torch.zeros_like(scale)
    for rows, columns, block, inside in blocks(scaled, y):
        v = block.sub_(chosen(origin[rows], inside)).exp_()
        v.mul_(chosen(grad[rows], inside))
        w = _product(point, tangents, rows, columns).sub_(chosen(moment[rows], inside))
        w.mul_(v)
        # sum W x.y + V (A.y + x.C), from matrices of the width of the embeddings
        wy, vy, vc = w @ y[columns], v @ y[columns], v @ c[columns]
        total += (wy * x[rows]).sum() + (vy * a[rows]).sum() + (vc * x[rows]).sum()
        to.x[rows] += scale * wy + e * vy + scale * vc
        to.y[columns] += scale * (w.T @ x[rows] + v.T @ a[rows]) + e * (v.T @ x[rows])
    return to._replace(scale=total)


def _product(
    point: tuple[Tensor, Tensor, Tensor],
    tangents: tuple[Tensor, Tensor, Tensor],
    rows: slice,
    columns: slice,
) -> Tensor:
    """Return the change of the logits along the tangents, in a new block."""
    (x, y, scale), (a, c, e) = point, tangents
    return (scale * a[rows] + e * x[rows]) @ y[columns].T + (scale * x[rows]) @ c[columns].T


def chosen(values: Tensor, inside: Tensor | None) -> Tensor:
    """Of a row's two numbers, select that of the sum that a column is in.

    A single number is returned as it is.
    """
    if inside is None:
        return values[:, -1:]
    return torch.where(inside, values[:, :1], values[:, -1:])
