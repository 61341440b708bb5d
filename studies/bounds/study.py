"""Do the theorems certify encoders trained by contrastive, supervised and margin losses?

The study asks what the theorems certify of such encoders, and which of their terms is to blame
where they certify nothing. The supervised losses are supervised-contrastive ones.
"""

import csv
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from marginlab import methods as rooms
from marginlab import models, settings
from marginlab.study import Cell, Quantity, Run, Series, literal
from marginlab.theory import rounded_up
from marginlab.train import Monitor, Recipe, fit
from marginlab.train import check as check_data

# title of a form in the report: quantity, at
FORMS = {
    "new": ("certified", "new_images"),
    "P": ("certified", "P"),
    "T": ("certified", "T"),
    "T'": ("certified", "T_lengths"),
    "per class": ("certified", "per_class"),
    "fixed centers": ("certified", "fixed_centers"),
    "P, test": ("certified_test", "P"),
    "T, test": ("certified_test", "T"),
    "T', test": ("certified_test", "T_lengths"),
}
SPACES = ("projector", "backbone")
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
# what the panels on geometry show of the measures that a run has, and whether their axis is
# logarithmic
GEOMETRY = {
    ("NeuralCollapse", "NC1"): ("NC1, 0 at collapse", True),
    ("ClassVariance", "CDNV"): ("CDNV", True),
    ("Uniformity", "L_unif"): ("uniformity, least when even", False),
    ("EffectiveRank", "RankMe"): ("RankMe, directions used", True),
    ("AugmentationConfusion", "ACR"): ("ACR, confused by views", False),
}


@dataclass(frozen=True)
class Settings:
    """Settings, by default the preset `default`: five silhouettes, six methods.

    It takes some minutes on two cores.
    """

    data: str = "shapes-5"
    """Training images: shapes-5, shapes, digits, cifar10, ..."""
    image_size: int = 0
    """Resize images to this side; 0 keeps their own."""
    images: int = 500
    """Training images, class-balanced; 0 takes all."""
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
    """Each method is trained with its own,"""
    certified: str = "Augmentation('e')"
    """and all are certified for views of this one."""
    backbone: str = "Backbone('resnet18', stem='strided', width=0.25)"
    schedule: str = "WarmupCosine(warmup=0.05)"
    epochs: int = 30
    batch: int = 50
    precision: str = "float32"
    seeds: tuple[int, ...] = (0,)
    measure_every: int = 5
    """Epochs between measurements; the untrained and the trained network always are measured."""
    monitored: int = 250
    """Training images that certify, and test images that are certified,"""
    views: int = 15
    """in so many views beside the image itself."""
    bank: int = 500
    """Training images for kNN, and as many test images; 0 takes all."""
    measures: tuple[str, ...] = (
        "NeuralCollapse()",
        "ClassVariance()",
        "Uniformity()",
        "EffectiveRank()",
        "AugmentationConfusion()",
    )
    """More of marginlab.measures, of the test images."""


def check(chosen: Settings) -> str:
    """Refuse what cannot be trained; gives a digest of the images."""
    for name in ("optimizers", "augmentations"):
        if len(getattr(chosen, name)) != len(chosen.methods):
            raise settings.SettingsError(
                f"There are {len(chosen.methods)} methods, but {len(getattr(chosen, name))} "
                f"{name}. Give one for each."
            )
    _monitor(chosen)
    digest = ""
    for cell in cells(chosen):
        recipe = _recipe(cell, chosen)
        train, test = check_data(recipe)
        settings.make(
            recipe.method,
            rooms,
            rooms.Method,
            settings.make(recipe.backbone, models, models.Backbone),
            offered={"num_classes": len(train.classes)},
        )
        digest = f"{train.digest()} {test.digest()}"
    return digest


def cells(chosen: Settings) -> list[dict[str, Any]]:
    """A method and a seed."""
    return [{"method": method, "seed": seed} for seed in chosen.seeds for method in chosen.methods]


def _recipe(cell: Any, chosen: Settings) -> Recipe:
    place = chosen.methods.index(cell["method"])
    same = ("data", "image_size", "images", "backbone", "schedule", "epochs", "batch", "precision")
    own = {"optimizer": chosen.optimizers[place], "augmentation": chosen.augmentations[place]}
    return Recipe(
        **{name: getattr(chosen, name) for name in same},
        **own,
        method=cell["method"],
        seed=cell["seed"],
    )


def _monitor(chosen: Settings) -> Monitor:
    return Monitor(
        every=chosen.measure_every,
        images=chosen.monitored,
        views=chosen.views,
        bank=chosen.bank,
        measures=chosen.measures,
        augmentation=chosen.certified,
        bounds=True,
    )


def run(cell: Cell) -> None:
    """Train, and record all that the monitor measured on the way."""
    trained = cell.once(
        "training",
        functools.partial(_train, say=cell.say),
        _recipe(cell, cell.settings),
        _monitor(cell.settings),
    )
    for row in trained["rows"]:
        cell.record(**row)
    cell.record("images_per_second", trained["images_per_second"])


