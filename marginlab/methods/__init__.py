"""Methods: a backbone, a head and a loss, which together are something trainable."""

from marginlab.methods.barlow_twins import BarlowTwins as BarlowTwins
from marginlab.methods.margin_classifier import MarginClassifier as MarginClassifier
from marginlab.methods.method import MakeOptimizer as MakeOptimizer
from marginlab.methods.method import Method as Method
from marginlab.methods.simclr import SimCLR as SimCLR

__all__ = ["BarlowTwins", "MarginClassifier", "SimCLR"]
