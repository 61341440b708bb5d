"""The interface of a margin.

A margin maps the cosine between a feature and the center of its own class to the target logit.

    target logit = scale * psi(c),    c = x . w_y / (|x| |w_y|),
    d loss / d c = (d loss / d target logit) * scale * psi'(c)

A margin is a module because some margins have state, which moves to a device and is saved with the
classifier that holds it. A margin sees the target cosines and the feature norms only, never a
(B, C) matrix. One number (`hardness`) says how the other cosines of a row change. A margin returns
values and derivatives, detached; the classifier multiplies by them in its own backward pass.

State belongs to a step. A forward pass that is run again in the backward pass
(torch.utils.checkpoint) finds the state as the first pass found it, and changes nothing. Averages
are float32 or wider, whatever dtype the module is cast to: in bfloat16 a share of 0.01 of a new
batch is rounded away.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from marginlab.margins.given_slope import WithSlope
from marginlab.recomputation import Calls, recomputing, transformed
from marginlab.settings import nearest

Gradient = Literal["exact", "straight_through"]


class Targets(NamedTuple):
    """Target values and slopes of a (global) batch.

    All are (B,) unless noted, float32 or float64, and detached from autograd.

    Attributes:
        value: psi(c), which replaces the target cosine; the target logit is scale * value.
        slope: d psi / d c; the true one, or 1 with gradient="straight_through". Finite and not
            negative.
        norm_slope: d psi / d |x|, where the margin depends on the norm of the feature and is
            learned through it (MagFace).
        penalty: Added to each row's loss, a function of |x| (MagFace's regulariser, its weight
            included).
        penalty_slope: d penalty / d |x|.
        hardness: t of CurricularFace, a tensor without dimensions. A non-target cosine c_j > value
            becomes c_j (t + c_j), with slope t + 2 c_j.
    """

    value: Float[Tensor, " B"]
    slope: Float[Tensor, " B"]
    norm_slope: Float[Tensor, " B"] | None = None
    penalty: Float[Tensor, " B"] | None = None
    penalty_slope: Float[Tensor, " B"] | None = None
    hardness: Float[Tensor, ""] | None = None


class Margin(nn.Module, ABC):
    """Base class of all margins.

    To write your own margin, override `compute`, and set `batchwise` if one row's margin depends on
    the others.

    Attributes:
        gradient: "exact": the slope is d psi / d c. "straight_through": the slope is 1, so that the
            margin moves the target logit but not the size of its gradient. insightface does so
            since December 2022; beyond theta + m = pi the value here still falls, while theirs
            rises again. The setting concerns the cosine only: slopes by the norm stay the true
            ones.
        batchwise: True: `targets` needs the cosines and norms of the whole global batch, in the
            order of the ranks. False: any part will do.

    Example:
        >>> class Halved(Margin):
        ...     def compute(self, cosine, norm, valid):
        ...         return Targets(cosine / 2, torch.full_like(cosine, 0.5))
        >>> Halved(gradient="straight_through").targets(torch.tensor([0.4]), torch.ones(1))[:2]
        (tensor([0.2000]), tensor([1.]))
    """

    batchwise: bool = False
    hardens: bool = False
    """True if the margin raises the cosines of hard negatives (`Targets.hardness`)."""
    averages: bool = False
    """True if the state is an average that a batch updates before it is used."""
    undivided: str = ""
    """The reason why a batch cannot come in parts; empty where it can."""
    initial: ClassVar[dict[str, float]] = {}
    """First values of the buffers by name, for `reset_parameters`."""

    def __init__(self, *, gradient: Gradient = "exact"):
        super().__init__()
        if gradient not in get_args(Gradient):
            raise ValueError(
                f"gradient is not {gradient!r}: {nearest(gradient, get_args(Gradient))}"
            )
        self.gradient: Gradient = gradient
        self._calls = Calls[Margin]()
        self._still = False  # True for a copy that serves one call
        for name, value in self.initial.items():
            dtype = torch.int64 if isinstance(value, int) else torch.float32
            self.register_buffer(name, torch.full((), value, dtype=dtype))

    def targets(
        self,
        cosine: Float[Tensor, " B"],
        norm: Float[Tensor, " B"],
        valid: Bool[Tensor, " B"] | None = None,
    ) -> Targets:
        """Return values and slopes for these target cosines.

        In training mode this updates the margin's own state, so call it once a batch.

        Args:
            cosine: Cosines between each feature and the center of its class. Rounding beyond
                [-1, 1] is clamped, and half precisions become float32.
            norm: Norm of each feature before it was normalised.
            valid: Mask of the rows that count in averages and draws; None: all.

        Raises:
            ValueError: There is not one norm for each cosine.
            TypeError: The cosines are not floating point.
        """
        return self.found(cosine, norm, valid)[0]

    def found(
        self,
        cosine: Float[Tensor, " B"],
        norm: Float[Tensor, " B"],
        valid: Bool[Tensor, " B"] | None = None,
    ) -> tuple[Targets, "Margin"]:
        """Return `targets`, and a margin with the state from before this pass."""
        self._check(cosine, norm)
        with torch.no_grad():
            cosine = clamped(cosine)
            counted = torch.ones_like(cosine, dtype=torch.bool) if valid is None else valid
            norm = norm.to(cosine.dtype)
            called = self._as_called((cosine, norm))
            found = called.frozen() if self.training else self
            made = called.compute(cosine, norm, counted)
        return self._with_slope(made), found

    def attached(
        self,
        cosine: Float[Tensor, " B"],
        norm: Float[Tensor, " B"],
        valid: Bool[Tensor, " B"] | None = None,
    ) -> Targets:
        """Return `targets` in the autograd graph: derivatives of value and penalty of any order.

        Their first derivatives are `slope`, `norm_slope` and `penalty_slope`. Their second
        derivatives are the derivatives of these slopes: a straight-through slope of 1 has none,
        though the curve bends.

        Raises:
            RuntimeError: In training mode, under a transform of torch.func, which cannot update an
                average.
        """
        self._check(cosine, norm)
        bounded, norm = clamped(cosine), norm.to(clamped(cosine).dtype)
        counted = torch.ones_like(bounded, dtype=torch.bool) if valid is None else valid
        called = self._as_called((bounded.detach(), norm.detach()))
        try:
            made = self._with_slope(called.compute(bounded, norm, counted))
        except RuntimeError as error:
            if not (transformed() and self.training and self._buffers):
                raise
            raise RuntimeError(
                f"{self!r} moves {', '.join(self._buffers)} in training mode, and this transform "
                "of torch.func moves no tensor from outside of it. Call eval() on the margin "
                "before."
            ) from error
        value = WithSlope.apply(cosine.to(bounded.dtype), made.value.detach(), made.slope)
        if made.norm_slope is not None:
            value = WithSlope.apply(norm, value, made.norm_slope)
        penalty = made.penalty
        if penalty is not None and made.penalty_slope is not None:
            penalty = WithSlope.apply(norm, penalty.detach(), made.penalty_slope)
        return made._replace(value=value, penalty=penalty)

    def _check(self, cosine: Tensor, norm: Tensor) -> None:
        if cosine.ndim != 1 or cosine.shape != norm.shape:
            raise ValueError(
                "A margin takes target cosines (B,) and as many feature norms (B,), not "
                f"{tuple(cosine.shape)} and {tuple(norm.shape)}. Take the column of each row's own "
                "class; norms are embeddings.norm(dim=1)."
            )

    def _with_slope(self, made: Targets) -> Targets:
        return (
            made if self.gradient == "exact" else made._replace(slope=torch.ones_like(made.value))
        )

    def _as_called(self, inputs: tuple[Tensor, Tensor]) -> "Margin":
        """Return this margin, or in a rerun pass a copy with the first pass's state."""
        if self._still or not self.training or not (self.batchwise or self._buffers):
            return self
        if recomputing():
            return self._calls.recall(inputs).frozen()
        self._calls.note(inputs, self.frozen())
        return self

    def frozen(self) -> "Margin":
        """Copy this margin with its state; this margin's next batches do not change the copy.

        The copy is for one call. It uses and updates its own state as it is, also inside a backward
        pass.

        It is for one call: also inside a backward pass it takes its state as it is, and moves it.

        Example:
            >>> from marginlab.margins import CurricularFace
            >>> margin = CurricularFace(0.5)
            >>> before = margin.frozen()
            >>> margin.targets(torch.ones(2), torch.ones(2)).hardness, before.t
            (tensor(0.0100), tensor(0.))
        """
        if torch.compiler.is_compiling() or not (self.batchwise or self._buffers):
            # a graph is traced once and run once, and a margin without state is its own copy
            return self
        made = copy.copy(self)
        made._buffers = {
            name: None if buffer is None else buffer.detach().clone()
            for name, buffer in self._buffers.items()
        }
        made._calls = Calls()
        made._still = True
        return made

    def reset_parameters(self) -> None:
        """Reset the state to its first values: after `to_empty`, if made on "meta"."""
        for name, value in self.initial.items():
            getattr(self, name).fill_(value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Margin":
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, made in self._buffers.items():
            old = before[name]
            if made is not None and old is not None and _narrow(made):
                self._buffers[name] = old.to(
                    made.device, torch.promote_types(old.dtype, torch.float32)
                )
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **named: Any
    ) -> None:
        names = [f"{prefix}{name}" for name in self._buffers]  # with assign=True they come as saved
        narrow = {name: state_dict[name].float() for name in names if _narrow(state_dict.get(name))}
        super()._load_from_state_dict({**state_dict, **narrow}, prefix, *others, **named)

    def part(
        self, cosine: Float[Tensor, " B"], norm: Float[Tensor, " B"], rows: Int[Tensor, " B"]
    ) -> Targets:
        """Return the targets of a part of a global batch; the state stays.

        `rows` are the numbers of the part's rows in the batch. An average is that of earlier
        batches. A part of a batch is a micro-batch of an accumulated step. Call `closed` when all
        parts have been given.
        """
        self._check(cosine, norm)
        with torch.no_grad():
            cosine = clamped(cosine)
            made = self.compute_part(cosine, norm.to(cosine.dtype), rows)
        return self._with_slope(made)

    def compute_part(
        self, cosine: Float[Tensor, " B"], norm: Float[Tensor, " B"], rows: Int[Tensor, " B"]
    ) -> Targets:
        """Apply the rule to rows of these numbers in a batch; the state stays.

        The slope is the true one.
        """
        training = self.training
        try:
            return self.eval().compute(cosine, norm, torch.ones_like(cosine, dtype=torch.bool))
        finally:
            self.train(training)

    def closed(
        self, cosine: Float[Tensor, " B"], norm: Float[Tensor, " B"], valid: Bool[Tensor, " B"]
    ) -> None:
        """Update the state by a batch that was given in parts."""
        self.targets(cosine, norm, valid)

    @abstractmethod
    def compute(
        self, cosine: Float[Tensor, " B"], norm: Float[Tensor, " B"], valid: Bool[Tensor, " B"]
    ) -> Targets:
        """Apply the rule itself, with the true slope.

        The cosines are in [-1, 1]; cosines and norms are both float32 or both float64. Autograd is
        off, except where `attached` needs derivatives of the slopes. A value that must be a
        constant for them, such as AdaFace's norm, is detached here. When it is called again in the
        backward pass, buffers and attributes are as they were, and the state that it then updates
        is a copy's.

        Rows that are not `valid` count in no average, and their targets are not used. Use masks,
        not lists of rows, so that nothing waits for a GPU.
        """

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Refuse to be called like a loss (TypeError)."""
        raise TypeError(
            f"{type(self).__name__} is a margin, no loss: write MarginSoftmax(num_classes, dim, "
            f"margin={self!r}) and call that with (embeddings, labels). The margin's own numbers "
            "are targets(cosine, norm)."
        )


def clamped(cosine: Tensor) -> Tensor:
    """Return cosines in float32 or float64, clamped to [-1, 1]; a NaN stays one.

    Raises:
        TypeError: The cosines are not floating point.
    """
    if not cosine.is_floating_point():
        raise TypeError(
            f"Cosines are floating point, not {cosine.dtype}. Were labels given in their place?"
        )
    return cosine.to(torch.promote_types(cosine.dtype, torch.float32)).clamp(-1, 1)


def _narrow(x: Any) -> bool:
    """Return whether this is a tensor of floating-point numbers shorter than float32."""
    return isinstance(x, Tensor) and x.is_floating_point() and torch.finfo(x.dtype).bits < 32


def move(state: Tensor, new: Tensor, momentum: float) -> None:
    """Take one step of an exponential moving average, in place.

    A number that is not finite, as from an overflowing step under fp16, changes nothing.
    """
    new = new.detach()
    old = state.to(new)
    state.copy_(torch.where(new.isfinite(), old.lerp(new, momentum), old))
