"""The pointwise part of the margin softmax on CUDA, in Triton.

One pass over a tile of products P (B, T) gives the sums, and another one the gradient.

    z_ij = P_ij / |w_j| + lift_j, -inf at the row's own column y_i

    forward     per row and block of columns: m = max_j z_ij and S = sum_j e^(z_ij - m),
                merged into the running sums by the online softmax
    backward    d loss / dz_ij = e^(z_ij - L_i), with L_i the log of the whole sum;
                at the own column the slope that the margin gives

A tile is bound by memory. torch's own operations read or write it 8 times forward (product,
maximum, difference, exponential, sum) and 6 times backward. Here the forward pass reads it once and
writes 2 numbers for 2048 of its own. The backward pass reads it once and writes the gradient in the
dtype that the next product takes. The gradient has a place of its own, because the products may be
held for a second backward pass. Blocks are merged in one order, without atomics, so that equal
calls give equal bits. All this is for the plain case (`marginlab.kernels.pointwise.plain`).

Source: Milakov and Gimelshein 2018, algorithm 3 and section 3.1 (partial maxima and sums merge
associatively). This file loads Triton, so nothing imports it before it is needed.
"""

import functools
import warnings
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from marginlab.kernels.tiles import Columns, Rows, Slopes, Sums

# rows of a block: the columns' norms (as many bytes as a row of products) are read once for them
ROWS = 4
COLUMNS = 2048  # columns of a block: 32 products a thread, 8 loads of 16 bytes
WARPS = 8
MERGED = 16  # rows whose blocks one program merges, 64 blocks at a time
BLOCKS = 64


