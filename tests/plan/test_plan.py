"""The planner: memory against every allocation of a step, exchange against every collective, and
what follows from the sizes.
"""

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from measured_step import payloads_of_a_step, peak_of, peak_of_a_rank, train
from timm import create_model
from torch.utils.flop_counter import FlopCounterMode

from marginlab.kernels.margin_settings import MarginSettings
from marginlab.kernels.tiles import Columns
from marginlab.losses import PartialFC
from marginlab.losses.sampling import sample
from marginlab.margins import NoMargin
from marginlab.plan import (
    Setup,
    calibrate,
    fits,
    largest,
    memory,
    peak,
    published,
    seconds,
    traffic,
    work,
)
from marginlab.plan.__main__ import main
from marginlab.plan.backbone import backbone, traced

SMALL = Setup(classes=30_000, dim=128, batch=64, ranks=1, device="cpu", reserve=0.0)

# Where the peak is: the buffer, the gradient, the optimizer, or drawing the sample
CASES = {
    "one buffer": replace(SMALL, sample_rate=1.0, batch=256),
    "sampled, one buffer": replace(SMALL, classes=80_000, sample_rate=0.5, batch=256),
    "row chunks": replace(SMALL, classes=8_000, sample_rate=1.0, batch=2_048, budget=48.0),
    "tiles": replace(SMALL, sample_rate=0.6, batch=512, budget=6.0),
    "momentum that rows make up for": replace(
        SMALL, classes=60_000, dim=64, sample_rate=0.3, semantics="decayed"
    ),
    "moments in float32": replace(SMALL, optimizer="LazyAdamW", subcenters=3, sample_rate=0.3),
    "bf16": replace(SMALL, classes=60_000, weights="bf16", embeddings="bf16", sample_rate=0.5),
    "bf16, all classes": replace(
        SMALL, classes=60_000, weights="bf16", sample_rate=1.0, optimizer="LazyAdamW"
    ),
    "dense, sampled": replace(SMALL, optimizer="SGD", sample_rate=0.3, batch=256),
    "dense": replace(SMALL, optimizer="SGD", sample_rate=1.0),
    "dense moments": replace(SMALL, optimizer="AdamW", sample_rate=0.1),
    "many drawn, few dimensions": replace(
        SMALL, classes=300_000, dim=16, sample_rate=0.5, budget=4.0
    ),
    "drawing": replace(SMALL, classes=1_000_000, dim=2, sample_rate=0.3, budget=4.0, batch=32),
}


@pytest.mark.parametrize("name", CASES)
def test_memory_is_within_a_tenth_of_every_allocation_of_two_steps(name):
    setup = CASES[name]
    measured = peak_of(lambda: train(setup))
    assert peak(setup) == pytest.approx(measured, rel=0.1), memory(setup)
    assert setup.regime == name or name not in ("one buffer", "row chunks", "tiles")


@pytest.mark.parametrize("C", [99_999, 400_000])
def test_drawing_takes_what_is_planned(C):
    """Below 100,000 classes torch draws the whole permutation, beyond the places asked for are
    computed.
    """
    setup = Setup(classes=C, batch=100, ranks=2, sample_rate=0.4, device="cpu")
    labels = torch.arange(setup.rows)
    sample(labels, C, setup.drawn, seed=0, step=0)
    measured = peak_of(lambda: sample(labels, C, setup.drawn, seed=0, step=1))
    assert memory(setup)["sampling"]["drawing"] == pytest.approx(measured, rel=0.1)


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("name", ["one buffer", "tiles", "bf16"])
def test_memory_of_a_rank_of_two_is_as_planned(pool, name):
    setup = replace(
        CASES[name], ranks=2, batch=CASES[name].batch // 2, classes=CASES[name].classes + 1
    )
    measured = pool.run(2, peak_of_a_rank, setup)
    assert peak(setup) == pytest.approx(max(measured), rel=0.1), memory(setup)


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(
    "margin", ["ArcFace(0.5)", "AdaFace()", "CurricularFace()", "ElasticFace()"]
)
@pytest.mark.parametrize(
    ("ranks", "smoothing", "embeddings"),
    [(2, 0.0, "float32"), (3, 0.1, "float32"), (4, 0.0, "bf16")],
)
def test_a_step_exchanges_the_planned_bytes(pool, margin, ranks, smoothing, embeddings):
    setup = Setup(
        classes=101,
        dim=16,
        batch=5,
        ranks=ranks,
        sample_rate=0.4,
        margin=margin,
        label_smoothing=smoothing,
        embeddings=embeddings,
        device="cpu",
    )
    planned = [(exchange.collective, exchange.payload) for exchange in traffic(setup)]
    assert pool.run(ranks, payloads_of_a_step, setup) == [planned] * ranks


