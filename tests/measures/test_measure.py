"""Measures among torchmetrics: collections, dtypes, arithmetic, logging and plots."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection

from marginlab import measures
from marginlab.measures import (
    Alignment,
    AnchorConcentration,
    Anchors,
    AngleStatistics,
    AugmentationConfusion,
    ClassDivergence,
    ClassVariance,
    Concentration,
    EffectiveRank,
    IntraAngle,
    LiDAR,
    LipschitzRatio,
    NearestCenterMismatch,
    NeuralCollapse,
    SpectrumDecay,
    Uniformity,
)
from marginlab.measures.composed import numbers
from marginlab.measures.measure import Measure

C, D, V = 3, 4, 2
_g = torch.Generator().manual_seed(0)
POINTS = torch.randn(2, C, D, generator=_g)
ANCHORS = [Anchors(torch.arange(C), POINTS[k], 1.0 + k) for k in (0, 1)]
BATCHES = [
    (torch.randn(8, V, D, generator=_g), torch.arange(8) % C, torch.randn(8, V, D, generator=_g))
    for _ in range(6)
]

# Two settings of every measure: a function of nothing each.
SETTINGS = {
    Alignment: (Alignment, lambda: Alignment(normalize=False)),
    AnchorConcentration: (
        lambda: AnchorConcentration(ANCHORS[0]),
        lambda: AnchorConcentration(ANCHORS[1]),
    ),
    AngleStatistics: (
        lambda: AngleStatistics(C, D, POINTS[0]),
        lambda: AngleStatistics(C, D, POINTS[1]),
    ),
    AugmentationConfusion: (
        lambda: AugmentationConfusion(max_images=10),
        AugmentationConfusion,
    ),
    ClassDivergence: (lambda: ClassDivergence(C, D, False), lambda: ClassDivergence(C, D)),
    ClassVariance: (lambda: ClassVariance(C, D, False), lambda: ClassVariance(C, D)),
    Concentration: (lambda: Concentration(max_images=4), Concentration),
    EffectiveRank: (lambda: EffectiveRank(D), lambda: EffectiveRank(D, epsilon=1e-2)),
    IntraAngle: (lambda: IntraAngle(POINTS[0]), lambda: IntraAngle(POINTS[1])),
    LiDAR: (lambda: LiDAR(D), lambda: LiDAR(D, delta=0.1)),
    LipschitzRatio: (LipschitzRatio, lambda: LipschitzRatio(normalize=False)),
    NearestCenterMismatch: (
        lambda: NearestCenterMismatch(POINTS[0]),
        lambda: NearestCenterMismatch(POINTS[1]),
    ),
    NeuralCollapse: (
        lambda: NeuralCollapse(C, D, POINTS[0]),
        lambda: NeuralCollapse(C, D, POINTS[1]),
    ),
    SpectrumDecay: (lambda: SpectrumDecay(D, (1, 2)), lambda: SpectrumDecay(D, (1, 3))),
    Uniformity: (lambda: Uniformity(max_images=10), Uniformity),
}
KINDS = pytest.mark.parametrize("kind", list(SETTINGS), ids=lambda kind: kind.__name__)


def arguments(kind, batch):
    features, labels, views = batch
    if kind is LipschitzRatio:
        return views, features
    return features, labels


def fed(measure, kind, batches=BATCHES):
    for batch in batches:
        measure.update(*arguments(kind, batch))
    return measure


def same(one, two):
    """Results that are equal field by field, NaN with NaN."""
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
    elif isinstance(one, tuple):
        for a, b in zip(one, two, strict=True):
            same(a, b)
    else:
        assert one == two or (one != one and two != two)


def test_the_table_holds_every_measure():
    public = (getattr(measures, name) for name in measures.__all__)
    assert set(SETTINGS) == {m for m in public if isinstance(m, type) and issubclass(m, Measure)}


@KINDS
def test_two_settings_in_one_collection_keep_their_states(kind):
    first, second = SETTINGS[kind]
    collection = MetricCollection({"first": first(), "again": first(), "second": second()})
    for batch in BATCHES:
        collection.update(*arguments(kind, batch))
    found = collection.compute()
    same(found["first"], fed(first(), kind).compute())
    same(found["again"], found["first"])
    same(found["second"], fed(second(), kind).compute())


@KINDS
def test_measures_of_other_settings_are_not_merged(kind):
    first, second = (fed(make(), kind) for make in SETTINGS[kind])
    with pytest.raises(ValueError, match="different settings cannot be joined"):
        first.merge_state(second)


@KINDS
def test_set_dtype_is_of_results_and_casting_a_model_changes_no_state(kind):
    wide = fed(SETTINGS[kind][0](), kind, BATCHES[:4])
    expected = wide.compute()
    narrow = SETTINGS[kind][0]().set_dtype(torch.float32)
    model = nn.Sequential(narrow).to(torch.bfloat16).half()
    found = fed(model[0], kind, BATCHES[:4]).compute()
    for name, value in numbers(expected).items():
        result = getattr(found, name)
        if isinstance(result, torch.Tensor):
            assert result.dtype == torch.float32
        torch.testing.assert_close(numbers(found)[name].double(), value, equal_nan=True)
    with pytest.raises(ValueError, match="floating-point numbers: give a dtype"):
        narrow.set_dtype(torch.int64)


@KINDS
def test_arithmetic_and_logging_are_about_the_numbers_of_a_result(kind):
    made = [SETTINGS[kind][0]() for _ in range(2)]
    doubled, logged = 2 * made[0] + 1, made[1].numbers()
    assert pickle.loads(pickle.dumps(doubled)) is not None
    for batch in BATCHES:
        doubled.update(*arguments(kind, batch))
        logged.update(*arguments(kind, batch))
    expected = numbers(fed(SETTINGS[kind][0](), kind).compute())
    assert expected
    for name, value in expected.items():
        assert value.ndim == 0
        torch.testing.assert_close(doubled.compute()[name], 2 * value + 1, equal_nan=True)
        torch.testing.assert_close(logged.compute()[name], value, equal_nan=True)
    single = copy.deepcopy(made[1])[name]
    torch.testing.assert_close(single.compute(), value, equal_nan=True)
    collection = MetricCollection({kind.__name__: made[1].numbers()})
    assert set(collection.compute()) == set(expected)


@KINDS
def test_plots_are_of_the_numbers(kind, monkeypatch):
    """Values that matplotlib is given: a dict of numbers, or a list of such dicts over time."""
    given = []
    monkeypatch.setattr(Measure, "_plot", lambda self, val, ax: given.append(val))
    measure = fed(SETTINGS[kind][0](), kind, BATCHES[:3])
    measure.plot()
    measure.plot([measure.compute(), measure.compute()])
    assert given[0].keys() == given[1][1].keys() == numbers(measure.compute()).keys()


def test_numbers_of_two_measures_meet_where_they_share_a_name():
    alignment, uniformity = Alignment(), Uniformity()
    ratio = alignment["L_align"] / uniformity["L_unif"]
    ratio.update(BATCHES[0][0])
    expected = alignment.compute().L_align / uniformity.compute().L_unif
    torch.testing.assert_close(ratio.compute(), expected)
    error = (alignment - uniformity).compute()
    assert list(error) == ["standard_error"]
    mixed = alignment + fed(Concentration(), Concentration)
    with pytest.raises(ValueError, match=r"no number in common: they have L_align.* and spread"):
        mixed.compute()
    with pytest.raises(KeyError, match="no number 'L_unif', but L_align, standard_error"):
        alignment["L_unif"].compute()


def test_features_without_views_are_told_how_to_get_one(unchecked):
    with pytest.raises(ValueError, match=r"One view of each image is features\[:, None\]"):
        Uniformity().update(torch.randn(8, 4))
