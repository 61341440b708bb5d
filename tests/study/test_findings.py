"""The verdicts of the concentration study, on made-up measurements whose answer is known."""

import importlib
import itertools

import numpy as np
import pytest

from marginlab import study

HOME = study.load("concentration").module.__name__
findings = importlib.import_module(f"{HOME}.findings")
orders = importlib.import_module(f"{HOME}.orders")
blocks = importlib.import_module(f"{HOME}.blocks")
estimates = importlib.import_module(f"{HOME}.estimates")
PAIRS = ["".join(pair) for pair in itertools.combinations("abcde", 2)]
# of a letter: what it leaves of 1 - sigma
WORTH = {"a": 0.0, "d": 0.01, "c": 0.09, "e": 0.2, "b": 0.3}


def made(sigma, scatter=0.001, deep=None, seed=0):
    """Return the record of `concentrate` for this 1 - sigma; `deep` at V = 32, 64 and sharpened."""
    noise = np.random.default_rng(seed).normal(0, scatter, 4)
    deep = (sigma,) * 3 if deep is None else deep
    rows = {
        "one_minus_sigma_by_block": {
            str(block): (sigma + value, 0, 0, 100) for block, value in enumerate(noise)
        },
        "one_minus_sigma": {
            "": (sigma, 0, 0, 100),
            "control_minus_class": (0.1, 0.05, 0.15, 100),
        },
        "smallest_d_A": {"between": (1.0, 0, 0, 100)},
        "median_d_A": {"within": (2.0, 0, 0, 100)},
    }
    return {
        "views": 32,
        "rows": rows,
        "delta_max": 10.0,
        "deltas": [0.0, 5.0, 10.0],
        "curves": {"within": {"blocks": [[0.99, sigma, sigma / 2]] * 4}},
        "deep": {
            "levels": [32, 64],
            "within": [(value, value) for value in deep[:2]],
            "sharpened": {"within": (deep[2], deep[2])},
        },
    }


def sigma_of(found):
    return found["rows"]["one_minus_sigma"][""][0]


def verdicts(pixels, errors, features=None):
    found = findings.findings(pixels, features or {}, errors, (0.3, 0.7))
    return {finding.statement: finding.verdict for finding in found}


def concentrated():
    return {pair: made(0.1 + WORTH[pair[0]] + WORTH[pair[1]]) for pair in PAIRS}


def test_where_error_follows_concentration_every_statement_of_the_paper_holds():
    pixels = concentrated()
    errors = {
        "kNN": {
            pair: [sigma_of(pixels[pair]) + shift for shift in (0.0, 0.001, 0.002)]
            for pair in PAIRS
        }
    }
    found = verdicts(pixels, errors)
    assert {
        found[name] for name in found if "(a,d)" in name or "rises" in name or "depend" in name
    } == {"holds"}
    assert (
        found["views of different classes stay apart: assumption (ii), with a gap"]
        == "does not hold"
    )
    assert found["1 - sigma has converged in the number of views (within 0.01)"] == "holds"
    assert (
        found["in pixels, 1 - sigma is smaller within a class than in groups drawn across classes"]
        == "holds"
    )


def test_where_error_falls_with_1_minus_sigma_the_claim_does_not_hold():
    pixels = concentrated()
    errors = {
        "kNN": {
            pair: [1 - sigma_of(pixels[pair]) + shift for shift in (0.0, 0.001, 0.002)]
            for pair in PAIRS
        }
    }
    found = verdicts(pixels, errors)
    assert found["over the ten pairs, kNN error rises with 1 - sigma"] == "does not hold"
    assert found["(a,d) has the smallest kNN error of the ten pairs"] == "does not hold"


def test_an_order_that_ends_with_more_views_or_after_sharpening_is_not_claimed():
    for deep in ((0.11, 0.5, 0.11), (0.11, 0.11, 0.5)):
        pixels = {**concentrated(), "ad": made(0.11, deep=deep)}
        order = orders.orders(pixels)
        assert "ad < ac" in order.local
        assert not order.claims("ad", "ac")
        errors = {"kNN": {pair: [0.5, 0.5, 0.5] for pair in PAIRS}}
        assert (
            verdicts(pixels, errors)["(a,d) has the smallest 1 - sigma of the ten pairs"]
            == "cannot be said"
        )


def test_what_scatters_more_than_it_differs_and_what_was_measured_once_cannot_be_said():
    assert orders.below([1.0, 2.0, 3.0], [1.1, 1.9, 3.05]) is None
    assert orders.below([1.0], [2.0]) is None
    assert orders.below([1.0, 2.0, 3.0], [1.5, 2.5, 3.51]) is True
    errors = {"kNN": {pair: [0.5] for pair in PAIRS}}
    found = verdicts(concentrated(), errors)
    assert found["(a,d) has the smallest kNN error of the ten pairs"] == "cannot be said"
    assert found["over the ten pairs, kNN error rises with 1 - sigma"] != "holds"


def test_without_all_ten_pairs_nothing_is_said_of_a_correlation():
    pixels = {pair: made(0.2) for pair in ("ab", "ad")}
    assert not any(
        "ten pairs" in name for name in verdicts(pixels, {"kNN": {"ab": [0.5], "ad": [0.4]}})
    )


def test_the_interval_is_students():
    from scipy.stats import ttest_1samp

    values = [0.2, 0.5, 0.4, 0.9]
    assert estimates.interval(values) == pytest.approx(
        tuple(ttest_1samp(values, 0).confidence_interval(0.95))
    )


def test_groups_across_classes_are_as_large_and_balanced():
    import torch

    labels = torch.arange(5).repeat_interleave(10)[
        torch.randperm(50, generator=torch.Generator().manual_seed(0))
    ]
    groups = blocks.across_classes(labels)
    assert torch.bincount(groups).tolist() == [10] * 5
    for group in range(5):
        assert torch.bincount(labels[groups == group], minlength=5).tolist() == [2] * 5
