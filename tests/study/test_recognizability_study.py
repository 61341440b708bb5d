"""The study of recognizability: presets, refusals, numbers of made-up judgements, a small run."""

import csv
import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from report_pages import assert_report

from marginlab import settings, study
from marginlab.study.__main__ import main

HERE = study.load("recognizability")
HOME = HERE.module.__name__
pooling = importlib.import_module(f"{HOME}.pooling")
protocol = importlib.import_module(f"{HOME}.protocol")
DEFAULT = HERE.module.Settings()


@pytest.mark.parametrize(
    "preset", sorted(path.stem for path in (HERE.home / "presets").glob("*.toml"))
)
def test_every_preset_reads_and_gives_a_grid(preset):
    chosen = HERE.settings(preset)
    grid = HERE.grid(chosen)
    assert len(grid) == len(chosen.variants) * (len(chosen.seeds) + 1)
    assert grid[-1] == {"variant": chosen.variants[-1], "seed": "all"}
    if preset != "default":
        assert chosen.protocol.split == "unseen"
        assert len(chosen.seeds) >= 3


def test_the_second_trainings_differ_in_the_weights_of_the_terms_alone():
    recipes = {name: HERE.module.second(DEFAULT, name, 0, "first") for name in HERE.module.TERMS}
    methods = {name: recipe.method for name, recipe in recipes.items()}
    assert len(set(methods.values())) == 5
    assert "regression=1.0, diversion=0.02, attention=1.0" in methods["full"]
    assert "regression=0.0, diversion=0.0, attention=1.0" in methods["LMSE"]
    alike = {replace(recipe, method="SimCLR()") for recipe in recipes.values()}
    assert len(alike) == 1
    assert "LowResolution" in next(iter(alike)).augmentation


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"variants": ()}, "name at least one"),
        ({"variants": ("froze",)}, "did you mean 'frozen'"),
        ({"recipe": replace(DEFAULT.recipe, method="SimCLR()")}, "by a MarginClassifier"),
        ({"low": (6, 33)}, "1 to 32, not 33"),
        ({"protocol": replace(DEFAULT.protocol, split="unseen")}, "no split 'unseen'"),
        ({"protocol": replace(DEFAULT.protocol, probes=5000)}, "Ask for fewer probes"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(changes, sentence):
    with pytest.raises(settings.SettingsError, match=sentence):
        HERE.module.check(settings.replaced(DEFAULT, changes))


def test_half_of_an_image_is_covered_and_a_uniform_map_has_half_of_its_share():
    images, visible = protocol.half_covered(torch.rand(8, 3, 16, 16))
    assert visible.float().mean((1, 2)).tolist() == [0.5] * 8
    assert bool((images.movedim(1, 3)[~visible] == 0.5).all())
    assert len({tuple(one.flatten().tolist()) for one in visible}) == 4
    whole = torch.rand(2, 3, 16, 16)
    assert torch.equal(protocol.degraded(whole, 16), whole)
    assert float(protocol.degraded(whole, 1).std((2, 3)).max()) < 1e-6


def made(seed=0, identities=12, probes=4, levels=(16, 8, 4)):
    """A judgement whose scores are known: "index" orders genuine cosines, "constant" says one."""
    random = np.random.default_rng(seed)
    identity = np.tile(np.repeat(np.arange(identities), probes), len(levels))
    rows = np.repeat(levels, identities * probes)
    genuine = rows / 20 + 0.1 * random.standard_normal(len(rows))
    found = {"identity": identity, "rows": rows, "genuine": genuine}
    found["hit"] = (genuine > 0.4).astype(float)
    opened = {
        "best": genuine,
        "mates": (identity < 9).astype(int),
        "above": np.zeros(len(rows), int),
        "tied": np.zeros(len(rows), int),
        "highest": genuine - 0.2,
        "gallery": np.asarray(9),
    }
    found |= {f"open {name}": opened[name] for name in pooling.Search._fields}
    found |= {f"center_{name}": 1 - genuine for name in ("before", "after", "own")}
    scores = {"index": genuine, "constant": np.ones(len(rows))}
    for name, score in scores.items():
        found[f"score {name}"] = score
        found[f"gallery {name}"] = np.full(identities, 9.0)
    return found


SMALL = replace(DEFAULT.protocol, probed=(16, 8, 4), rows=(16, 8, 4))


def numbers(judged, beside=None, replicates=0):
    rows = list(pooling.rows(SMALL, judged, beside, replicates=replicates))
    found = {(row["quantity"], row["space"], row["at"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_known_scores_have_their_numbers():
    found = numbers([made()])
    assert found["discard_area", "constant", "0.1 to 0.3"]["value"] == 1
    # the lowest 10 % are exactly the errors: after them none is left
    assert found["discard_area", "index", "0.1 to 0.3"]["value"] < 0.2
    gain = found["discard_gain", "constant", "0.1 to 0.3"]["value"]
    assert gain == pytest.approx(found["discard_area", "index", "0.1 to 0.3"]["value"] - 1)
    assert found["spearman_within", "index", ""]["value"] == 1
    assert found["spearman_within", "constant", ""]["value"] == 0
    assert found["spearman_resolution", "index", ""]["value"] > 0.8
    assert abs(found["spearman_resolution", "random", ""]["value"]) < 0.3
    assert ("discard_gain", "index", "0.1 to 0.3") not in found


def test_intervals_are_over_identities_and_differences_are_paired():
    one, other = made(), made()
    other["hit"] = np.zeros_like(other["hit"])
    found = numbers([one, one], [other, other], replicates=20)
    rank1, gain = found["rank1", "", ""], found["rank1_gain", "", ""]
    assert rank1["low"] < rank1["value"] < rank1["high"]
    assert {key: rank1[key] for key in ("value", "low", "high")} == {
        key: gain[key] for key in ("value", "low", "high")
    }
    assert rank1["n"] == 12
    nothing = numbers([one], [one], replicates=5)["rank1_gain", "", "8"]
    assert (nothing["value"], nothing["low"], nothing["high"]) == (0, 0, 0)
    assert np.isnan(numbers([one])["rank1", "", ""]["low"])


def test_the_mean_of_unit_embeddings_has_a_length_between_0_and_1():
    one = made()
    same = np.zeros((3, 12, 2))
    same[0, :, 0] = 1
    same[1, ::2, 0], same[1, 1::2, 0] = 1, -1
    same[2, ::2, 0], same[2, 1::2, 1] = 1, 1
    one["means trained"] = same
    lengths = [numbers([one])["resultant", "trained", str(r)]["value"] for r in (16, 8, 4)]
    assert lengths == [1, 0, pytest.approx(0.5**0.5, abs=1e-5)]


FLAGS = """--variants frozen classification full --tuning-images 80 --tuning-epochs 2 --low 3 16
--ruined 2 --recipe.image-size 16 --recipe.images 100 --recipe.batch 40 --recipe.epochs 1
--recipe.method MarginClassifier(margin='CosFace(0.2)',scale=16.0,dim=16)
--protocol.probes 4 --protocol.probed 16 6 3 --protocol.rows 16 6 3 2 --protocol.known 40
--protocol.attended 6 --protocol.steps 2 --protocol.passes 4 --protocol.replicates 4""".split()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recognizability") / "run"
    backbone = "Backbone('resnet18', stem='strided', width=0.0625)"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        command = ["recognizability", *FLAGS, "--recipe.backbone", backbone]
        assert main([*command, "--folder", str(folder)]) == 0
    with (folder / "results.csv").open(encoding="utf-8") as file:
        return folder, list(csv.DictReader(file))


def test_a_small_run_answers_every_question(small):
    folder, rows = small
    found = {(row["variant"], row["quantity"], row["space"]) for row in rows}
    assert {row["quantity"] for row in rows} == set(HERE.module.kept)
    for score in ("index_first", "ers_first", "norm", "gallery", "cr_fiqa", "transfira"):
        assert ("frozen", "discard_area", score) in found
    for score in ("sdd_fiqa", "ser_fiq", "grafiqs", "random", "rows"):
        assert ("frozen", "discard_area", score) in found
    for score in ("index", "index_first", "ers_first", "ers_own", "gallery"):
        assert ("full", "discard_area", score) in found
    assert ("classification", "discard_area", "index") not in found
    assert len([row for row in rows if row["quantity"] == "rank1_gain"]) == 2 * 4  # full alone
    for row in rows:
        if row["quantity"] in ("rank1", "tpir", "resultant", "attention_share"):
            assert 0 <= float(row["value"]) <= 1
        if row["seed"] == "all" and row["quantity"] == "attention_share":
            assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    assert_report(folder / "report.html")
    report = (folder / "report.html").read_text(encoding="utf-8")
    for words in ("sheet.png", "maps.png", "TinyFace", "73.06", "full, seed 0"):
        assert words in report


def test_the_judgement_of_all_seeds_trains_and_judges_nothing_anew(small):
    folder, rows = small
    assert len(list((folder / "once").glob("training-*"))) == 3
    assert len(list((folder / "once").glob("judged-*"))) == 3
    one, together = (
        {
            (row["variant"], row["quantity"], row["space"], row["at"]): row["value"]
            for row in rows
            if row["seed"] == seed
        }
        for seed in ("0", "all")
    )
    assert one == together  # there is one seed
