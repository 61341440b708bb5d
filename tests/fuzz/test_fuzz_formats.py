"""2,000 mutated files of each kind of other programs: values and clear errors, and nothing else."""

import resource
import tempfile
from pathlib import Path

import fuzz_files
import fuzz_formats
import pytest


@pytest.mark.parametrize("kind", fuzz_formats.KINDS)
def test_every_mutated_file_of_another_program_ends_well(kind, monkeypatch):
    monkeypatch.setattr(fuzz_files, "KINDS", fuzz_formats.KINDS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory(dir=fuzz_files.MEMORY) as folder:
        ends = fuzz_files.fuzz(kind, 2_000, 0, Path(folder))
    values, errors = ends.pop("value"), ends.pop("clear error")
    assert not ends
    assert values > 20
    assert errors > 50
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 500_000  # KiB: mostly the libraries that readers load
