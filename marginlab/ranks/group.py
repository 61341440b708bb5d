"""The process group: who takes part in it, how it begins and how it ends."""

import os
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from marginlab.ranks.heartbeat import Heartbeat, silence

PATIENCE = timedelta(minutes=30)  # one rank may measure for long while the others wait
_heart: list[Heartbeat] = []  # of the group that `join` made


def join(backend: str, patience: timedelta = PATIENCE) -> Store:
    """Make the default process group of the processes that torchrun started; gives a store in which
    they can leave word without a collective.

    Both are of this start alone. torchrun's agent keeps one store for all starts of its processes,
    and a rank that it starts again must not find there what the ranks before it said: by
    `init_process_group` alone one does, and calls at an address where nobody is left (torch 2.14,
    gloo).

    Args:
        backend: such as "gloo", "nccl" or "cpu:gloo,cuda:nccl".
        patience: how long a rank waits for the others, here and in each collective of gloo or NCCL.

    A rank that gives no sign of life for some minutes ends the job, see
    `marginlab.ranks.heartbeat`.

    Raises ValueError where torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) are
    missing, or MARGINLAB_SILENCE is no number of seconds.
    """
    seconds = silence()
    store, here, world = next(rendezvous("env://", timeout=patience))
    start = PrefixStore(
        f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')} of {world}", store
    )
    dist.init_process_group(
        backend, store=PrefixStore("group", start), rank=here, world_size=world, timeout=patience
    )
    if seconds and world > 1:
        _heart.append(Heartbeat(PrefixStore("heart", start), here, world, seconds))
    return PrefixStore("word", start)


def leave() -> None:
    """Take the default process group down, if there is one; the others do not wait for this rank."""
    while _heart:
        _heart.pop().stop()
    if active():
        dist.destroy_process_group()


def size(group: dist.ProcessGroup | None = None) -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size(group) if active() else 1


def rank(group: dist.ProcessGroup | None = None) -> int:
    """Number of this rank, from 0; 0 without a process group."""
    return dist.get_rank(group) if active() else 0


def active() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()
