"""The published figures of Partial FC's speed and memory, to stand beside a plan.

They are read from `published.csv`, which comes with the package. They are others' measurements, of
others' code: insightface in July 2021, whose sampled rows alone had a gradient and an optimizer
step. The memory is that of the whole process, backbone (ResNet-50) and driver included.

Sources: beside each row of the file.
"""

import csv
from importlib.resources import files
from typing import NamedTuple


class Published(NamedTuple):
    """One published figure.

    `batch` (rows of a GPU) is 0 where it is not said. Memory is in MB of one GPU, throughput of all
    GPUs together.
    """

    table: str
    ids: int
    gpus: int
    batch: int
    head: str
    sample_rate: float
    samples_per_second: int
    memory_mb: int
    source: str


def published() -> list[Published]:
    """Read all figures, in the order of the file.

    Example:
        >>> last = [row for row in published() if row.table == "8 x V100 32 GB"][-1]
        >>> last.ids, last.head, last.samples_per_second, last.memory_mb
        (29000000, 'Partial FC', 1855, 32324)
    """
    with files("marginlab.plan").joinpath("published.csv").open(encoding="utf-8") as file:
        return [
            Published(
                row["table"],
                int(row["ids"]),
                int(row["gpus"]),
                int(row["batch"] or 0),
                row["head"],
                float(row["sample_rate"]),
                int(row["samples_per_second"]),
                int(row["memory_mb"]),
                row["source"],
            )
            for row in csv.DictReader(file)
        ]
