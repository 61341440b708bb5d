"""A certificate: each theorem's bound for an encoder, its images and its price.

Where a theorem certifies nothing, the certificate says why.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from marginlab.theory.bound import rounded_up
from marginlab.theory.certificates.by_class import ByClass
from marginlab.theory.certificates.form import SAMPLED, Form


@dataclass(frozen=True, eq=False)
class Certificate:
    """The result of `certify`: `print(certificate)`, `certificate.table()`, `certificate.figure()`.

    Attributes:
        forms: Each theorem at its best; forms of new images and of the population come last.
        error: Err(G_f) of the clean images, by the nearest of the class centers of these features.
        new_error: The error of new images by the same centers, with its exact upper limit at the
            certificate's confidence. NaN without new images.
        classes: Number of classes.
        images: Number of images.
        views: Number of views of an image.
        new_images: Number of new images.
        confidence: Confidence of the limits for new images, if the encoder was neither trained on
            nor chosen by them.
        deltas: The grid's deltas.
        epsilons: The grid's epsilons.
        holds: (deltas, epsilons), how many conditions of Theorem 1 hold at a point: 0 none, 1 (T'),
            2 (T) too, 3 (P) too.
        bounds: (deltas, epsilons), (1 - sigma) + R_eps.
        v_curve: The certified values by form with only the first views: {views: {key: value}}.
        by_class: The forms with fixed centers class by class, with limits for new images in any
            class shares; `by_class.table()`.
        left_out: Labels of the classes whose images were all put aside as new ones. The certificate
            says nothing of them.
        compared: True if the first view of each image was compared with the image. Otherwise it is
            taken to be the image.
    """

    forms: tuple[Form, ...]
    error: float
    new_error: tuple[float, float]
    classes: int
    images: int
    views: int
    new_images: int
    confidence: float
    deltas: Float[Tensor, " d"]
    epsilons: Float[Tensor, " e"]
    holds: Int[Tensor, "d e"]
    bounds: Float[Tensor, "d e"]
    v_curve: dict[int, dict[str, float]]
    by_class: ByClass
    compared: bool
    left_out: tuple[int, ...] = ()

    @property
    def chance(self) -> float:
        """Error of guessing among equally frequent classes, 1 - 1/C."""
        return 1 - 1 / self.classes

    def __getitem__(self, key: str) -> Form:
        """Return the form with this key; raise KeyError if there is none."""
        for form in self.forms:
            if form.key == key:
                return form
        keys = ", ".join(form.key for form in self.forms)
        raise KeyError(f"There is no form {key!r} in this certificate; its forms are {keys}.")

    def best(self, of: str = SAMPLED) -> Form:
        """Return the form that certifies the least error of such images.

        Args:
            of: "these images and views", "new images", "new images, by prototypes", "the
                population" or "the population, by products of centers". Forms of one kind hold at
                once: the least is no choice that would cost confidence. The kinds are of different
                classifiers, or of limits that need not hold at once.

        Raises:
            ValueError: There is no form of such images.
        """
        forms = [form for form in self.forms if form.of == of]
        if not forms:
            raise ValueError(
                f"There is no form of {of!r} here, but of "
                f"{sorted({form.of for form in self.forms})}: certify(new=...) has one."
            )
        return min(forms, key=lambda form: form.value)

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each form."""
        return [
            {
                "key": form.key,
                "form": form.title,
                "of": form.of,
                "bound": form.bound.right,
                "certifies": form.bound.certifies,
                "delta": form.delta,
                "epsilon": form.epsilon,
                "1 - sigma": form.outside,
                "1 - sigma, at least": form.outside_least,
                "R_epsilon": form.R_epsilon,
                "union": form.union,
                "rho": form.rho,
                "margin": form.margin,
                "reason": form.bound.reason,
            }
            for form in self.forms
        ]

    def __str__(self) -> str:
        """Describe the certificate in some lines for a terminal."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield (
            f"{self.images} images of {self.classes} classes in {self.views} views; nearest-center "
            f"error {self.error:.4f}, chance {self.chance:.4f}"
        )
        width = max(len(form.title) for form in self.forms)
        columns = ("delta", "eps", "1-sigma", "R_eps", "union", "rho", "margin")
        yield f"  {'':<{width}}     bound" + "".join(f"{column:>9}" for column in columns)
        for form in self.forms:
            said = f"<= {rounded_up(form.bound.right)}" if form.bound.certifies else "    -    "
            terms = (
                form.delta,
                form.epsilon,
                form.outside,
                form.R_epsilon,
                form.union,
                form.rho,
                form.margin,
            )
            yield f"  {form.title:<{width}} {said}" + "".join(
                f"{'' if math.isnan(term) else f'{term:.3g}':>9}" for term in terms
            )
        if self.left_out:
            named = ", ".join(map(str, self.left_out))
            yield (
                f"All images of class {named} are among those put aside: nothing is said of "
                f"{'it' if len(self.left_out) == 1 else 'them'}, and the other classes share its "
                "part."
            )
        if any(form.bound.reason for form in self.forms):
            yield "What certifies nothing, and why:"
        for form in self.forms:
            if form.bound.reason:
                yield f"  {form.title}: {form.bound.reason}"
        yield (
            "Of these images and views each bound is exact; for views that were not drawn it is "
            "optimistic. The first view of an image "
            + (
                "is the image."
                if self.compared
                else "is taken to be the image (give views and images to have them compared)."
            )
        )
        yield "The companion is a bound of the error of views, all others of images."
        if self.new_images:
            wrong, upper = self.new_error
            yield (
                f"{self.new_images} new images: error {wrong:.4f}, at most {rounded_up(upper)} by "
                f"their own count, each with confidence {self.confidence:g}. A certificate "
                "explains; it does not beat a test set."
            )
            yield (
                "What is said of new images holds if the encoder was neither trained on them nor "
                "chosen by them; of images it was trained on it says nothing."
            )
            if self.by_class.unknown:
                yield (
                    f"{self.by_class.unknown} of the new images are of classes without another "
                    "image: they have no center, and count as wrong."
                )
            certified, direct = (rounded_up(limit) for limit in self.by_class.limit())
            yield (
                f"In whatever shares the classes come: certified {certified}, by their own count "
                f"{direct} (the worst class, all at once)."
            )

    def figure(self) -> Any:
        """Draw a plotly figure of the certificate.

        It shows what each form certifies beside the error, where on the grid Theorem 1 holds, and
        what more views change.
        """
        # only this figure needs plotly in the theory
        from marginlab.theory.certificates.certificate_figure import Grid, draw

        grid = Grid(self.deltas, self.epsilons, self.bounds, self.holds)
        limit = (self.new_error[1], self.confidence) if self.new_images else None
        return draw(self.forms, grid, self.v_curve, chance=self.chance, limit=limit)
