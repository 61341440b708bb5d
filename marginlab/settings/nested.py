"""Walks over settings: the values inside containers, and the fields of nested dataclasses.

Settings(recipe=Recipe(batch=64), seeds=(0, 1))   ->   {"recipe.batch": 64, ..., "seeds": (0, 1)}
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


def is_settings(item: Any) -> bool:
    """Return whether an annotation, or a value, is a dataclass of settings."""
    return dataclasses.is_dataclass(item)


def leaves(item: Any) -> Iterator[Any]:
    """Yield the values inside containers and dataclasses that are none of these themselves."""
    if isinstance(item, Mapping):
        item = [*item.keys(), *item.values()]
    elif is_settings(item) and not isinstance(item, type):
        item = [getattr(item, field.name) for field in dataclasses.fields(item)]
    if isinstance(item, list | tuple | set):
        for each in item:
            yield from leaves(each)
    else:
        yield item


def flat(value: Any) -> dict[str, Any]:
    """Return the fields of settings by name, those of a nested dataclass under dotted names.

    Args:
        value: A dataclass of settings.

    Returns:
        The values, in the order of the fields.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Inner:
        ...     batch: int = 8
        >>> @dataclasses.dataclass(frozen=True)
        ... class Outer:
        ...     seed: int = 0
        ...     recipe: Inner = Inner()
        >>> flat(Outer())
        {'seed': 0, 'recipe.batch': 8}
    """
    found = dict[str, Any]()
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if is_settings(item):
            found |= {f"{field.name}.{name}": inner for name, inner in flat(item).items()}
        else:
            found[field.name] = item
    return found
