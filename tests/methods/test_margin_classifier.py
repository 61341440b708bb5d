"""The margin classifier as a method: what its loss is, which optimizers it has, what it refuses,
and that its call notation reads back.
"""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from marginlab import methods, settings
from marginlab.losses.functional import margin_softmax
from marginlab.margins import ArcFace, CosFace, NoMargin
from marginlab.methods import BarlowTwins, MarginClassifier, SimCLR
from marginlab.models import Backbone
from marginlab.optim import LARS, SGD, AdamW, LazyAdamW, LazySGD
from marginlab.settings import SettingsError

VIEWS, LABELS = (
    torch.rand(6, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0, 1, 2, 3, 3, 1]),
)


def make(num_classes=4, **arguments):
    torch.manual_seed(0)
    return MarginClassifier(
        Backbone("resnet18", stem="strided", width=0.125),
        num_classes,
        **{"dim": 8, "scale": 16.0, **arguments},
    )


def test_its_loss_is_the_margin_softmax_of_its_embeddings():
    method = make().double()
    said = method.loss(VIEWS.double(), LABELS)
    embeddings = F.normalize(method.embed(VIEWS.double())[:, 0], dim=1)
    cosines = embeddings @ F.normalize(method.classifier.centers[:, 0], dim=1).T
    own = cosines.gather(1, LABELS[:, None]).squeeze(1)
    logits = 16.0 * cosines.scatter(1, LABELS[:, None], torch.cos(own.acos() + 0.5)[:, None])
    torch.testing.assert_close(said["loss"], F.cross_entropy(logits, LABELS))
    torch.testing.assert_close(said["target_angle"], torch.rad2deg(own.acos()).mean())
    assert not said["target_angle"].requires_grad
    assert method.n_views == 1


def test_the_target_angle_is_that_to_the_nearest_center_of_the_class():
    method = make(subcenters=3).eval()
    with torch.no_grad():
        method.classifier.centers[3, 2] = method.embed(VIEWS[3:4])[0, 0] * 7
        assert float(method.loss(VIEWS[3:4], LABELS[3:4])["target_angle"]) == pytest.approx(
            0, abs=0.1
        )


def test_several_views_of_an_image_are_rows_of_its_class():
    method = make().eval()
    pairs = VIEWS.unflatten(0, (3, 2)).squeeze(2)
    both = method.loss(pairs, torch.tensor([2, 0, 1]))["loss"]
    torch.testing.assert_close(both, method.loss(VIEWS, torch.tensor([2, 2, 0, 0, 1, 1]))["loss"])


def test_the_embedding_has_mean_zero_and_unit_variance_in_every_dimension_of_a_batch():
    embeddings = make().embed(VIEWS)[:, 0]
    torch.testing.assert_close(embeddings.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(embeddings.var(0, correction=0), torch.ones(8), atol=0.05, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert make().embed(VIEWS).dtype == torch.float32


def test_one_optimizer_for_all_classes_and_a_sparse_one_for_a_sample():
    whole, sampled = make(num_classes=40), make(num_classes=40, sample_rate=0.25)
    (only,) = whole.optimizers(SGD(lr=0.2))
    assert sum(len(group["params"]) for group in only.param_groups) == len(list(whole.parameters()))
    dense, sparse = sampled.optimizers(SGD(lr=0.2, momentum=0.8, weight_decay=0.01, nesterov=True))
    assert isinstance(sparse, LazySGD)
    (group,) = sparse.param_groups
    assert [
        group[name] for name in ("lr", "momentum", "weight_decay", "nesterov", "semantics")
    ] == [0.2, 0.8, 0.01, True, "lazy"]
    assert group["params"] == [sampled.classifier.centers]
    assert {id(p) for each in (dense, sparse) for g in each.param_groups for p in g["params"]} == {
        id(p) for p in sampled.parameters()
    }
    before = sampled.classifier.centers.detach().clone()
    sampled.loss(VIEWS, LABELS)["loss"].backward()
    sparse.step()
    moved = (sampled.classifier.centers != before).flatten(1).any(1)
    assert bool(moved[:4].all())
    assert 4 < int(moved.sum()) <= 10


def test_a_sample_wants_an_optimizer_that_has_a_sparse_twin():
    sampled = make(sample_rate=0.5)
    with pytest.raises(
        SettingsError,
        match=r"sample_rate=0\.5 gives the class centers row-sparse gradients.*Take SGD",
    ):
        sampled.optimizers(torch.optim.Adam)
    assert len(make().optimizers(torch.optim.Adam)) == 1
    dense, sparse = sampled.optimizers(AdamW(lr=0.02, betas=(0.8, 0.95), weight_decay=0.3))
    assert (type(dense), type(sparse)) == (torch.optim.AdamW, LazyAdamW)
    for name, value in {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.3, "eps": 1e-8}.items():
        assert dense.param_groups[0][name] == sparse.param_groups[0][name] == value


def whole_optimizers(group, rank, make_optimizer):
    method = make()
    method.classifier.group = group
    try:
        return len(method.optimizers(make_optimizer))
    except SettingsError as error:
        return str(error)


@pytest.mark.xdist_group("ranks")
def test_on_several_ranks_an_optimizer_sees_rows_only(pool):
    for answer in pool.run(2, whole_optimizers, LARS()):
        assert re.search(
            r"On several ranks each has its part of the class centers, for which LARS.*Take SGD",
            answer,
        )
    assert pool.run(2, whole_optimizers, SGD()) == [1, 1]
    assert pool.run(1, whole_optimizers, LARS()) == [1]


def test_initial_centers_and_samples_follow_torchs_seed():
    one, same = make(sample_rate=0.5), make(sample_rate=0.5)
    assert torch.equal(one.classifier.centers, same.classifier.centers)
    assert one.classifier.seed == same.classifier.seed
    torch.manual_seed(1)
    other = MarginClassifier(Backbone("resnet18", stem="strided", width=0.125), 4, dim=8)
    assert other.classifier.seed != one.classifier.seed


@pytest.mark.parametrize(
    "text",
    [
        "MarginClassifier()",
        "MarginClassifier(margin='CosFace(0.2)', scale=8.0, sample_rate=0.5, log_q=True, dim=8)",
        "MarginClassifier(margin='AdaFace()', subcenters=3, label_smoothing=0.1, "
        "interclass_filter=0.4, dim=8)",
    ],
)
def test_its_repr_reads_back(text):
    backbone = Backbone("resnet18", stem="strided", width=0.125)
    made = settings.make(text, methods, methods.Method, backbone, offered={"num_classes": 5})
    again = settings.make(repr(made), methods, methods.Method, backbone, offered={"num_classes": 5})
    assert repr(again) == repr(made)
    assert type(again.classifier) is type(made.classifier)
    assert made.classifier.num_classes == 5
    for name in ("scale", "subcenters", "dim", "label_smoothing", "interclass_filter"):
        assert getattr(made.classifier, name) == getattr(again.classifier, name)


def test_its_defaults_are_those_of_arcface():
    made = settings.make(
        "MarginClassifier()",
        methods,
        methods.Method,
        Backbone("resnet18", stem="strided", width=0.125),
        offered={"num_classes": 5},
    )
    assert repr(made.classifier.margin) == repr(ArcFace(0.5))
    assert (
        made.classifier.scale,
        made.classifier.subcenters,
        made.sample_rate,
        made.classifier.dim,
    ) == (64.0, 1, 1.0, 128)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("MarginClassifier(margin='ArcFce(0.5)')", "did you mean 'ArcFace'"),
        ("MarginClassifier(margin='ArcFace(9)')", "angular margin"),
        ("MarginClassifier(margin='combined(0.5)')", "names no class"),
        ("MarginClassifier(scale=0)", "scale is positive"),
        ("MarginClassifier(sample_rate=1.5)", "sample rate"),
        ("MarginClassifier(dim=-1)", "embedding layer goes from"),
        (
            "MarginClassifier(num_classes=7)",
            "sets 'num_classes', which is not a setting: it is 5 here",
        ),
        ("MarginClassifier(7)", "multiple values for argument 'num_classes'"),
    ],
)
def test_what_cannot_be_is_refused(text, sentence):
    with pytest.raises(SettingsError, match=sentence):
        settings.make(
            text,
            methods,
            methods.Method,
            Backbone("resnet18", stem="strided", width=0.125),
            offered={"num_classes": 5},
        )


