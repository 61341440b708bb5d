"""Ranks that do not call a loss alike are told so on every one of them: none hangs, none gets a
number.
"""

import copy

import pytest
import torch

from marginlab import losses, ranks
from marginlab.losses import MarginSoftmax, PartialFC
from marginlab.margins import ArcFace, CosFace

pytestmark = pytest.mark.xdist_group("ranks")


def say(group, rank, name, settings, inputs):
    """Return the error that a rank hears whose loss has its own settings and inputs."""
    torch.manual_seed(0)
    loss = getattr(losses, name[rank])(**settings[rank], group=group)
    try:
        return loss(*copy.deepcopy(inputs[rank])).item()
    except (ValueError, TypeError) as error:
        return str(error)


def heard(pool, name, settings, inputs):
    """The one sentence that both ranks hear; afterwards they still work together."""
    names = [name] * 2 if isinstance(name, str) else name
    first, second = pool.run(2, say, names, settings, inputs)
    assert first == second
    assert isinstance(first, str)
    assert pool.run(2, _together) == [[0, 1]] * 2
    return first


def _together(group, rank):
    return ranks.all_gather_stack(torch.tensor(rank), group).tolist()


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0])
PAIR = (X, X + 1)
TWO_VIEWS = (
    "InfoNCE",
    "AlignUniform",
    "TInfoNCE",
    "SpectralContrastive",
    "CrossCorrelation",
    "VICReg",
)
INPUTS = {**dict.fromkeys(TWO_VIEWS, PAIR), "SupCon": (X, LABELS)}


def test_partial_fc_of_20_classes_beside_one_of_30(pool):
    settings = [{"num_classes": 20, "dim": 6}, {"num_classes": 30, "dim": 6}]
    words = "The ranks do not call PartialFC alike: num_classes is 20 on rank 0 and 30 on rank 1."
    assert heard(pool, "PartialFC", settings, [(X, LABELS)] * 2) == words


@pytest.mark.parametrize("kind", ["PartialFC", "MarginSoftmax"])
@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("scale", 64.0, 32.0),
        ("margin", ArcFace(0.5), CosFace(0.4)),
        ("subcenters", 1, 2),
        ("class_weights", torch.ones(20), torch.arange(1.0, 21.0)),
        ("label_smoothing", 0.0, 0.1),
    ],
)
def test_a_classifier_of_another_make(pool, kind, name, one, other):
    settings = [{"num_classes": 20, "dim": 6, name: value} for value in (one, other)]
    said = heard(pool, kind, settings, [(X, LABELS)] * 2)
    assert said.startswith(f"The ranks do not call {kind} alike: {name} is ")


def test_a_sampled_classifier_with_another_rate_or_dtype(pool):
    base = {"num_classes": 20, "dim": 6}
    rates = [base | {"sample_rate": 0.1}, base | {"sample_rate": 0.5}]
    assert "sample_rate is 0.1 on rank 0 and 0.5 on rank 1" in heard(
        pool, "PartialFC", rates, [(X, LABELS)] * 2
    )
    both = [base | {"dtype": torch.float64}] * 2
    said = heard(pool, "PartialFC", both, [(X.double(), LABELS), (X, LABELS)])
    assert "dtype is torch.float64 on rank 0 and torch.float32 on rank 1" in said


def test_extra_negatives_on_one_rank_only(pool):
    said = heard(pool, "InfoNCE", [{}] * 2, [(*PAIR, X), PAIR])
    assert (
        said == "The ranks do not call InfoNCE alike: extra_negatives is torch.float32 on rank 0 "
        "and None on rank 1."
    )


@pytest.mark.parametrize("name", INPUTS)
def test_another_width_or_dtype_or_setting_on_one_rank(pool, name):
    x, second = INPUTS[name]
    wide = (torch.cat((x, x), 1), torch.cat((second, second), 1) if second.ndim == 2 else second)
    said = heard(pool, name, [{}] * 2, [(x, second), wide])
    assert (
        said == f"The ranks do not call {name} alike: width is (6,) on rank 0 and (12,) on rank 1."
    )
    said = heard(pool, name, [{}] * 2, [(x, second), (x.double(), second)])
    assert "dtype is torch.float32 on rank 0 and torch.float64 on rank 1" in said
    said = heard(pool, name, [{"grads": "sum"}, {"grads": "mean"}], [(x, second)] * 2)
    assert f"do not call {name} alike" in said
    assert "sum" in said


