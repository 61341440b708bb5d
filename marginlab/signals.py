"""The signal to end, SIGTERM: as an exception, or as a call."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Terminated(BaseException):
    """SIGTERM as an exception that no `except Exception` catches.

    A program ends by it as by Ctrl-C.
    """


@contextlib.contextmanager
def on_termination(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` when SIGTERM comes, and restore the old handler afterwards.

    Only the main thread may set a handler. In another thread nothing changes.

    Example:
        >>> came = []
        >>> with on_termination(lambda: came.append(True)):
        ...     signal.raise_signal(signal.SIGTERM)
        >>> came
        [True]
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def terminate() -> None:
    """Raise `Terminated`."""
    raise Terminated
