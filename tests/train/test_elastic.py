"""A head and its lazy optimizer, saved on N ranks and loaded on M: the same centers and state, and
the same losses from there on.
"""

import functools
import itertools
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from marginlab import margins
from marginlab.losses import PartialFC
from marginlab.optim import LazyAdamW, LazySGD
from marginlab.settings import make
from marginlab.train import contents
from marginlab.train.optimizer_state import named, put, saved_as

CLASSES, DIM = 11, 4
HEADS = (
    "ArcFace(0.5)",
    "CosFace(0.35)",
    "CombinedMargin(0.9, 0.4, 0.15)",
    "MagFace(l_a=0.5, u_a=5.0)",
    "CurricularFace(0.5)",
    "ElasticFace(0.5, std=0.05)",
    "AdaFace(0.4)",
)
WITH_STATE = HEADS[4:]
RATES = {"SGD": 1.0, "AdamW": 0.3, "decayed": 0.3}


class Small(nn.Module):
    """A shared layer under a head that is spread over the ranks."""

    def __init__(self, group, rate, seed, margin="AdaFace(0.4)", subcenters=2):
        super().__init__()
        self.layer = nn.Linear(3, DIM, dtype=torch.float64)
        with torch.no_grad():
            self.layer.weight.copy_(
                torch.randn(DIM, 3, generator=torch.Generator().manual_seed(seed))
            )
            self.layer.bias.zero_()
        settings = {
            "sample_rate": rate,
            "scale": 8.0,
            "subcenters": subcenters,
            "dtype": torch.float64,
            "grads": "sum",
            "seed": 3,
        }
        margin = make(margin, margins, margins.Margin)
        self.head = PartialFC(CLASSES, DIM, margin=margin.double(), group=group, **settings)


def made(group, kind, seed=0):
    """A kind is an optimizer, or an optimizer and a margin whose head has three sub-centers."""
    kind, _, margin = kind.partition("/")
    more = (margin, 3) if margin else ()
    module = Small(group, RATES[kind], seed, *more)
    centers = [{"params": [module.head.centers], "first_row": module.head.part.start}]
    lazy = {
        "SGD": functools.partial(LazySGD, lr=0.1, weight_decay=0.01),
        "decayed": functools.partial(LazySGD, lr=0.1, weight_decay=0.01, semantics="decayed"),
        "AdamW": functools.partial(LazyAdamW, lr=0.01),
    }[kind](centers)
    return module, [torch.optim.SGD(module.layer.parameters(), 0.1, 0.9), lazy]


def steps(group, rank, n, module, optimizers, first, last):
    """Losses of the steps first to last - 1, each on 6 rows that belong to the step, spread over
    the ranks.
    """
    losses = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        x, labels = (
            torch.randn(6, 3, dtype=torch.float64, generator=generator),
            torch.randint(CLASSES, (6,), generator=generator),
        )
        own = slice(6 * rank // n, 6 * (rank + 1) // n)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = module.head(module.layer(x[own]), labels[own])
        loss.backward()
        for parameter in module.layer.parameters():
            dist.all_reduce(parameter.grad, group=group)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def quietly(function, *arguments, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, on saving by a part of the default group
        return function(*arguments, **keywords)


def saved(group, rank, n, kind, folder):
    module, optimizers = made(group, kind)
    steps(group, rank, n, module, optimizers, 0, 4)
    state = {
        "method": module.state_dict(),
        "optimizer0": named(module, optimizers[0]),
        "optimizer1": named(module, optimizers[1]),
    }
    quietly(dcp.save, state, checkpoint_id=folder, process_group=group)
    return steps(group, rank, n, module, optimizers, 4, 9)


def loaded(group, rank, n, kind, folder):
    module, optimizers = made(group, kind, seed=1)
    state = {
        "method": module.state_dict(),
        **saved_as(contents.metadata(folder), folder, module, optimizers),
    }
    quietly(dcp.load, state, checkpoint_id=folder, process_group=group)
    module.load_state_dict(state["method"])
    for number, optimizer in enumerate(optimizers):
        put(module, optimizer, state[f"optimizer{number}"])
    held = optimizers[1].state[module.head.centers]
    kept = {name: value.clone() for name, value in held.items() if value.ndim}
    centers = module.head.centers.detach().clone()
    rows = [group_["first_row"] for group_ in optimizers[1].param_groups]
    return centers, kept, rows, steps(group, rank, n, module, optimizers, 4, 9)


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("SGD", (1, 3, 4)),
        ("AdamW", (1, 3)),
        ("decayed", (1, 4)),
        *((f"AdamW/{margin}", (1, 3)) for margin in WITH_STATE),
        *(pytest.param(kind, (1, 2, 3, 4), marks=pytest.mark.nightly) for kind in RATES),
        *(
            pytest.param(f"SGD/{margin}", (1, 2, 3, 4), marks=pytest.mark.nightly)
            for margin in HEADS
        ),
    ],
)
def test_saved_on_n_ranks_it_goes_on_alike_on_m(pool, tmp_path, kind, numbers):
    whole = {}
    for n, m in itertools.product(numbers, repeat=2):
        folder = tmp_path / f"saved-{n}"
        if n not in whole:
            whole[n] = pool.run(n, saved, n, kind, folder)[0]
            torch.testing.assert_close(whole[n], whole[1], rtol=1e-10, atol=1e-10)
        answers = pool.run(m, loaded, m, kind, folder)
        for centers, kept, rows, losses in answers:
            torch.testing.assert_close(losses, whole[1], rtol=1e-10, atol=1e-10)
            assert all(len(value) == len(centers) for value in kept.values())
            assert len(rows) == 1
        assert [rows[0] for _, _, rows, _ in answers] == [
            min(r * -(-CLASSES // m), CLASSES) for r in range(m)
        ]
        joined = {
            name: torch.cat([kept[name] for _, kept, _, _ in answers]) for name in answers[0][1]
        }
        joined["centers"] = torch.cat([centers for centers, _, _, _ in answers])
        if m == 1 and n == 1:
            one = joined
        for name, value in joined.items():
            torch.testing.assert_close(value, one[name], rtol=1e-10, atol=1e-12)


def test_state_of_another_method_is_refused(tmp_path):
    module, optimizers = made(None, "SGD")
    loss = module.head(module.layer(torch.randn(4, 3, dtype=torch.float64)), torch.arange(4))
    loss.backward()
    optimizers[1].step()
    quietly(
        dcp.save,
        {"optimizer1": named(module, optimizers[1])},
        checkpoint_id=tmp_path / "a",
        no_dist=True,
    )
    other = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(
        ValueError, match=r"optimizer state of 'head\.centers', which this method does not have"
    ):
        saved_as(
            contents.metadata(tmp_path / "a"),
            tmp_path / "a",
            other,
            [torch.optim.SGD(other.parameters(), 0.1)] * 2,
        )
