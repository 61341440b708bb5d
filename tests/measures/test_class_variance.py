import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from laws import MeasureLaws, assert_same

from marginlab.measures import ClassVariance
from marginlab.measures.functional import class_distances, class_divergence, class_variance


def make(**kwargs):
    return ClassVariance(3, 5, **kwargs)


class TestLaws(MeasureLaws):
    make = staticmethod(make)
    noise = ("error_within", "error_variance", "error_CDNV_kl", "error_CDNV")

    def data(self, n, generator):
        labels = torch.randint(0, 3, (n,), generator=generator)
        return torch.randn(n, 2, 5, generator=generator) + 2 * torch.eye(5)[labels][:, None], labels


def drawn(seed, counts, V=2, D=4, spread=0.5):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    mu = torch.randn(len(counts), 1, D, generator=generator, dtype=torch.float64)
    return mu[labels] + spread * torch.randn(
        len(labels), V, D, generator=generator, dtype=torch.float64
    ), labels


def brute(z, labels, C):
    """V_k, squared distances and CDNV by sums over pairs of different images."""
    h = [z[labels == k].mean(1) for k in range(C)]
    V, d = (
        torch.full((C,), torch.nan, dtype=torch.float64),
        torch.full((C, C), torch.nan, dtype=torch.float64),
    )

    def product(a, b, same):
        return torch.stack(
            [x @ y for i, x in enumerate(a) for j, y in enumerate(b) if not (same and i == j)]
        ).mean()

    for k in range(C):
        d[k, k] = 0
        if len(h[k]) >= 2:
            V[k] = z[labels == k].square().sum(-1).mean() - product(h[k], h[k], True)
    for k, other in itertools.permutations(range(C), 2):
        if min(len(h[k]), len(h[other])) >= 2:
            d[k, other] = (
                product(h[k], h[k], True)
                + product(h[other], h[other], True)
                - 2 * product(h[k], h[other], False)
            )
    return V, d, ((V[:, None] + V) / (2 * d)).fill_diagonal_(torch.nan)


counts = st.lists(st.integers(2, 6), min_size=2, max_size=4)


@given(st.integers(0, 2**20), counts, st.integers(1, 3))
def test_they_are_the_definitions(seed, counts, views):
    z, labels = drawn(seed, counts, views)
    V, d, cdnv = brute(z, labels, len(counts))
    cdnv[d <= 0] = torch.inf
    cdnv.fill_diagonal_(torch.nan)
    result = class_variance(z, labels, len(counts), normalize=False)
    torch.testing.assert_close(result.within, V)
    torch.testing.assert_close(result.distances, d, equal_nan=True)
    torch.testing.assert_close(result.CDNV_kl, cdnv, equal_nan=True)
    torch.testing.assert_close(result.CDNV, cdnv[~cdnv.isnan()].mean())
    torch.testing.assert_close(
        result.variance, (V * torch.tensor(counts)).sum() / sum(counts), rtol=1e-12, atol=0
    )
    distances, again = class_distances(class_divergence(z, labels, len(counts), normalize=False))
    torch.testing.assert_close(distances, result.distances)
    torch.testing.assert_close(again, result.CDNV_kl, equal_nan=True)


@settings(max_examples=5)
@given(st.integers(0, 2**20))
def test_squared_distances_are_unbiased(seed):
    z, labels = drawn(seed, [4, 4])
    parts = []
    for first, second in itertools.product(
        itertools.combinations(range(4), 2), itertools.combinations(range(4, 8), 3)
    ):
        kept = [*first, *second]
        parts.append(class_variance(z[kept], labels[kept], 2, normalize=False).distances)
    torch.testing.assert_close(
        torch.stack(parts).mean(0), class_variance(z, labels, 2, normalize=False).distances
    )


@pytest.mark.parametrize("counts", [[5, 7, 3], [30, 4, 25]])
def test_errors_are_those_of_deleting_each_group_of_each_class(counts):
    """The jackknife by its definition, with everything computed anew."""
    groups, C = 10, len(counts)
    z, labels = drawn(3, counts)
    result = class_variance(z, labels, C, normalize=False, groups=groups)
    place = torch.cat([torch.arange(n) for n in counts])

    def error(name, chosen):
        value = getattr(result, name)
        variance = torch.zeros_like(value)
        for k in chosen:
            n, filled = counts[k], min(counts[k], groups)
            share = [n / len(range(g, n, groups)) for g in range(filled)]
            left = [
                getattr(class_variance(z[keep], labels[keep], C, normalize=False), name)
                for g in range(filled)
                for keep in [(labels != k) | (place % groups != g)]
            ]
            mean = filled * value - sum((1 - 1 / h) * x for h, x in zip(share, left, strict=True))
            variance += (
                sum(
                    (h * value - (h - 1) * x - mean) ** 2 / (h - 1)
                    for h, x in zip(share, left, strict=True)
                )
                / filled
            )
        return variance.sqrt()

    for name in ("within", "variance", "CDNV_kl", "CDNV"):
        found, expected = getattr(result, f"error_{name}"), error(name, range(C))
        if name == "variance":  # its weights are taken as given
            expected = (result.error_within * torch.tensor(counts) / sum(counts)).norm()
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12, equal_nan=True)


