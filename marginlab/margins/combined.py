"""Combined margin: psi(c) = cos(m1 theta + m2) - m3, made monotone over all of [-1, 1].

Here theta = arccos c. The three pieces and their slopes:

    c < c* = cos((pi - m2) / m1),         psi = c - c* - 1 - m3
        where m1 theta + m2 > pi:         slope 1
    where m1 theta + m2 < 0               psi = 1 - m3
        (a negative angular margin):      slope 0
    between them:                         psi = cos(m1 theta + m2) - m3
                                          slope m1 sin(m1 theta + m2) / sin theta

Beyond the turning point c* the cosine of the margined angle would rise again, and would reward a
feature for moving further away. The line keeps falling, and joins the curve without a jump (at c*
both are -1 - m3). Published codes either fall there by cos m + m sin m - 1 (0.117 at m = 0.5)
within no distance, or rise.

The slope grows without bound towards c = 1 when m2 > 0 (and towards -1 when the curve reaches it at
an angle between 0 and pi), so sin theta is clamped below at 1e-3 in float32 and 1e-6 in float64.
Where a limit exists, at m2 = 0, it is kept: psi' = m1^2 at c = 1. sin theta is sqrt((1 - c)(1 + c))
and theta = atan2(sin theta, c), because arccos and 1 - c^2 lose half of the digits near c = 1.

Sources: Deng et al. 2022 (ArcFace, TPAMI), eq. 4; m2 alone is ArcFace; m3 alone, CosFace: Wang et
    al. 2018; m1 alone, SphereFace: Liu et al. 2017.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marginlab.margins.checks import check_angle, check_finite
from marginlab.margins.margin import Gradient, Margin, Targets, clamped
from marginlab.settings import describe

SMALLEST_SINE = {torch.float32: 1e-3, torch.float64: 1e-6}


def combined(
    cosine: Float[Tensor, "*shape"],
    m1: float = 1.0,
    m2: float | Float[Tensor, "..."] = 0.0,
    m3: float | Float[Tensor, "..."] = 0.0,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Value and slope of the combined margin, from which margins of any kind are made.

    Both are differentiable in the cosines and the margins where autograd is on, which it is not in
    `Margin.targets`.

    Args:
        cosine: Cosines of any shape. They are clamped to [-1, 1]. Half precisions become float32,
            and so does the result.
        m1: Multiplies the angle, positive.
        m2: Added to the angle, in radians, in (-pi, pi); a number, or a tensor that broadcasts to
            the cosines.
        m3: Subtracted from the cosine; a number or a tensor, as m2.

    Raises:
        TypeError: Cosines that are not floating point.

    Example:
        >>> # at 90 degrees, and beyond the turning point
        >>> value, slope = combined(torch.tensor([0.0, -1.0]), m2=0.5)
        >>> value, slope
        (tensor([-0.4794, -1.1224]), tensor([0.8776, 1.0000]))
    """
    c = clamped(cosine)
    shift = m2.to(c) if isinstance(m2, Tensor) else c.new_full((), m2)
    floor = SMALLEST_SINE[c.dtype]
    # The root of 0 has no slope to take a second derivative from
    sine = ((1 - c) * (1 + c)).clamp_min(torch.finfo(c.dtype).tiny).sqrt()
    safe = sine.clamp_min(floor)
    theta = torch.atan2(sine, c)
    # the addition theorem alone: without m2, psi is c - m3 and its slope 1, to the last bit
    if m1 == 1:
        cosine_m1, sine_m1, ratio = c, sine, torch.ones_like(c)
    else:
        cosine_m1, sine_m1 = (m1 * theta).cos(), (m1 * theta).sin()
        # sin(m1 theta) / sin(theta) -> m1
        ratio = torch.where((sine < floor) & (c > 0), m1, sine_m1 / safe)
    curve = cosine_m1 * shift.cos() - sine_m1 * shift.sin()
    slope = m1 * (ratio * shift.cos() + cosine_m1 * shift.sin() / safe)

    turning = ((math.pi - shift) / m1).clamp(0, math.pi).cos()
    clipped = m1 * theta < -shift  # asked of angles: the cosine of a small one rounds to 1
    value = torch.where(c < turning, c - turning - 1, torch.where(clipped, 1.0, curve))
    # at the joints it rounds to either side of 0
    slope = torch.where(c < turning, 1.0, torch.where(clipped, 0.0, slope.clamp_min(0)))
    return value - (m3.to(c) if isinstance(m3, Tensor) else m3), slope


