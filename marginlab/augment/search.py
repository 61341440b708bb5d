"""A sharpened augmented distance: a search for nearer views, from the nearest sampled ones.

    d_A(x, y) = min over all views x' of x, y' of y of || x' - y' ||
                                                            Huang et al., ICLR 2023, eq. 1

Over V sampled views the minimum is an upper estimate that still falls with V. The sharpened
distance is an upper estimate as well, but it starts where the sampled one ends. A view is named by
its parameters, so the minimum is over parameters a of x and b of y, inside the support of the
draws. A round does two things:

    proposals   P new a and P new b, most near the best ones, some drawn afresh; of all (P + 1)^2
                pairs of views the nearest is kept
    descent     r = x'(a) - y'(b) is nearly linear in the factors z = (a, b) that vary
                continuously. With its Jacobian J by differences, z becomes
                    z - (J'J + l I)^-1 J'r
                for two dampings l (Levenberg, 1944; Marquardt, 1963), clamped to its ranges, kept
                where nearer

Descent has at most ten unknowns for thousands of pixels, so it needs fewer steps than a gradient
would, and saves more than its steps cost. In a trial of each alone (CIFAR-10, ad, 120 pairs), four
of its steps bring the distance to 0.65 of the sampled one in 2.1 ms a pair, ten gradient steps with
line search to 0.68 in 5.2 ms. The table is of the whole search: the mean of distance / that of V =
32 sampled views, and ms a pair on one core of a CPU (240 pairs of the first 60 training images of
class 3, seed 1000003 of the views and 0 of the search). The default is 8 x 8, and the last column
has V = 256 sampled views instead of a search:

    rounds x proposals     2 x 8        4 x 8       8 x 8       8 x 16       32 x 16      V = 256
    ad                  0.59, 3.6    0.51, 6.6    0.46, 13     0.42, 24     0.33, 70        0.68
    ac                  0.82, 1.0    0.74, 1.7    0.65, 3.3    0.57, 7.7    0.45, 34        0.70
    bc                  0.997, 0.9                0.996, 3.8                0.996, 34       0.996
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor

from marginlab.augment.augmentation import Augmentation
from marginlab.augment.operation import Searchable
from marginlab.augment.pairs import Pairs, each, total, where
from marginlab.augment.pieces import in_threads
from marginlab.rng import Key
from marginlab.statistics.distances import EXACTLY

# bytes of views proposed at once: larger batches save no more overhead; 2**20 takes twice as long
BATCH = {"cpu": 2**23, "cuda": 2**29}
CYCLE = 8  # proposals have 7 different steps, and every eighth is drawn afresh
# steps in the first round, in units of a parameter's range; in the last they are a third of that
WIDEST, NARROWEST = 0.2, 0.05
# of a range, for J: large against the rounding of float32 pixels, small against what bends
DIFFERENCE = 1e-3
Images = UInt8[Tensor, "M 3 H W"] | Float[Tensor, "M 3 H W"]
Parameters = Mapping[str, tuple[Tensor, ...]]


class Sharpened(NamedTuple):
    """The nearest views found of M pairs of images, by their parameters; all on the CPU."""

    distance: Float64[Tensor, " M"]  # of apply(x, .x) and apply(y, .y), by differences in float64
    start: Float64[Tensor, " M"]  # of the views the search started from; never smaller
    x: dict[str, tuple[Tensor, ...]]  # by name of the operation a NamedTuple of (M, 1) tensors
    y: dict[str, tuple[Tensor, ...]]


def sharpen(
    augmentation: Augmentation,
    x: Images,
    y: Images,
    start_x: Parameters,
    start_y: Parameters,
    *,
    rounds: int = 8,
    proposals: int = 8,
    seed: int = 0,
    index: Int[Tensor, " M"] | None = None,
) -> Sharpened:
    """Search the views of M pairs of images for nearer ones than given: an upper estimate of d_A.

    The distance is at most the given one. The parameters found are the given ones or lie in the
    support of the draws: whole-pixel boxes of sides that are drawn, factors in their ranges, coins
    that can fall so. An operation of the user's that is no `operation.Searchable` is searched by
    its draws alone. Draws are named by seed, round, side, pair and proposal: a pair gives the same
    alone as among others, on a CPU bit for bit. More rounds or proposals find nearer views.
    Distances still fall slowly at many times the default, so the word is sharpened, not converged.

    Args:
        augmentation: The set of views.
        x, y: The first and second image of each pair, (M, 3, H, W), uint8 or floating in [0, 1], on
            any device.
        start_x, start_y: The parameters to start from, as `Augmentation.drawn` returns them.
        rounds, proposals: The length of the search. A round makes 2 * proposals views of a pair,
            and 4 more and two for each continuous factor.
        seed: The seed of the search; that of the views may be the same.
        index: Numbers of the pairs, by default 0..M-1; the draws depend on them.

    Raises:
        ValueError, TypeError: Images, parameters or numbers of pairs that do not fit each other,
            images out of range, no proposals.

    Example:
        >>> images, augmentation = torch.rand(2, 3, 16, 16), Augmentation("ad")
        >>> view = torch.tensor([0, 5])  # image 0 itself, draw 5 of image 1
        >>> start = augmentation.drawn(torch.arange(2), view, size=(16, 16))
        >>> one, other = (
        ...     {name: type(drawn)(*(f[m : m + 1] for f in drawn)) for name, drawn in start.items()}
        ...     for m in (0, 1)
        ... )
        >>> found = sharpen(augmentation, images[:1], images[1:], one, other, rounds=2)
        >>> bool(found.distance < found.start)
        True
        >>> x, y = augmentation.apply(images[:1], found.x), augmentation.apply(images[1:], found.y)
        >>> bool((torch.dist(x.double(), y.double()) - found.distance).abs() < 1e-9)
        True
    """
    M = len(x)
    if x.shape != y.shape:
        raise ValueError(
            f"x and y hold the two images of each pair and have one shape, not {tuple(x.shape)} "
            f"and {tuple(y.shape)}."
        )
    for name, start in (("start_x", start_x), ("start_y", start_y)):
        if shapes := {tuple(field.shape) for drawn in start.values() for field in drawn} - {(M, 1)}:
            raise ValueError(
                f"{name} holds parameters of one view of each of {M} images, ({M}, 1), not of "
                f"shape {min(shapes)}."
            )
    if rounds < 0 or proposals < 1:
        raise ValueError(
            f"rounds is at least 0 and proposals at least 1, not {rounds} and {proposals}."
        )
    index = torch.arange(M) if index is None else index.cpu()
    if index.shape != (M,):
        raise ValueError(
            f"index holds one number for each of {M} pairs, but has the shape {tuple(index.shape)}."
        )
    # written to, so copies also where the caller's tensors lie on the CPU
    found = [
        each(lambda f: f.detach().cpu().clone(memory_format=torch.contiguous_format), start)
        for start in (start_x, start_y)
    ]
    distance, before = torch.empty(M, dtype=torch.float64), torch.empty(M, dtype=torch.float64)
    size = (x.shape[2], x.shape[3])

    @torch.no_grad()
    def work(places: Tensor) -> None:
        there = places.to(x.device)
        sides = [each(lambda f: f[places], side) for side in found]
        pairs = Pairs(augmentation, (x[there], y.to(x.device)[there]), sides)
        before[places] = pairs.square.sqrt()
        for number in range(rounds):
            key = Key(seed).named("sharpen", number)
            _propose(
                pairs, key, index[places], size, proposals, 3.0 ** (-number / max(rounds - 1, 1))
            )
            _descend(pairs, size)
        distance[places] = pairs.square.sqrt()
        for side, sharper in zip(found, pairs.parameters, strict=True):
            for name, fields in side.items():
                for field, new in zip(fields, sharper[name], strict=True):
                    field[places] = new

    batch = max(
        1,
        BATCH["cpu" if x.device.type == "cpu" else "cuda"] // max(4 * x[:1].numel() * proposals, 1),
    )
    in_threads(work, list(torch.arange(M).split(batch)) if M else [], x.device)
    return Sharpened(distance, before, found[0], found[1])


def _propose(
    pairs: Pairs, key: Key, index: Tensor, size: tuple[int, int], proposals: int, scale: float
) -> None:
    """Propose new parameters of both sides, and keep the nearest of all pairs of views.

    The present views are among the pairs.
    """
    number = torch.arange(proposals)
    step = scale * WIDEST * (NARROWEST / WIDEST) ** (number % CYCLE / (CYCLE - 2))
    parameters, views = [], []
    for side in (0, 1):
        present, at = pairs.parameters[side], key.named(side).at(index[:, None], number)
        new = {}
        for operation in pairs.augmentation.composed:
            name = type(operation).__name__
            drawn, old = operation.draw(at, size), present[name]
            if isinstance(operation, Searchable):
                near = operation.near(old, at, size, step)
            else:
                near = where(at.named(name, "redrawn").uniform() < step, drawn, old)
            new[name] = where(number % CYCLE == CYCLE - 1, drawn, near)
        views.append(
            torch.cat([pairs.views[side], pairs.augmentation.apply(pairs.images[side], new)], 1)
        )
        parameters.append(
            {name: type(old)(*map(_joined, old, new[name])) for name, old in present.items()}
        )
    x, y = (v.flatten(2) for v in views)
    # by differences, each pair of views by itself: a matrix product would round differently for
    # other numbers of pairs
    nearest = torch.cdist(x, y, compute_mode=EXACTLY).flatten(1).argmin(1).cpu()
    pairs.take(parameters, views, (nearest // y.shape[1], nearest % y.shape[1]))


def _descend(pairs: Pairs, size: tuple[int, int]) -> None:
    """Take one damped Gauss-Newton step in the continuous parameters of both sides.

    The step is computed at two dampings.
    """
    varied = [
        (type(operation).__name__, field, low, high)
        for operation in pairs.augmentation.composed
        if isinstance(operation, Searchable)
        for field, (low, high) in operation.intervals().items()
        if low < high
    ]
    if not varied:
        return
    F = len(varied)
    low, high = (
        torch.tensor([interval[i] for interval in varied], dtype=torch.float64) for i in (2, 3)
    )

    def views(side: int, z: Tensor) -> tuple[dict[str, Any], Tensor]:
        """Return parameters and their views, with the continuous ones in z (M, P, F).

        z is in units of the parameters' ranges.
        """
        parameters = each(lambda f: f.expand(-1, z.shape[1]), pairs.parameters[side])
        for k, (name, field, _, _) in enumerate(varied):
            number = getattr(parameters[name], field)
            parameters[name] = parameters[name]._replace(
                **{field: (low[k] + z[..., k] * (high[k] - low[k])).to(number.dtype)}
            )
        return parameters, pairs.augmentation.apply(pairs.images[side], parameters)

    present, columns, inside = [], [], []
    for side in (0, 1):
        value = torch.stack(
            [getattr(pairs.parameters[side][name], field)[:, 0] for name, field, _, _ in varied], 1
        )
        z = (value.double() - low) / (high - low)
        away = torch.where(z > 0.5, -DIFFERENCE, DIFFERENCE)  # inwards
        _, moved = views(side, z[:, None] + torch.diag_embed(away))
        columns.append(
            (moved - pairs.views[side]) * ((1 - 2 * side) / away).to(moved)[..., None, None, None]
        )
        present.append(z)
        inside.append(_supported(pairs.augmentation, pairs.parameters[side], size).expand(-1, F))
    J, r, z = torch.cat(columns, 1), pairs.views[0] - pairs.views[1], torch.cat(present, 1)
    gradient = total(J * r).cpu().double()
    hessian = J.new_zeros(len(z), 2 * F, 2 * F)
    for k in range(2 * F):  # elementwise, again so that a pair is rounded as it is alone
        hessian[:, k, k:] = hessian[:, k:, k] = total(J[:, k:] * J[:, k : k + 1])
    # a number at an end of its range that would leave it stays where it is, and so do all of a
    # given view that no draw gives float32 ends lie a rounding inside or outside
    free = torch.cat(inside, 1) & ~((z <= 1e-6) & (gradient > 0) | (z >= 1 - 1e-6) & (gradient < 0))
    dampings = torch.tensor([0.3, 10.0], dtype=torch.float64) * pairs.damping[:, None]
    H = hessian.cpu().double() * (free[:, None] & free[:, :, None])
    mean = H.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) / (2 * F)
    damped = H[:, None] + torch.diag_embed(
        (dampings * mean + 1e-9)[..., None] + (~free[:, None]).double()
    )
    new = (z[:, None] - _solve(damped, (gradient * free)[:, None].expand(-1, 2, -1))).clamp(0, 1)
    new = torch.where(free[:, None], new, z[:, None])
    (first, x), (second, y) = views(0, new[..., :F]), views(1, new[..., F:])
    chosen = total((x.double() - y.double()).square()).argmin(1).cpu()
    nearer = pairs.take([first, second], [x, y], (chosen, chosen))
    factor = torch.where(nearer, torch.where(chosen == 0, 0.3, 3.0).double(), 10.0)
    pairs.damping = (pairs.damping * factor).clamp(1e-6, 1e3)


def _supported(
    augmentation: Augmentation, parameters: dict[str, Any], size: tuple[int, int]
) -> Tensor:
    """Return whether draws can give these parameters (M, 1).

    An operation that is not `Searchable` takes its parameters from draws.
    """
    operations = [
        operation for operation in augmentation.composed if isinstance(operation, Searchable)
    ]
    return torch.stack(
        [operation.supports(parameters[type(operation).__name__], size) for operation in operations]
    ).all(0)


def _solve(A: Float64[Tensor, "M L n n"], b: Float64[Tensor, "M L n"]) -> Float64[Tensor, "M L n"]:
    """Solve positive definite systems by elimination, which needs no pivots for them.

    The arithmetic is elementwise, so that each system is rounded as it is alone.
    """
    A, b = A.clone(), b.clone()
    for k in range(b.shape[-1]):
        row, right = A[..., k, :] / A[..., k, k, None], b[..., k] / A[..., k, k]
        factor = A[..., :, k].clone()
        A, b = A - factor[..., None] * row[..., None, :], b - factor * right[..., None]
        A[..., k, :], b[..., k] = row, right
    return b


def _joined(old: Tensor, new: Tensor) -> Tensor:
    return torch.cat([old, new.expand(len(old), -1)], 1)
