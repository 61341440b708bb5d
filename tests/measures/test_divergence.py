import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from laws import MeasureLaws, assert_same

from marginlab.measures import Alignment, ClassDivergence
from marginlab.measures.functional import class_divergence


def make(**kwargs):
    return ClassDivergence(3, 5, **kwargs)


class TestLaws(MeasureLaws):
    make = staticmethod(make)
    noise = ("error_gram", "error_within", "error_Delta_mu")

    def data(self, n, generator):
        return torch.randn(n, 4, 5, generator=generator), torch.randint(
            0, 3, (n,), generator=generator
        )


@st.composite
def populations(draw, classes=4):
    """A finite population: every image of every class, with all of its views."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    labels = torch.tensor(draw(st.lists(st.integers(0, classes - 1), min_size=2, max_size=9)))
    shape = len(labels), draw(st.integers(2, 4)), draw(st.integers(1, 5))
    z = (
        torch.randn(*shape, generator=generator).double()
        + 3 * torch.randn(classes, 1, shape[2], generator=generator).double()[labels]
    )
    return torch.nn.functional.normalize(z, dim=-1) * draw(st.sampled_from([1.0, 5.0])), labels


def exact(z, labels):
    """p_k, mu_k, r^2, nu, of the population itself, by enumeration."""
    classes = labels.unique()
    p = torch.stack([(labels == k).double().mean() for k in classes])
    mu = torch.stack([z[labels == k].flatten(0, 1).mean(0) for k in classes])
    return classes, p, mu, z.square().sum(-1).mean(), z.mean(1)


@given(populations())
def test_identities_of_the_theory_hold_exactly_on_finite_populations(population):
    z, labels = population
    classes, p, mu, r2, nu = exact(z, labels)
    V = torch.stack(
        [(z[labels == k] - m).square().sum(-1).mean() for k, m in zip(classes, mu, strict=True)]
    )
    torch.testing.assert_close(V, r2 - mu.square().sum(1))  # V_k = r^2 - ||mu_k||^2
    views = z.shape[1]
    measure = Alignment(normalize=False)
    measure.update(z)
    L = measure.compute().L_align * (views - 1) / views  # views with replacement
    torch.testing.assert_close(L, 2 * (r2 - nu.square().sum(1).mean()))
    deviations = nu - mu[torch.searchsorted(classes, labels)]
    within = deviations.T @ deviations / len(nu)
    torch.testing.assert_close(p @ V, L / 2 + within.trace())  # total variance
    M, B = nu.T @ nu / len(nu), (mu.T * p) @ mu
    torch.testing.assert_close(M - B, within)  # and so positive semidefinite
    assert float(torch.linalg.eigvalsh(M - B).min()) > -1e-9 * float(r2)
    m = z.flatten(0, 1).mean(0)
    pairs = torch.einsum("iud,jvd->", z, z) / z.shape[0] ** 2 / views**2
    torch.testing.assert_close(m.square().sum(), pairs)  # ||m||^2 = E f(x_1) . f(x^-)


@given(populations())
def test_the_measure_differs_from_the_sample_by_the_bias_of_squared_means_only(population):
    z, labels = population
    classes, _, mu, r2, nu = exact(z, labels)
    result = class_divergence(z, labels, 4, normalize=False)
    torch.testing.assert_close(result.centers[classes], mu)
    torch.testing.assert_close(result.r2, r2)
    gram = result.gram[classes][:, classes]
    torch.testing.assert_close(gram.fill_diagonal_(0), (mu @ mu.T).fill_diagonal_(0))
    for k, m in zip(classes, mu, strict=True):
        n = int((labels == k).sum())
        if n == 1:
            assert result.gram[k, k].isnan()
        else:
            spread = nu[labels == k].var(0).sum() / n
            torch.testing.assert_close(result.gram[k, k], m.square().sum() - spread)
        torch.testing.assert_close(
            result.within[k], result.r2_k[k] - result.gram[k, k], equal_nan=True
        )
    assert result.n.tolist() == [int((labels == k).sum()) for k in range(4)]
    absent = [k for k in range(4) if k not in classes]
    assert bool(result.gram[absent].isnan().all())
    lengths = result.gram.diagonal()[~result.gram.diagonal().isnan()]
    if len(lengths):
        torch.testing.assert_close(result.Delta_mu, 1 - lengths.min() / r2)
    else:
        assert result.Delta_mu.isnan()


@given(st.integers(0, 2**20))
def test_inner_products_and_lengths_are_unbiased(seed):
    """The mean over all samples of a tiny population equals the population's own U-statistic; off
    the diagonal, its inner product.
    """
    z = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(seed)).double()
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    grams, spreads = [], []
    for first, second in itertools.product(
        itertools.combinations(range(4), 3), itertools.combinations(range(4, 8), 2)
    ):
        part = class_divergence(z[[*first, *second]], labels[[*first, *second]], 2, normalize=False)
        grams.append(part.gram)
        spreads.append(part.within)
    whole = class_divergence(z, labels, 2, normalize=False)
    torch.testing.assert_close(torch.stack(grams).mean(0), whole.gram)
    torch.testing.assert_close(torch.stack(spreads).mean(0), whole.within)
    # with replacement of images, the truth is the population's exact squared length
    nu = z[:4].mean(1)
    draws = torch.stack([nu[list(chosen)] for chosen in itertools.product(range(4), repeat=2)])
    torch.testing.assert_close((draws[:, 0] * draws[:, 1]).sum(1).mean(), nu.mean(0).square().sum())


def test_standard_errors_are_right_in_simulation():
    generator = torch.Generator().manual_seed(0)
    mu = torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.5, 0.0]])
    labels = torch.arange(2).repeat_interleave(torch.tensor([45, 60]))
    results = []
    for _ in range(300):
        z = (
            mu[labels][:, None]
            + 0.6 * torch.randn(105, 1, 3, generator=generator)
            + 0.3 * torch.randn(105, 2, 3, generator=generator)
        )
        results.append(class_divergence(z, labels, 2, normalize=False))
    for name, error in (
        ("gram", "error_gram"),
        ("within", "error_within"),
        ("Delta_mu", "error_Delta_mu"),
    ):
        spread = torch.stack([getattr(r, name) for r in results]).std(0)
        said = torch.stack([getattr(r, error) for r in results]).square().mean(0).sqrt()
        torch.testing.assert_close(said, spread, rtol=0.15, atol=0)
    mean = torch.stack([r.gram for r in results]).mean(0)
    torch.testing.assert_close(mean, (mu @ mu.T).double(), rtol=0, atol=0.03)


def test_one_class_and_one_dimension_keep_their_shapes():
    result = class_divergence(
        torch.tensor([[[2.0]], [[3.0]], [[-1.0]]]),
        torch.zeros(3, dtype=torch.int64),
        1,
        normalize=False,
    )
    assert result.gram.shape == result.error_gram.shape == result.centers.shape == (1, 1)
    assert result.norms.shape == result.within.shape == result.n.shape == (1,)
    assert result.Delta_mu.shape == result.r2.shape == ()
    assert float(result.gram) == pytest.approx((6 - 2 - 3) / 3)


def test_errors_are_those_of_deleting_one_image_when_groups_are_single():
    z = torch.randn(7, 1, 3, generator=torch.Generator().manual_seed(1)).double()
    labels = torch.zeros(7, dtype=torch.int64)
    result = class_divergence(z, labels, 1, groups=7)
    left = torch.stack(
        [class_divergence(z[torch.arange(7) != i], labels[1:], 1).gram[0, 0] for i in range(7)]
    )
    torch.testing.assert_close(
        result.error_gram[0, 0], ((left - left.mean()).square().sum() * 6 / 7).sqrt()
    )


@pytest.mark.parametrize("counts", [[45, 60, 7], [2, 3, 1, 40], [5, 0, 21, 2]])
def test_errors_of_inner_products_are_those_of_deleting_each_group(counts):
    """The jackknife by its definition: every group of a class deleted in turn, one of each pair of
    classes at a time.
    """
    classes, groups = len(counts), 20
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(classes).repeat_interleave(torch.tensor(counts))
    z = torch.randn(len(labels), 2, 4, generator=generator).double()
    result = class_divergence(z, labels, classes, normalize=False, groups=groups)
    means = [z[labels == k].mean(1) for k in range(classes)]
    for k, other in itertools.permutations(range(classes), 2):
        variance = 0.0
        for own, fixed in ((means[k], means[other]), (means[other], means[k])):
            n, held = len(own), min(len(own), groups)
            if n < 2 or not len(fixed):
                variance = float("nan")
                break
            estimate = own.mean(0) @ fixed.mean(0)
            left = torch.stack(
                [own[torch.arange(n) % groups != g].mean(0) @ fixed.mean(0) for g in range(held)]
            )
            share = n / torch.tensor([len(own[g::groups]) for g in range(held)]).double()
            mean = held * estimate - ((1 - 1 / share) * left).sum()
            variance += (
                ((share * estimate - (share - 1) * left - mean).square() / (share - 1)).sum() / held
            ).item()
        assert float(result.error_gram[k, other]) == pytest.approx(
            variance**0.5, rel=1e-9, nan_ok=True
        )


def test_groups_are_filled_in_turn_in_order_of_arrival():
    z, labels = (
        torch.randn(20, 2, 5, generator=torch.Generator().manual_seed(2)),
        torch.arange(20) % 3,
    )
    one, many = make(), make()
    one.update(z, labels)
    for i in range(20):
        many.update(z[i : i + 1], labels[i : i + 1])
    assert_same(one.compute(), many.compute())
    assert int(one.n.amax()) == 1


def test_bad_input_is_refused(unchecked):
    measure = make()
    z, labels = torch.randn(4, 2, 5), torch.tensor([0, 1, 2, 0])
    for features, names, sentence in (
        (z[..., :4], labels, "dimension 4, but dim=5"),
        (z, labels + 1, "labels run from 0 to 2, but these hold 1 to 3"),
        (z, labels.float(), r"not torch\.float32"),
        (z / 0, labels, "not finite"),
        (z[:, 0], labels, r"shape \(N, V, D\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            measure.update(features, names)
    measure.update(z, labels)
    with pytest.raises(ValueError, match="have 1 views, those before had 2"):
        measure.update(z[:, :1], labels)
    with pytest.raises(ValueError, match="2 groups, not 3 classes"):
        ClassDivergence(3, 5, groups=1)
