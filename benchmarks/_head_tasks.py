"""The tasks of `head.py`: inputs, bare products, our head and its peers, each forward and backward.

A maker takes embeddings (B, D), centers (C, D) and labels (B,), and makes the call to be measured.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import marginlab.kernels.margin_softmax as kernel
from marginlab.kernels.margin_settings import BUDGET_CPU, BUDGET_CUDA
from marginlab.losses.functional import margin_softmax
from marginlab.margins import ArcFace

SCALE, MARGIN = 64.0, 0.5
# loss (None of bare products), gradient of the embeddings, gradient of the centers
Result = tuple[Any, Tensor, Tensor]
Task = Callable[[], Result]
# of embeddings (B, D), centers (C, D) and labels (B,)
Maker = Callable[[Tensor, Tensor, Tensor], Task]


def inputs(kind: str, B: int, C: int, D: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw embeddings (B, D), centers (C, D) and labels (B,).

    They are "random", or "trained", at about 45 degrees from their own center.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(0)
    W = torch.empty(C, D, device=device).normal_(0, 0.01, generator=generator)
    y = torch.randint(C, (B,), generator=generator, device=device)
    x = torch.empty(B, D, device=device).normal_(generator=generator)
    return (x if kind == "random" else x / math.sqrt(D) + F.normalize(W[y])), W, y


def at_angles(degrees: float, B: int, C: int, D: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw unit embeddings at about so many degrees from their own centers, spread by 8."""
    x, W, y = inputs("random", B, C, D)
    own = F.normalize(W[y])
    across = F.normalize(x - (x * own).sum(1, keepdim=True) * own)
    drawn = torch.randn(B, 1, generator=torch.Generator().manual_seed(1)).to(x)
    angle = torch.deg2rad((degrees + 8 * drawn).clamp(1, 120))
    return own * angle.cos() + across * angle.sin(), W, y


def bare(dtype: torch.dtype) -> Maker:
    """The three products."""

    def make(x: Tensor, W: Tensor, y: Tensor) -> Task:
        x, W = x.to(dtype), W.to(dtype)

        def run() -> Result:
            G = x @ W.T
            return None, G @ W, G.T @ x

        return run

    return make


def ours(
    way: str, operands: torch.dtype | None, *, compiled: bool = False, negligible: float = 0.0
) -> Maker:
    """`margin_softmax` with a budget that leads to the way that is asked for."""

    def make(x: Tensor, W: Tensor, y: Tensor) -> Task:
        B, C = len(x), len(W)
        # bytes a product is kept in
        held = 2 if operands == torch.bfloat16 and x.device.type == "cpu" else 4
        row = C * (8 if x.dtype == torch.float64 else held)
        most = BUDGET_CUDA if x.device.type == "cuda" else BUDGET_CPU
        budget = {
            "one buffer": B * row,
            "row chunks": B // 2 * row,
            "class tiles": min(most, B // 2 * row),
        }[way]

        def run() -> Result:
            kernel.ROWS = kernel.ROWS_CPU = 1 if way == "row chunks" else B + 1
            return gradients(
                lambda x, W: margin_softmax(
                    x,
                    y,
                    W,
                    margin=ArcFace(MARGIN),
                    scale=SCALE,
                    operands=operands,
                    budget=budget,
                    compiled=compiled,
                    negligible=negligible,
                ),
                x,
                W,
            )

        return run

    return make


def gradients(loss_of: Callable[[Tensor, Tensor], Tensor], x: Tensor, W: Tensor) -> Result:
    """The loss of embeddings and centers, and its gradients."""
    x, W = x.detach().requires_grad_(), W.detach().requires_grad_()
    loss = loss_of(x, W)
    dx, dw = torch.autograd.grad(loss, (x, W))
    return loss.detach(), dx, dw


def naive_loss(x: Tensor, W: Tensor, y: Tensor) -> Tensor:
    """ArcFace as one writes it down, for theta + m <= pi."""
    cosine = F.normalize(x) @ F.normalize(W).T
    theta = cosine.gather(1, y[:, None]).float().clamp(-1 + 1e-6, 1 - 1e-6).acos()
    return F.cross_entropy(
        cosine.scatter(1, y[:, None], (theta + MARGIN).cos().to(cosine)) * SCALE, y
    )


def naive(*, autocast: bool = False, compiled: bool = False) -> Maker:
    """The loss above by autograd."""
    function = torch.compile(naive_loss) if compiled else naive_loss

    def make(x: Tensor, W: Tensor, y: Tensor) -> Task:
        def loss_of(x: Tensor, W: Tensor) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
                return function(x, W, y)

        return lambda: gradients(loss_of, x, W)

    return make


def metric_learning(x: Tensor, W: Tensor, y: Tensor) -> Task:
    """ArcFaceLoss of pytorch-metric-learning, with its centers as it lays them: (D, C)."""
    from pytorch_metric_learning.losses import ArcFaceLoss  # the peer is imported where it is run

    peer = ArcFaceLoss(len(W), x.shape[1], margin=math.degrees(MARGIN), scale=SCALE).to(x.device)
    peer.W = torch.nn.Parameter(W.T.contiguous())

    def run() -> Result:
        leaf = x.detach().requires_grad_()
        loss = peer(leaf, y)
        return loss.detach(), *torch.autograd.grad(loss, (leaf, peer.W))

    return run


def linear_cross_entropy(chunks: str) -> Maker:
    """The plain softmax of torch: "none", "half" of the rows, or "automatic" ones."""

    def make(x: Tensor, W: Tensor, y: Tensor) -> Task:
        half = torch.nn.LinearCrossEntropyOptions(
            batch_chunk_size=max(len(x) // 2, 1), chunking_method=None
        )
        options = {"none": None, "half": half, "automatic": torch.nn.LinearCrossEntropyOptions()}[
            chunks
        ]
        return lambda: gradients(
            lambda x, W: F.linear_cross_entropy(x, W, y, options=options), x, W
        )

    return make


def cut_cross_entropy(filter_eps: str | None) -> Any:
    """The plain softmax of Apple's library, without margin and without normalising."""
    from cut_cross_entropy import linear_cross_entropy as peer

    def make(x: Tensor, W: Tensor, y: Tensor) -> Callable[[], Any]:
        x, W = x.bfloat16(), W.bfloat16()
        return lambda: gradients(lambda x, W: peer(x, W, y, filter_eps=filter_eps), x, W)

    return make


def low(maker: Any) -> Any:
    """A maker whose embeddings and centers are kept in bfloat16."""
    return lambda x, W, y: maker(x.bfloat16(), W.bfloat16(), y)
