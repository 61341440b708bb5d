"""The page of the study recognizability, from its tables."""

import itertools

from page import ROOT, Page, near, rows, table

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


def first_of(of, **columns) -> dict[str, str]:
    """The one row over all seeds with these columns."""
    (found,) = rows(of, seed="all", **columns)
    return found


def verdict(row: dict[str, str], below: str, above: str) -> str:
    """Words for the interval of a difference."""
    if float(row["high"]) < 0:
        return below
    return above if float(row["low"]) > 0 else "cannot be told from"


def over_seeds(of, **columns) -> str:
    """The values of the seeds, from the least to the largest."""
    values = [float(r["value"]) for r in rows(of, **columns) if r["seed"] != "all"]
    return f"{near(min(values))} to {near(max(values))}"


def cluster_words(of) -> list[str]:
    """Sentences on the cluster and the bank."""
    places = levels(of, "resultant", space="trained")

    def mean(name):
        return shown(of, variant="frozen", quantity=name)

    def resultant(at):
        return over_seeds(of, quantity="resultant", space="trained", at=at)

    accepted = [row for row in rows(of, quantity="bank_accepted") if row["seed"] != "all"]
    number = sum(float(row["value"]) for row in accepted)
    falls = [float(first_of(of, quantity="index", at=at)["value"]) for at in places]
    falling = all(a > b for a, b in itertools.pairwise(falls))
    return [
        f"Over the seeds the resultant is {resultant(places[-1])} at {places[-1]} rows and "
        f"{resultant(places[0])} at {places[0]}.",
        f"The mean index {'falls' if falling else 'does not fall'} at every step from "
        f"{near(falls[0])} to {near(falls[-1])}.",
        f"The bank that clustering finds has a cosine of {mean('bank_cosine')} with ruined images, "
        f"holds {mean('bank_share')} of the full ones, and is {mean('bank_ratio')} times as large "
        f"as the next cluster, as means over the seeds. It is accepted on {number:.0f} of "
        f"{len(accepted)} seeds. Its center has a cosine of {mean('centers_cosine')} with that of "
        f"ruined images.",
        f"Spearman's correlation of the index with the number of rows, on new images of the "
        f"trained classes, is {mean('index_spearman')}.",
    ]


def quality_words(of, variant: str) -> list[str]:
    """Sentences on the predicted index against ERS and the highest gallery cosine."""
    scores = {row["space"] for row in rows(of, variant=variant, quantity="discard_area")}
    index = "index" if "index" in scores else "index_first"
    found = []
    for title, score in (("ERS", "ers_first"), ("the highest gallery cosine", "gallery")):
        for fnmr in ("0.1", "0.3"):
            parts = []
            for limit in ("0.3", "0.95"):
                same = {"variant": variant, "quantity": "discard_gain", "space": score}
                row = first_of(of, at=f"{fnmr} to {limit}", **same)
                judged = verdict(row, "is better than", "is worse than")
                parts.append(f"{judged} {title} up to a share of {limit} ({with_interval(row)})")
            found.append(
                f"From an initial rate of {fnmr} the predicted index {parts[0]}, and {parts[1]}."
            )
    one, other, third = (
        shown(of, variant=variant, quantity="spearman_within", space=score)
        for score in (index, "ers_first", "gallery")
    )
    rows_ = shown(of, variant=variant, quantity="spearman_resolution", space=index)
    ers = shown(of, variant=variant, quantity="spearman_resolution", space="ers_first")
    found.append(
        f"Spearman's correlation with the number of rows is {rows_} (ERS: {ers}); with the genuine "
        f"cosine among probes of as many rows it is {one} (ERS: {other}, the highest gallery "
        f"cosine: {third})."
    )
    return found


