"""Operations of a step of the head, and the seconds that they take at known rates.

    flop = 2 G n_k K D x products
    products = 3 (logits held), 4 (tiles: computed once more in the backward pass)
    seconds = flop / matrix rate + bytes to and from memory / memory rate
              + bytes on the wire / exchange rate

The bytes to and from memory are counted in passes:

    logits      G n_k K f      6 passes: product written, read; in the backward pass read, gradient
                               written, read by two products; 7 in tiles
    centers     n_k W          13: gathered, measured, multiplied; gathered, scaled, multiplied;
                               gradient written, made tangent
    update      lazy           n_k W (5 + 2 a moment): gradient read; weight read and written, so
                               its block in float32; moments read and written
                dense          C_k W (4 + 3 a moment), also lazy optimizers with semantics="dense"

The model takes nothing to overlap, launches to cost nothing, and tiles that stay in a cache not to
show: read it as an estimate within a factor of two.
"""

from typing import NamedTuple

from marginlab.plan.backbone import backbone_flop
from marginlab.plan.setup import MOMENTS, WIDE, Setup
from marginlab.plan.traffic import traffic

CENTER_PASSES = 13


class Work(NamedTuple):
    """The work of a rank in a step.

    It is the flop of the head's products, bytes to and from memory, bytes sent, and the flop of a
    named backbone.
    """

    products: int
    flop: int
    moved: int
    sent: int
    backbone: int


class Seconds(NamedTuple):
    """Seconds of a step of the head; None where a rate is unknown (of the total, any rate)."""

    matrix: float | None
    memory: float | None
    exchange: float | None
    total: float | None


def work(setup: Setup) -> Work:
    """Count the operations of a step.

    Example:
        >>> setup = Setup(classes=1e6, batch=1024, ranks=1, sample_rate=0.1)
        >>> work(setup).flop == 3 * 2 * 1024 * 100_000 * 512
        True
    """
    s = setup
    products = 4 if s.regime == "tiles" else 3
    logits = s.rows * s.sampled * s.subcenters
    a_class = s.subcenters * s.dim * s.weight
    moments = MOMENTS[s.optimizer]
    dense = not s.lazy or s.whole or s.semantics == "dense"
    update = (
        s.held_classes * a_class * (4 + 3 * moments)
        if dense
        else s.sampled * a_class * (5 + 2 * moments)
    )
    moved = logits * WIDE * (products + 3) + s.sampled * a_class * CENTER_PASSES + update
    sent = sum(exchange.wire(s.ranks) for exchange in traffic(s))
    return Work(products, 2 * logits * s.dim * products, moved, sent, backbone_flop(s))


def seconds(setup: Setup) -> Seconds:
    """Return the seconds of a step of the head at the setup's rates, where they are not 0.

    Example:
        >>> seconds(Setup(ranks=1, matrix_rate=1e13, memory_rate=1e12, exchange_rate=1.0)).exchange
        0.0
    """
    done = work(setup)
    rates = (
        (done.flop, setup.matrix_rate),
        (done.moved, setup.memory_rate),
        (done.sent, setup.exchange_rate),
    )
    matrix, memory, exchange = (
        0.0 if not amount else amount / rate if rate else None for amount, rate in rates
    )
    unknown = matrix is None or memory is None or exchange is None
    return Seconds(
        matrix,
        memory,
        exchange,
        None if unknown else (matrix or 0.0) + (memory or 0.0) + (exchange or 0.0),
    )
