import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from loss_laws import LossLaws, draw_views, several, value_and_gradients

from marginlab.losses import CrossCorrelation, SpectralContrastive
from marginlab.losses.functional import spectral_contrastive


def naive(z1, z2, negatives="other_view"):
    """The pairs one by one."""
    n = len(z1)
    pairs = [(z1, z2)] if negatives == "other_view" else [(z1, z1), (z1, z2), (z2, z1), (z2, z2)]
    apart = ~torch.eye(n, dtype=torch.bool)
    return (
        torch.stack([(a @ b.T)[apart].square().mean() for a, b in pairs]).mean()
        - 2 * (z1 * z2).sum(1).mean()
    )


class TestSpectralContrastive(LossLaws):
    module, function, naive = (
        SpectralContrastive,
        staticmethod(spectral_contrastive),
        staticmethod(naive),
    )
    arguments = st.fixed_dictionaries({"negatives": st.sampled_from(["other_view", "both_views"])})

    @staticmethod
    def gradient_when_nothing_crosses(_z1, z2, _rows):
        """The (D, D) matrices reduced without gradient: the positives alone are left."""
        return -2 * z2 / len(z2)

    @several
    @given(data=st.data())
    def test_invariant_to_a_common_rotation(self, data):
        arguments = data.draw(self.arguments)
        z1, z2, generator = draw_views(data, 5, features=4)
        rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
        torch.testing.assert_close(
            spectral_contrastive(z1 @ rotation, z2 @ rotation, **arguments),
            spectral_contrastive(z1, z2, **arguments),
        )

    @pytest.mark.parametrize("negatives", ["other_view", "both_views"])
    def test_unbiased_over_all_batches_of_a_finite_population(self, negatives):
        """Three images of two equally likely views: the mean over every batch is the loss of the
        population, images of a pair distinct.
        """
        views = torch.randn(
            3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        estimates = []
        for i, j in ((0, 1), (0, 2), (1, 2)):
            for picks in torch.cartesian_prod(*[torch.arange(2)] * 4):
                a, b, c, d = (
                    views[image, pick] for image, pick in zip((i, i, j, j), picks, strict=True)
                )
                estimates.append(
                    spectral_contrastive(
                        torch.stack((a, c)), torch.stack((b, d)), negatives=negatives
                    )
                )
        mean = views.mean(1)
        squares = torch.stack(
            [(views[i] @ views[j].T).square().mean() for i in range(3) for j in range(3) if i != j]
        ).mean()
        torch.testing.assert_close(
            torch.stack(estimates).mean(), squares - 2 * mean.square().sum(1).mean()
        )

    def test_at_perfect_alignment_it_is_the_cross_correlation_loss_of_weight_1(self):
        """|M - I|^2 = loss + D over all pairs, own ones included, for centred features of deviation
        1.
        """
        z = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        z = (z - z.mean(0)) / z.std(0, correction=0)
        n, own = 9, z.square().sum(1).square().sum()
        everything = (spectral_contrastive(z, z) + 2 * z.square().sum(1).mean()) * n * (n - 1) + own
        torch.testing.assert_close(
            CrossCorrelation(1.0)(z, z), everything / n**2 - 2 * z.square().sum(1).mean() + 4
        )

    def test_collapsed_views_have_the_documented_values(self):
        for length, expected in ((0.0, 0.0), (2.0, 16.0 - 8.0)):
            z = torch.full((4, 4), length / 2)
            value, slopes = value_and_gradients(spectral_contrastive, z, z)
            assert float(value) == expected
            assert all(bool(s.isfinite().all()) for s in slopes)

    @pytest.mark.usefixtures("unchecked")
    def test_bad_settings_are_refused(self):
        with pytest.raises(ValueError, match="negatives is not 'other'"):
            SpectralContrastive(negatives="other")


@pytest.mark.parametrize(
    "lengths", [(1e25, 1e-24), (3e38, 1e-38), (1e30, 0.0), (1e-30, 1e29), (0.0, 0.0)]
)
def test_views_of_very_different_lengths_have_the_loss_of_their_products(lengths):
    """Squares of the long view overflow in float32, and those of the short one vanish."""
    z = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    views = [view * length for view, length in zip(z, lengths, strict=True)]
    value, slopes = value_and_gradients(spectral_contrastive, *views)
    exact, right = value_and_gradients(spectral_contrastive, *(view.double() for view in views))
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)
    for slope, of in zip(slopes, right, strict=True):
        torch.testing.assert_close(slope.double(), of, rtol=1e-4, atol=1e-6 * float(of.abs().max()))
