"""The claim to a run folder: one recipe, one monitor, one set of images, one process at a time.

Files of the run folder that belong to the claim:

    RUN/recipe.toml, monitor.toml, images.txt     written once, each complete or not at all, before
                                                  the first step
    RUN/.lock                                     held by the process that trains; it stays
    RUN/precision.json                            the precision that a probe chose, see `precision`
    RUN/machines.csv                              a row for each start: from which step on, on which
                                                  devices with how many threads, on how many ranks,
                                                  with which version of torch
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import torch

from marginlab import files, settings
from marginlab.settings import SettingsError
from marginlab.train import checkpoint
from marginlab.train.monitor import Monitor
from marginlab.train.precision import RECORD
from marginlab.train.recipe import AT_HAND, Recipe

LOCK, PARTIAL = ".lock", ".partial"
FIRST = ("recipe.toml", "monitor.toml", "images.txt")
WRITTEN = ("checkpoints", "tensorboard")
OURS = (LOCK, PARTIAL, RECORD, *FIRST)  # what a run leaves that was killed at its start
_HELD = dict[Path, files.Lock]()  # locks of this process, by their folders


@contextlib.contextmanager
def claimed(recipe: Recipe, monitor: Monitor, images: str, folder: Path) -> Iterator[None]:
    """Hold a folder for a recipe, a monitor and images, against other runs and other processes.

    The folder is checked before anything is written, so that a folder of something else stays as it
    was. It is checked once more under the lock: if two recipes come for a new folder at the same
    time, one gets it. The system releases the lock when this process ends, however it ends.

    If an error comes before the first checkpoint, a folder that was new is given back. Then another
    recipe, such as one with a smaller learning rate, can have it.

    Raises:
        SettingsError: The folder holds something else, or another process trains in it.
        OSError: The folder cannot be written.
    """
    folder = folder.absolute()
    _refuse(recipe, monitor, images, folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = files.Lock(folder / LOCK)
    if not lock.take():
        raise SettingsError(
            f"Another process trains in {folder}. Wait for it, or choose another folder."
        )
    try:
        _refuse(recipe, monitor, images, folder)
        partial = (folder / "checkpoints").glob("*.partial")
        files.refuse_links(folder, [*WRITTEN, *(f"checkpoints/{path.name}" for path in partial)])
        new = not _filled(folder / "recipe.toml")
        written = {
            "recipe.toml": settings.to_toml(recipe),
            "monitor.toml": settings.to_toml(monitor),
        }
        try:
            for name, text in {**written, "images.txt": images}.items():
                # a run that was killed here lacks the later files
                if not _filled(folder / name):
                    _put(folder / name, text)
            _HELD[folder] = lock
            yield
        except BaseException:
            if new and lock.in_place and checkpoint.latest(folder) is None:
                _give_back(folder)
            raise
    finally:
        _HELD.pop(folder, None)
        lock.release()


def still_there(folder: Path) -> None:
    """Raise OSError if a claimed folder was removed, or replaced by another, during the run."""
    lock = _HELD.get(folder.absolute())
    ours = (folder / LOCK).exists() if lock is None else lock.in_place
    if not ours and (folder / LOCK).exists():
        raise FileNotFoundError(
            f"{folder} was replaced by another folder while the run trained in it, and nothing is "
            "written there. Put the run's own folder back, and the same command goes on."
        )
    if not ours or not (folder / "recipe.toml").exists():
        raise FileNotFoundError(
            f"{folder} was removed while the run trained in it, and what was kept there is lost. "
            "The same command begins again."
        )


def record_machines(folder: Path, step: int, devices: list[str]) -> None:
    """Add a row to machines.csv: the first step, the devices, the ranks and the version of torch.

    Numbers are the same bit for bit only where this row is the same, see `machine`.
    """
    file = folder / "machines.csv"
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    named = "; ".join(dict.fromkeys(devices))
    header = () if _filled(file) else ("step", "started", "devices", "ranks", "torch")
    row = (step, now, named, len(devices), torch.__version__)
    files.append(file, files.csv_text(header, [row]))


def _refuse(recipe: Recipe, monitor: Monitor, images: str, folder: Path) -> None:
    """Refuse a folder of something else, and one that TensorBoard could not write in."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise SettingsError(
            f"The name {folder} is no text in UTF-8, which TensorBoard's events need. Choose "
            "another folder."
        ) from None
    own = folder / "recipe.toml"
    if _filled(own):
        with settings.as_data():  # code that it may name is not imported for a comparison
            theirs = settings.read(Recipe, own)
        _same(recipe, theirs, folder, "a run")
        if _filled(folder / "monitor.toml"):
            with settings.as_data():
                measured = settings.read(Monitor, folder / "monitor.toml")
            _same(monitor, measured, folder, "a run that is measured")
        found = folder / "images.txt"
        if _filled(found) and found.read_text(encoding="utf-8") != images:
            why = f"{recipe.data} has changed since, or the version that reads it"
            if recipe.data == AT_HAND:
                why = "those at hand are not those that it was begun with"
            raise SettingsError(
                f"{folder} holds a run on other images: {why}. Choose another folder."
            )
    elif folder.exists() and any(file.name not in OURS for file in folder.iterdir()):
        raise SettingsError(f"{folder} is not empty and holds no run. Choose another folder.")


def _give_back(folder: Path) -> None:
    """Remove what a run writes before its first checkpoint, and nothing else.

    The lock stays: a process that waits for a removed one would hold nothing.
    """
    for name in (*FIRST, RECORD, "machines.csv"):
        (folder / name).unlink(missing_ok=True)
    for events in (folder / "tensorboard").glob("events.out.tfevents.*"):
        events.unlink(missing_ok=True)
    for partial in (folder / "checkpoints").glob("step-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    for made in ("tensorboard", "checkpoints"):
        with contextlib.suppress(OSError):  # it does not exist, or holds somebody else's files
            (folder / made).rmdir()


def _filled(file: Path) -> bool:
    """Return whether a file exists and is not empty, as a full disk may leave it."""
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:
        return False


def _put(file: Path, text: str) -> None:
    """Write a file whole; its partial name is one that `_refuse` knows, should a kill leave it."""
    files.write(file, text, beside=file.with_name(PARTIAL))


def _same(ours: Recipe | Monitor, theirs: Recipe | Monitor, folder: Path, holds: str) -> None:
    for field in dataclasses.fields(theirs):
        before, now = getattr(theirs, field.name), getattr(ours, field.name)
        if before != now:
            if field.name == "data" and before == AT_HAND:
                raise SettingsError(
                    f"{folder} holds a run on images at hand. Give them again, "
                    "fit(recipe, folder, data=(train, test)), or choose another folder."
                )
            raise SettingsError(
                f"{folder} holds {holds} with {field.name} = {before!r}, not {now!r}. Choose "
                "another folder."
            )
