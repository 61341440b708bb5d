"""Lipschitz constants from below: difference quotients between views, and norms of the Jacobian.

    L  >=  max over pairs of views of || f(x_u) - f(x_v) || / || x_u - x_v ||
    L  >=  max over images of || J(x) ||,  J the Jacobian matrix

Huang et al., ICLR 2023, section 2, ask that || f(x) - f(y) || <= L || x - y || for all inputs. What
is seen is at most that L. The norm of J is found by power iteration on J^T J (products with J and
J^T only, no matrix). || J v || for a unit v never exceeds the norm, so a search that is stopped
early is still a lower estimate. Both miss what lies between: a network that bends sharply between
views has a larger L. From above: spectral_bound.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from marginlab.kernels import BUDGET
from marginlab.measures.anchors.anchor_points import check_views
from marginlab.measures.measure import Measure, check_features, constant, prepared, rows, same_views
from marginlab.rng import Key
from marginlab.statistics.distances import EXACTLY


class LipschitzResult(NamedTuple):
    """`L`, the largest quotient seen, and the quotients of each image.

    `L` is a LOWER estimate of the Lipschitz constant. It grows with images and views, and has no
    standard error. `ratios` (N,) are the largest quotients among the views of each image, in order
    of arrival; they are 0 where an image's views all coincide. `mean` is their mean, and
    `standard_error` its error over images (NaN for one). `left_out` pairs of views were too close
    to be divided by.
    """

    L: Float[Tensor, ""]
    mean: Float[Tensor, ""]
    standard_error: Float[Tensor, ""]
    ratios: Float[Tensor, " N"]
    left_out: int
    n: int
    V: int
    meaning: str


class Ratios(NamedTuple):
    """Largest quotient among the views of each image, and the number of its pairs left out.

    Quotients are float64. Pairs of views are left out if they are too close.
    """

    ratios: Float[Tensor, " N"]
    left_out: Int[Tensor, " N"]


def lipschitz_ratios(
    views: Float[Tensor, "N V *P"],
    features: Float[Tensor, "N V D"],
    *,
    normalize: bool = True,
    closest: float = 1e-3,
    budget: int = BUDGET,
) -> Ratios:
    """Return the largest || f(x_u) - f(x_v) || / || x_u - x_v || among the views of each image.

    Distances are taken by differences in float64. For pairs across images give all views as those
    of one: `lipschitz_ratios(views.flatten(0, 1)[None], features.flatten(0, 1)[None])`.

    Args:
        views: x in [0, 1], or inputs of any kind.
        features: f(x).
        normalize: Scale features to length 1 first, so that L is that of the normalised encoder
            (the theory's r = 1).
        closest: Pairs of views at most this far apart are left out, because rounding of the
            features would be divided by next to nothing.
        budget: Bytes of a block of distances.

    Raises:
        ValueError: There are fewer than 2 views, shapes do not fit, or values are not finite.

    Example:
        >>> x = torch.tensor([[[0.0, 0.0], [0.0, 0.5], [0.0, 1.0]]])
        >>> lipschitz_ratios(x, torch.tensor([[[0.0], [2.0], [2.5]]]), normalize=False).ratios
        tensor([4.], dtype=torch.float64)
    """
    check_features(features, fewest_views=2)
    if views.shape[:2] != features.shape[:2]:
        raise ValueError(
            f"views of shape {tuple(views.shape)} and features of shape {tuple(features.shape)} "
            "are not of the same images and views."
        )
    check_views(views, torch.zeros(len(views), dtype=torch.int64))
    if not 0 <= closest < float("inf"):
        raise ValueError(
            f"Views at most `closest` apart are left out: a distance, at least 0, not {closest}."
        )
    V = views.shape[1]
    largest, left_out = (
        [views.new_zeros(0, dtype=torch.float64)],
        [torch.zeros(0, dtype=torch.int64, device=views.device)],
    )
    images = max(budget // (32 * V * V), 1)
    step = max(budget // (32 * V * images), 1)
    for x, y in zip(views.detach().flatten(2).split(images), features.split(images), strict=True):
        x, y = x.double(), prepared(y, normalize)
        best, few = x.new_zeros(len(x)), torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for u in torch.arange(V, device=x.device).split(step):
            apart, moved = (torch.cdist(z[:, u], z, compute_mode=EXACTLY) for z in (x, y))
            before = u[:, None] > torch.arange(V, device=x.device)  # counts each pair once
            counted = before & (apart > closest)
            best = torch.maximum(best, torch.where(counted, moved / apart, 0.0).amax((1, 2)))
            few += (before & ~counted).sum((1, 2))
        largest.append(best)
        left_out.append(few)
    return Ratios(torch.cat(largest), torch.cat(left_out))


class LipschitzRatio(Measure):
    """L from below, from views (N, V, ...) and their features (N, V, D), with V >= 2.

    It streams, merges and reduces over ranks. Pairs are those of the views of one image. One
    float64 number is kept of each image.

    Args:
        normalize: Scale features to length 1 first, as in `lipschitz_ratios`.
        closest: Leave out pairs of views at most this far apart, as in `lipschitz_ratios`.
        kwargs: Keyword arguments of torchmetrics.Metric.

    Raises:
        ValueError: There are fewer than 2 views or another number of views than before, shapes do
            not fit, values are not finite, or nothing was measured.

    Example:
        >>> measure = LipschitzRatio(normalize=False)
        >>> views = torch.tensor([[[0.0], [0.5]], [[0.0], [1.0]]])
        >>> measure.update(views, torch.tensor([[[0.0], [2.0]], [[1.0], [4.0]]]))
        >>> float(measure.compute().L), float(measure.compute().mean)
        (4.0, 3.5)
    """

    ratio: list[Tensor]
    left_out: Tensor
    views: Tensor

    def __init__(self, normalize: bool = True, *, closest: float = 1e-3, **kwargs: Any):
        super().__init__(**kwargs)
        self.normalize, self.closest = normalize, closest
        self.add_state("ratio", default=[], dist_reduce_fx="cat")
        self.add_state("left_out", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("views", default=torch.zeros(1, dtype=torch.int64), dist_reduce_fx=constant)

    def update(self, views: Float[Tensor, "N V *P"], features: Float[Tensor, "N V D"]) -> None:
        """Take V views of N more images and their features."""
        ratios, left_out = lipschitz_ratios(
            views, features, normalize=self.normalize, closest=self.closest
        )
        self.views = same_views(features, self.views)
        self.ratio.append(ratios)
        self.left_out = self.left_out + left_out.sum()

    def compute(self) -> LipschitzResult:
        """Return the result, over all ranks under a process group."""
        ratios = rows(self.ratio, torch.zeros(0, dtype=torch.float64, device=self.left_out.device))
        n, V, left_out = len(ratios), int(self.views), int(self.left_out)
        if n == 0:
            raise ValueError(
                "LipschitzRatio has seen no image yet: call update(views, features) first."
            )
        return LipschitzResult(
            L=ratios.max(),
            mean=ratios.mean(),
            standard_error=ratios.std() / n**0.5
            if n > 1
            else torch.full_like(ratios[0], torch.nan),
            ratios=ratios,
            left_out=left_out,
            n=n,
            V=V,
            meaning=(
                f"L is the largest of {n * V * (V - 1) // 2 - left_out} quotients between views of "
                f"one image ({n} images, {V} views; {left_out} pairs at most {self.closest:g} "
                f"apart left out), features {'of length 1' if self.normalize else 'as they are'}: "
                "a LOWER estimate of the Lipschitz constant, growing with N and V. The standard "
                "error is that of the mean."
            ),
        )


def jacobian_norms(
    encoder: Callable[[Tensor], Tensor],
    images: Float[Tensor, "N *P"],
    *,
    steps: int = 20,
    seed: int = 0,
    tolerance: float = 1e-4,
) -> Float[Tensor, " N"]:
    """Return the largest singular value of the encoder's Jacobian matrix at each image, from below.

    The norms are (N,), in the dtype of the images. L of the encoder is at least the largest of
    them, wherever it has a derivative (at a kink of ReLU torch's choice need not be one). The graph
    of one pass over all images is held, so give few at a time.

    Args:
        encoder: Maps images (N, ...) to features (N, ...), each image by itself: a network in
            evaluation mode, or any function of one.
        images: The images.
        steps: Most steps of power iteration; each costs two backward passes.
        seed: Seed of the first direction. It is the same for all images, so an image's answer does
            not depend on the others.
        tolerance: Iteration ends when no norm grows by more than this fraction.

    Raises:
        ValueError: The network is in training mode, the features have no derivative, or there is no
            step.

    Example:
        >>> A = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> jacobian_norms(lambda x: x @ A, torch.zeros(2, 2)).round(decimals=3)
        tensor([3., 3.])
    """
    if isinstance(encoder, nn.Module) and encoder.training:
        raise ValueError(
            "A network in training mode is no function of one image: batch normalisation sees the "
            "others. Call .eval() first."
        )
    if steps < 1:
        raise ValueError(f"Power iteration takes at least one step, not {steps}.")
    place = torch.arange(images[:1].numel(), device=images.device)
    v = (
        Key(seed)
        .named("jacobian")
        .at(place)
        .normal()
        .to(images.dtype)
        .view(images.shape[1:])
        .expand(images.shape)
    )
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        y = encoder(x)
        if not y.requires_grad:
            raise ValueError(
                "The features have no derivative by the images. Give an encoder that does not "
                "switch it off (torch.no_grad, detach)."
            )
        u = torch.zeros_like(y, requires_grad=True)
        # J^T u is linear in u, and its derivative with respect to u gives J
        (pulled,) = torch.autograd.grad(y, x, u, create_graph=True)
    norms = images.new_zeros(len(images))
    for _ in range(steps):
        v = v / v.flatten(1).norm(dim=1).clamp(min=torch.finfo(v.dtype).tiny).view(
            -1, *[1] * (v.ndim - 1)
        )
        (moved,) = torch.autograd.grad(pulled, u, v, retain_graph=True)
        before, norms = norms, torch.maximum(norms, moved.flatten(1).norm(dim=1))
        if bool((norms <= before * (1 + tolerance)).all()):
            break
        (v,) = torch.autograd.grad(y, x, moved, retain_graph=True)
    return norms
