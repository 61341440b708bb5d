"""Losses, margins, measures, kernels, augmentations and training on this machine's device.

The reference is float64 on the CPU. Where there is a CUDA device, the same numbers in float32 are
computed there; elsewhere the tests hold float32 on the CPU against it. `benchmarks/cuda.py` runs
this file first: a fast wrong number is worth nothing.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

import marginlab.kernels.margin_softmax as kernel
from marginlab import measures
from marginlab.augment import Augmentation
from marginlab.data import load
from marginlab.evaluation import knn_predict, linear_probe_accuracy, verify
from marginlab.kernels import minimum, top_k
from marginlab.losses import MarginSoftmax, PartialFC
from marginlab.losses.functional import (
    align_uniform,
    cross_correlation,
    info_nce,
    margin_softmax,
    spectral_contrastive,
    sup_con,
    t_info_nce,
    vicreg,
)
from marginlab.margins import (
    AdaFace,
    ArcFace,
    CombinedMargin,
    CosFace,
    CurricularFace,
    ElasticFace,
    MagFace,
    NoMargin,
    SphereFace,
)
from marginlab.optim import LazyAdamW, LazySGD
from marginlab.rng import Key
from marginlab.train import Monitor, Recipe, fit

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, WIDTH, CLASSES = 24, 16, 37


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_gradients(function, *inputs):
    """Value and gradients of float64 inputs on the CPU, and of float32 ones on the device."""
    found = []
    for place, dtype in (("cpu", torch.float64), (DEVICE, torch.float32)):
        leaves = [x.to(place, dtype).requires_grad_() for x in inputs]
        value = function(*leaves)
        found.append([value.detach(), *torch.autograd.grad(value, leaves)])
    return found


def assert_close(exact, found, error=2e-5):
    """Relative to the largest number of the exact tensor."""
    for right, ours in zip(exact, found, strict=True):
        assert ours.device.type == DEVICE
        scale = float(right.abs().max().clamp(min=1e-3))
        torch.testing.assert_close(ours.double().cpu(), right, rtol=0, atol=error * scale)


LABELS = torch.arange(ROWS) % 5
CONTRASTIVE = {
    "NT-Xent": lambda a, b: info_nce(a, b, temperature=0.2),
    "two towers": lambda a, b: info_nce(a, b, temperature=0.2, negatives="other_view"),
    "one tower": lambda a, b: info_nce(a, b, negatives="other_view", symmetric=False),
    "decoupled": lambda a, b: info_nce(a, b, decoupled=True),
    "debiased": lambda a, b: info_nce(a, b, tau_plus=0.1),
    "extra negatives": lambda a, b: info_nce(a, b, extra_negatives=b.detach() * 2 - 1),
    "small budget": lambda a, b: info_nce(a, b, temperature=0.2, budget=1000),
    "SupCon": lambda a, b: sup_con(a + b, LABELS.to(a.device)),
    "cross-correlation": cross_correlation,
    "VICReg": vicreg,
    "spectral": spectral_contrastive,
    "align and uniform": align_uniform,
    "t-InfoNCE": t_info_nce,
}


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_contrastive_losses(name):
    assert_close(*with_gradients(CONTRASTIVE[name], draws(ROWS, WIDTH), draws(ROWS, WIDTH, seed=1)))


MARGINS = [
    NoMargin(),
    ArcFace(0.5),
    ArcFace(0.5, gradient="straight_through"),
    CosFace(0.35),
    SphereFace(1.35),
    CombinedMargin(1.0, 0.3, 0.2),
    AdaFace(0.4),
    MagFace(),
    CurricularFace(0.5),
    ElasticFace(),
]
BUDGETS = {"one buffer": 2**28, "row chunks": CLASSES * 3 * 8 * 4, "class tiles": 600}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("subcenters", [1, 3])
@pytest.mark.parametrize("margin", MARGINS, ids=str)
def test_margin_softmax_of_every_margin(margin, subcenters, budget, monkeypatch):
    monkeypatch.setattr(kernel, "ROWS", 4)  # row chunks also of so small a batch
    labels = torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(0))
    found = []
    for place, dtype in (("cpu", torch.float64), (DEVICE, torch.float32)):
        head = MarginSoftmax(
            CLASSES,
            WIDTH,
            margin=copy.deepcopy(margin),
            scale=16.0,
            subcenters=subcenters,
            budget=BUDGETS[budget],
        ).to(place, dtype)
        centers = draws(*head.centers.shape, seed=3).to(head.centers)
        with torch.no_grad():
            head.centers.copy_(centers)
        x = (10 * draws(ROWS, WIDTH)).to(place, dtype).requires_grad_()
        loss = head(x, labels.to(place))
        found.append([loss.detach(), *torch.autograd.grad(loss, (x, head.centers))])
    assert_close(*found)


@pytest.mark.parametrize("kind", [LazySGD, LazyAdamW])
def test_partial_fc_takes_the_same_steps(kind):
    ends = []
    for place in ("cpu", DEVICE):
        head = PartialFC(500, WIDTH, margin=ArcFace(0.5), scale=16.0, sample_rate=0.1, seed=3)
        optimizer = kind(head.to(place).parameters(), lr=0.1)
        losses = []
        for step in range(6):
            x = draws(ROWS, WIDTH, seed=step).to(place, torch.float32)
            labels = torch.randint(500, (ROWS,), generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss = head(x, labels.to(place))
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        ends.append((torch.stack(losses).double().cpu(), head.centers.detach().double().cpu()))
    for right, ours in zip(*ends, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operands", [torch.bfloat16, torch.float16])
def test_low_precision_operands_are_near_the_exact_loss(operands):
    x, centers = draws(64, 32), draws(3000, 32, seed=1)
    labels = torch.arange(64)

    def loss(x, w):
        low = {} if x.dtype == torch.float64 else {"operands": operands}
        return margin_softmax(x, labels.to(x.device), w, margin=ArcFace(0.5), scale=16.0, **low)

    exact, found = with_gradients(loss, x, centers)
    for right, ours in zip(exact, found, strict=True):
        assert float((ours.double().cpu() - right).norm() / right.norm()) < 0.02


VIEWED = {
    "Alignment": measures.Alignment,
    "ClassDivergence": lambda: measures.ClassDivergence(3, 8),
    "Uniformity": measures.Uniformity,
    "ClassVariance": lambda: measures.ClassVariance(3, 8),
    "NeuralCollapse": lambda: measures.NeuralCollapse(3, 8),
    "EffectiveRank": lambda: measures.EffectiveRank(8),
    "SpectrumDecay": lambda: measures.SpectrumDecay(8),
    "LiDAR": lambda: measures.LiDAR(8),
    "AugmentationConfusion": measures.AugmentationConfusion,
}


@pytest.mark.parametrize("name", VIEWED)
def test_measures_of_features(name):
    results = []
    for place in ("cpu", DEVICE):
        measure = VIEWED[name]().to(place)
        measure.update(draws(30, 4, 8).to(place), (torch.arange(30) % 3).to(place))
        results.append(measure.compute()._asdict())
    compared = 0
    for field, right in results[0].items():
        if isinstance(right, torch.Tensor) and right.is_floating_point():
            ours = results[1][field].cpu()
            torch.testing.assert_close(ours, right, rtol=1e-7, atol=1e-9, equal_nan=True)
            compared += right.numel()
    assert compared


def test_concentration_and_its_kernel():
    views = draws(12, 6, 300).float()
    near = [minimum(views.to(place)) for place in ("cpu", DEVICE)]
    torch.testing.assert_close(near[1].distance.cpu(), near[0].distance, rtol=1e-6, atol=1e-6)
    bounds = []
    for place in ("cpu", DEVICE):
        measure = measures.Concentration().to(place)
        pictures = load("shapes", "test").subset(40)
        drawn = Augmentation("ad").views(pictures.images.to(place), n_views=6)
        measure.update(drawn, pictures.labels.to(place))
        bounds.append(measure.compute().sigma(delta=8.0))
    assert bounds[0] == pytest.approx(
        bounds[1], abs=0.03
    )  # a view at the edge of delta may cross it


def test_nearest_rows_and_classifiers_of_features():
    bank, asked = draws(200, WIDTH), draws(40, WIDTH, seed=1)
    labels = torch.arange(200) % 7
    found = [top_k(asked.to(p), bank.to(p), 5) for p in ("cpu", DEVICE)]
    assert torch.equal(found[0].indices, found[1].indices.cpu())
    voted = [knn_predict(bank.to(p), labels.to(p), asked.to(p), k=9) for p in ("cpu", DEVICE)]
    assert torch.equal(voted[0], voted[1].cpu())
    accuracy = [
        linear_probe_accuracy(bank.to(p), labels.to(p), bank.to(p), labels.to(p))
        for p in ("cpu", DEVICE)
    ]
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.03)
    rates = [
        verify(bank.to(p), labels.to(p), n=400, folds=2, far_pairs=2000, fars=(0.01,))
        for p in ("cpu", DEVICE)
    ]
    for right, ours in zip(*((each.accuracy, *each.tar.values()) for each in rates), strict=True):
        assert ours.value == pytest.approx(right.value, abs=0.01)


@pytest.mark.parametrize("letters", ["a", "b", "c", "d", "e", "abcde"])
def test_views_are_drawn_alike_on_every_device(letters):
    images = torch.rand(20, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    made = [Augmentation(letters).views(images.to(p), n_views=3, seed=5) for p in ("cpu", DEVICE)]
    assert float((made[1].cpu() - made[0]).abs().max()) < 2e-4


def test_counters_are_the_same_numbers_on_every_device():
    drawn = [Key(7).named("views").at(torch.arange(50).to(p)).uniform() for p in ("cpu", DEVICE)]
    assert torch.equal(drawn[0], drawn[1].cpu())


SMALL = "Backbone('resnet18', stem='strided', width=0.25)"
METHODS = {
    "SimCLR": "SimCLR(temperature=0.5)",
    "a margin classifier": "MarginClassifier(margin='ArcFace(0.3)', scale=16.0)",
}


@pytest.mark.parametrize("name", METHODS)
def test_a_training_that_was_interrupted_ends_as_one_that_was_not(name, tmp_path, monkeypatch):
    recipe = Recipe(
        images=64,
        image_size=16,
        backbone=SMALL,
        method=METHODS[name],
        epochs=3,
        batch=32,
        optimizer="SGD(lr=0.03, momentum=0.9)",
        precision="bfloat16" if DEVICE == "cuda" else "float32",
    )
    monitor = Monitor(images=20, views=2, bank=40)
    due = Monitor.due

    def interrupted(monitor, epoch, epochs):
        if epoch == 2:
            raise KeyboardInterrupt
        return due(monitor, epoch, epochs)

    whole = fit(recipe, tmp_path / "whole", monitor, device=DEVICE, say=lambda _: None)
    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "due", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, tmp_path / "run", monitor, device=DEVICE, say=lambda _: None)
    resumed = fit(recipe, tmp_path / "run", monitor, device=DEVICE, say=lambda _: None)
    images = torch.rand(4, 3, 32, 32, device=DEVICE)
    ends = [run.method.encode(images).float() for run in (whole, resumed)]
    if DEVICE == "cpu":
        assert torch.equal(*ends)
    assert F.cosine_similarity(*ends).min() > 0.99
