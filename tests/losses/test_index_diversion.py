"""Index diversion and the two terms beside it: golden values, constant targets, floor, ranks."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from marginlab.losses import IndexDiversion
from marginlab.losses.functional import attention_target, index_diversion, index_regression

TWO = torch.float64


def test_the_golden_values():
    mean, deviation = torch.tensor(0.2, dtype=TWO), torch.tensor(0.1, dtype=TWO)
    for predicted, loss in ((0.35, 1.5), (0.6, 0.0)):
        found = index_diversion(torch.tensor([predicted], dtype=TWO), mean, deviation, tau=3.0)
        assert float(found) == pytest.approx(loss)
    for error, loss in ((0.3, 0.06), (1.15, 0.775)):
        found = index_regression(torch.tensor([1 + error], dtype=TWO), torch.ones(1, dtype=TWO))
        assert float(found) == pytest.approx(loss)


@given(st.integers(0, 10**6), st.floats(0.5, 5))
def test_images_beyond_tau_pay_nothing_and_get_no_gradient(seed, tau):
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(30, generator=generator)
    loss = IndexDiversion("predicted", tau)
    loss.renew(s)
    x = (torch.randn(12, generator=generator) * 4).requires_grad_()
    loss(x).backward()
    beyond = (x.detach() - loss.mean) / loss.deviation >= tau
    assert float(x.grad[beyond].abs().sum()) == 0
    expected = torch.full((12,), -1 / 12) / loss.deviation
    torch.testing.assert_close(x.grad[~beyond], expected[~beyond])
    torch.testing.assert_close(loss.mean, s.mean())
    torch.testing.assert_close(loss.deviation, s.std())


def test_no_gradient_reaches_targets_and_statistics():
    tensors = [torch.randn(6, 4), torch.randn(6, 4), torch.randn(4)]
    attended, embeddings, center = (x.requires_grad_() for x in tensors)
    attention_target(attended, embeddings, center).backward()
    assert embeddings.grad is None
    assert center.grad is None
    assert float(attended.grad.norm()) > 0
    predicted, index, mean, deviation = (
        x.requires_grad_()
        for x in (torch.zeros(6), torch.rand(6), torch.tensor(0.5), torch.tensor(0.3))
    )
    (index_regression(predicted, index) + index_diversion(predicted, mean, deviation)).backward()
    assert index.grad is mean.grad is deviation.grad is None
    assert float(predicted.grad.norm()) > 0
    loss = IndexDiversion()
    loss.renew(torch.rand(5, requires_grad=True))
    assert not loss.mean.requires_grad
    assert not list(loss.parameters())


def test_the_attended_target_by_hand():
    x, u = torch.randn(5, 3, dtype=TWO), torch.randn(3, dtype=TWO)
    unit = torch.nn.functional.normalize
    v, direction = unit(x, dim=1), unit(u, dim=0)
    left = v - (v @ direction)[:, None] * direction
    attended = torch.randn(5, 3, dtype=TWO)
    expected = (attended - left).square().sum(1).mean()
    torch.testing.assert_close(attention_target(attended, x, u), expected)


def test_the_three_kinds_of_statistics():
    first, prior = IndexDiversion("labelled"), IndexDiversion("prior", seed=3)
    assert float(first(torch.tensor([-9.0]))) == 0  # nothing is known yet
    assert abs(float(prior.mean)) < 0.05
    assert abs(float(prior.deviation) - 1) < 0.05
    assert float(prior(torch.tensor([-9.0]))) > 10
    with pytest.raises(ValueError, match="'prior' are fixed"):
        prior.renew(torch.rand(4))
    first.renew(torch.full((4,), 0.25))  # as of a head that says one number
    assert float(first.deviation) == pytest.approx(0.05)
    assert float(first(torch.full((2,), 0.25))) == pytest.approx(3.0)
    again = IndexDiversion("labelled")
    again.load_state_dict(first.state_dict())
    assert float(again(torch.full((2,), 0.25))) == pytest.approx(3.0)


def test_too_hard_a_pressure_warns_with_its_numbers():
    loss = IndexDiversion()
    loss.renew(torch.tensor([0.1, 0.2, 0.3]))
    assert loss.pressure(0.02, 1.0) == pytest.approx(0.2)
    assert loss.pressure(0.0, 0.0) == 0.0
    with pytest.warns(UserWarning, match=r"presses 2\.00 times as hard.*at most 0\.02"):
        loss.pressure(0.2, 1.0)


def test_what_is_no_loss_is_refused(unchecked):
    with pytest.raises(ValueError, match="kind is one of"):
        IndexDiversion("guessed")
    with pytest.raises(ValueError, match="positive"):
        IndexDiversion(tau=0.0)
    loss = IndexDiversion()
    for wrong in (torch.rand(1), torch.rand(2, 2), torch.tensor([0.0, torch.nan])):
        with pytest.raises(ValueError, match="at least 2 finite"):
            loss.renew(wrong)
    with pytest.raises(ValueError, match="deviation of indices is positive"):
        index_diversion(torch.rand(2), torch.tensor(0.0), torch.tensor(0.0))
    with pytest.raises(ValueError, match="over no row"):
        loss(torch.rand(0))
    with pytest.raises(ValueError, match="shape of the embeddings"):
        attention_target(torch.rand(2, 3), torch.rand(3, 3), torch.rand(3))
    with pytest.raises(ValueError, match=r"A center of embeddings \(2, 3\) is \(3,\), not \(2,\)"):
        attention_target(torch.rand(2, 3), torch.rand(2, 3), torch.rand(2))
    for wrong in (torch.rand(1), torch.rand(2, 1)):  # which would be spread over the rows
        with pytest.raises(ValueError, match=r"shape of the predicted ones, \(2,\)"):
            index_regression(torch.rand(2), wrong)


def one_rank_is_wrong(group, rank):
    x, u, heard = torch.rand(2, 3), torch.rand(3), []
    for call in (
        lambda: index_diversion(x[:, 0], u[0], u[0] - rank, group=group),
        lambda: index_regression(x[:, 0], torch.rand(2 + rank), group=group),
        lambda: attention_target(x, torch.rand(2 + rank, 3), u, group=group),
        lambda: index_diversion(x[:, 0], u[0], u[0] + 1, tau=3.0 + rank, group=group),
    ):
        try:
            call()
        except ValueError as error:
            heard.append(str(error))
    return heard


@pytest.mark.xdist_group("ranks")
def test_an_input_that_one_rank_rejects_is_heard_by_all(pool, unchecked):
    for answer in pool.run(2, one_rank_is_wrong):
        assert len(answer) == 4
        assert "deviation of indices is positive" in answer[0]
        assert "shape of the predicted ones" in answer[1]
        assert "shape of the embeddings" in answer[2]
        assert "do not call index_diversion alike: tau is 3.0 on rank 0" in answer[3]


def total(group, grads, predicted, index, attended, embeddings, center):
    """All three terms with other weights, and the gradients of what learns."""
    over = {"group": group, "grads": grads}
    loss = IndexDiversion("predicted", **over).double()
    loss.renew(index)
    predicted, attended = (x.detach().clone().requires_grad_() for x in (predicted, attended))
    own = index[: len(predicted)] * 0.5
    value = (
        0.3 * loss(predicted)
        + index_regression(predicted, own, **over)
        + 0.7 * attention_target(attended, embeddings, center, **over)
    )
    value.backward()
    return value.detach(), predicted.grad, attended.grad


def on_a_rank(group, rank, grads, rows, tensors, index, center):
    own = slice(sum(rows[:rank]), sum(rows[: rank + 1]))
    predicted, attended, embeddings = (x[own] for x in tensors)
    return total(group, grads, predicted, index, attended, embeddings, center)


@pytest.mark.xdist_group("ranks")
@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from(["mean", "sum"]), st.data())
def test_ranks_give_the_value_and_gradients_of_one(pool, seed, n, grads, data):
    rows = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n).filter(any))
    generator = torch.Generator().manual_seed(seed)
    B = sum(rows)
    predicted, center = (torch.randn(k, generator=generator, dtype=TWO) for k in (B, 3))
    index = torch.full((B + 2,), 0.8, dtype=TWO)  # alike for all, as ranks take their own rows
    index[B:] = torch.tensor([0.3, 0.1])
    attended, embeddings = (torch.randn(B, 3, generator=generator, dtype=TWO) for _ in range(2))
    tensors = (predicted, attended, embeddings)
    value, *wanted = total(None, grads, predicted, index, attended, embeddings, center)
    answers = pool.run(n, on_a_rank, grads, rows, tensors, index, center)
    factor = n if grads == "mean" else 1
    for theirs, *_ in answers:
        torch.testing.assert_close(theirs, value, rtol=1e-10, atol=1e-10)
    for number, gradient in enumerate(wanted, start=1):
        together = torch.cat([answer[number] for answer in answers])
        torch.testing.assert_close(together, factor * gradient, rtol=1e-10, atol=1e-10)
