"""The engine: claim cells, compute them, wait for others', join the results, make the report.

Any number of processes work on one grid, each by this same loop. Take the first cell that is
neither finished nor claimed, compute it, write its rows. When all remaining cells are claimed by
others, wait until these end or their process does. Under torchrun all ranks work on one cell.
"""

import os
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from marginlab.settings import SettingsError, named_in, nearest
from marginlab.signals import Terminated, on_termination, terminate
from marginlab.study import display as show
from marginlab.study.cell import Cell, identify
from marginlab.study.definition import Study
from marginlab.study.display import Display
from marginlab.study.files import Claim, unwritable, write
from marginlab.study.folder import assemble, finish, log, now, prepare
from marginlab.study.page import render, sections
from marginlab.study.run import Run
from marginlab.study.team import Team, join
from marginlab.terminal import say

_POLL = 0.3  # seconds between two looks at cells that other processes compute


def execute(
    study: Study,
    settings: Any,
    folder: Path | str,
    *,
    arguments: Sequence[str] = (),
    only: Collection[str] = (),
) -> int:
    """Compute the missing cells of a study's grid in a run folder, and make the report.

    Args:
        study: The study.
        settings: Its settings.
        folder: The run folder, new or of an earlier run.
        arguments: The arguments of the command line, for the command that the run folder and the
            report name.
        only: The ids of the cells to compute; all where it is empty.

    Returns:
        The exit status: 0; 1 if a cell or the report failed; 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        SettingsError: The settings give no grid, or `only` names a cell that is not in it, or the
            folder is not of this study with these settings. Nothing is written then.
        OSError: The folder cannot be made or written (a full disk, a read-only one), or was
            removed; in a sentence.
    """
    known = [identify(columns) for columns in study.grid(settings)]
    for one in only:
        if one not in known:
            raise SettingsError(f"The grid has no cell {one!r}: {nearest(one, known)}")
    team, folder = join(), Path(folder).resolve()
    ground = team.first(lambda: study.check(settings))
    own = [word for module in sorted(named_in(settings)) for word in ("--code", module)]
    command = command_line(arguments or [str(study.file), "--resume", str(folder), *own], team)
    team.first(lambda: prepare(study, settings, folder, command, ground))
    try:
        return _work(_Grid(study, settings, folder, team, only), settings, command)
    except OSError as error:
        raise unwritable(error, folder) or error from error


def _work(grid: "_Grid", settings: Any, command: str) -> int:
    study, folder, team = grid.study, grid.folder, grid.team
    with on_termination(terminate):
        try:
            with Display(len(grid.asked), shown=team.leads) as display:
                if team.leads:
                    log(folder, f"begins: {command}")
                    display.line(
                        f"{study.name}: {len(grid.asked)} "
                        f"{'cell' if len(grid.asked) == 1 else 'cells'} in {folder}"
                    )
                grid.work(display)
            asked = [cell.id for cell in grid.asked]
            return conclude(study, settings, folder, command, stamp=grid.stamp, asked=asked)
        except (KeyboardInterrupt, Terminated) as stop:
            if team.leads:
                _farewell(grid, folder, command)
            return 143 if isinstance(stop, Terminated) else 130
        finally:
            grid.release()


def _farewell(grid: "_Grid", folder: Path, command: str) -> None:
    assemble(folder, grid.cells)
    done = sum(cell.finished for cell in grid.cells)
    log(folder, f"interrupted, {done} of {len(grid.cells)} cells finished")
    kept = f"{done} of {len(grid.cells)} cells are finished and kept in {folder}"
    say(f"\nInterrupted: {kept}; go on with: {command}", error=True)


