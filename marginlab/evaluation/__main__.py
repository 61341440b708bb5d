"""`python -m marginlab.evaluation RUN --protocol NAME PATH --out FOLDER`: face recognition.

    --protocol lfw PATH        a folder with pairs.txt and images NAME/NAME_0001.jpg
    --protocol pack PATH       a verification pack, such as lfw.bin
    --protocol tinyface PATH   TinyFace's folder Testing_Set
    --protocol ijb PATH        a folder of IJB-B or IJB-C with meta/ and loose_crop/

RUN is the folder of a trained run. The output folder holds:

    results.csv    each number with its 95 % interval over identities
    roc.html       the ROC curve, which opens without a network
    worst.png      the pairs that are judged worst: impostors that look alike, then genuine pairs
                   that do not (of the protocols of pairs)

Embeddings are those under the head, f(x) + f(mirror of x), as published evaluations take them.
"""

import argparse
import csv
import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from marginlab import files
from marginlab.data.protocols import Faces, Identified, Paired, Pictures, read_protocol
from marginlab.data.sheet import contact_sheet, encode_picture
from marginlab.encoding import encode
from marginlab.evaluation.protocols import (
    closed_set,
    cosine_blocks,
    fold_interval,
    identification_intervals,
    pair_scores,
    pool_templates,
    roc,
    roc_intervals,
    search,
    val_at_far,
)
from marginlab.evaluation.protocols.bootstrap import Interval
from marginlab.methods import Method
from marginlab.settings import SettingsError
from marginlab.terminal import printable, say
from marginlab.train import load

_BATCH = 256  # pictures that are decoded and encoded at a time
_WORST = 12  # pairs of each kind on the sheet
_IJB = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
Row = tuple[str, str, Interval]


