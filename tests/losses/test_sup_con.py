import functools
import math
import warnings

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from loss_laws import LossLaws, several, value_and_gradients

from marginlab.losses import SupCon
from marginlab.losses.functional import info_nce, sup_con
from marginlab.losses.sup_con import References


def classes(z1, z2):
    """Three classes, told by the rows themselves, so that any shard of them knows its own."""
    score = (z1.double() + z2.double())[:, 0]
    return ((score > 0).long() + (score > 1).long()).repeat(2)


def of_views(z1, z2, **arguments):
    return sup_con(torch.cat((z1, z2)), classes(z1, z2), **arguments)


def naive_of_labels(x, labels, temperature=0.1, variant="out", reduction="mean"):
    """The two equations, anchor by anchor, over the matrix of similarities."""
    x = F.normalize(x)
    s = x @ x.T / temperature
    losses = []
    for i in range(len(x)):
        others = torch.arange(len(x)) != i
        positives = s[i, others & (labels == labels[i])]
        log_shares = positives - s[i, others].logsumexp(0)
        if len(positives):
            losses.append(
                -log_shares.mean()
                if variant == "out"
                else math.log(len(positives)) - log_shares.logsumexp(0)
            )
        elif reduction == "none":
            losses.append(s.new_zeros(()))
    losses = torch.stack(losses)
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def naive(z1, z2, budget=0, **arguments):
    return naive_of_labels(torch.cat((z1, z2)), classes(z1, z2), **arguments)


class Views(torch.nn.Module):
    """The module, given two views and labels that the rows tell."""

    def __init__(self, loss=None, **arguments):
        super().__init__()
        self.loss = SupCon(**arguments) if loss is None else loss

    def forward(self, z1, z2):
        return self.loss(torch.cat((z1, z2)), classes(z1, z2))

    def __repr__(self):
        return repr(self.loss)


