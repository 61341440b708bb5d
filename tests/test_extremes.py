"""Intervals of extremes over classes: how often they cover, and classes that no image has."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from marginlab.measures import (
    AugmentationConfusion,
    EffectiveRank,
    LiDAR,
    NeuralCollapse,
    SpectrumDecay,
    Uniformity,
)
from marginlab.measures.functional import class_divergence
from marginlab.statistics.extremes import largest, least
from marginlab.train.rows import geometry, measured


def draw(centers, n, spread, generator):
    """Two views of n images of each class, of length 1, and their labels."""
    C, D = centers.shape
    labels = torch.arange(C).repeat_interleave(n)
    images = centers[labels][:, None] + spread * torch.randn(C * n, 1, D, generator=generator)
    views = images + 0.3 * torch.randn(C * n, 2, D, generator=generator)
    return normalize(views.double(), dim=-1), labels


@pytest.mark.parametrize(("n", "spread"), [(25, 0.8), (6, 0.5)])
def test_intervals_of_the_largest_product_and_the_shortest_center_cover(n, spread):
    """All pairs of classes are alike, where choosing the largest misleads the most."""
    generator, C, repeats = torch.Generator().manual_seed(0), 6, 120
    centers = torch.eye(8)[:C] + 0.5
    f, y = draw(centers, 6000, spread, generator)
    means = torch.stack([f[y == k].mean((0, 1)) for k in range(C)])
    gram = means @ means.T
    product = float(gram[~torch.eye(C, dtype=torch.bool)].max())
    length = float(gram.diagonal().min())
    missed = torch.zeros(4)
    for _ in range(repeats):
        result = class_divergence(*draw(centers, n, spread, generator), C)
        found, shortest = result.largest_product(), result.shortest_center()
        plain = 1.96 * float(result.error_gram.flatten()[result.gram.fill_diagonal_(-9).argmax()])
        missed += torch.tensor(
            [
                not found.low <= product <= found.high,
                not shortest.low <= length <= shortest.high,
                abs(found.value - product) > plain,
                math.isnan(found.low),
            ]
        )
    assert int(missed[0]) <= 14  # of 120 with 5 % each: more has a probability of 0.1 %
    assert int(missed[1]) <= 14
    assert int(missed[2]) > 14  # an interval of the chosen pair alone
    assert int(missed[3]) == 0


def test_an_extreme_of_one_number_has_its_own_interval_and_of_none_or_unknown_ones_none():
    one = torch.tensor([0.3]), torch.tensor([0.1]), torch.tensor([10**6])
    assert list(largest(*one)) == pytest.approx([0.3, 0.104, 0.496], abs=1e-3)
    assert list(least(*one)) == pytest.approx([0.3, 0.104, 0.496], abs=1e-3)
    two = torch.tensor([0.3, 0.2]), torch.tensor([0.1, math.nan]), torch.tensor([5, 2])
    found = largest(*two)
    assert found.value == pytest.approx(0.3)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    none = torch.zeros(0)
    assert all(math.isnan(number) for number in largest(none, none, none.long()))


def test_classes_without_images_are_left_out_and_their_number_is_said():
    f, y = draw(torch.eye(6)[:4], 10, 0.5, torch.Generator().manual_seed(1))
    alone = {row.tag: row for row in geometry(f, y, 4, "x", 0, (0.5,))}
    assert "classes_present/x" not in alone
    shifted = geometry(f, y + 1, 7, "x", 0, (0.5,))  # labels 1 to 4 of 0 to 6
    more = {row.tag: row for row in shifted}
    assert more.pop("classes_present/x").value == 4
    assert repr(more) == repr(alone)  # NaN too
    assert all(
        row.low <= row.value <= row.high for row in alone.values() if "mean" not in row.quantity
    )
    single = torch.arange(5).clamp(max=3)  # three classes of one image, one of two
    few = {row.tag: row for row in geometry(f[::9], single, 4, "x", 0, ())}
    assert all(math.isfinite(row.value) for row in few.values())
    assert math.isnan(few["divergence_max/x"].low)  # and no interval


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: EffectiveRank(8), "leans downwards"),
        (lambda: LiDAR(8), "leans upwards"),
        (lambda: SpectrumDecay(8), "leans upwards"),
        (lambda: NeuralCollapse(4, 8), "NC1 leans downwards"),
        (AugmentationConfusion, "makes no interval"),
    ],
)
def test_biased_numbers_have_no_interval_and_say_their_bias(make, word):
    f, y = draw(torch.eye(8)[:4], 12, 0.5, torch.Generator().manual_seed(2))
    rows = measured(make(), f, y, "x", 0)
    assert rows
    assert all(math.isnan(row.low) and math.isnan(row.high) for row in rows)
    named = [make(), (f, y)]
    assert word in named[0](*named[1]).meaning


def test_uniformity_keeps_an_interval_that_covers():
    generator, centers = torch.Generator().manual_seed(3), torch.eye(8)[:4]
    true = float(Uniformity(max_images=4000)(draw(centers, 500, 0.6, generator)[0]).L_unif)
    missed = 0
    for _ in range(100):
        f, y = draw(centers, 10, 0.6, generator)
        (row,) = measured(Uniformity(), f, y, "x", 0)
        missed += not row.low <= true <= row.high
    assert missed <= 13
