"""Ranks that end at different times: none of them cuts another's last words."""

import os

import forked

# The cell fails on both ranks. Rank 0 then takes its time over the report; rank 1 has nothing left
# to do.
FAILS = '''"""Does rank 0 have the last word?"""
import time
from dataclasses import dataclass
@dataclass(frozen=True)
class Settings:
    n: int = 1
def cells(settings):
    return [{"i": i} for i in range(settings.n)]
def run(cell):
    raise RuntimeError("on both")
def report(run):
    from marginlab import ranks
    from marginlab.study import engine
    if ranks.rank() == 0:
        render = engine.render
        def slowly(*arguments):
            time.sleep(4)
            return render(*arguments)
        engine.render = slowly
'''


def test_a_rank_that_has_ended_does_not_end_the_one_that_still_writes(tmp_path):
    """A failed cell makes every rank return 1, and torchrun ends the others as soon as the first
    has.
    """
    (tmp_path / "fails.py").write_text(FAILS)
    command = [*forked.torchrun(), "-m", "marginlab.study", "fails.py", "--folder", "mine"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = forked.run(command, cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "Missing: 1 of 1 cells" in done.stdout, done.stdout + done.stderr
    assert "Interrupted" not in done.stderr
    assert "on both" in (tmp_path / "mine" / "report.html").read_text()
