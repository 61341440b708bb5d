"""The contrastive methods: their losses and reprs; each trains, the same on any number of ranks."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_methods import LABELS, SMALL, make, quiet, views
from torch.nn.parallel import DistributedDataParallel

from marginlab import methods, settings
from marginlab.losses.functional import spectral_contrastive, sup_con, vicreg
from marginlab.methods import MoCo, SimSiam, SpectralContrastive, SupCon, VICReg
from marginlab.models import Backbone, Predictor
from marginlab.optim import SGD
from marginlab.settings import SettingsError
from marginlab.train import Monitor, fit, load


def test_vicreg_is_the_loss_of_its_embeddings():
    method = make(VICReg, invariance_weight=3.0, variance_weight=2.0, covariance_weight=0.5)
    one, two = method.embed(views()).unbind(1)
    torch.testing.assert_close(
        method.loss(views(), LABELS)["loss"],
        vicreg(one, two, invariance_weight=3, variance_weight=2, covariance_weight=0.5),
    )


@pytest.mark.parametrize("mu", [0.01, 2.0, 1e9])
def test_the_spectral_loss_is_that_of_embeddings_in_a_ball(mu):
    method = make(SpectralContrastive, mu=mu)
    z = method.embed(views())
    inside = torch.where(z.norm(dim=2, keepdim=True) < mu**0.5, z, F.normalize(z, dim=2) * mu**0.5)
    torch.testing.assert_close(
        method.loss(views(), LABELS)["loss"], spectral_contrastive(*inside.unbind(1)) / mu
    )
    assert float(inside.detach().norm(dim=2).max()) <= mu**0.5 * (1 + 1e-12)


@pytest.mark.parametrize("variant", ["out", "in"])
def test_sup_con_is_the_loss_of_both_views_with_their_labels(variant):
    method = make(SupCon, temperature=0.2, variant=variant)
    z = method.embed(views())
    expected = sup_con(torch.cat(z.unbind(1)), LABELS.repeat(2), temperature=0.2, variant=variant)
    torch.testing.assert_close(method.loss(views(), LABELS)["loss"], expected)
    assert not torch.allclose(method.loss(views(), LABELS.roll(1))["loss"], expected)


def test_simsiam_is_its_formula_and_its_targets_are_constants():
    method = make(SimSiam, bottleneck=4)
    z = method.embed(views())
    p = method.predictor(z.flatten(0, 1)).unflatten(0, (8, 2))
    stopped = z.detach()
    expected = (
        -(
            F.cosine_similarity(p[:, 0], stopped[:, 1]).mean()
            + F.cosine_similarity(p[:, 1], stopped[:, 0]).mean()
        )
        / 2
    )
    said = method.loss(views(), LABELS)
    torch.testing.assert_close(said["loss"], expected)
    names = [name for name, _ in method.named_parameters()]
    slopes = torch.autograd.grad(said["loss"], list(method.parameters()))
    for name, got, wanted in zip(
        names, slopes, torch.autograd.grad(expected, list(method.parameters())), strict=True
    ):
        torch.testing.assert_close(got, wanted, msg=name)
    coordinates = F.normalize(stopped.flatten(0, 1))
    torch.testing.assert_close(said["spread"], coordinates.std(0, correction=0).mean() * 6**0.5)
    assert not said["spread"].requires_grad


def test_simsiams_head_ends_in_a_normalisation_and_its_features_are_the_backbones():
    method = make(SimSiam, bottleneck=4)
    embeddings = method.embed(views()).flatten(0, 1)
    torch.testing.assert_close(
        embeddings.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(
        embeddings.var(0, correction=0), torch.ones(6, dtype=torch.float64), atol=1e-3, rtol=0
    )
    method.eval()
    assert torch.equal(method.encode(views()[:, 0]), method.backbone(views()[:, 0]))
    with pytest.raises(ValueError, match="not 6 and 0"):
        Predictor(6, 0)


def test_simsiams_spread_tells_a_collapse():
    method = make(SimSiam, bottleneck=4)
    same = views()[:1].expand(8, -1, -1, -1, -1)[:, :1].expand(-1, 2, -1, -1, -1)
    assert float(method.loss(same, LABELS)["spread"]) < 1e-6
    assert float(method.loss(views(64), LABELS.repeat(8))["spread"]) == pytest.approx(1, abs=0.1)


KINDS = (
    "MoCo(queue=20, splits=1, hidden=12, dim=6)",
    "SupCon(hidden=12, dim=6)",
    "NormFreeSimSiam",
)


def without_batch_norm(kind):
    if kind == "NormFreeSimSiam":
        method = make(SimSiam, norm="group", bottleneck=4)
        method.head[0][1] = method.head[1] = method.predictor[1] = torch.nn.Identity()
        return method
    torch.manual_seed(0)
    return settings.make(
        kind,
        methods,
        methods.Method,
        Backbone("resnet18", stem="strided", width=0.125, norm="group"),
    ).double()


def two_steps(group, rank, kind, ranks):
    """Losses of two steps of SGD on this rank's images, and all weights and buffers at the end."""
    method = without_batch_norm(kind)
    optimizers = method.optimizers(SGD(lr=0.05))
    forward = DistributedDataParallel(method) if ranks > 1 else method
    seen = []
    for t in range(2):
        out = forward(views(seed=t).tensor_split(ranks)[rank], LABELS.tensor_split(ranks)[rank])
        for optimizer in optimizers:
            optimizer.zero_grad()
        out["loss"].backward()
        for optimizer in optimizers:
            optimizer.step()
        method.after_step()
        seen.append(torch.stack([value.detach() for value in out.values()]))
    return torch.stack(seen), method.state_dict()


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("kind", KINDS)
def test_training_on_four_ranks_is_training_on_one(pool, kind):
    expected, weights = two_steps(None, 0, kind, 1)
    for seen, own in pool.run(4, two_steps, kind, 4):
        torch.testing.assert_close(seen, expected, rtol=1e-10, atol=1e-10)
        for name, value in weights.items():
            torch.testing.assert_close(
                own[name],
                value,
                rtol=1e-9,
                atol=1e-10,
                msg=lambda text, name=name: f"{name}: {text}",
            )


