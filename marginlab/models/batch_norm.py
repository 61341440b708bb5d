"""Batch normalisation of features over the rows of all ranks, so that a batch spread over processes
is normalised as one.

    BN(y) = (y - mean) / sqrt(var + eps),    mean = sum of y / B,  var = sum of (y - mean)^2 / B,  over the B rows of all ranks, per dimension

torch's SyncBatchNorm does this on GPUs only. Gradients are exact across ranks: what a row changes
in mean and variance changes the rows of others.

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
    """torch.nn.BatchNorm1d without scale and shift, with statistics over all ranks in training
    mode; the same on one rank.

    group: the ranks; None is the default group, or one rank. All ranks call it, each with its rows,
        also none.

    A pass that torch.utils.checkpoint runs again leaves the running statistics as they are, which
    torch's own batch normalisation moves a second time.

    >>> GlobalBatchNorm1d(3)(torch.rand(8, 3)).mean(0).abs().max() < 1e-5
    tensor(True)
    """

    def __init__(self, dim: int, *, group: dist.ProcessGroup | None = None):
        super().__init__(dim, affine=False)
        self.group = group

    def forward(self, input: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Normalise the rows; in training mode at least two on all ranks together (ValueError)."""
        if not self.training or ranks.size(self.group) == 1:
            if self.training and recomputing():
                assert self.running_mean is not None
                assert self.running_var is not None
                moved = self.running_mean.clone(), self.running_var.clone()
                return F.batch_norm(input, *moved, training=True, eps=self.eps)
            out: Tensor = super().forward(input)
            return out
        rows = sum(ranks.counts(len(input), self.group, input.device))
        if rows < 2:
            raise ValueError(
                f"Batch normalisation takes the statistics of at least two rows, not of "
                f"{rows} on {ranks.size(self.group)} ranks."
            )
        mean = ranks.statistic(input.sum(0), self.group) / rows
        centered = input - mean
        variance = ranks.statistic(centered.square().sum(0), self.group) / rows
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