def test_a_ring_sends_what_is_said():
    """4 ranks: all-gather of p bytes sends 3 p, all-reduce 2 x 3/4 p, reduce-scatter 3/4 p."""
    sent = {
        exchange.what: (exchange.payload, exchange.wire(4))
        for exchange in traffic(Setup(batch=8, ranks=4, dim=16))
    }
    assert sent["embeddings"] == (512, 1536)
    assert sent["rows and faults"] == (64, 96)
    assert sent["gradient of embeddings"] == (2048, 1536)
    assert traffic(Setup(ranks=1)) == []
    assert work(Setup(batch=8, ranks=4, dim=16)).sent == sum(wire for _, wire in sent.values())


@given(
    st.integers(1, 400),
    st.integers(1, 60),
    st.integers(1, 9),
    st.floats(0, 1),
    st.integers(0, 2**31),
)
@example(100, 1, 1, 0.29, 0)  # 0.29 * 100 falls short of 29
def test_a_rank_holds_and_samples_no_more_than_planned(C, batch, ranks, rate, seed):
    """Against the shards of torch.chunk and real samples; the plan is of distinct labels, 4
    standard deviations from the mean.
    """
    setup = Setup(classes=C, batch=batch, ranks=ranks, sample_rate=rate)
    shards = torch.arange(C).chunk(ranks)
    assert setup.held_classes == len(shards[0])
    labels = torch.randperm(C, generator=torch.Generator().manual_seed(seed))[: setup.rows]
    size = PartialFC(C, 2, sample_rate=rate).size
    classes = sample(labels, C, size, seed=seed, step=0).classes
    assert setup.drawn == len(classes)
    mine = int((classes < len(shards[0])).sum())
    assert mine <= setup.sampled <= min(len(classes), len(shards[0]))
    if ranks == 1:
        assert mine == setup.sampled


@given(
    st.integers(1, 3_000),
    st.integers(1, 600),
    st.integers(1, 4),
    st.integers(1, 300),
    st.floats(0.01, 40),
)
def test_a_tile_is_as_wide_as_the_kernel_makes_it(n, rows, K, D, budget):
    setup = Setup(
        classes=n,
        batch=rows,
        ranks=1,
        subcenters=K,
        dim=D,
        budget=budget,
        sample_rate=1.0,
        device="cpu",
    )
    columns = Columns(
        torch.empty(1).expand(n, K, D),
        MarginSettings(NoMargin(), budget=setup.budget_bytes),
        torch.float32,
    )
    assert setup.tile == columns.width(setup.part) * (
        setup.part * 4 * (3 if K == 1 else 4 * K + 4) + K * D * 8
    )


def test_the_issue_s_example():
    """29 million classes on 8 cards: 7,080 MiB for the centers (An et al. 2022), and as much for
    their momentum.
    """
    setup = Setup(classes=29e6, dim=512, batch=128, ranks=8, memory=80, sample_rate=0.1)
    parts = memory(setup)["loss"]
    assert parts["centers"] // 2**20 == parts["optimizer state"] // 2**20 == 7080
    assert parts["gradient of centers"] / parts["centers"] == pytest.approx(0.1, rel=0.01)
    assert setup.sampled == pytest.approx(362_500, rel=0.01)
    assert parts["logits buffer"] == 0
    assert work(setup).flop == 4 * 2 * 1024 * setup.sampled * 512
    dense = replace(setup, sample_rate=1.0, optimizer="SGD")
    assert memory(dense)["update"]["gradient of centers"] == parts["centers"]
    assert fits(setup)
    assert not fits(replace(setup, memory=15.0))


