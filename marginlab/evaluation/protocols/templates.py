"""Templates of IJB-B and IJB-C: one feature for all images and frames of a person's template.

    g_m = mean over the images i of medium m of q_i f_i         (a medium: a still, or a video)
    z   = sum over media m of g_m / || sum over media m of g_m ||

q_i is the score of the face detector, or 1. f_i is the sum of the features of the image and its
mirror image, not normalised, so that a clear face counts for more. A video counts once, however
many frames it has.

Source: the evaluation of IJB that goes with ArcFace, Deng et al. 2019 (features "N1", detector
score "D1 F1"). The paper itself says: the centre of the features.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64, Integer
from torch import Tensor

from marginlab.evaluation.check import Array, as_tensor, check_features
from marginlab.evaluation.verification import distances_between
from marginlab.statistics import unit_vectors

_NUMBERS = 1 << 22  # numbers that are widened to float64 at a time


class Templates(NamedTuple):
    """Directions of T templates, and their numbers in rising order."""

    features: Float[Tensor, "T D"]
    numbers: Int64[Tensor, " T"]

    def rows(self, numbers: Integer[Array, " M"]) -> Int64[Tensor, " M"]:
        """Return the rows of templates by number.

        Raises:
            ValueError: A template has no image.

        Example:
            >>> Templates(torch.eye(2), torch.tensor([7, 9])).rows(torch.tensor([9, 9, 7]))
            tensor([1, 1, 0])
        """
        asked = as_tensor("numbers of templates", numbers).cpu().long().contiguous()
        at = torch.searchsorted(self.numbers, asked).clamp(max=len(self.numbers) - 1)
        absent = (self.numbers[at] != asked).nonzero()[:, 0]
        if len(absent):
            raise ValueError(
                f"Template {int(asked[absent[0]])} has no image, and so {len(absent)} of "
                f"{len(asked)} entries have no feature. Give the images of all templates."
            )
        return at


def pool_templates(
    features: Float[Array, "N D"],
    templates: Integer[Array, " N"],
    media: Integer[Array, " N"],
    detector: Float[Array, " N"] | None = None,
) -> Templates:
    """Pool the features of images into templates.

    Args:
        features: Features of the images, not normalised; `flip=True` of `marginlab.encoding` makes
            the sums.
        templates: The template of each image. An image of two templates is given twice.
        media: The medium of each image; equal numbers of two templates are two media.
        detector: The detector score of each image, not negative; 1 by default.

    Raises:
        ValueError: Shapes differ, numbers are not integers, features or scores are not finite, or
            scores are negative.

    Example:
        >>> f = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
        >>> pool_templates(f, torch.tensor([5, 5, 5]), torch.tensor([0, 0, 1])).features
        tensor([[0.7071, 0.7071]])
    """
    wide = check_features("features", features)
    pool = TemplatePool(templates, media, detector)
    if len(pool) != len(wide):
        raise ValueError(
            f"{len(wide)} images have as many numbers of templates, not {len(pool)}. Give one for "
            "each image."
        )
    pool.add(wide)
    return pool.templates()


class TemplatePool:
    """Templates whose images come a batch at a time: the features of all images are never held.

    Args:
        templates: The template of each image. An image of two templates is given twice.
        media: The medium of each image; equal numbers of two templates are two media.
        detector: The detector score of each image, not negative; 1 by default.

    Raises:
        ValueError: Shapes differ, numbers are not integers, or scores are negative or not finite.

    Example:
        >>> pool = TemplatePool(torch.tensor([5, 5, 5]), torch.tensor([0, 0, 1]))
        >>> pool.add(torch.tensor([[3.0, 0.0], [1.0, 0.0]]))
        >>> pool.add(torch.tensor([[0.0, 2.0]]))
        >>> pool.templates().features
        tensor([[0.7071, 0.7071]])
    """

    def __init__(
        self,
        templates: Integer[Array, " N"],
        media: Integer[Array, " N"],
        detector: Float[Array, " N"] | None = None,
    ) -> None:
        n = len(templates)
        given = _numbers("templates", templates, n)
        self.numbers, self._template = given.unique(return_inverse=True)
        medium = _numbers("media", media, n).unique(return_inverse=True)[1]
        group = self._template * (int(medium.max()) + 1) + medium
        _, at, size = group.unique(return_inverse=True, return_counts=True)
        self._weight = 1 / size[at].double()
        if detector is not None:
            score = as_tensor("detector scores", detector).cpu().double()
            if score.shape != (n,) or not bool((score.isfinite() & (score >= 0)).all()):
                raise ValueError(
                    f"{n} images have as many detector scores, finite and not negative. Clip or "
                    "correct them."
                )
            self._weight = self._weight * score
        self._total: Tensor | None = None
        self._kind, self._seen = torch.float32, 0

    def __len__(self) -> int:
        return len(self._template)

    def add(self, features: Float[Array, "n D"]) -> None:
        """Take the features of the next n images, in the order of `templates`.

        Raises:
            ValueError: They are not finite, of another width than before, or more than announced.
        """
        dim = None if self._total is None else self._total.shape[1]
        wide = check_features("features", features, dim=dim)
        if self._seen + len(wide) > len(self):
            raise ValueError(
                f"Of {len(self)} images {self._seen} have come, and now {len(wide)} more. Give "
                "each image once."
            )
        if self._total is None:
            shape = (len(self.numbers), wide.shape[1])
            self._total = torch.zeros(shape, dtype=torch.float64, device=wide.device)
            self._kind = torch.float64 if wide.dtype == torch.float64 else torch.float32
        step = max(1, _NUMBERS // wide.shape[1])
        for part in wide.split(step):
            rows = slice(self._seen, self._seen + len(part))
            to = self._template[rows].to(self._total.device)
            times = self._weight[rows].to(self._total.device)
            self._total.index_add_(0, to, part.to(self._total.device).double() * times[:, None])
            self._seen += len(part)

    def templates(self) -> Templates:
        """Return the templates.

        Raises:
            ValueError: Images have not come yet.
        """
        if self._total is None or self._seen < len(self):
            raise ValueError(
                f"Of {len(self)} images {self._seen} have come. Add the features of all of them."
            )
        return Templates(unit_vectors(self._total).to(self._kind), self.numbers)


def pool_by_quality(
    features: Float[Array, "N D"],
    templates: Integer[Array, " N"],
    weights: Float[Array, " N"],
    *,
    keep: Bool[Array, " N"] | None = None,
) -> Templates:
    """Pool images into templates, each image's direction by a weight of quality.

        z = unit vector of  sum over kept images i of  q_i f_i / |f_i|

    A score whose range is arbitrary, as that of a predicted index, is no weight yet: subtract the
    score of unrecognizable images, and clip at 0. A template without a kept image of positive
    weight is the plain mean of its directions, so that it is not lost (our choice).

    Sources: Deng et al. 2021 (ERS as the weight); Tu et al. 2026, TransFIRA (CCS as the weight, and
    `keep` of CCAS > 0).

    Args:
        features: Features of the images, of any length.
        templates: The template of each image. An image of two templates is given twice.
        weights: The quality of each image, not negative.
        keep: Marks the images that count; all by default.

    Raises:
        ValueError: Shapes differ, numbers are not integers, or features or weights are not finite,
            or weights are negative.

    Example:
        >>> f = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> pool_by_quality(f, torch.tensor([3, 3, 3]), torch.tensor([4.0, 1.0, 2.0])).features
        tensor([[0.8000, 0.6000]])
    """
    wide = check_features("features", features)
    numbers, at = _numbers("templates", templates, len(wide)).unique(return_inverse=True)
    weight = as_tensor("weights", weights).cpu().double()
    if weight.shape != (len(wide),) or not bool((weight.isfinite() & (weight >= 0)).all()):
        raise ValueError(
            f"{len(wide)} images have as many weights, finite and not negative, not "
            f"{tuple(weight.shape)} with a least value of {float(weight.min()):g}. Subtract the "
            "score of unrecognizable images, and clip at 0."
        )
    if keep is not None:
        mask = as_tensor("marks of what is kept", keep).cpu()
        if mask.shape != weight.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"{len(wide)} images are kept or not by as many bools, not {mask.dtype} "
                f"{tuple(mask.shape)}."
            )
        weight = weight * mask
    heaviest = torch.zeros(len(numbers), dtype=torch.float64).scatter_reduce(0, at, weight, "amax")
    weight = torch.where(heaviest[at] > 0, weight / heaviest[at].clamp(min=1e-300), 1.0)
    total = torch.zeros(len(numbers), wide.shape[1], dtype=torch.float64, device=wide.device)
    rows = max(1, _NUMBERS // wide.shape[1])
    for part, to, times in zip(wide.split(rows), at.split(rows), weight.split(rows), strict=True):
        moved = unit_vectors(part.double()) * times.to(wide.device)[:, None]
        total.index_add_(0, to.to(wide.device), moved)
    kind = torch.float64 if wide.dtype == torch.float64 else torch.float32
    return Templates(unit_vectors(total).to(kind), numbers)


def pair_scores(
    features: Float[Array, "N D"], first: Integer[Array, " M"], second: Integer[Array, " M"]
) -> Float64[Tensor, " M"]:
    """Return the cosines of pairs of rows, on the CPU, gathered a block of pairs at a time.

    Args:
        features: Features; they need not be normalised.
        first: The row of each pair's first feature.
        second: That of its second.

    Raises:
        ValueError: A row is outside the features, or the two lists differ in length.

    Example:
        >>> pair_scores(torch.eye(2), torch.tensor([0, 0]), torch.tensor([0, 1]))
        tensor([1., 0.], dtype=torch.float64)
    """
    wide = check_features("features", features)
    at, to = (as_tensor("rows of pairs", x).to(wide.device) for x in (first, second))
    if at.ndim != 1 or at.shape != to.shape or not len(at) or at.is_floating_point():
        raise ValueError(
            f"Pairs are two lists of as many rows, at least one, not {tuple(at.shape)} and "
            f"{tuple(to.shape)} of {at.dtype}."
        )
    low, high = int(torch.minimum(at, to).min()), int(torch.maximum(at, to).max())
    if low < 0 or high >= len(wide):
        raise ValueError(f"Pairs name the rows {low} to {high}, outside 0 to {len(wide) - 1}.")
    return 1 - distances_between(wide, at.long(), to.long()) / 2


def _numbers(name: str, given: Array, n: int) -> Int64[Tensor, " N"]:
    found = as_tensor(f"numbers of {name}", given).cpu()
    if found.shape != (n,) or found.is_floating_point():
        told = f"{found.dtype} {tuple(found.shape)}"
        raise ValueError(
            f"{n} images have as many numbers of {name}, which are integers, not {told}."
        )
    return found.long()
