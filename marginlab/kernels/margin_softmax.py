"""Cross-entropy of a softmax over class centers with a margin on the target, whose (rows, classes) logits are never held above a byte budget.

With l_i = log sum_{j != y_i} e^{z_ij} over the other classes and the target logit t_i = s psi(cos theta_i, ...),

    loss_i = softplus(l_i - t_i) = log(e^{t_i} + e^{l_i}) - t_i,        dloss/dz_ij = e^{z_ij - L_i},  dloss/dt_i = -sigmoid(l_i - t_i)

where L_i = log(e^{t_i} + e^{l_i}). The target is left out of the running sum and enters once, at the end: a margin put on afterwards would cancel
all that is known of the other classes, and a loss near 0 keeps its relative precision. The target cosine is a product of its own, in float32
or wider whatever the operands of the other products are.

Three ways to hold little, chosen from the budget:

    one buffer     the products of all rows with all classes fit: they are held from the forward to the backward pass     3 matrix products
    row chunks     they do not, but those of ROWS rows do, and one scalar is asked for: gradients are made forward        3
    class tiles    otherwise: tiles of classes, computed once more in the backward pass                                   4

Sources: Deng et al. 2022 (ArcFace), eq. 4 and section 3.2 (sub-centers); An et al. 2022 (Partial FC), section 3; the online softmax is Milakov and
Gimelshein 2018.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from marginlab import ranks
from marginlab.kernels.tiles import Columns, Rows, Slopes, Sums, Terms, inverse, multiply, pointwise
from marginlab.margins import Margin, Targets

ROWS = 1000  # fewer rows at a time cost more memory traffic on the centers' gradient than the product they save
BUDGET_CPU = 128 * 2**20
BUDGET_CUDA = 512 * 2**20


@dataclass(frozen=True)
class Over:
    """What is spread over the ranks of a group (None: the default one, or one rank).

    classes: False: each rank has rows of its own and all centers. True: each rank has all rows, and the centers of some of the classes; `target`
        is negative where a row's class is another rank's, and the gradient of the rows is this rank's part, to be added to the others'.
    """

    group: dist.ProcessGroup | None
    classes: bool = False


def margin_cross_entropy(
    x: Float[Tensor, "B D"],
    weight: Float[Tensor, "C K D"],
    target: Int[Tensor, " B"],
    margin: Margin,
    *,
    scale: float,
    classes: Int[Tensor, " n"] | None = None,
    lift: Float[Tensor, " n"] | None = None,
    exclude: Int[Tensor, "B E"] | None = None,
    valid: Bool[Tensor, " B"] | None = None,
    share: Float[Tensor, " B"] | None = None,
    smoothing: float = 0.0,
    interclass: float | None = None,
    masks: bool = False,
    operands: torch.dtype | None = None,
    budget: int | None = None,
    compiled: bool = False,
    dense_grad: bool = False,
    over: Over | None = None,
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, " B"]]:
    """The loss of each row, (B,), or with `share` their weighted sum, differentiable in x and weight; and the target cosines, which are not.

    Parameters
    ----------
    x, weight: embeddings and class centers; of neither does the length matter.
    target: each row's column: its class, or the place of its class in `classes`; any number where `valid` is False.
    margin: what stands for the target cosine (`marginlab.margins`); in training mode its state moves on.
    scale: s.
    classes: the sampled classes, ascending; the gradient of weight is then row-sparse, or dense with `dense_grad`.
    lift: is added to the logits of the columns, but not to the target's.
    exclude: columns that a row leaves out; a number outside the columns leaves out nothing.
    valid: rows that count; the others have a loss of 0 and tell a margin's statistics nothing.
    share: the weight of each row in the sum that is asked for; 1/B for the mean.
    smoothing: epsilon: the target distribution is 1 - epsilon on the class, and epsilon spread evenly over all columns that the row has.
    interclass, masks: the inter-class filter: non-target cosines above it count as 0 without gradient, or with `masks` leave the sum.
    operands: dtype of the factors of the large products; None: that of weight. On a CPU, products of bfloat16 factors are also rounded to bfloat16.
    budget: bytes held between the passes or in a tile; None: 128 MiB, on CUDA 512 MiB.
    compiled: compile the pointwise part.
    over: what is spread over the ranks of a group: the rows (a margin may look at all of them), or the classes.

    Raises
    ------
    RuntimeError: backward a second time through gradients that were made forward and that the first has used up, or a second derivative.

    Shapes and values are not checked here, but in `marginlab.losses`.

    >>> from marginlab.margins import NoMargin
    >>> margin_cross_entropy(torch.eye(2), torch.eye(2)[:, None], torch.arange(2), NoMargin(), scale=1.0)  # log(1 + e^-1)
    (tensor([0.3133, 0.3133]), tensor([1., 1.]))

    """
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    if operands is None or wide == torch.float64:
        operands = wide if wide == torch.float64 else weight.dtype
    if budget is None:
        budget = BUDGET_CUDA if x.device.type == "cuda" else BUDGET_CPU
    over = Over(None) if over is None else over
    terms = Terms(scale, smoothing, interclass, masks, operands, budget, compiled)
    out: tuple[Tensor, Tensor] = _MarginSoftmax.apply(x, weight, target, margin, classes, lift, exclude, valid, share, terms, dense_grad, over)
    return out


class _Problem:
    """One call: rows and their own classes, columns, and the two walks over the tiles of their logits."""

    def __init__(self, x: Tensor, columns: Columns, target: Tensor, exclude: Tensor | None, valid: Tensor | None, margin: Margin, over: Over):
        self.columns, self.terms, self.target, self.valid, self.margin, self.over = columns, columns.terms, target, valid, margin, over
        norm = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
        self.length = norm.to(columns.wide)
        self.inverse = inverse(norm).to(columns.wide)
        self.direction = x.to(columns.wide) * self.inverse[:, None]
        if valid is not None:  # what an ignored row holds, be it NaN, is to reach no sum
            self.direction = self.direction.masked_fill(~valid[:, None], 0.0)
            self.length, self.inverse = self.length.masked_fill(~valid, 1.0), self.inverse.masked_fill(~valid, 0.0)
        self.cosine, winner = self._own_cosines()
        self.exclude = exclude
        self.targets: Targets | None = None
        if margin.batchwise:
            if over.classes:
                self.cosine = ranks.total(self.cosine, over.group)
            self.targets = self._of_the_whole_batch()
        self.forward_tile, self.backward_tile = pointwise(columns, self.part(slice(None)))
        self.loss, self.along = self.length.new_zeros(2, len(target)).unbind()  # along: d loss / d |x|
        whole, spread, against = self.length.new_zeros(3, len(target)).unbind()
        self.slopes = Slopes(whole, spread, against, winner)

    def _own_cosines(self) -> tuple[Tensor, Tensor]:
        """The cosine with the nearest center of the own class, and which it is; 0 where the class is another rank's."""
        columns, place = self.columns, self.target.clamp(0, max(self.columns.n - 1, 0))
        if columns.n == 0:
            return torch.zeros_like(self.length), torch.zeros_like(place)
        own = columns.weight.index_select(0, place if columns.classes is None else columns.classes[place])
        own_inverse = inverse(torch.linalg.vector_norm(own, dim=-1, dtype=torch.float64)).to(columns.wide)
        cosine, winner = (self.direction[:, None] * (own.to(columns.wide) * own_inverse[..., None])).sum(2).max(1)
        return (cosine.masked_fill(self.target < 0, 0.0) if self.over.classes else cosine), winner

    def _of_the_whole_batch(self) -> Targets:
        """Targets that depend on the other rows: of all rows of all ranks that count, of which this rank's are given back."""
        rows = torch.stack((self.cosine, self.length, torch.ones_like(self.cosine) if self.valid is None else self.valid.to(self.cosine)), 1)
        before, everyone = 0, rows
        if not self.over.classes:
            before = sum(ranks.counts(len(rows), self.over.group, rows.device)[: ranks.rank(self.over.group)])
            everyone = ranks.gather(rows, self.over.group)
        made = self.margin.targets(everyone[:, 0], everyone[:, 1], everyone[:, 2].bool())
        return Targets(*(_rows(each, slice(before, before + len(rows))) for each in made))

    def part(self, part: slice) -> Rows:
        """What the tiles need of some rows."""
        value, hardness = (None, None) if self.targets is None or self.targets.hardness is None else (self.targets.value[part], self.targets.hardness)
        return Rows(self.direction[part], self.target[part], None if self.exclude is None else self.exclude[part], value, hardness)

    def forward(self, part: slice, held: Tensor | None, *, measure: bool) -> None:
        """Sum a part of the rows over all tiles: their losses and what the backward pass needs; the products are kept in `held`."""
        rows, columns = self.part(part), self.columns
        operand = rows.direction.to(self.terms.operands)
        sums = Sums.none(len(operand), self.length)
        for tile, place in self.places(len(operand), held):
            sums = self.forward_tile(columns.product(operand, tile, place, measure=measure), columns, rows, tile, sums)
        if self.over.classes:
            sums = self._exchanged(sums)
        made = self.margin.targets(self.cosine[part], self.length[part]) if self.targets is None else Targets(*(_rows(t, part) for t in self.targets))
        far, near = sums.logarithm(), made.value * self.terms.scale
        epsilon, n = self.terms.smoothing, sums.finite + 1
        loss, against = F.softplus(far - near, threshold=40.0), torch.sigmoid(far - near)
        if epsilon > 0:
            loss = loss + epsilon * (near - (sums.plain + near) / n)
            against = against - epsilon * (1 - 1 / n)
            self.slopes.spread[part] = epsilon / n
        if made.norm_slope is not None:
            self.along[part] -= against * self.terms.scale * made.norm_slope
        if made.penalty is not None and made.penalty_slope is not None:
            loss = loss + made.penalty
            self.along[part] += made.penalty_slope
        self.loss[part] = loss
        self.slopes.whole[part] = torch.logaddexp(far, near)
        self.slopes.own[part] = -against * made.slope

    def _exchanged(self, sums: Sums) -> Sums:
        """The sums over the classes of all ranks and, with them, the target cosines: one packed exchange."""
        sent = [sums.highest, sums.total, *((sums.plain, sums.finite) if self.terms.smoothing > 0 else ())]
        if self.targets is None:
            sent.append(self.cosine)
        everyone = ranks.all_equal(torch.stack(sent), self.over.group)  # (N, 2 to 5, B)
        if self.targets is None:
            self.cosine = everyone[:, -1].sum(0)  # only one rank has the class
        highest = everyone[:, 0].amax(0)
        total = (everyone[:, 1] * (everyone[:, 0] - highest.masked_fill(highest == -torch.inf, 0.0)).exp()).sum(0)
        plain, finite = (everyone[:, 2].sum(0), everyone[:, 3].sum(0)) if self.terms.smoothing > 0 else (sums.plain, sums.finite)
        return Sums(highest, total, plain, finite)

    def backward(self, part: slice, held: Tensor | None, upstream: Tensor, dx: Tensor, dw: Tensor | None, *, last: bool, add: bool) -> None:
        """Add the gradient of a part of the rows to `dx` (B, D), at unit length, and to that of the centers `dw` (n, K, D).

        `last`: the tile's centers get no more from other rows: what points along them is taken out, and their length divided by.
        """
        rows, columns, operands = self.part(part), self.columns, self.terms.operands
        slopes = Slopes(*(s[part] for s in self.slopes))
        operand, weighted = rows.direction.to(operands), (rows.direction * (self.terms.scale * upstream)[:, None]).to(operands)
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
            if add:
                into.addmm_(grad.T, weighted) if into.dtype == operands else into.add_(multiply(grad.T, weighted, columns.held()))
            elif into.dtype == columns.held() == columns.wide:
                multiply(grad.T, weighted, into.dtype, into)
            else:
                dw[tile] = _tangent(multiply(grad.T, weighted, columns.held()).to(columns.wide).view_as(directions), directions, columns, tile)
                continue
            if last:
                _tangent(dw[tile], directions, columns, tile)
        dx[part] *= (upstream * self.terms.scale)[:, None]

    def places(self, rows: int, held: Tensor | None) -> Iterator[tuple[slice, Tensor | None]]:
        """The tiles, each with its place in the buffer: one contiguous stretch of it."""
        for tile in self.columns.tiles(rows):
            if held is None:
                yield tile, None
            else:
                per = rows * self.columns.K
                yield tile, held[per * tile.start : per * tile.stop].view(rows, tile.stop - tile.start, self.columns.K)

    def finish(self, dw: Tensor) -> None:
        """Take out of a summed gradient of the centers what points along them, and divide by their length."""
        for tile in self.columns.tiles(1):
            _tangent(dw[tile], self.columns.directions(tile), self.columns, tile)

    def to_rows(self, dx: Tensor, upstream: Tensor) -> Tensor:
        """The gradient of the embeddings from that of their directions."""
        direction = self.direction
        out = dx.sub_(direction * (dx * direction).sum(1, keepdim=True)).mul_(self.inverse[:, None])
        along = self.along * upstream
        if self.over.classes:  # the ranks' gradients are added: only the rank that has the class gives this part
            along = along.masked_fill(self.target < 0, 0.0)
        return out.add_(direction * along[:, None])


