"""Golden values: a table of frozen numbers, each with its source, which must stay what they are.

values.json is made by make_golden.py from peers and written formulas, without marginlab. A value
that changes here has been changed on purpose, or is a fault.
"""

import json
from pathlib import Path

import frozen
import pytest
import torch
import torch.nn.functional as F
from frozen import (
    CENTERS,
    CLASSES,
    FEATURES,
    IGNORED,
    LABELS,
    NEAREST,
    OF_CLASS,
    WEIGHTS,
    Z1,
    Z2,
    X,
)

from marginlab.losses import functional as losses
from marginlab.margins import (
    AdaFace,
    ArcFace,
    CombinedMargin,
    CosFace,
    MagFace,
    NoMargin,
    SphereFace,
)
from marginlab.measures import functional as measures

TABLE = json.loads(Path(__file__).with_name("values.json").read_text())
ROWS = {row["name"]: row for row in TABLE}
EYE = torch.eye(2, dtype=torch.float64)


def head(margin, labels, scale=16.0, **settings):
    return lambda x, w: losses.margin_softmax(x, labels, w, margin=margin, scale=scale, **settings)


def views(function, **settings):
    return lambda a, b: function(a, b, **settings)


def sup_con(a, b):
    return losses.sup_con(torch.cat((a, b)), CLASSES.repeat(2), temperature=0.1)


SMOOTHED = {"class_weights": WEIGHTS, "label_smoothing": 0.3}
WITH_SLOPES = {
    "softmax": (head(NoMargin(), LABELS, 8.0), (X, CENTERS)),
    "softmax, weights, smoothing 0.3, an ignored row": (
        head(NoMargin(), IGNORED, 8.0, **SMOOTHED),
        (X, CENTERS),
    ),
    "ArcFace(0.5)": (head(ArcFace(0.5), NEAREST), (X, CENTERS)),
    "CosFace(0.35)": (head(CosFace(0.35), LABELS), (X, CENTERS)),
    "InfoNCE(0.5)": (views(losses.info_nce, temperature=0.5), (Z1, Z2)),
    "InfoNCE(0.2), other view": (
        views(losses.info_nce, temperature=0.2, negatives="other_view"),
        (Z1, Z2),
    ),
    "SupCon(0.1)": (sup_con, (Z1, Z2)),
    "VICReg": (losses.vicreg, (Z1, Z2)),
    "CrossCorrelation": (losses.cross_correlation, (Z1, Z2)),
    "AlignUniform": (losses.align_uniform, (Z1, Z2)),
    "SpectralContrastive": (losses.spectral_contrastive, (Z1, Z2)),
    "TInfoNCE": (losses.t_info_nce, (Z1, Z2)),
}


def at(margin, cosine, norm=1.0):
    cosine = torch.as_tensor(cosine, dtype=torch.float64).reshape(-1)
    return margin.targets(cosine, torch.full_like(cosine, norm))


def values_at(cosine):
    kinds = ArcFace(0.5), CosFace(0.35), SphereFace(1.35), CombinedMargin(0.9, 0.4, 0.15)
    return torch.cat([at(kind, cosine).value for kind in kinds])


def magface():
    made = at(MagFace(), 0.3, 60.0)
    return torch.cat((made.value, made.penalty))


def slope_of_arcface(cosines):
    return at(ArcFace(0.5), cosines).slope


DEGREES = torch.tensor([5, 10, 30, 60, 90, 120, 150], dtype=torch.float64)
OTHERS = {
    "softmax of (1, 0), weights (1, 2), smoothing 0.5": lambda: losses.margin_softmax(
        EYE[:1],
        torch.tensor([0]),
        EYE,
        margin=NoMargin(),
        scale=1.0,
        class_weights=torch.tensor([1.0, 2.0]).double(),
        label_smoothing=0.5,
    ),
    "SphereFace(2), rows of length 1": lambda: head(SphereFace(2), NEAREST, 4.0)(
        F.normalize(X), CENTERS
    ),
    "InfoNCE(0.5), again": lambda: losses.info_nce(Z1, Z2, temperature=0.5),
    "slope of ArcFace(0.5) at 5, 10, 30, 60, 90, 120, 150 degrees": lambda: slope_of_arcface(
        DEGREES.deg2rad().cos()
    ),
    "slope of ArcFace(0.5) at cosines 0.9, 0.5, 0.1, -0.2": lambda: slope_of_arcface(
        [0.9, 0.5, 0.1, -0.2]
    ),
    "values at cosine 0.3": lambda: values_at(0.3),
    "MagFace at cosine 0.3 and norm 60: value, penalty": magface,
    "AdaFace at cosine 0.3 and norm 50, mean 20, deviation 100": lambda: (
        at(AdaFace(0.4).eval(), 0.3, 50.0).value
    ),
    "alignment, each image": lambda: measures.alignment(F.normalize(FEATURES, dim=2))[0],
    "uniformity": lambda: measures.uniformity(FEATURES)[0],
    "RankMe": lambda: measures.rankme(FEATURES).RankMe,
    "class products": lambda: measures.class_divergence(FEATURES, OF_CLASS, 3).gram[
        tuple(torch.triu_indices(3, 3, 1))
    ],
    "Clopper-Pearson of 3 in 10 at 0.95": lambda: torch.cat(
        measures.clopper_pearson(torch.tensor([3]), 10)
    ),
    "effective rank of (3, 1)": lambda: measures.effective_rank(torch.tensor([3.0, 1.0]).double()),
}


def agrees(got, name):
    row = ROWS[name]
    expected = torch.tensor(row["values"], dtype=torch.float64)
    got = got.detach().double().flatten()
    torch.testing.assert_close(
        got, expected, rtol=row["rtol"], atol=row["rtol"], msg=lambda m: f"{row['source']}: {m}"
    )


@pytest.mark.parametrize("name", WITH_SLOPES)
def test_a_loss_and_its_gradients(name):
    function, inputs = WITH_SLOPES[name]
    inputs = [each.clone().requires_grad_() for each in inputs]
    value = function(*inputs)
    agrees(value, name)
    for number, slope in enumerate(torch.autograd.grad(value, inputs)):
        agrees(slope, f"{name}, gradient {number}")


@pytest.mark.parametrize("name", OTHERS)
def test_a_value(name):
    agrees(OTHERS[name](), name)


def test_every_row_of_the_table_is_held_against_the_library():
    slopes = {f"{name}, gradient {number}" for name in WITH_SLOPES for number in (0, 1)}
    assert set(ROWS) == {*WITH_SLOPES, *OTHERS} | slopes
    assert len(ROWS) == len(TABLE)
    assert all(len(row["source"]) > 10 for row in TABLE)


def test_the_inputs_are_the_written_ones():
    assert frozen.numbers(3).tolist() == [0.841, 0.909, 0.141]
    assert [len(set(each.flatten().tolist())) > 10 for each in (Z1, Z2, X, CENTERS)] == [True] * 4
