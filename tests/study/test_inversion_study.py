"""The study of inversion: its presets, its parts of the data, its refusals, and a small run."""

import csv
import math

import pytest
import torch
from drawn_characters import draw_characters
from report_pages import assert_report

from marginlab import settings, study
from marginlab.study.__main__ import main

HERE = study.load("inversion")
MODULE = HERE.module


@pytest.mark.parametrize(
    "preset", sorted(path.stem for path in (HERE.home / "presets").glob("*.toml"))
)
def test_every_preset_reads_and_gives_a_grid(preset):
    chosen = HERE.settings(preset)
    grid = HERE.grid(chosen)
    attacked = {(cell["loss"], cell["attack"]) for cell in grid if cell["terms"] == "all"}
    assert attacked == {(loss, attack) for loss in chosen.losses for attack in ("closed", "open")}
    assert chosen.judge.seed not in chosen.seeds
    assert chosen.judge.backbone != chosen.recipe.backbone


@pytest.fixture
def characters(tmp_path, monkeypatch):
    """A set like Omniglot: 12 characters of 2 alphabets to learn, and 12 others."""
    return draw_characters(tmp_path, monkeypatch, 12, lambda _, k: "ab"[k // 2 % 2])


def test_the_parts_share_no_image_and_the_right_identities(characters):
    parts = MODULE.networks.people.parts_of("omniglot-upright", 16, 4, 10)
    assert [len(part) for part in parts[:4]] == [120, 120, 60, 60]
    own, judge, known, public = ([image.numpy().tobytes() for image in p.images] for p in parts[:4])
    assert not set(own) & set(judge)
    assert not set(known) & set(public)
    assert parts.own.classes == parts.judge.classes
    assert not set(parts.known.classes) & set(parts.public.classes)
    first = MODULE.networks.people.one_image(parts.known.labels, torch.tensor([3, 0, 5]), seed=1)
    other = MODULE.networks.people.next_image(parts.known.labels, first)
    assert parts.known.labels[first].tolist() == [3, 0, 5] == parts.known.labels[other].tolist()
    assert not bool((first == other).any())


def test_seeds_have_targets_of_their_own_while_there_are_enough():
    drawn = [MODULE.networks.people.chosen(20, 6, seed) for seed in range(3)]
    assert len(set(torch.cat(drawn).tolist())) == 18
    assert len(set(MODULE.networks.people.chosen(20, 6, 3).tolist())) == 6


def test_principal_axes_keep_cosines_and_order():
    x = torch.randn(50, 6) * torch.tensor([1.0, 5.0, 1.0, 1.0, 1.0, 0.1])
    axes = MODULE.maps.principal_axes(x)
    assert torch.allclose(axes.T @ axes, torch.eye(6), atol=1e-5)
    moments = (torch.nn.functional.normalize(x) @ axes).square().mean(0)
    assert bool((moments.diff() <= 1e-6).all())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"losses": ()}, "each name at least one"),
        ({"terms": ("no BM",)}, "did you mean 'no BN'"),
        ({"targets": 1}, "targets is at least 2"),
        ({"judge": {"image_size": 32}}, "one data set and one image size"),
        ({"defences": ("Moise(0.5)",)}, "Moise"),
    ],
)
def test_what_cannot_be_run_is_refused(changes, sentence):
    with pytest.raises(settings.SettingsError, match=sentence):
        settings.replaced(MODULE.Settings(), changes)


def test_a_small_run_inverts_maps_and_defends(characters, capsys):
    small = (
        "--recipe.image-size 16 --judge.image-size 16 --recipe.epochs 1 --judge.epochs 1 "
        "--recipe.batch 40 --judge.batch 24 --inversion.steps 3 --targets 4 --least-people 4 "
        "--pairs 20 --dims 4 --verified 80 --folds 2 --dim 8 --terms"
    ).split()
    backbone = "Backbone('resnet18', stem='imagenet', width=0.125)"
    flags = ["no BN", "--recipe.backbone", backbone, "--judge.backbone", backbone]
    flags += ["--defences", "FewerDimensions(4)", "SecretRotation(7)", "--losses", "CosFace(0.1)"]
    assert main(["inversion", *small, *flags, "--folder", "run"]) == 0
    with (characters / "run/results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def value(column="value", **columns):
        (found,) = (r for r in rows if all(r[key] == text for key, text in columns.items()))
        return float(found[column])

    for attack in ("closed", "open"):
        one = {"attack": attack, "terms": "all", "defence": "none", "at": ""}
        for space in ("own", "judge", "shuffled"):
            cosine = [value(c, quantity="cosine", space=space, **one) for c in ("low", "high")]
            assert -1 <= cosine[0] <= cosine[1] <= 1
            assert 0 <= value(quantity="rank1", space=space, **one) <= 1
        # without the term its value is not taken
        bare = {**one, "terms": "no BN", "quantity": "objective_batch_norm"}
        assert value(**bare) == 0 < value(**{**bare, "terms": "all"})
        both = [
            value(quantity="cosine", space="judge", **{**one, "terms": t}) for t in ("all", "no BN")
        ]
        gap = value(
            quantity="cosine", space="difference", **{**one, "terms": "no BN", "at": "all terms"}
        )
        assert gap == pytest.approx(both[1] - both[0], abs=1e-6)
    turned = {"attack": "map", "defence": "SecretRotation(7)"}
    # cosines among turned embeddings stay, so nothing of verification is lost
    assert value(quantity="verification_lost", **turned) == 0
    last = {"quantity": "map_cosine", "at": "pairs 60"}
    straight = value(**last, attack="map", defence="none")
    assert value(**last, **turned) == pytest.approx(straight, abs=0.01)
    assert not math.isnan(value(quantity="map_rank1", at="no pair", **turned))
    chance = value(quantity="probe", space="most frequent", attack="map", defence="none")
    assert 0 < chance < 1
    assert_report(characters / "run/report.html")
    report = (characters / "run/report.html").read_text(encoding="utf-8")
    for words in ("By loss, under the judge", "Without a term", "Deng et al. 2022", "each beside"):
        assert words in report
    assert len(list((characters / "run/cells").glob("*/sheet.png"))) == 6
    capsys.readouterr()
    assert main(["keep", "run", "kept.csv"]) == 0
