"""The page around a report's sections: one file that needs no network, with its numbers' source."""

import html
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from marginlab.files import encoded
from marginlab.settings import flat
from marginlab.study.display import clock
from marginlab.study.folder import now, origin
from marginlab.study.markup import inline
from marginlab.study.panel import LIMIT, carried, script, table
from marginlab.study.report import Report
from marginlab.study.run import Run

COLORS = (
    "#2458a6",
    "#d1622b",
    "#2e8b57",
    "#8e4aa3",
    "#b8892b",
    "#3a9fb5",
    "#c23b5a",
    "#6b6f76",
    "#7a9a2e",
    "#503b9a",
)
# the browser refuses whatever is not in the file itself; plotly draws some kinds of traces by eval
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)


def template() -> Any:
    """Return the style of figures: white, thin axes, the page's letters, ten distinct colours."""
    import plotly.graph_objects as go

    axis = {
        "showline": True,
        "linecolor": "#8a919c",
        "gridcolor": "#e8eaee",
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": "#8a919c",
    }
    axis |= {"automargin": True}
    return go.layout.Template(
        layout={
            "font": {
                "family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
                "size": 13,
                "color": "#20242b",
            },
            "title": {"font": {"size": 15}, "x": 0.0, "xanchor": "left", "xref": "paper"},
            "paper_bgcolor": "#ffffff",
            "plot_bgcolor": "#ffffff",
            "colorway": COLORS,
            "xaxis": axis,
            "yaxis": axis,
            "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
            "hoverlabel": {"font": {"size": 12}},
            "legend": {"bgcolor": "rgba(255,255,255,0.8)"},
            "colorscale": {"sequential": "Viridis"},
        }
    )


def sections(run: Run) -> None:
    """Have the study write its sections into the run's report."""
    if hasattr(run.study.module, "report"):
        import plotly.io

        plotly.io.templates["marginlab"] = template()
        plotly.io.templates.default = "marginlab"
        run.study.module.report(run)


def render(run: Run, command: str, state: str, trouble: str = "") -> str:
    """Render the whole page.

    Args:
        run: The run.
        command: The command that starts the run again.
        state: The versions of the cells that the page shows.
        trouble: The traceback of a report that failed.
    """
    report, about = run.report, origin(run.folder)
    missing = [cell for cell in run.cells if not cell.finished]
    devices = list(dict.fromkeys(row["device"] for row in run.times)) or ["no cell is finished yet"]
    versions = released(about)
    seconds = sum(row["seconds"] for row in run.times)
    facts = {
        "Made": now(),
        "Command": f"<code>{html.escape(command)}</code>",
        "Device": "; ".join(html.escape(device) for device in devices),
        "Versions": html.escape(versions),
        "Cells": f"{len(run.cells) - len(missing)} of {len(run.cells)}"
        + (f", computed in {clock(seconds)} in all" if seconds else ""),
        "Folder": f"<code>{html.escape(str(run.folder))}</code>",
    }
    settings = "".join(
        f"<tr><td><code>{html.escape(name)}</code></td>"
        f"<td><code>{html.escape(repr(value))}</code></td></tr>"
        for name, value in flat(run.settings).items()
    )
    source = (
        f"Every number of ours on this page was measured by <code>{html.escape(command)}</code>, "
        f"with the settings above, on {'; '.join(html.escape(device) for device in devices)}, with "
        f"{html.escape(versions)}, and stands in <code>results.csv</code> beside this file. "
        "Published figures, where there are any, are named as such, with their source."
    )
    details = (
        f"<details><summary>Settings</summary><div "
        f'class="scroll"><table><tbody>{settings}</tbody></table></div></details>'
    )
    report.sections.append(table(run))

    def page(room: int) -> str:
        return document(
            report,
            f"marginlab study · {run.study.name}",
            facts,
            source,
            state=state,
            details=details,
            notice=_notice(run, missing, trouble),
            data=script(carried([run], [command], room, report.pictures)),
        )

    return page(LIMIT - len(encoded(page(0))))


def released(about: Mapping[str, Any]) -> str:
    """Write the versions that a run was made with, and those that it went on with."""
    return "; later ".join(
        ", ".join(f"{name} {version}" for name, version in v.items())
        for v in (about["versions"], *about["later_versions"])
    )


def document(
    report: Report,
    kind: str,
    facts: Mapping[str, str],
    source: str,
    *,
    state: str = "",
    details: str = "",
    notice: str = "",
    data: str = "",
) -> str:
    """Render a page of any report that opens without a network, and asks nothing of one.

    Args:
        report: Title, lead and sections.
        kind: The line above the title.
        facts: Names and HTML of what stands in the head: command, device, versions.
        source: HTML of the foot: where the numbers come from.
        state: The versions of the cells that the page shows.
        details: HTML at the end of the head.
        notice: HTML before the sections.
        data: The element of the page's cells, as `panel.script` returns it.
    """
    files = resources.files("marginlab.study")
    style = files.joinpath("report.css").read_text(encoding="utf-8")
    wide = ' class="wide"' if any('class="pair"' in section for section in report.sections) else ""
    code = "".join(files.joinpath(f"{name}.js").read_text("utf-8") for name in ("csv", "report"))
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            'content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f'<meta name="marginlab-cells" content="{html.escape(state, quote=True)}">',
            f"<title>{html.escape(report.title)}</title>",
            f"<style>{style}</style>",
            plotly_script() if report.figures else "",
            f"</head><body><main{wide}>",
            f'<header><p class="kind">{html.escape(kind)}</p><h1>{inline(report.title)}</h1>',
            f'<p class="lead">{inline(report.lead)}</p>' if report.lead else "",
            '<dl class="facts">',
            "".join(f"<div><dt>{name}</dt><dd>{fact}</dd></div>" for name, fact in facts.items()),
            "</dl>",
            f"{details}</header>",
            notice,
            *report.sections,
            f"<footer><p>{source}</p></footer>",
            "</main>",
            data or script({"name": kind.split()[-1], "columns": {}, "runs": []}),
            f"<script>{code}</script>",
            "</body></html>\n",
        ]
    )


def _notice(run: Run, missing: list[Any], trouble: str) -> str:
    parts = []
    if missing:
        items = []
        for cell in missing:
            why = "not computed yet"
            if cell.failure_file.is_file():
                lines = cell.failure_file.read_text(encoding="utf-8").strip().splitlines()
                why = f"failed: <code>{html.escape((lines or [''])[-1])}</code>"
            items.append(f"<li><code>{html.escape(cell.id)}</code> {why}</li>")
        parts.append(
            f"<p><b>{len(missing)} of {len(run.cells)} cells are missing.</b> What follows is made "
            "of the others.</p>"
        )
        parts.append(f"<ul>{''.join(items)}</ul>")
    if trouble:
        parts.append(
            "<p><b>The study's report failed</b> after what is shown "
            f"here.</p><pre>{html.escape(trouble)}</pre>"
        )
    return f'<aside class="notice">{"".join(parts)}</aside>' if parts else ""


def plotly_script() -> str:
    """Return the script of all figures of a page, which asks nothing of a network."""
    import plotly.offline

    # Settings for all figures: no address to send a figure to, and none to fetch map shapes from.
    config = json.dumps(
        {
            "plotlyServerURL": "",
            "topojsonURL": "",
            "showSendToCloud": False,
            "showEditInChartStudio": False,
        }
    )
    return (
        f"<script>{plotly.offline.get_plotlyjs()}</script>"
        f"<script>Plotly.setPlotConfig({config});</script>"
    )
