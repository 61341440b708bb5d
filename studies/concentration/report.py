"""The report of the concentration study, in the order of its story.

It tells what augmentations do, how concentrated their views are, what encoders learn, how well the
one predicts the other, what the paper published, and what follows.
"""

from typing import Any

from marginlab.study import Run, literal

from . import beside, section_data, section_encoders
from .findings import findings, in_words
from .labels import label
from .shared import Encoded, Kept, by_label, errors_of

LETTERS = "(a) resized crop, (b) Gaussian blur, (c) grey, (d) colour jitter, (e) horizontal flip"
# of delta_max, beside the setting's, at which the correlation is looked at again
SHARES = (0.3, 0.7)


def write(run: Run, pixels: Kept, features: Encoded) -> None:
    """Write the report.

    `pixels` holds the results of `concentrate` by (grid, letters, strength), `features` those of
    `encoded`, by method and seed too.
    """
    chosen, report = run.settings, run.report
    n, blocks = (
        min(found["n"] for found in pixels.values()),
        min(found["blocks"] for found in pixels.values()),
    )
    report.title = (
        f"Concentration of augmented data and contrastive learning: {literal(chosen.recipe.data)}"
    )
    report.lead = (
        "An augmentation is a (sigma, delta)-augmentation if in every class a part of at least "
        "sigma of the images lies within an augmented distance d_A of delta of each other (Huang "
        "et al., ICLR 2023, definition 1): the smaller 1 - sigma, the sharper the concentration. "
        "The paper gives no estimator of it. Here 1 - sigma is estimated for each augmentation on "
        f"{blocks} disjoint block{'s' if blocks > 1 else ''} of n = {n} images a class with V = "
        f"{chosen.views} views of each, every number beside a null control, and backbones are "
        f"trained with each: {LETTERS}."
    )
    section_data.pictures(run, pixels)
    section_data.concentration(run, pixels)
    section_encoders.learnt(run, features)
    for method in chosen.methods:
        section_encoders.prediction(run, method, pixels, features)
    beside.write(run)
    _findings(run, pixels, features)


def _findings(run: Run, pixels: Kept, features: Encoded) -> None:
    named = by_label(pixels)
    for method in run.settings.methods:
        found_by: dict[str, list[dict[str, Any]]] = {}
        for (grid, letters, strength, of, seed), found in features.items():
            # the grid an augmentation is taken from
            first = by_label({key[:3]: key for key in features})
            if of == method and first[label(letters, strength)][0] == grid:
                found_by.setdefault(label(letters, strength), []).append(found)
            del seed
        said = findings(named, found_by, errors_of(run, method), SHARES)
        run.report.text(f"## What follows: {literal(method)}\n\n{in_words(said)}")
        run.report.table(
            [finding._asdict() for finding in said],
            "Statements and verdicts, made from the numbers above. Of two augmentations one is "
            "called smaller if the 95 % interval of the paired difference (over blocks of images, "
            "or over seeds) says so.",
        )
