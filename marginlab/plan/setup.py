"""The sizes of a Partial FC head and its batch, and the sizes of the rank that holds most.

    G = N B rows together,    C_k = ceil(C / N) classes on a rank
    n = max(floor(r C), min(G, C)) sampled classes of all ranks

The sample is one draw without replacement from all classes, and a rank has the sampled classes
within its bounds. Of n drawn from C their number is hypergeometric, with mean m = n C_k / C and
variance m (1 - C_k / C) (C - n) / (C - 1). The plan is for the mean and four standard deviations,
which a rank exceeds once in 30,000 steps or so. The number of distinct labels of a batch is not
known beforehand: the plan is for G.

The kernel's own rule (`marginlab.kernels.margin_softmax`) decides whether the products of all rows
with the sampled classes are held, or row chunks of them, or none.

Example:
    >>> setup = Setup(classes=29e6, batch=128, ranks=8, sample_rate=0.1)
    >>> setup.rows, setup.held_classes, setup.sampled, setup.regime
    (1024, 3625000, 364638, 'tiles')
"""

import functools
import math
from dataclasses import dataclass

from marginlab import margins, settings
from marginlab.kernels.exponentials import TILE as EXPONENTIALS
from marginlab.kernels.margin_settings import BUDGET_CPU, BUDGET_CUDA
from marginlab.kernels.margin_softmax import least_rows
from marginlab.kernels.tiles import ALIGNED, TILE, TILE_CUDA
from marginlab.optim.rowsparse import SEMANTICS

BYTES = {"float32": 4, "bf16": 2}
WIDE = 4  # bytes of what is summed, float32
MOMENTS = {"LazySGD": 1, "LazyAdamW": 2, "SGD": 1, "AdamW": 2}
DEVIATIONS = 4
MOST = 2**32  # classes that a sample is drawn from


