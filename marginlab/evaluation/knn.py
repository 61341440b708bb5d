"""Weighted k-nearest-neighbour classification of features: no training, one number a checkpoint.

    class of q = argmax over c of sum over the k nearest m of label c of exp( cos(q, m) / T )

Wu et al., CVPR 2018, section 3.4 (k = 200); T = 0.1 as in the protocol of Huang et al., ICLR 2023.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from marginlab.evaluation.check import check_pair
from marginlab.kernels import BUDGET, top_k


def knn_predict(
    bank: Float[Tensor, "M D"],
    bank_labels: Int[Tensor, " M"],
    queries: Float[Tensor, "N D"],
    *,
    k: int = 200,
    temperature: float = 0.1,
    num_classes: int | None = None,
    budget: int = BUDGET,
) -> Int[Tensor, " N"]:
    """The class of each query by a weighted vote of its k nearest bank features in cosine; of equal votes the smallest class.

    Parameters
    ----------
    bank, bank_labels: features with known labels; they need not be normalised.
    queries: features to classify.
    k: neighbours that vote; a bank of fewer votes as a whole.
    temperature: of the weights exp(cosine / temperature).
    num_classes: C; default: one more than the largest label.
    budget: bytes of a block of similarities.

    Raises
    ------
    ValueError: an empty bank, values not finite, labels of the wrong shape or range, k or temperature not positive.

    >>> knn_predict(torch.eye(2), torch.tensor([0, 1]), torch.tensor([[2.0, 1.0], [0.0, 3.0]]), k=1)
    tensor([0, 1])

    """
    classes = check_pair("bank", bank, bank_labels, num_classes)
    if queries.ndim != 2 or queries.shape[1] != bank.shape[1] or not bool(queries.isfinite().all()):
        raise ValueError(f"queries are finite features of shape (N, {bank.shape[1]}), like the bank's; these are {tuple(queries.shape)}.")
    if k < 1 or not temperature > 0:
        raise ValueError(f"kNN needs at least 1 neighbour and a positive temperature, not k={k} and temperature={temperature}.")
    wide = torch.float64 if torch.float64 in (bank.dtype, queries.dtype) else torch.float32
    near = top_k(normalize(queries.to(wide), dim=1), normalize(bank.to(wide), dim=1), min(k, len(bank)), budget=budget)
    weights = ((near.values - near.values[:, :1]).double() / temperature).exp()  # against the nearest: no overflow at a small temperature
    votes = weights.new_zeros(len(queries), classes).scatter_add_(1, bank_labels.long()[near.indices], weights)
    best = votes >= votes.amax(1, keepdim=True)
    return best.int().argmax(1)  # the first of equals, on every device


def knn_accuracy(
    bank: Float[Tensor, "M D"],
    bank_labels: Int[Tensor, " M"],
    queries: Float[Tensor, "N D"],
    query_labels: Int[Tensor, " N"],
    k: int = 200,
    temperature: float = 0.1,
    num_classes: int | None = None,
) -> float:
    """Fraction of queries whose class `knn_predict` finds. Its standard error over N queries is sqrt(a (1 - a) / N).

    >>> knn_accuracy(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), torch.tensor([0, 0]), k=1)
    0.5
    """
    check_pair("queries", queries, query_labels, num_classes)
    predicted = knn_predict(bank, bank_labels, queries, k=k, temperature=temperature, num_classes=num_classes)
    return float((predicted == query_labels).double().mean())