def test_standard_errors_are_right_in_simulation():
    generator = torch.Generator().manual_seed(0)
    mu = torch.tensor([[1.0, 0.0, 0.0], [0.3, 1.0, 0.0], [0.0, 0.0, -1.0]])
    labels = torch.arange(3).repeat_interleave(torch.tensor([45, 60, 50]))
    results = []
    for _ in range(200):
        z = (
            mu[labels][:, None]
            + 0.6 * torch.randn(155, 1, 3, generator=generator)
            + 0.3 * torch.randn(155, 2, 3, generator=generator)
        )
        results.append(class_variance(z, labels, 3, normalize=False))
    distances = torch.tensor([1.49, 2.0, 2.09]).double()
    truth = {
        "within": torch.full((3,), 1.35).double(),
        "distances": distances,
        "CDNV": 1.35 / distances,
    }
    for name in ("within", "variance", "CDNV_kl", "CDNV"):
        values = torch.stack([getattr(r, name) for r in results])
        said = torch.stack([getattr(r, f"error_{name}") for r in results]).square().mean(0).sqrt()
        torch.testing.assert_close(said, values.std(0), rtol=0.2, atol=0, equal_nan=True)
    torch.testing.assert_close(
        torch.stack([r.within for r in results]).mean(0), truth["within"], rtol=0.02, atol=0
    )
    mean = torch.stack([r.CDNV_kl for r in results]).mean(0)[[0, 0, 1], [1, 2, 2]]
    relative = (
        torch.stack([r.distances for r in results])[:, [0, 0, 1], [1, 2, 2]].var(0)
        / truth["distances"].square()
    )
    # the lean that the result states
    torch.testing.assert_close(mean, truth["CDNV"] * (1 + relative), rtol=0.05, atol=0)


@given(st.integers(0, 2**20), st.sampled_from([1e-3, 7.0]))
def test_rotations_scales_and_the_order_of_classes(seed, scale):
    z, labels = drawn(seed, [4, 5, 6])
    rotation = torch.linalg.qr(
        torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).Q
    one, two = (
        class_variance(z, labels, 3, normalize=False),
        class_variance(scale * z @ rotation, labels, 3, normalize=False),
    )
    torch.testing.assert_close(two.CDNV_kl, one.CDNV_kl, rtol=1e-6, atol=1e-9, equal_nan=True)
    torch.testing.assert_close(two.within, scale**2 * one.within, rtol=1e-6, atol=1e-12)
    renamed = class_variance(z, (labels + 1) % 3, 3, normalize=False)
    assert_same(
        one._replace(
            within=one.within.roll(1), CDNV_kl=one.CDNV_kl.roll((1, 1), (0, 1)), n=one.n.roll(1)
        ),
        renamed,
        skip=("distances", "error_within", "error_CDNV_kl"),
        atol=1e-8,
    )


def test_corner_cases():
    z, labels = drawn(1, [3, 1, 2])
    result = class_variance(z, labels, 4, normalize=False)
    assert result.within.isnan().tolist() == [False, True, False, True]
    assert result.CDNV_kl.isnan().logical_not().nonzero().tolist() == [[0, 2], [2, 0]]
    assert float(result.CDNV) == float(result.CDNV_kl[0, 2])
    assert result.variance == pytest.approx((3 * result.within[0] + 2 * result.within[2]) / 5)
    assert result.error_CDNV.isnan()  # class 2 has 2 images, an error takes 3
    alone = class_variance(z[:3], labels[:3], 1)
    assert alone.CDNV_kl.shape == (1, 1)
    assert alone.CDNV.isnan()
    assert alone.error_CDNV.isnan()
    assert alone.within.shape == (1,)
    same = class_variance(torch.ones(6, 2, 3), torch.arange(6) % 2, 2)
    assert same.CDNV.isnan()  # nothing varies, and nothing lies apart
    assert float(same.within.abs().max()) < 1e-15
    collapsed = class_variance(torch.eye(3)[:, None].repeat(3, 2, 1), torch.arange(9) % 3, 3)
    assert float(collapsed.CDNV) == pytest.approx(0, abs=1e-15)
    assert float(collapsed.error_CDNV) == pytest.approx(0, abs=1e-15)
    mixed = class_variance(torch.eye(2)[[0, 1, 0, 1]][:, None], torch.tensor([0, 0, 1, 1]), 2)
    assert float(mixed.CDNV) == float("inf")
    assert "1 have centers that are not told apart" in mixed.meaning


def test_bad_input_is_refused(unchecked):
    measure = make()
    with pytest.raises(ValueError, match="ClassVariance has seen no image"):
        measure.update(torch.zeros(0, 2, 5), torch.zeros(0, dtype=torch.int64)) or measure.compute()
    with pytest.raises(ValueError, match="labels run from 0 to 2"):
        measure.update(torch.ones(1, 2, 5), torch.tensor([3]))
