"""PAC-Bayes of a contrastive risk: a last layer trained on the very images that bound it.

A linear map A follows the encoder's embeddings of length one. The prior is normal around A = 1, the
encoder as other images made it; the posterior around the A that 4 steps, or 64, of Adam find on
batches of new images, under the bound itself. The risk is InfoNCE of a batch of 16 images, each
with one view of it, at T = 0.5. New images are balanced over the classes, and so are the batches.

    pac_bayes_unseen   at bound_prior, bound_4, bound_64: the bound of the loss on new batches
                       at risk_..., divergence_...: the loss of these batches, and KL
                       at held_out: the exact limit for A = 1, without noise; loss_range: its range

The bounds are what the theory can say of new batches from the very batches of a training, and the
held-out limit says what other batches say of the encoder before it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from marginlab.study import Cell
from marginlab.theory import (
    Range,
    drawn_losses,
    held_out,
    normal_divergence,
    pac_bayes,
)

BATCH, TEMPERATURE = 16, 0.5
SIGMA = 0.05  # fixed beforehand, as is all else here
DRAWS, STEPS, RATE = 100, (4, 64), 3e-3
ENDS = Range.info_nce(temperature=TEMPERATURE, negatives=2 * BATCH - 2)


def batches_of(features: Tensor) -> Tensor:
    """Return images and their first views in batches (n, BATCH, 2, D), at length one."""
    n = len(features) // BATCH
    pairs = F.normalize(features[: n * BATCH, :2].float(), dim=-1)
    return pairs.view(n, BATCH, 2, -1)


def loss_of(batches: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function that gives the InfoNCE of each batch (n,) for a map A."""
    n, own = len(batches), 2 * BATCH
    itself = torch.eye(own, dtype=torch.bool)
    positive = torch.arange(own).roll(BATCH)

    def loss(A: Tensor) -> Tensor:
        z = F.normalize(batches @ A.to(batches).T, dim=-1)
        z = z.transpose(1, 2).reshape(n, own, -1)
        logits = (z @ z.mT / TEMPERATURE).masked_fill(itself, -math.inf)
        target = logits[:, torch.arange(own), positive]
        return (logits.logsumexp(2) - target).mean(1)

    return loss


def trained(loss: Callable[[Tensor], Tensor], dim: int, n: int, steps: int) -> Tensor:
    """Return the A that steps of Adam find, on the risk and what the bound adds to it."""
    start = torch.eye(dim)
    A = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([A], lr=RATE)
    for _ in range(steps):
        divergence = (A - start).square().sum() / (2 * SIGMA**2)
        risk = loss(A).mean() / (ENDS.high - ENDS.low)
        objective = risk + ((divergence + math.log(40 * n**0.5)) / (2 * n)).sqrt()
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
    return A.detach()


def bounds_of(features: Tensor) -> dict[str, float]:
    """Return the bounds, risks and divergences of embeddings of new images."""
    batches = batches_of(features)
    n, dim = len(batches), batches.shape[-1]
    loss, one = loss_of(batches), torch.eye(dim)
    found = {"loss_range": ENDS.high, "held_out": held_out(loss(one), ENDS).right}
    maps = {"prior": one} | {str(steps): trained(loss, dim, n, steps) for steps in STEPS}
    for name, A in maps.items():
        divergence = normal_divergence(A, one, SIGMA)
        losses = drawn_losses(loss, A, SIGMA, DRAWS)
        result = pac_bayes(losses, ENDS, divergence=divergence)
        found |= {
            f"bound_{name}": result.bound.right,
            f"risk_{name}": result.risk,
            f"divergence_{name}": divergence,
        }
    return found


def record(cell: Cell, features: Tensor, epoch: int) -> None:
    """Record the bounds of embeddings of new images (N, V, D), where there is a batch of them."""
    if len(features) < BATCH:
        return
    n = len(features) // BATCH
    for at, value in bounds_of(features).items():
        cell.record("pac_bayes_unseen", value, at=at, n=n, epoch=epoch, space="projector")
