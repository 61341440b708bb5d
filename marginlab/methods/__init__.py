"""Methods: a backbone, a head and a loss, which together can be trained."""

from marginlab.methods.angular_triplet import AngularTriplet as AngularTriplet
from marginlab.methods.barlow_twins import BarlowTwins as BarlowTwins
from marginlab.methods.margin_classifier import MarginClassifier as MarginClassifier
from marginlab.methods.method import MakeOptimizer as MakeOptimizer
from marginlab.methods.method import Method as Method
from marginlab.methods.moco import MoCo as MoCo
from marginlab.methods.recognizability import Recognizability as Recognizability
from marginlab.methods.simclr import SimCLR as SimCLR
from marginlab.methods.simsiam import SimSiam as SimSiam
from marginlab.methods.softmax_classifier import SoftmaxClassifier as SoftmaxClassifier
from marginlab.methods.spectral import SpectralContrastive as SpectralContrastive
from marginlab.methods.sup_con import SupCon as SupCon
from marginlab.methods.vicreg import VICReg as VICReg

__all__ = [
    "AngularTriplet",
    "BarlowTwins",
    "MarginClassifier",
    "MoCo",
    "Recognizability",
    "SimCLR",
    "SimSiam",
    "SoftmaxClassifier",
    "SpectralContrastive",
    "SupCon",
    "VICReg",
]
