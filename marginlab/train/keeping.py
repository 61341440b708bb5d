"""The checkpoints of one run: loaded, written, and removed when the next one is proven.

    newest checkpoint, 64 bits of SHA-256 of its checksums     equal on every rank, or all raise

The first rank holds the folder. Ranks that see other files in its place, such as a stale copy,
would train from other weights. A rank that sees none would begin anew while the others wait for it.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from marginlab import ranks
from marginlab.data import ImageSet
from marginlab.losses import PartialFC
from marginlab.methods import Method
from marginlab.settings import SettingsError
from marginlab.train import checkpoint, contents
from marginlab.train.claim import still_there
from marginlab.train.finite import check_finite
from marginlab.train.recipe import Recipe
from marginlab.train.rows import rows_of
from marginlab.train.started import started_centers

PATIENCE = 20.0  # seconds until a rank must see what the first has written: a network disk is slow


class Keeper:
    """The checkpoints of a run that holds its folder; all ranks call each method."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        method: Method,
        optimizers: Sequence[torch.optim.Optimizer],
        classes: Sequence[str],
        device: torch.device,
    ):
        self.recipe, self.folder, self.method, self.optimizers = recipe, folder, method, optimizers
        self.classes, self.device = classes, device
        self.last: tuple[int, Path] | None = None  # the step saved last by this call, and its place
        self.unproven = False  # True until a step has gone on from the checkpoint written last

    def resume(self) -> dict[str, Any] | None:
        """Load the newest checkpoint of the folder; return its progress, None if there is none.

        The progress holds the measured rows as `Row`.
        """
        last = newest(self.folder, self.device, claimed=True)
        if last is None:
            return None
        self.unproven = True
        progress = checkpoint.restore(last, self.method, self.optimizers, recipe=self.recipe)
        return {**progress, "rows": rows_of(progress["rows"], last)}

    def check(self, step: int) -> None:
        """Refuse weights that no step can continue from: they are neither measured nor saved."""
        check_finite(self.method, self.optimizers, step, checkpoint.latest(self.folder))

    def save(self, step: int, progress: dict[str, Any], *, checked: bool = False) -> Path:
        """Write the checkpoint of a step, once.

        `checked` says that these weights have passed `check`.
        """
        if self.last is not None and self.last[0] == step:
            return self.last[1]  # as when the signal to end comes in the last step of an epoch
        ranks.broadcast_from_first(lambda: still_there(self.folder))
        ranks.broadcast_buffers(self.method)
        if not checked:
            self.check(step)
        place = checkpoint.write(
            self.folder,
            self.recipe,
            self.method,
            self.optimizers,
            step=step,
            classes=self.classes,
            progress=progress,
        )
        self.last, self.unproven = (step, place), True
        return place

    def proven(self) -> None:
        """Remove older checkpoints once a step has gone on from the last, or the run has ended."""
        if self.unproven:
            checkpoint.prune(self.folder)
            self.unproven = False


def newest(folder: Path, device: torch.device, *, claimed: bool = False) -> Path | None:
    """Find the newest checkpoint of a run folder, the same on every rank.

    Args:
        folder: The run folder.
        device: Where ranks exchange what they see.
        claimed: The first rank has claimed the folder, so all must see its recipe there.

    Raises:
        SettingsError: The ranks do not see the same folder.
    """

    def find() -> Path | None:
        if claimed and not _appears(folder / "recipe.toml"):
            raise SettingsError(
                f"{folder} holds no recipe here, but the first rank has written it there. Give all "
                "ranks one folder that they share."
            )
        return checkpoint.latest(folder)

    remedy = f"They do not see the same {folder}: give all ranks one folder that they share."
    return _alike(find, device, what="fit", refused="its folder", remedy=remedy)


def remaining(folder: Path) -> str:
    """Name the checkpoints left to a run that cannot continue, as the end of a sentence."""
    last = checkpoint.latest(folder)
    if last is None:
        return "no checkpoint was written yet."
    before = [place for place in checkpoint.whole(folder) if place != last]
    if not before:
        return f"the last checkpoint, {last}, is whole."
    return (
        f"the last checkpoint, {last}, holds finite numbers, but no step has gone on from it; the "
        f"one before is kept, {before[-1]}."
    )


def start(method: Method, path: Path | str, images: ImageSet | None = None) -> None:
    """Load the weights of another run into a method; all ranks call it.

    Class centers are those of the classes of the same name, or number, and of more sub-centers the
    dominant ones, as `started_centers` says. `images` are the training images of this run.

    Raises:
        FileNotFoundError: As in `load`, on every rank if on one.
        ValueError: As in `load`, on every rank if on one; or the two are of different shapes.
        SettingsError: Ranks hold different copies of that run.
    """
    loaded = list[Method]()

    def find() -> Path | None:
        loaded.append(checkpoint.load(path))
        given = Path(path)
        return given if (given / "progress.json").exists() else checkpoint.latest(given)

    device = next((p.device for p in method.parameters()), torch.device("cpu"))
    remedy = f"They hold different copies of {path}: give all ranks the same one."
    _alike(find, device, what="start", refused="its start", remedy=remedy)
    old, own = ranks.full_tensors(loaded[0].state_dict()), method.state_dict()
    for name, part in method.named_modules():
        key = f"{name}.centers"
        if isinstance(part, PartialFC) and key in old:
            found = started_centers(old[key], part, loaded[0], images)
            old[key] = old[key] if found is None else found
    for name, value in own.items():  # parts of this method that the other run's need not have
        if name.startswith(method.drawn_anew):
            old.setdefault(name, value)
    ours, theirs = (
        {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
        for state in (own, old)
    )
    if odd := [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]:
        there, here = theirs.get(odd[0], "absent"), ours.get(odd[0], "absent")
        raise ValueError(
            f"The weights of {path} do not fit: {odd[0]} is {there} there, {here} here. Start from "
            "a run with the same backbone and method."
        )
    method.load_state_dict(old)


def _alike(
    find: Callable[[], Path | None], device: torch.device, *, what: str, refused: str, remedy: str
) -> Path | None:
    """Find a checkpoint on each rank; if one fails or finds another than the others, all raise."""
    error: Exception | None = None
    place: Path | None = None
    said = dict[str, Any]()
    try:
        place = find()
        said["newest checkpoint"] = None if place is None else place.name
        said["its checksums"] = None if place is None else contents.mark(place)
    except Exception as raised:  # of any kind: the other ranks would wait
        error = raised
    try:
        ranks.raise_together(0, error, device=device, what=what, refused=refused, **said)
    except ValueError as differs:
        if error is not None:
            raise
        raise SettingsError(f"{differs} {remedy}") from None
    return place


def _appears(file: Path) -> bool:
    """Return whether a file appears within `PATIENCE` seconds."""
    until = time.monotonic() + PATIENCE
    while not file.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
