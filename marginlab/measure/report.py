"""The report of a measurement: one page that opens without a network."""

import html
import platform
from collections.abc import Sequence

from marginlab import machine
from marginlab.measure.rows import SHUFFLED, Measured, stacked
from marginlab.study import Report, literal
from marginlab.study.folder import now, versions
from marginlab.study.page import document, template

_ERRORS = ("knn_error", "probe_error", "nearest_center_error")
_SAID = (
    "Geometry is that of the test images. The classifiers learn from the training images and are "
    "judged on the test images. Nothing was trained but the linear probe. Features of length 1 "
    "are measured where a measure says so.\n\nThe column `shuffled classes` is the null control: "
    "the same features with the classes of their images permuted. A number that is not far from "
    "its control says nothing of the classes. Numbers without one need no classes."
)
_CERTIFIED = (
    "A certificate is of the nearest-center classifier, or of the nearest of some prototypes. "
    "Forms of these images are exact for the training images and views at hand. Those of new "
    "images and of the population are limits for other images, from the test images, and hold if "
    "the encoder was neither trained on them nor chosen by them. 1 certifies nothing."
)


def page(found: Sequence[Measured], name: str, data: str, command: str) -> str:
    """Render the page.

    Args:
        found: What was measured, a space each.
        name: The features or the encoder.
        data: The images, or nothing.
        command: The command that measures again.
    """
    of = f" on {literal(data)}" if data else ""
    report = Report(f"Measures of {literal(name)}{of}", "Every measure that needs only features "
                    "and classes, its null control, and what the theory certifies.")  # fmt: skip
    report.text(_SAID)
    for measured in found:
        space = measured.rows[0].space
        report.text(f"## {literal(space)}")
        report.figure(_errors(measured), "Errors of test images, beside those of shuffled classes.")
        report.table(
            [
                {key: value for key, value in row.items() if key != "space"}
                for row in stacked(measured.rows)
                if row["quantity"] != "certified"
            ],
            f"Measures in the space {literal(space)}; low and high are the ends of intervals.",
        )
        if measured.certificate is None:
            report.text("One view of each image allows no certificate.")
            continue
        report.text(f"### Certificates\n\n{_CERTIFIED}")
        report.table(measured.certificate.table(), "Each form at its best point.")
        report.figure(measured.certificate.figure(), "What the forms certify.")
    shown = ", ".join(f"{key} {value}" for key, value in versions().items())
    facts = {
        "Made": now(),
        "Command": f"<code>{html.escape(command)}</code>",
        "Device": html.escape(machine.device()),
        "System": html.escape(platform.platform()),
        "Versions": html.escape(shown),
    }
    source = (
        f"Every number was measured by <code>{html.escape(command)}</code> and stands in "
        "<code>measures.csv</code> beside this file."
    )
    return document(report, "marginlab measure", facts, source)


def _errors(measured: Measured) -> object:
    import plotly.graph_objects as go

    rows = [row for row in stacked(measured.rows) if row["quantity"] in _ERRORS]
    names = [f"{row['quantity']} {row['at']}".strip() for row in rows]
    figure = go.Figure(layout={"template": template(), "barmode": "group", "height": 360})
    above = [max(row["high"] - row["value"], 0.0) for row in rows]
    below = [max(row["value"] - row["low"], 0.0) for row in rows]
    error = {"type": "data", "array": above, "arrayminus": below}
    figure.add_bar(x=names, y=[row["value"] for row in rows], error_y=error, name="classes")
    figure.add_bar(x=names, y=[row[SHUFFLED] for row in rows], name=SHUFFLED)
    return figure
