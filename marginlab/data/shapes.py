"""The embedded image set: a seeded renderer of coloured silhouettes with known nuisances.

    image = clamp(turn(coverage * ink + (1 - coverage) * ground, hue) + sigma * grain, 0, 1)
    coverage(p) = clamp(1/2 - distance(R(-rotation)(p - centre) / radius) in pixels, 0, 1)
    ground(p) = A + (B - A) * (1 + cos(2 pi f . p + phase)) / 2
                A, B two random colours, f a random wave

It is known which augmentation undoes each nuisance. Every draw is a function of (seed, split,
nuisance, index): an image can be rendered alone, and no nuisance depends on the label.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from marginlab.data.images import ImageSet
from marginlab.data.silhouettes import SILHOUETTES, distance
from marginlab.rng import Key
from marginlab.settings import SettingsError, nearest

INK = (0.95, 0.45, 0.35)  # red before its hue is turned, and lighter than any ground
# the ground when the background is switched off, and its largest channel when it is on
GREY, LIGHTEST = 0.28, 0.55
_CHUNK = 256  # images rendered at once: their temporaries stay in cache


class Parameters(NamedTuple):
    """The draws for N images: everything that `Shapes.render` needs beside the labels."""

    position: Float[Tensor, "N 2"]  # of the centre, right and down, in half image sides
    radius: Float[Tensor, "N"]  # of the disc of the silhouette's area, in half image sides
    rotation: Float[Tensor, "N"]  # anticlockwise, in degrees
    hue: Float[Tensor, "N"]  # by which the whole image is turned, in turns of the colour circle
    ground: Float[Tensor, "N 2 3"]  # the two colours of the background, RGB
    # periods across half a side to the right and down, and the phase in turns
    wave: Float[Tensor, "N 3"]
    noise: Float[Tensor, "N"]  # standard deviation of the pixels' noise
    grain: Int64[Tensor, "N"]  # names the noise's pixels


@dataclass(frozen=True)
class Shapes:
    """A renderer of coloured silhouettes on coloured waves; image i is of class i modulo C.

    Class k is `silhouettes[k]`. Each nuisance is drawn uniformly from its range:

    | nuisance     | range                              | off at     | undone by                |
    |--------------|------------------------------------|------------|--------------------------|
    | `position`   | centre in +-position half sides    | 0          | resized crop (a)         |
    | `scale`      | radius in [low, high] half sides   | low = high | resized crop (a)         |
    | `rotation`   | +-rotation degrees                 | 0          | flip (e), its sign only  |
    | `hue`        | +-hue/2 turns of the colour circle | 0          | jitter (d), grey (c)     |
    | `background` | mixed with grey by 1 - background  | 0          | (c), (d) and (a), partly |
    | `noise`      | standard deviation in [0, noise]   | 0          | blur (b)                 |

    The centre moves right and down. The radius is uniform in its logarithm. A flip undoes the sign
    of a rotation, and nothing undoes its size. The hue turns the image as a whole; `jitter` is the
    hue of the colour jitter. The two background colours alternate along a wave. The noise is
    Gaussian.

    With the default ranges, the paper's augmentations undo most of the differences between two
    images of a class. With hue=1 and background=1, a contrastive learner of a few hundred steps
    tells images apart by their colours, and learns the colours.

    `size` is the side in pixels. The same images are drawn at any size, except for the noise, which
    is one draw a pixel.

    Raises:
        SettingsError: An unknown silhouette or split, or a range that makes no sense.

    Example:
        >>> shapes = Shapes(size=16, noise=0.0)
        >>> parameters = shapes.draw("train", torch.tensor([7]))
        >>> shapes.render(torch.tensor([3]), parameters).shape
        torch.Size([1, 3, 16, 16])
        >>> shapes.load("train", 20).classes[3]
        'triangle'
    """

    silhouettes: tuple[str, ...] = SILHOUETTES
    size: int = 32
    position: float = 0.2
    scale: tuple[float, float] = (0.4, 0.6)
    rotation: float = 15.0
    hue: float = 0.25
    background: float = 0.3
    noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.silhouettes:
            if name not in SILHOUETTES:
                raise SettingsError(
                    f"There is no silhouette {name!r}: {nearest(name, SILHOUETTES)}"
                )
        if len(set(self.silhouettes)) < max(2, len(self.silhouettes)):
            raise SettingsError(
                f"Shapes needs at least two silhouettes, each named once, not {self.silhouettes}."
            )
        if self.size < 8:
            raise SettingsError(
                f"size is at least 8 pixels, not {self.size}: smaller silhouettes cannot be told "
                "apart."
            )
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 2:
            raise SettingsError(
                f"scale is (low, high) with 0 < low <= high <= 2 half sides, not {self.scale}."
            )
        for field, largest in {
            "position": 1.0,
            "rotation": 180.0,
            "hue": 1.0,
            "background": 1.0,
            "noise": 1.0,
        }.items():
            if not 0 <= getattr(self, field) <= largest:
                raise SettingsError(
                    f"{field} lies in [0, {largest:g}], not at {getattr(self, field)}; 0 switches "
                    "it off."
                )

    def draw(self, split: str, index: int | Int[Tensor, "N"]) -> Parameters:
        """Draw the parameters of the images at these indices of a split.

        They do not depend on which other images are drawn.
        """
        if split not in ("train", "test"):
            raise SettingsError(f"There is no split {split!r}: {nearest(split, ('train', 'test'))}")
        index = torch.as_tensor(index).reshape(-1)

        def draws(nuisance: str, n: int = 1, low: float = 0.0, high: float = 1.0) -> Tensor:
            key = Key(self.seed).named("shapes", split, nuisance)
            return key.at(index[:, None], torch.arange(n, device=index.device)).uniform(low, high)

        low, high = self.scale
        # hue in turns, saturation, value
        colours = draws("background", 6).view(-1, 2, 3) * torch.tensor(
            [1.0, 0.8, LIGHTEST], device=index.device
        )
        # in float64: exponentials of one number and of many may differ in the last bit of float32
        radius = low * (high / low) ** draws("scale").double()
        turned = 2 * torch.pi * draws("direction").double()
        # from half a period a side to two
        period = torch.cat([turned.cos(), turned.sin()], 1) * draws("wavelength", 1, 0.25, 1.0)
        return Parameters(
            position=draws("position", 2, -self.position, self.position),
            radius=radius[:, 0].float(),
            rotation=draws("rotation", 1, -self.rotation, self.rotation)[:, 0],
            hue=draws("hue", 1, -self.hue / 2, self.hue / 2)[:, 0],
            ground=GREY + self.background * (_rgb(colours) - GREY),
            wave=torch.cat([period.float(), draws("phase")], 1),
            noise=draws("noise", 1, 0.0, self.noise)[:, 0],
            grain=Key(self.seed).named("shapes", split, "grain").at(index).bits(),
        )

    def render(self, labels: Int[Tensor, "N"], parameters: Parameters) -> Float[Tensor, "N 3 H W"]:
        """Render images of these classes with these parameters, values in [0, 1].

        Args:
            labels: (N,) numbers of silhouettes.
            parameters: The parameters of the N images.

        Raises:
            ValueError: A label that is no silhouette's number, or numbers of labels and parameters
                that differ.
        """
        if len(labels) != len(parameters.hue):
            raise ValueError(
                f"{len(labels)} labels do not fit the parameters of {len(parameters.hue)} images: "
                "one label for each."
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.silhouettes):
            raise ValueError(
                f"Labels from {int(labels.min())} to {int(labels.max())} do not number "
                f"{len(self.silhouettes)} silhouettes from 0."
            )
        images = torch.empty(len(labels), 3, self.size, self.size, device=labels.device)
        for start in range(0, len(labels), _CHUNK):
            part = slice(start, start + _CHUNK)
            images[part] = self._render(
                labels[part], Parameters(*(tensor[part] for tensor in parameters))
            )
        return images

    def _render(self, labels: Tensor, p: Parameters) -> Tensor:
        from kornia.enhance import adjust_hue

        axis = (torch.arange(self.size, device=labels.device) + 0.5) * (2 / self.size) - 1
        right, down = axis[None, None, :], axis[None, :, None]
        # y points up
        x, y = right - p.position[:, 0, None, None], p.position[:, 1, None, None] - down
        angle, radius = torch.deg2rad(p.rotation)[:, None, None], p.radius[:, None, None]
        cos, sin = angle.cos() / radius, angle.sin() / radius
        x, y = cos * x + sin * y, cos * y - sin * x
        coverage = torch.empty(len(labels), self.size, self.size, device=labels.device)
        for label in labels.unique().tolist():
            own = labels == label
            coverage[own] = distance(self.silhouettes[label], x[own], y[own])
        coverage = (0.5 - coverage * radius * (self.size / 2)).clamp_(0, 1)[:, None]

        wave = p.wave[..., None, None]
        mix = (
            0.5
            + 0.5 * torch.cos(2 * torch.pi * (wave[:, 0] * right + wave[:, 1] * down + wave[:, 2]))
        )[:, None]
        ground = p.ground[..., None, None]
        images = torch.lerp(ground[:, 0], ground[:, 1], mix)
        images = torch.lerp(
            images, torch.tensor(INK, device=labels.device)[:, None, None], coverage
        )
        if bool(p.hue.any()):  # turning by 0 would still round
            images = adjust_hue(images, 2 * torch.pi * p.hue)
        return (images + p.noise[:, None, None, None] * _grain(p.grain, images.shape[1:])).clamp_(
            0, 1
        )

    def load(self, split: str, n: int) -> ImageSet:
        """Render the first n images of a split as bytes; image i is of class i modulo C."""
        if n < 2:
            raise ValueError(
                f"Shapes.load(split, n) renders at least n = 2 images, not {n}: two classes are "
                "needed."
            )
        index = torch.arange(n)
        labels = index % len(self.silhouettes)
        images = (255 * self.render(labels, self.draw(split, index))).round_().to(torch.uint8)
        return ImageSet(images, labels, self.silhouettes, "shapes")


EASY = Shapes(
    ("disc", "triangle", "cross", "ring", "bar"),
    position=0.1,
    scale=(0.45, 0.6),
    rotation=10.0,
    hue=0.2,
    background=0.2,
)


def _rgb(colours: Tensor) -> Tensor:
    """Convert (..., 3) hue in turns, saturation and value to RGB.

    Channel n is v - v s clamp(min(k, 4 - k), 0, 1), with k = (n + 6 h) mod 6 and n = 5, 3, 1.
    """
    hue, saturation, value = (channel[..., None] for channel in colours.unbind(-1))
    k = (torch.tensor([5.0, 3.0, 1.0], device=colours.device) + 6 * hue) % 6
    return value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1)


def _grain(names: Int64[Tensor, "N"], shape: torch.Size) -> Tensor:
    """Draw standard normal numbers by Box and Muller, one for each pixel of each image.

    Each number takes 16 bits, and each word of Philox gives eight numbers.
    """
    pixels = shape.numel()
    blocks = torch.arange(-(-pixels // 8), device=names.device)
    words = torch.stack(
        Key(0)
        .named("grain")
        .at((names >> 32)[:, None], (names & 0xFFFFFFFF)[:, None], blocks)
        .words(),
        -1,
    )
    radius = (-2 * torch.log(((words >> 16) + 1).float() * 2.0**-16)).sqrt()
    angle = (words & 0xFFFF).float() * (2 * torch.pi * 2.0**-16)
    return (
        torch.cat([radius * angle.cos(), radius * angle.sin()], -1)
        .flatten(1)[:, :pixels]
        .view(-1, *shape)
    )
