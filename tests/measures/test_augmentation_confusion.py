import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from laws import MeasureLaws, assert_same
from sklearn.neighbors import NearestNeighbors

from marginlab.measures import AugmentationConfusion
from marginlab.measures.functional import augmentation_confusion, relative_confusion


def make(**kwargs):
    return AugmentationConfusion(**kwargs)


def make_small(**kwargs):
    return AugmentationConfusion("mean", "max", max_images=5, seed=1, **kwargs)


class TestLaws(MeasureLaws):
    make = staticmethod(make)

    def data(self, n, generator):
        return (clusters(n, 3, 4, generator),)


class TestLawsOfASample(MeasureLaws):
    make = staticmethod(make_small)

    def data(self, n, generator):
        return (clusters(n, 2, 4, generator).float(),)


def clusters(N, V, D, generator, spread=0.7):
    centers = torch.randn(N, 1, D, generator=generator, dtype=torch.float64)
    return centers + spread * torch.randn(N, V, D, generator=generator, dtype=torch.float64)


def brute(z, within, across):
    """By its definition, one pair of views after the other."""
    z = torch.nn.functional.normalize(z.double(), dim=-1)
    N, V, _ = z.shape
    reduce = {"min": min, "max": max, "mean": lambda d: sum(d) / len(d)}
    shares = []
    for i in range(N):
        confused = 0
        for u in range(V):
            own = reduce[within]([float((z[i, u] - z[i, v]).norm()) for v in range(V) if v != u])
            other = min(
                reduce[across]([float((z[i, u] - z[j, v]).norm()) for v in range(V)])
                for j in range(N)
                if j != i
            )
            confused += other <= own + 1e-7
        shares.append(confused / V)
    return torch.tensor(shares, dtype=torch.float64)


@given(
    st.integers(0, 2**20),
    st.integers(2, 7),
    st.integers(2, 4),
    st.sampled_from(["min", "mean", "max"]),
    st.sampled_from(["min", "mean", "max"]),
)
def test_it_is_the_definition_at_any_budget(seed, N, V, within, across):
    z = clusters(N, V, 3, torch.Generator().manual_seed(seed))
    shares = augmentation_confusion(z, within=within, across=across)
    torch.testing.assert_close(shares, brute(z, within, across), rtol=0, atol=0)
    assert torch.equal(augmentation_confusion(z, within=within, across=across, budget=100), shares)


@given(
    st.integers(0, 2**20), st.integers(2, 40), st.integers(2, 5), st.sampled_from([0.05, 0.7, 3.0])
)
def test_it_is_what_a_nearest_neighbour_search_finds(seed, N, V, spread):
    z = clusters(N, V, 4, torch.Generator().manual_seed(seed), spread)
    flat = torch.nn.functional.normalize(z.flatten(0, 1), dim=-1)
    found = (
        NearestNeighbors(n_neighbors=2)
        .fit(flat.numpy())
        .kneighbors(flat.numpy(), return_distance=False)
    )
    nearest = torch.from_numpy(found[:, 1])  # without ties, the first is the view itself
    expected = (nearest // V != torch.arange(N * V) // V).double().mean()
    measure = make()
    measure.update(z)
    assert float(measure.compute().ACR) == pytest.approx(float(expected), abs=1e-12)


@given(st.integers(0, 2**20))
def test_rotations_scales_and_the_order_of_views_change_nothing_and_it_is_a_share(seed):
    generator = torch.Generator().manual_seed(seed)
    z = clusters(9, 3, 5, generator)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    scales = torch.rand(9, 3, 1, generator=generator, dtype=torch.float64) + 0.1
    shares = augmentation_confusion(z)
    assert bool(((shares >= 0) & (shares <= 1)).all())
    for other in (z @ rotation, z * scales, z[:, torch.randperm(3, generator=generator)]):
        assert torch.equal(augmentation_confusion(other), shares)
    more = torch.cat([z, clusters(4, 3, 5, generator)])
    # more others can only confuse more
    assert bool((augmentation_confusion(more)[:9] >= shares).all())


def test_images_are_told_apart_by_themselves_not_by_their_place_in_a_batch():
    """With batches of 4, image 0 and image 4 are at the same offset: taken modulo the batch size
    they would be one.
    """
    z = torch.zeros(8, 2, 8)
    for i in range(8):
        # images i and i + 4 are alike; all views of both coincide but for a nudge
        z[i, :, i % 4] = 1.0
        z[i, 1, 4 + i % 4] = 0.1 * (1 + (i >= 4))
    z[4:, 0, 4:] += 0.001 * torch.eye(4)
    measure = make()
    for batch in z.split(4):
        measure.update(batch)
    # the nearest neighbours are one batch apart, at the same offset
    assert float(measure.compute().ACR) > 0.5
    assert torch.equal(augmentation_confusion(z), brute(z, "min", "min"))


def test_every_view_asks():
    """First views lie alone, the two others of all images together: the first view of an image
    would say that none is confused.
    """
    z = torch.zeros(3, 3, 8)
    z[:, 0, :3] = torch.eye(3) + 0.1
    z[:, 1:, 7] = 1.0
    z[:, 1:, :3] = 0.001 * torch.eye(3)[torch.tensor([[1, 2], [2, 0], [0, 1]])]
    shares = augmentation_confusion(z)
    assert torch.equal(shares, brute(z, "min", "min"))
    assert bool((shares >= 2 / 3 - 1e-12).all())


@pytest.mark.parametrize(("N", "V"), [(300, 2), (5, 9), (257, 3)])
def test_no_size_is_built_in(N, V):
    z = torch.nn.functional.one_hot(torch.arange(N), N).float()[:, None].repeat(1, V, 1)
    assert not bool(augmentation_confusion(z, within="mean", across="max").any())
    assert not bool(augmentation_confusion(z).any())


def test_ties_are_confused_and_identical_views_of_an_image_are_not():
    z = torch.randn(6, 1, 4, generator=torch.Generator().manual_seed(0)).repeat(1, 3, 1)
    assert not bool(augmentation_confusion(z).any())
    assert bool((augmentation_confusion(torch.ones(6, 3, 4)) == 1).all())  # collapsed
    twins = torch.cat([z, z])
    for how in ("min", "mean", "max"):
        assert bool((augmentation_confusion(twins, within=how, across=how) == 1).all())


def test_random_features_are_confused_as_chance_says():
    generator = torch.Generator().manual_seed(2)
    results = [make()(torch.randn(30, 4, 6, generator=generator)) for _ in range(40)]
    assert results[0].chance == pytest.approx(29 * 4 / 119)
    shares = torch.stack([r.ACR for r in results])
    assert float(shares.mean()) == pytest.approx(
        results[0].chance, abs=4 * float(shares.std()) / 40**0.5
    )


def test_the_sample_is_uniform_and_depends_on_its_seed():
    # float64 of float32: their last bits are all zero
    z = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(3)).double()
    counted = torch.zeros(40)
    for seed in range(300):
        measure = AugmentationConfusion(max_images=10, seed=seed)
        measure.update(z)
        counted += (z[:, None] == measure.sample()[0]).all(3).all(2).any(1)
    assert float(counted.sum()) == 3000
    chi2 = float(((counted - 75) ** 2 / (75 * 0.75)).sum())
    assert 15 < chi2 < 80  # 39 degrees of freedom


