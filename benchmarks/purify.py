"""The time of purification beside that of embedding the same images.

    python benchmarks/purify.py [--images 100000] [--classes 1000] [--repeats 3]
        [--out benchmarks/measured/purify.json]

Purification embeds every image once, takes cosines with the sub-centers of its class, counts votes,
writes the cosines to a folder, and fits the mixture of angles. Both are timed in turn, by processor
seconds of one thread. So is what the monitor adds to count the use of sub-centers, on embeddings
that it has: `usage_share` is its part of a training of `epochs` epochs on these images that counts
before the first and after the last, where a step takes three times the embedding of its images.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _report import save, show_products

from marginlab.data import ImageSet
from marginlab.methods import MarginClassifier
from marginlab.models import Backbone
from marginlab.purify import embeddings_of, purify
from marginlab.train.usage import subcenter_usage

EPOCHS = 14  # of the study `purify`


def seconds(function: Callable[[], Any]) -> float:
    """Return the processor seconds of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(N: int, C: int, repeats: int, *, side: int = 28, subcenters: int = 3) -> dict[str, Any]:
    """Time purification and embedding in turn; return the medians and their ratio."""
    torch.manual_seed(0)
    pixels = torch.randint(256, (N, 3, side, side), dtype=torch.uint8)
    names = tuple(f"{c}" for c in range(C))
    images = ImageSet(pixels, torch.arange(N) % C, names, "random")
    backbone = Backbone("resnet18", stem="strided", width=0.125)
    model = MarginClassifier(backbone, C, dim=64, subcenters=subcenters).eval()
    embedding, purifying, counting = [], [], []
    embeddings = embeddings_of(model, images)
    for _ in range(repeats):
        embedding.append(seconds(lambda: embeddings_of(model, images)))
        with tempfile.TemporaryDirectory() as folder:
            purifying.append(
                seconds(
                    lambda folder=folder: purify(model, images, max_angle="mixture", folder=folder)
                )
            )
        counting.append(
            seconds(lambda: subcenter_usage(model.classifier, embeddings, images.labels, 0))
        )
    ratios = [a / b for a, b in zip(purifying, embedding, strict=True)]
    return {
        "images": N,
        "classes": C,
        "subcenters": subcenters,
        "embedding_seconds": statistics.median(embedding),
        "purify_seconds": statistics.median(purifying),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "usage_seconds": statistics.median(counting),
        "epochs": EPOCHS,
        "usage_share": 2
        * statistics.median(counting)
        / (3 * EPOCHS * statistics.median(embedding)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/measured/purify.json"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    show_products()
    row = measure(chosen.images, chosen.classes, chosen.repeats)
    print(
        f"{row['images']:,} images: embedding {row['embedding_seconds']:.1f} s, purification "
        f"{row['purify_seconds']:.1f} s, {row['ratio']:.3f} of it; usage "
        f"{row['usage_seconds']:.2f} s, {row['usage_share']:.2e} of a training"
    )
    save("purify", [row], chosen.out)


if __name__ == "__main__":
    main()
