"""Tiles of the logits between rows and class centers: the input of a softmax over classes.

A tile holds some of the columns.

    z_ij = s max_k x_i . w_jk / (|x_i| |w_jk|) + lift_j,
    -inf where row i leaves column j out, and at its own class

The centers are read where they lie. Their norms enter as a factor of the product's columns, so
there is no normalised copy of them. Of a sample of classes, only a tile's rows are gathered.
Centers that become float16, or are float64, may leave the range of the type or of its squares.
Those of a tile are multiplied by powers of two, which do not change their directions. Changes to a
logit are made on the tile, in this order: the largest of K sub-centers (Deng et al. 2022, section
3.2), the inter-class filter (An et al. 2022), CurricularFace's harder negatives (Huang et al.
2020).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from marginlab.kernels.directions import inverse, power, shortest
from marginlab.kernels.margin_settings import MarginSettings

TILE = 8 * 2**20  # bytes of a tile on a CPU, where the later passes then find it in cache
TILE_CUDA = 256 * 2**20  # and on a GPU, where a tile has to outweigh its launches
ALIGNED = 16  # columns: then every row of a tile begins where a GPU loads 16 bytes at once


class Rows(NamedTuple):
    """Some rows, as a tile needs them: directions, own columns, and the columns they leave out.

    All tensors have one height.
    """

    direction: Tensor  # (B, D), unit length, wide
    column: Tensor  # (B,), its own class among the columns; negative where it has none here
    # (B, E) further columns it leaves out; a number outside the columns leaves out nothing
    exclude: Tensor | None
    # (B,), psi(cosine): from it on CurricularFace calls a negative hard
    value: Tensor | None = None
    hardness: Tensor | None = None  # CurricularFace's t


class Columns:
    """The class centers (C, K, D), or those of a sample of the classes, by tiles."""

    def __init__(
        self,
        weight: Tensor,
        settings: MarginSettings,
        wide: torch.dtype,
        *,
        classes: Tensor | None = None,
        lift: Tensor | None = None,
        shares: Tensor | None = None,
    ):
        self.weight, self.settings, self.wide = weight, settings, wide
        self.classes, self.lift = classes, lift
        self.shares = shares  # (n,) weights of the columns in label smoothing; None: 1
        self.operands = settings.operands_for(weight.dtype, wide)
        self.budget = settings.budget_on(weight.device)
        # whether hard negatives are raised, which takes room
        self.hardens = settings.margin.hardens
        self.n = len(weight) if classes is None else len(classes)
        self.K, self.D = weight.shape[1:]
        # 1 / |w|, filled by the first pass
        self.inverse = torch.empty(self.n, self.K, dtype=wide, device=weight.device)
        # s / |w|: after the product, which could overflow with s before it
        self.factor = torch.empty_like(self.inverse)
        scaled = wide == torch.float64 or self.operands == torch.float16
        self.power = torch.empty_like(self.inverse) if scaled else None  # w is read as w * power

    def product_dtype(self) -> torch.dtype:
        """Return the dtype of the products: a CPU gives those of bf16 operands in bf16 only."""
        return self.wide if self.weight.device.type == "cuda" else self.operands

    def width(self, rows: int) -> int:
        """Columns of a tile that holds the product, its pointwise copies and the centers' forms."""
        item = torch.finfo(self.wide).bits // 8
        settings = self.settings
        more = 3 * (settings.interclass_filter is not None)
        more += (2 + (self.shares is not None)) * (settings.label_smoothing > 0)
        more += 6 * self.hardens + (3 * self.K + 2) * (self.K > 1)
        forms = 2 + (self.power is not None)
        column = rows * item * (self.K + 2 + more) + self.K * self.D * item * forms
        limit = min(self.budget, TILE_CUDA if self.weight.device.type == "cuda" else TILE)
        width = max(1, min(self.n, limit // column))
        return width - width % ALIGNED if ALIGNED < width < self.n else width

    def tiles(self, rows: int) -> Iterator[slice]:
        """Yield the columns in order, as many at a time as a tile of so many rows holds."""
        width = self.width(rows)
        for left in range(0, self.n, width):
            yield slice(left, min(left + width, self.n))

    def stored(self, tile: slice) -> Tensor:
        """Return the tile's centers (T, K, D) as they are stored."""
        return (
            self.weight[tile]
            if self.classes is None
            else self.weight.index_select(0, self.classes[tile])
        )

    def centers(self, tile: slice) -> Tensor:
        """Return the tile's centers (T, K, D), times their powers of two if they have any."""
        stored = self.stored(tile)
        return stored if self.power is None else stored.to(self.wide) * self.power[tile, :, None]

    def product(
        self, operand: Tensor, tile: slice, out: Tensor | None = None, *, measure: bool = False
    ) -> Tensor:
        """Return the inner products (B, T, K) of rows with the tile's centers.

        The rows are already in the operands' dtype. With `measure`, the centers' norms are computed
        too.
        """
        if measure and self.power is not None:
            self.power[tile] = power(self.stored(tile), self.wide)
        centers = self.centers(tile)
        if measure:
            short: Tensor | float = shortest(self.weight)
            if self.power is not None:
                short = short * self.power[tile].double()
            norm = torch.linalg.vector_norm(centers, dim=-1, dtype=torch.float64)
            self.inverse[tile] = inverse(norm, short).to(self.wide)
            torch.mul(self.inverse[tile], self.settings.scale, out=self.factor[tile])
        flat = centers.to(self.operands).flatten(0, 1)
        into = None if out is None else out.view(len(operand), len(flat))
        return multiply(operand, flat.T, self.product_dtype(), into).view(
            len(operand), len(centers), self.K
        )

    def directions(self, tile: slice) -> Tensor:
        """The tile's centers (T, K, D) at unit length."""
        return self.centers(tile).to(self.wide) * self.inverse[tile, :, None]


def multiply(a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """Return a @ b in a dtype; bf16 factors are summed into float32 where the device can (CUDA)."""
    if a.dtype == dtype:
        return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)
    if a.device.type == "cuda":
        return (
            torch.mm(a, b, out_dtype=dtype)
            if out is None
            else torch.mm(a, b, out_dtype=dtype, out=out)
        )
    raise TypeError(
        f"A product of {a.dtype} factors comes in {a.dtype} on {a.device.type}, not in {dtype}."
    )


class Tile(NamedTuple):
    """Logits of a tile, and the factors of a gradient that goes back through them."""

    logits: Tensor  # (B, T)
    slope: Tensor | None  # (B, T), d logit / d (s cosine) where it is not 1
    winner: Tensor | None  # (B, T), which sub-center is the nearest


def logits(product: Tensor, columns: Columns, rows: Rows, tile: slice) -> Tile:
    """Return the logits of a tile of products (B, T, K)."""
    settings = columns.settings
    nearest, winner = product.to(columns.wide).mul(columns.factor[tile]), None
    if columns.K == 1:
        z = nearest.squeeze(2)
    else:
        z, winner = nearest.max(2)
    slope = None
    if settings.interclass_filter is not None:
        hot = z > settings.interclass_filter * settings.scale
        z = z.masked_fill_(hot, -torch.inf if settings.interclass_masks else 0.0)
        slope = (~hot).to(z.dtype)
    if rows.hardness is not None and rows.value is not None:
        hard = z > (rows.value * settings.scale)[:, None]
        cosine = z / settings.scale
        more = torch.where(hard, rows.hardness + 2 * cosine, 1.0)
        slope = more if slope is None else slope * more
        z = torch.where(hard, z * (rows.hardness + cosine), z)
    if columns.lift is not None:
        z = z.add_(columns.lift[tile])
    leave_out(z, rows.column[:, None], tile)
    if rows.exclude is not None:
        leave_out(z, rows.exclude, tile)
    return Tile(z, slope, winner)


def leave_out(z: Tensor, columns: Tensor, tile: slice) -> None:
    """Put -inf where a row's columns (B, E) lie in the tile."""
    here = columns - tile.start
    inside = (here >= 0) & (here < z.shape[1])
    # Only a minimum with -inf changes an entry, one with +inf does not: nothing of the tile's size,
    # no index list that a GPU has to wait for
    bound = z.new_full(here.shape, torch.inf).masked_fill_(inside, -torch.inf)
    z.scatter_reduce_(1, here.clamp(0, z.shape[1] - 1), bound, "amin")


class Sums(NamedTuple):
    """The running sums of a softmax over columns, and over the finite logits, all (B,)."""

    highest: Tensor
    total: Tensor  # sum of exp(z - highest)
    plain: Tensor  # sum of z, weighted by the columns' shares
    finite: Tensor  # how many
    shares: Tensor  # the sum of their shares

    @classmethod
    def none(cls, rows: int, like: Tensor) -> "Sums":
        """Return the sums of no columns."""
        return cls(like.new_full((rows,), -torch.inf), *like.new_zeros(4, rows).unbind())

    def with_tile(self, z: Tensor, smoothing: bool, weights: Tensor | None = None) -> "Sums":
        """Return the sums with a tile's logits (B, T) added; the tile is overwritten."""
        plain, finite, shares = self.plain, self.finite, self.shares
        if smoothing:
            there = z > -torch.inf
            finite = finite + there.sum(1)
            if weights is None:
                plain, shares = plain + z.masked_fill(~there, 0.0).sum(1), finite
            else:
                plain = plain + z.masked_fill(~there, 0.0) @ weights
                shares = shares + there.to(z.dtype) @ weights
        highest = torch.maximum(self.highest, z.amax(1))
        origin = highest.masked_fill(highest == -torch.inf, 0.0)  # -inf minus -inf is no number
        total = self.total * (self.highest - origin).exp() + z.sub_(origin[:, None]).exp_().sum(1)
        return Sums(highest, total, plain, finite, shares)

    def logarithm(self) -> Tensor:
        """Return log sum exp: -inf over no columns."""
        return self.highest.masked_fill(self.highest == -torch.inf, 0.0) + self.total.log()


def forward_tile(product: Tensor, columns: Columns, rows: Rows, tile: slice, sums: Sums) -> Sums:
    """Add a tile's products to the sums."""
    shares = None if columns.shares is None else columns.shares[tile]
    return sums.with_tile(
        logits(product, columns, rows, tile).logits, columns.settings.label_smoothing > 0, shares
    )


class Slopes(NamedTuple):
    """Values that the backward pass needs of each row, all (B,)."""

    # log of the whole softmax sum, own class included, less that of what the row weighs
    log_sum: Tensor
    # epsilon / number of columns: what label smoothing takes, times a column's share, from its
    # logit's gradient
    spread: Tensor
    target: Tensor  # d loss / d (s cosine of the own class)
    winner: Tensor  # which sub-center of the own class is the nearest


class Gradients(NamedTuple):
    """Tensors that a backward walk writes its gradients into.

    Attributes:
        directions: (B, D), gradient of the embeddings at unit length; it is added to.
        centers: (n, K, D), gradient of the centers; None: not wanted.
        complete: The centers of a tile get no more gradient from other rows.
        add: The gradient of the centers is added to; otherwise it is written, and complete, but
            where the exponentials are held.
    """

    directions: Tensor
    centers: Tensor | None
    complete: bool
    add: bool


def backward_tile(
    product: Tensor, columns: Columns, rows: Rows, tile: slice, slopes: Slopes
) -> Tensor:
    """Return d loss / d (s cosine) of a tile, (B, T K), without the row's upstream factor."""
    z, slope, winner = logits(product, columns, rows, tile)
    if columns.settings.label_smoothing > 0:
        spread = slopes.spread[:, None] * (z > -torch.inf)
        spread = spread if columns.shares is None else spread * columns.shares[tile]
        grad = z.sub_(slopes.log_sum[:, None]).exp_().sub_(spread)
    else:
        grad = z.sub_(slopes.log_sum[:, None]).exp_()
    if slope is not None:
        grad = grad.mul_(slope)
    if winner is not None:
        grad = (
            torch.zeros(*grad.shape, columns.K, dtype=grad.dtype, device=grad.device)
            .scatter_(2, winner[..., None], grad[..., None])
            .flatten(1)
        )
    here = rows.column - tile.start
    inside = (here >= 0) & (here < tile.stop - tile.start)
    place = here * columns.K + slopes.winner
    # the own class was left out, so its place holds 0; one entry a row: nothing depends on an order
    # of adding
    return grad.scatter_add_(
        1, place.masked_fill(~inside, 0)[:, None], slopes.target.masked_fill(~inside, 0.0)[:, None]
    )
