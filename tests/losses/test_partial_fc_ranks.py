"""Partial FC across ranks equals Partial FC on one: value, gradients, margin's state, errors."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from margin_oracle import MARGINS, make, problems, settings_of_the_loss

from marginlab.losses import PartialFC


def head_on(w, group, text, arguments):
    C, K, D = w.shape
    head = PartialFC(
        C, D, margin=make(text), subcenters=K, dtype=w.dtype, group=group, seed=5, **arguments
    )
    head.load_centers(w)
    return head


def weights_of(value, first, seed=0):
    """Upstream weights that belong to the rows of the global batch; 1 for a scalar."""
    if value.ndim == 0:
        return torch.ones_like(value)
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(64, dtype=value.dtype, generator=generator) - 0.3)[
        first : first + len(value)
    ]


def several_steps(head, x, labels, exclude, first=0):
    """Three losses of one head, whose samples differ, and the gradients of the last."""
    values = []
    for step in range(3):
        x = x.detach().clone().requires_grad_()
        head.centers.grad = None
        value = head(x * (1 + step), labels, exclude)
        (value * weights_of(value, first)).sum().backward()
        values.append(value.detach())
    grad = head.centers.grad
    state = {name: buffer.clone() for name, buffer in head.margin.named_buffers()}
    return values, x.grad, grad.to_dense() if grad.is_sparse else grad, state


def on_a_rank(group, rank, w, text, arguments, x, labels, exclude, rows):
    """By each contract of the gradients, and the logits."""
    own = slice(sum(rows[:rank]), sum(rows[: rank + 1]))
    exclude = None if exclude is None else exclude[own]
    heads = [head_on(w, group, text, arguments | {"grads": grads}) for grads in ("sum", "mean")]
    return [several_steps(head, x[own], labels[own], exclude, own.start) for head in heads], heads[
        0
    ].logits(x)


def law_1(pool, n, rows, x, w, labels, text, arguments):
    """On n ranks with so many rows each: the values, all gradients, the margin's state and the
    logits are those of one rank.
    """
    exclude = arguments.pop("exclude", None)
    values, to_x, to_w, state = several_steps(head_on(w, None, text, arguments), x, labels, exclude)
    scores = head_on(w, None, text, arguments).logits(x)
    answered = pool.run(n, on_a_rank, w, text, arguments, x, labels, exclude, rows)
    for contract, factor in enumerate((1, 1 if arguments["reduction"] == "none" else n)):
        answers = [(both[contract], logits) for both, logits in answered]
        for (theirs, _, _, moved), logits in answers:
            for name, buffer in state.items():
                torch.testing.assert_close(moved[name], buffer, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(logits, scores, rtol=1e-10, atol=1e-10)
            if arguments["reduction"] != "none":
                for a, b, first in zip(theirs, values, answers[0][0][0], strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
                    assert torch.equal(a, first)
        if arguments["reduction"] == "none":
            for step, value in enumerate(values):
                torch.testing.assert_close(
                    torch.cat([a[0][0][step] for a in answers]), value, rtol=1e-10, atol=1e-10
                )
        torch.testing.assert_close(
            torch.cat([a[0][1] for a in answers]), factor * to_x, rtol=1e-10, atol=1e-10
        )
        torch.testing.assert_close(
            torch.cat([a[0][2] for a in answers]), to_w, rtol=1e-10, atol=1e-10
        )


RATES = [0.0, 0.3, 1.0]
SOME = settings(max_examples=max(1, settings().max_examples // 30))  # of each combination


def others_nightly(told, cases):
    """All cases; those that are not told run with the nightly tests."""
    return [
        pytest.param(*case, marks=() if case in told else pytest.mark.nightly) for case in cases
    ]


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(
    ("text", "rate", "K"),
    others_nightly(
        [
            *((text, 0.3, 3) for text in MARGINS),
            *((text, rate, 1) for text in ("ArcFace(0.5)", "AdaFace(0.4)") for rate in (0.0, 1.0)),
        ],
        itertools.product(MARGINS, RATES, (1, 3)),
    ),
)
@settings(SOME)
@given(data=st.data())
def test_n_ranks_are_one_rank(pool, text, rate, K, data):
    n = data.draw(st.integers(2, 4))
    rows = data.draw(
        st.lists(st.integers(0, 4), min_size=n, max_size=n).filter(lambda r: sum(r) > 1)
    )
    x, w, labels, generator = data.draw(
        problems(rows=(sum(rows), sum(rows)), classes=(2, 11), centers=(K, K))
    )
    labels, arguments = data.draw(settings_of_the_loss(labels, len(w), generator))
    arguments["scale"] = min(arguments["scale"], 8.0)
    arguments |= {
        "sample_rate": rate,
        "log_q": data.draw(st.booleans()),
        "budget": data.draw(st.sampled_from([1, 500, 2**27])),
    }
    law_1(pool, n, rows, x, w, labels, text, arguments)


AT_CORNERS = ["ArcFace(0.5)", "AdaFace(0.4)", "CurricularFace(0.5)", MARGINS[-1]]


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(
    ("text", "rate"),
    others_nightly(
        [("ArcFace(0.5)", 0.0), ("ArcFace(0.5)", 1.0), ("AdaFace(0.4)", 0.3)],
        itertools.product(AT_CORNERS, RATES),
    ),
)
@pytest.mark.parametrize(
    ("C", "rows", "own"),
    [
        (2, [2, 1, 0, 1], [0, 1, 1, 0]),
        (9, [0, 3, 0, 1], [8, 8, 8, 8]),
        (3, [1, 1, 1, 1], [0, 1, 2, 0]),
        (13, [4, 0, 0, 0], [0, 0, 1, 0]),
    ],
    ids=[
        "fewer classes than ranks",
        "three ranks without positives, two without rows",
        "one rank without classes",
        "all rows on one rank",
    ],
)
def test_corners_are_one_rank(pool, C, rows, own, text, rate):
    generator = torch.Generator().manual_seed(C)
    x = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    w = torch.randn(C, 1, 5, dtype=torch.float64, generator=generator)
    law_1(
        pool,
        4,
        rows,
        x,
        w,
        torch.tensor(own),
        text,
        {"scale": 8.0, "reduction": "mean", "sample_rate": rate},
    )


def refusal(group, rank, labels, x):
    head = PartialFC(10, 3, group=group)
    try:
        head(x[rank], labels[rank])
    except (ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.xdist_group("ranks")
def test_what_one_rank_refuses_all_refuse(pool):
    x = [torch.randn(2, 3) for _ in range(3)]
    labels = [torch.tensor([0, 1]), torch.tensor([2, 10]), torch.tensor([3, 4])]
    first, second, third = pool.run(3, refusal, labels, x)
    assert "labels outside 0..9" in second
    assert first == third
    assert "Rank 1 of 3 refused its batch: The classifier was given labels outside 0..9" in first
    labels[1] = torch.tensor([2.0, 3.0])
    answers = pool.run(3, refusal, labels, x)
    assert answers[1].startswith("TypeError: Labels are integers")
    assert "Rank 1 of 3" in answers[0]
    x[1] = torch.full((2, 3), torch.nan)
    labels[1] = torch.tensor([2, 3])
    assert all("embeddings with NaN or inf" in answer for answer in pool.run(3, refusal, labels, x))


def excluding(group, rank, widths):
    head = PartialFC(10, 3, group=group)
    exclude = None if widths[rank] is None else torch.full((2, widths[rank]), -1)
    try:
        return head(torch.ones(2, 3), torch.tensor([0, 1]), exclude).item()
    except ValueError as error:
        return str(error)


@pytest.mark.xdist_group("ranks")
def test_excluded_classes_have_the_same_columns_on_every_rank(pool):
    for widths in ([None, 2], [1, 2]):
        for answer in pool.run(2, excluding, widths):
            said = " and ".join(f"{w or 0} on rank {rank}" for rank, w in enumerate(widths))
            assert f"PartialFC alike: columns of excluded classes is {said}." in answer
    assert (
        pool.run(2, excluding, [None, 0])
        == pool.run(2, excluding, [1, 1])
        == pool.run(2, excluding, [None, None])
    )


def reloaded(group, rank, saved, held):
    """Return the error of a head of `held` classes that loads the state dict of `saved` classes."""
    old, new = (
        PartialFC(C, 4, subcenters=2, group=group, seed=seed) for C, seed in ((saved, 1), (held, 2))
    )
    before = new.centers.detach().clone()
    try:
        new.load_state_dict(old.state_dict())
    except RuntimeError as error:
        assert torch.equal(new.centers, before)
        return str(error)
    assert torch.equal(new.centers, old.centers)
    new.load_centers(old.state_dict()["centers"])  # a DTensor is brought together, and cut
    assert torch.equal(new.centers, old.centers)
    return ""


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("n", [1, 4])
def test_centers_of_another_number_of_classes_are_not_loaded(pool, n):
    # 9 and 10 classes have as many on three of the four ranks
    for saved, held in ((10, 9), (9, 10), (10, 11)):
        for answer in pool.run(n, reloaded, saved, held):
            assert (
                f"centers is of {saved} classes, not {held}. marginlab.losses.resized gives"
                in answer
            )
    assert pool.run(n, reloaded, 10, 10) == [""] * n


def drawn_on_a_rank(group, rank, C, K, D):
    head = PartialFC(C, D, subcenters=K, group=group, seed=2)
    return head.part, head.centers.detach()


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("C", [3, 4, 5, 2050])
def test_shards_are_torchs_chunks_of_the_centers_of_one_rank(pool, C):
    whole = PartialFC(C, 3, subcenters=2, seed=2).centers.detach()
    answers = pool.run(4, drawn_on_a_rank, C, 2, 3)
    chunks = list(whole.chunk(4))
    chunks += [whole[:0]] * (4 - len(chunks))
    for (_, centers), chunk in zip(answers, chunks, strict=True):
        assert torch.equal(centers, chunk)


def in_parts(head, x, labels, cuts, statistics):
    """The gradients of one window over parts of this rank's rows, and the sum of the losses."""
    x = x.detach().clone().requires_grad_()
    total = 0.0
    with head.window(labels, statistics=statistics):
        for start, stop in itertools.pairwise(cuts):
            loss = head(x[start:stop], labels[start:stop])
            loss.backward()
            total = total + loss.detach()
    grad = head.centers.grad
    state = {name: buffer.clone() for name, buffer in head.margin.named_buffers()}
    return total, x.grad, grad.to_dense() if grad.is_sparse else grad, state


