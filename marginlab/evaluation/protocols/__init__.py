"""Protocols of face recognition on scores: verification, identification, templates, intervals."""

from marginlab.evaluation.protocols.blocks import Search as Search
from marginlab.evaluation.protocols.blocks import cosine_blocks as cosine_blocks
from marginlab.evaluation.protocols.blocks import search as search
from marginlab.evaluation.protocols.bootstrap import Interval as Interval
from marginlab.evaluation.protocols.bootstrap import bootstrap as bootstrap
from marginlab.evaluation.protocols.bootstrap import pair_weights as pair_weights
from marginlab.evaluation.protocols.bootstrap import people_of_pairs as people_of_pairs
from marginlab.evaluation.protocols.folds import FlipSum as FlipSum
from marginlab.evaluation.protocols.folds import ValAtFar as ValAtFar
from marginlab.evaluation.protocols.folds import flip_sum as flip_sum
from marginlab.evaluation.protocols.folds import fold_interval as fold_interval
from marginlab.evaluation.protocols.folds import fold_verification as fold_verification
from marginlab.evaluation.protocols.folds import val_at_far as val_at_far
from marginlab.evaluation.protocols.identification import all_pairs_tar as all_pairs_tar
from marginlab.evaluation.protocols.identification import closed_set as closed_set
from marginlab.evaluation.protocols.identification import hits as hits
from marginlab.evaluation.protocols.identification import (
    identification_intervals as identification_intervals,
)
from marginlab.evaluation.protocols.identification import open_set as open_set
from marginlab.evaluation.protocols.intervals import roc_intervals as roc_intervals
from marginlab.evaluation.protocols.resolution import AtResolution as AtResolution
from marginlab.evaluation.protocols.resolution import low_resolution as low_resolution
from marginlab.evaluation.protocols.roc import Roc as Roc
from marginlab.evaluation.protocols.roc import RocPoint as RocPoint
from marginlab.evaluation.protocols.roc import roc as roc
from marginlab.evaluation.protocols.templates import TemplatePool as TemplatePool
from marginlab.evaluation.protocols.templates import Templates as Templates
from marginlab.evaluation.protocols.templates import pair_scores as pair_scores
from marginlab.evaluation.protocols.templates import pool_by_quality as pool_by_quality
from marginlab.evaluation.protocols.templates import pool_templates as pool_templates

__all__ = [
    "AtResolution",
    "FlipSum",
    "Interval",
    "Roc",
    "RocPoint",
    "Search",
    "TemplatePool",
    "Templates",
    "ValAtFar",
    "all_pairs_tar",
    "bootstrap",
    "closed_set",
    "cosine_blocks",
    "flip_sum",
    "fold_interval",
    "fold_verification",
    "hits",
    "identification_intervals",
    "low_resolution",
    "open_set",
    "pair_scores",
    "pair_weights",
    "people_of_pairs",
    "pool_by_quality",
    "pool_templates",
    "roc",
    "roc_intervals",
    "search",
    "val_at_far",
]
