"""The benchmarks: the command for a CUDA device runs on a CPU, and `make bench` installs it all."""

import ast
import functools
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from forked import run

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
CUDA = BENCHMARKS / "cuda.py"
TASKS = {  # some of the tasks that a part has on every machine
    "head": {"bare products, bfloat16", "margin_softmax, class tiles", "naive autograd, autocast"},
    "contrastive": {"two towers: bare products", "two towers: info_nce", "NT-Xent: info_nce"},
    "partial_fc": {None},
    "training": {"fit, whole loop", "network alone", "views alone"},
    "views": {"views of abcde", "minimum: d_A of one class"},
    "profile": {"margin_softmax, one buffer", "two towers: info_nce"},
}


def python(*words, start=run):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return start([sys.executable, *map(str, words)], cwd=ROOT, env=environment, timeout=200)


@pytest.mark.parametrize("part", list(TASKS))
def test_a_part_for_a_cuda_device_ends_on_a_cpu(part, tmp_path):
    out = tmp_path / f"{part}.json"
    ended = python(BENCHMARKS / "_cuda_parts.py", part, "--small", "--out", out)
    assert ended.returncode == 0, ended.stderr
    kept = json.loads(out.read_text())
    assert {row.get("task") for row in kept["rows"]} >= TASKS[part]
    assert not [row for row in kept["rows"] if "error" in row]
    assert min(kept["environment"]["gigaflops"].values()) > 0
    assert re.match(r".*bare products of .* They prefer (float32|bfloat16)\.\n", ended.stdout)


def test_the_command_runs_a_part_in_a_process_of_its_own(tmp_path):
    ended = python(CUDA, "--small", "--parts", "views", "--out", tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads((tmp_path / "views.json").read_text())["rows"]


def test_the_tests_are_a_part_and_each_leaves_its_row(tmp_path):
    out = tmp_path / "tests.json"
    alone = functools.partial(subprocess.run, capture_output=True, text=True, check=False)
    # not forked: pytest is to start in a Python that has imported nothing
    ended = python(BENCHMARKS / "_cuda_tests.py", "--small", "--out", out, start=alone)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = json.loads(out.read_text())["rows"]
    assert rows
    assert {row["outcome"] for row in rows} == {"passed"}


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_the_whole_command_ends_on_a_cpu(tmp_path):
    ended = python(CUDA, "--small", "--out", tmp_path, limit=800)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {file.stem for file in tmp_path.iterdir()} == {"tests", *TASKS}


def test_a_part_that_hangs_or_fails_is_named_and_the_next_begins(tmp_path):
    fault = runpy.run_path(str(CUDA))["fault"]
    assert fault([sys.executable, "-c", "import time; time.sleep(100)"], 0.6) == (
        "not done within 1 s"
    )
    assert fault([sys.executable, "-c", "exit(3)"], 60) == "ended with code 3"
    assert fault([sys.executable, "-c", ""], 60) == ""
    ended = python(
        CUDA, "--small", "--minutes", "0.01", "--parts", "head", "views", "--out", tmp_path
    )
    assert ended.returncode == 1
    assert "head: no time was left\nviews: no time was left\n" in ended.stdout


def names(requirements):
    return {re.match(r"[\w-]+", each)[0].replace("-", "_") for each in requirements}


def test_the_extra_of_the_benchmarks_installs_what_they_import():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    installed = names([*project["dependencies"], *extras["lab"], *extras["bench"]])
    installed |= {"PIL" if "torchvision" in installed else "", "marginlab"}
    installed |= set(sys.stdlib_module_names) | {file.stem for file in BENCHMARKS.glob("*.py")}
    installed |= {"sklearn"} if "scikit_learn" in installed else set()
    lacking = {}
    for file in BENCHMARKS.glob("[a-z]*.py"):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                found = [node.module]
            lacking |= {name: file.name for name in found if name.split(".")[0] not in installed}
    assert not lacking


def test_every_benchmark_shows_the_bare_products_of_its_machine_first():
    for file in BENCHMARKS.glob("[a-z]*.py"):
        main = next(
            node
            for node in ast.parse(file.read_text()).body
            if isinstance(node, ast.FunctionDef) and node.name == "main"
        )
        calls = [
            node.func.id
            for node in ast.walk(main)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        assert file == CUDA or "show_products" in calls, file.name
