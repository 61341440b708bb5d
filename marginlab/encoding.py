"""Features of images and of their views, in batches, from any encoder.

    encode(f, x)_n = f(x_n),     with flip  f(x_n) + f(mirror of x_n)
    encode_views(f, x, A)_nv = f(A_v(x_n))

An encoder is a method of marginlab, a module, or any function of images (B, 3, H, W) in [0, 1]. It
is called without a graph and in evaluation mode. Afterwards each part is in the mode it was in
before. It is called a batch at a time, so memory is that of the features and of one batch.

Source of the sum, which is not normalised: the evaluation that goes with ArcFace, Deng et al. 2019.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from marginlab.data.streaming import Streamed, batches

Images = UInt8[Tensor, "N 3 H W"] | Float[Tensor, "N 3 H W"] | Streamed
"""Images as bytes or as numbers in [0, 1], on any device, or read when they are needed."""


@runtime_checkable
class Encodes(Protocol):
    """An object whose `encode` returns the features, as a method of marginlab does."""

    def encode(self, images: Tensor, /) -> Tensor:
        """Return features (B, ...) of images (B, 3, H, W) in [0, 1]."""


@runtime_checkable
class Modular(Protocol):
    """An object made of modules, as a torch module is."""

    def modules(self) -> Iterator[nn.Module]:
        """Yield the object itself and all its parts."""


@runtime_checkable
class Draw(Protocol):
    """A function that draws views, as `functools.partial(augmentation.views, seed=0)` does."""

    def __call__(self, images: Tensor, /, *, index: Tensor, n_views: int) -> Tensor:
        """Return views (B, V, 3, H, W) in [0, 1] of the images with these indices."""


Encoder = Callable[[Tensor], Tensor] | Encodes


def encode(
    encoder: Encoder,
    images: Images,
    *,
    flip: bool = False,
    batch: int = 512,
    device: torch.device | str | None = None,
) -> Float[Tensor, "N *F"]:
    """Return the features of all images, not normalised, in the order of the images.

    Args:
        encoder: A method of marginlab, whose `encode` is called; a module; or a function. The
            modules that a function names are put into evaluation mode, but none hidden inside other
            objects.
        images: Bytes in [0, 255], numbers in [0, 1], or streamed: `images` of an `ImageSet`.
        flip: Sum the features of an image and of its mirror image. A feature map (C, h, w) of the
            mirror image is mirrored back first.
        batch: Number of images that are encoded at a time. With flip, their mirror images come on
            top.
        device: Where the encoder runs. By default it is where its first parameter is, or, if it has
            none, where the images are.

    Returns:
        Features (N, D), or whatever shape the encoder gives, on that device.

    Raises:
        ValueError: Images have another shape, type or range; there are none; a batch has fewer than
            one image; or the encoder does not give a floating-point row for each image, or its rows
            cannot be mirrored.

    Example:
        >>> from marginlab.models import Backbone
        >>> backbone = Backbone("resnet18", stem="strided", width=0.25)
        >>> images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
        >>> encode(backbone, images, flip=True).shape, encode(backbone.feature_map, images).shape
        (torch.Size([5, 128]), torch.Size([5, 128, 2, 2]))
    """
    _check(images, batch)

    def rows(held: Tensor, _: Tensor) -> Tensor:
        features = ask(held)
        return features + _mirrored(ask(held.flip(-1)), features.shape) if flip else features

    with _asking(encoder, images, device) as ask:
        return _gather(images, batch, rows)


def encode_views(
    encoder: Encoder,
    images: Images,
    draw: Draw,
    n_views: int,
    *,
    batch: int = 512,
    device: torch.device | str | None = None,
) -> Float[Tensor, "N V *F"]:
    """Return the features of views of all images, not normalised, in the order of the images.

    Args:
        encoder: As in `encode`.
        images: As in `encode`.
        draw: Draws the views: `functools.partial(augmentation.views, seed=0, identity=True)`. It
            gets the images of a batch on the encoder's device, their indices as `index`, and V.
        n_views: Number V of views of each image.
        batch: Number of views that are encoded at a time, or the V of one image if these are more.
        device: As in `encode`.

    Returns:
        Features (N, V, D), or (N, V) and whatever shape the encoder gives.

    Raises:
        ValueError: As for `encode`; or there is fewer than one view, or views have another shape.

    Example:
        >>> from marginlab.augment import Augmentation
        >>> draw = functools.partial(Augmentation("ad").views, seed=0, identity=True)
        >>> images = torch.rand(5, 3, 8, 8)
        >>> features = encode_views(nn.Flatten(), images, draw, n_views=3)
        >>> features.shape, bool((features[:, 0] == images.flatten(1)).all())
        (torch.Size([5, 3, 192]), True)
    """
    _check(images, batch)
    if n_views < 1:
        raise ValueError(f"An image has 1 view or more, not {n_views}.")

    def rows(held: Tensor, index: Tensor) -> Tensor:
        views = draw(held.to(ask.device), index=index, n_views=n_views)
        if views.ndim != 5 or views.shape[:2] != (len(held), n_views):
            raise ValueError(
                f"Views of {len(held)} images are of shape ({len(held)}, {n_views}, 3, H, W), not "
                f"{tuple(views.shape)}. Give what draws them for (images, index=..., n_views=...)."
            )
        features: Tensor = ask(views.flatten(0, 1)).unflatten(0, (-1, n_views))
        return features

    with _asking(encoder, images, device) as ask:
        return _gather(images, max(1, batch // n_views), rows)


def check_range(images: Tensor) -> None:
    """Check that images are in [0, 1], with a tolerance; the one check for all encoding.

    Views and images that are searched for may leave [0, 1] by rounding, by an interpolation that
    overshoots, or by a step. Pixels with a mean subtracted leave it further, and so do bytes.

    Args:
        images: Floating-point images (B, 3, H, W), at least one. On a GPU the check waits for them.

    Raises:
        ValueError: A pixel is below -0.5 or above 1.5, or NaN.

    Example:
        >>> check_range(torch.full((1, 3, 2, 2), 1.0001))
    """
    low, high = (float(bound) for bound in images.detach().aminmax())
    if not (low >= -0.5 and high <= 1.5):
        raise ValueError(
            f"Images {tuple(images.shape)} are in [0, 1], not in [{low:g}, {high:g}]. Give bytes "
            "as uint8 or divide them by 255; normalisation is the encoder's."
        )


@contextlib.contextmanager
def evaluating(*modules: Modular) -> Iterator[None]:
    """Put modules into evaluation mode, and restore the mode of each part afterwards.

    The modes are restored even after an error. A frozen batch normalisation stays frozen.
    `module.train()` would unfreeze it.
    """
    before = [(part, part.training) for module in modules for part in module.modules()]
    for part, _ in before:
        part.training = False
    try:
        yield
    finally:
        for part, training in reversed(before):
            part.training = training


class _Ask:
    """An encoder on its device."""

    def __init__(
        self, function: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype
    ):
        self.function, self.device, self.dtype = function, device, dtype

    def __call__(self, images: Tensor) -> Tensor:
        given = images.to(self.device)
        if given.dtype == torch.uint8:
            given = given.to(self.dtype) / 255
        else:
            check_range(given)
            given = given.to(self.dtype)
        found: Any = self.function(given.contiguous(memory_format=torch.channels_last))
        fits = isinstance(found, Tensor) and found.ndim > 1 and found.is_floating_point()
        if not fits or len(found) != len(images):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"An encoder gives {len(images)} images {len(images)} rows of floating-point "
                f"features, not {shape}. Give one that returns them alone."
            )
        features: Tensor = found
        return features


@contextlib.contextmanager
def _asking(
    encoder: Any, images: Tensor | Streamed, device: torch.device | str | None = None
) -> Iterator[_Ask]:
    """Yield a checked function of images to features, in evaluation mode and without a graph."""
    function = encoder.encode if isinstance(encoder, Encodes) else encoder
    if not callable(function) or isinstance(encoder, str):
        kind = type(encoder).__name__
        raise ValueError(f"An encoder is a module or a function of images, not a {kind}.")
    modules = list(_modules(encoder))
    first = next((p for module in modules for p in _tensors(module)), None)
    where = images.device if first is None else first.device
    dtype = torch.float32 if first is None else first.dtype
    with evaluating(*modules), torch.no_grad():
        yield _Ask(function, torch.device(device or where), dtype)


def _gather(
    images: Tensor | Streamed, batch: int, rows: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return the rows of all images, made a batch at a time, in one tensor."""
    N = images.shape[0]
    out: Tensor | None = None
    with contextlib.closing(batches(images, torch.arange(N).split(batch))) as parts:
        for index, held in parts:
            found = rows(held, index)
            if out is None:
                out = found.new_empty(N, *found.shape[1:])
            out[index[0] : index[-1] + 1] = found
    assert out is not None, "there is an image"
    return out


