"""Numbers of a variant, as means over seeds, with intervals over the identities judged.

A draw of identities takes all images of an identity, for all seeds and scores at once. So the
interval of a difference is a paired one.

    gain of rank-1        the variant's less that of the classification loss alone
    gain of discard area  the predicted index's less the rival's: below 0 the index is better
    gain of attention     the share of the trained map less that of a uniform or untrained one
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from marginlab.evaluation import (
    Search,
    bootstrap,
    error_versus_discard,
    open_set,
    pair_quality,
)
from marginlab.rng import Key

from .judging import Arrays

Numbers = dict[tuple[str, str, str], float]  # of quantity, space and at
FPIR, RANK = 0.1, 20


class Scores(NamedTuple):
    """Scores of one judgement by name: of its probes, and of pairs with their gallery images."""

    probes: Arrays
    pairs: Arrays
    index: str


def rows(
    protocol: Any, judged: list[Arrays], beside: list[Arrays] | None, *, replicates: int
) -> Iterator[dict[str, Any]]:
    """Yield rows of the table: means over seeds, with intervals where there are replicates."""
    people = len(judged[0]["means trained"][0]) if "means trained" in judged[0] else None
    people = people or int(judged[0]["identity"].max()) + 1
    others = beside or [None] * len(judged)
    scores = [scores_of(one) for one in judged]

    def of_people(w: Tensor) -> Numbers:
        return _mean(
            [
                _of_people(protocol, one, two, three, w)
                for one, two, three in zip(judged, others, scores, strict=True)
            ]
        )

    yield from _intervals(of_people, people, replicates)
    if "index" in judged[0]:
        classes, number = np.unique(judged[0]["index identity"], return_inverse=True)

        def of_classes(w: Tensor) -> Numbers:
            return _mean([_of_index(protocol, one, w.numpy()[number]) for one in judged])

        yield from _intervals(of_classes, len(classes), replicates)
        for name in ("cosine", "share", "ratio", "accepted"):
            values = [float(one[f"bank {name}"]) for one in judged]
            yield _row((f"bank_{name}", "", ""), float(np.mean(values)), n=len(judged))
        values = [float(one["bank centers"]) for one in judged]
        yield _row(("centers_cosine", "", ""), float(np.mean(values)), n=len(judged))


def _intervals(
    statistic: Callable[[Tensor], Numbers], identities: int, replicates: int
) -> Iterator[dict[str, Any]]:
    whole = statistic(torch.ones(identities, dtype=torch.float64))
    if not replicates:
        yield from (_row(key, value, n=identities) for key, value in whole.items())
        return
    found = bootstrap(lambda w: list(statistic(w).values()), identities, replicates=replicates)
    for key, interval in zip(whole, found, strict=True):
        yield _row(key, *interval)


def _row(
    key: tuple[str, str, str], value: float, low: float = np.nan, high: float = np.nan, n: int = 0
) -> dict[str, Any]:
    quantity, space, at = key
    value, low, high = (round(float(x), 5) for x in (value, low, high))
    return {
        "quantity": quantity,
        "space": space,
        "at": at,
        "value": value,
        "low": low,
        "high": high,
        "n": n,
    }


def _mean(found: list[Numbers]) -> Numbers:
    return {key: float(np.mean([one[key] for one in found])) for key in found[0]}


def _of_people(
    protocol: Any, one: Arrays, beside: Arrays | None, scores: Scores, w: Tensor
) -> Numbers:
    """Return all numbers of one seed, its images weighted by their identities."""
    identity = one["identity"]
    drawn = np.repeat(np.arange(len(identity)), w.numpy().astype(int)[identity])
    found: Numbers = {}
    _recognition(found, one, drawn, w.numpy()[identity])
    if beside is not None:
        other: Numbers = {}
        _recognition(other, beside, drawn, w.numpy()[identity])
        for key in [key for key in other if key[0] == "rank1"]:
            found["rank1_gain", "", key[2]] = found[key] - other[key]
    _quality(found, protocol, one, scores, drawn)
    weight = w.numpy() / w.sum().item()
    for name in ("trained", "untrained"):
        if f"means {name}" in one:
            means = np.einsum("i,rid->rd", weight, one[f"means {name}"])
            for rows_, length in zip(protocol.rows, np.linalg.norm(means, axis=1), strict=True):
                found["resultant", name, str(rows_)] = float(length)
    _attention(found, one, weight)
    return found


def _recognition(found: Numbers, one: Arrays, drawn: np.ndarray, weight: np.ndarray) -> None:
    hit, rows_ = one["hit"][drawn], one["rows"][drawn]
    found["rank1", "", ""] = float(hit.mean())
    for r in np.unique(one["rows"]):
        found["rank1", "", str(r)] = float(hit[rows_ == r].mean())
    fields = {name: one[f"open {name}"] for name in Search._fields}
    opened = Search(**{k: torch.from_numpy(v) if v.ndim else int(v) for k, v in fields.items()})
    mated = one["open mates"] > 0
    if weight[mated].any() and weight[~mated].any():
        found["tpir", "", f"{FPIR:g}"] = (
            open_set(opened, RANK, torch.from_numpy(weight)).at(FPIR).tar
        )
    else:  # a draw of few identities
        found["tpir", "", f"{FPIR:g}"] = np.nan
    for name in ("before", "after", "own"):
        found["center_cosine", name, ""] = float(one[f"center_{name}"][drawn].mean())


def scores_of(one: Arrays) -> Scores:
    """Return all scores, the true number of rows and a random one among them."""
    probes = {name[6:]: one[name].astype(float) for name in one if name.startswith("score ")}
    gallery = {name[8:]: one[name].astype(float) for name in one if name.startswith("gallery ")}
    rows_, people = one["rows"].astype(float), int(one["identity"].max()) + 1
    probes["rows"], gallery["rows"] = rows_, np.full(people, rows_.max())
    key = Key(0).named("random score")
    probes["random"] = key.at(torch.arange(len(rows_))).uniform().numpy().astype(float)
    gallery["random"] = key.named("gallery").at(torch.arange(people)).uniform().numpy()
    pairs = {
        name: _pair_quality(gallery[name], score, one["identity"]) for name, score in probes.items()
    }
    return Scores(probes, pairs, "index" if "index" in probes else "index_first")


def _quality(found: Numbers, protocol: Any, one: Arrays, scores: Scores, drawn: np.ndarray) -> None:
    """Spearman's correlations and areas of all scores, and the gains of the predicted index."""
    genuine, levels = one["genuine"].astype(float)[drawn], one["rows"].astype(float)[drawn]
    places = [np.flatnonzero(levels == r) for r in np.unique(levels)]
    same = torch.ones(len(drawn), dtype=torch.bool)
    for name, score in scores.probes.items():
        s = score[drawn]
        if name != "rows":
            found["spearman_resolution", name, ""] = _spearman(s, levels)
            within = [_spearman(s[at], genuine[at]) for at in places]
            found["spearman_within", name, ""] = float(np.mean(within))
        pair = torch.from_numpy(scores.pairs[name][drawn])
        for fnmr in protocol.fnmrs:
            curve = error_versus_discard(torch.from_numpy(genuine), same, pair, fnmr=fnmr)
            for limit in protocol.limits:
                found["discard_area", name, f"{fnmr:g} to {limit:g}"] = curve.area(limit)
    for quantity, name, at in list(found):
        if quantity == "discard_area" and name != scores.index:
            gain = found["discard_area", scores.index, at] - found["discard_area", name, at]
            found["discard_gain", name, at] = gain


