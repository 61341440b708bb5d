"""2,000 mutated files of each kind: values and clear errors, and nothing else."""

import resource
import tempfile
from pathlib import Path

import fuzz_files
import pytest


def ends_well(kind: str) -> int:
    """Mutate files of a kind, and return the KiB by which the most memory in use has grown."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory(dir=fuzz_files.MEMORY) as folder:
        ends = fuzz_files.fuzz(kind, 2_000, 0, Path(folder))
    values, errors = ends.pop("value"), ends.pop("clear error")
    assert not ends
    assert values > 20
    assert errors > 50
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


@pytest.mark.parametrize("kind", fuzz_files.KINDS)
def test_every_mutated_file_ends_in_a_value_or_a_clear_error(kind):
    grown = ends_well(kind)
    assert grown < 2_500_000  # KiB: the budget of a split, and the libraries that readers load


def test_the_runner_counts_what_is_no_clear_error(tmp_path, monkeypatch):
    def reader(folder):
        def case(random):
            told = [KeyError("x"), ValueError("no name"), ValueError(f"{folder}: no")]
            raise random.choice(told)

        return case

    monkeypatch.setitem(fuzz_files.KINDS, "made", reader)
    ends = fuzz_files.fuzz("made", 60, 0, tmp_path)
    clear = ends.pop("clear error")
    assert 10 < clear < 30
    assert ends.total() == 60 - clear
    assert any("KeyError" in told for told in ends)
