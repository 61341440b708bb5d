import math

import hypothesis.strategies as st
import torch
from hypothesis import given
from loss_laws import LossLaws, draw_views, several, value_and_gradients

from marginlab.losses import TInfoNCE
from marginlab.losses.functional import t_info_nce


def unreduced(z1, z2):
    n = len(z1)
    z = torch.cat((z1, z2))
    shares = (1 / (1 + (z[:, None] - z).square().sum(2))) * (1 - torch.eye(2 * n, dtype=z.dtype))
    return -(shares[torch.arange(2 * n), torch.arange(2 * n).roll(n)] / shares.sum(1)).log()


def naive(z1, z2, budget=0):
    return unreduced(z1, z2).mean()


class TestTInfoNCE(LossLaws):
    module, function, naive = TInfoNCE, staticmethod(t_info_nce), staticmethod(naive)
    unreduced = staticmethod(unreduced)
    arguments = st.fixed_dictionaries({"budget": st.sampled_from([64, 1000, 2**20])})

    @several
    @given(data=st.data())
    def test_invariant_to_a_common_rotation_and_shift(self, data):
        z1, z2, generator = draw_views(data, 5, features=4)
        rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
        shift = 20 * torch.randn(4, dtype=torch.float64, generator=generator)
        torch.testing.assert_close(
            t_info_nce(z1 @ rotation + shift, z2 @ rotation + shift), t_info_nce(z1, z2)
        )

    @several
    @given(st.integers(0, 2**20))
    def test_alignment_and_divergence_are_its_two_parts(self, seed):
        z1, z2 = torch.randn(
            2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        z = torch.cat((z1, z2))
        shares = 1 / (1 + torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").square())
        divergence = (shares.sum(1) - 1).log().mean()
        torch.testing.assert_close(
            t_info_nce(z1, z2), (z1 - z2).square().sum(1).log1p().mean() + divergence
        )

    def test_extremes_have_documented_finite_values(self):
        z = torch.full((4, 3), 0.3)
        value, slopes = value_and_gradients(t_info_nce, z, z)
        torch.testing.assert_close(float(value), math.log(7))
        assert all(bool((s == 0).all()) for s in slopes)
        far = 1e6 * torch.eye(4)
        # six negatives at squared distance 2e12
        value, slopes = value_and_gradients(t_info_nce, far, far)
        torch.testing.assert_close(float(value), 3e-12, rtol=1e-5, atol=0)
        value, slopes = value_and_gradients(t_info_nce, far, -far)
        assert bool(value.isfinite())
        assert all(bool(s.isfinite().all()) for s in slopes)
