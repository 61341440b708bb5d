"""The page of the study of bounds, from its tables. What is certified is rounded up."""

import json
import math

from page import ROOT, Page, down, near, rows, table, up
from unseen_page import unseen

SPELLED = {
    "MarginClassifier(margin='CosFace(0.5)', scale=4.0": "CosFace(0.5), s = 4",
    "MarginClassifier(margin='ArcFace(0.5)', scale=8.0": "ArcFace(0.5), s = 8",
    "SupCon(temperature=0.5": "SupCon, temperature 0.5",
    "SimCLR": "SimCLR",
    "BarlowTwins": "Barlow Twins",
    "SimSiam": "SimSiam",
}
WITH_LABELS, WITHOUT = list(SPELLED)[:3], list(SPELLED)[3:]
COSFACE, ARCFACE, SUPCON, SIMCLR, BARLOW, SIMSIAM = SPELLED
# title of a form: quantity, at
FORMS = {
    "new": ("certified", "new_images"),
    "P": ("certified", "P"),
    "T": ("certified", "T"),
    "T'": ("certified", "T_lengths"),
    "P, test": ("certified_test", "P"),
    "T, test": ("certified_test", "T"),
}
NEW, T_LENGTHS = FORMS["new"], FORMS["T'"]
NC1 = ("NeuralCollapse", "NC1")


class Table:
    """A committed table of one data set, a row by method, epoch, space, quantity and at."""

    def __init__(self, preset: str):
        self.all = table(f"studies/bounds/measured/{preset}.csv")
        self.last = max(int(r["epoch"]) for r in self.all)
        self.methods = list(dict.fromkeys(r["method"] for r in self.all))

    def curve(
        self, method: str, quantity: str, at: str = "", space: str = "projector"
    ) -> dict[int, float]:
        """The values of a quantity by epoch."""
        (whole,) = [m for m in self.methods if m.startswith(method)]
        found = rows(self.all, method=whole, space=space, quantity=quantity, at=at)
        return {int(r["epoch"]): float(r["value"]) for r in found}

    def end(self, method: str, quantity: str, at: str = "", space: str = "projector") -> float:
        return self.curve(method, quantity, at, space)[self.last]

    def first(self, method: str, quantity: str, at: str = "") -> float:
        return self.curve(method, quantity, at)[0]

    def begins(self, method: str, form: str) -> int | None:
        """The epoch from which on a form certifies."""
        found = self.curve(method, *FORMS[form])
        vacuous = [epoch for epoch, value in found.items() if value >= 1]
        later = [epoch for epoch in found if epoch > max(vacuous, default=-1)]
        return min(later, default=None)

    def row(self, method: str) -> list[str]:
        bounds = [self.end(method, *form) for form in FORMS.values()]
        bounds.append(self.end(method, "companion"))
        shown = ["-" if bound >= 1 else up(bound) for bound in bounds]
        return [near(self.end(method, "new_error")), *shown]


def bounds() -> Page:
    page = Page("studies/bounds/README.md")
    shapes, five, digits = (Table(name) for name in ("shapes", "default", "digits"))
    tenth, every = Table("cifar10"), Table("cifar10-margin")
    _table(page, shapes, five, digits, tenth, every)
    _certified(page, shapes, five, digits, every)
    _training(page, shapes, five, digits, tenth)
    _blame(page, shapes, five, digits)
    _losses(page, shapes, five, digits, tenth, every)
    unseen(page)
    page.given(
        "settings, in the heads of measured/*.csv and in the presets",
        "each with 15 views beside itself",
        "15 draws are then all views there are",
        "(confidence 0.95)",
        "*new batches* of 16 images",
        "(4 and 64 steps)",
        "after 800 epochs on CIFAR-10",
        "after 25 epochs of a network",
        "ArcFace or CosFace at s = 16 to 64 stops",
        "At s = 4 the softmax",
    )
    page.given(
        "definitions: symbols, guessing among 5 and 10 classes, what a condition is about",
        "1 - sigma",
        "below guessing (0.8, 0.9)",
        "at sigma = 1 and R_epsilon = 0: the theorem says error 0, and 0 is observed",
        "of what the condition asks the centers to be apart, is at its ceiling of 2",
        "centers of ten classes can have the mean product -0.11",
        "is below 1 for",
        "Both are below 1 for",
        "with tau' near 0",
        "above d - C (6 for d = 16, 54 for d = 64)",
    )
    page.given(
        "the smallest detectable differences, measured over ten runs: studies/README.md",
        "a difference below .08 and .15 is none",
    )
    shares = [
        run["share"]
        for run in json.loads((ROOT / "benchmarks/measured/monitor.json").read_text())["rows"]
        if run["monitor"] == "with bounds and five measures"
    ]
    page.says(f"takes {100 * max(shares):.0f} % of a training of 200 epochs")
    return page


