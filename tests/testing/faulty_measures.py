"""A right measure, and one planted fault for every law."""

from typing import NamedTuple

import torch
from torchmetrics import Metric

from marginlab.measures import Uniformity
from marginlab.measures.measure import Measure


class SpreadResult(NamedTuple):
    spread: torch.Tensor
    norms: torch.Tensor


class Spread(Metric):
    """Mean squared length of views, and of each class's; as torchmetrics is written."""

    full_state_update = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features, labels):
        squares = features.double().square().sum(2).mean(1)
        self.total += torch.zeros(3, dtype=torch.float64).index_add(0, labels, squares)
        self.count += labels.bincount(minlength=3)

    def compute(self):
        return SpreadResult(self.total.sum() / self.count.sum(), self.total / self.count)


class MeanOfBatches(Spread):
    def update(self, features, labels):
        if len(features):
            self.total += features.square().sum(2).mean()
            self.count += 1


class FirstImage(Spread):
    def update(self, features, labels):
        super().update(features, labels)
        if len(features) and not hasattr(self, "first"):
            self.first = float(features[0, 0, 0])

    def compute(self):
        return self.first

    def reset(self):
        super().reset()
        vars(self).pop("first", None)


class MergesByMean(Spread):
    def merge_state(self, other):
        self.total = (self.total + other.total) / 2
        self.count = (self.count + other.count) / 2 + 1e-3


class CallsForTheStream(Spread):
    def forward(self, features, labels):
        self.update(features, labels)
        return self.compute()._replace(spread=torch.zeros((), dtype=torch.float64))


class ResetsHalf(Spread):
    def reset(self):
        super().reset()
        self.total += getattr(self, "kept", 0.0)

    def compute(self):
        result = super().compute()
        self.kept = 1.0
        return result


class PicklesEmpty(Spread):
    def __getstate__(self):
        return super().__getstate__() | {"total": torch.zeros(3, dtype=torch.float64)}


class InPlace(Spread):
    def update(self, features, labels):
        super().update(features, labels)
        features.mul_(2)


class KeepsTheBuffer(Spread):
    def update(self, features, labels):
        self.given = [*getattr(self, "given", []), (features, labels)]

    def compute(self):
        total = sum(features.square().sum() for features, _ in self.given)
        return total / sum(len(labels) for _, labels in self.given)


class FirstView(Spread):
    def update(self, features, labels):
        super().update(features[:, :1], labels)


class FirstCoordinate(Spread):
    def update(self, features, labels):
        super().update(features[..., :1], labels)


class Quadratic(Measure):
    """Mean cosine of all images; holds the matrix of them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("means", [], dist_reduce_fx="cat")

    def update(self, features):
        self.means.append(features.mean(1))

    def compute(self):
        means = torch.cat(self.means)
        return (means @ means.T).mean()


class MeanOfRanks(Spread):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._reductions["total"] = lambda totals: totals.mean(0)


class NoRows(Uniformity):
    """Refuses an update without images."""

    def update(self, features, labels=None):
        if not len(features):
            raise RuntimeError("no images here")
        super().update(features, labels)
