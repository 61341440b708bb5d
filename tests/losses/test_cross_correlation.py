import functools
import warnings

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from loss_laws import LossLaws, averaged_over_ranks, draw_views, several, value_and_gradients
from torch.autograd import gradcheck, gradgradcheck

from marginlab import ranks
from marginlab.losses import CrossCorrelation
from marginlab.losses.functional import cross_correlation


def naive(z1, z2, off_diagonal_weight=5e-3, correction=0, budget=0):
    standard = [(z - z.mean(0)) / z.std(0, correction=correction) for z in (z1, z2)]
    c = standard[0].T @ standard[1] / len(z1)
    weights = torch.full_like(c, off_diagonal_weight).fill_diagonal_(1)
    return (weights * (torch.eye(len(c), dtype=c.dtype) - c).square()).sum()


def decorrelated(rows, features, dtype=torch.float64):
    z = torch.randn(rows, features, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(z - z.mean(0)).Q.to(dtype)


def published(z1, z2, group):
    """Statistics of synchronised batch normalisation, with gradient; the correlation summed over
    the ranks outside of autograd.
    """
    standard = []
    for z in (z1, z2):
        everyone = ranks.all_gather(z, group)
        standard.append((z - everyone.mean(0)) / everyone.std(0, correction=0))
    c = standard[0].T @ standard[1] / len(everyone)
    c = c + (ranks.all_reduce(c.detach(), group) - c.detach())
    weights = torch.full_like(c, 5e-3).fill_diagonal_(1)
    return (weights * (torch.eye(len(c), dtype=c.dtype) - c).square()).sum()


class TestCrossCorrelation(LossLaws):
    module, function, naive = CrossCorrelation, staticmethod(cross_correlation), staticmethod(naive)
    arguments = st.fixed_dictionaries(
        {
            "off_diagonal_weight": st.floats(0, 2),
            "correction": st.sampled_from([0, 1]),
            "budget": st.sampled_from([16, 100, 2**20]),
        }
    )
    # at two rows every correlation is 1 or -1 and every gradient 0: brute force is rounding there
    fewest = 3

    @staticmethod
    def gradient_when_nothing_crosses(z1, z2, _rows):
        """Mean and deviation reduced without gradient: rows enter the products only."""
        x1 = z1.clone().requires_grad_()
        a, b = (
            (x1 - z1.mean(0)) / z1.std(0, correction=0),
            (z2 - z2.mean(0)) / z2.std(0, correction=0),
        )
        c = a.T @ b / len(z1)
        weights = torch.full_like(c, 5e-3).fill_diagonal_(1)
        return torch.autograd.grad((weights * (torch.eye(len(c)) - c).square()).sum(), x1)[0]

    @several
    @given(data=st.data())
    def test_invariant_to_shift_and_scale_of_each_feature(self, data):
        arguments = data.draw(self.arguments)
        z1, z2, generator = draw_views(data, 6, features=3)
        scale, shift = torch.rand(2, 2, 3, dtype=torch.float64, generator=generator) + 0.1
        torch.testing.assert_close(
            cross_correlation(z1 * scale[0] + 9 * shift[0], z2 * scale[1] - shift[1], **arguments),
            cross_correlation(z1, z2, **arguments),
        )

    @several
    @given(st.integers(0, 2**20), st.floats(0, 1))
    def test_a_sum_of_two_parts(self, seed, weight):
        """(1 - w) sum_i (1 - C_ii)^2 + w |C - I|^2."""
        z1, z2 = torch.randn(
            2, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        first, both = (cross_correlation(z1, z2, off_diagonal_weight=w) for w in (0.0, 1.0))
        torch.testing.assert_close(
            cross_correlation(z1, z2, off_diagonal_weight=weight),
            (1 - weight) * first + weight * both,
        )

    def test_zero_at_equal_decorrelated_views(self):
        z = decorrelated(16, 4)
        assert float(cross_correlation(z, z, off_diagonal_weight=1.0)) < 1e-28
        assert (
            float(cross_correlation(z.float(), 2 * z.float() + 1, off_diagonal_weight=1.0)) < 1e-11
        )
        torch.testing.assert_close(
            float(cross_correlation(z, z, correction=1)), 4 * (1 / 16) ** 2, rtol=1e-9, atol=0
        )

    def test_second_derivatives_are_right(self):
        z1, z2 = (
            z.requires_grad_()
            for z in torch.randn(
                2, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
            )
        )
        function = functools.partial(cross_correlation, off_diagonal_weight=0.3, correction=1)
        assert gradcheck(function, (z1, z2))
        assert gradgradcheck(function, (z1, z2))
        (slope,) = torch.autograd.grad(cross_correlation(z1, z2, budget=8), z1, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            slope.sum().backward()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("constant", [0.0, 0.1, 1e3, -7e-5])
    def test_a_constant_feature_has_no_correlation(self, dtype, constant):
        z1, z2 = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
        reference, slopes = value_and_gradients(cross_correlation, z1, z2)
        flat = torch.full((50, 1), constant, dtype=dtype)
        # rounding is no deviation
        flat[::3] = (
            torch.nextafter(flat[::3], torch.tensor(torch.inf, dtype=dtype)) if constant else 0.0
        )
        live = torch.randn(50, 1, generator=torch.Generator().manual_seed(1)).to(dtype)
        for d1, d2 in ((flat, flat), (flat, live), (live, flat)):
            value, got = value_and_gradients(
                cross_correlation, torch.cat((z1, d1), 1), torch.cat((z2, d2), 1)
            )
            assert bool(value.isfinite())
            if d1 is flat and d2 is flat:
                torch.testing.assert_close(value, reference + 1)
            assert float(value) > float(reference) + 0.99
            for g, s, d in zip(got, slopes, (d1, d2), strict=True):
                assert bool(g.isfinite().all())
                assert d is live or bool((g[:, 3] == 0).all())
                if d1 is flat and d2 is flat:
                    torch.testing.assert_close(g[:, :3], s)

    def test_collapsed_views_have_a_finite_value_and_no_gradient(self):
        z = torch.full((4, 3), 0.3)
        value, slopes = value_and_gradients(cross_correlation, z, z)
        assert float(value) == 3.0
        assert all(bool((s == 0).all()) for s in slopes)

    def test_a_large_mean_does_not_drown_the_deviation(self):
        z1, z2 = (torch.randn(2, 400, 3, generator=torch.Generator().manual_seed(0)) + 1e4).unbind()
        torch.testing.assert_close(
            cross_correlation(z1, z2).double(), naive(z1.double(), z2.double()), rtol=1e-5, atol=0
        )

    def test_blocks_give_constant_features_and_large_means_what_the_whole_matrix_gives(self):
        z1, z2 = torch.randn(2, 60, 5, generator=torch.Generator().manual_seed(0)) + 100
        z1[:, 2], z2[:, 3] = 0.3, 7.0
        whole, blocks = (
            value_and_gradients(cross_correlation, z1, z2, off_diagonal_weight=0.3, budget=b)
            for b in (2**20, 40)
        )
        torch.testing.assert_close(blocks[0], whole[0])
        for a, b in zip(blocks[1], whole[1], strict=True):
            torch.testing.assert_close(a, b)

    @pytest.mark.xdist_group("ranks")
    @pytest.mark.parametrize("budget", [2**20, 100])
    def test_published_by_name_is_the_gradient_of_the_published_code(self, pool, budget):
        """Averaged over the ranks, the exact gradient divided by their number."""
        generator = torch.Generator().manual_seed(5)
        x1, x2 = torch.randn(2, 7, 4, dtype=torch.float64, generator=generator)
        weight = torch.randn(3, 4, dtype=torch.float64, generator=generator)
        rows = [3, 1, 3]
        parts = list(zip(x1.split(rows), x2.split(rows), strict=True))
        _, (exact,) = value_and_gradients(lambda w: cross_correlation(x1 @ w.T, x2 @ w.T), weight)
        ours = pool.run(
            3,
            averaged_over_ranks,
            functools.partial(cross_correlation, grads="published", budget=budget),
            parts,
            weight,
        )
        for got, theirs in zip(
            ours, pool.run(3, averaged_over_ranks, published, parts, weight), strict=True
        ):
            torch.testing.assert_close(got, theirs, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(got, exact / 3, rtol=1e-10, atol=1e-12)

    def test_lightly_agrees(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lightly = pytest.importorskip("lightly.loss")
        # it adds 1e-5 to variances: drown it
        z1, z2 = 1e4 * torch.randn(
            2, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        self.same(
            value_and_gradients(
                functools.partial(cross_correlation, off_diagonal_weight=0.02), z1, z2
            ),
            value_and_gradients(lightly.BarlowTwinsLoss(lambda_param=0.02), z1, z2),
        )

    @pytest.mark.usefixtures("unchecked")
    def test_bad_settings_are_refused(self):
        with pytest.raises(ValueError, match="not -1"):
            CrossCorrelation(off_diagonal_weight=-1.0)
        with pytest.raises(ValueError, match=r"is 0 \(divide by N\) or 1 \(by N - 1\), not 2"):
            CrossCorrelation(correction=2)


@several
@given(data=st.data())
def test_it_is_a_mean_of_alignment_and_divergence(data):
    """The decomposition of Huang et al. 2023, section 4.2: (1 - lambda) sum_i (1 - C_ii)^2 + lambda
    |C - I|^2.
    """
    z1, z2, _ = draw_views(data, data.draw(st.integers(3, 8)))
    weight = data.draw(st.floats(0.0, 1.0))
    y1, y2 = ((z - z.mean(0)) / z.std(0, correction=0) for z in (z1, z2))
    C = y1.T @ y2 / len(z1)
    off_identity = C - torch.eye(len(C), dtype=C.dtype)
    mean = (
        1 - weight
    ) * off_identity.diagonal().square().sum() + weight * off_identity.square().sum()
    torch.testing.assert_close(
        cross_correlation(z1, z2, off_diagonal_weight=weight, correction=0),
        mean,
        rtol=1e-8,
        atol=1e-10,
    )
