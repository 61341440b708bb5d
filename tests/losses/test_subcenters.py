"""Sub-centers: one of them is ArcFace, the winner alone moves, dispersion, ranks, usage."""

import pytest
import torch

from marginlab.losses import MarginSoftmax, PartialFC
from marginlab.losses.dispersion import dispersion
from marginlab.losses.margin_softmax import margin_softmax
from marginlab.margins import ArcFace, CosFace
from marginlab.optim import LazySGD
from marginlab.train.usage import subcenter_usage

C, K, D = 7, 3, 5


def problem(B=24, K=K, dtype=torch.float64):
    generator = torch.Generator().manual_seed(B + K)
    w = torch.randn(C, K, D, dtype=dtype, generator=generator)
    x = torch.randn(B, D, dtype=dtype, generator=generator)
    return x, w, torch.randint(C, (B,), generator=generator)


def made(w, kind=PartialFC, margin=None, **arguments):
    head = kind(
        *(len(w), w.shape[2], margin or CosFace(0.2), 8.0, w.shape[1]), dtype=w.dtype, **arguments
    )
    head.load_centers(w)
    return head


def dense(grad):
    return grad.to_dense() if grad.is_sparse else grad


def step(head, x, labels):
    x = x.clone().requires_grad_()
    loss = head(x, labels)
    loss.sum().backward()
    return loss.detach(), x.grad, dense(head.centers.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_one_subcenter_is_arcface_bit_for_bit(rate, dtype):
    """The same bits come from one sub-center, from the function over (C, D) centers, and the same
    loss from three sub-centers that are equal.
    """
    x, w, labels = problem(K=1, dtype=dtype)
    one = step(made(w, margin=ArcFace(0.5), sample_rate=rate), x, labels)
    thrice = made(w.repeat(1, 3, 1), margin=ArcFace(0.5), sample_rate=rate)
    assert torch.equal(step(thrice, x, labels)[0], one[0])
    if rate == 1:
        rows, plain = x.clone().requires_grad_(), w[:, 0].clone().requires_grad_()
        loss = margin_softmax(rows, labels, plain, margin=ArcFace(0.5), scale=8.0)
        loss.backward()
        for a, b in zip(one, (loss.detach(), rows.grad, plain.grad[:, None]), strict=True):
            assert torch.equal(a, b)
        direct = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(w[:, 0]).T
        target = direct.gather(1, labels[:, None])
        lowered = (target.clamp(-1, 1).acos() + 0.5).cos()
        fallback = target - 0.5 * torch.tensor(0.5).sin().to(dtype)
        moved = torch.where(target > -torch.tensor(0.5).cos().to(dtype), lowered, fallback)
        logits = 8 * direct.scatter(1, labels[:, None], moved)
        expected = torch.nn.functional.cross_entropy(logits, labels)
        torch.testing.assert_close(one[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_only_the_winning_subcenter_of_each_class_moves(rate):
    x, w, labels = problem()
    head = made(w, sample_rate=rate)
    for row in range(len(x)):
        head.centers.grad = None
        _, _, grad = step(head, x[row : row + 1], labels[row : row + 1])
        directions = torch.nn.functional.normalize(w, dim=2)
        winners = (directions @ x[row]).argmax(1)
        moved = grad.abs().sum(2) > 0
        losers = torch.ones(C, K, dtype=torch.bool)
        losers[torch.arange(C), winners] = False
        assert not bool((moved & losers).any())
        assert bool(moved[labels[row], winners[labels[row]]])
        if rate == 1:
            assert bool(moved.any(1).all())


def pairwise(w, labels):
    rows = []
    for label in labels.tolist():
        u = torch.nn.functional.normalize(w[label], dim=1)
        pairs = [u[k] @ u[j] for k in range(len(u)) for j in range(k)]
        rows.append(torch.stack(pairs).mean())
    return torch.stack(rows)


@pytest.mark.parametrize("kind", [MarginSoftmax, PartialFC])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_dispersion_is_added_to_each_row(kind, reduction):
    x, w, labels = problem()
    labels[:2] = -100
    more = {"sample_rate": 1.0} if kind is PartialFC else {}
    more |= {"reduction": reduction, "class_weights": torch.rand(C) + 0.5}
    without, with_it = (made(w, kind, dispersion=weight, **more) for weight in (0.0, 0.7))
    rows = torch.zeros(len(x), dtype=torch.float64)
    rows[2:] = pairwise(w, labels[2:])
    weights = more["class_weights"].double()[labels.clamp_min(0)] * (labels >= 0)
    term = {"none": weights * rows, "sum": (weights * rows).sum()}
    term["mean"] = term["sum"] / weights.sum()
    difference = with_it(x, labels) - without(x, labels)
    torch.testing.assert_close(difference, 0.7 * term[reduction], rtol=1e-9, atol=1e-9)


def test_dispersion_drives_the_subcenters_of_the_batch_apart():
    _, w, _ = problem()
    w = (w[:, :1] + 0.1 * w).float()
    torch.autograd.gradcheck(
        lambda y: dispersion(y, torch.tensor([0, 2, 2])), w.double().requires_grad_()
    )
    x, labels = torch.randn(8, D), torch.arange(8) % 3
    head = made(w, dispersion=10.0, sample_rate=0.5)
    before = dispersion(head.centers.detach(), torch.arange(C))
    optimizer = LazySGD(head.parameters(), lr=0.2)
    for _ in range(100):
        optimizer.zero_grad()
        head(x, labels).backward()
        assert head.centers.grad.is_sparse
        optimizer.step()
    after = dispersion(head.centers.detach(), torch.arange(C))
    assert bool((after[:3] < before[:3] - 0.5).all())


def on_a_rank(group, rank, w, x, labels, rows, rate):
    own = slice(sum(rows[:rank]), sum(rows[: rank + 1]))
    head = made(w, group=group, sample_rate=rate, dispersion=0.3, grads="sum", seed=4)
    found = step(head, x[own], labels[own])
    empty = slice(0, None if rank == 0 else 0)  # the first rank has all rows of the monitor's bank
    return found, head.part, subcenter_usage(head, x[empty], labels[empty], 1)


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("rate", [1.0, 0.1])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_three_subcenters_on_n_ranks_are_those_of_one(pool, n, rate):
    x, w, labels = problem()
    labels[3] = -100
    single = made(w, sample_rate=rate, dispersion=0.3, seed=4)
    loss, to_x, to_w = step(single, x, labels)
    keep = labels >= 0
    everything = subcenter_usage(single, x[keep], labels[keep], 1)
    assert sum(row.value for row in everything[:K]) == pytest.approx(1)
    rows = [24 // n] * (n - 1) + [24 - 24 // n * (n - 1)]
    answers = pool.run(n, on_a_rank, w, x, labels, rows, rate)
    torch.testing.assert_close(
        torch.cat([found[1] for found, _, _ in answers]), to_x, rtol=1e-10, atol=1e-10
    )
    for found, part, usage in answers:
        torch.testing.assert_close(found[0], loss, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found[2], to_w[part], rtol=1e-10, atol=1e-10)
        assert repr(usage) == repr(everything)


@pytest.mark.parametrize(
    ("votes", "shares", "dead"),
    [
        ([[4, 0, 0], [2, 1, 1]], [0.75, 0.125, 0.125], 2 / 6),
        ([[0, 0, 0], [0, 3, 1]], [0.75, 0.25, 0.0], 1 / 3),
    ],
)
def test_usage_is_that_of_the_votes(votes, shares, dead):
    w = torch.eye(3).expand(2, 3, 3)
    labels, near = [], []
    for c, row in enumerate(votes):
        for k, n in enumerate(row):
            labels += [c] * n
            near += [k] * n
    head = made(w, MarginSoftmax)
    rows = subcenter_usage(head, torch.eye(3)[torch.tensor(near)], torch.tensor(labels), 2)
    assert [row.value for row in rows] == pytest.approx([*shares, dead])
    assert [(row.quantity, row.at) for row in rows[2:]] == [
        ("subcenter_share", "3"), ("dead_subcenters", "")
    ]  # fmt: skip
    assert {row.n for row in rows} == {len(labels)}
