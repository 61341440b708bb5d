"""Measured step of a head: the peak of its allocations, and the payload of every collective."""

import contextlib

import torch
import torch.distributed as dist

from marginlab import margins, settings
from marginlab.losses import PartialFC
from marginlab.optim import LazyAdamW, LazySGD
from marginlab.testing.memory import peak_of


def head_and_optimizer(setup, group=None):
    """The head that a setup describes, and its optimizer, with momentum and weight decay."""
    dtype = torch.bfloat16 if setup.weights == "bf16" else torch.float32
    head = PartialFC(
        setup.C,
        setup.dim,
        margin=settings.make(setup.margin, margins, margins.Margin),
        subcenters=setup.subcenters,
        sample_rate=setup.sample_rate,
        label_smoothing=setup.label_smoothing,
        dense_grad=not setup.lazy,
        budget=setup.budget_bytes,
        dtype=dtype,
        group=group,
    )
    if setup.optimizer == "LazySGD":
        return head, LazySGD([head.centers], lr=0.1, weight_decay=5e-4, semantics=setup.semantics)
    if setup.optimizer == "LazyAdamW":
        return head, LazyAdamW([head.centers], lr=0.1, semantics=setup.semantics)
    if setup.optimizer == "SGD":
        return head, torch.optim.SGD([head.centers], lr=0.1, momentum=0.9, weight_decay=5e-4)
    return head, torch.optim.AdamW([head.centers], lr=0.1)


def batch_of(setup, rank, step):
    """Embeddings and labels of one rank: each of its labels once, so that none of them saves the
    sample a class.
    """
    generator = torch.Generator().manual_seed(step)
    dtype = torch.bfloat16 if setup.embeddings == "bf16" else torch.float32
    embeddings = torch.randn(setup.rows, setup.dim, generator=generator)[rank :: setup.ranks].to(
        dtype
    )
    return embeddings.requires_grad_(), torch.randperm(setup.C, generator=generator)[: setup.rows][
        rank :: setup.ranks
    ].clone()


def train(setup, group=None, rank=0, steps=2):
    """So many steps of a new head."""
    head, optimizer = head_and_optimizer(setup, group)
    for step in range(steps):
        embeddings, labels = batch_of(setup, rank, step)
        optimizer.zero_grad()
        head(embeddings, labels).backward()
        optimizer.step()
    return head, optimizer


def peak_of_a_rank(group, rank, setup):
    return peak_of(lambda: train(setup, group, rank))


@contextlib.contextmanager
def payloads():
    """A list of (collective, bytes this rank gives), filled while the context is open."""
    seen: list[tuple[str, int]] = []
    gather, reduce, scatter = dist.all_gather, dist.all_reduce, dist.reduce_scatter

    def all_gather(out, x, *arguments, **named):
        seen.append(("all-gather", x.nbytes))
        return gather(out, x, *arguments, **named)

    def all_reduce(x, *arguments, **named):
        seen.append(("all-reduce", x.nbytes))
        return reduce(x, *arguments, **named)

    def reduce_scatter(out, parts, *arguments, **named):
        seen.append(("reduce-scatter", sum(part.nbytes for part in parts)))
        return scatter(out, parts, *arguments, **named)

    dist.all_gather, dist.all_reduce, dist.reduce_scatter = all_gather, all_reduce, reduce_scatter
    try:
        yield seen
    finally:
        dist.all_gather, dist.all_reduce, dist.reduce_scatter = gather, reduce, scatter


def payloads_of_a_step(group, rank, setup):
    head, optimizer = head_and_optimizer(setup, group)
    embeddings, labels = batch_of(setup, rank, 0)
    with payloads() as seen:
        head(embeddings, labels).backward()
        optimizer.step()
    return seen
