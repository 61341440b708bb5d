"""InfoNCE with labels: several positives to an anchor, and the blockwise sum that it is made of."""

import functools
import warnings

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from loss_laws import draw_views, few, several, value_and_gradients

from marginlab.kernels import softplus_sum
from marginlab.losses import InfoNCE
from marginlab.losses.functional import info_nce
from marginlab.testing.memory import peak_of


def naive(z1, z2, extra, labels, temperature, negatives, symmetric, decoupled, reduction):
    """The mean over positives of each one's share, anchor by anchor."""
    x1, x2, more = (F.normalize(z) for z in (z1, z2, extra))
    if negatives == "both_views":
        both, named = torch.cat((x1, x2)), labels.repeat(2)
        sides = [(both, both, named, named, True)]
    else:
        sides = [(x1, x2, labels, labels, False), (x2, x1, labels, labels, False)]
        sides = sides if symmetric else sides[:1]
    losses = []
    for x, y, of, classes, itself in sides:
        for i, anchor in enumerate(x):
            s = (y @ anchor / temperature).exp()
            negative = s[classes != of[i]].sum() + (more @ anchor / temperature).exp().sum()
            alike = (classes == of[i]) & ~(itself & (torch.arange(len(y)) == i))
            below = negative + (0 if decoupled else s[alike])
            losses.append(-(s[alike] / below).log().mean())
    losses = torch.stack(losses)
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]


SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.05, 3),
        "decoupled": st.booleans(),
        "reduction": st.sampled_from(["mean", "sum", "none"]),
    }
).flatmap(
    lambda more: st.sampled_from(
        [("both_views", True), ("other_view", True), ("other_view", False)]
    ).map(lambda form: more | {"negatives": form[0], "symmetric": form[1]})
)


def labelled(z1, z2, extra, labels, **arguments):
    return info_nce(z1, z2, extra_negatives=extra, labels=labels, **arguments)


@several
@given(data=st.data())
def test_it_is_its_formula_in_value_and_gradient(data):
    arguments = data.draw(SETTINGS)
    labels = data.draw(st.lists(st.integers(-2, 2), min_size=2, max_size=8))
    several_classes = len(set(labels)) > 1
    labels = torch.tensor(labels)
    z1, z2, generator = draw_views(data, len(labels), features=3)
    count = data.draw(st.integers(0 if several_classes else 1, 3))
    extra = torch.randn(count, 3, dtype=torch.float64, generator=generator)
    budget = data.draw(st.sampled_from([64, 1000, 2**20]))
    got = value_and_gradients(
        functools.partial(labelled, labels=labels, budget=budget, **arguments), z1, z2, extra
    )
    expected = value_and_gradients(
        functools.partial(naive, labels=labels, **arguments), z1, z2, extra
    )
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    module = InfoNCE(budget=budget, **arguments)
    assert torch.equal(module(z1, z2, extra, labels), got[0])


@several
@given(data=st.data())
def test_with_a_label_for_each_image_it_is_info_nce(data):
    arguments = data.draw(SETTINGS)
    z1, z2, generator = draw_views(data, data.draw(st.integers(2, 8)), features=3)
    labels = torch.randperm(len(z1), generator=generator) * 7 - 3
    got = value_and_gradients(functools.partial(info_nce, labels=labels, **arguments), z1, z2)
    expected = value_and_gradients(functools.partial(info_nce, **arguments), z1, z2)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def on_a_rank(group, rank, parts, arguments, grads):
    *views, labels = parts[rank]
    function = functools.partial(labelled, labels=labels, group=group, grads=grads, **arguments)
    return value_and_gradients(function, *views)


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("n", [1, 2, 3, 4])
@few
@given(data=st.data())
def test_n_ranks_are_one_rank(pool, n, data):
    arguments = data.draw(SETTINGS.filter(lambda a: a["reduction"] != "none"))
    rows, more = ([data.draw(st.integers(0, 3)) for _ in range(n)] for _ in range(2))
    rows[0] += 2
    z1, z2, generator = draw_views(data, sum(rows), features=3)
    labels = torch.randint(0, 3, (sum(rows),), generator=generator)
    labels[0], labels[1] = 0, 1
    extra = torch.randn(sum(more), 3, dtype=torch.float64, generator=generator)
    function = functools.partial(labelled, labels=labels, **arguments)
    value, slopes = value_and_gradients(function, z1, z2, extra)
    split = (z1.split(rows), z2.split(rows), extra.split(more), labels.split(rows))
    parts = list(zip(*split, strict=True))
    for grads, factor in (("sum", 1), ("mean", n)):
        answers = pool.run(n, on_a_rank, parts, arguments, grads)
        for answer, _ in answers:
            torch.testing.assert_close(answer, value, rtol=1e-10, atol=1e-10)
        for i, slope in enumerate(slopes):
            joined = torch.cat([a[1][i] for a in answers])
            torch.testing.assert_close(joined, factor * slope, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 2]])