class TestSupCon(LossLaws):
    module, function, naive, of_views = Views, staticmethod(of_views), staticmethod(naive), Views
    unreduced = staticmethod(functools.partial(naive, reduction="none"))
    arguments = st.fixed_dictionaries(
        {
            "temperature": st.floats(0.05, 3),
            "variant": st.sampled_from(["out", "in"]),
            "reduction": st.sampled_from(["mean", "sum", "none"]),
            "budget": st.sampled_from([64, 1000, 2**20]),
        }
    )

    @several
    @given(st.data())
    def test_rows_without_another_of_their_class_are_no_anchors(self, data):
        arguments = data.draw(self.arguments)
        labels = torch.tensor(
            data.draw(
                st.lists(st.integers(-2, 3), min_size=2, max_size=9).filter(
                    lambda v: len(set(v)) < len(v)
                )
            )
        )
        x = torch.randn(
            len(labels),
            3,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(data.draw(st.integers(0, 2**20))),
        )
        got = value_and_gradients(lambda z: sup_con(z, labels, **arguments), x)
        arguments.pop("budget")
        self.same(got, value_and_gradients(lambda z: naive_of_labels(z, labels, **arguments), x))

    @several
    @given(st.integers(0, 2**20), st.floats(0.05, 3))
    def test_with_one_positive_both_variants_are_info_nce_and_with_several_out_is_never_below_in(
        self, seed, temperature
    ):
        z = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        expected = info_nce(z[0], z[1], temperature=temperature)
        for variant in ("out", "in"):
            torch.testing.assert_close(
                sup_con(
                    z.flatten(0, 1),
                    torch.arange(4).repeat(2),
                    temperature=temperature,
                    variant=variant,
                ),
                expected,
            )
        labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])
        losses = [
            sup_con(z.flatten(0, 1), labels, temperature=temperature, variant=v, reduction="none")
            for v in ("out", "in")
        ]
        assert bool((losses[0] >= losses[1] - 1e-12).all())

    @several
    @given(st.data())
    def test_invariant_to_a_common_rotation_and_to_the_names_of_the_classes(self, data):
        arguments = data.draw(self.arguments)
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
        x, labels = (
            torch.randn(8, 4, dtype=torch.float64, generator=generator),
            torch.tensor([0, 1, 2, 0, 1, 2, 2, 3]),
        )
        rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator)).Q
        renamed = torch.tensor([9, -5, 4, 0])[labels]
        torch.testing.assert_close(
            sup_con(3 * x @ rotation, renamed, **arguments), sup_con(x, labels, **arguments)
        )

    def test_a_loss_far_below_the_rounding_of_its_logits_is_exact_in_float32(self):
        z = torch.eye(4).repeat(2, 1)
        for variant in ("out", "in"):
            value = float(sup_con(z, torch.arange(4).repeat(2), temperature=0.04, variant=variant))
            torch.testing.assert_close(
                value, math.log1p(6 * math.exp(-1 / 0.04)), rtol=1e-5, atol=0
            )

    @pytest.mark.parametrize("variant", ["out", "in"])
    def test_equal_rows_and_zero_rows_are_at_chance(self, variant):
        labels = torch.tensor([0, 0, 0, 1, 1, 2])
        for x in (torch.ones(6, 4), torch.zeros(6, 4)):
            losses, (slope,) = value_and_gradients(
                lambda z: sup_con(z, labels, variant=variant, reduction="none"), x
            )
            torch.testing.assert_close(
                losses.tolist(), [*[math.log(5)] * 5, 0.0], rtol=1e-5, atol=1e-6
            )
            assert bool(slope.isfinite().all())

    def test_a_temperature_that_learns_has_the_gradient_of_the_formula(self):
        x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        labels, temperature = (
            torch.tensor([0, 1, 0, 1, 1, 2]),
            torch.tensor(0.3, dtype=torch.float64),
        )
        for variant in ("out", "in"):
            self.same(
                value_and_gradients(
                    lambda t, v=variant: sup_con(x, labels, temperature=t, variant=v), temperature
                ),
                value_and_gradients(
                    lambda t, v=variant: naive_of_labels(x, labels, temperature=t, variant=v),
                    temperature,
                ),
            )

    def test_pytorch_metric_learning_agrees(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = pytest.importorskip("pytorch_metric_learning.losses").SupConLoss(
                temperature=0.3
            )
            x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            labels = torch.tensor([0, 1, 2, 0, 1, 2, 2, 3])
            expected = value_and_gradients(lambda z: theirs(z, labels), x)
        self.same(value_and_gradients(lambda z: sup_con(z, labels, temperature=0.3), x), expected)

    @pytest.mark.parametrize("variant", ["out", "in"])
    def test_without_positives_the_loss_is_zero_and_so_is_its_gradient(self, variant):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        for rows in (4, 1, 0):
            function = functools.partial(sup_con, labels=torch.arange(rows), variant=variant)
            value, (slope,) = value_and_gradients(function, x[:rows])
            assert float(value) == 0.0
            assert bool((slope == 0).all())
        with pytest.raises(ValueError, match="No two rows of the global batch of 4 share a label"):
            SupCon(variant=variant, empty="raise")(x, torch.arange(4))

    @several
    @given(data=st.data())
    def test_ignored_rows_count_as_if_they_were_not_there(self, data):
        arguments = data.draw(self.arguments.filter(lambda a: a["reduction"] != "none"))
        labels = torch.tensor(data.draw(st.lists(st.integers(-1, 2), min_size=2, max_size=9)))
        seed = data.draw(st.integers(0, 2**20))
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(len(labels), 3, dtype=torch.float64, generator=generator)
        there = labels != -1
        got = value_and_gradients(lambda z: sup_con(z, labels, ignore_index=-1, **arguments), x)
        value, (slope,) = value_and_gradients(
            lambda z: sup_con(z, labels[there], **arguments), x[there]
        )
        self.same((got[0], [got[1][0][there]]), (value, [slope]))
        assert bool((got[1][0][~there] == 0).all())

    @several
    @given(data=st.data())
    def test_references_are_the_other_side(self, data):
        arguments = data.draw(self.arguments)
        variant = arguments["variant"]
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
        x, y = (torch.randn(n, 3, dtype=torch.float64, generator=generator) for n in (4, 6))
        labels, others = torch.tensor([0, 1, 5, 1]), torch.tensor([1, 0, 0, 2, -1, 1])

        def formula(x, y):
            some = torch.tensor([0, 1, 3])  # row 2 has no positive
            s = F.normalize(x[some]) @ F.normalize(y[others != -1]).T / arguments["temperature"]
            shares = s - s.logsumexp(1, keepdim=True)
            positive = labels[some, None] == others[others != -1]
            inside = shares.masked_fill(~positive, -torch.inf).logsumexp(1)
            count = positive.sum(1)
            outer = -(shares * positive).sum(1) / count
            losses = outer if variant == "out" else count.double().log() - inside
            if arguments["reduction"] == "none":
                return losses.new_zeros(4).index_copy(0, some, losses)
            return losses.mean() if arguments["reduction"] == "mean" else losses.sum()

        loss = SupCon(ignore_index=-1, **arguments)
        got = value_and_gradients(lambda a, b: loss(a, labels, References(b, others)), x, y)
        self.same(got, value_and_gradients(formula, x, y))
        assert float(loss(x, labels, References(y[:0], others[:0])).sum()) == 0.0

    @pytest.mark.xdist_group("ranks")
    def test_on_ranks_references_and_ignored_rows_are_those_of_all(self, pool):
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.randn(n, 3, dtype=torch.float64, generator=generator) for n in (6, 5))
        labels, others = torch.tensor([0, 1, 1, -1, 0, 2]), torch.tensor([1, 0, -1, 2, 1])
        parts = list(zip(x.split([2, 0, 4]), labels.split([2, 0, 4]), strict=True))
        given = list(zip(y.split([1, 3, 1]), others.split([1, 3, 1]), strict=True))
        for reference in (None, References(y, others)):
            expected = value_and_gradients(
                lambda z, r=reference: sup_con(z, labels, references=r, ignore_index=-1), x
            )
            answers = pool.run(3, with_references, parts, None if reference is None else given)
            for value, _ in answers:
                torch.testing.assert_close(value, expected[0], rtol=1e-10, atol=1e-10)
            joined = torch.cat([slopes[0] for _, slopes in answers])
            torch.testing.assert_close(joined, expected[1][0], rtol=1e-10, atol=1e-10)

    def test_the_published_factor_is_the_temperature_over_the_base(self):
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
        labels = torch.tensor([0, 1, 0, 1, 1, 2])
        for temperature, factor in ((0.07, 1), (0.1, 10 / 7), (0.5, 50 / 7)):
            plain = SupCon(temperature)(x, labels)
            published = SupCon(temperature, base_temperature=0.07)(x, labels)
            torch.testing.assert_close(published, plain * factor)

    @pytest.mark.xdist_group("ranks")
    def test_a_global_batch_of_one_row_is_refused_on_every_rank(self, pool):
        x, labels = torch.randn(3, 3), torch.arange(3)
        for message in pool.run(
            3, refusal, [(x[:0], labels[:0]), (x[:2], labels[:2]), (x[2:], labels[2:])]
        ):
            assert "No two rows of the global batch of 3 share a label" in message

    @pytest.mark.xdist_group("ranks")
    def test_what_one_rank_refuses_all_refuse(self, pool):
        x, labels = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
        first, second, third = pool.run(
            3, refusal, [(x, labels), (x, labels[:3]), (x[:0], labels[:0])]
        )
        assert (
            second
            == "Embeddings are a matrix (B, D) with one label for each row, not (4, 3) and (3,)."
        )
        assert first == third == f"Rank 1 of 3 refused its batch: {second}"

    @pytest.mark.usefixtures("unchecked")
    def test_bad_views_and_words_are_refused(self):
        x, labels = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
        for bad in ((x[0], labels), (x, labels[:3]), (x[:, :0], labels)):
            with pytest.raises(ValueError, match="with one label for each row, not"):
                sup_con(*bad)
        with pytest.raises(TypeError, match=r"floating point, not torch.int64"):
            sup_con(x.long(), labels)
        for wrong in (labels.float(), labels / torch.nan, labels == 1):
            with pytest.raises(TypeError, match="Labels are integers, not torch"):
                sup_con(x, wrong)
        with pytest.raises(TypeError, match=r"not numpy.ndarray of shape .*torch.as_tensor"):
            sup_con(x, labels.numpy())
        with pytest.raises(ValueError, match="variant is not 'outside'"):
            SupCon(variant="outside")
        with pytest.raises(ValueError, match="grads is not 'average'"):
            SupCon(grads="average")
        with pytest.raises(ValueError, match="A temperature is positive"):
            SupCon(temperature=0)


