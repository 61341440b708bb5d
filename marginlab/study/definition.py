"""A study: a plain module that defines its settings, its grid, one cell, and the report.

    Settings          frozen dataclass, read by marginlab.settings: defaults < presets/NAME.toml
                      beside the file < flags
    cells(settings)   the grid, in order: a list of dicts with the same keys, the cell's columns in
                      results.csv
    run(cell)         computes one cell (marginlab.study.Cell)
    check(settings)   optional: refuses, before anything is written, settings that do not fit the
                      data; may return a digest of the data
    report(run)       optional: adds sections to the report (marginlab.study.Run)
    headline          optional: quantities for the closing table, as text or as a
                      marginlab.study.Quantity, which names their space too
    kept              optional: quantities that the command `keep` writes; the headline by default

A bare NAME is a study that comes with marginlab. A path, to a file or to a folder that holds
study.py, is the user's own study.
"""

import ast
import hashlib
import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import marginlab
from marginlab.settings import SettingsError, nearest, read, to_toml
from marginlab.study import own
from marginlab.study.cell import MEASURED, Value, identify
from marginlab.study.once import is_frozen
from marginlab.study.quantity import Quantity, quantities


def shelf() -> Path:
    """Return the folder of the studies that come with marginlab.

    It is `studies/` beside the package in a checkout, and `marginlab/_studies/` in a wheel.
    """
    package = Path(marginlab.__file__).parent
    carried = package / "_studies"
    return carried if carried.is_dir() else package.parent / "studies"


def shipped() -> dict[str, Path]:
    """Return the studies that come with marginlab, name -> file, without importing any."""
    return {file.parent.name: file for file in sorted(shelf().glob("*/study.py"))}


def locate(name: str) -> Path:
    """Return the file of a study, from a bare NAME or a path.

    Raises:
        SettingsError: There is none; the message names the nearest.
    """
    path = Path(name)
    if os.sep not in name and path.suffix != ".py" and name not in (".", ".."):
        known = shipped()
        if name in known:
            return known[name]
        own = (
            f" (Your own study in this folder is ./{name}.)"
            if (path / "study.py").is_file()
            else ""
        )
        raise SettingsError(f"There is no study {name!r}: {nearest(name, known)}{own}")
    file = path / "study.py" if path.is_dir() else path
    if not file.is_file():
        raise SettingsError(
            f"There is no study {name!r}: a path leads to a Python file, or to a folder that holds "
            "study.py."
        )
    return file.resolve()


def name_of(file: Path) -> str:
    """Return the name of a study: its folder's, or its file's if that is not called study.py."""
    return file.parent.name if file.name == "study.py" else file.stem


def presets_of(file: Path) -> dict[str, Path]:
    """Return the presets beside a study's file: name -> TOML file."""
    return {path.stem: path for path in sorted((file.parent / "presets").glob("*.toml"))}


def summary(file: Path) -> str:
    """Return the first line of a study's docstring, read without importing it.

    If it cannot be read, the text says why.
    """
    try:
        document = ast.get_docstring(ast.parse(file.read_bytes(), str(file)))
    except (SyntaxError, ValueError, OSError) as error:
        return f"cannot be read: {type(error).__name__}: {error}"
    return (
        document.strip().splitlines()[0]
        if document and document.strip()
        else "says nothing about itself: its docstring is missing"
    )


