"""Make values.json again from peers and formulas: `python tests/golden/make_golden.py`.

Nothing of marginlab is used here. Each value has a source: a peer with its version, or a formula
written out in numpy or torch, in float64. Published numbers are kept with the digits they have.
"""

import importlib.metadata
import json
import math
from pathlib import Path

import numpy as np
import scipy.stats
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
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning.losses import SelfSupervisedLoss

TORCH = f"torch {torch.__version__.split('+')[0]}"
PML = f"pytorch-metric-learning {importlib.metadata.version('pytorch-metric-learning')}"
ROWS = []


def add(name, values, source, rtol=1e-9):
    """A row of the table; rtol is that of the source's digits."""
    values = torch.as_tensor(values, dtype=torch.float64).flatten().tolist()
    ROWS.append({"name": name, "values": values, "rtol": rtol, "source": source})


def add_with_slopes(name, function, inputs, source, rtol=1e-9):
    """The value of a loss and its gradients."""
    inputs = [each.clone().requires_grad_() for each in inputs]
    value = function(*inputs)
    add(name, value.detach(), source, rtol)
    for number, slope in enumerate(torch.autograd.grad(value, inputs)):
        add(f"{name}, gradient {number}", slope, source, rtol)


def cosines(x, w):
    return F.normalize(x) @ F.normalize(w).T


def head_of_pml(kind, labels, **settings):
    def loss(x, w):
        head = kind(num_classes=len(w), embedding_size=w.shape[1], **settings).double()
        del head.W  # a parameter; a plain tensor in its place takes part in the graph
        head.W = w.T
        head.cast_types = lambda *_: None
        return head(x, labels)

    return loss


def of_classifiers():
    def softmax(x, w):
        return F.cross_entropy(8 * cosines(x, w), LABELS)

    def weighted(x, w):
        logits = 8 * cosines(x, w)
        return F.cross_entropy(logits, IGNORED, WEIGHTS, ignore_index=-100, label_smoothing=0.3)

    source = f"{TORCH}, nn.functional.cross_entropy of 8 cos"
    add_with_slopes("softmax", softmax, (X, CENTERS), source)
    add_with_slopes(
        "softmax, weights, smoothing 0.3, an ignored row",
        weighted,
        (X, CENTERS),
        f"{source}, with weight, label_smoothing and ignore_index",
    )
    eye = torch.eye(2, dtype=torch.float64)
    two = torch.tensor([1.0, 2.0], dtype=torch.float64)
    theirs = F.cross_entropy(eye[:1], torch.tensor([0]), two, label_smoothing=0.5)
    add("softmax of (1, 0), weights (1, 2), smoothing 0.5", theirs, f"{TORCH}, cross_entropy")
    degrees = math.degrees(0.5)
    arc = head_of_pml(pml.ArcFaceLoss, NEAREST, margin=degrees, scale=16)
    add_with_slopes("ArcFace(0.5)", arc, (X, CENTERS), f"{PML}, ArcFaceLoss(28.65 deg, 16)")
    cos = head_of_pml(pml.CosFaceLoss, LABELS, margin=0.35, scale=16)
    add_with_slopes("CosFace(0.35)", cos, (X, CENTERS), f"{PML}, CosFaceLoss(0.35, 16)")
    sphere = head_of_pml(pml.SphereFaceLoss, NEAREST, margin=2, scale=4)
    add(
        "SphereFace(2), rows of length 1",
        sphere(F.normalize(X), CENTERS).detach(),
        f"{PML}, SphereFaceLoss(2, 4)",
    )


def of_margins():
    source = "d cos(theta + 0.5) / d cos(theta) = sin(theta + 0.5) / sin(theta), by the formula"
    degrees = [5, 10, 30, 60, 90, 120, 150]
    add(
        "slope of ArcFace(0.5) at 5, 10, 30, 60, 90, 120, 150 degrees",
        [math.sin(math.radians(t) + 0.5) / math.sin(math.radians(t)) for t in degrees],
        source,
    )
    # d loss / d cos_y at s = 16 of the exact and of the straight-through gradient, of one loss
    exact, through = [-0.01636, -17.60, -14.81, -12.48], [-0.00876, -15.25, -16.00, -16.00]
    add(
        "slope of ArcFace(0.5) at cosines 0.9, 0.5, 0.1, -0.2",
        [a / b for a, b in zip(exact, through, strict=True)],
        "ratio of the gradients measured with insightface's margin and with the true one",
        1e-3,
    )
    angle = math.acos(0.3)
    add(
        "values at cosine 0.3",
        [
            math.cos(angle + 0.5),
            0.3 - 0.35,
            math.cos(1.35 * angle),
            math.cos(0.9 * angle + 0.4) - 0.15,
        ],
        "Deng et al. 2022, eq. 4: ArcFace(0.5), CosFace(0.35), m1 = 1.35, (0.9, 0.4, 0.15)",
    )
    margin, norm = 0.45 + 0.35 * (60 - 10) / 100, 60
    add(
        "MagFace at cosine 0.3 and norm 60: value, penalty",
        [math.cos(angle + margin), 35 * (norm / 110**2 + 1 / norm)],
        "Meng et al. 2021, eqs. 3 to 5, with l_a 10, u_a 110, l_m 0.45, u_m 0.8",
    )
    z = 0.333 * (50 - 20) / (100 + 1e-3)
    add(
        "AdaFace at cosine 0.3 and norm 50, mean 20, deviation 100",
        math.cos(angle - 0.4 * z) - (0.4 + 0.4 * z),
        "Kim et al. 2022, eqs. 5 to 7, with m 0.4, h 0.333",
    )


