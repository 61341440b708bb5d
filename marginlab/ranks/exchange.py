"""Messages between ranks: values from one to all, and checks that all are about to do the same.

A collective that ranks enter with different shapes hangs, ends the process or gives a number that
means nothing. So every function that gathers first exchanges two integers of each rank: its number
of rows, and a word. The word is negative if the rank refuses its batch, and otherwise a hash of the
values that must be alike.
"""

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from marginlab.ranks.group import rank, size

T = TypeVar("T")


def raise_together(
    n: int,
    error: Exception | None,
    group: dist.ProcessGroup | None = None,
    device: torch.device | str = "cpu",
    *,
    what: str = "",
    refused: str = "its batch",
    **alike: Any,
) -> list[int]:
    """Return the rows of each rank, once no rank has found an error and all call alike.

    It is one all-reduce of two integers a rank, at every call. If it shows a difference, every rank
    raises, so that none waits for a collective that another never enters.

    Args:
        n: Rows of this rank.
        error: The reason for which this rank refuses its batch; None if it does not.
        group: Process group; None is the default one, or one rank.
        device: The device of the exchange; cuda for NCCL.
        what: The name of the function called, for messages.
        refused: The thing that a rank with an error refuses, for messages.
        alike: By name, the values that must be the same on every rank; compared by their `repr`.

    Raises:
        ValueError: On the ranks that found no error: another rank's error, with its words and the
            number of the rank. On all ranks: values that are not alike, with the ranks and the
            values. The rank that found an error raises that error.

    Example:
        >>> raise_together(3, None, width=8)
        [3]
    """
    if size(group) == 1:
        if error is not None:
            raise error
        return [n]
    said = {"call": what, **alike}
    sent = torch.zeros(size(group), 2, dtype=torch.int64, device=device)
    word = _word(said) if error is None else -1
    sent[rank(group)] = torch.tensor([n, word], device=device)
    dist.all_reduce(sent, group=group)
    rows: list[int]
    rows, words = sent.T.tolist()
    if min(words) < 0:
        refusals = all_gather_object(
            None if error is None else str(error) or type(error).__name__, group
        )
        if error is not None:
            raise error
        number = next(r for r, text in enumerate(refusals) if text is not None)
        raise ValueError(f"Rank {number} of {size(group)} refused {refused}: {refusals[number]}")
    if min(words) < max(words):
        shown = {name: f"{value!r:.200}" for name, value in said.items()}
        raise ValueError(differences(all_gather_object(shown, group), what))
    return rows


def _word(said: dict[str, Any]) -> int:
    """Return 56 bits of a hash, the same in every process."""
    text = repr(sorted(said.items()))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())


def all_gather_object(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Return the values of all ranks, in their order, on each; a value is any that can be pickled.

    Example:
        >>> all_gather_object("here")
        ['here']
    """
    if size(group) == 1:
        return [value]
    values: list[Any] = [None] * size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def differences(said: list[dict[str, str]], what: str = "") -> str:
    """Describe in a sentence how the ranks' values differ: each name, every value and its ranks.

    Example:
        >>> differences([{"classes": "20"}, {"classes": "30"}, {"classes": "20"}], "PartialFC")
        'The ranks do not call PartialFC alike: classes is 20 on ranks 0, 2 and 30 on rank 1.'
    """
    parts = []
    names = dict.fromkeys(name for one in said for name in one)
    if len({one.get("call") for one in said}) > 1:
        names, what = {"call": None}, ""  # the settings of two functions have nothing in common
    for name in names:
        ranks: dict[str, list[int]] = {}
        for number, one in enumerate(said):
            ranks.setdefault(one.get(name, "not given"), []).append(number)
        if len(ranks) > 1:
            of = (
                f"{value} on rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
                for value, numbers in ranks.items()
            )
            parts.append(f"{name} is {' and '.join(of)}")
    if not parts:  # the values differ further on than is shown of them
        parts.append("a value that is too long to show differs")
    return f"The ranks do not call {f'{what} alike' if what else 'the same'}: {'; '.join(parts)}."


def require_alike(
    what: str,
    said: dict[str, Any],
    *,
    group: dist.ProcessGroup | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Raise ValueError on every rank if the values of one differ from the others'; a collective.

    Example:
        >>> require_alike("fit", {"images": 2000})
    """
    raise_together(0, None, group, device, what=what, **said)


def validate_together(
    check: Callable[[], T],
    x: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    what: str = "",
    **alike: Any,
) -> tuple[T, list[int]]:
    """Validate this rank's batch; if any rank rejects, all raise.

    All ranks raise as well if they do not call alike: with another dtype or width of x, or another
    of the values `alike`; see `raise_together`. Any exception of a check is exchanged, even where
    memory ran out, since the others would wait.

    Args:
        check: A function that raises for a bad batch.
        x: The batch, or a tensor with a row for each of its rows.
        group: Process group; None is the default one, or one rank.
        what: The name of the function called, for messages.
        alike: By name, the values that must be the same on every rank.

    Returns:
        The result of `check`, and the number of rows of each rank.

    Example:
        >>> validate_together(lambda: "good", torch.ones(3, 2))
        ('good', [3])
    """
    error: Exception | None = None
    try:
        made = check()
    except Exception as raised:
        error = raised
    rows = 0
    device = torch.device("cpu")
    if isinstance(x, Tensor):  # where it is none the check has raised
        rows = len(x) if x.ndim else 0
        device = x.device
        alike |= {"dtype": x.dtype, "width": tuple(x.shape[1:])}
    rows_per_rank = raise_together(rows, error, group, device, what=what, **alike)
    return made, rows_per_rank


def broadcast(value: Any, group: dist.ProcessGroup | None = None, *, source: int = 0) -> Any:
    """Return one rank's value (any picklable object) on every rank; by default rank 0's."""
    if size(group) == 1:
        return value
    box = [value]
    dist.broadcast_object_list(
        box, src=source if group is None else dist.get_global_rank(group, source), group=group
    )
    return box[0]


def broadcast_from_first(
    function: Callable[[], Any], group: dist.ProcessGroup | None = None
) -> Any:
    """Call a function on rank 0 and return its result on all ranks.

    An error of the function is raised on every rank, so none waits for ever.
    """
    if size(group) == 1:
        return function()
    result, error = None, None
    if rank(group) == 0:
        try:
            result = function()
        except Exception as raised:
            error = raised
    result, error = broadcast((result, error), group)
    if error is not None:
        raise error
    return result
