"""The margin softmax in three products and few passes, for the plain case in float32 on a CPU.

The exponentials are stored where the general way stores products, each over the length of its
center. The own class y_i is left out, z_ij = s cos_ij + lift_j are logits, and u_i is the upstream
gradient of a row's loss:

    E_ij = e^{z_ij} / |w_j|,  E_{i y_i} = 0
    forward    Z_i = sum_j E_ij |w_j|,   A_i = sum_j E_ij w_j
    backward   g_j = sum_i E_ij (s u_i e^{-L_i}) x_i,   dw_j = g_j - w_j (w_j . g_j) / |w_j|^2
               dx_i = s u_i (e^{-L_i} A_i + a_i w_{y_i} / |w_{y_i}|)

L_i is the log of the whole sum, x_i a row of unit length, and a_i the slope of the loss in its own
cosine. The own classes' part of dw is linear, so it is added at the end, for B centers alone.

Cosines lie in [-1, 1]. While s plus log n is below 84, all these numbers are in the range of
float32, and no running maximum is needed. The backward pass then makes no pass over the logits at
all: e^{-L_i} is a factor of the rows. The lengths are factors of the columns, so no center is
normalised or copied. Every pass between two products finds its tile in cache.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from marginlab.kernels.function import readable
from marginlab.kernels.pointwise import plain
from marginlab.kernels.tiles import Columns, Gradients, Rows, Slopes, Sums, leave_out

TILE = 16 * 2**20  # bytes: larger than of the general way, because a tile is held once
LONGEST = 1e4  # centers are at most this long, and at least the inverse
LARGEST = 84.0  # e^84 = 3e36: float32 ends at 3e38
USUAL = (1e-3, 1e3)  # factors of rows that need no factor of their own to stay in range


class Exponentials:
    """The exponentials of a call, in the buffer that it holds, and the sums that they enter."""

    def __init__(self, columns: Columns, rows: int):
        self.columns = columns
        self.towards = columns.inverse.new_zeros(rows, columns.D)  # A

    def forward(self, rows: Rows, part: slice, buffer: Tensor, *, measure: bool) -> Sums | None:
        """Fill the buffer for a part of the rows, and return its sums.

        Returns:
            None where a center is too long or too short: then nothing of it holds.
        """
        columns, direction = self.columns, rows.direction
        sums = direction.new_zeros(len(direction))
        towards = self.towards[part].zero_()
        for tile in self._tiles(len(direction)):
            centers = columns.stored(tile).squeeze(1)
            if measure and not _measured(centers, columns, tile):
                return None
            inverse, factor = columns.inverse[tile, 0], columns.factor[tile, 0]
            e = place(buffer, len(direction), tile)
            torch.mm(direction, centers.T, out=e)
            shift = inverse.log() if columns.lift is None else inverse.log() + columns.lift[tile]
            torch.addcmul(shift, e, factor, out=e)
            leave_out(e, rows.column[:, None], tile)
            sums.addmv_(e.exp_(), inverse.reciprocal())
            if not columns.settings.negligible > 0:  # else only for the rows that are kept
                towards.addmm_(e, centers)
        return Sums(torch.zeros_like(sums), sums, *sums.new_zeros(3, len(sums)).unbind())

    def backward(
        self,
        rows: Rows,
        chosen: tuple[slice, Tensor | None],
        buffer: Tensor,
        slopes: Slopes,
        upstream: Tensor,
        into: Gradients,
    ) -> Tensor:
        """Write or add the gradient of the centers, and return that of the rows' directions.

        Args:
            rows: The rows that take part.
            chosen: The part that fills the buffer, and those of its rows that take part; None: all.
            buffer: The exponentials of the part.
            slopes, upstream: Of the rows that take part.
            into: `centers` is written into.
        """
        columns, direction, dw = self.columns, rows.direction, into.centers
        part, places = chosen
        height = part.stop - part.start
        weight, own, inverse = self._own(rows)
        factor = columns.settings.scale * upstream
        # a row with another class has a log of the sum above -s; without one its exponentials are 0
        small = (-slopes.log_sum.clamp_min(-LARGEST)).exp_()
        towards = self.towards[part] if places is None else torch.zeros_like(direction)
        top = float(factor.abs().max()) if len(factor) else 1.0
        top = 1.0 if top == 0 or USUAL[0] <= top <= USUAL[1] else top
        weighted = direction * (small * (factor / top))[:, None]
        for tile in self._tiles(height):
            e = place(buffer, height, tile)
            if places is not None:
                e = e[places]
                towards.addmm_(e, columns.stored(tile).squeeze(1))
            if dw is None:
                continue
            grad = dw[tile].squeeze(1)
            _add_product(grad, e.T, weighted, top, add=into.add)
            if into.complete:
                _project(grad, columns, tile)
        towards = towards * small[:, None] + own * slopes.target[:, None]
        dx = towards.mul_(factor[:, None])
        if dw is None or columns.n == 0:
            return dx
        along = (direction * own).sum(1, keepdim=True)
        own_part = (direction - own * along) * (slopes.target * factor * inverse)[:, None]
        dw.squeeze(1).index_add_(0, weight, own_part)
        return dx

    def _tiles(self, rows: int) -> Iterator[slice]:
        """Yield the columns, as many at a time as a tile holds with its centers and gradient."""
        n, column = self.columns.n, 4 * (rows + 2 * self.columns.D)
        width = max(1, min(self.columns.budget, TILE) // column)
        for left in range(0, n, width):
            yield slice(left, min(left + width, n))

    def _own(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows' own columns, the directions of these, and 1 / length.

        The last two are 0 where the class is another rank's.
        """
        columns, here = self.columns, rows.column >= 0
        column = rows.column.clamp(0, max(columns.n - 1, 0))
        if columns.n == 0:
            return column, torch.zeros_like(rows.direction), rows.direction.new_zeros(len(column))
        inverse = columns.inverse[column, 0].masked_fill(~here, 0.0)
        number = column if columns.classes is None else columns.classes[column]
        return column, columns.weight[number, 0] * inverse[:, None], inverse


