"""The laws of the margin softmax, whatever the margin, the budget and the number of ranks."""

import copy
import functools
import math
import warnings

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from loss_laws import few, value_and_gradients
from margin_oracle import MARGINS, make, naive, problems, settings_of_the_loss
from torch.utils._python_dispatch import TorchDispatchMode

import marginlab.kernels.margin_softmax as kernel
from marginlab.losses import MarginSoftmax
from marginlab.losses.functional import margin_softmax
from marginlab.margins import ArcFace, CombinedMargin, CosFace, NoMargin

# one column, some columns, row chunks or columns, everything
budgets = st.sampled_from([1, 300, 5000, 2**27])


def close(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def least_sine(x, w):
    """Return the sine of the angle that is nearest to 0 or 180 degrees, of a row and a center."""
    rows, centers = F.normalize(x.double())[:, None], F.normalize(w.double().flatten(0, 1))[None]
    return min(float((rows - sign * centers).norm(dim=-1).min()) for sign in (-1, 1))


def function(x, w, labels, margin, **arguments):
    return margin_softmax(x, labels, w, margin=margin, **arguments)


def weighted(values, seed=0):
    """A sum in which every row has its own upstream gradient."""
    weights = (
        torch.rand(values.shape, dtype=values.dtype, generator=torch.Generator().manual_seed(seed))
        - 0.3
    )
    return (values * weights).sum()


@pytest.mark.parametrize("text", MARGINS)
@settings(max_examples=25)
@given(data=st.data())
def test_it_is_its_formula_in_value_and_gradient(text, data):
    x, w, labels, generator = data.draw(problems())
    labels, arguments = data.draw(settings_of_the_loss(labels, len(w), generator))
    margin = make(text)
    rows = data.draw(st.sampled_from([1, 1000]))
    expected = value_and_gradients(
        lambda a, b: weighted(naive(a, b, labels, margin, **arguments)), x, w
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "ROWS_CPU", rows)
        budget = data.draw(budgets)
        got = value_and_gradients(
            lambda a, b: weighted(
                function(a, b, labels, copy.deepcopy(margin), budget=budget, **arguments)
            ),
            x,
            w,
        )
    close(got[0], expected[0])
    # the slope of an angular margin holds sin(theta + m) / sin(theta): what rounding of a cosine
    # does to it grows by 1 / sin^2, in the oracle as well
    rounding = 1e-15 * arguments["scale"] / least_sine(x, w) ** 2
    for a, b in zip(got[1], expected[1], strict=True):
        close(a, b, max(rounding, 1e-9 if arguments["scale"] == 64.0 else 1e-10))


@given(data=st.data())
def test_in_float32_it_keeps_five_digits(data):
    x, w, labels, _ = data.draw(problems(features=(3, 8)))
    margin, scale = ArcFace(0.5), data.draw(st.sampled_from([4.0, 16.0]))
    x, w = x.float(), w.float()
    expected = value_and_gradients(
        lambda a, b: naive(a, b, labels, margin, scale=scale), x.double(), w.double()
    )
    budget = data.draw(budgets)
    value, slopes = value_and_gradients(
        lambda a, b: function(a, b, labels, margin, scale=scale, budget=budget), x, w
    )
    # a cosine carries some 2^-23, and the loss scale times that
    torch.testing.assert_close(value.double(), expected[0], rtol=1e-5, atol=scale * 2e-7)
    for a, b in zip(slopes, expected[1], strict=True):
        torch.testing.assert_close(
            a.double(),
            b,
            rtol=1e-5,
            atol=max(1e-5, scale * 1e-6) * float(b.abs().max())
            + scale * 1e-7 * max(1.0, 1 / least_sine(x, w) ** 2),  # as above
        )


@pytest.mark.parametrize(
    "text", [text for text in MARGINS if "through" not in text and not make(text).batchwise]
)
@few
@given(problem=problems(rows=(1, 5), classes=(2, 6)), budget=budgets)
def test_gradients_are_the_derivatives_of_the_values(text, problem, budget):
    x, w, labels, _ = problem
    margin = make(text)
    call = functools.partial(
        function, labels=labels, margin=margin, scale=4.0, budget=budget, reduction="none"
    )
    cosine = (F.normalize(x, dim=1)[:, None] * F.normalize(w, dim=2)[labels]).sum(2)
    if bool((cosine.abs() > 0.95).any()) or (
        len(w[0]) > 1 and bool((cosine.amax(1) - cosine.amin(1) < 1e-3).any())
    ):
        return  # too near an end, where second derivatives are large, or to a change of sub-center
    turning = [getattr(margin, "turning_point", None)]
    if turning[0] is not None and bool(((cosine.amax(1) - float(turning[0])).abs() < 1e-3).any()):
        return
    assert torch.autograd.gradcheck(
        lambda a, b: call(a, b), (x.clone().requires_grad_(), w.clone().requires_grad_()), atol=1e-5
    )


@given(problem=problems(), budget=budgets)
def test_without_a_margin_it_is_the_softmax_of_cosines(problem, budget):
    x, w, labels, _ = problem
    w = w[:, :1]
    expected = value_and_gradients(
        lambda a, b: F.cross_entropy(8 * F.normalize(a) @ F.normalize(b[:, 0]).T, labels), x, w
    )
    for margin in (NoMargin(), CombinedMargin(1.0, 0.0, 0.0), ArcFace(0.0), CosFace(0.0)):
        value, slopes = value_and_gradients(
            lambda a, b, m=margin: function(a, b, labels, m, scale=8.0, budget=budget), x, w
        )
        close(value, expected[0])
        for a, b in zip(slopes, expected[1], strict=True):
            close(a, b, 1e-7)  # at a cosine of 1 a margin of 0 goes through its angle


def test_class_weights_and_ignored_rows_are_torchs():
    generator = torch.Generator().manual_seed(0)
    x, w = (
        torch.randn(9, 4, generator=generator).double(),
        torch.randn(5, 4, generator=generator).double(),
    )
    labels = torch.tensor([0, 1, 2, 3, 4, -100, 0, -100, 2])
    weights = torch.rand(5, generator=generator).double()
    logits = 16 * F.normalize(x) @ F.normalize(w).T
    for reduction in ("mean", "sum", "none"):
        expected = F.cross_entropy(logits, labels, weights, reduction=reduction)
        close(
            margin_softmax(
                x,
                labels,
                w,
                margin=NoMargin(),
                scale=16.0,
                class_weights=weights,
                reduction=reduction,
            ),
            expected,
        )
    every = margin_softmax(
        x, labels.clamp_min(0), w, margin=NoMargin(), scale=16.0, ignore_index=None
    )
    close(every, F.cross_entropy(logits, labels.clamp_min(0)))
    with pytest.raises(ValueError, match=r"labels outside 0..4\."):
        margin_softmax(x, labels, w, margin=NoMargin(), ignore_index=None)
    close(
        margin_softmax(x, labels, w, margin=NoMargin(), scale=16.0, label_smoothing=0.2),
        F.cross_entropy(logits, labels, label_smoothing=0.2),
    )


def test_where_no_row_counts_the_loss_is_zero():
    x = torch.randn(3, 4, requires_grad=True)
    head = MarginSoftmax(5, 4)
    loss = head(x, torch.full((3,), -100))
    loss.backward()
    assert float(loss.detach()) == 0
    assert bool((x.grad == 0).all())
    assert bool((head.centers.grad == 0).all())
    assert float(head(x[:0], torch.zeros(0, dtype=torch.long)).detach()) == 0


@given(problem=problems(rows=(2, 6), classes=(2, 6)), m=st.floats(0, 1.5), more=st.floats(0, 1.5))
def test_the_loss_rises_with_the_margin(problem, m, more):
    x, w, labels, _ = problem
    for kind in (ArcFace, CosFace):
        less, much = (
            function(x, w, labels, kind(value), scale=8.0, reduction="none")
            for value in (m, m + more)
        )
        assert bool((much >= less - 1e-9).all())


@pytest.mark.parametrize("text", ["ArcFace(0.5)", "CurricularFace(0.5)", "AdaFace(0.4)"])
@given(problem=problems(), budget=budgets)
def test_indifferent_to_a_common_rotation_and_to_lengths(text, problem, budget):
    x, w, labels, generator = problem
    rotation = torch.linalg.qr(
        torch.randn(x.shape[1], x.shape[1], dtype=torch.float64, generator=generator)
    ).Q
    value = function(x, w, labels, make(text), scale=8.0, budget=budget)
    close(function(x @ rotation, w @ rotation, labels, make(text), scale=8.0), value, 1e-8)
    longer = 0.01 + 10 * torch.rand(*w.shape[:2], 1, dtype=torch.float64, generator=generator)
    close(function(x, w * longer, labels, make(text), scale=8.0), value, 1e-8)
    if text != "AdaFace(0.4)":  # which looks at the lengths of the embeddings
        close(function(x * longer.flatten()[0], w, labels, make(text), scale=8.0), value, 1e-8)


@given(problem=problems(), budget=budgets)
def test_gradients_stand_at_right_angles(problem, budget):
    x, w, labels, _ = problem
    _, (to_x, to_w) = value_and_gradients(
        lambda a, b: function(a, b, labels, ArcFace(0.5), scale=8.0, budget=budget), x, w
    )
    assert float((to_x * x).sum(1).abs().max()) < 1e-9
    assert float((to_w * w).sum(2).abs().max()) < 1e-9


@given(problem=problems(centers=(2, 3)))
def test_only_the_nearest_sub_center_learns(problem):
    x, w, labels, _ = problem
    x = x[:1]
    _, (_, to_w) = value_and_gradients(
        lambda a, b: function(a, b, labels[:1], ArcFace(0.5), scale=4.0), x, w
    )
    cosines = torch.einsum("d,ckd->ck", F.normalize(x[0], dim=0), F.normalize(w, dim=2))
    away = torch.ones_like(cosines, dtype=torch.bool).scatter_(
        1, cosines.argmax(1, keepdim=True), False
    )
    assert bool((to_w[away] == 0).all())


@given(data=st.data())
def test_blocks_change_nothing_and_repetition_not_a_bit(data):
    x, w, labels, _ = data.draw(problems(rows=(2, 12), classes=(2, 14)))
    x, w = x.float(), w.float()
    results = []
    for budget in (1, 300, 5000, 2**27):
        once, again = (
            value_and_gradients(
                lambda a, b, n=budget: function(a, b, labels, ArcFace(0.5), scale=8.0, budget=n),
                x,
                w,
            )
            for _ in range(2)
        )
        assert torch.equal(once[0], again[0])
        assert all(torch.equal(a, b) for a, b in zip(once[1], again[1], strict=True))
        results.append(once)
    for value, slopes in results[1:]:
        torch.testing.assert_close(value, results[0][0], rtol=1e-5, atol=1e-6)
        for a, b in zip(slopes, results[0][1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.abs().max())))


