"""A random sample of the images whose features a measure has seen, for measures of pairs of images.

    the sample is the max_images images with the smallest priorities
    priority = a random number of (seed, features of the image)

So the sample of a union is the sample of the parts' samples, and which images are in it depends
neither on their order nor on batches or ranks.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from marginlab.measures.measure import Measure, check_features, constant, rows, same_views
from marginlab.rng import Key


class ImageSample(Measure):
    """A random sample of images without replacement, by their features (N, V, D).

    It streams, merges and reduces over ranks. It keeps the features of at most 2 max_images images,
    in the dtype they come in.

    Args:
        max_images: Size of the sample; all images if there are fewer.
        seed: Seed of the sample.
        kwargs: Keyword arguments of torchmetrics.Metric.
    """

    #: Least number of views of an image.
    fewest_views: ClassVar[int] = 1
    #: Remedy for another number of views than before, in the words of an error.
    equal_views: ClassVar[str] = "give all images equally many."
    features: list[Tensor]
    priority: list[Tensor]
    seen: Tensor
    views: Tensor

    def __init__(self, max_images: int, seed: int, **kwargs: Any):
        super().__init__(**kwargs)
        if max_images < 2:
            raise ValueError(
                f"{type(self).__name__} is of pairs of different images: at least 2 are kept, not "
                f"max_images={max_images}."
            )
        self.max_images, self.seed = max_images, seed
        for name in ("features", "priority"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.add_state("seen", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("views", default=torch.zeros(1, dtype=torch.int64), dist_reduce_fx=constant)

    def update(
        self, features: Float[Tensor, "N V D"], labels: Shaped[Tensor, " N"] | None = None
    ) -> None:
        """Take V views' features of N more images.

        Args:
            features: The features.
            labels: Ignored; accepted so that all measures may be called alike.
        """
        check_features(features, self.fewest_views)
        views = same_views(features, self.views, self.equal_views)
        if len(self.features) and self.features[0].shape[-1] != features.shape[2]:
            raise ValueError(
                f"features have {features.shape[2]} dimensions, those before had "
                f"{self.features[0].shape[-1]}: they are of one encoder."
            )
        self.views = views
        self.seen = self.seen + len(features)
        self.features.append(features.detach().clone())
        self.priority.append(self.priorities(features))
        if sum(map(len, self.priority)) > 2 * self.max_images:
            features, priority = self.sample()
            self.features[:], self.priority[:] = [features], [priority]

    def priorities(self, features: Tensor) -> Int[Tensor, " N"]:
        """Return a random number of each image; those with the smallest ones are the sample."""
        return priority_of(features, self.seed)

    def sample(self) -> tuple[Tensor, Tensor]:
        """Return the features of the sample, and the priorities of its images."""
        priority = rows(self.priority, self.seen.new_zeros(0))
        order = priority.argsort(stable=True)[: self.max_images]
        none = priority.new_zeros(0, 1, 1).double()
        return rows(self.features, none)[order], priority[order]

    def checked(self) -> Tensor:
        """Return the features of the sample of the images seen so far.

        Raises:
            ValueError: No image was seen.
        """
        if int(self.seen) == 0:
            raise ValueError(
                f"{type(self).__name__} has seen no image yet: call update(features) with features "
                "of shape (N, V, D) first."
            )
        return self.sample()[0]


def priority_of(features: Tensor, seed: int) -> Int[Tensor, " N"]:
    """Return a random number of each image, made of the seed and of the bits of its features.

    Two images differ in it unless all their features agree.
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
