"""Everything that can be measured of features and labels, of any encoder; nothing is trained.

The command is `python -m marginlab.measure FEATURES.npz | timm:NAME | RUN --out FOLDER`.
"""

from marginlab.measure.features import Features as Features
from marginlab.measure.features import Split as Split
from marginlab.measure.features import read_features as read_features
from marginlab.measure.rows import Measured as Measured
from marginlab.measure.rows import Row as Row
from marginlab.measure.rows import measure as measure

__all__ = ("Features", "Measured", "Row", "Split", "measure", "read_features")
