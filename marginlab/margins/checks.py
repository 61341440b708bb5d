"""Checks of the numbers that margins are made with."""

import math


def check_angle(name: str, value: float) -> None:
    """Check that a value is an angular margin in [0, pi) (ValueError)."""
    if not 0 <= value < math.pi:
        raise ValueError(
            f"The angular margin {name} is in radians, in [0, pi), not {value}. Degrees are turned "
            "by math.radians."
        )


def check_finite(name: str, value: float) -> None:
    """Check that a value is a finite number (ValueError)."""
    if not math.isfinite(value):
        raise ValueError(f"{name} is a finite number, such as 0.35, not {value}.")


def check_momentum(value: float) -> None:
    """Check that a value is the momentum of a moving average, in (0, 1] (ValueError)."""
    if not 0 < value <= 1:
        raise ValueError(
            "The momentum of a moving average is the share of the new batch, in (0, 1], such as "
            f"0.01, not {value}."
        )
