"""Batch normalisation of features over the rows of all ranks.

A batch spread over processes is normalised as one:

    BN(y) = (y - mean) / sqrt(var + eps)
    mean  = sum of y / B,  var = sum of (y - mean)^2 / B

per dimension, over the B rows of all ranks.

torch's SyncBatchNorm does this on GPUs only. Gradients are exact across ranks: a row changes mean
and variance, and through them the rows of other ranks.

Source: Ioffe and Szegedy 2015, algorithm 1.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from marginlab import ranks
from marginlab.recomputation import recomputing


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """torch.nn.BatchNorm1d without scale and shift, with training statistics over all ranks.

    On one rank it is the same as torch's. If torch.utils.checkpoint runs a pass again, the running
    statistics stay as they are; torch's own batch normalisation moves them a second time.

    Args:
        dim: Number of features D.
        group: The ranks. None is the default group, or one rank. All ranks call it, each with its
            rows, even if it has none.

    Example:
        >>> GlobalBatchNorm1d(3)(torch.rand(8, 3)).mean(0).abs().max() < 1e-5
        tensor(True)
    """

    def __init__(self, dim: int, *, group: dist.ProcessGroup | None = None):
        super().__init__(dim, affine=False)
        self.group = group

    def forward(self, input: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Normalise the rows; raise ValueError in training mode for fewer than two on all ranks."""
        if not self.training or ranks.size(self.group) == 1:
            if self.training and recomputing():
                assert self.running_mean is not None
                assert self.running_var is not None
                moved = self.running_mean.clone(), self.running_var.clone()
                return F.batch_norm(input, *moved, training=True, eps=self.eps)
            out: Tensor = super().forward(input)
            return out
        rows = sum(ranks.rows_per_rank(len(input), self.group, input.device))
        if rows < 2:
            raise ValueError(
                f"Batch normalisation takes the statistics of at least two rows, not of {rows} on "
                f"{ranks.size(self.group)} ranks."
            )
        mean = ranks.all_reduce_statistic(input.sum(0), self.group) / rows
        centered = input - mean
        variance = ranks.all_reduce_statistic(centered.square().sum(0), self.group) / rows
        if recomputing():
            return centered * (variance + self.eps).rsqrt()
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_(
                (variance * rows / (rows - 1)).to(self.running_var), self.momentum
            )
        return centered * (variance + self.eps).rsqrt()
