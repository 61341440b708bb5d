"""Files written into a folder that others may have filled: crash-safe, and never through a link.

A run folder is data, and may hold a link, a pipe or a device under any name. Everything written
there goes into a regular file of the folder itself. A whole file replaces the entry of its name (a
link is replaced, its target stays as it was). To be appended to or locked, an entry must be a
regular file already, or absent.
"""

import contextlib
import errno
import io
import os
import socket
import stat
from collections.abc import Collection
from pathlib import Path

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
        OSError: There is no such file, it may not be read, or it is a pipe, a socket, a device or a
            folder. The kind is checked before opening, since opening a pipe waits for its writer.
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
    """Read a whole regular file.

    Raises:
        OSError: There is none, or it is a pipe, a device or a folder.
        ValueError: It has more bytes than the limit.
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
    """Open a regular file of a folder by these flags, make it if absent, and return its descriptor.

    Raises:
        OSError: It is a link, a pipe, a device or a folder; nothing was written.
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


def append(path: Path, text: str) -> None:
    """Add text to a file, in one write.

    Raises:
        OSError: As `open_own`.
    """
    descriptor = open_own(path, os.O_WRONLY | os.O_APPEND)
    with os.fdopen(descriptor, "a", encoding="utf-8", newline="") as file:
        file.write(text)


def refuse_links(folder: Path, names: Collection[str]) -> None:
    """Refuse links in the place of folders that are written into.

    Raises:
        OSError: One of them is a link.
    """
    for name in names:
        if (folder / name).is_symlink():
            raise _refused(folder / name, "a link")


def write(path: Path, content: str | bytes, beside: Path | None = None) -> None:
    """Put a whole file in its place, on the disk before it is seen; leave nothing if that fails.

    Args:
        path: Its place. A link there is replaced.
        content: Text, written as UTF-8, or bytes.
        beside: The temporary name, in the same folder; by default one of this process alone.
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
    r"""Encode text as UTF-8; a byte of a file's name that is not UTF-8 is escaped, such as \udcff.

    Example:
        >>> encoded("caf\udce9")
        b'caf\\udce9'
    """
    return text.encode("utf-8", "backslashreplace")
