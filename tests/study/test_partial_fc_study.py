"""The study of sampled classes: its presets, its refusals, and a small run on drawn characters,
with its report.
"""

import csv

import pytest
from report_pages import assert_report

from marginlab import settings, study
from marginlab.study.__main__ import main

HERE = study.load("partial_fc")


@pytest.mark.parametrize(
    "preset", sorted(path.stem for path in (HERE.home / "presets").glob("*.toml"))
)
def test_every_preset_reads_and_gives_a_grid(preset):
    chosen = HERE.settings(preset)
    assert [(cell["rate"], cell["seed"]) for cell in HERE.grid(chosen)] == [
        (rate, seed) for rate in chosen.rates for seed in chosen.seeds
    ]


def test_the_two_presets_of_all_turned_characters_differ_in_the_rate_alone():
    full, tenth = (
        settings.to_toml(HERE.settings(name)).splitlines() for name in ("omniglot", "omniglot-r01")
    )
    assert [pair for pair in zip(full, tenth, strict=True) if pair[0] != pair[1]] == [
        ("rates = [1.0]", "rates = [0.1]")
    ]


def test_the_published_rows_are_whole():
    with (HERE.home / "published.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(
        60 < float(row["value"]) < 100
        and 0 < float(row["rate"]) <= 1
        and row["source"]
        and "TAR@FAR" in row["name"]
        for row in rows
    )
    # each number once
    assert len({(row["table"], row["rate"], row["name"]) for row in rows}) == len(rows)
    for table in {row["table"] for row in rows}:
        assert "1.0" in {row["rate"] for row in rows if row["table"] == table}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rates": ()}, "each name at least one"),
        ({"rates": (1.1,)}, r"a part of the classes, in \[0, 1\], not 1.1"),
        ({"monitor": {"fars": (1e-6,)}}, "1e-06 of 200000 makes no rate"),
        ({"recipe": {"method": "MarginClassifier(margin='Arc(0.5)')"}}, "Arc"),
        ({"monitor": {"verified": ""}}, "monitor.verified names the image set to verify"),
        ({"monitor": {"verified": "digits"}}, "no split 'unseen'"),
        ({"monitor": {"verified_pairs": 10_000_000}}, "cannot be verified so"),
        (
            {"ranks": 2},
            "here are 1 processes. Start `torchrun --nproc-per-node 2 -m marginlab.study "
            "partial_fc --ranks 2`",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(changes, sentence, characters):
    with pytest.raises(settings.SettingsError, match=sentence):
        HERE.module.check(settings.replaced(HERE.module.Settings(), changes))


def test_a_small_run_verifies_characters_it_has_not_seen(characters, capsys):
    small = (
        "--image-size 16 --epochs 3 --batch 24 --rates 1.0 0.5 --precision float32 --optimizer "
        "SGD(lr=0.05) --method MarginClassifier(margin='ArcFace(0.3)',scale=16.0,dim=16) "
        "--monitor.images 24 --monitor.bank 24 --monitor.verified-pairs 200 --monitor.folds 2 "
        "--monitor.far-pairs 600 --monitor.fars 0.1"
    )
    backbone = "Backbone('resnet18', stem='strided', width=0.125, norm='group')"
    assert main(["partial_fc", *small.split(), "--backbone", backbone]) == 0
    assert "verification_accuracy" in capsys.readouterr().out
    folder = next((characters / "runs").iterdir())
    with (folder / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {
        (row["rate"], row["space"], row["quantity"]): row
        for row in rows
        if row["epoch"] in ("-1", "3")
    }
    for rate in ("1.0", "0.5"):
        row = found[rate, "projector", "verification_accuracy"]
        # of characters that differ by much more than their drawings do
        assert 0.7 < float(row["value"]) <= 1
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
        accepted = found[rate, "projector", "tar_at_far"]
        assert accepted["at"] == "0.1"
        assert 0 <= float(accepted["low"]) <= float(accepted["value"])
        assert float(found[rate, "", "target_angle"]["value"]) < 90
    full, half, trained = (
        found[rate, space, "verification_accuracy"]["value"]
        for rate, space in (("1.0", "pixels"), ("0.5", "pixels"), ("1.0", "projector"))
    )
    assert full == half != trained
    assert_report(folder / "report.html")
    report = (folder / "report.html").read_text(encoding="utf-8")
    for words in ("untrained network", "mean target angle", "WebFace12M", "95 % intervals"):
        assert words in report
