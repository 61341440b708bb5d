"""Theorem 1 and its per-class corollary over a grid of (delta, epsilon).

Main parts are found once for each delta, S_eps once for each epsilon.

    Theorem 1    q_l = sigma - R_eps / p_l
    per class    q_l = P[main and S_eps | class l]
    both         t   = stretch(delta) + 2 eps

The conditions (P), (T), (T') are checked together at every point. The values of the best point are
those of `theorem_1` and `per_class`. Main parts are cliques of the graphs d_A <= delta, of all
deltas at once. Huang et al. 2023, Definition 1 and Theorem 1; docs/derivations.md, 2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from marginlab.measures.graphs.cliques import largest_clique
from marginlab.measures.graphs.graphs import colouring, greedy_clique, matching
from marginlab.statistics import to_nearest_other
from marginlab.theory.bound import SLACK
from marginlab.theory.certificates.form import Form
from marginlab.theory.certificates.new_images import ROUNDING
from marginlab.theory.population import Population
from marginlab.theory.theorems.per_class import per_class
from marginlab.theory.theorems.theorem_1 import center_radius, rho_2, theorem_1

CONDITIONS = {"printed": "P", "distance": "T", "with_lengths": "T_lengths"}  # keys of forms


@dataclass(frozen=True, eq=False)
class Parts:
    """Main parts at each of T deltas.

    Attributes:
        members: Mask of the images in main parts.
        size: Size of each class's part.
        sigma: Least share of a class that its part holds.
        sigma_most: Upper bound of that least share for any parts.
        stretch: Stretch of each class's part.
    """

    members: Bool[Tensor, "T N"]
    size: Float[Tensor, "T C"]
    sigma: Float[Tensor, " T"]
    sigma_most: Float[Tensor, " T"]
    stretch: Float[Tensor, "T C"]


@dataclass(frozen=True, eq=False)
class Grid:
    """Theorem 1 over T deltas and E epsilons.

    Attributes:
        deltas: The deltas.
        epsilons: The epsilons.
        forms: Its three forms at their best points.
        holds: How many conditions hold at each point.
        bounds: (1 - sigma) + R_eps at each point.
    """

    deltas: Float[Tensor, " T"]
    epsilons: Float[Tensor, " E"]
    forms: tuple[Form, ...]
    holds: Int[Tensor, "T E"]
    bounds: Float[Tensor, "T E"]


def main_parts(
    population: Population,
    distances: Sequence[Float[Tensor, "_ _"]],
    deltas: Float[Tensor, " T"],
    nodes: int = 0,
) -> Parts:
    """Find a clique of each class and delta.

    The clique is greedy, or comes from a search of `nodes` steps where the lower and the upper
    bound of its size differ. The stretch is the size of the parts, as is right for distances of
    features. For pixels it must be replaced.

    Args:
        population: The population.
        distances: d_A within each class.
        deltas: The deltas.
        nodes: Steps of the search; 0 takes greedy cliques.
    """
    T, C = len(deltas), len(distances)
    members = torch.zeros(
        T, len(population.labels), dtype=torch.bool, device=population.labels.device
    )
    size, found, most = (population.f.new_zeros(T, C) for _ in range(3))
    for k, distance in enumerate(distances):
        own = (population.labels == k).nonzero()[:, 0]
        w = population.w[own] / population.p[k]
        largest = w.sort(descending=True).values.cumsum(0)
        graphs = distance <= deltas.to(distance.device)[:, None, None]
        vertices, upper = (
            greedy_clique(graphs),
            torch.minimum(colouring(graphs).amax(1) + 1, len(own) - matching(graphs)),
        )
        for t in range(T):
            part = vertices[t]
            if nodes and int(part.sum()) < int(upper[t]):
                clique = largest_clique(graphs[t], nodes=nodes)
                part, upper[t] = clique.vertices, clique.upper
            members[t, own[part]] = True
            size[t, k], found[t, k], most[t, k] = (
                distance[part][:, part].max(),
                w[part].sum(),
                largest[int(upper[t]) - 1],
            )
    # sums of weights round: the share of a whole class is 1
    sigma = torch.where(found > 1 - SLACK, 1.0, found).amin(1)
    size += ROUNDING
    return Parts(members, size, sigma, most.clamp(max=1).amin(1), size)


def over_grid(
    population: Population, parts: Parts, deltas: Float[Tensor, " T"], epsilons: Float[Tensor, " E"]
) -> Grid:
    """Return Theorem 1 at its best over the grid, in each form.

    The best point has the least right side where the condition holds, or else the smallest rho.
    """
    E, p = len(epsilons), population.p
    aligned = population.diameters <= epsilons.to(p.device)[:, None]
    R = (~aligned).double().mv(population.w).clamp(0, 1)
    sigma, a = parts.sigma[:, None, None], R[:, None] / p
    t = (parts.stretch.amax(1)[:, None] + 2 * epsilons.to(p.device))[..., None]
    q = (sigma - a).clamp(min=0)
    lengths = population.gram.diagonal().clamp(min=0)
    flat = q.flatten(), t.expand_as(q).flatten()
    rho2, radius = (
        rho_2(*flat).view_as(q),
        center_radius(*flat, lengths.expand_as(q).flatten()).view_as(q),
    )
    printed = (2 * (1 - sigma) + a + sigma * t).amax(-1)
    threshold = 1 - printed - (2 * printed).sqrt() - (1 - lengths.min()) / 2
    product = population.gram.masked_fill(
        torch.eye(len(p), dtype=torch.bool, device=p.device), -math.inf
    ).max()
    near = to_nearest_other(population.centers).square()
    true = [
        product + SLACK < threshold,
        *((near - 4 * x.square()).amin(-1) > SLACK for x in (rho2, radius)),
    ]
    rho, bounds = [printed, rho2.amax(-1), radius.amax(-1)], 1 - parts.sigma[:, None] + R
    forms = []
    for name, certain, far in zip(CONDITIONS, true, rho, strict=True):
        rank = zip(
            (~certain).flatten().tolist(),
            torch.where(certain, bounds, 0.0).flatten().tolist(),
            far.flatten().tolist(),
            strict=True,
        )
        i, j = divmod(min(enumerate(rank), key=lambda at: at[1])[0], E)
        epsilon = float(epsilons[j])
        theorem = theorem_1(
            p=p,
            gram=population.gram,
            sigma=float(parts.sigma[i]),
            R_epsilon=float(R[j]),
            epsilon=epsilon,
            stretch=float(parts.stretch[i].max()),
            error=population.error,
        )
        reach = theorem.rho2 if name == "distance" else theorem.radius
        room = (
            theorem.threshold - product
            if name == "printed"
            else (to_nearest_other(population.centers) - 2 * reach).min()
        )
        forms.append(
            Form(
                CONDITIONS[name],
                getattr(theorem, name),
                delta=float(parts.size[i].max()),
                epsilon=epsilon,
                outside=1 - float(parts.sigma[i]),
                outside_least=1 - float(parts.sigma_most[i]),
                R_epsilon=float(R[j]),
                rho=float(far[i, j]),
                margin=float(room),
                union=min(population.probability(~(parts.members[i] & aligned[j])), 1.0),
            )
        )
    P, distance, lengthy = true
    holds = torch.where(P, 3, torch.where(distance, 2, lengthy.long()))
    return Grid(deltas, epsilons, tuple(forms), holds.cpu(), bounds.cpu())


def class_by_class(population: Population, parts: Parts, epsilons: Float[Tensor, " E"]) -> Form:
    """Return the corollary per class, each class at the point of the grid that costs it least."""
    p, C, device = population.p, len(population.p), population.p.device
    e = epsilons.to(device)
    aligned = (population.diameters <= e[:, None]).double()
    inside, q = (
        parts.members.double() * population.w,
        population.f.new_zeros(len(parts.sigma), len(e), C),
    )
    for k in range(C):
        own = population.labels == k
        q[..., k] = inside[:, own] @ aligned[:, own].T / p[k]
    q = q.clamp(0, 1)
    q = torch.where(q > 1 - SLACK, 1.0, q)
    t = parts.stretch[:, None] + 2 * e[:, None]
    radius = center_radius(
        q.flatten(), t.flatten(), population.gram.diagonal().clamp(min=0).expand_as(q).flatten()
    ).view_as(q)
    held = to_nearest_other(population.centers).square() - 4 * radius.square() > SLACK
    best, at = torch.where(held, q, 0.0).flatten(0, 1).max(0)
    i, j = at // len(e), at % len(e)
    some = best > 0
    every = torch.arange(C, device=device)
    epsilon, stretch = torch.where(some, e[j], 0.0), torch.where(some, parts.stretch[i, every], 0.0)
    result = per_class(
        p=p, gram=population.gram, q=best, epsilon=epsilon, stretch=stretch, error=population.error
    )
    room = to_nearest_other(population.centers) - 2 * result.radius
    if not bool(result.holds.any()):
        return Form("per_class", result.bound, margin=float(room.max()))
    sigma = torch.stack([population.share(parts.members[i[k]])[k] for k in range(C)]).clamp(0, 1)
    unaligned = population.share(population.diameters > epsilon[population.labels]).clamp(0, 1)
    counted = p * result.holds
    return Form(
        "per_class",
        result.bound,
        outside=float(counted @ (1 - sigma)),
        R_epsilon=float(counted @ unaligned),
        margin=float(room[result.holds].min()),
    )


def quantiles(values: Sequence[Float[Tensor, "..."]], points: int) -> Float[Tensor, " T"]:
    """Return a grid of the positive values at quantiles, finer where they are larger.

    Example:
        >>> quantiles([torch.tensor([[0.0, 1.0], [2.0, 4.0]])], points=3)
        tensor([1.0000, 2.8284, 4.0000], dtype=torch.float64)
    """
    flat = torch.cat([v.flatten() for v in values]).double()
    flat = flat[flat > 0] if bool((flat > 0).any()) else flat[:1]
    if len(flat) > 1_000_000:
        flat = flat[:: len(flat) // 1_000_000 + 1]
    grid: Tensor = (
        torch.quantile(
            flat, torch.linspace(0, 1, points, dtype=torch.float64, device=flat.device).sqrt()
        )
        .unique()
        .cpu()
    )
    return grid
