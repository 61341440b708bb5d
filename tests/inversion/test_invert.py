"""Inversion: the terms against closed forms, only images move, the model stays, resuming."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from marginlab import methods, models
from marginlab.inversion import (
    EmbeddingTerm,
    InversionSettings,
    StatisticsTerm,
    invert,
    measured_statistics,
    pixel_norm,
    stored_statistics,
    total_variation,
)
from marginlab.inversion.invert import CHECK_EVERY
from marginlab.losses import MarginSoftmax
from marginlab.settings import SettingsError


def small(seed=0, kind=nn.BatchNorm2d):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), kind(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(24, 5),
    )  # fmt: skip


def method(seed=0):
    torch.manual_seed(seed)
    backbone = models.Backbone("resnet18", stem="strided", width=0.125)
    return methods.MarginClassifier(backbone, 6, margin="CosFace(0.2)", scale=16.0, dim=8)


def trained_statistics(net, images):
    """Running statistics that are those of these images."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    net.train()
    net(images)
    return net.eval()


@given(st.integers(2, 6), st.integers(0, 2**20), st.sampled_from(["deviation", "variance"]))
def test_the_statistics_term_is_its_definition_and_zero_at_the_stored_ones(B, seed, spread):
    net = small().double()
    torch.manual_seed(seed)
    images, others = torch.rand(2, B, 3, 6, 6, dtype=torch.float64)
    trained_statistics(net, images)
    with StatisticsTerm(net, stored_statistics(net), spread=spread) as term:
        net(images)
        assert float(term.value().detach()) == pytest.approx(0, abs=1e-20)
        net(others)
        found = float(term.value().detach())
    seen = net[0](others).transpose(0, 1).flatten(1)
    mean, variance = seen.mean(1), seen.var(1)
    power = 0.5 if spread == "deviation" else 1.0
    bn = net[1]
    wanted = (mean - bn.running_mean).square().sum()
    wanted += (variance**power - bn.running_var**power).square().sum()
    assert found == pytest.approx(float(wanted.detach()), rel=1e-9)


@pytest.mark.parametrize("spread", ["deviation", "variance"])
def test_its_gradient(spread):
    net = small().double()
    trained_statistics(net, torch.rand(4, 3, 5, 5, dtype=torch.float64))
    images = torch.rand(3, 3, 5, 5, dtype=torch.float64, requires_grad=True)

    def value(x):
        with StatisticsTerm(net, stored_statistics(net), spread=spread) as term:
            net(x)
            return term.value()

    assert torch.autograd.gradcheck(value, images)


@given(st.integers(0, 2**20))
def test_total_variation_and_norm_are_their_definitions(seed):
    torch.manual_seed(seed)
    images = torch.randn(3, 3, 4, 5, dtype=torch.float64)
    squares = [
        sum(float(d.square().sum()) for d in (x[:, 1:] - x[:, :-1], x[..., 1:] - x[..., :-1]))
        for x in images
    ]
    assert float(total_variation(images, "squares")) == pytest.approx(sum(squares) / 3)
    roots = sum(math.sqrt(each) for each in squares) / 3
    assert float(total_variation(images)) == pytest.approx(roots)
    assert float(pixel_norm(images)) == pytest.approx(float(images.flatten(1).norm(dim=1).mean()))


def test_flat_and_black_images_have_a_gradient():
    images = torch.zeros(2, 3, 4, 4, requires_grad=True)
    (total_variation(images) + pixel_norm(images)).backward()
    assert bool((images.grad == 0).all())


def test_the_embedding_term_is_two_minus_two_cosines_or_a_squared_distance():
    x, t = torch.randn(4, 3), torch.randn(4, 3)
    index = torch.arange(4)
    cosines = nn.functional.cosine_similarity(x, t)
    assert torch.allclose(EmbeddingTerm(t)(x, index), (2 - 2 * cosines).mean(), atol=1e-6)
    raw = EmbeddingTerm(t, unit=False)(x, index)
    assert torch.allclose(raw, (x - t).square().sum(1).mean())


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("closed", [True, False])
def test_images_reach_their_targets_and_the_model_stays_as_it_was(closed):
    model = method()
    trained_statistics(model.backbone, torch.rand(16, 3, 16, 16))
    model.train()
    model.backbone.net.layer4.eval()  # one part is frozen, and stays so
    modes = [part.training for part in model.modules()]
    before = bits(model)
    targets = torch.arange(4) if closed else torch.randn(4, 8)
    made = invert(model, targets, size=16, steps=30, batch_norm=0.01)
    assert same(before, bits(model))
    assert modes == [part.training for part in model.modules()]
    assert all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert made.terms.shape == (1, 30, 4)
    with torch.no_grad():  # those of the images that are returned, in [0, 1]
        embeddings = model.eval().project(model.encode(made.images))
    assert torch.allclose(made.embeddings, embeddings, atol=1e-5)
    assert made.terms[0, -1, 0] < 0.7 * made.terms[0, 0, 0]
    assert bool(((made.images >= 0) & (made.images <= 1)).all())


