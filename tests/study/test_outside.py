"""A study of one's own, outside the repository: the example of studies/README.md, run with an
installed wheel, and by spawned workers.
"""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import marginlab

ROOT = Path(marginlab.__file__).parent.parent
SPAWNS = '''"""Can a worker that is not forked find what the study defines?"""
import multiprocessing
from dataclasses import dataclass
@dataclass(frozen=True)
class Settings:
    n: int = 3
@dataclass(frozen=True)
class Square:
    side: int
    def area(self):
        return self.side**2
def area(square):
    return square.area()
def cells(settings):
    return [{"i": 1}]
def run(cell):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        cell.record("area", pool.apply_async(area, (Square(cell.settings.n),)).get(20))
'''


def example() -> str:
    """The study in studies/README.md."""
    text = (ROOT / "studies" / "README.md").read_text()
    return re.search(r"```python\n(.*?)```", text, re.S)[1]


def needed() -> list[str]:
    """The files beside the code that a shipped study reads, as the wheel names them."""
    found = [
        f"_studies/{path.relative_to(ROOT / 'studies')}"
        for pattern in ("README.md", "*/*.py", "*/published.csv", "*/presets/*.toml")
        for path in (ROOT / "studies").glob(pattern)
    ]
    assert len(found) > 40
    return [*found, "study/report.css", "plan/published.csv", "py.typed"]


def run(*arguments: str, path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "PYTHONPATH": str(path),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="a wheel is built from a checkout"
)
def test_a_study_of_ones_own_runs_from_an_installed_wheel(tmp_path):
    assert len(example().splitlines()) <= 100
    (tmp_path / "means.py").write_text(example())
    build = (
        f"import os, hatchling.build; os.chdir({str(ROOT)!r}); "
        f"hatchling.build.build_wheel({str(tmp_path)!r})"
    )
    built = run("-c", build, path=tmp_path, folder=tmp_path)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("marginlab-*.whl")
    assert wheel.stat().st_size < 5_000_000
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    for name in needed():
        assert (installed / "marginlab" / name).is_file(), name
    where = run(
        "-c", "import marginlab; print(marginlab.__file__)", path=installed, folder=tmp_path
    )
    assert str(installed) in where.stdout
    shipped = run("-m", "marginlab.study", "list", path=installed, folder=tmp_path)
    assert shipped.returncode == 0
    for study in (ROOT / "studies").glob("*/study.py"):
        assert study.parent.name in shipped.stdout
    done = run(
        "-m",
        "marginlab.study",
        "./means.py",
        "--sizes",
        "10",
        "100",
        "--folder",
        "mine",
        path=installed,
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "mine" / "results.csv").read_text().splitlines()) == 1 + 2 * 4
    assert "root of n" in (tmp_path / "mine" / "report.html").read_text()


def test_spawned_workers_find_the_study(tmp_path):
    (tmp_path / "spawns.py").write_text(SPAWNS)
    done = run(
        "-m", "marginlab.study", "./spawns.py", "--folder", "mine", path=ROOT, folder=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1,-1,,area,,9," in (tmp_path / "mine" / "results.csv").read_text()


def test_the_engine_starts_without_torch():
    heavy = ("torch", "plotly", "tyro", "rich", "numpy")
    look = (
        f"import sys, marginlab.study.__main__; print([name for name in {heavy} if name in "
        "sys.modules])"
    )
    loaded = run("-c", look, path=ROOT, folder=ROOT)
    assert loaded.stdout.strip() == "[]", loaded.stderr
