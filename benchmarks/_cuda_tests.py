"""The tests of `cuda.py`: pytest, with a row for each test in a JSON file as soon as it has ended.

    python benchmarks/_cuda_tests.py --out FILE [--small]

The library is imported by the tests' own configuration, which checks annotations at run time.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

FILES = ("tests/test_devices.py", "tests/kernels/test_triton_tile.py")
OPTIONS = ("-q", "-o", "addopts=", "-p", "no:cacheprovider", "--color=no", "-rfE")
SMALL = ("tests/test_devices.py", "-k", "counters or NT-Xent")


class Recorder:
    """A plugin of pytest that keeps the outcome of each test."""

    def __init__(self, out: Path):
        self.out = out
        self.rows: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep a test that ended, or failed before it began, and write the file anew."""
        if report.when == "call" or not report.passed:
            row = {"test": report.nodeid, "outcome": report.outcome}
            row["seconds"] = round(report.duration, 3)
            if report.failed:
                row["error"] = str(report.longrepr).strip().split("\n")[-1][:300]
            self.rows.append(row)
            self.save()

    def save(self) -> None:
        """Write the rows; an interrupted write leaves the old file."""
        draft = self.out.with_suffix(".part")
        draft.write_text(json.dumps({"name": "cuda tests", "rows": self.rows}, indent=1) + "\n")
        draft.replace(self.out)


def main() -> None:
    """Run the tests, and end with pytest's code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    chosen = parser.parse_args()
    recorder = Recorder(chosen.out.resolve())
    recorder.save()
    os.chdir(Path(__file__).resolve().parent.parent)
    sys.exit(pytest.main([*OPTIONS, *(SMALL if chosen.small else FILES)], plugins=[recorder]))


if __name__ == "__main__":
    main()
