"""Laws of every margin: its interface."""

import copy
import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from marginlab import margins, settings
from marginlab.margins import (
    AdaFace,
    ArcFace,
    CombinedMargin,
    CosFace,
    CurricularFace,
    ElasticFace,
    MagFace,
    Margin,
    NoMargin,
    SphereFace,
    Targets,
)

KINDS = [
    ArcFace(0.4),
    CosFace(0.3),
    SphereFace(1.2),
    CombinedMargin(0.9, 0.4, 0.15),
    NoMargin(),
    AdaFace(0.3, h=0.5, momentum=0.2),
    MagFace(5.0, 50.0, 0.3, 0.9, 20.0),
    CurricularFace(0.4, momentum=0.1),
    ElasticFace(0.4, std=0.05, seed=3),
    ElasticFace(0.3, std=0.1, kind="cos", plus=True),
]
every = pytest.mark.parametrize("margin", KINDS, ids=repr)
HALVES = [torch.float16, torch.bfloat16]


def batch(rows=40, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cosine, norm = torch.rand(2, rows, dtype=torch.float64, generator=generator)
    return (cosine * 2 - 1).to(dtype), (norm * 60).to(dtype)


@every
@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
def test_its_repr_reads_back(margin, gradient):
    text = repr(margin).replace("'exact'", f"'{gradient}'")
    again = settings.make(text, margins, margins.Margin)
    assert (repr(again), again.gradient, type(again)) == (text, gradient, type(margin))
    assert torch.equal(again.targets(*batch()).value, copy.deepcopy(margin).targets(*batch()).value)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_its_targets_are_finite_wide_and_detached(margin, dtype, training):
    margin = copy.deepcopy(margin).train(training)
    cosine = torch.tensor(
        [-1 - 1e-6, -1.0, -0.5, 0.0, 0.5, 1.0, 1 + 1e-6], dtype=dtype, requires_grad=True
    )
    norm = torch.tensor(
        [0.0, 1e-4, 1.0, 20.0, 30.0, 100.0, 1000.0], dtype=dtype, requires_grad=True
    )
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    targets = margin.targets(cosine, norm)
    for answer in targets:
        if answer is not None:
            assert answer.dtype == wide
            assert not answer.requires_grad
            assert bool(answer.isfinite().all())
            assert answer is targets.hardness or answer.shape == (7,)
    assert bool((targets.slope >= 0).all())
    if dtype in HALVES:
        again = copy.deepcopy(margin)
        assert torch.equal(
            again.eval().targets(cosine, norm).value,
            again.targets(cosine.float(), norm.float()).value,
        )


@every
@given(st.integers(0, 2**16))
def test_its_slope_is_the_derivative_of_its_value(margin, seed):
    margin, h = copy.deepcopy(margin).eval(), 1e-6
    cosine, norm = batch(seed=seed)
    cosine = cosine * 0.99
    below, at, above = (margin.targets(cosine + step, norm) for step in (-h, 0.0, h))
    numeric = (above.value - below.value) / (2 * h)
    smooth = (above.slope - below.slope).abs() < 1e-3  # not across a joint
    assert int(smooth.sum()) > 30
    torch.testing.assert_close(at.slope[smooth], numeric[smooth], rtol=1e-5, atol=1e-5)


@every
def test_straight_through_changes_the_slope_alone(margin):
    exact, through = (
        copy.deepcopy(margin),
        settings.make(
            repr(margin).replace("'exact'", "'straight_through'"), margins, margins.Margin
        ),
    )
    for one, other in zip(
        through.targets(*batch())._replace(slope=None),
        exact.targets(*batch())._replace(slope=None),
        strict=True,
    ):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    assert torch.equal(through.targets(*batch()).slope, torch.ones(40, dtype=torch.float64))


@every
def test_without_batchwise_a_part_of_a_batch_is_enough(margin):
    margin = copy.deepcopy(margin).train()
    cosine, norm = batch()
    whole = copy.deepcopy(margin).targets(cosine, norm)
    parts = [
        copy.deepcopy(margin).targets(c, n)
        for c, n in zip(cosine.split(13), norm.split(13), strict=True)
    ]
    same = torch.equal(whole.value, torch.cat([part.value for part in parts])) and all(
        part.hardness == whole.hardness for part in parts
    )
    assert same != margin.batchwise


@every
def test_an_empty_batch_has_empty_targets_and_moves_nothing(margin):
    margin = copy.deepcopy(margin).train()
    before = copy.deepcopy(margin.state_dict())
    targets = margin.targets(torch.zeros(0), torch.zeros(0))
    assert targets.value.shape == targets.slope.shape == (0,)
    assert all(torch.equal(before[name], value) for name, value in margin.state_dict().items())


@every
def test_in_evaluation_mode_nothing_moves(margin):
    margin = copy.deepcopy(margin).eval()
    before = copy.deepcopy(margin.state_dict())
    first, second = (margin.targets(*batch()).value for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(before[name], value) for name, value in margin.state_dict().items())


@every
def test_its_state_is_saved_and_goes_on(margin):
    margin = copy.deepcopy(margin).train()
    for seed in range(3):
        margin.targets(*batch(seed=seed))
    again = settings.make(repr(margin), margins, margins.Margin)
    again.load_state_dict(margin.state_dict())
    pickled = pickle.loads(pickle.dumps(margin))
    for one, other, third in zip(
        margin.targets(*batch(seed=9)),
        again.targets(*batch(seed=9)),
        pickled.targets(*batch(seed=9)),
        strict=True,
    ):
        assert one is None or (torch.equal(one, other) and torch.equal(one, third))


@pytest.mark.parametrize("margin", [m for m in KINDS if m.state_dict()], ids=repr)
def test_a_margin_with_state_moves_it_in_training(margin):
    margin = copy.deepcopy(margin).train()
    before = copy.deepcopy(margin.state_dict())
    margin.targets(*batch())
    assert all(not torch.equal(before[name], value) for name, value in margin.state_dict().items())


@every
def test_called_like_a_loss_it_says_what_to_write(margin):
    with pytest.raises(TypeError) as error:
        margin(torch.zeros(2, 3), torch.zeros(2))
    assert f"is a margin, no loss: write MarginSoftmax(num_classes, dim, margin={margin!r})" in str(
        error.value
    )


@pytest.mark.usefixtures("unchecked")
@every
def test_cosines_and_norms_that_do_not_fit_are_refused(margin):
    for cosine, norm in (
        (torch.zeros(3), torch.zeros(2)),
        (torch.zeros(3, 2), torch.zeros(3, 2)),
        (torch.zeros(3), torch.zeros(3, 1)),
    ):
        with pytest.raises(
            ValueError,
            match=r"target cosines \(B,\) and as many feature norms \(B,\), not \(3,.*\) and \(",
        ):
            margin.targets(cosine, norm)
    with pytest.raises(TypeError, match=r"Cosines are floating point, not torch.int64"):
        margin.targets(torch.zeros(3, dtype=torch.int64), torch.zeros(3))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_gradient_is_refused():
    with pytest.raises(
        settings.SettingsError,
        match=r"gradient is not 'straight': did you mean 'straight_through'\?",
    ):
        settings.make("ArcFace(0.5, gradient='straight')", margins, margins.Margin)


def test_a_text_names_margins_only():
    classes = [
        getattr(margins, name)
        for name in margins.__all__
        if isinstance(getattr(margins, name), type)
    ]
    assert {type(margin) for margin in KINDS} == set(classes)
    assert all(issubclass(kind, Margin) for kind in classes)


def test_a_margin_of_ones_own():
    class Fading(Margin):
        def compute(self, cosine, norm, valid):
            return Targets(cosine - 1 / norm, torch.ones_like(cosine), norm_slope=1 / norm**2)

    targets = Fading().targets(torch.tensor([0.5]), torch.tensor([4.0]))
    assert (float(targets.value), float(targets.norm_slope)) == (0.25, 0.0625)
    with pytest.raises(TypeError, match="abstract"):
        Margin()