def _table(
    page: Page, shapes: Table, five: Table, digits: Table, tenth: Table, every: Table
) -> None:
    for name, of in (("shapes", shapes), ("shapes-5", five), ("digits", digits)):
        found = [[title, *of.row(method)] for method, title in SPELLED.items()]
        found[0][0] = f"{name} {found[0][0]}"
        page.says_rows(*found)
    page.says_rows(["CIFAR-10 CosFace(0.5), s = 4, all images", *every.row(COSFACE)])
    for head, methods in (
        ("the same, of a tenth of the images, 12 epochs", [COSFACE]),
        ("ArcFace(0.5), s = 8, SupCon, of a tenth", [ARCFACE, SUPCON]),
        ("SimCLR, Barlow Twins, SimSiam, of a tenth", WITHOUT),
    ):
        found = [tenth.row(method) for method in methods]
        assert all(row[1:] == ["-"] * 7 for row in found), "nothing is certified of a tenth"
        errors = ", ".join(row[0] for row in found)
        page.says_rows([head, errors, *"-------"])


def _certified(page: Page, shapes: Table, five: Table, digits: Table, every: Table) -> None:
    printed = digits.end(COSFACE, *T_LENGTHS)
    page.says(f"where it certifies {up(printed)} of the training images")
    new = [of.end(m, *NEW) for of in (shapes, five, digits) for m in WITH_LABELS]
    assert len(new) == 9
    assert all(
        of.end(m, "new_error") <= of.end(m, *NEW)
        for of in (shapes, five, digits)
        for m in WITH_LABELS
    )
    page.says(f"certifies {up(100 * min(new), 1)} to {up(100 * max(new), 1)} % for all nine")
    page.says(
        f"certifies {up(every.end(COSFACE, *NEW))} of new images, of which "
        f"{near(every.end(COSFACE, 'new_error'))} err"
    )
    own = up(every.end(COSFACE, "certified", "per_class"), 2)
    page.says(f"at its own certifies {own} of the training images")
    backbone = [of.end(m, *NEW, "backbone") for of in (shapes, five, digits) for m in WITH_LABELS]
    images = up(every.end(COSFACE, *NEW, "backbone"), 2)
    page.says(
        f"certifies {up(min(backbone))} to {up(max(backbone), 1)} for the losses with labels on "
        f"shapes and digits, {images} for CosFace of all"
    )


def _training(page: Page, shapes: Table, five: Table, digits: Table, tenth: Table) -> None:
    product = tenth.end(ARCFACE, "theorem_3_mean_product")
    page.says(f"the mean product of its centers stays at {near(product, 2)}")
    least, most = {}, {}
    for of in (shapes, five):
        rho = [
            radius
            for method in of.methods
            for epoch, radius in of.curve(method, "certificate_rho", "P").items()
            if of.curve(method, *FORMS["P"])[epoch] < 1
        ]
        least[of], most[of] = min(rho), max(rho)
    page.says(
        f"rho = {near(least[shapes], 2)} was reached, {near(most[five], 2)} sufficed among five"
    )
    start = shapes.first(COSFACE, *NC1)
    cos, arc, sup = (shapes.end(m, *NC1) for m in (COSFACE, ARCFACE, SUPCON))
    page.says(
        f"it falls from {float(f'{start:.2g}'):.0f} to {near(cos, 4)} there, and to {near(arc)} "
        f"and {near(sup, 4)} for ArcFace and SupCon"
    )
    cos, sup = ([five.begins(m, form) for form in ("T'", "T", "P")] for m in (COSFACE, SUPCON))
    page.says(f"epochs {cos[0]}, {cos[1]} and {cos[2]} for CosFace on five silhouettes")
    assert sup[2] is None, "never for SupCon"
    page.says(f"{sup[0]}, {sup[1]} and never for SupCon")
    starts = [digits.begins(m, "T'") for m in (COSFACE, SUPCON)]
    begins = min(epoch for epoch in starts if epoch is not None)
    assert all(digits.begins(m, form) is None for m in WITH_LABELS for form in ("T", "P"))
    page.says(f"on digits (T') begins at epoch {begins}")