def _check(images: Any, batch: int) -> None:
    if not isinstance(images, Tensor | Streamed):
        kind = type(images).__name__
        raise ValueError(
            f"Images are a tensor or streamed, not of type {kind}. Of an image set give its "
            "`images`, of an array torch.from_numpy(array)."
        )
    if len(images.shape) != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(
            f"Images are of shape (N, 3, H, W), not {tuple(images.shape)}. Permute the axes, or "
            "repeat a grey channel."
        )
    if isinstance(images, Tensor) and not (
        images.dtype == torch.uint8 or images.is_floating_point()
    ):
        raise ValueError(
            f"Images are bytes (uint8) or floating-point numbers in [0, 1], not {images.dtype}."
        )
    if batch < 1:
        raise ValueError(f"A batch has 1 image or more, not {batch}.")


def _mirrored(found: Tensor, shape: torch.Size) -> Tensor:
    """Return features of mirror images in the form in which they are added to those of the images.

    `shape` is the shape of the images' features. Feature maps are mirrored back.
    """
    if len(shape) == 3:
        raise ValueError(
            f"Features {tuple(shape)} are neither (B, D) nor maps (B, C, h, w), and no mirror "
            "image of them is known. Take flip=False."
        )
    return found.flip(-1) if len(shape) == 4 else found


def _modules(encoder: Any) -> Iterator[nn.Module]:
    """Yield the modules of an encoder: itself, its object, or those that a function names."""
    if isinstance(encoder, nn.Module):
        yield encoder
    elif isinstance(encoder, functools.partial):
        for part in (encoder.func, *encoder.args, *encoder.keywords.values()):
            yield from _modules(part)
    elif inspect.ismethod(encoder):
        yield from _modules(encoder.__self__)
    elif inspect.isfunction(encoder):
        names = inspect.getclosurevars(encoder)
        yield from _only(names.nonlocals.values())
        yield from _only(names.globals.values())
    elif hasattr(encoder, "__dict__") and not inspect.isclass(encoder):
        yield from _only(vars(encoder).values())


def _only(values: Iterable[Any]) -> Iterator[nn.Module]:
    return (value for value in values if isinstance(value, nn.Module))


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield a module's floating-point parameters and, after these, its buffers."""
    for part in (module.parameters(), module.buffers()):
        yield from (tensor for tensor in part if tensor.is_floating_point())
