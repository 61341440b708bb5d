"""Wrong labels: which images are not of their class, and which classes are one.

`purify` judges the images of a set by a classifier with sub-centers that was trained on it. Beside
it are other scores of label noise with the same result (`Suspicion`), pairs of classes that are one
identity (`conflicts`), and writers of what is left.
"""

from marginlab.purify.conflicts import Conflicts as Conflicts
from marginlab.purify.conflicts import PairsFound as PairsFound
from marginlab.purify.conflicts import conflicts as conflicts
from marginlab.purify.conflicts import merged as merged
from marginlab.purify.conflicts import pairs_found as pairs_found
from marginlab.purify.conflicts import unions as unions
from marginlab.purify.mixture import Threshold as Threshold
from marginlab.purify.mixture import mixture_threshold as mixture_threshold
from marginlab.purify.purification import Purification as Purification
from marginlab.purify.purification import Shares as Shares
from marginlab.purify.purification import judged as judged
from marginlab.purify.purification import noise_shares as noise_shares
from marginlab.purify.purify import purify as purify
from marginlab.purify.rivals import Suspicion as Suspicion
from marginlab.purify.rivals import by_confidence as by_confidence
from marginlab.purify.rivals import by_loss as by_loss
from marginlab.purify.rivals import by_mean as by_mean
from marginlab.purify.rivals import by_subcenter as by_subcenter
from marginlab.purify.rivals import comparison as comparison
from marginlab.purify.rivals import embeddings_of as embeddings_of
from marginlab.purify.rivals import image_losses as image_losses
from marginlab.purify.writing import files_of as files_of
from marginlab.purify.writing import write_folder as write_folder
from marginlab.purify.writing import write_index as write_index
from marginlab.purify.writing import write_record as write_record

__all__ = [
    "Conflicts",
    "PairsFound",
    "Purification",
    "Shares",
    "Suspicion",
    "Threshold",
    "by_confidence",
    "by_loss",
    "by_mean",
    "by_subcenter",
    "comparison",
    "conflicts",
    "embeddings_of",
    "files_of",
    "image_losses",
    "judged",
    "merged",
    "mixture_threshold",
    "noise_shares",
    "pairs_found",
    "purify",
    "unions",
    "write_folder",
    "write_index",
    "write_record",
]
