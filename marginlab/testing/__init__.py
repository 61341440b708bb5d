"""Laws for losses and measures of one's own: `check_loss(MyLoss)`, `check_measure(MyMeasure)`.

Inputs are drawn by hypothesis (`pip install 'marginlab[test]'`); one that breaks a law is made as
small as it gets. `strategies` are for tests of one's own, `loss_laws` and `measure_laws` hold one
function a law, `Pool` gloo ranks for tests that need them, `peak_of` the memory of a piece of work.
"""

from marginlab.testing.agreement import LawBroken as LawBroken
from marginlab.testing.check import check_loss as check_loss
from marginlab.testing.check import check_measure as check_measure
from marginlab.testing.memory import peak_of as peak_of
from marginlab.testing.pool import Pool as Pool
from marginlab.testing.pool import RanksFailed as RanksFailed

__all__ = ("LawBroken", "Pool", "RanksFailed", "check_loss", "check_measure", "peak_of")
