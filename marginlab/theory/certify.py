"""`certify`: every bound of the nearest-center error that the theory gives, computed of an encoder's features, and what each of its terms costs.

    Theorem 1         Err(G_f) <= (1 - sigma) + R_eps       under (P), (T) or (T'), best over a grid of (delta, epsilon)
    per class         Err(G_f) <= sum over classes that hold of p_l (1 - q_l), over others of p_l      each class at its own best point of the grid
    fixed centers     P[nearest c wrong] <= the same sum, with delta_k and epsilon_k chosen to make it least
    companion         P[a view is read wrong] <= sum_k p_k min(1, 4 V_k / min ||mu_k - mu_l||^2)       no condition

on features of length one (r = 1), with delta in feature space, so that no Lipschitz constant enters; given pixels, Theorem 1 also in the pixel form,
with L delta replaced by the largest distance observed. Huang et al. 2023, sections 2 and 3; the corollaries: docs/derivations.md, 2.

Of which images. A bound computed from V views of N images is exact for the finite population that they make, and optimistic for views that were not
drawn. For new images only the form with fixed centers says something: `marginlab.theory.new_images`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from marginlab.kernels import BUDGET
from marginlab.kernels.minimum import minimum
from marginlab.measures.cliques import largest_clique
from marginlab.theory.bound import Bound
from marginlab.theory.certificate import Certificate, Form
from marginlab.theory.companion import companion
from marginlab.theory.fixed_centers import fixed_centers
from marginlab.theory.main_parts import observed_stretch
from marginlab.theory.new_images import ROUNDING, fix_centers, of_new, unit
from marginlab.theory.per_class import per_class
from marginlab.theory.population import Population
from marginlab.theory.theorem_1 import Theorem1, theorem_1

GRID = 12  # points of each axis of the default grid


@dataclass(frozen=True, eq=False)
class _Parts:
    """Main parts at one delta: members (N,), the size of each class's part (C,), and bounds of the share of a class that a largest part holds."""

    members: Tensor
    size: Tensor
    sigma: float
    sigma_most: float
    stretch: Tensor


def certify(
    features: Float[Tensor, "N V D"],
    labels: Int[Tensor, " N"],
    views: Num[Tensor, "N V 3 H W"] | None = None,
    images: Num[Tensor, "N 3 H W"] | None = None,
    *,
    new: tuple[Float[Tensor, "M W D"], Int[Tensor, " M"]] | None = None,
    deltas: Sequence[float] | None = None,
    epsilons: Sequence[float] | None = None,
    confidence: float = 0.95,
    v_curve: bool = True,
    nodes: int = 0,
    budget: int = BUDGET,
) -> Certificate:
    """What the theory certifies of an encoder from V views of N images, the image itself first.

    Parameters
    ----------
    features: of the views; they are given length one here.
    labels: classes, in any numbering; every one has an image.
    views, images: the pixels of both, for the pixel form; that the first view is the image is checked then, and is otherwise the caller's word.
    new: features and labels of other images, for which the form with fixed centers is certified; their first view is the image as well.
    deltas, epsilons: the grid; by default quantiles of the distances within classes, and of the largest distances between views of an image.
    confidence: of what is said of new images.
    v_curve: compute the certificate also of the first 2, 4, 8, ... views.
    nodes: of the search for the largest main parts (`largest_clique`); 0 takes greedy ones, which a search improves little.
    budget: bytes of a block of distances.

    >>> g = torch.Generator().manual_seed(0)
    >>> centers = torch.eye(3).repeat_interleave(20, 0)[:, None]
    >>> features = centers + 0.03 * torch.randn(60, 1, 3, generator=g) + 0.01 * torch.randn(60, 4, 3, generator=g)
    >>> certificate = certify(features, torch.arange(3).repeat_interleave(20))
    >>> certificate.error, certificate["(T), distances"].bound.certifies
    (0.0, True)

    Raises
    ------
    ValueError: shapes that do not fit, fewer than two views or classes, features that are zero or not finite, a first view that is not the image,
        new images of a class that is not among the others, a grid or confidence that makes no sense.

    """
    f, y, pixels, names = _checked(features, labels, views, images, deltas, epsilons, confidence)
    population = Population(f, y)
    within = _distances(population, budget)
    grid_d = torch.as_tensor(deltas if deltas is not None else _quantiles(within), dtype=torch.float64)
    grid_e = torch.as_tensor(epsilons if epsilons is not None else _quantiles([population.diameters]), dtype=torch.float64)
    forms, holds, bounds = _of_population(population, within, grid_d, grid_e, nodes)
    reach = fix_centers(population)
    curve = {}
    if v_curve:
        for V in _levels(f.shape[1]):
            few = Population(f[:, :V], y)
            again = forms if f.shape[1] == V else _of_population(few, _distances(few, budget), grid_d, grid_e, nodes)[0]
            curve[V] = {form.name: form.value for form in again}
    if pixels is not None:
        forms += _pixel_form(population, pixels, grid_e, nodes, budget)
    new_error, count = (math.nan, math.nan), 0
    if new is not None:
        more, new_error, count = of_new(reach, new, names, confidence)
        forms += more
    return Certificate(
        tuple(forms), population.error, new_error, len(population.p), len(f), f.shape[1], count, confidence, grid_d, grid_e, holds, bounds, curve
    )