def _train(
    recipe: Recipe, monitor: Monitor, *, say: Callable[[str], None], folder: Path
) -> dict[str, Any]:
    done = fit(recipe, folder / "run", monitor, say=say, precision_in=folder.parent)
    rows = [row._asdict() for row in done.rows]
    return {"rows": rows, "images_per_second": done.images_per_second}


# --- the report -----------------------------------------------------------------------------------


def report(run: Run) -> None:
    """Report the certificates at the end, the start of each condition, and the limiting terms.

    The theorems on the losses themselves follow.
    """
    chosen: Settings = run.settings
    names = _names(chosen.methods)
    run.report.title = f"What is certified: {literal(chosen.data)}"
    run.report.lead = (
        f"{chosen.epochs} epochs of {chosen.images or 'all'} images; certified for {chosen.views} "
        f"views of {chosen.certified} beside the image, from {chosen.monitored} training images, "
        "of them and of as many test images. Embeddings are what the loss sees; backbone features "
        "follow a ReLU."
    )
    run.report.table(
        [
            {
                "method": names[method],
                "features": space,
                "error of new images": run.last("new_error", space=space, method=method),
                **{
                    form: _said(run.last(quantity, space=space, at=at, method=method))
                    for form, (quantity, at) in FORMS.items()
                },
            }
            for method in chosen.methods
            for space in SPACES
        ],
        f"Certified error after the last epoch, mean over {len(chosen.seeds)} seed(s). P, T, T': "
        "Theorem 1 as printed, by distances, with lengths; a dash certifies nothing. Of the "
        "training images, or, `test`, of the test images with their own centers: exact for these "
        "images and views. `new` is of all images like the test images, by centers of training "
        "images, with confidence 0.95.",
    )
    run.report.text(_words(run, names, 1 - 1 / _classes(run)))
    run.report.text("## While they train")
    run.report.figure(
        _curves(run, names),
        "Certified error of new images (dotted: their error), and of training images, sharpened "
        "and as printed.",
    )
    run.report.table(
        _beginnings(run, names),
        "The first epoch at which a form certifies something of embeddings, and that from which on "
        "it does.",
    )
    run.report.text("## Which term is to blame")
    terms = (
        *((f"certificate_{term}", "T_lengths") for term in ("outside", "R_epsilon", "rho")),
        ("divergence_max", ""),
    )
    captions = (
        "1 - sigma (concentration)",
        "R_epsilon (alignment)",
        "D, in the condition",
        "largest mu_k . mu_l (divergence)",
    )
    run.report.figure(
        _panels(run, names, terms, captions),
        "At the best (delta, epsilon) of Theorem 1 under (T'), or where that comes nearest.",
    )
    shown = {
        (quantity, at): look
        for (quantity, at), look in GEOMETRY.items()
        if run.series(quantity, space="projector", at=at).epochs
    }
    if shown:
        run.report.text("## The geometry of the embeddings")
        figure = _panels(run, names, tuple(shown), tuple(title for title, _ in shown.values()))
        for column, (_, logarithmic) in enumerate(shown.values(), 1):
            if logarithmic:
                figure.update_yaxes(type="log", dtick=1, row=1, col=column)
        run.report.figure(
            figure,
            "Of the views of test images. NC1 and CDNV are what the certificates of margin losses "
            "feed on.",
        )
    run.report.text("## The theorems on the losses")
    three = tuple((f"theorem_3_{side}", "") for side in ("mean_product", "all_terms", "printed"))
    captions = ("mean product of two centers", "bounded with all terms", "as printed")
    run.report.figure(
        _panels(run, names, three, captions),
        "Theorem 3: what InfoNCE's L_2 says of the centers. 1 holds of every encoder.",
    )
    caption = (
        "Theorem 4: L_2 against tau', the two parts that cannot both vanish; and its bound in "
        "units of r^2 (dashed: 1 holds of every encoder)."
    )
    run.report.figure(_tension(run, names), caption)
    with (run.home / "published.csv").open(encoding="utf-8") as file:
        run.report.text("## Published")
        run.report.table(
            list(csv.DictReader(file)),
            "kNN errors on CIFAR-10 after 800 epochs. Certificates of trained encoders are not "
            "published.",
        )


def _names(methods: tuple[str, ...]) -> dict[str, str]:
    """Name methods by their class or their training margin.

    Where two methods would share a name, the whole method is the name.
    """
    short = {}
    for method in methods:
        margin = re.search(r"""margin=(['"])(.+?)\1""", method)
        short[method] = margin[2] if margin else method.partition("(")[0]
    return {
        method: name if list(short.values()).count(name) == 1 else method
        for method, name in short.items()
    }


def _classes(run: Run) -> int:
    chosen: Settings = run.settings
    return len(check_data(_recipe(cells(chosen)[0], chosen))[0].classes)


def _said(value: float) -> str:
    return "" if math.isnan(value) else "-" if value >= 1 else rounded_up(value, 3)