def test_two_view_methods_ask_for_two_views_and_no_number_of_classes():
    backbone = Backbone("resnet18", stem="strided", width=0.125)
    for text, kind in (
        ("SimCLR(hidden=8, dim=8)", SimCLR),
        ("BarlowTwins(hidden=8, dim=8)", BarlowTwins),
    ):
        made = settings.make(text, methods, methods.Method, backbone, offered={"num_classes": 5})
        assert isinstance(made, kind)
        assert made.n_views == 2


def test_training_by_hand_lowers_the_loss_and_the_angle():
    method = make(sample_rate=0.5, margin="CosFace(0.1)")
    optimizers = method.optimizers(SGD(lr=0.05))
    seen = []
    for _ in range(20):
        said = method.loss(VIEWS, LABELS)
        seen.append((said["loss"].item(), said["target_angle"].item()))
        for optimizer in optimizers:
            optimizer.zero_grad()
        said["loss"].backward()
        for optimizer in optimizers:
            optimizer.step()
        method.after_step()
    assert seen[-1][0] < 0.5 * seen[0][0]
    assert seen[-1][1] < seen[0][1] - 20


@pytest.mark.parametrize(
    ("margin", "pushed"),
    [
        (ArcFace(0.5), True),
        (ArcFace(0.5, gradient="straight_through"), False),
        (CosFace(0.35), False),
        (NoMargin(), False),
    ],
    ids=repr,
)
@pytest.mark.parametrize("degrees", [80, 90, 120])
def test_what_drives_all_embeddings_away_from_all_centers(margin, pushed, degrees):
    # the collapse that the head of marginlab.methods.margin_classifier tells of: centers that are
    # all one, at one angle to the embedding
    angle = torch.tensor(math.radians(degrees), dtype=torch.float64)
    embedding = torch.stack((angle.cos(), angle.sin()))[None].requires_grad_()
    centers = torch.tensor([[1.0, 0.0]] * 10, dtype=torch.float64)
    margin_softmax(embedding, torch.tensor([3]), centers, margin=margin, scale=16.0).backward()
    towards = -embedding.grad[0, 0]  # what descent does to the cosine with all centers
    assert (float(towards) < -0.1) if pushed else (abs(float(towards)) < 1e-9)


def test_what_an_angular_margin_costs_where_all_embeddings_point_one_way():
    cosine = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    cost = cosine - ArcFace(0.5).value(cosine)
    torch.testing.assert_close(
        cost,
        torch.tensor([math.sin(0.5), 1 - math.cos(0.5), 1 - math.cos(0.5)], dtype=torch.float64),
    )
    assert 0.25 < cost[1] / cost[0] < 0.26
