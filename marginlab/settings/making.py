"""Objects from settings: `make` turns a choice into an object of the kind that is asked for."""

import functools
import importlib
import inspect
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar

from marginlab.settings.errors import SettingsError, nearest, short
from marginlab.settings.notation import LITERALS, class_of, parse
from marginlab.settings.trust import OWN, name_module

T = TypeVar("T")


def make(
    choice: object,
    room: ModuleType,
    kind: type[T],
    /,
    *args: Any,
    offered: Mapping[str, Any] | None = None,
) -> T:
    """Make the object of a kind that settings choose, or return the object that they are.

    Args:
        choice: A text in call notation, which names a class in the room's `__all__`, or one's own
            as "package.module:Class(size=2)". Or an object of the kind, which is returned as it
            is. Or a class of the kind, or `functools.partial` of one.
        room: The package that offers the classes.
        kind: The class that the object is of.
        args: Arguments passed before those of the choice, for values that a text cannot hold (a
            backbone, a key).
        offered: Arguments passed by name to a class that has a parameter of that name. A choice
            cannot set them (the number of classes, which the data decide).

    Returns:
        An object of the kind.

    Raises:
        SettingsError: A text that is not a call of one name with literals, an unknown name, a class
            of another kind, or arguments that the class does not take or refuses. Also a module
            that cannot be imported, or may not be (`as_data`). Also an object where its class has
            to be given `args` or what is offered.

    Example:
        >>> from functools import partial
        >>> from marginlab import optim
        >>> make("SGD(lr=0.1, momentum=0.8)", optim, optim.SGD)
        SGD(lr=0.1, momentum=0.8, weight_decay=0.0005, nesterov=False)
        >>> make(partial(optim.SGD, lr=0.1), optim, optim.SGD).lr
        0.1
        >>> rate = optim.Constant()
        >>> make(rate, optim, optim.Schedule) is rate
        True
    """
    offered = offered or {}
    if isinstance(choice, str):
        return _of_text(choice, room, kind, args, offered)
    if isinstance(choice, type | functools.partial):
        made, positional, keywords = class_of(choice)
        if not issubclass(made, kind):
            raise SettingsError(f"{short(choice)} is no {kind.__name__}: {_offers(room, kind)}")
        return _called(short(choice), made, (*args, *positional), keywords, offered)
    if not isinstance(choice, kind):
        if choice is None or type(choice) in (*LITERALS, list, tuple, dict):
            raise SettingsError(
                f"{short(choice)} is not a choice in call notation: write its text, such as "
                f"'Name(size=2)', or give an object. It is a {kind.__name__}: {_offers(room, kind)}"
            )
        raise SettingsError(f"{short(choice)} is no {kind.__name__}: {_offers(room, kind)}")
    parameters = inspect.signature(type(choice)).parameters
    if args or offered.keys() & parameters.keys():
        name = type(choice).__name__
        raise SettingsError(
            f"This {name} is made already, and here its class is given more arguments. Give the "
            f"text, the class, or the class with its other arguments: functools.partial({name}, "
            "...)."
        )
    return choice


def _of_text(
    text: str, room: ModuleType, kind: type[T], args: Sequence[Any], offered: Mapping[str, Any]
) -> T:
    own = OWN.fullmatch(text)
    name, positional, keywords = parse(text if own is None else own[2])
    if own is None:
        known = _classes(room)
        if name not in known:
            raise SettingsError(
                f"{text!r} names no class of {room.__name__}: {nearest(name, _classes(room, kind))}"
            )
        made = known[name]
        if not issubclass(made, kind):
            raise SettingsError(f"{text!r} is no {kind.__name__}: {_offers(room, kind)}")
    else:
        made = _imported(text, own[1], name, kind)
    return _called(repr(text), made, (*args, *positional), keywords, offered)


def _called(
    shown: str,
    made: type[T],
    positional: Sequence[Any],
    keywords: Mapping[str, Any],
    offered: Mapping[str, Any],
) -> T:
    """Call a class with the arguments of a choice and with those of the offered that it takes."""
    parameters = inspect.signature(made).parameters
    for keyword in keywords:
        if keyword not in parameters and not any(
            p.kind is p.VAR_KEYWORD for p in parameters.values()
        ):
            raise SettingsError(
                f"{made.__name__} takes no {keyword!r}: {nearest(keyword, parameters)}"
            )
    offered = {key: value for key, value in offered.items() if key in parameters}
    if given := sorted(offered.keys() & keywords.keys()):
        raise SettingsError(
            f"{shown} sets {given[0]!r}, which is not a setting: it is {offered[given[0]]!r} "
            "here. Leave it out."
        )
    try:
        return made(*positional, **keywords, **offered)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{shown} cannot be made: {error}") from error


def _classes(room: ModuleType, kind: type = object) -> dict[str, type]:
    """Return the classes of a kind that a room offers, by name."""
    found = {name: getattr(room, name) for name in room.__all__}
    return {n: c for n, c in found.items() if isinstance(c, type) and issubclass(c, kind)}


def _offers(room: ModuleType, kind: type) -> str:
    names = ", ".join(f"{name}(...)" for name in _classes(room, kind))
    return f"{room.__name__} has {names or 'none'}."


def _imported(text: str, module: str, name: str, kind: type[T]) -> type[T]:
    """Return the user's own class that a text names."""
    name_module(text, module)
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
