import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from laws import MeasureLaws, assert_same
from sklearn.metrics.pairwise import cosine_similarity

from marginlab.measures import AngleStatistics, IntraAngle
from marginlab.measures.functional import angle_statistics, nearest_class_angles

WEIGHTS = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(1))
CENTERS = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))


def make(**kwargs):
    return AngleStatistics(3, 5, WEIGHTS, **kwargs)


def make_intra(**kwargs):
    return IntraAngle(CENTERS, **kwargs)


class TestLaws(MeasureLaws):
    make = staticmethod(make)

    def data(self, n, generator):
        return torch.randn(n, 2, 5, generator=generator), torch.randint(
            0, 3, (n,), generator=generator
        )


class TestLawsOfIntra(TestLaws):
    make = staticmethod(make_intra)


def degrees(a, b):
    return np.degrees(np.arccos(np.clip(cosine_similarity(a, b), -1, 1)))


@st.composite
def classified(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    C, K, D = draw(st.integers(2, 5)), draw(st.integers(1, 3)), draw(st.integers(2, 6))
    labels = torch.cat(
        [torch.arange(C), torch.randint(0, C, (draw(st.integers(0, 20)),), generator=generator)]
    )
    z = torch.randn(
        len(labels), draw(st.integers(1, 3)), D, generator=generator, dtype=torch.float64
    )
    return z, labels, torch.randn(C, K, D, generator=generator, dtype=torch.float64)


@given(classified())
def test_they_are_the_papers_by_its_words(drawn):
    z, labels, weights = drawn
    C, K, _ = weights.shape
    result, intra = angle_statistics(z, labels, C, weights)
    x = z.flatten(0, 1) / z.flatten(0, 1).norm(dim=1, keepdim=True)
    y = labels.repeat_interleave(z.shape[1])
    centers = torch.stack([x[y == k].mean(0) for k in range(C)]).numpy()
    W = weights.flatten(0, 1).numpy()
    owner = np.arange(C * K) // K
    to_center = degrees(W, centers)
    between = degrees(W, W)
    apart = degrees(centers, centers)
    np.fill_diagonal(apart, 400)
    w_ec = [to_center[owner == k, k].min() for k in range(C)]
    w_inter = [between[np.ix_(owner == k, owner != k)].min() for k in range(C)]
    for found, expected in (
        (result.W_EC_k, w_ec),
        (result.W_Inter_k, w_inter),
        (result.Inter_k, apart.min(1)),
    ):
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    for found, expected in (
        (result.W_EC, w_ec),
        (result.W_Inter, w_inter),
        (result.Inter, apart.min(1)),
    ):
        assert float(found) == pytest.approx(np.mean(expected), abs=1e-5)
    angles = degrees(x.numpy(), centers)[np.arange(len(x)), y]
    assert float(intra.Intra) == pytest.approx(angles.mean(), abs=1e-5)
    for k in range(C):
        assert float(intra.Intra_k[k]) == pytest.approx(angles[y == k].mean(), abs=1e-5)
    per_image = angles.reshape(len(z), -1).mean(1)
    assert float(intra.standard_error) == pytest.approx(
        per_image.std(ddof=1) / len(z) ** 0.5, abs=1e-5
    )
    assert result.n.tolist() == intra.n.tolist() == [int((labels == k).sum()) for k in range(C)]


@given(classified(), st.integers(0, 2**20))
def test_rotations_and_lengths_change_nothing_and_angles_are_angles(drawn, seed):
    z, labels, weights = drawn
    C, _, D = weights.shape
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
    lengths = torch.rand(*z.shape[:2], 1, generator=generator, dtype=torch.float64) + 0.1
    turned = angle_statistics(z * lengths @ rotation, labels, C, 7 * weights @ rotation)
    for one, two in zip(angle_statistics(z, labels, C, weights), turned, strict=True):
        assert_same(one, two, skip=("centers",), atol=1e-6)
        for name in ("W_EC_k", "W_Inter_k", "Inter_k", "Intra_k"):
            values = getattr(one, name, torch.zeros(1))
            assert bool(((values >= 0) & (values <= 180)).all())


@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 2**20))
def test_nearest_classes_do_not_depend_on_the_budget(C, K, seed):
    vectors = torch.randn(C, K, 4, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        nearest_class_angles(vectors, budget=200), nearest_class_angles(vectors), rtol=0, atol=1e-9
    )


