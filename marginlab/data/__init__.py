"""Image sets: `load(spec, split)` gives an `ImageSet`; `Shapes` renders the embedded one.

This file imports torch, numpy and scipy only; torchvision, PIL, kornia and scikit-learn are loaded
by the source that needs them.
"""

from marginlab.data.images import ImageSet as ImageSet
from marginlab.data.lfw import LFW as LFW
from marginlab.data.lfw import lfw_protocol as lfw_protocol
from marginlab.data.loading import load as load
from marginlab.data.shapes import Shapes as Shapes

__all__ = ("LFW", "ImageSet", "Shapes", "lfw_protocol", "load")
