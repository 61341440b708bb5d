"""One pass over the images: each is embedded once, and only its K cosines are kept.

    blocks of BLOCK images;  block j is of rank j mod n;  a block is written when it is done

    FOLDER/cosines.json        what the blocks are of: images, model, K, sizes
    FOLDER/cosines-000000.npy  (BLOCK, K) cosines of the first block, and so on

A block does not depend on other blocks or on the number of ranks. So a pass that was stopped
continues behind the last block, on any number of ranks, and ends with the same bytes.
"""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from marginlab import encoding, files, ranks
from marginlab.data import ImageSet
from marginlab.data.streaming import batches
from marginlab.purify.embedding import Embedder, digest

BLOCK = 2048  # images


class Blocks:
    """The folder of a pass: the blocks that are done, and those to come.

    Args:
        folder: The folder, made if absent; None keeps nothing.
        identity: What the blocks are of; it must be the same when a pass goes on.
        first: Whether this rank is the one that writes.

    Raises:
        ValueError: The folder holds another pass, or something else under these names.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any], *, first: bool):
        self.folder, self.first = folder, first
        if folder is None or not first:
            return
        about, text = folder / "cosines.json", json.dumps(identity, indent=1) + "\n"
        if about.exists():
            found = files.content_of(about, 2**20).decode("utf-8", "replace")
            if found != text:
                raise ValueError(
                    f"{folder} holds the cosines of other images, another model or another batch "
                    "size. Choose another folder, or remove that one."
                )
            return
        folder.mkdir(parents=True, exist_ok=True)
        files.write(about, text)

    def read(self, number: int, shape: tuple[int, int]) -> Tensor | None:
        """Read a block; None if it is not there."""
        if self.folder is None:
            return None
        path = self._path(number)
        if not path.exists():
            return None
        try:
            array = np.load(io.BytesIO(files.content_of(path)), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path} cannot be read: {error}. Remove it; it is made again.") from (
                error
            )
        if array.shape != shape or array.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"{path} is {array.dtype} {array.shape}, not cosines {shape}. Remove it; it is "
                "made again."
            )
        return torch.from_numpy(array)

    def write(self, number: int, cosines: Tensor) -> None:
        """Write a block, whole or not at all."""
        if self.folder is None or not self.first:
            return
        held = io.BytesIO()
        np.save(held, cosines.numpy())
        files.write(self._path(number), held.getvalue())

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"cosines-{number:06d}.npy"


def cosines_of(
    images: ImageSet,
    found: Embedder,
    *,
    batch: int = 512,
    folder: Path | None = None,
    device: torch.device | str | None = None,
    say: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "N K"]:
    """Return each image's cosines with the K sub-centers of its class, on every rank.

    Args:
        images: The images, held or streamed.
        found: The embeddings, and the classifier; its `group` are the ranks that share the work.
        batch: Images that are embedded at a time.
        folder: Where blocks are kept; only the first rank reads and writes it.
        device: Where the model runs; by default where its first parameter is.
        say: Is called with the images that are done, and their number in all.

    Raises:
        ValueError: The folder holds another pass; embeddings that do not fit the centers, or are
            not finite.
    """
    if batch < 1:
        raise ValueError(f"A batch has 1 image or more, not {batch}.")
    head, N = found.head, len(images)
    group, first = head.group, ranks.rank(head.group) == 0
    identity = {
        "images": images.digest(),
        "model": digest(found),
        "shape": [N, head.subcenters],
        "batch": batch,
        "block": BLOCK,
    }

    def begun() -> Blocks:
        return Blocks(folder, identity, first=first)

    kept, _ = ranks.validate_together(begun, torch.empty(0), group, what="purify", **identity)
    out: Tensor | None = None
    parts = torch.arange(N).split(BLOCK)
    done = ranks.broadcast_from_first(lambda: _done(kept, parts, head.subcenters), group)
    if done:
        out = done[0].new_empty(N, head.subcenters)
        out[: sum(len(block) for block in done)] = torch.cat(done)
    n, size = len(done), ranks.size(group)
    mine = [part for j, part in enumerate(parts[n:]) if j % size == ranks.rank(group)]
    embedded = _embedded(images, found, mine, batch, device)
    for begin in range(n, len(parts), size):
        block = begin + ranks.rank(group)
        cosines = _own(found, images, parts[block] if block < len(parts) else None, embedded)
        gathered = ranks.all_gather(cosines, group)
        if out is None:
            out = gathered.new_empty(N, head.subcenters)
        for j, part in enumerate(parts[begin : begin + size]):
            own, gathered = gathered[: len(part)], gathered[len(part) :]
            out[part] = own
            kept.write(begin + j, own)
            if say is not None:
                say(int(part[-1]) + 1, N)
    assert out is not None, "there is an image"
    return out


def _done(kept: Blocks, parts: tuple[Tensor, ...], K: int) -> list[Tensor]:
    """Read the blocks that are there, up to the first that is not."""
    done: list[Tensor] = []
    for number, part in enumerate(parts):
        block = kept.read(number, (len(part), K))
        if block is None:
            break
        done.append(block)
    return done


def _embedded(
    images: ImageSet,
    found: Embedder,
    parts: list[Tensor],
    batch: int,
    device: torch.device | str | None,
) -> Iterator[Tensor]:
    """Yield the embeddings of each part; workers read ahead over all of them."""
    pieces = [piece for part in parts for piece in part.split(batch)]
    reading = batches(images.images, pieces)
    try:
        for part in parts:
            rows = [
                encoding.encode(found.function, next(reading)[1], batch=batch, device=device)
                for _ in part.split(batch)
            ]
            yield torch.cat(rows)
    finally:
        reading.close()


def _own(
    found: Embedder, images: ImageSet, part: Tensor | None, embedded: Iterator[Tensor]
) -> Tensor:
    """Return the cosines of a part; a rank without one takes part with no rows."""
    head = found.head
    if part is None:
        rows = head.centers.new_empty(0, head.dim)
        labels = torch.empty(0, dtype=torch.int64, device=rows.device)
    else:
        rows = next(embedded).to(head.centers.device, head.centers.dtype)
        labels = images.labels[part.to(images.labels.device)].to(rows.device)
    return head.cosines(rows, labels).cpu()
