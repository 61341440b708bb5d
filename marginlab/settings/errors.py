"""The error of a setting that cannot be used, and the nearest known name for its message."""

import difflib
from collections.abc import Iterable
from typing import Any


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it and says which values can be."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return half a sentence on an unknown name: the nearest known name, and all names."""
    known = list(known)
    close = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.5)
    hint = next((f"did you mean {k!r}? " for k in known if close and k.lower() == close[0]), "")
    return f"{hint}There are: {', '.join(known)}." if known else "there are none."


def short(item: Any) -> str:
    """Show a value in an error message, cut and with its type if it is long."""
    text = repr(item)
    return text if len(text) <= 80 else f"{text[:60]}... ({type(item).__name__})"