def recognition_words(of) -> list[str]:
    """Sentences on what each term changes, and on diversion."""
    found = []
    for variant in VARIANTS[2:]:
        if rows(of, seed="all", variant=variant):
            row = first_of(of, variant=variant, quantity="rank1_gain", at="")
            judged = verdict(row, "is worse than", "is better than")
            found.append(
                f"Rank-1 of `{variant}` {judged} that of classification alone "
                f"({with_interval(row)})."
            )
    before = shown(of, variant="frozen", quantity="center_cosine", space="before")
    cosines = [
        f"{shown(of, variant=v, quantity='center_cosine', space='after')} (`{v}`)"
        for v in VARIANTS[1:]
        if rows(of, seed="all", variant=v)
    ]
    found.append(
        f"The mean cosine of probes with the first network's center is {before} before and "
        f"{', '.join(cosines)} after fine-tuning."
    )
    return found


def attention_words(of) -> list[str]:
    """Sentences on the share of attention on the visible half, and on the curves."""
    found = []
    for at in levels(of, "attention_share", variant="full", space="own"):
        for space in ("uniform", "untrained"):
            same = {"variant": "full", "quantity": "attention_gain", "space": space, "at": at}
            row = first_of(of, **same)
            judged = verdict(row, "is below", "is above")
            found.append(
                f"At {at} rows the share of the trained map on the visible half {judged} that of "
                f"the {space} map ({with_interval(row)})."
            )
    for quantity in ("deletion", "insertion"):
        row = first_of(of, variant="full", quantity=f"{quantity}_gain", space="random")
        judged = verdict(row, "is below", "is above")
        found.append(
            f"The curve of {quantity} by the trained map {judged} that by a random one "
            f"({with_interval(row)})."
        )
    return found


def parts(of) -> list[tuple[str, list[str], list[list[str]], list[str]]]:
    """Sections of a run: heading, head of its table, rows of the table, and sentences."""
    areas = ["Spearman, rows", "Spearman, within", "area to .3", "index less it"]
    areas += ["area to .95", "index less it"]
    head = ["rows of pixels", "resultant, trained", "untrained", "index"]
    found = [("Cluster and index", head, cluster(of), cluster_words(of))]
    there = {row["variant"] for row in of}
    for variant in ("frozen", "full"):
        if variant in there:
            title = f"Scores of quality, `{variant}`, from an initial rate of 0.1"
            shown_ = quality(of, variant, "0.1")
            found.append((title, ["score", *areas], shown_, quality_words(of, variant)))
    if "full" in there:
        head = ["variant", "rank-1", "gain", "TPIR", "cosine, first center", "own center"]
        found.append(("Recognition and diversion", head, recognition(of), recognition_words(of)))
        places = levels(of, "attention_share", variant="full", space="own")
        head = ["map", *(f"share, {at} rows" for at in places), "deletion", "insertion"]
        table_ = [*attention(of, "full"), *gains(of, "full")]
        found.append(("Attention of `full`", head, table_, attention_words(of)))
    return found


def kept() -> list[str]:
    """Names of the kept tables."""
    names = (path.name.split(".")[0] for path in (ROOT / FILES).glob("*.csv*"))
    return sorted(names, reverse=True)  # characters before faces


def recognizability() -> Page:
    page = Page("studies/recognizability/README.md")
    for name in kept():
        for _, head, shown_, words in parts(table(f"{FILES}/{name}.csv")):
            page.says_rows(*shown_)
            page.given("the head of a table", " ".join(["|", *(f"{cell} |" for cell in head)]))
            for sentence in words:
                page.says(sentence)
        page.given("settings of the run", "from an initial rate of 0.1")
    page.given(
        "settings, in the presets and in study.py",
        "(at least 0.9)",
        "(at most 0.5)",
        "- Recognition: rank-1 of probes",
        "TPIR at rank 20 and an FPIR of 0.1",
        "1 for a score that says nothing",
        "is 0.5 for a uniform map",
        "2 x 2 places",
        "4 x 4 on the faces",
        "Intervals are of 95 %",
        "(1, 0.02, 1), tau = 3",
        "964 characters are learnt, 200 of other alphabets judged; 32 rows to 6; 3 seeds",
        "64 rows to 6; 3 seeds",
        "5 seeds | a GPU; not run",
        "three epochs of 2,892 images",
    )
    page.given(
        "published, in published.csv",
        "a rank-1 rate on TinyFace",
        "73.06 % rank-1",
        "153,428 distractors",
    )
    return page
