"""Margins: target cosine -> target logit, and its derivative.

The margins here are settings of a classifier. `Margin` and `Targets` are for writing your own.

Settings of a classifier; `Margin` and `Targets` are what one's own is made of.
"""

from marginlab.margins.adaface import AdaFace as AdaFace
from marginlab.margins.combined import ArcFace as ArcFace
from marginlab.margins.combined import CombinedMargin as CombinedMargin
from marginlab.margins.combined import CosFace as CosFace
from marginlab.margins.combined import NoMargin as NoMargin
from marginlab.margins.combined import SphereFace as SphereFace
from marginlab.margins.combined import combined as combined
from marginlab.margins.curricularface import CurricularFace as CurricularFace
from marginlab.margins.elasticface import ElasticFace as ElasticFace
from marginlab.margins.magface import MagFace as MagFace
from marginlab.margins.margin import Gradient as Gradient
from marginlab.margins.margin import Margin as Margin
from marginlab.margins.margin import Targets as Targets

# The classes here are those a text in call notation may name
__all__ = [
    "AdaFace",
    "ArcFace",
    "CombinedMargin",
    "CosFace",
    "CurricularFace",
    "ElasticFace",
    "MagFace",
    "NoMargin",
    "SphereFace",
    "combined",
]
