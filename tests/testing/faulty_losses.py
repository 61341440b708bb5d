"""A right loss of each kind, and one planted fault for every law."""

import torch
import torch.nn.functional as F
from torch import nn

from marginlab import ranks


class Plain(nn.Module):
    """Contrast of directions: mean distance of pairs, and log mean potential of all rows."""

    def __init__(self, group=None):
        super().__init__()
        self.group = group

    def forward(self, z1, z2):
        x1, x2 = (F.normalize(ranks.all_gather(z, self.group), eps=1e-6) for z in (z1, z2))
        return (x1 - x2).square().sum(1).mean() + (x1.T @ x2).square().sum() / len(x1)


class InOrder(Plain):
    def forward(self, z1, z2):
        weights = torch.arange(1.0, len(z1) + 1, dtype=z1.dtype)
        return (weights[:, None] * (z1 - z2).square()).sum()


class OneSided(Plain):
    def forward(self, z1, z2):
        return super().forward(z1, z2) + z1.square().sum()


class GradientOneSided(Plain):
    """Its value is symmetric."""

    def forward(self, z1, z2):
        return super().forward(z1, z2.detach())


class FirstCoordinate(Plain):
    def forward(self, z1, z2):
        return super().forward(z1[:, :1], z2[:, :1])


class Remembers(Plain):
    def __init__(self, group=None):
        super().__init__(group)
        self.register_buffer("center", torch.zeros(()))

    def forward(self, z1, z2):
        value = super().forward(z1 - self.center, z2 - self.center)
        self.center += 0.1 * z1.detach().mean()
        return value


class Random(Plain):
    def forward(self, z1, z2):
        return super().forward(F.dropout(z1), F.dropout(z2))


class Unguarded(Plain):
    def forward(self, z1, z2):
        return (
            (z1 / z1.norm(dim=1, keepdim=True) - z2 / z2.norm(dim=1, keepdim=True)).square().sum()
        )


class InPlace(Plain):
    def forward(self, z1, z2):
        value = super().forward(z1, z2)
        with torch.no_grad():
            z1.mul_(2)
        return value


class HalfDetached(Plain):
    def forward(self, z1, z2):
        x1, x2 = F.normalize(z1), F.normalize(z2)
        return (x1 - x2).square().sum(1).mean() + ((x1.T @ x2) * (x1.T @ x2).detach()).sum()


class NotDifferentiated(Plain):
    def forward(self, z1, z2):
        return super().forward(z1, z2).detach()


class Quadratic(Plain):
    def forward(self, z1, z2):
        return (F.normalize(z1) @ F.normalize(z2).T).exp().mean()


class Local(Plain):
    """Each rank has the loss of its own rows."""

    def forward(self, z1, z2):
        return (F.normalize(z1) - F.normalize(z2)).square().sum()


class NotScaled(Plain):
    """Exact gradients, though DDP averages."""

    def forward(self, z1, z2):
        x1, x2 = (
            F.normalize(
                ranks.all_gather(z, self.group, factor=1 / ranks.size(self.group)), eps=1e-6
            )
            for z in (z1, z2)
        )
        return (x1 - x2).square().sum(1).mean() + (x1.T @ x2).square().sum() / len(x1)


class EmptyFails(Plain):
    def forward(self, z1, z2):
        if not len(z1):
            raise RuntimeError("a rank without rows")
        return super().forward(z1, z2)


class Hangs(Plain):
    """One rank stays out of a collective."""

    def forward(self, z1, z2):
        if ranks.size(self.group) > 1 and ranks.rank(self.group) == 0:
            return z1.sum()
        return super().forward(z1, z2)


class ByDefaultGroup(nn.Module):
    """Takes no group: written for the default one."""

    def forward(self, z1, z2):
        x1, x2 = (ranks.all_gather(z) for z in (z1, z2))
        return (x1 - x2).square().sum(1).mean()


class WithinClasses(nn.Module):
    """Of embeddings and labels."""

    def __init__(self, group=None):
        super().__init__()
        self.group = group

    def weights(self, labels):
        return 1.0

    def forward(self, embeddings, labels):
        z = ranks.all_gather(embeddings, self.group)
        labels = ranks.all_gather(labels, self.group)
        one_hot = F.one_hot(labels, 4).to(z.dtype)
        means = one_hot.T @ z / one_hot.sum(0).clamp(min=1)[:, None]
        distances = (z - means[labels]).square().sum(1)
        return (self.weights(labels) * distances).mean()


class NumbersMatter(WithinClasses):
    def weights(self, labels):
        return labels + 1


class Linear(nn.Module):
    """A classifier with one center a class."""

    def __init__(self, num_classes, dim, group=None):
        super().__init__()
        self.centers = nn.Parameter(torch.randn(num_classes, dim))
        self.group = group

    def forward(self, embeddings, labels):
        z = ranks.all_gather(embeddings, self.group)
        labels = ranks.all_gather(labels, self.group)
        return F.cross_entropy(z @ self.centers.T, labels)


class Summed(Linear):
    def forward(self, embeddings, labels):
        return super().forward(embeddings, labels) * len(labels)
