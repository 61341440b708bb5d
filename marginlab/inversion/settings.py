"""Settings of an inversion. The defaults are the paper's, but for the number of steps."""

import math
from dataclasses import dataclass

from marginlab import settings
from marginlab.settings import SettingsError


@dataclass(frozen=True)
class InversionSettings:
    """Weights and steps of `invert`.

    Source of the weights, the rate and the batch: Deng et al. 2022 (ArcFace), section 4.5, where
    images of 112 x 112 take 20,000 steps.
    """

    steps: int = 2000
    """Steps of Adam for each batch of images."""
    lr: float = 0.25
    """Learning rate of Adam, in normalised units of a pixel."""
    batch: int = 256
    """Images that are made together. Their channel statistics are those of the batch, so it is
    large, and its targets are mixed."""
    batch_norm: float = 0.05
    """Weight of the channel statistics; 0 does without."""
    total_variation: float = 1e-3
    """Weight of the total variation."""
    l2: float = 1e-4
    """Weight of the pixel norm."""
    variation: str = "norm"
    """Form of the total variation: "norm" or "squares"."""
    spread: str = "deviation"
    """Statistic of a channel that is compared beside its mean: "deviation" or "variance"."""
    unit: bool = True
    """Compare directions of embeddings, where targets are embeddings."""
    jitter: int = 0
    """Shift the images by up to so many pixels at each step, as DeepInversion does."""
    flip: bool = False
    """Mirror the images at about half of the steps, drawn by the seed."""
    within_range: bool = False
    """Put pixels back into [0, 1] after each step. The paper does not say it; without it, images
    leave the range, and lose much of what they tell when they are cut to it at the end."""
    seed: int = 0
    """Seed of the first images, of the mixing, and of jitter and flips."""

    def __post_init__(self) -> None:
        settings.check(self)
        for name, least in (("steps", 1), ("batch", 1), ("jitter", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} is at least {least}, not {getattr(self, name)}.")
        for name in ("lr", "batch_norm", "total_variation", "l2"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(
                    f"{name} is finite and not negative, not {getattr(self, name)}."
                )
        if self.lr == 0:
            raise SettingsError("lr is above 0: no step would move an image.")
        for name, words in (
            ("variation", ("norm", "squares")),
            ("spread", ("deviation", "variance")),
        ):
            if getattr(self, name) not in words:
                near = settings.nearest(getattr(self, name), words)
                raise SettingsError(f"{name} is not {getattr(self, name)!r}: {near}")
