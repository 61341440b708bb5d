"""Partitions of a weighted graph into m parts whose largest conductance is small.

    phi(S) = w(S, S^c) / w(S)

The best partition comes from a search over all of them, or a good one from sweeps over
eigenvectors, as in the proof of Cheeger's inequality.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def set_conductance(
    adjacency: Float[Tensor, "X X"], mass: Float[Tensor, " X"], members: Bool[Tensor, " X"]
) -> float:
    """Return phi(S) of a set of vertices.

    Args:
        adjacency: The weights w.
        mass: Their sums w_x over the neighbours of each vertex.
        members: Marks the vertices of the set.
    """
    return float(adjacency[members][:, ~members].sum() / mass[members].sum())


def bisected(
    adjacency: Float[Tensor, "X X"],
    mass: Float[Tensor, " X"],
    normalized: Float[Tensor, "X X"],
    m: int,
) -> Int[Tensor, " X"]:
    """Return a partition into m parts, made by cutting one part in two again and again.

    Each cut is the one that leaves the largest conductance smallest.

    Args:
        adjacency: The weights w.
        mass: Their sums w_x.
        normalized: A_bar = D^{-1/2} W D^{-1/2}.
        m: Number of parts.
    """
    parts = torch.zeros(len(mass), dtype=torch.int64, device=mass.device)
    for new in range(1, m):
        best, cut = torch.inf, parts
        for part in range(new):
            inside = (parts == part).nonzero()[:, 0]
            rest = max(
                [
                    set_conductance(adjacency, mass, parts == other)
                    for other in range(new)
                    if other != part
                ],
                default=0.0,
            )
            for moved in _sweep(mass, normalized, inside):
                tried = parts.index_fill(0, moved, new)
                worst = max(
                    rest,
                    set_conductance(adjacency, mass, tried == part),
                    set_conductance(adjacency, mass, tried == new),
                )
                if worst < best:
                    best, cut = worst, tried
        parts = cut
    return parts


def _sweep(mass: Tensor, normalized: Tensor, inside: Tensor) -> list[Tensor]:
    """Return the first 1, 2, ... of some vertices, in the order of an eigenvector.

    It is the eigenvector with the largest eigenvalue of their part of A_bar, beside the constant
    function.
    """
    if len(inside) < 2:
        return []
    # the constant function is an eigenvector of the whole graph, and would mix with others of equal
    # eigenvalue
    first = torch.nn.functional.normalize(mass[inside].sqrt(), dim=0)
    beside = torch.eye(len(inside), dtype=first.dtype, device=first.device) - first[:, None] * first
    vector = (
        torch.linalg.eigh(beside @ normalized[inside][:, inside] @ beside + beside).eigenvectors[
            :, -1
        ]
        / first
    )
    order = inside[vector.argsort()]
    return [order[:k] for k in range(1, len(order))]


def best_partition(w: np.ndarray, m: int) -> tuple[float, np.ndarray]:
    """Return the least largest phi over partitions of {0..X-1} into m parts, and a partition.

    The partition attains it. The search is dynamic programming over sets: best_m(S) = min over
    parts T of S that hold its lowest element of max(phi(T), best_{m-1}(S without T)).
    """
    X = len(w)
    bits = (np.arange(2**X)[:, None] >> np.arange(X)) & 1
    cut, mass = ((bits @ w) * (1 - bits)).sum(1), bits @ w.sum(1)
    phi = np.full(2**X, np.inf)
    phi[1:] = cut[1:] / mass[1:]
    best, chosen = phi, []
    for _ in range(m - 1):
        fewer, best, part = best, np.full(2**X, np.inf), np.zeros(2**X, dtype=int)
        for s in range(1, 2**X):
            rest = s & (s - 1)  # without its lowest element
            free = np.flatnonzero(bits[rest])
            own = (
                (bits[: 2 ** len(free), : len(free)] @ (1 << free)) | (s ^ rest)
                if len(free)
                else np.array([s])
            )
            values = np.maximum(phi[own], fewer[s ^ own])
            at = values.argmin()
            best[s], part[s] = values[at], own[at]
        chosen.append(part)
    parts, left = np.zeros(X, dtype=np.int64), 2**X - 1
    for name, part in enumerate(reversed(chosen)):
        parts[bits[part[left]] == 1] = name
        left ^= int(part[left])
    parts[bits[left] == 1] = m - 1
    return float(best[-1]), parts