def _rows(each: Tensor | None, part: slice) -> Any:
    return each if each is None or each.ndim == 0 else each[part]


def _tangent(grad: Tensor, directions: Tensor, columns: Columns, tile: slice) -> Tensor:
    along = torch.linalg.vecdot(grad, directions)
    return grad.addcmul_(directions, along[..., None], value=-1).mul_(columns.inverse[tile, :, None])


class _MarginSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        target: Tensor,
        margin: Margin,
        classes: Tensor | None,
        lift: Tensor | None,
        exclude: Tensor | None,
        valid: Tensor | None,
        share: Tensor | None,
        terms: Terms,
        dense_grad: bool,
        over: Over,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            columns = Columns(weight, classes, lift, terms, wide, hardens=margin.hardens)
            problem = _Problem(x, columns, target, exclude, valid, margin, over)
            ctx.problem, ctx.valid, ctx.share, ctx.dense_grad, ctx.kind, ctx.made = problem, valid, share, dense_grad, x.dtype, None
            held = None
            everything = slice(0, len(x))
            per_row = columns.n * columns.K * (torch.finfo(columns.held()).bits // 8)
            chunk = terms.budget // max(per_row, 1)  # rows whose products the budget holds
            if not any(ctx.needs_input_grad[:2]):
                problem.forward(everything, None, measure=True)
            elif len(x) <= chunk:
                held = x.new_empty(len(x) * columns.n * columns.K, dtype=columns.held())
                problem.forward(everything, held, measure=True)
            elif share is not None and chunk >= ROWS and not over.classes:
                weights = share if valid is None else share * valid
                ctx.made = _forward_with_gradients(problem, weight, weights, chunk, to_weight=ctx.needs_input_grad[1])
            else:
                problem.forward(everything, None, measure=True)
            ctx.save_for_backward(weight, held)  # autograd notices when the weight is changed before the backward pass, and frees the buffer after it
            loss: Tensor = problem.loss if valid is None else problem.loss.masked_fill(~valid, 0.0)
            cosine = problem.cosine.detach()
            ctx.mark_non_differentiable(cosine)
            return loss if share is None else (loss * share).sum(), cosine

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # the tiles are made in place: their own derivative would be silently missing
            raise RuntimeError("The margin softmax has no second derivative: call backward or grad without create_graph=True.")
        weight, held = ctx.saved_tensors
        problem: _Problem = ctx.problem
        dw: Tensor | None
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.made is not None:
                made, ctx.made = ctx.made, ()  # scaled in place: a copy of the centers' gradient would cost as much as the centers
                if not made:
                    raise RuntimeError(
                        "The gradients of this margin softmax were made in its forward pass and used up by its first backward pass. Compute the loss "
                        "again, or raise or lower the budget, so that rows are not taken in chunks."
                    )
                dx, dw = made[0].mul_(grad.to(made[0])), None if made[1] is None else made[1].mul_(grad.to(made[1]))
            else:
                upstream = (grad if ctx.share is None else grad * ctx.share).to(problem.loss)
                upstream = upstream if ctx.valid is None else upstream.masked_fill(~ctx.valid, 0.0)
                dx = torch.zeros_like(problem.direction)
                dw = weight.new_empty(problem.columns.n, *weight.shape[1:]) if ctx.needs_input_grad[1] else None
                problem.backward(slice(0, len(dx)), held, upstream, dx, dw, last=True, add=False)
                dx = problem.to_rows(dx, upstream)
        classes = problem.columns.classes
        if dw is not None and classes is not None:
            if ctx.dense_grad:
                dw = torch.zeros_like(weight).index_copy_(0, classes, dw)
            else:
                dw = torch.sparse_coo_tensor(classes[None], dw, weight.shape, is_coalesced=True, check_invariants=False)
        return (dx.to(ctx.kind) if ctx.needs_input_grad[0] else None, dw, *(None,) * 10)


def _forward_with_gradients(problem: _Problem, weight: Tensor, share: Tensor, high: int, *, to_weight: bool) -> tuple[Tensor, Tensor | None]:
    """Chunks of rows, each forward and backward at once, for the one scalar that the shares make; its upstream factor comes later."""
    columns = problem.columns
    n = len(share)
    high = math.ceil(n / math.ceil(n / high))  # chunks of one height
    held = problem.loss.new_empty(high * columns.n * columns.K, dtype=columns.held())
    dx = torch.zeros_like(problem.direction)
    dw = problem.loss.new_zeros(columns.n, *weight.shape[1:]) if to_weight else None
    for start in range(0, n, high):
        part = slice(start, min(start + high, n))
        problem.forward(part, held, measure=start == 0)
        problem.backward(part, held, share[part].to(problem.loss), dx, dw, last=False, add=True)
    if dw is not None:
        problem.finish(dw)
    return problem.to_rows(dx, share), None if dw is None else dw.to(weight.dtype)
