"""The signal to end, SIGTERM, as an exception."""


class Terminated(BaseException):
    """SIGTERM came: a program ends by it as by Ctrl-C, and no `except Exception` keeps it from
    that.
    """
