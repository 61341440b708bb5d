"""Memory that a piece of work takes, counted by every allocation of torch."""

from collections.abc import Callable

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile


def peak_of(work: Callable[[], object]) -> int:
    """Return the most bytes allocated at once by `work`, beyond those before, torch's included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        kept = work()
    del kept
    changes = []

    def visit(events):
        for event in events:
            if event.tag == _EventType.Allocation:
                changes.append((event.start_time_ns, event.extra_fields.alloc_size))
            visit(event.children)

    visit(run.profiler.kineto_results.experimental_event_tree())
    now = most = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        now += change
        most = max(most, now)
    return most