def test_pixels_that_are_put_back_after_each_step_lose_nothing_at_the_end():
    model = method()
    trained_statistics(model.backbone, torch.rand(16, 3, 16, 16))
    options = {"size": 16, "steps": 20, "batch_norm": 0.01}
    free = invert(model, torch.arange(4), **options)
    kept = invert(model, torch.arange(4), within_range=True, **options)
    assert bool(((kept.images >= 0) & (kept.images <= 1)).all())
    assert not torch.equal(free.images, kept.images)
    index = torch.arange(4)
    with torch.no_grad():
        ends = [model.classifier(made.embeddings, index) for made in (free, kept)]
    # one more step than the last term, which was taken before the step
    assert float(ends[1]) < 1.2 * float(kept.terms[0, -1, 0])
    assert float(ends[1]) < float(ends[0])


def test_an_interruption_leaves_the_model_as_it_was():
    model = method().train()
    before = bits(model)

    def stop(done, terms):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        invert(model, torch.arange(3), size=16, steps=9, save_every=3, say=stop)
    assert same(before, bits(model))
    assert all(part.training for part in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path):
    model = method()
    options = {"size": 16, "steps": 6, "batch": 3, "jitter": 2, "flip": True, "save_every": 2}
    whole = invert(model, torch.arange(5), **options)

    def stop(done, terms):
        if done == 10:  # in the second of two batches, after the state of step 8
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        invert(model, torch.arange(5), folder=tmp_path, say=stop, **options)
    seen = []
    again = invert(
        model, torch.arange(5), folder=tmp_path, say=lambda done, _: seen.append(done), **options
    )
    assert seen == [10, 12]
    for one, two in zip(whole[:3], again[:3], strict=True):
        assert torch.equal(one, two)
    assert (tmp_path / "preview.png").exists()
    with pytest.raises(SettingsError, match="holds another inversion"):
        invert(model, torch.arange(4), folder=tmp_path, **options)
    with pytest.raises(SettingsError, match="holds another inversion"):
        invert(method(1), torch.arange(5), folder=tmp_path, **options)


def test_a_module_with_a_head_of_its_own():
    net, head = small(), MarginSoftmax(4, 5)
    trained_statistics(net, torch.rand(8, 3, 8, 8))
    made = invert(net, torch.tensor([1, 3]), size=8, steps=3, head=head)
    assert made.embeddings.shape == (2, 5)
    with pytest.raises(SettingsError, match="has no classifier"):
        invert(net, torch.tensor([1, 3]), size=8, steps=3)


def test_a_model_without_statistics_is_refused_with_the_alternatives():
    net = small(kind=lambda c: nn.GroupNorm(2, c))
    with pytest.raises(ValueError, match=r"batch_norm=0.*measured_statistics"):
        invert(net, torch.randn(2, 5), size=8, steps=2)
    invert(net, torch.randn(2, 5), size=8, steps=2, batch_norm=0.0)
    measured = measured_statistics(net, torch.rand(7, 3, 8, 8), batch=3)
    made = invert(net, torch.randn(2, 5), size=8, steps=2, statistics=measured)
    assert float(made.terms[0, 0, 1]) > 0


def test_measured_statistics_are_those_of_all_images_at_once():
    net, images = small(kind=lambda c: nn.GroupNorm(2, c)), torch.rand(7, 3, 8, 8)
    found = measured_statistics(net, images, batch=2)["1"]
    seen = net[0](images).transpose(0, 1).flatten(1).double()
    assert torch.allclose(found.mean.double(), seen.mean(1), atol=1e-6)
    assert torch.allclose(found.variance.double(), seen.var(1), atol=1e-6)


def test_an_embedding_layer_alone_is_said_to_be_no_prior():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4))
    with pytest.warns(UserWarning, match="almost no prior"):
        assert list(stored_statistics(net)) == ["2"]


