"""Protocols of faces in low resolution: TinyFace, QMUL-SurvFace and SCface.

    TinyFace     Testing_Set/Gallery_Match, Probe           names and ids from *_img_ID_pairs.mat
                 Testing_Set/Gallery_Distractor             id -1: it matches no probe
    SurvFace     Face_Identification_Test_Set/gallery, mated_probe      ids from *_img_ID_pairs.mat
                 Face_Identification_Test_Set/unmated_probe             id -1: it has no mate
                 Face_Verification_Test_Set/{positive,negative}_pairs_names.mat
    SCface       SSS_frontal.jpg                            the gallery: subject SSS
                 SSS_camC_D.jpg                             the probes: camera C, distance D

In TinyFace every probe has a mate. SCface's distances 1, 2 and 3 are 4.20, 2.60 and 1.00 m, and its
visible-light cameras are 1 to 5. Sources: Cheng, Zhu and Gong, 2018 (both sets of QMUL); Grgic,
Delac and Grgic, 2011 (SCface).
"""

import math
import os
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from marginlab.files.untrusted import shown
from marginlab.formats.pairs import PairList
from marginlab.formats.reading import content, name_in, wrong

_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp")
_MAT = "Give a file of MATLAB 5 to 7 as the set's authors publish it."
_SCFACE = re.compile(r"(\d{1,9})_(?:frontal|cam(\d{1,2})_(\d{1,2}))$", re.ASCII)
NOBODY = -1


class Images(NamedTuple):
    """N images: their paths below the folder of the set, and the ids (N,) of the people in them."""

    paths: tuple[str, ...]
    ids: Int64[np.ndarray, " N"]


class Identification(NamedTuple):
    """Gallery and probes of a protocol; an id of -1 is of nobody on the other side."""

    gallery: Images
    probes: Images


class SCface(NamedTuple):
    """Mugshots and probes of SCface, with the camera (N,) and the distance (N,) of each probe."""

    gallery: Images
    probes: Images
    camera: Int64[np.ndarray, " N"]
    distance: Int64[np.ndarray, " N"]


class _TooLargeError(ValueError):
    """A variable that claims more entries than its file can hold."""


def read_tinyface(folder: Path | str) -> Identification:
    """Read TinyFace's closed-set protocol; distractors stand behind the gallery, with the id -1.

    Args:
        folder: The folder Testing_Set, with the lists in it or in Face_Identification_Evaluation
            beside it.

    Raises:
        FileNotFoundError: No such folder or list.
        ValueError: A list without names and ids, or of different numbers of them.
    """
    folder = Path(folder)
    beside = folder.parent / "Face_Identification_Evaluation"
    lists = folder if (folder / "probe_img_ID_pairs.mat").is_file() else beside
    lists = lists if lists.is_dir() else folder
    gallery = _listed(lists / "gallery_match_img_ID_pairs.mat", "gallery", "Gallery_Match")
    probes = _listed(lists / "probe_img_ID_pairs.mat", "probe", "Probe")
    return Identification(_with_nobody(gallery, folder, "Gallery_Distractor"), probes)


def read_survface(folder: Path | str) -> Identification:
    """Read QMUL-SurvFace's open-set protocol; unmated probes stand last, with the id -1.

    Args:
        folder: The folder Face_Identification_Test_Set.

    Raises:
        FileNotFoundError: No such folder or list.
        ValueError: A list without names and ids, or of different numbers of them.
    """
    folder = Path(folder)
    gallery = _listed(folder / "gallery_img_ID_pairs.mat", "gallery", "gallery")
    probes = _listed(folder / "mated_probe_img_ID_pairs.mat", "mated_probe", "mated_probe")
    return Identification(gallery, _with_nobody(probes, folder, "unmated_probe"))


def read_survface_pairs(folder: Path | str) -> PairList:
    """Read QMUL-SurvFace's pairs for verification: those of one person, then those of two.

    Args:
        folder: The folder Face_Verification_Test_Set, whose images are in verification_images.

    Raises:
        FileNotFoundError: No such list.
        ValueError: A list that is not two names for each pair.
    """
    folder = Path(folder)
    sides: tuple[list[str], list[str]] = ([], [])
    same: list[bool] = []
    for kind in ("positive", "negative"):
        path = folder / f"{kind}_pairs_names.mat"
        (cells,) = _variables(path, (f"{kind}_pairs_names",))
        if cells.ndim != 2 or cells.shape[1] != 2:
            raise wrong(path, "its list", f"it is of shape {cells.shape}, not (M, 2)", _MAT)
        for side in (0, 1):
            sides[side].extend(_names(path, cells[:, side], "verification_images"))
        same += [kind == "positive"] * len(cells)
    fold = np.zeros(len(same), dtype=np.int64)
    return PairList(tuple(sides[0]), tuple(sides[1]), np.array(same, dtype=np.bool_), fold)


