"""Sums of the loss, and of what comes with it, over the steps of an epoch and over the ranks.

    sum of a name = sum over steps of (1 / N) sum over the N ranks of its value

Ranks add their parts together only where the loop pauses. Until then each rank adds up its own.
"""

from typing import Any

import torch
from torch import Tensor

from marginlab import ranks


class Sums:
    """The sums of one epoch so far.

    Attributes:
        of_all: The sums of all ranks, up to the step at which they last added theirs.
        own: This rank's part since then, in float64.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.of_all, self.own = dict[str, float](), dict[str, Tensor]()

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the values of a step on this rank."""
        for name, value in values.items():
            self.own[name] = self.own[name] + value if name in self.own else value

    def gather(self) -> None:
        """Add what each rank has added up; all ranks call it."""
        for name, value in self.own.items():
            self.of_all[name] = self.of_all.get(name, 0.0) + float(
                ranks.all_reduce(value) / ranks.size()
            )
        self.own = {}

    def progress(self) -> dict[str, Any]:
        """Return the sums for a checkpoint; all ranks call it."""
        # one value per rank: adding them here would round
        totals = {name: ranks.all_gather_stack(value).tolist() for name, value in self.own.items()}
        return {"sums": self.of_all, "totals": totals}

    def resume(self, progress: dict[str, Any]) -> None:
        """Take the sums from the progress of a checkpoint, of as many ranks or of others."""
        self.of_all = progress["sums"] if "sums" in progress else {"loss": progress["losses"]}
        for name, values in progress.get("totals", {}).items():
            own = values[ranks.rank()] if len(values) == ranks.size() else sum(values) / len(values)
            self.own[name] = torch.tensor(own, device=self.device, dtype=torch.float64)
