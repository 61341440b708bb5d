"""Bounds on the largest cliques of graphs, from both sides, for many graphs of one size at once.

    clique of a greedy deletion  <=  omega  <=  chi  <=  colours of a greedy colouring
    omega  <=  n - matching of the missing edges

omega is the size of the largest clique, chi the chromatic number. From below: delete the vertex
that misses most of the others until no two remaining vertices miss each other. The rest is a
clique.

From above: the vertices of a clique all need colours of their own. The colouring is DSATUR (Brelaz,
Communications of the ACM 22, 1979). The next vertex is the one that sees most colours, and of these
the one with most neighbours still to be coloured. It takes the first colour it does not see.

A second bound from above: a clique lacks one of the two ends of every missing edge. So it lacks at
least as many vertices as there are missing edges without a common end. The n - omega vertices that
it lacks are a vertex cover of the complement (Papadimitriou and Steiglitz, Combinatorial
Optimization, 1982). The matching's bound on them is at most n / 2.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def greedy_clique(adjacent: Bool[Tensor, "*T n n"]) -> Bool[Tensor, "*T n"]:
    """Return the vertices of a clique of each graph, found by deletion.

    Of equal candidates the first is deleted. Memory: one more copy of the graphs.

    Args:
        adjacent: Symmetric matrices; the diagonal does not matter.

    Example:
        >>> path = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).bool()
        >>> greedy_clique(path)
        tensor([False,  True,  True])
    """
    missing = ~adjacent.flatten(0, -3) if adjacent.ndim > 2 else ~adjacent[None]
    missing.diagonal(dim1=1, dim2=2).fill_(False)
    T, n = missing.shape[:2]
    kept = torch.ones(T, n, dtype=torch.bool, device=adjacent.device)
    degree = missing.sum(2, dtype=torch.int32)
    graphs = torch.arange(T, device=adjacent.device)  # those not yet done
    while len(graphs):
        most, worst = degree[graphs].max(1)
        graphs, worst = graphs[most > 0], worst[most > 0]
        kept[graphs, worst] = False
        degree[graphs] -= missing[graphs, worst].int()
        degree[graphs, worst] = -1  # stays below every kept vertex
        degree.masked_fill_(~kept, -1)
    return kept.view(adjacent.shape[:-1])


def colouring(adjacent: Bool[Tensor, "*T n n"]) -> Int[Tensor, "*T n"]:
    """Return a proper colouring of each graph by DSATUR.

    Colours count from 0, and neighbours differ. Of equal candidates the first is coloured. Memory:
    two more copies of the graphs.

    Args:
        adjacent: Symmetric matrices; the diagonal does not matter.

    Example:
        >>> triangle = torch.ones(3, 3, dtype=torch.bool)
        >>> colouring(triangle), colouring(~triangle)
        (tensor([0, 1, 2]), tensor([0, 0, 0]))
    """
    graph = (adjacent.flatten(0, -3) if adjacent.ndim > 2 else adjacent[None]).clone()
    graph.diagonal(dim1=1, dim2=2).fill_(False)
    T, n = graph.shape[:2]
    colours = torch.full((T, n), -1, dtype=torch.int64, device=adjacent.device)
    sees = torch.zeros_like(graph)  # (graph, colour, vertex)
    seen = torch.zeros(T, n, dtype=torch.int64, device=adjacent.device)
    open_neighbours = graph.sum(2)
    every = torch.arange(T, device=adjacent.device)
    for _ in range(n):
        rank = (seen * (n + 1) + open_neighbours).masked_fill(colours >= 0, -1)
        vertex = rank.argmax(1)
        colour = (~sees[every, :, vertex]).int().argmax(1)
        colours[every, vertex] = colour
        neighbours = graph[every, vertex]
        known = sees[every, colour]
        seen += neighbours & ~known
        sees[every, colour] = known | neighbours
        open_neighbours -= neighbours.long()
    return colours.view(adjacent.shape[:-1])


def matching(adjacent: Bool[Tensor, "*T n n"]) -> Int[Tensor, "*T"]:
    """Return the size of a maximal matching of the missing edges of each graph.

    Every clique lacks at least so many vertices. The matching is greedy. It takes the vertex with
    the fewest partners left, at least one, and matches it to the partner that has the fewest. Of
    equal ones it takes the first. Memory: one more copy of the graphs.

    Args:
        adjacent: Symmetric matrices; the diagonal does not matter.

    Example:
        >>> path = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).bool()
        >>> matching(path), matching(torch.zeros(5, 5, dtype=torch.bool))
        (tensor(1), tensor(2))
    """
    missing = ~adjacent.flatten(0, -3) if adjacent.ndim > 2 else ~adjacent[None]
    missing.diagonal(dim1=1, dim2=2).fill_(False)
    T, n = missing.shape[:2]
    sizes = torch.zeros(T, dtype=torch.int64, device=adjacent.device)
    free = torch.ones(T, n, dtype=torch.bool, device=adjacent.device)
    degree = missing.sum(2)  # partners left
    graphs = torch.arange(T, device=adjacent.device)  # those not yet done
    while len(graphs):
        # n is more than any degree
        left = degree[graphs].masked_fill(~free[graphs] | (degree[graphs] == 0), n)
        fewest, vertex = left.min(1)
        graphs, left, vertex = graphs[fewest < n], left[fewest < n], vertex[fewest < n]
        partner = left.masked_fill(~missing[graphs, vertex], n).argmin(1)
        sizes[graphs] += 1
        for matched in (vertex, partner):
            free[graphs, matched] = False
            degree[graphs] -= missing[graphs, matched].long()
    return sizes.view(adjacent.shape[:-2])
