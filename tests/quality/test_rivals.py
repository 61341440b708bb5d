"""Scores of quality against their published formulas by loops, and the laws of all scores."""

import copy
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.stats import wasserstein_distance
from torch import nn

from marginlab import quality
from marginlab.data import ImageSet
from marginlab.measures import UnrecognizableBank
from marginlab.methods import MarginClassifier, Recognizability
from marginlab.models import Backbone, IResNet
from marginlab.quality.targets import subsets, wasserstein
from marginlab.rng import Key

N, C, SIDE = 12, 3, 8
IMAGES = torch.rand(N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).double()
LABELS = torch.arange(N) % C


def network(seed=0):
    """A small encoder with batch normalisation that has seen something, in training mode."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).double()
    for part in net:
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
    return net


def recognizability():
    torch.manual_seed(0)
    backbone = Backbone("resnet18", stem="strided", width=0.125)
    method = Recognizability(backbone, C, image_size=16, dim=8, scale=16.0, tight=0.0).double()
    pixels = (IMAGES.repeat_interleave(2, 2).repeat_interleave(2, 3) * 255).to(torch.uint8)
    method.begin_epoch(0, ImageSet(pixels, LABELS, tuple("abc"), "noise"))
    return method


NET = network()
CENTERS = torch.randn(C, 10, generator=torch.Generator().manual_seed(2)).double()
with torch.no_grad():
    EMBEDDED = copy.deepcopy(NET).eval()(IMAGES)
UNIT = EMBEDDED / EMBEDDED.norm(dim=1, keepdim=True)
METHOD = recognizability()
BANK = UnrecognizableBank.from_degraded(CENTERS, tight=0)
SCORES = {
    "norm": quality.FeatureNorm(NET),
    "ers": quality.EmbeddingRecognizability(
        NET, UnrecognizableBank.from_degraded(CENTERS, tight=0)
    ),
    "gallery": quality.HighestGalleryCosine(NET, CENTERS),
    "ser-fiq": quality.SerFiq(NET[:-1], NET[-1], passes=7),
    "gradients": quality.BatchNormGradients(NET),
    "stage": quality.BatchNormGradients(NET, at="2"),
    "cr-fiqa": quality.CrFiqa(NET, IMAGES, LABELS, CENTERS),
    "transfira": quality.TransFira(NET, IMAGES, LABELS, score="ccas"),
    "sdd-fiqa": quality.SddFiqa(NET, IMAGES, LABELS, draws=2),
    "maps": quality.CrFiqa(NET, IMAGES, LABELS, CENTERS, features=NET[:6]),
    "index": quality.PredictedIndex(METHOD),
    "method norm": quality.FeatureNorm(METHOD),
}
OF_METHOD = ("index", "method norm")


def given_images(name):
    large = IMAGES.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return large if name in OF_METHOD else IMAGES


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), atol=atol, rtol=1e-9)


@pytest.mark.parametrize("name", SCORES)
@settings(max_examples=4)
@given(order=st.permutations(range(N)), some=st.integers(1, N), batch=st.integers(1, N))
def test_a_score_is_of_its_image_alone(name, order, some, batch):
    images, score = given_images(name), SCORES[name]
    alone = score.quality(images)
    assert alone.shape == (N,)
    assert float(alone.std()) > 0
    rows = torch.tensor(order)[:some]
    close(score.quality(images[rows], batch=batch), alone[rows])


@pytest.mark.parametrize("name", SCORES)
def test_a_score_leaves_the_network_as_it_was(name):
    model = METHOD if name in OF_METHOD else NET
    model.train()
    next(iter(model.children())).eval()
    before = copy.deepcopy(model.state_dict())
    modes = [part.training for part in model.modules()]
    asked = [p.requires_grad for p in model.parameters()]
    found = SCORES[name].quality(given_images(name))
    assert not found.requires_grad
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [part.training for part in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == asked
    assert all(p.grad is None for p in model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("name", SCORES)
def test_bytes_score_as_their_values(name):
    pixels = (given_images(name) * 255).round().to(torch.uint8)
    close(SCORES[name].quality(pixels), SCORES[name].quality(pixels.double() / 255), atol=1e-6)


def test_lengths_and_cosines():
    close(SCORES["norm"].quality(IMAGES), [math.sqrt(sum(x * x for x in row)) for row in EMBEDDED])
    center = (CENTERS / CENTERS.norm(dim=1, keepdim=True)).mean(0)
    center /= center.norm()
    close(SCORES["ers"].quality(IMAGES), [1 - float(row @ center) for row in UNIT])
    best = [max(float(row @ c / c.norm()) for c in CENTERS) for row in UNIT]
    close(SCORES["gallery"].quality(IMAGES), best)
    close(quality.HighestGalleryCosine(NET, CENTERS, budget=64).quality(IMAGES), best)


def test_the_index_is_what_the_head_predicts():
    images = given_images("index")
    with torch.no_grad():
        METHOD.eval()
        close(SCORES["index"].quality(images), METHOD.quality(images))
        close(SCORES["index"].heat_maps(images), METHOD.heat_map(images))
        lengths = METHOD.project(METHOD.encode(images)).norm(dim=1)
        close(SCORES["method norm"].quality(images), lengths)
    with pytest.raises(TypeError, match="predicts no recognizability index"):
        quality.PredictedIndex(MarginClassifier(METHOD.backbone, C))


def test_robustness_to_dropout():
    score = SCORES["ser-fiq"]
    masks = score.masks(32).double()
    with torch.no_grad():
        features = copy.deepcopy(NET).eval()[:-1](IMAGES)
        due = []
        for f in features:
            x = [NET[-1]((f * mask / 0.5)[None])[0] for mask in masks]
            x = [row / row.norm() for row in x]
            pairs = [float((x[i] - x[j]).norm()) for i in range(7) for j in range(i + 1, 7)]
            due.append(2 / (1 + math.exp(np.mean(pairs))))
    close(score.quality(IMAGES), due)
    tight = quality.SerFiq(NET[:-1], NET[-1], passes=7, budget=1)
    close(tight.quality(IMAGES), due)
    assert not torch.equal(quality.SerFiq(NET[:-1], NET[-1], passes=7, seed=1).masks(32), masks > 0)


def test_dropout_of_a_method_is_before_its_head_and_of_an_iresnet_before_its_linear_layer():
    torch.manual_seed(0)
    image = torch.rand(3, 3, 16, 16).double()
    backbone = Backbone("resnet18", stem="strided", width=0.125)
    method = MarginClassifier(backbone, C, dim=8).double().eval()
    expected = quality.SerFiq(method.encode, method.head, passes=4).quality(image)
    close(quality.SerFiq(method, passes=4).quality(image), expected)
    face = IResNet(18, variant="cvlface", width=0.25, dim=6, image_size=16)
    method = MarginClassifier(face, C, dim=0).double().eval()
    with torch.no_grad():
        flat = face.net.bn2(face.feature_map(image)).flatten(1)
        close(face.net.features(face.net.fc(flat)), face(image))
        score = quality.SerFiq(method, passes=4)
        masks = score.masks(flat.shape[1]).double()
        due = []
        for f in flat:
            x = face.net.features(face.net.fc(f * masks / 0.5))
            due.append(2 / (1 + math.exp(nn.functional.pdist(x / x.norm(dim=1)[:, None]).mean())))
    close(score.quality(image), due)
    with pytest.raises(ValueError, match="last layers of MarginClassifier are not known"):
        quality.SerFiq(MarginClassifier(backbone, C, dim=0))


@pytest.mark.parametrize("at", ["", "2", "3"])
def test_gradients_of_the_distance_to_stored_statistics(at):
    """One image at a time, by differences of the distance in place of autograd."""
    net = copy.deepcopy(NET).eval()
    first = 0 if at == "" else int(at) + 1

    def distance(x):
        total = 0.0
        for number, part in enumerate(net):
            if number >= first:
                if isinstance(part, nn.BatchNorm2d):
                    maps = x[0].flatten(1)
                    total += float((maps.mean(1) - part.running_mean).square().mean())
                    total += float((maps.var(1, unbiased=False) - part.running_var).square().mean())
                x = part(x)
        return total / 2  # layers, also where one of them is before

    score = quality.BatchNormGradients(net, at=at)
    with torch.no_grad():
        for image in IMAGES[:2]:
            x = net[:first](image[None]).clone() if first else image[None].clone()
            found, step = 0.0, 1e-5
            for place in range(x.numel()):
                up, down = x.clone(), x.clone()
                up.view(-1)[place] += step
                down.view(-1)[place] -= step
                found += abs(distance(up) - distance(down)) / (2 * step)
            assert float(score.quality(image[None])) == pytest.approx(-found, rel=1e-4)


def test_what_gradients_cannot_be_taken_of_is_refused():
    with pytest.raises(ValueError, match="no BatchNorm2d"):
        quality.BatchNormGradients(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)))
    with pytest.raises(ValueError, match="has no layer 'layer9'"):
        quality.BatchNormGradients(NET, at="layer9")
    with pytest.raises(ValueError, match="No batch normalisation comes after"):
        quality.BatchNormGradients(NET, at="5").quality(IMAGES)
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        SCORES["gradients"].quality(IMAGES * 255)


def cosines_by_hand(centers):
    own, nearest = [], []
    for row, label in zip(UNIT, LABELS.tolist(), strict=True):
        found = [float(row @ c / c.norm()) for c in centers]
        own.append(found[label])
        nearest.append(max(value for c, value in enumerate(found) if c != label))
    return np.array(own), np.array(nearest)


def test_targets_of_class_centers():
    own, nearest = cosines_by_hand(CENTERS)
    found = quality.center_cosines(EMBEDDED, LABELS, CENTERS)
    close(found.own, own)
    close(found.nearest, nearest)
    close(quality.cr_fiqa_target(found), own / (nearest + 1 + 1e-7))
    several = torch.stack([CENTERS, -CENTERS], 1)  # of sub-centers the nearest counts
    close(quality.center_cosines(EMBEDDED, LABELS, several).own, abs(own))
    means = torch.stack([EMBEDDED[c == LABELS].mean(0) for c in range(C)])
    own, nearest = cosines_by_hand(means)
    found, number = quality.class_means(EMBEDDED, LABELS + 5)
    close(found, means)
    assert torch.equal(number, LABELS)
    targets = quality.transfira_targets(quality.center_cosines(EMBEDDED, LABELS, found))
    close(targets, np.stack([own, own - nearest], 1))
    with pytest.raises(ValueError, match="Class 9 has one image"):
        quality.class_means(EMBEDDED, torch.tensor([9, *([1] * (N - 1))]))


def test_similarity_distribution_distances_of_all_pairs():
    """With as many pairs as there are, each draw takes all, and the loop is exact."""
    labels = torch.tensor([4, 4, 4, 4, 4, 7, 7, 7, 7, 2, 2, 2])[torch.randperm(N)]
    similar = (UNIT @ UNIT.T).numpy()
    due = []
    for n in range(N):
        own = [similar[n, m] for m in range(N) if m != n and labels[m] == labels[n]]
        others = [similar[n, m] for m in range(N) if labels[m] != labels[n]]
        due.append(wasserstein_distance(own, others))
    due = 100 * (np.array(due) - min(due)) / (max(due) - min(due))
    close(quality.sdd_fiqa_target(EMBEDDED, labels, draws=2), due)
    fewer = quality.sdd_fiqa_target(EMBEDDED, labels, pairs=2, draws=3, seed=1)
    assert float((fewer - torch.from_numpy(due)).abs().max()) > 1
    with pytest.raises(ValueError, match="two or more of each"):
        quality.sdd_fiqa_target(EMBEDDED, torch.zeros(N, dtype=torch.int64))


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6))
def test_a_distance_of_samples_is_scipys(seed, k, m):
    draw = np.random.default_rng(seed)
    a, b = draw.integers(-3, 4, (4, k)) / 2.0, draw.normal(size=(4, m))
    of_a, of_b = draw.random((4, k)) < 0.7, draw.random((4, m)) < 0.7
    of_a[:, draw.integers(k)] = of_b[:, draw.integers(m)] = True
    found = wasserstein(*(torch.from_numpy(x) for x in (a, of_a, b, of_b)))
    due = [wasserstein_distance(a[n][of_a[n]], b[n][of_b[n]]) for n in range(4)]
    close(found, due)


def test_each_subset_is_as_likely():
    sizes = torch.full((3000,), 5)
    found, counts = subsets(Key(3), sizes, 3)
    assert bool(counts.all())
    names = (2**found).sum(1)
    _, each = names.unique(return_counts=True)
    assert len(each) == 10  # all numbers of a set differ, and all sets occur
    assert float((each - 300).square().sum() / 300) < 27.9  # chi squared of 9 degrees, p = .001
    some, few = subsets(Key(3), torch.tensor([2, 1, 4]), 3)
    assert few.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert sorted(some[0, :2].tolist()) == [0, 1]


@pytest.mark.parametrize("dim", [4, 60])  # fewer and more features than images
def test_a_ridge_head_solves_its_normal_equations(dim):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, dim, generator=generator).double() * torch.arange(1, dim + 1) + 3
    y = torch.randn(30, 2, generator=generator).double()
    head = quality.fit_ridge(x, y, torch.arange(30) % 5, strengths=(0.3,))
    z = (x - x.mean(0)) / x.std(0, unbiased=False)
    due = torch.linalg.solve(
        z.T @ z / 30 + 0.3 * torch.eye(dim).double(), z.T @ (y - y.mean(0)) / 30
    )
    close(head.weight, due)
    close(head(x), z @ due + y.mean(0))
    assert head.errors == {}


def test_the_strength_is_chosen_on_classes_that_are_left_out():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 6
    x = torch.randn(60, 40, generator=generator).double()
    y = torch.randn(6, 1, generator=generator).double()[labels]  # nothing that new classes share
    x[:, :6] += 3 * torch.eye(6)[labels]
    strengths = (1e-3, 1.0, 1e3)
    head = quality.fit_ridge(x, y, labels, strengths=strengths)
    due = {}
    for strength in strengths:
        squares = 0.0
        for fold in range(5):
            out = labels % 5 == fold
            one = quality.fit_ridge(x[~out], y[~out], labels[~out], strengths=(strength,))
            squares += float(((one(x[out]) - y[out]) / y.std()).square().sum())
        due[strength] = squares / 60
    assert head.errors == pytest.approx(due)
    assert head.strength == min(due, key=due.get) > 1e-3  # which fits these images best


def test_fitted_scores_predict_their_targets():
    own, nearest = cosines_by_hand(CENTERS)
    score = quality.CrFiqa(NET, IMAGES, LABELS, CENTERS, strengths=(1e-9,))
    close(score.quality(IMAGES), own / (nearest + 1 + 1e-7), atol=0.5)  # 10 features, 12 images
    with torch.no_grad():
        maps = copy.deepcopy(NET).eval()[:6](IMAGES).flatten(1)
    exact = quality.CrFiqa(NET, IMAGES, LABELS, CENTERS, features=NET[:6], strengths=(1e-9,))
    assert exact.head.mean.shape == (maps.shape[1],)
    close(exact.quality(IMAGES), own / (nearest + 1 + 1e-7), atol=1e-4)
    both = quality.TransFira(NET, IMAGES, LABELS, features=NET[:6], strengths=(1e-9,))
    means, _ = quality.class_means(EMBEDDED, LABELS)
    due = quality.transfira_targets(quality.center_cosines(EMBEDDED, LABELS, means))
    close(both.predict(IMAGES), due, atol=1e-4)
    close(both.quality(IMAGES), due[:, 0], atol=1e-4)
    sdd = quality.SddFiqa(NET, IMAGES, LABELS, draws=2, features=NET[:6], strengths=(1e-9,))
    close(sdd.quality(IMAGES), quality.sdd_fiqa_target(EMBEDDED, LABELS, draws=2), atol=1e-2)


def test_the_length_of_magface_is_of_a_magface_classifier():
    backbone = Backbone("resnet18", stem="strided", width=0.125)
    model = MarginClassifier(backbone, C, margin="MagFace(l_a=1.0, u_a=8.0)", dim=8).eval()
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        due = model.project(model.encode(images)).norm(dim=1)
    close(quality.MagFaceNorm(model).quality(images), due, atol=1e-5)
    with pytest.raises(ValueError, match="the length that its margin has trained"):
        quality.MagFaceNorm(MarginClassifier(backbone, C))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: quality.HighestGalleryCosine(NET, CENTERS[:0]), "A gallery is"),
        (lambda: quality.HighestGalleryCosine(NET, CENTERS[:, :4]).quality(IMAGES), "two dimensi"),
        (lambda: quality.SerFiq(NET[:-1], NET[-1], passes=1), "Two or more passes"),
        (lambda: quality.SerFiq(NET), "Give what comes before them"),
        (lambda: quality.FeatureNorm(NET[:3]).quality(IMAGES), "Embeddings of images are rows"),
        (lambda: quality.TransFira(NET, IMAGES, LABELS, score="cas"), "'ccs' or 'ccas'"),
        (lambda: quality.SddFiqa(NET, IMAGES, LABELS, pairs=0), "at least 1"),
        (lambda: quality.fit_ridge(EMBEDDED, UNIT, LABELS[:3]), "are of 2 images or|fitted to"),
        (lambda: quality.fit_ridge(EMBEDDED, UNIT, LABELS, strengths=(0.0,)), "positive"),
        (lambda: quality.fit_ridge(EMBEDDED, UNIT, 0 * LABELS), "One class leaves none"),
        (lambda: quality.fit_ridge(EMBEDDED * math.inf, UNIT, LABELS), "finite"),
        (lambda: SCORES["maps"].quality(IMAGES[..., :4]), "This head takes features"),
        (lambda: quality.iso_scale(UNIT[0], 0.5, 0.0), "width"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_values_are_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        wrong()
