"""Sampled classes of a step: those of the batch, and others until there are enough.

The others are drawn without replacement.

    S = P + the first n - |P| of pi(0), pi(1), ... that are not in P,
    P the distinct labels of the global batch,

with pi the permutation of the classes that belongs to (seed, step). Given P, the negatives S - P
are uniform among the sets of n - |P| other classes. S is a function of (seed, step, labels) alone.
It does not depend on a rank, the order of the batch, how often a class is in it, or earlier draws.
Any number of ranks, and a resumed run, therefore see the same classes.

Source: An et al. 2021 (Partial FC), where each rank draws among its own classes. There the sample
depends on the number of ranks, and every shard has the same share of it. Here a shard takes from S
the classes that lie within its bounds.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from marginlab.rng import Key

# From so many classes on, places of the permutation are computed one by one; below, torch's whole
# permutation costs no more (0.4 ms at 100,000), and all its orders can come
MANY = 100_000


class Sample(NamedTuple):
    """The classes of a step (int64, distinct, ascending), and the number that the batch labels."""

    classes: Int[Tensor, "n"]
    positives: int


def sample(
    labels: Int[Tensor, "B"], num_classes: int, size: int, *, seed: int, step: int
) -> Sample:
    """Draw the classes of a step: every class of the batch, and uniform others, `size` together.

    Args:
        labels: The classes of the global batch, in [0, num_classes); a negative label is ignored.
            An empty batch has only negatives.
        num_classes: C. From 100,000 on, time and memory are those of the batch and of `size`, and
            of sqrt(C); below, of C.
        size: Classes of the sample. A batch with more classes gives exactly its own; 0 thus asks
            for the classes of the batch alone.
        seed, step: The draw is a function of these and of the set of labels. The step is an integer
            in [0, 2**32).

    Returns:
        The sample on the device of the labels, ascending, so that `columns` finds a label in it. On
        a device this waits for the labels.

    Raises:
        ValueError: A label, a size or a step out of range.

    Example:
        >>> labels = torch.tensor([7, 2, 7, -1])
        >>> classes, positives = sample(labels, num_classes=10, size=5, seed=0, step=0)
        >>> len(classes), positives, bool((classes[1:] > classes[:-1]).all())
        (5, 2, True)
        >>> sample(labels, num_classes=10, size=1, seed=0, step=0)
        Sample(classes=tensor([2, 7]), positives=2)
    """
    if not 0 <= size <= num_classes:
        raise ValueError(
            f"A sample holds from 0 to all {num_classes} classes, not {size}. Take a part of "
            "num_classes."
        )
    if not 0 <= step < 1 << 32:
        raise ValueError(
            f"A sample is drawn for a step in [0, 2**32), not {step}. Count the steps of the run "
            "from 0."
        )
    positives = labels[labels >= 0].long().unique()
    if len(positives) and int(positives[-1]) >= num_classes:
        raise ValueError(
            f"Labels lie in [0, {num_classes}), or are negative to be ignored, not "
            f"{int(positives[-1])}. Give the number of classes."
        )
    wanted = size - len(positives)
    if wanted <= 0:
        return Sample(positives, len(positives))
    key = Key(seed).named("negatives").at(step)
    if num_classes < MANY:
        drawn = torch.randperm(num_classes, generator=key.generator())[:size].to(labels.device)
    else:
        drawn = key.shuffle(torch.arange(size, device=labels.device), num_classes)
    # Of the first `size` places at most |P| are positives, so that enough remain
    negatives = drawn[columns(positives, drawn) < 0][:wanted]
    return Sample(torch.cat((positives, negatives)).sort().values, len(positives))


def columns(classes: Int[Tensor, "n"], labels: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
    """Return the place of each label among ascending `classes`, or -1 if it is not there.

    A negative, ignored label gets -1 too.

    All labels that made a sample are among its classes. A shard that holds a part of the sample
    gets -1 for the classes of other shards.

    Example:
        >>> columns(torch.tensor([2, 3, 7]), torch.tensor([7, 2, -1, 5]))
        tensor([ 2,  0, -1, -1])
    """
    if len(classes) == 0:
        return torch.full_like(labels, -1, dtype=torch.int64)
    labels = labels.long()
    places = torch.searchsorted(classes, labels).clamp_max(len(classes) - 1)
    return torch.where(classes[places] == labels, places, -1)
