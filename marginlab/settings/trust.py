"""Trust in the modules that settings name: only those that the user named are imported.

"package.module:Class(size=2)"   names code: the module is imported to make the object
"folder:faces(1)"                is a data spec, and names none
"""

import ast
import contextlib
import re
from collections.abc import Collection, Iterator
from contextvars import ContextVar
from typing import Any

from marginlab.settings.errors import SettingsError
from marginlab.settings.nested import leaves

OWN = re.compile(r"\s*([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*\(.*\))\s*", re.DOTALL)
# `folder:faces(1)` is a folder of images, not a module's class
SPECS = ("folder", "index", "npz", "record")
_NAMED = set[str]()  # modules that this process was asked to import by its user
_ALLOWED: ContextVar[Collection[str] | None] = ContextVar("allowed", default=None)  # None: any


@contextlib.contextmanager
def as_data(code: Collection[str] = ()) -> Iterator[None]:
    """Read settings as data, where the user did not choose their words, as in a run folder.

    Inside, no text makes an object of a module that is imported for it. Exceptions are the modules
    `code` and the modules that the user named in this process before (by a recipe of their own).

    Example:
        >>> import marginlab
        >>> from marginlab.settings import make
        >>> with as_data():
        ...     make("antigravity:Method()", marginlab, object)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        marginlab.settings.errors.SettingsError: 'antigravity:Method()' names code of the module ...
    """
    token = _ALLOWED.set(frozenset((code,)) if isinstance(code, str) else frozenset(code))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def reads_data() -> bool:
    """Return whether settings are only data here: see `as_data`."""
    return _ALLOWED.get() is not None


def name_module(text: str, module: str) -> None:
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


def refuse_unnamed(value: Any) -> None:
    """Refuse texts that name modules which the user has not named, where settings are only data."""
    if reads_data():
        for text in leaves(value):
            for whole, module in own_code(text) if isinstance(text, str) else ():
                name_module(whole, module)


def named_in(value: Any) -> set[str]:
    """Find the user's own modules that the texts of some settings name, without importing them.

    Texts of nested settings count too. A data spec (`folder:faces(1)`) is no code.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Small:
        ...     data: str = "folder:faces(1)"
        ...     augmentation: str = "Augmentation(('mine.views:Blur()',))"
        >>> named_in(Small())
        {'mine.views'}
    """
    texts = [text for text in leaves(value) if isinstance(text, str)]
    return {module for text in texts for _, module in own_code(text)}


def own_code(text: str) -> Iterator[tuple[str, str]]:
    """Yield texts that name code, with its module: the text itself, or strings in its arguments."""
    if found := OWN.fullmatch(text):
        if found[1] in SPECS:
            return
        yield text, found[1]
        text = found[2]
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # no call notation
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != text:
            yield from own_code(node.value)
