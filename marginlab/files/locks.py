"""An exclusive lock on a file, held by one process at a time.

It is an flock: the kernel releases it when its process dies, however it dies, so nobody ever waits
for a dead process.
"""

import fcntl
import os
from pathlib import Path

from marginlab.files.regular import open_own

_held = set[int]()


def _let_go() -> None:
    # A forked child (a worker that loads data) shares the open file, and with it the lock: it must
    # not outlive us there.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


class Lock:
    """An exclusive lock, by a file in a folder that exists.

    The file stays behind: to remove it would let two processes lock two files of one name.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / ".lock"
        >>> lock = Lock(path)
        >>> lock.take(), Lock(path).take()
        (True, False)
        >>> lock.release()
        >>> Lock(path).take()
        True
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def take(self) -> bool:
        """Return True if the lock is now ours; False, at once, if another process has it.

        Raises:
            OSError: As `open_own`.
        """
        descriptor = open_own(self.path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        os.utime(descriptor)  # its time says when it was taken last
        self._descriptor = descriptor
        _held.add(descriptor)
        return True

    def release(self) -> None:
        """Release the lock; nothing happens if it is not ours."""
        if self._descriptor in _held:
            _held.remove(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = -1

    @property
    def in_place(self) -> bool:
        """Whether it is ours, and its file is still the one at its path."""
        if self._descriptor not in _held:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except FileNotFoundError:
            return False
