"""Reductions of a matrix that is never held, by one walk over its blocks under a byte budget."""

from marginlab.kernels.cauchy import log_cauchy_sum as log_cauchy_sum
from marginlab.kernels.correlation import off_diagonal_squares as off_diagonal_squares
from marginlab.kernels.logsumexp import logsumexp as logsumexp
from marginlab.kernels.minimum import between as between
from marginlab.kernels.minimum import minimum as minimum
from marginlab.kernels.nested import nested_logsumexp as nested_logsumexp
from marginlab.kernels.softplus_sum import softplus_sum as softplus_sum
from marginlab.kernels.split import split_logsumexp as split_logsumexp
from marginlab.kernels.symmetric import symmetric_logsumexp as symmetric_logsumexp
from marginlab.kernels.topk import top_k as top_k
from marginlab.kernels.walk import BUDGET as BUDGET
from marginlab.kernels.walk import walk as walk
