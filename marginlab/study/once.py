"""A result kept in the run folder under a hash of its arguments, and computed once.

    once/NAME-HASH/once.json
    HASH = SHA-256 of the canonical JSON of (name, arguments), shortened

The first process to ask computes it; the others find it or wait. This is the only way in which
cells depend on each other: train once, measure often. The folder of an interrupted computation is
kept, so the function can go on in it.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from marginlab.study.files import Claim, read_json, safe, write_json
from marginlab.study.team import Team

_POLL = 0.2  # seconds between two looks at a result that another process computes
_asked: set[Path] = set()


def is_frozen(kind: Any) -> bool:
    """Return whether a class is a frozen dataclass."""
    parameters = getattr(kind, "__dataclass_params__", None)  # typeshed does not know it
    return bool(getattr(parameters, "frozen", False))


def canonical(value: Any) -> Any:
    """Return a value in JSON's types: its contents and the class of each dataclass.

    Raises:
        TypeError: The value is, or holds, something else than text, numbers, bools, None, tuples,
            lists, dicts with text keys, frozen dataclasses.

    Example:
        >>> canonical((1, 2.5, {"b": None, "a": True}))
        [1, 2.5, {'a': True, 'b': None}]
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [canonical(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: canonical(value[key]) for key in sorted(value)}
    if not isinstance(value, type) and is_frozen(type(value)):
        fields = {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__qualname__, "fields": fields}
    raise TypeError(
        "An argument of once() is made of text, numbers, bools, None, tuples, lists, dicts with "
        f"text keys and frozen dataclasses, not of {type(value).__name__}: {value!r:.80}. Pass "
        "what it was made from, or a path as text."
    )


def once(
    run_folder: Path,
    team: Team,
    say: Callable[[str], None],
    name: str,
    function: Callable[..., Any],
    *arguments: Any,
) -> Any:
    """Return `function(*arguments, folder=...)`, computed once in a run folder; see `Cell.once`."""
    asked = canonical(arguments)
    digest = hashlib.sha256(json.dumps([name, asked], sort_keys=True).encode()).hexdigest()[:12]
    folder = run_folder / "once" / f"{safe(name)}-{digest}"
    kept = folder / "once.json"
    if folder in _asked:
        raise RuntimeError(
            f"once({name!r}) asks for itself while it is being computed. Give the inner result "
            "another name."
        )
    claim = Claim(folder / ".lock")

    def look() -> str:
        if _whole(kept):
            return "kept"
        if not claim.take():
            return "wait"
        if _whole(kept):  # it was finished between the two looks
            claim.release()
            return "kept"
        return "ours"

    waited = False
    while (state := team.first(look)) == "wait":
        if not waited:
            say(f"waits for {name}, which another process computes")
        waited = True
        time.sleep(_POLL)
    if state == "kept":
        return team.first(lambda: read_json(kept)["result"])
    _asked.add(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)  # on another machine it may not be seen yet
        started = time.monotonic()
        result = function(*arguments, folder=folder)
        _check_json(result, name)
        entry = {
            "name": name,
            "arguments": asked,
            "seconds": round(time.monotonic() - started, 3),
            "result": result,
        }
        team.first(lambda: write_json(kept, entry))
        # as all others will read it: a tuple is a list
        return team.first(lambda: read_json(kept)["result"])
    finally:
        _asked.discard(folder)
        claim.release()


def _whole(kept: Path) -> bool:
    """Return whether a result is there, and not an empty file left by a crash or a full disk."""
    try:
        return "result" in read_json(kept)
    except (OSError, ValueError, TypeError):
        return False


def _check_json(value: Any, name: str, where: str = "result") -> None:
    if isinstance(value, tuple | list):
        for i, item in enumerate(value):
            _check_json(item, name, f"{where}[{i}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(
                    f"The {where} of once({name!r}) has the key {key!r}: keys of what is kept as "
                    "JSON are text. Use str(key)."
                )
            _check_json(item, name, f"{where}[{key!r}]")
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise TypeError(
            f"The {where} of once({name!r}) is of type {type(value).__name__}, which JSON cannot "
            "keep. Return numbers, text, lists and dicts (float(x), x.tolist()), save larger "
            "things in the folder that the function is given, and return their names."
        )
