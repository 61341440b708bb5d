"""Target angles of a margin training, watched for the collapse that `MarginClassifier` describes.

The angle between an embedding and the center of its class begins near 90 degrees and falls. Where
it stays there after the warm-up, embeddings say nothing of their classes, whatever the loss does.
See `methods.margin_classifier`.
"""

import math
import warnings
from collections.abc import Callable

from marginlab import ranks

STAYS = 88.0  # degrees
PATIENCE = 3  # epochs in a row after the warm-up
STEPS = 100  # and steps, before which a short training has not begun to move


class CollapseWarning(UserWarning):
    """Warning that embeddings are not drawn to the centers of their classes."""


class Angles:
    """Mean target angles by epoch, with one warning per run if they stay above 88 degrees.

    Args:
        epochs: Number of epochs of the run.
        schedule: Schedule of the learning rate. Its attribute `warmup`, if it has one, is the part
            of the run before which angles are not looked at.
        per_epoch: Steps of an epoch.
    """

    def __init__(self, epochs: int, schedule: Callable[[int, int], float], per_epoch: int) -> None:
        self.warm = getattr(schedule, "warmup", 0.0) * epochs
        self.high, self.warned = 0, False
        self.patience = max(PATIENCE, math.ceil(STEPS / per_epoch))

    def see(self, epoch: int, angle: float) -> None:
        """Take note of the mean angle of an epoch, counted from 1; 0 if a method gives none.

        Rank 0 warns with a `CollapseWarning` after `patience` epochs in a row above 88 degrees.
        """
        self.high = self.high + 1 if epoch - 1 >= self.warm and angle > STAYS else 0
        if self.high == self.patience and not self.warned:
            self.warned = True
            if ranks.rank() == 0:
                warnings.warn(
                    f"Target angles are {angle:.1f} degrees on average in epoch {epoch}, and were "
                    f"above {STAYS:g} for {self.patience} epochs after the warm-up: embeddings do "
                    "not come near the centers of their classes. Take gradient='straight_through' "
                    "or CosFace, a smaller margin, or a larger scale or learning rate.",
                    CollapseWarning,
                    stacklevel=2,
                )
