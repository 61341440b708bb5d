"""Laws of losses, one function each: `law(make, inputs, seed)` returns, or raises `Disagreement`.

`make()` gives the loss; every evaluation takes a fresh one, made with torch's generator at one
seed, so that initial centers are the same and a step counter starts anew. `inputs` are two views
`(z1, z2)`, each (B, D), or embeddings (B, D) and labels (B,). `seed` decides what a law draws
besides: an order of the rows, a rotation, a cut. A loss that returns one number a row is summed.
The first line of a law's docstring is its sentence in an error.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError

from marginlab.testing.agreement import Disagreement, agree
from marginlab.testing.memory import within
from marginlab.testing.pool import Pool

Loss = Callable[..., Tensor]
Make = Callable[..., Loss]
Inputs = Sequence[Tensor]


def fresh(make: Make, dtype: torch.dtype = torch.float64, **arguments: Any) -> Loss:
    """A new loss whose random parameters are the same at every call, in this dtype."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = make(**arguments)
    return loss.to(dtype) if isinstance(loss, nn.Module) else loss


def value_and_gradients(loss: Loss, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
    """The sum of what a loss returns, and its gradients: of each floating-point input, of its rows.

    An input that the loss does not depend on has a gradient of zero.
    """
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    value = loss(*leaves).sum()
    if value.requires_grad:
        value.backward()
    wanted = [x for x in leaves if x.requires_grad]
    return value.detach(), [torch.zeros_like(x) if x.grad is None else x.grad for x in wanted]


def permutation(make: Make, inputs: Inputs, seed: int) -> None:
    """The order of a batch's rows changes nothing: the value is the same, gradients move along."""
    order = torch.randperm(len(inputs[0]), generator=torch.Generator().manual_seed(seed))
    value, slopes = value_and_gradients(fresh(make), inputs)
    moved, moved_slopes = value_and_gradients(fresh(make), [x[order] for x in inputs])
    name = f"rows in order {order.tolist()}"
    agree("loss", value, f"loss, {name}", moved)
    expected = [slope[order] for slope in slopes]
    agree("gradient, its rows reordered", expected, f"gradient, {name}", moved_slopes)


def symmetry(make: Make, inputs: Inputs, seed: int) -> None:
    """The two views can be exchanged."""
    value, slopes = value_and_gradients(fresh(make), inputs)
    other, other_slopes = value_and_gradients(fresh(make), inputs[::-1])
    agree("loss(z1, z2)", value, "loss(z2, z1)", other)
    agree("gradient of loss(z1, z2)", slopes, "gradient of loss(z2, z1)", other_slopes[::-1])


def rotation(make: Make, inputs: Inputs, seed: int) -> None:
    """A common rotation of all embeddings, and of class centers, changes nothing.

    Every parameter with two or more dimensions, the last of them D, is taken for class centers.
    """
    dim = inputs[0].shape[1]
    turn = orthogonal(dim, seed)
    turned = fresh(make)
    if isinstance(turned, nn.Module):
        with torch.no_grad():
            for parameter in turned.parameters():
                if parameter.ndim > 1 and parameter.shape[-1] == dim:
                    parameter.copy_(parameter @ turn)
    rotated = [x @ turn if x.is_floating_point() else x for x in inputs]
    value, slopes = value_and_gradients(fresh(make), inputs)
    moved, moved_slopes = value_and_gradients(turned, rotated)
    agree("loss", value, "loss of rotated embeddings", moved)
    agree("gradient, rotated", [s @ turn for s in slopes], "of rotated embeddings", moved_slopes)


def orthogonal(dim: int, seed: int) -> Tensor:
    """A random rotation, or rotation and reflection: (D, D), float64."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator))
    return torch.as_tensor(factors.Q)


def class_names(make: Make, inputs: Inputs, seed: int) -> None:
    """Renumbering the classes changes nothing."""
    embeddings, labels = inputs
    count = int(labels.max()) + 1 if len(labels) else 0
    names = torch.randperm(count + 1, generator=torch.Generator().manual_seed(seed))
    value, slopes = value_and_gradients(fresh(make), inputs)
    named, named_slopes = value_and_gradients(fresh(make), (embeddings, names[labels]))
    new = f"labels {names[labels].tolist()}"
    agree(f"labels {labels.tolist()}", value, new, named)
    agree("gradient", slopes, f"gradient, {new}", named_slopes)


def composition(make: Make, inputs: Inputs, seed: int) -> None:
    """The loss of a batch is the mean over its rows, whatever batch they come in."""
    rows = len(inputs[0])
    cut = 1 + seed % (rows - 1) if rows > 1 else rows
    whole = fresh(make)(*inputs).mean()
    parts = [fresh(make)(*(x[:cut] for x in inputs)).mean() * cut]
    if cut < rows:
        parts.append(fresh(make)(*(x[cut:] for x in inputs)).mean() * (rows - cut))
    name = f"mean over {cut} and {rows - cut} rows"
    agree("loss of the batch", whole, name, torch.stack(parts).sum() / rows)


def history(make: Make, inputs: Inputs, seed: int) -> None:
    """Batches seen before change nothing: the same batch has the same loss and gradient again."""
    loss = fresh(make)
    before, slopes = value_and_gradients(loss, inputs)
    loss(*(3 * x if x.is_floating_point() else x for x in inputs))
    after, slopes_after = value_and_gradients(loss, inputs)
    agree("loss", before, "loss of the same batch after another", after)
    agree("gradient", slopes, "gradient after another batch", slopes_after)


def finite(make: Make, inputs: Inputs, seed: int) -> None:
    """The loss and its gradient are finite, also of rows without length and rows that coincide."""
    value, slopes = value_and_gradients(fresh(make), inputs)
    for name, x in (("loss", value), *(("gradient", slope) for slope in slopes)):
        if not bool(x.isfinite().all()):
            raise Disagreement(name, x, "expected", "finite numbers")


def inputs_kept(make: Make, inputs: Inputs, seed: int) -> None:
    """The inputs are left as they are."""
    given = [x.clone() for x in inputs]
    fresh(make)(*given)
    for x, after in zip(inputs, given, strict=True):
        if not torch.equal(x, after):
            raise Disagreement("input", x, "input after the call", after)


def gradcheck(make: Make, inputs: Inputs, seed: int) -> None:
    """The gradient is that of finite differences, along a random direction."""

    def total(*leaves: Tensor) -> Tensor:
        return fresh(make)(*leaves).sum()

    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    value = total(*leaves)
    if not value.requires_grad:
        raise Disagreement("gradient", None, "expected", "a loss that autograd can differentiate")
    try:
        torch.autograd.gradcheck(total, leaves, fast_mode=True)
    except GradcheckError as error:
        raise Disagreement("gradient", str(error), "expected", "that of finite differences") from (
            error
        )


def memory(make: Make, inputs: Inputs, seed: int, *, budget: int = 2**25) -> None:
    """A forward and backward pass hold no matrix of all rows and columns.

    Args:
        make: gives the loss.
        inputs: float32, of so many rows that the matrix of all of them, or of rows and classes, is
            above the budget.
        seed: not used.
        budget: bytes that the pass may allocate besides 32 times the bytes of its inputs and of the
            loss's parameters.
    """
    loss = fresh(make, dtype=torch.float32)
    held = [*inputs, *(loss.parameters() if isinstance(loss, nn.Module) else ())]
    within(budget, held, lambda: value_and_gradients(loss, inputs))


def ranks(
    make: Make,
    inputs: Inputs,
    seed: int,
    *,
    n: int,
    pool: Pool,
    gradients: Literal["mean", "sum"] = "mean",
) -> None:
    """On any number of ranks, uneven and empty ones too, value and gradients are those of one.

    Every rank returns the value of the whole batch. Parameters that each rank has whole have, on
    average over ranks ("mean") or in sum ("sum"), the gradient of one; parameters that are cut
    along their first dimension have exactly that.

    Args:
        make: gives the loss, by a name that the ranks can import. If it takes `group`, it is given
            the group of n ranks; otherwise `pool` has n ranks, and the default group is theirs.
        inputs: the whole batch.
        seed: decides which rank has how many rows.
        n: number of ranks.
        pool: the ranks.
        gradients: "mean" if gradients of embeddings are n times those of one rank, for DDP and
            FSDP, which average; "sum" if they are exactly those.
    """
    rows = shards(len(inputs[0]), n, seed)
    loss = fresh(make)
    value, slopes = value_and_gradients(loss, inputs)
    expected = parameter_gradients(loss)
    parts = list(zip(*(x.split(rows) for x in inputs), strict=True))
    answers = pool.run(n, _on_a_rank, make, parts)
    name = f"on {n} rank(s) of {rows} rows"
    for rank, answer in enumerate(answers):
        agree("loss of the whole batch", value, f"rank {rank}, {name}", answer[0])
        agree("rank 0", answers[0][0], f"rank {rank}, to the last bit", answer[0], tolerance=0.0)
    factor = n if gradients == "mean" else 1
    for i, slope in enumerate(slopes):
        joined = torch.cat([answer[1][i] for answer in answers])
        agree(f"{factor} x the gradient of one rank", factor * slope, f"gradient {name}", joined)
    for key, slope in expected.items():
        parts_of = [answer[2][key] for answer in answers]
        if all(part.shape == slope.shape for part in parts_of):
            joined = torch.stack(parts_of).sum(0) / factor
        else:
            joined = torch.cat(parts_of)
        agree(f"gradient of {key} on one rank", slope, f"gradient of {key} {name}", joined)


def shards(rows: int, n: int, seed: int) -> list[int]:
    """Numbers of consecutive rows of n ranks, uneven; some are often 0."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, n, (rows,), generator=generator).bincount(minlength=n).tolist()


def takes(make: Callable[..., Any], name: str) -> bool:
    """Return whether a function or class takes an argument of this name."""
    parameters = inspect.signature(make).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    # nn.Module itself has (*args, **kwargs), and refuses both
    anything = inspect.Parameter.VAR_KEYWORD in kinds
    return name in parameters or (anything and inspect.Parameter.VAR_POSITIONAL not in kinds)


def parameter_gradients(loss: Loss) -> dict[str, Tensor]:
    """Gradients of the parameters of a loss that is a module, dense, by name."""
    if not isinstance(loss, nn.Module):
        return {}
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.to_dense()
        for name, p in loss.named_parameters()
    }


def _on_a_rank(
    group: Any, rank: int, make: Make, parts: Sequence[Inputs]
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    loss = fresh(functools.partial(make, group=group) if takes(make, "group") else make)
    value, slopes = value_and_gradients(loss, parts[rank])
    return value, slopes, parameter_gradients(loss)


EVERY = (permutation, rotation, history, finite, inputs_kept, gradcheck, memory, ranks)
TWO_VIEWS = (symmetry, *EVERY)
LABELS = (class_names, *EVERY)
CLASSIFIER = (composition, *EVERY)
