"""ElasticFace: each row of each batch draws its own margin from a normal distribution around m.

    m_i = m + std e_i,  e_i ~ N(0, 1)
    psi(c_i) = cos(theta_i + m_i)  ("arc")    or    c_i - m_i  ("cos")

The draw is a function of (seed, step, row of the global batch): it is equal on any device and for
any number of ranks. "plus" assigns the drawn margins by rank: the row with the largest target
cosine gets the smallest margin, and so on, so that a row that is already near is pulled less. The
published code of that variant uses the sorting permutation where its inverse is meant, so its
pairing follows no rank.

Source: Boutros et al. 2022 (CVPR workshops) and its code: m = 0.5 with "arc", 0.35 with "cos", std
    0.0125.
"""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from marginlab.margins.checks import check_angle, check_finite
from marginlab.margins.combined import combined
from marginlab.margins.margin import Gradient, Margin, Targets
from marginlab.rng import Key
from marginlab.settings import describe, nearest

Kind = Literal["arc", "cos"]

# Key.normal makes a normal number of a 32-bit word: none is beyond sqrt(2 log 2^32) = 6.661
FARTHEST = 6.67


class ElasticFace(Margin):
    """Margins drawn anew for each row.

    Args:
        m: Mean margin; radians with kind "arc".
        std: Standard deviation of the margins, not negative. With "arc" the farthest draw, m + 6.67
            std, stays below pi.
        kind: "arc": the margin is added to the angle; "cos": it is subtracted from the cosine.
        plus: Pair the drawn margins with the rows by the rank of their cosines.
        seed: Seed of the draws.
        gradient: "exact" or "straight_through", see `Margin`.

    The state is the buffer `step` (int64), the number of batches drawn for. In evaluation mode
    every row has the margin m, and the step stays. It also stays for an empty batch.

    Raises:
        ValueError: Settings out of these ranges.

    Example:
        >>> margin = ElasticFace(0.35, std=0.05, kind="cos", plus=True)
        >>> margin.targets(torch.tensor([0.2, 0.6, 0.4]), torch.ones(3)).value
        tensor([-0.1671,  0.2467,  0.0355])
    """

    # a row's place in the global batch addresses its draw; its rank there, its margin
    batchwise = True
    initial = {"step": 0}  # noqa: RUF012 -- Margin declares it a ClassVar
    step: Tensor

    def __init__(
        self,
        m: float = 0.5,
        std: float = 0.0125,
        kind: Kind = "arc",
        plus: bool = False,
        seed: int = 0,
        *,
        gradient: Gradient = "exact",
    ):
        super().__init__(gradient=gradient)
        if kind not in get_args(Kind):
            raise ValueError(f"kind is not {kind!r}: {nearest(kind, get_args(Kind))}")
        if not 0 <= std < math.inf:
            raise ValueError(
                "The standard deviation std of the margins is finite and not negative, such as "
                f"0.0125, not {std}."
            )
        if kind == "arc":
            check_angle("m", m)
            if not m + FARTHEST * std < math.pi:
                raise ValueError(
                    f"The farthest draw of the margin, m + {FARTHEST} std = "
                    f"{m + FARTHEST * std:.4g}, reaches pi. Take a smaller std."
                )
        else:
            check_finite("m", m)
        self.m, self.std, self.kind, self.plus, self.seed = m, std, kind, plus, seed
        if plus:
            self.undivided = (
                "ElasticFace(plus=True) pairs margins with all rows of a batch at once, which has "
                "no parts. Take plus=False."
            )

    def compute(
        self, cosine: Float[Tensor, " B"], norm: Float[Tensor, " B"], valid: Bool[Tensor, " B"]
    ) -> Targets:
        """Draw the margins, pair them, and advance the step."""
        if not self.training:
            return self._targets(cosine, torch.full_like(cosine, self.m))
        margins = self._drawn(cosine, (valid.cumsum(0) - 1).clamp_min(0))
        self.step.add_(valid.any().to(self.step))  # in place: a graph keeps the buffer
        if self.plus:  # rows that do not count come last on both sides
            farthest_last = (
                cosine.detach()
                .masked_fill(~valid, -torch.inf)
                .argsort(descending=True, stable=True)
            )
            margins = torch.empty_like(margins).index_copy_(
                0, farthest_last, margins.masked_fill(~valid, torch.inf).sort().values
            )
            margins = margins.masked_fill(~valid, self.m)
        return self._targets(cosine, margins)

    def compute_part(
        self, cosine: Float[Tensor, " B"], norm: Float[Tensor, " B"], rows: Int[Tensor, " B"]
    ) -> Targets:
        """Return the targets that these rows have in the whole batch.

        Raises:
            ValueError: With plus=True, where the pairing needs all rows at once.
        """
        if self.plus:
            raise ValueError(self.undivided)
        if not self.training:
            return super().compute_part(cosine, norm, rows)
        return self._targets(cosine, self._drawn(cosine, rows))

    def closed(
        self, cosine: Float[Tensor, " B"], norm: Float[Tensor, " B"], valid: Bool[Tensor, " B"]
    ) -> None:
        """Advance the step for a batch given in parts, unless none of its rows count."""
        if self.training:
            self.step.add_(valid.any().to(self.step))  # in place: a graph keeps the buffer

    def _targets(self, cosine: Tensor, margins: Tensor) -> Targets:
        return Targets(
            *(combined(cosine, m2=margins) if self.kind == "arc" else combined(cosine, m3=margins))
        )

    def _drawn(self, cosine: Tensor, rows: Tensor) -> Tensor:
        draws = Key(self.seed).named("elastic").at(self.step.to(cosine.device), rows).normal()
        return self.m + self.std * draws.to(cosine)

    def __repr__(self) -> str:
        return describe(
            "ElasticFace",
            **{
                name: getattr(self, name)
                for name in ("m", "std", "kind", "plus", "seed", "gradient")
            },
        )
