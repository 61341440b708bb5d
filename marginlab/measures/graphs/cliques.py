"""The largest clique of one graph, by branch and bound.

    omega(P)  =   max over v in P of 1 + omega(P and the neighbours of v)
    omega(P)  <=  colours of any proper colouring of P

The result is exact if the search ends, and otherwise a clique and a bound. A branch is left when
the size of its clique plus the colours of the vertices that may still join does not exceed the best
clique. Colours are given one independent set at a time. A vertex that would need one colour too
many is put into an earlier set if the only neighbour it has there can move to another set (Tomita
et al., WALCOM 2010, MCS).

Sets of vertices are the bits of Python integers. Vertices are numbered in a degeneracy order:
a vertex of least degree is taken away repeatedly, and the last one taken comes first. The search
starts from the greedy clique.
"""

import time
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from marginlab.measures.graphs.graphs import colouring, greedy_clique, matching


class Clique(NamedTuple):
    """A clique of `lower` vertices, and the bound `upper` on the size of the largest clique.

    `exact` says that the two are equal.
    """

    vertices: Bool[Tensor, " n"]
    lower: int
    upper: int
    exact: bool


class _Branch(NamedTuple):
    """A vertex, and the number of colours of the candidates up to it.

    A clique of these candidates adds at most so many vertices.
    """

    colours: int
    vertex: int


def largest_clique(
    adjacent: Bool[Tensor, "n n"], *, nodes: int = 100_000, seconds: float | None = None
) -> Clique:
    """Return the largest clique of a graph, or bounds of its size if the search is stopped early.

    Args:
        adjacent: A symmetric matrix; the diagonal does not matter.
        nodes: Most cliques that the search may look at. The answer is a function of the graph and
            of this number. With 0 only the greedy clique, the colouring and the matching are used.
        seconds: Time after which the search stops as well; the answer then depends on the machine.

    Raises:
        ValueError: The graph has no vertices, or a limit is negative.

    Example:
        The largest clique of a cycle has two vertices; a colouring alone says at most 3.

        >>> cycle = torch.eye(5).roll(1, 0).bool()
        >>> largest_clique(cycle | cycle.T)[1:]
        (2, 2, True)
    """
    n = len(adjacent)
    if n == 0 or nodes < 0 or (seconds is not None and seconds < 0):
        raise ValueError(
            f"A search needs a graph with vertices and limits of at least 0, not {n} vertices, "
            f"nodes={nodes}, seconds={seconds}."
        )
    start = greedy_clique(adjacent)
    upper = min(int(colouring(adjacent).max()) + 1, n - int(matching(adjacent)))
    if int(start.sum()) == upper or nodes == 0:
        return Clique(start, int(start.sum()), upper, int(start.sum()) == upper)
    matrix = adjacent.cpu()
    order = _degeneracy(matrix)
    rows = matrix[order][:, order].fill_diagonal_(False)
    neighbours = [_bits(row) for row in rows]
    best, bound = _search(
        neighbours,
        _bits(start.cpu()[order]),
        nodes,
        None if seconds is None else time.monotonic() + seconds,
    )
    vertices = torch.zeros(n, dtype=torch.bool)
    vertices[order[[v for v in range(n) if best >> v & 1]]] = True
    size = best.bit_count()
    upper = min(upper, bound)
    return Clique(vertices.to(adjacent.device), size, upper, size == upper)


def _bits(row: Bool[Tensor, " n"]) -> int:
    """Return a row of truth values as an integer, the first in the lowest bit."""
    return sum(1 << place for place in row.nonzero()[:, 0].tolist())


def _degeneracy(adjacent: Tensor) -> Tensor:
    """Return the vertices in a degeneracy order, those taken away last first.

    At each step a vertex of least degree among the rest is taken away.
    """
    graph = adjacent.clone().fill_diagonal_(False).long()
    degree, taken = graph.sum(1), []
    for _ in range(len(graph)):
        vertex = int(degree.argmin())
        taken.append(vertex)
        degree -= graph[vertex]
        # stays above every vertex that is left, also after its neighbours are taken away
        degree[vertex] = 2 * len(graph)
    return torch.tensor(taken[::-1])


def _search(
    neighbours: list[int], best: int, nodes: int, deadline: float | None
) -> tuple[int, int]:
    """Return the best clique found, as bits, and a bound on the size of the largest."""
    size, everything = best.bit_count(), (1 << len(neighbours)) - 1
    missing = [everything & ~(near | 1 << v) for v, near in enumerate(neighbours)]
    # entries: a clique, its candidates, and the branches to try, from the last to the first
    stack = [(0, everything, _branches(everything, size, neighbours, missing))]
    while stack:
        clique, candidates, branches = stack[-1]
        depth = len(stack) - 1  # vertices of the clique
        if not branches or depth + branches[-1].colours <= size:
            stack.pop()
            continue
        if nodes == 0 or (deadline is not None and time.monotonic() >= deadline):
            # a branch not yet taken adds at most its colours; the branch being searched is the
            # next entry of the stack
            return best, max(
                size,
                *(level + tried[-1].colours for level, (_, _, tried) in enumerate(stack) if tried),
            )
        nodes -= 1
        vertex = branches.pop().vertex
        stack[-1] = (clique, candidates & ~(1 << vertex), branches)
        clique, candidates = clique | 1 << vertex, candidates & neighbours[vertex]
        if candidates:
            stack.append(
                (clique, candidates, _branches(candidates, size - depth - 1, neighbours, missing))
            )
        elif depth + 1 > size:
            best, size = clique, depth + 1
    return best, size


def _branches(
    candidates: int, enough: int, neighbours: list[int], missing: list[int]
) -> list[_Branch]:
    """Return the candidates that may add more than `enough` vertices, ascending in colours.

    Each comes with the number of colours of all candidates up to it.
    """
    sets: list[int] = []  # the first `enough` sets; a vertex in them need not be branched on
    found: list[_Branch] = []
    colours = 0
    while candidates:
        fits, members, used = candidates, 0, False
        while fits:
            bit = fits & -fits
            vertex = bit.bit_length() - 1
            candidates ^= bit
            fits &= missing[vertex]
            if colours < enough:
                members |= bit
            elif not _moved(vertex, sets, neighbours):
                found.append(_Branch(colours + 1, vertex))
                used = True
        if members:
            sets.append(members)
        colours += used or members > 0
    return found


def _moved(vertex: int, sets: list[int], neighbours: list[int]) -> bool:
    """Put a vertex into one of the independent sets, if possible; return whether it was.

    It is possible where the vertex has at most one neighbour in the set, and this neighbour fits
    into another set.
    """
    for at, members in enumerate(sets):
        near = members & neighbours[vertex]
        if near & (near - 1):
            continue
        if not near:  # the vertex has no neighbour left there
            sets[at] |= 1 << vertex
            return True
        for to, others in enumerate(sets):
            if to != at and not others & neighbours[near.bit_length() - 1]:
                sets[at] ^= near | 1 << vertex
                sets[to] |= near
                return True
    return False
