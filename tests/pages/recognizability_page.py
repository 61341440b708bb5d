"""The page of the study recognizability, from its tables."""

from page import Page, near, rows, table

FILES = "studies/recognizability/measured"
SCORES = {  # on the page: in the table
    "predicted index": "index",
    "index, head on the first network": "index_first",
    "ERS of the first network": "ers_first",
    "ERS of the own network": "ers_own",
    "CR-FIQA": "cr_fiqa",
    "TransFIRA": "transfira",
    "SDD-FIQA": "sdd_fiqa",
    "SER-FIQ": "ser_fiq",
    "GraFIQs": "grafiqs",
    "length of the embedding": "norm",
    "highest gallery cosine": "gallery",
    "true rows": "rows",
    "random": "random",
}
VARIANTS = ("frozen", "classification", "L1", "L1+LID", "LMSE", "full")


def with_interval(row: dict[str, str]) -> str:
    """A value with its interval, as the page writes it."""
    if row["low"] in ("", "nan"):
        return near(float(row["value"]))
    value, low, high = (near(float(row[name])) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def shown(of, seed="all", **columns) -> str:
    """The one row with these columns, or nothing."""
    found = rows(of, seed=seed, **columns)
    assert len(found) <= 1, columns
    return with_interval(found[0]) if found else ""


def levels(of, quantity: str, **columns) -> list[str]:
    """The numbers of rows at which a quantity was measured, in the order of the table."""
    found = rows(of, seed="all", quantity=quantity, **columns)
    return list(dict.fromkeys(row["at"] for row in found if row["at"]))


def cluster(of) -> list[list[str]]:
    """Rows of the table of the cluster."""
    return [
        [
            at,
            *(shown(of, quantity="resultant", space=s, at=at) for s in ("trained", "untrained")),
            shown(of, quantity="index", at=at),
        ]
        for at in levels(of, "resultant", space="trained")
    ]


def recognition(of) -> list[list[str]]:
    """Rows of the table of the variants."""
    return [
        [
            variant,
            shown(of, variant=variant, quantity="rank1", at=""),
            shown(of, variant=variant, quantity="rank1_gain", at=""),
            shown(of, variant=variant, quantity="tpir"),
            *(
                shown(of, variant=variant, quantity="center_cosine", space=space)
                for space in ("after", "own")
            ),
        ]
        for variant in VARIANTS
        if rows(of, seed="all", variant=variant)
    ]


def quality(of, variant: str, fnmr: str, limits: tuple[str, ...] = ("0.3", "0.95")):
    """Rows of the table of scores."""
    found = []
    for title, score in SCORES.items():
        if not rows(of, seed="all", variant=variant, quantity="discard_area", space=score):
            continue
        same = {"variant": variant, "space": score}
        row = [
            title,
            shown(of, quantity="spearman_resolution", **same),
            shown(of, quantity="spearman_within", **same),
        ]
        for limit in limits:
            at = f"{fnmr} to {limit}"
            row += [
                shown(of, quantity="discard_area", at=at, **same),
                shown(of, quantity="discard_gain", at=at, **same),
            ]
        found.append(row)
    return found


def attention(of, variant: str) -> list[list[str]]:
    """Rows of the table of maps."""
    places = levels(of, "attention_share", variant=variant, space="own")
    found = []
    for title, space in (("trained", "own"), ("untrained", "untrained"), ("random", "random")):
        same = {"variant": variant, "space": space}
        found.append(
            [
                title,
                *(shown(of, quantity="attention_share", at=at, **same) for at in places),
                shown(of, quantity="deletion", **same),
                shown(of, quantity="insertion", **same),
            ]
        )
    return found


def gains(of, variant: str) -> list[list[str]]:
    """Rows of the differences of the trained map to others."""
    places = levels(of, "attention_share", variant=variant, space="own")
    found = []
    for space in ("uniform", "untrained", "random"):
        same = {"variant": variant, "space": space}
        found.append(
            [
                f"trained less {space}",
                *(shown(of, quantity="attention_gain", at=at, **same) for at in places),
                shown(of, quantity="deletion_gain", **same),
                shown(of, quantity="insertion_gain", **same),
            ]
        )
    return found


def read(name: str):
    """A kept table."""
    return table(f"{FILES}/{name}.csv")


def bank(of) -> str:
    """The sentence on the bank that clustering finds."""

    def mean(name):
        return shown(of, variant="frozen", quantity=name)

    seeds = [row for row in rows(of, quantity="bank_accepted") if row["seed"] != "all"]
    accepted = sum(float(row["value"]) for row in seeds)
    return (
        f"The bank that clustering finds has a cosine of {mean('bank_cosine')} with ruined images, "
        f"holds {mean('bank_share')} of the full ones, and is {mean('bank_ratio')} times as large "
        f"as the next cluster, as means over the seeds. It is accepted on {accepted:.0f} of "
        f"{len(seeds)} seeds. Its center has a cosine of {mean('centers_cosine')} with that of "
        f"ruined images. Spearman's correlation of the index with the number of rows is "
        f"{mean('index_spearman')}."
    )


def seeds(of, **columns) -> str:
    """The values of the seeds, from the least to the largest."""
    values = [float(r["value"]) for r in rows(of, **columns) if r["seed"] != "all"]
    return f"{near(min(values))} to {near(max(values))}"


def tables(of, name: str) -> list[list[list[str]]]:
    """All tables of a preset, in the order of the page."""
    found = [cluster(of), recognition(of), quality(of, "frozen", "0.1"), quality(of, "full", "0.1")]
    return [*found, [*attention(of, "full"), *gains(of, "full")]]


def recognizability() -> Page:
    page = Page("studies/recognizability/README.md")
    for name in PRESETS:
        of = read(name)
        for each in tables(of, name):
            page.says_rows(*each)
        page.says(bank(of))
        for sentence in SENTENCES[name](of):
            page.says(sentence)
    page.given(
        "settings, in the presets and in study.py",
        "(at least 0.9)",
        "(at most 0.5)",
        "TPIR at rank 20 and an FPIR of 0.1",
        "share, 1 for a score",
        "is 0.5 for a uniform map",
        "2 x 2 places",
        "4 x 4 on the faces",
        "Intervals are of 95 %",
        "(1, 0.02, 1), tau = 3",
    )
    return page
