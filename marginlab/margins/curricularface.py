"""CurricularFace: ArcFace's target, with hard negatives that weigh more as training goes on.

    psi(c) = cos(theta + m)
    a non-target c_j > psi(c_y) becomes c_j (t + c_j), slope t + 2 c_j
    t <- (1 - momentum) t + momentum mean(c_y)

t is a moving average of the mean target cosine over global batches. It is near 0 at first, when
hard negatives are weakened. It is larger later, when those with t + c_j > 1 are strengthened. The
classifier applies it, with `Targets.hardness`. c_j is compared with psi(c_y) as it stands in the
logit.

Source: Huang et al. 2020 (CVPR).
"""

from jaxtyping import Bool, Float
from torch import Tensor

from marginlab.margins.checks import check_angle, check_momentum
from marginlab.margins.combined import combined
from marginlab.margins.margin import Gradient, Margin, Targets, move
from marginlab.settings import describe


class CurricularFace(Margin):
    """Angular margin with a curriculum over the hard negatives.

    Args:
        m: Angular margin, radians in [0, pi).
        momentum: Share of the newest batch in t.
        gradient: "exact" or "straight_through", see `Margin`; it concerns the target only.

    The state is the buffer `t`. In training mode it is updated before it is used. An empty batch,
    or a mean that is not finite, does not change it.

    Raises:
        ValueError: Settings out of these ranges.

    Example:
        >>> margin = CurricularFace(0.5)
        >>> margin.targets(torch.tensor([0.5, 0.7]), torch.ones(2)).hardness  # 0.01 * 0.6
        tensor(0.0060)
    """

    batchwise = True
    averages = True
    hardens = True
    initial = {"t": 0.0}  # noqa: RUF012 -- Margin declares it a ClassVar
    t: Tensor

    def __init__(self, m: float = 0.5, momentum: float = 0.01, *, gradient: Gradient = "exact"):
        super().__init__(gradient=gradient)
        check_angle("m", m)
        check_momentum(momentum)
        self.m, self.momentum = m, momentum

    def compute(
        self, cosine: Float[Tensor, " B"], norm: Float[Tensor, " B"], valid: Bool[Tensor, " B"]
    ) -> Targets:
        """Move t, then give ArcFace's targets with it."""
        if self.training:  # the mean of no rows is 0/0, which moves nothing
            move(
                self.t, cosine.detach().masked_fill(~valid, 0.0).sum() / valid.sum(), self.momentum
            )
        # the buffer may move before the backward pass
        return Targets(*combined(cosine, m2=self.m), hardness=self.t.to(cosine, copy=True))

    def __repr__(self) -> str:
        return describe("CurricularFace", m=self.m, momentum=self.momentum, gradient=self.gradient)
