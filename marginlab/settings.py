"""Settings: a frozen dataclass, whose defaults a TOML file overrides, which flags override.

`read` is the only reader, for studies and recipes alike; `to_toml` writes what `read` reads back equal. A field is a bool, int, float, str or
a tuple of one of these. A choice among classes is a string in Python's call notation, `"SimCLR(temperature=0.5)"`, which `call` turns into
an object of that room: its arguments are literals, its repr reads back, and it makes a readable column in a table.
"""

import ast
import dataclasses
import difflib
import inspect
import json
import math
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


class SettingsError(ValueError):
    """A setting that cannot be used: the message names it and says what would do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A half sentence that helps with an unknown name: the nearest known one and all there are."""
    known = list(known)
    close = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.5)
    hint = next((f"did you mean {k!r}? " for k in known if close and k.lower() == close[0]), "")
    return f"{hint}There are: {', '.join(known)}." if known else "there are none."


def call(text: str, room: ModuleType, /, *args: Any, offered: Mapping[str, Any] | None = None) -> Any:
    """Make the object that `text` names in call notation, from the classes in the room's `__all__`.

    `args` are passed before the literal arguments of the text, for what a text cannot hold (a backbone, a key). `offered` arguments are passed by
    name to a class that has a parameter of that name, and a text cannot set them (the number of classes, which the data decide).

    >>> from marginlab import optim
    >>> call("SGD(lr=0.1, momentum=0.8)", optim)
    SGD(lr=0.1, momentum=0.8, weight_decay=0.0005, nesterov=False)

    Raises
    ------
    SettingsError: not a call of one name with literals, an unknown name, or arguments the class does not take or refuses.

    """
    name, positional, keywords = _parse(text)
    known = [n for n in room.__all__ if isinstance(getattr(room, n), type)]
    if name not in known:
        raise SettingsError(f"{text!r} names no class of {room.__name__}: {nearest(name, known)}")
    kind = getattr(room, name)
    parameters = inspect.signature(kind).parameters
    for keyword in keywords:
        if keyword not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise SettingsError(f"{name} takes no {keyword!r}: {nearest(keyword, parameters)}")
    offered = {key: value for key, value in (offered or {}).items() if key in parameters}
    if given := sorted(offered.keys() & keywords.keys()):
        raise SettingsError(f"{text!r} sets {given[0]!r}, which is not a setting: it is {offered[given[0]]!r} here. Leave it out.")
    try:
        return kind(*args, *positional, **keywords, **offered)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{text!r} cannot be made: {error}") from error


def _parse(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    remedy = f"{text!r} is not a choice in call notation. Write a name with literal arguments, such as 'Name(size=2, kind=\"wide\")'."
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or any(k.arg is None for k in node.keywords):
            raise SettingsError(remedy)
        return node.func.id, [ast.literal_eval(a) for a in node.args], {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (SyntaxError, ValueError) as error:
        raise error if isinstance(error, SettingsError) else SettingsError(remedy) from error


def describe(name: str, /, **arguments: Any) -> str:
    """The call notation of an object: what its `__repr__` returns."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def read(kind: type[T], toml: Path | str | None = None, flags: Sequence[str] = (), *, prog: str | None = None) -> T:
    """Settings of a kind: its defaults, overridden by a TOML file, overridden by flags such as `--batch 64`.

    Raises
    ------
    SettingsError: the file is missing or no TOML, a key is unknown, a value has the wrong type, or the dataclass refuses a value.
    SystemExit: from tyro, for wrong flags (status 2) and for `--help`.

    """
    value = _make(kind, {}, "the defaults")
    if toml is not None:
        path = Path(toml)
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise SettingsError(f"There is no settings file {path}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
            raise SettingsError(f"{path} is not a TOML file: {error}") from error
        value = replaced(value, table, str(path))
    if flags:
        import tyro  # an extra (`lab`): the core reads TOML and makes objects without it

        value = tyro.cli(kind, args=list(flags), default=value, prog=prog, config=(tyro.conf.FlagCreatePairsOff,))
    return value


def replaced(value: T, changes: Mapping[str, Any], source: str = "a change") -> T:
    """The settings with some fields replaced; keys and types are checked, and `source` is named in errors."""
    return _make(type(value), {f.name: getattr(value, f.name) for f in dataclasses.fields(value)} | dict(changes), source)  # type: ignore[arg-type]


def _make(kind: type[T], table: Mapping[str, Any], source: str) -> T:
    fields = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for key in table:
        if key not in fields:
            raise SettingsError(f"{source}: {kind.__name__} has no setting {key!r}: {nearest(key, sorted(fields))}")
    try:
        return kind(**{key: _convert(item, hints[key], f"{source}: {key}") for key, item in table.items()})
    except SettingsError:
        raise
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{source}: {error}") from error


def _convert(item: Any, hint: Any, where: str) -> Any:
    if typing.get_origin(hint) is tuple:
        if not isinstance(item, list | tuple):
            raise SettingsError(f"{where} is a list, not {item!r}.")
        return tuple(_convert(i, typing.get_args(hint)[0], where) for i in item)
    if hint is float and isinstance(item, int) and not isinstance(item, bool):
        return float(item)
    if type(item) is not hint:
        raise SettingsError(f"{where} is of type {hint.__name__}, not {item!r}.")
    return item


def to_toml(value: Any) -> str:
    """The settings as TOML, one field a line, in the order of the dataclass.

    >>> import dataclasses
    >>> @dataclasses.dataclass(frozen=True)
    ... class Small:
    ...     data: str = "shapes"
    ...     batch: int = 8
    >>> print(to_toml(Small()), end="")
    data = "shapes"
    batch = 8
    """
    return "".join(f"{f.name} = {_literal(getattr(value, f.name))}\n" for f in dataclasses.fields(value))


def _literal(item: Any) -> str:
    if isinstance(item, bool):
        return str(item).lower()
    if isinstance(item, str):
        return json.dumps(item, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's strings are TOML's basic strings, but for DEL
    if isinstance(item, float) and not math.isfinite(item):
        return "nan" if math.isnan(item) else "inf" if item > 0 else "-inf"
    if isinstance(item, int | float):
        return repr(item)
    return f"[{', '.join(_literal(i) for i in item)}]"
