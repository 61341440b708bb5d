"""Files that are written into a folder which others may have filled: crash-safe, and never through
a link.

A run folder is data, and may hold a link, a pipe or a device under any name. What is written there
goes into a regular file of the folder itself: a whole file is put in the place of what has its name
(a link is replaced, its target stays as it was); what is added to, or locked, has to be a file
already, or nothing.
"""

import contextlib
import errno
import io
import os
import socket
import stat
from collections.abc import Collection
from pathlib import Path
from typing import TextIO

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a pipe without a reader is refused, not waited for


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file, or a link to one, for reading.

    Raises:
        OSError: there is no such file, it may not be read, or it is a pipe, a socket, a device or a
            folder. Those are told before they are opened, since opening a pipe waits for its
            writer.
    """
    _refuse_others(path.stat().st_mode)
    wait = getattr(os, "O_NONBLOCK", 0)  # should a pipe have taken its place since then
    stream = path.open("rb") if not wait else os.fdopen(os.open(path, os.O_RDONLY | wait), "rb")
    try:
        _refuse_others(os.fstat(stream.fileno()).st_mode)
    except OSError:
        stream.close()
        raise
    return stream


def _refuse_others(mode: int) -> None:
    for is_kind, kind in _KINDS:
        if is_kind(mode):
            raise OSError(f"it is {kind}, not a file")


def content_of(path: Path, limit: int = 2**32) -> bytes:
    """Read a regular file whole.

    Raises:
        OSError: there is none, or it is a pipe, a device or a folder.
        ValueError: it has more bytes than the limit.

    """
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > limit:
                raise ValueError(f"{path} has {size:,} bytes, more than {limit:,} for such a file")
            return file.read()
    except OSError as error:
        if error.errno is None:  # another kind than a file
            raise OSError(errno.EINVAL, str(error), str(path)) from error
        raise


def open_own(path: Path, flags: int) -> int:
    """Open a regular file of a folder by these flags, make it if there is none; its descriptor.

    Raises:
        OSError: it is a link, a pipe, a device or a folder; nothing was written.

    """
    try:
        descriptor = os.open(path, flags | os.O_CREAT | _NOFOLLOW | _NO_WAIT, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):  # as BSD says it
            raise _refused(path, "a link") from error
        if error.errno == errno.ENXIO:
            raise _refused(path, "a pipe or a socket") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _refused(path, "a pipe or a device")
    return descriptor


def _refused(path: Path, kind: str) -> OSError:
    said = f"it is {kind}, and nothing is written through one. Remove it, or choose another folder"
    return OSError(errno.ELOOP, said, str(path))


def lockable(path: Path) -> TextIO:
    """Open a lock file, which keeps what it holds; OSError as `open_own`."""
    return os.fdopen(open_own(path, os.O_RDWR), "r+", encoding="utf-8")


def append(path: Path, text: str) -> None:
    """Add text to a file, in one write; OSError as `open_own`."""
    descriptor = open_own(path, os.O_WRONLY | os.O_APPEND)
    with os.fdopen(descriptor, "a", encoding="utf-8", newline="") as file:
        file.write(text)


def refuse_links(folder: Path, names: Collection[str]) -> None:
    """Refuse links in the place of folders that are written into (OSError)."""
    for name in names:
        if (folder / name).is_symlink():
            raise _refused(folder / name, "a link")


def write(path: Path, content: str | bytes, beside: Path | None = None) -> None:
    """Put a file in its place, whole, on the disk before it is seen; nothing stays if that fails.

    Args:
        path: its place. A link there is replaced.
        content: text, written as UTF-8, or bytes.
        beside: the name it has until then, in the same folder; otherwise of this process alone.

    """
    beside = beside or path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    data = encoded(content) if isinstance(content, str) else content
    beside.unlink(missing_ok=True)  # of a process that was killed, or a link
    try:
        with os.fdopen(open_own(beside, os.O_WRONLY | os.O_EXCL), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException as error:  # a disk that is full, or Ctrl-C
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def encoded(text: str) -> bytes:
    r"""UTF-8; a byte of a file's name that is none is written as Python escapes it, such as \udcff.

    >>> encoded("caf\udce9")
    b'caf\\udce9'
    """
    return text.encode("utf-8", "backslashreplace")
