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
from marginlab.kernels.margin_call import Call
from marginlab.kernels.pointwise import pointwise
from marginlab.kernels.tiles import Columns, Rows, Slopes, Sums, multiply
from marginlab.margins import Margin, Targets


def unlowered(x: Tensor) -> torch.autocast:
    """Turn autocast off; "meta" has none, so the CPU's stands for it."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


class Problem:
    """One call: rows and their own classes, columns, and two walks over the tiles of logits."""

    def __init__(self, x: Tensor, weight: Tensor, call: Call):
        wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
        of_columns = None if call.shares is None else call.shares.columns
        self.columns = Columns(
            weight,
            call.classes,
            call.lift,
            call.terms,
            wide,
            hardens=call.margin.hardens,
            shares=of_columns,
        )
        self.terms, self.target, self.valid, self.margin, self.over = (
            call.terms,
            call.target,
            call.valid,
            call.margin,
            call.over,
        )
        self.weights = None if call.shares is None else call.shares.rows
        columns, margin, over, valid, target = (
            self.columns,
            call.margin,
            call.over,
            call.valid,
            call.target,
        )
        norm, over_norm = measured(x)
        self.length, self.inverse = (each.squeeze(1).to(columns.wide) for each in (norm, over_norm))
        self.direction = x.to(columns.wide) * self.inverse[:, None]
        if valid is not None:  # what an ignored row holds, be it NaN, is to reach no sum
            self.direction = self.direction.masked_fill(~valid[:, None], 0.0)
            self.length, self.inverse = (
                self.length.masked_fill(~valid, 1.0),
                self.inverse.masked_fill(~valid, 0.0),
            )
        self.cosine, winner = self._own_cosines()
        self.exclude = call.exclude
        self.targets: Targets | None = None
        self.found: Margin = margin  # with the state before this pass
        if margin.batchwise:
            if over.classes:
                self.cosine = ranks.all_reduce(self.cosine, over.group)
            self.targets = self._of_the_whole_batch()
        self.forward_tile, self.backward_tile = pointwise(columns, self.part(slice(None)))
        # along: d loss / d |x|
        self.loss, self.along = self.length.new_zeros(2, len(target)).unbind()
        whole, spread, against = self.length.new_zeros(3, len(target)).unbind()
        self.slopes = Slopes(whole, spread, against, winner)

    def _own_cosines(self) -> tuple[Tensor, Tensor]:
        """Return the cosine with the nearest center of the own class, and the index of that center.

        It is 0 where the class is another rank's.
        """
        columns, place = self.columns, self.target.clamp(0, max(self.columns.n - 1, 0))
        if columns.n == 0:
            return torch.zeros_like(self.length), torch.zeros_like(place)
        own = columns.weight.index_select(
            0, place if columns.classes is None else columns.classes[place]
        )
        own = own.to(columns.wide) * measured(own)[1].to(columns.wide)
        cosine, winner = (self.direction[:, None] * own).sum(2).max(1)
        return (cosine.masked_fill(self.target < 0, 0.0) if self.over.classes else cosine), winner

    def _of_the_whole_batch(self) -> Targets:
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
        made, self.found = self.margin.found(everyone[:, 0], everyone[:, 1], everyone[:, 2].bool())
        return Targets(*(rows_of(each, slice(before, before + len(rows))) for each in made))

    def part(self, part: slice) -> Rows:
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

    def forward(self, part: slice, held: Tensor | None, *, measure: bool) -> None:
        """Sum a part of the rows over all tiles; set their losses and values for the backward pass.

        The products are kept in `held`.
        """
        rows, columns = self.part(part), self.columns
        operand = rows.direction.to(self.terms.operands)
        sums = Sums.none(len(operand), self.length)
        for tile, place in self.places(len(operand), held):
            sums = self.forward_tile(
                columns.product(operand, tile, place, measure=measure), columns, rows, tile, sums
            )
        if self.over.classes:
            sums = self._exchanged(sums)
        if self.targets is None:
            made, found = self.margin.found(self.cosine[part], self.length[part])
            self.found = found if part.start == 0 else self.found
        else:
            made = Targets(*(rows_of(t, part) for t in self.targets))
        far, near = sums.logarithm(), made.value * self.terms.scale
        loss, against = F.softplus(far - near, threshold=40.0), torch.sigmoid(far - near)
        whole, penalty = torch.logaddexp(far, near), made.penalty
        penalty_slope = made.penalty_slope
        epsilon = self.terms.smoothing
        if epsilon > 0:
            spread = epsilon / (sums.finite + 1)
            if self.weights is not None:
                weight = self.weights[part]
                mass = (1 - epsilon) * weight + spread * (sums.shares + weight)  # a_i
                loss, against, whole = loss * mass, against * mass, whole - mass.log()
                penalty = None if penalty is None else penalty * weight
                penalty_slope = None if penalty_slope is None else penalty_slope * weight
            loss = loss + spread * (sums.shares * near - sums.plain)
            against = against - spread * sums.shares
            self.slopes.spread[part] = spread
        if made.norm_slope is not None:
            self.along[part] -= against * self.terms.scale * made.norm_slope
        if penalty is not None and penalty_slope is not None:
            loss = loss + penalty
            self.along[part] += penalty_slope
        self.loss[part] = loss
        self.slopes.whole[part] = whole
        self.slopes.own[part] = -against * made.slope

    def _exchanged(self, sums: Sums) -> Sums:
        """Combine all ranks' sums, and the target cosines, in one packed exchange."""
        more = () if self.terms.smoothing == 0 else (sums.plain, sums.finite)
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
        self,
        part: slice,
        held: Tensor | None,
        upstream: Tensor,
        dx: Tensor,
        dw: Tensor | None,
        *,
        last: bool,
        add: bool,
    ) -> None:
        """Add the gradient of a part of the rows to `dx` (B, D), and to `dw` (n, K, D).

        `dx` is the gradient at unit length, `dw` that of the centers. `last` says that the tile's
        centers get no more gradient from other rows. The component along the centers is then
        removed, and the rest is divided by their length.
        """
        rows, columns, operands = self.part(part), self.columns, self.terms.operands
        slopes = Slopes(*(s[part] for s in self.slopes))
        factor, top = self.terms.scale * upstream, None
        if operands == torch.float16 and len(factor):  # a loss scaler's factor can leave its range
            top = factor.abs().amax().clamp_min(torch.finfo(factor.dtype).tiny)
            factor = factor / top
        operand = rows.direction.to(operands)
        weighted = (rows.direction * factor[:, None]).to(operands)
        for tile, place in self.places(len(operand), held):
            product = columns.product(operand, tile, place) if held is None else place
            assert product is not None
            grad = self.backward_tile(product, columns, rows, tile, slopes).to(operands)
            directions = columns.directions(tile)
            flat = directions.flatten(0, 1)
            if columns.wide == operands:
                dx[part].addmm_(grad, flat)
            else:
                dx[part].add_(multiply(grad, flat.to(operands), columns.held()))
            if dw is None:
                continue
            into = dw[tile].view(-1, columns.D)
            if top is not None:
                part_of_dw = multiply(grad.T, weighted, columns.held()).to(columns.wide).mul_(top)
                if add:
                    into.add_(part_of_dw)
                else:
                    dw[tile] = tangent(part_of_dw.view_as(directions), directions, columns, tile)
                continue
            if add:
                into.addmm_(grad.T, weighted) if into.dtype == operands else into.add_(
                    multiply(grad.T, weighted, columns.held())
                )
            elif into.dtype == columns.held() == columns.wide:
                multiply(grad.T, weighted, into.dtype, into)
            else:
                dw[tile] = tangent(
                    multiply(grad.T, weighted, columns.held()).to(columns.wide).view_as(directions),
                    directions,
                    columns,
                    tile,
                )
                continue
            if last:
                tangent(dw[tile], directions, columns, tile)
        dx[part] *= (upstream * self.terms.scale)[:, None]

    def places(self, rows: int, held: Tensor | None) -> Iterator[tuple[slice, Tensor | None]]:
        """Yield the tiles, each with its place in the buffer: one contiguous stretch of it."""
        for tile in self.columns.tiles(rows):
            if held is None:
                yield tile, None
            else:
                per = rows * self.columns.K
                yield (
                    tile,
                    held[per * tile.start : per * tile.stop].view(
                        rows, tile.stop - tile.start, self.columns.K
                    ),
                )

    def finish(self, dw: Tensor) -> None:
        """Project a summed gradient of the centers off their directions; divide by their length."""
        for tile in self.columns.tiles(1):
            tangent(dw[tile], self.columns.directions(tile), self.columns, tile)

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
