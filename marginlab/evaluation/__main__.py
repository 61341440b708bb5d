"""`python -m marginlab.evaluation RUN PATH --protocol NAME --out FOLDER`: face recognition.

    --protocol lfw PATH        a folder with pairs.txt and images NAME/NAME_0001.jpg
    --protocol pack PATH       a verification pack, such as lfw.bin
    --protocol tinyface PATH   TinyFace's folder Testing_Set
    --protocol ijb PATH        a folder of IJB-B or IJB-C with meta/ and loose_crop/

RUN is the folder of a trained run. The output folder holds:

    results.csv    each number, with its 95 % interval over n identities where it has one
    roc.html       the ROC curve, which opens without a network (all but tinyface)
    worst.png      pairs that are judged worst: impostors that look alike, then genuine pairs that
                   do not (lfw and pack); probes that are misled most, each with its mate and the
                   entry that is found first (tinyface)

Embeddings are those under the head, f(x) + f(mirror of x), as published evaluations take them.
"""

import argparse
import math
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int64
from rich.console import Console
from rich.table import Table
from torch import Tensor

from marginlab import files
from marginlab.data.protocols import Faces, Identified, Paired, Pictures, read_protocol
from marginlab.data.sheet import contact_sheet, encode_picture
from marginlab.encoding import encode
from marginlab.evaluation.protocols import (
    Interval,
    Roc,
    TemplatePool,
    Templates,
    cosine_blocks,
    fold_interval,
    fold_verification,
    identification_intervals,
    pair_scores,
    roc,
    roc_intervals,
    search,
    val_at_far,
)
from marginlab.machine import check_device
from marginlab.methods import Method
from marginlab.settings import SettingsError
from marginlab.terminal import printable, run_command, say
from marginlab.train import load
from marginlab.train.recipe import recipe_of

_BATCH = 256  # pictures that are decoded and encoded at a time
_WORST = 12  # pairs of each kind, or probes, on the sheet
_POINTS = 4000  # of the drawn curve
_MANY = 10**6  # pairs, all of which each draw reads: above, intervals take fewer draws
_FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_RANKS = (1, 5, 20)
Row = tuple[str, str, Interval]


class Measured(NamedTuple):
    """Numbers of a protocol, its ROC curve if it has one, and the pictures of the sheet."""

    rows: list[Row]
    curve: Roc | None
    sheet: list[tuple[int, str]]
    """Numbers of pictures with captions, those that belong together one after the other."""
    columns: int = 8


