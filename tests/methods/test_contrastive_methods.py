"""The contrastive methods: what their losses are, what moves and what does not, that each trains,
and the same on any number of ranks.
"""

import copy
import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from marginlab import methods, settings
from marginlab.losses.functional import info_nce, spectral_contrastive, sup_con, vicreg
from marginlab.methods import MoCo, SimSiam, SpectralContrastive, SupCon, VICReg
from marginlab.models import Backbone, Predictor
from marginlab.optim import SGD
from marginlab.settings import SettingsError
from marginlab.train import Monitor, Recipe, fit, load

LABELS = torch.tensor([0, 1, 2, 0, 1, 3, 0, 2])
SMALL = Recipe(
    images=64,
    augmentation="Augmentation('e')",
    backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="MoCo(queue=40, splits=2, hidden=32, dim=16)",
    epochs=3,
    batch=16,
    optimizer="SGD(lr=0.05)",
)


def quiet(line):
    """Drop a line of progress."""


def views(rows=8, seed=0):
    return torch.rand(
        rows, 2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def make(kind, *, norm="batch", **arguments):
    torch.manual_seed(0)
    return kind(
        Backbone("resnet18", stem="strided", width=0.125, norm=norm),
        **{"hidden": 12, "dim": 6, **arguments},
    ).double()


def moco(**arguments):
    return make(MoCo, **{"queue": 20, "splits": 2, **arguments})


# --- what the losses are


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


# --- MoCo


@pytest.mark.parametrize("symmetric", [True, False])
def test_moco_is_the_cross_entropy_of_the_key_among_the_queue(symmetric):
    method = moco(symmetric=symmetric, temperature=0.3).eval()
    v = views()
    terms = []
    for one, two in ((0, 1), (1, 0))[: 2 if symmetric else 1]:
        q = F.normalize(method.head(method.backbone(v[:, one])))
        k = F.normalize(method.key_head(method.key_backbone(v[:, two]))).detach()
        # algorithm 1
        logits = torch.cat(((q * k).sum(1, keepdim=True), q @ method.queue.T), 1) / 0.3
        terms.append(F.cross_entropy(logits, torch.zeros(8, dtype=torch.long)))
    expected = torch.stack(terms).mean()
    got = method.loss(v, LABELS)["loss"]
    torch.testing.assert_close(got, expected)
    learned = [*method.backbone.parameters(), *method.head.parameters()]
    for a, b in zip(
        torch.autograd.grad(got, learned), torch.autograd.grad(expected, learned), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_mocos_loss_is_info_nce_of_one_pair_at_a_time_with_the_queue_for_negatives():
    method = moco(symmetric=False).eval()
    q, k = method.embed(views())[:, 0], method.key_head(method.key_backbone(views()[:, 1]))
    one_by_one = [
        info_nce(
            q[i : i + 1],
            k[i : i + 1],
            temperature=0.1,
            negatives="other_view",
            symmetric=False,
            extra_negatives=method.queue,
        )
        for i in range(8)
    ]
    torch.testing.assert_close(method.loss(views(), LABELS)["loss"], torch.stack(one_by_one).mean())


def test_nothing_of_the_momentum_encoder_learns_by_gradient():
    method = moco()
    (optimizer,) = method.optimizers(SGD(lr=0.1))
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert own == {id(p) for p in method.parameters() if p.requires_grad}
    method.loss(views(), LABELS)["loss"].backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is None) == name.startswith("key_"), name


def test_after_a_step_the_momentum_encoder_has_moved_its_part_of_the_way():
    method = moco(momentum=0.75)
    for a, b in zip(method.key_backbone.parameters(), method.backbone.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()
    with torch.no_grad():
        for parameter in method.head.parameters():
            parameter.add_(4.0)
    before = copy.deepcopy(method.key_head)
    method.after_step()
    for old, new in zip(before.parameters(), method.key_head.parameters(), strict=True):
        torch.testing.assert_close(new, old + 1.0)


def test_in_bfloat16_the_momentum_encoder_follows_as_in_float32():
    method = moco(momentum=0.99).float()
    with torch.no_grad():
        for parameter in method.head.parameters():
            parameter.add_(1.0)
    exact = copy.deepcopy(method)
    method.bfloat16().train()
    loss = method.loss(views().bfloat16(), LABELS)["loss"]
    assert loss.dtype == torch.float32
    for _ in range(300):
        method.after_step()
        exact.after_step()
    pairs = zip(method.key_head.parameters(), exact.key_head.parameters(), strict=True)
    for got, expected in pairs:
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), expected, rtol=2**-7, atol=2**-7)
    again = moco(momentum=0.99).float().bfloat16()
    again.load_state_dict(method.state_dict())
    assert all(a.dtype == torch.float32 for a in again.averages.buffers())
    assert again.float().averages.state_dict() == {}


