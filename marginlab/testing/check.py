"""`check_loss` and `check_measure`: the lab's laws, tried on somebody else's class."""

import contextlib
import functools
import inspect
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from marginlab.settings import nearest
from marginlab.testing import loss_laws, measure_laws
from marginlab.testing.pool import Pool

Kind = Literal["two_views", "labels", "classifier"]
Law = Callable[..., None]
Data = Callable[[int, torch.Generator], Sequence[Tensor]]

#: Classes and features of the batches that a classifier is tried on; of those for its memory, too.
CLASSES, DIM, WIDE = 4, 3, 8


def check_loss(
    loss: Callable[..., Callable[..., Tensor]],
    *,
    kind: Kind = "two_views",
    laws: Sequence[str] | None = None,
    leave_out: Sequence[str] = (),
    ranks: Sequence[int] = (1, 2, 3, 4),
    gradients: Literal["mean", "sum"] = "mean",
    max_examples: int = 20,
    budget: int = 2**25,
    pool: Pool | None = None,
) -> tuple[str, ...]:
    """Try the laws of losses on a loss; the first that is broken is raised.

    The laws are the functions of `marginlab.testing.loss_laws`: history, permutation, rotation,
    finite, inputs_kept, gradcheck, memory, ranks; symmetry for two views, class_names for labels,
    composition for classifiers.

    Args:
        loss: a class that is made without arguments, or a function that returns a loss. A loss is
            called with float64 batches, a module is made float64 first. With
            `kind="classifier"` it is made with `(num_classes, dim)`. One that takes `group` is
            given the process group of the ranks.
        kind: what the loss is called with: "two_views" `(z1, z2)`, each (B, D); "labels"
            `(embeddings, labels)`, (B, D) and (B,), without class centers; "classifier" the same,
            with centers of its own.
        laws: names of the laws to try; None is all of the kind.
        leave_out: names of laws that the loss does not hold by design.
        ranks: numbers of ranks that must agree with one. The ranks are processes that import the
            loss by its name.
        gradients: "mean" if on n ranks gradients of embeddings are n times those of one, because
            DDP and FSDP average; "sum" if they are exactly those.
        max_examples: batches tried for each law.
        budget: bytes that a pass may hold; the matrix of all rows is four times as large.
        pool: ranks that run already, for many checks; None starts them, which takes seconds.

    Returns:
        Names of the laws that hold.

    Raises:
        LawBroken: names the law, the smallest input found, and the two values that differ.
        ValueError: an unknown kind or law, or a loss that the ranks cannot import.
        ImportError: hypothesis is not installed.

    Example:
        >>> from marginlab.losses import InfoNCE
        >>> check_loss(InfoNCE, laws=("permutation", "symmetry"), max_examples=3)
        ('symmetry', 'permutation')
    """
    by_kind = {
        "two_views": loss_laws.TWO_VIEWS,
        "labels": loss_laws.LABELS,
        "classifier": loss_laws.CLASSIFIER,
    }
    if kind not in by_kind:
        raise ValueError(f"kind is not {kind!r}: {nearest(kind, get_args(Kind))}")
    chosen = choose(by_kind[kind], laws, leave_out)
    from marginlab.testing import strategies
    from marginlab.testing.search import search

    make = functools.partial(loss, CLASSES, DIM) if kind == "classifier" else loss
    # fixed where class centers are
    dim = DIM if kind == "classifier" else None
    draws: dict[Kind, Callable[..., Any]] = {
        "two_views": strategies.two_views,
        "labels": strategies.labelled,
        "classifier": functools.partial(strategies.labelled, CLASSES),
    }
    draw = draws[kind]
    names = ("z1", "z2") if kind == "two_views" else ("embeddings", "labels")
    run = functools.partial(search, name_of(loss), names=names, max_examples=max_examples)
    for law in chosen:
        if law is loss_laws.memory:
            large_make, large = _large_batch(loss, kind, budget)
            _once(name_of(loss), law, functools.partial(law, large_make, budget=budget), large)
        elif law is loss_laws.ranks:
            for n, processes in _ranks_of(make, "group", ranks, pool):
                hold = functools.partial(law, make, n=n, pool=processes, gradients=gradients)
                run(law=law, hold=hold, examples=draw(dim=dim))
        else:
            examples = draw(dim=dim)
            if law is loss_laws.finite:
                examples = examples | draw(dim=dim, degenerate_rows=True)
            run(law=law, hold=functools.partial(law, make), examples=examples)
    return tuple(law.__name__ for law in chosen)


