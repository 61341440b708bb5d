"""The report of a purification: one page that opens without a network."""

import html

import torch

from marginlab.data import ImageSet
from marginlab.data.sheet import contact_sheet
from marginlab.purify.conflicts import Conflicts
from marginlab.purify.purification import Purification
from marginlab.study import Report, literal
from marginlab.study.folder import versions
from marginlab.study.page import COLORS, document, template

_BIN = 2.5  # degrees
_ROWS = 20  # rows of a table


def worst_images(found: Purification, count: int) -> torch.Tensor:
    """Return the numbers of the images that are furthest from their class, the furthest first."""
    return found.angle.argsort(descending=True, stable=True)[:count]


def worst_sheet(found: Purification, images: ImageSet, count: int) -> torch.Tensor:
    """Return a contact sheet of the furthest images, with their angles and class names."""
    rows = worst_images(found, count)
    order = rows.argsort()
    pictures = images.images[rows[order].to(images.images.device)]  # files in their order
    held = torch.empty_like(pictures)
    held[order.to(held.device)] = pictures
    captions = [f"{found.angle[i]:.0f} {images.classes[found.labels[i]]}" for i in rows.tolist()]
    return contact_sheet(held, captions, enlarge=max(1, 96 // held.shape[3]))


def page(
    found: Purification,
    images: ImageSet,
    *,
    command: str,
    worst: int = 48,
    pairs: Conflicts | None = None,
) -> str:
    """Return the report as a page of HTML.

    Args:
        found: The purification.
        images: The images that were judged.
        command: The command that makes the report again.
        worst: Number of images on the contact sheet.
        pairs: Conflicts between classes, if these were looked for.
    """
    report = Report(f"Purification of {literal(images.name)}")
    before, after = found.counts.T
    N, kept = len(found.keep), int(found.keep.sum())
    report.lead = (
        f"{kept:,} of {N:,} images stay ({kept / N:.1%}), in {int((after > 0).sum()):,} of "
        f"{int((before > 0).sum()):,} classes. An image stays if its angle to the dominant "
        f"sub-center of its class is below {found.threshold.value:.4g} degrees: "
        f"{literal(found.threshold.reason)}."
    )
    _histogram(report, found)
    rows = []
    for name, part in (("dominant", found.is_dominant), ("another", ~found.is_dominant)):
        stay = int((part & found.keep).sum())
        rows.append({"nearest sub-center": name, "images": int(part.sum()), "stay": stay})
    report.table(rows, "Images by their nearest sub-center.")
    share = torch.where(before > 0, after / before.clamp(min=1), 2.0)
    least = share.argsort(stable=True)[:_ROWS].tolist()
    report.table(
        [
            {"class": found.classes[c], "images": int(before[c]), "stay": int(after[c])}
            | {"votes": " ".join(str(v) for v in found.votes[c].tolist())}
            for c in least
            if before[c]
        ],
        "The classes that keep the smallest share, with the votes for each sub-center.",
    )
    sheet = worst_sheet(found, images, worst).permute(1, 2, 0).numpy()
    report.images([(sheet, "angle in degrees, and the label")], "Images furthest from their class")
    if pairs is not None:
        named = zip(pairs.first.tolist(), pairs.second.tolist(), pairs.angle.tolist(), strict=True)
        rows = [
            {"class": found.classes[a], "other class": found.classes[b], "angle": angle}
            for a, b, angle in list(named)[:_ROWS]
        ]
        report.table(rows, f"{len(pairs.first):,} pairs of near classes, the nearest first.")
    shown = ", ".join(f"{key} {value}" for key, value in versions().items())
    facts = {"Command": f"<code>{html.escape(command)}</code>", "Versions": html.escape(shown)}
    source = (
        "Each image's angle stands in <code>images.csv</code>, and the votes of each class in "
        "<code>classes.csv</code>, beside this file."
    )
    return document(report, "marginlab purify", facts, source)


def _histogram(report: Report, found: Purification) -> None:
    import plotly.graph_objects as go

    figure = go.Figure(layout={"template": template(), "barmode": "stack"})
    bins = (found.angle / _BIN).long().clamp(max=int(180 / _BIN) - 1)
    middles = [(_BIN * (b + 0.5)) for b in range(int(180 / _BIN))]
    for name, part, color in (
        ("nearest to the dominant sub-center", found.is_dominant, COLORS[0]),
        ("nearest to another sub-center", ~found.is_dominant, COLORS[1]),
    ):
        counts = torch.bincount(bins[part], minlength=len(middles)).tolist()
        figure.add_bar(x=middles, y=counts, name=name, marker_color=color, width=_BIN)
    figure.add_vline(x=found.threshold.value, line_dash="dash", line_color="#20242b")
    figure.update_xaxes(title="angle to the dominant sub-center, degrees")
    figure.update_yaxes(title="images")
    report.figure(figure, "Angles of all images; those right of the line are dropped.")
