"""A classifier's pass that is run again, or differentiated twice, takes the state that it found."""

import copy

import pytest
import torch
from margin_oracle import make
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from marginlab import recomputation
from marginlab.losses import MarginSoftmax, PartialFC
from marginlab.losses.functional import margin_softmax
from marginlab.margins import AdaFace, ArcFace
from marginlab.recomputation import Calls

MOVED = ["AdaFace(0.4, momentum=0.3)", "CurricularFace(0.5, momentum=0.3)"]
STRAIGHT = "AdaFace(0.4, gradient='straight_through')"


def batch(rows=6, classes=5, dim=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, dtype=torch.float64, generator=generator) * 20
    return x.requires_grad_(), torch.randint(classes, (rows,), generator=generator)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def curvature(loss, x, w):
    """First derivatives and those of their squares."""
    first = torch.autograd.grad(loss, (x, w), create_graph=True, retain_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, w), retain_graph=True)
    return *(g.detach() for g in first), *second


@pytest.mark.parametrize("again", [False, True], ids=["once", "checkpoint"])
@pytest.mark.parametrize("text", [*MOVED, STRAIGHT])
def test_second_derivatives_while_averages_move(text, again):
    """They are those with the averages as this batch has moved them, at every backward pass."""
    head, (x, y) = MarginSoftmax(5, 4, make(text), 8.0, dtype=torch.float64), batch()
    if "Curricular" in text:
        head.margin.t.fill_(0.2)
    loss = checkpoint(head, x, y, use_reentrant=False) if again else head(x, y)
    moved = {name: value.clone() for name, value in head.margin.state_dict().items()}
    got = [curvature(loss, x, head.centers) for _ in range(2)]
    assert all(torch.equal(moved[name], value) for name, value in head.margin.state_dict().items())
    still = copy.deepcopy(head).eval()  # after the batch: in evaluation mode it moves no further
    expected = curvature(still(x, y), x, still.centers)
    for each in got:
        for one, other in zip(each, expected, strict=True):
            close(one, other)
    assert float(expected[2].abs().max()) > 1e-6


@pytest.mark.parametrize("plus", [False, True])
def test_second_derivatives_of_drawn_margins(plus):
    x, y = batch(4)
    w = torch.randn(5, 1, 4, dtype=torch.float64, requires_grad=True)

    def drawn(x, w):
        margin = make(f"ElasticFace(0.5, std=0.1, plus={plus})")
        return margin_softmax(x, y[:4], w, margin=margin, scale=4.0)

    unit = (x.detach() / 20).requires_grad_()
    assert torch.autograd.gradgradcheck(drawn, (unit, w), atol=1e-5)


@pytest.mark.parametrize("text", ["AdaFace(0.4)", STRAIGHT, "ElasticFace(0.5, std=0.1)"])
def test_second_derivatives_of_a_part_of_a_window(text):
    """Parts use the averages of earlier steps, and the draws of their rows in the whole batch."""
    head, (x, y) = PartialFC(5, 4, make(text), 8.0, sample_rate=1.0, dtype=torch.float64), batch()
    before = copy.deepcopy(head)
    parts = (slice(0, 2), slice(2, 6))
    with head.window(y, statistics="previous"):
        got = [curvature(head(x[part], y[part]), x, head.centers) for part in parts]
    if "Elastic" in text:  # one batch of all rows has the same draws
        sums = [sum(each) for each in zip(*(each[:2] for each in got), strict=True)]
        for one, other in zip(sums, curvature(before(x, y), x, before.centers), strict=False):
            close(one, other)
        return
    before.eval()
    for part, each in zip(parts, got, strict=True):
        share = len(y[part]) / 6
        loss = before(x[part], y[part]) * share
        for one, other in zip(each, curvature(loss, x, before.centers), strict=True):
            close(one, other)


def alone(function, *inputs):
    return function(*inputs)


def non_reentrant(function, *inputs):
    return checkpoint(function, *inputs, use_reentrant=False)


def reentrant(function, *inputs):
    return checkpoint(function, *inputs, use_reentrant=True)


def nested(function, *inputs):
    return reentrant(lambda *inputs: reentrant(function, *inputs), *inputs)