def test_a_simplex_and_orthogonal_weights():
    C = 6
    simplex = torch.eye(C, dtype=torch.float64) - 1 / C
    result, intra = angle_statistics(
        simplex[:, None], torch.arange(C), C, torch.eye(C, dtype=torch.float64)
    )
    widest = float(np.degrees(np.arccos(-1 / (C - 1))))
    assert float(result.Inter) == pytest.approx(widest)
    assert float(result.W_Inter) == pytest.approx(90)
    assert float(result.W_EC) == pytest.approx(np.degrees(np.arccos((1 - 1 / C) ** 0.5)))
    assert float(intra.Intra) == 0
    assert float(result.error_Inter) == pytest.approx(0, abs=1e-9)


def test_small_angles_keep_their_digits():
    tiny = 1e-9
    weights = torch.tensor([[1.0, 0.0], [1.0, tiny]], dtype=torch.float64)
    assert nearest_class_angles(weights[:, None]).tolist() == pytest.approx(
        [np.degrees(tiny)] * 2, rel=1e-6
    )


def test_what_is_not_defined_is_nan_and_left_out_of_the_means():
    z = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 1.0]], [[-1.0, -1.0]]])
    result, intra = angle_statistics(
        z,
        torch.tensor([0, 1, 3, 3]),
        5,
        torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [1, 0], [-1, 0]]),
    )
    # absent, cancelled, absent
    assert (
        result.Inter_k.isnan().tolist()
        == result.W_EC_k.isnan().tolist()
        == [False, False, True, True, True]
    )
    assert float(result.Inter) == pytest.approx(90)
    assert not bool(result.W_Inter_k.isnan().any())
    assert intra.n.tolist() == [1, 1, 0, 0, 0]
    assert float(intra.Intra) == 0
    alone, own = angle_statistics(z[:1], torch.tensor([0]), 1)
    assert alone.Inter_k.shape == alone.W_EC_k.shape == own.Intra_k.shape == (1,)
    assert alone.Inter.isnan()
    assert alone.W_EC.isnan()
    assert own.standard_error.isnan()
    identical, _ = angle_statistics(torch.ones(4, 3, 2), torch.tensor([0, 0, 1, 1]), 2)
    assert float(identical.Inter) == 0


def test_intra_to_the_centers_of_the_same_images_leans_downwards():
    generator = torch.Generator().manual_seed(3)
    mu = torch.nn.functional.normalize(torch.randn(50, 8, generator=generator), dim=1)
    labels = torch.arange(50).repeat(3)
    z = (mu[labels] + 0.3 * torch.randn(150, 8, generator=generator))[:, None]
    _, own = angle_statistics(z, labels, 50)
    true = IntraAngle(mu)
    true.update(z, labels)
    assert float(own.Intra) < float(true.compute().Intra) - 3


def test_bad_input_is_refused(unchecked):
    z, labels = (
        torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(4)),
        torch.tensor([0, 1, 2, 0]),
    )
    for measure in (make(), make_intra()):
        for features, names, sentence in (
            (z[..., :4], labels, "dimension 4, but dim=5 was announced"),
            (z, labels + 1, "labels run from 0 to 2, but these hold 1 to 3"),
            (z / 0, labels, "not finite"),
            (z[:, 0], labels, r"shape \(N, V, D\)"),
        ):
            with pytest.raises(ValueError, match=sentence):
                measure.update(features, names)
    measure = make()
    measure.update(z, labels)
    with pytest.raises(ValueError, match="have 1 views, those before had 2"):
        measure.update(z[:, :1], labels)
    with pytest.raises(ValueError, match=r"not \(6, 5\)"):
        AngleStatistics(3, 5, WEIGHTS.flatten(0, 1))
    one, two = make_intra(), IntraAngle(CENTERS + 1)
    one.update(z, labels)
    two.update(z, labels)
    with pytest.raises(ValueError, match="different settings cannot be joined"):
        one.merge_state(two)
    with pytest.raises(ValueError, match=r"shape \(C, D\), not \(5,\)"):
        IntraAngle(CENTERS[0])
