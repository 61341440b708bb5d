"""Image sets: `load(spec, split)` returns an `ImageSet`; `Shapes` renders the embedded set.

This file imports torch, numpy and scipy only. The source that needs torchvision, PIL, kornia or
scikit-learn imports it.
"""

from marginlab.data.alignment import FACE_TEMPLATE as FACE_TEMPLATE
from marginlab.data.alignment import align_faces as align_faces
from marginlab.data.alignment import similarity_transform as similarity_transform
from marginlab.data.conversion import convert as convert
from marginlab.data.images import ImageSet as ImageSet
from marginlab.data.lfw import LFW as LFW
from marginlab.data.lfw import lfw_protocol as lfw_protocol
from marginlab.data.loading import load as load
from marginlab.data.shapes import Shapes as Shapes

__all__ = (
    "LFW",
    "ImageSet",
    "Shapes",
    "align_faces",
    "convert",
    "lfw_protocol",
    "load",
    "similarity_transform",
)
