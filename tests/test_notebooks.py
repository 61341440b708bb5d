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
    "01_losses_and_geometry": {
        r"epochs=\d+": "epochs=1",
        "steps=600": "steps=20",
        r"image_size=16,\n": "image_size=16, images=192,\n",
        "width=0.25": "width=0.125",
    },
    "02_generalization_bounds": {
        r'"CosFace",\s+14': '"CosFace", 2',
        r'"SimCLR",\s+4': '"SimCLR", 1',
        r"range\(150\)": "range(12)",
        r"(linspace\(0, \d\.\d), \d+\)": r"\1, 5)",
        r"range\(10, 129, 2\)": "range(10, 129, 20)",
        r"subset\(200\)": "subset(128)",
        "width=0.25": "width=0.125",
    },
    "03_concentration": {
        r"epochs=\d+": "epochs=1",
        "n_views=32": "n_views=8",
        r"\(2, 4, 8, 16, 32\)": "(2, 4, 8)",
        "images=500": "images=100",
        r"subset\(100\)": "subset(40)",
        "width=0.25": "width=0.125",
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


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """A client of one kernel, which imports once for all notebooks."""
    folder = tmp_path_factory.mktemp("kernel")
    path = [str(NOTEBOOKS[0].parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    client = nbclient.NotebookClient(
        nbformat.v4.new_notebook(),
        timeout=200,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(variable, str(folder))
        with client.setup_kernel():
            yield client


@pytest.mark.xdist_group("notebooks")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, kernel):
    notebook = nbformat.read(path, as_version=4)
    if os.environ.get("MARGINLAB_NOTEBOOKS") != "whole":
        smaller(notebook, SMOKE[path.stem])
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))  # no name of another notebook
    kernel.nb = notebook
    for number, cell in enumerate(notebook.cells):
        kernel.execute_cell(cell, number)
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