def test_memory_stays_that_of_the_sample():
    measure = AugmentationConfusion(max_images=5)
    generator = torch.Generator().manual_seed(4)
    batches = [torch.randn(4, 2, 3, generator=generator) for _ in range(9)]
    for batch in batches:
        measure.update(batch)
        assert sum(map(len, measure.features)) <= 10
    whole = AugmentationConfusion(max_images=5)
    whole.update(torch.cat(batches))
    assert_same(measure.compute(), whole.compute())
    assert (measure.compute().n, measure.compute().seen) == (5, 36)


def test_arc_and_its_error():
    generator = torch.Generator().manual_seed(5)
    before, after = (make()(clusters(200, 3, 4, generator, spread)) for spread in (1.0, 0.2))
    ratio = relative_confusion(before, after)
    assert float(ratio.ARC) == pytest.approx((1 - float(after.ACR)) / (1 - float(before.ACR)))
    assert float(ratio.ARC) > 1.5
    assert float(relative_confusion(before, before).ARC) == 1
    pairs = [
        [make()(clusters(60, 3, 4, generator, spread)) for spread in (1.0, 0.4)] for _ in range(150)
    ]
    ratios = [relative_confusion(*pair) for pair in pairs]
    spread = torch.stack([r.ARC for r in ratios]).std()
    said = torch.stack([r.standard_error for r in ratios]).square().mean().sqrt()
    assert 0.7 < float(said / spread) < 1.4  # the bank is taken as given


def test_bad_input_is_refused(unchecked):
    z = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(6))
    measure = make()
    for features, sentence in (
        (z[:, :1], "have 1 view"),
        (z / 0, "not finite"),
        (z[0], r"shape \(N, V, D\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            measure.update(features)
    with pytest.raises(ValueError, match="there are 1 image"):
        make()(z[:1])
    measure.update(z)
    with pytest.raises(ValueError, match="have 3 views, those before had 2"):
        measure.update(torch.randn(4, 3, 5))
    with pytest.raises(ValueError, match="have 7 dimensions, those before had 5"):
        measure.update(torch.randn(4, 2, 7), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="across='median'"):
        AugmentationConfusion(across="median")
    with pytest.raises(ValueError, match="max_images=1"):
        AugmentationConfusion(max_images=1)
    with pytest.raises(ValueError, match="make them alike"):
        relative_confusion(make()(z), make()(z[:3]))
    with pytest.raises(ValueError, match="confuses every view"):
        relative_confusion(make()(torch.ones(3, 2, 2)), make()(torch.ones(3, 2, 2)))
