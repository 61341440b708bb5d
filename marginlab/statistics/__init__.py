"""Small pieces of statistics, each written once: directions, intervals of extremes, jackknife.

vectors      rows divided by their lengths, at any length that the type holds; projections
extremes     intervals of the largest and the least of several estimates
jackknife    the variance of an estimate from estimates without a group
"""

from marginlab.statistics.vectors import in_range as in_range
from marginlab.statistics.vectors import remove_direction as remove_direction
from marginlab.statistics.vectors import unit_vectors as unit_vectors
