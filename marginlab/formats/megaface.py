"""Feature files of MegaFace's development kit: one feature of one image, with a header.

    file = int32 rows, int32 columns, int32 step, int32 type, then float32 values
    step = 4 x columns bytes of a row, and type = 5: float32, as OpenCV numbers it

A feature of D numbers has D rows and one column. The refined protocol marks a noisy distractor by
one more number, 100, and the other distractors by 0: such features do not match. Numbers are
little-endian. Source: the kit of Kemelmacher-Shlizerman et al., 2016, and InsightFace's refinement.
"""

import struct
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from marginlab.files import write
from marginlab.formats.reading import content, wrong

_HEADER = struct.Struct("<4i")
_FLOAT = 5
_REMEDY = "Write the feature again: four int32 (D, 1, 4, 5), then D float32."


def read_feature(path: Path | str) -> Float32[np.ndarray, " D"]:
    """Read the feature of an image.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another header, another number of bytes than it says, or a value that is not
            finite.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.jpg_r50.bin"
        ...     write_feature(path, np.array([1.0, 0.5], dtype=np.float32))
        ...     read_feature(path).tolist()
        [1.0, 0.5]
    """
    path = Path(path)
    data = content(path, _REMEDY)
    if len(data) < _HEADER.size:
        raise wrong(path, "byte 0", f"a header has 16 bytes, not {len(data)}", _REMEDY)
    rows, columns, step, kind = _HEADER.unpack_from(data)
    if rows < 1 or columns != 1 or step != 4 or kind != _FLOAT:
        problem = f"the header is ({rows}, {columns}, {step}, {kind}), not (D, 1, 4, 5)"
        raise wrong(path, "byte 0", problem, _REMEDY)
    if len(data) != _HEADER.size + 4 * rows:
        problem = f"{rows:,} numbers are said to follow, but {len(data) - 16:,} bytes do"
        raise wrong(path, "byte 16", problem, _REMEDY)
    found = np.frombuffer(data, dtype="<f4", offset=_HEADER.size).astype(np.float32)
    if not np.isfinite(found).all():
        place = int(np.argmin(np.isfinite(found)))
        raise wrong(path, f"byte {16 + 4 * place}", f"the value is {found[place]}", _REMEDY)
    return found


def write_feature(path: Path | str, feature: Float32[np.ndarray, " D"]) -> None:
    """Write the feature of an image; the file appears whole or not at all."""
    path = Path(path)
    write(path, _HEADER.pack(len(feature), 1, 4, _FLOAT) + feature.astype("<f4").tobytes())
