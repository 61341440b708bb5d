"""Laws of Triton's passes over a tile: they equal torch's own.

test_triton_tile.py runs this file in a process of its own.

There TRITON_INTERPRET=1 has numpy carry the kernels out on the CPU; without it they are compiled
and run on the GPU.
"""

import os

import pytest
import torch

from marginlab.kernels import margin_problem, margin_softmax, pointwise, tiles, triton_tile
from marginlab.kernels.margin_batch import MarginBatch, Over
from marginlab.kernels.margin_settings import MarginSettings
from marginlab.kernels.tiles import Columns, Rows, Slopes, Sums
from marginlab.margins import ArcFace, NoMargin

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SHAPES = [(1, 1), (3, 5), (5, 33), (4, 2048), (7, 2047), (2, 2049), (17, 4200)]


def problem(B, T, *, lifted=False, operands=torch.float32, start=0, seed=0):
    """Products (B, T, 1) of a tile that begins at a column, with rows whose own column lies before,
    in and behind it, and one center of length 0.
    """
    generator = torch.Generator().manual_seed(seed)
    n = start + T + 3
    product = (20 * torch.randn(B, T, 1, generator=generator)).to(DEVICE)
    lift = torch.randn(n, generator=generator, dtype=torch.float64).to(DEVICE) if lifted else None
    columns = Columns(
        torch.zeros(n, 1, 1, device=DEVICE),
        MarginSettings(NoMargin(), operands=operands),
        torch.float32,
        lift=lift,
    )
    columns.factor.copy_(torch.rand(n, 1, generator=generator) + 0.5)
    columns.factor[start + T // 2] = 0.0
    own = torch.randint(-2, T + 3, (B,), generator=generator) + start
    own[0] = start + T - 1
    rows = Rows(torch.zeros(B, 1, device=DEVICE), own.to(DEVICE), None)
    return product, columns, rows, slice(start, start + T)


def close(ours, theirs, rtol=2e-6):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("lifted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_sums_of_tiles_are_those_of_torch(shape, lifted):
    B, T = shape
    ours = theirs = Sums.none(B, torch.zeros(0, device=DEVICE))._replace(
        plain=torch.arange(B, device=DEVICE) + 0.5
    )
    whole = []
    for number, start in enumerate((0, 16, T)):
        product, columns, rows, tile = problem(B, T, lifted=lifted, start=start, seed=number)
        before = product.clone()
        whole.append(tiles.logits(product.double(), columns, rows, tile).logits)
        ours = triton_tile.forward_tile(product, columns, rows, tile, ours)
        theirs = tiles.forward_tile(product, columns, rows, tile, theirs)
        assert torch.equal(product, before)  # it may be held for the backward pass
        close(ours.highest, theirs.highest)
        # a sum relative to a maximum that differs in its last place
        close(ours.total, theirs.total, rtol=2e-5)
        close(ours.logarithm().double(), torch.cat(whole, 1).logsumexp(1).double())
    assert torch.equal(ours.plain, theirs.plain)
    assert torch.equal(ours.finite, theirs.finite)


def test_more_blocks_than_one_step_of_the_merge_takes(monkeypatch):
    monkeypatch.setattr(triton_tile, "BLOCKS", 2)
    product, columns, rows, tile = problem(9, 5 * triton_tile.COLUMNS - 7)
    ours = triton_tile.forward_tile(product, columns, rows, tile, Sums.none(9, product))
    close(
        ours.logarithm(),
        tiles.forward_tile(product, columns, rows, tile, Sums.none(9, product)).logarithm(),
    )


def test_a_tile_of_nothing_but_the_own_column_adds_nothing():
    product, columns, rows, tile = problem(2, 1)
    rows.column.fill_(0)
    none = triton_tile.forward_tile(product, columns, rows, tile, Sums.none(2, product))
    assert none.highest.tolist() == [-torch.inf] * 2
    assert none.total.tolist() == [0.0] * 2
    assert none.logarithm().tolist() == [-torch.inf] * 2
    product, columns, rows, tile = problem(2, 40)
    some = triton_tile.forward_tile(product, columns, rows, tile, none)
    close(
        some.logarithm(),
        tiles.forward_tile(product, columns, rows, tile, Sums.none(2, product)).logarithm(),
    )
    rows = rows._replace(column=torch.zeros_like(rows.column))
    # and takes nothing away
    again = triton_tile.forward_tile(product[:, :1], columns, rows, slice(0, 1), some)
    assert torch.equal(again.highest, some.highest)
    assert torch.equal(again.total, some.total)


@pytest.mark.parametrize("operands", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lifted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_is_that_of_torch_in_the_dtype_of_the_operands(shape, lifted, operands):
    B, T = shape
    product, columns, rows, tile = problem(B, T, lifted=lifted, operands=operands, start=48)
    before = product.clone()
    far = tiles.forward_tile(product, columns, rows, tile, Sums.none(B, product)).logarithm()
    own = torch.linspace(-64, -1, B, device=DEVICE)
    slopes = Slopes(
        torch.logaddexp(far, own),
        torch.zeros_like(own),
        own,
        torch.zeros(B, dtype=torch.long, device=DEVICE),
    )
    ours = triton_tile.backward_tile(product, columns, rows, tile, slopes)
    assert ours.dtype == operands
    assert torch.equal(product, before)
    close(
        ours,
        tiles.backward_tile(product, columns, rows, tile, slopes).to(operands),
        rtol=1e-5 + torch.finfo(operands).eps,
    )


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_rows_may_lie_apart_and_vectors_too(kind):
    product, columns, rows, tile = problem(5, 100, lifted=True)
    wide = product.new_full((5, 130, 1), torch.nan)
    wide[:, 7:107] = product
    own = torch.stack((rows.column, rows.column * 0), 1).to(kind)[:, 0]
    columns.lift = torch.stack((columns.lift, columns.lift * 0), 1)[:, 0]
    assert not own.is_contiguous()
    assert not columns.lift.is_contiguous()
    ours = triton_tile.forward_tile(
        wide[:, 7:107], columns, rows._replace(column=own), tile, Sums.none(5, product)
    )
    theirs = tiles.forward_tile(product, columns, rows, tile, Sums.none(5, product))
    close(ours.highest, theirs.highest)
    close(ours.total, theirs.total)
    slopes = Slopes(
        ours.logarithm(),
        *torch.zeros(2, 5, device=DEVICE),
        torch.zeros(5, dtype=torch.long, device=DEVICE),
    )
    grad = triton_tile.backward_tile(
        wide[:, 7:107], columns, rows._replace(column=own), tile, slopes
    )
    close(grad, tiles.backward_tile(product, columns, rows, tile, slopes), rtol=1e-5)


def test_offsets_beyond_two_to_the_31(tmp_path):
    product, columns, rows, tile = problem(3, 20)
    apart = 2**30 + 8
    size = 2 * apart + 20
    far = (
        torch.from_file(str(tmp_path / "sparse"), shared=True, size=size)
        if DEVICE == "cpu"
        else torch.empty(size, device=DEVICE)
    )
    view = far.as_strided((3, 20, 1), (apart, 1, 1)).copy_(product)
    ours = triton_tile.forward_tile(view, columns, rows, tile, Sums.none(3, product))
    close(ours.total, tiles.forward_tile(product, columns, rows, tile, Sums.none(3, product)).total)


@pytest.mark.parametrize(
    "budget", [2**30, 4 * 70 * 4, 500], ids=["one buffer", "row chunks", "class tiles"]
)
@pytest.mark.parametrize("lifted", [False, True])
def test_the_whole_loss_and_its_gradients(budget, lifted, monkeypatch):
    monkeypatch.setattr(margin_softmax, "ROWS", 4)
    monkeypatch.setattr(margin_softmax, "ROWS_CPU", 4)
    monkeypatch.setattr(margin_problem, "fits", lambda *_: False)  # no exponentials in their place
    generator, B, C = torch.Generator().manual_seed(1), 9, 70
    x, weight = (
        torch.randn(*shape, generator=generator).to(DEVICE) for shape in ((B, 8), (C, 1, 8))
    )
    target = torch.randint(C, (B,), generator=generator).to(DEVICE)
    lift = torch.randn(C, generator=generator).to(DEVICE) if lifted else None

    def run():
        inputs = [t.clone().requires_grad_() for t in (x, weight)]
        share = torch.full((B,), 1 / B, device=DEVICE)
        loss, *_ = margin_softmax.margin_cross_entropy(
            *inputs,
            MarginBatch(target, lift=lift, share=share),
            MarginSettings(ArcFace(0.5), scale=16.0, budget=budget),
            Over(),
        )
        return loss.detach(), *torch.autograd.grad(loss, inputs)

    calls = []

    def counted(function):
        return lambda *arguments: calls.append(function) or function(*arguments)

    plain = tiles.forward_tile, tiles.backward_tile
    monkeypatch.setattr(margin_problem, "pointwise", lambda *_: plain)
    theirs = run()
    kernels = counted(triton_tile.forward_tile), counted(triton_tile.backward_tile)
    monkeypatch.setattr(margin_problem, "pointwise", lambda *_: kernels)
    ours = run()
    assert set(calls) == {triton_tile.forward_tile, triton_tile.backward_tile}
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(DEVICE == "cpu", reason="the choice falls on torch's operations on a CPU")
def test_cuda_chooses_them():
    _, columns, rows, _ = problem(2, 5)
    assert pointwise.pointwise(columns, rows) == (
        triton_tile.forward_tile,
        triton_tile.backward_tile,
    )
