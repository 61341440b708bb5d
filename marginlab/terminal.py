r"""Safe printing of untrusted strings: names of classes, files and folders, values of settings.

A file name may hold any byte. It may hold the escape codes by which a terminal changes its title,
its colours or earlier output, and marks that turn the direction of writing round. They are shown as
Python writes them in a string, `\x1b`. A byte that is not UTF-8, which no stream could encode, is
shown as `\udcff`.
"""

import re
import sys
from collections.abc import Callable
from typing import NoReturn

# C0 but line feed and tab, DEL and C1, lone surrogates, marks of direction, line and paragraph
# separators
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)


def printable(text: object) -> str:
    r"""Return the text with escapes for characters that a terminal would obey or could not show.

    Example:
        >>> print(printable("cat\x1b[31m"), printable("caf\udce9"))
        cat\x1b[31m caf\udce9
    """
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def say(text: object, *, error: bool = False) -> None:
    """Print a line of text at once, to standard output or standard error."""
    print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)


def run_command(main: Callable[[list[str]], int | None], *, resumes: bool) -> NoReturn:
    """Run a command on the words of the command line, and end the process with its status.

    Ctrl-C ends it with a sentence and the status 130, as shells expect.

    Args:
        main: The command.
        resumes: The same command continues what was stopped.
    """
    try:
        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        say(f"Stopped.{' The same command goes on from there.' if resumes else ''}", error=True)
        status = 130
    sys.exit(status)
