"""Judgement of one trained network: its embeddings, quality scores and attention, image by image.

The arrays go into `judged.npz`, so that numbers over all seeds and their intervals over identities
are taken from the same images. `pooling` makes the numbers.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marginlab import data
from marginlab.encoding import evaluating
from marginlab.evaluation import cosine_blocks, hits, search
from marginlab.measures import UnrecognizableBank
from marginlab.measures.functional import recognizability_distances, recognizability_index
from marginlab.methods import Method, Recognizability
from marginlab.models import PerceptibilityAttention
from marginlab.quality import embeddings_of
from marginlab.rng import Key
from marginlab.statistics import unit_vectors
from marginlab.train import load
from marginlab.train.recipe import recipe_of

from .pictures import draw
from .protocol import People, Probes, choose, degraded, half_covered, probes_of
from .rivals import of_first, of_second

Arrays = dict[str, np.ndarray]


@torch.no_grad()
def judge(chosen: Any, variant: str, first: str, second: str, *, folder: Path) -> dict[str, str]:
    """Judge a network, and keep the arrays and pictures in the folder.

    Args:
        chosen: The study's settings.
        variant: The variant that the second training is of.
        first, second: Folders of the trainings within the run folder; the same for "frozen".
        folder: Where to keep what is made.
    """
    run, protocol = folder.parents[1], chosen.protocol
    before, after = load(run / first), load(run / second)
    people = choose(protocol, chosen.recipe.data, chosen.recipe.image_size)
    probes = probes_of(people, protocol.probed)
    seed = recipe_of(run / second).seed
    learnt = data.load(chosen.recipe.data, "train", size=chosen.recipe.image_size)
    learnt = learnt.subset(chosen.tuning_images)
    bank = _bank(before, learnt.images, chosen.ruined)
    found = _recognition(after, people, probes, protocol.unmated)
    found["center_before"] = 1 - _numpy(bank.distances(embeddings_of(before, probes.images)))
    own = _bank(after, learnt.images, chosen.ruined)
    found["center_after"] = 1 - _numpy(bank.distances(embeddings_of(after, probes.images)))
    found["center_own"] = 1 - _numpy(own.distances(embeddings_of(after, probes.images)))
    with torch.enable_grad():  # a score differentiates by the image
        scores = of_first(chosen, before, bank, learnt, seed, alone=first != second)
    gallery = embeddings_of(after, people.gallery)
    scores |= of_second(after, own, gallery, frozen=first == second)
    for name, score in scores.items():
        found[f"score {name}"] = _numpy(score.quality(probes.images))
        found[f"gallery {name}"] = _numpy(score.quality(people.gallery))
    if first == second:
        found |= _emergence(before, chosen, people, seed) | _index(before, chosen, bank)
        found |= _found_bank(before, bank, learnt.images, protocol)
    else:
        assert isinstance(after, Recognizability)
        found |= _attention(after, chosen, people, gallery, seed)
    np.savez(folder / "judged.npz", **found)
    draw(folder, after, probes, found, variant)
    (folder / "told.json").write_text(json.dumps({"variant": variant, "seed": seed}))
    return {"folder": folder.name}


def read(folder: Path) -> Arrays:
    """Return the arrays of a judgement."""
    with np.load(folder / "judged.npz") as file:
        return {name: file[name] for name in file.files}


def _recognition(method: Method, people: People, probes: Probes, unmated: float) -> Arrays:
    """Cosines and hits of probes in the whole gallery, and in one that leaves some identities."""
    v, g = embeddings_of(method, probes.images), embeddings_of(method, people.gallery)
    everyone = torch.arange(len(g))
    whole = search(cosine_blocks(v, g), probes.identity, everyone)
    mated = len(g) - max(1, round(unmated * len(g)))
    opened = search(cosine_blocks(v, g[:mated]), probes.identity, everyone[:mated])
    genuine = (unit_vectors(v) * unit_vectors(g)[probes.identity]).sum(1)
    return {
        "identity": _numpy(probes.identity),
        "rows": _numpy(probes.rows),
        "genuine": _numpy(genuine),
        "hit": _numpy(hits(whole, 1)),
        **{f"open {name}": np.asarray(value) for name, value in opened._asdict().items()},
    }


def _bank(method: Method, images: Tensor, ruined: int) -> UnrecognizableBank:
    """Return the bank of training images that are ruined."""
    return UnrecognizableBank.from_degraded(
        embeddings_of(method, degraded(images, ruined)), tight=0.0
    )


def _emergence(method: Method, chosen: Any, people: People, seed: int) -> Arrays:
    """Mean unit embeddings of each identity at all numbers of rows, trained and untrained."""
    classes = len(method.classes)
    untrained = chosen.recipe.__class__(**{**vars(chosen.recipe), "seed": seed})
    found: Arrays = {}
    for name, net in (("trained", method), ("untrained", untrained.make_method(classes).eval())):
        means = []
        for rows in chosen.protocol.rows:
            images = degraded(people.images.flatten(0, 1), rows)
            unit = unit_vectors(embeddings_of(net, images))
            means.append(unit.unflatten(0, people.images.shape[:2]).mean(1))
        found[f"means {name}"] = _numpy(torch.stack(means))
    return found


def _index(method: Any, chosen: Any, bank: UnrecognizableBank) -> Arrays:
    """Recognizability index of new images of the trained classes, at all numbers of rows."""
    protocol, recipe = chosen.protocol, chosen.recipe
    known = data.load(recipe.data, "test", size=recipe.image_size).subset(protocol.known)
    found = []
    for rows in protocol.rows:
        v = embeddings_of(method, degraded(known.images, rows))
        distances = recognizability_distances(
            v, known.labels, method.classifier.centers.detach(), bank.centers.to(v)
        )
        found.append(recognizability_index(*distances, clamp=chosen.clamp or None))
    return {"index": _numpy(torch.stack(found)), "index identity": _numpy(known.labels)}


def _found_bank(method: Method, bank: UnrecognizableBank, images: Tensor, protocol: Any) -> Arrays:
    """The bank that clustering finds in images of all numbers of rows, beside that of ruined ones.

    The pool holds `known` images. NaN stands where clustering finds no bank.
    """
    mixed = Key(0).named("pool").permutation(len(images))[: protocol.known]
    rows = torch.tensor(protocol.rows).repeat(len(mixed))[: len(mixed)]
    pool = torch.cat([degraded(images[mixed[rows == r]], r) for r in protocol.rows])
    full = torch.cat([rows[rows == r] == max(protocol.rows) for r in protocol.rows])
    v, whole = embeddings_of(method, pool), embeddings_of(method, images[mixed])
    ruined = embeddings_of(method, degraded(images[mixed], min(protocol.rows)))
    found = dict.fromkeys(("cosine", "share", "ratio", "centers"), np.array(np.nan))
    found["accepted"] = np.array(0.0)
    try:
        clustered = UnrecognizableBank.from_clustering(v)
        two = UnrecognizableBank.from_clustering(v, centers=2).sizes
    except ValueError:
        return {f"bank {name}": value for name, value in found.items()}
    cosine, _ = clustered.accept(ruined, whole, least_cosine=-1.0, most_recognizable=1.0)
    found["cosine"] = np.array(cosine)
    found["share"] = np.array(float(clustered.members[full].double().mean()))
    found["ratio"] = np.array(float(two[0]) / float(two[1]))
    found["centers"] = np.array(float(clustered.centers[0] @ bank.centers[0]))
    found["accepted"] = np.array(float(cosine >= 0.9 and found["share"] <= 0.5))
    return {f"bank {name}": value for name, value in found.items()}


def _attention(
    method: Recognizability, chosen: Any, people: People, gallery: Tensor, seed: int
) -> Arrays:
    """Share of attention on the visible half, and curves of deletion and insertion."""
    protocol = chosen.protocol
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Key(seed).named("untrained attention").word())
        channels, height, width = method.attend.shape
        untrained = PerceptibilityAttention(channels, (height, width), gallery.shape[1])
    found: Arrays = {}
    size = (people.images.shape[-2], people.images.shape[-1])
    with evaluating(method):
        for rows in (size[0], protocol.attended):
            images = degraded(people.images[:, 0], rows)
            covered, visible = half_covered(images)
            maps = method.backbone.feature_map(covered)
            for name, attend in (("own", method.attend), ("untrained", untrained)):
                heat = attend.heat_map(maps, size)
                share = (heat * visible).sum((1, 2)) / heat.sum((1, 2))
                found[f"share {name} {rows}"] = _numpy(share)
        images = degraded(people.images[:, 0], protocol.attended)
        maps = method.backbone.feature_map(images)
        noise = (
            Key(seed)
            .named("random map")
            .at(torch.arange(len(images))[:, None], torch.arange(height * width))
        )
        random = torch.nn.functional.interpolate(
            noise.uniform().view(-1, 1, height, width), size=size, mode="bilinear"
        )[:, 0]
        heats = {"own": method.attend.heat_map(maps, size), "random": random}
        heats["untrained"] = untrained.heat_map(maps, size)
        for name, heat in heats.items():
            deletion, insertion = _curves(method, images, heat, gallery, protocol.steps)
            found |= {f"deletion {name}": deletion, f"insertion {name}": insertion}
    return found


def _curves(
    method: Method, images: Tensor, heat: Tensor, gallery: Tensor, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean genuine cosine while the pixels of most heat are made grey, and while only they show."""
    order = heat.flatten(1).argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(order)
    place.scatter_(1, order, torch.arange(order.shape[1]).expand_as(order).contiguous())
    place = place.view_as(heat)[:, None]
    own = unit_vectors(gallery)
    areas = []
    for shown_first in (False, True):
        levels = []
        for step in range(steps + 1):
            hot = place < step / steps * order.shape[1]
            shown = torch.where(hot == shown_first, images, 0.5)
            levels.append((unit_vectors(embeddings_of(method, shown)) * own).sum(1))
        curve = torch.stack(levels)
        areas.append(_numpy((curve[:-1] + curve[1:]).mean(0) / 2))
    return areas[0], areas[1]


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()
