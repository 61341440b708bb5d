"""Image sets: `load(spec, split)` returns an `ImageSet`; `Shapes` renders a set that
needs no files.

This file imports torch, numpy and scipy only. The source that needs torchvision, PIL, kornia or
scikit-learn imports it.
"""

from marginlab.data.alignment import FACE_TEMPLATE as FACE_TEMPLATE
from marginlab.data.alignment import align_faces as align_faces
from marginlab.data.alignment import similarity_transform as similarity_transform
from marginlab.data.conversion import convert as convert
from marginlab.data.corruption import Flipped as Flipped
from marginlab.data.corruption import LongTail as LongTail
from marginlab.data.corruption import Outliers as Outliers
from marginlab.data.corruption import SplitIdentities as SplitIdentities
from marginlab.data.corruption import flip_labels as flip_labels
from marginlab.data.corruption import long_tail as long_tail
from marginlab.data.corruption import plant_outliers as plant_outliers
from marginlab.data.corruption import split_identities as split_identities
from marginlab.data.images import ImageSet as ImageSet
from marginlab.data.lfw import LFW as LFW
from marginlab.data.lfw import lfw_protocol as lfw_protocol
from marginlab.data.loading import load as load
from marginlab.data.shapes import Shapes as Shapes

__all__ = (
    "LFW",
    "Flipped",
    "ImageSet",
    "LongTail",
    "Outliers",
    "Shapes",
    "SplitIdentities",
    "align_faces",
    "convert",
    "flip_labels",
    "lfw_protocol",
    "load",
    "long_tail",
    "plant_outliers",
    "similarity_transform",
    "split_identities",
)
