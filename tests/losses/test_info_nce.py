import functools
import math
import warnings

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from loss_laws import LossLaws, draw_views, few, on_a_rank, refusal, several, value_and_gradients

import marginlab.losses
from marginlab import ranks
from marginlab.losses import InfoNCE
from marginlab.losses.functional import info_nce
from marginlab.settings import make


def naive(
    z1,
    z2,
    extra_negatives=None,
    temperature=0.5,
    negatives="both_views",
    symmetric=True,
    decoupled=False,
    tau_plus=0.0,
    reduction="mean",
    budget=0,
):
    """The softmax of the whole matrix of similarities."""
    n = len(z1)
    x1, x2 = F.normalize(z1), F.normalize(z2)
    more = F.normalize(extra_negatives) if extra_negatives is not None else x1[:0]
    index = torch.arange(n)
    if negatives == "both_views":
        x = torch.cat((x1, x2))
        cosines, itself, pair = (
            x @ torch.cat((x, more)).T,
            torch.arange(2 * n),
            torch.cat((index + n, index)),
        )
    else:
        cosines = torch.cat(
            [a @ torch.cat((b, more)).T for a, b in ((x1, x2), (x2, x1))[: 2 if symmetric else 1]]
        )
        itself, pair = index.repeat(len(cosines) // n), index.repeat(len(cosines) // n)
    anchors, columns = torch.arange(len(pair)), torch.arange(cosines.shape[1])
    s = (cosines / temperature).exp()
    positive = s[anchors, pair]
    s = torch.where((columns == itself[:, None]) | (columns == pair[:, None]), 0.0, s)
    count = cosines.shape[1] - (2 if negatives == "both_views" else 1)
    negative = s.sum(1)
    if tau_plus:
        floor = count * (-torch.ones_like(negative) / temperature).exp()
        negative = torch.maximum((negative - count * tau_plus * positive) / (1 - tau_plus), floor)
    losses = -(positive / (negative + (0 if decoupled else positive))).log()
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def with_extra(z1, z2, extra, **arguments):
    return info_nce(z1, z2, extra_negatives=extra, **arguments)


def weighted_on_a_rank(group, rank, parts, weights):
    """The gradients of a weighted sum of this rank's own losses, made global by its user."""
    inputs = [x.clone().requires_grad_() for x in parts[rank]]
    losses = info_nce(*inputs, reduction="none", group=group)
    value = ranks.all_reduce((losses * weights[rank]).sum(), group)
    value.backward()
    return value.detach(), [x.grad for x in inputs]


def averaged_temperature(group, rank, parts, temperature, negatives):
    temperature = temperature.clone().requires_grad_()
    info_nce(*parts[rank], temperature=temperature, negatives=negatives, group=group).backward()
    return ranks.all_reduce(temperature.grad, group) / ranks.size(group)


class TestInfoNCE(LossLaws):
    module, function, naive = InfoNCE, staticmethod(info_nce), staticmethod(naive)
    unreduced = staticmethod(functools.partial(naive, reduction="none"))
    arguments = st.fixed_dictionaries(
        {
            "temperature": st.floats(0.05, 3),
            "decoupled": st.booleans(),
            "tau_plus": st.sampled_from([0.0, 0.0, 0.1, 0.7]),
            "reduction": st.sampled_from(["mean", "sum", "none"]),
            "budget": st.sampled_from([64, 1000, 2**20]),
        }
    ).flatmap(
        lambda more: st.sampled_from(
            [
                {"negatives": "both_views"},
                {"negatives": "other_view"},
                {"negatives": "other_view", "symmetric": False},
            ]
        ).map(lambda form: form | more)
    )

    @several
    @given(data=st.data())
    def test_extra_negatives_join_every_sum(self, data):
        arguments = data.draw(self.arguments)
        z1, z2, generator = draw_views(data, data.draw(st.integers(1, 6)), features=3)
        extra = torch.randn(
            data.draw(st.integers(1, 5)), 3, dtype=torch.float64, generator=generator
        )
        got = value_and_gradients(functools.partial(with_extra, **arguments), z1, z2, extra)
        self.same(got, value_and_gradients(functools.partial(naive, **arguments), z1, z2, extra))
        assert torch.equal(InfoNCE(**arguments)(z1, z2, extra), got[0])

    @pytest.mark.xdist_group("ranks")
    @few
    @given(data=st.data())
    def test_extra_negatives_of_all_ranks_join_every_sum(self, pool, data):
        arguments = data.draw(self.arguments.filter(lambda a: a["reduction"] != "none"))
        rows, more = ([data.draw(st.integers(0, 3)) for _ in range(3)] for _ in range(2))
        rows[0] += 2
        z1, z2, generator = draw_views(data, sum(rows), features=3)
        extra = torch.randn(sum(more), 3, dtype=torch.float64, generator=generator)
        function = functools.partial(with_extra, **arguments)
        value, slopes = value_and_gradients(function, z1, z2, extra)
        answers = pool.run(
            3,
            on_a_rank,
            function,
            list(zip(z1.split(rows), z2.split(rows), extra.split(more), strict=True)),
            "sum",
        )
        for i, expected in enumerate(slopes):
            self.same((answers[1][0], [torch.cat([a[1][i] for a in answers])]), (value, [expected]))

    @pytest.mark.xdist_group("ranks")
    def test_unreduced_losses_are_those_of_this_ranks_anchors(self, pool):
        generator = torch.Generator().manual_seed(0)
        rows = [2, 0, 3]
        z1, z2 = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator)
        weights = torch.rand(2, 5, dtype=torch.float64, generator=generator)
        value, slopes = value_and_gradients(
            lambda a, b: (info_nce(a, b, reduction="none") * weights.flatten()).sum(), z1, z2
        )
        own = [w.flatten() for w in weights.split(rows, 1)]
        answers = pool.run(
            3, weighted_on_a_rank, list(zip(z1.split(rows), z2.split(rows), strict=True)), own
        )
        for view in (0, 1):
            self.same(
                (answers[0][0], [torch.cat([a[1][view] for a in answers])]), (value, [slopes[view]])
            )

    @several
    @given(data=st.data())
    def test_invariant_to_a_common_rotation_and_to_the_lengths_of_rows(self, data):
        arguments = data.draw(self.arguments)
        z1, z2, generator = draw_views(data, 5, features=4)
        rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
        value = info_nce(z1, z2, **arguments)
        torch.testing.assert_close(info_nce(z1 @ rotation, z2 @ rotation, **arguments), value)
        lengths = torch.rand(5, 1, dtype=torch.float64, generator=generator) + 0.1
        torch.testing.assert_close(info_nce(z1 * lengths, 7 * z2, **arguments), value)

    @several
    @given(data=st.data())
    def test_never_below_its_floor(self, data):
        """softplus(log n + mean negative - positive), by Jensen, itself never below the one with
        all at its best: 1 and -1.
        """
        temperature = data.draw(st.floats(0.05, 3))
        z1, z2, _ = draw_views(data, data.draw(st.integers(2, 6)))
        x = F.normalize(torch.cat((z1, z2)))
        n, positive = len(x) - 2, (x * x.roll(len(z1), 0)).sum(1)
        negative = ((x @ x.sum(0)) - 1 - positive) / n
        floor = F.softplus(math.log(n) + (negative - positive) / temperature)
        losses = info_nce(z1, z2, temperature=temperature, reduction="none")
        assert bool((losses >= floor - 1e-12).all())
        assert bool((floor >= math.log1p(n * math.exp(-2 / temperature)) - 1e-12).all())

    def test_the_floor_is_reached_by_two_opposite_rows(self):
        z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
        torch.testing.assert_close(
            info_nce(z, z, temperature=0.7),
            torch.tensor(math.log1p(2 * math.exp(-2 / 0.7)), dtype=torch.float64),
        )

    def test_a_loss_far_below_the_rounding_of_its_logits_is_exact_in_float32(self):
        z = torch.eye(4)
        expected = math.log1p(6 * math.exp(-1 / 0.04))  # 8e-11: the logits are 25
        torch.testing.assert_close(
            float(info_nce(z, z, temperature=0.04)), expected, rtol=1e-5, atol=0
        )
        assert float(naive(z, z, temperature=0.04)) == 0.0

    @pytest.mark.parametrize("negatives", ["both_views", "other_view"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_extremes_have_documented_finite_values(self, negatives, dtype):
        chance = math.log(11 if negatives == "both_views" else 6)  # all candidates alike
        function = functools.partial(info_nce, temperature=0.01, negatives=negatives)
        for z in (torch.ones(6, 4, dtype=dtype), torch.zeros(6, 4, dtype=dtype)):
            value, slopes = value_and_gradients(function, z, z)
            torch.testing.assert_close(float(value), chance, rtol=1e-4, atol=0)
            assert all(bool(s.isfinite().all()) for s in slopes)
        z1, z2 = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
        z1[2] = 0
        value, slopes = value_and_gradients(function, z1, z2)
        torch.testing.assert_close(
            value.double(),
            naive(z1.double(), z2.double(), temperature=0.01, negatives=negatives),
            rtol=1e-5,
            atol=0,
        )
        assert bool((slopes[0][2] == 0).all())
        assert all(bool(s.isfinite().all()) for s in slopes)
        opposite, slopes = value_and_gradients(function, z2, -z2)  # the worst: every positive at -1
        assert 100 < float(opposite) < 200.0 + math.log(11)
        assert all(bool(s.isfinite().all()) for s in slopes)

    @several
    @given(st.integers(0, 2**20), st.floats(0.05, 3))
    def test_alignment_and_divergence_are_its_two_parts(self, seed, temperature):
        """L = L1 + L2 with L1 = -E s_p / T = (E |x1 - x2|^2 / 2 - 1) / T and L2 the log of the sum
        over all candidates: Huang et al., section 4.1.
        """
        x1, x2 = (
            F.normalize(z)
            for z in torch.randn(
                2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
            )
        )
        aligned = ((x1 - x2).square().sum(1).mean() / 2 - 1) / temperature
        x = torch.cat((x1, x2))
        divergence = (x @ x.T / temperature).fill_diagonal_(-math.inf).logsumexp(1).mean()
        torch.testing.assert_close(info_nce(x1, x2, temperature=temperature), aligned + divergence)

    @several
    @given(data=st.data())
    def test_a_temperature_that_learns_has_the_gradient_of_the_formula(self, data):
        arguments = data.draw(self.arguments)
        temperature = torch.tensor(arguments.pop("temperature"), dtype=torch.float64)
        z1, z2, _ = draw_views(data, data.draw(st.integers(2, 5)))
        got = value_and_gradients(
            lambda t: info_nce(z1, z2, temperature=t, **arguments), temperature
        )
        self.same(
            got,
            value_and_gradients(lambda t: naive(z1, z2, temperature=t, **arguments), temperature),
        )
        module = InfoNCE(float(temperature), learnable=True, **arguments)
        value = module(z1, z2)
        torch.testing.assert_close(value, got[0], rtol=1e-5, atol=1e-5)
        value.sum().backward()  # d/d(-log T) = -T d/dT
        torch.testing.assert_close(
            float(module.log_scale.grad), -float(temperature * got[1][0]), rtol=1e-4, atol=1e-4
        )
        again = make(repr(module), marginlab.losses, torch.nn.Module)
        assert repr(again) == repr(module)
        assert torch.equal(again.log_scale, module.log_scale)
        assert again.state_dict().keys() == {"log_scale"}

    @pytest.mark.xdist_group("ranks")
    @pytest.mark.parametrize("negatives", ["both_views", "other_view"])
    def test_averaged_over_ranks_the_gradient_of_the_temperature_is_exact(self, pool, negatives):
        z1, z2 = torch.randn(
            2, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4)
        )
        temperature, rows = torch.tensor(0.4, dtype=torch.float64), [3, 0, 4]
        _, (expected,) = value_and_gradients(
            lambda t: info_nce(z1, z2, temperature=t, negatives=negatives), temperature
        )
        for slope in pool.run(
            3,
            averaged_temperature,
            list(zip(z1.split(rows), z2.split(rows), strict=True)),
            temperature,
            negatives,
        ):
            torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-10)

    def test_decoupled_its_gradient_does_not_fade_as_the_pair_comes_close(self):
        z = torch.eye(8, dtype=torch.float64)
        near = z + 0.01 * z.roll(1, 0)
        for decoupled, least in ((False, 0.0), (True, 0.001)):
            _, (slope, _) = value_and_gradients(
                functools.partial(info_nce, temperature=0.05, decoupled=decoupled), near, z
            )
            assert (float(slope.norm(dim=1).min()) > least) is True
            assert (float(slope.norm(dim=1).max()) < 1e-5) is not decoupled

    def test_a_debiased_sum_never_falls_below_its_smallest_possible_value(self):
        """All negatives equal to the positive: what is taken away is more than there is, and the
        floor M e^(-1/T) has no slope.
        """
        z = torch.ones(5, 3, dtype=torch.float64)
        value, slopes = value_and_gradients(
            functools.partial(info_nce, temperature=0.5, tau_plus=1 - 1e-9), z, z
        )
        # all alike: the estimate is the sum itself
        torch.testing.assert_close(float(value), 0.0 + math.log1p(8.0), rtol=1e-6, atol=0)
        x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        value, slopes = value_and_gradients(
            functools.partial(info_nce, temperature=0.5, tau_plus=0.5), x, x
        )
        torch.testing.assert_close(
            float(value), math.log1p(2 * math.exp(-2.0) / math.exp(2.0)), rtol=1e-12, atol=0
        )
        assert all(bool(s.isfinite().all()) for s in slopes)

    def test_lightly_agrees(self):
        lightly = self.library("lightly.loss")
        self.against(lightly.NTXentLoss(temperature=0.3))

    def test_lightly_agrees_on_the_decoupled_form(self):
        """Yeh et al. 2022, unweighted."""
        lightly = self.library("lightly.loss")
        self.against(lambda z1, z2: lightly.DCLLoss(temperature=0.3)(z1, z2), decoupled=True)

    def test_pytorch_metric_learning_agrees(self):
        losses = self.library("pytorch_metric_learning.losses")
        theirs = losses.NTXentLoss(temperature=0.3)
        self.against(lambda z1, z2: theirs(torch.cat((z1, z2)), torch.arange(len(z1)).repeat(2)))

    @staticmethod
    def library(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pytest.importorskip(name)

    def against(self, theirs, **arguments):
        z1, z2 = torch.randn(
            2, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = value_and_gradients(theirs, z1, z2)
        got = value_and_gradients(functools.partial(info_nce, temperature=0.3, **arguments), z1, z2)
        self.same(got, expected)

    @pytest.mark.usefixtures("unchecked")
    def test_bad_settings_are_refused(self):
        z = torch.ones(4, 3)
        for temperature in (0.0, -1.0, math.nan):
            with pytest.raises(
                ValueError, match=f"A temperature is positive, such as 0.5, not {temperature}"
            ):
                InfoNCE(temperature)
        for share in (-0.1, 1.0, math.nan):
            with pytest.raises(
                ValueError, match=rf"in \[0, 1\), such as 0.1 for ten classes, not {share}"
            ):
                InfoNCE(tau_plus=share)
        with pytest.raises(ValueError, match="A temperature is positive"):
            info_nce(z, z, temperature=torch.tensor(0.0))
        with pytest.raises(
            ValueError, match=r"negatives is not 'both': did you mean 'both_views'\?"
        ):
            InfoNCE(negatives="both")
        with pytest.raises(
            ValueError, match=r"reduction is not 'average'.*There are: mean, sum, none"
        ):
            info_nce(z, z, reduction="average")
        with pytest.raises(ValueError, match="symmetric=False"):
            InfoNCE(symmetric=False)
        with pytest.raises(
            ValueError,
            match=r"Extra negatives are a matrix \(M, 3\), as wide as the views, not \(5, 2\)",
        ):
            info_nce(z, z, extra_negatives=torch.ones(5, 2))
        with pytest.raises(TypeError, match="floating point"):
            info_nce(z, z, extra_negatives=torch.ones(5, 3, dtype=torch.int64))
        with pytest.raises(ValueError, match="a global batch of 0 has no negatives"):
            info_nce(z[:0], z[:0], extra_negatives=z, empty="raise")
        with pytest.raises(ValueError, match="a global batch of 1 has no negatives"):
            info_nce(z[:1], z[:1], extra_negatives=z[:0], empty="raise")


@several
@given(data=st.data())
def test_it_is_alignment_plus_divergence(data):
    """The decomposition of Huang et al. 2023, section 4.1: -E[z.z'] + E log(e^{z.z'} + sum of the
    negatives); the first is E|z - z'|^2 / 2 - 1.
    """
    z1, z2, _ = draw_views(data, data.draw(st.integers(2, 8)))
    x1, x2 = F.normalize(z1), F.normalize(z2)
    alignment = (x1 - x2).square().sum(1).mean() / 2 - 1
    cosines = torch.cat((x1 @ x2.T, x2 @ x1.T))
    divergence = cosines.logsumexp(1).mean()
    got = info_nce(z1, z2, temperature=1.0, negatives="other_view")
    torch.testing.assert_close(got, alignment + divergence, rtol=1e-10, atol=1e-10)


@pytest.mark.xdist_group("ranks")
def test_extra_negatives_that_one_rank_refuses_all_refuse(pool):
    z = torch.ones(4, 3)
    first, second = pool.run(2, refusal, with_extra, [(z, z, z), (z, z, z[:, :2])])
    assert second == "Extra negatives are a matrix (M, 3), as wide as the views, not (4, 2)."
    assert first == f"Rank 1 of 2 refused its batch: {second}"


def nothing_to_compare(group, rank, views, extra):
    loss = InfoNCE(0.5, negatives="other_view", learnable=True, group=group)
    inputs = [x.clone().requires_grad_() for x in (*views, extra)]
    value = loss(*inputs)
    value.backward()
    return value.detach(), [x.grad for x in (*inputs, loss.log_scale)]


@pytest.mark.xdist_group("ranks")
def test_a_batch_without_pairs_gives_every_input_a_gradient_of_zero(pool):
    """A parameter without one ends a run of DistributedDataParallel."""
    z, far = torch.randn(1, 3), torch.full((1, 3), torch.inf)
    for rows in (z, z[:0], far):
        value, grads = nothing_to_compare(None, 0, (rows, rows), z[:0])
        assert float(value) == 0.0
        assert all(g is not None and bool((g == 0).all()) for g in grads)
    for _, grads in pool.run(2, lonely, z):
        assert all(g is not None and bool((g == 0).all()) for g in grads)


def lonely(group, rank, z):
    rows = z if rank == 0 else z[:0]
    return nothing_to_compare(group, rank, (rows, rows), z[:0])
