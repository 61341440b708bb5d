"""Numbers of the project's README on the studies, and of the page that all studies share."""

import unseen_page
from bounds_page import COSFACE, FORMS
from bounds_page import Table as Bounds
from concentration_page import SIGMA, Table, correlations, minutes, p
from page import Page, near, up
from small_pages import process_shares


def front() -> Page:
    """The sentences of the README that rest on studies; its benchmarks have tables of their own."""
    page = Page("README.md")
    found = correlations(Table("cifar10-cpu"))[SIGMA]
    values, chances = zip(*found, strict=True)
    page.says(
        f"Spearman {near(min(values), 2)} to {near(max(values), 2)}, p = {p(min(chances))} to "
        f"{p(max(chances))}"
    )
    new = [Bounds(name).end(COSFACE, *FORMS["new"]) for name in ("shapes", "digits")]
    page.says(f"at most {up(100 * new[0], 1)} % err there by a certificate, and at most")
    page.says(f"{up(100 * new[1], 1)} % on scikit-learn's digits")
    of = unseen_page.Unseen(unseen_page.PRESET)
    (method,) = of.methods
    population = of.seeds(method, "certified_unseen", "population")
    page.says(f"at most {up(max(population), 4)} of the population of silhouettes")
    page.says(f"and {minutes()} minutes on an older one")
    return page


def speed() -> Page:
    """The row of the benchmarks' page that rests on a study."""
    page, shares = Page("benchmarks/README.md"), process_shares()
    page.says(f"{near(shares[0], 2)} with all classes, {near(shares[1], 2)} with a tenth sampled")
    return page


def shared() -> Page:
    """The page on what numbers rest on, whose runs were measured by hand on two machines."""
    page = Page("studies/README.md")
    page.given(
        "ten runs of one command on two machines and with one and two threads, which no file keeps",
        "was .725 with one thread and .810 with two, and .733 on an AMD processor and .810 on an "
        "Intel; over ten runs it was .764 +- .038",
        "| .08 | .15 |",
        "| .02 to .03 | .02 to .03 |",
    )
    page.given("the length of a study, which test_docs runs", "in under 40 lines")
    return page
