"""Terms on angles: their formulas, gradients, ranks, blocks, and what they refuse."""

import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from marginlab.losses import AngularTriplet, InterClass, IntraClass
from marginlab.losses.functional import angular_triplet, inter_class, intra_class
from marginlab.testing import check_loss

FEW = settings(max_examples=15)


def drawn(seed, B=7, C=5, D=4):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(B, D, dtype=torch.float64, generator=generator)
    centers = torch.randn(C, D, dtype=torch.float64, generator=generator)
    return rows, torch.randint(C, (B,), generator=generator), centers


def naive_intra(x, labels, w):
    cosine = F.normalize(x) @ F.normalize(w).T
    return cosine[torch.arange(len(x)), labels].acos().mean() / math.pi


def naive_inter(x, labels, w):
    angle = (F.normalize(w) @ F.normalize(w).T).clamp(-1, 1).acos()
    parts = [
        sum(angle[y, j] for j in range(len(w)) if j != y) / (math.pi * (len(w) - 1))
        for y in labels.tolist()
    ]
    return -torch.stack(parts).mean()


def naive_triplet(x, labels, margin):
    angle = (F.normalize(x) @ F.normalize(x).T).clamp(-1, 1).acos()
    losses = []
    for a in range(len(x)):
        near = [angle[a, p] for p in range(len(x)) if p != a and labels[p] == labels[a]]
        far = [angle[a, n] for n in range(len(x)) if labels[n] != labels[a]]
        if near and far:
            losses.append((max(near) + margin - min(far)).clamp_min(0))
    return torch.stack(losses).mean() if losses else x.sum() * 0


def slopes(loss, *leaves):
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


def agree(ours, theirs, *leaves):
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(slopes(ours, *leaves), slopes(theirs, *leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@FEW
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(2, 6))
def test_values_and_gradients_are_those_of_the_printed_formulas(seed, B, C):
    x, labels, w = drawn(seed, B, C)
    x.requires_grad_(), w.requires_grad_()
    agree(intra_class(x, labels, w), naive_intra(x, labels, w), x, w)
    agree(inter_class(x, labels, w), naive_inter(x, labels, w), x, w)
    agree(angular_triplet(x, labels, margin=0.35), naive_triplet(x, labels, 0.35), x)


@FEW
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(0.01, 100))
def test_lengths_and_a_rotation_change_nothing_and_a_weight_multiplies(seed, one, other):
    x, labels, w = drawn(seed)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    for term in (IntraClass(), InterClass(), AngularTriplet()):
        value = term(x, labels, w)
        torch.testing.assert_close(term(one * x @ turn, labels, other * w @ turn), value)
        term.weight = 3.0
        torch.testing.assert_close(term(x, labels, w), 3 * value)


def test_the_triplet_keeps_the_laws_of_losses(pool):
    checked = check_loss(AngularTriplet, kind="labels", ranks=(1, 3), max_examples=4, pool=pool)
    assert {"permutation", "gradcheck", "memory", "ranks", "rotation"} <= set(checked)


def test_blocks_give_what_the_whole_gives():
    x, labels, w = drawn(3, B=30, C=20)
    x.requires_grad_(), w.requires_grad_()
    for function in (inter_class, angular_triplet):
        leaves = (x, w) if function is inter_class else (x,)
        arguments = (x, labels, w) if function is inter_class else (x, labels)
        agree(function(*arguments, budget=1), function(*arguments), *leaves)


def test_gradients_are_finite_where_the_arc_cosine_has_none():
    x = torch.eye(3).repeat(2, 1).requires_grad_()
    w = torch.cat((torch.eye(3), -torch.eye(3)[:1])).requires_grad_()
    labels = torch.arange(3).repeat(2)
    for loss in (intra_class(x, labels, w), inter_class(x, labels, w), angular_triplet(x, labels)):
        assert bool(loss.isfinite())
        for slope in slopes(loss, x, w):
            assert bool(slope.isfinite().all())


def test_a_step_along_the_gradient_draws_together_and_pushes_apart():
    x, labels, w = drawn(1, B=20)
    x.requires_grad_(), w.requires_grad_()
    before = intra_class(x, labels, w)
    moved = x - 0.5 * slopes(before, x)[0]
    assert bool(intra_class(moved, labels, w) < before)
    before = inter_class(x, labels, w)
    moved = w - 0.5 * slopes(before, w)[0]
    assert bool(inter_class(x, labels, moved) < before)


def on_a_rank(group, rank, kind, x, labels, w, rows, sharded, grads):
    own = slice(sum(rows[:rank]), sum(rows[: rank + 1]))
    x = x[own].clone().requires_grad_()
    per = -(-len(w) // len(rows))
    w = (w[rank * per : (rank + 1) * per] if sharded else w).clone().requires_grad_()
    loss = kind(group=group, grads=grads)(x, labels[own], w, sharded=sharded)
    return loss.detach(), *slopes(loss, x, w)


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("kind", [IntraClass, InterClass])
@pytest.mark.parametrize("sharded", [True, False])
def test_n_ranks_are_one_rank(pool, kind, sharded):
    x, labels, w = drawn(11, B=7, C=5)
    x.requires_grad_(), w.requires_grad_()
    value = kind()(x, labels, w)
    to_x, to_w = slopes(value, x, w)
    x, w = x.detach(), w.detach()
    for rows, grads in (([7, 0], "sum"), ([3, 4], "mean"), ([2, 0, 5], "mean")):
        n = len(rows)
        answers = pool.run(n, on_a_rank, kind, x, labels, w, rows, sharded, grads)
        factor = n if grads == "mean" else 1
        for answer in answers:
            torch.testing.assert_close(answer[0], value.detach(), rtol=1e-10, atol=1e-10)
        joined = torch.cat([answer[1] for answer in answers])
        torch.testing.assert_close(joined, factor * to_x, rtol=1e-10, atol=1e-10)
        centers = [answer[2] for answer in answers]
        if sharded:  # the rank that has a center has its whole gradient
            torch.testing.assert_close(torch.cat(centers), to_w, rtol=1e-10, atol=1e-10)
        else:
            torch.testing.assert_close(sum(centers), factor * to_w, rtol=1e-10, atol=1e-10)


def test_a_batch_without_anything_to_compare_gives_zero():
    none = torch.zeros(0, 4, requires_grad=True)
    no_labels = torch.zeros(0, dtype=torch.long)
    w = torch.eye(4, requires_grad=True)
    for loss in (
        intra_class(none, no_labels, w),
        inter_class(none, no_labels, w),
        inter_class(torch.eye(4), torch.zeros(4, dtype=torch.long), w[:1]),
        angular_triplet(none, no_labels),
        angular_triplet(torch.eye(4, requires_grad=True), torch.arange(4)),
    ):
        assert float(loss.detach()) == 0
        assert loss.requires_grad


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: intra_class(torch.eye(2), torch.tensor([0, 2]), torch.eye(2)), "Label 2 is no"),
        (lambda: inter_class(torch.eye(2), torch.arange(2), torch.ones(2, 3)), "with D = 2"),
        (lambda: intra_class(torch.eye(2), torch.arange(3), torch.eye(2)), r"labels \(B,\)"),
        (lambda: IntraClass(weight=0.0), "weight of a term is positive"),
        (lambda: AngularTriplet(margin=4.0), "in radians, in"),
        (lambda: InterClass(grads="sums"), "grads"),
        (lambda: IntraClass()(torch.eye(2), torch.arange(2)), "call it with centers"),
    ],
)
def test_what_cannot_be_is_refused(call, sentence, unchecked):
    with pytest.raises(ValueError, match=sentence):
        call()