def test_pytorch_metric_learning_agrees(labels):
    """Its mean over pairs is one over anchors, each weighted by the number of its positives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = pytest.importorskip("pytorch_metric_learning.losses")
        theirs = losses.NTXentLoss(temperature=0.3)
        generator = torch.Generator().manual_seed(0)
        z1, z2 = torch.randn(2, 6, 5, dtype=torch.float64, generator=generator)
        both = torch.tensor(labels).repeat(2)
        expected = value_and_gradients(lambda a, b: theirs(torch.cat((a, b)), both), z1, z2)
    positives = (both == both[:, None]).sum(1) - 1

    def weighted(a, b):
        losses = info_nce(a, b, temperature=0.3, labels=both[:6], reduction="none")
        return (losses * positives).sum() / positives.sum()

    got = value_and_gradients(weighted, z1, z2)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_a_temperature_that_learns_has_the_gradient_of_the_formula():
    z1, z2 = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels, temperature = torch.tensor([0, 1, 0, 2]), torch.tensor(0.3, dtype=torch.float64)
    fixed = {"symmetric": True, "reduction": "mean", "negatives": "both_views"}
    for decoupled in (False, True):
        got = value_and_gradients(
            lambda t, d=decoupled: info_nce(z1, z2, temperature=t, labels=labels, decoupled=d),
            temperature,
        )
        expected = value_and_gradients(
            lambda t, d=decoupled: naive(z1, z2, z1[:0], labels, t, decoupled=d, **fixed),
            temperature,
        )
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_a_batch_of_one_class_has_no_negatives():
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(3, dtype=torch.long)
    for arguments in ({}, {"decoupled": True}, {"negatives": "other_view"}):
        function = functools.partial(info_nce, labels=labels, **arguments)
        value, slopes = value_and_gradients(function, z, z + 1)
        assert float(value) == 0.0
        assert all(bool((s == 0).all()) for s in slopes)
    with pytest.raises(ValueError, match="batch of 3, all of one label, has no negatives"):
        InfoNCE(empty="raise")(z, z, labels=labels)


@pytest.mark.usefixtures("unchecked")
def test_labels_that_cannot_be_are_refused():
    z, labels = torch.ones(4, 3), torch.arange(4)
    with pytest.raises(ValueError, match=r"Labels are \(4,\), one class for each row.*\(3,\)"):
        info_nce(z, z, labels=labels[:3])
    for wrong in (labels.float(), labels == 1):
        with pytest.raises(TypeError, match="Labels are integers, not torch"):
            info_nce(z, z, labels=wrong)
    with pytest.raises(TypeError, match=r"not numpy.ndarray of shape .*torch.as_tensor"):
        info_nce(z, z, labels=labels.numpy())
    with pytest.raises(ValueError, match=r"so tau_plus is 0, not 0.1: give labels or tau_plus"):
        info_nce(z, z, labels=labels, tau_plus=0.1)
    with pytest.raises(ValueError, match=r"sup_con\(embeddings, labels, references="):
        InfoNCE(negatives="extra_only")(z, z, z, labels)


def test_nothing_quadratic_is_held():
    rows = 2000
    z = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(rows) // 4

    def step():
        x = z.clone().requires_grad_()
        info_nce(x, x + 1, labels=labels, budget=2**20).backward()

    assert peak_of(step) < 40 * 2**20  # the whole of 4,000 x 4,000 is 61 MiB


INTERVALS = torch.tensor([[0, 0, 2, 5, 3], [3, 2, 5, 5, 4], [1, -1, 4, 0, 9]])


def summed(x, y):
    columns = torch.arange(len(y))
    first, stop, own = INTERVALS[:, :, None]
    inside = (columns >= first) & (columns < stop) & (columns != own)
    return torch.where(inside, F.softplus(x @ y.T, threshold=40.0), 0.0).sum(1)


@pytest.mark.parametrize("budget", [1, 200, 2**20])
def test_the_sum_has_two_derivatives_at_any_budget(budget):
    x, y = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    function = functools.partial(
        softplus_sum, first=INTERVALS[0], stop=INTERVALS[1], left_out=INTERVALS[2], budget=budget
    )
    torch.testing.assert_close(
        value_and_gradients(function, x, y), value_and_gradients(summed, x, y)
    )
    inputs = (x.requires_grad_(), y.requires_grad_())
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.usefixtures("unchecked")
def test_what_the_sum_cannot_take_is_refused():
    x = torch.ones(5, 3)
    with pytest.raises(ValueError, match=r"one width and dtype, not \(5, 3\)"):
        softplus_sum(x, x[:, :2], *INTERVALS)
    with pytest.raises(
        ValueError, match="one interval and one column that it leaves out, not 5, 5 and 4"
    ):
        softplus_sum(x, x, INTERVALS[0], INTERVALS[1], INTERVALS[2, :4])
    with pytest.raises(ValueError, match="positive byte budget, not 0"):
        softplus_sum(x, x, *INTERVALS, budget=0)
