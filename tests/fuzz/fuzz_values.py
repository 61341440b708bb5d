"""Hostile values for every loss and measure: a value or a clear error, and no NaN without a word.

    python tests/fuzz/fuzz_values.py --cases 20000            # of each kind; prints what was found

A case draws a function, its settings and small inputs, and spoils one of them: NaN, infinities,
huge and subnormal rows, zeros, equal rows, no rows, one row, no dimension, another number of
dimensions, another dtype, the meta device, labels out of range. It is a finding if

    crash      an error comes out that is neither a ValueError nor a TypeError (of meta tensors also
               torch's own word for them)
    nan        finite input gives NaN or infinity in the value or the gradient, where the same
               function of the same numbers in float64 is finite and fits the dtype

VICReg and the spectral loss take rows as they are, and float32 has no room for the fourth powers of
long ones: `beyond` says which entries are no finding, as the docstrings of the two do.
"""

import argparse
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jaxtyping
import torch
from torch import Tensor

from marginlab import measures
from marginlab.losses import functional as losses
from marginlab.margins import ArcFace, CombinedMargin, CosFace, NoMargin
from marginlab.measures.composed import numbers

HUGE = (1e3, 3e4, 1e10, 1e19, 1e30, 3e38, 1e150, 1e300)
TINY = (1e-3, 1e-8, 1e-20, 1e-30, 1e-40, 1e-160, 1e-310)


class Case(NamedTuple):
    """A call: of which function, with which tensors and settings."""

    name: str
    call: Callable[..., Any]
    tensors: list[Tensor]
    settings: dict[str, Any]


class Finding(NamedTuple):
    """A fault, and the number of its case, which makes it again."""

    kind: str
    number: int
    case: str
    what: str


def spoiled(x: Tensor, chance: random.Random) -> Tensor:
    """The numbers with something hostile done to them."""
    x = x.clone()
    rows = x.flatten(0, -2) if x.ndim > 1 and x.numel() else x[:0].flatten(0, -2)
    row = chance.randrange(len(rows)) if len(rows) else 0
    how = chance.choice(
        "nan inf zero zeros huge tiny all_huge all_tiny equal empty one flat deep narrow int half "
        "bfloat double meta none none".split()
    )
    if how in ("nan", "inf") and rows.numel():
        rows[row, chance.randrange(rows.shape[1])] = chance.choice((1, -1)) * float(how)
    elif how in ("zero", "huge", "tiny") and len(rows):
        factor = {"zero": (0.0,), "huge": HUGE, "tiny": TINY}[how]
        rows[row] *= chance.choice(factor)
    elif how in ("zeros", "all_huge", "all_tiny"):
        x = x * chance.choice({"zeros": (0.0,), "all_huge": HUGE, "all_tiny": TINY}[how])
    elif how == "equal" and len(x):
        x = x[:1].expand_as(x).clone()
    elif how in ("empty", "one"):
        x = x[: int(how == "one")]
    elif how == "flat":
        x = x[..., 0] if x.shape[-1] else x
    elif how == "deep":
        x = x[..., None]
    elif how == "narrow":
        x = x[..., : chance.choice((0, 1))]
    elif how in ("int", "half", "bfloat", "double"):
        kinds = {"int": torch.int64, "half": torch.float16, "bfloat": torch.bfloat16}
        x = x.to(kinds.get(how, torch.float64))
    elif how == "meta":
        x = x.to("meta")
    return x


def hostile_labels(n: int, classes: int, chance: random.Random, g: torch.Generator) -> Tensor:
    """Labels, most of them as they should be."""
    labels = torch.randint(0, max(classes, 1), (n,), generator=g)
    how = chance.choice(
        "good good good negative large int32 uint8 bool float nan short meta".split()
    )
    if how in ("negative", "large") and n:
        labels[chance.randrange(n)] = chance.choice((-1, -100)) if how == "negative" else 2**40
    elif how in ("int32", "uint8", "bool", "float"):
        labels = labels.to(getattr(torch, how))
    elif how == "nan":
        labels = labels.float() * float("nan")
    elif how == "short":
        labels = labels[:-1]
    elif how == "meta":
        labels = labels.to("meta")
    return labels


