"""A certificate: what each theorem says of an encoder, of which images, at which price, and why
where it says nothing.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from marginlab.theory.bound import Bound, rounded_up
from marginlab.theory.by_class import ByClass

SAMPLED = "these images and views"
NEW = "new images"


@dataclass(frozen=True)
class Form:
    """One theorem at its best (delta, epsilon): the bound, whom it is about, and what its terms
    cost.

    `outside` is 1 - sigma, the share outside the main parts that were found, and `outside_least`
    what no larger parts could go below; `rho` is the theorem's measure of how far good points lie
    from their center. `margin` is by how much the condition holds, negative where it fails: for (P)
    the threshold less the largest mu_l . mu_k, else the least distance of a center from the next
    less what is asked of it; of the forms that let some classes fail, over those that hold. `union`
    is the share of images outside main parts or S_eps counted together, which bounds the error of
    Theorem 1 under the same condition, and is at most (1 - sigma) + R_eps (`lemma_3_1`). Where each
    class has its own delta and epsilon, `outside` and `R_epsilon` are what the classes that hold
    add to the error of all. NaN where a form has no such term.
    """

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

    @property
    def name(self) -> str:
        """The theorem and its condition."""
        return self.bound.name

    @property
    def value(self) -> float:
        """What is certified: the bound, or 1 where it certifies nothing."""
        return self.bound.right if self.bound.certifies else 1.0


@dataclass(frozen=True, eq=False)
class Certificate:
    """What `certify` found. `print(certificate)`, `certificate.table()`, `certificate.figure()`.

    Attributes:
        forms: each theorem at its best, those of new images last.
        error: Err(G_f) of the clean images, by the nearest of the class centers of these features.
        new_error: the same of new images by the same centers, with its exact upper limit at the
            certificate's confidence; NaN without new images.
        classes, images, views, new_images: how many there are.
        confidence: of what is said of new images, if the encoder was neither trained on nor chosen
            by them.
        deltas, epsilons: the grid.
        holds: (deltas, epsilons), how many conditions of Theorem 1 hold at a point: 0 none, 1 (T'),
            2 (T) too, 3 (P) too.
        bounds: (deltas, epsilons), (1 - sigma) + R_eps.
        v_curve: the certified values by form with only the first views: {views: {name: value}}.
        by_class: the form with fixed centers class by class, with limits for new images in any
            class shares; `by_class.table()`.
        left_out: labels of the classes whose images were all put aside as new ones; it says nothing
            of them.
        compared: whether the first view of each image was compared with the image; otherwise it is
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
        """The error of guessing among equally frequent classes, 1 - 1/C."""
        return 1 - 1 / self.classes

    def __getitem__(self, name: str) -> Form:
        """The form whose name holds this text; KeyError unless it is one."""
        found = [form for form in self.forms if name in form.name]
        if len(found) != 1:
            raise KeyError(
                f"{name!r} is part of {len(found)} names of forms: "
                f"{', '.join(form.name for form in self.forms)}."
            )
        return found[0]

    def best(self, of: str = SAMPLED) -> Form:
        """The form that certifies the least error, of these images and views or of `new images`;
        ValueError where there is no form of such.
        """
        forms = [form for form in self.forms if form.of == of]
        if not forms:
            raise ValueError(
                f"There is no form of {of!r} here, but of "
                f"{sorted({form.of for form in self.forms})}: certify(new=...) has one."
            )
        return min(forms, key=lambda form: form.value)

    def table(self) -> list[dict[str, Any]]:
        """A row for each form."""
        return [
            {
                "form": form.name,
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
        """What is certified, in some lines of a terminal."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.images} images of {self.classes} classes in {self.views} views; nearest-center error {self.error:.4f}, chance {self.chance:.4f}"
        width = max(len(form.name) for form in self.forms)
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
            yield f"  {form.name:<{width}} {said}" + "".join(
                f"{'' if math.isnan(term) else f'{term:.3g}':>9}" for term in terms
            )
        if self.left_out:
            named = ", ".join(map(str, self.left_out))
            yield (
                f"All images of class {named} are among those put aside: nothing is said of "
                f"{'it' if len(self.left_out) == 1 else 'them'}, and the other classes "
                f"share its part."
            )
        if any(form.bound.reason for form in self.forms):
            yield "What certifies nothing, and why:"
        for form in self.forms:
            if form.bound.reason:
                yield f"  {form.name}: {form.bound.reason}"
        yield (
            "Of these images and views each bound is exact; for views that were not drawn "
            "it is optimistic. The first view of an image "
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
                f"their own count, each with confidence {self.confidence:g}. "
                "A certificate explains; it does not beat a test set."
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
        """A plotly figure: what each form certifies beside the error, where on the grid Theorem 1
        holds, and what more views change.
        """
        # plotly is needed here, and nowhere else in the theory
        from marginlab.theory.certificate_figure import draw

        return draw(self)
