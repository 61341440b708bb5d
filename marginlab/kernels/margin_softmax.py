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
    row chunks    they do not fit, but those of ROWS rows do, and one scalar is
                  asked for: gradients are made forward; 3 matrix products
    class tiles   otherwise: tiles of classes, computed once more in the
                  backward pass; 4 matrix products

Sources: Deng et al. 2022 (ArcFace), eq. 4 and section 3.2 (sub-centers); An et al. 2022 (Partial
FC), section 3; the online softmax is Milakov and Gimelshein 2018.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from marginlab.kernels.margin_call import Call, Over, Shares
from marginlab.kernels.margin_plain import plain
from marginlab.kernels.margin_problem import Problem, unlowered
from marginlab.kernels.tiles import Terms
from marginlab.margins import Margin
from marginlab.recomputation import transformed

# fewer rows at a time cost more memory traffic on the centers' gradient than the product they save
ROWS = 1000
BUDGET_CPU = 128 * 2**20
BUDGET_CUDA = 512 * 2**20


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
    shares: Shares | None = None,
    smoothing: float = 0.0,
    interclass: float | None = None,
    masks: bool = False,
    operands: torch.dtype | None = None,
    budget: int | None = None,
    compiled: bool = False,
    dense_grad: bool = False,
    over: Over | None = None,
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, " B"]]:
    """Return the loss of each row, (B,), and the target cosines.

    With `share`, the loss is the weighted sum over the rows, a scalar. The loss is differentiable
    in x and weight; the cosines are not. Shapes and values are not checked here, but in
    `marginlab.losses`.

    Args:
        x, weight: Embeddings and class centers; their lengths do not matter.
        target: Each row's column: its class, or the place of its class in `classes`; any number
            where `valid` is False.
        margin: Margin on the target cosine (`marginlab.margins`); training mode updates its state.
        scale: s.
        classes: The sampled classes, ascending; the gradient of weight is then row-sparse, or dense
            with `dense_grad`.
        lift: Added to the logits of the columns, but not to the target's.
        exclude: Columns that a row leaves out; a number outside the columns leaves out nothing.
        valid: Rows that count; other rows have a loss of 0 and enter no statistics of a margin.
        share: The weight of each row in the sum that is asked for; 1/B for the mean.
        smoothing: epsilon: the target distribution is 1 - epsilon on the class, and epsilon spread
            evenly over all columns that the row has.
        shares: Weights of the classes, where there is smoothing: of the rows' own classes and of
            the columns. They make the loss that of torch's cross_entropy; without smoothing a row's
            weight is a factor that `share` can hold.
        interclass, masks: The inter-class filter: non-target cosines above it count as 0 without
            gradient, or with `masks` leave the sum.
        operands: Dtype of the factors of the large products; None: that of weight. On a CPU,
            products of bfloat16 factors are also rounded to bfloat16.
        budget: Bytes held between the passes or in a tile; None: 128 MiB, on CUDA 512 MiB.
        compiled: Compile the pointwise part.
        over: Whether the rows (a margin may look at all of them) or the classes are spread over the
            ranks of a group.

    Raises:
        RuntimeError: A second derivative is asked for, and its logits are above the budget or
            spread over ranks. It is that of the plain form, which holds (B, n).

    Example:
        >>> from marginlab.margins import NoMargin
        >>> x, weight, target = torch.eye(2), torch.eye(2)[:, None], torch.arange(2)
        >>> margin_cross_entropy(x, weight, target, NoMargin(), scale=1.0)  # log(1 + e^-1)
        (tensor([0.3133, 0.3133]), tensor([1., 1.]))
    """
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    if operands is None or wide == torch.float64:
        operands = wide if wide == torch.float64 else weight.dtype
    if budget is None:
        budget = BUDGET_CUDA if x.device.type == "cuda" else BUDGET_CPU
    over = Over(None) if over is None else over
    terms = Terms(scale, smoothing, interclass, masks, operands, budget, compiled)
    call = Call(
        target, margin, terms, over, classes, lift, exclude, valid, share, shares, dense_grad
    )
    # transforms and exports differentiate torch's own operations
    if transformed() or torch.compiler.is_exporting():
        return plain(x, weight, call)
    out: tuple[Tensor, Tensor] = _MarginSoftmax.apply(x, weight, call)
    return out


