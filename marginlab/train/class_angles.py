"""ArcFace's table of angles while a network trains, as rows of its record.

    class_angle           at W_EC, W_Inter, Intra, Inter: of training images and class weights, as
                          `marginlab.measures.AngleStatistics` defines them, in degrees
                          at Intra_unseen, Inter_unseen: the same two of images of classes that are
                          not trained
    target_angle_share    at 0, 10, ..., 170: the part of the training images whose angle to the
                          nearest weight of their class is in the ten degrees from there on

All are of clean images in the space that the loss sees. Images are a class-balanced choice: with
few of a class its center is noisy, so W_EC leans upwards and Intra downwards, alike for all losses.

Source: Deng et al., ArcFace, CVPR 2019, Table 3 and Figure 4.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from marginlab.data import ImageSet
from marginlab.measures.classes.vector_angles import angle
from marginlab.measures.functional import angle_statistics
from marginlab.statistics import unit_vectors
from marginlab.statistics.intervals import normal_interval
from marginlab.train.features import Encoder, device_of, encode_images
from marginlab.train.rows import Row

BIN = 10  # degrees of a bar of the histogram


def class_angles(
    method: Encoder,
    weights: Float[Tensor, "C K D"] | None,
    train: ImageSet,
    unseen: ImageSet | None,
    epoch: int,
) -> list[Row]:
    """Return the angles of these images as rows.

    Args:
        method: The network, in evaluation mode.
        weights: The weights of all classes. Without them there are no W_EC, W_Inter and histogram.
        train: Training images, of the classes of the weights.
        unseen: Images of other classes, or None.
        epoch: The epoch of the rows.
    """
    rows = []
    space, features = _last_space(method, train)
    found = {"": _table(features, train, weights)}
    if unseen is not None:
        found["_unseen"] = _table(_last_space(method, unseen)[1], unseen, None)
    for kind, table in found.items():
        for name, (value, error, n) in table.items():
            ends = normal_interval(value, error)
            rows.append(Row(epoch, space, "class_angle", name + kind, value, *ends, n))
    if weights is not None:
        labels = train.labels.to(features.device)
        own = unit_vectors(weights.to(features))[labels]
        near = angle(features[:, None].expand_as(own), own).amin(1)
        counts = torch.histc(near.double().cpu(), bins=180 // BIN, min=0, max=180)
        for at, count in enumerate(counts.tolist()):
            share = count / len(near)
            rows.append(Row(epoch, space, "target_angle_share", str(BIN * at), share, n=len(near)))
    return rows


def _last_space(method: Encoder, images: ImageSet) -> tuple[str, Float[Tensor, "N D"]]:
    encoded = encode_images(method, images.images, device_of(method))
    return next(reversed(encoded.items()))


def _table(
    features: Tensor, images: ImageSet, weights: Tensor | None
) -> dict[str, tuple[float, float, int]]:
    """Return value, standard error and sample size of each angle that is defined."""
    labels = images.labels.to(features.device)
    classes = len(images.classes)
    first, intra = angle_statistics(features[:, None], labels, classes, weights)
    present = int((first.n > 0).sum())
    found = {
        "Intra": (float(intra.Intra), float(intra.standard_error), len(features)),
        "Inter": (float(first.Inter), float(first.error_Inter), present),
    }
    if weights is not None:
        found["W_EC"] = (float(first.W_EC), float(first.error_W_EC), present)
        found["W_Inter"] = (float(first.W_Inter), float(first.error_W_Inter), classes)
    return found
