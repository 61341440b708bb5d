"""A recipe: everything that decides what is trained.

Two runs of one recipe give the same numbers, bit for bit, on one kind of processor with one number
of threads and one set of versions. Another processor or number of threads adds in another order,
and a short training carries that as far as another seed: `studies/README.md` has the numbers.
A run says in `machines.csv` where it was computed, a study in `times.csv`.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from marginlab import augment, methods, models, optim, settings
from marginlab.rng import Key
from marginlab.settings import SettingsError
from marginlab.train.precision import AUTO, PRECISIONS


@dataclass(frozen=True)
class Recipe:
    """What to train, on what, how. Choices among classes are strings in call notation.

    `Recipe()` is the paper's SimCLR (Huang et al. 2023, section 5) but for its data.
    """

    data: str = "shapes"
    """What `marginlab.data.load` knows: shapes, cifar10, npz:PATH, folder:PATH, ..."""
    image_size: int = 0
    """Resize images to this side; 0 keeps their own."""
    images: int = 0
    """Train on a class-balanced choice of so many images; 0 takes all."""
    augmentation: str = "Augmentation('abcde', strength=0.5)"
    """A class of marginlab.augment. Among operations given one by one may be some of one's own:
    "Augmentation(('ResizedCrop()', 'package.module:Mine(p=0.5)'))"."""
    backbone: str = "Backbone('resnet18', stem='cifar')"
    """A class of marginlab.models, or a module of one's own: "package.module:Net(depth=3)"."""
    method: str = "SimCLR(temperature=0.5)"
    """A class of marginlab.methods, or a Method of one's own: "package.module:Mine(size=2)"."""
    optimizer: str = "SGD(lr=0.06, momentum=0.9, weight_decay=0.0005)"
    """A class of marginlab.optim."""
    schedule: str = "WarmupCosine(warmup=0.05)"
    """A schedule of marginlab.optim."""
    epochs: int = 200
    """Passes over the images; the last, incomplete batch of each is left out."""
    batch: int = 512
    """Images of one optimizer step, over all ranks and micro-batches, among which they divide
    evenly.
    """
    accumulate: int = 1
    """Micro-batches of a step.

    A contrastive loss takes its negatives from one micro-batch only; that of a margin classifier is
    the whole batch's, for margins with averages by those of earlier steps. Layers that normalise by
    the batch see one micro-batch.
    """
    clip: float = 0.0
    """Largest norm of the gradient of all shared parameters together (not of sampled class
    centers); 0 does not clip.
    """
    precision: str = "float32"
    """float32; bfloat16, by autocast; or auto: bfloat16 where a probe finds it at least 1.15 times
    faster.
    """
    compile: bool = False
    """Compile the forward pass with torch.compile."""
    seed: int = 0
    """Seed of weights, order and views."""
    start: str = ""
    """A run folder, or a checkpoint of one, whose weights are the first ones instead of drawn ones.

    Of another number of classes the centers that both have are kept, class by class in their order,
    and the others are drawn.
    """

    def __post_init__(self) -> None:
        if hasattr(self.data, "images") and hasattr(self.data, "labels"):
            raise SettingsError(
                "data is the name of a set, since a recipe is a text that trains the same again; "
                f"here it is a {type(self.data).__name__} of {len(self.data)} images. Write them "
                "to a file and name it: numpy.savez('own.npz', images=..., labels=...), "
                "images (N, H, W, 3) uint8, and data='npz:own.npz'."
            )
        settings.check(self)
        for name, least in (
            ("epochs", 1),
            ("batch", 2),
            ("accumulate", 1),
            ("images", 0),
            ("image_size", 0),
            ("seed", 0),
            ("clip", 0),
        ):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} is at least {least}, not {getattr(self, name)}.")
        if not self.clip < math.inf:
            raise SettingsError("clip is a finite norm, and 0 does not clip; not inf.")
        for name in ("epochs", "batch", "accumulate", "images", "image_size", "seed"):
            if getattr(self, name) >= 1 << 63:
                raise SettingsError(f"{name} is below 2**63, not {getattr(self, name)}.")
        if self.batch % self.accumulate:
            raise SettingsError(
                f"A batch of {self.batch} does not fall into {self.accumulate} equal "
                f"micro-batches. Change batch or accumulate."
            )
        if self.batch // self.accumulate < 2:
            raise SettingsError(
                f"Micro-batches have at least 2 images, not {self.batch} / "
                f"{self.accumulate} = 1. Make accumulate smaller."
            )
        if self.precision not in (AUTO, *PRECISIONS):
            near = settings.nearest(self.precision, (AUTO, *PRECISIONS))
            raise SettingsError(f"There is no precision {self.precision!r}: {near}")
        self.make_augmentation()
        self.make_optimizer()
        self.make_schedule()

    def make_augmentation(self) -> augment.Augmentation:
        """Make the augmentation of training views."""
        made: augment.Augmentation = settings.call(self.augmentation, augment)
        if not hasattr(made, "views"):
            raise SettingsError(
                f"{self.augmentation!r} is one operation; put it into Augmentation(...)."
            )
        return made

    def make_optimizer(self) -> methods.MakeOptimizer:
        """Make the function from parameters to their optimizer."""
        kind = getattr(optim, self.optimizer.partition("(")[0].strip(), None)
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
            raise SettingsError(
                f"{self.optimizer!r} is made by a method for its class centers. A recipe "
                f"takes SGD(...) or AdamW(...), whose values they get."
            )
        made = settings.call(self.optimizer, optim)
        if isinstance(made, optim.Schedule):
            raise SettingsError(f"{self.optimizer!r} is a schedule, not an optimizer.")
        return made  # type: ignore[no-any-return]

    def make_schedule(self) -> Any:
        """Make the function from (step, steps) to the factor on the learning rate."""
        made = settings.call(self.schedule, optim)
        if not isinstance(made, optim.Schedule):
            raise SettingsError(f"{self.schedule!r} is an optimizer, not a schedule.")
        return made

    def make_method(self, num_classes: int = 2) -> methods.Method:
        """Make the untrained method; its weights are a function of the seed and leave torch's
        global generator as it was.

        num_classes: of the data, for methods that own class centers. Two are enough to see whether
            the settings make a method.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(Key(self.seed).named("weights").word())
            backbone = settings.call(self.backbone, models, kind=nn.Module)
            if settings.OWN.fullmatch(self.backbone) is not None:
                try:
                    backbone = models.OwnBackbone(backbone)
                except ValueError as error:
                    raise SettingsError(f"{self.backbone!r} is not a backbone: {error}") from error
            if not isinstance(backbone, models.Backbone):
                raise SettingsError(f"{self.backbone!r} is not a backbone.")
            offered = {"num_classes": num_classes}
            made: methods.Method = settings.call(
                self.method, methods, backbone, kind=methods.Method, offered=offered
            )
        if self.accumulate > 1 and made.undivided:
            raise SettingsError(
                f"accumulate = {self.accumulate} takes a step in parts, but {made.undivided}"
            )
        return made
