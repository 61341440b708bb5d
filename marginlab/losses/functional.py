"""The losses as functions: one formula, two doors. The modules of `marginlab.losses` call these with settings kept."""

from marginlab.losses.cross_correlation import cross_correlation as cross_correlation
from marginlab.losses.info_nce import info_nce as info_nce
from marginlab.losses.margin_softmax import margin_softmax as margin_softmax
from marginlab.losses.sup_con import sup_con as sup_con

__all__ = ("cross_correlation", "info_nce", "margin_softmax", "sup_con")
