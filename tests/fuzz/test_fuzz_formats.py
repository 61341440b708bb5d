"""2,000 mutated files of each kind of other programs: values and clear errors, and nothing else."""

import fuzz_files
import fuzz_formats
import pytest
from test_fuzz_files import ends_well


@pytest.mark.parametrize("kind", fuzz_formats.KINDS)
def test_every_mutated_file_of_another_program_ends_well(kind, monkeypatch):
    monkeypatch.setattr(fuzz_files, "KINDS", fuzz_formats.KINDS)
    grown = ends_well(kind)
    assert grown < 500_000  # KiB: mostly the libraries that readers load
