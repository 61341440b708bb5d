"""A form: one theorem at the point of its grid where it certifies the least error."""

import math
from dataclasses import dataclass

from marginlab.theory.bound import Bound

SAMPLED = "these images and views"
NEW = "new images"
PROTOTYPES = "new images, by prototypes"
POPULATION = "the population"
BY_LOSS = "the population, by products of centers"


@dataclass(frozen=True)
class Form:
    """One theorem at its best (delta, epsilon): the bound, its images, and the cost of its terms.

    A term that a form does not have is NaN.

    Attributes:
        key: Name for code: "P", "T", "T_lengths" (Theorem 1 under each condition), "per_class",
            "fixed_centers", "companion"; of new images "new_images" (fixed centers with fixed
            reaches), "image_wise", "prototypes"; of the population "population_T", "population",
            "theorem_3" and "products"; with "_pixels" at the end if the main parts are those of
            pixel distances.
        bound: The bound.
        of: The images that it is about.
        delta: delta at the best point.
        epsilon: epsilon at the best point.
        outside: 1 - sigma, the share outside the main parts that were found. Where each class has
            its own delta and epsilon, what the classes that hold add to the error of all.
        outside_least: The value of 1 - sigma that no larger parts could go below.
        R_epsilon: R_eps. Where each class has its own delta and epsilon, what the classes that hold
            add to the error of all.
        rho: The theorem's measure of how far good points lie from their center.
        margin: By how much the condition holds, negative where it fails. For (P) it is the
            threshold less the largest mu_l . mu_k; else it is the least distance of a center from
            the next less the distance that the condition asks. For forms that let some classes
            fail, it is over those that hold.
        union: The share of images outside main parts or S_eps, counted together. It bounds the
            error of Theorem 1 under the same condition, and is at most (1 - sigma) + R_eps
            (`lemma_3_1`).
        prototypes: Number of prototypes of each class, 0 where the form has none.
    """

    key: str
    bound: Bound
    of: str = SAMPLED
    delta: float = math.nan
    epsilon: float = math.nan
    outside: float = math.nan
    outside_least: float = math.nan
    R_epsilon: float = math.nan
    rho: float = math.nan
    margin: float = math.nan
    union: float = math.nan
    prototypes: int = 0

    @property
    def title(self) -> str:
        """Name for people: the theorem and its condition."""
        return self.bound.name

    @property
    def value(self) -> float:
        """Certified value: the bound, or 1 where it certifies nothing."""
        return self.bound.right if self.bound.certifies else 1.0