def main(arguments: list[str]) -> int:
    """Evaluate what the arguments say, and return the exit status."""
    asked = _parser().parse_args(arguments)
    asked.out = asked.out or Path(f"{asked.run.resolve().name}-{asked.protocol}")
    try:
        if asked.replicates is not None and asked.replicates < 2:
            raise SettingsError(f"--replicates is 2 or more, not {asked.replicates}.")
        if asked.out.exists() and (not asked.out.is_dir() or any(asked.out.iterdir())):
            raise SettingsError(f"{asked.out} is there already. Name a new folder.")
        check_device(asked.device)
        model = load(asked.run, asked.device)
        size = asked.size or recipe_of(asked.run).image_size or 112
        if not 8 <= size <= 1024:
            raise SettingsError(f"--size is 8 to 1024 pixels, not {size}.")
        faces = checked(read_protocol(asked.protocol, asked.path))
        features = embeddings(model, faces.pictures, size, pool_of(faces))
        found = measured(faces, features, asked.replicates)
        _show(found.rows)
        asked.out.mkdir(parents=True, exist_ok=True)
        _write(asked.out, found.rows)
        if found.curve is not None:
            _draw(asked.out, found.curve)
        if found.sheet:
            numbers, captions = zip(*found.sheet, strict=True)
            pictures = faces.pictures.read(numbers, size)
            sheet = contact_sheet(pictures, captions, columns=found.columns)
            files.write(asked.out / "worst.png", encode_picture(sheet))
    except (ValueError, OSError) as error:
        say(printable(error), error=True)
        return 2
    say(f"Kept in {asked.out.absolute()}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m marginlab.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="the folder of a trained run")
    parser.add_argument("path", type=Path, help="the protocol's files")
    parser.add_argument("--protocol", required=True, choices=("lfw", "pack", "tinyface", "ijb"))
    parser.add_argument(
        "--out", type=Path, help="a new folder for the results; by default RUN-PROTOCOL, here"
    )
    parser.add_argument(
        "--size",
        type=int,
        help="side of the images in pixels; by default that of the run, or 112 if its recipe "
        "resizes none",
    )
    parser.add_argument(
        "--replicates",
        type=int,
        help=f"draws of each interval; by default 500, or 100 above {_MANY:,} pairs",
    )
    parser.add_argument("--device", default="cpu", help="where the model runs")
    return parser


def checked(faces: Faces) -> Faces:
    """Return a protocol whose numbers can be computed, before any picture is encoded.

    Pairs may contradict each other about who is who, as when one picture stands under two names.
    Then each pair gets identities of its own.

    Raises:
        ValueError: A probe has no mate in the gallery.
    """
    if isinstance(faces, Identified):
        alone = int((~torch.isin(faces.probe_ids, faces.gallery_ids)).sum())
        if alone:
            raise ValueError(
                f"{alone} of {len(faces.probes)} probes have no mate in the gallery, and a closed "
                "set has one for each. Give the lists as the set's authors publish them."
            )
        return faces
    wrong = ((faces.people[0] == faces.people[1]) != faces.same).nonzero()[:, 0]
    if not len(wrong):
        return faces
    say(
        f"Genuine pairs join the two sides of {len(wrong):,} impostor pairs, the first of them "
        f"pair {int(wrong[0])}, so who is who is not known. Intervals take pairs as independent, "
        "and are too narrow.",
        error=True,
    )
    M = len(faces.same)
    first = torch.arange(M)
    return faces._replace(people=(first, torch.where(faces.same, first, first + M)))


def embeddings(
    model: Method, pictures: Pictures, size: int, pool: TemplatePool | None = None
) -> Tensor | Templates:
    """Return the flip sums (N, D) of all pictures, decoded a batch at a time, or their templates.

    Args:
        model: The trained method.
        pictures: The pictures.
        size: Side of the images in pixels.
        pool: Takes the sums of each batch, so that those of all pictures are not held.
    """

    def embed(images: Tensor) -> Tensor:
        return model.project(model.backbone(images))

    parts = []
    for number, batch in enumerate(torch.arange(len(pictures)).split(_BATCH), 1):
        sums = encode(embed, pictures.read(batch.tolist(), size), flip=True)
        if pool is None:
            parts.append(sums)
        else:
            pool.add(sums)
        if len(pictures) > 20 * _BATCH and number % 20 == 0:
            say(f"{number * _BATCH:,} of {len(pictures):,} images")
    return torch.cat(parts) if pool is None else pool.templates()


def pool_of(faces: Faces) -> TemplatePool | None:
    """Return what pools the pictures of a protocol of templates; None for any other."""
    if isinstance(faces, Identified) or faces.templates is None or faces.media is None:
        return None
    return TemplatePool(faces.templates, faces.media, faces.detector)


def measured(faces: Faces, features: Tensor | Templates, replicates: int | None) -> Measured:
    """Return the numbers of a protocol with their intervals, by default of 500 draws or 100."""
    if isinstance(faces, Identified):
        assert isinstance(features, Tensor)  # only pairs are of templates
        return _identified(faces, features, replicates or 500)
    return _verified(faces, features, replicates or (100 if len(faces.same) > _MANY else 500))


def _identified(faces: Identified, features: Tensor, replicates: int) -> Measured:
    block = cosine_blocks(features[faces.probes], features[faces.gallery])
    found = search(block, faces.probe_ids, faces.gallery_ids)
    intervals = identification_intervals(
        found, faces.probe_ids, ranks=_RANKS, replicates=replicates
    )
    rows: list[Row] = [
        ("rank", str(rank), each) for rank, each in zip(_RANKS, intervals, strict=True)
    ]
    sheet: list[tuple[int, str]] = []
    for probe in (found.highest - found.best).argsort(descending=True)[:_WORST].tolist():
        scores = block(slice(probe, probe + 1), slice(0, found.gallery))[0].cpu()
        other = faces.gallery_ids != faces.probe_ids[probe]
        mate, first = (int(x.argmax()) for x in (scores.masked_fill(other, -torch.inf), scores))
        sheet += [
            (int(faces.probes[probe]), "probe"),
            (int(faces.gallery[mate]), f"mate {float(scores[mate]):.2f}"),
            (int(faces.gallery[first]), f"first {float(scores[first]):.2f}"),
        ]
    return Measured(rows, None, sheet, columns=9)


def _verified(faces: Paired, features: Tensor | Templates, replicates: int) -> Measured:
    same = faces.same
    # evaluations of IJB take the point nearest to a rate
    point: Literal["below", "nearest"] = "below" if faces.templates is None else "nearest"
    if isinstance(features, Templates):
        first, second = features.rows(faces.first), features.rows(faces.second)
        scores = pair_scores(features.features, first, second)
        del first, second  # as long as the pairs, of which there are millions
    else:
        scores = pair_scores(features, faces.first, faces.second)
    impostors = int((~same).sum())
    fars = tuple(far for far in _FARS if far * impostors >= 1)
    if len(same) > _MANY:
        say(f"{replicates} draws of {len(same):,} pairs, for the intervals")
    eer, auc, *tars = roc_intervals(
        scores, same, faces.people, fars, point=point, replicates=replicates
    )
    rows: list[Row] = [("eer", "", eer), ("auc", "", auc)]
    rows += [("tar_at_far", f"{far:g}", each) for far, each in zip(fars, tars, strict=True)]
    if folds := faces.folds:
        of_folds = fold_interval(scores, same, *faces.people, folds, replicates=replicates)
        spread = fold_verification(scores, same, folds).deviation
        value = val_at_far(scores, same, 1e-3, folds).val
        rows[:0] = [
            ("accuracy", f"{folds} folds", of_folds),
            ("accuracy_deviation", f"{folds} folds", _alone(spread, eer.n)),
        ]
        rows.append(("val_at_far", "0.001", _alone(value, eer.n)))
    sheet = [] if faces.templates is not None else _judged_worst(faces, scores)
    return Measured(rows, roc(scores, same), sheet)


def _alone(number: float, identities: int) -> Interval:
    """Return a number without an interval."""
    return Interval(number, torch.nan, torch.nan, identities)


def _judged_worst(faces: Paired, scores: Tensor) -> list[tuple[int, str]]:
    """Return the pictures of the worst pairs, the two of a pair beside each other."""
    sheet: list[tuple[int, str]] = []
    for kind, name in ((~faces.same, "other"), (faces.same, "same")):
        pairs = kind.nonzero()[:, 0]
        order = scores[pairs].argsort(descending=name == "other")
        for pair in pairs[order[:_WORST]].tolist():
            sheet.append((int(faces.first[pair]), f"{name} {float(scores[pair]):.2f}"))
            sheet.append((int(faces.second[pair]), ""))
    return sheet


def _show(rows: list[Row]) -> None:
    """Show the numbers as a table."""
    shown = Table("quantity", "at", "value", "95 % interval over identities")
    for quantity, at, number in rows:
        interval = "" if number.low != number.low else f"{number.low:.4f} to {number.high:.4f}"
        shown.add_row(quantity, at, f"{number.value:.4f}", interval)
    Console().print(shown)


def _write(out: Path, rows: list[Row]) -> None:
    """Write the numbers as a table of columns."""
    table = [(name, at, *(float(x) for x in number[:3]), number.n) for name, at, number in rows]
    header = ("quantity", "at", "value", "low", "high", "n")
    files.write(out / "results.csv", files.csv_text(header, table))


def drawn(curve: Roc) -> Int64[Tensor, " n"]:
    """Return the points of a curve that are drawn: even on a logarithmic axis of rates above 0."""
    rates = torch.logspace(-math.log10(curve.impostors), 0, _POINTS, dtype=torch.float64)
    at: Tensor = (torch.searchsorted(curve.far, rates * (1 + 1e-9), right=True) - 1).unique()
    return at[curve.far[at] > 0]


def _draw(out: Path, curve: Roc) -> None:
    """Draw the ROC curve."""
    import plotly.graph_objects as go

    at = drawn(curve)
    figure = go.Figure(go.Scatter(x=curve.far[at].tolist(), y=curve.tar[at].tolist(), mode="lines"))
    figure.update_xaxes(type="log", title="false accept rate")
    figure.update_yaxes(range=[0, 1.02], title="true accept rate")
    page = figure.to_html(include_plotlyjs=True, include_mathjax=False)
    files.write(out / "roc.html", page)


if __name__ == "__main__":
    run_command(main, resumes=False)
