"""What every measure must satisfy, as a mixin: a test class names a measure, its data, and what of
the result is compared.
"""

import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

# one law, many measures
LAW = settings(
    max_examples=10, suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow]
)


def numbers(result, skip=()):
    """The tensors and plain values of a result, by name, nested ones with their place."""
    found = {}
    for name, value in result._asdict().items():
        if name not in skip:
            found |= _parts(name, value)
    return found


def _parts(name, value):
    if not isinstance(value, tuple):
        return {name: value}
    return {
        inner: part
        for place, item in enumerate(value)
        for inner, part in _parts(f"{name}[{place}]", item).items()
    }


def assert_same(one, two, skip=(), atol=1e-10):
    one, two = numbers(one, skip), numbers(two, skip)
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                value,
                two[name],
                rtol=0,
                atol=atol,
                equal_nan=True,
                msg=lambda m, name=name: f"{name}: {m}",
            )
        elif isinstance(value, float):
            assert value == pytest.approx(two[name], rel=0, abs=atol, nan_ok=True), name
        else:
            assert value == two[name], name


def _on_a_rank(group, rank, make, parts, skip_empty):
    measure = make(process_group=group)
    for rows in parts[rank]:
        if not (skip_empty and not len(rows[0])):
            measure.update(*rows)
    if not measure.update_called:
        measure._update_count = 1  # torchmetrics warns of a rank without updates
    result = measure.compute()
    own = [len(rows[0]) for rows in parts[rank]]
    measure.update(*parts[rank][0])  # after computing, a rank goes on with what is its own
    return result, own


class MeasureLaws:
    """Subclasses give `make(**kwargs)` (a module-level function), `data(n, generator)` -> arguments
    of update with n rows, and two tuples: `ordered`, the fields that name images by their order,
    and `noise`, the fields that are allowed to depend on it.
    """

    make = None
    rows = 12
    ordered: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()

    def data(self, n, generator):
        raise NotImplementedError

    def whole(self, arguments):
        measure = type(self).make(sync_on_compute=False)
        measure.update(*arguments)
        return measure.compute()

    def sample(self, seed):
        return self.data(self.rows, torch.Generator().manual_seed(seed))

    @LAW
    @given(st.integers(0, 2**20), st.lists(st.integers(0, 12), max_size=4).map(sorted))
    def test_splitting_a_batch_changes_nothing(self, seed, cuts):
        arguments = self.sample(seed)
        measure = type(self).make()
        for start, end in zip([0, *cuts], [*cuts, self.rows], strict=True):
            measure.update(*(a[start:end] for a in arguments))
        assert_same(measure.compute(), self.whole(arguments))

    @LAW
    @given(st.integers(0, 2**20))
    def test_the_order_of_images_changes_nothing(self, seed):
        arguments = self.sample(seed)
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(seed + 1))
        assert_same(
            self.whole([a[order] for a in arguments]),
            self.whole(arguments),
            (*self.ordered, *self.noise),
        )

    @LAW
    @given(st.integers(0, 2**20), st.integers(0, 12))
    def test_merged_states_are_those_of_all_images(self, seed, cut):
        arguments = self.sample(seed)
        one, two = type(self).make(), type(self).make()
        one.update(*(a[:cut] for a in arguments))
        two.update(*(a[cut:] for a in arguments))
        one.merge_state(two)
        assert_same(one.compute(), self.whole(arguments), (*self.ordered, *self.noise))

    def test_it_pickles_and_goes_on(self):
        arguments = self.sample(3)
        measure = type(self).make()
        measure.update(*(a[:7] for a in arguments))
        copy = pickle.loads(pickle.dumps(measure))
        copy.update(*(a[7:] for a in arguments))
        assert_same(copy.compute(), self.whole(arguments))
        # with its result cached
        assert_same(pickle.loads(pickle.dumps(copy)).compute(), self.whole(arguments))

    def test_reset_forgets_everything(self):
        measure = type(self).make()
        measure.update(*self.sample(4))
        measure.compute()
        measure.reset()
        with pytest.raises(ValueError, match="has seen no image"):
            measure.update(*(a[:0] for a in self.sample(4))) or measure.compute()
        measure.update(*self.sample(5))
        assert_same(measure.compute(), self.whole(self.sample(5)))

    def test_forward_gives_the_batch_and_keeps_the_stream(self):
        arguments = self.sample(6)
        measure = type(self).make()
        assert_same(measure(*arguments), self.whole(arguments))
        assert_same(measure.compute(), self.whole(arguments), (*self.ordered, *self.noise))

    def test_inputs_and_results_are_left_alone(self):
        arguments = self.sample(7)
        before = [a.clone() for a in arguments]
        measure = type(self).make()
        measure.update(*arguments)
        first = measure.compute()
        for a, b in zip(arguments, before, strict=True):
            assert torch.equal(a, b)
            a.zero_()  # a reused buffer
        measure._computed = None
        assert_same(measure.compute(), first)

    @pytest.mark.xdist_group("ranks")
    @pytest.mark.parametrize("n", [1, 2, 3, 4])
    @pytest.mark.parametrize("skip_empty", [False, True])
    @settings(LAW, max_examples=2)
    @given(data=st.data())
    def test_any_number_of_ranks_is_one_rank(self, pool, n, skip_empty, data):
        arguments = self.sample(data.draw(st.integers(0, 2**20)))
        cuts = sorted(
            data.draw(st.lists(st.integers(0, self.rows), min_size=2 * n - 1, max_size=2 * n - 1))
        )
        bounds = list(zip([0, *cuts], [*cuts, self.rows], strict=True))
        # consecutive, uneven, some empty
        shards = [
            [tuple(a[s:e] for a in arguments) for s, e in bounds[2 * r : 2 * r + 2]]
            for r in range(n)
        ]
        expected = self.whole(arguments)
        for result, _ in pool.run(n, _on_a_rank, type(self).make, shards, skip_empty):
            assert_same(result, expected, self.noise)
