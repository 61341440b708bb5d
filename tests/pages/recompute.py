"""Recompute the numbers of the studies' pages: `python tests/pages/recompute.py`.

It prints what each page should say and does not, and which number has no source, and exits with 1
if there is one. A sentence of a page is put together from measured/*.csv in the file of its page.
"""

import sys

from bounds_page import bounds
from claims_page import claims
from concentration_page import concentration
from findings_page import findings
from front_page import front, shared, speed
from inversion_page import inversion
from margins_page import margins
from page import Page
from purify_page import purify
from recognizability_page import recognizability
from small_pages import learning_rate, partial_fc
from versus_page import versus

STUDIES = (
    bounds,
    claims,
    concentration,
    findings,
    inversion,
    learning_rate,
    margins,
    partial_fc,
    purify,
    recognizability,
    shared,
    versus,
)
PAGES = {page.__name__: page for page in STUDIES}


def faults() -> dict[str, list[str]]:
    """Say what is wrong on each page; of the README, of which only some sentences are of studies,
    numbers without a source are not looked for."""
    found = {page: make().faults() for page, make in PAGES.items()}
    return found | {front.__name__: front().wrong, speed.__name__: speed().wrong}


def main() -> int:
    """Print the faults of all pages."""
    found = faults()
    for page, wrong in found.items():
        print(f"{page}: {len(wrong)} faults", *wrong, sep="\n")
    return int(any(found.values()))


__all__ = ["PAGES", "Page", "faults", "main"]

if __name__ == "__main__":
    sys.exit(main())