def test_a_classifier_on_group_normalisation_is_said_to_have_almost_no_prior():
    backbone = models.Backbone("resnet18", stem="strided", width=0.125, norm="group")
    model = methods.MarginClassifier(backbone, 4, dim=8)
    with pytest.warns(UserWarning, match=r"Only head\.norm stores .* almost no prior"):
        invert(model, torch.arange(2), size=16, steps=1)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (torch.tensor([0, 6]), "no class 6"),
        (torch.tensor([-1]), "no class -1"),
        (torch.zeros(0, dtype=torch.int64), "at least one image"),
        (torch.full((1, 8), torch.nan), "not finite"),
        (torch.zeros(8), "Target embeddings are"),
    ],
)
def test_targets_that_cannot_be(unchecked, targets, said):
    with pytest.raises(ValueError, match=said):
        invert(method(), targets, size=16, steps=1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "steps"),
        ({"lr": 0.0}, "lr"),
        ({"batch_norm": math.inf}, "batch_norm"),
        ({"variation": "norms"}, "did you mean 'norm'"),
        ({"spread": "std"}, "spread"),
        ({"stepz": 3}, "steps"),
    ],
)
def test_settings_that_cannot_be(wrong, said):
    with pytest.raises(SettingsError, match=said):
        invert(method(), torch.arange(2), size=16, **wrong)


def test_a_step_that_is_not_finite_is_named():
    net = small()
    with torch.no_grad():
        net[5].weight.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="term identity"):
        invert(net, torch.randn(2, 5), size=8, steps=2)


class Breaks(nn.Module):
    """Embeddings that are not finite from some pass on; counts the passes that have a gradient."""

    def __init__(self, after):
        super().__init__()
        self.net, self.after, self.passes = small(), after, 0

    def forward(self, images):
        self.passes += torch.is_grad_enabled()
        return self.net(images) * (torch.nan if self.passes > self.after else 1.0)


@pytest.mark.parametrize(("save_every", "saved"), [(4, 8), (100, None)])
def test_a_state_that_is_not_finite_is_never_saved(tmp_path, save_every, saved):
    model, seen = Breaks(after=9), []
    with pytest.raises(FloatingPointError, match="At step 9 of batch 0 the term identity"):
        invert(model, torch.randn(2, 5), size=8, steps=90, batch_norm=0.0, folder=tmp_path,
               save_every=save_every, say=lambda done, _: seen.append(done))  # fmt: skip
    assert model.passes == (12 if saved else CHECK_EVERY)
    assert seen == ([4, 8] if saved else [])
    if saved is None:
        assert not (tmp_path / "inversion.pt").exists()
        return
    held = torch.load(tmp_path / "inversion.pt", weights_only=True)
    assert held["done"] == saved
    assert bool(held["images"].isfinite().all())
    assert bool(held["terms"].isfinite().all())


def test_pixels_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    def step(self, closure=None):
        (images,) = self.param_groups[0]["params"]
        with torch.no_grad():
            images.fill_(torch.inf)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(FloatingPointError, match="At step 0 of batch 0 pixels are not finite"):
        invert(small(), torch.randn(2, 5), size=8, steps=1, folder=tmp_path)
    assert not (tmp_path / "inversion.pt").exists()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("net", "targets", "size", "said"),
    [
        (small(), torch.randn(2, 4), 8, "4 dimensions and embeddings of the network 5"),
        (small(), torch.randn(2, 1), 8, "1 dimensions"),
        (nn.Sequential(nn.Conv2d(3, 4, 9), nn.Flatten()), torch.randn(2, 4), 8, "8 x 8 pixels"),
        (nn.Conv2d(3, 4, 3), torch.randn(2, 4), 8, "not into an embedding"),
    ],
)
def test_a_network_that_does_not_fit_takes_no_folder(tmp_path, net, targets, size, said):
    with pytest.raises(ValueError, match=said):
        invert(net, targets, size=size, steps=1, batch_norm=0.0, folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_first_images_are_drawn_by_the_seed_whatever_the_batch():
    model = copy.deepcopy(method())
    one, two = (
        invert(model, torch.arange(4), size=16, steps=1, batch=batch, lr=1e-9, l2=0.0, seed=3)
        for batch in (4, 2)
    )
    assert np.allclose(one.images.numpy(), two.images.numpy(), atol=1e-5)
    assert InversionSettings().lr == 0.25
