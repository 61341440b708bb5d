"""Small pieces of statistics, each written once: directions, groups, intervals, jackknife.

vectors      rows divided by their lengths, at any length that the type holds; projections
distances    of each point from the nearest other one
grouping     rows numbered within their groups
intervals    intervals of estimates and rates
extremes     intervals of the largest and the least of several estimates
jackknife    the variance of an estimate from estimates without a group
"""

from marginlab.statistics.distances import to_nearest_other as to_nearest_other
from marginlab.statistics.grouping import index_within_group as index_within_group
from marginlab.statistics.vectors import in_range as in_range
from marginlab.statistics.vectors import remove_direction as remove_direction
from marginlab.statistics.vectors import unit_vectors as unit_vectors
