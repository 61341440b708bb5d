import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from laws import MeasureLaws
from torch import nn

from marginlab.measures import LipschitzRatio
from marginlab.measures.functional import jacobian_norms, lipschitz_ratios
from marginlab.models import Backbone


def make(**kwargs):
    return LipschitzRatio(**kwargs)


class TestLaws(MeasureLaws):
    make = staticmethod(make)
    ordered = ("ratios",)

    def data(self, n, generator):
        return torch.rand(n, 3, 3, 2, 2, generator=generator), torch.randn(
            n, 3, 4, generator=generator
        )


def net(seed, widths, activation=nn.ReLU):
    torch.manual_seed(seed)
    layers = []
    for here, there in itertools.pairwise(widths):
        layers += [nn.Linear(here, there), activation()]
    return nn.Sequential(*layers[:-1]).double().eval()


@given(
    st.integers(0, 2**20),
    st.integers(1, 6),
    st.integers(2, 5),
    st.booleans(),
    st.sampled_from([0.0, 0.3]),
)
def test_ratios_are_the_definition_at_any_budget(seed, N, V, normalize, closest):
    generator = torch.Generator().manual_seed(seed)
    x, y = (
        torch.randn(N, V, 3, generator=generator).double() / 3,
        torch.randn(N, V, 4, generator=generator).double(),
    )
    found = lipschitz_ratios(x, y, normalize=normalize, closest=closest)
    z = torch.nn.functional.normalize(y, dim=-1) if normalize else y
    for i in range(N):
        pairs = [
            (float((x[i, u] - x[i, v]).norm()), float((z[i, u] - z[i, v]).norm()))
            for u in range(V)
            for v in range(u)
        ]
        assert float(found.ratios[i]) == pytest.approx(
            max([b / a for a, b in pairs if a > closest], default=0), rel=1e-12
        )
        assert int(found.left_out[i]) == sum(a <= closest for a, _ in pairs)
    small = lipschitz_ratios(x, y, normalize=normalize, closest=closest, budget=1)
    torch.testing.assert_close(small.ratios, found.ratios, rtol=1e-12, atol=0)
    assert torch.equal(small.left_out, found.left_out)


def test_identical_views_and_views_next_to_each_other_are_left_out():
    x = torch.rand(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).repeat(1, 3, 1, 1, 1)
    x[1, 2] = (x[1, 2] + 1e-6).clamp(max=1)
    y = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1))
    measure = make()
    measure.update(x, y)
    result = measure.compute()
    assert result.ratios.tolist() == [0, 0]
    assert (result.left_out, result.n, result.V) == (6, 2, 3)
    assert "largest of 0 quotients" in result.meaning
    one = make()
    one.update(x[:1], y[:1])
    assert one.compute().standard_error.isnan()


@given(st.integers(0, 2**20), st.sampled_from([nn.ReLU, nn.Tanh, nn.SiLU]))
def test_the_jacobian_is_found_and_is_never_exceeded(seed, activation):
    encoder = net(seed, (5, 7, 6, 4), activation)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)).double()
    exact = torch.stack([torch.linalg.matrix_norm(torch.func.jacrev(encoder)(row), 2) for row in x])
    few, many = (
        jacobian_norms(encoder, x, steps=2),
        jacobian_norms(encoder, x, steps=500, tolerance=1e-13),
    )
    assert bool((few <= many * (1 + 1e-12)).all())
    assert bool((many <= exact * (1 + 1e-9)).all())
    torch.testing.assert_close(many, exact, rtol=1e-3, atol=1e-12)
    # as many steps, whatever the others need
    alone = torch.cat([jacobian_norms(encoder, row[None], steps=2) for row in x])
    torch.testing.assert_close(alone, few, rtol=1e-9, atol=1e-12)


def test_quotients_are_below_the_constant_of_a_linear_encoder_and_the_jacobian_is_it():
    A = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)).double()
    L = float(torch.linalg.matrix_norm(A, 2))
    x = torch.rand(8, 5, 6, generator=torch.Generator().manual_seed(3)).double()
    assert 0.3 * L < float(lipschitz_ratios(x, x @ A, normalize=False).ratios.max()) <= L
    assert float(
        jacobian_norms(lambda x: x @ A, x[:, 0], steps=200, tolerance=1e-14).min()
    ) == pytest.approx(L, rel=1e-9)
    direction = torch.linalg.svd(A).U[:, 0]
    line = torch.linspace(0, 1, 4)[None, :, None] * direction
    assert float(lipschitz_ratios(line, line @ A, normalize=False).ratios) == pytest.approx(
        L, rel=1e-9
    )


def test_views_across_images_are_those_of_one():
    generator = torch.Generator().manual_seed(4)
    x, y = torch.rand(5, 3, 4, generator=generator), torch.randn(5, 3, 2, generator=generator)
    across = lipschitz_ratios(x.flatten(0, 1)[None], y.flatten(0, 1)[None]).ratios
    assert across.shape == (1,)
    assert float(across) >= float(lipschitz_ratios(x, y).ratios.max())


def test_a_backbone_and_its_normalised_features():
    backbone = Backbone("resnet18", stem="strided", width=1 / 16).eval()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    norms = jacobian_norms(backbone, images, steps=100, tolerance=1e-6)
    exact = torch.linalg.matrix_norm(torch.func.jacrev(backbone)(images[:1])[0, :, 0].flatten(1), 2)
    assert float(norms[0]) == pytest.approx(float(exact.detach()), rel=1e-3)
    turned = jacobian_norms(lambda x: torch.nn.functional.normalize(backbone(x), dim=1), images)
    assert bool((turned > 0).all())
    constant = jacobian_norms(lambda x: backbone(x) * 0, images)
    assert constant.tolist() == [0, 0]


def test_bad_input_is_refused(unchecked):
    x, y = torch.rand(4, 2, 5), torch.rand(4, 2, 3)
    measure = make()
    for views, features, sentence in (
        (x[:, :1], y[:, :1], "have 1 view"),
        (x[:3], y, "not of the same images"),
        (x, y / 0, "not finite"),
        (x / 0, y, "are finite"),
    ):
        with pytest.raises(ValueError, match=sentence):
            measure.update(views, features)
    with pytest.raises(ValueError, match="a distance, at least 0, not -1"):
        lipschitz_ratios(x, y, closest=-1)
    measure.update(x, y)
    with pytest.raises(ValueError, match="have 3 views, those before had 2"):
        measure.update(torch.rand(4, 3, 5), torch.rand(4, 3, 3))
    with pytest.raises(ValueError, match="training mode"):
        jacobian_norms(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="at least one step, not 0"):
        jacobian_norms(lambda x: x, torch.zeros(1, 2), steps=0)
    with pytest.raises(ValueError, match="no derivative"):
        jacobian_norms(lambda x: x.detach(), torch.zeros(1, 2))