def with_references(group, rank, parts, given):
    x, labels = parts[rank]
    references = None if given is None else References(*given[rank])
    return value_and_gradients(
        lambda z: sup_con(
            z, labels, references=references, ignore_index=-1, group=group, grads="sum"
        ),
        x,
    )


def refusal(group, rank, parts):
    try:
        sup_con(*parts[rank], group=group, empty="raise")
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_ignored_row_may_hold_no_number(value):
    """Of either side: neither the loss nor a gradient sees it."""
    generator = torch.Generator().manual_seed(0)
    z, other = torch.randn(2, 6, 3, dtype=torch.float64, generator=generator)
    labels = torch.tensor([0, 0, -1, 1, 1, 0])
    bad, worse = z.clone(), other.clone()
    bad[2], worse[2] = value, value
    for variant in ("out", "in"):
        for references in (None, (other, worse)):
            found = []
            for rows, side in ((z, 0), (bad, 1)):
                x = rows.clone().requires_grad_()
                beside = {}
                if references is not None:
                    y = references[side].clone().requires_grad_()
                    beside = {"references": References(y, labels)}
                loss = sup_con(x, labels, variant=variant, ignore_index=-1, **beside)
                loss.backward()
                found.append([loss.detach(), x.grad, *(r.embeddings.grad for r in beside.values())])
            for a, b in zip(*found, strict=True):
                assert torch.equal(a, b)


def test_a_learning_temperature_of_no_rows_has_a_gradient_of_zero():
    temperature = torch.tensor(0.1, requires_grad=True)
    sup_con(torch.ones(0, 3), torch.zeros(0, dtype=torch.long), temperature=temperature).backward()
    assert float(temperature.grad) == 0.0
