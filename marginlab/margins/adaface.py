"""AdaFace: a margin by image quality, as the norm of the feature shows it.

Good images (long features) get a negative angular margin, bad ones a positive one.

    z = clip(h (|x| - mean) / (std + 1e-3), -1, 1)          psi(c) = cos(theta - m z) - (m + m z)

mean and std are moving averages of the norms' mean and standard deviation over global batches, with
norms clipped to [0.001, 100]. At z = -1 (short features) this is ArcFace(m). At 0 it is CosFace(m).
At 1 it is an angular margin of -m under a cosine margin of 2 m. Norms are detached.

Source: Kim, Jain, Liu 2022 (CVPR), and its code. The angle is clipped at 0 and continued beyond pi
by a line, see `combined`. The published code clips both ends, which leaves a target beyond pi
without a gradient.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from marginlab.margins.checks import check_angle, check_momentum
from marginlab.margins.combined import combined
from marginlab.margins.margin import Gradient, Margin, Targets, move
from marginlab.settings import describe

SHORTEST, LONGEST = 1e-3, 100.0


class AdaFace(Margin):
    """Margin by image quality, as the feature norm shows it.

    Args:
        m: Margin of both the angular part (radians) and the additive part, in [0, pi).
        h: Concentration, not negative: z is h times the standardised norm. 0.333 puts two thirds of
            the batch into |z| < 0.333.
        momentum: Share of the newest batch in the averages; the published code has 1 as its default
            and 0.01 in its recipes.
        gradient: "exact" or "straight_through", see `Margin`.

    The state is the buffers `mean` and `std` of the norms. In training mode they are updated before
    they are used. An empty batch updates neither, and a single row only the mean. A statistic that
    is not finite updates nothing.

    Raises:
        ValueError: Settings out of these ranges.

    Example:
        >>> margin = AdaFace(0.4).eval()
        >>> # z = 0, and z = 0.233: less by the angle, more by the cosine margin
        >>> margin.targets(torch.zeros(2), torch.tensor([20.0, 90.0])).value
        tensor([-0.4000, -0.4001])
    """

    batchwise = True
    averages = True
    initial = {"mean": 20.0, "std": 100.0}  # noqa: RUF012 -- Margin declares it a ClassVar
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        m: float = 0.4,
        h: float = 0.333,
        momentum: float = 0.01,
        *,
        gradient: Gradient = "exact",
    ):
        super().__init__(gradient=gradient)
        check_angle("m", m)
        check_momentum(momentum)
        if not 0 <= h < float("inf"):
            raise ValueError(
                "h scales the standardised norm: it is finite and not negative, such as 0.333, "
                f"not {h}."
            )
        self.m, self.h, self.momentum = m, h, momentum

    def compute(
        self, cosine: Float[Tensor, " B"], norm: Float[Tensor, " B"], valid: Bool[Tensor, " B"]
    ) -> Targets:
        """Update the averages, then give each row the margin of its standardised norm."""
        norm = norm.detach().clamp(SHORTEST, LONGEST)
        # without rows, or with one, a mean or deviation is 0/0, which moves nothing
        if self.training:
            n, counted = valid.sum(), norm.masked_fill(~valid, 0.0)
            mean = counted.sum() / n
            move(self.mean, mean, self.momentum)
            move(
                self.std,
                (
                    (norm - mean).masked_fill(~valid, 0.0).square().sum() / (n - 1).clamp_min(0)
                ).sqrt(),
                self.momentum,
            )
        z = (self.h * (norm - self.mean.to(norm)) / (self.std.to(norm) + 1e-3)).clamp(-1, 1)
        return Targets(*combined(cosine, m2=-self.m * z, m3=self.m + self.m * z))

    def __repr__(self) -> str:
        return describe(
            "AdaFace", m=self.m, h=self.h, momentum=self.momentum, gradient=self.gradient
        )