class CombinedMargin(Margin):
    """The full form cos(m1 theta + m2) - m3.

    Examples are CM1 (1, 0.3, 0.2) and CM2 (0.9, 0.4, 0.15) of the ArcFace paper.

    Args:
        m1: Multiplies the angle, positive.
        m2: Added to the angle, radians in [0, pi).
        m3: Subtracted from the cosine.
        gradient: "exact" or "straight_through", see `Margin`.

    Raises:
        ValueError: Margins out of these ranges.

    Example:
        >>> CombinedMargin(0.9, 0.4, 0.15).value(torch.tensor([0.5, 0.9]))
        tensor([0.0763, 0.5424])
    """

    def __init__(
        self, m1: float = 1.0, m2: float = 0.0, m3: float = 0.0, *, gradient: Gradient = "exact"
    ):
        super().__init__(gradient=gradient)
        if not 0 < m1 < math.inf:
            raise ValueError(
                f"m1 multiplies the angle: a positive number, such as 1.35, not {m1}. Without it, "
                "m1 is 1."
            )
        check_angle("m2", m2)
        check_finite("m3", m3)
        self.m1, self.m2, self.m3 = m1, m2, m3

    @property
    def turning_point(self) -> float:
        """The cosine c* below which psi is the line c - c* - 1 - m3; -1 if there is none.

        Below c*, m1 theta + m2 > pi.

        Example:
            >>> import math
            >>> round(math.degrees(math.acos(ArcFace(0.5).turning_point)), 2)
            151.35
        """
        return math.cos(min((math.pi - self.m2) / self.m1, math.pi))

    def value(self, cosine: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return psi of cosines of any shape, detached; float32 or float64.

        Example:
            >>> CosFace(0.35).value(torch.tensor([[0.5, 1.0]]))
            tensor([[0.1500, 0.6500]])
        """
        return combined(cosine.detach(), self.m1, self.m2, self.m3)[0]

    def derivative(self, cosine: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the slope that the backward pass multiplies by, for cosines of any shape.

        It is d psi / d c, or 1 with gradient="straight_through".

        Example:
            >>> ArcFace(0.5).derivative(torch.tensor([0.5, 0.0]))
            tensor([1.1544, 0.8776])
            >>> ArcFace(0.5, gradient="straight_through").derivative(torch.tensor([0.5, 0.0]))
            tensor([1., 1.])
        """
        slope = combined(cosine.detach(), self.m1, self.m2, self.m3)[1]
        return slope if self.gradient == "exact" else torch.ones_like(slope)

    def compute(
        self, cosine: Float[Tensor, " B"], norm: Float[Tensor, " B"], valid: Bool[Tensor, " B"]
    ) -> Targets:
        """Return value and slope; the norm plays no part."""
        return Targets(*combined(cosine, self.m1, self.m2, self.m3))

    def __repr__(self) -> str:
        return describe(
            "CombinedMargin", m1=self.m1, m2=self.m2, m3=self.m3, gradient=self.gradient
        )


class ArcFace(CombinedMargin):
    """Additive angular margin, psi(c) = cos(theta + m), m in radians in [0, pi).

    Deng et al. 2019 (ArcFace).

    Example:
        >>> ArcFace(0.5).targets(torch.tensor([0.5]), torch.ones(1)).value  # cos(60 degrees + 0.5)
        tensor([0.0236])
    """

    def __init__(self, m: float = 0.5, *, gradient: Gradient = "exact"):
        check_angle("m", m)
        super().__init__(m2=m, gradient=gradient)

    def __repr__(self) -> str:
        return describe("ArcFace", m=self.m2, gradient=self.gradient)


class CosFace(CombinedMargin):
    """Additive cosine margin, psi(c) = c - m.

    Wang et al. 2018 (CosFace); 0.35 in the ArcFace paper, 0.4 in insightface's recipes.

    Example:
        >>> CosFace(0.35).targets(torch.tensor([0.5]), torch.ones(1)).value
        tensor([0.1500])
    """

    def __init__(self, m: float = 0.35, *, gradient: Gradient = "exact"):
        check_finite("m", m)
        super().__init__(m3=m, gradient=gradient)

    def __repr__(self) -> str:
        return describe("CosFace", m=self.m3, gradient=self.gradient)


class SphereFace(CombinedMargin):
    """Multiplicative angular margin, psi(c) = cos(m theta), m > 0.

    Liu et al. 2017, with 1.35 as in the ArcFace paper.

    Beyond m theta = pi the original continues with -cos(m theta) - 2, and so on. Here the line of
    `CombinedMargin` continues it.

    Example:
        >>> SphereFace(1.35).derivative(torch.tensor([1.0]))  # m^2
        tensor([1.8225])
    """

    def __init__(self, m: float = 1.35, *, gradient: Gradient = "exact"):
        if not 0 < m < math.inf:
            raise ValueError(f"m multiplies the angle: a positive number, such as 1.35, not {m}.")
        super().__init__(m1=m, gradient=gradient)

    def __repr__(self) -> str:
        return describe("SphereFace", m=self.m1, gradient=self.gradient)


class NoMargin(CombinedMargin):
    """The cosine itself: normalised softmax, psi(c) = c.

    Example:
        >>> NoMargin().targets(torch.tensor([0.5]), torch.ones(1))[:2]
        (tensor([0.5000]), tensor([1.]))
    """

    def __init__(self, *, gradient: Gradient = "exact"):
        super().__init__(gradient=gradient)

    def __repr__(self) -> str:
        return describe("NoMargin", gradient=self.gradient)