def _distances(population: Population, budget: int) -> list[Tensor]:
    """The augmented distances between the images of each class."""
    return [minimum(population.f[population.labels == k], budget=budget).distance[0] for k in range(len(population.p))]


def _of_population(
    population: Population, distances: list[Tensor], deltas: Tensor, epsilons: Tensor, nodes: int
) -> tuple[list[Form], Tensor, Tensor]:
    """The forms of a finite population, with delta in feature space, and the maps of where they hold."""
    parts = [_main_parts(population, distances, float(delta), nodes) for delta in deltas]
    theorem, holds, bounds = _best_of_grid(population, parts, deltas, epsilons)
    reach = fix_centers(population)
    near = (population.f - reach.centers[population.labels, None]).norm(dim=-1).amin(1)
    own = (near <= reach.delta[population.labels] / 2) & (population.diameters <= reach.epsilon[population.labels])
    q = population.share(own).clamp(0, 1)
    fixed = fixed_centers(p=population.p, centers=reach.centers, q=q, delta=reach.delta, epsilon=reach.epsilon, error=population.error).bound
    spread = companion(p=population.p, gram=population.gram, within=population.within, view_error=population.view_error)
    return [*theorem, _per_class(population, parts, epsilons), Form(fixed), Form(spread)], holds, bounds


def _main_parts(population: Population, distances: list[Tensor], delta: float, nodes: int) -> _Parts:
    members = torch.zeros_like(population.labels, dtype=torch.bool)
    sizes, found, most = [], [], []
    for k, distance in enumerate(distances):
        own = (population.labels == k).nonzero()[:, 0]
        clique = largest_clique(distance <= delta, nodes=nodes)
        part = clique.vertices
        members[own[part]] = True
        sizes.append(float(distance[part][:, part].max()))
        found.append(float(population.w[own[part]].sum()) / float(population.p[k]))
        most.append(min(1.0, float(population.w[own].sort(descending=True).values[: clique.upper].sum()) / float(population.p[k])))
    size = population.f.new_tensor(sizes) + ROUNDING
    sigma = min(found)
    return _Parts(members, size, 1.0 if sigma > 1 - 1e-12 else sigma, min(most), size)


def _best_of_grid(population: Population, parts: list[_Parts], deltas: Tensor, epsilons: Tensor) -> tuple[list[Form], Tensor, Tensor]:
    holds = torch.zeros(len(parts), len(epsilons), dtype=torch.int64)
    bounds = torch.zeros(len(parts), len(epsilons), dtype=torch.float64)
    made: list[tuple[int, int, Theorem1]] = []
    for i, part in enumerate(parts):
        for j, epsilon in enumerate(epsilons.tolist()):
            theorem = _theorem_1(population, part, epsilon)
            certain = (not theorem.with_lengths.premise, not theorem.distance.premise, not theorem.printed.premise)
            holds[i, j] = 3 if certain[2] else 2 if certain[1] else int(certain[0])
            bounds[i, j] = theorem.printed.right
            made.append((i, j, theorem))
    forms = []
    for which in ("printed", "distance", "with_lengths"):
        # where none certifies, the point that comes nearest is shown: the smallest rho
        i, j, theorem = min(made, key=lambda at: _rank(getattr(at[2], which), _rho(at[2], which)))
        part, epsilon = parts[i], float(epsilons[j])
        form = Form(
            getattr(theorem, which), delta=float(part.size.max()), epsilon=epsilon, outside=1 - part.sigma, outside_least=1 - part.sigma_most,
            R_epsilon=min(population.R(epsilon), 1.0), rho=_rho(theorem, which),
        )  # fmt: skip
        forms.append(form)
    return forms, holds, bounds


def _theorem_1(population: Population, part: _Parts, epsilon: float, error: float | None = None) -> Theorem1:
    return theorem_1(
        p=population.p, gram=population.gram, sigma=part.sigma, R_epsilon=min(population.R(epsilon), 1.0), epsilon=epsilon,
        stretch=float(part.stretch.max()), error=population.error if error is None else error,
    )  # fmt: skip