def test_a_loss_near_zero_keeps_its_digits():
    w = torch.eye(8)
    x = torch.eye(8)[:1] + 0.01 * torch.eye(8)[1:2]
    for scale in (8.0, 16.0, 32.0):  # e^-32 is far below the last digit of 1
        got = float(margin_softmax(x, torch.tensor([0]), w, margin=CosFace(0.1), scale=scale))
        expected = float(
            margin_softmax(
                x.double(), torch.tensor([0]), w.double(), margin=CosFace(0.1), scale=scale
            )
        )
        assert got == pytest.approx(expected, rel=scale * 1e-6)
        assert expected > 0


def test_straight_through_is_the_gradient_of_the_published_code():
    generator = torch.Generator().manual_seed(1)
    x, w = (
        torch.randn(6, 5, dtype=torch.float64, generator=generator),
        torch.randn(7, 5, dtype=torch.float64, generator=generator),
    )
    labels = torch.tensor([0, 1, 2, 3, 4, 5])
    x = x + 2 * w[labels]  # no angle beyond pi - m

    def published(a, b):
        cosine = F.normalize(a) @ F.normalize(b).T
        own = cosine.gather(1, labels[:, None])
        change = (torch.cos(torch.acos(own.detach()) + 0.5) - own.detach()).squeeze(1)
        logits = 16 * (
            cosine + torch.zeros_like(cosine).scatter(1, labels[:, None], change[:, None])
        )
        return F.cross_entropy(logits, labels)

    expected = value_and_gradients(published, x, w)
    got = value_and_gradients(
        lambda a, b: margin_softmax(
            a, labels, b, margin=ArcFace(0.5, gradient="straight_through"), scale=16.0
        ),
        x,
        w,
    )
    exact = value_and_gradients(
        lambda a, b: margin_softmax(a, labels, b, margin=ArcFace(0.5), scale=16.0), x, w
    )
    close(got[0], expected[0])
    close(exact[0], expected[0])
    for a, b, c in zip(got[1], expected[1], exact[1], strict=True):
        close(a, b)
        assert not torch.allclose(a, c, rtol=1e-2)