def test_another_loss_or_temperature_on_one_rank(pool):
    said = heard(pool, ["InfoNCE", "TInfoNCE"], [{}] * 2, [PAIR] * 2)
    assert (
        said
        == "The ranks do not call the same: call is 'InfoNCE' on rank 0 and 'TInfoNCE' on rank 1."
    )
    said = heard(pool, "InfoNCE", [{"temperature": 0.5}, {"temperature": 0.1}], [PAIR] * 2)
    assert "temperature is 0.5 on rank 0 and 0.1 on rank 1" in said


def gathered(group, rank, parts):
    try:
        return ranks.all_gather(parts[rank], group)
    except ValueError as error:
        return str(error)


def test_gathered_rows_of_another_make(pool):
    words = "The ranks do not call gather alike: width is (6,) on ranks 0, 1 and (3,) on rank 2."
    assert pool.run(3, gathered, [X, X[:0], X[:, :3]]) == [words] * 3
    said = pool.run(2, gathered, [X, X.half()])
    assert (
        said[0]
        == said[1]
        == "The ranks do not call gather alike: dtype is torch.float32 on rank 0 and "
        "torch.float16 on rank 1."
    )


def counted(group, rank, kind, settings):
    """Collectives of the first and of the second call."""
    head = {"PartialFC": PartialFC, "MarginSoftmax": MarginSoftmax}[kind](
        20, 6, group=group, **settings
    )
    seen = []
    for _ in range(2):
        before = torch.distributed.all_reduce
        calls = [0]

        def watched(*arguments, before=before, calls=calls, **named):
            calls[0] += 1
            return before(*arguments, **named)

        torch.distributed.all_reduce = watched
        try:
            head(X, LABELS)
        finally:
            torch.distributed.all_reduce = before
        seen.append(calls[0])
    return seen


def test_comparing_costs_no_collective_at_a_step(pool):
    """It travels with the numbers of rows; where those are not needed, it is paid once."""
    first, second = pool.run(2, counted, "PartialFC", {})[0]
    assert first == second
    first, second = pool.run(2, counted, "MarginSoftmax", {"class_weights": torch.ones(20)})[0]
    assert first == second + 1


@pytest.mark.parametrize("name", INPUTS)
def test_another_loss_of_nothing_on_one_rank(pool, name):
    """Else one rank would end and the others wait for it."""
    said = heard(pool, name, [{"empty": "zero"}, {"empty": "raise"}], [INPUTS[name]] * 2)
    assert (
        said
        == f"The ranks do not call {name} alike: empty is 'zero' on rank 0 and 'raise' on rank 1."
    )


@pytest.mark.parametrize("name", ["MarginSoftmax", "PartialFC"])
@pytest.mark.parametrize("wrong", ["label", "list"])
def test_what_one_rank_refuses_at_the_first_call_all_refuse(pool, name, wrong):
    batch = (X, torch.tensor([0, 1, 99, 0])) if wrong == "label" else (X.tolist(), LABELS)
    settings = {"num_classes": 3, "dim": 6}
    first, second = pool.run(2, say, [name] * 2, [settings] * 2, [(X, LABELS), batch])
    assert isinstance(second, str)
    assert first == f"Rank 1 of 2 refused its batch: {second}"
    assert pool.run(2, _together) == [[0, 1]] * 2


def _accept(group, rank):
    def check():
        if rank == 1:
            raise MemoryError
        return "good"

    try:
        ranks.validate_together(check, X, group)
    except (ValueError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"


def test_an_error_of_any_kind_on_one_rank_is_raised_on_all(pool):
    said = pool.run(2, _accept)
    assert said == ["ValueError: Rank 1 of 2 refused its batch: MemoryError", "MemoryError: "]
