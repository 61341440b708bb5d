"""Functional twins of the measures: the same formulas on given tensors, without state or ranks."""

from marginlab.measures.anchors.anchor_points import anchor_distances as anchor_distances
from marginlab.measures.classes.angles import angle_statistics as angle_statistics
from marginlab.measures.classes.class_variance import class_distances as class_distances
from marginlab.measures.classes.class_variance import class_variance as class_variance
from marginlab.measures.classes.divergence import class_divergence as class_divergence
from marginlab.measures.classes.nearest_center import (
    nearest_center_mismatch as nearest_center_mismatch,
)
from marginlab.measures.classes.neural_collapse import neural_collapse as neural_collapse
from marginlab.measures.classes.vector_angles import nearest_class_angles as nearest_class_angles
from marginlab.measures.concentration.augmented_distance import (
    augmented_distances as augmented_distances,
)
from marginlab.measures.graphs.clique_bounds import bounds as bounds
from marginlab.measures.graphs.cliques import largest_clique as largest_clique
from marginlab.measures.graphs.graphs import colouring as colouring
from marginlab.measures.graphs.graphs import greedy_clique as greedy_clique
from marginlab.measures.graphs.graphs import matching as matching
from marginlab.measures.lipschitz.convolution_norm import convolution_norm as convolution_norm
from marginlab.measures.lipschitz.lipschitz import jacobian_norms as jacobian_norms
from marginlab.measures.lipschitz.lipschitz import lipschitz_ratios as lipschitz_ratios
from marginlab.measures.lipschitz.spectral_bound import lipschitz_upper as lipschitz_upper
from marginlab.measures.recognizability.index import (
    recognizability_distances as recognizability_distances,
)
from marginlab.measures.recognizability.index import recognizability_index as recognizability_index
from marginlab.measures.spectrum.effective_rank import rankme as rankme
from marginlab.measures.spectrum.lidar import lidar as lidar
from marginlab.measures.spectrum.spectrum import effective_rank as effective_rank
from marginlab.measures.spectrum.spectrum_decay import power_law as power_law
from marginlab.measures.spectrum.spectrum_decay import spectrum_decay as spectrum_decay
from marginlab.measures.views.alignment import alignment as alignment
from marginlab.measures.views.augmentation_confusion import (
    augmentation_confusion as augmentation_confusion,
)
from marginlab.measures.views.augmentation_confusion import relative_confusion as relative_confusion
from marginlab.measures.views.uniformity import uniformity as uniformity
from marginlab.statistics import remove_direction as remove_direction
from marginlab.statistics.intervals import clopper_pearson as clopper_pearson

__all__ = [
    "alignment",
    "anchor_distances",
    "angle_statistics",
    "augmentation_confusion",
    "augmented_distances",
    "bounds",
    "class_distances",
    "class_divergence",
    "class_variance",
    "clopper_pearson",
    "colouring",
    "convolution_norm",
    "effective_rank",
    "greedy_clique",
    "jacobian_norms",
    "largest_clique",
    "lidar",
    "lipschitz_ratios",
    "lipschitz_upper",
    "matching",
    "nearest_center_mismatch",
    "nearest_class_angles",
    "neural_collapse",
    "power_law",
    "rankme",
    "recognizability_distances",
    "recognizability_index",
    "relative_confusion",
    "remove_direction",
    "spectrum_decay",
    "uniformity",
]
