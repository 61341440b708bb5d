"""Settings: a frozen dataclass, whose defaults a TOML file overrides, which flags override.

`read` is the only reader, for studies and recipes alike; `read` reads the output of `to_toml` back
equal. A field is a bool, int, float, str or a tuple of one of these. A choice among classes is a
string in Python's call notation, `"SimCLR(temperature=0.5)"`. `call` turns it into an object of a
class in the given package. Its arguments are literals, its repr reads back, and it makes a readable
column in a table.

A class of the user's own is `"package.module:Class(size=2)"`, and that module is imported. So such
a text is code that the user names. Settings that are read from a run folder (`as_data`) import no
other module.
"""

import ast
import cmath
import contextlib
import dataclasses
import difflib
import errno
import importlib
import inspect
import json
import math
import re
import tomllib
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from marginlab.files import content_of

T = TypeVar("T")
OWN = re.compile(r"\s*([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*\(.*\))\s*", re.DOTALL)
_NAMED = set[str]()  # modules that this process was asked to import by its user
_ALLOWED: ContextVar[Collection[str] | None] = ContextVar("allowed", default=None)  # None: any


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it and says which values can be."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return half a sentence on an unknown name: the nearest known name, and all names."""
    known = list(known)
    close = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.5)
    hint = next((f"did you mean {k!r}? " for k in known if close and k.lower() == close[0]), "")
    return f"{hint}There are: {', '.join(known)}." if known else "there are none."


@contextlib.contextmanager
def as_data(code: Collection[str] = ()) -> Iterator[None]:
    """Read settings as data, where the user did not choose their words, as in a run folder.

    Inside, no text makes an object of a module that is imported for it. Exceptions are the modules
    `code` and the modules that the user named in this process before (by a recipe of their own).

    Example:
        >>> with as_data():
        ...     call("antigravity:Method()", importlib, kind=object)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        marginlab.settings.SettingsError: 'antigravity:Method()' names code of the module ...
    """
    token = _ALLOWED.set(frozenset((code,)) if isinstance(code, str) else frozenset(code))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def _name(text: str, module: str) -> None:
    """Record that the user named a module, or refuse it where settings are only data."""
    allowed = _ALLOWED.get()
    if allowed is None or module in allowed:
        _NAMED.add(module)
    elif module not in _NAMED:
        raise SettingsError(
            f"{text!r} names code of the module {module!r}, in settings that are read as data: "
            "nothing was imported. If you trust that module, name it yourself: by "
            f"code=({module!r},) in load and open_run, by --code {module} on the command line of "
            "studies, or by a recipe of your own."
        )


def named_in(value: Any) -> set[str]:
    """Find the user's own modules that the texts of some settings name, without importing them.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Small:
        ...     augmentation: str = "Augmentation(('mine.views:Blur()',))"
        >>> named_in(Small())
        {'mine.views'}
    """
    texts = _flat([getattr(value, field.name) for field in dataclasses.fields(value)])
    return {module for text in texts if isinstance(text, str) for _, module in _own_code(text)}


def _own_code(text: str) -> Iterator[tuple[str, str]]:
    """Yield texts that name code, with its module: the text itself, or strings in its arguments."""
    if found := OWN.fullmatch(text):
        yield text, found[1]
        text = found[2]
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # no call notation
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != text:
            yield from _own_code(node.value)


