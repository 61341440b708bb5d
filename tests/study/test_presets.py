"""Presets of the shipped studies."""

import pytest

from marginlab import study

SHIPPED = study.shipped().items()
WITH_DEFAULT = [name for name, file in SHIPPED if (file.parent / "presets/default.toml").is_file()]


@pytest.mark.parametrize("name", WITH_DEFAULT)
def test_the_default_preset_is_the_defaults(name):
    found = study.load(name)
    assert found.settings("default") == found.module.Settings()
