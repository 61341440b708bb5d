"""Bounds on sigma from d_A matrices: curves over delta, single numbers, and the closest pairs.

    sigma(delta) = min or mean over classes k of (largest clique of d_A <= delta) / n

The graph d_A <= delta is that of the n images of a class k. Its clique is bounded from both sides
in clique_bounds.py, single numbers are taken from the bounds in step_numbers.py.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.measures.concentration import step_numbers
from marginlab.measures.concentration.closest import Pair, closest_pairs
from marginlab.measures.concentration.controls import Between
from marginlab.measures.concentration.sigma_curve import Curve, Deltas, Reduce, over_classes
from marginlab.measures.graphs.clique_bounds import bounds as bounds
from marginlab.measures.graphs.clique_bounds import monotone_bounds, searched_bounds


class ConcentrationResult(NamedTuple):
    """d_A within each class, and the numbers that follow from it.

    There are C classes, L levels (numbers of views used) and n_k images of class k. `d_A` are C
    matrices (L, n_k, n_k). `views` are the realising views (L, n_k, n_k, 2). `images` (n_k,) are
    the indices of the images in order of arrival. `n` (C,) counts the images used, and `seen` (C,)
    the images given, which weigh the classes in a mean. `spread` is the root mean square distance
    of all held views from their common mean. Flat, dark or cropped views are close to each other
    only because it is small. `meaning` says which estimates are one-sided.

    With controls, `control` is the result of groups drawn across the classes (its `classes` number
    the groups), and `between` holds the distances between images of different classes.
    """

    classes: Int[Tensor, " C"]
    d_A: tuple[Float[Tensor, "L n n"], ...]  # noqa: N815  # its name
    views: tuple[Int[Tensor, "L n n 2"], ...]
    images: tuple[Int[Tensor, " n"], ...]
    n: Int[Tensor, " C"]
    seen: Int[Tensor, " C"]
    levels: tuple[int, ...]
    V: int
    deltas: Float[Tensor, " T"] | None
    spread: float
    subsampled: bool
    meaning: str
    control: "ConcentrationResult | None" = None
    between: Between | None = None

    def sigma(
        self, delta: float, level: int | None = None, *, reduce: Reduce = "min", nodes: int = 0
    ) -> tuple[float, float]:
        """Return the lower and upper bounds of the concentration at delta.

        Args:
            delta: The distance.
            level: Number of views of each image that are used; by default the most.
            reduce: "min" takes the least over classes, "mean" the mean weighted by the images
                given.
            nodes: As in `sigma_per_class`.
        """
        lower, upper = (
            self._reduced(bound, reduce)
            for bound in self.sigma_per_class(delta, level, nodes=nodes)
        )
        return float(lower), float(upper)

    def sigma_per_class(
        self, delta: float, level: int | None = None, *, nodes: int = 0
    ) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
        """Return the lower and upper bounds of each class's concentration at delta, (C,) each.

        Args:
            delta: The distance.
            level: Number of views of each image that are used; by default the most.
            nodes: Most cliques of a class that branch and bound looks at to bring differing bounds
                closer. The bounds are equal if it ends.
        """
        at = self._level(level)
        lower, upper = (
            bound[at, :, 0] for bound in self._bounds(torch.tensor([delta], dtype=torch.float64))
        )
        if nodes:
            matrices = [d_A[at] for d_A in self.d_A]
            lower, upper = searched_bounds(matrices, delta, lower, upper, nodes)
        return lower, upper

    def curve(
        self, deltas: Deltas | None = None, level: int | None = None, reduce: Reduce = "min"
    ) -> Curve:
        """Return the band of 1 - sigma over delta.

        A curve's bound at a delta also uses its other deltas, so it may be closer than `sigma`
        there.

        Args:
            deltas: Where the curve is taken; by default the measure's deltas.
            level: Number of views of each image that are used; by default the most.
            reduce: "min" takes the worst class, "mean" weighs classes by the images given.
        """
        return self.curves(deltas, reduce)[self._level(level)]

    def curves(self, deltas: Deltas | None = None, reduce: Reduce = "min") -> tuple[Curve, ...]:
        """Return `curve` for every level, at the cost of one.

        Args:
            deltas: Where the curves are taken; by default the measure's deltas.
            reduce: As in `curve`.
        """
        given = (
            self._default_deltas()
            if deltas is None
            else torch.as_tensor(deltas, dtype=torch.float64).reshape(-1)
        )
        lower, upper = (
            self._reduced(bound.transpose(1, 2), reduce) for bound in self._bounds(given)
        )
        return tuple(
            Curve(given, 1 - up, 1 - low, views)
            for low, up, views in zip(lower, upper, self.levels, strict=True)
        )

    def area(
        self,
        delta_max: float,
        *,
        points: int = 101,
        level: int | None = None,
        reduce: Reduce = "mean",
        normalized: bool = False,
    ) -> tuple[float, float]:
        """Return lower and upper bounds of the mean of 1 - sigma over delta in [0, delta_max].

        It is small where views concentrate. 1 - sigma is a step function that falls at values of
        d_A. With fewer than `points` values it is taken on every step. Otherwise it is taken at
        `points` deltas, and the bounds allow for any change between two of them, at most
        1 / (points - 1) in all. Only the graphs of this level are used, so a bound may be wider
        than one of its `curve`.

        Args:
            delta_max: End of the range of delta.
            points: Most deltas.
            level: As in `sigma`.
            reduce: As in `sigma`.
            normalized: Take delta_max in units of `spread`.

        Raises:
            ValueError: delta_max is not positive, or there are fewer than 2 points.

        Example:
            Features of one number, one view: 1 - sigma is 2/3 up to delta = 1, 1/3 up to 3, then 0.

            >>> from marginlab.measures import Concentration
            >>> measure = Concentration(levels=(1,))
            >>> x = torch.tensor([0.0, 1.0, 3.0])[:, None, None]
            >>> measure.update(x, torch.tensor([0, 0, 0]))
            >>> lower, upper = measure.compute().area(4.0)
            >>> round(lower, 6), round(upper, 6)
            (0.333333, 0.333333)
        """
        if delta_max <= 0 or points < 2:
            raise ValueError(
                "An area needs delta_max above 0 and at least 2 points, not "
                f"delta_max={delta_max}, points={points}."
            )
        top, at = delta_max * self._unit(normalized), self._level(level)
        return step_numbers.area(self._sides(at, reduce), self._values(at), top, points)

    def delta_at(
        self,
        one_minus_sigma: float = 0.5,
        *,
        level: int | None = None,
        reduce: Reduce = "mean",
        normalized: bool = False,
    ) -> tuple[float, float]:
        """Return lower and upper bounds of the smallest delta at which 1 - sigma is small enough.

        This delta is one of the values of d_A. It always exists, because at the largest of them the
        graph is complete and 1 - sigma is 0.

        Args:
            one_minus_sigma: The value that 1 - sigma is at most.
            level: As in `sigma`.
            reduce: As in `sigma`.
            normalized: Divide delta by `spread`.

        Raises:
            ValueError: The value is not in [0, 1).

        Example:
            Features of one number, one view.

            >>> from marginlab.measures import Concentration
            >>> measure = Concentration(levels=(1,))
            >>> x = torch.tensor([0.0, 1.0, 3.0])[:, None, None]
            >>> measure.update(x, torch.tensor([0, 0, 0]))
            >>> measure.compute().delta_at(0.5), measure.compute().delta_at(0.0)
            ((1.0, 1.0), (3.0, 3.0))
        """
        if not 0 <= one_minus_sigma < 1:
            raise ValueError(
                f"1 - sigma is a fraction in [0, 1), not {one_minus_sigma}: every class has a "
                "clique of one image."
            )
        at, unit = self._level(level), self._unit(normalized)
        lower, upper = step_numbers.delta_at(
            self._sides(at, reduce), self._values(at), one_minus_sigma
        )
        return lower / unit, upper / unit

    def split(self, n: int) -> tuple["ConcentrationResult", ...]:
        """Return disjoint blocks of n images of each class, each as a result of its own.

        The blocks are the first n of `images`, the next n, and so on; a remainder is left out. They
        show the change of sigma with n and its scatter over images, without another draw. `seen`
        (the weights of the classes) and `spread` (the unit of delta) stay those of the whole.
        `control` is split alike, and `between` is left out.

        Args:
            n: Images of each class in a block.

        Raises:
            ValueError: n is below 2 or above the number of images of the smallest class.
        """
        smallest = int(self.n.min())
        if not 2 <= n <= smallest:
            raise ValueError(
                f"A block holds from 2 images of each class to the {smallest} of the smallest "
                f"class, not n = {n}."
            )
        blocks = []
        controls = None if self.control is None else self.control.split(n)
        for block, start in enumerate(range(0, smallest - n + 1, n)):
            part = slice(start, start + n)
            blocks.append(
                self._replace(
                    d_A=tuple(matrix[:, part, part] for matrix in self.d_A),
                    views=tuple(views[:, part, part] for views in self.views),
                    images=tuple(images[part] for images in self.images),
                    n=torch.full_like(self.n, n),
                    meaning=f"{self.meaning} Of these a block: images {start} to {start + n - 1} "
                    f"of each class, so the estimand is that of n = {n}.",
                    control=None if controls is None else controls[block],
                    between=None,
                )
            )
        return tuple(blocks)

    def distances(self, level: int | None = None) -> tuple[Float[Tensor, "n n"], ...]:
        """Return the d_A matrix of each class.

        Args:
            level: Number of views of each image that are used; by default the most.
        """
        return tuple(matrix[self._level(level)] for matrix in self.d_A)

    def closest(self, k: int, label: int | None = None, level: int | None = None) -> list[Pair]:
        """Return the k pairs of different images with the smallest d_A, closest first.

        There are fewer where fewer exist.

        Args:
            k: Number of pairs.
            label: Take pairs of this class only; by default of all classes.
            level: Number of views of each image that are used; by default the most.

        Raises:
            ValueError: No class has this label.
        """
        at = self._level(level)
        found: list[Pair] = []
        if label is not None and label not in self.classes.tolist():
            raise ValueError(f"No class has the label {label}: there are {self.classes.tolist()}.")
        for name, d_A, views, images in zip(
            self.classes.tolist(), self.d_A, self.views, self.images, strict=True
        ):
            if label is None or name == label:
                found += closest_pairs(k, name, d_A[at], views[at], images)
        return sorted(found, key=lambda pair: pair.distance)[:k]

    def _level(self, level: int | None) -> int:
        if level is not None and level not in self.levels:
            raise ValueError(
                f"There is no level of {level} views: there are {self.levels}. Name it when the "
                "measure is made."
            )
        return len(self.levels) - 1 if level is None else self.levels.index(level)

    def _default_deltas(self) -> Tensor:
        if self.deltas is not None:
            return self.deltas
        return torch.linspace(0, 1, 61, dtype=torch.float64) * max(float(d.max()) for d in self.d_A)

    def _unit(self, normalized: bool) -> float:
        if normalized and self.spread == 0:
            raise ValueError(
                "All views are alike: their spread is 0, and no delta can be divided by it. Ask "
                "for normalized=False."
            )
        return self.spread if normalized else 1.0

    def _values(self, at: int) -> Tensor:
        """Return the values of d_A at a level, in all classes, ascending; 0 is the first."""
        values: Tensor = torch.cat([d_A[at].flatten() for d_A in self.d_A]).unique()
        return values

    def _reduced(self, bound: Tensor, reduce: Reduce) -> Tensor:
        return over_classes(bound, self.seen, reduce)

    def _bounds(self, deltas: Tensor, at: int | None = None) -> tuple[Tensor, Tensor]:
        """Return bounds of sigma_k from below and above, (L, C, T) each.

        With `at`, they are those of one level, from this level alone, (1, C, T).
        """
        if not len(deltas) or not bool((deltas >= 0).all()):
            raise ValueError(f"delta is a distance, at least 0, not {deltas.tolist()}.")
        return monotone_bounds(
            self.d_A if at is None else [d_A[at : at + 1] for d_A in self.d_A], deltas
        )

    def _sides(self, at: int, reduce: Reduce) -> step_numbers.Sigma:
        """Return the bounds of sigma at a level, from this level alone, as a function of delta."""

        def sides(deltas: Tensor) -> tuple[Tensor, Tensor]:
            lower, upper = (
                self._reduced(bound[0].mT, reduce) for bound in self._bounds(deltas, at)
            )
            return lower, upper

        return sides
