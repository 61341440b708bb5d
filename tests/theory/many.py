"""Thousands of random exact finite populations at once, in arrays: G populations of one shape.

What a theorem is held against is computed here by plain sums over all images and views, and not by
`Population`. The draws mix classes that can be told apart with ones in which nothing is tame.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from populations import normal
from torch.nn.functional import normalize, one_hot

TOGETHER = 500


@dataclass(frozen=True)
class Many:
    """G populations: features (G, N, V, D) of length 1, labels (N,), probabilities (G, N)."""

    f: torch.Tensor
    labels: torch.Tensor
    w: torch.Tensor
    generator: torch.Generator

    @cached_property
    def classes(self):
        return int(self.labels.max()) + 1

    @cached_property
    def p(self):
        return self.of_class(torch.ones_like(self.w), divide=False)

    def of_class(self, values, divide=True):
        """Sums, or expectations, over each class of values (G, N, ...): (G, C, ...)."""
        members = one_hot(self.labels, self.classes).double()
        weighted = (values * self.w.view(*self.w.shape, *[1] * (values.ndim - 2))).movedim(1, -1)
        sums = (weighted @ members).movedim(-1, 1)
        return sums / self.p.view(*self.p.shape, *[1] * (values.ndim - 2)) if divide else sums

    @cached_property
    def nu(self):
        return self.f.mean(2)

    @cached_property
    def centers(self):
        return self.of_class(self.nu)

    @cached_property
    def gram(self):
        return self.centers @ self.centers.mT

    @cached_property
    def diameters(self):
        return (self.f[:, :, :, None] - self.f[:, :, None]).norm(dim=-1).flatten(2).amax(2)

    def distances(self, points):
        """Of each view from points (G, C, D): (G, N, V, C)."""
        return (self.f[..., None, :] - points[:, None, None]).norm(dim=-1)

    def own(self, of_classes):
        """The entry of each image's class, of (G, ..., C) with the classes last, views before."""
        at = self.labels.view(1, -1, 1, 1).expand(*of_classes.shape[:3], 1)
        return of_classes.gather(3, at)[..., 0]

    def gap(self, distances):
        """Distance to the nearest of another class less that to the own class, (G, N, V)."""
        mine = one_hot(self.labels, self.classes).bool()[None, :, None]
        return distances.masked_fill(mine, math.inf).amin(3) - self.own(distances)

    def points(self, each=1):
        """Points in the unit ball for each class (G, C, each, D): centers, near them, or any."""
        shift = self.choose([0.0, 0.1, 3.0]).view(-1, 1, 1, 1)
        G, C, D = self.centers.shape
        found = self.centers[:, :, None] + shift * normal(self.generator, G, C, each, D)
        return found / found.norm(dim=-1, keepdim=True).clamp(min=1)

    def choose(self, values):
        """One of the values for each population."""
        at = torch.randint(len(values), (len(self.w),), generator=self.generator)
        return torch.tensor(values, dtype=torch.float64)[at]

    def uniform(self, *shape):
        return torch.rand(len(self.w), *shape, generator=self.generator, dtype=torch.float64)


def populations(cases, seed=0):
    """Yield populations, so many in all."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, cases, TOGETHER):
        yield _draw(min(TOGETHER, cases - start), generator)


def _whole(generator, low, high):
    return int(torch.randint(low, high + 1, (1,), generator=generator))


def _draw(G, generator):
    C, V, D = (_whole(generator, *ends) for ends in ((2, 4), (1, 4), (1, 6)))
    each = torch.tensor([_whole(generator, 1, 4) for _ in range(C)])
    labels = torch.arange(C).repeat_interleave(each)
    N = len(labels)

    def choose(values, *shape):
        at = torch.randint(len(values), (G, *shape), generator=generator)
        return torch.tensor(values, dtype=torch.float64)[at]

    tame = choose([0.0, 1.0], 1, 1, 1)
    D = max(D, C) if bool(tame.any()) else D
    corner = torch.eye(C, D, dtype=torch.float64) - torch.ones(C, D, dtype=torch.float64) / C
    corner[:, C:] = 0
    random, alike = normal(generator, G, C, D), torch.ones(G, C, D, dtype=torch.float64)
    kind = choose([0.0, 1.0, 2.0], 1, 1)
    wild = torch.where(kind == 0, corner, torch.where(kind == 1, random, alike))
    center = normalize(torch.where(tame[..., 0] == 1, corner, wild), dim=-1)
    spread, jitter = (
        choose(s, 1, 1, 1) for s in ([0.001, 0.02, 0.2, 1.0], [0.001, 0.01, 0.1, 1.0])
    )
    spread = torch.where(tame == 1, spread.clamp(max=0.02), spread)
    jitter = torch.where(tame == 1, jitter.clamp(max=0.01), jitter)
    z = center[:, labels, None] + spread * normal(generator, G, N, 1, D)
    z = z + jitter * normal(generator, G, N, V, D)
    strays = choose([0.0, 0.0, 0.0, 0.1, 0.4], 1, 1)
    stray = torch.rand(G, N, V, generator=generator, dtype=torch.float64) < strays
    z = torch.where(stray[..., None], normal(generator, *z.shape), z)
    f = normalize(z + 1e-6 * normal(generator, *z.shape), dim=-1)
    w = torch.rand(G, N, generator=generator, dtype=torch.float64) ** choose([0.0, 1.0, 3.0], 1)
    w = w + 1e-3
    return Many(f, labels, w / w.sum(1, keepdim=True), generator)
