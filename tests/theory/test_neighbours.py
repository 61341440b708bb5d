"""Saunshi's bound, HaoChen's on shared views, the InfoNCE limit of Wang and Isola with its floors,
and what a bound says of itself.
"""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st
from populations import MANY, normal, samples

from marginlab.theory import (
    Bound,
    PairBound,
    Population,
    haochen,
    infonce_floor,
    infonce_limit,
    log_mean_exp,
    saunshi,
    uniformity_floor,
)

LOSSES = {
    "hinge": lambda v: (1 - v).clamp(min=0),
    "logistic": lambda v: torch.nn.functional.softplus(-v) / math.log(2),
}


def class_losses(population, loss):
    """(L_un, L_equal, L_sup, error): positives and negatives are views drawn independently from
    classes; by enumeration.
    """
    f, V = population.f.flatten(0, 1), population.f.shape[1]
    labels, w = population.labels.repeat_interleave(V), (population.w / V).repeat_interleave(V)
    conditional = torch.stack(
        [(labels == k) * w / population.p[k] for k in range(len(population.p))]
    )
    product = f @ f.T
    un = equal = supervised = error = different = 0.0
    for c, d in itertools.product(range(len(population.p)), repeat=2):
        mass = float(population.p[c] * population.p[d])
        each = loss(product[:, :, None] - product[:, None, :])  # anchors, positives, negatives
        value = float(
            torch.einsum("a,b,c,abc", conditional[c], conditional[c], conditional[d], each)
        )
        un += mass * value
        if c == d:
            equal += mass * value
        else:
            margin = f @ (population.centers[c] - population.centers[d])
            different += mass
            supervised += mass * float(conditional[c] @ loss(margin))
            error += mass * float(conditional[c] @ (margin <= 0).double())
    return un, equal / (1 - different), supervised / different, error / different


@MANY
@given(samples(most_classes=3, most_views=2), st.sampled_from(sorted(LOSSES)))
def test_saunshi_holds_with_positives_of_a_class(sample, loss):
    population = sample.population
    L_un, L_equal, L_sup, error = class_losses(population, LOSSES[loss])
    result = saunshi(p=population.p, L_un=L_un, L_equal=L_equal, positives="class", L_sup=L_sup)
    assert result.collision.holds
    assert result.printed.holds
    assert result.collision.right <= result.printed.right + 1e-9
    assert error <= L_sup + 1e-9


def test_saunshi_bounds_the_mean_pairwise_error_and_not_the_error():
    """Each image also lies towards one other class, a little more than towards its own."""
    C = 10
    own, other = (~torch.eye(C, dtype=torch.bool)).nonzero().unbind(1)
    axes = torch.eye(C, dtype=torch.float64)
    f = 1.3 * (axes[own] + 1.01 * axes[other])
    centers = torch.stack([f[own == k].mean(0) for k in range(C)])
    products = f @ centers.T
    error = float((products.argmax(1) != own).double().mean())
    margins = products.gather(1, own[:, None]) - products
    pairs = torch.arange(C) != own[:, None]
    L_sup = float((1 - margins[pairs]).clamp(min=0).mean())
    assert error == 1
    assert L_sup == pytest.approx(0.113, abs=1e-3)
    assert float((margins[pairs] <= 0).double().mean()) <= L_sup  # the mean pairwise error, 1/9
    assert error <= (C - 1) * L_sup


@given(samples(most_classes=4, most_views=1), st.sampled_from(sorted(LOSSES)))
def test_of_any_priors_the_error_is_at_most_so_many_times_the_loss_of_pairs(sample, loss):
    population = sample.population
    L_sup = class_losses(population, LOSSES[loss])[2]
    factor = (1 - float(population.p.square().sum())) / float(population.p.min())
    f, C = population.f.flatten(0, 1), len(population.p)
    products = f @ population.centers.T
    right = products.gather(1, population.labels[:, None])
    wrong = ((products >= right) & (torch.arange(C) != population.labels[:, None])).any(1)
    assert float(population.w @ wrong.double()) <= factor * L_sup + 1e-9


