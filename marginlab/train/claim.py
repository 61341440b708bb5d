"""Whose a run folder is: one recipe's, one monitor's and one set of images', and one process's at a time.

    RUN/recipe.toml, monitor.toml, images.txt     written once, each whole or not at all, before the first step
    RUN/.lock                                     held by the process that trains
"""

import contextlib
import dataclasses
import fcntl
from collections.abc import Iterator
from pathlib import Path

from marginlab import settings
from marginlab.settings import SettingsError
from marginlab.train.monitor import Monitor
from marginlab.train.recipe import Recipe


def claim(recipe: Recipe, monitor: Monitor, images: str, folder: Path) -> None:
    """Refuse a folder of something else; otherwise it belongs to this recipe, monitor and images from now on."""
    own = folder / "recipe.toml"
    if own.exists():
        _same(recipe, settings.read(Recipe, own), folder, "a run")
        if (folder / "monitor.toml").exists():
            _same(monitor, settings.read(Monitor, folder / "monitor.toml"), folder, "a run that is measured")
        if (folder / "images.txt").exists() and (folder / "images.txt").read_text(encoding="utf-8") != images:
            raise SettingsError(f"{folder} holds a run on other images: {recipe.data} has changed since. Choose another folder.")
    elif folder.exists() and any(folder.iterdir()):
        raise SettingsError(f"{folder} is not empty and holds no run. Choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.absolute()  # "." has no name
    partial = folder.with_name(f".{folder.name}.recipe")  # beside the folder, so that a run killed here leaves it empty
    for name, text in (("recipe.toml", settings.to_toml(recipe)), ("monitor.toml", settings.to_toml(monitor)), ("images.txt", images)):
        if not (folder / name).exists():  # of a run that was killed here, the later ones are missing
            partial.write_text(text, encoding="utf-8")
            partial.rename(folder / name)


def _same(ours: Recipe | Monitor, theirs: Recipe | Monitor, folder: Path, holds: str) -> None:
    for field in dataclasses.fields(theirs):
        before, now = getattr(theirs, field.name), getattr(ours, field.name)
        if before != now:
            raise SettingsError(f"{folder} holds {holds} with {field.name} = {before!r}, not {now!r}. Choose another folder.")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes; the system lets go of it when this one ends, however it ends."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(f"Another process trains in {folder}. Wait for it, or choose another folder.") from None
        yield
