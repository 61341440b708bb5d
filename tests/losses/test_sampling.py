import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import HealthCheck, given, settings
from torch.utils._python_dispatch import TorchDispatchMode

from marginlab.losses import sampling
from marginlab.losses.sampling import columns, sample


@pytest.fixture(params=["randperm", "shuffle"])
def branch(request, monkeypatch):
    monkeypatch.setattr(sampling, "MANY", 10**9 if request.param == "randperm" else 0)


either = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.usefixtures("branch")
@either
@given(st.data())
def test_a_sample_holds_the_batch_and_as_many_others_as_it_says(data):
    C = data.draw(st.integers(1, 60))
    labels = torch.tensor(
        data.draw(st.lists(st.integers(-2, C - 1), max_size=40)), dtype=torch.int64
    )
    size, seed, step = (
        data.draw(st.integers(0, C)),
        data.draw(st.integers(0, 2**40)),
        data.draw(st.integers(0, 2**32 - 1)),
    )
    classes, positives = sample(labels, C, size, seed=seed, step=step)
    own = {label for label in labels.tolist() if label >= 0}
    assert classes.dtype == torch.int64
    assert classes.tolist() == sorted(set(classes.tolist()))
    assert len(classes) == max(size, len(own))
    assert positives == len(own)
    assert own <= set(classes.tolist()) <= set(range(C))
    found = columns(classes, labels)
    assert torch.equal(found < 0, labels < 0)
    assert torch.equal(classes[found[labels >= 0]], labels[labels >= 0])


@pytest.mark.usefixtures("branch")
@either
@given(st.data())
def test_a_sample_is_of_the_set_of_labels_the_seed_and_the_step_alone(data):
    labels = data.draw(st.lists(st.integers(0, 199), min_size=1, max_size=20))
    drawn = sample(torch.tensor(labels), 200, 40, seed=3, step=9)
    many = data.draw(st.permutations([*labels, *labels, -1, -7]))
    for other in (
        torch.tensor(many),
        torch.tensor(many, dtype=torch.int32),
        torch.tensor(many, dtype=torch.int16),
    ):
        again = sample(other, 200, 40, seed=3, step=9)
        assert torch.equal(again.classes, drawn.classes)
        assert again.positives == drawn.positives


@pytest.mark.usefixtures("branch")
def test_other_seeds_and_steps_draw_others_and_the_global_generator_is_left_alone():
    labels, state = torch.tensor([5, 6]), torch.get_rng_state()
    places = [(0, 0), (0, 1), (0, 2**32 - 1), (1, 0), (1, 1)]
    assert len(
        {
            tuple(sample(labels, 300, 30, seed=seed, step=step).classes.tolist())
            for seed, step in places
        }
    ) == len(places)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize("steps", [1_000, pytest.param(3_000, marks=pytest.mark.nightly)])
def test_given_the_batch_the_negatives_are_uniform_and_so_are_their_pairs(steps):
    labels, C, size = torch.tensor([3, 3, 8, 11, -1]), 20, 8
    others = [c for c in range(C) if c not in (3, 8, 11)]
    taken = np.zeros((steps, C))
    for step in range(steps):
        taken[step, sample(labels, C, size, seed=1, step=step).classes] = 1
    assert taken[:, [3, 8, 11]].all()
    taken = taken[:, others]
    M, n = len(others), size - 3
    # The counts of a sample without replacement have a covariance M/(M-1) p (1-p) (I - 11^T/M):
    # their squares over it are chi-square
    p = n / M
    single = ((taken.sum(0) - steps * p) ** 2).sum() / (steps * p * (1 - p) * M / (M - 1))
    assert 0.005 < scipy.stats.chi2(M - 1).sf(single) < 0.995
    i, j = np.triu_indices(M, 1)
    pairs = taken[:, i] * taken[:, j]
    assert_pairs_are_uniform(pairs, M, n)


