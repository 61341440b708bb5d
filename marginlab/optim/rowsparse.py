"""The common part of the row-sparse optimizers: reading and writing rows, state and rounding.

    rows <- indices of the sparse gradient
    w, state <- index_select, float32;   step;   index_copy_, rounded at random where bfloat16

There are three semantics of a row without gradient (An et al. 2022 train a class center only when
it is sampled):

    "lazy"      nothing happens to it: no momentum step, no decay, its state is frozen
                    the first PyTorch Partial FC, PLSC
    "dense"     a step with a zero gradient, at once: all rows move at every step
                    the present PyTorch Partial FC
    "decayed"   the same steps, made up for in closed form when the row returns
                    costs as "lazy"

With "decayed" the skipped steps are taken at the learning rate of the step at which the row
returns. So it equals "dense", up to rounding, for given gradients at a constant rate, once
`catch_up` was called. It differs in two ways: when the rate changes while a row is away, and in the
forward pass, which sees weights that lag behind unless `catch_up` is called before it with the rows
it will read.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab import settings
from marginlab.optim import rounding
from marginlab.optim.rows import Rows, block_size, blocks, matrix_of, read, write
from marginlab.rng import Key

SEMANTICS = ("lazy", "dense", "decayed")
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


class RowSparse(torch.optim.Optimizer):
    """Base of LazySGD and LazyAdamW.

    A subclass says which moments a parameter has, and does a step, or the skipped ones, on some of
    its rows.

    A parameter (C, ...) takes a dense gradient, which touches all rows, or a sparse_coo one with
    one sparse dimension. A sparse gradient need not be coalesced: repeated rows add up. Under
    "lazy" and "decayed", time and memory of a step are proportional to the touched rows. The state
    of a parameter is its moments, the number `steps` that it has taken, and, where rows age on
    their own, `step` (C,), int32, of each row. Groups may set `first_row`: the number of their
    parameters' first row in the whole matrix of which they are a shard. The rounding draws depend
    on it.
    """

    _rows_count = False  # whether a row counts its own updates under "lazy"

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]):
        super().__init__(params, {"first_row": 0, **defaults})

    def _moments(self, group: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.dtype]:
        """Return the names of the moments of a parameter of this dtype, and their dtypes."""
        raise NotImplementedError

    def _check_group(self, group: dict[str, Any]) -> None:
        """Refuse values out of range."""
        raise NotImplementedError

    def _update(
        self,
        group: dict[str, Any],
        w: Tensor,
        moments: list[Tensor],
        gradient: Tensor,
        step: Tensor,
    ) -> None:
        """Step rows w (n, D) and their moments, in place.

        `step` (n or 1, 1), float64, is the number of this update from 1.
        """
        raise NotImplementedError

    def _skip(
        self,
        group: dict[str, Any],
        w: Tensor,
        moments: list[Tensor],
        since: Tensor,
        skipped: Tensor,
    ) -> None:
        """Take `skipped` (n,) steps without gradient after step `since` (n,), in place."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with settings of their own, as torch's optimizers do; check the values."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            lr, decay, semantics = group["lr"], group["weight_decay"], group["semantics"]
            if not lr >= 0 or not decay >= 0:
                raise ValueError(
                    f"The learning rate and the weight decay are numbers from 0, not lr={lr} and "
                    f"weight_decay={decay}."
                )
            if semantics not in SEMANTICS:
                raise ValueError(
                    f"semantics is not {semantics!r}: {settings.nearest(str(semantics), SEMANTICS)}"
                )
            self._check_group(group)
            for parameter in group["params"]:
                if parameter.dtype not in DTYPES:
                    raise ValueError(
                        f"A parameter {tuple(parameter.shape)} is {parameter.dtype}. Keep it in "
                        "float32, float64 or bfloat16."
                    )
                if not parameter.is_contiguous():
                    raise ValueError(
                        f"A parameter {tuple(parameter.shape)} with strides {parameter.stride()} "
                        "is not rows in memory. Make it contiguous."
                    )
        except ValueError:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient.

        Args:
            closure: A function that is called first, with gradients on.

        Returns:
            The closure's loss, or None without a closure.

        Raises:
            ValueError: A gradient that is sparse in other than its first dimension, or in another
                layout than sparse_coo. No parameter has moved then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [
            (number, group, p, p.grad)
            for number, (group, p) in enumerate(self._numbered())
            if p.grad is not None
        ]
        for _, _, p, grad in moving:
            if grad.layout not in (torch.strided, torch.sparse_coo) or (
                grad.is_sparse and grad.sparse_dim() != 1
            ):
                sparse = f" with {grad.sparse_dim()} sparse dimensions" if grad.is_sparse else ""
                raise ValueError(
                    f"The gradient of a parameter {tuple(p.shape)} is {grad.layout}{sparse}. "
                    "Give a dense one, or sparse_coo with one sparse dimension, the rows: "
                    "sparse_coo_tensor(rows[None], values (n, ...), shape)."
                )
        for number, group, p, grad in moving:
            state = self._begun(group, p)
            state["steps"] += 1
            now, wide = int(state["steps"]), torch.promote_types(p.dtype, torch.float32)
            for rows, part in blocks(grad, matrix_of(p), group["semantics"] == "dense", wide):
                self._visit(
                    group,
                    p,
                    state,
                    rows,
                    part,
                    now,
                    Key(group["seed"]).named("rounding", number, "step"),
                )
        return loss

    @torch.no_grad()
    def catch_up(self, parameter: Tensor, rows: Int[Tensor, " n"] | None = None) -> None:
        """Under "decayed", take the steps that these rows have skipped, at the present rate.

        Call it with the rows that the next forward pass reads, to have them up to date, and with
        all rows before the weights are used elsewhere. A parameter of other semantics, or without a
        step so far, has nothing to make up for.

        Args:
            parameter: The parameter.
            rows: (n,) rows, each named once; None for all.
        """
        for number, (group, p) in enumerate(self._numbered()):
            if p is parameter and group["semantics"] == "decayed" and self.state.get(p):
                matrix, state = matrix_of(p), self.state[p]
                size = max(1, block_size(matrix) // max(1, matrix.shape[1]))
                parts = (
                    [slice(a, min(a + size, len(matrix))) for a in range(0, len(matrix), size)]
                    if rows is None
                    else rows.split(size)
                )
                for part in parts:
                    key = Key(group["seed"]).named("rounding", number, "catch_up")
                    self._visit(group, p, state, part, None, int(state["steps"]), key)

    def _numbered(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        return ((group, p) for group in self.param_groups for p in group["params"])

    def _begun(self, group: dict[str, Any], p: Tensor) -> dict[str, Any]:
        """Return the state of a parameter, made with its first step.

        The state is zeros in the dtype it is kept in, made without temporaries.
        """
        state: dict[str, Any] = self.state[p]
        if "steps" not in state:
            state["steps"] = torch.zeros((), dtype=torch.int64)
            if group["semantics"] == "decayed" or (
                group["semantics"] == "lazy" and self._rows_count
            ):
                state["step"] = torch.zeros(len(matrix_of(p)), dtype=torch.int32, device=p.device)
        for name, dtype in self._moments(group, p.dtype).items():
            if name not in state:  # a group's momentum may be set later
                state[name] = torch.zeros(p.shape, dtype=dtype, device=p.device)
        return state

    def _visit(
        self,
        group: dict[str, Any],
        p: Tensor,
        state: dict[str, Any],
        rows: Rows,
        gradient: Float[Tensor, "n D"] | None,
        now: int,
        key: Key,
    ) -> None:
        """Read rows, make up for skipped steps, step by the gradient (None: no step), and write."""
        tables = [
            matrix_of(t)
            for t in (p.detach(), *(state[name] for name in self._moments(group, p.dtype)))
        ]
        wide = torch.promote_types(p.dtype, torch.float32)
        w, *moments = (read(table, rows, wide) for table in tables)
        step = torch.full((1, 1), float(now), dtype=torch.float64, device=p.device)
        if "step" in state:
            counts = read(state["step"], rows, torch.int64)
            if group["semantics"] == "decayed":
                skipped = now - counts - (0 if gradient is None else 1)
                if bool(skipped.any()):
                    self._skip(group, w, moments, counts, skipped)
                counts = torch.full_like(counts, now)
            else:
                counts = counts + 1
                step = counts[:, None].double()
            write(state["step"], rows, counts.to(torch.int32))
        if gradient is not None:
            self._update(group, w, moments, gradient, step)
        drawn: rounding.Tables | None = None
        for which, (table, new) in enumerate(zip(tables, (w, *moments), strict=True)):
            if table.dtype == torch.bfloat16:
                if drawn is None:
                    index = (
                        torch.arange(rows.start, rows.stop, device=p.device)
                        if isinstance(rows, slice)
                        else rows
                    )
                    drawn = rounding.tables(key.at(now), index + group["first_row"], w.shape[1])
                new = rounding.stochastic_round(new.float(), drawn.bits(which))
            write(table, rows, new)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the result of `state_dict`; the state keeps the dtypes it was saved in.

        torch would cast the state to the parameter's dtype.

        Raises:
            ValueError: Other groups, as torch's; or state of another optimizer or of another shape.
        """
        saved = state_dict["state"]
        numbers = list(chain.from_iterable(group["params"] for group in state_dict["param_groups"]))
        parameters = [p for _, p in self._numbered()]
        # torch's own check of the numbers follows
        for number, p in zip(numbers, parameters, strict=False):
            for name, value in saved.get(number, {}).items():
                shape = {"steps": (), "step": (len(matrix_of(p)),)}.get(name, tuple(p.shape))
                if "steps" not in saved[number] or tuple(value.shape) != shape:
                    raise ValueError(
                        f"The state {name} {tuple(value.shape)} was not saved by "
                        f"{type(self).__name__} for a parameter {tuple(p.shape)}: that has a count "
                        f"of steps, and here the shape {shape}. Load the state of the same "
                        "optimizer and parameters."
                    )
        super().load_state_dict({**state_dict, "state": {}})
        for number, p in zip(numbers, parameters, strict=True):
            if number in saved:
                self.state[p] = {
                    name: value.to("cpu" if name == "steps" else p.device)
                    for name, value in saved[number].items()
                }
