"""The losses as functions.

The modules of `marginlab.losses` keep settings and call these functions.
"""

from marginlab.losses.align_uniform import align_uniform as align_uniform
from marginlab.losses.angular_terms import inter_class as inter_class
from marginlab.losses.angular_terms import intra_class as intra_class
from marginlab.losses.angular_triplet import angular_triplet as angular_triplet
from marginlab.losses.cross_correlation import cross_correlation as cross_correlation
from marginlab.losses.index_diversion import attention_target as attention_target
from marginlab.losses.index_diversion import index_diversion as index_diversion
from marginlab.losses.index_diversion import index_regression as index_regression
from marginlab.losses.info_nce import info_nce as info_nce
from marginlab.losses.margin_softmax import margin_softmax as margin_softmax
from marginlab.losses.spectral_contrastive import spectral_contrastive as spectral_contrastive
from marginlab.losses.sup_con import sup_con as sup_con
from marginlab.losses.t_info_nce import t_info_nce as t_info_nce
from marginlab.losses.two_towers import two_towers as two_towers
from marginlab.losses.vicreg import vicreg as vicreg

__all__ = (
    "align_uniform",
    "angular_triplet",
    "attention_target",
    "cross_correlation",
    "index_diversion",
    "index_regression",
    "info_nce",
    "inter_class",
    "intra_class",
    "margin_softmax",
    "spectral_contrastive",
    "sup_con",
    "t_info_nce",
    "two_towers",
    "vicreg",
)