def assert_pairs_are_uniform(pairs, M, n):
    """Chi-square with the exact covariance of pair counts, which depends only on how many members
    two pairs share.
    """
    steps, _ = pairs.shape
    i, j = np.triu_indices(M, 1)
    members = np.zeros((len(i), M))
    members[np.arange(len(i)), i] = members[np.arange(len(i)), j] = 1
    union = 4 - members @ members.T  # distinct members of two pairs
    # that all k are in the sample
    inside = {k: np.prod([(n - m) / (M - m) for m in range(k)]) for k in (2, 3, 4)}
    together = np.vectorize(inside.get)(union.round().astype(int))
    values, vectors = np.linalg.eigh(together - inside[2] ** 2)
    kept = values > 1e-9  # the number of pairs of a sample is fixed
    scores = (pairs.mean(0) - inside[2]) @ vectors[:, kept]
    statistic = steps * (scores**2 / values[kept]).sum()
    assert 0.005 < scipy.stats.chi2(kept.sum()).sf(statistic) < 0.995


def test_the_test_of_pairs_sees_classes_that_keep_together():
    generator = np.random.default_rng(0)
    i, j = np.triu_indices(16, 1)
    blocks = np.stack([generator.permutation(8) < 3 for _ in range(500)]).repeat(2, axis=1)
    loose = np.stack([generator.permutation(16) < 6 for _ in range(500)])
    assert_pairs_are_uniform(loose[:, i] * loose[:, j], 16, 6)
    with pytest.raises(AssertionError):
        assert_pairs_are_uniform(blocks[:, i] * blocks[:, j], 16, 6)


def test_a_sample_of_many_classes_makes_nothing_of_their_length():
    class Longest(TorchDispatchMode):
        longest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, tuple) else (made,):
                if isinstance(tensor, torch.Tensor):
                    self.longest = max(self.longest, tensor.numel())
            return made

    labels = torch.tensor([0, 5, 99_998])
    # tables of 4 to 5 sqrt(C)
    for C, bound in [(100_000, 2_000), (10**7, 13_000), (10**9, 130_000)]:
        with Longest() as seen:
            classes, _ = sample(labels, C, 500, seed=0, step=0)
        assert len(classes) == 500
        assert 500 <= seen.longest <= bound
    with Longest() as seen:
        sample(labels, 99_999, 500, seed=0, step=0)
    assert seen.longest == 99_999


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_columns_finds_what_is_there(dtype):
    classes = torch.tensor([2, 3, 7])
    assert columns(classes, torch.tensor([[7, 2], [-1, 8]], dtype=dtype)).tolist() == [
        [2, 0],
        [-1, -1],
    ]
    assert columns(classes, torch.tensor([0, 5, 3], dtype=dtype)).tolist() == [-1, -1, 1]
    assert columns(classes[:0], torch.tensor([0, -1], dtype=dtype)).tolist() == [-1, -1]
    assert columns(classes, torch.empty(0, dtype=dtype)).dtype == torch.int64


def test_an_empty_batch_has_negatives_only():
    classes, positives = sample(torch.empty(0, dtype=torch.int64), 50, 7, seed=0, step=0)
    assert (len(classes), positives) == (7, 0)
    assert sample(torch.tensor([-1]), 50, 0, seed=0, step=0).classes.tolist() == []


def test_bad_samples_are_refused():
    labels = torch.tensor([1, 10])
    with pytest.raises(ValueError, match=r"Labels lie in \[0, 10\).*not 10"):
        sample(labels, 10, 5, seed=0, step=0)
    for size in (-1, 12):
        with pytest.raises(ValueError, match=f"from 0 to all 11 classes, not {size}"):
            sample(labels, 11, size, seed=0, step=0)
    for step in (-1, 2**32):
        with pytest.raises(ValueError, match=f"for a step in .*not {step}"):
            sample(labels, 11, 5, seed=0, step=step)
