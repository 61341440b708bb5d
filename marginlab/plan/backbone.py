"""The memory and operations of a backbone beside the head.

    resident    = 4 P (1 parameter + 1 gradient + moments + 1 bucket of gradients)
                  P numbers, float32; the bucket only with several ranks
    activations = bytes of the distinct storages that autograd saves, without the parameters
                  themselves

The activations are kept by the forward pass for the backward pass. A model of timm is run once on
fake tensors (sizes and types, no memory): its operations, and the tensors they save, are those of a
real run.
"""

import functools

import torch
from torch.utils.flop_counter import FlopCounterMode

from marginlab.plan.setup import MOMENTS, Setup


def backbone(setup: Setup) -> tuple[int, int]:
    """Return the bytes that are always there, and the bytes of activations.

    Raises:
        ValueError: Text that is neither a number of GiB nor a model of timm, or an image size that
            the model does not take.

    Example:
        >>> backbone(Setup(backbone="1.5"))
        (1610612736, 0)
        >>> backbone(Setup())
        (0, 0)
    """
    if not setup.backbone:
        return 0, 0
    try:
        given = float(setup.backbone)
    except ValueError:
        parameters, activations, _ = traced(
            setup.backbone, setup.dim, setup.batch, setup.image_size, setup.precision
        )
        return 4 * parameters * (2 + MOMENTS[setup.optimizer] + (setup.ranks > 1)), activations
    if not 0 <= given < float("inf"):
        raise ValueError(f"A backbone takes a number of GiB from 0, not {setup.backbone}.")
    return int(given * 2**30), 0


def backbone_flop(setup: Setup) -> int:
    """Return the floating-point operations of the forward and backward pass of a rank's batch.

    They are three times the forward pass, and 0 for a backbone given in GiB.
    """
    try:
        float(setup.backbone or "0")
    except ValueError:
        return (
            3 * traced(setup.backbone, setup.dim, setup.batch, setup.image_size, setup.precision)[2]
        )
    return 0


@functools.cache
def traced(
    name: str, dim: int, batch: int, image_size: int, precision: str
) -> tuple[int, int, int]:
    """Trace a timm model with D outputs, for a forward pass in training.

    Returns:
        The number of parameters, the bytes of activations, and the flop of the forward pass.
    """
    # an extra (`lab`): a plan without a named backbone does without
    from timm import create_model, is_model
    from torch._subclasses.fake_tensor import FakeTensorMode

    if not is_model(name):
        raise ValueError(
            f"A backbone is a number of GiB, such as 3.5, or a model of timm, not {name!r}; see "
            "timm.list_models()."
        )
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        storage = saved.untyped_storage()
        kept[storage._cdata] = storage
        return saved

    with torch.device("meta"):
        try:
            model = create_model(name, num_classes=dim, img_size=image_size)
        except TypeError:  # a model that takes every size
            model = create_model(name, num_classes=dim)
    with FakeTensorMode(allow_non_fake_inputs=True):
        # fake CPU tensors, since autocast leaves meta ones as they are
        model = model.to_empty(device="cpu").train()
        images = torch.empty(batch, 3, image_size, image_size)
        cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        counter = FlopCounterMode(display=False)
        try:
            with cast, counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
                out = model(images)  # noqa: F841 - holds what is saved
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ValueError(
                f"{name} does not take {batch} images of {image_size} x {image_size}: {error}. Set "
                "image_size."
            ) from error
        own = {
            tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())
        }
        activations = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
        return (
            sum(p.numel() for p in model.parameters()),
            activations,
            int(counter.get_total_flops()),
        )
