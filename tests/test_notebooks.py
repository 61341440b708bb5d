"""Every notebook runs from its first cell to its last, and is kept without outputs.

The suite runs them small: `SMOKE` says what is made smaller. MARGINLAB_NOTEBOOKS=whole runs them as
they are.
"""

import json
import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

SMOKE = {
    "00_gallery": {},  # it draws committed tables
    "01_losses_and_geometry": {r"epochs=\d+": "epochs=2", "steps=600": "steps=60"},
    "02_generalization_bounds": {
        r'"CosFace",\s+14': '"CosFace", 2',
        r'"SimCLR",\s+4': '"SimCLR", 1',
        r"range\(150\)": "range(30)",
    },
    "03_concentration": {
        r"epochs=\d+": "epochs=2",
        "n_views=32": "n_views=8",
        r"\(2, 4, 8, 16, 32\)": "(2, 4, 8)",
        "images=500": "images=200",
    },
    "04_contrastive_versus_margin": {
        r"epochs=\d+": "epochs=1",
        "images=500": "images=100",
        "images=100, views=6, bank=500": "images=20, views=3, bank=100",
        r"every=\d+": "every=1",
    },
    "05_partial_fc_at_scale": {
        "STEPS, C, D = 200, 2000, 32": "STEPS, C, D = 20, 500, 16",
        r"SIZES, EACH, EPOCHS, SEEDS = .*": "SIZES, EACH, EPOCHS, SEEDS = 4, 1, 6, 1, (0, 1)",
        r"\(1.0, 0.3, 0.1(, 0.03)?\)": "(1.0, 0.1)",
        "n=2000, far_pairs=6000": "n=40, folds=2, far_pairs=200",
    },
    "06_recognizability_and_inversion": {
        "SIDE = 32": "SIDE = 16",
        r"subset\(200\)": "subset(40)",
        r"subset\(1000\)": "subset(200)",
        '"images": 1000': '"images": 100',
        r'"epochs": \d+': '"epochs": 1',
        r"epochs=\d+": "epochs=1",
        r"steps=\d+": "steps=3",
    },
}
NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def smaller(notebook, changes):
    """Make the sizes in the code cells smaller; fail if a change of the list is not found."""
    for pattern, instead in changes.items():
        found = 0
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.source, n = re.subn(pattern, instead, cell.source)
                found += n
        assert found, f"no cell holds {pattern}"


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(path.parent.parent), os.environ.get("PYTHONPATH", "")])
    )
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    if os.environ.get("MARGINLAB_NOTEBOOKS") != "whole":
        smaller(notebook, SMOKE[path.stem])
    nbclient.NotebookClient(
        notebook,
        timeout=200,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    assert (
        sum("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs) >= 4
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None
        for cell in cells
        if cell["cell_type"] == "code"
    )