def _blame(page: Page, shapes: Table, five: Table, digits: Table) -> None:
    aligned = [
        of.end(m, "certificate_outside", "T_lengths")
        for of in (shapes, digits)
        for m in WITHOUT
        if of.end(m, "certificate_R_epsilon", "T_lengths") < 0.9
    ]
    page.says(f"(1 - sigma of {near(min(aligned), 1)} to {near(max(aligned), 2)}:")
    bare = [shapes.end(SIMSIAM, "certificate_R_epsilon", "T_lengths")]
    bare += [digits.end(m, "certificate_R_epsilon", "T_lengths") for m in WITHOUT]
    page.says(f"(R_epsilon above {down(min(bare), 2)} for SimSiam, and for all three on digits)")
    near_ones = {
        (term, digits_): near(five.end(m, f"certificate_{term}", "T_lengths"), digits_)
        for m in (SIMCLR, BARLOW)
        for term, digits_ in (("outside", 1), ("R_epsilon", 2))
    }
    apart = [near(five.end(m, "certificate_rho", "T_lengths"), 1) for m in (SIMCLR, BARLOW)]
    sigma, share = near_ones["outside", 1], near_ones["R_epsilon", 2]
    page.says(f"1 - sigma of {sigma}, R_epsilon of {share}, D of {apart[0]} and {apart[1]}")

    def products(of):
        return [near(of.end(m, "theorem_3_mean_product"), 2) for m in WITHOUT]

    on_shapes, on_digits = products(shapes), products(digits)
    largest = [near(of.end(SIMCLR, "divergence_max"), 2) for of in (shapes, digits)]
    page.says(
        f"those of SimCLR have {on_shapes[0]} on silhouettes and {on_digits[0]} on digits, with a "
        f"largest of {largest[0]} and {largest[1]}; those of Barlow Twins and SimSiam have "
        f"{on_shapes[1]} and {on_shapes[2]}, and {on_digits[1]} and {on_digits[2]}."
    )
    errors = [of.end(m, "new_error") for of in (shapes, five, digits) for m in WITHOUT]
    page.says(f"with errors of {near(min(errors), 1)} to {near(max(errors), 1)}")


def _losses(
    page: Page, shapes: Table, five: Table, digits: Table, tenth: Table, every: Table
) -> None:
    def pair(m):
        bound = up(digits.end(m, "theorem_3_all_terms"))
        return f"{bound} for {near(digits.end(m, 'theorem_3_mean_product'))}"

    page.says(f"(on digits {pair(COSFACE)} of CosFace, {pair(SIMCLR)} of SimCLR)")
    printed = [
        of.end(m, "theorem_3_printed")
        for of in (shapes, five, digits, tenth, every)
        for m in of.methods
    ]
    page.says(f"the printed form says {min(printed):.0f} to {max(printed):.0f} where 1 is trivial")
    three = (shapes, five, digits)
    refined = [of.end(COSFACE, "theorem_4_refined") for of in three]
    product = [of.end(COSFACE, "theorem_4_product") for of in three]
    page.says(
        f"({up(min(refined), 2)} to {up(max(refined), 2)}, for {near(min(product), 2)} to "
        f"{near(max(product), 2)})"
    )
    page.says(f"({up(every.end(COSFACE, 'theorem_4_refined'), 1)} of CosFace)")
    fell = [math.log10(of.first(m, "tau") / of.end(m, "tau")) for of in three for m in WITH_LABELS]
    page.says(f"tau' falls by {down(min(fell), 1)} to {near(max(fell), 1)} orders")
    l2 = {
        (of, m): (of.first(m, "CrossCorrelation_L_2"), of.end(m, "CrossCorrelation_L_2"))
        for of in three
        for m in WITH_LABELS
    }
    grown = {key for key, (start, end) in l2.items() if end > start}
    assert grown == {(five, m) for m in WITH_LABELS} | {(digits, SUPCON)}, "rises for these"
    sup, cos = l2[five, SUPCON], l2[five, COSFACE]
    page.says(f"(SupCon {sup[0]:.0f} to {sup[1]:.0f}, CosFace {cos[0]:.0f} to {cos[1]:.0f})")
    falls = [100 * (1 - end / start) for key, (start, end) in l2.items() if key not in grown]
    page.says(f"falls by {min(falls):.0f} to {max(falls):.0f} % elsewhere")
    apart = min(
        math.log10(of.end(one, "tau") / of.end(other, "tau"))
        for of in three
        for one in WITHOUT
        for other in WITH_LABELS
    )
    page.says(f"at least {down(apart, 1)} orders above that of the losses with labels")
    taus = [near(tenth.end(m, "tau"), 0) for m in (SIMCLR, SUPCON, COSFACE)]
    page.says(
        f"(SimCLR {taus[0]}, SupCon {taus[1]}, CosFace {taus[2]}, of all images "
        f"{near(every.end(COSFACE, 'tau'), 1)})"
    )
