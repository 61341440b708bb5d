"""Bytes that a rank gives into each exchange of a step, and the part that goes over the wire.

    what                            collective      payload of a rank
    rows of each rank, and faults   all-reduce      16 N        (N, 2) int64
    embeddings                      all-gather      B D bytes of an embedding
                                                                padded to the largest batch
    labels                          all-gather      8 B
    target cosines                  all-reduce      4 G         only margins that look at the
                                                                whole batch
    (max, sum[, target])            all-gather      4 G x 3     x 2 for those margins; 2 more with
                                                                label smoothing
    gradient of the embeddings      reduce-scatter  G D bytes of an embedding
                                                                padded to N times the largest batch

Here N is the number of ranks, and G = N B the number of all their rows (`marginlab.plan.setup`). A
fault is the report of a rank that its batch is invalid.

The payload is the program's input to the collective, and does not depend on the library. Of a
payload p, a ring sends from each rank (N - 1) p in an all-gather, (N - 1) / N p in a reduce-scatter
and twice that in an all-reduce. gloo sends more: by the bytes that the loopback interface counts,
its reduce-scatter sends as much as its all-reduce (torch 2.14). The gradients of the backbone,
which DDP or FSDP exchanges, are not counted here. One rank exchanges nothing.

A test counts the payloads of a real step and finds these numbers.
"""

from typing import NamedTuple

from marginlab.plan.setup import BYTES, WIDE, Setup


class Exchange(NamedTuple):
    """One collective of a step: its tensors, its kind, and the bytes that a rank gives into it."""

    what: str
    collective: str
    payload: int

    def wire(self, ranks: int) -> int:
        """Return the bytes that a rank sends in a ring."""
        if self.collective == "all-gather":
            return (ranks - 1) * self.payload
        times = 2 if self.collective == "all-reduce" else 1
        return -(-times * (ranks - 1) * self.payload // ranks)


def traffic(setup: Setup) -> list[Exchange]:
    """List the collectives of a training step in their order.

    Example:
        >>> [exchange.payload for exchange in traffic(Setup(batch=128, ranks=8, dim=512))]
        [128, 262144, 1024, 12288, 2097152]
    """
    if setup.ranks == 1:
        return []
    rows, item = setup.rows, BYTES[setup.embeddings]
    numbers = (2 if setup.batchwise else 3) + (2 if setup.label_smoothing > 0 else 0)
    return [
        Exchange("rows and faults", "all-reduce", 16 * setup.ranks),
        Exchange("embeddings", "all-gather", setup.batch * setup.dim * item),
        Exchange("labels", "all-gather", 8 * setup.batch),
        *([Exchange("target cosines", "all-reduce", WIDE * rows)] if setup.batchwise else ()),
        Exchange(
            "maxima, sums" + ("" if setup.batchwise else ", targets"),
            "all-gather",
            numbers * WIDE * rows,
        ),
        Exchange("gradient of embeddings", "reduce-scatter", rows * setup.dim * item),
    ]
