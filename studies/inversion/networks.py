"""The networks of a run, the judge and its people, and their embeddings.

Each function that has a `folder` is an argument of `cell.once`: its other arguments are settings,
texts and numbers, and its result is what JSON holds. A network is named by the folder of its
training in `once/`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marginlab import settings
from marginlab.encoding import encode
from marginlab.methods import Method
from marginlab.statistics import unit_vectors
from marginlab.train import Monitor, fit, load

from . import people

Say = Callable[[str], None]


def parts_of(chosen: Any) -> people.Parts:
    """Return the parts of the data that the settings name."""
    recipe = chosen.recipe
    least, most = chosen.least_images, chosen.identities
    return people.parts_of(recipe.data, recipe.image_size, least, chosen.unseen_images, most)


def recipe_of(chosen: Any, loss: str, seed: int) -> Any:
    """Return the recipe of a network that is inverted."""
    method = settings.describe("MarginClassifier", margin=loss, scale=chosen.scale, dim=chosen.dim)
    return settings.replaced(chosen.recipe, {"method": method, "seed": seed})


def train(chosen: Any, loss: str, seed: int, *, say: Say, folder: Path) -> str:
    """Train a network that is inverted, on its half of the images."""
    parts = parts_of(chosen)
    halves = (parts.own, parts.judge)
    fit(recipe_of(chosen, loss, seed), folder / "run", Monitor.none(), data=halves, say=say)
    return folder.name


def train_judge(chosen: Any, *, say: Say, folder: Path) -> dict[str, Any]:
    """Train the judge on the other half; find the people among whom it is good enough.

    Returns:
        The folder, the number of identities among whom its rank-1 on the first half, which it has
        not seen, reaches `judged`, that rank-1, and the rank-1 among all.
    """
    parts = parts_of(chosen)
    fit(chosen.judge, folder / "run", Monitor.none(), data=(parts.judge, parts.own), say=say)
    judge = load(folder / "run")
    C = len(parts.own.classes)
    center = gallery(embeddings(judge, parts.judge.images), parts.judge.labels, C)
    seen, labels = embeddings(judge, parts.own.images), parts.own.labels
    # the first other identity that is as near: among fewer identities than that, rank 1
    rival = torch.full((len(labels),), C)
    for rows in torch.arange(len(labels)).split(1024):
        cosines = unit_vectors(seen[rows]) @ center.T
        as_near = cosines >= cosines.gather(1, labels[rows, None])
        as_near[torch.arange(len(rows)), labels[rows]] = False
        rival[rows] = torch.where(as_near.any(1), as_near.int().argmax(1), C)
    numbers = list(range(min(chosen.least_people, C), C + 1))
    found = [float((rival[labels < n] >= n).double().mean()) for n in numbers]
    enough = [k for k, rate in enumerate(found) if rate >= chosen.judged]
    k = enough[-1] if enough else 0
    return {"folder": folder.name, "people": numbers[k], "rank1": found[k], "all": found[-1]}


def embeddings(method: Method, images: Any) -> Tensor:
    """Return the embeddings (N, D) of images under the method's head."""
    return encode(lambda part: method.project(method.encode(part)), images)


def gallery(features: Tensor, labels: Tensor, C: int, without: Tensor | None = None) -> Tensor:
    """Return the mean direction of each of C identities, some images left out."""
    kept = torch.ones(len(labels), dtype=torch.bool)
    if without is not None:
        kept[without] = False
    sums = torch.zeros(C, features.shape[1]).index_add(
        0, labels[kept], unit_vectors(features[kept])
    )
    return unit_vectors(sums)


def embed(chosen: Any, network: str, parts: tuple[str, ...], *, folder: Path) -> str:
    """Keep a network's embeddings of some parts of the data."""
    found, method = parts_of(chosen), load(folder.parent / network / "run")
    kept = {name: embeddings(method, getattr(found, name).images).numpy() for name in parts}
    np.savez(folder / "embeddings.npz", **kept)
    return folder.name


def embedded(folder: Path, name: str) -> dict[str, Tensor]:
    """Read what `embed` kept."""
    with np.load(folder.parent / name / "embeddings.npz") as kept:
        return {key: torch.from_numpy(kept[key]) for key in kept.files}
