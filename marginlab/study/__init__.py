"""Studies: a grid of cells, the folder of its run, and the report that shows it.

Start with `python -m marginlab.study --help`.
"""

from marginlab.study.cell import Cell as Cell
from marginlab.study.definition import Study as Study
from marginlab.study.definition import load as load
from marginlab.study.definition import shipped as shipped
from marginlab.study.engine import execute as execute
from marginlab.study.markup import Markup as Markup
from marginlab.study.markup import literal as literal
from marginlab.study.quantity import Quantity as Quantity
from marginlab.study.report import Report as Report
from marginlab.study.run import Rows as Rows
from marginlab.study.run import Run as Run
from marginlab.study.run import Series as Series
from marginlab.study.run import open_run as open_run
from marginlab.study.traces import of_cells as of_cells

__all__ = (
    "Cell",
    "Markup",
    "Quantity",
    "Report",
    "Rows",
    "Run",
    "Series",
    "Study",
    "execute",
    "literal",
    "load",
    "of_cells",
    "open_run",
    "shipped",
)
