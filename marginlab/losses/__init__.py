"""Losses on embeddings, and classifiers that own class centers.

A loss on two views takes `(z1, z2)`. A classifier takes `(embeddings, labels)`. A term of a
classifier takes its centers too.

Each is a module here and a function in `marginlab.losses.functional`.
"""

from marginlab.losses.align_uniform import AlignUniform as AlignUniform
from marginlab.losses.angular_terms import AngularTerm as AngularTerm
from marginlab.losses.angular_terms import InterClass as InterClass
from marginlab.losses.angular_terms import IntraClass as IntraClass
from marginlab.losses.angular_triplet import AngularTriplet as AngularTriplet
from marginlab.losses.bank import EmbeddingBank as EmbeddingBank
from marginlab.losses.class_expansion import resized as resized
from marginlab.losses.cross_correlation import CrossCorrelation as CrossCorrelation
from marginlab.losses.index_diversion import IndexDiversion as IndexDiversion
from marginlab.losses.info_nce import InfoNCE as InfoNCE
from marginlab.losses.margin_softmax import MarginSoftmax as MarginSoftmax
from marginlab.losses.outside_ddp import outside_ddp as outside_ddp
from marginlab.losses.partial_fc import PartialFC as PartialFC
from marginlab.losses.spectral_contrastive import SpectralContrastive as SpectralContrastive
from marginlab.losses.sup_con import References as References
from marginlab.losses.sup_con import SupCon as SupCon
from marginlab.losses.t_info_nce import TInfoNCE as TInfoNCE
from marginlab.losses.two_towers import TwoTowers as TwoTowers
from marginlab.losses.vicreg import VICReg as VICReg

__all__ = (
    "AlignUniform",
    "AngularTriplet",
    "CrossCorrelation",
    "EmbeddingBank",
    "IndexDiversion",
    "InfoNCE",
    "InterClass",
    "IntraClass",
    "MarginSoftmax",
    "PartialFC",
    "References",
    "SpectralContrastive",
    "SupCon",
    "TInfoNCE",
    "TwoTowers",
    "VICReg",
)
