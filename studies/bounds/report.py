"""The report of the bounds study: the certificates, their terms, and the theorems on the losses."""

import csv
import math
import re
from typing import Any

from marginlab.study import Run, literal
from marginlab.theory import rounded_up

from . import figures, over_seeds
from .figures import FORMS, GEOMETRY, series_of

SPACES = ("projector", "backbone")


def write(run: Run, chance: float) -> None:
    """Report the certificates at the end, the start of each condition, and the limiting terms.

    The theorems on the losses themselves follow.

    Args:
        run: The run.
        chance: The error of guessing.
    """
    chosen = run.settings
    recipe, monitor = chosen.recipe, chosen.monitor
    names = _names(chosen.methods)
    run.report.title = f"What is certified: {literal(recipe.data)}"
    run.report.lead = (
        f"{recipe.epochs} epochs of {recipe.images or 'all'} images; certified for {monitor.views} "
        f"views of {monitor.augmentation} beside the image, from {monitor.images} training images, "
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
        "images, image by image, or with fixed reaches, or by prototypes; `population` is Theorem "
        "1 for the distribution; each with confidence 0.95.",
        [{"method": method} for method in chosen.methods for _ in SPACES],
    )
    run.report.text(_words(run, names, chance))
    over_seeds.write(run, names)
    run.report.text("## While they train")
    run.report.figure(
        figures.curves(run, names),
        "Certified error of new images (dotted: their error), and of training images, sharpened "
        "and as printed; means over seeds, as in the figures below.",
    )
    run.report.table(
        _beginnings(run, names),
        "The first epoch at which a form certifies something of embeddings, and that from which on "
        "it does, with the first seed.",
        [{"method": method, "seed": chosen.seeds[0]} for method in names],
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
        figures.panels(run, names, terms, captions),
        "At the best (delta, epsilon) of Theorem 1 under (T'), or where that comes nearest.",
    )
    shown = {
        (quantity, at): look
        for (quantity, at), look in GEOMETRY.items()
        if run.series(quantity, space="projector", at=at).epochs
    }
    if shown:
        run.report.text("## The geometry of the embeddings")
        figure = figures.panels(
            run, names, tuple(shown), tuple(title for title, _ in shown.values())
        )
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
        figures.panels(run, names, three, captions),
        "Theorem 3: what InfoNCE's L_2 says of the centers. 1 holds of every encoder.",
    )
    caption = (
        "Theorem 4: L_2 against tau', the two parts that cannot both vanish; and its bound in "
        "units of r^2 (dashed: 1 holds of every encoder)."
    )
    run.report.figure(figures.tension(run, names), caption)
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


def _said(value: float) -> str:
    return "" if math.isnan(value) else "-" if value >= 1 else rounded_up(value, 3)


def _words(run: Run, names: dict[str, str], chance: float) -> str:
    """Put the conclusions from the table in words."""
    lines = []
    for method in names:
        value = run.last("certified", space="projector", at="image_wise", method=method)
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
    return "\n".join(["Image by image, on embeddings of new images:", "", *lines])


def _beginnings(run: Run, names: dict[str, str]) -> list[dict[str, Any]]:
    table = []
    for method, name in names.items():
        entry: dict[str, Any] = {"method": name}
        for form, (quantity, at) in FORMS.items():
            x, y = series_of(run, quantity, at, method=method, seed=run.settings.seeds[0])
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
