"""Every run says on which processor and with how many threads its numbers were computed."""

import csv
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from marginlab import machine
from marginlab.study.__main__ import main
from marginlab.train import Monitor, Recipe, fit

RECIPE = Recipe(
    images=32,
    augmentation="Augmentation('e')",
    backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="SimCLR(hidden=16, dim=16)",
    epochs=1,
    batch=16,
    optimizer="SGD(lr=0.05)",
)


class Nothing(Monitor):
    def __call__(self, *arguments, **named):
        return []


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_device_is_the_processor_with_its_threads(threads):
    if torch.cuda.is_available():
        pytest.skip("a GPU is named by its own name")
    threads(1)
    assert machine.device().endswith(", 1 thread")
    threads(2)
    assert machine.device().endswith(", 2 threads")
    assert machine.processor() in machine.device()
    code = (
        "import sys; from marginlab import machine; assert 'torch' not in sys.modules; "
        "print(machine.device())"
    )
    alone = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert machine.device().startswith(alone)
    assert "thread" not in alone


def test_a_run_says_where_each_of_its_starts_computed(tmp_path, threads, monkeypatch):
    threads(1)
    fit(RECIPE, tmp_path / "run", Nothing(), say=lambda line: None)
    fit(RECIPE, tmp_path / "run", Nothing(), say=lambda line: None)  # nothing is left to compute
    with (tmp_path / "run" / "machines.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["ranks"], row["torch"]) for row in rows] == [
        ("0", "1", torch.__version__)
    ]
    assert rows[0]["devices"] == machine.device()

    class Stop(Exception):
        pass

    class Stopping(Nothing):
        def __call__(self, *arguments, **named):
            if arguments[4] == 2:  # after the checkpoint of the first epoch
                raise Stop
            return []

    two = replace(RECIPE, epochs=3)
    with pytest.raises(Stop):
        fit(two, tmp_path / "two", Stopping(every=1), say=lambda line: None)
    threads(2)
    fit(two, tmp_path / "two", Nothing(every=1), say=lambda line: None)
    with (tmp_path / "two" / "machines.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["devices"].rpartition(", ")[2] for row in rows] == ["1 thread", "2 threads"]


def test_a_study_says_it_in_its_times_report_and_kept_table(tmp_path, monkeypatch, threads):
    monkeypatch.chdir(tmp_path)
    threads(1)
    (tmp_path / "own.py").write_text(
        '''"""Of threads."""
from dataclasses import dataclass
@dataclass(frozen=True)
class Settings:
    n: int = 1
headline = ("error",)
def cells(settings):
    return [{"i": i} for i in range(settings.n)]
def run(cell):
    cell.record("error", 0.5)
'''
    )
    assert main(["./own.py", "--folder", "run"]) == 0
    assert main(["keep", "run", "kept.csv"]) == 0
    for file in ("run/times.csv", "run/report.html", "kept.csv"):
        assert machine.device() in (tmp_path / file).read_text()