def test_the_queue_takes_the_newest_keys_in_the_order_of_the_batch_and_goes_round():
    method = moco(queue=20, splits=1)
    start = method.queue.clone()
    torch.testing.assert_close(start.norm(dim=1), torch.ones(20, dtype=torch.float64))
    kept, before = [], start
    for t in range(3):
        v = views(4, seed=t)
        pair = [
            F.normalize(
                copy.deepcopy(method.key_head)(copy.deepcopy(method.key_backbone)(v[:, view]))
            ).detach()
            for view in (1, 0)
        ]
        method.loss(v, LABELS[:4])
        assert torch.equal(method.queue, before)  # until the step has been taken
        kept.append(torch.stack(pair, 1).flatten(0, 1))
        method.after_step()
        before = method.queue.clone()
    torch.testing.assert_close(method.queue[:4], kept[2][4:])
    torch.testing.assert_close(method.queue[4:16], torch.cat(kept)[4:16])
    torch.testing.assert_close(method.queue[16:], kept[2][:4])
    assert int(method.oldest) == 4
    assert method.fresh == []


def test_a_step_that_makes_more_keys_than_the_queue_holds_keeps_the_newest():
    method = moco(queue=5, splits=1)
    method.loss(views(), LABELS)
    made = method.fresh[0]
    method.after_step()
    assert torch.equal(method.queue, made[-5:])


def test_micro_batches_fill_the_queue_and_looking_at_the_loss_does_not():
    method = moco()
    for part in views(8).split(4):
        method.loss(part, LABELS[:4])
    method.eval()
    method.loss(views(), LABELS)
    method.train()
    with torch.no_grad():
        method.loss(views(), LABELS)
    method.after_step()
    assert int(method.oldest) == 16


