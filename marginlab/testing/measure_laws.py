"""Laws of measures, one function each: `law(make, inputs, seed)` returns, or raises `Disagreement`.

A measure is a `torchmetrics.Metric`. `make()` gives a new one, `inputs` are the arguments of
`update`, tensors of one row an image. `seed` decides what a law draws besides. Of a result, named
tuple or dict or number, all parts are compared, but those named in `ordered`, which follow the
order of images, and in `noise`, which may depend on it (an error estimated from groups). The first
line of a law's docstring is its sentence in an error.
"""

import functools
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from marginlab.testing.agreement import Disagreement, agree, without
from marginlab.testing.loss_laws import orthogonal, takes
from marginlab.testing.memory import within
from marginlab.testing.pool import Pool

Make = Callable[..., Any]
Inputs = Sequence[Tensor]
Names = tuple[str, ...]


def computed(make: Make, inputs: Inputs) -> Any:
    """The result of a new measure that has seen these inputs at once."""
    measure = make()
    measure.update(*inputs)
    return measure.compute()


def pieces(rows: int, count: int, seed: int) -> list[slice]:
    """Consecutive slices that cover the rows; some are empty."""
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.randint(0, rows + 1, (count - 1,), generator=generator).sort().values.tolist()
    return [slice(a, b) for a, b in zip([0, *cuts], [*cuts, rows], strict=True)]


def split(make: Make, inputs: Inputs, seed: int, *, ordered: Names = (), noise: Names = ()) -> None:
    """Updates with parts of the images, empty ones too, give what one update with all gives."""
    cuts = pieces(len(inputs[0]), 1 + seed % 5, seed)
    measure = make()
    for part in cuts:
        measure.update(*(x[part] for x in inputs))
    sizes = [part.stop - part.start for part in cuts]
    agree("one update", computed(make, inputs), f"updates with {sizes}", measure.compute())


def permutation(
    make: Make, inputs: Inputs, seed: int, *, ordered: Names = (), noise: Names = ()
) -> None:
    """The order of images changes nothing."""
    skip = (*ordered, *noise)
    order = torch.randperm(len(inputs[0]), generator=torch.Generator().manual_seed(seed))
    one = without(computed(make, inputs), skip)
    two = without(computed(make, [x[order] for x in inputs]), skip)
    agree("result", one, f"images in order {order.tolist()}", two)


def merge(make: Make, inputs: Inputs, seed: int, *, ordered: Names = (), noise: Names = ()) -> None:
    """Two measures, each of a part of the images, merge to that of all."""
    skip = (*ordered, *noise)
    first, second = pieces(len(inputs[0]), 2, seed)
    one, two = make(), make()
    one.update(*(x[first] for x in inputs))
    two.update(*(x[second] for x in inputs))
    one.merge_state(two)
    name = f"merged from {first.stop} and {second.stop - second.start}"
    merged = without(one.compute(), skip)
    agree("one update", without(computed(make, inputs), skip), name, merged)


def forward(
    make: Make, inputs: Inputs, seed: int, *, ordered: Names = (), noise: Names = ()
) -> None:
    """A call returns the result of its batch, and `compute` that of all batches."""
    skip = (*ordered, *noise)
    measure = make()
    whole = computed(make, inputs)
    agree("compute after one update", whole, "call", measure(*inputs))
    agree("result", without(whole, skip), "compute after a call", without(measure.compute(), skip))


def reset(make: Make, inputs: Inputs, seed: int, *, ordered: Names = (), noise: Names = ()) -> None:
    """After `reset` a measure is as new."""
    measure = make()
    turned = [x.flip(0) if x.is_floating_point() else x for x in inputs]
    measure.update(*(2 * x if x.is_floating_point() else x for x in turned))
    measure.compute()
    measure.reset()
    measure.update(*inputs)
    agree("new measure", computed(make, inputs), "after reset", measure.compute())


def pickled(
    make: Make, inputs: Inputs, seed: int, *, ordered: Names = (), noise: Names = ()
) -> None:
    """A pickled copy goes on from where the measure was, also with its result computed."""
    whole = computed(make, inputs)
    first, second = pieces(len(inputs[0]), 2, seed)
    measure = make()
    measure.update(*(x[first] for x in inputs))
    copy = pickle.loads(pickle.dumps(measure))
    copy.update(*(x[second] for x in inputs))
    agree("one update", whole, "pickled after a part", copy.compute())
    agree("one update", whole, "pickled at the end", pickle.loads(pickle.dumps(copy)).compute())


