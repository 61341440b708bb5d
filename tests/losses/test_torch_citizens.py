"""Promises of torch for every function: second derivatives, torch.func, compile, export, meta."""

import functools
import os
import sys

import forked
import pytest
import torch

from marginlab import losses
from marginlab.losses.functional import (
    align_uniform,
    cross_correlation,
    info_nce,
    spectral_contrastive,
    sup_con,
    t_info_nce,
    vicreg,
)

LABELS = torch.arange(5).repeat(2)
CLASSES = torch.tensor([0, 1, 0, 2, 1])


def of_labels(z1, z2, **arguments):
    return sup_con(torch.cat((z1, z2)), LABELS.to(z1.device), **arguments)


LOSSES = {
    "InfoNCE": functools.partial(info_nce, temperature=0.3),
    "InfoNCE cold": functools.partial(info_nce, temperature=0.002),
    "InfoNCE debiased towers": functools.partial(info_nce, negatives="other_view", tau_plus=0.1),
    "InfoNCE extra only": lambda a, b, **more: info_nce(
        a,
        b,
        negatives="extra_only",
        extra_negatives=torch.eye(3, dtype=a.dtype, device=a.device),
        **more,
    ),
    "InfoNCE with labels": lambda a, b, **more: info_nce(
        a, b, labels=CLASSES[: len(a)].to(a.device), **more
    ),
    "SupCon": of_labels,
    "SupCon in": functools.partial(of_labels, variant="in", ignore_index=3),
    "AlignUniform": align_uniform,
    "TInfoNCE": t_info_nce,
    "VICReg": functools.partial(vicreg, gamma=2.0),
    "CrossCorrelation": cross_correlation,
    "SpectralContrastive": spectral_contrastive,
}
BLOCKWISE = {"budget": 200}  # blocks of some rows and columns; of two features' covariances whole
VIEWS = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
each = pytest.mark.parametrize("name", LOSSES)


def budgets(name):
    function = LOSSES[name]
    alone = name in ("SpectralContrastive",)
    return [function] if alone else [function, functools.partial(function, **BLOCKWISE)]


@pytest.mark.parametrize("place", [-1, pytest.param(0, marks=pytest.mark.nightly)])
# with logits of 500 it is too steep for differences
@pytest.mark.parametrize("name", sorted({*LOSSES} - {"InfoNCE cold"}))
def test_second_derivatives_are_those_of_differences(name, place):
    """Of the loss in blocks; the nightly tests have that of one block."""
    views = [z.clone().requires_grad_() for z in VIEWS]
    assert torch.autograd.gradgradcheck(budgets(name)[place], views)


@each
def test_torch_func_gives_what_autograd_gives(name):
    for function in budgets(name):
        views = [z.clone().requires_grad_() for z in VIEWS]
        expected = torch.autograd.grad(function(*views), views)
        got = torch.func.grad(function, (0, 1))(*VIEWS)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)
        (first,) = torch.autograd.grad(function(*views), views[:1], create_graph=True)
        (second,) = torch.autograd.grad(first[1, 2], views[0])
        hessian = torch.func.jacrev(torch.func.grad(function))(*VIEWS)
        torch.testing.assert_close(hessian[1, 2], second)
        several = torch.stack((VIEWS[0], VIEWS[1], VIEWS[0] * 2))
        every = torch.func.vmap(torch.func.grad(function), (0, None))(several, VIEWS[1])
        for one, z in zip(every, several, strict=True):
            torch.testing.assert_close(one, torch.func.grad(function)(z, VIEWS[1]))


def test_functional_call_differentiates_the_weights_of_a_layer():
    layer = torch.nn.Linear(3, 4, dtype=torch.float64)
    weights = dict(layer.named_parameters())

    def loss(weights, views):
        one, two = (torch.func.functional_call(layer, weights, (z,)) for z in views)
        return info_nce(one, two)

    got = torch.func.grad(loss)(weights, VIEWS)
    info_nce(*(layer(z) for z in VIEWS)).backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad)


@each
@pytest.mark.parametrize("rows", [2, 5])
def test_a_kept_graph_gives_the_same_gradient_twice(name, rows):
    labels = {"labels": torch.arange(rows).repeat(2)} if name.startswith("SupCon") else {}
    for function in budgets(name):
        if labels:
            function = functools.partial(
                lambda a, b, labels, keywords: sup_con(torch.cat((a, b)), labels, **keywords),
                keywords={} if function is LOSSES[name] else BLOCKWISE,
                **labels,
            )
        views = [z[:rows].clone().requires_grad_() for z in VIEWS]
        value = function(*views)
        first = torch.autograd.grad(value, views, retain_graph=True)
        for again in (torch.autograd.grad(value, views, retain_graph=True) for _ in range(2)):
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", ["InfoNCE", "AlignUniform", "TInfoNCE", "VICReg", "SupCon"])
def test_on_the_meta_device_they_have_shapes(name):
    with torch.device("meta"):
        loss = getattr(losses, name)()
        z = torch.randn(6, 4, requires_grad=True)
        labels = torch.zeros(6, dtype=torch.long)
        value = loss(z, labels if name == "SupCon" else z * 2)
        value.backward()
        learned = losses.InfoNCE(learnable=True, negatives="other_view")
        learned(z, z)
    assert (value.device.type, value.shape, z.grad.shape) == ("meta", (), (6, 4))
    assert repr(learned).startswith("InfoNCE(")


COMPILED = """
import sys, torch
sys.path[:0] = {tests!r}
import test_torch_citizens as tests

class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
    def forward(self, z1, z2):
        return self.function(z1, z2)

for name in sys.argv[1:]:
    for function in tests.budgets(name)[: 2 if name == "InfoNCE" else 1]:
        torch._dynamo.reset()
        views, again = ([z.clone().requires_grad_() for z in tests.VIEWS] for _ in range(2))
        value = torch.compile(function, backend="eager", fullgraph=True)(*views)
        expected = function(*again)
        torch.testing.assert_close(value, expected)
        value.backward()
        expected.backward()
        for a, b in zip(views, again):
            torch.testing.assert_close(a.grad, b.grad)
        exported = torch.export.export(Module(function), tuple(tests.VIEWS)).module()
        torch.testing.assert_close(exported(*tests.VIEWS), expected.detach())
"""


NAMED = ["InfoNCE", "SupCon", "AlignUniform"]  # whose loops over blocks broke the graph


@pytest.mark.parametrize(
    "names",
    [NAMED, pytest.param(sorted({*LOSSES} - {*NAMED}), marks=pytest.mark.nightly)],
    ids=["blocks", "the others"],
)
def test_each_compiles_as_one_graph_and_exports(request, tmp_path, names):
    """In a process without the checker of annotations, which torch.compile cannot trace."""
    text = COMPILED.format(tests=[str(place) for place in request.path.parents[:2]])
    child = forked.run(
        [sys.executable, "-c", text, *names], cwd=tmp_path, env=dict(os.environ), timeout=200
    )
    assert child.returncode == 0, child.stderr[-3000:]
