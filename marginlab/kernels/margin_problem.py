"""One call of the margin softmax: rows, their own classes, and two walks over their logits.

The forward walk over the tiles computes the sums that `marginlab.kernels.margin_softmax` defines.
The backward walk goes over the same tiles again, or over the products that were held. With weights
v of the classes and label smoothing epsilon, the loss of a row is torch's cross_entropy,

    loss_i = (1 - epsilon) v_{y_i} (L_i - t_i) + (epsilon / n) sum_j v_j (L_i - z_ij)
           = a_i (L_i - t_i) + (epsilon / n) sum_{j != y_i} v_j (t_i - z_ij),
    a_i    = (1 - epsilon) v_{y_i} + (epsilon / n) sum_j v_j

over the n columns that the row has; without weights a_i = 1.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from marginlab import ranks
from marginlab.kernels.directions import measured
from marginlab.kernels.exponentials import Exponentials, fits
from marginlab.kernels.margin_batch import MarginBatch, Over
from marginlab.kernels.margin_settings import MarginSettings, wide_dtype
from marginlab.kernels.pointwise import pointwise
from marginlab.kernels.tiles import Columns, Gradients, Rows, Slopes, Sums, multiply
from marginlab.margins import Margin, Targets


class Problem:
    """One call: rows and their own classes, columns, and two walks over the tiles of logits."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        batch: MarginBatch,
        settings: MarginSettings,
        over: Over,
    ):
        self.target, self.valid, self.exclude = batch.target, batch.valid, batch.exclude
        self.settings, self.over = settings, over
        self.weights = None if batch.shares is None else batch.shares.rows
        columns = Columns(
            weight,
            settings,
            wide_dtype(x, weight),
            classes=batch.classes,
            lift=batch.lift,
            shares=None if batch.shares is None else batch.shares.columns,
        )
        self.columns = columns
        margin, valid, target = settings.margin, batch.valid, batch.target
        norm, over_norm = measured(x)
        self.length, self.inverse = (each.squeeze(1).to(columns.wide) for each in (norm, over_norm))
        self.direction = x.to(columns.wide) * self.inverse[:, None]
        if valid is not None:  # what an ignored row holds, be it NaN, is to reach no sum
            self.direction = self.direction.masked_fill(~valid[:, None], 0.0)
            self.length, self.inverse = (
                self.length.masked_fill(~valid, 1.0),
                self.inverse.masked_fill(~valid, 0.0),
            )
        self.cosine, winner = self._target_cosines()
        self.targets: Targets | None = None
        self.found: Margin = margin  # with the state before this pass
        if margin.batchwise:
            if over.classes:
                self.cosine = ranks.all_reduce(self.cosine, over.group)
            self.targets = self._batch_targets()
        self.forward_tile, self.backward_tile = pointwise(columns, self.part(slice(None)))
        self.exponentials: Exponentials | None = None  # held in place of the products
        if fits(columns, self.part(slice(None))):
            self.exponentials = Exponentials(columns, len(target))
        # along: d loss / d |x|; others: 1 - p of the own class
        self.loss, self.along, self.others = self.length.new_zeros(3, len(target)).unbind()
        log_sum, spread, against = self.length.new_zeros(3, len(target)).unbind()
        self.slopes = Slopes(log_sum, spread, against, winner)

    def _target_cosines(self) -> tuple[Tensor, Tensor]:
        """Return the cosine with the nearest center of the own class, and the index of that center.

        It is 0 where the class is another rank's.
        """
        columns, place = self.columns, self.target.clamp(0, max(self.columns.n - 1, 0))
        if columns.n == 0:
            return torch.zeros_like(self.length), torch.zeros_like(place)
        centers = columns.weight.index_select(
            0, place if columns.classes is None else columns.classes[place]
        )
        centers = centers.to(columns.wide) * measured(centers)[1].to(columns.wide)
        cosine, winner = (self.direction[:, None] * centers).sum(2).max(1)
        return (cosine.masked_fill(self.target < 0, 0.0) if self.over.classes else cosine), winner

    def _batch_targets(self) -> Targets:
        """Return this rank's targets, where a target depends on the other rows.

        The margin sees all rows of all ranks that count.
        """
        rows = torch.stack(
            (
                self.cosine,
                self.length,
                torch.ones_like(self.cosine) if self.valid is None else self.valid.to(self.cosine),
            ),
            1,
        )
        before, everyone = 0, rows
        if not self.over.classes:
            before = sum(
                ranks.rows_per_rank(len(rows), self.over.group, rows.device)[
                    : ranks.rank(self.over.group)
                ]
            )
            everyone = ranks.all_gather(rows, self.over.group)
        made, self.found = self.settings.margin.found(
            everyone[:, 0], everyone[:, 1], everyone[:, 2].bool()
        )
        return Targets(*(rows_of(each, slice(before, before + len(rows))) for each in made))

    def part(self, part: slice | Tensor) -> Rows:
        """Return some of the rows, as the tiles need them."""
        value, hardness = (
            (None, None)
            if self.targets is None or self.targets.hardness is None
            else (self.targets.value[part], self.targets.hardness)
        )
        return Rows(
            self.direction[part],
            self.target[part],
            None if self.exclude is None else self.exclude[part],
            value,
            hardness,
        )

    def forward(self, part: slice, products: Tensor | None, *, measure: bool) -> None:
        """Sum a part of the rows over all tiles; set their losses and values for the backward pass.

        The products, or the exponentials, are kept in the buffer `products`, or not kept where it
        is None.
        """
        sums = None
        if products is not None and self.exponentials is not None:
            sums = self.exponentials.forward(self.part(part), part, products, measure=measure)
        if sums is None:
            self.exponentials = None
            sums = self._sums(part, products, measure=measure)
        if self.over.classes:
            sums = self._exchanged(sums)
        if self.targets is None:
            made, found = self.settings.margin.found(self.cosine[part], self.length[part])
            self.found = found if part.start == 0 else self.found
        else:
            made = Targets(*(rows_of(t, part) for t in self.targets))
        far, near = sums.logarithm(), made.value * self.settings.scale
        loss, against = F.softplus(far - near, threshold=40.0), torch.sigmoid(far - near)
        log_sum = torch.logaddexp(far, near)
        self.others[part] = against
        penalty, penalty_slope = made.penalty, made.penalty_slope
        epsilon = self.settings.label_smoothing
        if epsilon > 0:
            spread = epsilon / (sums.finite + 1)
            if self.weights is not None:
                weight = self.weights[part]
                mass = (1 - epsilon) * weight + spread * (sums.shares + weight)  # a_i
                loss, against, log_sum = loss * mass, against * mass, log_sum - mass.log()
                penalty = None if penalty is None else penalty * weight
                penalty_slope = None if penalty_slope is None else penalty_slope * weight
            loss = loss + spread * (sums.shares * near - sums.plain)
            against = against - spread * sums.shares
            self.slopes.spread[part] = spread
        if made.norm_slope is not None:
            self.along[part] -= against * self.settings.scale * made.norm_slope
        if penalty is not None and penalty_slope is not None:
            loss = loss + penalty
            self.along[part] += penalty_slope
        self.loss[part] = loss
        self.slopes.log_sum[part] = log_sum
        self.slopes.target[part] = -against * made.slope

    def _sums(self, part: slice, products: Tensor | None, *, measure: bool) -> Sums:
        """Return the sums of a part of the rows over all tiles, with a running maximum."""
        rows, columns = self.part(part), self.columns
        operand = rows.direction.to(columns.operands)
        sums = Sums.none(len(operand), self.length)
        for tile, place in self.places(len(operand), products):
            sums = self.forward_tile(
                columns.product(operand, tile, place, measure=measure), columns, rows, tile, sums
            )
        return sums

    def _exchanged(self, sums: Sums) -> Sums:
        """Combine all ranks' sums, and the target cosines, in one packed exchange."""
        more = () if self.settings.label_smoothing == 0 else (sums.plain, sums.finite)
        weighted = bool(more) and self.columns.shares is not None
        more = (*more, sums.shares) if weighted else more
        sent = [sums.highest, sums.total, *more]
        if self.targets is None:
            sent.append(self.cosine)
        everyone = ranks.all_gather_stack(torch.stack(sent), self.over.group)  # (N, 2 to 6, B)
        if self.targets is None:
            self.cosine = everyone[:, -1].sum(0)  # only one rank has the class
        highest = everyone[:, 0].amax(0)
        total = (
            everyone[:, 1]
            * (everyone[:, 0] - highest.masked_fill(highest == -torch.inf, 0.0)).exp()
        ).sum(0)
        if not more:
            return Sums(highest, total, *sums[2:])
        plain, finite, *shares = everyone[:, 2 : 2 + len(more)].sum(0)
        return Sums(highest, total, plain, finite, shares[0] if weighted else finite)

    def backward(
        self, part: slice, products: Tensor | None, upstream: Tensor, into: Gradients
    ) -> None:
        """Add the gradient of a part of the rows, given the upstream gradient of their losses.

        Where the gradient of the centers is complete, the component along the centers is removed
        from it, and the rest is divided by their length.
        """
        height = part.stop - part.start
        index: slice | Tensor = part
        chosen = None  # the rows that take part
        if self.settings.negligible > 0:
            chosen = (~self.negligible(part)).nonzero().squeeze(1)
            index, upstream = chosen + part.start, upstream[chosen]
        rows, columns = self.part(index), self.columns
        operands, dw = columns.operands, into.centers
        dx = torch.zeros_like(rows.direction)
        slopes = Slopes(*(s[index] for s in self.slopes))
        if products is not None and self.exponentials is not None:
            chosen_of = (part, chosen)
            dx = self.exponentials.backward(rows, chosen_of, products, slopes, upstream, into)
            into.directions[index] = dx
            return
        factor, top = self.settings.scale * upstream, None
        if operands == torch.float16 and len(factor):  # a loss scaler's factor can leave its range
            top = factor.abs().amax().clamp_min(torch.finfo(factor.dtype).tiny)
            factor = factor / top
        operand = rows.direction.to(operands)
        weighted = (rows.direction * factor[:, None]).to(operands)
        for tile, place in self.places(height, products):
            if place is None:
                product = columns.product(operand, tile)
            else:
                product = place if chosen is None else place[chosen]
            grad = self.backward_tile(product, columns, rows, tile, slopes).to(operands)
            directions = columns.directions(tile)
            flat = directions.flatten(0, 1)
            if columns.wide == operands:
                dx.addmm_(grad, flat)
            else:
                dx.add_(multiply(grad, flat.to(operands), columns.product_dtype()))
            if dw is None:
                continue
            flat_dw = dw[tile].view(-1, columns.D)
            if top is not None:
                part_of_dw = (
                    multiply(grad.T, weighted, columns.product_dtype()).to(columns.wide).mul_(top)
                )
                if not into.add:
                    dw[tile] = tangent(part_of_dw.view_as(directions), directions, columns, tile)
                    continue
                flat_dw.add_(part_of_dw)
            elif into.add:
                if flat_dw.dtype == operands:
                    flat_dw.addmm_(grad.T, weighted)
                else:
                    flat_dw.add_(multiply(grad.T, weighted, columns.product_dtype()))
            elif flat_dw.dtype == columns.product_dtype() == columns.wide:
                multiply(grad.T, weighted, flat_dw.dtype, flat_dw)
            else:
                dw[tile] = tangent(
                    multiply(grad.T, weighted, columns.product_dtype())
                    .to(columns.wide)
                    .view_as(directions),
                    directions,
                    columns,
                    tile,
                )
                continue
            if into.complete:
                tangent(dw[tile], directions, columns, tile)
        into.directions[index] = dx.mul_((upstream * self.settings.scale)[:, None])

    def negligible(self, part: slice) -> Tensor:
        """Mark the rows that take no part in the backward pass."""
        few = self.others[part] < self.settings.negligible
        return few if self.valid is None else few & self.valid[part]

    def places(self, rows: int, products: Tensor | None) -> Iterator[tuple[slice, Tensor | None]]:
        """Yield the tiles, each with its place in the buffer: one contiguous stretch of it."""
        for tile in self.columns.tiles(rows):
            if products is None:
                yield tile, None
            else:
                per = rows * self.columns.K
                yield (
                    tile,
                    products[per * tile.start : per * tile.stop].view(
                        rows, tile.stop - tile.start, self.columns.K
                    ),
                )

    def to_rows(self, dx: Tensor, upstream: Tensor) -> Tensor:
        """Return the gradient of the embeddings, given that of their directions."""
        direction = self.direction
        out = dx.sub_(direction * (dx * direction).sum(1, keepdim=True)).mul_(self.inverse[:, None])
        along = self.along * upstream
        # the ranks' gradients are added: only the rank that has the class gives this part
        if self.over.classes:
            along = along.masked_fill(self.target < 0, 0.0)
        return out.add_(direction * along[:, None])


def rows_of(each: Tensor | None, part: slice) -> Any:
    return each if each is None or each.ndim == 0 else each[part]


def tangent(grad: Tensor, directions: Tensor, columns: Columns, tile: slice) -> Tensor:
    along = torch.linalg.vecdot(grad, directions)
    grad = grad.addcmul_(directions, along[..., None], value=-1)
    grad = grad.mul_(columns.inverse[tile, :, None])
    return grad if columns.power is None else grad.mul_(columns.power[tile, :, None])
