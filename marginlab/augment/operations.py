"""The five operations of the paper, by the names under which call notation finds them."""

from marginlab.augment.blur import GaussianBlur
from marginlab.augment.color import ColorJitter, Grayscale
from marginlab.augment.geometry import HorizontalFlip, ResizedCrop

__all__ = ["ColorJitter", "GaussianBlur", "Grayscale", "HorizontalFlip", "ResizedCrop"]