def loss_case(chance: random.Random, g: torch.Generator) -> Case:
    """A loss with settings and inputs, one of them spoiled."""
    name = chance.choice(losses.__all__)
    B, D, C = chance.randrange(1, 7), chance.randrange(1, 6), chance.randrange(2, 5)
    rows = [torch.randn(B, D, generator=g) for _ in range(2)]
    if chance.random() < 0.3:  # both views alike
        rows = [row * chance.choice((*HUGE[:6], *TINY[:5])) for row in rows]
    rows[chance.randrange(2)] = spoiled(rows[0], chance)
    if chance.random() < 0.5:
        rows[1] = rows[1].to(rows[0].dtype) if not rows[1].is_meta else rows[1]
    settings: dict[str, Any] = {}
    if name in ("info_nce", "sup_con"):
        settings["temperature"] = chance.choice((0.05, 0.1, 0.5, 1.0, 10.0))
    if name == "info_nce":
        settings["negatives"] = chance.choice(("both_views", "other_view"))
        settings["decoupled"] = chance.random() < 0.2
    elif name == "align_uniform":
        settings |= {"alpha": chance.choice((1.0, 2.0, 3.0)), "t": chance.choice((0.5, 2.0, 20.0))}
    elif name == "cross_correlation":
        settings["correction"] = chance.choice((0, 1))
    elif name == "sup_con":
        return Case(name, losses.sup_con, [rows[0], hostile_labels(B, C, chance, g)], settings)
    elif name == "angular_triplet":
        tensors = [rows[0], hostile_labels(B, C, chance, g)]
        return Case(name, losses.angular_triplet, tensors, settings)
    elif name in ("intra_class", "inter_class"):
        centers = torch.randn(C, D, generator=g)
        centers = spoiled(centers, chance) if chance.random() < 0.3 else centers
        tensors = [rows[0], hostile_labels(B, C, chance, g), centers]
        return Case(name, getattr(losses, name), tensors, settings)
    elif name == "margin_softmax":
        made = (ArcFace(0.5), CosFace(0.35), CombinedMargin(1.0, 0.3, 0.2), NoMargin())
        settings |= {"margin": chance.choice(made), "scale": chance.choice((1.0, 64.0))}
        settings["label_smoothing"] = chance.choice((0.0, 0.1))
        centers = torch.randn(C, D, generator=g)
        centers = spoiled(centers, chance) if chance.random() < 0.3 else centers
        tensors = [rows[0], hostile_labels(B, C, chance, g), centers]
        return Case(name, losses.margin_softmax, tensors, settings)
    return Case(name, getattr(losses, name), rows, settings)


MEASURES = {
    "Alignment": lambda C, D, z: measures.Alignment(normalize=z),
    "AnchorConcentration": lambda C, D, z: measures.AnchorConcentration(
        measures.Anchors(torch.arange(C), torch.eye(C, D), 1.0)
    ),
    "AngleStatistics": lambda C, D, z: measures.AngleStatistics(C, D),
    "AugmentationConfusion": lambda C, D, z: measures.AugmentationConfusion(),
    "ClassDivergence": lambda C, D, z: measures.ClassDivergence(C, D, z),
    "ClassVariance": lambda C, D, z: measures.ClassVariance(C, D, z),
    "Concentration": lambda C, D, z: measures.Concentration(normalize=z),
    "EffectiveRank": lambda C, D, z: measures.EffectiveRank(D, z),
    "IntraAngle": lambda C, D, z: measures.IntraAngle(torch.ones(C, D)),
    "LiDAR": lambda C, D, z: measures.LiDAR(D, z),
    "LipschitzRatio": lambda C, D, z: measures.LipschitzRatio(z),
    "NearestCenterMismatch": lambda C, D, z: measures.NearestCenterMismatch(torch.eye(C, D), z),
    "NeuralCollapse": lambda C, D, z: measures.NeuralCollapse(C, D, normalize=z),
    "SpectrumDecay": lambda C, D, z: measures.SpectrumDecay(D, normalize=z),
    "Uniformity": lambda C, D, z: measures.Uniformity(normalize=z),
}


