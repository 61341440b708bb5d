"""Numbers from features and labels: the quality of a frozen encoder, and predictors of it."""

from marginlab.evaluation.association import Association as Association
from marginlab.evaluation.association import Correlation as Correlation
from marginlab.evaluation.association import ReplicatedAssociation as ReplicatedAssociation
from marginlab.evaluation.association import Spread as Spread
from marginlab.evaluation.association import associate as associate
from marginlab.evaluation.association import associate_replicates as associate_replicates
from marginlab.evaluation.discard import DiscardCurve as DiscardCurve
from marginlab.evaluation.discard import best_curve as best_curve
from marginlab.evaluation.discard import error_versus_discard as error_versus_discard
from marginlab.evaluation.discard import line_area as line_area
from marginlab.evaluation.discard import pair_quality as pair_quality
from marginlab.evaluation.discard import worst_curve as worst_curve
from marginlab.evaluation.knn import RankedClasses as RankedClasses
from marginlab.evaluation.knn import knn_accuracy as knn_accuracy
from marginlab.evaluation.knn import knn_predict as knn_predict
from marginlab.evaluation.knn import knn_rank as knn_rank
from marginlab.evaluation.linear import LinearProbe as LinearProbe
from marginlab.evaluation.linear import linear_probe as linear_probe
from marginlab.evaluation.linear import linear_probe_accuracy as linear_probe_accuracy
from marginlab.evaluation.nearest import NearestCenter as NearestCenter
from marginlab.evaluation.nearest import nearest_center_error as nearest_center_error
from marginlab.evaluation.pairing import Pairs as Pairs
from marginlab.evaluation.pairing import pairs as pairs
from marginlab.evaluation.protocols import AtResolution as AtResolution
from marginlab.evaluation.protocols import FlipSum as FlipSum
from marginlab.evaluation.protocols import Interval as Interval
from marginlab.evaluation.protocols import Roc as Roc
from marginlab.evaluation.protocols import RocPoint as RocPoint
from marginlab.evaluation.protocols import Search as Search
from marginlab.evaluation.protocols import TemplatePool as TemplatePool
from marginlab.evaluation.protocols import Templates as Templates
from marginlab.evaluation.protocols import ValAtFar as ValAtFar
from marginlab.evaluation.protocols import all_pairs_tar as all_pairs_tar
from marginlab.evaluation.protocols import bootstrap as bootstrap
from marginlab.evaluation.protocols import closed_set as closed_set
from marginlab.evaluation.protocols import cosine_blocks as cosine_blocks
from marginlab.evaluation.protocols import flip_sum as flip_sum
from marginlab.evaluation.protocols import fold_interval as fold_interval
from marginlab.evaluation.protocols import fold_verification as fold_verification
from marginlab.evaluation.protocols import hits as hits
from marginlab.evaluation.protocols import identification_intervals as identification_intervals
from marginlab.evaluation.protocols import low_resolution as low_resolution
from marginlab.evaluation.protocols import open_set as open_set
from marginlab.evaluation.protocols import pair_scores as pair_scores
from marginlab.evaluation.protocols import pair_weights as pair_weights
from marginlab.evaluation.protocols import people_of_pairs as people_of_pairs
from marginlab.evaluation.protocols import pool_by_quality as pool_by_quality
from marginlab.evaluation.protocols import pool_templates as pool_templates
from marginlab.evaluation.protocols import roc as roc
from marginlab.evaluation.protocols import roc_intervals as roc_intervals
from marginlab.evaluation.protocols import search as search
from marginlab.evaluation.protocols import val_at_far as val_at_far
from marginlab.evaluation.reliability import Reliability as Reliability
from marginlab.evaluation.reliability import reliability as reliability
from marginlab.evaluation.retrieval import Retrieval as Retrieval
from marginlab.evaluation.retrieval import retrieval as retrieval
from marginlab.evaluation.verification import TarAtFar as TarAtFar
from marginlab.evaluation.verification import Verification as Verification
from marginlab.evaluation.verification import tar_at_far as tar_at_far
from marginlab.evaluation.verification import verification_accuracy as verification_accuracy
from marginlab.evaluation.verify import Rate as Rate
from marginlab.evaluation.verify import Verified as Verified
from marginlab.evaluation.verify import verify as verify

__all__ = [
    "Association",
    "AtResolution",
    "Correlation",
    "DiscardCurve",
    "FlipSum",
    "Interval",
    "LinearProbe",
    "NearestCenter",
    "Pairs",
    "RankedClasses",
    "Rate",
    "Reliability",
    "ReplicatedAssociation",
    "Retrieval",
    "Roc",
    "RocPoint",
    "Search",
    "Spread",
    "TarAtFar",
    "TemplatePool",
    "Templates",
    "ValAtFar",
    "Verification",
    "Verified",
    "all_pairs_tar",
    "associate",
    "associate_replicates",
    "best_curve",
    "bootstrap",
    "closed_set",
    "cosine_blocks",
    "error_versus_discard",
    "flip_sum",
    "fold_interval",
    "fold_verification",
    "hits",
    "identification_intervals",
    "knn_accuracy",
    "knn_predict",
    "knn_rank",
    "line_area",
    "linear_probe",
    "linear_probe_accuracy",
    "low_resolution",
    "nearest_center_error",
    "open_set",
    "pair_quality",
    "pair_scores",
    "pair_weights",
    "pairs",
    "people_of_pairs",
    "pool_by_quality",
    "pool_templates",
    "reliability",
    "retrieval",
    "roc",
    "roc_intervals",
    "search",
    "tar_at_far",
    "val_at_far",
    "verification_accuracy",
    "verify",
    "worst_curve",
]
