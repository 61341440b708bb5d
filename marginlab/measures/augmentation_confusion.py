"""How often a view's nearest neighbour is a view of another image: ACR, and how far training has
brought it down: ARC.

    ACR = P[ min over images j != i of d(x_i^u, image j)  <=  d(x_i^u, image i) ]             ARC = (1 - ACR_final) / (1 - ACR_initial)

over all views u of all images i, with d(x_i^u, image j) = min over the views v of image j of
||f(x_i^u) - f(x_j^v)||, v != u where j = i, f of length 1. Wang, Zhang, Wang, Yang and Lin, ICLR
2022. Zhang, Wang and Wang, JMLR 2025, take the mean or the maximum over the views instead of the
minimum, in own images and in others as one likes: GACR, and GARC of it. Every view asks, not the
first of an image only; images are told apart by their index, whatever the batches they came in; and
distances within 1e-7 of each other are equal, a tie counting as confused: an image whose own views
are no nearer than another's is not told apart, and an encoder that has collapsed has ACR = 1.

ACR is of a bank of N images and V views, and changes with both: it grows with N, because there are
more others, and falls with V in the minimum, because there are more own views (of others too, but
these are there without). Only ACRs of equal N and V are to be compared.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from marginlab.kernels import BUDGET, walk
from marginlab.measures.measure import Measure, check_features, constant, prepared, rows
from marginlab.rng import Key

Reduction = Literal["min", "mean", "max"]
# distances of unit features in float64 err by up to 1e-8 near zero, and those of float32 features
# by this
TIE = 1e-7


class ConfusionResult(NamedTuple):
    """ACR among the views of N images with V views each, and its standard error over images, the
    bank of the others taken as given.

    `chance` is what an encoder has that draws its features at random: (N - 1) V / (N V - 1) in the
    minimum (NaN otherwise). `seen` images were given, of which the N are a random sample.
    """

    ACR: Float[Tensor, ""]
    standard_error: Float[Tensor, ""]
    chance: float
    n: int
    seen: int
    V: int
    within: str
    across: str
    meaning: str


class RelativeConfusion(NamedTuple):
    """ARC (or GARC), more than 1 where training has brought views of an image together, and its
    standard error.
    """

    ARC: Float[Tensor, ""]
    standard_error: Float[Tensor, ""]
    meaning: str


def augmentation_confusion(
    features: Float[Tensor, "N V D"],
    *,
    within: Reduction = "min",
    across: Reduction = "min",
    budget: int = BUDGET,
) -> Float[Tensor, " N"]:
    """Share of the views of each image that are confused with another image, (N,) float64: ACR is
    their mean.

    `within` and `across` reduce the distances to the views of the own image and of another one;
    `budget` is in bytes. Features get length 1. Raises ValueError for fewer than 2 views or 2
    images, or values that are not finite.

    >>> f = torch.tensor([[[1.0, 0.0], [0.9, 0.1]], [[0.0, 1.0], [0.8, 0.1]]])                 # the second views lie together
    >>> augmentation_confusion(f)
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    _check_reductions(within, across)
    check_features(features, fewest_views=2)
    N, V, D = features.shape
    if N < 2:
        raise ValueError(
            f"A view is confused with a view of another image, but there are {N} image(s). "
            f"Give at least 2."
        )
    z = prepared(features, True)
    own = []
    for part in z.split(max(budget // (24 * V * (V + D)), 1)):
        apart = _distances(part @ part.mT)[
            :, ~torch.eye(V, dtype=torch.bool, device=z.device)
        ].view(-1, V, V - 1)
        own.append(_reduced(apart, within))
    flat = z.flatten(0, 1)
    nearest = flat.new_full((N * V,), torch.inf)
    image = torch.arange(N, device=z.device)
    for queries, bank in walk(N * V, N * V, entry=24, budget=budget, unit=(1, V)):
        apart = _reduced(_distances(flat[queries] @ flat[bank].T).unflatten(1, (-1, V)), across)
        others = image[bank.start // V : bank.stop // V]
        asking = torch.arange(queries.start, queries.stop, device=z.device) // V
        apart.masked_fill_(asking[:, None] == others, torch.inf)
        nearest[queries] = torch.minimum(nearest[queries], apart.amin(1))
    return (nearest.view(N, V) <= torch.cat(own) + TIE).double().mean(1)


class AugmentationConfusion(Measure):
    """ACR (or GACR) from features (N, V, D) of V >= 2 views; streams, merges and reduces over
    ranks.

    Args:
        within, across: "min" (ACR), "mean" or "max" (GACR) over the views of the own image and of
            others.
        max_images: of the bank. Beyond it the images are a random sample of this size, drawn
            without replacement by a key of the seed and of an image's own features: which images
            are in it depends neither on their order nor on batches or ranks.
        seed: of the sample.
        kwargs: torchmetrics.Metric's.

    The features of max_images images are kept, in the dtype they come in; time goes with
    (max_images V)^2 D.

    >>> measure = AugmentationConfusion()
    >>> measure.update(torch.tensor([[[1.0, 0.0], [0.9, 0.1]], [[0.0, 1.0], [0.8, 0.1]]]))
    >>> result = measure.compute()
    >>> float(result.ACR), result.n, result.V
    (0.5, 2, 2)

    Raises:
        ValueError: fewer than 2 views, another number of views than before, values not finite, a
            bank of fewer than 2 images.
    """

    features: list[Tensor]
    priority: list[Tensor]
    seen: Tensor
    views: Tensor

    def __init__(
        self,
        within: Reduction = "min",
        across: Reduction = "min",
        *,
        max_images: int = 2000,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        _check_reductions(within, across)
        if max_images < 2:
            raise ValueError(
                f"A view is confused with a view of another image: the bank holds at least "
                f"2, not max_images={max_images}."
            )
        self.within, self.across, self.max_images, self.seed = within, across, max_images, seed
        for name in ("features", "priority"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.add_state("seen", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("views", default=torch.zeros(1, dtype=torch.int64), dist_reduce_fx=constant)

    def update(
        self, features: Float[Tensor, "N V D"], labels: Shaped[Tensor, " N"] | None = None
    ) -> None:
        """Take V views' features of N more images; labels are not looked at (all measures may be
        called alike).
        """
        check_features(features, fewest_views=2)
        if int(self.views) not in (0, features.shape[1]):
            raise ValueError(
                f"features have {features.shape[1]} views, those before had "
                f"{int(self.views)}: ACR changes with V, give equally many."
            )
        if len(self.features) and self.features[0].shape[-1] != features.shape[2]:
            raise ValueError(
                f"features have {features.shape[2]} dimensions, those before had "
                f"{self.features[0].shape[-1]}: they are of one encoder."
            )
        self.views = torch.full_like(self.views, features.shape[1])
        self.seen = self.seen + len(features)
        self.features.append(features.detach().clone())
        self.priority.append(place_of(features, self.seed))
        if sum(map(len, self.priority)) > 2 * self.max_images:
            kept, priority = self._sample()
            self.features[:], self.priority[:] = [kept], [priority]

    def _sample(self) -> tuple[Tensor, Tensor]:
        """The images with the smallest priorities: a random sample of all, and of any union of
        parts the sample of their samples.
        """
        priority = rows(self.priority, self.seen.new_zeros(0))
        order = priority.argsort()[: self.max_images]
        return rows(self.features, priority.new_zeros(0, 2, 1).double())[order], priority[order]

    def compute(self) -> ConfusionResult:
        """The result; over all ranks under a process group."""
        seen, V = int(self.seen), int(self.views)
        if seen == 0:
            raise ValueError(
                "AugmentationConfusion has seen no image yet: call update(features) with "
                "features of shape (N, V, D) first."
            )
        confused = augmentation_confusion(self._sample()[0], within=self.within, across=self.across)
        n = len(confused)
        return ConfusionResult(
            ACR=confused.mean(),
            standard_error=confused.std() / n**0.5,
            chance=(n - 1) * V / (n * V - 1)
            if self.within == self.across == "min"
            else float("nan"),
            n=n,
            seen=seen,
            V=V,
            within=self.within,
            across=self.across,
            meaning=(
                f"Share of the {V} views of {n} images (of {seen} seen) whose nearest "
                f"image is another, by the {self.within} over own views and the "
                f"{self.across} over those of others; ties count as confused, so it leans "
                f"upwards by them. It is of this bank and grows with the "
                "number of images. The standard error is over images, with the bank of the others "
                "taken as given: too small for another bank, so that it makes no interval."
            ),
        )


def relative_confusion(initial: ConfusionResult, final: ConfusionResult) -> RelativeConfusion:
    """ARC of an encoder before and after training (GARC, if their means or maxima over views were
    taken).

    Source: Wang et al. 2022. The standard error is by linearisation with both errors independent:
    too large rather than too small where the same images are confused before and after. Raises
    ValueError for results of unequal N, V or reductions, or an initial ACR of 1.

    >>> f = torch.tensor([[[1.0, 0.0], [0.9, 0.1]], [[0.0, 1.0], [0.8, 0.1]]])
    >>> before, after = AugmentationConfusion()(f), AugmentationConfusion()(torch.eye(2)[:, None].repeat(1, 2, 1))
    >>> float(before.ACR), float(after.ACR), float(relative_confusion(before, after).ARC)
    (0.5, 0.0, 2.0)
    """
    made = [(r.n, r.V, r.within, r.across) for r in (initial, final)]
    if made[0] != made[1]:
        raise ValueError(
            f"ACRs of {made[0]} and of {made[1]} (images, views, reductions) have no "
            f"ratio, for ACR changes with each: make them alike."
        )
    left = 1 - initial.ACR
    if float(left) == 0:
        raise ValueError(
            "The initial encoder confuses every view (ACR = 1): nothing can be held "
            "against it. Give more views or fewer images."
        )
    ratio = (1 - final.ACR) / left
    error = (
        final.standard_error.square() + ratio.square() * initial.standard_error.square()
    ).sqrt() / left
    return RelativeConfusion(
        ratio,
        error,
        f"(1 - ACR) of the final encoder over that of the initial one, {initial.n} images "
        f"with {initial.V} views. A ratio of estimates leans upwards "
        "by the order of the initial one's relative variance; the standard error takes the "
        "two as independent.",
    )


def _distances(cosines: Tensor) -> Tensor:
    return cosines.mul_(-2).add_(2).clamp_(min=0).sqrt_()


def _reduced(distances: Tensor, how: str) -> Tensor:
    if how == "mean":
        return distances.mean(-1)
    return distances.amin(-1) if how == "min" else distances.amax(-1)


def _check_reductions(within: str, across: str) -> None:
    for name, how in (("within", within), ("across", across)):
        if how not in ("min", "mean", "max"):
            raise ValueError(
                f"Distances to the views of an image are reduced by 'min', 'mean' or "
                f"'max', not by {name}={how!r}."
            )


def place_of(features: Tensor, seed: int) -> Int[Tensor, " N"]:
    """A random number of each image, made of the seed and of the bits of its features: two images
    differ in it unless all their features agree.
    """
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[features.element_size()]
    words = features.detach().flatten(1).contiguous().view(bits).long()
    odd = (
        Key(seed)
        .named("confusion", "fold")
        .at(torch.arange(words.shape[1], device=words.device))
        .bits()
        * 2
        + 1
    )
    folded = (words * odd).sum(1)  # modulo 2^64: multilinear hashing (Carter and Wegman 1979)
    return (
        Key(seed)
        .named("confusion", "place")
        .at(folded >> 32 & 0xFFFFFFFF, folded & 0xFFFFFFFF)
        .bits()
    )
