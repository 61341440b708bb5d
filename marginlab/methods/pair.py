"""A method whose loss compares two views of every image."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from marginlab.methods.method import Method


class PairMethod(Method):
    """A backbone under a head, trained by `criterion(z1, z2)` between two views of every image.

    A subclass sets `criterion`.
    """

    criterion: nn.Module

    def loss(
        self, views: Float[Tensor, "B 2 3 H W"], labels: Int[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Return the loss between the two views of every image."""
        one, two = self.embed(views).unbind(1)
        return {"loss": self.criterion(one, two)}
