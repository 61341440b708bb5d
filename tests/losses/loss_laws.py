"""Laws of every loss of two views.

Its formula in float64, its two doors, its symmetries, bf16, and the same on any number of ranks.
"""

import functools

import hypothesis.strategies as st
import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings

import marginlab.losses
from marginlab.settings import make
from marginlab.testing.loss_laws import permutation, ranks, symmetry
from marginlab.testing.strategies import seeds

# one law, run for each loss
several = settings(suppress_health_check=[HealthCheck.differing_executors])
few = settings(several, max_examples=5)
NUMBERS_OF_RANKS = [*(pytest.param(n, marks=pytest.mark.nightly) for n in (1, 2, 3)), 4]


def draw_views(data, rows, features=None):
    """Two views that resemble each other, float64, and the generator that drew them."""
    features = data.draw(st.integers(1, 5)) if features is None else features
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    z1 = torch.randn(rows, features, dtype=torch.float64, generator=generator)
    return z1, z1 + 0.5 * torch.randn(z1.shape, dtype=torch.float64, generator=generator), generator


def value_and_gradients(function, *inputs, **arguments):
    inputs = [x.clone().requires_grad_() for x in inputs]
    value = function(*inputs, **arguments)
    value.sum().backward()
    return value.detach(), [x.grad for x in inputs]


def given_group(function, arguments, grads, group=None):
    """The function as a loss of a group of ranks."""
    return functools.partial(function, **arguments, group=group, grads=grads)


def on_a_rank(group, rank, function, parts, grads):
    """The loss and the gradients of this rank's rows."""
    return value_and_gradients(functools.partial(function, group=group, grads=grads), *parts[rank])


def under_the_default_group(group, rank, function, parts):
    return value_and_gradients(function, *parts[rank])


def averaged_over_ranks(group, rank, function, parts, weight):
    """The gradient of a shared layer's weight, averaged over the ranks as DDP and FSDP do."""
    weight = weight.clone().requires_grad_()
    function(*(x @ weight.T for x in parts[rank]), group=group).backward()
    dist.all_reduce(weight.grad, group=group)
    return weight.grad / dist.get_world_size(group)


def refusal(group, rank, function, parts):
    try:
        function(*parts[rank], group=group, empty="raise")
    except ValueError as error:
        return str(error)