def main(arguments: list[str]) -> int:
    """Evaluate what the arguments say, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m marginlab.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="the folder of a trained run")
    parser.add_argument("path", type=Path, help="the protocol's files")
    parser.add_argument("--protocol", required=True, choices=("lfw", "pack", "tinyface", "ijb"))
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the results")
    parser.add_argument("--size", type=int, default=112, help="side of the images (default: 112)")
    parser.add_argument("--replicates", type=int, default=500, help="draws of each interval")
    asked = parser.parse_args(arguments)
    try:
        if not 8 <= asked.size <= 1024 or asked.replicates < 2:
            given = f"{asked.size} and {asked.replicates}"
            raise SettingsError(f"--size is 8 to 1024 and --replicates 2 or more, not {given}.")
        if asked.out.exists() and (not asked.out.is_dir() or any(asked.out.iterdir())):
            raise SettingsError(f"{asked.out} is there already. Name a new folder.")
        faces = read_protocol(asked.protocol, asked.path)
        model = load(asked.run)
        features = embeddings(model, faces.pictures, asked.size)
        rows, scores = measured(faces, features, asked.replicates)
    except (ValueError, OSError) as error:
        say(printable(error), error=True)
        return 2
    asked.out.mkdir(parents=True, exist_ok=True)
    _write(asked.out, rows)
    if isinstance(faces, Paired):
        _draw(asked.out, scores, faces.same)
        _sheet(asked.out, faces, scores, asked.size)
    say(f"Kept in {asked.out.absolute()}")
    return 0


def embeddings(model: Method, pictures: Pictures, size: int) -> Tensor:
    """Return the flip sums (N, D) of all pictures, decoded a batch at a time."""

    def embed(images: Tensor) -> Tensor:
        return model.project(model.backbone(images))

    parts = []
    for batch in torch.arange(len(pictures)).split(_BATCH):
        parts.append(encode(embed, pictures.read(batch.tolist(), size), flip=True))
        if len(pictures) > 20 * _BATCH and len(parts) % 20 == 0:
            say(f"{len(parts) * _BATCH:,} of {len(pictures):,} images")
    return torch.cat(parts)


def measured(faces: Faces, features: Tensor, replicates: int) -> tuple[list[Row], Tensor]:
    """Return the numbers of a protocol with their intervals, and the scores of its pairs."""
    if isinstance(faces, Identified):
        found = search(
            cosine_blocks(features[faces.probes], features[faces.gallery]),
            faces.probe_ids,
            faces.gallery_ids,
        )
        ranks = (1, 5, 20)
        closed_set(found, ranks)  # refuses probes without a mate
        intervals = identification_intervals(
            found, faces.probe_ids, ranks=ranks, replicates=replicates
        )
        named = zip(ranks, intervals, strict=True)
        return [("rank", str(rank), each) for rank, each in named], torch.zeros(0)
    if faces.templates is not None and faces.media is not None:
        pooled = pool_templates(features, faces.templates, faces.media, faces.detector)
        first, second = pooled.rows(faces.first), pooled.rows(faces.second)
        scores = pair_scores(pooled.features, first, second)
    else:
        scores = pair_scores(features, faces.first, faces.second)
    impostors = int((~faces.same).sum())
    fars = tuple(far for far in _IJB if far * impostors >= 1)
    point: Literal["below", "nearest"] = "below" if faces.templates is None else "nearest"
    intervals = roc_intervals(
        scores, faces.same, faces.people, fars, point=point, replicates=replicates
    )
    rows: list[Row] = [("eer", "", intervals[0]), ("auc", "", intervals[1])]
    rows += [
        ("tar_at_far", f"{far:g}", each) for far, each in zip(fars, intervals[2:], strict=True)
    ]
    if faces.folds:
        same, folds = faces.same, faces.folds
        accuracy = fold_interval(scores, same, *faces.people, folds, replicates=replicates)
        rows.insert(0, ("accuracy", f"{folds} folds", accuracy))
        value = val_at_far(scores, same, 1e-3, folds)
        rows.append(("val_at_far", "0.001", Interval(value.val, torch.nan, torch.nan, len(same))))
    return rows, scores


def _write(out: Path, rows: list[Row]) -> None:
    """Write the numbers and show them."""
    held = io.StringIO()
    table = csv.writer(held, lineterminator="\n")
    table.writerow(("quantity", "at", "value", "low", "high", "n"))
    shown = Table("quantity", "at", "value", "95 % interval over identities")
    for quantity, at, number in rows:
        table.writerow((quantity, at, *(repr(float(x)) for x in number[:3]), number.n))
        interval = "" if number.low != number.low else f"{number.low:.4f} to {number.high:.4f}"
        shown.add_row(quantity, at, f"{number.value:.4f}", interval)
    files.write(out / "results.csv", held.getvalue())
    Console().print(shown)


def _draw(out: Path, scores: Tensor, same: Tensor) -> None:
    """Draw the ROC curve, with at most a few thousand points."""
    import plotly.graph_objects as go

    curve = roc(scores, same)
    step = max(1, len(curve.far) // 4000)
    far, tar = curve.far[::step].tolist(), curve.tar[::step].tolist()
    figure = go.Figure(go.Scatter(x=far, y=tar, mode="lines"))
    figure.update_xaxes(type="log", title="false accept rate")
    figure.update_yaxes(range=[0, 1.02], title="true accept rate")
    page = figure.to_html(include_plotlyjs=True, include_mathjax=False)
    files.write(out / "roc.html", page)


def _sheet(out: Path, faces: Paired, scores: Tensor, size: int) -> None:
    """Show the pairs that are judged worst, the two pictures of a pair beside each other."""
    if faces.templates is not None:
        return
    impostors = scores.masked_fill(faces.same, -torch.inf).argsort(descending=True)
    genuine = scores.masked_fill(~faces.same, torch.inf).argsort()
    chosen: list[int] = []
    for order, kind in ((impostors, ~faces.same), (genuine, faces.same)):
        chosen += order[: min(_WORST, int(kind.sum()))].tolist()
    index = [int(part[pair]) for pair in chosen for part in (faces.first, faces.second)]
    captions = list(_captions(chosen, scores, faces.same))
    sheet = contact_sheet(faces.pictures.read(index, size), captions, columns=8)
    files.write(out / "worst.png", encode_picture(sheet))


def _captions(chosen: list[int], scores: Tensor, same: Tensor) -> Iterable[str]:
    for pair in chosen:
        yield f"{'same' if bool(same[pair]) else 'other'} {float(scores[pair]):.2f}"
        yield ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
