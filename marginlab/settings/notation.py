"""Call notation: the text of an object, `"SimCLR(temperature=0.5)"`, which Python can read back.

    text     = Name(literals)                      a class that marginlab offers
             | package.module:Name(literals)       a class of the user's own
    choice   = text | object | class | functools.partial(class, ...)

The arguments are literals. An object among the arguments is a text in call notation itself:
`"MarginClassifier(margin='ArcFace(0.5)')"`.
"""

import ast
import cmath
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias, TypeVar

from marginlab.settings.errors import SettingsError, short
from marginlab.settings.nested import leaves
from marginlab.settings.trust import OWN, own_code

T = TypeVar("T")
Choice: TypeAlias = str | T | Callable[..., T]
"""A field that chooses an object of the kind T: its text, an object, a class, or a partial."""
LITERALS = (bool, int, float, complex, str, bytes, type(None))
_REMEDY = (
    "Give its text, its class, or the class with its arguments: functools.partial(Class, ...)."
)


def is_choice(hint: Any) -> bool:
    """Return whether the annotation of a field is a `Choice`."""
    parts = typing.get_args(hint)
    return (
        typing.get_origin(hint) in (typing.Union, types.UnionType)
        and str in parts
        and any(typing.get_origin(part) is typing.get_origin(Callable[..., Any]) for part in parts)
    )


