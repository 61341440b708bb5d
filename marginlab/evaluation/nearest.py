"""Error of the nearest-class-center classifier, the classifier that the theory bounds.

    G_f(x) = argmin_k || f(x) - mu_k ||
    mu_k = mean of f over augmented views of training images of class k

Huang et al., ICLR 2023, section 2: centers over views, errors on clean images.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from marginlab.evaluation.check import Array, check_pair, directions, named
from marginlab.kernels import BUDGET, walk


class NearestCenter(NamedTuple):
    """Fraction of n queries misread, and its binomial standard error.

    The error takes the centers as given.
    """

    error: float
    standard_error: float
    n: int


def nearest_center_error(
    features: Float[Array, "N V D"],
    labels: Integer[Array, " N"],
    queries: Float[Array, "M D"],
    query_labels: Integer[Array, " M"],
    *,
    normalize: bool = True,
    budget: int = BUDGET,
) -> NearestCenter:
    """Return Err(G_f) on queries, features of clean images, with centers from training views.

    Of equally near centers the one of the smallest class is taken.

    Args:
        features: V views' features of N training images.
        labels: Their classes, from 0 on; numbers may be left out.
        queries: Features of M clean images.
        query_labels: Their classes.
        normalize: Scale every feature to length 1 first (not the centers), as the theory's r = 1.
        budget: Bytes of a block of the M x C scores, and of features that are widened to float64.

    Raises:
        ValueError: Shapes or labels do not fit, values are not finite, or a query's class has no
            training image.

    Example:
        >>> views = torch.tensor([[[1.0, 0.1], [1.0, -0.1]], [[0.1, 1.0], [-0.1, 1.0]]])
        >>> asked = torch.tensor([[5.0, 1.0], [3.0, 1.0]])
        >>> nearest_center_error(views, torch.tensor([0, 1]), asked, torch.tensor([0, 1])).error
        0.5
    """
    train, labels = check_pair("training features", features, labels, shape="(N, V, D)")
    test, truth = check_pair("queries", queries, query_labels, shape="(M, D)", dim=train.shape[2])
    test, truth = test.to(train.device), truth.to(train.device)
    classes, index, counts = labels.unique(return_inverse=True, return_counts=True)
    asked = truth.unique()
    absent = asked[~torch.isin(asked, classes)].tolist()
    if absent:
        raise ValueError(
            f"Queries have classes {named(absent)} that no training image has, so they have no "
            "center. Give training images of them."
        )

    def wide(some: Tensor) -> Tensor:
        return directions(some, torch.float64) if normalize else some.double()

    centers = torch.zeros(len(classes), train.shape[2], dtype=torch.float64, device=train.device)
    rows = max(1, budget // (8 * train[0].numel()))
    for some, at in zip(train.split(rows), index.split(rows), strict=True):
        centers.index_add_(0, at, wide(some).mean(1))
    centers /= counts[:, None]
    half = centers.square().sum(1) / 2
    best = torch.full((len(test),), -torch.inf, dtype=torch.float64, device=train.device)
    chosen = torch.zeros(len(test), dtype=torch.int64, device=train.device)
    for block, columns in walk(len(test), len(classes), entry=24, budget=budget):
        # largest where the distance is smallest
        score = wide(test[block]) @ centers[columns].T - half[columns]
        highest = score.amax(1, keepdim=True)
        first = columns.start + (score >= highest).int().argmax(1)
        nearer = highest[:, 0] > best[block]  # a tie keeps the earlier center, of a smaller class
        chosen[block] = torch.where(nearer, first, chosen[block])
        best[block] = torch.where(nearer, highest[:, 0], best[block])
    error = float((classes[chosen] != truth).double().mean())
    return NearestCenter(error, (error * (1 - error) / len(test)) ** 0.5, len(test))
