"""Meta files of IJB-B and IJB-C: templates, media, landmarks, pairs, galleries and probes.

    *_face_tid_mid.txt           name, template id, media id             of each face, by blanks
    *_name_5pts_score.txt        name, five landmarks x y, detector score   in the same order
    *_template_pair_label.txt    template, template, 1 for one person
    *_1N_gallery_*.csv, *_1N_probe_*.csv    TEMPLATE_ID, SUBJECT_ID, FILENAME, ...   with a header

A template is a set of faces of one person, and a medium is an image or a video that some of its
faces are from. Landmarks are eyes, nose and corners of the mouth, in pixels. Sources: Whitelam et
al., 2017; Maze et al., 2018; the layout is that of InsightFace's evaluation.
"""

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

from marginlab.formats.reading import lines, name_in, whole, wrong

_FACES = "A line is the name of an image, its template and its medium, separated by blanks."
_POINTS = "A line is the name of an image, ten numbers of landmarks and a score."
_PAIRS = "A line is two numbers of templates and 0 or 1."
_LISTS = "A list has a header with TEMPLATE_ID and SUBJECT_ID, and a line for each face."


class Faces(NamedTuple):
    """N faces: the names of their images, their templates (N,) and their media (N,)."""

    names: tuple[str, ...]
    template: Int64[np.ndarray, " N"]
    medium: Int64[np.ndarray, " N"]


class Landmarks(NamedTuple):
    """N faces: the names of their images, five points (x, y) in pixels, and detector scores."""

    names: tuple[str, ...]
    points: Float32[np.ndarray, "N 5 2"]
    score: Float32[np.ndarray, " N"]


class TemplatePairs(NamedTuple):
    """M pairs of templates, with flags (M,) that are true for one person."""

    first: Int64[np.ndarray, " M"]
    second: Int64[np.ndarray, " M"]
    same: Bool[np.ndarray, " M"]


class Subjects(NamedTuple):
    """Templates of a gallery or of probes, each once and sorted, with the person (N,) of each."""

    template: Int64[np.ndarray, " N"]
    subject: Int64[np.ndarray, " N"]


def read_faces(path: Path | str) -> Faces:
    r"""Read the templates and media of all faces.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line that is not a name and two whole numbers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "faces.txt").write_text("1.jpg 7 40\n2.jpg 7 41\n")
        ...     read_faces(Path(folder) / "faces.txt").medium.tolist()
        [40, 41]
    """
    path = Path(path)
    names: list[str] = []
    numbers = array("q")
    for line, words in lines(path, _FACES):
        if len(words) != 3 or not name_in(words[0]):
            raise wrong(path, f"line {line}", "it is no name and two numbers", _FACES)
        names.append(words[0])
        numbers.extend(_wholes(path, line, words[1:], _FACES))
    template, medium = _columns(path, numbers, 2, _FACES)
    return Faces(tuple(names), template, medium)


def read_landmarks(path: Path | str) -> Landmarks:
    """Read the landmarks and the detector's score of all faces.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line that is not a name and eleven finite numbers.
    """
    path = Path(path)
    names: list[str] = []
    numbers: list[list[float]] = []
    for line, words in lines(path, _POINTS):
        try:
            values = [float(word) for word in words[1:]]
        except ValueError as error:
            raise wrong(path, f"line {line}", "a word is no number", _POINTS) from error
        if len(values) != 11 or not name_in(words[0]) or not np.abs(values).max() < 1e30:
            raise wrong(path, f"line {line}", "it is no name and eleven numbers", _POINTS)
        names.append(words[0])
        numbers.append(values)
    if not names:
        raise wrong(path, "line 1", "there are no faces", _POINTS)
    table = np.array(numbers, dtype=np.float32)
    return Landmarks(tuple(names), table[:, :10].reshape(-1, 5, 2), table[:, 10])


def read_template_pairs(path: Path | str) -> TemplatePairs:
    """Read the pairs of templates that are compared one to one.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line that is not three whole numbers, the last of them 0 or 1.
    """
    path = Path(path)
    numbers = array("q")
    for line, words in lines(path, _PAIRS):
        row = _wholes(path, line, words, _PAIRS)
        if len(row) != 3 or row[2] > 1:
            raise wrong(path, f"line {line}", "it is no pair and 0 or 1", _PAIRS)
        numbers.extend(row)
    first, second, same = _columns(path, numbers, 3, _PAIRS)
    return TemplatePairs(first, second, same == 1)


def read_subjects(paths: Iterable[Path]) -> Subjects:
    """Read galleries or probes of the search of one among many, and join them.

    Args:
        paths: The lists, such as ijbc_1N_gallery_G1.csv and ijbc_1N_gallery_G2.csv.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: No header with TEMPLATE_ID and SUBJECT_ID, a line without whole numbers in
            these columns, or a template of two people.
    """
    subjects: dict[int, int] = {}
    for path in paths:
        columns: list[int] = []
        for line, words in lines(path, _LISTS, ","):
            if not columns:
                header = [word.strip('"').upper() for word in words]
                if "TEMPLATE_ID" not in header or "SUBJECT_ID" not in header:
                    raise wrong(path, f"line {line}", "the header lacks a column", _LISTS)
                columns = [header.index(name) for name in ("TEMPLATE_ID", "SUBJECT_ID")]
                continue
            if len(words) <= max(columns):
                raise wrong(path, f"line {line}", f"there are {len(words)} columns", _LISTS)
            template, subject = _wholes(path, line, [words[k] for k in columns], _LISTS)
            if subjects.setdefault(template, subject) != subject:
                problem = f"template {template} is of subject {subjects[template]} and {subject}"
                raise wrong(path, f"line {line}", problem, _LISTS)
        if not columns or not subjects:
            raise wrong(path, "line 1", "there are no templates", _LISTS)
    table = np.array(sorted(subjects.items()), dtype=np.int64).reshape(-1, 2)
    return Subjects(table[:, 0], table[:, 1])


def _wholes(path: Path, line: int, words: list[str], remedy: str) -> tuple[int, ...]:
    numbers = [whole(word) for word in words]
    if any(number is None for number in numbers):
        raise wrong(path, f"line {line}", "a word is no whole number from 0", remedy)
    return tuple(number for number in numbers if number is not None)


def _columns(
    path: Path, numbers: Sequence[int], n: int, remedy: str
) -> tuple[Int64[np.ndarray, " N"], ...]:
    if not numbers:
        raise wrong(path, "line 1", "the file is empty", remedy)
    table = np.array(numbers, dtype=np.int64).reshape(-1, n)
    return tuple(table[:, k] for k in range(n))