def of_a_part(method, part):
    return method.loss(part, LABELS[:4])["loss"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_pass_that_is_run_again_puts_its_keys_in_once(reentrant):
    """Two micro-batches in each of two steps, beside the same without a checkpoint."""
    results = []
    for run in (None, functools.partial(checkpoint, use_reentrant=reentrant)):
        method = moco()
        for step in range(2):
            for part in views(8, step).split(4):
                torch.manual_seed(step)
                loss = of_a_part if run is None else functools.partial(run, of_a_part)
                loss(method, part.requires_grad_()).backward()
            method.after_step()
        results.append((method.queue, method.oldest, method.backbone.net.conv1.weight.grad))
    assert int(results[0][1]) == 32 % 20
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_queries_and_keys_are_normalised_apart_and_keys_in_other_company_at_each_call():
    method, whole = moco(splits=2), moco(splits=1)
    v = views()
    same = v[:, :1].expand(-1, 2, -1, -1, -1)
    gap = []
    for one in (method, whole):
        torch.manual_seed(0)
        one.loss(same, LABELS)
        q = F.normalize(
            torch.cat(
                [one.project(one.encode(part)) for part in same[:, 0].tensor_split(one.splits)]
            )
        )
        # one network, one image: only the company differs
        gap.append((q - one.fresh[0][::2]).abs().max().item())
    assert gap[0] > 1e-3
    assert gap[1] < 1e-9
    losses_seen = set()
    for seed in range(3):
        torch.manual_seed(seed)
        losses_seen.add(method.loss(v, LABELS)["loss"].item())
    assert len(losses_seen) > 1
    with pytest.raises(
        ValueError,
        match=r"2 splits of at least two images each, and this rank's has 3\. Give at least 4, "
        r"or MoCo\(splits=1\)",
    ):
        method.loss(v[:3], LABELS[:3])
    method.eval().loss(v[:3], LABELS[:3])


def test_moco_under_autocast_takes_its_sums_in_float32():
    method = moco().float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(views().float(), LABELS)["loss"]
    assert loss.dtype == method.fresh[0].dtype == torch.float32
    loss.backward()


# --- on several ranks

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


# --- call notation


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


# --- training


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
        SMALL, images=128, epochs=6, batch=32, method=method, optimizer=TRAINED[method]
    )
    run = fit(recipe, tmp_path / "run", Monitor(every=0, images=20, views=2, bank=20), say=quiet)
    seen = [row.value for row in run.rows if row.quantity == "loss"]
    again = load(run.folder)
    assert repr(again) == repr(run.method)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.encode(images), run.method.encode(images))
    assert sum(seen[-2:]) < sum(seen[:2]) - 0.04


def test_a_run_of_moco_that_died_ends_bit_for_bit_as_one_that_did_not(tmp_path):
    watch = Monitor(every=1, images=20, views=2, bank=20)

    class Stop(Exception):
        pass

    class Dying(Monitor):
        def __call__(self, method, augmentation, train, test, at, *, last):
            if at == 1:
                raise Stop
            return super().__call__(method, augmentation, train, test, at, last=last)

    recipe = replace(SMALL, epochs=2)
    whole = fit(recipe, tmp_path / "whole", watch, say=quiet)
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "run", Dying(**vars(watch)), say=quiet)
    resumed = fit(recipe, tmp_path / "run", watch, say=quiet)
    state = whole.method.state_dict()
    assert int(state["oldest"]) == 2 * 64 * 2 % 40
    for name, value in resumed.method.state_dict().items():
        assert torch.equal(value, state[name]), name
    np.testing.assert_equal(resumed.rows, whole.rows)


def steps(method, number=40):
    """Weights of the key head after some steps towards a head that has moved."""
    with torch.no_grad():
        for parameter in method.head.parameters():
            parameter.add_(1.0)
    for _ in range(number):
        method.after_step()
    return [parameter.detach().float() for parameter in method.key_head.parameters()]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [False, True])
def test_mocos_state_goes_between_float32_and_bfloat16(strict, assign):
    torch.manual_seed(1)
    given = {
        "float32": moco(momentum=0.99).float(),
        "bfloat16": moco(momentum=0.99).float().bfloat16(),
    }
    for part in given.values():
        steps(part, 3)
    for source in given:
        for target in given:
            state = {name: value.clone() for name, value in given[source].state_dict().items()}
            exact = copy.deepcopy(given[source])
            method = moco(momentum=0.5).float()
            method.momentum = 0.99
            method = method if target == "float32" else method.bfloat16()
            holder = torch.nn.ModuleDict({"a": method})
            holder.load_state_dict(
                {f"a.{n}": v for n, v in state.items()}, strict=strict, assign=assign
            )
            now = next(method.key_head.parameters()).dtype
            half = now == torch.bfloat16
            assert half == ((source if assign else target) == "bfloat16")
            assert len(list(method.averages.buffers())) == half * len(method._moving())
            for got, expected in zip(steps(method), steps(exact), strict=True):
                torch.testing.assert_close(got, expected, rtol=2**-7, atol=2**-7)
