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
from marginlab.evaluation.reliability import Reliability as Reliability
from marginlab.evaluation.reliability import reliability as reliability
from marginlab.evaluation.retrieval import Retrieval as Retrieval
from marginlab.evaluation.retrieval import retrieval as retrieval
from marginlab.evaluation.verification import TarAtFar as TarAtFar
from marginlab.evaluation.verification import Verification as Verification
from marginlab.evaluation.verification import tar_at_far as tar_at_far
from marginlab.evaluation.verification import verification_accuracy as verification_accuracy
from marginlab.evaluation.verify import Rate as Rate
from marginlab.evaluation.verify import verify as verify

__all__ = [
    "Association",
    "Correlation",
    "DiscardCurve",
    "LinearProbe",
    "NearestCenter",
    "Pairs",
    "RankedClasses",
    "Rate",
    "Reliability",
    "ReplicatedAssociation",
    "Retrieval",
    "Spread",
    "TarAtFar",
    "Verification",
    "associate",
    "associate_replicates",
    "best_curve",
    "error_versus_discard",
    "knn_accuracy",
    "knn_predict",
    "knn_rank",
    "line_area",
    "linear_probe",
    "linear_probe_accuracy",
    "nearest_center_error",
    "pair_quality",
    "pairs",
    "reliability",
    "retrieval",
    "tar_at_far",
    "verification_accuracy",
    "verify",
    "worst_curve",
]
