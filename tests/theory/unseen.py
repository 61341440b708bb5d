"""Populations from which images are seen and new ones drawn, whose every share is known exactly.

They are what a certificate of new images must survive: encoders that have collapsed on what they
were trained on and on nothing else, classes of a few per cent, ten new images, and heavy tails.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from marginlab.theory import Population
from marginlab.theory.certificates.unseen import NewImages

CLASSES, DIM, VIEWS, IMAGES = 4, 6, 3, 1500


@dataclass(frozen=True)
class World:
    """A population, how many images are seen and how many are new, and the jitter of seen ones."""

    population: Population
    seen: int
    new: int
    collapsed: bool

    def draw(self, generator):
        """Seen images, as a population with all classes, and new ones, drawn with replacement."""
        whole = self.population
        while True:
            first = torch.randint(len(whole.f), (self.seen,), generator=generator)
            if len(whole.labels[first].unique()) == CLASSES:
                break
        seen = whole.f[first]
        if self.collapsed:  # what was trained on lies near its class mean, whatever else does not
            own = normalize(whole.centers, dim=-1)[whole.labels[first], None]
            noise = 0.01 * torch.randn(seen.shape, generator=generator, dtype=torch.float64)
            seen = normalize(own + noise, dim=-1)
        second = torch.randint(len(whole.f), (self.new,), generator=generator)
        return Population(seen, whole.labels[first]), self.images(second)

    def images(self, at=slice(None)):
        """Images of the population as new ones."""
        known = torch.ones_like(self.population.labels[at], dtype=torch.bool)
        return NewImages(
            self.population.f[at], self.population.labels[at], known, self.population.diameters[at]
        )


def world(name):
    """The population `overfit`, `rare`, `ten images` or `heavy tails`."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    p = torch.tensor([0.88, 0.05, 0.04, 0.03] if name == "rare" else [0.25] * 4)
    labels = p.multinomial(IMAGES, replacement=True, generator=generator)
    spread = {"heavy tails": 0.01, "overfit": 0.2}.get(name, 0.3)
    noise = [
        torch.randn(IMAGES, views, DIM, generator=generator, dtype=torch.float64)
        for views in (1, VIEWS)
    ]
    if name == "heavy tails":  # normal over the root of a chi-square with one degree of freedom
        tail = torch.randn(IMAGES, 1, 1, generator=generator, dtype=torch.float64).abs()
        noise = [each / tail for each in noise]
    center = torch.eye(DIM, dtype=torch.float64)[labels][:, None]
    features = center + spread * noise[0] + spread / 4 * noise[1]
    population = Population(normalize(features, dim=-1), labels)
    seen, new = {"rare": (200, 400), "ten images": (60, 10), "heavy tails": (80, 600)}.get(
        name, (80, 160)
    )
    return World(population, seen, new, collapsed=name == "overfit")


WORLDS = ("overfit", "rare", "ten images", "heavy tails")
