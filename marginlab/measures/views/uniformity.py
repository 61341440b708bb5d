"""Uniformity of features on the sphere: the log of the mean Gaussian potential of image pairs.

    L_unif(t) = log U
    U         = E over x != x' of exp( -t || f(x) - f(x') ||^2 )

where x and x' are views of two images drawn independently. Wang and Isola, ICML 2020, eq. 6
(t = 2). Only pairs of different images count, with all of their V views. U is a U-statistic with
the kernel k_ij = mean over u, v of exp(-t ||f_i^u - f_j^v||^2). It is unbiased for the mean inside
the logarithm. With a_i = 1/(n-1) sum over j != i of k_ij, the jackknife is

    U             =  mean a_i
    without i     :  U_{-i} = (n U - 2 a_i) / (n - 2)
    variance      =  (n-1)/n sum over i of (log U_{-i} - mean)^2.

On features of length 1 L_unif lies in [-4t, 0]. Its expectation never falls below that of the
uniform law on the sphere, -2t + log 0F1(; D/2; t^2). This is
`marginlab.theory.uniformity_floor(dim, t)`: -3.94 for D = 128 and t = 2.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.kernels import BUDGET, logsumexp
from marginlab.measures.measure import check_features, prepared
from marginlab.measures.views.image_sample import ImageSample, priority_of
from marginlab.rng import Key
from marginlab.statistics import index_within_group


class UniformityResult(NamedTuple):
    """L_unif of n images with V views each, and its jackknife error over images (NaN for two).

    `seen` images were given; the n images are a sample of them.
    """

    L_unif: Float[Tensor, ""]
    standard_error: Float[Tensor, ""]
    n: int
    seen: int
    V: int
    meaning: str


def uniformity(
    features: Float[Tensor, "N V D"],
    t: float = 2.0,
    *,
    normalize: bool = True,
    budget: int = BUDGET,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return L_unif(t) over pairs of different images, and its jackknife standard error.

    Both are float64. The error is NaN for two images. The N V by N V potentials are made in blocks
    and summed as logarithms, so that none underflows.

    Args:
        features: Features of V views of N images.
        t: Sharpness of the potential.
        normalize: Scale features to length 1 first.
        budget: Bytes of a block of potentials.

    Raises:
        ValueError: There are fewer than 2 images, values are not finite, or t is not positive.

    Example:
        >>> value, _ = uniformity(torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]]))  # -t 2^2
        >>> round(float(value), 6)
        -8.0
    """
    _check_t(t)
    check_features(features, fewest_views=1)
    n, V, _ = features.shape
    if n < 2:
        raise ValueError(
            f"Uniformity is of pairs of different images, but there are {n} image(s). Give at "
            "least 2."
        )
    z = prepared(features, normalize).flatten(0, 1)
    z = z - z.mean(0)  # keeps distances, and less cancels below
    squares = t * z.square().sum(1, keepdim=True)
    asking = torch.cat([2 * t * z, -squares, torch.ones_like(squares)], 1)
    bank = torch.cat([z, torch.ones_like(squares), -squares], 1)  # their product is -t ||f - f'||^2
    own = torch.arange(n, device=z.device).repeat_interleave(V)[:, None] * V + torch.arange(
        V, device=z.device
    )
    potentials = logsumexp(asking, bank, exclude=own, budget=budget).view(n, V)
    log_a = potentials.logsumexp(1) - math.log(V * V * (n - 1))
    log_u = log_a.logsumexp(0) - math.log(n)
    if n == 2:
        return log_u.clamp(max=0), torch.full_like(log_u, torch.nan)
    # 2 a_i / U, at most n, which it reaches where the other images are infinitely far apart
    share = (2 * (log_a - log_u).exp()).clamp(max=n * (1 - 1e-15))
    left_out = torch.log1p(-share / n)  # log U_{-i}, up to a constant shared by all i
    return log_u.clamp(max=0), ((left_out - left_out.mean()).square().sum() * (n - 1) / n).sqrt()


class Uniformity(ImageSample):
    """L_unif(t) from features (N, V, D); streams, merges and reduces over ranks.

    It keeps the features of at most 2 max_images images, in the dtype they come in. Time grows as
    (max_images V)^2 D.

    Args:
        t: Sharpness of the potential.
        normalize: Scale features to length 1 first.
        max_images: Most images whose pairs are taken. Beyond it the images are a random sample of
            this size without replacement. A key of the seed and of an image's own features draws
            it, so which images are in it depends neither on their order nor on batches or ranks.
            Images whose features agree bit for bit are an exception. Within one batch each of them
            draws for itself, and every batch repeats the same draws. For them alone the sample
            depends on the batches.
        seed: Seed of the sample.
        kwargs: Keyword arguments of torchmetrics.Metric.

    Raises:
        ValueError: t is not positive, the number of views differs from before, values are not
            finite, or there are fewer than 2 images.

    Example:
        >>> measure = Uniformity()
        >>> measure.update(torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]]))
        >>> result = measure.compute()
        >>> round(float(result.L_unif), 6), result.n, result.V
        (-4.0, 2, 1)
    """

    intervals = ("L_unif",)

    def __init__(
        self,
        t: float = 2.0,
        normalize: bool = True,
        *,
        max_images: int = 2000,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(max_images, seed, **kwargs)
        _check_t(t)
        self.t, self.normalize = t, normalize

    def priorities(self, features: Tensor) -> Int[Tensor, " N"]:
        """Return a random number of each image, from the seed, its features and its duplicates.

        These are the earlier images in the batch that have the same features. Without their number,
        a network that gives many images one and the same feature would have all of them drawn
        together, or none.
        """
        content = priority_of(features, self.seed)
        return (
            Key(self.seed)
            .named("uniformity", "place")
            .at(content >> 32, content & 0xFFFFFFFF, index_within_group(content))
            .bits()
        )

    def compute(self) -> UniformityResult:
        """Return the result, over all ranks under a process group."""
        sample, seen, V = self.checked(), int(self.seen), int(self.views)
        value, error = uniformity(sample, self.t, normalize=self.normalize)
        n = len(sample)
        return UniformityResult(
            value,
            error,
            n,
            seen,
            V,
            f"log of the mean potential (t = {self.t:g}) of {n * (n - 1) // 2} pairs of {n} images "
            f"(of {seen} seen), {V} views each. The mean is unbiased; its logarithm leans "
            "downwards, by about half the squared standard error. Standard error: jackknife over "
            "images, by up to sqrt 2 too large for features near the uniform law.",
        )


def _check_t(t: float) -> None:
    if not 0 < t < math.inf:
        raise ValueError(
            f"The sharpness of the Gaussian potential is positive and finite, not t = {t}."
        )
