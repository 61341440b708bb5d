"""Fixtures of the tests of studies."""

from pathlib import Path

import pytest
from drawn_characters import draw_characters


@pytest.fixture
def characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a set like Omniglot: 12 characters to learn, and 10 others."""
    return draw_characters(tmp_path, monkeypatch, 10)
