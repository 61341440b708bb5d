"""State of the row-sparse optimizers: what it costs, what it is called, saving and loading,
resuming, and what is refused.
"""

import copy
import io

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.utils._python_dispatch import TorchDispatchMode

from marginlab.optim import LazyAdamW, LazySGD

MAKERS = {
    "sgd": lambda p, semantics="lazy": LazySGD(p, 0.1, weight_decay=0.01, semantics=semantics),
    "sgd, bfloat16 momentum": lambda p, semantics="lazy": LazySGD(
        p, 0.1, semantics=semantics, momentum_dtype=torch.bfloat16, seed=5
    ),
    "adamw": lambda p, semantics="lazy": LazyAdamW(p, 0.01, semantics=semantics),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
semantics_of_all = pytest.mark.parametrize("semantics", ["lazy", "dense", "decayed"])


def gradient(step, shape, dtype):
    generator = torch.Generator().manual_seed(step)
    rows = torch.randint(0, shape[0], (1, 5), generator=generator)  # with repetition
    return torch.sparse_coo_tensor(
        rows,
        torch.randn(5, *shape[1:], generator=generator).to(dtype),
        shape,
        check_invariants=True,
    )


def train(optimizer, w, steps):
    for step in steps:
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        w.grad = gradient(step, w.shape, w.dtype)
        optimizer.step()


class Largest(TorchDispatchMode):
    """The most rows, and the most float32 numbers, in what any operation makes."""

    def __init__(self):
        super().__init__()
        self.rows, self.wide = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        held = {
            t.untyped_storage().data_ptr()
            for t in args
            if isinstance(t, torch.Tensor) and t.layout == torch.strided
        }
        for t in out if isinstance(out, tuple | list) else [out]:
            if (
                isinstance(t, torch.Tensor)
                and t.layout == torch.strided
                and t.untyped_storage().data_ptr() not in held
            ):
                self.rows = max(self.rows, t.untyped_storage().nbytes() // 16)
                if t.dtype in (torch.float32, torch.float64):
                    self.wide = max(self.wide, t.numel())
        return out


@pytest.mark.parametrize("semantics", ["lazy", "decayed"])
@every
def test_a_step_makes_nothing_of_the_size_of_the_classes(make, semantics):
    w = torch.nn.Parameter(torch.zeros(100_000, 8, dtype=torch.bfloat16))
    optimizer = make([w], semantics)
    w.grad = gradient(0, w.shape, w.dtype)
    optimizer.step()  # makes the state
    w.grad = gradient(1, w.shape, w.dtype)
    with Largest() as seen:
        optimizer.step()
    assert 0 < seen.rows < 1000


@semantics_of_all
def test_bfloat16_state_is_made_without_anything_wide_of_its_size(semantics, monkeypatch):
    monkeypatch.setattr("marginlab.optim.rows.BLOCK", 800)
    w = torch.nn.Parameter(torch.zeros(20_000, 8, dtype=torch.bfloat16))
    optimizer = MAKERS["sgd"]([w], semantics)
    w.grad = gradient(0, w.shape, w.dtype)
    with Largest() as seen:
        optimizer.step()
    assert 0 < seen.wide <= 800
    assert optimizer.state[w]["momentum_buffer"].dtype == torch.bfloat16


@every
@semantics_of_all
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_resumed_is_uninterrupted_bit_for_bit(make, semantics, dtype):
    start = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = torch.nn.Parameter(start.clone())
    optimizer = make([whole], semantics)
    train(optimizer, whole, range(8))

    part = torch.nn.Parameter(start.clone())
    first = make([part], semantics)
    train(first, part, range(4))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = torch.nn.Parameter(part.detach().clone())
    second = make([resumed], semantics)
    second.load_state_dict(torch.load(file, weights_only=True))
    for name, value in first.state[part].items():
        assert torch.equal(second.state[resumed][name], value)
        assert second.state[resumed][name].dtype == value.dtype
    train(second, resumed, range(4, 8))
    assert torch.equal(resumed, whole)
    assert all(
        torch.equal(second.state[resumed][name], value)
        for name, value in optimizer.state[whole].items()
    )


@every
def test_a_distributed_checkpoint_keeps_dtypes_too(make):
    layers = [torch.nn.Embedding(7, 4, dtype=torch.bfloat16) for _ in range(2)]
    saved, loaded = (make([layer.weight], "decayed") for layer in layers)
    train(saved, layers[0].weight, range(3))
    state = copy.deepcopy(get_optimizer_state_dict(layers[0], saved))
    set_optimizer_state_dict(layers[1], loaded, state)
    for name, value in saved.state[layers[0].weight].items():
        assert torch.equal(loaded.state[layers[1].weight][name], value)
        assert loaded.state[layers[1].weight][name].dtype == value.dtype


def test_state_is_named_as_torchs_and_kept_as_asked():
    w = torch.nn.Parameter(torch.zeros(4, 2, dtype=torch.bfloat16))

    def state(optimizer):
        w.grad = gradient(0, w.shape, w.dtype)
        optimizer.step()
        return {name: value.dtype for name, value in optimizer.state[w].items()}

    bf16, f32, i64, i32 = torch.bfloat16, torch.float32, torch.int64, torch.int32
    assert state(LazySGD([w], 0.1)) == {"steps": i64, "momentum_buffer": bf16}
    assert state(LazySGD([w], 0.1, momentum_dtype=f32)) == {"steps": i64, "momentum_buffer": f32}
    assert state(LazySGD([w], 0.1, momentum=0.0)) == {"steps": i64}
    assert state(LazySGD([w], 0.1, semantics="decayed")) == {
        "steps": i64,
        "step": i32,
        "momentum_buffer": bf16,
    }
    assert state(LazyAdamW([w], 0.1)) == {
        "steps": i64,
        "step": i32,
        "exp_avg": f32,
        "exp_avg_sq": f32,
    }
    assert state(LazyAdamW([w], 0.1, semantics="dense")) == {
        "steps": i64,
        "exp_avg": f32,
        "exp_avg_sq": f32,
    }


@every
@semantics_of_all
def test_without_a_gradient_nothing_moves_and_an_empty_one_is_a_step(make, semantics):
    w, other, one, none = (
        torch.nn.Parameter(torch.ones(shape)) for shape in ((4, 2), (4, 2), (), (0, 3))
    )
    optimizer = make([w, other, one, none], semantics)
    w.grad = torch.sparse_coo_tensor(
        torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, 2), (4, 2), check_invariants=True
    )
    one.grad, none.grad = torch.tensor(1.0), torch.zeros(0, 3)
    optimizer.step()
    assert torch.equal(other, torch.ones(4, 2))
    assert not optimizer.state[other]
    assert int(optimizer.state[w]["steps"]) == 1
    assert float(one.detach()) < 1
    decays = optimizer.param_groups[0]["weight_decay"] > 0 and semantics == "dense"
    assert torch.equal(w, torch.ones(4, 2)) != decays


def test_repeated_rows_of_a_bfloat16_gradient_add_up_in_float32():
    w = torch.nn.Parameter(torch.zeros(3, 1, dtype=torch.bfloat16))
    # summed in bfloat16, from the largest, 1 stays 1
    values = torch.tensor([1.0] + [2.0**-9] * 512, dtype=torch.bfloat16)[:, None]
    w.grad = torch.sparse_coo_tensor(
        torch.ones(1, 513, dtype=torch.long), values, (3, 1), check_invariants=True
    )
    LazySGD([w], 1.0, momentum=0.0).step()
    assert w.detach().flatten().tolist() == [0.0, -2.0, 0.0]


@every
def test_a_closure_is_called_with_gradients_and_its_loss_returned(make):
    w = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = make([w])

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.embedding(torch.tensor([0, 2, 2]), w, sparse=True).square().sum()
        loss.backward()
        return loss.detach()

    assert float(optimizer.step(closure)) == 6.0
    assert optimizer.step(None) is None
    assert torch.equal(w[1], torch.ones(2))
    assert bool((w[0] < 1).all())


def test_a_gradient_that_has_accumulated_is_summed():
    w = torch.nn.Parameter(torch.zeros(5, 2))
    for index in ([0, 3], [3, 4]):
        torch.nn.functional.embedding(torch.tensor(index), w, sparse=True).sum().backward()
    assert not w.grad.is_coalesced()
    LazySGD([w], 1.0).step()
    assert w.detach()[:, 0].tolist() == [-1, 0, 0, -2, -1]


W = torch.nn.Parameter(torch.ones(4, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LazySGD([W], -0.1), "from 0, not lr=-0.1"),
        (lambda: LazySGD([W], 0.1, weight_decay=-1.0), "weight_decay=-1.0"),
        (lambda: LazySGD([W], float("nan")), "lr=nan"),
        (lambda: LazySGD([W], 0.1, momentum=1.0), r"momentum is in \[0, 1\), not 1.0"),
        (
            lambda: LazySGD([W], 0.1, momentum=0.0, nesterov=True),
            "Give a momentum, or nesterov=False",
        ),
        (lambda: LazySGD([W], 0.1, semantics="lasy"), "did you mean 'lazy'"),
        (lambda: LazySGD([{"params": [W], "semantics": "decay"}], 0.1), "did you mean 'decayed'"),
        (lambda: LazySGD([W], 0.1, momentum_dtype=torch.float16), "not in torch.float16"),
        (
            lambda: LazySGD([torch.nn.Parameter(torch.ones(4, 2).half())], 0.1),
            r"\(4, 2\) is torch.float16. Keep it in",
        ),
        (
            lambda: LazySGD([torch.nn.Parameter(torch.ones(4, 2).T)], 0.1),
            r"\(2, 4\) with strides \(1, 2\).*contiguous",
        ),
        (lambda: LazyAdamW([W], 0.1, semantics="lasy"), "did you mean 'lazy'"),
        (lambda: LazyAdamW([W], 0.1, betas=(0.9, 1.0)), r"\[0, 1\).*betas=\(0.9, 1.0\)"),
        (lambda: LazyAdamW([W], 0.1, eps=-1.0), "eps=-1.0"),
        (lambda: LazyAdamW([W], 0.1, betas=(0.9, 0.8), semantics="decayed"), r"beta1\*\*2 < beta2"),
    ],
)
def test_values_that_cannot_be_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_refused_group_is_not_added():
    optimizer = LazySGD([W], 0.1)
    with pytest.raises(ValueError, match="momentum"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "momentum": 2.0})
    assert len(optimizer.param_groups) == 1