def _pair_quality(gallery: np.ndarray, probes: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """Return the lower score of each probe and of the gallery image of its identity."""
    both = torch.from_numpy(np.concatenate([gallery, probes]))
    second = torch.arange(len(probes)) + len(gallery)
    found: np.ndarray = pair_quality(both, torch.from_numpy(identity), second).numpy()
    return found


def _attention(found: Numbers, one: Arrays, weight: np.ndarray) -> None:
    for name in (name for name in one if name.startswith("share ")):
        _, map_, at = name.split()
        found["attention_share", map_, at] = float(weight @ one[name])
    for quantity, map_, at in list(found):
        if quantity == "attention_share" and map_ == "own":
            share = found["attention_share", "own", at]
            found["attention_gain", "uniform", at] = share - 0.5
            other = found["attention_share", "untrained", at]
            found["attention_gain", "untrained", at] = share - other
    for quantity in ("deletion", "insertion"):
        maps = [name.split()[1] for name in one if name.startswith(f"{quantity} ")]
        for map_ in maps:
            found[quantity, map_, ""] = float(weight @ one[f"{quantity} {map_}"])
        for map_ in (name for name in maps if name != "own"):
            gain = found[quantity, "own", ""] - found[quantity, map_, ""]
            found[f"{quantity}_gain", map_, ""] = gain


def _of_index(protocol: Any, one: Arrays, weight: np.ndarray) -> Numbers:
    """Mean index at each number of rows, and Spearman's correlation with the number of rows."""
    found: Numbers = {}
    for rows_, values in zip(protocol.rows, one["index"], strict=True):
        found["index", "", str(rows_)] = float(weight @ values / weight.sum())
    drawn = np.repeat(np.arange(len(weight)), weight.astype(int))
    values = one["index"][:, drawn]
    levels = np.repeat(np.array(protocol.rows, dtype=float)[:, None], len(drawn), 1)
    found["index_spearman", "", ""] = _spearman(values.ravel(), levels.ravel())
    return found


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's correlation; 0 of a constant, which orders nothing."""
    a, b = (rankdata(z) - (len(z) + 1) / 2 for z in (x, y))
    length = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / length if length > 0 else 0.0