def call(
    text: str,
    room: ModuleType,
    /,
    *args: Any,
    kind: type | None = None,
    offered: Mapping[str, Any] | None = None,
) -> Any:
    """Make the object that `text` names in call notation, of a class in the room's `__all__`.

    Args:
        text: The object in call notation.
        room: The package that offers the classes.
        args: Arguments passed before the literal ones of the text, for values that a text cannot
            hold (a backbone, a key).
        kind: A class; the text may then also name a subclass of it in another module,
            "package.module:Class(size=2)".
        offered: Arguments passed by name to a class that has a parameter of that name. A text
            cannot set them (the number of classes, which the data decide).

    Raises:
        SettingsError: A text that is not a call of one name with literals, an unknown name, or
            arguments that the class does not take or refuses. Also a module that cannot be
            imported, or may not be (`as_data`), or a class in it that is not of the kind.

    Example:
        >>> from marginlab import optim
        >>> call("SGD(lr=0.1, momentum=0.8)", optim)
        SGD(lr=0.1, momentum=0.8, weight_decay=0.0005, nesterov=False)
    """
    if not isinstance(text, str):
        raise SettingsError(f"{text!r} is not a choice in call notation: write its text.")
    own = OWN.fullmatch(text)
    name, positional, keywords = _parse(text if own is None else own[2])
    if own is None:
        known = [n for n in room.__all__ if isinstance(getattr(room, n), type)]
        if name not in known:
            raise SettingsError(
                f"{text!r} names no class of {room.__name__}: {nearest(name, known)}"
            )
        made = getattr(room, name)
    else:
        made = _imported(text, own[1], name, kind)
    parameters = inspect.signature(made).parameters
    for keyword in keywords:
        if keyword not in parameters and not any(
            p.kind is p.VAR_KEYWORD for p in parameters.values()
        ):
            raise SettingsError(f"{name} takes no {keyword!r}: {nearest(keyword, parameters)}")
    offered = {key: value for key, value in (offered or {}).items() if key in parameters}
    if given := sorted(offered.keys() & keywords.keys()):
        raise SettingsError(
            f"{text!r} sets {given[0]!r}, which is not a setting: it is {offered[given[0]]!r} "
            "here. Leave it out."
        )
    try:
        return made(*args, *positional, **keywords, **offered)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{text!r} cannot be made: {error}") from error


def _imported(text: str, module: str, name: str, kind: type | None) -> type:
    """Return the user's own class that a text names."""
    if kind is None:
        raise SettingsError(f"{text!r} names code of one's own, which this setting does not take.")
    _name(text, module)
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise SettingsError(
            f"{text!r} names the module {module!r}, which cannot be imported: {error}. Run from "
            "its folder, or install its package."
        ) from error
    if not isinstance(found, type) or not issubclass(found, kind):
        what = (
            "has no class of that name"
            if found is None
            else f"has a {name} that is no {kind.__name__}"
        )
        raise SettingsError(f"{text!r} cannot be made: the module {module!r} {what}.")
    return found


