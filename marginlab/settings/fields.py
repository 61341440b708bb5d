"""The fields of settings: their types are checked, and some are replaced by others.

replaced(value, {"seed": 1, "recipe": {"batch": 64}})     tables change the fields they name
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from marginlab.settings.errors import SettingsError, nearest, short
from marginlab.settings.nested import flat, is_settings, leaves
from marginlab.settings.notation import LITERALS, call_notation, is_choice
from marginlab.settings.trust import refuse_unnamed

T = TypeVar("T")


def check(value: Any) -> None:
    """Refuse settings made in Python whose fields have other types than they say, or nan.

    An object in a field that is a `Choice` becomes its text. Infinity is a number that `to_toml`
    writes. nan compares with nothing, so every check of a range lets it pass.

    Raises:
        SettingsError: A field of a wrong type, or nan, or an object that no text gives back; the
            message names the field.
    """
    _check(value, "")


def _check(value: Any, path: str) -> None:
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        item, name = getattr(value, field.name), f"{path}{field.name}"
        kept = convert(item, hints[field.name], name)
        if is_settings(kept):
            _check(kept, f"{name}.")
        elif any(isinstance(part, float) and math.isnan(part) for part in leaves(kept)):
            raise SettingsError(f"{name} is a number, not {item!r}.")
        if kept is not item:
            # 1 for 1.0, a list for a tuple, an object for its text
            object.__setattr__(value, field.name, kept)


def replaced(value: T, changes: Mapping[str, Any], source: str = "a change") -> T:
    """Return the settings with some fields replaced; keys and types are checked.

    Args:
        value: The settings.
        changes: The new values by field. For a nested dataclass, its own changes by field, or a
            new object.
        source: The origin of the changes, named in errors.

    Raises:
        SettingsError: An unknown key (the message has its dotted name), a value of a wrong type, or
            one that the dataclass refuses.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Inner:
        ...     batch: int = 8
        ...     seed: int = 0
        >>> @dataclasses.dataclass(frozen=True)
        ... class Outer:
        ...     recipe: Inner = Inner(seed=5)
        >>> replaced(Outer(), {"recipe": {"batch": 64}}).recipe.batch
        64
    """
    found: T = _replaced(value, changes, source, "")
    return found


def _replaced(value: Any, changes: Mapping[str, Any], source: str, path: str) -> Any:
    hints = typing.get_type_hints(type(value))
    given = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    for key, item in changes.items():
        if key not in given:
            raise SettingsError(
                f"{source}: {type(value).__name__} has no setting {f'{path}{key}'!r}: "
                f"{_known(value, key)}"
            )
        if isinstance(item, Mapping) and is_settings(hints[key]):
            given[key] = _replaced(given[key], item, source, f"{path}{key}.")
        else:
            given[key] = item
    return made(type(value), given, source, path)


def _known(value: Any, key: str) -> str:
    """Return half a sentence on an unknown key: the field meant, here or in a nested dataclass."""
    inner = [name for name in flat(value) if name.endswith(f".{key}")]
    names = sorted(field.name for field in dataclasses.fields(value))
    if not inner:
        return nearest(key, names)
    return f"did you mean {inner[0]!r}? There are: {', '.join(names)}."


def made(kind: type[T], given: Mapping[str, Any], source: str, path: str = "") -> T:
    """Make settings of a kind from values by field, whose types are checked.

    Args:
        kind: The dataclass.
        given: The values.
        source: Where they come from, for errors.
        path: The dotted name of a nested dataclass with a dot behind it, for errors.
    """
    hints = typing.get_type_hints(kind)
    refuse_unnamed(given)
    where = f"{source}: {path.removesuffix('.')}: " if path else f"{source}: "
    kept = {key: convert(item, hints[key], f"{source}: {path}{key}") for key, item in given.items()}
    try:
        return kind(**kept)
    except SettingsError as error:
        if not path:
            raise
        raise SettingsError(f"{where}{error}") from error
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{where}{error}") from error


def convert(item: Any, hint: Any, where: str) -> Any:
    """Return a value as the annotation of its field has it.

    Raises:
        SettingsError: It is of another type.
    """
    if is_choice(hint):
        return _text(item, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(item, list | tuple):
            raise SettingsError(f"{where} is a list, not {item!r}.")
        return tuple(convert(each, typing.get_args(hint)[0], where) for each in item)
    if hint is float and isinstance(item, int) and not isinstance(item, bool):
        return float(item)
    if type(item) is not hint:
        if is_settings(hint):
            raise SettingsError(
                f"{where} is a {hint.__name__}, in TOML a table of its settings, not {short(item)}."
            )
        raise SettingsError(f"{where} is of type {hint.__name__}, not {short(item)}.")
    return item


def _text(item: Any, where: str) -> str:
    """Return the text of a choice."""
    if isinstance(item, str):
        return item
    if item is None or type(item) in (*LITERALS, list, tuple, dict):
        raise SettingsError(
            f"{where} is of type str in call notation, or an object, not {short(item)}."
        )
    try:
        return call_notation(item)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from error
