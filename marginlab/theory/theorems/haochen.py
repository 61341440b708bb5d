"""HaoChen et al. on a finite population: a bound of the linear probe of spectral features.

The features are those of spectral contrastive learning. An eigenvalue of the augmentation graph
bounds the probe:

    w_xx' = E over images of A(x | image) A(x' | image)        w_x = sum_x' w_xx'
    A_bar = D^{-1/2} W D^{-1/2}, eigenvalues 1 - lambda_i
    phi   = sum_{x,x'} w_xx' 1[ y_hat(x) != y_hat(x') ]  <=  2 alpha

    P over views [probe != y_hat]                 <=  2 phi / lambda_{k+1}
    P over images and views [probe != y(image)]   <=  2 phi / lambda_{k+1} + alpha
                                                  <=  (4 / lambda_{k+1} + 1) alpha

for the minimiser of the spectral contrastive loss in k dimensions (the top k eigenvectors of A_bar)
and the least-squares probe on it. y_hat(x) is the likeliest label of a view, alpha = P[y_hat(x) !=
y(image)], and 0 = lambda_1 <= lambda_2 <= ... .

HaoChen et al. 2021, section 3, print the bound with an O-tilde and the conductance rho_{k/2}, which
is no number. The eigenvalue form with its constants is derived in docs/derivations.md, 7. It needs
images that share views. Continuous draws never do: their graph falls into one component for each
image, lambda_{k+1} is 0 for k < N, and nothing follows.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.measures.graphs.augmentation_graph import AugmentationGraph
from marginlab.theory.bound import Bound

ZERO = 1e-10  # an eigenvalue of the Laplacian that float64 cannot tell from 0


@dataclass(frozen=True, eq=False)
class HaoChen:
    """The result of `haochen`.

    Attributes:
        eigenvalues: Laplacian eigenvalues (X,) in increasing order.
        features: The minimiser's features f(x) (X, k).
        likeliest: y_hat (X,).
        alpha: alpha.
        phi: phi.
        views: The bound of the probe's error against y_hat, with the error of the least-squares
            probe on its left.
        images: The bound of the probe's error against the images' labels, with the error of the
            least-squares probe on its left.
    """

    eigenvalues: Float[Tensor, " X"]
    features: Float[Tensor, "X k"]
    likeliest: Int[Tensor, " X"]
    alpha: float
    phi: float
    views: Bound
    images: Bound


def haochen(
    *,
    draws: Float[Tensor, "N X"],
    labels: Int[Tensor, " N"],
    dim: int,
    weights: Float[Tensor, " N"] | None = None,
) -> HaoChen:
    """Return the bound on a population of N images whose views are among X common ones.

    It holds (X, X) in float64: for populations that can be written down.

    Args:
        draws: A(x | image), each row a probability distribution over the X views.
        labels: Labels of the images.
        dim: k, the dimension of the features, less than X.
        weights: Probabilities of the images; equal if None.

    Raises:
        ValueError: Rows are no distributions, a view is never drawn, shapes do not fit, or k is
            outside 1..X-1.

    Example:
        >>> draws = torch.tensor([[0.5, 0.5, 0.0, 0.0]] * 2 + [[0.0, 0.0, 0.5, 0.5]] * 2)
        >>> result = haochen(draws=draws, labels=torch.tensor([0, 0, 1, 1]), dim=2)
        >>> eigenvalues = result.eigenvalues.abs().round(decimals=6)
        >>> eigenvalues.tolist(), result.images.left, result.images.right
        ([0.0, 0.0, 1.0, 1.0], 0.0, 0.0)
    """
    graph = AugmentationGraph(draws, weights)
    X = draws.shape[1]
    if not 1 <= dim < X:
        raise ValueError(f"The features have from 1 to X - 1 = {X - 1} dimensions, not {dim}.")
    eigenvalues, mass = graph.eigenvalues, graph.mass
    top, gaps = graph.eigenvectors[:, :dim], (1 - eigenvalues[:dim]).clamp(min=0)
    # the rows f(x): the rows sqrt(w_x) f(x) are those of the best factor of A_bar
    features = top * gaps.sqrt() / mass.sqrt()[:, None]

    by_class = graph.by_label(labels)
    likeliest = by_class.argmax(0)
    alpha, phi = graph.alpha(labels), graph.disagreement(likeliest)
    kept = top[:, gaps > ZERO]  # the least-squares probe on f is the projection onto what f spans
    scores = kept @ (
        kept.T
        @ (
            mass.sqrt()[:, None]
            * torch.eye(len(by_class), dtype=mass.dtype, device=mass.device)[likeliest]
        )
    )
    read = scores.argmax(1)
    error_views = float(mass[read != likeliest].sum())
    error_images = float(by_class.scatter(0, read[None], 0.0).sum())

    limit = float(eigenvalues[dim])
    premise = ""
    if graph.components > dim:
        premise = (
            f"The graph of shared views falls into {graph.components} components, more than k = "
            f"{dim}: lambda_(k+1) is 0. Share views."
        )
    elif limit <= ZERO:
        premise = (
            f"lambda_(k+1) is {limit:.3g}, which float64 cannot tell from 0: the images share "
            "views too rarely."
        )
    # an eigenvalue is known to this accuracy; the bound is rounded up
    below = limit - X * torch.finfo(torch.float64).eps
    right = 2 * phi / below if not premise else math.inf
    return HaoChen(
        eigenvalues,
        features,
        graph.likeliest(labels),
        alpha,
        phi,
        Bound("HaoChen, eigenvalue form, views", error_views, right, 1.0, premise),
        Bound("HaoChen, eigenvalue form, images", error_images, right + alpha, 1.0, premise),
    )
