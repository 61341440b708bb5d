"""The monitor's measures by name, and the monitor in a loop that is not ours."""

import math

import pytest
import torch
from torch import nn

from marginlab.augment import Augmentation
from marginlab.data import load
from marginlab.measures.functional import alignment
from marginlab.settings import SettingsError
from marginlab.theory import Population, certify
from marginlab.train import Callback, Monitor, Recipe, fit, read_rows
from marginlab.train.features import encode_images, encode_views


@pytest.fixture(scope="module")
def digits():
    return tuple(load("digits", split, size=16).subset(60) for split in ("train", "test"))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(392, 16)
    )


def plain_loop(model, train, callback, epochs):
    """Somebody's loop: a cross-entropy on logits, no augmentation, no recipe."""
    torch.manual_seed(1)
    head = nn.Linear(16, 10)
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)
    callback(0)
    for epoch in range(1, epochs + 1):
        for rows in torch.arange(len(train)).split(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(
                head(model(train.images[rows] / 255)), train.labels[rows]
            ).backward()
            optimizer.step()
        callback(epoch)


def test_a_plain_loop_is_measured_on_the_schedule_and_left_as_it_was(digits, tmp_path):
    train, test = digits
    monitor = Monitor(every=2, images=40, views=3, measures=("Alignment(normalize=True)",))
    watched, alone = network(), network()
    callback = Callback(
        watched,
        train,
        test,
        Augmentation("ae"),
        epochs=5,
        monitor=monitor,
        csv=tmp_path / "rows.csv",
    )
    plain_loop(watched, train, callback, 5)
    plain_loop(alone, train, lambda epoch: None, 5)
    assert sorted({row.epoch for row in callback.rows}) == [0, 2, 4, 5]
    # it only looks
    assert all(
        torch.equal(a, b)
        for a, b in zip(watched.state_dict().values(), alone.state_dict().values(), strict=True)
    )
    assert {row.space for row in callback.rows} == {"backbone"}
    by_name = {row.tag: row for row in callback.rows if row.epoch == 5}
    own = encode_views(
        callback.model.eval(),
        Augmentation("ae"),
        test.subset(40),
        3,
        seed=0,
        device=torch.device("cpu"),
        split="test",
    )["backbone"]
    expected = float(alignment(own)[0].mean())
    assert by_name["Alignment/L_align/backbone"].value == pytest.approx(expected)
    assert by_name["Alignment/L_align/backbone"][4:] == by_name["alignment/backbone"][4:]
    assert by_name["knn_error/backbone"].value < 0.5
    assert repr(read_rows(tmp_path / "rows.csv")) == repr(callback.rows)


@pytest.mark.parametrize("text", ["", "epoch,name,value,low,high,n\n0,loss,0.5,nan,nan,0\n"])
def test_a_table_without_the_columns_is_refused(tmp_path, text):
    (tmp_path / "monitor.csv").write_text(text)
    with pytest.raises(SettingsError, match=r"monitor\.csv has the columns .*, not epoch, space"):
        read_rows(tmp_path / "monitor.csv")


def test_parts_of_a_network_keep_their_own_modes_and_a_projector_is_measured_beside(digits):
    train, test = digits
    model = network().train()
    model[1].eval()  # a frozen batch normalisation
    callback = Callback(
        model,
        train,
        test,
        Augmentation("a"),
        epochs=3,
        monitor=Monitor(images=20, views=2),
        project=nn.Linear(16, 4),
    )
    assert callback(1) == callback(2) == []
    rows = callback(3)
    assert {row.space for row in rows} == {"backbone", "projector"}
    assert model.training
    assert not model[1].training
    assert model[0].training


def test_what_cannot_be_measured_is_refused(digits):
    train, test = digits
    with pytest.raises(ValueError, match="same classes"):
        Callback(network(), train, load("shapes-5", "test"), Augmentation("a"), epochs=1)
    with pytest.raises(ValueError, match="0 epochs or more, not -1"):
        Callback(network(), train, test, Augmentation("a"), epochs=-1)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere to write rows\.csv into"):
        Callback(network(), train, test, Augmentation("a"), epochs=1, csv="nowhere/rows.csv")
    callback = Callback(network()[:3], train, test, Augmentation("a"), epochs=1)
    with pytest.raises(ValueError, match=r"epochs 0 .* to 1, not 2"):
        callback(2)
    with pytest.raises(ValueError, match=r"features \(B, D\), not .* Pool and flatten"):
        callback(0)
    with pytest.raises(SettingsError, match=r"names no class of marginlab\.measures"):
        Monitor(measures=("Alinment()",))
    with pytest.raises(SettingsError, match=r"names no class|is no Measure"):
        Monitor(measures=("AnchorCurve(1, 2, 3, 4)",))


def test_measures_of_a_run_stand_in_its_table(tmp_path):
    recipe = Recipe(
        data="digits",
        image_size=16,
        images=60,
        augmentation="Augmentation('a')",
        backbone="Backbone('resnet18', stem='strided', width=0.125)",
        method="SimCLR(hidden=8, dim=4)",
        epochs=1,
        batch=20,
    )
    run = fit(
        recipe,
        tmp_path / "run",
        Monitor(images=40, views=2, bank=40, measures=("ClassDivergence()",)),
        say=lambda line: None,
    )
    tags = {row.tag: row for row in run.rows}
    assert "ClassDivergence/Delta_mu/backbone" in tags
    own, other = tags["ClassDivergence/Delta_mu/projector"], tags["delta_mu/projector"]
    assert (own.value, own.n) == (other.value, other.n)
    # of a biased number the plain row has no interval, and delta_mu one that allows for the choice
    assert own.low != own.low
    assert other.low <= other.value <= other.high
    assert not any("error_" in row.at for row in run.rows)
    assert "n" not in {row.at for row in run.rows if row.quantity == "ClassDivergence"}


def test_bounds_are_those_of_the_images_and_views_that_are_watched(digits):
    train, test = digits
    callback = Callback(
        network(),
        train,
        test,
        Augmentation("a"),
        epochs=1,
        monitor=Monitor(images=40, views=3, bounds=True),
    )
    rows = {row.tag: row for row in callback(0)}
    seen = []
    for split, images in (("train", train.subset(40)), ("test", test.subset(40))):
        views = encode_views(
            callback.model.eval(),
            Augmentation("a"),
            images,
            3,
            seed=0,
            device=torch.device("cpu"),
            split=split,
        )["backbone"]
        clean = encode_images(callback.model.eval(), images.images, torch.device("cpu"))["backbone"]
        seen.append((torch.cat((clean[:, None], views), dim=1), images.labels))
    certificate = certify(*seen[0], new=seen[1], v_curve=False)
    assert rows["certified/T_lengths/backbone"].value == certificate["T_lengths"].value
    assert rows["certified/fixed_centers/backbone"].value == certificate["fixed_centers"].value
    assert (
        rows["certified/new_images/backbone"].value
        == certificate["new_images"].value
        >= rows["certified/image_wise/backbone"].value
        == certificate["image_wise"].value
        >= rows["new_error/backbone"].high
    )
    for key in ("prototypes", "population", "population_T"):
        assert rows[f"certified/{key}/backbone"].value == certificate[key].value
        assert rows[f"certified/{key}/backbone"].n == certificate.new_images
    assert rows["new_error/backbone"].value == certificate.new_error[0]
    assert (
        rows["certified_test/T_lengths/backbone"].value
        == certify(*seen[1], v_curve=False)["T_lengths"].value
    )
    population = Population(*seen[1])
    assert rows["tau/backbone"].value > 0
    assert (
        rows["companion/backbone"].value
        >= rows["view_error/backbone"].value
        == pytest.approx(population.view_error)
    )
    assert (
        rows["theorem_3_mean_product/backbone"].value
        <= rows["theorem_3_all_terms/backbone"].value + 1e-9
    )
    assert rows["theorem_3_printed/backbone"].value > math.log(16 - math.e)
    assert (
        rows["theorem_4_product/backbone"].value
        <= rows["theorem_4_refined/backbone"].value
        <= rows["theorem_4_printed/backbone"].value
    )
