"""Two towers: the matrix of all pairs by brute force, at nested widths and with label smoothing."""

import functools
import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from loss_laws import LossLaws, draw_views, on_a_rank, several, value_and_gradients

import marginlab.losses
from marginlab.losses import TwoTowers
from marginlab.losses.functional import info_nce, two_towers
from marginlab.settings import make


def unreduced(z1, z2, temperature=0.07, label_smoothing=0.0, widths=None):
    """The losses of the anchors of either side at each width, (2 W, N)."""
    index, found = torch.arange(len(z1)), []
    for m in widths or (z1.shape[1],):
        s = F.normalize(z1[:, :m]) @ F.normalize(z2[:, :m]).T / temperature
        options = {"label_smoothing": label_smoothing, "reduction": "none"}
        found += [F.cross_entropy(s, index, **options), F.cross_entropy(s.T, index, **options)]
    return torch.stack(found)


def naive(z1, z2, budget=0, **arguments):
    return unreduced(z1, z2, **arguments).mean()


class TestTwoTowers(LossLaws):
    module, function, naive = TwoTowers, staticmethod(two_towers), staticmethod(naive)
    unreduced = staticmethod(lambda z1, z2: torch.cat(tuple(unreduced(z1, z2))))
    arguments = st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.1, 0.5]),
            "label_smoothing": st.sampled_from([0.0, 0.1]),
            "budget": st.sampled_from([64, 1000, 2**20]),
        }
    )

    @several
    @given(
        data=st.data(),
        widths=st.sampled_from([(1, 2, 5), (2, 5), (3,), (1, 2, 3, 4, 5)]),
        label_smoothing=st.sampled_from([0.0, 0.2]),
        budget=st.sampled_from([64, 1000, 2**20]),
    )
    def test_nested_widths_and_a_temperature_have_the_gradients_of_the_matrix(
        self, data, widths, label_smoothing, budget
    ):
        z1, z2, _ = draw_views(data, data.draw(st.integers(2, 9)), features=5)
        t = torch.tensor(data.draw(st.sampled_from([0.2, 1.0])), dtype=torch.float64)
        options = {"widths": widths, "label_smoothing": label_smoothing}
        self.same(
            value_and_gradients(
                lambda a, b, t: two_towers(a, b, temperature=t, budget=budget, **options), z1, z2, t
            ),
            value_and_gradients(lambda a, b, t: naive(a, b, temperature=t, **options), z1, z2, t),
        )

    @pytest.mark.xdist_group("ranks")
    def test_nested_widths_over_ranks_are_those_of_one(self, pool):
        z1, z2 = torch.randn(2, 6, 5, dtype=torch.float64)
        rows, function = (
            (2, 1, 3),
            functools.partial(two_towers, widths=(2, 5), label_smoothing=0.1),
        )
        parts = list(zip(z1.split(rows), z2.split(rows), strict=True))
        found = pool.run(3, on_a_rank, function, parts, "sum")
        value, slopes = value_and_gradients(function, z1, z2)
        for each, _ in found:
            torch.testing.assert_close(each, value)
        for k, slope in enumerate(slopes):
            torch.testing.assert_close(torch.cat([grads[k] for _, grads in found]), slope)

    def test_it_is_info_nce_of_two_towers(self):
        z1, z2 = torch.randn(2, 6, 4, dtype=torch.float64)
        torch.testing.assert_close(
            two_towers(z1, z2, temperature=0.3),
            info_nce(z1, z2, temperature=0.3, negatives="other_view"),
        )

    def test_a_loss_near_zero_keeps_its_digits(self):
        z = torch.eye(4)
        value = two_towers(z, z, temperature=0.02)
        torch.testing.assert_close(value, torch.tensor(3 * math.exp(-50)), rtol=1e-5, atol=0)

    def test_a_prefix_without_direction_gets_no_gradient(self):
        z1, z2 = torch.randn(2, 4, 5)
        z1[1, :2] = 0
        _, (d1, d2) = value_and_gradients(
            lambda a, b: two_towers(a, b, widths=(2,), label_smoothing=0.1), z1, z2
        )
        assert bool((d1[1] == 0).all())
        assert bool((d1[[0, 2, 3], :2] != 0).all())
        assert float(d1[:, 2:].abs().max()) < 1e-6  # projected off the row, so rounded
        assert bool(d2.isfinite().all())

    def test_equal_calls_give_equal_bits_and_no_matrix_is_held(self):
        z1, z2 = torch.randn(2, 700, 6)
        seen = []

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                out = function(*args, **(kwargs or {}))
                seen.extend(x.numel() for x in [out] if isinstance(x, torch.Tensor))
                return out

        def call():
            return value_and_gradients(
                lambda a, b: two_towers(a, b, widths=(2, 6), budget=2**16), z1, z2
            )

        first = call()
        with Watch():
            second = call()
        assert torch.equal(first[0], second[0])
        assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))
        assert max(seen) <= 2**14  # of a matrix of 700 x 700 = 490,000

    @pytest.mark.parametrize("widths", [(), (0, 2), (2, 2), (3, 2), (2, 4)], ids=str)
    def test_widths_that_do_not_rise_to_the_features_are_refused(self, widths):
        with pytest.raises(ValueError, match="Widths rise from at least 1 to at most the 3"):
            two_towers(torch.ones(2, 3), torch.ones(2, 3), widths=widths)

    def test_a_module_with_widths_reads_back_from_its_text(self):
        loss = TwoTowers(widths=(2, 3))
        assert repr(make(repr(loss), marginlab.losses, torch.nn.Module)) == repr(loss)

    def test_settings_out_of_range_are_refused(self):
        with pytest.raises(ValueError, match=r"A temperature is positive, such as 0\.07, not 0"):
            TwoTowers(0)
        with pytest.raises(ValueError, match="label_smoothing lies in"):
            TwoTowers(label_smoothing=1.0)

    def test_the_temperature_learns_and_a_second_derivative_is_refused(self):
        loss = TwoTowers(0.2, learnable=True, widths=(1, 3))
        z = torch.randn(4, 3, requires_grad=True)
        value = loss(z, torch.randn(4, 3))
        (slope,) = torch.autograd.grad(value, loss.log_scale, retain_graph=True)
        assert float(slope) != 0
        (first,) = torch.autograd.grad(value, z, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()
