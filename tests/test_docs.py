"""The site keeps its word: the Python and the commands of its pages run, its links lead somewhere,
and every public name has a page of the reference.

A block whose first line is a comment with a file's name is written to that file.
"""

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
from insightface_files import write_pack, write_training_folder
from PIL import Image
from test_readme import SHORT_STUDY, SHORT_TRAIN

from marginlab.data import Shapes

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_ext"))

import docstrings  # noqa: E402
import names  # noqa: E402
import pages  # noqa: E402

PAGES = sorted(path.stem for path in DOCS.glob("*.md"))
RUN = [
    "backbones",
    "certify",
    "head",
    "images",
    "inversion",
    "loss",
    "measure",
    "purify",
    "ranks",
    "recognizability",
    "start",
    "study",
    "train",
]
BLOCK = re.compile(r"^```(python|sh|toml)\n(.*?)^```", re.M | re.S)


def short(command):
    """The words of a command of a page, made small."""
    words = shlex.split(command)
    if words[0] == "torchrun":
        words[:1] = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    else:
        assert words[0] == "python", command
        words[0] = sys.executable
    if "concentration" in words:
        words += [*SHORT_STUDY, *([] if "--batch" in words else ["--batch", "20"])]
    if "marginlab.train" in words:
        words += SHORT_TRAIN
    return words


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's folder: photos, files of insightface, and the recipe of the page on training."""
    write_training_folder(tmp_path / "faces", people=10, shots=10)
    write_pack(tmp_path / "faces" / "lfw.bin")
    photos = Shapes().load("train", 200)
    for number, (image, label) in enumerate(
        zip(photos.images, photos.labels.tolist(), strict=True)
    ):
        place = tmp_path / "photos" / photos.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).save(
            place / f"{number}.png"
        )
    (recipe,) = [text for kind, text in BLOCK.findall(read("train")) if kind == "toml"]
    (tmp_path / "recipe.toml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(page):
    """The text of a page."""
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", RUN)
def test_what_a_page_says_runs_in_its_order(home, page):
    known = {"__name__": "page"}
    for kind, text in BLOCK.findall(read(page)):
        file = re.match(r"# (\w+\.\w+)\n", text)
        if file:
            (home / file[1]).write_text(text)
        elif kind == "python":
            exec(compile(text, f"{page}.md", "exec"), known)
        else:
            for command in text.strip().splitlines():
                done = forked.run(
                    short(command),
                    cwd=home,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                    timeout=200,
                )
                assert done.returncode == 0, f"{command}\n{done.stderr}"
                assert done.stdout.strip(), command


def test_every_page_with_code_is_run():
    with_code = {page for page in PAGES if BLOCK.search(read(page))}
    assert with_code == set(RUN)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    text = pages.linked(read(page), DOCS / f"{page}.md", f"{page}.md")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```", "", text, flags=re.S)):
        made = (DOCS / target).resolve()
        places = {(DOCS / place).resolve() for place in pages.originals().values()}
        assert target.startswith("http") or made in places or made.exists(), target


def test_the_copied_pages_have_links_that_lead_somewhere():
    for original, place in pages.originals().items():
        if original.suffix == ".md":
            pages.linked(original.read_text(encoding="utf-8"), original, place)


def test_every_page_is_in_a_table_of_contents():
    (index,) = [read("index")]
    listed = re.findall(r"^([a-z_]+)$", index, re.M)
    assert sorted(listed) == sorted(set(PAGES) - {"index"})


def test_every_public_name_has_a_reference_page():
    for room in names.ROOMS:
        module = importlib.import_module(f"marginlab.{room}")
        listed = pages.room(room).split(".. autosummary::")[1].split()
        assert set(getattr(module, "__all__", ())) <= set(listed)
        assert all(callable(getattr(module, name)) for name in names.public(room))
        files = [names.page(room, name).lower() for name in names.public(room)]
        assert len(set(files)) == len(files)


def test_every_room_with_public_names_is_in_the_reference():
    package = ROOT / "marginlab"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    assert rooms - {room.partition(".")[0] for room in names.ROOMS} <= {"kernels"}


def test_a_docstring_of_plain_text_becomes_rst():
    assert docstrings.inline("of *args, |x|, w_ and `a`s") == r"of \*args, \|x\|, w\_ and ``a``\ s"
    made = docstrings.rst(["Give:", "    a = b", "it is", "  c: one", "", "Args:", "    x: y", "z"])
    assert made[:6] == ["Give:", "", "::", "", "    a = b", ""]
    assert made[-4:] == ["Args:", "    x: y", "", "z"]
    listed = docstrings.rst(["Some.", "", "one: of", "    these", "two, three: of those"])
    assert listed[2:] == ["- ``one``: of", "  these", "- ``two, three``: of those"]


@pytest.mark.skipif(not importlib.util.find_spec("sphinx"), reason="sphinx is in the extra docs")
@pytest.mark.timeout(900)
def test_the_site_builds_without_a_warning(tmp_path):
    words = ["-W", "--keep-going", "-q", str(DOCS), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words],
        env=os.environ | {"NOTEBOOKS": "off", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for room in names.ROOMS:
        for name in names.public(room):
            assert (tmp_path / f"{names.page(room, name)}.html").exists()