def of_contrastive_losses():
    both = torch.arange(6).repeat(2)

    def ntxent(a, b):
        return pml.NTXentLoss(temperature=0.5)(torch.cat((a, b)), both)

    def sup_con(a, b):
        return pml.SupConLoss(temperature=0.1)(torch.cat((a, b)), CLASSES.repeat(2))

    def vicreg(a, b):
        return pml.VICRegLoss()(a, ref_emb=b)

    def clip(a, b):
        z = cosines(a, b) / 0.2
        return (F.cross_entropy(z, torch.arange(6)) + F.cross_entropy(z.T, torch.arange(6))) / 2

    def barlow(a, b):
        a, b = ((z - z.mean(0)) / z.std(0, correction=0) for z in (a, b))
        c = a.T @ b / len(a)
        on = torch.diagonal(c)
        return (1 - on).square().sum() + 5e-3 * (c.square().sum() - on.square().sum())

    def wang(a, b):
        a, b = F.normalize(a), F.normalize(b)
        parts = [torch.pdist(z).square().mul(-2).exp().mean().log() for z in (a, b)]
        return (a - b).norm(dim=1).square().mean() + sum(parts) / 2

    def spectral(a, b):
        off = (a @ b.T).square() * (1 - torch.eye(6))
        return -2 * (a * b).sum(1).mean() + off.sum() / 30

    def cauchy(a, b):
        z = torch.cat((a, b))
        q = 1 / (1 + (z[:, None] - z).square().sum(2)) * (1 - torch.eye(12))
        return -(q[torch.arange(12), torch.arange(12).roll(6)] / q.sum(1)).log().mean()

    views = (Z1, Z2)
    add_with_slopes("InfoNCE(0.5)", ntxent, views, f"{PML}, NTXentLoss(0.5)")
    wrapped = SelfSupervisedLoss(pml.NTXentLoss(temperature=0.5))(Z1, Z2)
    add("InfoNCE(0.5), again", wrapped, f"{PML}, SelfSupervisedLoss(NTXentLoss(0.5))")
    add_with_slopes("InfoNCE(0.2), other view", clip, views, f"{TORCH}, cross_entropy both ways")
    add_with_slopes("SupCon(0.1)", sup_con, views, f"{PML}, SupConLoss(0.1)")
    # Its average leaves out rows whose part is 0: here no standard deviation is above 1
    add_with_slopes("VICReg", vicreg, views, f"{PML}, VICRegLoss()")
    add_with_slopes(
        "CrossCorrelation", barlow, views, "Zbontar et al. 2021, eqs. 1 and 2, written out"
    )
    add_with_slopes("AlignUniform", wang, views, "Wang and Isola 2020, section 4.1, by torch.pdist")
    add_with_slopes("SpectralContrastive", spectral, views, "HaoChen et al. 2021, by all pairs")
    add_with_slopes("TInfoNCE", cauchy, views, "Hu et al. 2022, by all distances")


def of_measures():
    f, y = FEATURES.numpy(), OF_CLASS.numpy()
    unit = f / np.linalg.norm(f, axis=-1, keepdims=True)
    squares = ((unit[:, 0] - unit[:, 1]) ** 2).sum(1)
    add("alignment, each image", squares, "|f(x) - f(x')|^2 of the two views, in numpy")
    n = len(unit)
    kernel = np.exp(-2 * ((unit[:, None, :, None] - unit[None, :, None]) ** 2).sum(-1)).mean((2, 3))
    mean = (kernel.sum() - np.trace(kernel)) / (n * (n - 1))
    add("uniformity", math.log(mean), "Wang and Isola 2020, eq. 6, over pairs of images, in numpy")
    flat = f.reshape(-1, 3)
    values = np.linalg.svd(flat, compute_uv=False)
    p = values / values.sum()
    add("RankMe", math.exp(-(p * np.log(p)).sum()), "Garrido et al. 2023, eq. 1, by numpy's svd")
    means = np.stack([unit[y == k].mean((0, 1)) for k in range(3)])
    gram = means @ means.T
    add("class products", gram[np.triu_indices(3, 1)], "mu_k . mu_l of unit features, in numpy")
    at = scipy.stats.beta.ppf([0.025, 0.975], [3, 4], [8, 7])
    known = f"scipy {importlib.metadata.version('scipy')}, beta.ppf"
    add("Clopper-Pearson of 3 in 10 at 0.95", at, f"Clopper and Pearson 1934, by {known}")
    add("effective rank of (3, 1)", 4 / 27**0.25, "exp of the entropy of (3/4, 1/4) = 4 / 27^(1/4)")


def main():
    of_classifiers()
    of_margins()
    of_contrastive_losses()
    of_measures()
    lines = ",\n".join(json.dumps(row) for row in ROWS)
    Path(__file__).with_name("values.json").write_text(f"[\n{lines}\n]\n")
    print(f"{len(ROWS)} rows")


if __name__ == "__main__":
    main()
