"""Images that a trained network embeds as wanted, by gradient descent on their pixels.

    I_0 ~ N(0, 1);   I <- Adam(I, d total / d I)
    total = identity(I) + 0.05 BN(I) + 1e-3 TV(I) + 1e-4 ||I||

The network stays as it is. Targets are classes, whose identity term is the loss of the network's
own classifier (closed set), or embeddings (open set). The images of a batch are made together,
since the term of batch normalisation is about the statistics of a batch.

Source: Deng et al. 2022 (ArcFace), section 3.3 and Algorithm 1.
"""

import hashlib
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn

from marginlab import files
from marginlab.data.sheet import contact_sheet, encode_picture
from marginlab.inversion.network import Network
from marginlab.inversion.settings import InversionSettings
from marginlab.inversion.statistics import (
    ChannelStatistics,
    Spread,
    StatisticsTerm,
    stored_statistics,
)
from marginlab.inversion.terms import (
    ClassTerm,
    EmbeddingTerm,
    Variation,
    pixel_norm,
    total_variation,
)
from marginlab.rng import Key
from marginlab.settings import SettingsError, replaced

TERMS = ("identity", "batch_norm", "total_variation", "l2")
CHECK_EVERY = 20  # steps: a look at the terms makes the host wait for the device
STATE = "inversion.pt"


class Inversion(NamedTuple):
    """Generated images.

    Attributes:
        images: (N, 3, H, W) in [0, 1], in the order of the targets.
        embeddings: (N, D) embeddings of these images by the network, whose pixels are in [0, 1].
        terms: (batches, steps, 4) values of the terms, without their weights, in the order of
            `names`.
        names: Names of the terms.
    """

    images: Float32[Tensor, "N 3 H W"]
    embeddings: Float[Tensor, "N D"]
    terms: Float32[Tensor, "batches steps 4"]
    names: tuple[str, ...] = TERMS


def invert(
    model: nn.Module,
    targets: Int[Tensor, " N"] | Float[Tensor, "N D"],
    settings: InversionSettings | None = None,
    *,
    size: int,
    head: Callable[[Tensor, Tensor], Tensor] | None = None,
    statistics: Mapping[str, ChannelStatistics] | None = None,
    folder: Path | str | None = None,
    save_every: int = 50,
    say: Callable[[int, dict[str, float]], None] | None = None,
    **changes: Any,
) -> Inversion:
    """Generate an image for each target, from the network alone.

    Args:
        model: A trained method of marginlab, or a module that maps images in [0, 1] to embeddings.
        targets: (N,) classes of the network's classifier, or (N, D) embeddings.
        settings: Weights and steps; by default `InversionSettings()`.
        size: Side of the images in pixels, as the network was trained on.
        head: The classifier of a module, (embeddings, labels) to a mean loss, where targets are
            classes. A `MarginClassifier` has its own.
        statistics: Channel statistics to reach; by default those that the network stores.
        folder: Where the state is kept every `save_every` steps, with a picture. A second call
            with the same arguments goes on from there, and ends with the same images.
        save_every: Steps between two states.
        say: Is called with the steps done in all and the terms of the last one: every 20 steps of a
            batch, at each state, and at the end of a batch.
        changes: Single settings to replace, such as `steps=500`.

    Raises:
        SettingsError: A setting cannot be used; targets are classes and there is no classifier; the
            folder holds another inversion.
        ValueError: Targets have a wrong shape, are not finite, or are classes that do not exist;
            the network stores no statistics, and none are given; the network does not embed images
            of this size, or into another dimension than the targets have. The folder is made
            after all of this.
        FloatingPointError: A term or a pixel is not finite. The last state stays, in which all are.

    Example:
        >>> from marginlab.methods import MarginClassifier
        >>> from marginlab.models import Backbone
        >>> backbone = Backbone("resnet18", stem="strided", width=0.125)
        >>> model = MarginClassifier(backbone, 4, dim=8)
        >>> found = invert(model, torch.tensor([0, 3]), size=16, steps=2)
        >>> found.images.shape, found.embeddings.shape
        (torch.Size([2, 3, 16, 16]), torch.Size([2, 8]))
    """
    chosen = replaced(settings or InversionSettings(), changes)
    network = Network(model)
    identity = _identity(network, targets, head, chosen)
    if size < 1 or save_every < 1:
        raise ValueError(f"size and save_every are at least 1, not {size} and {save_every}.")
    if chosen.batch_norm == 0:
        statistics = {}
    elif statistics is None:
        statistics = stored_statistics(model)
    with network.frozen():
        work = _Work(network, identity, chosen, statistics, (len(targets), size))
        work.check_size()
        work.keep_in(Path(folder) if folder is not None else None, _identifier(targets, network))
        work.run(save_every, say)
        images = network.pixels(work.images).clamp(0, 1)
        with torch.no_grad():
            embeddings = torch.cat([network.embed_pixels(part) for part in images.split(256)])
        return Inversion(images.float().cpu(), embeddings.cpu(), work.terms.cpu())


