"""Losses on embeddings: of two views, `(z1, z2)`. Each is a module here and a function in `marginlab.losses.functional`."""

from marginlab.losses.cross_correlation import CrossCorrelation as CrossCorrelation
from marginlab.losses.info_nce import InfoNCE as InfoNCE

__all__ = ("CrossCorrelation", "InfoNCE")
