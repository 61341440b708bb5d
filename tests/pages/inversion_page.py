"""The page of the study inversion, from its tables."""

from page import ROOT, Page, near, rows, table

LOSSES = {
    "NoMargin()": "softmax",
    "SphereFace(1.35, gradient='straight_through')": "SphereFace 1.35",
    "CosFace(0.2)": "CosFace 0.2",
    "ArcFace(0.3, gradient='straight_through')": "ArcFace 0.3",
}
LAST = "ArcFace(0.3, gradient='straight_through')"
WHOLE = {"terms": "all", "defence": "none"}


def rounded(written: str, digits: int) -> str:
    """Round a number of a table; what rounds to nothing has no sign."""
    found = near(float(written), digits)
    return found.removeprefix("-") if float(found) == 0 else found


class Measured:
    """The kept table of a preset, and its numbers as the page writes them."""

    def __init__(self, preset: str):
        self.preset, self.rows = preset, table(f"studies/inversion/measured/{preset}.csv")
        self.losses = list(dict.fromkeys(row["loss"] for row in self.rows))

    def row(self, quantity: str, space: str = "", at: str = "", **columns: str) -> dict[str, str]:
        found = rows(self.rows, quantity=quantity, space=space, at=at, **columns)
        assert len(found) == 1, f"{len(found)} rows of {quantity}, {space}, {at}, {columns}"
        return found[0]

    def number(self, *what: str, digits: int = 2, **columns: str) -> str:
        return rounded(self.row(*what, **columns)["value"], digits)

    def within(self, *what: str, digits: int = 2, **columns: str) -> str:
        row = self.row(*what, **columns)
        value, low, high = (rounded(row[name], digits) for name in ("value", "low", "high"))
        return f"{value} ({low} to {high})"

    def people(self) -> str:
        one = {"loss": self.losses[0], "attack": "closed", **WHOLE}
        return self.number("identities", "judged", digits=0, **one)

    def scores(self) -> list[list[str]]:
        """Of each loss and set: own rank-1; the judge's numbers beside the shuffled ones."""
        found = []
        for loss in self.losses:
            for attack in ("closed", "open"):
                one = {"loss": loss, "attack": attack, **WHOLE}
                found.append(
                    [
                        f"{LOSSES[loss]}, {attack}",
                        self.number("rank1", "own", **one),
                        self.within("cosine", "judge", **one),
                        self.number("cosine", "shuffled", **one),
                        self.within("rank1", "judge", **one),
                        self.within("rank5", "judge", **one),
                        self.number("rank5", "shuffled", **one),
                        self.within("median_rank", "judge", digits=0, **one),
                        self.number("median_rank", "shuffled", digits=0, **one),
                    ]
                )
        return found

    def looks(self) -> list[list[str]]:
        """Of each loss and set: distances, verification, and the nearest training image."""
        found = []
        for loss in self.losses:
            for attack in ("closed", "open"):
                one = {"loss": loss, "attack": attack, **WHOLE}
                pair = [
                    f"{self.number(name, 'generated', digits=digits, **one)} / "
                    f"{self.number(name, 'real', digits=digits, **one)}"
                    for name, digits in (
                        ("frechet_distance", 2),
                        ("kernel_distance", 3),
                        ("regenerated", 2),
                        ("nearest_pixels", 2),
                    )
                ]
                found.append([f"{LOSSES[loss]}, {attack}", *pair])
        return found

    def terms(self) -> list[list[str]]:
        """Of each term that is left out: what the judge's numbers gain."""
        named = dict.fromkeys(row["terms"] for row in self.rows)
        found = []
        for terms in (name for name in named if name not in ("all", "-")):
            for attack in ("closed", "open"):
                one = {"loss": LAST, "attack": attack, "terms": terms, "defence": "none"}
                gained = [
                    self.within(name, "difference", "all terms", **one)
                    for name in ("cosine", "rank1")
                ]
                scores = [self.number("rank1", "own", **one), self.number("cosine", "judge", **one)]
                found.append([f"{terms}, {attack}", *scores, *gained])
        return found

    def against(self) -> list[list[str]]:
        """Of each pair of losses: the difference of the judge's cosine and rank-1."""
        found = []
        for row in rows(self.rows, space="difference", quantity="cosine", terms="all"):
            one = {"loss": row["loss"], "attack": row["attack"], **WHOLE}
            pair = f"{LOSSES[row['loss']]} minus {LOSSES[row['at']]}, {row['attack']}"
            names = ("cosine", "rank1")
            found.append([pair, *(self.within(n, "difference", row["at"], **one) for n in names)])
        return found

    def maps(self, kind: str) -> tuple[list[str], list[list[str]]]:
        """Columns and rows of maps by pairs or dims: cosine and rank-1 of each loss."""
        one = {"attack": "map", "defence": "none", "loss": self.losses[0]}
        ats = [row["at"] for row in rows(self.rows, quantity="map_rank1", **one)]
        ats = [at for at in ats if at.startswith(kind)]
        found = []
        for loss in self.losses:
            of = {"attack": "map", "defence": "none", "loss": loss}
            cells = [
                f"{self.number('map_cosine', '', at, **of)}, "
                f"{self.within('map_rank1', '', at, **of)}"
                for at in ats
            ]
            found.append([LOSSES[loss], *cells])
        return [at.split()[1] for at in ats], found

    def defences(self) -> list[list[str]]:
        """Of each defence: verification, points lost, rank-1 by inversion and by maps."""
        named = dict.fromkeys(row["defence"] for row in self.rows)
        columns, _ = self.maps("pairs")
        found = []
        for defence in (*named, "no BN"):
            stored = "none" if defence == "no BN" else defence
            terms = defence if defence == "no BN" else "all"
            read = {"loss": LAST, "attack": "map", "defence": stored}
            made = {"loss": LAST, "attack": "open", "terms": terms, "defence": stored}
            alone = rows(self.rows, quantity="map_rank1", at="no pair", **read)
            found.append(
                [
                    defence,
                    self.number("verification", digits=3, **read),
                    self.within("verification_lost", **read),
                    self.within("rank1", "judge", **made),
                    self.within("map_rank1", "", f"pairs {columns[-1]}", digits=3, **read),
                    self.within("map_rank1", "", "no pair", digits=3, **read) if alone else "",
                ]
            )
        return found

    def probes(self) -> list[list[str]]:
        """The alphabet from embeddings, from pixels, and by the most frequent one."""
        found = []
        for loss in self.losses:
            of = {"loss": loss, "attack": "map", "defence": "none"}
            spaces = ("embeddings", "pixels", "most frequent")
            found.append([LOSSES[loss], *(self.number("probe", s, **of) for s in spaces)])
        return found