def _parse(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    remedy = (
        f"{text!r} is not a choice in call notation. Write a name with literal arguments, such as "
        "'Name(size=2, kind=\"wide\")'."
    )
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if (
            not isinstance(node, ast.Call)
            or not isinstance(node.func, ast.Name)
            or any(k.arg is None for k in node.keywords)
        ):
            raise SettingsError(remedy)
        positional = [ast.literal_eval(a) for a in node.args]
        keywords = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        if odd := [item for item in _flat([positional, keywords]) if not _finite(item)]:
            raise SettingsError(f"{text!r} holds {odd[0]}, which is no finite number. Write one.")
        return node.func.id, positional, keywords
    except (SyntaxError, ValueError) as error:
        raise error if isinstance(error, SettingsError) else SettingsError(remedy) from error


def _flat(item: Any) -> Iterator[Any]:
    """Yield the items of nested containers that are no containers themselves."""
    if isinstance(item, dict):
        item = [*item.keys(), *item.values()]
    if isinstance(item, list | tuple | set):
        for each in item:
            yield from _flat(each)
    else:
        yield item


def _finite(item: Any) -> bool:
    return not isinstance(item, float | complex) or cmath.isfinite(item)


def check(value: Any) -> None:
    """Refuse settings made in Python whose fields have other types than they say, or nan.

    Infinity is a number that `to_toml` writes. nan compares with nothing, so every check of a range
    lets it pass.

    Raises:
        SettingsError: A field of a wrong type, or nan; the message names the field.
    """
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        kept = _convert(item, hints[field.name], field.name)
        if any(isinstance(part, float) and math.isnan(part) for part in _flat(kept)):
            raise SettingsError(f"{field.name} is a number, not {item!r}.")
        if type(kept) is not type(item):
            object.__setattr__(value, field.name, kept)  # 1 for 1.0, a list for a tuple


def describe(name: str, /, **arguments: Any) -> str:
    """Return the call notation of an object, for its `__repr__`."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def read(
    kind: type[T],
    toml: Path | str | None = None,
    flags: Sequence[str] = (),
    *,
    prog: str | None = None,
) -> T:
    """Read settings: defaults, overridden by a TOML file, overridden by flags like `--batch 64`.

    Raises:
        SettingsError: The file is missing or no TOML, a key is unknown, a value has the wrong type,
            or the dataclass refuses a value.
        SystemExit: From tyro, for wrong flags (status 2) and for `--help`.
    """
    value = _make(kind, {}, "the defaults")
    if toml is not None:
        path = Path(toml)
        try:
            data = _ALLOWED.get() is not None  # somebody else's; one's own may be a pipe
            content = content_of(path) if data else path.read_bytes()
            table = tomllib.loads(content.decode("utf-8-sig"))
        except FileNotFoundError as error:
            raise SettingsError(f"There is no settings file {path}.") from error
        except (
            tomllib.TOMLDecodeError,
            UnicodeDecodeError,
            IsADirectoryError,
            RecursionError,
        ) as error:
            raise SettingsError(f"{path} is not a TOML file: {error}") from error
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise SettingsError(f"{path} is not a TOML file: {error.strerror}") from error
        value = replaced(value, table, str(path))
    if flags:
        import tyro  # an extra (`lab`): the core reads TOML and makes objects without it

        value = tyro.cli(
            kind, args=list(flags), default=value, prog=prog, config=(tyro.conf.FlagCreatePairsOff,)
        )
    return value


def replaced(value: T, changes: Mapping[str, Any], source: str = "a change") -> T:
    """Return the settings with some fields replaced; keys and types are checked.

    Args:
        value: The settings.
        changes: The new values by field.
        source: The origin of the changes, named in errors.
    """
    fields = dataclasses.fields(value)  # type: ignore[arg-type]
    given = {field.name: getattr(value, field.name) for field in fields}
    return _make(type(value), given | dict(changes), source)


def _make(kind: type[T], table: Mapping[str, Any], source: str) -> T:
    fields = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for key in table:
        if key not in fields:
            raise SettingsError(
                f"{source}: {kind.__name__} has no setting {key!r}: {nearest(key, sorted(fields))}"
            )
    if _ALLOWED.get() is not None:
        for item in _flat(dict(table)):
            if isinstance(item, str):
                for text, module in _own_code(item):
                    _name(text, module)
    try:
        return kind(
            **{key: _convert(item, hints[key], f"{source}: {key}") for key, item in table.items()}
        )
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
        raise SettingsError(f"{where} is of type {hint.__name__}, not {_short(item)}.")
    return item


def _short(item: Any) -> str:
    """Show a value in an error message, cut and with its type if it is long."""
    text = repr(item)
    return text if len(text) <= 80 else f"{text[:60]}... ({type(item).__name__})"


def to_toml(value: Any) -> str:
    """Write the settings as TOML, one field a line, in the order of the dataclass.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Small:
        ...     data: str = "shapes"
        ...     batch: int = 8
        >>> print(to_toml(Small()), end="")
        data = "shapes"
        batch = 8
    """
    return "".join(
        f"{f.name} = {_literal(getattr(value, f.name))}\n" for f in dataclasses.fields(value)
    )


def _literal(item: Any) -> str:
    if isinstance(item, bool):
        return str(item).lower()
    if isinstance(item, str):
        # JSON's strings are TOML's basic strings, but for DEL
        return json.dumps(item, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(item, float) and not math.isfinite(item):
        return "nan" if math.isnan(item) else "inf" if item > 0 else "-inf"
    if isinstance(item, int | float):
        return repr(item)
    return f"[{', '.join(_literal(i) for i in item)}]"
