"""Second derivatives: over ranks, under autocast, of views that coincide; and no forward mode."""

import functools

import pytest
import torch
from test_torch_citizens import BLOCKWISE, LOSSES, VIEWS, budgets

from marginlab.losses.functional import (
    align_uniform,
    cross_correlation,
    info_nce,
    spectral_contrastive,
    sup_con,
    t_info_nce,
    vicreg,
)
from marginlab.losses.sup_con import References

ALL = slice(None)
X1, X2 = torch.randn(2, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 0, 1, 1, 2, 0, 2])
CLASSES = torch.tensor([0, 2, 1, 1, 0, 2, 3])


def of_classes(z1, z2, other, temperature, part, **named):
    return sup_con(z1, LABELS[part], temperature=temperature, base_temperature=0.1, **named)


def of_references(z1, z2, other, temperature, part, **named):
    references = References(other, CLASSES[part])
    named |= {"references": references, "ignore_index": 1}
    return sup_con(z1, LABELS[part], temperature=temperature, **named)


def towers(z1, z2, other, temperature, part, **named):
    named |= {"negatives": "other_view", "tau_plus": 0.1, "extra_negatives": other}
    return info_nce(z1, z2, temperature=temperature, **named)


OVER_RANKS = {
    "InfoNCE": lambda a, b, _, t, part, **named: info_nce(a, b, temperature=t, **named),
    "InfoNCE towers": towers,
    "SupCon": of_classes,
    "SupCon references": of_references,
    "AlignUniform": lambda a, b, _, t, part, **named: align_uniform(a, b, alpha=3.0, **named),
    "TInfoNCE": lambda a, b, _, t, part, **named: t_info_nce(a, b, **named),
    "VICReg": lambda a, b, _, t, part, **named: vicreg(a, b, gamma=2.0, **named),
    "CrossCorrelation": lambda a, b, _, t, part, **named: cross_correlation(a, b, **named),
    "SpectralContrastive": lambda a, b, _, t, part, **named: spectral_contrastive(a, b, **named),
}


def twice(name, part, grads, group=None):
    """First derivatives, and those of their product with a direction, for the rows of a part."""
    scale = torch.tensor(0.3, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for x in (X1[part], X2[part], OTHER[part], scale)]
    loss = OVER_RANKS[name](*inputs, part, grads=grads, group=group)

    def slopes(value, graph):
        found = torch.autograd.grad(value, inputs, create_graph=graph, allow_unused=True)
        return [torch.zeros_like(x) if d is None else d for d, x in zip(found, inputs, strict=True)]

    first = slopes(loss, True)
    directions = (X1.sin()[part], OTHER.cos()[part], X2.sin()[part])
    product = sum((d * v).sum() for d, v in zip(first, directions, strict=False))
    return [d.detach() for d in first], slopes(product, False)


def twice_on_a_rank(group, rank, name, parts, grads):
    return twice(name, parts[rank], grads, group)


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("name", OVER_RANKS)
@pytest.mark.parametrize("grads", ["sum", "mean"])
def test_on_ranks_they_are_those_of_one_rank(pool, name, grads):
    """The sum over ranks of a function of each rank's gradient has the derivatives of one rank."""
    expected = twice(name, ALL, grads)
    parts = [slice(0, 3), slice(3, 3), slice(3, 7)]
    answers = pool.run(3, twice_on_a_rank, name, parts, grads)
    for order in (0, 1):
        for i, whole in enumerate(expected[order]):
            got = [answer[order][i] for answer in answers]
            joined = torch.cat(got) if whole.ndim else torch.stack(got).sum()
            factor = 3 if grads == "mean" else 1
            torch.testing.assert_close(joined, factor * whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_lowers_neither_first_nor_second_ones(name):
    views = [z.float().requires_grad_() for z in VIEWS]
    for function in budgets(name):
        found = []
        for lowered in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lowered):
                loss = function(*views)
                first = torch.autograd.grad(loss, views, create_graph=True)
                product = sum(
                    (d * z.detach().sin()).sum() for d, z in zip(first, views, strict=True)
                )
                found.append([*first, *torch.autograd.grad(product, views)])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("name", LOSSES)
def test_views_that_coincide_have_finite_ones(name, alpha):
    if alpha != 2.0 and name != "AlignUniform":
        return
    function = functools.partial(LOSSES[name], **({"alpha": alpha} if alpha != 2.0 else {}))
    one = VIEWS[0].clone()
    one[1] = 0.0
    views = [one.clone().requires_grad_() for _ in range(2)]
    first = torch.autograd.grad(function(*views), views, create_graph=True)
    second = torch.autograd.grad(sum((d * VIEWS[1]).sum() for d in first), views)
    assert all(bool(d.isfinite().all()) for d in (*first, *second))


def test_the_squared_distance_of_equal_directions_has_its_curvature():
    """Of |x - y|^2 the second derivative is 2 everywhere; of its root the value decides."""
    function = functools.partial(align_uniform, uniformity_weight=0.0)
    views = [VIEWS[0].clone().requires_grad_() for _ in range(2)]
    assert torch.autograd.gradgradcheck(function, views)
    z = VIEWS[0]
    for alpha in (1.0, 3.0):
        got = align_uniform(z, VIEWS[1], uniformity_weight=0.0, alpha=alpha)
        one, two = (torch.nn.functional.normalize(v) for v in (z, VIEWS[1]))
        torch.testing.assert_close(got, (one - two).norm(dim=1).pow(alpha).mean())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # torch's own
@pytest.mark.parametrize("name", ["VICReg", "CrossCorrelation", "SpectralContrastive"])
def test_what_is_no_sum_over_blocks_has_a_forward_mode(name):
    function = LOSSES[name]
    expected = torch.func.jacrev(torch.func.grad(function))(*VIEWS)
    torch.testing.assert_close(torch.func.hessian(function)(*VIEWS), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # torch's own
@pytest.mark.parametrize("name", ["InfoNCE", "SupCon", "AlignUniform", "TInfoNCE"])
def test_there_is_no_forward_mode_and_the_error_says_what_there_is(name):
    function = functools.partial(LOSSES[name], **BLOCKWISE)
    with pytest.raises(NotImplementedError, match=r"torch.func.jacrev\(torch.func.grad\(loss\)\)"):
        torch.func.hessian(function)(*VIEWS)
