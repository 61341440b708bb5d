"""Augmentations as sets of views: the five operations of Huang et al. (ICLR 2023), degradations.

Draws are by counters, so any view can be made again alone.
"""

from marginlab.augment import operations
from marginlab.augment.augmentation import Augmentation as Augmentation
from marginlab.augment.operations import ColorJitter as ColorJitter
from marginlab.augment.operations import GaussianBlur as GaussianBlur
from marginlab.augment.operations import Grayscale as Grayscale
from marginlab.augment.operations import HorizontalFlip as HorizontalFlip
from marginlab.augment.operations import Jpeg as Jpeg
from marginlab.augment.operations import LowResolution as LowResolution
from marginlab.augment.operations import MotionBlur as MotionBlur
from marginlab.augment.operations import Noise as Noise
from marginlab.augment.operations import Occlusion as Occlusion
from marginlab.augment.operations import ResizedCrop as ResizedCrop
from marginlab.augment.search import Sharpened as Sharpened
from marginlab.augment.search import sharpen as sharpen

__all__ = ["Augmentation", "Sharpened", "sharpen"]
__all__ += operations.__all__
