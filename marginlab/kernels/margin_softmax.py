"""Cross-entropy of a softmax over class centers, with a margin on the target.

The (rows, classes) logits are never held above a byte budget. With l_i = log sum_{j != y_i}
e^{z_ij} over the other classes and the target logit t_i = s psi(cos theta_i, ...),

    loss_i = softplus(l_i - t_i) = log(e^{t_i} + e^{l_i}) - t_i,
    dloss/dz_ij = e^{z_ij - L_i},  dloss/dt_i = -sigmoid(l_i - t_i)

where L_i = log(e^{t_i} + e^{l_i}). The target is left out of the running sum and enters once, at
the end. A margin put on afterwards would cancel all that is known of the other classes; this way a
loss near 0 keeps its relative precision. The target cosine is a product of its own, in float32 or
wider whatever the operands of the other products are.

There are three ways to hold little, chosen by the budget:

    one buffer    the products of all rows with all classes fit: they are held
                  from the forward to the backward pass; 3 matrix products
    row chunks    they do not fit, but those of some rows do (`least_rows`), and
                  one scalar is asked for: gradients are made forward; 3 matrix
                  products
    class tiles   otherwise: tiles of classes, computed once more in the
                  backward pass; 4 matrix products

In float32 on a CPU the first two hold exponentials in place of products where nothing forbids it
(`marginlab.kernels.exponentials`).

Sources: Deng et al. 2022 (ArcFace), eq. 4 and section 3.2 (sub-centers); An et al. 2022 (Partial
FC), section 3; the online softmax is Milakov and Gimelshein 2018.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.kernels.function import unlowered
from marginlab.kernels.margin_batch import MarginBatch, Over
from marginlab.kernels.margin_plain import plain
from marginlab.kernels.margin_problem import Problem
from marginlab.kernels.margin_settings import MarginSettings
from marginlab.kernels.negligible import LeftOut, left_out
from marginlab.kernels.tiles import Gradients
from marginlab.recomputation import transformed

# fewer rows at a time cost more memory traffic on the centers' gradient than the product they save:
# ROWS on CUDA, and on a CPU, whose products are slower beside its memory, ROWS_CPU
ROWS = 1000
ROWS_CPU = 100


def margin_cross_entropy(
    embeddings: Float[Tensor, "B D"],
    centers: Float[Tensor, "C K D"],
    batch: MarginBatch,
    settings: MarginSettings,
    over: Over,
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, " B"], LeftOut | None]:
    """Return the loss of each row, (B,), the target cosines, and what is left out backward.

    With `batch.share`, the loss is the weighted sum over the rows, a scalar. The loss is
    differentiable in embeddings and centers; the cosines are not. Shapes and values are not checked
    here, but in `marginlab.losses`. The lengths of embeddings and centers do not matter. On a CPU,
    products of bfloat16 factors are also rounded to bfloat16. In training mode a margin's state
    moves.

    Args:
        embeddings: (B, D).
        centers: (C, K, D).
        batch: The rows' own columns, and all else that differs from batch to batch.
        settings: Margin, scale and all else that stays.
        over: Whether the rows (a margin may look at all of them) or the classes are spread over the
            ranks of a group.

    Raises:
        RuntimeError: A second derivative is asked for, and its logits are above the budget or
            spread over ranks. It is that of the plain form, which holds (B, n).

    Example:
        >>> from marginlab.margins import NoMargin
        >>> embeddings, centers = torch.eye(2), torch.eye(2)[:, None]
        >>> batch, settings = MarginBatch(torch.arange(2)), MarginSettings(NoMargin(), scale=1.0)
        >>> margin_cross_entropy(embeddings, centers, batch, settings, Over())  # log(1 + e^-1)
        (tensor([0.3133, 0.3133]), tensor([1., 1.]), None)
    """
    # transforms and exports differentiate torch's own operations
    if transformed() or torch.compiler.is_exporting():
        return *plain(embeddings, centers, batch, settings, over), None
    loss, cosine, *left = _MarginSoftmax.apply(embeddings, centers, batch, settings, over)
    return loss, cosine, LeftOut(*left) if left else None


def least_rows(device: str) -> int:
    """Return the rows whose products must fit for row chunks on a type of device."""
    return ROWS_CPU if device == "cpu" else ROWS


class _MarginSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        batch: MarginBatch,
        settings: MarginSettings,
        over: Over,
    ) -> tuple[Tensor, ...]:
        with unlowered(x):
            problem = Problem(x, weight, batch, settings, over)
            columns = problem.columns
            ctx.problem, ctx.gradients = problem, None
            products = None
            everything = slice(0, len(x))
            per_row = columns.n * columns.K * (torch.finfo(columns.product_dtype()).bits // 8)
            chunk = columns.budget // max(per_row, 1)  # rows whose products the budget holds
            if not any(ctx.needs_input_grad[:2]):
                problem.forward(everything, None, measure=True)
            elif len(x) <= chunk:
                products = x.new_empty(
                    len(x) * columns.n * columns.K, dtype=columns.product_dtype()
                )
                problem.forward(everything, products, measure=True)
            elif (
                batch.share is not None and chunk >= least_rows(x.device.type) and not over.classes
            ):
                weights = batch.share if batch.valid is None else batch.share * batch.valid
                ctx.gradients = _forward_with_gradients(
                    problem, weight, weights, chunk, to_weight=ctx.needs_input_grad[1]
                )
            else:
                problem.forward(everything, None, measure=True)
            ctx.batch, ctx.over = batch, over
            # as a second derivative is to find it
            ctx.settings = replace(settings, margin=problem.found)
            # autograd notices when the inputs are changed before the backward pass, and frees the
            # buffer after it
            ctx.save_for_backward(x, weight, products)
            out: tuple[Tensor, ...] = batch.reduced(problem.loss), problem.cosine.detach()
            if settings.negligible > 0:
                few = problem.negligible(everything)
                slope, scale = problem.slopes.target, settings.scale
                out = *out, *left_out(problem.others, slope, few, batch.share, scale)
            ctx.mark_non_differentiable(*out[1:])
            return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, products = ctx.saved_tensors
        problem: Problem = ctx.problem
        batch: MarginBatch = ctx.batch
        settings: MarginSettings = ctx.settings
        # the tiles are made in place, where a derivative of their own would be silently missing
        if torch.is_grad_enabled():

            def loss(x: Tensor, weight: Tensor) -> Tensor:
                # the plain form moves its margin, each time
                again = replace(settings, margin=settings.margin.frozen())
                return plain(x, weight, batch, again, ctx.over)[0]

            return *_with_graph(loss, x, weight, grad, ctx.needs_input_grad), None, None, None
        dw: Tensor | None
        with unlowered(x):
            if ctx.gradients is not None:
                # scaled in place: a copy of the centers' gradient would cost as much as the
                # centers. A second backward pass walks the tiles
                (dx, dw), ctx.gradients = ctx.gradients, None
                dx = dx.mul_(grad.to(dx))
                dw = None if dw is None else dw.mul_(grad.to(dw))
            else:
                upstream = (grad if batch.share is None else grad * batch.share).to(problem.loss)
                if batch.valid is not None:
                    upstream = upstream.masked_fill(~batch.valid, 0.0)
                dx = torch.zeros_like(problem.direction)
                dw = (
                    weight.new_empty(problem.columns.n, *weight.shape[1:])
                    if ctx.needs_input_grad[1]
                    else None
                )
                into = Gradients(dx, dw, complete=True, add=False)
                problem.backward(slice(0, len(dx)), products, upstream, into)
                dx = problem.to_rows(dx, upstream)
        if dw is not None and batch.classes is not None:
            if settings.dense_grad:
                dw = torch.zeros_like(weight).index_copy_(0, batch.classes, dw)
            else:
                dw = torch.sparse_coo_tensor(
                    batch.classes[None], dw, weight.shape, is_coalesced=True, check_invariants=False
                )
        return dx.to(x.dtype) if ctx.needs_input_grad[0] else None, dw, None, None, None


def _with_graph(
    function: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of a loss in the autograd graph, so that they have derivatives.

    They are dense.
    """
    # separate views, even where one tensor was made of the other
    inputs = x.view_as(x), weight.view_as(weight)
    loss = function(*inputs)
    slopes = iter(
        torch.autograd.grad(
            loss,
            [each for each, is_ in zip(inputs, needed, strict=False) if is_],
            grad.to(loss),
            create_graph=True,
        )
    )
    return next(slopes) if needed[0] else None, next(slopes) if needed[1] else None


def _forward_with_gradients(
    problem: Problem, weight: Tensor, share: Tensor, high: int, *, to_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Run chunks of rows forward and backward at once, for the one scalar that the shares make.

    Its upstream factor comes later.
    """
    columns = problem.columns
    n = len(share)
    high = math.ceil(n / math.ceil(n / high))  # chunks of one height
    products = problem.loss.new_empty(high * columns.n * columns.K, dtype=columns.product_dtype())
    dx = torch.zeros_like(problem.direction)
    dw = problem.loss.new_empty(columns.n, *weight.shape[1:]) if to_weight else None
    for start in range(0, n, high):
        part = slice(start, min(start + high, n))
        problem.forward(part, products, measure=start == 0)
        add = start > 0 or problem.exponentials is None
        if add and start == 0 and dw is not None:
            dw.zero_()
        into = Gradients(dx, dw, complete=part.stop == n, add=add)
        problem.backward(part, products, share[part].to(problem.loss), into)
    return problem.to_rows(dx, share), None if dw is None else dw.to(weight.dtype)
