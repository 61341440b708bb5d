"""Identification by resolution and templates by quality, against loops and known answers."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from marginlab.evaluation import (
    closed_set,
    cosine_blocks,
    low_resolution,
    open_set,
    pool_by_quality,
    search,
)


def problem(seed, N=40, people=6):
    """A gallery of two entries of each person and five distractors; probes at three resolutions."""
    draw = np.random.default_rng(seed)
    who = draw.integers(0, people + 2, N)  # the last two are in no gallery
    who[:6], level = [0, 0, 0, people, people, people], draw.choice([6, 12, 32], N)
    level[:6] = [6, 12, 32, 6, 12, 32]
    gallery = np.concatenate([np.repeat(np.arange(people), 2), np.full(5, -1)])
    scores = draw.integers(-4, 5, (N, len(gallery))) / 4.0  # many tie
    return [torch.from_numpy(x) for x in (scores, who, gallery, level)]


@settings(max_examples=8)
@given(st.integers(0, 10**6))
def test_each_resolution_is_the_protocol_of_its_probes_alone(seed):
    scores, who, gallery, level = problem(seed)
    labels = torch.where(who < 6, who, -1)
    found = low_resolution(
        search(scores, labels, gallery),
        who,
        level,
        ranks=(1, 3),
        fpirs=(0.34,),
        rank=3,
        replicates=10,
    )
    assert [each.resolution for each in found] == [6, 12, 32, None]
    for each in found:
        rows = level == each.resolution if each.resolution else torch.ones(len(who)).bool()
        assert each.probes == int(rows.sum())
        mated = rows & (labels >= 0)
        assert each.mated == int(mated.sum())
        alone = search(scores[mated], labels[mated], gallery)
        assert [x.value for x in each.rank] == pytest.approx(list(closed_set(alone, (1, 3))))
        both = search(scores[rows], labels[rows], gallery)
        assert each.tpir[0].value == pytest.approx(open_set(both, rank=3).at(0.34).tar)
        assert each.rank[0].n == len(who[rows].unique())


def test_distractors_push_mates_down_and_a_gallery_may_be_made_by_blocks():
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(10, 6, generator=generator)
    probes = gallery + 0.9 * torch.randn(10, 6, generator=generator)
    people, level = torch.arange(10), torch.full((10,), 8)
    found = search(cosine_blocks(probes, gallery), people, people)
    few = low_resolution(found, people, level, ranks=(1,), replicates=5)[0]
    crowd = torch.cat([gallery, torch.randn(400, 6, generator=generator)])
    labels = torch.cat([people, torch.full((400,), -1)])
    found = search(cosine_blocks(probes, crowd), people, labels, budget=999)
    many = low_resolution(found, people, level, ranks=(1,), replicates=5)[0]
    assert many.rank[0].value < few.rank[0].value


@pytest.mark.usefixtures("unchecked")
def test_wrong_resolutions_are_named():
    scores, who, gallery, level = problem(0)
    found = search(scores, torch.where(who < 6, who, -1), gallery)
    with pytest.raises(ValueError, match="as many identities and resolutions"):
        low_resolution(found, who, level[:3])
    with pytest.raises(ValueError, match="finite"):
        low_resolution(found, who, torch.where(level == 6, torch.nan, 1.0))
    mated = search(scores, 0 * who, gallery)
    with pytest.raises(ValueError, match=r"Probes of resolution 6: .* with and without one"):
        low_resolution(mated, who, level, fpirs=(0.1,))


@settings(max_examples=8)
@given(st.integers(0, 10**6))
def test_a_template_is_the_weighted_mean_of_directions(seed):
    draw = np.random.default_rng(seed)
    features, weights = draw.normal(size=(12, 4)), draw.integers(0, 3, 12).astype(float)
    templates, keep = draw.integers(3, 6, 12), draw.random(12) < 0.7
    found = pool_by_quality(
        *(torch.from_numpy(x) for x in (features, templates, weights)), keep=torch.from_numpy(keep)
    )
    assert found.numbers.tolist() == sorted(set(templates.tolist()))
    for row, number in zip(found.features, found.numbers.tolist(), strict=True):
        of = [n for n in range(12) if templates[n] == number]
        kept = [n for n in of if keep[n] and weights[n] > 0]
        due = np.zeros(4)
        for n in kept or of:
            times = weights[n] if kept else 1.0
            due += times * features[n] / math.sqrt(sum(x * x for x in features[n]))
        np.testing.assert_allclose(row.numpy(), due / np.linalg.norm(due), atol=1e-12)


@pytest.mark.usefixtures("unchecked")
def test_weights_that_are_none_are_named():
    features, templates = torch.eye(3), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="clip at 0"):
        pool_by_quality(features, templates, torch.tensor([1.0, -0.5, 1.0]))
    with pytest.raises(ValueError, match="by as many bools"):
        pool_by_quality(features, templates, torch.ones(3), keep=torch.ones(2) > 0)
    tiny = pool_by_quality(features, templates, 1e-310 * torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(tiny.features, torch.full((1, 3), 3**-0.5))
