"""Each law of losses catches the fault planted for it; right losses and the lab's own hold them."""

import functools
import subprocess
import sys

import faulty_losses as faulty
import pytest
import torch

from marginlab import losses
from marginlab.testing import LawBroken, Pool, check_loss
from marginlab.testing.loss_laws import CLASSIFIER, LABELS, TWO_VIEWS, shards

few = functools.partial(check_loss, max_examples=5, budget=2**22)
NO_RANKS = ("ranks",)
FAULTS = [
    ("permutation", faulty.InOrder, "two_views"),
    ("symmetry", faulty.OneSided, "two_views"),
    ("symmetry", faulty.GradientOneSided, "two_views"),
    ("rotation", faulty.FirstCoordinate, "two_views"),
    ("history", faulty.Remembers, "two_views"),
    ("history", faulty.Random, "two_views"),
    ("finite", faulty.Unguarded, "two_views"),
    ("inputs_kept", faulty.InPlace, "two_views"),
    ("gradcheck", faulty.HalfDetached, "two_views"),
    ("gradcheck", faulty.NotDifferentiated, "two_views"),
    ("memory", faulty.Quadratic, "two_views"),
    ("class_names", faulty.NumbersMatter, "labels"),
    ("composition", faulty.Summed, "classifier"),
]
FAULTS_OF_RANKS = [faulty.Local, faulty.NotScaled, faulty.EmptyFails]


@pytest.mark.parametrize(("law", "loss", "kind"), FAULTS, ids=lambda x: getattr(x, "__name__", x))
def test_a_planted_fault_is_caught_and_named(law, loss, kind):
    with pytest.raises(LawBroken, match=rf'{loss.__name__} breaks the law "{law}": ') as caught:
        few(loss, kind=kind, laws=(law,), max_examples=20)
    assert caught.value.law == law


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("loss", FAULTS_OF_RANKS)
def test_a_fault_on_ranks_is_caught(pool, loss):
    assert few(loss, laws=("ranks",), ranks=(1,), pool=pool) == ("ranks",)
    with pytest.raises(LawBroken, match=f'{loss.__name__} breaks the law "ranks"') as caught:
        few(loss, laws=("ranks",), ranks=(2,), pool=pool, max_examples=20)
    assert loss is not faulty.EmptyFails or "a rank without rows" in str(caught.value)


def test_every_law_has_a_planted_fault():
    laws = {law.__name__ for law in (*TWO_VIEWS, *LABELS, *CLASSIFIER)}
    assert laws == {law for law, _, _ in FAULTS} | {"ranks"}


def test_the_input_is_small_and_both_values_are_said():
    with pytest.raises(LawBroken) as caught:
        few(faulty.OneSided, laws=("symmetry",))
    example = caught.value.example
    assert tuple(example["z1"].shape) == (2, 1)
    assert example["seed"] == 0
    assert f"z1 = {example['z1'].tolist()}\n  z2 = {example['z2'].tolist()}" in str(caught.value)
    loss = faulty.OneSided()
    one, two = loss(example["z1"], example["z2"]), loss(example["z2"], example["z1"])
    assert f"loss(z1, z2): {one.item()!r}\nloss(z2, z1): {two.item()!r}" in str(caught.value)
    assert "leave_out=('symmetry',)" in str(caught.value)


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(
    ("loss", "kind"),
    [(faulty.Plain, "two_views"), (faulty.WithinClasses, "labels"), (faulty.Linear, "classifier")],
)
def test_a_right_loss_of_ones_own_holds_all(pool, loss, kind):
    # a plain matrix of rows and classes: the law is about classes in blocks
    leave_out = ("memory",) if kind != "two_views" else ()
    held = few(loss, kind=kind, leave_out=leave_out, pool=pool)
    laws = {"two_views": TWO_VIEWS, "labels": LABELS, "classifier": CLASSIFIER}[kind]
    assert held == tuple(law.__name__ for law in laws if law.__name__ not in leave_out)


SMALL = {"budget": 2**20}
LAB = [
    (functools.partial(losses.InfoNCE, **SMALL), "two_views", ()),
    (functools.partial(losses.AlignUniform, **SMALL), "two_views", ()),
    (functools.partial(losses.TInfoNCE, **SMALL), "two_views", ()),
    (losses.SpectralContrastive, "two_views", ()),
    # of single coordinates: the axes matter
    (functools.partial(losses.CrossCorrelation, **SMALL), "two_views", ("rotation",)),
    (functools.partial(losses.VICReg, **SMALL), "two_views", ("rotation",)),
    (functools.partial(losses.SupCon, **SMALL), "labels", ()),
    (functools.partial(losses.MarginSoftmax, **SMALL), "classifier", ()),
    (functools.partial(losses.PartialFC, sample_rate=1.0, **SMALL), "classifier", ()),
    # which classes are sampled depends on the step and on all labels of the batch
    (functools.partial(losses.PartialFC, **SMALL), "classifier", ("composition", "history")),
]


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(("loss", "kind", "leave_out"), LAB)
def test_the_labs_own_losses_hold_them(pool, loss, kind, leave_out):
    few(loss, kind=kind, leave_out=leave_out, ranks=(3,), pool=pool, max_examples=3)


def test_a_loss_that_takes_no_group_is_tried_under_the_default_one():
    assert few(faulty.ByDefaultGroup, laws=("ranks",), ranks=(2,)) == ("ranks",)


def test_ranks_that_hang_are_waited_for_once():
    with (
        Pool(2, patience=1.0) as impatient,
        pytest.raises(LawBroken, match="ranks") as caught,
    ):
        few(faulty.Hangs, laws=("ranks",), ranks=(2,), pool=impatient)
    assert "rank" in str(caught.value)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_tried_is_refused():
    with pytest.raises(ValueError, match="no law 'rotatoin' of this kind: did you mean 'rotation'"):
        check_loss(faulty.Plain, leave_out=("rotatoin",))
    with pytest.raises(ValueError, match="no law 'composition' of this kind"):
        check_loss(faulty.Plain, laws=("composition",))
    with pytest.raises(ValueError, match="kind is not 'two views': did you mean 'two_views'"):
        check_loss(faulty.Plain, kind="two views")
    with pytest.raises(ValueError, match="leave_out="):
        check_loss(lambda: faulty.Plain(), laws=("ranks",))


def test_shards_are_uneven_and_some_are_empty():
    found = [shards(6, 3, seed) for seed in range(30)]
    assert all(sum(rows) == 6 for rows in found)
    assert any(0 in rows for rows in found)
    assert any(len(set(rows)) > 1 for rows in found)
    assert shards(0, 2, 0) == [0, 0]


def test_without_hypothesis_the_error_says_how_to_install_it():
    code = (
        "import sys; sys.modules['hypothesis'] = None; import marginlab.testing as t\n"
        "from marginlab.losses import InfoNCE\n"
        "try: t.check_loss(InfoNCE)\n"
        "except ImportError as error: print(error)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "pip install 'marginlab[test]'" in answer.stdout


def test_the_room_loads_hypothesis_when_it_draws():
    code = "import sys, marginlab, marginlab.testing; print('hypothesis' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"


def test_a_check_leaves_the_generator_of_torch_alone():
    before = torch.get_rng_state()
    few(losses.MarginSoftmax, kind="classifier", laws=("permutation",))
    assert torch.equal(torch.get_rng_state(), before)