def _rank(bound: Bound, rho: float) -> tuple[bool, float, float]:
    return (True, 0.0, rho) if bound.premise else (False, bound.right, rho)


def _rho(theorem: Theorem1, which: str) -> float:
    return float({"printed": theorem.rho, "distance": theorem.rho2, "with_lengths": theorem.radius}[which].max())


def _per_class(population: Population, parts: list[_Parts], epsilons: Tensor) -> Form:
    """Each class at the point of the grid that costs it least."""
    C = len(population.p)
    q, epsilon, stretch = (population.f.new_zeros(C) for _ in range(3))
    for part in parts:
        for e in epsilons.tolist():
            share = population.share(part.members & population.aligned(e)).clamp(0, 1)
            here = torch.full_like(q, e)
            held = per_class(p=population.p, gram=population.gram, q=share, epsilon=here, stretch=part.stretch).holds
            better = held & (share > q)
            q, epsilon, stretch = torch.where(better, share, q), torch.where(better, here, epsilon), torch.where(better, part.stretch, stretch)
    return Form(per_class(p=population.p, gram=population.gram, q=q, epsilon=epsilon, stretch=stretch, error=population.error).bound)


def _pixel_form(population: Population, views: Tensor, epsilons: Tensor, nodes: int, budget: int) -> list[Form]:
    """Theorem 1 with main parts by pixel distances, L delta replaced by the largest distance seen in a part."""
    distances = [minimum(views[population.labels == k].flatten(2), budget=budget).distance[0] for k in range(len(population.p))]
    deltas = _quantiles(distances)
    parts = []
    for delta in deltas.tolist():
        part = _main_parts(population, distances, delta, nodes)
        seen = observed_stretch(views, population.f, population.labels, part.members, budget=budget) + ROUNDING
        parts.append(replace(part, stretch=torch.full_like(part.size, seen)))
    forms = _best_of_grid(population, parts, deltas, epsilons)[0]
    return [replace(form, bound=replace(form.bound, name=f"{form.name}, pixels")) for form in forms]


def _levels(V: int) -> list[int]:
    """2, 4, 8, ..., V."""
    return [*(2**k for k in range(1, V.bit_length()) if 2**k < V), V]


def _quantiles(values: list[Tensor]) -> Tensor:
    """A grid of their positive values, finer where the smaller ones are."""
    flat = torch.cat([v.flatten() for v in values]).double()
    flat = flat[flat > 0] if bool((flat > 0).any()) else flat[:1]
    if len(flat) > 1_000_000:
        flat = flat[:: len(flat) // 1_000_000 + 1]
    grid: Tensor = torch.quantile(flat, torch.linspace(0, 1, GRID, dtype=torch.float64, device=flat.device).sqrt()).unique().cpu()
    return grid


def _checked(
    features: Tensor, labels: Tensor, views: Tensor | None, images: Tensor | None, deltas: Sequence[float] | None, epsilons: Sequence[float] | None,
    confidence: float,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:  # fmt: skip
    f = unit(features, "Features")
    if labels.shape != (len(f),):
        raise ValueError(f"Labels are one for each of {len(f)} images, not {tuple(labels.shape)}.")
    names, y = labels.unique(return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"A certificate is of at least two classes, not of {names.tolist()}.")
    for name, grid in (("deltas", deltas), ("epsilons", epsilons)):
        if grid is not None and (len(grid) == 0 or not all(0 <= value < math.inf for value in grid)):
            raise ValueError(f"{name} are distances, at least one, not {list(grid)}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is between 0 and 1, not {confidence}.")
    if (views is None) != (images is None):
        raise ValueError("Views and images are given together: the first view of each image has to be the image itself, and that is checked.")
    if views is None or images is None:
        return f, y, None, names
    if views.shape[:2] != f.shape[:2] or images.shape != (len(views), *views.shape[2:]):
        raise ValueError(f"Views {tuple(views.shape)} and images {tuple(images.shape)} are those of the features {tuple(f.shape)}.")
    pixels, clean = (x.double() / 255 if x.dtype == torch.uint8 else x.double() for x in (views, images))
    off = (pixels[:, 0] - clean).abs().flatten(1).amax(1) > 1e-3
    if bool(off.any()):
        raise ValueError(
            f"The first view of {int(off.sum())} of {len(f)} images is not the image itself, which the theory has among the views (x in A(x)). "
            "Take Augmentation.views(..., identity=True)."
        )
    return f, y, pixels, names
