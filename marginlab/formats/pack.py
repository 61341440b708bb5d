"""Verification packs (`.bin`): pairs of encoded images in a pickle that is read and never executed.

    pack   = pickle of (images, same): a list of 2 M encoded images, and a list of M flags
    pair i = images[2 i], images[2 i + 1],   same[i] = both show one person

Packs hold bytes, or arrays of bytes of shape (n,) or (n, 1), and were written by Python 2 or 3. A
pickle is a program, which Python's reader would run. Here a machine of its own knows the
instructions that build lists, tuples, numbers and bytes. Of the functions that a pickle may call it
knows the six by which numpy and Python write arrays and bytes, as names: none is imported or
called. Everything else is refused. The machine holds no more than the file does.
"""

import pickle
import pickletools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from marginlab.files import write
from marginlab.formats.reading import content, wrong

_REMEDY = "Give a pack of (images, same) as InsightFace's lfw2pack.py writes it."
_PREFIXES = ("numpy.core.", "numpy._core.")
_COPIES = ("_codecs.encode", "builtins.bytearray", "__builtin__.bytearray")


class Pack(NamedTuple):
    """Encoded images of M pairs, 2 M of them, and (M,) flags that are true for one person."""

    images: tuple[bytes, ...]
    same: Bool[np.ndarray, " M"]


def read_pack(path: Path | str) -> Pack:
    """Read a verification pack, without running any code in it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no pickle of two lists, calls another function than those that build
            arrays and bytes, or holds another number of images than two for each flag.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "lfw.bin"
        ...     write_pack(path, [b"a", b"b", b"c", b"d"], [True, False])
        ...     read_pack(path)
        Pack(images=(b'a', b'b', b'c', b'd'), same=array([ True, False]))
    """
    path = Path(path)
    data = content(path, _REMEDY)
    machine = _Machine()
    at = 0
    try:
        for opcode, argument, position in pickletools.genops(data):
            at = position or 0
            machine.step(opcode.name, argument)
        found = machine.result()
        return _pack(found)
    except _RefusedError as error:
        raise wrong(path, f"byte {at:,}", str(error), _REMEDY) from error
    except Exception as error:  # pickletools and codecs have many ways to say that bytes are broken
        said = (str(error) or type(error).__name__).rstrip(".")[:200]
        problem = f"this is no whole pickle ({said})"
        raise wrong(path, f"byte {at:,} or behind it", problem, _REMEDY) from error


def write_pack(path: Path | str, images: Sequence[bytes], same: Sequence[bool]) -> None:
    """Write a verification pack that Python 3.4 and later, and InsightFace's programs, can read.

    Args:
        path: The file, which appears whole or not at all.
        images: 2 M encoded images; pair i is the images 2 i and 2 i + 1.
        same: M flags, true for one person.

    Raises:
        ValueError: Other than two images for each flag, or no pair.
    """
    path = Path(path)
    flags = [bool(flag) for flag in same]
    if len(images) != 2 * len(flags) or not flags:
        raise ValueError(f"{len(images)} images are no {len(flags)} pairs. Give two for each flag.")
    write(path, pickle.dumps(([bytes(image) for image in images], flags), protocol=4))


def _pack(found: Any) -> Pack:
    if not isinstance(found, (list, tuple)) or len(found) != 2:
        raise _RefusedError(f"the pickle holds {_kind(found)}, not two lists")
    images, flags = found
    if isinstance(flags, _Array):
        flags = flags.flags()
    if not isinstance(images, (list, tuple)) or not isinstance(flags, (list, tuple)):
        raise _RefusedError(f"the pickle holds {_kind(images)} and {_kind(flags)}, not two lists")
    if len(images) != 2 * len(flags) or not flags:
        raise _RefusedError(
            f"there are {len(images):,} images for {len(flags):,} flags, not 2 for each"
        )
    items = [_image(image, number) for number, image in enumerate(images)]
    same = np.zeros(len(flags), dtype=np.bool_)
    for number, flag in enumerate(flags):
        if isinstance(flag, _Array):
            flag = (flag.flags() or [None])[0]
        if not isinstance(flag, int) or flag not in (0, 1):
            raise _RefusedError(f"flag {number} is {_kind(flag)}, not true or false")
        same[number] = bool(flag)
    return Pack(tuple(items), same)


def _image(item: Any, number: int) -> bytes:
    if isinstance(item, _Array):
        return item.encoded()
    if isinstance(item, bytes):
        return item
    raise _RefusedError(f"image {number} is {_kind(item)}, not bytes")


def _kind(value: Any) -> str:
    return "a function" if isinstance(value, _Name) else f"a {type(value).__name__.strip('_')}"


class _RefusedError(ValueError):
    """A pickle that is no pack; the message says why."""


class _Name(NamedTuple):
    """The name of a function or type, which stands for itself and is never looked up."""

    text: str


class _Dtype:
    """A dtype of numpy by its code, such as u1."""

    def __init__(self, code: Any):
        self.code = code[:10].decode("latin-1") if isinstance(code, bytes) else ""

    def build(self, state: Any) -> None:
        """Take a state, of which one byte a value needs nothing."""


