"""Augmentations as sets of views: the five operations of Huang et al. (ICLR 2023), degradations.

Draws are by counters, so any view can be made again alone.
"""

from marginlab.augment.augmentation import Augmentation as Augmentation
from marginlab.augment.blur import GaussianBlur as GaussianBlur
from marginlab.augment.color import ColorJitter as ColorJitter
from marginlab.augment.color import Grayscale as Grayscale
from marginlab.augment.degradation import Jpeg as Jpeg
from marginlab.augment.degradation import LowResolution as LowResolution
from marginlab.augment.degradation import MotionBlur as MotionBlur
from marginlab.augment.degradation import Noise as Noise
from marginlab.augment.geometry import HorizontalFlip as HorizontalFlip
from marginlab.augment.geometry import ResizedCrop as ResizedCrop
from marginlab.augment.occlusion import Occlusion as Occlusion
from marginlab.augment.search import Sharpened as Sharpened
from marginlab.augment.search import sharpen as sharpen

__all__ = (
    "Augmentation",
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
    "Sharpened",
    "sharpen",
)
