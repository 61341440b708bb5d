"""The doors of the margin softmax: module and function, a second backward, extremes, and all that
is refused, now or a step later.
"""

import pytest
import torch
import torch.nn.functional as F
from margin_oracle import MARGINS, make
from torch.utils._python_dispatch import TorchDispatchMode

import marginlab.kernels.margin_softmax as kernel
from marginlab.kernels import margin_problem
from marginlab.losses import MarginSoftmax
from marginlab.losses.functional import margin_softmax
from marginlab.margins import ArcFace, CosFace


def test_a_second_backward_gives_the_same_at_every_budget():
    x, labels = torch.randn(3, 4, requires_grad=True), torch.arange(3)
    head = MarginSoftmax(5, 4)
    for budget in (1, 2**20):
        head.budget = budget
        loss = head(x, labels)
        first, second = (
            torch.autograd.grad(loss, (x, head.centers), retain_graph=True) for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "ROWS_CPU", 1)
        head.budget = 2 * 5 * 4
        loss = head(x, labels)
        for a, b in zip(
            torch.autograd.grad(loss, (x, head.centers), retain_graph=True), first, strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        for a, b in zip(torch.autograd.grad(loss, (x, head.centers)), first, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_centers_changed_before_the_backward_pass_are_noticed():
    head = MarginSoftmax(5, 4)
    loss = head(torch.randn(3, 4, requires_grad=True), torch.arange(3))
    with torch.no_grad():
        head.centers.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_module_and_function_are_one_formula_and_logits_have_no_margin():
    head = MarginSoftmax(5, 4, margin=CosFace(0.2), scale=8.0, subcenters=2, label_smoothing=0.1)
    x, labels = torch.randn(6, 4), torch.randint(5, (6,))
    assert torch.equal(
        head(x, labels),
        margin_softmax(
            x, labels, head.centers, margin=CosFace(0.2), scale=8.0, label_smoothing=0.1
        ),
    )
    cosines = torch.einsum("bd,ckd->bck", F.normalize(x), F.normalize(head.centers, dim=2)).amax(2)
    torch.testing.assert_close(head.logits(x), 8.0 * cosines)
    centers = torch.randn(10, 4)
    head.load_centers(centers)
    assert torch.equal(head.centers.flatten(0, 1), centers)
    again = MarginSoftmax(5, 4, subcenters=2)
    again.load_centers(head.centers)
    assert torch.equal(again.centers, head.centers)


def test_an_ignored_row_may_hold_anything():
    head = MarginSoftmax(5, 4, validate="never")
    x, labels = torch.randn(3, 4), torch.tensor([0, -100, 2])
    x[1] = torch.nan
    x.requires_grad_()
    loss = head(x, labels)
    loss.backward()
    expected = head(x[[0, 2]], labels[[0, 2]])
    torch.testing.assert_close(loss, expected)
    assert bool(head.centers.grad.isfinite().all())
    assert bool((x.grad[1] == 0).all())


def test_lengths_at_the_ends_of_float32_change_nothing():
    head = MarginSoftmax(5, 4, scale=64.0)
    x, labels = torch.randn(3, 4), torch.arange(3)
    loss, logits = head(x, labels).detach(), head.logits(x)
    for length in (1e-30, 1e30):
        torch.testing.assert_close(head.logits(x * length), logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(head(x * length, labels).detach(), loss, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        head.centers.mul_(1e37 / head.centers.norm())
    torch.testing.assert_close(head(x, labels).detach(), loss, rtol=1e-5, atol=1e-5)


class NoWaiting(TorchDispatchMode):
    """Refuses what makes a host wait for a GPU: numbers read, sizes that depend on numbers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in {
            "_local_scalar_dense",
            "nonzero",
            "item",
            "_unique2",
            "unique_dim",
            "masked_select",
            "is_nonzero",
        }, name
        return func(*args, **(kwargs or {}))


# whose draws check their counter, on a CPU only
@pytest.mark.parametrize("text", [text for text in MARGINS if "Elastic" not in text])
def test_without_a_sample_no_number_is_read_while_a_step_is_made(text, monkeypatch):
    """In the way that a GPU goes; exponentials are a CPU's, where reading a number is free."""
    monkeypatch.setattr(margin_problem, "fits", lambda *_: False)
    head = MarginSoftmax(50, 4, margin=make(text), validate="deferred", budget=2000)
    x, labels = torch.randn(8, 4, requires_grad=True), torch.randint(50, (8,))
    with NoWaiting():
        head(x, labels).backward()


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused():
    head = MarginSoftmax(5, 4)
    x, labels = torch.randn(3, 4), torch.arange(3)
    for embeddings, wrong, error, words in (
        (x, torch.tensor([0, 1, 5]), ValueError, r"labels outside 0..4"),
        (x, torch.tensor([0, 1, -1]), ValueError, r"labels outside 0..4"),
        (x, labels.float(), TypeError, r"Labels are integers, not torch.float32"),
        (x, labels[:2], ValueError, r"Labels are \(3,\), one class for each embedding, not \(2,\)"),
        (x[:, :3], labels, ValueError, r"\(B, 4\), as wide as the class centers, not \(3, 3\)"),
        (x[0], labels, ValueError, r"not \(4,\)"),
        (labels, x, TypeError, r"Embeddings are floating point, not torch.int64"),
        (x / 0 * 0, labels, ValueError, "embeddings with NaN or inf"),
        (x + torch.inf, labels, ValueError, "embeddings with NaN or inf"),
    ):
        with pytest.raises(error, match=words):
            head(embeddings, wrong)
    with torch.no_grad():
        head.centers[4] = torch.nan
    with pytest.raises(ValueError, match="class centers with NaN, inf"):
        head(x, labels)
    for arguments, error, words in (
        ({"scale": 0.0}, ValueError, "scale is positive"),
        ({"margin": 0.5}, TypeError, r"such as ArcFace\(0.5\), not 0.5"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing"),
        ({"interclass_filter": 2.0}, ValueError, "cosine"),
        ({"reduction": "avg"}, ValueError, "reduction is not 'avg'"),
        ({"budget": 0}, ValueError, "budget"),
        ({"subcenters": 0}, ValueError, "subcenters is at least 1"),
        ({"ignore_index": 3}, ValueError, "ignore_index"),
        ({"validate": "later"}, ValueError, "validate is not 'later'"),
        ({"class_weights": torch.ones(4)}, ValueError, r"\(5,\)"),
        (
            {"class_weights": torch.tensor([1.0, 1, 1, 1, torch.inf])},
            ValueError,
            "finite and not negative",
        ),
        ({"operands": torch.int32}, ValueError, "operands are torch.float32, bfloat16 or float16"),
    ):
        with pytest.raises(error, match=words):
            MarginSoftmax(5, 4, **arguments)
    with pytest.raises(ValueError, match=r"want \(5, 4\)"):
        MarginSoftmax(5, 4).load_centers(torch.randn(4, 4))
    for exclude in (labels, torch.zeros(3, 5, dtype=torch.bool)):
        with pytest.raises(ValueError, match="Excluded classes"):
            MarginSoftmax(5, 4)(x, labels, exclude)
    for arguments in (
        {"class_weights": torch.ones(2)},
        {"class_weights": -torch.ones(5)},
        {"ignore_index": 2},
    ):
        with pytest.raises(ValueError, match=r"Class weights|ignore_index"):
            margin_softmax(x, labels, torch.randn(5, 4), margin=ArcFace(0.5), **arguments)
    with pytest.raises(TypeError, match="MarginSoftmax"):
        ArcFace(0.5)(x, labels)


def test_deferred_faults_are_said_at_the_next_step():
    head = MarginSoftmax(5, 4, validate="deferred")
    x = torch.randn(3, 4)
    head(x, torch.tensor([0, 1, 7]))
    with pytest.raises(ValueError, match=r"labels outside 0..4 .*batch before this one"):
        head(x, torch.arange(3))
    assert bool(head(x, torch.arange(3)).isfinite())
    head(x / 0 * 0, torch.arange(3))
    with pytest.raises(ValueError, match="embeddings with NaN or inf"):
        head(x, torch.arange(3))
    never = MarginSoftmax(5, 4, validate="never")
    never(x, torch.tensor([0, 1, 7]))
    assert bool(never(x, torch.arange(3)).isfinite())