def test_pytorch_metric_learning_agrees_where_it_is_right():
    from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss

    generator = torch.Generator().manual_seed(2)
    w = torch.randn(6, 5, generator=generator)
    labels = torch.arange(6)
    x = torch.randn(6, 5, generator=generator) + w
    arcface, cosface = (
        ArcFaceLoss(6, 5, margin=math.degrees(0.5), scale=16),
        CosFaceLoss(6, 5, margin=0.35, scale=16),
    )
    for theirs, ours in ((arcface, ArcFace(0.5)), (cosface, CosFace(0.35))):
        with torch.no_grad():
            theirs.W.copy_(w.T)
        expected = value_and_gradients(theirs, x, labels=labels)
        got = value_and_gradients(
            lambda a, m=ours: margin_softmax(a, labels, w, margin=m, scale=16.0), x
        )
        torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got[1][0], expected[1][0], rtol=1e-3, atol=1e-4)


def test_bf16_operands_round_the_other_classes_only():
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(2000, 64, generator=generator)
    labels = torch.randint(2000, (64,), generator=generator)
    x = F.normalize(w[labels]) + 0.1 * torch.randn(64, 64, generator=generator)
    exact = value_and_gradients(
        lambda a, b: margin_softmax(a, labels, b, margin=ArcFace(0.5), scale=64.0), x, w
    )
    got = value_and_gradients(
        lambda a, b: margin_softmax(
            a, labels, b, margin=ArcFace(0.5), scale=64.0, operands=torch.bfloat16
        ),
        x,
        w,
    )
    assert got[0].dtype == torch.float32
    assert float(got[0]) == pytest.approx(float(exact[0]), rel=0.01)
    for a, b in zip(got[1], exact[1], strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).norm() / b.norm()) < 0.03
    # one class: there is no other, and the target is not rounded
    alone = margin_softmax(
        x,
        labels * 0,
        w[:1],
        margin=CosFace(0.3),
        scale=64.0,
        operands=torch.bfloat16,
        reduction="none",
    )
    assert bool((alone == 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_embeddings_and_centers_keep_float32_sums(dtype):
    head = MarginSoftmax(50, 8, scale=16.0, dtype=dtype)
    x = torch.randn(6, 8).to(dtype).requires_grad_()
    loss = head(x, torch.arange(6))
    loss.backward()
    assert (loss.dtype, x.grad.dtype, head.centers.grad.dtype) == (torch.float32, dtype, dtype)
    exact = margin_softmax(
        x.detach().double(),
        torch.arange(6),
        head.centers.detach().double(),
        margin=ArcFace(0.5),
        scale=16.0,
    )
    assert float(loss.detach()) == pytest.approx(float(exact), rel=0.02)


def test_compiled_is_the_same():
    generator = torch.Generator().manual_seed(4)
    x, w = torch.randn(16, 8, generator=generator), torch.randn(300, 1, 8, generator=generator)
    labels = torch.randint(300, (16,), generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        got = value_and_gradients(
            lambda a, b: function(
                a, b, labels, ArcFace(0.5), scale=16.0, compiled=True, budget=16 * 300 * 2
            ),
            x,
            w,
        )
    expected = value_and_gradients(
        lambda a, b: function(a, b, labels, ArcFace(0.5), scale=16.0), x, w
    )
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-5)
    for a, b in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


class Largest(TorchDispatchMode):
    """Size in numbers of the largest tensor of any operation, except those of one shape."""

    def __init__(self, allowed):
        super().__init__()
        self.allowed, self.numel = allowed, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            views = (
                func.is_view
                or any(tensor is arg for arg in args)
                or tensor is (kwargs or {}).get("out")
            )
            if (
                isinstance(tensor, torch.Tensor)
                and not views
                and tuple(tensor.shape) not in self.allowed
            ):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("K", [1, 2])
def test_nothing_quadratic_is_held_and_no_copy_of_the_centers(K):
    B, C, D = 64, 3000, 16
    x, w = torch.randn(B, D, requires_grad=True), torch.randn(C, K, D, requires_grad=True)
    labels = torch.randint(C, (B,))
    with Largest({(C, K, D)}) as seen:  # the gradient of the centers, and their inverse norms
        loss = margin_softmax(x, labels, w, margin=ArcFace(0.5), budget=2**16, validate=False)
        loss.backward()
    assert seen.numel <= max(2**16 // 4, C * K, B * K * D)
    with Largest(set()) as seen:
        margin_softmax(x.detach(), labels, w, margin=ArcFace(0.5), budget=2**16, validate=False)
    assert seen.numel < C * K * D / 2


@pytest.mark.parametrize(
    ("precision", "steps"),
    [
        (torch.bfloat16, 300),
        pytest.param(torch.bfloat16, 10_000, marks=pytest.mark.nightly),
        (torch.float32, 300),
    ],
)
def test_adversarial_steps_stay_finite(precision, steps):
    generator = torch.Generator().manual_seed(5)
    head = MarginSoftmax(6, 4, margin=ArcFace(0.5), scale=64.0)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    rows, layer = (
        torch.randn(8, 4, generator=generator),
        torch.nn.Linear(4, 4, bias=False).requires_grad_(False),
    )
    for step in range(steps):
        head.operands, head.budget = (
            (None, torch.bfloat16)[step % 3 == 0],
            (None, 64)[step % 5 == 0],
        )
        with torch.no_grad():
            if step % 50 == 0:
                head.centers[:3, 0] = torch.tensor([0.0, 1e-30, 1e30])[:, None] * F.normalize(
                    torch.randn(3, 4, generator=generator)
                )
            x = rows.clone()
            x[0] = 0.0
            x[1] = x[2]
            x[3] = head.centers[3, 0]
            x[4] = -head.centers[4, 0]
            x[5] *= 1e-30
            x[6] *= 1e30
        x.requires_grad_()
        with torch.autocast("cpu", dtype=precision, enabled=precision == torch.bfloat16):
            # of the layer: bfloat16; without it the lengths are what was said
            embeddings = layer(x) if step % 2 else x
            loss = head(embeddings, torch.tensor([0, 1, 2, 3, 4, 5, 0, 1]))
        optimizer.zero_grad()
        loss.backward()
        assert bool(loss.isfinite())
        assert bool(x.grad.isfinite().all())
        assert bool(head.centers.grad.isfinite().all())
        torch.nn.utils.clip_grad_norm_(head.parameters(), 5.0)
        optimizer.step()


def on_a_rank(group, rank, text, x, w, labels, rows, grads, arguments):
    margin = make(text)
    own = slice(sum(rows[:rank]), sum(rows[: rank + 1]))
    call = functools.partial(margin_softmax, margin=margin, group=group, grads=grads, **arguments)
    value, slopes = value_and_gradients(lambda a, b: call(a, labels[own], b), x[own], w)
    return value, slopes, {name: buffer.clone() for name, buffer in margin.named_buffers()}


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("text", MARGINS)
@settings(max_examples=2)
@given(data=st.data())
def test_n_ranks_are_one_rank(pool, text, data):
    n = data.draw(st.integers(2, 4))
    rows = data.draw(
        st.lists(st.integers(0, 4), min_size=n, max_size=n).filter(lambda r: sum(r) > 1)
    )
    x, w, labels, _ = data.draw(problems(rows=(sum(rows), sum(rows)), classes=(2, 6)))
    if data.draw(st.booleans()):
        labels[0] = -100
    arguments = {"scale": 8.0, "reduction": data.draw(st.sampled_from(["mean", "sum"]))}
    margin = make(text)
    value, (to_x, to_w) = value_and_gradients(
        lambda a, b: function(a, b, labels, margin, **arguments), x, w
    )
    for grads, factor in (("sum", 1), ("mean", n)):
        answers = pool.run(n, on_a_rank, text, x, w, labels, rows, grads, arguments)
        for answer, _, state in answers:
            close(answer, value)
            for name, buffer in margin.named_buffers():
                close(state[name], buffer)
        close(torch.cat([slopes[0] for _, slopes, _ in answers]), factor * to_x, 1e-9)
        close(sum(slopes[1] for _, slopes, _ in answers), factor * to_w, 1e-9)
