"""A set of tiny images whose pixels are their embeddings, and a classifier of known centers."""

import torch
from torch import nn

from marginlab.data import ImageSet, flip_labels
from marginlab.losses import MarginSoftmax

D = 12


class Pixels(nn.Module):
    """Embeddings (B, 12) of images (B, 3, 2, 2); counts the images that it has seen."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.5))
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return images.flatten(1) - self.shift


def directions(C):
    generator = torch.Generator().manual_seed(0)
    found, _ = torch.linalg.qr(torch.randn(D, D, generator=generator))
    return found[:C]


def planted(C=6, each=50, share=0.3, spread=0.15, seed=0):
    """A noisy set, its truth, and centers (C, 2, D): the class, and the next class."""
    generator = torch.Generator().manual_seed(seed)
    way, labels = directions(C), torch.arange(C).repeat(each)
    x = way[labels] + spread * torch.randn(len(labels), D, generator=generator)
    pixels = ((0.3 * x / x.norm(dim=1, keepdim=True) + 0.5) * 255).round().to(torch.uint8)
    names = tuple(f"class {c}" for c in range(C))
    clean = ImageSet(pixels.view(-1, 3, 2, 2), labels, names, "planted")
    return flip_labels(clean, share, seed=seed), torch.stack((way, way.roll(1, 0)), 1)


def classifier(centers, **arguments):
    C, K, _ = centers.shape
    head = MarginSoftmax(C, D, subcenters=K, **arguments)
    head.load_centers(centers)
    return head
