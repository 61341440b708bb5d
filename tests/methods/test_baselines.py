"""The plain softmax, the triplet on angles, and a margin classifier with terms."""

import pytest
import torch
import torch.nn.functional as F

from marginlab import methods, settings
from marginlab.losses.functional import angular_triplet, inter_class, intra_class
from marginlab.methods import AngularTriplet, MarginClassifier, SoftmaxClassifier
from marginlab.models import Backbone
from marginlab.settings import SettingsError

LABELS = torch.tensor([0, 1, 2, 0])


def made(kind, **arguments):
    torch.manual_seed(0)
    backbone = Backbone("resnet18", stem="strided", width=0.0625, norm="group")
    return kind(backbone, **arguments).double()


def views(V=1):
    return torch.rand(
        4, V, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def test_the_softmax_is_torchs_on_embeddings_and_its_angle_that_to_the_own_weight():
    method = made(SoftmaxClassifier, num_classes=3, dim=6)
    found = method.loss(views(), LABELS)
    rows = method.embed(views())[:, 0]
    weight = method.classifier.weight
    logits = rows @ weight.T + method.classifier.bias
    torch.testing.assert_close(found["loss"], F.cross_entropy(logits, LABELS))
    angle = torch.rad2deg(F.cosine_similarity(rows, weight[LABELS]).acos().mean())
    torch.testing.assert_close(found["target_angle"], angle)
    assert torch.equal(method.class_weights(), weight[:, None])
    with pytest.raises(SettingsError, match="at least 2 classes"):
        made(SoftmaxClassifier, num_classes=1)


def test_the_triplet_is_that_of_all_views():
    method = made(AngularTriplet, margin=0.5, dim=6)
    rows = method.embed(views(2)).flatten(0, 1)
    expected = angular_triplet(rows, LABELS.repeat_interleave(2), margin=0.5)
    torch.testing.assert_close(method.loss(views(2), LABELS)["loss"], expected)
    assert method.class_weights() is None
    assert method.n_views == 2


def test_terms_are_added_to_the_margin_softmax():
    plain = {"num_classes": 3, "margin": "CosFace(0.2)", "scale": 8.0, "dim": 6}
    bare = made(MarginClassifier, **plain)
    terms = ("IntraClass(weight=2.0)", "InterClass()", "AngularTriplet(0.5)")
    method = made(MarginClassifier, **plain, terms=terms, views=2)
    rows, labels = method.embed(views(2)).flatten(0, 1), LABELS.repeat_interleave(2)
    centers = method.class_weights()[:, 0]
    expected = (
        bare.loss(views(2), LABELS)["loss"]
        + 2 * intra_class(rows, labels, centers)
        + inter_class(rows, labels, centers)
        + angular_triplet(rows, labels, margin=0.5)
    )
    torch.testing.assert_close(method.loss(views(2), LABELS)["loss"], expected)
    assert method.n_views == 2
    assert "means over the rows of a whole batch" in method.undivided
    assert not bare.undivided


@pytest.mark.parametrize(
    "text",
    [
        "SoftmaxClassifier(dim=8)",
        "AngularTriplet(margin=0.2, dim=8)",
        "MarginClassifier(terms=('IntraClass()', 'AngularTriplet(0.1)'), views=2, dim=8)",
    ],
)
def test_a_repr_reads_back(text):
    backbone = Backbone("resnet18", stem="strided", width=0.0625)
    one = settings.make(text, methods, methods.Method, backbone, offered={"num_classes": 5})
    again = settings.make(repr(one), methods, methods.Method, backbone, offered={"num_classes": 5})
    assert repr(again) == repr(one)
    assert again.n_views == one.n_views


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sample_rate": 0.5}, "Terms are of all classes"),
        ({"subcenters": 3}, "Terms are of all classes"),
        ({"terms": ("Intra()",)}, "names no class"),
        ({"views": 0}, "at least 1 view"),
    ],
)
def test_what_a_term_cannot_go_with_is_refused(changes, sentence, unchecked):
    with pytest.raises(ValueError, match=sentence):
        made(MarginClassifier, **({"num_classes": 3, "terms": ("IntraClass()",)} | changes))


def steps(group, rank, kind, n):
    """Two steps by SGD on this rank's images; losses, and the class weights of all classes."""
    torch.manual_seed(0)
    backbone = Backbone("resnet18", stem="strided", width=0.0625, norm="group")
    more = {"terms": ("IntraClass()", "InterClass()"), "scale": 8.0, "margin": "CosFace(0.2)"}
    method = kind(backbone, 3, dim=6, **(more if kind is MarginClassifier else {})).double()
    own = torch.arange(4).tensor_split(n)[rank]
    found = []
    for _ in range(2):
        method.zero_grad()
        loss = method.loss(views()[own], LABELS[own])["loss"]
        loss.backward()
        found.append(loss.detach())
        with torch.no_grad():
            for name, parameter in method.named_parameters():
                slope = parameter.grad
                if not (kind is MarginClassifier and name.startswith("classifier")):
                    torch.distributed.all_reduce(slope, group=group)
                    slope /= n
                parameter -= 0.1 * slope
    return torch.stack(found), method.class_weights()


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("kind", [MarginClassifier, SoftmaxClassifier])
def test_four_ranks_make_the_steps_of_the_printed_formula_alike(pool, kind):
    """All four ranks return the same losses and weights; the loss falls."""
    answers = pool.run(4, steps, kind, 4)
    for losses, weights in answers[1:]:
        torch.testing.assert_close(losses, answers[0][0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(weights, answers[0][1], rtol=1e-10, atol=1e-10)
    assert len(answers[0][1]) == 3
    assert float(answers[0][0][1]) < float(answers[0][0][0])
