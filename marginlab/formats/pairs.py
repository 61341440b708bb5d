"""Lists of pairs and people in the layout of Labelled Faces in the Wild.

    pairs.txt    "F n", then F times n lines "name a b" and n lines "name a other b";
                 or "n", then once
    people.txt   "F", then F times a line "n" and n lines "name images"; or "n", then once
    image k of a person = NAME/NAME_000k.jpg, of four digits

Words are separated by tabs or blanks. A set of ten folds (View 2) has F = 10, n = 300; the lists of
View 1 have no F. Source: Huang, Ramesh, Berg and Learned-Miller, University of Massachusetts report
07-49, 2007, and the README of the set.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from marginlab.formats.reading import Line, lines, name_in, whole, wrong

_PAIRS = "A list of pairs is a line of numbers, then lines of name, a, b or name, a, other, b."
_PEOPLE = "A list of people is a line with a number, then lines of a name and a number of images."
_LARGEST = 2**31


class PairList(NamedTuple):
    """M pairs of images: their paths below the folder of images, (M,) flags, and (M,) folds."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    same: Bool[np.ndarray, " M"]
    fold: Int64[np.ndarray, " M"]


class People(NamedTuple):
    """C people: their names, their numbers of images (C,), and their folds (C,)."""

    names: tuple[str, ...]
    images: Int64[np.ndarray, " C"]
    fold: Int64[np.ndarray, " C"]


def read_pairs(path: Path | str, ending: str = "jpg") -> PairList:
    r"""Read a list of pairs, such as pairs.txt or pairsDevTest.txt.

    Args:
        path: The list.
        ending: The ending of the images' names.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line that is no pair, or another number of pairs than the first line says.

    Example:
        >>> import tempfile
        >>> text = "1\t1\nAnn_Bee\t1\t2\nAnn_Bee\t1\tCat_Dee\t3\n"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "pairs.txt").write_text(text)
        ...     pairs = read_pairs(Path(folder) / "pairs.txt")
        >>> pairs.second, pairs.same.tolist()
        (('Ann_Bee/Ann_Bee_0002.jpg', 'Cat_Dee/Cat_Dee_0003.jpg'), [True, False])
    """
    path = Path(path)
    rows = list(lines(path, _PAIRS))
    folds, n = _counts(path, rows, _PAIRS)
    if len(rows) - 1 != 2 * folds * n:
        problem = f"{len(rows) - 1:,} pairs follow, not {folds:,} times 2 times {n:,}"
        raise wrong(path, "line 1", problem, _PAIRS)
    first, second = [], []
    for place, (number, words) in enumerate(rows[1:]):
        due = 3 if place // n % 2 == 0 else 4  # those of one person come first
        if len(words) != due:
            kind = "of one person" if due == 3 else "of two people"
            problem = f"a pair {kind} is {due} words, not {len(words)}"
            raise wrong(path, f"line {number}", problem, _PAIRS)
        other = words[0] if due == 3 else words[2]
        first.append(_image(path, number, words[0], words[1], ending))
        second.append(_image(path, number, other, words[-1], ending))
    places = np.arange(2 * folds * n, dtype=np.int64)
    return PairList(tuple(first), tuple(second), places // n % 2 == 0, places // (2 * n))


def read_people(path: Path | str) -> People:
    """Read a list of people, such as people.txt or peopleDevTrain.txt.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line that is no name and number, or another number of people than is said.
    """
    path = Path(path)
    rows = list(lines(path, _PEOPLE))
    folds, n = _counts(path, rows, _PEOPLE)
    several = len(rows) > 1 and len(rows[1].words) == 1
    at, names, images, fold = 1, [], [], []
    for number in range(folds if several else 1):
        count, head = n, rows[0].number
        if several:
            if at >= len(rows) or len(rows[at].words) != 1:
                problem = f"{folds:,} lists are said to follow, but list {number} is missing"
                raise wrong(path, "line 1", problem, _PEOPLE)
            head = rows[at].number
            count = _whole(path, head, rows[at].words[0], _PEOPLE)
            at += 1
        for row in rows[at : at + count]:
            if len(row.words) != 2:
                problem = f"a person is a name and a number, not {len(row.words)} words"
                raise wrong(path, f"line {row.number}", problem, _PEOPLE)
            names.append(row.words[0])
            images.append(_whole(path, row.number, row.words[1], _PEOPLE))
            fold.append(number)
        if at + count > len(rows):
            problem = f"{count:,} people are said to follow, but {len(rows) - at:,} do"
            raise wrong(path, f"line {head}", problem, _PEOPLE)
        at += count
    if at < len(rows):
        problem = f"{len(rows) - at:,} lines follow the last person"
        raise wrong(path, f"line {rows[at].number}", problem, _PEOPLE)
    return People(tuple(names), np.array(images, dtype=np.int64), np.array(fold, dtype=np.int64))


def _counts(path: Path, rows: list[Line], remedy: str) -> tuple[int, int]:
    """Return the number of folds, and of lines of a kind in each, from the first line."""
    if not rows or len(rows[0].words) not in (1, 2):
        raise wrong(path, "line 1", "there are not one or two numbers", remedy)
    numbers = [_whole(path, rows[0].number, word, remedy) for word in rows[0].words]
    if remedy is _PEOPLE:
        return numbers[0], numbers[0]
    return (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def _whole(path: Path, line: int, word: str, remedy: str) -> int:
    number = whole(word, _LARGEST)
    if not number:
        raise wrong(path, f"line {line}", f"{word[:40]!a} is no number above 0", remedy)
    return number


def _image(path: Path, line: int, name: str, number: str, ending: str) -> str:
    if not name_in(name) or "/" in name:
        raise wrong(path, f"line {line}", f"{name[:40]!a} is no person's name", _PAIRS)
    return f"{name}/{name}_{_whole(path, line, number, _PAIRS):04d}.{ending}"