@pytest.mark.parametrize("order", ["at once", "first first", "last first"])
@pytest.mark.parametrize("run", [non_reentrant, reentrant, nested])
def test_calls_with_equal_inputs_are_each_run_again_with_their_own_step(run, order):
    head = PartialFC(50, 4, AdaFace(momentum=0.5), 8.0, sample_rate=0.2, dtype=torch.float64)
    (x, y), results = batch(classes=50), []
    for each, call in ((copy.deepcopy(head), alone), (head, run)):
        z = x.detach().clone().requires_grad_()
        losses = [weight * call(each, z, y) for weight in (1.0, 10.0, 100.0)]
        if order == "at once":
            sum(losses).backward()
        else:
            for loss in losses if order == "first first" else losses[::-1]:
                loss.backward()
        results.append(z.grad)
    close(results[1], results[0])


@pytest.mark.parametrize("seen", [False, True], ids=["other rows", "rows trained on"])
def test_an_evaluation_under_a_checkpoint_takes_all_classes(seen):
    head = PartialFC(50, 4, ArcFace(0.5), 8.0, sample_rate=0.2, dtype=torch.float64)
    x, y = batch(classes=50)
    head(x, y).backward()
    head.eval()
    x = (x if seen else batch(classes=50, seed=1)[0]).detach().requires_grad_()
    (expected,) = torch.autograd.grad(head(x, y), x)
    (got,) = torch.autograd.grad(checkpoint(head, x, y, use_reentrant=False), x)
    close(got, expected)


def test_of_too_many_calls_the_first_are_refused_with_the_reason():
    head, (x, y) = PartialFC(50, 4, sample_rate=0.2, dtype=torch.float64), batch(classes=50)
    loss = sum(non_reentrant(head, x + i, y) for i in range(recomputation.KEPT + 1))
    with pytest.raises(RuntimeError, match=r"of more than 64 calls .* the first are forgotten"):
        loss.backward()


class Largest(TorchDispatchMode):
    """The most numbers of float64 in one tensor."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float64:
            self.most = max(self.most, made.numel())
        return made


def test_a_note_copies_no_batch():
    x = torch.randn(4096, 256)
    x[5, 7] = torch.nan
    calls = Calls[int]()
    with Largest() as largest:
        calls.note((x, torch.arange(4096)), 1)
    assert 0 < largest.most <= recomputation.BLOCK < x.numel()
    marks = calls._notes[0].marks
    rows = x.double().nan_to_num(0.0).sum(1)
    weighed = (rows * torch.arange(1, 4097)).sum() / 4096
    close(marks[:3], torch.stack([rows.sum(), weighed, rows.abs().sum()]))


def test_the_word_on_class_weights_is_short_and_follows_them():
    weights = torch.rand(20_000)
    head = PartialFC(20_000, 2, class_weights=weights)
    words = [head._alike()["class_weights"]]
    assert len(repr(words[0])) < 100
    with torch.no_grad():
        head.class_weights[19_999] += 1.0
    words.append(head._alike()["class_weights"])
    head.class_weights = head.class_weights.clone().sub_(0.5)
    head.class_weights.sub_(0.0)
    words.append(head._alike()["class_weights"])
    assert len(set(words)) == 3
    assert PartialFC(20_000, 2, class_weights=weights)._alike()["class_weights"] == words[0]


@pytest.mark.parametrize("operands", [torch.bfloat16, torch.float16])
def test_a_transform_rounds_the_operands_as_the_kernel_does(operands):
    x, y = batch(32, 50)
    w = torch.randn(50, 2, 4) * 100
    x = x.detach().float()
    settings = {"margin": ArcFace(0.5), "reduction": "none"}

    def call(x, y):
        return margin_softmax(x, y, w, operands=operands, **settings)

    expected = call(x, y)
    got = torch.func.vmap(lambda x, y: call(x[None], y[None])[0])(x, y)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    wide = margin_softmax(x, y, w, **settings)
    assert float((wide - expected).abs().max()) > 1e-3  # so that the rounding is seen
    z = x.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(call(z, y).sum(), z)
    ours = torch.func.grad(lambda x: call(x, y).sum())(x)
    torch.testing.assert_close(ours, slopes, rtol=0.02, atol=0.02 * float(slopes.abs().max()))


def test_a_transform_names_the_averages_that_it_cannot_move():
    head, (x, y) = MarginSoftmax(5, 4, AdaFace(0.4), dtype=torch.float64), batch()
    with pytest.raises(RuntimeError, match=r"moves mean, std in training mode.*Call eval\(\)"):
        torch.func.grad(lambda x: head(x, y))(x.detach())
    assert float(head.margin.mean) == 20.0
    head.margin.eval()
    (expected,) = torch.autograd.grad(head(x, y), x)
    close(torch.func.grad(lambda x: head(x, y))(x.detach()), expected)
