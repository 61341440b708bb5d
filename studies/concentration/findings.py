"""Verdicts on the paper's statements: each holds, does not hold, or cannot be said.

Each verdict comes with the numbers that decide. Augmentations are compared by paired differences,
over disjoint blocks of images for 1 - sigma, over training seeds for errors: one is below another
if the 95 % Student interval of the difference lies below zero. An order of 1 - sigma is claimed
only where it also holds at every V >= 32 of the curve in V and after sharpening; otherwise it is an
order at that V.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from marginlab.evaluation import associate

from .grids import LADDER
from .orders import FAILS, HOLDS, OPEN, by_block, increasing, orders, smallest


class Finding(NamedTuple):
    """A statement, its author, the verdict, and the reason."""

    statement: str
    source: str
    verdict: str
    why: str


def findings(
    pixels: Mapping[str, Mapping[str, Any]],
    features: Mapping[str, Sequence[Mapping[str, Any]]],
    errors: Mapping[str, Mapping[str, Sequence[float]]],
    curves_at: Sequence[float],
) -> list[Finding]:
    """Return all statements that these measurements speak of.

    `pixels` holds the results of `concentrate` by label, `features` those of `encoded` for each
    seed, `errors` by title and label the errors of the seeds. `curves_at` are the shares of
    delta_max at which the correlation is computed again.
    """
    said: list[Finding] = []
    sigma = {label: by_block(found) for label, found in pixels.items()}
    order = orders(pixels)
    pairs = {label: found for label, found in pixels.items() if len(label) == 2}
    kNN = errors.get("kNN", {})
    if len(pairs) == 10:
        verdict, why = smallest({label: sigma[label] for label in pairs}, "ad")
        if verdict == HOLDS and not all(
            order.claims("ad", other) for other in pairs if other != "ad"
        ):
            verdict, why = OPEN, f"at V = {_V(pixels)} only: {why}"
        said.append(
            Finding(
                "(a,d) has the smallest 1 - sigma of the ten pairs",
                "section 5, Figure 3",
                verdict,
                why,
            )
        )
        for title, of in errors.items():
            said.append(
                Finding(
                    f"(a,d) has the smallest {title} error of the ten pairs",
                    "section 5, Figure 3",
                    *smallest(of, "ad"),
                )
            )
    if {"ad", "ac", "ae", "ab"} <= set(pairs):
        for name, values, source in (("1 - sigma", sigma, True), ("kNN error", kNN, False)):
            found = [increasing(values, ("ad", "ac", last)) for last in ("ae", "ab")]
            verdicts = {verdict for verdict, _ in found}
            verdict = HOLDS if verdicts == {HOLDS} else FAILS if FAILS in verdicts else OPEN
            if (
                source
                and verdict == HOLDS
                and not all(
                    order.claims(*two) for two in (("ad", "ac"), ("ac", "ae"), ("ac", "ab"))
                )
            ):
                verdict = OPEN
            words = ", ".join(
                f"{label} {float(np.mean(values[label])):.3f}" for label in ("ad", "ac", "ae", "ab")
            )
            said.append(
                Finding(
                    f"with (a) fixed, {name} orders as (a,d) < (a,c) < (a,e), (a,b)",
                    "section 5, Figure 3",
                    verdict,
                    words,
                )
            )
    if len(pairs) == 10:
        said += _correlations(pairs, errors, curves_at)
    if set(LADDER) <= set(pixels):
        said.append(
            Finding(
                "kNN error rises along abcde, abcd, abc, ab, a", "Table 1", *increasing(kNN, LADDER)
            )
        )
        said.append(
            Finding(
                "1 - sigma rises along abcde, abcd, abc, ab, a",
                "the theory's reading of Table 1",
                *increasing(sigma, LADDER),
            )
        )
    strengths = [label for label in pixels if label.startswith("ad, s=")]
    if len(strengths) > 2:
        ordered = sorted(strengths, key=lambda label: -float(label.split("=")[1]))
        said.append(
            Finding("kNN error rises as colour is weakened", "Table 2", *increasing(kNN, ordered))
        )
        said.append(
            Finding(
                "1 - sigma rises as colour is weakened",
                "the theory's reading of Table 2",
                *increasing(sigma, ordered),
            )
        )
    return said + _of_the_estimate(pixels, features)


def _V(pixels: Mapping[str, Mapping[str, Any]]) -> int:  # noqa: N802
    return int(next(iter(pixels.values()))["views"])


def _correlations(
    pairs: Mapping[str, Mapping[str, Any]],
    errors: Mapping[str, Mapping[str, Sequence[float]]],
    shares: Sequence[float],
) -> list[Finding]:
    said = []
    for title, of in errors.items():
        y = {label: float(np.mean(of[label])) for label in pairs}
        sigma = {label: kept["rows"]["one_minus_sigma"][""][0] for label, kept in pairs.items()}
        found = associate(sigma, y)
        rho, p = found.spearman.value, found.spearman.greater
        others = []
        for share in shares:
            again = associate({label: _at(kept, share) for label, kept in pairs.items()}, y)
            others.append((share, again.spearman.value, again.spearman.greater))
        verdict = HOLDS if p <= 0.05 else FAILS if rho <= 0 else OPEN
        why = f"Spearman {rho:.2f}, p = {p:.3f} (one-sided, 120 relabellings)"
        said.append(
            Finding(
                f"over the ten pairs, {title} error rises with 1 - sigma",
                "section 5, Figure 3",
                verdict,
                why,
            )
        )
        alike = [(value > 0 and q <= 0.05) == (verdict == HOLDS) for _, value, q in others]
        why = "; ".join(
            f"delta = {share:g} delta_max: {value:.2f}, p = {q:.3f}" for share, value, q in others
        )
        verdict = HOLDS if all(alike) else FAILS
        said.append(
            Finding(
                f"the answer for {title} error does not depend on delta",
                "section 5, Figure 3",
                verdict,
                why,
            )
        )
    return said


def _at(found: Mapping[str, Any], share: float) -> float:
    """1 - sigma at a share of delta_max, mean over blocks."""
    return float(
        np.interp(
            share * found["delta_max"],
            found["deltas"],
            np.mean(found["curves"]["within"]["blocks"], axis=0),
        )
    )


def _of_the_estimate(
    pixels: Mapping[str, Mapping[str, Any]], features: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Finding]:
    """Return the statements on the estimates themselves."""
    gaps = {
        label: found["rows"]["one_minus_sigma"]["control_minus_class"]
        for label, found in pixels.items()
    }
    seen = [label for label, (_, low, _, _) in gaps.items() if low > 0]
    mean = float(np.mean([gap[0] for gap in gaps.values()]))
    verdict = HOLDS if len(seen) == len(gaps) else OPEN if seen else FAILS
    why = (
        f"for {len(seen)} of {len(gaps)} augmentations; the control lies {mean:+.3f} from the "
        "class on average"
    )
    said = [
        Finding(
            "in pixels, 1 - sigma is smaller within a class than in groups drawn across classes",
            "null control",
            verdict,
            why,
        )
    ]
    nearer = {
        label: (f["rows"]["smallest_d_A"]["between"][0], f["rows"]["median_d_A"]["within"][0])
        for label, f in pixels.items()
    }
    apart = [label for label, (between, within) in nearer.items() if between > within]
    verdict = HOLDS if len(apart) == len(nearer) else FAILS if not apart else OPEN
    same = [label for label, (between, _) in nearer.items() if between == 0]
    literally = f"views of two classes coincide under {', '.join(same)}; " if same else ""
    pairs = ", ".join(f"{label} {a:.2f} / {b:.2f}" for label, (a, b) in nearer.items())
    why = f"{literally}smallest between classes against the median within: {pairs}"
    said.append(
        Finding(
            "views of different classes stay apart: assumption (ii), with a gap",
            "section 2",
            verdict,
            why,
        )
    )
    settled = {}
    for label, found in pixels.items():
        levels, within = found["deep"]["levels"], found["deep"]["within"]
        if len(levels) > 1:
            settled[label] = within[-2][1] - within[-1][1]
    if settled:
        still = [label for label, fall in settled.items() if fall > 0.01]
        verdict = HOLDS if not still else FAILS
        last = next(iter(pixels.values()))["deep"]["levels"][-2:]
        falls = f"from V = {last[0]} to {last[1]} it falls by " + ", ".join(
            f"{label} {fall:.3f}" for label, fall in settled.items()
        )
        said.append(
            Finding(
                "1 - sigma has converged in the number of views (within 0.01)",
                "estimator",
                verdict,
                falls,
            )
        )
    order = orders(pixels)
    total = len(order.stable) + len(order.local) + len(order.undecided)
    why = (
        f"{len(order.stable)} of {total} pairs; {len(order.local)} are orders at V = {_V(pixels)} "
        f"only, {len(order.undecided)} undecided"
    )
    verdict = HOLDS if len(order.stable) == total else OPEN
    said.append(
        Finding(
            "all augmentations can be ordered by 1 - sigma at every V >= 32 and after sharpening",
            "estimator",
            verdict,
            why,
        )
    )
    learnt = {
        label: [f["rows"]["one_minus_sigma"]["control_minus_class"][0] for f in found]
        for label, found in features.items()
    }
    if learnt:
        positive = [label for label, values in learnt.items() if min(values) > 0]
        mean = float(np.mean([np.mean(values) for values in learnt.values()]))
        verdict = HOLDS if len(positive) == len(learnt) else OPEN if positive else FAILS
        why = (
            f"with every seed for {len(positive)} of {len(learnt)} augmentations; on average the "
            f"control lies {mean:+.3f} from the class"
        )
        said.append(
            Finding(
                "in the features of the trained encoders, it is smaller within a class than across",
                "null control",
                verdict,
                why,
            )
        )
    return said


def in_words(found: Sequence[Finding]) -> str:
    """The findings as a paragraph."""
    parts = []
    for verdict, opening in (
        (HOLDS, "What holds here"),
        (FAILS, "What does not hold"),
        (OPEN, "What cannot be said at this scale"),
    ):
        mine = [
            f"{finding.statement} ({finding.why})"
            for finding in found
            if finding.verdict == verdict
        ]
        if mine:
            parts.append(f"**{opening}:** {'; '.join(mine)}.")
    return "\n\n".join(parts)
