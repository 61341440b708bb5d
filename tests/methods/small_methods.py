"""A small contrastive method, its views and labels, and a recipe, for tests of methods."""

import torch

from marginlab.models import Backbone
from marginlab.train import Recipe

LABELS = torch.tensor([0, 1, 2, 0, 1, 3, 0, 2])


SMALL = Recipe(
    images=64,
    augmentation="Augmentation('e')",
    backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="MoCo(queue=40, splits=2, hidden=32, dim=16)",
    epochs=3,
    batch=16,
    optimizer="SGD(lr=0.05)",
)


def quiet(line):
    """Where progress goes in tests."""


def views(rows=8, seed=0):
    return torch.rand(
        rows, 2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def make(kind, *, norm="batch", **arguments):
    torch.manual_seed(0)
    return kind(
        Backbone("resnet18", stem="strided", width=0.125, norm=norm),
        **{"hidden": 12, "dim": 6, **arguments},
    ).double()