def test_saunshi_is_refused_for_augmentation_positives_of_which_it_is_false():
    """Each image is its own augmented views, aligned, and classes are mixed: the loss of two views
    is low, that of the mean classifier is 1.
    """
    n = 8
    f = torch.eye(n, dtype=torch.float64)[:, None] * 3
    labels = torch.tensor([0, 1] * (n // 2))
    population = Population(f, labels)
    product = f[:, 0] @ f[:, 0].T
    # x+ = x, and x- from all
    L_un = float(LOSSES["hinge"](product.diagonal()[:, None] - product).mean())
    centers = population.centers
    L_sup = float(LOSSES["hinge"]((f[:, 0] @ (centers[0] - centers[1])) * (1 - 2 * labels)).mean())
    assert L_sup > (L_un - 0.5) / 0.5  # what the bound would say
    with pytest.raises(ValueError, match="two views of an image share the image"):
        saunshi(p=population.p, L_un=L_un, L_equal=1.0, positives="augmentation")
    with pytest.raises(ValueError, match="base 2"):
        saunshi(p=population.p, L_un=0.9, L_equal=0.69, positives="class")


@st.composite
def graphs(draw):
    """A(x | image) over shared views, labels, weights: views that belong mostly to a class,
    blurred.
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**40)))
    N, X, C = draw(st.integers(2, 10)), draw(st.integers(3, 12)), draw(st.integers(1, 3))
    labels = torch.randint(0, C, (N,), generator=generator)
    leak = draw(st.sampled_from([0.0, 0.001, 0.05, 1.0]))
    own = torch.randint(0, C, (X,), generator=generator) == labels[:, None]
    draws = torch.rand(N, X, generator=generator, dtype=torch.float64) ** draw(
        st.sampled_from([1, 4])
    ) * torch.where(own, 1.0, leak)
    draws[torch.rand(N, X, generator=generator) < draw(st.sampled_from([0.0, 0.5]))] = 0
    draws = (
        draws[draws.sum(1) > 0][:, draws.sum(0) > 0]
        if bool((draws.sum(1) > 0).all())
        else draws + 1e-3
    )
    weights = (
        torch.rand(N, generator=generator, dtype=torch.float64) + 0.05
        if draw(st.booleans())
        else torch.ones(N, dtype=torch.float64)
    )
    k = draw(st.integers(1, max(draws.shape[1] - 1, 1)))
    return draws / draws.sum(1, keepdim=True), labels, weights / weights.sum(), k


@MANY
@given(graphs())
def test_haochen_holds_on_populations_with_shared_views(graph):
    draws, labels, weights, k = graph
    if draws.shape[1] < 2:
        return
    result = haochen(draws=draws, labels=labels, dim=k, weights=weights)
    assert result.phi <= 2 * result.alpha + 1e-9
    assert abs(float(result.eigenvalues[0])) < 1e-9
    if not result.views.premise:
        assert result.views.holds, result.views
        assert result.images.holds, result.images
        limit = float(result.eigenvalues[k])
        assert result.images.right <= (4 / limit + 1) * result.alpha * (1 + 1e-6) + 1e-8
    # features: the spectral contrastive loss of the minimiser, by enumeration, is below that of
    # others
    joint = draws * weights[:, None]
    mass, w = joint.sum(0), joint.T @ draws

    def spectral(f):
        product = f @ f.T
        return float(-2 * (w * product).sum() + (mass[:, None] * mass * product.square()).sum())

    best = spectral(result.features)
    generator = torch.Generator().manual_seed(k)
    for other in (
        torch.zeros_like(result.features),
        result.features + 0.01 * normal(generator, *result.features.shape),
    ):
        assert best <= spectral(other) + 1e-9


def test_the_probe_of_haochen_is_least_squares():
    generator = torch.Generator().manual_seed(3)
    draws = torch.rand(6, 8, generator=generator, dtype=torch.float64)
    draws /= draws.sum(1, keepdim=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    result = haochen(draws=draws, labels=labels, dim=4)
    mass = (draws / 6).sum(0)
    target = torch.eye(3, dtype=torch.float64)[result.likeliest]
    solved = torch.linalg.lstsq(
        result.features * mass.sqrt()[:, None], target * mass.sqrt()[:, None]
    ).solution
    read = (result.features @ solved).argmax(1)
    assert abs(float(mass[read != result.likeliest].sum()) - result.views.left) < 1e-9


def test_haochen_says_nothing_where_no_two_images_share_a_view():
    draws = torch.eye(4).repeat_interleave(2, 1) / 2
    result = haochen(draws=draws, labels=torch.tensor([0, 0, 1, 1]), dim=2)
    assert "falls into 4 components, more than k = 2" in result.images.reason
    assert not result.images.certifies
    assert result.images.right == math.inf


def test_draws_in_float32_do_not_join_what_is_apart():
    """25 times 1/25 is 1 - 2e-8 there, which is no eigenvalue."""
    draws = torch.block_diag(*[torch.full((1, 25), 1 / 25)] * 4)
    for wide in (draws, draws.double()):
        result = haochen(draws=wide, labels=torch.tensor([0, 0, 1, 1]), dim=1)
        assert "falls into 4 components, more than k = 1" in result.images.reason
        assert not result.views.certifies
        assert result.eigenvalues[:4].tolist() == [0.0] * 4


def test_haochen_certifies_where_classes_share_views(unchecked):
    leak = 0.001
    block = torch.block_diag(torch.ones(5, 4), torch.ones(5, 4)).double() + leak
    result = haochen(
        draws=block / block.sum(1, keepdim=True), labels=torch.tensor([0] * 5 + [1] * 5), dim=2
    )
    assert result.images.certifies
    assert result.images.right < 0.01
    for change, words in (
        ({"dim": 8}, "from 1 to X - 1 = 7"),
        ({"draws": block}, "is a distribution"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "as many labels"),
    ):
        with pytest.raises(ValueError, match=words):
            haochen(
                **{
                    "draws": block / block.sum(1, keepdim=True),
                    "labels": torch.tensor([0] * 5 + [1] * 5),
                    "dim": 2,
                }
                | change
            )


def test_a_view_that_is_never_drawn_is_refused():
    with pytest.raises(ValueError, match="leave these columns out"):
        haochen(draws=torch.tensor([[1.0, 0.0], [1.0, 0.0]]), labels=torch.tensor([0, 1]), dim=1)


@MANY
@given(
    samples(r=1.0, most_classes=3, most_views=2),
    st.sampled_from([2.0, 1.0, 0.5]),
    st.sampled_from([1, 2, 10, 1000]),
)
def test_infonce_comes_to_its_limit_as_fast_as_is_said(sample, temperature, negatives):
    result = infonce_limit(sample.population, temperature=temperature, negatives=negatives)
    assert result.below.holds, result
    assert result.above.holds, result
    assert result.limit >= result.floor - 1e-9


@MANY
@given(samples(r=1.0), st.sampled_from([0.5, 2.0, 8.0]))
def test_no_population_is_more_uniform_than_the_sphere(sample, t):
    population = sample.population
    f, V = population.f.flatten(0, 1), sample.pixels.shape[1]
    atoms = (population.w / V).repeat_interleave(V)
    uniformity = math.log(float(atoms @ torch.exp(-t * (f[:, None] - f).square().sum(-1)) @ atoms))
    assert uniformity >= uniformity_floor(f.shape[1], t) - 1e-9


def test_floors_are_those_of_the_sphere():
    for d, kappa in itertools.product((1, 2, 3, 17, 128), (0.1, 1.0, 4.0, 20.0)):
        assert (
            abs(log_mean_exp(d, kappa) - math.log(scipy.special.hyp0f1(d / 2, kappa**2 / 4)))
            < 1e-10
        )
    assert abs(math.exp(uniformity_floor(2, 2.0)) - math.exp(-4) * scipy.special.i0(4)) < 1e-12
    assert abs(math.exp(uniformity_floor(2, 2.0)) - 0.2070) < 1e-4
    assert abs(uniformity_floor(128) + 3.94) < 5e-3
    assert -4 < uniformity_floor(10**6) < -3.99999
    assert abs(log_mean_exp(3, 200.0) - (200 - math.log(400))) < 1e-9  # sinh(kappa) / kappa
    angle = torch.arange(2000, dtype=torch.float64) * (2 * math.pi / 2000)
    circle = Population(torch.stack((angle.cos(), angle.sin()), 1)[:, None], torch.arange(2000) % 2)
    for temperature in (1.0, 0.2):  # the uniform law reaches the floor
        rows = torch.logsumexp(circle.f[:1, 0] @ circle.f[:, 0].T / temperature, 1) - math.log(2000)
        assert abs(float(rows) - 1 / temperature - infonce_floor(2, temperature)) < 1e-9


def test_limits_are_of_features_of_length_one():
    with pytest.raises(ValueError, match="normalize them"):
        infonce_limit(
            Population(torch.eye(2)[:, None] * 2, torch.tensor([0, 1])),
            temperature=1.0,
            negatives=2,
        )
    with pytest.raises(ValueError, match="kappa is positive"):
        log_mean_exp(3, 0.0)


def test_a_bound_says_why_it_certifies_nothing():
    bound = Bound("B", left=0.2, right=0.5, trivial=1.0)
    assert bound.certifies
    assert bound.holds
    assert dataclasses.replace(bound, premise="(P) fails.").reason == "(P) fails."
    assert "not below 0.5" in dataclasses.replace(bound, trivial=0.5).reason
    assert not dataclasses.replace(bound, left=0.6).holds
    assert dataclasses.replace(bound, left=math.nan).holds
    assert not dataclasses.replace(bound, right=math.nan).certifies
    with pytest.raises(dataclasses.FrozenInstanceError):
        bound.right = 0.0
    nan = np.nan
    left, right = torch.tensor([[nan, 0.5], [0.5, nan]]), torch.tensor([[nan, 0.4], [0.7, nan]])
    pairs = PairBound("P", left=left, right=right, trivial=0.6)
    assert pairs.certifies.tolist() == [[False, True], [False, False]]
    assert pairs.reason == ""
    assert not pairs.holds
    assert "least right side, 0.4" in dataclasses.replace(pairs, trivial=0.3).reason
