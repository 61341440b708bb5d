"""Small pieces of statistics, each written once: directions, classes, intervals, jackknife.

vectors      rows divided by their lengths, at any length that the type holds
classes      images in classes: their order within a class, centers and the next ones
intervals    of a share and of an estimate with a standard error
extremes     of the largest of several estimates
jackknife    the variance of an estimate from estimates without a group
"""

from marginlab.statistics.vectors import in_range as in_range
from marginlab.statistics.vectors import unit_vectors as unit_vectors
