"""Train one recipe: `python -m marginlab.train RECIPE --folder runs/mine [--epochs 10 ...]`.

The same command resumes after a stop. RECIPE is a TOML file, or the name of one that comes with the
package (the files of marginlab/train/recipes). Under torchrun it trains on all its processes. A
rank that gives no sign of life for five minutes ends the job. The environment variable
MARGINLAB_SILENCE sets another number of seconds.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

from marginlab import ranks, settings, train
from marginlab.data.pixels import BUDGET
from marginlab.terminal import say
from marginlab.theory import rounded_up
from marginlab.train import Monitor, Recipe, fit
from marginlab.train.watch import Stopped

RECIPES = Path(__file__).parent / "recipes"
# quantities that bound something: printed rounded up
BOUNDS = ("certified", "certified_test", "companion")


def main(arguments: list[str]) -> int:
    """Train what the arguments say, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m marginlab.train",
        description=__doc__.split("\n")[0],
        epilog="All other flags replace settings of the recipe, as --epochs 10.",
    )
    shipped = sorted(file.stem for file in RECIPES.glob("*.toml"))
    parser.add_argument(
        "recipe",
        type=Path,
        help=f"a TOML file of settings of marginlab.train.Recipe, or one of: {', '.join(shipped)}",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="where the run is kept; a folder with a part of it is gone on with",
    )
    parser.add_argument(
        "--root", type=Path, help="folder of the data sets; MARGINLAB_DATA by default"
    )
    parser.add_argument(
        "--budget-gib",
        type=float,
        default=BUDGET / 2**30,
        help="memory for the images of a split; a folder of more is streamed",
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="processes of each rank that decode a streamed folder; its share of the cores by "
        "default",
    )
    measured = parser.add_mutually_exclusive_group()
    measured.add_argument(
        "--measure-every",
        type=int,
        default=0,
        help="epochs between measurements; 0: the untrained and the trained network only",
    )
    measured.add_argument(
        "--measure",
        default="",
        help='all that is measured, as "Monitor(every=5, images=1000)"; see '
        "marginlab.train.Monitor",
    )
    options, flags = parser.parse_known_args(arguments)
    try:
        if not 0 < options.budget_gib < float("inf"):
            raise settings.SettingsError(
                f"--budget-gib is GiB of memory, above 0, not {options.budget_gib:g}."
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            ranks.join("nccl" if torch.cuda.is_available() else "gloo")
        named = RECIPES / f"{options.recipe}.toml"
        if not named.exists() and not options.recipe.exists():
            known = settings.nearest(str(options.recipe), shipped)
            raise settings.SettingsError(
                f"There is no recipe {options.recipe}, as a file or of the package: {known}"
            )
        recipe = settings.read(
            Recipe,
            named if named.exists() else options.recipe,
            flags,
            prog="python -m marginlab.train RECIPE",
        )
        monitor = (
            settings.make(options.measure, train, Monitor)
            if options.measure
            else Monitor(every=options.measure_every)
        )
        budget = int(options.budget_gib * 2**30)
        run = fit(
            recipe,
            options.folder,
            monitor,
            root=options.root,
            budget=budget,
            workers=options.workers,
        )
        if ranks.rank() == 0:
            for row in run.rows:
                if row.epoch == recipe.epochs:
                    value = rounded_up(row.value) if row.quantity in BOUNDS else f"{row.value:.4f}"
                    say(f"{row.space:10} {row.quantity:26} {row.at:13} {value}")
            rate = (
                f"{run.images_per_second:,.0f} images/s."
                if run.images_per_second
                else "Nothing was left to train."
            )
            say(f"{rate} Kept in {run.folder.absolute()}")
    except Stopped as stopped:
        if ranks.rank() == 0:
            say(f"{stopped} The same command goes on from there.", error=True)
        return 143
    # SettingsError is a ValueError
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        # every rank reports its own error: the others may never hear of it, and wait to be stopped
        say(error if ranks.size() == 1 else f"Rank {ranks.rank()}: {error}", error=True)
        return 1 if isinstance(error, FloatingPointError) else 2
    except KeyboardInterrupt:
        kept = f"What {options.folder} holds is whole"
        say(f"Stopped. {kept}: the same command goes on from its last checkpoint.", error=True)
        return 130
    finally:
        ranks.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
