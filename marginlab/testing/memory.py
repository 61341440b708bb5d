"""Memory that a piece of work takes: every allocation of torch on the CPU, from its profiler."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from marginlab.testing.agreement import Disagreement


def peak_of(work: Callable[[], object]) -> int:
    """Most bytes allocated at once while `work` ran, over those before; torch's own included.

    Args:
        work: called once, without arguments; what it returns is dropped.

    Returns:
        Bytes. Each allocation and release counts, whatever caches lie below torch.

    Example:
        >>> peak_of(lambda: torch.zeros(1000).exp()) >= 8000
        True
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        result = work()
    del result
    results: Any = run.profiler
    changes: list[tuple[int, int]] = []

    def visit(events: Iterable[Any]) -> None:
        for event in events:
            if event.tag == _EventType.Allocation:
                changes.append((event.start_time_ns, event.extra_fields.alloc_size))
            visit(event.children)

    visit(results.kineto_results.experimental_event_tree())
    now = most = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        now += change
        most = max(most, now)
    return most


def within(budget: int, tensors: Iterable[Tensor], work: Callable[[], object]) -> None:
    """Check that `work` allocates at most a budget besides 32 times the bytes of some tensors.

    Raises:
        Disagreement: It allocates more.
    """
    allowed = budget + 32 * sum(x.numel() * x.element_size() for x in tensors)
    peak = peak_of(work)
    if peak > allowed:
        raise Disagreement("bytes allocated at once", peak, "bytes allowed", allowed)
