import warnings

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from loss_laws import LossLaws, draw_views, several, value_and_gradients

from marginlab.losses import VICReg
from marginlab.losses.functional import vicreg


def naive(
    z1,
    z2,
    invariance_weight=25.0,
    variance_weight=25.0,
    covariance_weight=1.0,
    gamma=1.0,
    eps=1e-4,
    budget=0,
):
    loss = invariance_weight * F.mse_loss(z1, z2)
    for z in (z1, z2):
        covariance = torch.cov(z.T).view(z.shape[1], z.shape[1])
        off_diagonal = covariance.masked_select(~torch.eye(len(covariance), dtype=torch.bool))
        loss = (
            loss
            + variance_weight / 2 * F.relu(gamma - (z.var(0) + eps).sqrt()).mean()
            + covariance_weight * off_diagonal.square().sum() / z.shape[1]
        )
    return loss


class TestVICReg(LossLaws):
    module, function, naive = VICReg, staticmethod(vicreg), staticmethod(naive)
    arguments = st.fixed_dictionaries(
        {
            "invariance_weight": st.floats(0, 30),
            "variance_weight": st.floats(0, 30),
            "covariance_weight": st.floats(0, 3),
            "gamma": st.floats(0.1, 3),
            "eps": st.sampled_from([1e-4, 0.1]),
            "budget": st.sampled_from([32, 150, 2**20]),
        }
    )

    @staticmethod
    def gradient_when_nothing_crosses(z1, z2, _rows):
        """Moments reduced without gradient: the invariance alone is left."""
        return 25 * 2 * (z1 - z2) / z1.numel()

    @several
    @given(data=st.data())
    def test_invariant_to_a_common_shift_and_to_signs_and_order_of_the_features(self, data):
        arguments = data.draw(self.arguments)
        z1, z2, generator = draw_views(data, 6, features=4)
        order, shift = (
            torch.randperm(4, generator=generator),
            100 * torch.randn(4, dtype=torch.float64, generator=generator),
        )
        sign = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
        torch.testing.assert_close(
            vicreg((sign * z1 + shift)[:, order], (sign * z2 + shift)[:, order], **arguments),
            vicreg(z1, z2, **arguments),
        )

    def test_collapsed_views_have_the_documented_value_and_a_finite_gradient(self):
        for budget in (8, 2**20):
            for z in (torch.full((4, 3), 0.3), torch.zeros(4, 3)):
                value, slopes = value_and_gradients(vicreg, z, z, budget=budget)
                torch.testing.assert_close(float(value), 25 * (1 - 0.01), rtol=1e-6, atol=0)
                assert all(bool(s.isfinite().all()) for s in slopes)

    def test_a_large_mean_does_not_drown_the_deviation(self):
        z1, z2 = (torch.randn(2, 400, 3, generator=torch.Generator().manual_seed(0)) + 1e4).unbind()
        for budget in (8, 2**20):
            torch.testing.assert_close(
                vicreg(z1, z2, budget=budget).double(),
                naive(z1.double(), z2.double()),
                rtol=1e-5,
                atol=0,
            )

    def test_covariances_above_the_budget_have_no_second_derivative(self):
        z1, z2 = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(vicreg(z1, z2, budget=8), z1, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            slope.sum().backward()

    def test_lightly_agrees(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lightly = pytest.importorskip("lightly.loss")
        z1, z2 = torch.randn(
            2, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        self.same(
            value_and_gradients(vicreg, z1, z2), value_and_gradients(lightly.VICRegLoss(), z1, z2)
        )

    @pytest.mark.usefixtures("unchecked")
    def test_bad_settings_are_refused(self):
        for name in ("invariance_weight", "variance_weight", "covariance_weight", "gamma"):
            with pytest.raises(ValueError, match=f"{name} is not negative, such as 1.0, not -1"):
                VICReg(**{name: -1.0})
        with pytest.raises(
            ValueError, match="eps is added to variances before the root and is positive"
        ):
            VICReg(eps=0.0)


def test_of_one_feature_no_covariance_overflows():
    z = 1e20 * torch.randn(2, 4, 1, generator=torch.Generator().manual_seed(0))
    _, slopes = value_and_gradients(vicreg, *z)
    _, right = value_and_gradients(vicreg, *z.double())
    for slope, of in zip(slopes, right, strict=True):
        torch.testing.assert_close(slope.double(), of, rtol=1e-5, atol=1e14)
