"""The page of all findings: sentences and rows of the studies' own pages, put together again."""

import purify_page
import recognizability_page
import unseen_page
import versus_page
from concentration_page import SIGMA, Table, correlations, p
from inversion_page import LAST, WHOLE, Measured
from margins_page import shown, tables, values
from page import ROOT, Page, near, table, up
from small_pages import RUNS


def published(study: str, column: str, **columns: str) -> str:
    """The one published number with these columns, as its file writes it."""
    found = [
        row
        for row in table(f"studies/{study}/published.csv")
        if all(row[name] == value for name, value in columns.items())
    ]
    assert len(found) == 1, columns
    return found[0][column]


def labels(page: Page) -> None:
    """Noisy labels: published, and measured."""
    of = purify_page.Kept("omniglot")

    def verified(title: str) -> str:
        columns = purify_page.TRAININGS[title]
        return of.shown("verification_accuracy", "projector", **columns)

    def theirs(data: str, setting: str) -> str:
        wanted = {"data": data, "setting": setting, "name": "IJB-C TAR@FAR=1e-4"}
        return published("purify", "value", **wanted)

    page.says(
        f"in percent: {theirs('MS1MV0', 'K=1')} with K = 1, {theirs('MS1MV0', 'K=3')} with K = 3"
    )
    one, three = verified("as planted, K = 1"), verified("as planted, K = 3")
    page.says(f"two in five labels wrong: {one} with K = 1, {three} with K = 3")
    page.says(f"| {verified('purified by K = 3 at 75 degrees')}, and")
    page.says(f"and {verified('right labels only')} on the right labels")
    rows = {row[0]: row for row in purify_page.scores(of)}
    _, _, precision, recall, auc = rows["K = 3, 75 degrees"]
    page.says(f"a precision of {precision} and a recall of {recall}.")
    page.says(f"AUC {rows['K = 1, small loss, mixture'][4]} beside {auc}")


def losses(page: Page) -> None:
    """Margins, sampled classes and inversion."""
    of = table("studies/margins/measured/omniglot.csv")
    accuracy = [
        shown(values(of, quantity="verification_accuracy", loss=loss, space="projector"))
        for loss in ("arcface", "norm-softmax")
    ]
    weights = []
    for loss in ("arcface", "norm-softmax"):
        at = tables.ANGLES["W-EC"]
        found = values(of, quantity="class_angle", at=at, loss=loss, space="projector")
        weights.append(near(sum(found) / len(found), 1))
    page.says(f"{weights[0]} beside {weights[1]}; verification {accuracy[0]} beside {accuracy[1]}")
    theirs = [
        published("margins", "value", table="angles", loss=loss, name="W-EC")
        for loss in ("arcface", "norm-softmax")
    ]
    page.says(f"{theirs[0]} degrees beside {theirs[1]}")
    ours = [
        near(last_accuracy(file, rate))
        for file, rate in (
            (RUNS["omniglot-r01", "0.1", 1], "0.1"),
            (RUNS["omniglot", "1", 1], "1"),
        )
    ]
    page.says(f"one seed: {ours[0]} for {ours[1]}")
    ijb = {"table": "sampling rate", "name": "IJB-C TAR@FAR=1e-4"}
    tenth, whole = (published("partial_fc", "value", rate=rate, **ijb) for rate in ("0.1", "1.0"))
    page.says(f"IJB-C: {tenth} for {whole} with all classes")
    kept = Measured("default")
    judged = [
        kept.within("cosine", "judge", loss=loss, attack="closed", **WHOLE)
        for loss in (LAST, "NoMargin()")
    ]
    page.says(f"by a judge: {judged[0]} beside {judged[1]}")
    cosines = [
        published("inversion", "cosine", set="closed", loss=loss)
        for loss in ("ArcFace 0.5", "Softmax")
    ]
    page.says(f"{cosines[0]} for ArcFace, {cosines[1]} for a softmax")


def last_accuracy(file: str, rate: str) -> float:
    """The accuracy of verification at the end of a run of Partial FC."""
    found = [
        row
        for row in table(f"studies/partial_fc/measured/{file}.csv")
        if (row["quantity"], row["space"], row["rate"])
        == ("verification_accuracy", "projector", rate)
    ]
    return float(max(found, key=lambda row: int(row["epoch"]))["value"])


def resolution(page: Page) -> None:
    """The cluster of unrecognizable images, and recognition."""
    of = table("studies/recognizability/measured/omniglot.csv")
    shown_ = recognizability_page.shown
    low, full = (shown_(of, quantity="resultant", space="trained", at=at) for at in ("3", "32"))
    page.says(f"resultant {low} at 3 rows of pixels, {full} at 32")
    rows_ = {"quantity": "discard_gain", "space": "rows", "at": "0.1 to 0.3"}
    assert float(recognizability_page.first_of(of, variant="frozen", **rows_)["high"]) < 0
    page.says("Up to a discarded share of 0.3 it discards better than the true number of rows")
    gain = shown_(of, variant="full", quantity="rank1_gain", at="")
    page.says(f"all terms less classification alone: {gain}")
    within = shown_(of, variant="frozen", quantity="spearman_within", space="index_first")
    page.says(f"with the genuine cosine is {within}")
    page.says(f"rank-1 of {published('recognizability', 'value', data='TinyFace')} % on TinyFace")


def findings() -> Page:
    """The page, with the sources of its numbers."""
    page = Page("docs/findings.md")
    assert (ROOT / page.name).is_file()
    labels(page)
    losses(page)
    resolution(page)
    correlation, chance = zip(*correlations(Table("cifar10-cpu"))[SIGMA], strict=True)
    page.says(
        f"Spearman {near(min(correlation), 2)} to {near(max(correlation), 2)}, "
        f"p = {p(min(chance))} to {p(max(chance))}"
    )
    of = unseen_page.Unseen(unseen_page.PRESET)
    (method,) = of.methods
    limits = of.seeds(method, "certified_unseen", "population")
    page.says(f"at most {up(max(limits), 4)} of the population")
    kept = table(versus_page.TABLE)
    page.says(f"by {versus_page.contrasts(kept)[0][1]} of kNN")
    lows = [float(row[-1]) for row in versus_page.predictions(kept) if row[-1]]
    assert lows
    assert max(lows) <= 0, "a quantity exceeds its control: say so on the page"
    page.given(
        "published, in studies/purify/published.csv",
        "95.92, and 96.50 on labels that others cleaned",
    )
    page.given(
        "definitions and settings of the studies",
        "half of a 95 % interval",
        "is a 95 % interval over identities",
        "at a FAR of 1e-4 on IJB-C",
        "CosFace(0.5) at s = 4",
        "with confidence 0.95 each",
        "At 75 degrees K = 3 finds",
        "Small loss with K = 1 ranks",
    )
    return page
