"""The method Recognizability: constant targets, statistics of an epoch, scores, ranks."""

import pytest
import torch

from marginlab import methods, settings
from marginlab.data import ImageSet
from marginlab.methods import Method, Recognizability
from marginlab.models import Backbone
from marginlab.optim import SGD
from marginlab.settings import SettingsError


def pictures(N=20, C=4, side=16):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (N, 3, side, side), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(N) % C, tuple(f"c{c}" for c in range(C)), "noise")


SET = pictures()
VIEWS, LABELS = SET.images[:8, None].double() / 255, SET.labels[:8]


def make(**arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet18", stem="strided", width=0.125, norm="group", activation="silu")
    given = {"image_size": 16, "dim": 8, "scale": 16.0, "dropout": 0.0, "tight": 0.0} | arguments
    return Recognizability(backbone, 4, **given).double()


def gradients(epochs=2, **arguments):
    """Gradients by name after a step in the last of so many epochs."""
    method = make(**arguments)
    for epoch in range(epochs):
        method.begin_epoch(epoch, SET)
    method.loss(VIEWS, LABELS)["loss"].backward()
    return {name: p.grad for name, p in method.named_parameters()}


NONE = {"regression": 0.0, "diversion": 0.0, "attention": 0.0}


@pytest.mark.filterwarnings("ignore:Index diversion of weight")
@pytest.mark.parametrize("term", list(NONE))
def test_no_term_reaches_class_centers_or_the_embedding_layer(term):
    before, after = gradients(**NONE), gradients(**NONE | {term: 3.0})
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    constant = {name for name in before if name.startswith(("classifier.", "head."))}
    assert constant
    assert not moved & constant
    part = "attend." if term == "attention" else "quality_head."
    assert any(name.startswith(part) for name in moved)
    assert any(name.startswith("backbone.") for name in moved)


def test_the_loss_is_the_sum_of_its_terms():
    method = make(regression=0.5, diversion=0.02, attention=2.0)
    for epoch in (0, 1):
        method.begin_epoch(epoch, SET)
    said = method.loss(VIEWS, LABELS)
    total = (
        said["classification"]
        + 0.5 * said["index_regression"]
        + 0.02 * said["index_diversion"]
        + 2.0 * said["attention"]
    )
    torch.testing.assert_close(said["loss"].detach(), total)
    assert not any(value.requires_grad for name, value in said.items() if name != "loss")


def test_an_epoch_renews_the_statistics_and_keeps_the_center():
    method = make(instances=12)
    with pytest.raises(ValueError, match="no center of unrecognizable images yet"):
        method.loss(VIEWS, LABELS)
    method.begin_epoch(0, SET)
    center, mean = method.center.clone(), method.diverted.mean.clone()
    assert float(center.norm()) == pytest.approx(1)
    assert float(method.loss(VIEWS, LABELS)["index_diversion"]) == 0  # not in the first epoch
    assert method.training
    method.begin_epoch(1, SET)
    assert torch.equal(method.center, center)
    assert not torch.equal(method.diverted.mean, mean)
    assert not any(p.requires_grad for p in method.buffers())
    again = make(instances=12)
    again.load_state_dict(method.state_dict())
    torch.testing.assert_close(again.loss(VIEWS, LABELS), method.loss(VIEWS, LABELS))
    moving = make(renew_center=True)
    moving.begin_epoch(0, SET)
    before = moving.center.clone()
    moving.begin_epoch(1, pictures(N=12))
    assert not torch.equal(moving.center, before)


def test_the_three_kinds_of_statistics():
    labelled, prior = make(statistics="labelled"), make(statistics="prior")
    for method in (labelled, prior):
        method.begin_epoch(0, SET)
    assert float(labelled.diverted.mean) > 0
    assert abs(float(prior.diverted.mean)) < 0.05
    prior._read = None  # fixed statistics and a fixed center need no image
    prior.begin_epoch(1, SET)
    assert int(prior.center_epoch) == 1


def test_scores_do_not_depend_on_the_batch():
    method = make().eval()
    whole, maps = method.quality(VIEWS[:, 0]), method.heat_map(VIEWS[:, 0])
    assert maps.shape == (8, 16, 16)
    for row in range(8):
        one = slice(row, row + 1)
        torch.testing.assert_close(method.quality(VIEWS[one, 0])[0], whole[row])
        torch.testing.assert_close(method.heat_map(VIEWS[one, 0])[0], maps[row])
    torch.testing.assert_close(method.float().quality(SET.images[:8]), whole.float())
    for score in (method.quality, method.heat_map):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            score(SET.images[:8].float())


def test_a_center_that_nothing_shares_is_refused():
    method = make(tight=1.0)
    with pytest.raises(ValueError, match="they share no direction"):
        method.begin_epoch(0, SET)


def test_its_call_notation_reads_back_and_wrong_settings_are_refused(unchecked):
    method = make(diversion=0.01, margin="CosFace(0.2)", clamp=8.0)
    offered = {"num_classes": 4}
    again = settings.make(repr(method), methods, Method, method.backbone.float(), offered=offered)
    assert repr(again) == repr(method)
    for text, words in (
        ("Recognizability(image_size=16, ruin='Blurr()')", "names no class"),
        ("Recognizability(image_size=16, statistics='guessed')", "kind is one of"),
        ("Recognizability(image_size=16, regression=-1.0)", "regression is not negative"),
        ("Recognizability(image_size=16, instances=1)", "instances is at least 2"),
        ("Recognizability(image_size=16, colour=1)", "colour"),
    ):
        with pytest.raises(SettingsError, match=words):
            settings.make(text, methods, Method, method.backbone, offered=offered)


def test_sampled_classes_have_an_optimizer_of_their_own():
    method = make(sample_rate=0.5)
    dense, sparse = method.optimizers(SGD(lr=0.1))
    seen = {id(p) for o in (dense, sparse) for g in o.param_groups for p in g["params"]}
    assert seen == {id(p) for p in method.parameters()}
    assert sparse.param_groups[0]["params"] == [method.classifier.centers]


def a_step(group, rank, rows):
    method = make()
    for epoch in (0, 1):
        method.begin_epoch(epoch, SET)
    own = slice(sum(rows[:rank]), sum(rows[: rank + 1]))
    said = method.loss(VIEWS[own], LABELS[own])
    said["loss"].backward()
    shared = {n: p.grad for n, p in method.named_parameters() if not n.startswith("classifier.")}
    buffers = {n: b.clone() for n, b in method.named_buffers() if n.startswith(("center", "div"))}
    return {n: v.detach() for n, v in said.items()}, shared, buffers


@pytest.mark.xdist_group("ranks")
def test_four_ranks_train_like_one(pool):
    said, shared, buffers = a_step(None, 0, [8])
    answers = pool.run(4, a_step, [3, 1, 2, 2])
    for theirs, _, kept in answers:
        torch.testing.assert_close(theirs, said, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(kept, buffers, rtol=1e-9, atol=1e-9)
    for name, gradient in shared.items():
        mean = torch.stack([theirs[name] for _, theirs, _ in answers]).mean(0)
        torch.testing.assert_close(mean, gradient, rtol=1e-7, atol=1e-9, msg=name)