class _MarginSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        terms = call.terms
        with unlowered(x):
            problem = Problem(x, weight, call)
            columns = problem.columns
            ctx.problem, ctx.made = problem, None
            held = None
            everything = slice(0, len(x))
            per_row = columns.n * columns.K * (torch.finfo(columns.held()).bits // 8)
            chunk = terms.budget // max(per_row, 1)  # rows whose products the budget holds
            if not any(ctx.needs_input_grad[:2]):
                problem.forward(everything, None, measure=True)
            elif len(x) <= chunk:
                held = x.new_empty(len(x) * columns.n * columns.K, dtype=columns.held())
                problem.forward(everything, held, measure=True)
            elif call.share is not None and chunk >= ROWS and not call.over.classes:
                weights = call.share if call.valid is None else call.share * call.valid
                ctx.made = _forward_with_gradients(
                    problem, weight, weights, chunk, to_weight=ctx.needs_input_grad[1]
                )
            else:
                problem.forward(everything, None, measure=True)
            ctx.call = replace(call, margin=problem.found)  # as a second derivative is to find it
            # autograd notices when the inputs are changed before the backward pass, and frees the
            # buffer after it
            ctx.save_for_backward(x, weight, held)
            cosine = problem.cosine.detach()
            ctx.mark_non_differentiable(cosine)
            return call.reduced(problem.loss), cosine

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, held = ctx.saved_tensors
        # the tiles are made in place, where a derivative of their own would be silently missing
        if torch.is_grad_enabled():
            return (*_with_graph(x, weight, ctx.call, grad, ctx.needs_input_grad), None)
        problem: Problem = ctx.problem
        call: Call = ctx.call
        dw: Tensor | None
        with unlowered(x):
            if ctx.made is not None:
                # scaled in place: a copy of the centers' gradient would cost as much as the
                # centers. A second backward pass walks the tiles
                made, ctx.made = ctx.made, None
                dx, dw = (
                    made[0].mul_(grad.to(made[0])),
                    None if made[1] is None else made[1].mul_(grad.to(made[1])),
                )
            else:
                upstream = (grad if call.share is None else grad * call.share).to(problem.loss)
                upstream = (
                    upstream if call.valid is None else upstream.masked_fill(~call.valid, 0.0)
                )
                dx = torch.zeros_like(problem.direction)
                dw = (
                    weight.new_empty(problem.columns.n, *weight.shape[1:])
                    if ctx.needs_input_grad[1]
                    else None
                )
                problem.backward(slice(0, len(dx)), held, upstream, dx, dw, last=True, add=False)
                dx = problem.to_rows(dx, upstream)
        if dw is not None and call.classes is not None:
            if call.dense_grad:
                dw = torch.zeros_like(weight).index_copy_(0, call.classes, dw)
            else:
                dw = torch.sparse_coo_tensor(
                    call.classes[None], dw, weight.shape, is_coalesced=True, check_invariants=False
                )
        return dx.to(x.dtype) if ctx.needs_input_grad[0] else None, dw, None


def _with_graph(
    x: Tensor, weight: Tensor, call: Call, grad: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients in the autograd graph, so that they have derivatives.

    They are dense, and are those of the plain form.
    """
    call = replace(call, margin=call.margin.frozen())  # the plain form moves its margin, each time
    # separate views, even where one tensor was made of the other
    inputs = x.view_as(x), weight.view_as(weight)
    loss, _ = plain(*inputs, call)
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
