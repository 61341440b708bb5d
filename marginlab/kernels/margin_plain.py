"""The margin softmax in torch's own operations.

It has derivatives of any order and takes part in the transforms of torch.func.

It holds the (B, n, K) products that the blockwise kernel avoids, so it is for few rows and classes:
per-sample gradients, Hessian-vector products, penalties on a gradient. Value and first derivatives
are those of the kernel. Numbers that the kernel rounds to the dtype of its operands are rounded
here too; their derivatives are those of the unrounded numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from marginlab import ranks
from marginlab.kernels.directions import power, shortest
from marginlab.kernels.function import unlowered
from marginlab.kernels.margin_batch import MarginBatch, Over, Shares
from marginlab.kernels.margin_settings import MarginSettings, wide_dtype
from marginlab.margins import Targets
from marginlab.statistics import in_range


def plain(
    x: Tensor, weight: Tensor, batch: MarginBatch, settings: MarginSettings, over: Over
) -> tuple[Tensor, Tensor]:
    """Return the loss (see `margin_cross_entropy`) and the target cosines, which have no gradient.

    Raises:
        RuntimeError: The products are above the budget, or rows or classes are spread over ranks.
    """
    wide = wide_dtype(x, weight)
    operands = settings.operands_for(weight.dtype, wide)
    centers = weight if batch.classes is None else weight[batch.classes]
    n, K = centers.shape[:2]
    _check_ranks(settings, over)
    _check_budget(x.shape[0] * n * K * (torch.finfo(wide).bits // 8), settings.budget_on(x.device))
    with unlowered(x):
        valid = batch.valid
        x = x.to(wide) if valid is None else x.to(wide).masked_fill(~valid[:, None], 0.0)
        x, norm = _directions(x)
        norm = norm if valid is None else norm.masked_fill(~valid, 1.0)
        directions = _directions(centers.to(wide))[0]
        place = batch.target.clamp(0, max(n - 1, 0))
        is_target = torch.arange(n, device=x.device) == place[:, None]
        if operands == wide or n == 0:
            cosines = torch.einsum("bd,ckd->bck", x, directions).max(2).values
            cosine = cosines.gather(1, place[:, None]).squeeze(1)
        else:
            cosines = _rounded_cosines(x, centers.to(wide), directions, operands)
            cosine = (x[:, None] * directions[place]).sum(2).max(1).values
        made = settings.margin.attached(cosine, norm, valid)
        z, gone = _others(cosines, made, batch, settings)
        loss = _losses(z, gone | is_target, made.value, batch.shares, settings)
        if made.penalty is not None:
            shares = batch.shares
            loss = loss + (made.penalty if shares is None else made.penalty * shares.rows)
        return batch.reduced(loss), cosine.detach()


def _check_ranks(settings: MarginSettings, over: Over) -> None:
    if ranks.size(over.group) > 1 and (over.classes or settings.margin.batchwise):
        raise RuntimeError(
            "Over several ranks a margin softmax has no second derivative and takes part in no "
            "transform of torch.func where classes or the margin's statistics are spread over "
            "them. Use one rank."
        )


def _check_budget(size: int, budget: int) -> None:
    if size > budget:
        raise RuntimeError(
            "A second derivative, a transform of torch.func, or an exported graph holds all "
            f"products of rows and centers: {size:,} bytes, above the budget of "
            f"{budget:,}. Give fewer rows, or budget={size}."
        )


def _directions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit vectors and lengths; 0 without gradient for a vector without direction."""
    wide = x.double()
    scaled, factor = in_range(wide, wide.detach().abs().amax(-1, keepdim=True))
    square = scaled.square().sum(-1, keepdim=True)
    short = square.detach().sqrt() < shortest(x) * factor
    norm = square.masked_fill(short, 1.0).sqrt()
    direction = (scaled / norm).to(x.dtype).masked_fill(short, 0.0)
    length = (norm / factor).masked_fill(short, 0.0)
    return direction, length.squeeze(-1).to(x.dtype)


def _rounded_cosines(
    x: Tensor, centers: Tensor, directions: Tensor, operands: torch.dtype
) -> Tensor:
    """Return the cosines (B, n) of unit rows; factors and products are rounded as in the kernel."""
    if operands == torch.float16:  # centers may leave its range
        centers = centers * power(centers.detach(), centers.dtype)[..., None]
    there = (directions.detach() != 0).any(-1)
    norm = torch.linalg.vector_norm(centers.masked_fill(~there[..., None], 1.0), dim=-1)
    products = torch.einsum("bd,ckd->bck", _rounded(x, operands), _rounded(centers, operands))
    if x.device.type != "cuda":  # CUDA sums products of short factors in float32
        products = _rounded(products, operands)
    cosines: Tensor = (products / norm).masked_fill(~there, 0.0)
    return cosines.max(2).values


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to numbers that a shorter dtype has, with a derivative of 1."""
    return x + (x.to(dtype).to(x.dtype) - x).detach()


def _others(
    cosines: Tensor, made: Targets, batch: MarginBatch, settings: MarginSettings
) -> tuple[Tensor, Tensor]:
    """Return the logits of all columns as those of other classes, and a mask of those left out."""
    gone = torch.zeros_like(cosines, dtype=torch.bool)
    z = cosines
    if settings.interclass_filter is not None:
        hot = z > settings.interclass_filter
        z, gone = z.masked_fill(hot, 0.0), hot if settings.interclass_masks else gone
    if made.hardness is not None:
        hard = (z > made.value.detach()[:, None]) & ~gone
        z = torch.where(hard, z * (made.hardness + z), z)
    z = z * settings.scale
    if batch.lift is not None:
        z = z + batch.lift
    if batch.exclude is not None:
        columns = torch.arange(z.shape[1], device=z.device)
        gone = gone | (batch.exclude[:, :, None] == columns).any(1)
    return z, gone


def _losses(
    z: Tensor, gone: Tensor, value: Tensor, shares: Shares | None, settings: MarginSettings
) -> Tensor:
    """Return the losses (B,), from the logits of other classes and the targets' values.

    Columns of z that are `gone`, as the target's is, are no other classes.
    """
    none = gone.all(1)
    # A row without another class would have a slope of 0/0: it gets logits of 0 that do not count
    far = (
        z.masked_fill(gone & ~none[:, None], -torch.inf)
        .masked_fill(none[:, None], 0.0)
        .logsumexp(1)
    )
    near = value * settings.scale
    loss = F.softplus(far - near, threshold=40.0).masked_fill(none, 0.0)
    epsilon = settings.label_smoothing
    if epsilon == 0:
        return loss
    there = (~gone).to(z.dtype)
    spread = epsilon / (there.sum(1) + 1)
    if shares is not None:
        rows, there = shares.rows, there * shares.columns
        loss = loss * ((1 - epsilon) * rows + spread * (there.sum(1) + rows))
    return loss + spread * (there.sum(1) * near - (there * z).sum(1))