# The checker of annotations would wrap what Triton reads the source of, hence no_type_check; T and
# stride are specialised on whether 16 divides them
@no_type_check
@triton.jit
def _place(B, T, target, start, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The rows and columns of this program's block, and each row's own column among them or -1."""
    blocks = tl.cdiv(T, COLUMNS)
    row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    here = tl.load(target + row, mask=row < B, other=-1).to(tl.int64) - start
    return row, column, tl.where((here >= 0) & (here < T), here, -1).to(tl.int32)


@no_type_check
@triton.jit
def _logits(product, stride, factor, lift, row, column, B, T, LIFT: tl.constexpr):
    """The block's logits, own columns included, and -inf beyond the last column."""
    there = column < T
    # rows x columns may pass 2^31
    at = product + row.to(tl.int64)[:, None] * stride + column[None, :]
    z = (
        tl.load(at, mask=(row < B)[:, None] & there[None, :], other=0.0)
        * tl.load(factor + column, mask=there, other=0.0)[None, :]
    )
    if LIFT:
        z += tl.load(lift + column, mask=there, other=0.0).to(tl.float32)[None, :]
    return tl.where(there[None, :], z, float("-inf"))


@no_type_check
@triton.jit(do_not_specialize=["B", "start"])
def _sums(
    product,
    stride,
    factor,
    lift,
    target,
    start,
    top,
    total,
    B,
    T,
    LIFT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Store each row's largest logit in this block of columns, and the sum of e^(z - largest).

    Both outputs are (B, blocks).
    """
    row, column, here = _place(B, T, target, start, ROWS, COLUMNS)
    z = _logits(product, stride, factor, lift, row, column, B, T, LIFT)
    z = tl.where(column[None, :] == here[:, None], float("-inf"), z)
    highest = tl.max(z, 1)
    origin = tl.where(highest == float("-inf"), 0.0, highest)  # -inf minus -inf is no number
    blocks = tl.cdiv(T, COLUMNS)
    at = row.to(tl.int64) * blocks + tl.program_id(0) % blocks
    tl.store(top + at, highest, mask=row < B)
    tl.store(total + at, tl.sum(tl.exp(z - origin[:, None]), 1), mask=row < B)


@no_type_check
@triton.jit(do_not_specialize=["B", "blocks"])
def _merge(
    highest,
    total,
    tops,
    totals,
    new_highest,
    new_total,
    B,
    blocks,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Add the blocks' sums (B, blocks) to the running sums (B,), from the first to the last."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    largest = tl.load(highest + row, mask=row < B, other=float("-inf"))
    summed = tl.load(total + row, mask=row < B, other=0.0)
    for first in range(0, blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        at = row.to(tl.int64)[:, None] * blocks + block[None, :]
        there = (row < B)[:, None] & (block < blocks)[None, :]
        top = tl.load(tops + at, mask=there, other=float("-inf"))
        part = tl.load(totals + at, mask=there, other=0.0)
        before, largest = largest, tl.maximum(largest, tl.max(top, 1))
        origin = tl.where(largest == float("-inf"), 0.0, largest)
        summed = summed * tl.exp(before - origin) + tl.sum(part * tl.exp(top - origin[:, None]), 1)
    tl.store(new_highest + row, largest, mask=row < B)
    tl.store(new_total + row, summed, mask=row < B)


@no_type_check
@triton.jit(do_not_specialize=["B", "start"])
def _gradient(
    product,
    stride,
    factor,
    lift,
    target,
    start,
    log_sum,
    slope,
    grad,
    B,
    T,
    LIFT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Store e^(z - log_sum), and the slope at the own column: (B, T), in the dtype of grad."""
    row, column, here = _place(B, T, target, start, ROWS, COLUMNS)
    z = _logits(product, stride, factor, lift, row, column, B, T, LIFT)
    p = tl.exp(z - tl.load(log_sum + row, mask=row < B, other=0.0)[:, None])
    p = tl.where(
        column[None, :] == here[:, None], tl.load(slope + row, mask=row < B, other=0.0)[:, None], p
    )
    at = grad + row.to(tl.int64)[:, None] * T + column[None, :]
    tl.store(at, p.to(grad.dtype.element_ty), mask=(row < B)[:, None] & (column < T)[None, :])


def forward_tile(
    product: Float[Tensor, "B T 1"], columns: Columns, rows: Rows, tile: slice, sums: Sums
) -> Sums:
    """Add a tile's products to the sums, as `tiles.forward_tile` does in the plain case.

    The products are float32 and next to each other within a row. No host synchronisation; 8 bytes a
    row for each 2048 columns are held for the merge.
    """
    B, T = product.shape[:2]
    blocks = triton.cdiv(T, COLUMNS)
    tops, totals = product.new_empty(2, B, blocks)
    highest, total = torch.empty_like(sums.highest), torch.empty_like(sums.total)
    # Triton launches on the current device, wherever its arguments lie
    with torch.cuda.device_of(product):
        _sums[(triton.cdiv(B, ROWS) * blocks,)](
            *_operands(product, columns, rows, tile),
            tops,
            totals,
            B,
            T,
            LIFT=columns.lift is not None,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            num_warps=WARPS,
        )
        _merge[(triton.cdiv(B, MERGED),)](
            sums.highest,
            sums.total,
            tops,
            totals,
            highest,
            total,
            B,
            blocks,
            ROWS=MERGED,
            BLOCKS=BLOCKS,
        )
    return sums._replace(highest=highest, total=total)


def backward_tile(
    product: Float[Tensor, "B T 1"], columns: Columns, rows: Rows, tile: slice, slopes: Slopes
) -> Float[Tensor, "B T"]:
    """Return d loss / d (s cosine) of a tile, as `tiles.backward_tile` does in the plain case.

    The gradient has the dtype of the operands.
    """
    B, T = product.shape[:2]
    grad = product.new_empty(B, T, dtype=columns.operands)
    with torch.cuda.device_of(product):
        _gradient[(triton.cdiv(B, ROWS) * triton.cdiv(T, COLUMNS),)](
            *_operands(product, columns, rows, tile),
            slopes.log_sum.contiguous(),
            slopes.target.contiguous(),
            grad,
            B,
            T,
            LIFT=columns.lift is not None,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            num_warps=WARPS,
        )
    return grad


def _operands(
    product: Tensor, columns: Columns, rows: Rows, tile: slice
) -> tuple[Tensor, int, Tensor, Tensor, Tensor, int]:
    """Return the operands that both kernels begin with.

    They are the products, their row stride, 1 / |w|, the lift or a tensor in its place, the own
    columns, and the tile's first column.
    """
    factor = columns.factor[tile, 0]
    lift = factor if columns.lift is None else columns.lift[tile].contiguous()
    return product, product.stride(0), factor, lift, rows.column.contiguous(), tile.start


@functools.cache
def runs(device: torch.device) -> bool:
    """Return whether the kernels run on a device; the smallest is tried, once.

    A machine may have Triton and lack the compiler that its launcher needs.
    """
    vector = torch.zeros(1, device=device)
    try:
        with torch.cuda.device_of(vector):
            _merge[(1,)](
                vector, vector, vector, vector, vector, vector, 1, 1, ROWS=MERGED, BLOCKS=BLOCKS
            )
    except Exception as fault:  # whatever it is, torch's operations do the same
        warnings.warn(
            f"Triton's kernels do not run on {device} ({type(fault).__name__}: {fault}): the "
            "margin softmax passes over its logits with torch's own operations, which is slower. "
            "Triton needs a C compiler on the path and a GPU of compute capability 8.0 or later.",
            stacklevel=2,
        )
        return False
    return True
