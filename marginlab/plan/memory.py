"""Memory of the rank that holds most, in bytes by part, in three moments of a step.

One of the three moments is the peak. W = K D bytes-of-a-weight a class, f = 4 bytes (float32), and
the letters of `marginlab.plan.setup`, where N is the number of ranks:

    always      centers                 C_k W
                optimizer state         C_k K D bytes of each moment (LazyAdamW: float32), and
                                        4 C_k where rows count their steps
                backbone                as given; its activations until the backward pass is over
    sampling    drawing                 80 n (ten int64 vectors of the permutation's places); below
                (0 < r < 1)             100,000 classes 8 C + 40 n
    loss        embeddings              B D as they come; 4 G D f: directions, scaled and weighted
                                        ones, their gradient
                logits buffer           G n_k K bytes of a product, in one buffer; those of a row
                                        chunk; 0 in tiles
                work in a tile          at most 8 MiB on a CPU, 256 MiB on CUDA, and the budget
                gradient of centers     n_k W; with row chunks n_k K D f; with torch's optimizers a
                                        dense C_k W besides
                sampled classes         their numbers, 8 n + 8 n_k, and 1 / |w|, f n_k K
    update      gradient of centers     n_k W (lazy) or C_k W
                work of the optimizer   lazy: blocks of 2^18 numbers (2^25 on CUDA) of weight,
                                        gradient and moments in float32, and 24 bytes a row;
                                        torch's SGD: C_k W, the gradient with its decay;
                                        AdamW: C_k W on CUDA, twice that on a CPU

The peak is the largest of the three sums. All three moments count the backbone's gradients, though
they are complete only at the end of its backward pass. So the plan of a large backbone is that much
too high.
Allocators round and fragment; `reserve` is for that.

Tests compare the peak with every allocation of a step on a CPU. The figures for CUDA differ in the
constants named above, and follow from the same code.
"""

from collections.abc import Callable

from marginlab.losses.sampling import MANY
from marginlab.optim.rows import BLOCK, BLOCK_CUDA
from marginlab.plan.backbone import backbone
from marginlab.plan.setup import BYTES, MOMENTS, MOST, WIDE, Setup

DRAWN = 80  # bytes a place of a permutation while it is walked: ten int64 vectors
DRAWN_SHORT = 40  # and a number of a permutation that torch draws whole
REGIMES = ("one buffer", "row chunks", "tiles")  # in the order of the number of classes
GIB = 2**30


def memory(setup: Setup) -> dict[str, dict[str, int]]:
    """Return bytes by moment ("sampling", "loss", "update") and part.

    Example:
        >>> parts = memory(Setup(classes=29e6, batch=128, ranks=8, sample_rate=0.1))
        >>> {part: round(b / 2**20) for part, b in parts["loss"].items() if b >= 2**20}
        {'centers': 7080, 'optimizer state': 7080, 'embeddings': 8, 'work in a tile': 256, 'gradient
        of centers': 712, 'sampled classes': 26}
    """
    s = setup
    a_class = s.subcenters * s.dim * s.weight
    moment = s.subcenters * s.dim * (WIDE if s.optimizer == "LazyAdamW" else s.weight)
    counts = s.lazy and (
        s.semantics == "decayed" or (s.semantics == "lazy" and s.optimizer == "LazyAdamW")
    )
    resident, activations = backbone(s)
    always = {
        "centers": s.held_classes * a_class,
        "optimizer state": s.held_classes * (MOMENTS[s.optimizer] * moment + (4 if counts else 0)),
        **({"backbone": resident} if resident else {}),
    }
    during = {"activations of the backbone": activations} if activations else {}
    values = s.sampled * a_class
    dense = s.held_classes * a_class if not s.lazy and not s.whole else 0
    loss = {
        "embeddings": _embeddings(s),
        "logits buffer": s.buffer,
        # the dense gradient is made when the last tile is done
        "work in a tile": max(0, s.work - dense),
        "gradient of centers": (
            s.sampled * s.subcenters * s.dim * WIDE if s.regime == "row chunks" else values
        )
        + dense,
        "sampled classes": s.sampled * s.subcenters * WIDE
        + (0 if s.whole else 8 * (s.drawn + s.sampled)),
    }
    update = {
        "gradient of centers": values if s.lazy else s.held_classes * a_class,
        "work of the optimizer": _updating(s),
    }
    drawing = {
        "embeddings": s.batch * s.dim * BYTES[s.embeddings],
        "drawing": 0 if s.whole else _drawing(s),
    }
    return {
        "sampling": {**always, **during, **drawing},
        "loss": {**always, **during, **loss},
        "update": {**always, **update},
    }


def peak(setup: Setup) -> int:
    """Return the bytes of the largest of the moments, without the reserve."""
    return max(sum(parts.values()) for parts in memory(setup).values())


def fits(setup: Setup) -> bool:
    """Return whether the peak and the reserve are within the memory."""
    return peak(setup) + setup.reserve * GIB <= setup.memory * GIB


def largest(setup: Setup, at: Callable[[int], Setup]) -> int:
    """Return the largest number of classes that fits, 0 if none does.

    Memory grows with the classes, except where the kernel changes to a regime that holds less. So
    the regimes are searched from the last to the first. In row chunks, on one rank, the buffer also
    falls a little where one more chunk is made: there the answer can be some classes short.

    Args:
        setup: The setup.
        at: A function that returns the setup with another number of classes.

    Example:
        >>> from dataclasses import replace
        >>> setup = Setup(memory=1.0, reserve=0.5, dim=64)
        >>> C = largest(setup, lambda classes: replace(setup, classes=classes))
        >>> fits(replace(setup, classes=C)), fits(replace(setup, classes=C + 1))
        (True, False)
    """
    high = MOST
    for order in reversed(range(len(REGIMES))):

        def below(C: int, order: int = order) -> bool:
            return REGIMES.index(at(C).regime) < order

        low = _last(below, 0, high) + 1
        found = _last(lambda C: fits(at(C)), low - 1, high)
        if found >= low:
            return found
        high = low - 1
    return 0


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the last number from low + 1 to high at which a condition holds; low if at none.

    The condition holds at all numbers up to the last one.
    """
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _embeddings(s: Setup) -> int:
    item, operand = BYTES[s.embeddings], s.weight
    own = s.batch * s.dim * item
    # scaled and weighted directions as factors of the products
    cast = 2 * operand if operand < WIDE else 0
    scaled = WIDE if operand < WIDE else 0
    wide = s.rows * 3 * WIDE * s.dim + s.part * s.dim * (WIDE + scaled + cast)
    return own + wide


def _drawing(s: Setup) -> int:
    drawn = s.drawn if s.drawn > min(s.rows, s.C) else 0  # the batch's own classes are not drawn
    return DRAWN * drawn if s.C >= MANY else 8 * s.C + DRAWN_SHORT * drawn


def _updating(s: Setup) -> int:
    numbers = s.held_classes * s.subcenters * s.dim
    if s.optimizer == "SGD":
        return numbers * s.weight
    if s.optimizer == "AdamW":
        return numbers * s.weight * (1 if s.device == "cuda" else 2)
    block = (
        min(BLOCK_CUDA if s.device == "cuda" else BLOCK, numbers)
        * WIDE
        * (2 + MOMENTS[s.optimizer])
    )
    return block if s.whole else block + s.sampled * 24  # and the rows' numbers