def inputs_kept(
    make: Make, inputs: Inputs, seed: int, *, ordered: Names = (), noise: Names = ()
) -> None:
    """Inputs are left as they are, and a buffer that is used again changes no result."""
    expected = computed(make, [x.clone() for x in inputs])
    given = [x.clone() for x in inputs]
    measure = make()
    measure.update(*given)
    for x, after in zip(inputs, given, strict=True):
        if not torch.equal(x, after):
            raise Disagreement("input", x, "input after update", after)
        after.zero_()
    agree("result", expected, "result, its inputs overwritten", measure.compute())
    given = [x.clone() for x in inputs]
    measure = make()
    measure.update(*given)
    measure.compute()
    for x, after in zip(inputs, given, strict=True):
        if not torch.equal(x, after):
            raise Disagreement("input", x, "input after compute", after)


def views(make: Make, inputs: Inputs, seed: int, *, ordered: Names = (), noise: Names = ()) -> None:
    """The order of an image's views changes nothing: every input with 3 dimensions is (N, V, D)."""
    count = next(x.shape[1] for x in inputs if x.ndim == 3)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    moved = [x[:, order] if x.ndim == 3 else x for x in inputs]
    one, two = computed(make, inputs), computed(make, moved)
    name = f"views in order {order.tolist()}"
    agree("result", without(one, ordered), name, without(two, ordered))


def rotation(
    make: Make, inputs: Inputs, seed: int, *, ordered: Names = (), noise: Names = ()
) -> None:
    """A common rotation of all features changes nothing."""
    turned = [x @ orthogonal(x.shape[-1], seed) if x.is_floating_point() else x for x in inputs]
    one, two = computed(make, inputs), computed(make, turned)
    agree("result", one, "result of rotated features", two, tolerance=1e-8)


def memory(
    make: Make,
    inputs: Inputs,
    seed: int,
    *,
    ordered: Names = (),
    noise: Names = (),
    budget: int = 2**25,
) -> None:
    """No matrix of all images and images is held.

    Args:
        make, seed, ordered, noise: as in the other laws.
        inputs: of so many images that the matrix of all of them is above the budget.
        budget: bytes that `update` and `compute` may allocate besides 32 times the bytes of their
            inputs.
    """
    within(budget, inputs, lambda: computed(make, inputs))


def ranks(
    make: Make,
    inputs: Inputs,
    seed: int,
    *,
    n: int,
    pool: Pool,
    ordered: Names = (),
    noise: Names = (),
) -> None:
    """On any number of ranks, uneven and empty ones too, the result is that of one.

    Every rank is given two batches, and computes the result of all images. It is told of empty
    batches in one trial, and not in another.

    Args:
        make: gives the measure, by a name that the ranks can import. If it takes `process_group`,
            it is given the group of n ranks; otherwise `pool` has n ranks, and the default group
            is theirs.
        inputs: all images; ranks have consecutive ones.
        seed: decides which rank has how many images.
        n: number of ranks.
        pool: the ranks.
        ordered, noise: as in the other laws; `ordered` fields are compared.
    """
    expected = without(computed(make, inputs), noise)
    cuts = pieces(len(inputs[0]), 2 * n, seed)
    batches = [
        [tuple(x[part] for x in inputs) for part in cuts[2 * r : 2 * r + 2]] for r in range(n)
    ]
    sizes = [[len(batch[0]) for batch in rank] for rank in batches]
    for skip_empty in (False, True):
        answers = pool.run(n, _on_a_rank, make, batches, skip_empty)
        for rank, answer in enumerate(answers):
            name = f"rank {rank} of {n}, whose batches have {sizes} images"
            agree("result of one rank", expected, name, without(answer, noise))


def _on_a_rank(
    group: Any, rank: int, make: Make, batches: Sequence[Sequence[Inputs]], skip_empty: bool
) -> Any:
    own = functools.partial(make, process_group=group) if takes(make, "process_group") else make
    measure = own()
    for batch in batches[rank]:
        if len(batch[0]) or not skip_empty:
            measure.update(*batch)
    if not measure.update_called:
        measure._update_count = 1  # torchmetrics warns of a rank without updates
    result = measure.compute()
    measure.update(*batches[rank][0])  # after computing, a rank goes on with what is its own
    return result


LAWS = (
    split,
    permutation,
    merge,
    forward,
    reset,
    pickled,
    inputs_kept,
    views,
    rotation,
    memory,
    ranks,
)
