"""Each law of measures catches the fault planted for it; right measures and the lab's hold them."""

import functools

import faulty_measures as faulty
import pytest

from marginlab import measures
from marginlab.testing import LawBroken, check_measure
from marginlab.testing.measure_laws import LAWS

few = functools.partial(check_measure, max_examples=3, budget=2**22)
FAULTS = [
    ("split", faulty.MeanOfBatches),
    ("permutation", faulty.FirstImage),
    ("merge", faulty.MergesByMean),
    ("forward", faulty.CallsForTheStream),
    ("reset", faulty.ResetsHalf),
    ("pickled", faulty.PicklesEmpty),
    ("inputs_kept", faulty.InPlace),
    ("inputs_kept", faulty.KeepsTheBuffer),
    ("views", faulty.FirstView),
    ("rotation", faulty.FirstCoordinate),
    ("memory", faulty.Quadratic),
]
NAMES = tuple(law.__name__ for law in LAWS)


@pytest.mark.parametrize(("law", "measure"), FAULTS, ids=lambda x: getattr(x, "__name__", x))
def test_a_planted_fault_is_caught_and_named(law, measure):
    with pytest.raises(LawBroken, match=f'{measure.__name__} breaks the law "{law}": ') as caught:
        few(measure, laws=(law,), max_examples=20)
    assert caught.value.law == law


@pytest.mark.xdist_group("ranks")
def test_a_fault_on_ranks_is_caught(pool):
    with pytest.raises(LawBroken, match='MeanOfRanks breaks the law "ranks"'):
        few(faulty.MeanOfRanks, laws=("ranks",), ranks=(2,), pool=pool)


def test_every_law_has_a_planted_fault():
    assert set(NAMES) == {law for law, _ in FAULTS} | {"ranks"}


@pytest.mark.xdist_group("ranks")
def test_a_right_measure_of_ones_own_holds_all(pool):
    assert few(faulty.Spread, pool=pool, ranks=(1, 3), max_examples=2) == NAMES


def test_the_images_are_few_and_the_differing_field_is_named():
    with pytest.raises(
        LawBroken, match=r"result, spread: .*\nresult of rotated features, spread: "
    ) as caught:
        few(faulty.FirstCoordinate, laws=("rotation",))
    assert tuple(caught.value.example["features"].shape) == (6, 2, 2)
    with pytest.raises(LawBroken, match="no image") as caught:
        few(faulty.NoRows, laws=("split",), max_examples=20)
    assert "labels" not in caught.value.example


def test_fields_that_follow_the_order_are_left_out_by_name():
    order = {"laws": ("permutation",)}
    with pytest.raises(LawBroken, match="diameters"):
        few(measures.Alignment, **order)
    few(measures.Alignment, ordered=("diameters", "labels"), **order)


def test_an_unknown_law_is_refused():
    with pytest.raises(ValueError, match="no law 'splitting' of this kind: did you mean 'split'"):
        check_measure(faulty.Spread, leave_out=("splitting",))


LAB = [
    (measures.Alignment, {"ordered": ("diameters", "labels")}),
    (measures.Uniformity, {"budget": 2**26}),
    (
        functools.partial(measures.ClassDivergence, 3, 4),
        {
            "noise": ("error_gram", "error_within", "error_Delta_mu"),
            # the result holds the centers, which turn with the features
            "leave_out": ("ranks", "rotation"),
        },
    ),
    (
        functools.partial(measures.ClassVariance, 3, 4),
        {"noise": ("error_within", "error_variance", "error_CDNV_kl", "error_CDNV")},
    ),
    (functools.partial(measures.EffectiveRank, 4), {"noise": ("standard_error",)}),
    (functools.partial(measures.SpectrumDecay, 4), {"noise": ("error_alpha",)}),
    (functools.partial(measures.LiDAR, 4), {"noise": ("standard_error",)}),
]


@pytest.mark.parametrize(("measure", "named"), LAB)
def test_the_labs_own_measures_hold_them(measure, named):
    """On ranks each is tried in tests/measures, with the same law."""
    few(measure, dim=4, **{"leave_out": ("ranks",)} | named)
