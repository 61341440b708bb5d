"""Images from embeddings: the inverse problem of recognition, and how much embeddings leak.

`invert` makes images that a trained network embeds as the targets. `marginlab.inversion.leakage`
asks how much is told by less: a map between embedding spaces, and defences.
"""

from marginlab.inversion.defences import FewerDimensions as FewerDimensions
from marginlab.inversion.defences import Noise as Noise
from marginlab.inversion.defences import Quantised as Quantised
from marginlab.inversion.defences import SecretRotation as SecretRotation
from marginlab.inversion.distances import frechet_distance as frechet_distance
from marginlab.inversion.distances import identity_ranks as identity_ranks
from marginlab.inversion.distances import kernel_distance as kernel_distance
from marginlab.inversion.distances import nearest_rows as nearest_rows
from marginlab.inversion.invert import Inversion as Inversion
from marginlab.inversion.invert import invert as invert
from marginlab.inversion.leakage import LinearMap as LinearMap
from marginlab.inversion.leakage import map_between as map_between
from marginlab.inversion.settings import InversionSettings as InversionSettings
from marginlab.inversion.statistics import ChannelStatistics as ChannelStatistics
from marginlab.inversion.statistics import StatisticsTerm as StatisticsTerm
from marginlab.inversion.statistics import measured_statistics as measured_statistics
from marginlab.inversion.statistics import stored_statistics as stored_statistics
from marginlab.inversion.terms import ClassTerm as ClassTerm
from marginlab.inversion.terms import EmbeddingTerm as EmbeddingTerm
from marginlab.inversion.terms import pixel_norm as pixel_norm
from marginlab.inversion.terms import total_variation as total_variation

__all__ = [
    "ChannelStatistics",
    "ClassTerm",
    "EmbeddingTerm",
    "FewerDimensions",
    "Inversion",
    "InversionSettings",
    "LinearMap",
    "Noise",
    "Quantised",
    "SecretRotation",
    "StatisticsTerm",
    "frechet_distance",
    "identity_ranks",
    "invert",
    "kernel_distance",
    "map_between",
    "measured_statistics",
    "nearest_rows",
    "pixel_norm",
    "stored_statistics",
    "total_variation",
]