def read_scface(folder: Path | str) -> SCface:
    """Read SCface's mugshots and the probes of its visible-light cameras from the files' names.

    Args:
        folder: A folder with the images anywhere below it.

    Returns:
        The images, sorted by path. Other images, such as those of the infrared cameras, are left
        out.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: No mugshot, no probe, or two mugshots of one person.
    """
    folder = Path(folder)
    gallery: list[tuple[str, int]] = []
    probes: list[tuple[str, int, int, int]] = []
    for path in _images(folder, folder):
        found = _SCFACE.fullmatch(Path(path).stem)
        if found and found[2] is None:
            gallery.append((path, int(found[1])))
        elif found and 1 <= int(found[2]) <= 5 and 1 <= int(found[3]) <= 3:
            probes.append((path, int(found[1]), int(found[2]), int(found[3])))
    people = [person for _, person in gallery]
    remedy = "Give a folder with SSS_frontal.jpg and SSS_camC_D.jpg in it, each once."
    if not gallery or not probes or len(set(people)) < len(people):
        problem = f"{len(gallery)} mugshots of {len(set(people))} people, {len(probes)} probes"
        raise wrong(folder, "its images", problem, remedy)
    table = np.array([probe[1:] for probe in probes], dtype=np.int64)
    mugshots = Images(tuple(path for path, _ in gallery), np.array(people, dtype=np.int64))
    taken = Images(tuple(probe[0] for probe in probes), table[:, 0])
    return SCface(mugshots, taken, table[:, 1], table[:, 2])


def _listed(path: Path, kind: str, below: str) -> Images:
    """Read a list of names and ids."""
    names, ids = _variables(path, (f"{kind}_set", f"{kind}_ids"))
    ids = ids.reshape(-1)
    paths = _names(path, names.reshape(-1), below)
    if ids.dtype.kind not in "iuf" or len(ids) != len(paths) or not paths:
        problem = f"{len(paths):,} names and {len(ids):,} ids of dtype {ids.dtype}"
        raise wrong(path, "its lists", problem, _MAT)
    numbers = np.asarray(ids, dtype=np.float64)
    if not (np.isfinite(numbers) & (numbers == np.floor(numbers)) & (numbers >= 0)).all():
        raise wrong(path, f"{kind}_ids", "an id is no whole number from 0", _MAT)
    if numbers.max() >= 2**53:
        raise wrong(path, f"{kind}_ids", f"the id {numbers.max():.0f} is too large", _MAT)
    return Images(tuple(paths), numbers.astype(np.int64))


def _with_nobody(images: Images, folder: Path, below: str) -> Images:
    """Append the images of a folder, with ids of nobody."""
    others = list(_images(folder / below, folder))
    ids = np.full(len(others), NOBODY, dtype=np.int64)
    return Images((*images.paths, *others), np.concatenate([images.ids, ids]))


def _variables(path: Path, names: tuple[str, ...]) -> list[Any]:
    """Read arrays of a MATLAB file."""
    from scipy.io import loadmat, whosmat  # takes a while to import

    data = content(path, _MAT)
    if data[:10] == b"MATLAB 7.3":
        raise wrong(path, "byte 0", "this is a file of MATLAB 7.3", "Save it with -v7 in MATLAB.")
    most = 8 * len(data)  # entries: a name or an id takes some bytes, packed too
    try:
        # loadmat would make an array of whatever size is claimed
        sizes = {name: math.prod(shape) for name, shape, _ in whosmat(BytesIO(data))}
        if large := [name for name in names if not 0 <= sizes.get(name, 0) <= most]:
            raise _TooLargeError(f"{large[0]} claims {sizes[large[0]]:,} entries")
        found = loadmat(BytesIO(data), variable_names=list(names))
        return [np.atleast_1d(np.asarray(found[name])) for name in names]
    except _TooLargeError as error:
        problem = f"{error}, more than {len(data):,} bytes can hold"
        raise wrong(path, "its variables", problem, _MAT) from error
    except KeyError as error:
        raise wrong(path, "its variables", f"there is no {error}", _MAT) from error
    except Exception as error:  # scipy has many ways to say that a file is broken
        said = (str(error) or type(error).__name__).rstrip(".")[:200]
        raise wrong(path, "byte 0", f"it cannot be read ({said})", _MAT) from error


def _names(path: Path, cells: Any, below: str) -> list[str]:
    """Return the paths of images that a column of cells names."""
    found = []
    for number, cell in enumerate(cells):
        inside = np.asarray(cell)
        name = inside.item() if inside.dtype.kind == "U" and inside.size == 1 else ""
        if not name_in(name.strip()):
            raise wrong(path, f"entry {number}", "it is no name of an image", _MAT)
        found.append(f"{below}/{name.strip()}")
    return found


def _images(folder: Path, root: Path) -> Iterator[str]:
    """Yield the images anywhere below a folder, sorted, relative to the root."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {shown(folder)}. Unpack the set into it.")
    found = []
    for parent, _, files in os.walk(folder):
        below = Path(parent).relative_to(root)
        found += [(below / file).as_posix() for file in files if file.lower().endswith(_ENDINGS)]
    yield from sorted(found)