def describe(name: str, /, **arguments: Any) -> str:
    """Return the call notation of an object, for its `__repr__`."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def with_arguments(text: str, /, **arguments: Any) -> str:
    """Return a text in call notation with some of its named arguments replaced or added.

    Raises:
        SettingsError: The text is no call of one name with literals.

    Example:
        >>> with_arguments("MarginClassifier(scale=16.0, dim=128)", scale=8.0, sample_rate=0.1)
        'MarginClassifier(scale=8.0, dim=128, sample_rate=0.1)'
    """
    own = OWN.fullmatch(text)
    name, positional, keywords = parse(text if own is None else own[2])
    texts = [_literal(item) for item in positional]
    texts += [f"{key}={_literal(item)}" for key, item in (keywords | arguments).items()]
    return f"{'' if own is None else f'{own[1]}:'}{name}({', '.join(texts)})"


def named_repr(item: Any) -> str:
    """Return the repr of an object, behind the module of a class that is not marginlab's.

    The repr of an object that holds others is made of it, so that it reads back.

    Example:
        >>> from marginlab.margins import ArcFace
        >>> named_repr(ArcFace(0.5)).startswith("ArcFace(")
        True
    """
    text, kind = repr(item), type(item)
    own = text.startswith(f"{kind.__name__}(") and not _is_ours(kind)
    return f"{kind.__module__}:{text}" if own else text


def call_notation(choice: object) -> str:
    """Return the text of a choice, which `make` turns into an equal object.

    Args:
        choice: A text, which is returned as it is. Or an object whose repr reads back. Or a class,
            or a class with some of its arguments (`functools.partial`), where the others come
            later: a method's backbone, a measure's number of classes.

    Raises:
        SettingsError: The repr of an object, or of an argument, does not read back equal. Or the
            object has weights. Or no other program could import the class: it is of `__main__`, or
            defined inside a function.

    Example:
        >>> from functools import partial
        >>> from marginlab.margins import CosFace
        >>> from marginlab.methods import MarginClassifier, SimCLR
        >>> call_notation(partial(SimCLR, temperature=0.1)), call_notation(SimCLR)
        ('SimCLR(temperature=0.1)', 'SimCLR()')
        >>> call_notation(partial(MarginClassifier, scale=16.0, subcenters=3))
        'MarginClassifier(scale=16.0, subcenters=3)'
    """
    if isinstance(choice, str):
        return choice
    if isinstance(choice, type | functools.partial):
        made, positional, keywords = class_of(choice)
        texts = [_literal(item) for item in positional]
        texts += [f"{key}={_literal(item)}" for key, item in keywords.items()]
        return f"{_head(made)}({', '.join(texts)})"
    parameters = getattr(choice, "named_parameters", None)
    if callable(parameters) and any(True for _ in parameters()):
        name = type(choice).__name__
        raise SettingsError(
            f"This {name} has weights, which a text cannot hold. Give the text, the class or "
            f"functools.partial({name}, ...): weights are drawn by the seed, or come from `start`."
        )
    if not repr(choice).startswith(f"{type(choice).__name__}("):
        _refuse(choice, "its repr is no call of its class")
    text = named_repr(choice)
    _head(type(choice))
    if any(module == "__main__" for _, module in own_code(text)):
        _refuse(choice, "it holds an object of __main__, which no other program can import")
    if not _reads_back(choice):
        _refuse(choice, "its repr does not read back equal")
    return text


def class_of(choice: Any) -> tuple[type, tuple[Any, ...], dict[str, Any]]:
    """Return the class of a class or partial, and the arguments that it has already."""
    if isinstance(choice, type):
        return choice, (), {}
    if not isinstance(choice.func, type):
        raise SettingsError(
            f"{short(choice)} is a partial of {short(choice.func)}, which is no class. Give "
            "functools.partial(Class, ...)."
        )
    return choice.func, choice.args, choice.keywords


def parse(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Return the name, the positional and the named arguments of a text without a module.

    Raises:
        SettingsError: It is no call of one name with literals, or holds a number that is not
            finite.
    """
    remedy = (
        f"{short(text)} is not a choice in call notation. Write a name with literal arguments, "
        "such as 'Name(size=2, kind=\"wide\")'."
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
        if odd := [item for item in leaves([positional, keywords]) if not _finite(item)]:
            raise SettingsError(
                f"{short(text)} holds {odd[0]}, which is no finite number. Write one."
            )
        return node.func.id, positional, keywords
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise error if isinstance(error, SettingsError) else SettingsError(remedy) from error


def _finite(item: Any) -> bool:
    return not isinstance(item, float | complex) or cmath.isfinite(item)


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def _head(kind: type) -> str:
    """Return the name of a class in call notation, with the module of one's own class."""
    if _is_ours(kind):
        return kind.__name__
    if kind.__module__ == "__main__" or kind.__qualname__ != kind.__name__:
        raise SettingsError(
            f"The class {kind.__name__} is written in {kind.__module__} as {kind.__qualname__}, "
            "which no other program can import, so the run could not be read again. Write it into "
            "a module of its own, such as mine.py, and import it from there."
        )
    return f"{kind.__module__}:{kind.__name__}"


def _literal(item: Any) -> str:
    """Return an argument as it stands in a text; an object in it is a text in call notation."""
    if type(item) in LITERALS and _finite(item):
        return repr(item)
    if type(item) in (list, tuple):
        inner = ", ".join(_literal(each) for each in item)
        if type(item) is list:
            return f"[{inner}]"
        return f"({inner},)" if len(item) == 1 else f"({inner})"
    if isinstance(item, Mapping):
        pairs = (f"{_literal(key)}: {_literal(each)}" for key, each in item.items())
        return f"{{{', '.join(pairs)}}}"
    if type(item) in LITERALS:
        raise SettingsError(f"{item!r} is no finite number. Give one.")
    return repr(call_notation(item))


def _reads_back(item: Any) -> bool:
    try:
        _, positional, keywords = parse(repr(item))
        kind: Any = type(item)
        made = kind(*positional, **keywords)
        if kind.__eq__ is object.__eq__:
            return repr(made) == repr(item)
        return bool(made == item)
    except (TypeError, ValueError, RuntimeError):
        return False


def _refuse(item: Any, why: str) -> NoReturn:
    raise SettingsError(f"{short(item)} cannot be written in call notation: {why}. {_REMEDY}")