def _identity(
    network: Network, targets: Tensor, head: Any, chosen: InversionSettings
) -> ClassTerm | EmbeddingTerm:
    """Return the identity term of checked targets."""
    if not isinstance(targets, Tensor) or not len(targets):
        raise ValueError("Targets are (N,) classes or (N, D) embeddings of at least one image.")
    if targets.is_floating_point():
        if targets.ndim != 2 or not bool(targets.isfinite().all()):
            raise ValueError(
                f"Target embeddings are (N, D) finite numbers, not {tuple(targets.shape)} with "
                f"{int((~targets.isfinite()).sum())} that are not finite."
            )
        return EmbeddingTerm(targets.to(network.device, network.dtype), unit=chosen.unit)
    if targets.ndim != 1 or targets.dtype == torch.bool:
        raise ValueError(f"Target classes are (N,) integers, not {tuple(targets.shape)}.")
    classifier = head if head is not None else network.classifier()
    if classifier is None:
        raise SettingsError(
            f"{type(network.model).__name__} has no classifier, so classes are no targets. Give "
            "head=..., or the embeddings of images."
        )
    classes = getattr(classifier, "num_classes", None)
    low, high = (int(bound) for bound in targets.aminmax())
    if low < 0 or (classes is not None and high >= classes):
        wrong = low if low < 0 else high
        raise ValueError(f"There is no class {wrong}: classes go from 0 to {classes or '...'} - 1.")
    return ClassTerm(classifier, targets.to(network.device, torch.int64))


def _identifier(targets: Tensor, network: Network) -> str:
    """Return a digest of the targets and the network."""
    held = targets.detach().cpu().contiguous().flatten().view(torch.uint8)
    found = hashlib.sha256(f"{targets.dtype} {tuple(targets.shape)} {network.digest()}".encode())
    found.update(held.numpy().data)
    return found.hexdigest()[:16]


