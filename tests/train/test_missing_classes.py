"""Classes that no training or no test image has: the monitor measures the others, and no NaN."""

import math

import torch

from marginlab.augment import Augmentation
from marginlab.data import ImageSet
from marginlab.train import Monitor, Recipe
from marginlab.train.theorems import certified

RECIPE = Recipe(
    data="shapes-5",
    backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="MarginClassifier(scale=16.0, dim=8)",
)


def images(labels):
    generator = torch.Generator().manual_seed(len(labels))
    pixels = torch.randint(0, 256, (len(labels), 3, 8, 8), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, labels, ("a", "b", "c", "d", "e"), "missing")


def test_the_monitor_measures_the_classes_that_are_there():
    train, test = images(torch.arange(24) % 4 + 1), images(torch.arange(24) % 3 + 1)
    monitor = Monitor(images=24, views=2, bounds=True)
    method = RECIPE.make_method(5)
    rows = monitor(method, Augmentation("e"), train, test, 0, last=False)
    found = {row.tag: row for row in rows}
    for space in ("backbone", "projector"):
        assert found[f"classes_present/{space}"].value == 3
    unknown = [row for row in rows if math.isnan(row.value) and "certificate" not in row.quantity]
    assert unknown == []


def test_new_images_of_classes_that_are_not_seen_end_no_run():
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(24, 3, 5, generator=generator)
    seen, new = (f[:12], torch.arange(12) % 3), (f[12:], torch.arange(12) % 4)
    rows = {row.tag: row for row in certified(seen, new, "x", 0)}
    assert rows["new_error/x"].n == 9