class _Array:
    """An array of numpy: its shape, the code of its dtype and its bytes."""

    def __init__(self, shape: Any = (), dtype: Any = None, data: Any = b""):
        self.build((1, shape, dtype, False, data))

    def build(self, state: Any) -> None:
        """Take the state (version, shape, dtype, order, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise _RefusedError("an array is built of five values")
        _, self.shape, dtype, _, self.data = state
        self.code = dtype.code.lstrip("|<>=") if isinstance(dtype, _Dtype) else ""

    def _sized(self, codes: tuple[str, ...]) -> bytes:
        sizes = self.shape if isinstance(self.shape, tuple) else ()
        data = self.data
        if not isinstance(data, bytes) or self.code not in codes:
            raise _RefusedError(f"an array is of dtype {self.code!a}, not bytes")
        long = [size for size in sizes if size != 1]
        fits = all(isinstance(size, int) for size in sizes) and len(sizes) <= 2
        if not fits or len(long) > 1 or len(data) != (long[0] if long else 1):
            raise _RefusedError(
                f"an array of {len(data):,} bytes has another shape than (n,) or (n, 1)"
            )
        return data

    def encoded(self) -> bytes:
        """Return the bytes of an encoded image."""
        return self._sized(("u1", "B", "uint8"))

    def flags(self) -> list[Any]:
        """Return the values of an array of one byte a value."""
        return list(self._sized(("b1", "?", "bool", "u1", "i1")))


def _reduced(name: Any, arguments: Any) -> Any:
    """Return what a call of one of the known functions gives."""
    if not isinstance(name, _Name) or not isinstance(arguments, tuple):
        raise _RefusedError(f"the pickle calls {_kind(name)}")
    short = name.text
    for prefix in _PREFIXES:
        short = short.removeprefix(prefix)
    n = len(arguments)
    if short == "multiarray._reconstruct":
        return _Array()
    if short == "multiarray.scalar" and n == 2:
        return _Array((), *arguments)
    if short == "numeric._frombuffer" and n == 4:
        buffer, dtype, shape, _ = arguments
        return _Array(shape, dtype, buffer)
    if short == "numpy.dtype" and n:
        return _Dtype(arguments[0])
    if short in _COPIES and n and isinstance(arguments[0], bytes):
        return arguments[0]  # never a copy: a pickle may name the same bytes many times
    if short in ("__builtin__.bytes", "builtins.bytes", "__builtin__.bytearray") and not n:
        return b""
    raise _RefusedError(f"the pickle calls {name.text[:60]!a}, which builds no array and no bytes")


_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUSHED = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
_PUSHED |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"}
_PUSHED |= {"BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}


class _Machine:
    """A stack and a memo; each instruction moves references, and copies no bytes it has read."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Follow one instruction, by its name in pickletools."""
        if name in _PUSHED:
            self._push(argument)
        elif name in _VALUES:
            self._push(_VALUES[name])
        elif name in _TUPLES:
            self._push(tuple(self._pop() for _ in range(_TUPLES[name]))[::-1])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise _RefusedError(f"the pickle remembers nothing under {argument}")
            self._push(self.memo[argument])
        elif name == "GLOBAL":
            self._push(_Name(str(argument).replace(" ", ".")))
        elif name not in ("PROTO", "FRAME", "STOP"):
            self._build(name)

    def _build(self, name: str) -> None:
        """Follow an instruction that takes its arguments from the stack."""
        match name:
            case "MARK":
                self.marks.append(len(self.stack))
            case "EMPTY_LIST":
                self._push([])
            case "LIST":
                self._push(self._marked())
            case "TUPLE":
                self._push(tuple(self._marked()))
            case "APPEND" | "APPENDS":
                some = self._marked() if name == "APPENDS" else [self._pop()]
                if not isinstance(self._top(), list):
                    raise _RefusedError(f"the pickle appends to {_kind(self._top())}")
                self._top().extend(some)
            case "STACK_GLOBAL":
                words = [self._pop(), self._pop()][::-1]
                if not all(isinstance(word, bytes) for word in words):
                    raise _RefusedError("the pickle names a function by what is no text")
                self._push(_Name(b".".join(words).decode("latin-1")))
            case "REDUCE":
                arguments = self._pop()
                self._push(_reduced(self._pop(), arguments))
            case "BUILD":
                state = self._pop()
                if not isinstance(self._top(), (_Array, _Dtype)):
                    raise _RefusedError(f"the pickle builds {_kind(self._top())}")
                self._top().build(state)
            case "POP":
                self._pop()
            case "POP_MARK":
                self._marked()
            case _:
                raise _RefusedError(
                    f"the instruction {name} builds no list, tuple, number or bytes"
                )

    def result(self) -> Any:
        """Return the one value that is left."""
        if len(self.stack) != 1 or self.marks:
            raise _RefusedError(f"{len(self.stack)} values are left on the stack, not 1")
        return self.stack[0]

    def _push(self, value: Any) -> None:
        if isinstance(value, str):  # bytes of Python 2 are read as text
            try:
                value = value.encode("latin-1")
            except UnicodeEncodeError as error:
                raise _RefusedError("a text holds letters that are no bytes") from error
        self.stack.append(bytes(value) if isinstance(value, bytearray) else value)

    def _top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise _RefusedError("the pickle takes more values than it has put on the stack")
        return self.stack[-1]

    def _pop(self) -> Any:
        found = self._top()
        self.stack.pop()
        return found

    def _marked(self) -> list[Any]:
        if not self.marks:
            raise _RefusedError("the pickle goes back to a mark that it has not set")
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found
