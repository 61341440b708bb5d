"""Measure features that are there, or those of any encoder; nothing is trained.

    python -m marginlab.measure FEATURES.npz --out FOLDER
    python -m marginlab.measure timm:NAME --data SPEC --out FOLDER
    python -m marginlab.measure RUN --data SPEC --out FOLDER

FOLDER gets measures.csv and report.html. FEATURES.npz holds train_features (N, V, D) or (N, D),
train_labels, test_features and test_labels. The first of several views is the image itself.
"""

import argparse
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from marginlab import augment, files, settings
from marginlab.augment import Augmentation
from marginlab.data import load
from marginlab.measure.encoders import TIMM, encoders
from marginlab.measure.features import Features, encoded_features, read_features
from marginlab.measure.report import page
from marginlab.measure.rows import SHUFFLED, Row, measure, stacked
from marginlab.settings import SettingsError
from marginlab.terminal import printable, run_command, say

PROG = "python -m marginlab.measure"
_TABLE, _PAGE = "measures.csv", "report.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the table and the report, and return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    asked = _parser().parse_args(given)
    named = Path(asked.name.removeprefix(TIMM)).resolve().name.removesuffix(".npz")
    asked.out = asked.out or Path(f"{named}-measures")
    try:
        _check_out(asked.out)
        measured = [measure(features, seed=asked.seed) for features in _features(asked)]
        rows = [row for found in measured for row in found.rows]
        asked.out.mkdir(parents=True, exist_ok=True)
        files.write(asked.out / _TABLE, files.csv_text(Row._fields, rows))
        command = f"{PROG} {shlex.join(given)}"
        files.write(asked.out / _PAGE, page(measured, asked.name, asked.data, command))
    except (ValueError, OSError) as error:
        say(printable(error), error=True)
        return 2
    for row in stacked(rows):
        control = "" if row[SHUFFLED] is None else f"   {SHUFFLED} {row[SHUFFLED]:.4g}"
        name = f"{row['space']}  {row['quantity']} {row['at']}".strip()
        say(f"{name:<50} {row['value']:>10.4g}{control}")
    say(f"Kept in {asked.out / _TABLE} and {asked.out / _PAGE}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help=f"FEATURES.npz, {TIMM}NAME or the folder of a run")
    parser.add_argument(
        "--out", type=Path, help="the folder that is written; by default NAME-measures, here"
    )
    parser.add_argument("--data", default="", help="image set of an encoder, as of marginlab.data")
    parser.add_argument("--size", type=int, default=0, help="resize its images to this many pixels")
    parser.add_argument(
        "--images", type=int, default=1000, help="images of each split; 0 takes all (1000)"
    )
    parser.add_argument("--views", type=int, default=4, help="views of each image (4)")
    parser.add_argument(
        "--augmentation", default="Augmentation('abcde', strength=0.5)", help="it draws the views"
    )
    parser.add_argument("--weights", type=Path, help="a safetensors file for a model of timm")
    parser.add_argument(
        "--untrained", action="store_true", help="a model of timm with random weights"
    )
    parser.add_argument("--seed", type=int, default=0, help="of images, views and the control (0)")
    return parser


def _check_out(out: Path) -> None:
    """Refuse a folder that holds something else."""
    there = out.exists()
    if there and (not out.is_dir() or (any(out.iterdir()) and not (out / _TABLE).is_file())):
        raise SettingsError(f"{out} holds something else than measures. Choose another folder.")


def _features(asked: argparse.Namespace) -> Iterable[Features]:
    """Return the features of each space, after a check of what is asked for."""
    if asked.name.endswith(".npz"):
        if asked.data or asked.weights or asked.untrained:
            raise SettingsError(
                "Features that are there need no --data, --weights or --untrained. Leave them out."
            )
        return [read_features(Path(asked.name))]
    if not asked.data:
        raise SettingsError("An encoder needs images: --data SPEC, as of python -m marginlab.data.")
    if asked.views < 1 or asked.images < 0 or asked.seed < 0:
        raise SettingsError(
            f"--views is at least 1, --images and --seed at least 0, not {asked.views}, "
            f"{asked.images} and {asked.seed}."
        )
    augmentation = settings.make(asked.augmentation, augment, Augmentation)
    by_space = encoders(asked.name, asked.weights, untrained=asked.untrained)
    train, test = (
        load(asked.data, split, size=asked.size, workers=0).subset(asked.images, asked.seed)
        for split in ("train", "test")
    )
    return [
        encoded_features(
            encoder, space, (train, test), augmentation, views=asked.views, seed=asked.seed
        )
        for space, encoder in by_space.items()
    ]


if __name__ == "__main__":
    run_command(main, resumes=False)
