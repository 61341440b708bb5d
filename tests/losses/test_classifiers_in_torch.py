"""Classifiers as citizens of torch: checkpointing, derivatives of any order, torch.func, compiled
graphs, meta, dtypes.
"""

import copy
import os
import sys

import forked
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from margin_oracle import make
from torch.utils.checkpoint import checkpoint

from marginlab.losses import MarginSoftmax, PartialFC
from marginlab.losses.functional import margin_softmax
from marginlab.margins import AdaFace, ArcFace, CurricularFace, MagFace, NoMargin

STATEFUL = ["AdaFace(0.4)", "CurricularFace(0.5)", "ElasticFace(0.5, std=0.05)"]


def batch(rows=6, classes=40, dim=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, dtype=torch.float64, generator=generator)
    return x, torch.randint(classes, (rows,), generator=generator)


def close(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("text", ["ArcFace(0.5)", *STATEFUL])
@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_a_pass_run_again_finds_its_step(text, rate, reentrant):
    """Two calls before the backward pass: each is run again with its own sample and averages."""
    head = PartialFC(40, 4, make(text), 8.0, sample_rate=rate, dtype=torch.float64, dense_grad=True)
    plain, results = copy.deepcopy(head), []
    for each, run in ((plain, lambda f, *a: f(*a)), (head, None)):
        run = run or (lambda f, *a: checkpoint(f, *a, use_reentrant=reentrant))
        views = [batch(seed=seed) for seed in range(2)]
        xs = [x.requires_grad_() for x, _ in views]
        losses = [run(each, x, y) for x, (_, y) in zip(xs, views, strict=True)]
        sum(losses).backward()
        state = [each.step, *(b.clone() for b in each.margin.buffers())]
        results.append((losses, [x.grad for x in xs], each.centers.grad, state))
    for got, expected in zip(results[1], results[0], strict=True):
        close(got, expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_target_cosines_stay_those_of_the_last_batch(reentrant):
    head, views = MarginSoftmax(40, 4, dtype=torch.float64), [batch(seed=seed) for seed in range(2)]
    losses = [checkpoint(head, x.requires_grad_(), y, use_reentrant=reentrant) for x, y in views]
    last = head.target_cosines.clone()
    sum(losses).backward()
    assert torch.equal(head.target_cosines, last)


def test_a_window_takes_checkpointed_parts():
    head = PartialFC(
        40, 4, AdaFace(0.4), 8.0, sample_rate=0.2, dtype=torch.float64, dense_grad=True
    )
    plain = copy.deepcopy(head)
    x, y = batch()
    for each, run in (
        (plain, lambda f, *a: f(*a)),
        (head, lambda f, *a: checkpoint(f, *a, use_reentrant=False)),
    ):
        with each.window(y, statistics="previous"):
            parts = [
                run(each, x[part].requires_grad_(), y[part]) for part in (slice(0, 3), slice(3, 6))
            ]
            sum(parts).backward()
    close(head.centers.grad, plain.centers.grad)
    close(head.margin.mean, plain.margin.mean)


def test_a_pass_inside_a_backward_pass_that_is_none_run_again_is_refused():
    head, (x, y) = PartialFC(40, 4, sample_rate=0.2, dtype=torch.float64), batch()
    head(x, y)
    z = torch.ones(1, requires_grad=True)
    z.register_hook(lambda grad: grad * head(batch(5)[0], y[:5]))
    with pytest.raises(RuntimeError, match="none of the last 1 had these 5 rows"):
        (2 * z).backward()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("budget", [1, 2**20])
def test_class_weights_with_label_smoothing_are_torchs(reduction, budget):
    x, y = batch(9, 5)
    y[[3, 5]] = -100
    w = torch.randn(5, 4, dtype=torch.float64)
    weights = torch.tensor([0.0, 0.3, 1.0, 2.0, 0.7], dtype=torch.float64)
    arguments = {"label_smoothing": 0.3, "reduction": reduction}

    def theirs(x, w):
        return F.cross_entropy(16 * F.normalize(x) @ F.normalize(w).T, y, weights, **arguments)

    def ours(x, w):
        return margin_softmax(
            x,
            y,
            w,
            margin=NoMargin(),
            scale=16.0,
            class_weights=weights,
            budget=budget,
            **arguments,
        )

    for got, expected in zip(*(value_and_slopes(f, x, w) for f in (ours, theirs)), strict=True):
        close(got, expected)


def value_and_slopes(function, *inputs):
    inputs = [each.clone().requires_grad_() for each in inputs]
    value = function(*inputs)
    mixed = (value * torch.arange(1.0, 1 + value.numel(), dtype=value.dtype).view_as(value)).sum()
    return value.detach(), *torch.autograd.grad(mixed, inputs)


def test_the_number_of_the_docstring_of_torchs_weights():
    eye = torch.eye(2, dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0], dtype=torch.float64)
    loss = margin_softmax(
        eye[:1],
        torch.tensor([0]),
        eye,
        margin=NoMargin(),
        scale=1.0,
        class_weights=weights,
        label_smoothing=0.5,
    )
    close(loss, torch.tensor(0.89157, dtype=torch.float64), 2e-5)


def weighted_on_a_rank(group, rank, x, y, w, weights, rows):
    head = PartialFC(
        5,
        4,
        NoMargin(),
        16.0,
        class_weights=weights,
        label_smoothing=0.3,
        sample_rate=1.0,
        group=group,
        grads="sum",
        dtype=torch.float64,
    )
    head.load_centers(w)
    mine = x.split(rows)[rank].clone().requires_grad_()
    loss = head(mine, y.split(rows)[rank])
    loss.backward()
    return loss.detach(), mine.grad, head.centers.grad


@pytest.mark.xdist_group("ranks")
def test_class_weights_with_label_smoothing_over_ranks(pool):
    x, y = batch(7, 5)
    w, weights = torch.randn(5, 4, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    expected = value_and_slopes(
        lambda x, w: F.cross_entropy(
            16 * F.normalize(x) @ F.normalize(w).T, y, weights, label_smoothing=0.3
        ),
        x,
        w,
    )
    answers = pool.run(3, weighted_on_a_rank, x, y, w, weights, [3, 0, 4])
    close(answers[0][0], expected[0])
    close(torch.cat([a[1] for a in answers]), expected[1])
    close(torch.cat([a[2].flatten(0, 1) for a in answers]), expected[2])


@pytest.mark.parametrize(
    "turn",
    [
        torch.nn.Module.bfloat16,
        pytest.param(torch.nn.Module.half, marks=pytest.mark.nightly),
        pytest.param(lambda m: m.to(torch.bfloat16), marks=pytest.mark.nightly),
    ],
)
def test_averages_stay_float32(turn):
    margin = turn(MarginSoftmax(5, 4, margin=AdaFace(0.4))).margin
    curricular = turn(CurricularFace(0.5))
    for _ in range(1000):
        margin.targets(torch.zeros(4), torch.tensor([8.0, 9.0, 8.0, 9.0]))
        curricular.targets(torch.full((4,), 0.5), torch.ones(4))
    assert {b.dtype for b in (*margin.buffers(), *curricular.buffers())} == {torch.float32}
    assert abs(float(margin.mean) - 8.5) < 1e-3
    assert abs(float(curricular.t) - 0.5) < 1e-3
    saved = {name: value.bfloat16() for name, value in margin.state_dict().items()}
    for assign in (False, True):
        again = AdaFace(0.4)
        again.load_state_dict(saved, assign=assign)
        assert again.mean.dtype == torch.float32


@pytest.mark.parametrize(
    "text", ["ArcFace(0.5)", "CosFace(0.3)", "SphereFace(1.35)", "MagFace(l_a=0.5, u_a=5.0)"]
)
def test_second_derivatives(text):
    x, y = batch(3, 4)
    w = torch.randn(4, 1, 4, dtype=torch.float64)

    def call(x, w):
        return margin_softmax(x, y, w, margin=make(text), scale=4.0, label_smoothing=0.1)

    assert torch.autograd.gradgradcheck(call, (x.requires_grad_(), w.requires_grad_()), atol=1e-5)


@pytest.mark.parametrize("text", ["ArcFace(0.5)", "CosFace(0.3)", "MagFace(l_a=0.5, u_a=5.0)"])
@pytest.mark.parametrize("kind", [MarginSoftmax, PartialFC])
def test_torch_func(kind, text):
    more = {"sample_rate": 1.0} if kind is PartialFC else {}
    head = kind(5, 4, make(text), 8.0, dtype=torch.float64, **more)
    x, y = batch(3, 5)
    named = dict(head.named_parameters())

    def loss(named, x, y):
        return torch.func.functional_call(head, named, (x[None], y[None]))

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(named, x, y)["centers"]
    for row in range(3):
        (expected,) = torch.autograd.grad(head(x[row : row + 1], y[row : row + 1]), head.centers)
        close(each[row], expected)
    jacobian = torch.func.jacrev(lambda x: head(x, y))(x)
    a = x.clone().requires_grad_()
    close(jacobian, torch.autograd.grad(head(a, y), a)[0])


def test_above_the_budget_a_second_derivative_is_refused():
    head, (x, y) = MarginSoftmax(40, 4, dtype=torch.float64, budget=100), batch()
    with pytest.raises(
        RuntimeError,
        match=r"1,920 bytes, above the budget of 100\. Give fewer rows, or budget=1920",
    ):
        torch.autograd.grad(head(x.requires_grad_(), y), x, create_graph=True)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", [MarginSoftmax, PartialFC])
def test_what_is_no_tensor_is_named(kind):
    head, (x, y) = kind(40, 4, dtype=torch.float64), batch()
    for embeddings, labels, words in (
        (
            x,
            y.numpy(),
            r"Labels are a tensor of integers, not numpy.ndarray of shape \(6,\). Make "
            r"one: torch.as_tensor",
        ),
        (x, y.tolist(), "not list of length 6"),
        (x.numpy(), y, r"Embeddings are a tensor .*not numpy.ndarray of shape \(6, 4\)"),
    ):
        with pytest.raises(TypeError, match=words):
            head(embeddings, labels)
    with pytest.raises(TypeError, match="Excluded classes are a tensor"):
        head(x, y, np.zeros((6, 1), dtype=int))
    with pytest.raises(TypeError, match="Centers are a tensor"):
        head.load_centers(np.zeros((40, 4)))
    with pytest.raises(TypeError, match="Class weights are a tensor"):
        kind(3, 4, class_weights=[1.0, 1.0, 1.0])


def test_the_target_angle_is_of_rows_that_count():
    head = MarginSoftmax(2, 2, margin=ArcFace(0.5))
    head.load_centers(torch.eye(2))
    assert head.target_angle is None
    head(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([0, -100, 1]))
    torch.testing.assert_close(head.target_angle, torch.tensor(22.5), rtol=1e-4, atol=0.02)


def test_made_on_meta_and_drawn_after():
    with torch.device("meta"):
        heads = [
            MarginSoftmax(5, 4, margin=AdaFace(0.4)),
            PartialFC(5, 4, margin=MagFace(), sample_rate=1.0),
        ]
    for head in heads:
        assert head.centers.is_meta
        assert head(
            torch.empty(3, 4, device="meta"), torch.empty(3, dtype=torch.int64, device="meta")
        ).is_meta
        head.to_empty(device="cpu")
        for module in head.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    assert torch.equal(heads[0].centers, MarginSoftmax(5, 4).centers)
    assert float(heads[0].margin.std) == 100.0


GRAPH = """
import copy, sys, torch
from marginlab.losses import MarginSoftmax, PartialFC
from marginlab.margins import AdaFace, CurricularFace, ElasticFace, MagFace
few = 1 if sys.argv[1] == "few" else None
x, y = torch.randn(6, 4, requires_grad=True), torch.randint(9, (6,))
heads = [PartialFC(9, 4, sample_rate=1.0), MarginSoftmax(9, 4)]
for head in heads[:few]:
    step = torch.compile(head, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(x, y), head(x, y))
for head in [PartialFC(9, 4, sample_rate=0.3).eval(), *heads][:few]:
    made = torch.export.export(head, (x, y)).module()
    other = torch.randn(6, 4), torch.randint(9, (6,))
    torch.testing.assert_close(made(*other), head(*other))
margins = [AdaFace(), CurricularFace(), ElasticFace(), ElasticFace(std=0.05, plus=True), MagFace()]
for margin in margins[:few]:
    torch.compiler.reset()
    head = MarginSoftmax(9, 4, margin)
    compiled, exported = copy.deepcopy(head), copy.deepcopy(head)
    expected = head(x, y)
    step = torch.compile(compiled, fullgraph=True, backend="eager")
    torch.testing.assert_close(step(x, y), expected)
    exported = torch.export.export(exported, (x, y)).module()
    torch.testing.assert_close(exported(x, y), expected)
    for name, buffer in head.margin.named_buffers():
        torch.testing.assert_close(compiled.margin.get_buffer(name), buffer)
        torch.testing.assert_close(exported.get_buffer("margin." + name), buffer)
"""


@pytest.mark.parametrize("size", ["few", pytest.param("every", marks=pytest.mark.nightly)])
def test_a_step_is_one_graph_compiled_or_exported(size, tmp_path):
    """In a process of its own: the checker of annotations in tests breaks graphs."""
    done = forked.run(
        [sys.executable, "-c", GRAPH, size], cwd=tmp_path, env=dict(os.environ), timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
