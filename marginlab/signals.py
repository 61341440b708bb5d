"""The signal to end, SIGTERM, as an exception."""


class Terminated(BaseException):
    """SIGTERM as an exception that no `except Exception` catches.

    A program ends by it as by Ctrl-C.
    """
