"""Linear probe: a logistic regression on frozen features, with scikit-learn.

    min over W, b of  mean cross-entropy of softmax(W z + b)  +  ||W||^2 / (2 C n)

z are the features, standardised on the training set.
"""

import logging
import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer

from marginlab.evaluation.check import Array, check_pair

BUDGET = 16 * 2**30  # bytes of a probe: 5 million rows and 200 classes, or 100,000 and 9,000

_HISTORY = 26  # copies of the weights that L-BFGS with 10 corrections holds (measured: 22 to 26)
_BLOCK = 2**25  # bytes of predictions at a time
_log = logging.getLogger(__name__)


class LinearProbe(NamedTuple):
    """Accuracy on n test features with its binomial standard error.

    `converged` says whether the optimiser converged within its iterations.
    """

    accuracy: float
    standard_error: float
    n: int
    converged: bool
    iterations: int


def linear_probe(
    train_features: Float[Array, "M D"],
    train_labels: Integer[Array, " M"],
    test_features: Float[Array, "N D"],
    test_labels: Integer[Array, " N"],
    *,
    C: float = 1.0,
    max_iterations: int = 300,
    tolerance: float = 1e-3,
    budget: int = BUDGET,
) -> LinearProbe:
    """Fit a logistic regression to training features and measure its accuracy on test features.

    With K classes the regression holds 2 M K + 26 K (D + 1) numbers in float64. It cannot be cut
    into blocks, so a probe above the budget is refused. `nearest_center_error` and kNN have no such
    limit.

    Args:
        train_features: Frozen features to fit.
        train_labels: Their classes, from 0 on; numbers may be left out.
        test_features: Frozen features to judge by.
        test_labels: Their classes.
        C: Inverse strength of the ridge, as in scikit-learn.
        max_iterations: Most iterations of L-BFGS. A probe that does not converge says so
            (`converged`) and logs it, and its accuracy stands.
        tolerance: Tolerance of L-BFGS.
        budget: Bytes that the regression may hold.

    Raises:
        ValueError: Shapes or labels do not fit; values are not finite; training labels are of one
            class only; the ridge, the number of iterations or the tolerance is not positive; or the
            regression needs more bytes than the budget.
        ModuleNotFoundError: Scikit-learn is missing (it comes with the extra `lab`).

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> linear_probe(x, torch.tensor([0, 0, 1, 1]), x, torch.tensor([0, 0, 1, 0])).accuracy
        0.75
    """
    train, labels = check_pair("training features", train_features, train_labels, shape="(M, D)")
    test, truth = check_pair(
        "test features", test_features, test_labels, shape="(N, D)", dim=train.shape[1]
    )
    classes = len(labels.unique())
    if classes < 2:
        raise ValueError(
            "A probe needs training features of at least 2 classes, not only of class "
            f"{int(labels[0])}."
        )
    if not (C > 0 and max_iterations >= 1 and tolerance > 0):
        given = f"C={C}, max_iterations={max_iterations} and tolerance={tolerance}"
        raise ValueError(f"C, max_iterations and tolerance are positive, not {given}.")
    M, D = train.shape
    if (held := 8 * (2 * M * classes + _HISTORY * classes * (D + 1))) > budget:
        raise ValueError(
            f"A logistic regression of {M:,} features of {D} numbers in {classes:,} classes holds "
            f"{held:,} bytes, above the budget of {budget:,}. Take fewer features or classes, "
            "knn_accuracy or nearest_center_error, or raise budget=..."
        )
    from sklearn.exceptions import ConvergenceWarning  # an extra (`lab`), and slow to import
    from sklearn.linear_model import LogisticRegression

    fitted, judged = train.double(), test.to(train.device).double()
    mean, deviation = fitted.mean(0), fitted.std(0, correction=0)
    # a constant feature carries no information and is not scaled
    scale = torch.where(deviation > 1e-12 * (mean.abs() + 1e-300), deviation, 1.0)
    fitted, judged = (((x - mean) / scale).cpu() for x in (fitted, judged))
    probe = LogisticRegression(C=C, max_iter=max_iterations, tol=tolerance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported below, as a value
        probe.fit(fitted.numpy(), labels.cpu().numpy())
    iterations = int(probe.n_iter_.max())
    converged = iterations < max_iterations
    if not converged:
        _log.warning(
            "The linear probe did not converge within %d iterations; raise max_iterations or the "
            "tolerance.",
            max_iterations,
        )
    rows = max(1, _BLOCK // (8 * classes))
    predicted = torch.cat([torch.from_numpy(probe.predict(x.numpy())) for x in judged.split(rows)])
    accuracy = float((predicted == truth.cpu()).double().mean())
    error = (accuracy * (1 - accuracy) / len(judged)) ** 0.5
    return LinearProbe(accuracy, error, len(judged), converged, iterations)


def linear_probe_accuracy(
    train_features: Float[Array, "M D"],
    train_labels: Integer[Array, " M"],
    test_features: Float[Array, "N D"],
    test_labels: Integer[Array, " N"],
    *,
    C: float = 1.0,
    budget: int = BUDGET,
) -> float:
    """Return the accuracy of `linear_probe` with its default optimiser; raise its errors.

    Args:
        train_features: Frozen features to fit.
        train_labels: Their classes.
        test_features: Frozen features to judge by.
        test_labels: Their classes.
        C: Inverse strength of the ridge, as in scikit-learn.
        budget: Bytes that the regression may hold.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> linear_probe_accuracy(x, torch.tensor([0, 0, 1, 1]), x, torch.tensor([0, 0, 1, 1]))
        1.0
    """
    given = train_features, train_labels, test_features, test_labels
    return linear_probe(*given, C=C, budget=budget).accuracy
