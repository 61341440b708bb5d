"""`precision = "auto"`: a probe times both once, its record decides for every start, rank and cell,
and is read as data.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from marginlab import settings
from marginlab.settings import SettingsError
from marginlab.train import Monitor, Recipe, fit, precision

RECIPE = Recipe(
    images=32,
    image_size=16,
    augmentation="Augmentation('e')",
    backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="SimCLR(hidden=16, dim=16)",
    epochs=1,
    batch=16,
    optimizer="SGD(lr=0.05)",
    precision="auto",
)
WATCH = Monitor(images=20, views=2, bank=40)


def clock(monkeypatch, half, single=1.0):
    """The probe's clock says these seconds for a pass; gives what it was asked."""
    asked = []

    def said(backbone, images, name):
        asked.append((name, tuple(images.shape)))
        return half if name == "bfloat16" else single

    monkeypatch.setattr(precision, "_seconds", said)
    return asked


def weights(run):
    return torch.cat([value.double().flatten() for value in run.method.state_dict().values()])


@pytest.mark.parametrize(
    ("half", "taken", "rounds"),
    [
        (0.5, "bfloat16", 5),
        (0.86, "bfloat16", 5),
        (0.88, "float32", 5),
        (3.9, "float32", 5),
        (4.1, "float32", 0),
    ],
)
def test_bfloat16_is_taken_where_it_is_faster_by_a_factor(monkeypatch, half, taken, rounds):
    asked = clock(monkeypatch, half)
    record = precision.probe(torch.nn.Conv2d(3, 2, 3), torch.Size((128, 3, 8, 8)))
    assert (record["precision"], record["seconds"]) == (taken, {"float32": 1.0, "bfloat16": half})
    assert len(asked) == 3 + 2 * rounds
    assert {shape for _, shape in asked} == {(32, 3, 8, 8)}


def test_a_probe_leaves_the_network_and_the_generator_as_they_were():
    backbone = RECIPE.make_method().backbone
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    state = torch.get_rng_state()
    record = precision.probe(backbone, torch.Size((8, 3, 32, 32)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    single, half = record["seconds"]["float32"], record["seconds"]["bfloat16"]
    assert single > 0 < half
    assert record["precision"] == "float32" or single > half


@pytest.mark.parametrize("taken", ["float32", "bfloat16"])
def test_a_run_in_the_precision_that_was_chosen_is_that_of_a_recipe_that_names_it(
    monkeypatch, tmp_path, taken
):
    clock(monkeypatch, 0.5 if taken == "bfloat16" else 2.0)
    said = []
    run = fit(RECIPE, tmp_path / "auto", WATCH, say=said.append)
    named = fit(replace(RECIPE, precision=taken), tmp_path / "named", WATCH, say=lambda line: None)
    assert torch.equal(weights(run), weights(named))
    assert said[0].startswith(f"trains in {taken}: a pass took 1 s in float32")
    assert settings.read(Recipe, tmp_path / "auto" / "recipe.toml") == RECIPE
    assert not (tmp_path / "named" / "precision.json").exists()


def test_a_later_start_and_runs_that_share_the_record_do_not_probe_again(monkeypatch, tmp_path):
    asked = clock(monkeypatch, 0.5)
    first = fit(RECIPE, tmp_path / "a" / "run", WATCH, say=lambda line: None, precision_in=tmp_path)
    assert asked
    asked.clear()
    clock(monkeypatch, 2.0)  # another machine
    said = []
    second = fit(
        replace(RECIPE, seed=1),
        tmp_path / "b" / "run",
        WATCH,
        say=said.append,
        precision_in=tmp_path,
    )
    again = fit(RECIPE, tmp_path / "a" / "run", WATCH, say=said.append, precision_in=tmp_path)
    assert not asked
    assert next(line for line in said if "bfloat16" in line).startswith("trains in bfloat16")
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(second))


def test_of_two_probes_at_once_the_first_record_stays(tmp_path):
    one = precision._record("float32", 1.0, 2.0)
    precision._write_once(tmp_path / "precision.json", one)
    precision._write_once(tmp_path / "precision.json", precision._record("bfloat16", 2.0, 1.0))
    assert json.loads((tmp_path / "precision.json").read_text()) == one
    assert [path.name for path in tmp_path.iterdir()] == ["precision.json"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}",
     '{"precision": "float16", "seconds": {"float32": 1, "bfloat16": 1}, "device": "x"}',
     '{"precision": "float32", "seconds": {"float32": NaN, "bfloat16": 1}, "device": "x"}',
     "[" * 100_000],
)  # fmt: skip
def test_a_record_that_is_none_is_refused_with_the_remedy(tmp_path, text):
    (tmp_path / "precision.json").write_text(text)
    words = (
        r"precision\.json is no record of a probe (.|\n)*Remove it, and the next start "
        r"probes again"
    )
    with pytest.raises(SettingsError, match=words):
        fit(RECIPE, tmp_path / "run", WATCH, say=lambda line: None, precision_in=tmp_path)
    assert not (tmp_path / "run" / "recipe.toml").exists()  # given back


def test_a_precision_that_is_none_is_named():
    with pytest.raises(SettingsError, match=re.escape("There is no precision 'bf16'")):
        replace(RECIPE, precision="bf16")


def test_the_shipped_recipes_and_the_quick_study_choose_by_a_probe():
    home = Path(precision.__file__).parent
    assert all(
        settings.read(Recipe, file).precision == "auto"
        for file in (home / "recipes").glob("*.toml")
    )
    assert (
        'precision = "auto"'
        in (home.parents[1] / "studies" / "concentration" / "presets" / "default.toml").read_text()
    )
