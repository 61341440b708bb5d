"""A certificate for new images: centers and reaches are fixed on one split, and images of another are counted.

    main_k = { x in C_k : min over views || f(x_v) - c_k || <= delta_k / 2 },     S_eps_k: views of x at most epsilon_k apart,
    class k holds if  min over l of || c_k - c_l ||  >  delta_k + 2 epsilon_k     (`fixed_centers`)

A new image is good if its class holds and it is in main_k and S_eps_k; the nearest c reads it rightly then. The number of images that are not
good is binomial, so its exact upper limit (Clopper and Pearson 1934) bounds the error of the nearest c on the population they are drawn from. No
view that was not drawn enters: if the image and one of its views are within epsilon_k of each other, and that view within delta_k / 2 of c_k, then
the image itself is nearer to c_k than to any other. The errors are among what is counted, so a direct limit of the error is never above this one.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from marginlab.measures.alignment import alignment
from marginlab.theory.bound import Bound
from marginlab.theory.certificate import NEW, Form
from marginlab.theory.population import Population

ROUNDING = 1e-7  # distances of float32 features are not better known
EXACTLY = "donot_use_mm_for_euclid_dist"


class Reach(NamedTuple):
    """What the form with fixed centers fixes: c_k (C, D), and delta_k and epsilon_k (C,); a class that cannot hold has delta_k = epsilon_k = 0."""

    centers: Float[Tensor, "C D"]
    delta: Float[Tensor, " C"]
    epsilon: Float[Tensor, " C"]


def fix_centers(population: Population) -> Reach:
    """Class centers, and for each class the (delta_k, epsilon_k) that have the most images in the main part and S_eps.

    delta_k + 2 epsilon_k lies just below the distance to the next center: the larger epsilon_k is, the more images are aligned and the smaller main_k
    may be. Of equally good epsilon_k the middle one is taken, because what lies on the edge does not carry over to other images.
    """
    centers = population.centers
    apart = torch.cdist(centers, centers, compute_mode=EXACTLY).fill_diagonal_(math.inf).amin(1)
    near = (population.f - centers[population.labels, None]).norm(dim=-1).amin(1)
    delta, epsilon = torch.zeros_like(apart), torch.zeros_like(apart)
    for k, distance in enumerate(apart.tolist()):
        own = population.labels == k
        spread, close, w = population.diameters[own], near[own], population.w[own]
        if distance <= ROUNDING:
            continue
        half = (distance - ROUNDING) / 2  # delta_k / 2 + epsilon_k
        edges = torch.cat((spread, spread.new_zeros(1), half - close, spread.new_full((1,), half))).clamp(0, half).unique()
        candidates = torch.cat((edges, (edges[1:] + edges[:-1]) / 2)).sort().values
        good = ((spread <= candidates[:, None]) & (close <= half - candidates[:, None])).double() @ w
        most = candidates[good >= good.max() - 1e-12]
        middle = (most - most.mean()).abs().argmin()
        epsilon[k], delta[k] = most[middle], 2 * (half - most[middle])
    return Reach(centers, delta, epsilon)


def of_new(
    reach: Reach, new: tuple[Tensor, Tensor], names: Tensor, confidence: float
) -> tuple[list[Form], tuple[float, float], int]:
    """The form with fixed centers of new images, from the number of those that are not in their main part and S_eps."""
    f, y = unit(new[0], "The new features"), new[1]
    if f.shape[2] != reach.centers.shape[1] or y.shape != (len(f),) or len(f) == 0:
        raise ValueError(f"New features are (M, V, {reach.centers.shape[1]}) with labels (M,), not {tuple(f.shape)} and {tuple(y.shape)}.")
    if not bool(torch.isin(y, names).all()):
        raise ValueError(f"New images are of the classes {names.tolist()}, not also of {y[~torch.isin(y, names)].unique().tolist()}.")
    y = torch.searchsorted(names, y)
    wrong = int((torch.cdist(f[:, 0], reach.centers, compute_mode=EXACTLY).argmin(1) != y).sum())
    near = (f - reach.centers[y, None]).norm(dim=-1).amin(1)
    diameter = alignment(f, normalize=False)[1]
    apart = torch.cdist(reach.centers, reach.centers, compute_mode=EXACTLY).fill_diagonal_(math.inf).amin(1)
    able = apart > reach.delta + 2 * reach.epsilon
    bad = ~(able[y] & (near <= reach.delta[y] / 2) & (diameter <= reach.epsilon[y]))
    upper, direct = _upper(int(bad.sum()), len(f), confidence), _upper(wrong, len(f), confidence)
    premise = "" if bool(able.any()) else "No class holds: every center has another within delta_k + 2 epsilon_k of it."
    bound = Bound(f"Fixed centers, new images, confidence {confidence:g}", wrong / len(f), upper, 1.0, premise)
    form = Form(
        bound, NEW, outside=float((near > reach.delta[y] / 2).double().mean()), R_epsilon=float((diameter > reach.epsilon[y]).double().mean())
    )
    return [form], (wrong / len(f), direct), len(f)


def _upper(count: int, n: int, confidence: float) -> float:
    """One-sided upper limit of a probability, exact (Clopper and Pearson)."""
    return 1.0 if count == n else float(stats.beta.ppf(confidence, count + 1, n - count))


def unit(features: Tensor, name: str) -> Tensor:
    """Features at length one, in float64; refuse what has none."""
    f = features.detach().double()
    if f.ndim != 3 or f.shape[1] < 2 or not bool(f.isfinite().all()) or bool((f.norm(dim=-1) == 0).any()):
        raise ValueError(f"{name} are finite, not zero, and of at least two views, (N, V, D), the image itself first: {tuple(f.shape)} are not.")
    return F.normalize(f, dim=-1)
