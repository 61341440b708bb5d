import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from laws import MeasureLaws
from sklearn.covariance import empirical_covariance
from sklearn.metrics import pairwise_distances_argmin

from marginlab.measures import NearestCenterMismatch, NeuralCollapse
from marginlab.measures.functional import nearest_center_mismatch, neural_collapse

WEIGHTS = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
NUMBERS = ("NC1", "equinorm", "equiangle", "NC2", "NC3")


def make(**kwargs):
    return NeuralCollapse(3, 5, WEIGHTS, groups=3, **kwargs)


def make_mismatch(**kwargs):
    return NearestCenterMismatch(WEIGHTS, **kwargs)


class TestLaws(MeasureLaws):
    make = staticmethod(make)
    noise = tuple(f"error_{name}" for name in NUMBERS)

    def data(self, n, generator):
        labels = torch.randint(0, 3, (n,), generator=generator)
        return torch.randn(n, 2, 5, generator=generator) + 3 * torch.eye(5)[labels][:, None], labels


class TestLawsOfMismatch(MeasureLaws):
    make = staticmethod(make_mismatch)

    def data(self, n, generator):
        return torch.randn(n, 2, 5, generator=generator), torch.randint(
            0, 3, (n, 2), generator=generator
        )


@st.composite
def classified(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    C, D, V = draw(st.integers(2, 6)), draw(st.integers(2, 7)), draw(st.integers(1, 3))
    labels = torch.cat(
        [torch.arange(C), torch.randint(0, C, (draw(st.integers(0, 20)),), generator=generator)]
    )
    mu = torch.randn(C, 1, D, generator=generator).double()
    z = (
        mu[labels]
        + 0.3 * torch.randn(len(labels), V, D, generator=generator).double()
        + draw(st.sampled_from([0.0, 5.0]))
    )
    return z, labels, torch.randn(C, D, generator=generator).double()


def brute(z, labels, C, W):
    """By the paper's words, in numpy."""
    z, y = z.flatten(0, 1).numpy(), labels.repeat_interleave(z.shape[1]).numpy()
    mu = np.stack([z[y == c].mean(0) for c in range(C)])
    M = mu - mu.mean(0)
    within = empirical_covariance(z - mu[y], assume_centered=True)
    nc1 = np.trace(within @ np.linalg.pinv(M.T @ M / C, rcond=1e-10)) / C
    norms = np.linalg.norm(M, axis=1)
    cosines = M @ M.T / np.outer(norms, norms)
    off = ~np.eye(C, dtype=bool)
    G = M @ M.T
    nc2 = np.linalg.norm(G / np.linalg.norm(G) - (np.eye(C) - 1 / C) / (C - 1) ** 0.5)
    nc3 = np.linalg.norm(W.numpy() / np.linalg.norm(W) - M / np.linalg.norm(M)) ** 2
    return nc1, norms.std() / norms.mean(), np.abs(cosines[off] + 1 / (C - 1)).mean(), nc2, nc3


@given(classified())
def test_they_are_the_papers_by_its_words(drawn):
    z, labels, W = drawn
    C, D = W.shape
    result = neural_collapse(z, labels, C, W)
    assert [float(getattr(result, name)) for name in NUMBERS] == pytest.approx(
        brute(z, labels, C, W), rel=1e-6, abs=1e-9
    )
    assert result.rank == min(C - 1, D)
    for c in range(C):
        torch.testing.assert_close(result.centers[c], z[labels == c].mean((0, 1)))


@given(classified(), st.integers(0, 2**20), st.sampled_from([1e-4, 100.0]))
def test_rotations_shifts_scales_and_the_order_of_images_and_classes_change_nothing(
    drawn, seed, scale
):
    z, labels, W = drawn
    C, D = W.shape
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(D, D, generator=generator).double()).Q
    order, names = (
        torch.randperm(len(z), generator=generator),
        torch.randperm(C, generator=generator),
    )
    one = neural_collapse(z, labels, C, W)
    shift = torch.randn(D, generator=generator).double()
    inverse = names.argsort()
    for two in (
        neural_collapse(scale * (z + shift) @ rotation, labels, C, 3 * W @ rotation),
        neural_collapse(z[order], names[labels[order]], C, W[inverse]),
    ):
        for name in NUMBERS:
            assert float(getattr(two, name)) == pytest.approx(
                float(getattr(one, name)), rel=1e-6, abs=1e-9
            )
    assert float(one.NC1) >= 0
    assert 0 <= float(one.equiangle) <= 1 + 1 / (C - 1)
    # of two matrices of norm 1 that are positive semidefinite
    assert 0 <= float(one.NC2) <= 2**0.5 + 1e-12
    assert 0 <= float(one.NC3) <= 4


