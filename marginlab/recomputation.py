"""State of a step, which a second run of its forward pass has to find unchanged.

Under torch.utils.checkpoint (with and without reentrance) a forward pass is run again in the
backward pass. A module that draws a sample or moves an average notes the values that it used.
Called again while a backward pass runs, it uses the noted values and moves nothing. The two runs
have the same inputs, so a note is found by them: by the number of rows, and by sums of the inputs
that no other batch has. Calls with equal inputs are told apart by autograd's sequence numbers of
operations.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
KEPT = 64  # calls before the backward pass that can be run again
NEAR = 1e-3  # of the magnitudes: a GPU may add in another order when it computes again
EQUAL = 1e-6  # of the magnitudes: nearer than this, sums do not tell two calls apart
BLOCK = 1 << 18  # numbers that are turned to float64 at a time


def recomputing() -> bool:
    """Return whether a backward pass of this thread runs, so that a forward pass is a rerun."""
    # There is no public question for it; checkpointing itself asks this one
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def transformed() -> bool:
    """Return whether a transform of torch.func (grad, vmap, jacrev, ...) is active."""
    return bool(torch._C._are_functorch_transforms_active())


@dataclass
class _Note(Generic[T]):
    """A forward pass: its rows, the sums of its inputs, the values it used, and when it was run."""

    rows: int
    marks: Tensor
    used: T
    times: list[int]


class Calls(Generic[T]):
    """Notes of the latest forward passes, by their inputs; copies and pickles of it are empty.

    Example:
        >>> calls, batch = Calls[int](), torch.randn(4, 2)
        >>> calls.note((batch,), 7)
        >>> calls.recall((batch,))
        7
    """

    def __init__(self) -> None:
        self._notes: deque[_Note[T]] = deque(maxlen=KEPT)

    def __len__(self) -> int:
        return len(self._notes)

    def note(self, inputs: tuple[Tensor, ...], used: T) -> None:
        """Keep the values that a forward pass with these inputs used; nothing waits for a GPU."""
        if not torch.compiler.is_compiling() and not transformed():
            self._notes.append(_Note(len(inputs[0]), _marks(inputs), used, [_now()]))

    def recall(self, inputs: tuple[Tensor, ...]) -> T:
        """Return the noted values of the pass that is run again, found by the nearest inputs.

        Raises:
            RuntimeError: No note has these rows.
        """
        marks = _marks(inputs).cpu()
        alike = [note for note in self._notes if note.rows == len(inputs[0])]
        far = [_distance(marks, note.marks.cpu()) for note in alike]
        best = min(far, default=torch.inf)
        if best <= NEAR:
            equals = [note for note, d in zip(alike, far, strict=True) if d <= best + EQUAL]
            found = _run_again(equals)
            found.times.append(_now())  # a checkpoint within it counts on from here
            return found.used
        gone = f"; of more than {KEPT} calls before a backward pass, the first are forgotten"
        raise RuntimeError(
            "This forward pass runs inside a backward pass, where only one that is run again "
            f"(torch.utils.checkpoint) belongs, and none of the last {len(self)} had these "
            f"{len(inputs[0])} rows{gone if len(self) == KEPT else ''}. Call the head outside of "
            f"hooks, and checkpoint at most {KEPT} calls of it before their backward pass."
        )

    def noted(self, inputs: tuple[Tensor, ...]) -> bool:
        """Return whether a pass over as many rows left a note."""
        return any(note.rows == len(inputs[0]) for note in self._notes)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Calls[T]":
        return Calls()

    def __reduce__(self) -> tuple[type["Calls[T]"], tuple[()]]:
        return Calls, ()


def _now() -> int:
    """Return the number that autograd gives to the next operation of this thread."""
    return torch._C._autograd._get_sequence_nr()


def _run_again(equals: list[_Note[T]]) -> _Note[T]:
    """Find the pass whose operation's backward pass is running, among passes of equal inputs.

    A reentrant checkpoint is an operation that comes before the operations within it. Without
    reentrance it is the last operation within the checkpoint that asks for a value that was not
    kept.
    """
    node = torch._C._current_autograd_node()
    if node is None or len(equals) == 1:
        return equals[-1]
    turn = node._sequence_nr()
    times = [(time, note) for note in equals for time in note.times]
    if node.name() == "CheckpointFunctionBackward":
        after = [each for each in times if each[0] > turn]
        return min(after, key=lambda each: each[0])[1] if after else equals[-1]
    before = [each for each in times if each[0] <= turn]
    return max(before, key=lambda each: each[0])[1] if before else equals[-1]


@torch.no_grad()
def _marks(inputs: tuple[Tensor, ...]) -> Tensor:
    """Return three sums of each input: plain, with rows weighted by place, and of magnitudes."""
    marks = []
    for each in inputs:
        flat = each.flatten(1) if each.ndim > 1 else each[:, None]
        blocks = flat.split(max(1, BLOCK // max(flat.shape[1], 1)))  # no float64 copy of all rows
        rows = torch.cat([b.double().nan_to_num(0.0, 0.0, 0.0).sum(1) for b in blocks])
        places = torch.arange(1, len(rows) + 1, dtype=rows.dtype, device=rows.device)
        marks += [rows.sum(), (rows * places).sum() / max(len(rows), 1), rows.abs().sum()]
    return torch.stack(marks)


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of two sums, as a fraction of the sum of magnitudes."""
    a, b = a.view(-1, 3), b.view(-1, 3)
    scale = torch.maximum(a, b)[:, 2:].clamp_min(torch.finfo(a.dtype).tiny)
    return float(((a - b).abs() / scale).amax())