@dataclass(frozen=True)
class Study:
    """A study's module and its place; `load` makes it."""

    name: str
    file: Path
    module: ModuleType

    @property
    def home(self) -> Path:
        """The folder of its file."""
        return self.file.parent

    @property
    def title(self) -> str:
        """The question of the study: the first line of its docstring."""
        return summary(self.file)

    @property
    def headline(self) -> tuple[Quantity, ...]:
        """The quantities that stand in the closing table."""
        return quantities(getattr(self.module, "headline", ()))

    @property
    def kept(self) -> tuple[Quantity, ...]:
        """The quantities that `keep` writes into a small file."""
        return quantities(getattr(self.module, "kept", self.headline))

    def preset(self, name: str | None) -> Path | None:
        """Return the TOML file of a preset; without a name that of `default`, if there is one.

        A name that ends in .toml is the path of a file.
        """
        known = presets_of(self.file)
        if name is None:
            return known.get("default")
        if name.endswith(".toml"):
            return Path(name)
        if name not in known:
            raise SettingsError(f"{self.name} has no preset {name!r}: {nearest(name, known)}")
        return known[name]

    def settings(
        self, preset: str | None = None, flags: Sequence[str] = (), *, toml: Path | None = None
    ) -> Any:
        """Read its settings: defaults < preset (or a TOML file) < flags."""
        return read(
            self.module.Settings,
            toml or self.preset(preset),
            flags,
            prog=f"python -m marginlab.study {self.name}",
        )

    def grid(self, settings: Any) -> list[dict[str, Value]]:
        """Return its cells, checked.

        There is at least one cell, all have the same columns, of text and numbers, and no two are
        alike.

        Raises:
            SettingsError: These settings give no grid, or one that breaks these rules.
        """
        try:
            cells = [dict(cell) for cell in self.module.cells(settings)]
        except SettingsError:
            raise
        except ValueError as error:
            raise SettingsError(str(error)) from error
        if not cells:
            raise SettingsError(f"{self.name}: these settings give a grid without cells.")
        seen: dict[str, dict[str, Value]] = {}
        for cell in cells:
            if list(cell) != list(cells[0]):
                raise SettingsError(
                    f"{self.name}: all cells have the same columns in the same order; {list(cell)} "
                    f"differ from {list(cells[0])}."
                )
            for column, value in cell.items():
                if not isinstance(value, str | int | float) or isinstance(value, bool):
                    raise SettingsError(
                        f"{self.name}: column {column!r} of a cell is a text or a number, not "
                        f"{value!r} ({type(value).__name__})."
                    )
                if column in MEASURED or not column:
                    taken = ", ".join(MEASURED)
                    raise SettingsError(
                        f"{self.name}: no column of a cell is called {column!r}; {taken} are "
                        "columns of what it records."
                    )
            if identify(cell) in seen:
                raise SettingsError(
                    f"{self.name}: two cells of the grid are alike: {cell} and "
                    f"{seen[identify(cell)]}."
                )
            seen[identify(cell)] = cell
        return cells

    def check(self, settings: Any) -> str:
        """Call the module's own `check(settings)`, if any, before anything is computed or written.

        It refuses settings that do not fit the data. A text that it returns, a digest of the data,
        identifies the run beside its settings.

        Raises:
            SettingsError: The error of the module's check, in its words.
        """
        try:
            return str(getattr(self.module, "check", lambda _: None)(settings) or "")
        except SettingsError:
            raise
        except (ValueError, TypeError, OSError, ImportError) as error:
            raise SettingsError(str(error)) from error

    def digest(self, settings: Any) -> str:
        """Return 8 hexadecimal digits that name a run.

        They are a hash of the study's name and its settings, however these were given.
        """
        return hashlib.sha256(f"{self.name}\n{to_toml(settings)}".encode()).hexdigest()[:8]


def same_file(one: Path, other: Path) -> bool:
    """Return whether two paths lead to one file, or to two files of the same bytes."""
    return one.resolve() == other.resolve() or (
        one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()
    )


def loaded(file: Path) -> bool:
    """Return whether this process has imported that study already, because its user named it."""
    return own.imported(file.resolve())


def load(name: str | Path) -> Study:
    """Import a study under a module name of its own.

    Call it only for one of `shipped`, or for a file that the user named: the file is executed.

    Raises:
        SettingsError: There is no such study, it cannot be imported, or it lacks one of `Settings`,
            `cells`, `run`.
    """
    file = name if isinstance(name, Path) else locate(name)
    file = file.resolve()
    try:
        study = Study(name_of(file), file, own.module(file))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        # a syntax error says it itself
        at = "" if isinstance(error, SyntaxError) else f" ({where.filename}, line {where.lineno})"
        raise SettingsError(
            f"{file} cannot be imported: {type(error).__name__}: {error}{at}"
        ) from error
    missing = [part for part in ("Settings", "cells", "run") if not hasattr(study.module, part)]
    if missing:
        raise SettingsError(
            f"{file} is no study: it has no {' and no '.join(missing)}. A study defines Settings, "
            "cells(settings) and run(cell)."
        )
    kind = study.module.Settings
    if not is_frozen(kind):
        raise SettingsError(
            f"{file}: Settings is a frozen dataclass: write @dataclass(frozen=True) above it."
        )
    return study
