"""A recipe says what it is made of, refuses what is no number of its kind, and encodes what it is
given.
"""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from marginlab import settings
from marginlab.data import ImageSet
from marginlab.settings import SettingsError
from marginlab.train import Monitor, Recipe

pytestmark = pytest.mark.usefixtures("unchecked")  # as a user has it, without run-time types
NUMBERS = [field.name for field in fields(Recipe) if field.type in ("int", "float", int, float)]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, 10**30, True, "3", None])
def test_a_number_of_a_recipe_is_a_number_in_its_range(name, value):
    if name == "clip" and value == 10**30:
        assert replace(Recipe(), clip=value).clip == 1e30
        return
    with pytest.raises(SettingsError, match=name):
        Recipe(**{name: value})


@pytest.mark.parametrize("name", ["clip", "precision", "compile", "start", "method"])
def test_a_field_of_another_type_is_refused_by_name(name):
    with pytest.raises(SettingsError, match=f"{name} is of type"):
        Recipe(**{name: [1]})


def test_numbers_of_a_monitor_are_checked_likewise():
    for wrong in ({"k": 0}, {"k": 2.5}, {"epsilons": (math.nan,)}, {"epsilons": (-1.0,)}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            Monitor(**wrong)
    with pytest.raises(SettingsError, match=r"FAR|fars"):
        Monitor(fars=(math.nan,))


def test_infinite_literals_in_a_choice_are_refused():
    for text in ("SGD(lr=1e999)", "SGD(momentum=-1e999)"):
        with pytest.raises(SettingsError, match="is no finite number"):
            Recipe(optimizer=text)


def test_a_set_of_images_in_the_place_of_its_name_is_refused_with_what_to_do():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    held = ImageSet(images, torch.arange(4) % 2, ("a", "b"), "mine")
    with pytest.raises(SettingsError, match=r"ImageSet of 4 images\. .* data='npz:own\.npz'"):
        Recipe(data=held)


def test_what_the_refusal_says_to_do_works(tmp_path):
    """`numpy.savez` of images and labels, as the message has it."""
    from marginlab.data import load

    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", images=pixels, labels=np.arange(20) % 2)
    assert len(load(f"npz:{tmp_path / 'own.npz'}", "train")) == 16


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "r.toml").write_bytes(b"\xef\xbb\xbf" + settings.to_toml(Recipe()).encode())
    assert settings.read(Recipe, tmp_path / "r.toml") == Recipe()


def test_images_are_encoded_from_integers_as_from_numbers_between_0_and_1():
    method = Recipe(backbone="Backbone('resnet18', stem='strided', width=0.125)").make_method()
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    for training in (True, False):
        method.train(training)
        assert torch.equal(method.encode(images), method.encode(images / 255))
    for wrong in (images.long(), images > 9):
        with pytest.raises(TypeError, match=r"floating in \[0, 1\] or uint8"):
            method.encode(wrong)
    with pytest.raises(
        ValueError, match=r"not in \[0, 255\]\. Give bytes as uint8 or divide them by 255"
    ):
        method.encode(images.float())


def test_settings_read_as_data_import_nothing_that_nobody_named(tmp_path):
    recipe = tmp_path / "recipe.toml"
    for text in (
        'method = "no_such.module:Mine()"',
        "augmentation = \"Augmentation(('no_such.module:Op(1)', 'Grayscale()'))\"",
        "method = \"MarginClassifier(margin='no_such.module:Margin(0.3)')\"",
    ):
        recipe.write_text(text)
        with settings.as_data(), pytest.raises(SettingsError, match="code of the module 'no_such"):
            settings.read(Recipe, recipe)
    recipe.write_text('data = "npz:images"\nstart = "C:runs"')
    with settings.as_data():
        assert settings.read(Recipe, recipe).data == "npz:images"
