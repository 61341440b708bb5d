"""Statistics of the inputs of normalisation layers, as natural images make them.

    BN(I) = sum over layers l of ||mu_l(I) - mu_l||^2 + ||s_l(I) - s_l||^2

mu_l(I) and s_l(I) are the mean and the standard deviation (or the variance) of each channel of the
layer's input, over the batch I and over places. mu_l and s_l are those that the layer stored during
training, its running statistics. torch stores the unbiased variance, so the unbiased variance of
the batch is compared with it.

Source: Deng et al. 2022 (ArcFace), section 3.3 and eq. 8, where s is the standard deviation; Yin et
al. 2020 (DeepInversion) take the variance.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from marginlab.encoding import Images, encode, evaluating

Spread = Literal["deviation", "variance"]

_NORMALISATIONS = (nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


class ChannelStatistics(NamedTuple):
    """Mean and variance of each of C channels."""

    mean: Float[Tensor, " C"]
    variance: Float[Tensor, " C"]


def _stores(module: nn.Module) -> bool:
    """Say whether a layer holds running statistics, whatever its class."""
    return all(
        isinstance(getattr(module, name, None), Tensor) for name in ("running_mean", "running_var")
    )


def stored_statistics(model: nn.Module) -> dict[str, ChannelStatistics]:
    """Return the running statistics of every batch normalisation of a model, by the layer's name.

    A layer counts if it has the buffers `running_mean` and `running_var`: BatchNorm1d, 2d and 3d of
    torch, and the like of other libraries.

    Raises:
        ValueError: The model has no such layer. Its message names what can be done without.

    Warns:
        UserWarning: No such layer sees a feature map. The statistics of an embedding layer alone
            say almost nothing about images.

    Example:
        >>> list(stored_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))))
        ['1']
    """
    layers = {name: module for name, module in model.named_modules() if _stores(module)}
    if not layers:
        raise ValueError(
            f"{type(model).__name__} stores no statistics of batch normalisation. Invert it by "
            "total variation and pixel norm alone (batch_norm=0), or give statistics that are "
            "measured from images: statistics=measured_statistics(model, images)."
        )
    if all(isinstance(module, nn.BatchNorm1d) for module in layers.values()):
        warnings.warn(
            f"Only {', '.join(layers)} stores statistics, and it sees embeddings, no feature maps: "
            "there is almost no prior of batch normalisation. measured_statistics(model, images) "
            "gives one of other layers.",
            stacklevel=2,
        )
    found: dict[str, Any] = {}
    for name, module in layers.items():
        mean, variance = module.running_mean, module.running_var
        found[name] = ChannelStatistics(mean.detach().clone(), variance.detach().clone())
    return found


def measured_statistics(
    model: nn.Module, images: Images, *, batch: int = 512
) -> dict[str, ChannelStatistics]:
    """Measure the statistics of a model without batch normalisation from images.

    The layers are its group, layer and instance normalisations; if it has none, its convolutions
    and linear layers.

    Args:
        model: The model whose layers are looked at.
        images: Natural images, bytes or in [0, 1].
        batch: Images that are encoded at a time.

    Returns:
        Mean and unbiased variance of each channel of the layers' inputs, over images and places.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten())
        >>> measured_statistics(net, torch.rand(5, 3, 8, 8))["1"].mean.shape
        torch.Size([4])
    """
    kinds: tuple[type, ...] = _NORMALISATIONS
    if not any(isinstance(module, kinds) for module in model.modules()):
        kinds = (nn.Conv2d, nn.Linear)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}
    with _inputs(model, names) as inputs, evaluating(model):

        def counted(part: Tensor) -> Tensor:
            features: Tensor = model(part)
            for name, given in inputs.items():
                rows = _rows(given).double()
                n, total, square = sums.get(name, (0, torch.zeros(()), torch.zeros(())))
                shifted = rows.sum(0), rows.square().sum(0)
                sums[name] = n + len(rows), total + shifted[0], square + shifted[1]
            inputs.clear()
            return features

        encode(counted, images, batch=batch)
    found = {}
    for name, (n, total, square) in sums.items():
        mean = total / n
        variance = (square / n - mean.square()).clamp(min=0) * (n / max(n - 1, 1))
        found[name] = ChannelStatistics(mean.float(), variance.float())
    return found


@contextmanager
def _inputs(model: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the inputs of some layers at each forward pass; the hooks go at the end."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            found[name] = given[0]

        return note

    layers = dict(model.named_modules())
    handles = [layers[name].register_forward_pre_hook(hook(name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _rows(given: Tensor) -> Tensor:
    """Return a layer's input, a map (B, C, h, w), tokens (B, T, C) or (B, C), as (rows, C)."""
    if given.ndim >= 4:
        return given.transpose(1, -1).flatten(0, -2)
    return given.flatten(0, -2)


class StatisticsTerm:
    """The sum over layers of the distances of a batch's channel statistics from given ones.

    Use it as a context around the forward pass, then read `value()`:

    Args:
        model: The model whose layers are looked at.
        statistics: By the layer's name, as `stored_statistics` gives them.
        spread: "deviation" compares standard deviations, "variance" variances.

    Raises:
        ValueError: A layer that the model does not have.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        >>> with StatisticsTerm(net, stored_statistics(net)) as term:
        ...     features = net(torch.rand(2, 3, 8, 8))
        ...     value = term.value()
        >>> value.shape
        torch.Size([])
    """

    def __init__(
        self,
        model: nn.Module,
        statistics: Mapping[str, ChannelStatistics],
        *,
        spread: Spread = "deviation",
    ):
        layers = dict(model.named_modules())
        if missing := [name for name in statistics if name not in layers]:
            raise ValueError(
                f"{type(model).__name__} has no layer {missing[0]!r}. The names of the layers are "
                "those of named_modules()."
            )
        if spread not in ("deviation", "variance"):
            raise ValueError(f"spread is 'deviation' or 'variance', not {spread!r}.")
        self.model, self.statistics, self.spread = model, dict(statistics), spread
        self._inputs: dict[str, Tensor] = {}

    def __enter__(self) -> "StatisticsTerm":
        self._context = _inputs(self.model, list(self.statistics))
        self._inputs = self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)
        self._inputs = {}

    def value(self) -> Float[Tensor, ""]:
        """Return the term of the batch of the last forward pass, and forget that batch.

        Raises:
            RuntimeError: There was no forward pass, or it did not reach a layer.
        """
        if missing := [name for name in self.statistics if name not in self._inputs]:
            raise RuntimeError(
                f"No input reached the layer {missing[0]!r}: run the model inside the context."
            )
        parts = []
        for name, stored in self.statistics.items():
            rows = _rows(self._inputs.pop(name))
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            variance, mean = torch.var_mean(rows, 0, correction=1 if len(rows) > 1 else 0)
            target = stored.variance.to(variance)
            if self.spread == "deviation":
                # at 0 the root has no slope
                variance = variance.clamp(min=1e-12).sqrt()
                target = target.clamp(min=1e-12).sqrt()
            parts.append((mean - stored.mean.to(mean)).square().sum())
            parts.append((variance - target).square().sum())
        return torch.stack(parts).sum()
