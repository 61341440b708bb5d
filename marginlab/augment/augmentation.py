"""An augmentation as a set of views, sampled by counters: A(x) of Huang et al. (ICLR 2023).

    view v of image i = blur(grey(jitter(flip(crop(x_i)))))

See section 2 of the paper. Each operation takes the parameters drawn for (seed, i, v, operation).

An operation draws the same in every augmentation it is part of, so nested sets share their draws.
Where the coin of an additional operation came up false, the view is the one of the smaller set, bit
for bit. Nothing depends on the batch, the worker or the rank.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab import settings
from marginlab.augment import operations
from marginlab.augment.blur import GaussianBlur
from marginlab.augment.color import ColorJitter, Grayscale
from marginlab.augment.geometry import HorizontalFlip, ResizedCrop
from marginlab.augment.images import Images, check_images, floating
from marginlab.augment.operation import Operation, Searchable
from marginlab.augment.pieces import in_threads, map_fields, similar_pieces
from marginlab.rng import Key
from marginlab.settings import SettingsError

COMPOSITION = (ResizedCrop, HorizontalFlip, ColorJitter, Grayscale, GaussianBlur)
# bytes of images that go through the operations at once: what a CPU's cache holds, what fills a
# device
PIECE = {"cpu": 2**20, "cuda": 2**27}


def _letters(strength: float, jitter_p: float) -> dict[str, Operation]:
    """Return the paper's operations by its letters."""
    return {
        "a": ResizedCrop(),
        "b": GaussianBlur(),
        "c": Grayscale(),
        "d": ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength, jitter_p),
        "e": HorizontalFlip(),
    }


