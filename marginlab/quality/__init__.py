"""Quality of images: how well a recognition network can tell who or what is on them.

Each score has one method, `quality(images) -> scores (N,)`, of which a higher one is better. Scores
of a frozen network stand beside the predicted recognizability index of the method `Recognizability`
and are its rivals. `marginlab.evaluation` judges them: `error_versus_discard`, `reliability`.
"""

from marginlab.quality.dropout import SerFiq as SerFiq
from marginlab.quality.fitted import CrFiqa as CrFiqa
from marginlab.quality.fitted import FittedScore as FittedScore
from marginlab.quality.fitted import SddFiqa as SddFiqa
from marginlab.quality.fitted import TransFira as TransFira
from marginlab.quality.frozen import EmbeddingRecognizability as EmbeddingRecognizability
from marginlab.quality.frozen import FeatureNorm as FeatureNorm
from marginlab.quality.frozen import HighestGalleryCosine as HighestGalleryCosine
from marginlab.quality.frozen import MagFaceNorm as MagFaceNorm
from marginlab.quality.frozen import PredictedIndex as PredictedIndex
from marginlab.quality.gradients import BatchNormGradients as BatchNormGradients
from marginlab.quality.ridge import RidgeHead as RidgeHead
from marginlab.quality.ridge import fit_ridge as fit_ridge
from marginlab.quality.scales import iso_scale as iso_scale
from marginlab.quality.score import QualityScore as QualityScore
from marginlab.quality.score import embeddings_of as embeddings_of
from marginlab.quality.targets import CenterCosines as CenterCosines
from marginlab.quality.targets import center_cosines as center_cosines
from marginlab.quality.targets import class_means as class_means
from marginlab.quality.targets import cr_fiqa_target as cr_fiqa_target
from marginlab.quality.targets import sdd_fiqa_target as sdd_fiqa_target
from marginlab.quality.targets import transfira_targets as transfira_targets

__all__ = [
    "BatchNormGradients",
    "CenterCosines",
    "CrFiqa",
    "EmbeddingRecognizability",
    "FeatureNorm",
    "FittedScore",
    "HighestGalleryCosine",
    "MagFaceNorm",
    "PredictedIndex",
    "QualityScore",
    "RidgeHead",
    "SddFiqa",
    "SerFiq",
    "TransFira",
    "center_cosines",
    "class_means",
    "cr_fiqa_target",
    "embeddings_of",
    "fit_ridge",
    "iso_scale",
    "sdd_fiqa_target",
    "transfira_targets",
]