def measure_case(chance: random.Random, g: torch.Generator) -> Case:
    """A measure with settings and inputs, one of them spoiled."""
    name = chance.choice(list(MEASURES))
    N, V, D, C = (chance.randrange(low, high) for low, high in ((1, 9), (1, 4), (1, 6), (2, 5)))
    z = chance.random() < 0.5
    features = spoiled(torch.randn(N, V, D, generator=g), chance)
    labels = hostile_labels(N, C, chance, g)
    tensors = [features, labels]
    if name == "LipschitzRatio":
        tensors = [torch.rand(N, V, 3, generator=g), features]

    def call(*tensors: Tensor) -> dict[str, Tensor]:
        measure = MEASURES[name](C, D, z)
        measure.update(*tensors)
        return numbers(measure.compute())

    return Case(name, call, tensors, {"normalize": z})


CASES = {"losses": loss_case, "measures": measure_case}


def value_of(case: Case, tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The numbers that come out, and the gradients of a loss."""
    wide = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in tensors]
    out = case.call(*wide, **(case.settings if case.name in losses.__all__ else {}))
    if isinstance(out, dict):
        return torch.stack([value.double() for value in out.values()]), []
    if out.is_meta:
        return torch.zeros(1), []
    asked = [x for x in wide if x.requires_grad]
    grads = torch.autograd.grad(out.sum(), asked, allow_unused=True)
    return out.detach(), [grad for grad in grads if grad is not None]


def beyond(case: Case, views: list[Tensor]) -> bool:
    """Return whether entries are too large for a loss that grows with their fourth power."""
    if case.name not in ("vicreg", "spectral_contrastive"):
        return False
    first, second = (float(view.abs().double().max()) if view.numel() else 0.0 for view in views)
    if case.name == "spectral_contrastive":
        return first * second > 1e18
    return views[0].shape[-1] > 1 and max(first, second) > 1e9


def bad(number: int, case: Case) -> Finding | None:
    """Return the fault in the outcome of a case, or None."""
    shapes = ", ".join(f"{x.dtype} {tuple(x.shape)}".removeprefix("torch.") for x in case.tensors)
    told = f"{case.name}({shapes}, {case.settings})"
    meta = any(x.is_meta for x in case.tensors)
    try:
        value, grads = value_of(case, case.tensors)
    except (ValueError, TypeError):
        return None
    except Exception as error:
        if meta and isinstance(error, RuntimeError):  # NotImplementedError is one
            return None
        return Finding("crash", number, told, f"{type(error).__name__}: {str(error)[:200]}")
    floats = [x for x in case.tensors if x.is_floating_point()]
    if meta or not all(bool(x.isfinite().all()) for x in floats):
        return None
    if all(bool(x.isfinite().all()) for x in (value, *grads)):
        return None
    if beyond(case, floats):
        return None
    try:
        wide = [x.double() if x.is_floating_point() else x for x in case.tensors]
        expected, slopes = value_of(case, wide)
    except (ValueError, TypeError):
        return None
    for found, right in zip((value, *grads), (expected, *slopes), strict=True):
        fits = right.isfinite() & (right.abs() < torch.finfo(found.dtype).max / 2)
        if bool((fits & ~found.isfinite()).any()):
            return Finding("nan", number, told, f"{found.tolist()} for {right.tolist()}"[:300])
    return None


def fuzz(kind: str, cases: int, seed: int = 0) -> Iterator[Finding]:
    """The findings among so many cases of a kind, "losses" or "measures"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(cases):
            chance = random.Random(f"{kind} {seed} {number}")
            g = torch.Generator().manual_seed(chance.getrandbits(40))
            if found := bad(number, CASES[kind](chance, g)):
                yield found


def main() -> int:
    """Print the findings of the command line; 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    jaxtyping.config.update("jaxtyping_disable", True)
    total = 0
    for kind in CASES:
        found = list(fuzz(kind, options.cases, options.seed))
        total += len(found)
        sys.stdout.write(f"{kind}: {options.cases} cases, {len(found)} findings\n")
        for finding in found[:40]:
            sys.stdout.write(f"  {finding.kind} {finding.number} {finding.case}: {finding.what}\n")
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
