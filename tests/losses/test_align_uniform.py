import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from loss_laws import LossLaws, draw_views, several, value_and_gradients

from marginlab.losses import AlignUniform
from marginlab.losses.functional import align_uniform


def naive(z1, z2, alignment_weight=1.0, uniformity_weight=1.0, alpha=2.0, t=2.0, budget=0):
    """The published definition, pair by pair."""
    x1, x2 = F.normalize(z1), F.normalize(z2)
    apart = ~torch.eye(len(x1), dtype=torch.bool)
    potential = [
        (x[:, None] - x).square().sum(2)[apart].mul(-t).exp().mean().log() for x in (x1, x2)
    ]
    return (
        alignment_weight * (x1 - x2).norm(dim=1).pow(alpha).mean()
        + uniformity_weight * (potential[0] + potential[1]) / 2
    )


class TestAlignUniform(LossLaws):
    module, function, naive = AlignUniform, staticmethod(align_uniform), staticmethod(naive)
    arguments = st.fixed_dictionaries(
        {
            "alignment_weight": st.floats(0, 3),
            "uniformity_weight": st.floats(0, 3),
            "alpha": st.floats(1, 3),
            "t": st.floats(0.1, 30),
            "budget": st.sampled_from([64, 1000, 2**20]),
        }
    )

    @staticmethod
    def gradient_when_nothing_crosses(z1, z2, _rows):
        """Columns gathered without gradient: each pair moves one of its two rows only, so
        uniformity has half its gradient.
        """
        slopes = [value_and_gradients(naive, z1, z2, uniformity_weight=u)[1][0] for u in (0.0, 1.0)]
        return (slopes[0] + slopes[1]) / 2

    @several
    @given(data=st.data())
    def test_invariant_to_a_common_rotation_and_to_the_lengths_of_rows(self, data):
        arguments = data.draw(self.arguments)
        z1, z2, generator = draw_views(data, 5, features=4)
        rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
        lengths = torch.rand(5, 1, dtype=torch.float64, generator=generator) + 0.1
        torch.testing.assert_close(
            align_uniform(lengths * z1 @ rotation, 7 * z2 @ rotation, **arguments),
            align_uniform(z1, z2, **arguments),
        )

    def test_many_directions_of_the_circle_reach_the_floor(self):
        """Uniform on the circle at t = 2: log(e^-4 I_0(4)), here without the N pairs of a point
        with itself.
        """
        angle = torch.arange(400, dtype=torch.float64) * 2 * math.pi / 400
        x = torch.stack((angle.cos(), angle.sin()), 1)
        expected = (
            math.exp(-4) * float(torch.special.i0(torch.tensor(4.0, dtype=torch.float64))) * 400 - 1
        ) / 399
        torch.testing.assert_close(
            float(align_uniform(x, x)), math.log(expected), rtol=1e-10, atol=0
        )

    @pytest.mark.parametrize("t", [2.0, 100.0])
    def test_extremes_have_documented_finite_values(self, t):
        equal, opposite = torch.ones(4, 3), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        for z1, z2, expected in (
            (equal, equal, 0.0),
            (equal, -equal, 4.0),
            (opposite, opposite, -4 * t),
            (0 * equal, 0 * equal, -2 * t),
        ):
            value, slopes = value_and_gradients(align_uniform, z1, z2, t=t)
            torch.testing.assert_close(float(value), expected, rtol=1e-5, atol=1e-5)
            assert all(bool(s.isfinite().all()) for s in slopes)
        value, slopes = value_and_gradients(
            align_uniform, equal, 0 * equal, t=t, alpha=1.0, uniformity_weight=0.0
        )
        torch.testing.assert_close(float(value), 1.0, rtol=1e-6, atol=0)
        assert bool((slopes[1] == 0).all())

    @pytest.mark.usefixtures("unchecked")
    def test_bad_settings_are_refused(self):
        with pytest.raises(
            ValueError, match=r"alignment_weight is not negative, such as 1.0, not -1"
        ):
            AlignUniform(alignment_weight=-1.0)
        with pytest.raises(ValueError, match="uniformity_weight is not negative"):
            AlignUniform(uniformity_weight=math.nan)
        with pytest.raises(ValueError, match=r"alpha of a distance is at least 1.*not 0.5"):
            AlignUniform(alpha=0.5)
        with pytest.raises(ValueError, match=r"steepness t of the potential is positive.*not 0"):
            AlignUniform(t=0.0)