def _words(run: Run, names: dict[str, str], chance: float) -> str:
    """Put the conclusions from the table in words."""
    lines = []
    for method in names:
        value = run.last("certified", space="projector", at="new_images", method=method)
        error = run.last("new_error", space="projector", method=method)
        if value < min(0.5, chance):
            said = (
                f"is certified: its error of new images is at most {rounded_up(value, 3)}, and "
                f"{error:.3f} was seen"
            )
        elif value < 1:
            said = (
                f"is certified for {rounded_up(value, 3)} only, which guessing ({chance:.2f}) or a "
                f"coin would nearly do; {error:.3f} was seen"
            )
        else:
            said = f"is not certified, although its error of new images is {error:.3f}"
        lines.append(f"- **{literal(names[method])}** {said}.")
    return "\n".join(["By the form with fixed centers, on embeddings of new images:", "", *lines])


def _series(run: Run, method: str, quantity: str, at: str = "") -> Series:
    """Return a quantity of embeddings over the training with the first seed."""
    seed = run.settings.seeds[0]
    return run.series(quantity, space="projector", at=at, method=method, seed=seed)


def _curves(run: Run, names: dict[str, str]) -> go.Figure:
    titles = (
        "new images, fixed centers",
        "training images, Theorem 1 (T')",
        "the same, as printed (P)",
    )
    figure = make_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.06)
    for number, (method, name) in enumerate(names.items()):
        line = {"color": _color(number)}
        for column, form in enumerate(("new", "T'", "P"), 1):
            x, y = _series(run, method, *FORMS[form])
            figure.add_scatter(
                x=x,
                y=y,
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                mode="lines+markers",
                line=line,
                row=1,
                col=column,
            )
        x, y = _series(run, method, "new_error")
        figure.add_scatter(
            x=x,
            y=y,
            name=name,
            legendgroup=name,
            showlegend=False,
            line=line | {"dash": "dot"},
            row=1,
            col=1,
        )
    return (
        figure.update_xaxes(title="epoch")
        .update_yaxes(range=[0, 1.05])
        .update_annotations(font_size=12)
        .update_layout(height=420)
    )


def _panels(
    run: Run, names: dict[str, str], shown: tuple[tuple[str, str], ...], titles: tuple[str, ...]
) -> go.Figure:
    """Plot quantities over training: `shown` holds the quantity and `at` of each panel."""
    figure = make_subplots(1, len(shown), subplot_titles=titles, horizontal_spacing=0.06)
    for number, (method, name) in enumerate(names.items()):
        for column, (quantity, at) in enumerate(shown, 1):
            x, y = _series(run, method, quantity, at)
            look = {
                "mode": "lines+markers",
                "line": {"color": _color(number)},
                "legendgroup": name,
                "showlegend": column == 1,
            }
            figure.add_scatter(x=x, y=y, name=name, **look, row=1, col=column)
    return (
        figure.update_xaxes(title="epoch")
        .update_annotations(font_size=12)
        .update_layout(height=380, legend={"orientation": "h", "y": -0.25})
    )


def _tension(run: Run, names: dict[str, str]) -> go.Figure:
    titles = ("L_2 and tau', over training", "bound of |mu_k . mu_l| in r^2; dotted: refined")
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.1)
    for number, (method, name) in enumerate(names.items()):
        line = {"color": _color(number)}
        L_2 = _series(run, method, "CrossCorrelation_L_2").values
        tau = _series(run, method, "tau").values
        figure.add_scatter(
            x=tau, y=L_2, name=name, legendgroup=name, mode="lines+markers", line=line, row=1, col=1
        )
        for bound, dash in (("printed", "solid"), ("refined", "dot")):
            x, y = _series(run, method, f"theorem_4_{bound}")
            style = {
                "name": f"{name}, {bound}",
                "legendgroup": name,
                "showlegend": False,
                "line": line | {"dash": dash},
            }
            figure.add_scatter(x=x, y=y, **style, row=1, col=2)
    figure.add_hline(y=1, line_dash="dash", row=1, col=2)
    figure.update_xaxes(title="tau'", type="log", dtick=2, row=1, col=1).update_yaxes(
        title="L_2", type="log", dtick=1, row=1, col=1
    )
    figure.update_xaxes(title="epoch", row=1, col=2).update_yaxes(type="log", dtick=1, row=1, col=2)
    return figure.update_annotations(font_size=12).update_layout(height=420)


def _beginnings(run: Run, names: dict[str, str]) -> list[dict[str, Any]]:
    table = []
    for method, name in names.items():
        entry: dict[str, Any] = {"method": name}
        for form, (quantity, at) in FORMS.items():
            x, y = _series(run, method, quantity, at)
            first = next((epoch for epoch, value in zip(x, y, strict=True) if value < 1), None)
            always = next(
                (epoch for place, epoch in enumerate(x) if all(value < 1 for value in y[place:])),
                None,
            )
            later = "not at the end" if always is None else str(always)
            entry[form] = (
                "never" if first is None else str(first) if first == always else f"{first}, {later}"
            )
        table.append(entry)
    return table


def _color(number: int) -> str:
    return ("#2458a6", "#3a9fb5", "#6b6f76", "#d1622b", "#2e8b57", "#8e4aa3", "#b8892b", "#c23b5a")[
        number % 8
    ]
