"""A recipe: everything that decides what is trained.

Two runs of one recipe give the same numbers, bit for bit, on one kind of processor with one number
of threads and one set of versions. Another processor or another number of threads adds in another
order. In a short training this moves the result as far as another seed does: `studies/README.md`
has the numbers. A run records in `machines.csv` where it was computed, a study in `times.csv`.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from marginlab import augment, methods, models, optim, settings
from marginlab.rng import Key
from marginlab.settings import Choice, SettingsError
from marginlab.train.precision import AUTO, PRECISIONS

AT_HAND = "at hand"  # the data of a recipe whose images were given to `fit`


@dataclass(frozen=True)
class Recipe:
    """Settings of one training: the data, the method, the optimizer and the schedule.

    A choice among classes is a string in call notation. From Python it may be an object, whose
    text is kept: `optimizer=SGD(lr=0.1)`. A backbone and a method get more arguments at training,
    and weights, so they are given as the class, or as the class with its arguments:
    `method=functools.partial(SimCLR, temperature=0.1)`.

    `Recipe()` is the paper's SimCLR (Huang et al. 2023, section 5), except for its data.

    Example:
        >>> from functools import partial
        >>> Recipe(method=partial(methods.SimCLR, temperature=0.1), optimizer=optim.LARS()).method
        'SimCLR(temperature=0.1)'
    """

    data: str = "shapes"
    """Name of a data set for `marginlab.data.load`: shapes, cifar10, npz:PATH, folder:PATH, ...

    It is "at hand" in the record of a run whose images were given to `fit`.
    """
    image_size: int = 0
    """Resize images to this side; 0 keeps their own."""
    images: int = 0
    """Train on a class-balanced choice of so many images; 0 takes all."""
    augmentation: Choice[augment.Augmentation] = "Augmentation('abcde', strength=0.5)"
    """An augmentation of marginlab.augment.

    A list of single operations may hold operations of your own:
    "Augmentation(('ResizedCrop()', 'package.module:Mine(p=0.5)'))".
    """
    backbone: Choice[nn.Module] = "Backbone('resnet18', stem='cifar')"
    """A class of marginlab.models, or a module of your own: "package.module:Net(depth=3)"."""
    method: Choice[methods.Method] = "SimCLR(temperature=0.5)"
    """A class of marginlab.methods, or a Method of your own: "package.module:Mine(size=2)"."""
    optimizer: Choice[optim.OptimizerSettings] = "SGD(lr=0.06, momentum=0.9, weight_decay=0.0005)"
    """An optimizer of marginlab.optim."""
    schedule: Choice[optim.Schedule] = "WarmupCosine(warmup=0.05)"
    """A schedule of marginlab.optim."""
    epochs: int = 200
    """Passes over the images. The last, incomplete batch of each pass is left out."""
    batch: int = 512
    """Images of one optimizer step, over all ranks and micro-batches.

    They divide evenly among the ranks and micro-batches.
    """
    accumulate: int = 1
    """Micro-batches of a step.

    A contrastive loss takes its negatives from one micro-batch only. The loss of a margin
    classifier is that of the whole batch; margins with averages use the averages of earlier steps.
    Layers that normalise by the batch see one micro-batch.
    """
    clip: float = 0.0
    """Largest norm of the gradient; 0 does not clip.

    The norm is over all shared parameters together, without sampled class centers.
    """
    precision: str = "float32"
    """Number format: "float32", "bfloat16" (by autocast) or "auto".

    "auto" takes bfloat16 where a probe finds it at least 1.15 times faster.
    """
    compile: bool = False
    """Compile the forward pass with torch.compile."""
    seed: int = 0
    """Seed of weights, order and views."""
    start: str = ""
    """A run folder, or one of its checkpoints, to take the initial weights from.

    Without it the initial weights are drawn. Class centers are those of the classes of the same
    name, or of the same number where no name is common; those of other classes are drawn. If that
    run had more sub-centers, the dominant ones are taken: those that most training images vote for.
    """

    def __post_init__(self) -> None:
        if hasattr(self.data, "images") and hasattr(self.data, "labels"):
            raise SettingsError(
                "data is the name of a set, since a recipe is a text that trains the same again; "
                f"here it is a {type(self.data).__name__} of {len(self.data)} images. Give images "
                "at hand to fit(recipe, folder, data=(train, test)). Or write them to a file and "
                "name it: numpy.savez('own.npz', images=..., labels=...), images (N, H, W, 3) "
                "uint8, and data='npz:own.npz'."
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
                "micro-batches. Change batch or accumulate."
            )
        if self.batch // self.accumulate < 2:
            raise SettingsError(
                f"Micro-batches have at least 2 images, not {self.batch} / {self.accumulate} = 1. "
                "Make accumulate smaller."
            )
        if self.precision not in (AUTO, *PRECISIONS):
            near = settings.nearest(self.precision, (AUTO, *PRECISIONS))
            raise SettingsError(f"There is no precision {self.precision!r}: {near}")
        self.make_augmentation()
        self.make_optimizer()
        self.make_schedule()

    def make_augmentation(self) -> augment.Augmentation:
        """Make the augmentation of training views."""
        return settings.make(self.augmentation, augment, augment.Augmentation)

    def make_optimizer(self) -> optim.OptimizerSettings:
        """Make the function that maps parameters to their optimizer."""
        return settings.make(self.optimizer, optim, optim.OptimizerSettings)

    def make_schedule(self) -> optim.Schedule:
        """Make the function that maps (step, steps) to the factor on the learning rate."""
        return settings.make(self.schedule, optim, optim.Schedule)

    def make_method(self, num_classes: int = 2) -> methods.Method:
        """Make the untrained method.

        Its weights are a function of the seed. torch's global generator keeps its state.

        Args:
            num_classes: Number of classes of the data, for methods that own class centers. Two are
                enough to see whether the settings make a method.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(Key(self.seed).named("weights").word())
            backbone = self._make_backbone()
            offered = {"num_classes": num_classes}
            made = settings.make(self.method, methods, methods.Method, backbone, offered=offered)
        if self.accumulate > 1 and made.undivided:
            raise SettingsError(
                f"accumulate = {self.accumulate} takes a step in parts, but {made.undivided}"
            )
        return made

    def _make_backbone(self) -> models.Backbone:
        if settings.OWN.fullmatch(str(self.backbone)) is None:
            return settings.make(self.backbone, models, models.Backbone)
        net = settings.make(self.backbone, models, nn.Module)
        try:
            return models.OwnBackbone(net)
        except ValueError as error:
            raise SettingsError(f"{self.backbone!r} is not a backbone: {error}") from error


def recipe_of(run: Path) -> Recipe:
    """Read the recipe of a run folder, or of one of its checkpoints, as data.

    Raises:
        FileNotFoundError: The folder holds no recipe.
        SettingsError: The recipe is broken, or names code that no one allowed.
    """
    if not (run / "recipe.toml").is_file():
        raise FileNotFoundError(f"{run} holds no recipe.toml, so it is no run. Give its folder.")
    with settings.as_data():
        return settings.read(Recipe, run / "recipe.toml")
