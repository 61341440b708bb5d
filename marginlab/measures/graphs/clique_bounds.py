"""Bounds on the largest cliques of the graphs d_A <= delta, as fractions of the n images.

    greedy clique / n  <=  sigma_k  <=  min(colours, n - matching) / n

A clique for a smaller delta or fewer views is also one for a larger delta or more views. So each
bound takes the best of those that imply it (`monotone_bounds`), and is monotone in delta and in the
number of views. Whatever the search, both sides bound the largest clique of the sampled graph, and
not the sigma of the population.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.kernels import BUDGET
from marginlab.measures.graphs.cliques import largest_clique
from marginlab.measures.graphs.graphs import colouring, greedy_clique, matching


def bounds(
    distance: Float[Tensor, "L n n"], deltas: Float[Tensor, " T"], *, budget: int = BUDGET
) -> tuple[Float[Tensor, "L T"], Float[Tensor, "L T"]]:
    """Return bounds of the largest clique of the graphs d_A <= delta, as fractions of n.

    They are (L, T) each. The lower bound is greedy. The upper bound is the better of colouring and
    matching. Equal candidates are told apart by the distances of a vertex to all others, so the
    answer does not depend on the order of images.

    Args:
        distance: d_A matrices.
        deltas: The deltas.
        budget: Bytes of a block of graphs.

    Example:
        >>> d_A = torch.tensor([[[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]]])
        >>> bounds(d_A, torch.tensor([1.5]))
        (tensor([[0.6667]], dtype=torch.float64), tensor([[0.6667]], dtype=torch.float64))
    """
    L, n, _ = distance.shape
    step = max(budget // (4 * n * n), 1)
    cliques, covers = [], []
    for matrix in distance:
        matrix = _arranged(matrix)
        for part in deltas.split(step):
            graph = matrix <= part[:, None, None]
            cliques.append(greedy_clique(graph).sum(1))
            covers.append(torch.minimum(colouring(graph).amax(1) + 1, n - matching(graph)))
    lower, upper = (
        torch.cat(parts).view(L, len(deltas)).double() / n for parts in (cliques, covers)
    )
    return lower, upper


def monotone_bounds(d_A: Sequence[Tensor], deltas: Float[Tensor, " T"]) -> tuple[Tensor, Tensor]:
    """Return bounds of the cliques of C classes from below and above, monotone in delta and views.

    They are (L, C, T) each.

    Args:
        d_A: The matrices (L, n, n) of each class, for L increasing numbers of views.
        deltas: The deltas, in any order.
    """
    ascending, order = deltas.to(d_A[0].device).sort()
    low, high = [], []
    for distance in d_A:
        clique, colours = bounds(distance, ascending)
        # a lower bound also holds for more views and larger deltas, an upper bound for fewer
        # views and smaller deltas
        low.append(clique.cummax(0).values.cummax(1).values)
        high.append(colours.flip(0, 1).cummin(0).values.cummin(1).values.flip(0, 1))
    back = order.argsort()
    lower, upper = torch.stack(low, 1)[..., back], torch.stack(high, 1)[..., back]
    return lower, upper


def searched_bounds(
    matrices: Sequence[Tensor],
    delta: float,
    lower: Float[Tensor, " C"],
    upper: Float[Tensor, " C"],
    nodes: int,
) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Return bounds brought closer by branch and bound, in the same tensors.

    Args:
        matrices: The d_A matrix (n, n) of each class.
        delta: The distance.
        lower: The bounds of each class from below.
        upper: The bounds from above; classes whose bounds are equal are not searched.
        nodes: Most cliques of a class that are looked at. The bounds are equal if the search ends.
    """
    for k, distance in enumerate(matrices):
        if lower[k] < upper[k]:
            found, n = largest_clique(_arranged(distance) <= delta, nodes=nodes), len(distance)
            lower[k], upper[k] = (
                max(float(lower[k]), found.lower / n),
                min(float(upper[k]), found.upper / n),
            )
    return lower, upper


def _arranged(matrix: Tensor) -> Tensor:
    """Return a d_A matrix with its images in an order that does not depend on their arrival.

    Images far from all others come first.
    """
    # sorted before the sum, so that it rounds alike in every order
    order = matrix.sort(1).values.sum(1).argsort(descending=True, stable=True)
    return matrix[order][:, order]
