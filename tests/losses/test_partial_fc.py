"""The laws of Partial FC on one process: the sample, the loss restricted to it, the row-sparse
gradient, and what training touches.
"""

import copy
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from loss_laws import value_and_gradients
from margin_oracle import MARGINS, make, naive, problems, settings_of_the_loss

from marginlab.losses import MarginSoftmax, PartialFC
from marginlab.losses.sampling import sample
from marginlab.margins import ArcFace, CosFace
from marginlab.optim import LazyAdamW, LazySGD


def head_with(w, margin, **arguments):
    C, K, D = w.shape
    head = PartialFC(C, D, margin=margin, subcenters=K, dtype=w.dtype, **arguments)
    head.load_centers(w)
    return head


def loss_and_gradients(head, x, labels, exclude=None):
    x = x.clone().requires_grad_()
    value = head(x, labels, exclude)
    weights = (
        torch.rand(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(0)) - 0.3
    )
    (value * weights).sum().backward()
    grad = head.centers.grad
    return value.detach(), x.grad, grad.to_dense() if grad.is_sparse else grad


@pytest.mark.parametrize("text", MARGINS)
@given(data=st.data())
def test_it_is_the_cross_entropy_restricted_to_the_sample(text, data):
    x, w, labels, generator = data.draw(problems())
    labels, arguments = data.draw(settings_of_the_loss(labels, len(w), generator))
    exclude = arguments.pop("exclude", None)
    rate, log_q = data.draw(st.sampled_from([0.0, 0.3, 0.7])), data.draw(st.booleans())
    valid = labels != -100
    if not bool(valid.any()):
        return
    classes, positives = sample(
        labels.masked_fill(~valid, -1), len(w), math.floor(rate * len(w) + 1e-6), seed=3, step=0
    )
    lift = torch.zeros(len(w), dtype=torch.float64)
    if log_q and len(classes) > positives:
        lift += math.log((len(w) - positives) / (len(classes) - positives))
        lift[labels[valid]] = 0.0
    seen = {}

    def oracle(a, b):
        value = naive(
            a, b, labels, make(text), classes=classes, lift=lift, exclude=exclude, **arguments
        )
        seen["value"] = value.detach()
        weights = (
            torch.rand(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(0))
            - 0.3
        )
        return (value * weights).sum()

    _, (to_x, to_w) = value_and_gradients(oracle, x, w)
    for dense in (False, True):
        budget = data.draw(st.sampled_from([1, 500, 2**27]))
        head = head_with(
            w,
            make(text),
            sample_rate=rate,
            log_q=log_q,
            seed=3,
            dense_grad=dense,
            budget=budget,
            **arguments,
        )
        value, got_x, got_w = loss_and_gradients(head, x, labels, exclude)
        assert head.centers.grad.is_sparse is not dense
        for got, expected in ((value, seen["value"]), (got_x, to_x), (got_w, to_w)):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@given(problem=problems(), rate=st.sampled_from([0.0, 0.4]))
def test_at_rate_one_and_in_evaluation_it_is_the_margin_softmax(problem, rate):
    x, w, labels, _ = problem
    whole = MarginSoftmax(
        len(w), w.shape[2], margin=CosFace(0.2), scale=8.0, subcenters=w.shape[1], dtype=w.dtype
    )
    whole.load_centers(w)
    expected = loss_and_gradients(whole, x, labels)
    for head in (
        head_with(w, CosFace(0.2), scale=8.0, sample_rate=1.0),
        head_with(w, CosFace(0.2), scale=8.0, sample_rate=rate).eval(),
    ):
        for got, there in zip(loss_and_gradients(head, x, labels), expected, strict=True):
            assert torch.equal(got, there)
        assert head.step == 0


@pytest.mark.parametrize("draws", [250, pytest.param(1000, marks=pytest.mark.nightly)])
def test_the_corrected_sum_is_unbiased_for_the_negatives(draws):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(40, 1, 6, dtype=torch.float64, generator=generator)
    x, labels = torch.randn(4, 6, dtype=torch.float64, generator=generator), torch.arange(4)
    cosines = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(w[:, 0]).T
    expected = (4 * cosines).exp()[:, 4:].sum(1)
    sums = []
    head = head_with(w, CosFace(0.0), scale=4.0, sample_rate=0.25, log_q=True, reduction="none")
    for _ in range(draws):
        classes, _ = sample(labels, 40, 10, seed=0, step=head.step)
        own = (4 * cosines).exp()[torch.arange(4), labels]
        # the sum over the other classes, those of the batch and the drawn ones
        there = (head(x, labels).detach().exp() - 1) * own
        batch = (4 * cosines).exp()[:, :4].sum(1) - own
        sums.append(there - batch)
        assert len(classes) == 10
    sums = torch.stack(sums)
    assert bool(((sums.mean(0) - expected).abs() < 5 * sums.std(0) / math.sqrt(len(sums))).all())


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda p: LazySGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: LazyAdamW(p, lr=0.01),
    ],
)
def test_only_sampled_rows_are_touched(make_optimizer):
    head = PartialFC(200, 8, sample_rate=0.05, scale=16.0)
    optimizer = make_optimizer(head.parameters())
    for step in range(5):
        labels = torch.randint(200, (4,), generator=torch.Generator().manual_seed(step))
        before = head.centers.detach().clone()
        classes, _ = sample(labels, 200, 10, seed=0, step=step)
        optimizer.zero_grad()
        head(torch.randn(4, 8), labels).backward()
        assert torch.equal(head.centers.grad.coalesce().indices()[0], classes)
        optimizer.step()
        moved = (head.centers.detach() != before).flatten(1).any(1)
        assert set(moved.nonzero().flatten().tolist()) <= set(classes.tolist())
        assert bool(moved[labels].all())