# fits with few classes and, in tiles, with many; between them it does not
HOLDS = replace(SMALL, dim=8, batch=200, sample_rate=0.9, budget=0.2, memory=0.3 / 1024)


@pytest.mark.parametrize(
    "setup",
    [
        HOLDS,
        *(
            pytest.param(setup, marks=pytest.mark.nightly)
            for setup in (
                replace(HOLDS, memory=0.2 / 1024),
                replace(HOLDS, dim=64, batch=32, ranks=2, memory=0.6 / 1024),
            )
        ),
    ],
)
def test_the_largest_number_of_classes_is_that_of_a_search_one_by_one(setup):
    def at(classes):
        return replace(setup, classes=classes)

    every = [C for C in range(1, 1_300) if fits(at(C))]
    assert largest(setup, at) == every[-1] < 1_299
    if setup is HOLDS:  # row chunks no longer fit, and tiles fit again
        assert every != list(range(1, every[-1] + 1))


def test_where_not_one_class_fits_none_is_the_largest():
    assert largest(SMALL, lambda classes: replace(SMALL, memory=1e-6, classes=classes)) == 0


def test_seconds_need_their_rates():
    setup = Setup(classes=1e6, ranks=4, matrix_rate=1e12, memory_rate=1e11)
    assert seconds(setup).exchange is None
    assert seconds(setup).total is None
    known = seconds(replace(setup, exchange_rate=1e9))
    done = work(setup)
    assert known.total == pytest.approx(done.flop / 1e12 + done.moved / 1e11 + done.sent / 1e9)
    assert seconds(replace(setup, ranks=1)).exchange == 0.0


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_backbone_of_timm_is_counted_as_it_runs(precision):
    """Against a real forward pass: what is allocated when it is done, its output included, and its
    operations.
    """
    name, dim, batch, pixels = "resnet18", 32, 8, 64
    parameters, activations, flop = traced(name, dim, batch, pixels, precision)
    model, images = create_model(name, num_classes=dim), torch.randn(batch, 3, pixels, pixels)
    assert parameters == sum(p.numel() for p in model.parameters())
    kept = {}

    def keep(saved):
        kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage()
        return saved

    counter = FlopCounterMode(display=False)
    cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with cast, counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        out = model(images)
    own = {
        tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())
    }
    assert out.shape == (batch, dim)
    saved = sum(storage.nbytes() for place, storage in kept.items() if place not in own)
    # on bf16, a fake batch norm gives its statistics in bf16
    assert activations == pytest.approx(saved, rel=1e-3)
    assert precision == "bf16" or activations == saved
    assert flop == counter.get_total_flops()
    setup = Setup(
        backbone=name, dim=dim, batch=batch, image_size=pixels, precision=precision, ranks=2
    )
    assert backbone(setup) == (parameters * 4 * 4, activations)
    assert memory(setup)["loss"]["activations of the backbone"] == activations
    assert work(setup).backbone == 3 * flop