def in_parts_on_a_rank(group, rank, w, text, arguments, x, labels, rows, cuts, statistics):
    own = slice(sum(rows[:rank]), sum(rows[: rank + 1]))
    return in_parts(head_on(w, group, text, arguments), x[own], labels[own], cuts[rank], statistics)


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(
    ("text", "rate"),
    others_nightly(
        [("ArcFace(0.5)", 0.0), ("ArcFace(0.5)", 1.0), *((text, 0.4) for text in MARGINS)],
        itertools.product([text for text in MARGINS if "plus=True" not in text], (0.0, 0.4, 1.0)),
    ),
)
@settings(SOME)
@given(data=st.data())
def test_a_window_of_parts_is_one_batch_on_any_number_of_ranks(pool, text, rate, data):
    n = data.draw(st.integers(1, 3))
    rows = data.draw(
        st.lists(st.integers(0, 5), min_size=n, max_size=n).filter(lambda r: sum(r) > 1)
    )
    x, w, labels, generator = data.draw(problems(rows=(sum(rows), sum(rows)), classes=(2, 9)))
    labels, arguments = data.draw(settings_of_the_loss(labels, len(w), generator))
    arguments |= {
        "scale": 8.0,
        "reduction": data.draw(st.sampled_from(["mean", "sum"])),
        "sample_rate": rate,
        "log_q": data.draw(st.booleans()),
    }
    arguments["grads"] = "sum"
    arguments.pop("exclude", None)
    statistics = "previous" if make(text).averages else None
    expected = in_parts(head_on(w, None, text, arguments), x, labels, [0, len(x)], statistics)
    # without a window; averages of earlier steps are what a margin in evaluation mode takes
    head = head_on(w, None, text, arguments)
    head.margin.train(statistics is None)
    y = x.clone().requires_grad_()
    value = head(y, labels)
    value.backward()
    torch.testing.assert_close(value.detach(), expected[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(y.grad, expected[1], rtol=1e-10, atol=1e-10)
    whole = head_on(w, None, text, arguments)
    whole(x, labels)  # moves the averages by the whole batch
    cuts = [sorted(data.draw(st.lists(st.integers(0, r), min_size=2, max_size=2))) for r in rows]
    answers = pool.run(
        n,
        in_parts_on_a_rank,
        w,
        text,
        arguments,
        x,
        labels,
        rows,
        [[0, *c, r] for c, r in zip(cuts, rows, strict=True)],
        statistics,
    )
    for total, _, _, state in answers:
        torch.testing.assert_close(total, expected[0], rtol=1e-10, atol=1e-10)
        for name, buffer in whole.margin.named_buffers():
            torch.testing.assert_close(state[name], buffer, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        torch.cat([a[1] for a in answers]), expected[1], rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(
        torch.cat([a[2] for a in answers]), expected[2], rtol=1e-10, atol=1e-10
    )


def test_a_window_refuses_what_it_cannot_make_one_batch_of():
    x, labels = torch.randn(4, 3), torch.arange(4)
    for text in ("AdaFace(0.4)", "CurricularFace(0.5)"):
        with (
            pytest.raises(ValueError, match="statistics='previous'"),
            PartialFC(6, 3, margin=make(text)).window(labels),
        ):
            pass
    head = PartialFC(6, 3, sample_rate=0.5)
    with (
        pytest.raises(
            ValueError, match=r"opened for \[4\] rows of each rank and closed after \[2\]"
        ),
        head.window(labels),
    ):
        head(x[:2], labels[:2])
    with pytest.raises(ValueError, match="not the next ones"), head.window(labels):
        head(x[:2], labels[2:])
    with pytest.raises(ValueError, match=r"not for \[4\] more after \[4\]"), head.window(labels):
        _ = head(x, labels), head(x, labels)
    with pytest.raises(ValueError, match="open already"), head.window(labels), head.window(labels):
        pass
    with (
        pytest.raises(ValueError, match="reduction"),
        PartialFC(6, 3, reduction="none").window(labels),
    ):
        pass
    plus = PartialFC(6, 3, margin=make("ElasticFace(0.5, plus=True)"))
    with pytest.raises(ValueError, match="pairs margins with all rows"), plus.window(labels):
        pass
    assert head(x, labels).isfinite()  # a window that failed is closed