class LossLaws:
    """Mixed into a test class that gives `module`, `function`, `naive(z1, z2, **arguments)`,
    `arguments` (a strategy), the `fewest` rows that brute force can do, and `unreduced(z1, z2)`,
    the losses of the anchors of z1 and then of z2. A loss that is no mean over anchors gives
    `gradient_when_nothing_crosses` instead.
    """

    fewest = 2
    # a loss read from its repr, made to take two views; a loss that takes labels overrides it
    of_views = staticmethod(lambda loss: loss)

    def gradient_when_nothing_crosses(self, z1, z2, rows):
        """The gradient of z1 when what is gathered from ranks of so many rows is constant.

        Each rank then sees its own rows only as they enter the losses of its own anchors.
        """
        slopes, start = [], 0
        for count in rows:
            own = (torch.arange(len(z1)) >= start) & (torch.arange(len(z1)) < start + count)
            x1 = z1.clone().requires_grad_()
            losses = self.unreduced(torch.where(own[:, None], x1, z1), z2)[torch.cat((own, own))]
            slopes.append(torch.autograd.grad(losses.sum() / (2 * len(z1)), x1)[0][own])
            start += count
        return torch.cat(slopes)

    def same(self, got, expected, atol=1e-10):
        torch.testing.assert_close(got[0], expected[0], rtol=1e-10, atol=atol)
        for a, b in zip(got[1], expected[1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=atol)

    @several
    @given(data=st.data())
    def test_it_is_its_formula_in_value_and_gradient(self, data):
        arguments = data.draw(self.arguments)
        z1, z2, _ = draw_views(data, data.draw(st.integers(self.fewest, 8)))
        got = value_and_gradients(functools.partial(self.function, **arguments), z1, z2)
        self.same(got, value_and_gradients(functools.partial(self.naive, **arguments), z1, z2))

    @several
    @given(data=st.data())
    def test_module_and_function_are_one_formula(self, data):
        arguments = data.draw(self.arguments)
        z1, z2, _ = draw_views(data, 4)
        module = self.module(**arguments)
        assert torch.equal(module(z1, z2), type(self).function(z1, z2, **arguments))
        again = self.of_views(make(repr(module), marginlab.losses, torch.nn.Module))
        assert repr(again) == repr(module)
        assert torch.equal(module(z1, z2), again(z1, z2))

    @several
    @given(data=st.data())
    def test_symmetric_in_the_views_and_indifferent_to_the_order_of_the_batch(self, data):
        arguments = data.draw(self.arguments)
        z1, z2, _ = draw_views(data, data.draw(st.integers(self.fewest, 8)))
        make = functools.partial(functools.partial, type(self).function, **arguments)
        permutation(make, (z1, z2), data.draw(seeds))
        if arguments.get("symmetric", True):
            symmetry(make, (z1, z2), 0)

    @few
    @given(data=st.data())
    def test_bf16_embeddings_under_autocast_lose_nothing_in_the_loss(self, data):
        arguments = data.draw(self.arguments)
        z1, z2, _ = draw_views(data, 16, features=8)
        layer = torch.nn.Linear(8, 8).requires_grad_(False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            views = [layer(z.float()).requires_grad_() for z in (z1, z2)]
            value = self.function(*views, **arguments)
        slopes = torch.autograd.grad(value.sum(), views)
        exact, exact_slopes = value_and_gradients(
            functools.partial(self.function, **arguments), *(v.detach().double() for v in views)
        )
        assert (views[0].dtype, value.dtype) == (torch.bfloat16, torch.float32)
        torch.testing.assert_close(value.detach().double(), exact, rtol=2e-5, atol=1e-6)
        for a, b in zip(slopes, exact_slopes, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=2**-8, atol=2e-5 * float(b.abs().max()))

    @pytest.mark.xdist_group("ranks")
    @pytest.mark.parametrize("n", NUMBERS_OF_RANKS)
    @few
    @given(data=st.data())
    def test_n_ranks_are_one_rank(self, pool, n, data):
        arguments = data.draw(self.arguments.filter(lambda a: a.get("reduction") != "none"))
        z1, z2, _ = draw_views(data, data.draw(st.integers(self.fewest, 4 * n)))
        for gradients in ("sum", "mean"):
            make = functools.partial(given_group, type(self).function, arguments, gradients)
            seed = data.draw(seeds)
            ranks(make, (z1, z2), seed, n=n, pool=pool, gradients=gradients)

    @pytest.mark.xdist_group("ranks")
    def test_without_a_named_group_it_is_the_default_one(self, pool):
        z1, z2 = torch.randn(
            2, 9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        rows = [2, 3, 0, 4]
        value, slopes = value_and_gradients(type(self).function, z1, z2)
        answers = pool.run(
            4,
            under_the_default_group,
            type(self).function,
            list(zip(z1.split(rows), z2.split(rows), strict=True)),
        )
        for view in (0, 1):
            self.same(
                (answers[0][0], [torch.cat([a[1][view] for a in answers])]),
                (value, [4 * slopes[view]]),
            )

    # The three families of published bugs

    @pytest.mark.xdist_group("ranks")
    def test_averaged_over_ranks_the_gradient_is_not_off_by_their_number(self, pool):
        generator = torch.Generator().manual_seed(1)
        x1, x2 = torch.randn(2, 6, 4, dtype=torch.float64, generator=generator)
        weight = torch.randn(3, 4, dtype=torch.float64, generator=generator)
        _, (expected,) = value_and_gradients(lambda w: self.function(x1 @ w.T, x2 @ w.T), weight)
        rows = [3, 1, 2]
        for grad in pool.run(
            3,
            averaged_over_ranks,
            type(self).function,
            list(zip(x1.split(rows), x2.split(rows), strict=True)),
            weight,
        ):
            torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-10)

    @pytest.mark.xdist_group("ranks")
    def test_what_crosses_the_ranks_carries_gradient(self, pool):
        z1, z2 = torch.randn(
            2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
        )
        rows = [2, 4]
        _, slopes = value_and_gradients(self.naive, z1, z2)
        wrong = self.gradient_when_nothing_crosses(z1, z2, rows)
        answers = pool.run(
            2,
            on_a_rank,
            type(self).function,
            list(zip(z1.split(rows), z2.split(rows), strict=True)),
            "sum",
        )
        got = torch.cat([a[1][0] for a in answers])
        torch.testing.assert_close(got, slopes[0], rtol=1e-10, atol=1e-10)
        assert not torch.allclose(got, wrong, rtol=1e-2, atol=1e-4)

    @pytest.mark.xdist_group("ranks")
    def test_statistics_and_negatives_are_those_of_the_global_batch(self, pool):
        z1, z2 = torch.randn(
            2, 8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
        )
        parts = list(zip(z1.split(4), z2.split(4), strict=True))
        wrong = torch.stack([self.naive(*part) for part in parts]).mean()
        for value, _ in pool.run(2, on_a_rank, type(self).function, parts, "mean"):
            torch.testing.assert_close(value, self.naive(z1, z2), rtol=1e-10, atol=1e-10)
            assert not torch.allclose(value, wrong, rtol=1e-2)

    @pytest.mark.xdist_group("ranks")
    def test_a_global_batch_of_one_row_is_refused_on_every_rank(self, pool):
        z = torch.randn(1, 3)
        for message in pool.run(
            3, refusal, type(self).function, [(z[:0], z[:0]), (z, z), (z[:0], z[:0])]
        ):
            assert "Give at least two rows" in message

    @pytest.mark.xdist_group("ranks")
    def test_what_one_rank_refuses_all_refuse(self, pool):
        """Otherwise the others would wait for it in a collective that it never enters."""
        z = torch.ones(4, 3)
        parts = [(z, z), (z, z[:, :2]), (z[:0], z[:0])]
        first, second, third = pool.run(3, refusal, type(self).function, parts)
        assert second.startswith(
            "Two views are two matrices (B, D) of one shape, row i of both from one image, not (4, "
            "3) and (4, 2)."
        )
        assert first == third == f"Rank 1 of 3 refused its batch: {second}"

    @pytest.mark.usefixtures("unchecked")
    def test_bad_views_and_words_are_refused(self):
        z = torch.ones(4, 3)
        for other in (torch.ones(4, 2), torch.ones(3, 3), torch.ones(4)):
            with pytest.raises(
                ValueError, match=r"of one shape, row i of both from one image, not \(4, 3\) and \("
            ):
                self.function(z, other)
        with pytest.raises(ValueError, match="of one shape"):
            self.function(z[:, :0], z[:, :0])
        with pytest.raises(TypeError, match=r"floating point, not torch.int64"):
            self.function(z, torch.ones(4, 3, dtype=torch.int64))
        with pytest.raises(ValueError, match="grads is not 'average'"):
            self.module(grads="average")
        with pytest.raises(ValueError, match="Give at least two rows"):
            self.function(z[:1], z[:1], empty="raise")
        with pytest.raises(ValueError, match="empty is not 'nothing'"):
            self.module(empty="nothing")

    @pytest.mark.xdist_group("ranks")
    def test_a_global_batch_of_one_row_or_none_is_zero_with_zero_gradient(self, pool):
        z = torch.randn(1, 3)
        for rows in (z, z[:0]):
            value, slopes = value_and_gradients(type(self).function, rows, rows)
            assert float(value) == 0.0
            assert all(bool((s == 0).all()) for s in slopes)
        parts = [(z[:0], z[:0]), (z, z), (z[:0], z[:0])]
        for value, slopes in pool.run(3, on_a_rank, type(self).function, parts, "mean"):
            assert float(value) == 0.0
            assert all(bool((s == 0).all()) for s in slopes)
