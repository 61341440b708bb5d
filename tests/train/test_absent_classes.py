"""Classes without an image: loading warns of them, and a run measures the others."""

import math

import numpy as np
import pytest

from marginlab.train import Monitor, Recipe, fit
from marginlab.train.images import check

NUMBERS = ("divergence_max", "divergence_mean", "center_norm_min", "delta_mu", "knn_error",
           "nearest_center_error", "alignment")  # fmt: skip


@pytest.fixture
def spec(tmp_path, request):
    """Images of four classes with labels 1 to 4, or of a fifth one that has none for the test."""
    random = np.random.default_rng(0)
    ink = 255 * (random.random((5, 1, 12, 12)) < 0.5)
    fields = {}
    for split, each in (("train", 12), ("test", 6)):
        labels = np.repeat(np.arange(5), each)
        if request.param == "labels from 1":
            labels = labels[each:]
        elif split == "test":
            labels = labels[:-each]
        noisy = np.clip(ink[labels, 0] + random.normal(0, 40, (len(labels), 12, 12)), 0, 255)
        fields |= {f"{split}_images": noisy.astype(np.uint8), f"{split}_labels": labels}
    np.savez(tmp_path / "some.npz", **fields)
    return f"npz:{tmp_path}/some.npz"


@pytest.mark.parametrize(
    ("spec", "said", "present"),
    [("labels from 1", r"1 of 5 classes has no (train|test) image: '0'", 4),
     ("no test images", "1 of 5 classes has no test image: '4'", 4)],
    indirect=["spec"],
)  # fmt: skip
def test_a_run_measures_the_classes_that_are_there(tmp_path, spec, said, present):
    recipe = Recipe(
        data=spec,
        augmentation="Augmentation('a')",
        backbone="Backbone('resnet18', stem='strided', width=0.125)",
        method="MarginClassifier(scale=8.0, dim=8)",
        epochs=1,
        batch=24,
        optimizer="SGD(lr=0.05)",
    )
    measures = ("NeuralCollapse()", "ClassVariance()", "Uniformity()", "AugmentationConfusion()")
    monitor = Monitor(images=20, views=2, bounds=True, measures=measures)
    with pytest.warns(UserWarning, match=said):
        run = fit(recipe, tmp_path / "run", monitor, say=lambda line: None)
    rows = {(row.epoch, row.tag): row.value for row in run.rows}
    for epoch in (0, 1):
        for space in ("backbone", "projector"):
            for name in NUMBERS:
                assert math.isfinite(rows[epoch, f"{name}/{space}"]), name
            assert rows[epoch, f"classes_present/{space}"] == present
        assert math.isfinite(rows[epoch, "linear_error/backbone"])
    unknown = {(row.quantity, row.at) for row in run.rows if math.isnan(row.value)}
    assert unknown == {("NeuralCollapse", "NC3")}  # which takes the weights of a classifier


def test_a_subset_of_fewer_images_than_classes_is_said(tmp_path):
    with pytest.warns(UserWarning, match="4 of 10 classes have no train image"):
        train, _ = check(Recipe(data="digits", images=6, batch=6))
    assert len(train.absent()) == 4
