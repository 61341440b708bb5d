"""Losses on embeddings: of two views, `(z1, z2)`, and classifiers that own class centers, `(embeddings, labels)`.

Each is a module here and a function in `marginlab.losses.functional`.
"""

from marginlab.losses.cross_correlation import CrossCorrelation as CrossCorrelation
from marginlab.losses.info_nce import InfoNCE as InfoNCE
from marginlab.losses.margin_softmax import MarginSoftmax as MarginSoftmax
from marginlab.losses.partial_fc import PartialFC as PartialFC
from marginlab.losses.sup_con import SupCon as SupCon

__all__ = ("CrossCorrelation", "InfoNCE", "MarginSoftmax", "PartialFC", "SupCon")
