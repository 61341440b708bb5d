r"""Arrays of numpy inside an npz file, read as a stream: headers first, then rows in blocks.

    entry   = "\x93NUMPY", version, length of the header, header, values
    header  = a Python dict of shape, order and dtype, which is parsed as a literal

The sizes that a header claims are compared with the bytes that the entry has, before any memory is
allocated. Source: the documentation of numpy.lib.format.
"""

import io
import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marginlab.files.untrusted import DamagedError, Entries, Entry

_HEADER = 10_000  # bytes of an array's header, numpy's own limit


class Header(NamedTuple):
    """Shape, order and dtype of a stored array, as its header says."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(archive: Entries, key: str) -> Header:
    """Return shape, order and dtype of an array; raise DamagedError where they cannot be."""
    return _begun(archive, key)[0]


def _begun(archive: Entries, key: str) -> tuple[Header, Entry]:
    """Return the header of an array and the stream of its values."""
    entry = archive.open(f"{key}.npy")
    magic = entry.read(min(8, entry.size))
    if magic[:6] != b"\x93NUMPY" or len(magic) < 8:
        raise DamagedError(f"{key} does not begin as an array of numpy does")
    version = magic[6], magic[7]
    if version > (2, 0):  # 3.0 is for field names of structured arrays, which are no images
        told = f"{key} is stored in npy version {version[0]}.{version[1]}"
        raise DamagedError(f"{told}, as a structured array is, and no plain numbers")
    length = entry.read(2 if version == (1, 0) else 4)
    if (n := int.from_bytes(length, "little")) > _HEADER:
        most = f"numpy writes at most {_HEADER:,}"
        raise DamagedError(f"{key} has a header of {n:,} bytes, of which {most}")
    header = _parsed(key, version, length + entry.read(n))
    due, left = header.bytes, entry.size - 8 - len(length) - n
    if left != due and not header.dtype.hasobject:  # of objects a header says no size
        if left > due:
            raise DamagedError(f"{key} has {left - due:,} bytes after the last value")
        rows = header.shape[0] if header.shape else 1
        read = left * rows // due
        raise DamagedError(f"{key} ends after {read:,} of {rows:,} {key.rpartition('_')[2]}")
    return header, entry


def _parsed(key: str, version: tuple[int, int], text: bytes) -> Header:
    """Parse a header with numpy, and turn every error into a `DamagedError`.

    numpy's tokenizer and parser raise ten kinds of errors between them.
    """
    one = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if one else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's parser, at what is no Python
            header = Header(*read(io.BytesIO(text)))
        plain = all(type(size) is int and size >= 0 for size in header.shape)
    except Exception as error:
        kind = type(error).__name__
        raise DamagedError(f"the header of {key} cannot be read ({kind})") from error
    if not plain:
        raise DamagedError(f"{key} is said to be of shape {header.shape}")
    return header


def read_blocks(archive: Entries, key: str, step: int) -> Iterator[NDArray[Any]]:
    """Yield the rows of an array, `step` at a time; Fortran order is read whole first."""
    (shape, fortran, dtype), entry = _begun(archive, key)
    if fortran and len(shape) > 1:
        data = entry.read(math.prod(shape) * dtype.itemsize)
        whole = np.frombuffer(data, dtype).reshape(shape[::-1]).T
        yield from (whole[start : start + step] for start in range(0, shape[0], step))
        return
    row = dtype.itemsize * math.prod(shape[1:])
    for start in range(0, shape[0], step):
        n = min(step, shape[0] - start)
        yield np.frombuffer(entry.read(n * row), dtype).reshape(n, *shape[1:])
