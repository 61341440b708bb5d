"""The terms of the objective of inversion.

    identity, closed set   the loss of the class with the model's own classifier, a mean over images
    identity, open set     ||f(I) - t||^2, of directions or as they are, a mean over images
    total variation        (1/B) sum_b ||D I_b||      ("norm"), or of squares ("squares")
    pixel norm             (1/B) sum_b ||I_b||

D I holds the differences of neighbouring pixels, across and down. Images are in normalised units,
(pixel - mean) / deviation. The two forms of total variation differ by a factor of about ||D I||,
some hundreds for noise of 64 x 64 pixels, so a weight belongs to a form.

Source: Deng et al. 2022 (ArcFace), section 3.3 and Algorithm 1.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from marginlab.statistics import unit_vectors

Variation = Literal["norm", "squares"]


class ClassTerm:
    """Closed set: the mean loss of the images' embeddings with their target classes.

    Args:
        head: A classifier of marginlab, or any function of (embeddings, labels) to a mean loss.
        labels: The target class of each of N images.

    Example:
        >>> from marginlab.losses import MarginSoftmax
        >>> head = MarginSoftmax(3, 2).eval()
        >>> ClassTerm(head, torch.tensor([0, 2]))(torch.randn(1, 2), torch.tensor([1])).shape
        torch.Size([])
    """

    def __init__(
        self, head: Callable[[Tensor, Tensor], Tensor], labels: Int64[Tensor, " N"]
    ) -> None:
        self.head, self.labels = head, labels

    def __call__(
        self, embeddings: Float[Tensor, "B D"], index: Int64[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        """Return the loss of embeddings of the images `index`."""
        labels = self.labels[index.to(self.labels.device)]
        return self.head(embeddings, labels.to(embeddings.device))


class EmbeddingTerm:
    """Open set: the mean squared distance of the images' embeddings from their targets.

    Args:
        targets: The embedding that each of N images shall have.
        unit: Compare directions, which gives 2 - 2 cos. Otherwise compare embeddings as they are.

    Example:
        >>> term = EmbeddingTerm(torch.tensor([[2.0, 0.0]]))
        >>> float(term(torch.tensor([[0.0, 1.0]]), torch.tensor([0])))
        2.0
    """

    def __init__(self, targets: Float[Tensor, "N D"], *, unit: bool = True) -> None:
        self.unit = unit
        self.targets = unit_vectors(targets) if unit else targets

    def __call__(
        self, embeddings: Float[Tensor, "B D"], index: Int64[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        """Return the mean squared distance of embeddings of the images `index`."""
        targets = self.targets[index.to(self.targets.device)].to(embeddings)
        found = unit_vectors(embeddings) if self.unit else embeddings
        return (found - targets).square().sum(1).mean()


def total_variation(
    images: Float[Tensor, "B 3 H W"], form: Variation = "norm"
) -> Float[Tensor, ""]:
    """Return the mean total variation of images: the norm of their gradients, or its square.

    Example:
        >>> image = torch.tensor([0.0, 1.0]).expand(1, 3, 2, 2)
        >>> float(total_variation(image, "squares")), round(float(total_variation(image)), 3)
        (6.0, 2.449)
    """
    if form not in ("norm", "squares"):
        raise ValueError(f"Total variation has the form 'norm' or 'squares', not {form!r}.")
    across = images.diff(dim=3).square().sum((1, 2, 3))
    down = images.diff(dim=2).square().sum((1, 2, 3))
    squares = across + down
    return (squares if form == "squares" else _root(squares)).mean()


def pixel_norm(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
    """Return the mean length of images as vectors.

    Example:
        >>> round(float(pixel_norm(torch.ones(2, 3, 2, 2))), 3)
        3.464
    """
    return _root(images.square().sum((1, 2, 3))).mean()


def _root(squares: Tensor) -> Tensor:
    """Return the square root, with slope 0 at 0, where the root has none."""
    none = squares == 0
    return torch.where(none, 0.0, squares.masked_fill(none, 1.0).sqrt())