@dataclass(frozen=True)
class Setup:
    """A Partial FC head, its batch and its machine; every size is of the rank that holds most."""

    classes: float = 1e6
    """C, a whole number, such as 29e6"""
    dim: int = 512
    """D, features"""
    batch: int = 128
    """B, rows of each rank"""
    ranks: int = 8
    """N"""
    memory: float = 80.0
    """GiB of a rank's device"""
    sample_rate: float = 0.1
    """r; 1 takes all classes in every step, 0 those of the batch"""
    subcenters: int = 1
    """K"""
    weights: str = "float32"
    """dtype of the centers: float32 or bf16"""
    embeddings: str = "float32"
    """dtype of the backbone's output: float32 or bf16"""
    optimizer: str = "LazySGD"
    """LazySGD or LazyAdamW (row-sparse gradient), SGD or AdamW (torch's: dense gradient), with
    momentum and weight decay
    """
    semantics: str = "lazy"
    """semantics of the lazy optimizers: lazy, dense or decayed"""
    margin: str = "ArcFace(0.5)"
    """a class of marginlab.margins; one that looks at the whole batch exchanges more"""
    label_smoothing: float = 0.0
    """above 0, two more numbers a row are exchanged"""
    budget: float = 0.0
    """MiB of logits that may be held; 0: as the kernel does it, 128 on a CPU, 512 on CUDA"""
    device: str = "cuda"
    """cuda or cpu: decides the budget, the tiles and the dtype of products"""
    backbone: str = ""
    """GiB that it takes, such as 3.5, or a model of timm, whose parameters and activations are then
    counted
    """
    image_size: int = 112
    """pixels, height and width, for a backbone of timm"""
    precision: str = "bf16"
    """dtype of the activations of a backbone of timm: bf16 (autocast) or float32"""
    reserve: float = 1.0
    """GiB that are neither: the driver's context, the exchange library's buffers, fragments"""
    matrix_rate: float = 0.0
    """flop/s of matrix products; 0: not known"""
    memory_rate: float = 0.0
    """bytes/s to and from memory; 0: not known"""
    exchange_rate: float = 0.0
    """bytes/s that a rank sends to another; 0: not known"""

    def __post_init__(self) -> None:
        """Refuse impossible values: ValueError, with the remedy."""
        if not (1 <= self.classes <= MOST and self.classes == math.floor(self.classes)):
            raise ValueError(
                f"classes is a whole number from 1 to 2**32, such as 29e6, not {self.classes!r}."
            )
        for name in ("dim", "batch", "ranks", "subcenters", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}.")
        for name in ("budget", "reserve", "matrix_rate", "memory_rate", "exchange_rate"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} is a number from 0, not {getattr(self, name)}.")
        if not (self.memory > 0 and math.isfinite(self.memory)):
            raise ValueError(f"memory is a positive number of GiB, such as 80, not {self.memory}.")
        if not 0 <= self.sample_rate <= 1:
            raise ValueError(
                f"A sample rate is a part of the classes, in [0, 1], not {self.sample_rate}."
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing lies in [0, 1), not at {self.label_smoothing}.")
        words = (
            ("weights", BYTES),
            ("embeddings", BYTES),
            ("precision", BYTES),
            ("optimizer", MOMENTS),
            ("semantics", SEMANTICS),
        )
        for name, known in (*words, ("device", ("cuda", "cpu"))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is not {getattr(self, name)!r}: "
                    f"{settings.nearest(getattr(self, name), known)}"
                )
        _margin(self.margin)

    @property
    def C(self) -> int:  # noqa: N802 - the letter of the house
        """Classes of all ranks."""
        return int(self.classes)

    @property
    def rows(self) -> int:
        """G, rows of all ranks: each rank sees them all."""
        return self.batch * self.ranks

    @property
    def held_classes(self) -> int:
        """C_k, classes whose centers the rank holds."""
        return -(-self.C // self.ranks)

    @property
    def drawn(self) -> int:
        """Sampled classes of all ranks; all classes at r = 1."""
        return max(math.floor(self.sample_rate * self.C + 1e-6), min(self.rows, self.C))

    @property
    def sampled(self) -> int:
        """The rank's part of the sampled classes."""
        share = self.held_classes / self.C
        mean = self.drawn * share
        variance = mean * (1 - share) * (self.C - self.drawn) / max(self.C - 1, 1)
        return min(
            self.drawn, self.held_classes, math.ceil(mean + DEVIATIONS * math.sqrt(variance))
        )

    @property
    def whole(self) -> bool:
        """True if every step takes every class: nothing is drawn, and the gradient is dense."""
        return self.sample_rate == 1

    @property
    def lazy(self) -> bool:
        """True if the optimizer takes row-sparse gradients."""
        return self.optimizer.startswith("Lazy")

    @property
    def batchwise(self) -> bool:
        """True if the margin looks at the whole batch."""
        return _margin(self.margin).batchwise

    @property
    def weight(self) -> int:
        """Bytes of one number of a center."""
        return BYTES[self.weights]

    @property
    def product(self) -> int:
        """Bytes of one product: a CPU gives those of bf16 factors in bf16."""
        return WIDE if self.device == "cuda" else self.weight

    @property
    def budget_bytes(self) -> int:
        """Bytes of products that may be held."""
        return (
            int(self.budget * 2**20)
            if self.budget
            else BUDGET_CUDA
            if self.device == "cuda"
            else BUDGET_CPU
        )

    @property
    def chunk(self) -> int:
        """Rows whose products the budget holds."""
        return self.budget_bytes // (self.sampled * self.subcenters * self.product)

    @property
    def regime(self) -> str:
        """The way in which the kernel holds logits: "one buffer", "row chunks" or "tiles"."""
        if self.rows <= self.chunk:
            return "one buffer"
        if self.chunk >= least_rows(self.device) and self.ranks == 1:
            return "row chunks"
        return "tiles"

    @property
    def buffer(self) -> int:
        """Bytes of the products held from the forward to the backward pass."""
        if self.regime == "tiles":
            return 0
        rows = self.rows if self.regime == "one buffer" else self.part
        return rows * self.sampled * self.subcenters * self.product

    @property
    def part(self) -> int:
        """Rows that are taken at a time."""
        return (
            math.ceil(self.rows / math.ceil(self.rows / self.chunk))
            if self.regime == "row chunks"
            else self.rows
        )

    @property
    def exponentials(self) -> bool:
        """True if exponentials are held in place of products; scales are taken to be 64 or less."""
        usual = self.weights == "float32" and self.subcenters == 1 and self.label_smoothing == 0
        return self.device == "cpu" and self.regime != "tiles" and usual and not self._hardens

    @property
    def _hardens(self) -> bool:
        return _margin(self.margin).hardens

    @property
    def work(self) -> int:
        """Bytes at work in one tile, beside what is held."""
        if not self.exponentials:
            return self.tile
        width = min(self.budget_bytes, EXPONENTIALS) // (WIDE * (self.part + 2 * self.dim))
        rows = min(self.sampled, max(1, width))
        return rows * self.dim * WIDE * (1 if self.whole else 2)  # sampled centers are gathered

    @property
    def tile(self) -> int:
        """Bytes at work in one tile of columns, with the width of the kernel's own rule."""
        # numbers of a tile for each row and column
        entries = self.subcenters + 2 if self.subcenters == 1 else 4 * self.subcenters + 4
        column = self.part * WIDE * entries + self.subcenters * self.dim * WIDE * 2
        limit = min(self.budget_bytes, TILE_CUDA if self.device == "cuda" else TILE)
        width = max(1, min(self.sampled, limit // column))
        return column * (width - width % ALIGNED if ALIGNED < width < self.sampled else width)


@functools.cache
def _margin(margin: str) -> margins.Margin:
    return settings.make(margin, margins, margins.Margin)
