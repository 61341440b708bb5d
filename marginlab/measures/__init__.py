"""Measures of the theory's quantities, as torchmetrics that stream, merge and reduce over ranks.

`marginlab.measures.functional` has the same measures as functions.
"""

from marginlab.measures.anchors.anchor import AnchorConcentration as AnchorConcentration
from marginlab.measures.anchors.anchor_choice import choose_anchors as choose_anchors
from marginlab.measures.anchors.anchor_points import Anchors as Anchors
from marginlab.measures.anchors.anchor_result import AnchorCurve as AnchorCurve
from marginlab.measures.anchors.anchor_result import AnchorResult as AnchorResult
from marginlab.measures.classes.angles import AngleResult as AngleResult
from marginlab.measures.classes.angles import AngleStatistics as AngleStatistics
from marginlab.measures.classes.angles import IntraAngle as IntraAngle
from marginlab.measures.classes.angles import IntraResult as IntraResult
from marginlab.measures.classes.class_variance import ClassVariance as ClassVariance
from marginlab.measures.classes.class_variance import ClassVarianceResult as ClassVarianceResult
from marginlab.measures.classes.divergence import ClassDivergence as ClassDivergence
from marginlab.measures.classes.divergence import DivergenceResult as DivergenceResult
from marginlab.measures.classes.nearest_center import MismatchResult as MismatchResult
from marginlab.measures.classes.nearest_center import NearestCenterMismatch as NearestCenterMismatch
from marginlab.measures.classes.neural_collapse import NeuralCollapse as NeuralCollapse
from marginlab.measures.classes.neural_collapse import NeuralCollapseResult as NeuralCollapseResult
from marginlab.measures.concentration.closest import Pair as Pair
from marginlab.measures.concentration.concentration import Concentration as Concentration
from marginlab.measures.concentration.controls import Between as Between
from marginlab.measures.concentration.sigma import ConcentrationResult as ConcentrationResult
from marginlab.measures.concentration.sigma_curve import Curve as Curve
from marginlab.measures.graphs.augmentation_graph import AugmentationGraph as AugmentationGraph
from marginlab.measures.graphs.augmentation_graph import SmallestConductance as SmallestConductance
from marginlab.measures.graphs.cliques import Clique as Clique
from marginlab.measures.lipschitz.lipschitz import LipschitzRatio as LipschitzRatio
from marginlab.measures.lipschitz.lipschitz import LipschitzResult as LipschitzResult
from marginlab.measures.lipschitz.lipschitz import jacobian_norms as jacobian_norms
from marginlab.measures.lipschitz.spectral_bound import LipschitzBound as LipschitzBound
from marginlab.measures.lipschitz.spectral_bound import lipschitz_upper as lipschitz_upper
from marginlab.measures.recognizability.bank import UnrecognizableBank as UnrecognizableBank
from marginlab.measures.recognizability.index import (
    RecognizabilityDistances as RecognizabilityDistances,
)
from marginlab.measures.recognizability.index import RecognizabilityIndex as RecognizabilityIndex
from marginlab.measures.spectrum.effective_rank import EffectiveRank as EffectiveRank
from marginlab.measures.spectrum.effective_rank import EffectiveRankResult as EffectiveRankResult
from marginlab.measures.spectrum.lidar import LiDAR as LiDAR
from marginlab.measures.spectrum.lidar import LiDARResult as LiDARResult
from marginlab.measures.spectrum.spectrum_decay import SpectrumDecay as SpectrumDecay
from marginlab.measures.spectrum.spectrum_decay import SpectrumDecayResult as SpectrumDecayResult
from marginlab.measures.views.alignment import Alignment as Alignment
from marginlab.measures.views.alignment import AlignmentResult as AlignmentResult
from marginlab.measures.views.augmentation_confusion import (
    AugmentationConfusion as AugmentationConfusion,
)
from marginlab.measures.views.augmentation_confusion import ConfusionResult as ConfusionResult
from marginlab.measures.views.uniformity import Uniformity as Uniformity
from marginlab.measures.views.uniformity import UniformityResult as UniformityResult

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
    "RecognizabilityDistances",
    "RecognizabilityIndex",
    "SmallestConductance",
    "SpectrumDecay",
    "SpectrumDecayResult",
    "Uniformity",
    "UniformityResult",
    "UnrecognizableBank",
    "choose_anchors",
    "jacobian_norms",
    "lipschitz_upper",
]
