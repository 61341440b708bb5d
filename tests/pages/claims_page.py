"""The claims ledger, from the tables of all studies."""

import json

import purify_page
import recognizability_page
from bounds_page import COSFACE, WITHOUT
from bounds_page import Table as Bounds
from concentration_page import CONTROL, SIGMA, correlations, p
from concentration_page import Table as Concentration
from inversion_page import LAST, WHOLE, Measured
from margins_page import shown, values
from page import ROOT, Page, near, table, value
from versus_page import TABLE
from versus_page import prediction as prediction_of

from marginlab.plan import Setup, memory, work

# of the presets of partial_fc: characters, and with their quarter turns
CLASSES = {"default": "964", "omniglot": "3,856"}


def claims() -> Page:
    page = Page("docs/claims.md")
    concentration(page)
    bounds(page)
    prediction(page)
    margins(page)
    inversion(page)
    partial_fc(page)
    purification(page)
    resolution(page)
    page.given(
        "names and places of the papers",
        *("arXiv 2111.00743", "arXiv 1801.07698", "arXiv 2203.15565", "arXiv 2304.10066"),
        "TPAMI 2022",
        "Abstract of version 4",
    )
    page.given("a symbol, the share outside of the clique", "1 - sigma")
    page.given("a setting of the study concentration", "converged at 256 views")
    return page


def concentration(page: Page) -> None:
    of = Concentration("cifar10-cpu")
    least, *_, most = [(near(round(of.mean(SIGMA, k), 9)), ",".join(k)) for k in of.letters()]
    page.says(
        f"1 - sigma at half of the largest delta is {least[0]} ({least[1]}) to {most[0]} "
        f"({most[1]})."
    )
    found = correlations(of)
    r, chances = zip(*found[SIGMA], strict=True)
    control = [one for one, _ in found[CONTROL]]
    page.says(
        f"Spearman {near(min(r), 2)} to {near(max(r), 2)}, p = {p(min(chances))} to "
        f"{p(max(chances))} over 120 relabellings. The control across classes: "
        f"{near(min(control), 2)} to {near(max(control), 2)}."
    )


def bounds(page: Page) -> None:
    shapes, five, digits = (Bounds(name) for name in ("shapes", "default", "digits"))
    assert shapes.end(COSFACE, "new_error") <= shapes.end(COSFACE, "certified", "P")
    page.says(
        f"certifies an error of {near(shapes.end(COSFACE, 'certified', 'P'))} for CosFace as "
        "printed"
    )
    nothing = [of.end(m, "certified", "P") for of in (shapes, digits) for m in WITHOUT]
    assert min(nothing) >= 1, "it certifies nothing, there and on digits"
    simclr = WITHOUT[0]
    bound, product = (digits.end(simclr, f"theorem_3_{of}") for of in ("all_terms", "mean_product"))
    page.says(f"With all terms it is {near(bound)} for a mean product of {near(product)}")
    printed = [
        of.end(m, "theorem_3_printed")
        for of in (shapes, five, digits, Bounds("cifar10"), Bounds("cifar10-margin"))
        for m in of.methods
    ]
    page.says(f"As printed it says {min(printed):.0f} to {max(printed):.0f} where 1 is trivial")
    limit = 0.25
    of_learnt = [
        of.end(m, "theorem_4_printed")
        for of in (shapes, five, digits)
        for m in of.methods
        if of.end(m, "new_error") < limit
    ]
    assert min(of_learnt) >= 1
    page.says(
        "As printed it is below 1, in units of r^2, for no encoder of silhouettes or digits that "
        f"errs on fewer than {limit} of new images"
    )


def prediction(page: Page) -> None:
    """Correlations of quantities with the kNN error over the augmentations of `versus`."""
    of = table(TABLE)

    def told(one, more=""):
        return f"{near(one.r, 2)} ({near(one.low, 2)} to {near(one.high, 2)}{more})"

    margin, contrastive = (
        prediction_of(of, family, "alignment", "backbone") for family in ("margin", "contrastive")
    )
    page.says(
        "Spearman's correlation with the kNN error is "
        f"{told(margin, f', p = {near(margin.p, 2)}')} for margin methods, and "
        f"{told(contrastive)} for contrastive ones"
    )
    one = prediction_of(of, "contrastive", "divergence", "backbone")
    page.says(
        f"{told(one)} for contrastive methods. With shuffled classes it is {near(one.control, 2)}"
    )
    one = prediction_of(of, "contrastive", "one_minus_sigma", "pixels")
    page.says(f"{told(one)} for contrastive methods, with shuffled classes {near(one.control, 2)}.")


def margins(page: Page) -> None:
    def less(of, loss):
        own, base = (
            values(of, quantity="verification_accuracy", loss=name, space="projector")
            for name in (loss, "arcface")
        )
        return shown([a - b for a, b in zip(own, base, strict=True)])

    omniglot, lfw = (table(f"studies/margins/measured/{name}.csv") for name in ("omniglot", "lfw"))
    page.says(
        f"plain softmax less ArcFace, paired by three seeds: {less(omniglot, 'softmax')}. The "
        "normalised softmax without a margin less ArcFace: "
        f"{less(omniglot, 'norm-softmax')}. On faces (LFW): {less(lfw, 'softmax')} and "
        f"{less(lfw, 'norm-softmax')}."
    )


