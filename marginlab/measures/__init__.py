"""Measures of the theory's quantities, as torchmetrics that stream, merge and reduce over ranks.

`marginlab.measures.functional` has the same measures as functions.
"""

from marginlab.measures.alignment import Alignment as Alignment
from marginlab.measures.alignment import AlignmentResult as AlignmentResult
from marginlab.measures.anchor import AnchorConcentration as AnchorConcentration
from marginlab.measures.anchor_choice import choose_anchors as choose_anchors
from marginlab.measures.anchor_points import Anchors as Anchors
from marginlab.measures.anchor_result import AnchorCurve as AnchorCurve
from marginlab.measures.anchor_result import AnchorResult as AnchorResult
from marginlab.measures.angles import AngleResult as AngleResult
from marginlab.measures.angles import AngleStatistics as AngleStatistics
from marginlab.measures.angles import IntraAngle as IntraAngle
from marginlab.measures.angles import IntraResult as IntraResult
from marginlab.measures.augmentation_confusion import AugmentationConfusion as AugmentationConfusion
from marginlab.measures.augmentation_confusion import ConfusionResult as ConfusionResult
from marginlab.measures.augmentation_graph import AugmentationGraph as AugmentationGraph
from marginlab.measures.augmentation_graph import SmallestConductance as SmallestConductance
from marginlab.measures.class_variance import ClassVariance as ClassVariance
from marginlab.measures.class_variance import ClassVarianceResult as ClassVarianceResult
from marginlab.measures.cliques import Clique as Clique
from marginlab.measures.closest import Pair as Pair
from marginlab.measures.concentration import Concentration as Concentration
from marginlab.measures.controls import Between as Between
from marginlab.measures.divergence import ClassDivergence as ClassDivergence
from marginlab.measures.divergence import DivergenceResult as DivergenceResult
from marginlab.measures.effective_rank import EffectiveRank as EffectiveRank
from marginlab.measures.effective_rank import EffectiveRankResult as EffectiveRankResult
from marginlab.measures.lidar import LiDAR as LiDAR
from marginlab.measures.lidar import LiDARResult as LiDARResult
from marginlab.measures.lipschitz import LipschitzRatio as LipschitzRatio
from marginlab.measures.lipschitz import LipschitzResult as LipschitzResult
from marginlab.measures.lipschitz import jacobian_norms as jacobian_norms
from marginlab.measures.nearest_center import MismatchResult as MismatchResult
from marginlab.measures.nearest_center import NearestCenterMismatch as NearestCenterMismatch
from marginlab.measures.neural_collapse import NeuralCollapse as NeuralCollapse
from marginlab.measures.neural_collapse import NeuralCollapseResult as NeuralCollapseResult
from marginlab.measures.sigma import ConcentrationResult as ConcentrationResult
from marginlab.measures.sigma_curve import Curve as Curve
from marginlab.measures.spectral_bound import LipschitzBound as LipschitzBound
from marginlab.measures.spectral_bound import lipschitz_upper as lipschitz_upper
from marginlab.measures.spectrum_decay import SpectrumDecay as SpectrumDecay
from marginlab.measures.spectrum_decay import SpectrumDecayResult as SpectrumDecayResult
from marginlab.measures.uniformity import Uniformity as Uniformity
from marginlab.measures.uniformity import UniformityResult as UniformityResult

__all__ = [
    "Alignment",
    "AlignmentResult",
    "AnchorConcentration",
    "AnchorCurve",
    "AnchorResult",
    "Anchors",
    "AngleResult",
    "AngleStatistics",
    "AugmentationConfusion",
    "AugmentationGraph",
    "Between",
    "ClassDivergence",
    "ClassVariance",
    "ClassVarianceResult",
    "Clique",
    "Concentration",
    "ConcentrationResult",
    "ConfusionResult",
    "Curve",
    "DivergenceResult",
    "EffectiveRank",
    "EffectiveRankResult",
    "IntraAngle",
    "IntraResult",
    "LiDAR",
    "LiDARResult",
    "LipschitzBound",
    "LipschitzRatio",
    "LipschitzResult",
    "MismatchResult",
    "NearestCenterMismatch",
    "NeuralCollapse",
    "NeuralCollapseResult",
    "Pair",
    "SmallestConductance",
    "SpectrumDecay",
    "SpectrumDecayResult",
    "Uniformity",
    "UniformityResult",
    "choose_anchors",
    "jacobian_norms",
    "lipschitz_upper",
]
