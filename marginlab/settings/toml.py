"""Settings as TOML: one field a line, then a table for each nested dataclass.

seed = 0

[recipe]
batch = 64
"""

import dataclasses
import json
import math
from typing import Any

from marginlab.settings.nested import flat, is_settings


def to_toml(value: Any) -> str:
    """Write the settings as TOML, one field a line, in the order of the dataclass.

    Nested dataclasses follow the other fields as tables.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Small:
        ...     data: str = "shapes"
        ...     batch: int = 8
        >>> print(to_toml(Small()), end="")
        data = "shapes"
        batch = 8
    """
    return _table(value, "")


def one_line(value: Any) -> str:
    """Write the settings on one line, nested ones under dotted names.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Small:
        ...     data: str = "shapes"
        ...     batch: int = 8
        >>> one_line(Small())
        'data = "shapes"; batch = 8'
    """
    return "; ".join(f"{name} = {_literal(item)}" for name, item in flat(value).items())


def _table(value: Any, path: str) -> str:
    items = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    plain = [
        f"{name} = {_literal(item)}\n" for name, item in items.items() if not is_settings(item)
    ]
    tables = [
        f"\n[{path}{name}]\n{_table(item, f'{path}{name}.')}"
        for name, item in items.items()
        if is_settings(item)
    ]
    return "".join(plain + tables)


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