def inversion(page: Page) -> None:
    of = Measured("default")
    closed, opened = ({"loss": LAST, "attack": a, **WHOLE} for a in ("closed", "open"))

    def cosine(one):
        return (
            f"cosine {of.within('cosine', 'judge', **one)}, for shuffled targets "
            f"{of.number('cosine', 'shuffled', **one)}"
        )

    page.says(f"{cosine(closed)}; rank-1 {of.within('rank1', 'judge', **closed)}.")
    page.says(f"{cosine(opened)}; rank-1 {of.number('rank1', 'judge', **opened)} of 40 images")
    softmax, _, cosface = of.losses[:3]
    gains = [
        of.within("cosine", "difference", against, **one)
        for one, against in ((closed, softmax), (opened, softmax), (closed, cosface))
    ]
    page.says(
        f"ArcFace minus softmax: {gains[0]} of training classes, {gains[1]} of others. Minus "
        f"CosFace: {gains[2]}."
    )


def purification(page: Page) -> None:
    of = purify_page.Kept("omniglot")

    def less(one, other):
        found = (
            of.values("verification_accuracy", "projector", **purify_page.TRAININGS[name])
            for name in (one, other)
        )
        return purify_page.spread([a - b for a, b in zip(*found, strict=True)])

    lost = less("no noise", "as planted, K = 1")
    page.says(f"with right labels less that with two in five wrong: {lost}.")
    (_, right, wrong, off, found, _) = purify_page.shares(of)[1]
    page.says(
        f"CosFace(0.3) with K = 3, the shares of all images: {right} clean and {wrong} noisy at "
        f"the dominant center, {off} clean and {found} noisy at others."
    )
    scores = {row[0]: row for row in purify_page.scores(of)}
    _, _, precision, recall, _ = scores["K = 3, 75 degrees"]
    gained = less("purified by K = 3 at 75 degrees", "as planted, K = 3")
    page.says(
        f"at 75 degrees less before: {gained}. The noise is found with a precision of {precision} "
        f"and a recall of {recall}."
    )
    page.given("a margin", "CosFace(0.3), verification")


def resolution(page: Page) -> None:
    of = table("studies/recognizability/measured/omniglot.csv")

    def told(variant, quantity, space="", at=""):
        return recognizability_page.shown(
            of, variant=variant, quantity=quantity, space=space, at=at
        )

    area = {"quantity": "discard_gain", "space": "ers_first", "at": "0.1 to 0.3"}
    page.says(
        "with the rows of unseen characters "
        f"{told('frozen', 'spearman_resolution', 'index_first')}; error-versus-discard area less "
        f"that of ERS {told('frozen', **area)}."
    )
    page.says(f"is worse than ERS, by {told('full', **area)}.")
    cosines = [told(v, "center_cosine", "after") for v in ("L1+LID", "classification")]
    page.says(f"{cosines[0]} with diversion, {cosines[1]} without.")
    page.says(f"Rank-1 with it less without: {told('L1+LID', 'rank1_gain')}.")
    page.says(
        f"less one half: {told('full', 'attention_gain', 'uniform', '32')}. Deletion by the map is "
        f"not told from a random one: {told('full', 'deletion_gain', 'random')}."
    )
    page.says(f"Rank-1 with attention less without: {told('LMSE', 'rank1_gain')}.")


def partial_fc(page: Page) -> None:
    held = []
    for classes in (1e6, 1e7):
        parts = memory(Setup(classes=classes, ranks=1, dim=512))["loss"]
        held.append(near((parts["centers"] + parts["optimizer state"]) / 2**30, 1))
    page.says(
        f"centers and momentum of 512 dimensions take {held[0]} GiB for a million classes and "
        f"{held[1]} GiB for ten"
    )
    tenth, every = (work(Setup(sample_rate=rate)) for rate in (0.1, 1.0))
    page.says(f"a tenth of the classes takes {near(tenth.flop / every.flop, 2)} of the products")
    few, many = json.loads((ROOT / "benchmarks/measured/partial_fc.json").read_text())["rows"]
    assert few["sampled"] == many["sampled"]
    page.says(
        f"With {many['sampled']:,} classes sampled, a step at {many['classes']:,} classes takes "
        f"{near(many['step_of_first'], 2)} times that at {few['classes']:,}"
    )

    def accuracy(file, rate):
        of = table(f"studies/partial_fc/measured/{file}.csv")
        last = max(int(row["epoch"]) for row in of)
        one = {"rate": rate, "epoch": last, "space": "projector"}
        one["quantity"] = "verification_accuracy"
        found = [near(value(of, column, **one)) for column in ("value", "low", "high")]
        return "{} ({} to {})".format(*found)

    page.says(
        f"among {CLASSES['default']} classes {accuracy('default', '0.1')} against "
        f"{accuracy('default', '1')}; among {CLASSES['omniglot']} "
        f"{accuracy('omniglot-r01', '0.1')} against {accuracy('omniglot', '1')}."
    )
