"""A small training run that the tests of `fit` share."""

import torch

from marginlab.train import Monitor, Recipe

SMALL = Recipe(
    images=96,
    image_size=16,
    augmentation="Augmentation('ade')",
    backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="SimCLR(hidden=32, dim=16)",
    epochs=3,
    batch=32,
    optimizer="SGD(lr=0.05)",
)
# for bfloat16, which many a processor emulates
NARROW = "Backbone('resnet18', stem='strided', width=0.0625)"
WATCH = Monitor(every=1, images=40, views=3, bank=60)


def quiet(line: str) -> None:
    """Where progress goes in tests."""


class Stop(Exception):
    """The end of a run that dies."""


def dying(epoch, watch=WATCH):
    """A monitor like `watch`, whose run dies when it measures at this epoch."""

    class Dying(Monitor):
        def __call__(self, method, augmentation, train, test, at, *, last, **more):
            if at == epoch:
                raise Stop
            return super().__call__(method, augmentation, train, test, at, last=last, **more)

    return Dying(**vars(watch))


def weights(method):
    return torch.cat([value.double().flatten() for value in method.state_dict().values()])


CHILD = """
import sys, torch
torch.set_num_threads(1)
from marginlab import settings
from marginlab.train import Monitor, Recipe, fit
watch = Monitor(every=1, images=40, views=3, bank=60)
fit(settings.read(Recipe, sys.argv[1]), sys.argv[2], watch, say=lambda line: None)
"""
