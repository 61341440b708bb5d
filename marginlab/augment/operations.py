"""The paper's operations and the degradations, by the names by which call notation finds them."""

from marginlab.augment.blur import GaussianBlur
from marginlab.augment.color import ColorJitter, Grayscale
from marginlab.augment.degradation import Jpeg, LowResolution, MotionBlur, Noise
from marginlab.augment.geometry import HorizontalFlip, ResizedCrop
from marginlab.augment.occlusion import Occlusion

__all__ = [
    "ColorJitter",
    "GaussianBlur",
    "Grayscale",
    "HorizontalFlip",
    "Jpeg",
    "LowResolution",
    "MotionBlur",
    "Noise",
    "Occlusion",
    "ResizedCrop",
]