def test_a_linear_map_changes_all_but_nc1():
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(40) % 3
    z = (
        torch.randn(3, 1, 2, generator=generator).double()[labels]
        + 0.2 * torch.randn(40, 2, 2, generator=generator).double()
    )
    one, two = (
        neural_collapse(z, labels, 3),
        neural_collapse(z @ torch.tensor([[5.0, 1.0], [0.0, 0.3]]).double(), labels, 3),
    )
    assert float(two.NC1) == pytest.approx(float(one.NC1), rel=1e-9)  # where S_B has full rank
    assert abs(float(two.NC2 - one.NC2)) > 0.1


@pytest.mark.parametrize("C", [2, 3, 7])
def test_at_collapse_all_are_zero(C):
    """A simplex that is rotated, enlarged and shifted, classes of unequal size, weights that are
    its centered means.
    """
    generator = torch.Generator().manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(C, C, generator=generator).double()).Q
    points = 4 * torch.eye(C).double() @ rotation
    labels = torch.cat([torch.arange(C), torch.zeros(5, dtype=torch.int64), torch.arange(C)])
    W = 0.1 * (points - points.mean(0))
    result = neural_collapse((points + 2)[labels][:, None].repeat(1, 3, 1), labels, C, W)
    for name in NUMBERS:
        assert float(getattr(result, name)) == pytest.approx(0, abs=1e-12)
    assert result.rank == C - 1


def test_the_notebooks_number_is_c_times_the_papers():
    """Top C - 1 singular vectors for the pseudo-inverse, and no 1/C."""
    z, labels = (
        torch.randn(30, 1, 6, generator=torch.Generator().manual_seed(4)).double(),
        torch.arange(30) % 4,
    )
    mu = torch.stack([z[labels == c].mean((0, 1)) for c in range(4)])
    M, d = mu - mu.mean(0), (z[:, 0] - mu[labels])
    u, s, _ = torch.linalg.svd(M.T @ M / 4)
    notebook = (d.T @ d / 30 @ (u[:, :3] / s[:3] @ u[:, :3].T)).trace()
    assert float(notebook) == pytest.approx(4 * float(neural_collapse(z, labels, 4).NC1), rel=1e-9)


