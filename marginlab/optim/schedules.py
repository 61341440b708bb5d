"""Schedules: the factor on the learning rate, as a function of the step and nothing else.

    WarmupCosine       min(1, (t + 1) / (w T)) * (1 + cos(pi * max(0, t - w T) / (T - w T))) / 2
                           Loshchilov and Hutter 2017
    WarmupPolynomial   min(1, (t + 1) / (w T)) * (1 - max(0, t - w T) / (T - w T))^p
                           p = 2 in the published runs of Partial FC

So a resumed run needs no state.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


class Schedule(ABC):
    """The base class of schedules; one of your own overrides `__call__`."""

    @abstractmethod
    def __call__(self, step: int, steps: int) -> float:
        """Return the factor at `step`, from 0, of `steps`."""


@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """Linear warm-up over the first part of training, then a half cosine to zero.

    Args:
        warmup: The fraction of all steps that warms up, in [0, 1).

    Example:
        >>> schedule = WarmupCosine(warmup=0.1)
        >>> [round(schedule(step, 100), 3) for step in (0, 9, 55, 100)]
        [0.1, 1.0, 0.5, 0.0]
    """

    warmup: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a part of training in [0, 1), not {self.warmup}.")

    def __call__(self, step: int, steps: int) -> float:
        """Return the factor at `step`, from 0, of `steps`."""
        warm = self.warmup * steps
        rise = min(1.0, (step + 1) / warm) if warm else 1.0
        return rise * (1 + math.cos(math.pi * max(0.0, step - warm) / max(steps - warm, 1e-9))) / 2


@dataclass(frozen=True)
class WarmupPolynomial(Schedule):
    """Linear warm-up over the first part of training, then a power of the part that is left.

    Margin classifiers of faces are trained with it.

    Args:
        warmup: The fraction of all steps that warms up, in [0, 1).
        power: The power: 1 falls linearly; the published runs of ArcFace and Partial FC used 2.

    Raises:
        ValueError: A warmup or power out of range, and, when called, a step outside [0, steps]:
            beyond its end an even power rises again.

    Example:
        >>> schedule = WarmupPolynomial(warmup=0.1, power=2.0)
        >>> [round(schedule(step, 100), 3) for step in (0, 9, 55, 100)]
        [0.1, 1.0, 0.25, 0.0]
    """

    warmup: float = 0.05
    power: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a part of training in [0, 1), not {self.warmup}.")
        if not 0 < self.power < math.inf:
            raise ValueError(f"power is positive, such as 2 or 1, not {self.power}.")

    def __call__(self, step: int, steps: int) -> float:
        """Return the factor at `step`, from 0, of `steps`."""
        if not 0 <= step <= steps:
            raise ValueError(
                f"Step {step} lies outside the {steps} steps of the schedule, beyond which its "
                "rate would rise again. Count the steps."
            )
        warm = self.warmup * steps
        rise = min(1.0, (step + 1) / warm) if warm else 1.0
        return float(rise * (1 - max(0.0, step - warm) / max(steps - warm, 1e-9)) ** self.power)


@dataclass(frozen=True)
class Constant(Schedule):
    """The factor 1 at every step."""

    def __call__(self, step: int, steps: int) -> float:
        """Return the factor 1 at `step` of `steps`."""
        if step > steps:
            raise ValueError(f"Step {step} lies beyond the {steps} steps of the schedule.")
        return 1.0
