"""Linear probe: a logistic regression on frozen features, with scikit-learn.

    min over W, b of  mean cross-entropy of softmax(W z + b)  +  ||W||^2 / (2 C n),     z: features standardised on the training set
"""

import logging
import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.evaluation.check import check_pair

_log = logging.getLogger(__name__)


class LinearProbe(NamedTuple):
    """Accuracy on n test features with its binomial standard error, and whether the optimiser converged within its iterations."""

    accuracy: float
    standard_error: float
    n: int
    converged: bool
    iterations: int


def linear_probe(
    train_features: Float[Tensor, "M D"],
    train_labels: Int[Tensor, " M"],
    test_features: Float[Tensor, "N D"],
    test_labels: Int[Tensor, " N"],
    *,
    C: float = 1.0,
    max_iterations: int = 300,
    tolerance: float = 1e-3,
) -> LinearProbe:
    """Fit a logistic regression to training features and measure it on test features.

    Parameters
    ----------
    train_features, train_labels, test_features, test_labels: frozen features and their classes.
    C: inverse strength of the ridge, as in scikit-learn.
    max_iterations, tolerance: of L-BFGS; a probe that does not converge says so (`converged`) and logs it, and its accuracy stands.

    Raises
    ------
    ValueError: shapes or labels that do not fit, values not finite, training labels of one class only.
    ModuleNotFoundError: scikit-learn is missing (it comes with the extra `lab`).

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> linear_probe(x, torch.tensor([0, 0, 1, 1]), x, torch.tensor([0, 0, 1, 0])).accuracy
    0.75

    """
    check_pair("training features", train_features, train_labels)
    check_pair("test features", test_features, test_labels)
    if train_features.ndim != 2 or test_features.shape[1:] != train_features.shape[1:]:
        raise ValueError(f"Features are (M, D) and (N, D) with one D, not {tuple(train_features.shape)} and {tuple(test_features.shape)}.")
    if len(train_labels.unique()) < 2:
        raise ValueError(f"A probe needs training features of at least 2 classes, not only of class {int(train_labels[0])}.")
    from sklearn.exceptions import ConvergenceWarning  # an extra (`lab`), and slow to import
    from sklearn.linear_model import LogisticRegression

    train, test = train_features.detach().double(), test_features.detach().double()
    mean, deviation = train.mean(0), train.std(0, correction=0)
    scale = torch.where(deviation > 1e-12 * (mean.abs() + 1e-300), deviation, 1.0)  # a constant feature says nothing
    train, test = (((x - mean) / scale).cpu() for x in (train, test))
    probe = LogisticRegression(C=C, max_iter=max_iterations, tol=tolerance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported below, as a value
        probe.fit(train.numpy(), train_labels.cpu().numpy())
    iterations = int(probe.n_iter_.max())
    converged = iterations < max_iterations
    if not converged:
        _log.warning("The linear probe did not converge within %d iterations; raise max_iterations or the tolerance.", max_iterations)
    accuracy = float((torch.from_numpy(probe.predict(test.numpy())) == test_labels.cpu()).double().mean())
    return LinearProbe(accuracy, (accuracy * (1 - accuracy) / len(test)) ** 0.5, len(test), converged, iterations)


def linear_probe_accuracy(
    train_features: Float[Tensor, "M D"],
    train_labels: Int[Tensor, " M"],
    test_features: Float[Tensor, "N D"],
    test_labels: Int[Tensor, " N"],
    *,
    C: float = 1.0,
) -> float:
    """Accuracy of `linear_probe` with its default optimiser.

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> linear_probe_accuracy(x, torch.tensor([0, 0, 1, 1]), x, torch.tensor([0, 0, 1, 1]))
    1.0
    """
    return linear_probe(train_features, train_labels, test_features, test_labels, C=C).accuracy
