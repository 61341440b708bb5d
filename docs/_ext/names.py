"""The public names of the rooms, and the file of the reference page of each.

A name is public where the room's `__init__` lists it in `__all__`, or imports it from its own files
without an underscore. Only classes and functions have pages.
"""

import importlib
import inspect

ROOMS = (
    "losses",
    "losses.functional",
    "margins",
    "measures",
    "measures.functional",
    "theory",
    "evaluation",
    "encoding",
    "files",
    "optim",
    "models",
    "methods",
    "augment",
    "data",
    "train",
    "study",
    "formats",
    "inversion",
    "plan",
    "purify",
    "quality",
    "ranks",
    "measure",
    "testing",
    "rng",
    "settings",
    "statistics",
)


def public(room: str) -> list[str]:
    """Names of the public classes and functions of a room, sorted without regard to case.

    >>> "InfoNCE" in public("losses")
    True
    """
    module = importlib.import_module(f"marginlab.{room}")
    top = f"marginlab.{room.partition('.')[0]}"
    found = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and (value.__module__ == top or value.__module__.startswith(f"{top}."))
    } | set(getattr(module, "__all__", ()))
    return sorted(found, key=lambda name: (name.lower(), name))


def page(room: str, name: str) -> str:
    """Path of the reference page of a name, below `docs/`, without its ending.

    A function whose name is that of a class in other letters has a page of another name, since some
    file systems read both as one.

    >>> page("theory", "haochen")
    'reference/theory/marginlab.theory.haochen-function'
    """
    file = f"reference/{room.replace('.', '-')}/marginlab.{room}.{name}"
    twins = [other for other in public(room) if other.lower() == name.lower()]
    return f"{file}-function" if len(twins) > 1 and name.islower() else file


def of_object() -> dict[tuple[str, str], tuple[str, str]]:
    """(Module, name) where each public object is defined -> (room, name) of its page."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for room in ROOMS:
        module = importlib.import_module(f"marginlab.{room}")
        for name in public(room):
            value = getattr(module, name)
            found.setdefault((value.__module__, value.__qualname__), (room, name))
    return found
