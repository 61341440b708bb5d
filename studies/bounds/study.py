"""Do the theorems certify encoders trained by contrastive, supervised and margin losses?

The study asks what the theorems certify of such encoders, and which of their terms is to blame
where they certify nothing. The supervised losses are supervised-contrastive ones.
"""

from dataclasses import dataclass
from typing import Any

from marginlab import settings
from marginlab.study import Cell, Quantity, Run
from marginlab.train import Monitor, Recipe, train_cell
from marginlab.train import check as check_data

from . import report as pages

headline = (
    Quantity("new_error", "projector"),
    *(Quantity("certified", "projector", at) for at in ("new_images", "T_lengths", "P")),
    Quantity("knn_error", "backbone"),
)
kept = (
    *("certified", "certified_test", "new_error", "alignment", "divergence_max"),
    *("companion", "view_error", "loss"),
    Quantity("knn_error", "backbone"),
    *(
        Quantity(f"certificate_{term}", "projector")
        for term in ("outside", "R_epsilon", "delta", "epsilon", "rho")
    ),
    *(
        Quantity(f"theorem_3_{side}", "projector")
        for side in ("mean_product", "all_terms", "printed")
    ),
    *(
        Quantity(f"theorem_4_{side}", "projector")
        for side in ("product", "refined", "printed", "length_deviation")
    ),
    *(Quantity(name, "projector") for name in ("InfoNCE_L_2", "CrossCorrelation_L_2", "tau")),
    Quantity("NeuralCollapse", "projector", "NC1"),
    Quantity("NeuralCollapse", "projector", "NC2"),
    Quantity("ClassVariance", "projector", "CDNV"),
    Quantity("Uniformity", "projector", "L_unif"),
    Quantity("EffectiveRank", "projector", "RankMe"),
    Quantity("AugmentationConfusion", "projector", "ACR"),
)


@dataclass(frozen=True)
class Settings:
    """Settings, by default the preset `default`: five silhouettes, six methods.

    It takes some minutes on two cores.
    """

    recipe: Recipe = Recipe(
        data="shapes-5",
        images=500,
        backbone="Backbone('resnet18', stem='strided', width=0.25)",
        epochs=30,
        batch=50,
    )
    """Each training; the grid replaces its method, optimizer, augmentation and seed."""
    monitor: Monitor = Monitor(
        every=5,
        images=250,
        views=15,
        bank=500,
        measures=(
            "NeuralCollapse()",
            "ClassVariance()",
            "Uniformity()",
            "EffectiveRank()",
            "AugmentationConfusion()",
        ),
        augmentation="Augmentation('e')",
        bounds=True,
    )
    """Measurements. Its training images certify, in so many views of its augmentation beside the
    image itself, and as many test images are certified.
    """
    methods: tuple[str, ...] = (
        "SimCLR(temperature=0.2, hidden=256, dim=64)",
        "BarlowTwins(hidden=256, dim=256)",
        "SimSiam(hidden=256, bottleneck=64)",
        "SupCon(temperature=0.5, hidden=256, dim=64)",
        "MarginClassifier(margin='ArcFace(0.5)', scale=8.0, dim=16)",
        "MarginClassifier(margin='CosFace(0.5)', scale=4.0, dim=16)",
    )
    """Classes of marginlab.methods."""
    optimizers: tuple[str, ...] = (
        "SGD(lr=0.1)",
        "SGD(lr=0.1)",
        "SGD(lr=0.05)",
        "SGD(lr=0.1)",
        "SGD(lr=0.1)",
        "SGD(lr=0.1)",
    )
    """Of each method."""
    augmentations: tuple[str, ...] = (
        "Augmentation('ade')",
        "Augmentation('ade')",
        "Augmentation('ade')",
        "Augmentation('e')",
        "Augmentation('e')",
        "Augmentation('e')",
    )
    """Each method is trained with its own; all are certified for views of the monitor's."""
    seeds: tuple[int, ...] = (0,)


def check(chosen: Settings) -> str:
    """Refuse what cannot be trained; gives a digest of the images."""
    for name in ("optimizers", "augmentations"):
        if len(getattr(chosen, name)) != len(chosen.methods):
            raise settings.SettingsError(
                f"There are {len(chosen.methods)} methods, but {len(getattr(chosen, name))} "
                f"{name}. Give one for each."
            )
    if not chosen.monitor.bounds:
        raise settings.SettingsError(
            "The study is about what the monitor's bounds say: monitor.bounds is true, not false."
        )
    digest = ""
    for cell in cells(chosen):
        recipe = recipe_of(cell, chosen)
        train, test = check_data(recipe)
        recipe.make_method(len(train.classes))
        digest = f"{train.digest()} {test.digest()}"
    return digest


def cells(chosen: Settings) -> list[dict[str, Any]]:
    """A method and a seed."""
    return [{"method": method, "seed": seed} for seed in chosen.seeds for method in chosen.methods]


def recipe_of(cell: Any, chosen: Settings) -> Recipe:
    """Return the recipe of a cell."""
    place = chosen.methods.index(cell["method"])
    changes = {
        "method": cell["method"],
        "optimizer": chosen.optimizers[place],
        "augmentation": chosen.augmentations[place],
        "seed": cell["seed"],
    }
    return settings.replaced(chosen.recipe, changes)


def run(cell: Cell) -> None:
    """Train, and record all that the monitor measured on the way."""
    train_cell(cell, recipe_of(cell, cell.settings), cell.settings.monitor)


def report(run: Run) -> None:
    """Report the certificates, the terms that limit them, and the theorems on the losses."""
    train, _ = check_data(recipe_of(run.cells[0], run.settings))
    pages.write(run, chance=1 - 1 / len(train.classes))
