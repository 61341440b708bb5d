"""Modules of studies, under names of their own: marginlab.study.own.NAME_HASH.

HASH is of the file's path. Two studies never meet, and `from . import helper` finds helper.py
beside a study. A worker process that is not forked (spawn, forkserver) can unpickle objects that a
study defines: it inherits the environment variable in which the names are looked up.
"""

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

__path__: list[str] = []  # it is a package; what is in it lies elsewhere
_KNOWN = "MARGINLAB_STUDY_FILES"


def _files() -> list[str]:
    return [file for file in os.environ.get(_KNOWN, "").split(os.pathsep) if file]


def _name(file: Path) -> str:
    shown = file.parent.name if file.name == "study.py" else file.stem
    digest = hashlib.sha256(os.fsencode(file)).hexdigest()[:8]
    return f"{__name__}.{re.sub('[^A-Za-z0-9]', '_', shown)}_{digest}"


class _Finder:
    """Python's finder for modules that nobody else has found."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the file of a study's module, as a package whose other modules lie beside it."""
        for file in _files():
            if fullname == _name(Path(file)):
                return importlib.util.spec_from_file_location(
                    fullname, file, submodule_search_locations=[str(Path(file).parent)]
                )
        return None


sys.meta_path.append(_Finder)


def module(file: Path) -> ModuleType:
    """Import a study's file, once in a process."""
    os.environ[_KNOWN] = os.pathsep.join(dict.fromkeys([*_files(), str(file)]))
    return importlib.import_module(_name(file))


def imported(file: Path) -> bool:
    """Return whether this process has imported a study's file; the file may have changed since."""
    return _name(file) in sys.modules
