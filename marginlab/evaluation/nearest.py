"""Error of the nearest-class-center classifier, the classifier that the theory bounds.

    G_f(x) = argmin_k || f(x) - mu_k ||          mu_k = mean of f over augmented views of training images of class k

Huang et al., ICLR 2023, section 2: centers over views, errors on clean images.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize as unit

from marginlab.evaluation.check import check_pair


class NearestCenter(NamedTuple):
    """Fraction of n queries misread, and its binomial standard error (for the centers as they are)."""

    error: float
    standard_error: float
    n: int


def nearest_center_error(
    features: Float[Tensor, "N V D"],
    labels: Int[Tensor, " N"],
    queries: Float[Tensor, "M D"],
    query_labels: Int[Tensor, " M"],
    *,
    normalize: bool = True,
) -> NearestCenter:
    """Err(G_f) on queries (features of clean images), with centers from views of training images.

    Parameters
    ----------
    features, labels: V views' features of N training images.
    queries, query_labels: features of M clean images.
    normalize: give every feature length 1 first (not the centers), as the theory's r = 1.

    Of equally near centers the smallest class is taken.

    Raises
    ------
    ValueError: shapes or labels that do not fit, values not finite, a query of a class without training image.

    >>> views = torch.tensor([[[1.0, 0.1], [1.0, -0.1]], [[0.1, 1.0], [-0.1, 1.0]]])
    >>> nearest_center_error(views, torch.tensor([0, 1]), torch.tensor([[5.0, 1.0], [3.0, 1.0]]), torch.tensor([0, 1])).error
    0.5

    """
    check_pair("training features", features, labels)
    check_pair("queries", queries, query_labels)
    if features.ndim != 3 or queries.ndim != 2 or features.shape[2] != queries.shape[1]:
        raise ValueError(
            f"Training features are (N, V, D) and queries (M, D) with one D, not {tuple(features.shape)} and {tuple(queries.shape)}. "
            "One view an image is features[:, None]."
        )
    classes, index = labels.unique(return_inverse=True)
    absent = sorted(set(query_labels.tolist()) - set(classes.tolist()))
    if absent:
        raise ValueError(f"Queries have classes {absent} that no training image has, so they have no center. Give training images of them.")
    train, test = features.double(), queries.double()
    if normalize:
        train, test = unit(train, dim=-1), unit(test, dim=-1)
    sums = train.new_zeros(len(classes), train.shape[2]).index_add_(0, index, train.mean(1))
    centers = sums / torch.bincount(index, minlength=len(classes))[:, None]
    score = test @ centers.T - centers.square().sum(1) / 2  # largest where the distance is smallest
    predicted = classes[(score >= score.amax(1, keepdim=True)).int().argmax(1)]
    error = float((predicted != query_labels).double().mean())
    return NearestCenter(error, (error * (1 - error) / len(queries)) ** 0.5, len(queries))