@every
def test_a_gradient_of_other_sparsity_is_refused_before_anything_moves(make):
    first, second = torch.nn.Parameter(torch.ones(4, 2)), torch.nn.Parameter(torch.ones(4, 2))
    optimizer = make([first, second])
    first.grad, second.grad = torch.ones(4, 2), torch.ones(4, 2).to_sparse()
    with pytest.raises(
        ValueError, match=r"\(4, 2\) is torch.sparse_coo with 2 sparse dimensions. Give"
    ):
        optimizer.step()
    assert torch.equal(first, torch.ones(4, 2))


def test_state_of_another_optimizer_or_shape_is_refused():
    w = torch.nn.Parameter(torch.ones(4, 2))
    w.grad = torch.ones(4, 2)
    other = torch.optim.AdamW([w], 0.1)
    other.step()
    with pytest.raises(ValueError, match="was not saved by LazyAdamW"):
        LazyAdamW([w], 0.1).load_state_dict(other.state_dict())
    smaller = torch.nn.Parameter(torch.ones(3, 2))
    smaller.grad = torch.ones(3, 2)
    ours = LazyAdamW([smaller], 0.1)
    ours.step()
    with pytest.raises(
        ValueError, match=r"step \(3,\) was not saved by LazyAdamW for a parameter \(4, 2\)"
    ):
        LazyAdamW([w], 0.1).load_state_dict(ours.state_dict())