def fits(columns: Columns, rows: Rows) -> bool:
    """Return whether a call is of this kind; its centers' lengths are known later."""
    weight, settings = columns.weight, columns.settings
    if (
        weight.device.type != "cpu"
        or settings.compiled
        or not weight.dtype == columns.operands == columns.wide == torch.float32
        or not readable(weight)
        or not plain(columns, rows)
    ):
        return False
    lift = 0.0
    if columns.lift is not None and columns.n:
        lift = float(columns.lift.abs().max())
    return settings.scale + lift + max(math.log(max(columns.n, 1)), math.log(LONGEST)) <= LARGEST


def place(buffer: Tensor, rows: int, tile: slice) -> Tensor:
    """Return a tile's exponentials (B, T), which lie next to each other in the buffer."""
    return buffer[rows * tile.start : rows * tile.stop].view(rows, tile.stop - tile.start)


def _measured(centers: Tensor, columns: Columns, tile: slice) -> bool:
    """Measure a tile's centers (T, D); return whether all lengths are in range."""
    norm = torch.linalg.vector_norm(centers, dim=1)
    low, high = norm.aminmax()
    columns.inverse[tile, 0] = norm.reciprocal_()
    torch.mul(columns.inverse[tile], columns.settings.scale, out=columns.factor[tile])
    return bool(low >= 1 / LONGEST) and bool(high <= LONGEST)  # False where a number is NaN


def _add_product(grad: Tensor, a: Tensor, b: Tensor, factor: float, *, add: bool) -> None:
    """Write factor a b into a gradient, or add it; the factor alone may leave the range of a."""
    if factor == 1.0:
        grad.addmm_(a, b, beta=float(add))
    elif add:
        grad.add_(torch.mm(a, b), alpha=factor)
    else:
        torch.mm(a, b, out=grad).mul_(factor)


def _project(grad: Tensor, columns: Columns, tile: slice) -> None:
    """Remove the part along the centers from their gradient (T, D)."""
    centers, inverse = columns.stored(tile).squeeze(1), columns.inverse[tile, 0]
    along = torch.linalg.vecdot(grad, centers).mul_(inverse).mul_(inverse)
    grad.addcmul_(centers, along[:, None], value=-1)