def check_measure(
    measure: Callable[..., Any],
    *,
    data: Data | None = None,
    dim: int | None = None,
    num_classes: int = 3,
    ordered: tuple[str, ...] = (),
    noise: tuple[str, ...] = (),
    laws: Sequence[str] | None = None,
    leave_out: Sequence[str] = (),
    ranks: Sequence[int] = (1, 2, 3, 4),
    max_examples: int = 10,
    budget: int = 2**25,
    pool: Pool | None = None,
) -> tuple[str, ...]:
    """Try the laws of measures on a `torchmetrics.Metric`; the first that is broken is raised.

    The laws are the functions of `marginlab.testing.measure_laws`: split, permutation, merge,
    forward, reset, pickled, inputs_kept, views, rotation, memory, ranks.

    Args:
        measure: a class that is made without arguments, or a function that returns a metric. One
            that takes `process_group` is given that of the ranks.
        data: `data(n, generator)` gives the arguments of `update` for n images; None is features
            (N, V, D) and, if `update` asks for a second argument, labels (N,).
        dim: D of the features; None is 2 to 5.
        num_classes: C of the labels.
        ordered: fields of the result that name images by their order.
        noise: fields of the result that may depend on the order and on ranks, as an error
            estimated from groups of images.
        laws, leave_out, ranks, max_examples, pool: as in `check_loss`.
        budget: bytes that `update` and `compute` may hold; the matrix of all images is four times
            as large.

    Returns:
        Names of the laws that hold.

    Raises:
        LawBroken: names the law, the smallest input found, and the two values that differ.
        ValueError: an unknown law, or a measure that the ranks cannot import.
        ImportError: hypothesis is not installed.

    Example:
        >>> from marginlab.measures import Uniformity
        >>> check_measure(Uniformity, laws=("split", "merge"), max_examples=3)
        ('split', 'merge')
    """
    chosen = choose(measure_laws.LAWS, laws, leave_out)
    from marginlab.testing import strategies
    from marginlab.testing.search import search

    parameters = inspect.signature(measure().update).parameters.values()
    names = [p.name for p in parameters if p.default is p.empty]

    examples: Any
    if data is not None:
        examples = strategies.given_by(data)
    else:
        made = strategies.features(dim=dim, num_classes=num_classes)
        examples = made.map(lambda inputs: inputs[: len(names)])
    fields = {"ordered": ordered, "noise": noise}
    run = functools.partial(search, name_of(measure), names=names, max_examples=max_examples)
    for law in chosen:
        if law is measure_laws.memory:
            large = _large_features(data, dim, num_classes, budget)[: len(names)]
            hold = functools.partial(law, measure, budget=budget, **fields)
            _once(name_of(measure), law, hold, large)
        elif law is measure_laws.ranks:
            for n, processes in _ranks_of(measure, "process_group", ranks, pool):
                hold = functools.partial(law, measure, n=n, pool=processes, **fields)
                run(law=law, hold=hold, examples=examples)
        else:
            run(law=law, hold=functools.partial(law, measure, **fields), examples=examples)
    return tuple(law.__name__ for law in chosen)


def choose(
    laws: Sequence[Law], names: Sequence[str] | None, leave_out: Sequence[str]
) -> tuple[Law, ...]:
    """The laws of these names, in their order, without those left out.

    Raises:
        ValueError: a name that no law has.
    """
    known = [law.__name__ for law in laws]
    for name in (*(names or ()), *leave_out):
        if name not in known:
            raise ValueError(f"There is no law {name!r} of this kind: {nearest(name, known)}")
    wanted = known if names is None else names
    return tuple(law for law in laws if law.__name__ in wanted and law.__name__ not in leave_out)


def name_of(make: Any) -> str:
    """The name of a class or function, also of one with arguments filled in."""
    while isinstance(make, functools.partial):
        make = make.func
    return str(getattr(make, "__name__", make))


def _once(subject: str, law: Law, hold: Callable[..., None], inputs: Sequence[Tensor]) -> None:
    from marginlab.testing.search import reported

    example = {f"input {i}": x for i, x in enumerate(inputs)}
    reported(subject, law, example, functools.partial(hold, inputs, 0))


def _large_batch(
    loss: Callable[..., Any], kind: Kind, budget: int
) -> tuple[Callable[..., Any], tuple[Tensor, Tensor]]:
    """The loss, and a float32 batch of which the matrix of all rows takes four budgets."""
    from marginlab.testing.strategies import grid

    rows = math.isqrt(budget)
    z = grid(rows, WIDE, seed=0).float()
    if kind == "two_views":
        return loss, (z, z + grid(rows, WIDE, seed=1).float() / 2)
    if kind == "labels":
        return loss, (z, torch.arange(rows) // 2)
    return functools.partial(loss, rows, WIDE), (z, torch.arange(rows))


def _large_features(
    data: Data | None, dim: int | None, num_classes: int, budget: int
) -> tuple[Tensor, ...]:
    """Images of which the float64 matrix of all takes four budgets."""
    from marginlab.testing.strategies import grid

    N = math.isqrt(budget // 2)
    if data is not None:
        return tuple(data(N, torch.Generator().manual_seed(0)))
    return grid(N, 2, dim or WIDE, seed=0), torch.arange(N) % num_classes


def _ranks_of(
    make: Callable[..., Any], name: str, ranks: Sequence[int], pool: Pool | None
) -> Iterator[tuple[int, Pool]]:
    """Numbers of ranks, each with a pool whose default group fits, if no group can be named."""
    if not ranks:
        return
    try:
        pickle.dumps(make)
    except Exception as error:
        raise ValueError(
            f"The ranks import {name_of(make)} by its name, and it has none that they can import "
            f"({error}). Define it at the top of a module, or leave_out=('ranks',)."
        ) from error
    if loss_laws.takes(make, name):
        with contextlib.ExitStack() as stack:
            if pool is None:
                pool = stack.enter_context(Pool(max(ranks)))
            for n in ranks:
                yield n, pool
    else:
        for n in ranks:
            with Pool(n) as processes:
                yield n, processes
