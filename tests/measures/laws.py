"""Laws of every measure, as a mixin.

A test class names a measure, its data, and the fields of the result that are compared.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from marginlab.testing import measure_laws
from marginlab.testing.strategies import seeds

# one law, many measures
LAW = settings(
    max_examples=max(5, settings().max_examples // 500),
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
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

    def holds(self, law, seed, **more):
        law(
            type(self).make, self.sample(seed), seed, ordered=self.ordered, noise=self.noise, **more
        )

    @LAW
    @given(seeds)
    def test_splitting_a_batch_changes_nothing(self, seed):
        self.holds(measure_laws.split, seed)

    @LAW
    @given(seeds)
    def test_the_order_of_images_changes_nothing(self, seed):
        self.holds(measure_laws.permutation, seed)

    @LAW
    @given(seeds)
    def test_merged_states_are_those_of_all_images(self, seed):
        self.holds(measure_laws.merge, seed)

    def test_it_pickles_and_goes_on(self):
        self.holds(measure_laws.pickled, 3)

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
        self.holds(measure_laws.forward, 6)

    def test_inputs_and_results_are_left_alone(self):
        self.holds(measure_laws.inputs_kept, 7)

    @pytest.mark.xdist_group("ranks")
    @pytest.mark.parametrize(
        "n", [*(pytest.param(n, marks=pytest.mark.nightly) for n in (1, 2, 3)), 4]
    )
    @settings(LAW, max_examples=2)
    @given(seed=seeds)
    def test_any_number_of_ranks_is_one_rank(self, pool, n, seed):
        self.holds(measure_laws.ranks, seed, n=n, pool=pool)
