"""MoCo: its loss among the queue, the momentum encoder, the queue, and a run that died."""

import copy
import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_methods import LABELS, SMALL, make, quiet, views
from torch.utils.checkpoint import checkpoint

from marginlab.losses.functional import info_nce
from marginlab.methods import MoCo
from marginlab.optim import SGD
from marginlab.train import Monitor, fit


def moco(**arguments):
    return make(MoCo, **{"queue": 20, "splits": 2, **arguments})


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


def test_a_run_of_moco_that_died_ends_bit_for_bit_as_one_that_did_not(tmp_path):
    watch = Monitor(every=1, images=20, views=2, bank=20)

    class Stop(Exception):
        pass

    class Dying(Monitor):
        def __call__(self, method, augmentation, train, test, at, *, last, **more):
            if at == 1:
                raise Stop
            return super().__call__(method, augmentation, train, test, at, last=last, **more)

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
