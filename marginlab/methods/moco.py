"""MoCo: a query is to find the key of its image's other view among keys of earlier batches.

A slowly moving copy of the network makes the keys. For a query q with its key k, the queue n_1 ..
n_K and the temperature T, all of length 1,

    loss_q = -log( e^{q.k/T} / (e^{q.k/T} + sum_j e^{q.n_j/T}) )
           = softplus( log sum_j e^{q.n_j/T} - q.k/T )
    after each step:   w_key <- m w_key + (1 - m) w_query
                       the step's keys take the place of the oldest in the queue

The other keys of the batch are no negatives: only the queue is.

Shuffled batch normalisation. A query and its key from one batch share its statistics. The network
learns to read this mark in place of the images. He et al. pass the keys through other GPUs than
their queries. Here, on every rank alone, the images of a view are normalised in `splits` parts:
consecutive ones for the queries, those of a random permutation for the keys. With splits=1 a view
is normalised as a whole, and nothing is shuffled. A backbone without batch normalisation should use
splits=1.

Sources: He et al. 2020 (MoCo), algorithm 1 and section 3.3; the two-layer head: Chen et al. 2020
(MoCo v2); settings of Huang et al. 2023 (T = 0.1, K = 4096, m = 0.99, symmetric, 8 splits,
SGD(lr=0.08) at batch 512).
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from marginlab import ranks
from marginlab.kernels import logsumexp
from marginlab.losses.pair import directions, widened
from marginlab.methods.method import MakeOptimizer, Method
from marginlab.models import Backbone, Projector
from marginlab.recomputation import Calls, recomputing
from marginlab.settings import describe


class _Averages(nn.Module):
    """Tensors by number, of a precision that no cast changes."""

    def get(self, number: int) -> Tensor | None:
        return self._buffers.get(str(number))

    def put(self, number: int, value: Tensor | None) -> None:
        if value is None:
            del self._buffers[str(number)]
        else:
            self.register_buffer(str(number), value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Averages":
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, value in before.items():
            moved = self._buffers[name]
            if value is not None and moved is not None and moved.dtype != value.dtype:
                self._buffers[name] = value.to(moved.device)
        return self


class MoCo(Method):
    """A backbone, a head D - hidden - dim with ReLU, their momentum copies, and a queue of keys.

    The queue (K, dim), which begins with random directions, and the place of its oldest key are
    buffers. A checkpoint holds them, the same on any number of ranks. All ranks put all keys in, in
    the order of the batch. So N ranks give the loss and gradients of one, except for batch
    normalisation.

    `after_step` moves the momentum encoder. It also fills the queue with the keys that `loss` has
    made since, in training mode. Call it after the optimizer. Under torch.utils.checkpoint, with
    and without reentrance, a batch's keys are put in once.

    In a module of lower precision (`.bfloat16()`) a step of the momentum encoder is below the
    rounding of its weights, which would stand still. So their averages are kept beside them in
    float32, in `averages`, whatever the module is cast to. A module of either precision loads the
    state of the other.

    Args:
        backbone: The backbone, with features of dimension D.
        temperature: T.
        queue: K, the number of keys that are kept. They are negatives of every query. A step that
            makes more keys keeps its newest.
        momentum: m, the part of itself that the momentum encoder keeps at a step, in [0, 1).
        symmetric: If True, both views are queries and both are keys, and the loss is their mean. If
            False, the first view asks for the second, as in algorithm 1.
        splits: Number of parts of this rank's batch (of a micro-batch) that are normalised by
            themselves. Each has at least two images.
        hidden: Width of the head's hidden layer.
        dim: Dimension of the embedding.

    Raises:
        ValueError: A value is outside its range. Also from `loss` in training mode, for a batch
            with fewer than 2 * splits images.

    Example:
        >>> from marginlab.models import Backbone
        >>> method = MoCo(Backbone("resnet18", stem="strided", width=0.25), queue=16, splits=2)
        >>> sorted(method.loss(torch.rand(4, 2, 3, 32, 32), torch.zeros(4, dtype=torch.long)))
        ['loss']
        >>> method.after_step()
        >>> int(method.oldest)  # 8 of the 16 keys are new
        8
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        temperature: float = 0.1,
        queue: int = 4096,
        momentum: float = 0.99,
        symmetric: bool = True,
        splits: int = 8,
        hidden: int = 512,
        dim: int = 128,
    ):
        super().__init__(backbone, Projector((backbone.dim, hidden, dim)))
        if not temperature > 0:
            raise ValueError(f"A temperature is positive, such as 0.1, not {temperature}.")
        if not 0 <= momentum < 1:
            raise ValueError(
                "The momentum encoder keeps a part of itself in [0, 1), such as 0.99, not "
                f"{momentum}."
            )
        if queue < 1 or splits < 1:
            raise ValueError(
                f"A queue holds at least 1 key and a batch has at least 1 split, not {queue} and "
                f"{splits}."
            )
        self.temperature, self.momentum, self.symmetric, self.splits = (
            temperature,
            momentum,
            symmetric,
            splits,
        )
        self.hidden, self.dim = hidden, dim
        self.key_backbone, self.key_head = (
            copy.deepcopy(part).requires_grad_(False) for part in (self.backbone, self.head)
        )
        self.queue: Tensor
        self.oldest: Tensor
        self.register_buffer("queue", F.normalize(torch.randn(queue, dim)))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))
        self.averages = _Averages()
        # keys of this step's micro-batches: the queue stays as it is until the backward pass has
        # used it
        self.fresh: list[Tensor] = []
        self._calls = Calls[None]()

    def loss(
        self, views: Float[Tensor, "B 2 3 H W"], labels: Int[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """Return InfoNCE of the queries against their keys and the queue, over all ranks' rows."""
        if self.training and len(views) < 2 * self.splits:
            raise ValueError(
                f"MoCo normalises a batch in {self.splits} splits of at least two images each, and "
                f"this rank's has {len(views)}. Give at least {2 * self.splits}, or "
                f"MoCo(splits={max(len(views) // 2, 1)})."
            )
        order = (0, 1) if self.symmetric else (0,)
        asked = torch.stack(
            [
                self._in_splits(lambda x: self.project(self.encode(x)), views[:, view])
                for view in order
            ],
            1,
        )
        with torch.no_grad():
            made = torch.stack([self._keys(views[:, 1 - view]) for view in order], 1)
        with torch.autocast(views.device.type, enabled=False):
            wide = torch.promote_types(self.queue.dtype, torch.float32)
            q, k = (directions(widened(z, wide).flatten(0, 1)) for z in (asked, made))
            rows = sum(ranks.rows_per_rank(len(q), device=q.device))
            far = logsumexp(q, self.queue, scale=1 / self.temperature)
            # torch's threshold of 20 leaves an error of 2e-9
            losses = F.softplus(far - (q * k).sum(1) / self.temperature, threshold=40.0)
            if self.training and torch.is_grad_enabled():
                self._keep(k)
            return {"loss": ranks.all_reduce(losses.sum() / rows, grads="mean")}

    def _in_splits(self, encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Return embeddings of images, encoded in parts that batch normalisation sees one by one.

        In evaluation mode all images are one part.
        """
        parts = images.tensor_split(self.splits) if self.training else (images,)
        return torch.cat([encode(part) for part in parts])

    def _keys(self, images: Tensor) -> Tensor:
        """Return the momentum encoder's embeddings, made in splits of a random permutation."""
        order = torch.arange(len(images), device=images.device)
        if self.training and self.splits > 1:
            order = order[torch.randperm(len(images), device=images.device)]
        keys = self._in_splits(lambda x: self.key_head(self.key_backbone(x)), images[order])
        return torch.empty_like(keys).index_copy_(0, order, keys)

    def _keep(self, keys: Tensor) -> None:
        """Note keys for the queue, unless the pass that is now run again has done so.

        A first pass under a reentrant checkpoint has no gradients, and looks like a mere evaluation
        of the loss. In that case only the second pass comes here.
        """
        if recomputing() and self._calls.noted((keys,)):
            return
        if not recomputing():
            self._calls.note((keys,), None)
        self.fresh.append(ranks.all_gather(keys).to(self.queue.dtype))

    def optimizers(self, make: MakeOptimizer) -> list[torch.optim.Optimizer]:
        """Make one optimizer of all that learns by gradient: backbone and head."""
        return [make([*self.backbone.parameters(), *self.head.parameters()])]

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the momentum encoder towards the encoder, and put this step's keys into the queue.

        They take the place of the oldest keys.
        """
        now = [*self.backbone.parameters(), *self.head.parameters()]
        for i, (mean, parameter) in enumerate(zip(self._moving(), now, strict=True)):
            # Buffers, such as running statistics, are the key encoder's own
            exact = self.averages.get(i)
            if exact is None:
                mean.lerp_(parameter, 1 - self.momentum)
            else:
                mean.copy_(exact.lerp_(parameter.to(exact.dtype), 1 - self.momentum))
        if self.fresh:
            keys = torch.cat(self.fresh)[-len(self.queue) :]
            place = (self.oldest + torch.arange(len(keys), device=keys.device)) % len(self.queue)
            self.queue.index_copy_(0, place, keys)
            self.oldest.add_(len(keys)).remainder_(len(self.queue))
            self.fresh = []
        self._calls = Calls()

    def _moving(self) -> list[Tensor]:
        """Return the weights of the momentum encoder."""
        return [*self.key_backbone.parameters(), *self.key_head.parameters()]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MoCo":
        """Cast or move; averages of weights that become half precision stay as they were."""
        before = [mean.detach() for mean in self._moving()]
        super()._apply(fn, recurse)
        for i, (old, mean) in enumerate(zip(before, self._moving(), strict=True)):
            exact = self.averages.get(i)
            if torch.finfo(mean.dtype).bits < 32:
                if exact is None and not mean.is_meta:
                    wide = torch.promote_types(old.dtype, torch.float32)
                    self.averages.put(i, old.to(mean.device, wide, copy=True))
            elif exact is not None:
                mean.data.copy_(exact)
                self.averages.put(i, None)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *more: Any
    ) -> None:
        """Load a state of either precision: averages from weights, or weights from averages."""
        assigned = local_metadata.get("assign_to_params_buffers", False)
        moving = (("key_backbone", self.key_backbone), ("key_head", self.key_head))
        names = [f"{part}.{name}" for part, net in moving for name, _ in net.named_parameters()]
        for i, (name, mean) in enumerate(zip(names, self._moving(), strict=True)):
            weight, average = prefix + name, f"{prefix}averages.{i}"
            given, exact = state_dict.get(weight), state_dict.get(average)
            dtype = given.dtype if assigned and given is not None else mean.dtype
            wide = torch.promote_types(dtype, torch.float32)
            if dtype == wide:
                if exact is not None:
                    state_dict[weight] = exact.to(dtype)
                    del state_dict[average]
                if self.averages.get(i) is not None:
                    self.averages.put(i, None)
                continue
            if exact is None and given is not None:
                state_dict[average] = given.to(wide)
            if self.averages.get(i) is None:
                self.averages.put(i, mean.detach().to(wide))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *more)

    def __repr__(self) -> str:
        named = {
            "temperature": self.temperature,
            "queue": len(self.queue),
            "momentum": self.momentum,
            "symmetric": self.symmetric,
        }
        return describe("MoCo", **named, splits=self.splits, hidden=self.hidden, dim=self.dim)