def presets() -> list[str]:
    """The presets that were run."""
    folder = ROOT / "studies/inversion/measured"
    return sorted(path.name.split(".")[0] for path in folder.glob("*.csv*"))


def tables(preset: str) -> dict[str, list[list[str]]]:
    """All tables of a preset as the page shows them, by what they are of."""
    of = Measured(preset)
    found = {"scores": of.scores(), "looks": of.looks(), "terms": of.terms()}
    found |= {"against": of.against(), "defences": of.defences()}
    for kind in ("pairs", "dims"):
        found[kind] = of.maps(kind)[1]
    if rows(of.rows, quantity="probe"):
        found["probes"] = of.probes()
    return found


def inversion() -> Page:
    page = Page("studies/inversion/README.md")
    for lines in tables("default").values():
        page.says_rows(*lines)
    of = Measured("default")
    for kind, title in (("pairs", "pairs"), ("dims", "dimensions")):
        page.says_rows([title, *of.maps(kind)[0]])
    closed = {"attack": "closed", "terms": "no BN", "defence": "none", "loss": LAST}
    fallen = of.number("cosine", "difference", "all terms", **closed).removeprefix("-0")
    page.says(f"under the judge falls by {fallen} without it")
    first = {"loss": of.losses[0], "attack": "closed", **WHOLE}
    share = of.number("identities", "rank-1 of the judge among all", **first)
    page.says(f"it finds {share} of them among all 200, and half among {of.people()}.")
    read = {"loss": LAST, "attack": "map", "defence": "none"}
    itself = of.within("map_rank1", "", "the images themselves", **read)
    page.says(f"the judge itself, of the images, {itself}")
    verified = {
        loss: of.number("verification", digits=3, **{**read, "loss": loss}) for loss in of.losses
    }
    softmax, *margins = verified.values()
    assert float(softmax) < min(map(float, margins))
    page.says(
        f"verifies worst, {softmax} of the pairs beside {margins[0]}, {margins[1]} and {margins[2]}"
    )
    turned = {**read, "defence": "SecretRotation(7)"}
    before, after = (
        of.number("map_rank1", "", at, digits=3, **each)
        for at, each in (("pairs 3290", read), ("no pair", turned))
    )
    page.says(f"from {before} to {after} at a loss of 0.00 points")
    page.given(
        "settings, in the head of measured/default.csv.gz and in the presets",
        "identity + 0.05 BN + 0.001 TV + 0.0001 l2, by Adam at a rate of 0.25, from N(0, 1)",
        "into [0, 1] after each step",
        "most images first and at least 64, of whom",
        "Intervals of 95 %",
        "| `default` | Omniglot, 200 characters at 20 pixels | 4, 1 | 40, 150 | 25 minutes",
        "| `omniglot` | 482 characters | 4, 3 | 40, 300 |",
        "| `lfw` | LFW at 64 pixels, people of four or more images | 4, 3 | 64, 300 |",
        "| `whole` | all 964 characters at 28 pixels | 4, 3 | 128, 2,000 |",
        "scale of 16, 64 dimensions",
        "among 330 identities",
        "of a map, 1 in 330",
        "20 x 20 pixels",
        "150 steps",
        "40 targets",
        "more than 2 points",
        "ArcFace 0.3; rows from above",
        "times 0.001, beside",
        "without 0, so no order",
        "noise outside of [0, 1] is",
        "so theirs is 1.)",
        "200 pairs tell about as much as all, and 8 coordinates nearly as much as 64",
        "its rank-1 is 0.00 without",
        "16 of 64 coordinates",
    )
    page.given(
        "the exact interval of no hit, 1 - 0.025^(1/40)",
        "of 0 in 40, up to 0.09 stays possible",
    )
    page.given(
        "by counting: half of the ranks among so many, and one over them",
        "the chance of 46",
        "the chance of 165",
    )
    page.given(
        "published, in published.csv",
        "On faces of 112 pixels, with a network of 85 thousand identities and 20,000 steps, a "
        "third network gave cosines of .56 (softmax) to .62 (ArcFace) in the closed set and .55 "
        "to .58 in the open set, and 90 to 93 % of LFW's pairs",
    )
    page.given(
        "a run that was stopped, of which no table is kept",
        "a judge of 8 epochs on 610 people found .19 of the images that it had not seen among 64 "
        "people, and .04 among all",
    )
    page.given("trials by hand that no file keeps", "of a network of 480 characters")
    return page