TEXTS = (
    "MoCo(temperature=0.2, queue=64, momentum=0.9, symmetric=False, splits=4, hidden=8, dim=4)",
    "SimSiam(hidden=8, dim=4, bottleneck=2)",
    "VICReg(invariance_weight=1.0, variance_weight=2.0, covariance_weight=3.0, hidden=8, dim=4)",
    "SpectralContrastive(mu=3.0, negatives='both_views', hidden=8, dim=4)",
    "SupCon(temperature=0.2, variant='in', hidden=8, dim=4)",
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_repr_is_the_call_that_made_it(text):
    made = settings.make(
        text,
        methods,
        methods.Method,
        Backbone("resnet18", stem="strided", width=0.125),
        offered={"num_classes": 5},
    )
    assert repr(made) == text
    assert made.n_views == 2


def test_mocos_and_simsiams_defaults_are_the_papers():
    backbone = Backbone("resnet18", stem="cifar")
    assert (
        repr(MoCo(backbone))
        == "MoCo(temperature=0.1, queue=4096, momentum=0.99, symmetric=True, splits=8, "
        "hidden=512, dim=128)"
    )
    assert repr(SimSiam(backbone)) == "SimSiam(hidden=2048, dim=2048, bottleneck=512)"
    assert [tuple(p.shape) for p in SimSiam(backbone).predictor.parameters() if p.ndim == 2] == [
        (512, 2048),
        (2048, 512),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("MoCo(temperature=0.0)", "temperature is positive"),
        ("MoCo(momentum=1.0)", r"part of itself in \[0, 1\)"),
        ("MoCo(queue=0)", "at least 1 key"),
        ("MoCo(splits=0)", "at least 1 split"),
        ("SimSiam(bottleneck=0)", "A predictor has sizes"),
        ("VICReg(variance_weight=-1.0)", "variance_weight is not negative"),
        ("SpectralContrastive(mu=0.0)", "mu is positive"),
        ("SupCon(temperature=0)", "temperature is positive"),
    ],
)
def test_methods_that_cannot_be_are_refused(text, sentence):
    with pytest.raises(SettingsError, match=sentence):
        settings.make(
            text, methods, methods.Method, Backbone("resnet18", stem="strided", width=0.125)
        )


TRAINED = {
    "MoCo(queue=64, splits=2, hidden=32, dim=16, momentum=0.9)": "SGD(lr=0.01)",
    "SimSiam(hidden=32, dim=32, bottleneck=8)": "SGD(lr=0.05)",
    "VICReg(hidden=32, dim=32)": "LARS(lr=0.5, trust=0.02)",
    "SpectralContrastive(hidden=32, dim=32)": "SGD(lr=0.05)",
    "SupCon(hidden=32, dim=16)": "SGD(lr=0.02)",
}


@pytest.mark.parametrize("method", TRAINED)
def test_each_trains_and_is_given_back(tmp_path, method):
    recipe = replace(
        SMALL,
        images=128,
        image_size=16,
        epochs=6,
        batch=32,
        method=method,
        optimizer=TRAINED[method],
    )
    run = fit(recipe, tmp_path / "run", Monitor(every=0, images=20, views=2, bank=20), say=quiet)
    seen = [row.value for row in run.rows if row.quantity == "loss"]
    again = load(run.folder)
    assert repr(again) == repr(run.method)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.encode(images), run.method.encode(images))
    assert sum(seen[-2:]) < sum(seen[:2]) - 0.04