@dataclass(frozen=True, repr=False)
class Augmentation:
    """A set of views of an image, from which any view can be drawn again alone.

    Args:
        operations: Letters of the paper: (a) resized crop, (b) blur, (c) grey, (d) colour jitter,
            (e) flip; "" leaves images as they are. Or a sequence of operations, as objects or in
            call notation. They are composed in the order crop, flip, jitter, grey, blur, whatever
            order they are named in. Other operations come after these five, in the order given.
        strength: The s of letter d: brightness, contrast and saturation by 0.8 s, hue by 0.2 s
            turns.
        jitter_p: Probability of letter d; the paper's experiment on strength has 1.

    Raises:
        SettingsError: An unknown or repeated letter or operation, or a parameter out of its range.

    Example:
        >>> images = torch.rand(4, 3, 32, 32)
        >>> views = Augmentation("ad", strength=0.5).views(images, n_views=3, seed=0)
        >>> views.shape
        torch.Size([4, 3, 3, 32, 32])
        >>> index = torch.tensor([2])
        >>> alone = Augmentation("ad").views(images[2:3], index=index, n_views=1, first_view=1)
        >>> bool((alone[0, 0] == views[2, 1]).all())
        True
    """

    operations: str | Sequence[Operation | str] = "abcde"
    strength: float = 0.5
    jitter_p: float = 0.8

    def __post_init__(self) -> None:
        if isinstance(self.operations, str):
            object.__setattr__(self, "operations", "".join(sorted(self.operations)))
        else:
            object.__setattr__(
                self, "operations", tuple(_operation(item) for item in self.operations)
            )
        if not 0 <= self.strength <= 2.5:
            raise SettingsError(
                f"strength is in [0, 2.5], where hue reaches half a turn, not {self.strength}."
            )
        names = [type(operation).__name__ for operation in self.composed]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise SettingsError(
                f"{repeated[0]} is named twice: an augmentation does an operation once, for its "
                "draws are named by the operation."
            )

    def __repr__(self) -> str:
        if isinstance(self.operations, str):
            return settings.describe(
                "Augmentation",
                operations=self.operations,
                strength=self.strength,
                jitter_p=self.jitter_p,
            )
        return settings.describe(
            "Augmentation",
            operations=tuple(settings.named_repr(operation) for operation in self.operations),
        )

    @cached_property
    def composed(self) -> tuple[Operation, ...]:
        """The operations in the order they are applied."""
        table = _letters(self.strength, self.jitter_p)
        if isinstance(self.operations, str):
            for letter in self.operations:
                if letter not in table:
                    raise SettingsError(
                        f"{letter!r} is no operation's letter: {settings.nearest(letter, table)} "
                        "Write such as 'ad'."
                    )
            named = [table[letter] for letter in self.operations]
        else:
            named = [_operation(item) for item in self.operations]
        return tuple(
            sorted(
                named,
                key=lambda o: (
                    COMPOSITION.index(type(o)) if type(o) in COMPOSITION else len(COMPOSITION)
                ),
            )
        )

    def parameters(
        self,
        index: Int[Tensor, " N"],
        views: Int[Tensor, " V"],
        *,
        size: tuple[int, int],
        seed: int = 0,
    ) -> dict[str, tuple[Tensor, ...]]:
        """Draw the parameters of these images and views.

        Args:
            index: (N,) numbers of the images. Keep it on the CPU: then `apply` waits for no device.
            views: (V,) numbers of the views.
            size: (height, width) of the images.
            seed: The seed of all draws.

        Returns:
            By name of the operation, a NamedTuple of (N, V) tensors on the device of `index`.

        Example:
            >>> index, views = torch.arange(5), torch.arange(2)
            >>> drawn = Augmentation("ae").parameters(index, views, size=(32, 32))
            >>> drawn["ResizedCrop"].width.shape, drawn["HorizontalFlip"].on.dtype
            (torch.Size([5, 2]), torch.bool)
        """
        key = Key(seed).named("augment").at(index[:, None], views.to(index.device)[None, :])
        return {type(operation).__name__: operation.draw(key, size) for operation in self.composed}

    def drawn(
        self,
        index: Int[Tensor, " M"],
        view: Int[Tensor, " M"],
        *,
        size: tuple[int, int],
        seed: int = 0,
        identity: bool = True,
    ) -> dict[str, tuple[Tensor, ...]]:
        """Draw the parameters of one view of each of M images, numbered as in `views`.

        Args:
            index: (M,) numbers of the images.
            view: (M,) number of the view of each image.
            size: (height, width) of the images.
            seed: The seed of all draws.
            identity: Make view 0 the image itself. It then has the `unchanged` parameters of each
                operation, which give the image back up to rounding, in or out of the support (x is
                in A(x) even where every draw would change it). Without `identity`, view 0 is draw
                0.

        Returns:
            By name of the operation, a NamedTuple of (M, 1) tensors.

        Raises:
            ValueError: View 0 of an operation that names no parameters for it, or another number of
                views than images.

        Example:
            >>> index, view = torch.tensor([4, 7]), torch.tensor([0, 31])
            >>> best = Augmentation("ad").drawn(index, view, size=(32, 32))
            >>> best["ResizedCrop"].width.shape, best["ResizedCrop"].width[0]
            (torch.Size([2, 1]), tensor([32.]))
        """
        if view.shape != index.shape:
            raise ValueError(
                f"view holds one number for each of {len(index)} images, but has the shape "
                f"{tuple(view.shape)}."
            )
        view = view.to(index.device)[:, None]
        key, itself = Key(seed).named("augment").at(index[:, None], view), view == 0
        out = {type(operation).__name__: operation.draw(key, size) for operation in self.composed}
        for operation in self.composed if identity and bool(itself.any()) else ():
            name = type(operation).__name__
            if not isinstance(operation, Searchable):
                raise ValueError(
                    f"{name} does not say which parameters leave an image as it is, so that view 0 "
                    "could be the image itself. Pass identity=False, or give it the methods of "
                    "marginlab.augment.operation.Searchable."
                )
            same = operation.unchanged((len(index), 1), size)
            out[name] = type(out[name])(
                *(torch.where(itself, s.to(d), d) for s, d in zip(same, out[name], strict=True))
            )
        return out

    def apply(
        self, images: Images, parameters: Mapping[str, tuple[Tensor, ...]]
    ) -> Float[Tensor, "N V 3 H W"]:
        """Make the views of these parameters; differentiable in them where the operations are.

        Args:
            images: (N, 3, H, W), uint8 or floating in [0, 1].
            parameters: By name of the operation, (N, V) tensors: drawn by `parameters`, stored, or
                searched.

        Raises:
            ValueError, TypeError: Images of a wrong shape, type or range; parameters of other
                operations or other images.
        """
        check_images(images)
        if set(parameters) != {type(operation).__name__ for operation in self.composed}:
            raise ValueError(
                f"Parameters are of {sorted(parameters)}, but the augmentation is {self}."
            )
        shapes = {tuple(field.shape) for drawn in parameters.values() for field in drawn} or {
            (len(images), 1)
        }
        if len(shapes) > 1 or len(next(iter(shapes))) != 2 or next(iter(shapes))[0] != len(images):
            raise ValueError(
                f"Parameters have one shape (N, V) with N = {len(images)} images, not "
                f"{sorted(shapes)}."
            )
        V = next(iter(shapes))[1]
        pieces, make = self._pieces(images, parameters, V)
        if not pieces:
            return images.new_empty(len(images), V, *images.shape[1:], dtype=torch.float32)
        made = torch.cat([make(places) for places in pieces])
        return made[torch.cat(pieces).argsort().to(images.device, non_blocking=True)].view(
            len(images), V, *images.shape[1:]
        )

    @torch.no_grad()
    def views(
        self,
        images: Images,
        *,
        index: Int[Tensor, " N"] | None = None,
        n_views: int = 2,
        seed: int = 0,
        identity: bool = False,
        first_view: int = 0,
    ) -> Float[Tensor, "N V 3 H W"]:
        """Make V views of each image: (N, 3, H, W) to (N, V, 3, H, W), float32 in [0, 1].

        Args:
            images: (N, 3, H, W), uint8 or floating in [0, 1], on any device.
            index: Their numbers in their data set, by default 0..N-1; the draws depend on them.
                Best on the CPU, whatever the images' device.
            n_views: V, the number of views of each image.
            seed: The seed of all draws.
            identity: Make view 0 the image itself. The other views are the same as without it:
                draws 1..V-1.
            first_view: The number of view 0: view v is draw first_view + v of its image. Training
                takes first_view = n_views * epoch.

        Raises:
            ValueError, TypeError: Images of a wrong shape, type or range (on a device the range is
                not checked), or an index that does not fit.
        """
        check_images(images)
        if n_views < 1 or first_view < 0:
            raise ValueError(
                f"n_views is at least 1 and first_view at least 0, not {n_views} and {first_view}."
            )
        index = torch.arange(len(images)) if index is None else index
        if index.shape != (len(images),):
            raise ValueError(
                f"index holds one number for each of {len(images)} images, but has the shape "
                f"{tuple(index.shape)}."
            )
        first = int(identity)
        drawn = torch.arange(first_view + first, first_view + n_views)
        parameters = self.parameters(
            index, drawn, size=(images.shape[2], images.shape[3]), seed=seed
        )
        out = torch.empty(len(images), n_views, *images.shape[1:], device=images.device)
        if identity:
            out[:, 0] = floating(images)
        pieces, make = self._pieces(images, parameters, n_views - first)

        @torch.no_grad()
        def write(places: Tensor) -> None:
            # each image's own place comes before those of its views
            there = places + places // (n_views - first) * first + first
            out.flatten(0, 1)[there.to(images.device, non_blocking=True)] = make(places)

        in_threads(write, pieces, images.device)
        return out

    def _pieces(
        self, images: Tensor, parameters: Mapping[str, tuple[Tensor, ...]], V: int
    ) -> tuple[list[Tensor], Callable[[Tensor], Tensor]]:
        """Split all places in (N * V) into pieces of at most `PIECE` bytes; return a maker, too.

        The second value makes the views of given places.
        """
        drawn = [
            (
                operation,
                map_fields(lambda field: field.reshape(-1), parameters[type(operation).__name__]),
            )
            for operation in self.composed
        ]
        rows = max(
            1,
            PIECE["cpu" if images.device.type == "cpu" else "cuda"]
            // (4 * max(images[:1].numel(), 1)),
        )

        def make(places: Tensor) -> Tensor:
            pixels = floating(
                images.index_select(0, (places // V).to(images.device, non_blocking=True))
            )
            for operation, fields in drawn:
                pixels = operation.apply(
                    pixels, map_fields(lambda field: field[places.to(field.device)], fields)
                )
            return pixels

        return similar_pieces(
            [field for _, fields in drawn for field in fields], len(images) * V, rows
        ), make


def _operation(item: object) -> Operation:
    return settings.make(item, operations, Operation)
