"""`python -m marginlab.inversion RUN`: images from the embeddings of a trained run.

    python -m marginlab.inversion runs/a --size 32 --classes 0 1 2 --out inverted
    python -m marginlab.inversion runs/a --size 32 --images photos/ --out inverted

The first makes images of classes that the run's classifier knows. The second makes images from the
embeddings of the pictures in a folder. The output folder holds:

    targets.png     the folder's pictures, with --images
    generated.png   what was made, in the same order
    images.npz      the same, as bytes (N, H, W, 3) and the targets' names
    terms.csv       the terms of the objective at each step
    found.csv       for each target: its name, the cosine with it, and its rank among all targets;
                    of a class with sub-centers the nearest one counts
    inversion.pt    the state of the work; the same command resumes after a stop
"""

import argparse
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from marginlab import files, settings
from marginlab.data.decoding import decoded
from marginlab.data.pixels import BUDGET, resized
from marginlab.data.sheet import contact_sheet, encode_picture
from marginlab.inversion.distances import identity_ranks
from marginlab.inversion.invert import STATE, Inversion, invert
from marginlab.inversion.network import Network
from marginlab.inversion.settings import InversionSettings
from marginlab.methods import Method
from marginlab.settings import SettingsError
from marginlab.statistics import unit_vectors
from marginlab.terminal import printable, run_command, say
from marginlab.train import load


class _Asked(NamedTuple):
    """Targets (N, ...), K embeddings (N, K, D) of each, names, and pictures to show beside."""

    targets: Tensor
    embeddings: Tensor
    names: tuple[str, ...]
    pictures: Tensor | None


def main(arguments: list[str]) -> int:
    """Invert what the arguments say, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m marginlab.inversion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="All other flags replace settings, such as --steps 500 or --batch-norm 0.",
    )
    parser.add_argument("run", type=Path, help="the folder of a trained run, or a checkpoint of it")
    parser.add_argument("--size", type=int, required=True, help="side of the images in pixels")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--classes", type=int, nargs="+", help="numbers of classes of the run")
    wanted.add_argument("--images", type=Path, help="a folder of pictures")
    parser.add_argument(
        "--out", type=Path, help="the folder that is written; by default RUN-inverted, here"
    )
    asked, flags = parser.parse_known_args(arguments)
    asked.out = asked.out or Path(f"{asked.run.resolve().name}-inverted")
    try:
        chosen = settings.read(
            InversionSettings, flags=flags, prog="python -m marginlab.inversion RUN"
        )
        if not 8 <= asked.size <= 1024:
            raise SettingsError(f"--size is from 8 to 1024 pixels, not {asked.size}.")
        _check_out(asked.out)
        model = load(asked.run)
        target = (
            _classes(model, asked.classes)
            if asked.classes is not None
            else _pictures(model, asked.images, asked.size)
        )
        made = _inverted(model, target, chosen, asked.size, asked.out)
    except (ValueError, OSError, FloatingPointError) as error:
        say(printable(error), error=True)
        return 2
    _written(asked.out, target, made)
    say(f"Kept in {asked.out.absolute()}")
    return 0


def _check_out(out: Path) -> None:
    """Refuse a folder that holds something else than an inversion."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / STATE).is_file())):
        raise SettingsError(f"{out} holds something else than an inversion. Choose another folder.")


def _classes(model: Method, classes: list[int]) -> _Asked:
    """Return the centers of classes as what to compare with."""
    classifier: Any = getattr(model, "classifier", None)
    if classifier is None:
        raise SettingsError(
            f"The run was trained by {type(model).__name__}, which has no class centers. Give "
            "--images."
        )
    number = classifier.num_classes
    if wrong := [label for label in classes if not 0 <= label < number]:
        raise SettingsError(f"There is no class {wrong[0]}: classes go from 0 to {number - 1}.")
    labels = torch.tensor(classes)
    names = model.classes or tuple(str(label) for label in range(number))
    centers = classifier.centers.detach()[labels]
    return _Asked(labels, centers, tuple(names[label] for label in classes), None)


def _pictures(model: Method, folder: Path, size: int) -> _Asked:
    """Return the embeddings of the pictures of a folder; a file that is none is named and left."""
    if not folder.is_dir():
        raise SettingsError(f"There is no folder {folder} of pictures.")
    names, pictures = [], []
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        try:
            image = decoded(file, str(folder), size, BUDGET)
        except ValueError as error:
            say(f"Left out: {printable(error)}", error=True)
            continue
        pictures.append(resized(image[None], size))
        names.append(file.name)
    if not pictures:
        raise SettingsError(f"{folder} holds no picture that can be read.")
    images = torch.cat(pictures)
    network = Network(model)
    with network.frozen(), torch.no_grad():
        parts = [
            network.embed_pixels(part.to(network.device, network.dtype) / 255)
            for part in images.split(256)
        ]
    embeddings = torch.cat(parts).cpu()
    return _Asked(embeddings, embeddings[:, None], tuple(names), images)


def _inverted(
    model: Method, target: _Asked, chosen: InversionSettings, size: int, out: Path
) -> Inversion:
    """Invert under a progress bar that shows the terms."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    batches = -(-len(target.targets) // chosen.batch)
    with Progress(*columns) as bar:
        task = bar.add_task("", total=batches * chosen.steps)

        def show(done: int, terms: dict[str, float]) -> None:
            said = ", ".join(f"{name} {value:.3g}" for name, value in terms.items())
            bar.update(task, completed=done, description=said)

        return invert(model, target.targets, chosen, size=size, folder=out, say=show)


def _written(out: Path, target: _Asked, made: Inversion) -> None:
    """Write pictures and tables."""
    if target.pictures is not None:
        files.write(out / "targets.png", encode_picture(contact_sheet(target.pictures)))
    files.write(out / "generated.png", encode_picture(contact_sheet(made.images)))
    held = io.BytesIO()
    pixels = (made.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.savez_compressed(held, images=pixels, names=np.array(target.names))
    files.write(out / "images.npz", held.getvalue())
    terms = (
        (batch, step, *values)
        for batch, part in enumerate(made.terms.tolist())
        for step, values in enumerate(part)
    )
    files.write(out / "terms.csv", files.csv_text(("batch", "step", *made.names), terms))
    found, wanted = unit_vectors(made.embeddings), unit_vectors(target.embeddings)
    N, K, _ = wanted.shape
    cosines, nearest = (wanted @ found[:, :, None])[:, :, 0].max(1)
    ranks = identity_ranks(found, wanted.flatten(0, 1), K * torch.arange(N) + nearest)
    rows = zip(target.names, cosines.tolist(), ranks.tolist(), strict=True)
    files.write(out / "found.csv", files.csv_text(("target", "cosine", "rank"), rows))
    say(
        f"{N} images; mean cosine with the target {float(cosines.mean()):.3f}, nearest "
        f"target the right one for {int((ranks == 1).sum())}."
    )


if __name__ == "__main__":
    run_command(main, resumes=True)