class _Grid:
    """The cells of a run, and the ones that this process (this team) may compute."""

    def __init__(
        self, study: Study, settings: Any, folder: Path, team: Team, only: Collection[str]
    ) -> None:
        self.study, self.folder, self.team = study, folder, team
        self.cells = [
            Cell(columns, settings=settings, run_folder=folder, home=study.home, team=team)
            for columns in study.grid(settings)
        ]
        self.asked = [cell for cell in self.cells if not only or cell.id in only]
        # A cell that failed before we came is tried again; one that fails for another process while
        # we work is not.
        self._failed = {cell.id: _stamp(cell.failure_file) for cell in self.cells}
        self.stamp = _stamp(folder / "report.html")
        self._claim: Claim | None = None

    def work(self, display: Display) -> None:
        """Compute until every cell that was asked for has ended, here or elsewhere."""
        while True:
            state, index, finished, others = self.team.first(self._next)
            if state == "end":
                return
            if state == "wait":
                display.wait(finished, others)
                time.sleep(_POLL)
                continue
            display.start(self.asked[index].id, finished, others)
            self._compute(self.asked[index], display)
            self.release()

    def _next(self) -> tuple[Literal["take", "wait", "end"], int, int, int]:
        """Claim the first free cell, and count the cells finished and computed elsewhere."""
        taken, others = -1, 0
        finished = 0
        if not (self.folder / "config.toml").exists():
            # a claim would make it again, without what it held
            raise FileNotFoundError(self.folder)
        for index, cell in enumerate(self.asked):
            if cell.finished:
                finished += 1
            elif _stamp(cell.failure_file) == self._failed[cell.id] and taken < 0:
                claim = Claim(cell.folder / ".lock")
                if not claim.take():
                    others += 1
                # it ended between the two looks
                elif cell.finished or _stamp(cell.failure_file) != self._failed[cell.id]:
                    claim.release()
                    finished += cell.finished
                else:
                    taken, self._claim = index, claim
        return "take" if taken >= 0 else "wait" if others else "end", taken, finished, others

    def release(self) -> None:
        """Release the claimed cell, if there is one."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def _compute(self, cell: Cell, display: Display) -> None:
        leads, begun, started = self.team.leads, time.monotonic(), now()
        cell = Cell(
            cell,
            settings=cell.settings,
            run_folder=self.folder,
            home=cell.home,
            team=self.team,
            progress=display.say,
        )
        if leads:
            log(self.folder, f"{cell.id} begins")
        good, before = True, _stamp(cell.failure_file)
        try:
            self.study.module.run(cell)
            if leads:
                finish(cell, time.monotonic() - begun, started)
        except Exception as error:
            if (lasting := unwritable(error, self.folder)) is not None:
                raise lasting from error
            good = False
            # the first of several ranks to fail has the cause, the others may only feel it go
            if _stamp(cell.failure_file) == before:
                write(cell.failure_file, traceback.format_exc())
            log(
                self.folder,
                f"{cell.id} "
                f"failed{'' if leads else f' on rank {self.team.rank}'}:\n{traceback.format_exc()}",
            )
        agreed = self.team.agree(good)
        if not agreed and leads:
            cell.rows_file.unlink(missing_ok=True)
        # one look later the failure is that of this attempt, and the cell is not taken again
        display.stop(time.monotonic() - begun, good=agreed)
        if agreed and leads:
            log(self.folder, f"{cell.id} finished in {time.monotonic() - begun:.1f} s")
        elif leads:
            lines = cell.failure_file.read_text().strip().splitlines()
            display.line("\n".join(f"    {line}" for line in lines[-5:]))
            display.line(
                f"    {cell.id} failed; the other cells go on. The whole traceback is in "
                f"{cell.failure_file}."
            )


def conclude(
    study: Study,
    settings: Any,
    folder: Path,
    command: str,
    *,
    stamp: int | None = None,
    asked: Collection[str] | None = None,
) -> int:
    """Write results.csv, times.csv and report.html; return 0 if no cell of `asked` is missing.

    With the `stamp` of the report that was there at the beginning, a newer report that shows the
    same cells is left as it is. When several processes end together, one of them makes it.
    """
    team = join()
    claim = Claim(folder / ".report.lock")
    while not team.first(claim.take):
        time.sleep(_POLL)
    try:
        run = Run(study, settings, folder, team=team)
        if team.size > 1:  # other machines may see the files later than rank 0
            run.results, run.times = team.broadcast((run.results, run.times))
        if team.leads:
            assemble(folder, run.cells)
        state = _state(run)
        good = True
        if team.first(
            lambda: (
                stamp is None
                or _stamp(run.folder / "report.html") == stamp
                or not _shows(folder, state)
            )
        ):
            good = _report(run, team, command, state)
    finally:
        claim.release()
    missing = [
        cell for cell in run.cells if not cell.finished and (asked is None or cell.id in asked)
    ]
    if team.leads:
        _results(run, missing)
    # the first rank to end with an error would have torchrun end the others, in the middle of what
    # they write
    team.agree(True)
    return 1 if missing or not good else 0


def _report(run: Run, team: Team, command: str, state: str) -> bool:
    trouble = ""
    try:
        sections(run)
    except Exception:
        trouble = traceback.format_exc()
        log(run.folder, f"the report failed:\n{trouble}")
    good = team.agree(not trouble)
    if team.leads:
        write(run.folder / "report.html", render(run, command, state, trouble))
        if not good:
            words = "The study's report failed; report.html shows what it had until then."
            say(f"{words}\n{trouble}", error=True)
    return good


def _results(run: Run, missing: Sequence[Cell]) -> None:
    show.closing(run, run.study.headline)
    if missing:
        named = ", ".join(cell.id for cell in missing)
        say(
            f"Missing: {len(missing)} of {len(run.cells)} cells ({named}). The same command tries "
            "them again."
        )
    later = sum(not cell.finished for cell in run.cells) - len(missing)
    if later:
        say(f"{later} cells were not asked for; the same command without --cell computes them.")
    say(f"results  {run.folder / 'results.csv'}\nreport   {run.folder / 'report.html'}")
    done = sum(cell.finished for cell in run.cells)
    log(run.folder, f"ends, {done} of {len(run.cells)} cells finished")


def _state(run: Run) -> str:
    """Return the versions of the cells that are there, to identify the content of a report."""
    return " ".join(f"{_stamp(cell.rows_file):x}" for cell in run.cells)


def _shows(folder: Path, state: str) -> bool:
    file = folder / "report.html"
    return file.is_file() and f'content="{state}"' in file.read_text(encoding="utf-8")[:100_000]


def _stamp(file: Path) -> int:
    """Return a number that changes when a file is replaced; 0 if there is none."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def command_line(arguments: Sequence[str], team: Team) -> str:
    """Return the command that starts this run again, for a shell in the same folder."""
    here = Path(sys.executable).absolute()
    python = str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(here)
    python = next(
        (name for name in ("python", "python3") if shutil.which(name) == str(here)), python
    )
    start = (
        [python]
        if team.size == 1
        else [
            python,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            os.environ["LOCAL_WORLD_SIZE"],
        ]
    )
    return shlex.join([*start, "-m", "marginlab.study", *arguments])
