"""Functional twins of the measures: the same formulas on given tensors, without state or ranks."""

from marginlab.measures.alignment import alignment as alignment
from marginlab.measures.alignment import clopper_pearson as clopper_pearson
from marginlab.measures.anchor_points import anchor_distances as anchor_distances
from marginlab.measures.angles import angle_statistics as angle_statistics
from marginlab.measures.augmentation_confusion import (
    augmentation_confusion as augmentation_confusion,
)
from marginlab.measures.augmentation_confusion import relative_confusion as relative_confusion
from marginlab.measures.augmented_distance import augmented_distances as augmented_distances
from marginlab.measures.class_variance import class_distances as class_distances
from marginlab.measures.class_variance import class_variance as class_variance
from marginlab.measures.clique_bounds import bounds as bounds
from marginlab.measures.cliques import largest_clique as largest_clique
from marginlab.measures.convolution_norm import convolution_norm as convolution_norm
from marginlab.measures.divergence import class_divergence as class_divergence
from marginlab.measures.effective_rank import rankme as rankme
from marginlab.measures.graphs import colouring as colouring
from marginlab.measures.graphs import greedy_clique as greedy_clique
from marginlab.measures.graphs import matching as matching
from marginlab.measures.lidar import lidar as lidar
from marginlab.measures.lipschitz import jacobian_norms as jacobian_norms
from marginlab.measures.lipschitz import lipschitz_ratios as lipschitz_ratios
from marginlab.measures.nearest_center import nearest_center_mismatch as nearest_center_mismatch
from marginlab.measures.neural_collapse import neural_collapse as neural_collapse
from marginlab.measures.spectral_bound import lipschitz_upper as lipschitz_upper
from marginlab.measures.spectrum import effective_rank as effective_rank
from marginlab.measures.spectrum_decay import power_law as power_law
from marginlab.measures.spectrum_decay import spectrum_decay as spectrum_decay
from marginlab.measures.uniformity import uniformity as uniformity
from marginlab.measures.vector_angles import nearest_class_angles as nearest_class_angles

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
    "relative_confusion",
    "spectrum_decay",
    "uniformity",
]