def test_a_transformer_of_another_size_and_what_no_backbone_is():
    assert (
        traced("vit_tiny_patch16_224", 16, 2, 112, "float32")[1]
        < traced("vit_tiny_patch16_224", 16, 2, 224, "float32")[1]
    )
    with pytest.raises(ValueError, match="or a model of timm, not 'resnet19'"):
        backbone(Setup(backbone="resnet19"))
    with pytest.raises(ValueError, match="a number of GiB from 0, not -1"):
        backbone(Setup(backbone="-1"))
    with pytest.raises(
        ValueError, match=r"vit_tiny_patch16_224 does not take 2 images of 10 x 10.*Set image_size"
    ):
        traced("vit_tiny_patch16_224", 16, 2, 10, "float32")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"classes": 29.5}, "a whole number from 1 to"),
        ({"classes": math.nan}, "a whole number from 1 to"),
        ({"classes": 0}, "a whole number from 1 to"),
        ({"classes": 1e12}, "a whole number from 1 to"),
        ({"batch": 0}, "batch is at least 1"),
        ({"sample_rate": 10}, r"in \[0, 1\], not 10"),
        ({"memory": 0}, "a positive number of GiB"),
        ({"reserve": -1}, "a number from 0, not -1"),
        ({"weights": "fp32"}, "did you mean 'float32'"),
        ({"optimizer": "lazysgd"}, "did you mean 'LazySGD'"),
        ({"margin": "ArcFase()"}, "did you mean 'ArcFace'"),
        ({"label_smoothing": 1.0}, "label_smoothing lies in"),
    ],
)
def test_nonsense_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Setup(**wrong)


def test_the_published_table_is_whole():
    """The eleven sizes of the table of V100s, of which three heads were measured as far as they
    fit, and the figures from three other places.
    """
    rows = published()
    speed = [row for row in rows if row.table == "8 x V100 32 GB"]
    assert [
        sum(row.head == head for row in speed)
        for head in ("data parallel", "model parallel", "Partial FC")
    ] == [5, 8, 11]
    assert len(rows) == 24 + 2 + 8 + 4
    for head in ("data parallel", "model parallel", "Partial FC"):
        ours = [row for row in speed if row.head == head]
        assert sorted(row.memory_mb for row in ours) == [row.memory_mb for row in ours]
        assert sorted((row.samples_per_second for row in ours), reverse=True) == [
            row.samples_per_second for row in ours
        ]
    assert all(row.source for row in rows)


def test_the_command_prints_the_plan(capsys):
    """The command of the issue; its class count is written as a float, and is whole."""
    arguments = (
        "--classes 29e6 --dim 512 --batch 128 --ranks 8 --memory 80 --sample-rate 0.1 --subcenters "
        "1 --weights float32"
    ).split()
    assert main(arguments) == 0
    text = capsys.readouterr().out
    most = largest(Setup(classes=29e6), lambda classes: Setup(classes=classes))
    for said in (
        "29,000,000 classes",
        f"{peak(Setup(classes=29e6)) / 2**30:.3f}",
        "It fits",
        f"{most:,}",
        "32,324",
        "rates are not all known",
    ):
        assert said in text
    assert main(["--classes", "29e6", "--memory", "10"]) == 0
    assert "does not fit" in capsys.readouterr().out
    assert main(["--backbone", "resnet19"]) == 2
    assert "a model of timm, not 'resnet19'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main(["--classes", "29.5"])
    assert left.value.code == 2
    assert "a whole number from 1 to" in capsys.readouterr().err


def test_calibration_measures_this_machine(capsys):
    """Alone, with two processes of its own for the exchange; the largest it may be is what a copy
    in memory does.
    """
    assert main("--classes 1e4 --dim 32 --device cpu --ranks 2 --batch 16 --calibrate".split()) == 0
    text = capsys.readouterr().out
    assert "Rates measured on a CPU with" in text
    matrix, moved, sent = (
        float(number.replace(",", "")) for number in re.findall(r"([0-9.,]+) G(?:flop|B)/s", text)
    )
    assert 0.1 < matrix < 1e5
    assert 0.1 < moved < 1e4
    assert 0 < sent < moved
    if not torch.cuda.is_available():
        assert main(["--calibrate"]) == 2
        assert "this machine has none to measure" in capsys.readouterr().err


def calibrated(group, rank):
    return calibrate(Setup(classes=1e4, dim=32, batch=16, ranks=4, device="cpu"))


@pytest.mark.xdist_group("ranks")
def test_ranks_measure_their_own_exchange_and_agree(pool):
    first, *others = pool.run(4, calibrated)
    assert min(first.matrix_rate, first.memory_rate, first.exchange_rate) > 0
    assert others == [first] * 3
