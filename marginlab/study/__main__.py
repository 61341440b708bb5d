"""The command line of studies: `python -m marginlab.study NAME`.

Other forms are `list`, `report RUN [RUN2]`, `keep RUN FILE.csv[.gz]` and `--resume RUN`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from marginlab.settings import SettingsError, as_data
from marginlab.study.definition import Study, load, presets_of, shelf, shipped, summary
from marginlab.study.engine import conclude, execute
from marginlab.study.folder import check, origin, reopen
from marginlab.study.keep import keep
from marginlab.study.run import open_run
from marginlab.study.team import leave
from marginlab.terminal import say

PROG = "python -m marginlab.study"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the engine's own options, which may stand anywhere behind NAME.

    Options that it does not know are the study's settings.
    """
    front = argparse.ArgumentParser(
        prog=PROG,
        add_help=False,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"{PROG} NAME [--preset PRESET] [--folder FOLDER] [settings]\n"
        f"       {PROG} [NAME] --resume RUN [--code MODULE]\n"
        f"       {PROG} report RUN [RUN2] [--study FILE] [--code MODULE]\n"
        f"       {PROG} keep RUN FILE.csv[.gz] [--study FILE] [--code MODULE]\n"
        f"       {PROG} list\n       {PROG} NAME --help",
        description="Compute a study's grid of cells and make its report. Interrupted at any "
        "point, "
        "the same command goes on.\n"
        "Started once more beside itself, on this or another machine, it shares the work.\n\n"
        "NAME is a study that comes with marginlab (`list` shows them), or a path: of a "
        "file, or of a folder that holds study.py.\n"
        "`report` makes the report of a run folder again, and computes no cell. With two run "
        "folders of one study it\nmakes a page of both, side by side, in the first.\n"
        "`keep` writes the main numbers of a finished run, with its command, device and "
        "versions, to a small file.\n"
        "A run folder is data. A study of your own is executed only where you name its "
        "file: as NAME, or by --study. "
        "Nor is\ncode that the folder's settings name ('package.module:Class()') imported, "
        "unless you name its module by --code.",
    )
    front.add_argument(
        "--preset",
        help="settings kept beside the study in presets/PRESET.toml, or FILE.toml; `default` "
        "where there is one",
    )
    front.add_argument(
        "--folder",
        type=Path,
        help="the run folder; runs/NAME-HASH, named by the settings, if it is not given",
    )
    front.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with a run folder, with the study and the settings that it was made with",
    )
    front.add_argument(
        "--cell",
        metavar="ID",
        action="append",
        default=[],
        help="compute this cell only, which the report names by its ID; once for each",
    )
    front.add_argument(
        "--study", metavar="FILE", help="with report and keep: the file of a study of your own"
    )
    front.add_argument(
        "--code",
        metavar="MODULE",
        action="append",
        default=[],
        help="a module of your own that the settings in RUN may name; once for each",
    )
    front.add_argument(
        "-h",
        "--help",
        action="store_true",
        help="this text; after NAME, what the study asks, its presets and its settings",
    )
    return front


def main(arguments: Sequence[str]) -> int:
    """Run the command line, and return the exit status."""
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    given, flags = parser().parse_known_args(list(arguments[1:] if name else arguments))
    try:
        if given.help and name in (None, "list", "report", "keep"):
            parser().print_help()
            return 0
        if name == "list":
            return _list(flags)
        if name == "report":
            # its code is the user's word
            trusted = None if given.study is None else load(given.study)
            with as_data(code=given.code):  # the run folder chose the settings, not the user
                return _report(flags, trusted, given.code)
        if name == "keep":
            return _keep(flags, given.study, given.code)
        if given.study is not None:
            raise SettingsError(
                f"--study {given.study} goes with report and keep. Elsewhere the study comes "
                f"first, as in: {PROG} {given.study} --resume RUN."
            )
        if name is None and given.resume is None:
            raise SettingsError(
                f"Which study? Its name comes first, as in: {PROG} "
                f"{next(iter(shipped()), 'NAME')}. See {PROG} list, and --help."
            )
        study = None if name is None else load(name)
        arguments = _without_cells(arguments)
        if given.resume is not None and not given.help:
            return _resume(study, given, flags, arguments)
        assert study is not None  # without a name there is --resume, or help was given
        if given.help:
            return _help(study, given.preset)
        settings = study.settings(given.preset, flags)
        folder = given.folder or Path("runs") / f"{study.name}-{study.digest(settings)}"
        return execute(study, settings, folder, arguments=arguments, only=given.cell)
    except SettingsError as error:
        own = f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
        say(f"error: {own}{error}", error=True)  # of every rank: the others may never hear of it
        return 2
    except OSError as error:
        own = f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
        named = f"{error.filename} cannot be used: {error.strerror}." if error.filename else error
        say(f"error: {own}{named}", error=True)
        return 1
    except KeyboardInterrupt:  # while the study was imported; the engine answers for itself
        print(
            "Interrupted before any cell was begun; the same command begins again.", file=sys.stderr
        )
        return 130
    finally:
        leave()


