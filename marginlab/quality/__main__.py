"""`python -m marginlab.quality RUN IMAGES`: how recognizable your own images are.

    python -m marginlab.quality runs/second photos/ --out scores
    python -m marginlab.quality runs/second folder:faces --split test --scores index norm

RUN is the folder of a trained run. IMAGES is a folder with images anywhere below it, or a data set
by its spec. The scores, of which a higher one is better:

    index       the predicted recognizability index, of a run of Recognizability (its default)
    norm        the length of the embedding (the default of other runs)
    ser-fiq     robustness of the embedding to dropout
    gradients   what batch normalisation would have otherwise (GraFIQs); minus a gradient
    gallery     the highest cosine with the images of --gallery

The output folder, which is written when all is done, holds:

    scores.csv      for each image: its name, native height and width, and its scores
    sheet.png       images ordered by the first score, the lowest first; of many an even choice
    heat.png        the same images with the attention laid over them, from its least (blue) to its
                    largest value (red), where the run has attention
    unreadable.csv  files that were left out, and why
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from rich.progress import Progress
from torch import Tensor

from marginlab import files
from marginlab.data.sheet import contact_sheet, encode_picture
from marginlab.machine import check_device
from marginlab.methods import Method, Recognizability
from marginlab.quality.dropout import SerFiq
from marginlab.quality.frozen import FeatureNorm, HighestGalleryCosine, PredictedIndex
from marginlab.quality.gradients import BatchNormGradients
from marginlab.quality.pictures import FolderPictures, Pictures, pictures_of
from marginlab.quality.score import QualityScore, embeddings_of
from marginlab.settings import SettingsError
from marginlab.terminal import printable, run_command, say
from marginlab.train import load as load_run
from marginlab.train.recipe import recipe_of

_NAMES = ("index", "norm", "ser-fiq", "gradients", "gallery")
_LISTED = 10  # unreadable files that are named on the terminal
_SEEN = 64  # pixels that a picture on the sheet has at least


def main(arguments: list[str]) -> int:
    """Score what the arguments say, and return the exit status."""
    asked = _parser().parse_args(arguments)
    try:
        if asked.batch < 1 or asked.show < 1:
            raise SettingsError(
                f"--batch and --show are at least 1, not {asked.batch} and {asked.show}."
            )
        if asked.out.exists() and (not asked.out.is_dir() or any(asked.out.iterdir())):
            raise SettingsError(f"{asked.out} is there already. Name a new folder: --out FOLDER.")
        check_device(asked.device)
        model = load_run(asked.run, asked.device)
        size = asked.size or recipe_of(asked.run).image_size or getattr(model, "image_size", 0)
        if not 8 <= size <= 1024:
            raise SettingsError(
                f"--size is 8 to 1024 pixels, not {size}. Give the side of the images that the run "
                "was trained on."
            )
        scores = _scores(model, asked, size)
        pictures = pictures_of(asked.images, asked.split, asked.root, size)
        rows, table = scored(pictures, scores, asked.batch)
        _write(asked.out, pictures, rows, table, tuple(scores))
        order = table[:, 0].argsort(stable=True)
        some = order[torch.linspace(0, len(order) - 1, min(len(order), asked.show)).long()]
        read = pictures.read([rows[row][0] for row in some.tolist()])
        if read is not None:
            _draw(asked.out, read.images, table[some, 0], model)
    except (ValueError, TypeError, OSError) as error:
        say(printable(error), error=True)
        return 2
    _told(pictures, table, tuple(scores))
    say(f"Kept in {asked.out.absolute()}")
    return 0


def scored(
    pictures: Pictures, scores: dict[str, QualityScore], batch: int
) -> tuple[list[tuple[int, int, int]], Float[Tensor, "N S"]]:
    """Return number, height and width of each readable picture, and its scores.

    Raises:
        SettingsError: No picture can be read.
        ValueError: A score is not finite.
    """
    rows: list[tuple[int, int, int]] = []
    parts: list[Tensor] = []
    with Progress() as bar:
        task = bar.add_task("images", total=len(pictures.names))
        for numbers in torch.arange(len(pictures.names)).split(batch):
            read = pictures.read(numbers.tolist())
            if read is not None:
                found = [score.quality(read.images, batch=batch) for score in scores.values()]
                parts.append(torch.stack([part.double().cpu() for part in found], 1))
                sizes = zip(read.numbers, read.sizes, strict=True)
                rows += [(number, height, width) for number, (height, width) in sizes]
            bar.advance(task, len(numbers))
    if not parts:
        name, reason = pictures.unreadable[0]
        raise SettingsError(
            f"None of {len(pictures.unreadable):,} files can be read as an image. {name}: {reason}"
        )
    table = torch.cat(parts)
    wrong = (~table.isfinite()).any(1).nonzero()[:, 0]
    if len(wrong):
        name = pictures.names[rows[int(wrong[0])][0]]
        raise ValueError(f"{len(wrong):,} images have a score that is not finite, as {name} has.")
    return rows, table


def overlaid(
    images: UInt8[Tensor, "N 3 H W"], heat: Float[Tensor, "N H W"]
) -> Float[Tensor, "N 3 H W"]:
    """Return grey images under their heat, each from its least (blue) to its largest value (red).

    Heat that is the same everywhere is drawn in the middle, violet.
    """
    grey = (images.float() / 255).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
    level = torch.where(high > low, (heat - low) / (high - low).clamp(min=1e-12), 0.5)
    colour = torch.stack([level, torch.zeros_like(level), 1 - level], 1).float()
    return (grey + colour) / 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m marginlab.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Any = parser.add_argument
    add("run", type=Path, help="the folder of a trained run, or a checkpoint of it")
    add("images", help="a folder of images, or a spec such as folder:faces or lfw")
    add("--out", type=Path, default=Path("quality"), help="the folder that is written: quality")
    add("--scores", nargs="+", choices=_NAMES, help="the scores; the first one orders the sheets")
    add("--gallery", type=Path, help="a folder of images that the score gallery compares with")
    add("--split", help="the split of a spec; train if a spec has splits")
    add("--root", help="folder of the published sets")
    add("--size", type=int, help="side of the images in pixels; by default that of the run")
    add("--show", type=int, default=100, help="images on the sheets")
    add("--batch", type=int, default=256, help="images that are scored at a time")
    add("--device", default="cpu", help="where the model runs")
    return parser


def _scores(model: Method, asked: argparse.Namespace, size: int) -> dict[str, QualityScore]:
    """Make the scores that are asked for, in their order."""
    default = ["index"] if isinstance(model, Recognizability) else ["norm"]
    names = list(dict.fromkeys(asked.scores or default))
    if ("gallery" in names) != (asked.gallery is not None):
        raise SettingsError("The score gallery and a folder --gallery go together. Give both.")
    return {name: _score(name, model, asked, size) for name in names}


def _score(name: str, model: Method, asked: argparse.Namespace, size: int) -> QualityScore:
    if name == "index":
        return PredictedIndex(model)
    if name == "ser-fiq":
        return SerFiq(model)
    if name == "gradients":
        return BatchNormGradients(model)
    if name == "norm":
        return FeatureNorm(model)
    gallery = FolderPictures(asked.gallery, size)
    parts = []
    for numbers in torch.arange(len(gallery.names)).split(asked.batch):
        read = gallery.read(numbers.tolist())
        if read is not None:
            parts.append(embeddings_of(model, read.images, batch=asked.batch))
    if not parts:
        raise SettingsError(f"The gallery {asked.gallery} holds no image that can be read.")
    _list_unreadable(gallery)
    return HighestGalleryCosine(model, torch.cat(parts))


def _write(
    out: Path,
    pictures: Pictures,
    rows: list[tuple[int, int, int]],
    table: Float[Tensor, "N S"],
    names: tuple[str, ...],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        (pictures.names[number], height, width, *values)
        for (number, height, width), values in zip(rows, table.tolist(), strict=True)
    ]
    files.write(out / "scores.csv", files.csv_text(("image", "height", "width", *names), lines))
    if pictures.unreadable:
        text = files.csv_text(("file", "reason"), pictures.unreadable)
        files.write(out / "unreadable.csv", text)


def _draw(
    out: Path, images: UInt8[Tensor, "N 3 S S"], scores: Float[Tensor, " N"], model: Method
) -> None:
    """Write the contact sheet, and that of the attention if the model has one."""
    enlarge = -(-_SEEN // images.shape[2])
    captions = [f"{value:.4g}" for value in scores.tolist()]
    sheet = contact_sheet(images, captions, enlarge=enlarge)
    files.write(out / "sheet.png", encode_picture(sheet))
    if isinstance(model, Recognizability):
        heat = PredictedIndex(model).heat_maps(images).cpu()
        bounds = zip(heat.amin((1, 2)).tolist(), heat.amax((1, 2)).tolist(), strict=True)
        captions = [f"{low:.2f}-{high:.2f}" for low, high in bounds]
        sheet = contact_sheet(overlaid(images, heat), captions, enlarge=enlarge)
        files.write(out / "heat.png", encode_picture(sheet))


def _told(pictures: Pictures, table: Float[Tensor, "N S"], names: tuple[str, ...]) -> None:
    _list_unreadable(pictures)
    for name, values in zip(names, table.unbind(1), strict=True):
        low, middle, high = (float(x) for x in (values.min(), values.median(), values.max()))
        say(f"{name}: {low:.4g} to {high:.4g}, median {middle:.4g}, of {len(values):,} images")


def _list_unreadable(pictures: Pictures) -> None:
    for _, reason in pictures.unreadable[:_LISTED]:
        say(f"Left out: {printable(reason)}", error=True)
    more = len(pictures.unreadable) - _LISTED
    if more > 0:
        say(f"Left out: {more:,} more files.", error=True)


if __name__ == "__main__":
    run_command(main, resumes=False)