def test_of_linearly_dependent_means_the_pseudo_inverse_has_their_rank():
    """Four means on a line: C - 1 singular vectors would divide by zero."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(80) % 4
    axis = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]).double()
    noise = torch.randn(80, 1, 5, generator=generator).double()
    noise = noise - torch.stack([noise[labels == c].mean(0) for c in range(4)])[labels]
    result = neural_collapse(labels[:, None, None] * axis + noise, labels, 4)
    assert result.rank == 1
    assert "rank 1 of 3" in result.meaning
    spread = noise[..., 0].square().mean()
    # S_B = 1.25 along the axis
    assert float(result.NC1) == pytest.approx(float(spread / (1.25 * 4)), rel=1e-9)


def test_corner_cases():
    generator = torch.Generator().manual_seed(6)
    z = torch.randn(8, 2, 3, generator=generator)
    # six classes of one image in three dimensions, three classes without any
    few = neural_collapse(z[:6], torch.arange(6), 9)
    assert few.rank == 3
    assert all(getattr(few, name).isfinite() for name in NUMBERS[:4])
    assert few.NC3.isnan()
    assert few.error_NC1.isnan()
    assert few.centers.isnan().any(1).tolist() == [False] * 6 + [True] * 3
    identical = neural_collapse(z[:, :1].expand(8, 4, 3), torch.arange(8) % 2, 2)
    assert float(identical.NC1) == pytest.approx(
        float(neural_collapse(z[:, :1], torch.arange(8) % 2, 2).NC1), rel=1e-9
    )
    for points, labels in (
        (torch.full((6, 2, 3), 0.3), torch.arange(6) % 2),
        (z, torch.zeros(8, dtype=torch.int64)),
        (z[:1], torch.tensor([1])),
    ):
        nothing = neural_collapse(points, labels, 2)
        assert nothing.rank == 0
        assert all(getattr(nothing, name).isnan() for name in NUMBERS)
    tiny = neural_collapse(torch.eye(3)[torch.arange(9) % 3][:, None], torch.arange(9) % 3, 3)
    assert 0 <= float(tiny.NC1) < 1e-13
    assert float(tiny.error_NC1) < 1e-13


def test_errors_are_those_of_deleting_each_group():
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(3).repeat(9)
    z = (
        torch.eye(4)[labels][:, None].double()
        + 0.4 * torch.randn(27, 2, 4, generator=generator).double()
    )
    W = torch.randn(3, 4, generator=generator).double()
    result = neural_collapse(z, labels, 3, W, groups=3)
    group = torch.arange(27) // 3 % 3
    left = [neural_collapse(z[group != g], labels[group != g], 3, W) for g in range(3)]
    for name in NUMBERS:
        values = torch.stack([getattr(r, name) for r in left])
        expected = ((values - values.mean()).square().sum() * 2 / 3).sqrt()
        assert float(getattr(result, f"error_{name}")) == pytest.approx(float(expected), rel=1e-6)


def test_errors_are_right_in_simulation():
    labels = torch.arange(3).repeat(50)
    mu = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, -1.0]])
    W = torch.tensor([[1.0, 0.0, 0.2], [0.0, 1.0, 0.0], [0.5, 0.0, -1.0]])
    results = []
    for seed in range(150):
        noise = torch.randn(150, 2, 3, generator=torch.Generator().manual_seed(seed))
        results.append(neural_collapse(mu[labels][:, None] + 0.4 * noise, labels, 3, W))
    for name in NUMBERS:
        spread = torch.stack([getattr(r, name) for r in results]).std()
        said = torch.stack([getattr(r, f"error_{name}") for r in results]).square().mean().sqrt()
        assert float(said) == pytest.approx(float(spread), rel=0.2)


@given(classified())
def test_the_nearest_center_is_scikit_learns_at_any_budget(drawn):
    z, labels, W = drawn
    centers = neural_collapse(z, labels, len(W)).centers
    nearest = pairwise_distances_argmin(z.flatten(0, 1).numpy(), centers.numpy())
    said = (z @ W.T).argmax(-1)
    expected = (torch.from_numpy(nearest).view_as(said) != said).double().mean(1)
    found = nearest_center_mismatch(z, said, centers)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert torch.equal(nearest_center_mismatch(z, said, centers, budget=1), found)
    measure = NearestCenterMismatch(centers)
    measure.update(z, said)
    result = measure.compute()
    assert float(result.NC4) == pytest.approx(float(expected.mean()), abs=1e-12)
    assert float(result.standard_error) == pytest.approx(
        float(expected.std() / len(z) ** 0.5), abs=1e-9
    )
    assert bool(
        (nearest_center_mismatch(z, torch.from_numpy(nearest).view_as(said), centers) == 0).all()
    )


def test_a_prediction_is_of_all_views_and_a_class_without_center_is_never_nearest():
    z = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(8))
    centers = torch.randn(5, 4, generator=torch.Generator().manual_seed(9))
    said = torch.arange(7) % 5
    shares = nearest_center_mismatch(z, said, centers)
    assert torch.equal(shares, nearest_center_mismatch(z, said[:, None].expand(7, 3), centers))
    missing = torch.cat([centers, torch.full((1, 4), torch.nan)])
    assert torch.equal(nearest_center_mismatch(z, said, missing), shares)
    assert bool((nearest_center_mismatch(z, torch.full((7,), 5), missing) == 1).all())
    one = NearestCenterMismatch(centers)
    one.update(z[:1], said[:1])
    assert one.compute().standard_error.isnan()
    assert one.compute().NC4.shape == ()


def test_bad_input_is_refused(unchecked):
    z, labels = (
        torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(10)),
        torch.tensor([0, 1, 2, 0]),
    )
    for features, names, sentence in (
        (z[..., :4], labels, "dimension 4, but dim=5"),
        (z, labels + 1, "labels run from 0 to 2, but these hold 1 to 3"),
        (z / 0, labels, "not finite"),
        (z[:, 0], labels, r"shape \(N, V, D\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make().update(features, names)
    for wrong, sentence in ((z[..., :4], "but the centers have 5"), (z / 0, "not finite")):
        with pytest.raises(ValueError, match=sentence):
            make_mismatch().update(wrong, labels)
    with pytest.raises(
        ValueError,
        match=r"shape \(4,\), one an image, or \(4, 2\), one a view, not torch.float32 \(4,\)",
    ):
        make_mismatch().update(z, labels.float())
    for measure, other in (
        (make(), NeuralCollapse(3, 5, WEIGHTS + 1, groups=3)),
        (make_mismatch(), NearestCenterMismatch(WEIGHTS + 1)),
    ):
        measure.update(z, labels)
        with pytest.raises(ValueError, match="have 1 views, those before had 2"):
            measure.update(z[:, :1], labels)
        other.update(z, labels)
        with pytest.raises(ValueError, match="cannot be joined"):
            measure.merge_state(other)
    for wrong, sentence in (
        (
            lambda: NeuralCollapse(3, 5, WEIGHTS[:2]),
            r"shape \(3, 5\), a row for each class, not \(2, 5\)",
        ),
        (lambda: NeuralCollapse(3, 5, 0 * WEIGHTS), "not all 0"),
        (lambda: NeuralCollapse(3, 5, groups=1), "2 groups, not 3 classes"),
        (lambda: NearestCenterMismatch(WEIGHTS[0]), r"shape \(C, D\)"),
        (lambda: NearestCenterMismatch(WEIGHTS * torch.nan), "at least one of them without NaN"),
    ):
        with pytest.raises(ValueError, match=sentence):
            wrong()