def _without_cells(arguments: Sequence[str]) -> list[str]:
    """Return the command line of the whole grid, which the run folder and the report name."""
    kept: list[str] = []
    skip = False
    for word in arguments:
        if not skip and word != "--cell" and not word.startswith("--cell="):
            kept.append(word)
        skip = not skip and word == "--cell"
    return kept


def _list(flags: Sequence[str]) -> int:
    if flags:
        raise SettingsError(f"`list` takes nothing more, not {' '.join(flags)!r}.")
    studies = shipped()
    if not studies:
        say(f"There are no studies in {shelf()}.")
    for name, file in studies.items():
        presets = presets_of(file)
        say(
            f"{name}\n    {summary(file)}\n    presets: {', '.join(presets) if presets else 'none'}"
        )
    return 0


def _help(study: Study, preset: str | None) -> int:
    presets = presets_of(study.file)
    print(
        f"{(study.module.__doc__ or study.title).strip()}\n\npresets (--preset): "
        f"{', '.join(presets) if presets else 'none'}"
    )
    print(f"also: --folder FOLDER, --resume RUN; see {PROG} --help\n")
    print(
        f"Settings, with their values{f' in the preset {preset}' if preset else ''}. --table.name "
        "may be written --name where no\nother setting has that name.\n",
        flush=True,
    )
    study.settings(preset, ["--help"])  # tyro shows them, and leaves
    return 0


def _report(flags: Sequence[str], own: Study | None, code: Sequence[str]) -> int:
    if len(flags) == 2:
        from marginlab.study.beside import put_beside  # its intervals load torch

        return put_beside([open_run(folder, own, code=code) for folder in flags])
    if len(flags) != 1:
        raise SettingsError(
            f"Of which run? Say: {PROG} report RUN, with RUN one run folder, or report RUN RUN2 "
            "for a page of two side by side."
        )
    folder = Path(flags[0]).resolve()
    study, settings = reopen(folder, own)
    check(study, settings, folder)
    study.grid(settings)
    return conclude(study, settings, folder, origin(folder)["command"])


def _keep(flags: Sequence[str], own: str | None, code: Sequence[str]) -> int:
    if len(flags) != 2:
        raise SettingsError(f"Of which run, and where? Say: {PROG} keep RUN FILE.csv[.gz].")
    rows = keep(open_run(flags[0], own, code=code), Path(flags[1]))
    say(f"{rows} rows and where they come from, in {flags[1]}")
    return 0


def _resume(
    study: Study | None, given: argparse.Namespace, flags: Sequence[str], arguments: Sequence[str]
) -> int:
    folder = given.resume.resolve()
    if given.folder is not None and given.folder.resolve() != folder:
        raise SettingsError(
            f"--resume {given.resume} and --folder {given.folder} name two run folders. Give one "
            "of them."
        )
    with as_data(code=given.code):  # the run folder chose the settings, not the user
        study, settings = reopen(folder, study)
        if given.preset is not None:
            settings = study.settings(given.preset, flags)
        elif flags:
            settings = study.settings(None, flags, toml=folder / "config.toml")
        check(study, settings, folder)
        return execute(study, settings, folder, arguments=arguments, only=given.cell)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
