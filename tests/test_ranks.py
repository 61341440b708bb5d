import os
import sys

import forked
import hypothesis.strategies as st
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings

from marginlab import ranks


def _weighted(group, rank, parts, weights, grads):
    """L = sum over ranks of sum(gathered * weights of the rank), and total(part sums) squared."""
    x = parts[rank].clone().requires_grad_()
    gathered = ranks.all_gather(x, group)
    loss = (
        ranks.all_reduce((gathered * weights[rank]).sum(), group, grads)
        + ranks.all_reduce(x.sum(), group, grads) ** 2
    )
    loss.backward()
    return (
        gathered.detach(),
        loss.detach(),
        x.grad,
        ranks.rows_per_rank(len(x), group),
        ranks.rank_slice(10, group),
    )


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("n", [1, 2, 3, 4])
@settings(max_examples=5)
@given(data=st.data())
def test_gather_and_total_have_exact_gradients_on_any_number_of_ranks(pool, n, data):
    rows = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    parts = [torch.randn(r, 2, dtype=torch.float64, generator=generator) for r in rows]
    weights = [torch.randn(sum(rows), 2, dtype=torch.float64, generator=generator) for _ in rows]
    whole = torch.cat(parts).requires_grad_()
    expected = sum((whole * w).sum() for w in weights) + whole.sum() ** 2
    expected.backward()
    for grads, factor in (("sum", 1), ("mean", n)):
        answers = pool.run(n, _weighted, parts, weights, grads)
        for gathered, loss, _, counts, _ in answers:
            assert torch.equal(gathered, whole.detach())
            assert counts == rows
            torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=1e-10)
        torch.testing.assert_close(
            torch.cat([a[2] for a in answers]), factor * whole.grad, rtol=0, atol=1e-10
        )
        assert [i for a in answers for i in range(10)[a[4]]] == list(range(10))


def _exchanged(group, rank, rows):
    """The collectives of a gather's backward pass, with the shapes that are given, and the
    gradient; upstream it is not contiguous.
    """
    x = torch.ones(rows[rank], 2, dtype=torch.float64, requires_grad=True)
    gathered = ranks.all_gather(x, group, rows=rows)
    seen = []
    reduce, scatter = dist.all_reduce, dist.reduce_scatter
    dist.all_reduce = lambda *_, **__: seen.append("all-reduce")
    dist.reduce_scatter = lambda out, parts, **named: (
        seen.append([tuple(part.shape) for part in parts]),
        scatter(out, parts, **named),
    )
    try:
        gathered.T.contiguous().backward(
            torch.arange(2.0 * sum(rows), dtype=torch.float64).view(2, -1)
        )
    finally:
        dist.all_reduce, dist.reduce_scatter = reduce, scatter
    return seen, x.grad


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("rows", [[2, 2, 2], [3, 0, 1]])
def test_the_gradient_of_gathered_rows_is_one_reduce_scatter_of_parts_of_the_widest(pool, rows):
    answers = pool.run(3, _exchanged, rows)
    assert [seen for seen, _ in answers] == [[[(max(rows), 2)] * 3]] * 3
    upstream = torch.arange(2.0 * sum(rows), dtype=torch.float64).view(2, -1).T
    assert torch.equal(torch.cat([grad for _, grad in answers]), 3 * upstream)


def _fail(group, rank):
    try:
        ranks.broadcast_from_first(lambda: 1 / 0, group)
    except ZeroDivisionError:
        return ranks.broadcast_from_first(lambda: rank, group), ranks.broadcast(rank + 5, group)


@pytest.mark.xdist_group("ranks")
def test_an_error_on_the_first_rank_is_raised_on_all(pool):
    assert pool.run(3, _fail) == [(0, 5)] * 3


def _raise(group, rank):
    raise RuntimeError(f"no, says rank {rank}")


@pytest.mark.xdist_group("ranks")
def test_the_pool_reports_a_failing_rank_and_lives_on(pool):
    with pytest.raises(AssertionError, match=r"no, says rank [01]"):
        pool.run(2, _raise)
    assert pool.run(2, _fail) == [(0, 5)] * 2


def _die(group, rank):
    os._exit(3)


@pytest.mark.xdist_group("ranks")
def test_the_pool_outlives_a_dead_rank(pool):
    with pytest.raises(AssertionError, match=r"rank [01] of 2 failed"):
        pool.run(2, _die)
    assert pool.run(4, _fail) == [(0, 5)] * 4


STARTED_TWICE = """
import os, sys, time
from datetime import timedelta
import torch, torch.distributed as dist
from marginlab import ranks
os.environ.update(MASTER_ADDR="127.0.0.1", WORLD_SIZE="2", TORCHELASTIC_USE_AGENT_STORE="True")
store = None
for start in range(2):
    pids = []
    for rank in range(2):
        came, told = os.pipe()
        if not (pid := os.fork()):
            port = os.read(came, 9).decode()
            os.environ.update(
                RANK=str(rank), TORCHELASTIC_RESTART_COUNT=str(start), MASTER_PORT=port
            )
            # the second time rank 1 looks for rank 0 before that one has come
            time.sleep(start * (1 - rank))
            word = ranks.join("gloo", timedelta(seconds=30))
            said = word.check(["here"])
            total = ranks.all_reduce(torch.tensor(1.0 + rank)).item()
            word.set("here", "x")
            dist.destroy_process_group()
            os._exit(0 if total == 3.0 and not said else 1)
        pids.append((pid, told))
    # after a fork: what serves it is a thread
    store = store or dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for pid, told in pids:
        os.write(told, str(store.port).encode())
    if any([os.waitpid(pid, 0)[1] for pid, _ in pids]):
        sys.exit(f"start {start} failed")
"""


def test_ranks_that_are_started_again_hear_nothing_of_those_before(tmp_path):
    """As torchrun's agent starts them: a new number of restarts, the same store."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", STARTED_TWICE]
    done = forked.run(command, cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr


def test_without_a_group_nothing_is_done():
    x = torch.ones(3)
    assert ranks.all_reduce(x) is x
    assert ranks.all_gather(x) is x
    assert (
        ranks.size(),
        ranks.rank(),
        ranks.rows_per_rank(3),
        ranks.broadcast(2),
        ranks.rank_slice(7),
    ) == (
        1,
        0,
        [3],
        2,
        slice(0, 7),
    )
