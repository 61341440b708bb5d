"""Numbers of docs/published_code.md on contrastive losses: published code's, and ours."""

import math

import pytest
import torch
import torch.nn.functional as F

from marginlab.losses.functional import info_nce, spectral_contrastive, t_info_nce

Z1, Z2 = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ONE, TWO = F.normalize(Z1), F.normalize(Z2)


def published_dcl(a, b, T):
    """Both sides; the entries of the anchor and its pair are lowered, not left out."""
    lowered = math.log(1e-45) * torch.eye(len(a), dtype=a.dtype).repeat(1, 2)
    sides = []
    for x, y in ((a, b), (b, a)):
        among = (torch.cat((x @ x.T, x @ y.T), 1) / T + lowered).logsumexp(1)
        sides.append((among - (x * y).sum(1) / T).mean())
    return sum(sides)


def test_dcl():
    for T in (0.1, 0.5):
        expected = 2 * info_nce(Z1, Z2, temperature=T, decoupled=True)
        torch.testing.assert_close(published_dcl(ONE, TWO, T), expected)
    z = torch.eye(4, dtype=torch.float64)  # all negatives at cosine 0, the pair at 1
    ours = info_nce(z, z, temperature=0.01, decoupled=True)
    torch.testing.assert_close(ours, torch.tensor(math.log(6) - 100, dtype=torch.float64))
    back = math.exp(100 + math.log(1e-45))
    assert back == pytest.approx(0.027, abs=5e-4)
    theirs = float(published_dcl(z, z, 0.01)) / 2
    assert theirs - float(ours) == pytest.approx(math.log1p(2 * back / 6))


def published_debiased(a, b, T, tau):
    z, n = torch.cat((a, b)), len(a)
    others = ~torch.eye(n, dtype=torch.bool).repeat(2, 2)
    negatives = ((z @ z.T / T).exp() * others).sum(1)
    positive = ((a * b).sum(1) / T).exp().repeat(2)
    M = 2 * n - 2
    corrected = (negatives - tau * M * positive) / (1 - tau)
    corrected = corrected.clamp_min(M * math.exp(-1 / T))
    return -(positive / (positive + corrected)).log().mean()


def test_debiased():
    for T, tau in ((0.5, 0.1), (0.2, 0.3)):
        expected = info_nce(Z1, Z2, temperature=T, tau_plus=tau)
        torch.testing.assert_close(published_debiased(ONE, TWO, T, tau), expected)
    z = torch.eye(4)
    for T, finite in ((0.0114, True), (0.0112, False)):
        assert bool(published_debiased(z, z, T, 0.1).isfinite()) is finite
        assert bool(info_nce(z, z, temperature=T, tau_plus=0.1).isfinite())


def our_gradient(group, rank, parts):
    views = [z.clone().requires_grad_() for z in parts[rank]]
    named = {"temperature": 0.5, "negatives": "other_view", "grads": "sum", "group": group}
    info_nce(*views, **named).backward()
    return [z.grad for z in views]


@pytest.mark.xdist_group("ranks")
def test_open_clip(pool):
    """Each rank has the loss of all rows, and a gradient of its own rows alone."""

    def of_all(a, b):
        logits = F.normalize(a) @ F.normalize(b).T / 0.5
        target = torch.arange(len(a))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    rows = [slice(0, 3), slice(3, 6)]
    ours = pool.run(2, our_gradient, [(Z1[part], Z2[part]) for part in rows])
    for part, got in zip(rows, ours, strict=True):
        views = [z[part].clone().requires_grad_() for z in (Z1, Z2)]
        whole = [z.clone() for z in (Z1, Z2)]
        for z, own in zip(whole, views, strict=True):
            z[part] = own
        of_all(*whole).backward()
        for a, b in zip(got, views, strict=True):
            torch.testing.assert_close(a, b.grad)


def test_spectral():
    for mu in (0.5, 2.0, 100.0):

        def ball(z, mu=mu):
            inside = z.norm(dim=1, keepdim=True) < mu**0.5
            return torch.where(inside, z, F.normalize(z) * mu**0.5)

        a, b = ball(Z1), ball(Z2)
        squares = (a @ b.T).square()
        N = len(a)
        others = (squares.triu(1) + squares.tril(-1)).mean() * N / (N - 1)
        theirs = (others - 2 * (a * b).mean() * a.shape[1]) / mu
        torch.testing.assert_close(theirs, spectral_contrastive(a, b) / mu)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_t_simcne(factor):
    """The factor of d^2: 1 at the tag iclr2023, 2 of InfoNCET(dof=1)."""
    z, n = torch.cat((Z1, Z2)), len(Z1)
    logits = -(factor * (z[:, None] - z).square().sum(2)).log1p()
    pair = torch.arange(2 * n).roll(n)
    theirs = F.cross_entropy(logits.fill_diagonal_(-torch.inf), pair)
    torch.testing.assert_close(theirs, t_info_nce(Z1 * factor**0.5, Z2 * factor**0.5))
