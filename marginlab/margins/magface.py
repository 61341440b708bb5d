"""MagFace: an angular margin that grows with the norm of the feature, and a penalty on the norm.

The penalty draws the norm up.

    a = clip(|x|, l_a, u_a)
    m(a) = l_m + (u_m - l_m) (a - l_a) / (u_a - l_a)
    psi(c) = cos(theta + m(a))
    penalty = weight (a / u_a^2 + 1 / a)

A longer feature has a larger margin, hence a larger loss, and a smaller penalty. An easy image can
afford a long feature and a hard one cannot, so the norm comes to tell the quality. The norm is
learned, so its derivatives are needed. They are those below inside the clip, and 0 outside:

    d psi / d|x| = m'(a) dpsi/dm,    dpsi/dm = -sin(theta + m)
        on the line c - c* - 1 beyond theta + m = pi, where c* = -cos m:  dpsi/dm = -sin m
    d penalty / d|x| = weight (1 / u_a^2 - 1 / a^2)

Source: Meng et al. 2021 (CVPR), and its code, where the penalty too sees the clipped norm.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marginlab.margins.checks import check_angle
from marginlab.margins.combined import combined
from marginlab.margins.margin import Gradient, Margin, Targets
from marginlab.settings import describe


class MagFace(Margin):
    """Margin linear in the feature norm, with its regulariser.

    Args:
        l_a, u_a: Bounds of the norm, 0 < l_a < u_a. A norm outside them gets no gradient from the
            margin or the penalty: choose them around the norms that the backbone begins with (about
            sqrt(D) under a final BatchNorm).
        l_m, u_m: Angular margins (radians) at the bounds, 0 <= l_m <= u_m < pi.
        weight: Weight of the penalty, not negative.
        easy_margin: As in the published training code (its default). At a target cosine of 0 or
            below there is no margin, psi(c) = c, which jumps by sin m(a) at 90 degrees. The paper's
            formula and the default here have the margin at every angle.
        gradient: "exact" or "straight_through", see `Margin`. It concerns the slope by the cosine,
            not the slope by the norm, without which there would be no MagFace.

    Raises:
        ValueError: Settings out of these ranges.

    Example:
        >>> targets = MagFace().targets(torch.tensor([0.5]), torch.tensor([60.0]))
        >>> targets.value, targets.norm_slope  # cos(60 degrees + 0.625), and its slope by the norm
        (tensor([-0.1012]), tensor([-0.0035]))
        >>> targets.penalty, targets.penalty_slope
        (tensor([0.7569]), tensor([-0.0068]))
    """

    def __init__(
        self,
        l_a: float = 10.0,
        u_a: float = 110.0,
        l_m: float = 0.45,
        u_m: float = 0.8,
        weight: float = 35.0,
        easy_margin: bool = False,
        *,
        gradient: Gradient = "exact",
    ):
        super().__init__(gradient=gradient)
        if not 0 < l_a < u_a < float("inf"):
            raise ValueError(
                "The norm is clipped to [l_a, u_a] with 0 < l_a < u_a, such as [10, 110], not "
                f"[{l_a}, {u_a}]."
            )
        check_angle("l_m", l_m)
        check_angle("u_m", u_m)
        if not l_m <= u_m:
            raise ValueError(
                "The margin grows with the norm, from l_m to u_m, such as 0.45 to 0.8: not from "
                f"{l_m} to {u_m}."
            )
        if not 0 <= weight < float("inf"):
            raise ValueError(
                f"The weight of the penalty is finite and not negative, such as 35, not {weight}."
            )
        self.l_a, self.u_a, self.l_m, self.u_m, self.weight = l_a, u_a, l_m, u_m, weight
        self.easy_margin = easy_margin

    def compute(
        self, cosine: Float[Tensor, " B"], norm: Float[Tensor, " B"], valid: Bool[Tensor, " B"]
    ) -> Targets:
        """Return value, penalty, and their slopes by the cosine and by the norm."""
        rate = (self.u_m - self.l_m) / (self.u_a - self.l_a)
        a = norm.clamp(self.l_a, self.u_a)
        m = self.l_m + rate * (a - self.l_a)
        value, slope = combined(cosine, m2=m)
        sine = ((1 - cosine) * (1 + cosine)).clamp_min(torch.finfo(cosine.dtype).tiny).sqrt()
        by_margin = -torch.where(cosine < -m.cos(), m.sin(), sine * m.cos() + cosine * m.sin())
        inside = a == norm
        if self.easy_margin:
            far = cosine <= 0
            value, slope = torch.where(far, cosine, value), torch.where(far, 1.0, slope)
            by_margin = by_margin.masked_fill(far, 0.0)
        return Targets(
            value,
            slope,
            norm_slope=torch.where(inside, rate * by_margin, 0.0),
            penalty=self.weight * (a / self.u_a**2 + 1 / a),
            penalty_slope=torch.where(inside, self.weight * (1 / self.u_a**2 - 1 / a**2), 0.0),
        )

    def __repr__(self) -> str:
        return describe(
            "MagFace",
            **{
                name: getattr(self, name)
                for name in ("l_a", "u_a", "l_m", "u_m", "weight", "easy_margin", "gradient")
            },
        )
