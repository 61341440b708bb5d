"""TensorBoard's events beside a run's table."""

import contextlib
from pathlib import Path
from typing import Any

from marginlab import ranks


@contextlib.contextmanager
def board_of(folder: Path, epoch: int) -> Any:
    """Open TensorBoard's writer on rank 0; yield None on the other ranks.

    Events that an earlier writer wrote from this epoch on no longer count.
    """
    if ranks.rank():
        yield None
        return
    # slow to import: only when something is trained
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epoch)
    try:
        yield writer
    finally:
        writer.close()
