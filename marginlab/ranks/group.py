"""The process group: its ranks, how it begins and how it ends."""

import os
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from marginlab.ranks.heartbeat import Heartbeat, silence

PATIENCE = timedelta(minutes=30)  # one rank may measure for long while the others wait
_heart: list[Heartbeat] = []  # of the group that `join` made


def join(backend: str, patience: timedelta = PATIENCE) -> Store:
    """Make the default process group of the processes that torchrun started; return a store.

    Ranks can leave messages in the store without a collective. Group and store are of this start
    alone. torchrun's agent keeps one store for all starts of its processes, and a restarted rank
    must not find there the messages of the ranks before it. With `init_process_group` alone it
    does, and it calls at an address where nobody is left (torch 2.14, gloo). A rank that gives no
    sign of life for some minutes ends the job, see `marginlab.ranks.heartbeat`.

    Args:
        backend: The backend, such as "gloo", "nccl" or "cpu:gloo,cuda:nccl".
        patience: The time that a rank waits for the others, here and in each collective of gloo or
            NCCL.

    Raises:
        ValueError: One of torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) is
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
    """Destroy the default process group, if there is one; the others do not wait for this rank."""
    while _heart:
        _heart.pop().stop()
    if active():
        dist.destroy_process_group()


def size(group: dist.ProcessGroup | None = None) -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size(group) if active() else 1


def rank(group: dist.ProcessGroup | None = None) -> int:
    """Return the number of this rank, from 0; 0 without a process group."""
    return dist.get_rank(group) if active() else 0


def active() -> bool:
    """Return whether there is a process group."""
    return dist.is_available() and dist.is_initialized()
