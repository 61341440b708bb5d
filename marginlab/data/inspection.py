"""A set in numbers and at a glance: its class histogram as text, and a contact sheet.

up to 20 classes      a line for each: its name, a bar, its images
more classes          a line for each range of sizes: 1, 2 to 3, 4 to 7, ..., and its classes
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from marginlab.data.images import ImageSet
from marginlab.data.pixels import resized
from marginlab.data.sheet import contact_sheet, encode_picture
from marginlab.files import write
from marginlab.settings import SettingsError

_LINES = 20  # of a histogram with a line for each class
_BAR = 40  # characters of the longest bar
_NAME = 24  # characters of a class name
_SMALL, _LARGE = 64, 128  # pixels of a picture on a sheet
_KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}


def histogram(images: ImageSet) -> list[str]:
    r"""Return the lines of a histogram of the images of each class.

    Example:
        >>> pixels = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
        >>> pets = ImageSet(pixels, torch.tensor([0, 0, 1]), ("cat", "dog"), "pets")
        >>> print("\n".join(histogram(pets)))
          cat  ########################################  2 images
          dog  ####################  1 image
    """
    counts = torch.bincount(images.labels.cpu(), minlength=len(images.classes))
    if len(counts) <= _LINES:
        names = [_short(name) for name in images.classes]
        return _bars(names, counts.tolist(), "image")
    ranges = torch.where(counts > 0, counts.clamp(min=1).double().log2().floor() + 1, 0).long()
    sizes = torch.bincount(ranges)
    shown = [(k, n) for k, n in enumerate(sizes.tolist()) if n]
    return _bars([_range(k) for k, _ in shown], [n for _, n in shown], "class")


def _short(name: str) -> str:
    one = " ".join(name.split())
    return one if len(one) <= _NAME else f"{one[: _NAME - 3]}..."


def _range(k: int) -> str:
    """Name the k-th range of class sizes: none, 1 image, 2 to 3 images, ..."""
    low, high = 2**k // 2, 2**k - 1
    if k < 2:
        return "no image" if k == 0 else "1 image"
    return f"{low:,} to {high:,} images"


def _bars(names: Sequence[str], counts: Sequence[int], unit: str) -> list[str]:
    width, most = max(map(len, names)), max(counts)
    many = {"image": "images", "class": "classes"}[unit]
    return [
        f"  {name:<{width}}  {'#' * max(round(_BAR * n / most), n > 0)}  "
        f"{n:,} {unit if n == 1 else many}"
        for name, n in zip(names, counts, strict=True)
    ]


def check_sheet(file: Path) -> None:
    """Refuse the name of a contact sheet that cannot be written.

    Raises:
        SettingsError: An ending other than those of PNG and JPEG, or no such folder.
    """
    if file.suffix.lower() not in _KINDS or not file.parent.is_dir():
        raise SettingsError(
            f"A contact sheet is NAME.png or NAME.jpg in a folder that is there, not {file}."
        )


def sheet(images: ImageSet, n: int = 64) -> UInt8[Tensor, "3 h w"]:
    """Return a contact sheet of about n images, as equally many of each class as there are.

    Small images are enlarged, and large ones cut to a square and made smaller.
    """
    some = images.subset(min(max(n, 2), len(images)))
    index = torch.arange(len(some))
    pictures = torch.as_tensor(some.images[index])
    if max(pictures.shape[2:]) > _LARGE:
        pictures = resized(pictures, _LARGE)
    names = [_short(some.classes[label]) for label in some.labels.tolist()]
    order = some.labels.cpu().argsort(stable=True)
    captions = [names[k] for k in order.tolist()]
    enlarge = max(_SMALL // pictures.shape[-1], 1)
    return contact_sheet(pictures.cpu()[order], captions, enlarge=enlarge)


def write_sheet(images: ImageSet, file: Path) -> None:
    """Write the contact sheet of a set into a PNG or JPEG file."""
    write(file, encode_picture(sheet(images), _KINDS[file.suffix.lower()]))