@pytest.mark.parametrize("semantics", ["lazy", "dense", "decayed"])
def test_all_semantics_agree_at_rate_one(semantics):
    generator = torch.Generator().manual_seed(0)
    heads = [
        PartialFC(12, 4, margin=ArcFace(0.3), scale=8.0, sample_rate=1.0, dtype=torch.float64)
        for _ in range(2)
    ]
    optimizers = [
        LazySGD(
            heads[0].parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, semantics=semantics
        ),
        torch.optim.SGD(heads[1].parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
    ]
    for _ in range(20):
        x, labels = (
            torch.randn(6, 4, dtype=torch.float64, generator=generator),
            torch.randint(12, (6,), generator=generator),
        )
        for head, optimizer in zip(heads, optimizers, strict=True):
            optimizer.zero_grad()
            head(x, labels).backward()
            optimizer.step()
    torch.testing.assert_close(heads[0].centers, heads[1].centers, rtol=1e-10, atol=1e-12)


def test_torch_optimizers_work_on_dense_gradients():
    head = PartialFC(50, 4, sample_rate=0.2, dense_grad=True)
    optimizer = torch.optim.AdamW(head.parameters())
    head(torch.randn(3, 4), torch.arange(3)).backward()
    optimizer.step()
    assert not head.centers.grad.is_sparse


def test_more_classes_in_the_batch_than_the_budget_are_all_kept():
    head = PartialFC(50, 4, sample_rate=0.04)  # 2 of 50
    head(torch.randn(10, 4), torch.arange(10)).backward()
    assert head.centers.grad.coalesce().indices()[0].tolist() == list(range(10))


def test_accumulated_gradients_add_up():
    x, labels = torch.randn(6, 4, dtype=torch.float64), torch.arange(6)
    heads = [
        PartialFC(30, 4, sample_rate=0.5, scale=8.0, dtype=torch.float64, reduction="sum", seed=1)
        for _ in range(2)
    ]
    heads[0](x[:3], labels[:3]).backward()
    heads[0](x[3:], labels[3:]).backward()
    first, second = copy.deepcopy(heads[1]), copy.deepcopy(heads[1])
    second.step = 1
    first(x[:3], labels[:3]).backward()
    second(x[3:], labels[3:]).backward()
    torch.testing.assert_close(
        heads[0].centers.grad.to_dense(),
        first.centers.grad.to_dense() + second.centers.grad.to_dense(),
    )


def test_a_restored_head_goes_on_with_the_same_samples():
    head = PartialFC(300, 4, sample_rate=0.1)
    x, labels = torch.randn(5, 4), torch.arange(5)
    for _ in range(3):
        head(x, labels)
    again = PartialFC(300, 4, sample_rate=0.1)
    again.load_state_dict(head.state_dict())
    assert again.step == 3
    assert torch.equal(again(x, labels), head(x, labels))


def test_a_batch_that_is_ignored_costs_nothing():
    for rate in (0.0, 0.5):
        head = PartialFC(20, 4, sample_rate=rate)
        loss = head(torch.randn(3, 4), torch.full((3,), -100))
        loss.backward()
        assert float(loss.detach()) == 0
        assert bool((head.centers.grad.to_dense() == 0).all())
        before = head.centers.detach().clone()
        LazySGD(head.parameters(), lr=0.1, weight_decay=0.1).step()
        assert rate > 0 or torch.equal(head.centers, before)


def test_a_rate_gives_the_classes_it_says():
    for rate, size in ((0.29, 29), (0.57, 57), (0.1, 10), (1 / 3, 33)):
        assert PartialFC(100, 4, sample_rate=rate).size == size


@pytest.mark.usefixtures("unchecked")
def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"part of the classes, in \[0, 1\], not 1.5"):
        PartialFC(10, 4, sample_rate=1.5)
    with pytest.raises(TypeError, match="sampel_rate"):
        PartialFC(10, 4, sampel_rate=0.5)
    with pytest.raises(ValueError, match=r"labels outside 0..9"):
        PartialFC(10, 4)(torch.randn(2, 4), torch.tensor([0, 10]))
    head = PartialFC(10, 4, validate="deferred")
    head(torch.randn(2, 4), torch.tensor([0, 10]))
    with pytest.raises(ValueError, match="batch before this one"):
        head(torch.randn(2, 4), torch.tensor([0, 1]))