class _Work:
    """The state of an inversion: images, moments of Adam, and the place in the work."""

    def __init__(
        self,
        network: Network,
        identity: ClassTerm | EmbeddingTerm,
        chosen: InversionSettings,
        statistics: Mapping[str, ChannelStatistics],
        shape: tuple[int, int],
    ):
        self.network, self.identity, self.chosen = network, identity, chosen
        self.term = StatisticsTerm(network.model, statistics, spread=cast(Spread, chosen.spread))
        N, size = shape
        self.key = Key(chosen.seed).named("inversion")
        # targets of one kind often stand together, and the statistics are those of a mixture
        order = self.key.named("order").permutation(N)
        self.batches = order.tensor_split(math.ceil(N / chosen.batch))
        image, place = torch.arange(N)[:, None], torch.arange(3 * size * size)[None]
        drawn = self.key.named("start").at(image, place).normal()
        self.images = drawn.view(N, 3, size, size).to(network.device, network.dtype)
        self.terms = torch.zeros(len(self.batches), chosen.steps, len(TERMS), device=network.device)
        self.done = 0
        self.moments: dict[str, Any] | None = None
        self.folder: Path | None = None
        self.identifier = ""

    @torch.no_grad()
    def check_size(self) -> None:
        """Refuse images that the network cannot embed, or cannot compare with the targets."""
        size = self.images.shape[-1]
        try:
            embeddings = self.network.embed(self.images[:1])
        except RuntimeError as error:
            raise ValueError(
                f"The network embeds no images of {size} x {size} pixels: {error}. Give the size "
                "that it was trained on."
            ) from error
        shape = tuple(embeddings.shape)
        if len(shape) != 2 or shape[0] != 1:
            raise ValueError(
                f"The network turns one image into {shape}, not into an embedding (1, D). Pool its "
                "features."
            )
        if isinstance(self.identity, EmbeddingTerm):
            dim = self.identity.targets.shape[1]
            if shape[1] != dim:
                raise ValueError(
                    f"Targets have {dim} dimensions and embeddings of the network {shape[1]}. Give "
                    "embeddings by this network."
                )

    def keep_in(self, folder: Path | None, identifier: str) -> None:
        """Take up what the folder holds of the same work, and refuse any other."""
        self.folder = folder
        self.identifier = f"{identifier} {self.chosen!r} {tuple(self.images.shape)}"
        if folder is None:
            return
        path = folder / STATE
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            return
        try:
            content = io.BytesIO(files.content_of(path))
            held = torch.load(content, map_location="cpu", weights_only=True)
            same = held["identifier"] == self.identifier
        except Exception as error:
            raise SettingsError(
                f"{path} is no state of an inversion ({error}). Choose another folder."
            ) from error
        if not same:
            raise SettingsError(
                f"{folder} holds another inversion: {held['identifier']}; this one is "
                f"{self.identifier}. Choose another folder, or remove that one."
            )
        self.images = held["images"].to(self.images)
        self.terms = held["terms"].to(self.terms)
        self.done, self.moments = held["done"], held["moments"]

    def run(self, save_every: int, say: Callable[[int, dict[str, float]], None] | None) -> None:
        """Make all batches, one after the other."""
        steps = self.chosen.steps
        for number, index in enumerate(self.batches):
            first = number * steps
            if self.done >= first + steps:
                continue
            index = index.to(self.network.device)
            images = self.images[index].requires_grad_()
            optimizer = torch.optim.Adam([images], lr=self.chosen.lr)
            if self.moments is not None:
                optimizer.load_state_dict(self.moments)
            checked = self.done - first
            with self.term:
                for step in range(checked, steps):
                    self.terms[number, step] = self._step(images, index, optimizer, number, step)
                    self.done += 1
                    ended = step + 1 == steps
                    saved = ended or self.done % save_every == 0
                    if not saved and (step + 1) % CHECK_EVERY:
                        continue
                    self._check_finite(images, number, range(checked, step + 1))
                    checked = step + 1
                    if say is not None:
                        values = self.terms[number, step].tolist()
                        say(self.done, dict(zip(TERMS, values, strict=True)))
                    if saved:
                        self.images[index] = images.detach()
                        self.moments = None if ended else optimizer.state_dict()
                        self._save()

    def _check_finite(self, images: Tensor, number: int, steps: range) -> None:
        """Refuse terms of these steps, and images after them, that are not finite."""
        terms = self.terms[number, steps.start : steps.stop]
        if bool(terms.isfinite().all() & images.isfinite().all()):
            return
        wrong = (~terms.isfinite()).nonzero().tolist()
        named = f"the term {TERMS[wrong[0][1]]} is" if wrong else "pixels are"
        step = steps.start + wrong[0][0] if wrong else steps.stop - 1
        raise FloatingPointError(
            f"At step {step} of batch {number} {named} not finite. Lower lr ({self.chosen.lr}); "
            "the last state stays."
        )

    def _step(
        self,
        images: Tensor,
        index: Tensor,
        optimizer: torch.optim.Optimizer,
        number: int,
        step: int,
    ) -> Tensor:
        """Take one step; return the terms without their weights."""
        chosen = self.chosen
        seen = self._moved(images, self.key.named("move").at(number, step))
        embeddings = self.network.embed(seen)
        terms = {
            "identity": self.identity(embeddings, index),
            "batch_norm": self.term.value() if chosen.batch_norm else embeddings.new_zeros(()),
            "total_variation": total_variation(images, cast(Variation, chosen.variation)),
            "l2": pixel_norm(images),
        }
        total = terms["identity"]
        for name in TERMS[1:]:
            total = total + getattr(chosen, name) * terms[name]
        (images.grad,) = torch.autograd.grad(total, [images])
        optimizer.step()
        if chosen.within_range:
            with torch.no_grad():
                images.copy_(self.network.within_range(images))
        return torch.stack([terms[name].detach().float() for name in TERMS])

    def _moved(self, images: Tensor, key: Key) -> Tensor:
        """Shift and mirror the images, as far as the settings say."""
        if self.chosen.jitter:
            draw = key.named("jitter").at(torch.arange(2)).integers(2 * self.chosen.jitter + 1)
            down, across = (draw - self.chosen.jitter).tolist()
            images = images.roll((down, across), (2, 3))
        if self.chosen.flip and bool(key.named("flip").bernoulli(0.5)):
            images = images.flip(3)
        return images

    def _save(self) -> None:
        if self.folder is None:
            return
        held = io.BytesIO()
        state = {
            "identifier": self.identifier,
            "images": self.images.detach().cpu(),
            "terms": self.terms.cpu(),
            "done": self.done,
            "moments": self.moments,
        }
        torch.save(state, held)
        files.write(self.folder / STATE, held.getvalue())
        shown = self.network.pixels(self.images[:64]).float().clamp(0, 1)
        files.write(self.folder / "preview.png", encode_picture(contact_sheet(shown)))
