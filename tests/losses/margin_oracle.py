"""The margin softmax by brute force: the whole matrix of logits in float64, with torch's autograd;
and draws of problems for it.

What a margin makes of a cosine is tested in tests/margins. Here its value and slopes are taken as
given and put into the graph as value + slope (c - c_0) + norm_slope (n - n_0), which has their
value and their derivatives.
"""

import copy

import hypothesis.strategies as st
import torch
import torch.nn.functional as F

from marginlab import margins

MARGINS = [
    "NoMargin()",
    "ArcFace(0.5)",
    "ArcFace(0.5, gradient='straight_through')",
    "CosFace(0.35)",
    "SphereFace(1.35)",
    "CombinedMargin(0.9, 0.4, 0.15)",
    "AdaFace(0.4)",
    "MagFace(l_a=0.5, u_a=5.0)",
    "CurricularFace(0.5)",
    "ElasticFace(0.5, std=0.05)",
    "ElasticFace(0.35, std=0.05, kind='cos', plus=True)",
]


def make(text):
    from marginlab.settings import make

    return make(text, margins, margins.Margin)


def naive(
    x,
    w,
    labels,
    margin,
    *,
    scale,
    label_smoothing=0.0,
    interclass_filter=None,
    interclass_masks=False,
    class_weights=None,
    ignore_index=-100,
    reduction="mean",
    exclude=None,
    classes=None,
    lift=None,
):
    """The loss of x (B, D) and centers w (C, K, D); with `classes` the softmax is over those only,
    whose negatives are raised by `lift`.
    """
    margin = copy.deepcopy(margin)
    valid = labels != ignore_index
    place = labels.masked_fill(~valid, 0)
    cosines = torch.einsum("bd,ckd->bck", F.normalize(x, dim=1), F.normalize(w, dim=2)).amax(2)
    norm = x.norm(dim=1)
    own = cosines.gather(1, place[:, None]).squeeze(1)
    there = valid if margin.batchwise else torch.ones_like(valid)
    made = margin.targets(own[there].detach(), norm[there].detach())
    near = made.value + made.slope * (own[there] - own[there].detach())
    if made.norm_slope is not None:
        near = near + made.norm_slope * (norm[there] - norm[there].detach())
    near = torch.zeros_like(own).masked_scatter(there, near)
    penalty = torch.zeros_like(own)
    if made.penalty is not None:
        penalty = penalty.masked_scatter(
            there, made.penalty + made.penalty_slope * (norm[there] - norm[there].detach())
        )
    others = cosines
    if interclass_filter is not None:
        others = others.masked_fill(
            cosines > interclass_filter, -torch.inf if interclass_masks else 0.0
        )
    if made.hardness is not None:
        hard = others > near.detach()[:, None]
        others = torch.where(
            hard,
            others.masked_fill(~hard, 0.0) * (made.hardness + others.masked_fill(~hard, 0.0)),
            others,
        )
    logits = scale * others
    if lift is not None:
        logits = logits + lift
    if exclude is not None:
        left_out = (exclude[:, :, None] == torch.arange(len(w))).any(1)
        logits = logits.masked_fill(left_out, -torch.inf)
    if classes is not None:
        unsampled = torch.ones(len(w), dtype=torch.bool)
        unsampled[classes] = False
        logits = logits.masked_fill(unsampled, -torch.inf)
    logits = logits.scatter(1, place[:, None], scale * near[:, None])
    finite = logits > -torch.inf
    whole = logits.logsumexp(1)
    weights = valid.to(x) if class_weights is None else valid * class_weights[place]
    of_columns = (
        torch.ones_like(logits) if class_weights is None else class_weights.expand_as(logits)
    )
    # torch's cross_entropy: every column has the weight of its class
    each = (of_columns * (whole[:, None] - logits)).masked_fill(~finite, 0.0)
    even = each.sum(1) / finite.sum(1)
    losses = (
        weights * ((1 - label_smoothing) * (whole - scale * near) + penalty)
        + valid.to(x) * label_smoothing * even
    )
    if reduction == "none":
        return losses
    return (
        losses.sum()
        if reduction == "sum"
        else losses.sum() / weights.sum().clamp_min(torch.finfo(x.dtype).tiny)
    )


@st.composite
def problems(draw, features=(2, 6), rows=(1, 12), classes=(1, 14), centers=(1, 3)):
    """Embeddings, centers and labels in float64, with duplicates among them as they come, also more
    rows than classes.
    """
    B, C, D, K = (draw(st.integers(*bounds)) for bounds in (rows, classes, features, centers))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x = torch.randn(B, D, dtype=torch.float64, generator=generator)
    w = torch.randn(C, K, D, dtype=torch.float64, generator=generator)
    labels = torch.randint(C, (B,), generator=generator)
    if draw(st.booleans()):  # some rows near their center, as after training
        near = w[labels, 0] + 0.1 * torch.randn(B, D, dtype=torch.float64, generator=generator)
        x = torch.where(torch.rand(B, 1, generator=generator) < 0.5, near, x)
    return x, w, labels, generator


@st.composite
def settings_of_the_loss(draw, labels, num_classes, generator):
    """Settings of margin_softmax that the oracle knows, for these labels; some labels become
    ignored ones.
    """
    arguments = {
        "scale": draw(st.sampled_from([1.0, 8.0, 64.0])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
        "interclass_filter": draw(st.sampled_from([None, None, 0.3])),
        "interclass_masks": draw(st.booleans()),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
    }
    if draw(st.booleans()):
        arguments["class_weights"] = (
            torch.rand(num_classes, dtype=torch.float64, generator=generator) + 0.1
        )
    if draw(st.booleans()):
        exclude = torch.randint(-1, num_classes, (len(labels), 2), generator=generator)
        arguments["exclude"] = exclude.masked_fill(exclude == labels[:, None], -1)
    if draw(st.booleans()):
        labels = labels.masked_fill(torch.rand(len(labels), generator=generator) < 0.3, -100)
    return labels, arguments
