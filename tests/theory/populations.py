"""Random exact finite populations: images in pixels, their views, encoders on them, labels and
class priors; and main parts to hold theorems against.

The draws mix regimes in which the conditions of the theorems hold (tight classes, far centers, few
strays) with ones in which nothing is tame.
"""

from dataclasses import dataclass
from functools import cached_property

import hypothesis.strategies as st
import torch
from hypothesis import settings

from marginlab.theory import Population

ROUND = 1e-9
# of a test that holds a theorem against populations: 200 drawn cases, or 100,000 in the nightly
# profile
MANY = settings(max_examples=100_000 if settings().max_examples > 30 else 200)


@dataclass(frozen=True)
class Sample:
    """A population with the pixels (N, V, P) that its features are of, and a feature radius r."""

    pixels: torch.Tensor
    population: Population
    r: float

    @cached_property
    def lipschitz(self):
        """The exact Lipschitz constant of the encoder on all views that there are."""
        x, f = self.pixels.flatten(0, 1), self.population.f.flatten(0, 1)
        mode = {"compute_mode": "donot_use_mm_for_euclid_dist"}
        apart, moved = torch.cdist(x, x, **mode), torch.cdist(f, f, **mode)
        return float((moved / apart)[apart > 0].max()) if bool((apart > 0).any()) else 0.0


def augmented(x):
    """Smallest distance between views of two images, and the views (u, v), by enumeration."""
    V = x.shape[1]
    smallest = (x[:, None, :, None] - x[None, :, None]).norm(dim=-1).flatten(2).min(2)
    return smallest.values.fill_diagonal_(0), smallest.indices // V, smallest.indices % V


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@st.composite
def samples(draw, r=None, most_classes=4, most_views=4, tame=None):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**40)))
    classes = draw(st.integers(2, most_classes))
    each = draw(st.lists(st.integers(1, 4), min_size=classes, max_size=classes))
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(each)])[
        torch.randperm(sum(each), generator=generator)
    ]
    N, V, D, P = (
        len(labels),
        draw(st.integers(1, most_views)),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 4)),
    )
    spread, jitter, strays = (
        draw(st.sampled_from(s))
        for s in ([0.001, 0.02, 0.2, 1.0], [0.001, 0.01, 0.1, 1.0], [0.0, 0.0, 0.1, 0.4])
    )
    tame = draw(st.booleans()) if tame is None else tame
    # classes that an encoder could tell apart: here the conditions of the theorems hold, and their
    # conclusions are tested
    if tame:
        spread, jitter, strays = min(spread, 0.02), min(jitter, 0.01), min(strays, 0.1)
    pixels = (
        4 * normal(generator, classes, 1, P)[labels]
        + spread * normal(generator, N, 1, P)
        + jitter * normal(generator, N, V, P)
    )
    simplex = torch.eye(classes, dtype=torch.float64) - 1 / classes
    chosen = (
        simplex
        if tame
        else draw(
            st.sampled_from(
                [
                    simplex,
                    normal(generator, classes, D),
                    torch.ones(classes, D, dtype=torch.float64),
                ]
            )
        )
    )
    center = torch.nn.functional.normalize(chosen, dim=1)
    # a smooth encoder: the deviation of a view from its class, through a random map; so that views
    # close in pixels are close in features
    middle = (
        pixels.new_zeros(classes, 1, P).index_add(0, labels, pixels.mean(1, keepdim=True))
        / torch.bincount(labels)[:, None, None]
    )
    own = pixels - middle[labels]
    z = center[labels][:, None] + torch.tanh(own @ normal(generator, P, center.shape[1]))
    stray = torch.rand(N, V, generator=generator) < strays
    z = torch.where(stray[..., None], normal(generator, *z.shape), z)
    if not tame and draw(st.integers(0, 5)) == 0:
        z = normal(generator, *z.shape)  # an encoder that knows nothing
    r = draw(st.sampled_from([1.0, 1.0, 3.0])) if r is None else r
    features = r * torch.nn.functional.normalize(z + 1e-6 * normal(generator, *z.shape), dim=-1)
    weights = None
    if draw(st.booleans()):
        weights = (
            torch.rand(N, generator=generator, dtype=torch.float64) ** draw(st.sampled_from([1, 3]))
            + 1e-3
        )
        weights /= weights.sum()
    return Sample(pixels, Population(features, labels, weights), r)


@dataclass(frozen=True)
class Case:
    """A sample, a way to choose its main parts, and epsilon.

    What is computed is computed in the test, not while drawing.
    """

    sample: Sample
    way: str
    size: float
    epsilon: float

    @property
    def population(self):
        return self.sample.population

    @cached_property
    def part(self):
        """(members, stretch): a main part and what bounds the distance of features at nearest
        views, in one of the four ways to have it.

        Main parts by enumeration, greedily; that the package's own are main parts is a test of its
        own (its kernel is slow on a few images).
        """
        f, labels, x = self.population.f, self.population.labels, self.sample.pixels
        delta = self.size * self.sample.r
        if self.way == "anchors":
            return (f - self.population.centers[labels, None]).norm(dim=-1).amin(
                1
            ) <= delta / 2, delta
        if self.way == "features":
            return self.greedy(augmented(f)[0], delta), delta
        distance, u, v = augmented(x)
        members = self.greedy(distance, self.size)
        pair = members[:, None] & members & (labels[:, None] == labels)
        if self.way == "lipschitz":
            return members, self.sample.lipschitz * float(distance[pair].max())
        image = torch.arange(len(f))
        # a point is at distance 0 from itself in any view
        moved = (f[image[:, None], u] - f[image[None], v]).norm(dim=-1).fill_diagonal_(0)
        return members, float(moved[pair].max())

    def greedy(self, distance, delta):
        labels, members = self.population.labels, []
        for i in (distance <= delta).sum(1).argsort(descending=True).tolist():
            if all(float(distance[i, j]) <= delta for j in members if labels[i] == labels[j]):
                members.append(i)
        return torch.zeros(len(labels), dtype=torch.bool).index_fill(0, torch.tensor(members), True)

    @property
    def members(self):
        return self.part[0]

    @property
    def stretch(self):
        return self.part[1] + ROUND  # a bound of it, above its rounding

    @property
    def good(self):
        return self.members & self.population.aligned(self.epsilon)

    @property
    def quantities(self):
        """The arguments of theorem_1."""
        population = self.population
        sigma = float(population.share(self.members).clamp(0, 1).min())
        return {
            "p": population.p,
            "gram": population.gram,
            "sigma": sigma,
            "R_epsilon": min(population.R(self.epsilon), 1.0),
            "epsilon": self.epsilon,
            "stretch": self.stretch,
            "r": self.sample.r,
            "error": population.error,
        }


@st.composite
def cases(draw, tame=None):
    sample = draw(samples(tame=tame))
    way = draw(st.sampled_from(["lipschitz", "observed", "features", "anchors"]))
    return Case(
        sample, way, draw(st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.5, 1.0])), draw(epsilons(sample))
    )


def epsilons(sample):
    """Candidates for epsilon: 0, round numbers, and the diameter of some image, at which it is just
    aligned.
    """
    pair = sample.population.f[:, :, None] - sample.population.f[:, None]
    found = sorted({round(float(d) + ROUND, 9) for d in pair.norm(dim=-1).flatten(1).amax(1)})
    return st.sampled_from([0.0, 0.1 * sample.r, 0.5 * sample.r, *found])
