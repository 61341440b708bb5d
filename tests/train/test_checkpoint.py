"""A checkpoint is the network that was measured, read as data, and as it was written."""

import importlib
import io
import pickle
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from marginlab import settings
from marginlab.settings import SettingsError
from marginlab.train import (
    Monitor,
    Recipe,
    check,
    checkpoint,
    contents,
    fit,
    keeping,
    load,
    restore,
    save,
)
from marginlab.train.angles import Angles, CollapseWarning

RECIPE = Recipe(
    data="shapes-5", images=32, image_size=16, augmentation="Augmentation('ae')",
    backbone="Backbone('resnet18', stem='strided', width=0.125)",
    method="SimCLR(hidden=8, dim=8)", epochs=2, batch=16, optimizer="SGD(lr=0.05)",
)  # fmt: skip
WATCH = Monitor(images=20, views=2, bank=40, probe_classes=0)
OWN = """
from pathlib import Path
from marginlab.methods import SimCLR
Path(__file__).with_name("imported").touch()
class Mine(SimCLR):
    pass
class Op:
    def draw(self, key, size):
        return ()
    def apply(self, images, parameters):
        return images
    def __repr__(self):
        return "OWNMODULE:Op()"
class Net(__import__("torch").nn.Module):
    def __init__(self, dim=4):
        super().__init__()
        self.dim, self.layer = dim, __import__("torch").nn.Conv2d(3, dim, 3)
    def forward(self, images):
        return self.layer(images).mean((2, 3))
"""


def quiet(line):
    """Where progress goes in tests."""


def made(recipe=RECIPE):
    method = recipe.make_method(5)
    return method, method.optimizers(recipe.make_optimizer())


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A checkpoint with optimizer state, made by a loop of one's own."""
    folder = tmp_path_factory.mktemp("kept")
    method, optimizers = made()
    method.loss(torch.rand(4, 2, 3, 16, 16), torch.arange(4))["loss"].backward()
    optimizers[0].step()
    method.optimizer = optimizers[0]  # for the comparison
    names = ("cat", "dog", "\udcff", "é", "5")
    place = save(folder, RECIPE, method, optimizers, step=1, classes=names, progress={"mine": 3})
    return place, method, optimizers[0]


def alike(one, two):
    return all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_loop_of_ones_own_is_saved_restored_and_loaded_with_its_class_names(kept):
    place, method, optimizer = kept
    again, others = made()
    found = restore(place.parent.parent, again, others, recipe=RECIPE)
    assert (found["mine"], found["step"]) == (3, 1)
    assert again.classes == load(place).classes == ("cat", "dog", "\udcff", "é", "5")
    for other in (again, load(place.parent.parent)):
        assert alike(other.state_dict(), method.state_dict())
    weight = again.backbone.net.conv1.weight
    before = optimizer.state[method.backbone.net.conv1.weight]["momentum_buffer"]
    assert torch.equal(others[0].state[weight]["momentum_buffer"], before)
    with pytest.raises(ValueError, match="step 0 or a later one, not -1"):
        save(place.parent, RECIPE, method, step=-1, classes=())
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(place.parent, RECIPE, method, step=2, classes=(), progress={"a": object()})
    assert not (place.parent / "checkpoints").exists()


def test_a_step_that_was_saved_is_not_taken_for_another_of_its_number(tmp_path):
    """Otherwise `load` gives the network of another run."""
    method, _ = made()
    place = save(tmp_path, RECIPE, method, step=7, classes="abcde")
    with torch.no_grad():
        other = RECIPE.make_method(5)
        other.backbone.net.conv1.weight.zero_()
    with pytest.raises(
        FileExistsError, match=r"step-00000007 is there already.*Save each step once"
    ):
        save(tmp_path, RECIPE, other, step=7, classes="vwxyz")
    assert load(tmp_path).classes == tuple("abcde")
    assert alike(load(tmp_path).state_dict(), method.state_dict())
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_names_of_more_or_fewer_classes_than_the_head_has_are_refused_when_they_are_saved(tmp_path):
    recipe = replace(RECIPE, method="MarginClassifier(dim=8)")
    with pytest.raises(ValueError, match=r"classifier has 5 classes, and 2 names are given"):
        save(tmp_path, recipe, recipe.make_method(5), step=1, classes=("cat", "dog"))
    assert not (tmp_path / "checkpoints").exists()


def test_weights_are_looked_through_once_for_each_checkpoint(tmp_path, monkeypatch):
    looked = []
    for module in (checkpoint, keeping):
        monkeypatch.setattr(module, "check_finite", lambda *arguments: looked.append(arguments[2]))
    fit(replace(RECIPE, epochs=2), tmp_path / "run", Monitor.none(), say=quiet)
    assert looked == [2, 4]


def test_older_checkpoints_go_when_that_is_wanted(tmp_path):
    method, _ = made()
    for step in (9, 10, 100_000_000):
        save(tmp_path, RECIPE, method, step=step, classes=())
    (tmp_path / "checkpoints" / "step-mine").mkdir()
    assert checkpoint.latest(tmp_path).name == "step-100000000"
    checkpoint.prune(tmp_path)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-100000000", "step-mine"]


def trained(group, rank, recipe, folder):
    run = fit(recipe, folder, WATCH, say=quiet)
    return run.method.state_dict(), [row for row in run.rows if row.epoch == 2]


@pytest.mark.xdist_group("ranks")
def test_the_checkpoint_of_several_ranks_is_the_network_that_was_measured(pool, tmp_path):
    pixels, labels = torch.randint(0, 256, (32, 16, 16, 3), dtype=torch.uint8), torch.arange(32) % 4
    arrays = {"images": pixels.numpy(), "labels": labels.numpy()}
    splits = {f"{s}_{name}": array for s in ("train", "test") for name, array in arrays.items()}
    np.savez(tmp_path / "own.npz", **splits)
    recipe = replace(RECIPE, data=f"npz:{tmp_path / 'own.npz'}")
    answers = pool.run(4, trained, recipe, tmp_path / "run")
    saved = load(tmp_path / "run").state_dict()
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
    for state, rows in answers:
        assert alike(state, saved)
        assert repr(rows) == repr(answers[0][1])
    measured = {row.tag: row for row in answers[0][1]}
    train, test = check(recipe)
    again = WATCH(load(tmp_path / "run"), RECIPE.make_augmentation(), train, test, 2, last=True)
    for row in again:
        assert measured[row.tag].value == pytest.approx(row.value, rel=1e-6, abs=1e-12), row.tag


class Command:
    """A pickle that runs something."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (Path(self.mark),)


def test_code_in_a_checkpoint_is_not_run(kept, tmp_path):
    shutil.copytree(kept[0], tmp_path / "a" / "checkpoints" / "step-00000001")
    place, mark = tmp_path / "a" / "checkpoints" / "step-00000001", tmp_path / "ran"
    good = (place / ".metadata").read_bytes()
    (place / ".metadata").write_bytes(pickle.dumps(Command(mark)))
    contents.write_sums(place, {})
    method, optimizers = made()
    attempts = (
        lambda: load(place),
        lambda: restore(place, method, optimizers),
        lambda: keeping.start(method, tmp_path / "a"),
    )
    for attempt in attempts:
        with pytest.raises(ValueError, match=r"\.metadata cannot be read: it holds .*Path"):
            attempt()
    # a value that is no tensor, as one of the optimizer's settings
    found = contents.Reader(kept[0]).read_metadata()
    data = (place / "__0_0.distcp").read_bytes()
    index = next(i for i in found.storage_data if i.fqn.endswith("param_groups.0.lr"))
    hostile = io.BytesIO()
    torch.save(Command(mark), hostile)
    found.storage_data[index].offset = len(data)
    found.storage_data[index].length = len(hostile.getvalue())
    (place / "__0_0.distcp").write_bytes(data + hostile.getvalue())
    (place / ".metadata").write_bytes(pickle.dumps(found))
    contents.write_sums(place, {})
    with pytest.raises(ValueError, match="cannot be loaded"):
        restore(place, method, optimizers)
    assert not mark.exists()
    (place / ".metadata").write_bytes(good)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: setattr(first(m), "relative_path", "../../x.distcp"), "is no file of this"),
        (lambda m: setattr(first(m), "offset", -8), "begins at -8"),
        (lambda m: setattr(first(m), "transform_descriptors", ["zstd"]), "transforms"),
        (lambda m: setattr(shaped(m), "size", torch.Size((1 << 40,))), "do not hold"),
        (lambda m: setattr(m, "storage_data", None), "is no metadata"),
    ],
)
def test_metadata_that_points_out_of_its_files_is_refused(kept, tmp_path, change, words):
    place = shutil.copytree(kept[0], tmp_path / "step-00000001")
    found = contents.Reader(place).read_metadata()
    change(found)
    (place / ".metadata").write_bytes(pickle.dumps(found))
    contents.write_sums(place, {})
    with pytest.raises(ValueError, match=rf"\.metadata cannot be read: .*{words}"):
        load(place)


def first(metadata):
    return next(iter(metadata.storage_data.values()))


def shaped(metadata):
    return next(x for x in metadata.state_dict_metadata.values() if hasattr(x, "size"))


def test_a_changed_byte_is_refused_with_the_name_of_its_file(kept, tmp_path):
    place = shutil.copytree(kept[0], tmp_path / "step-00000001")
    draw = random.Random(0)
    names = sorted(path.name for path in place.iterdir())
    assert names == sorted(
        [".metadata", "__0_0.distcp", contents.SUMS, "progress.json", "recipe.toml"]
    )
    for name in names:
        file = place / name
        good = file.read_bytes()
        for _ in range(20):
            bad = bytearray(good)
            bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
            file.write_bytes(bad)
            with pytest.raises(ValueError, match=r"step-00000001") as error:
                contents.whole(place)
            assert name in str(error.value) or contents.SUMS in str(error.value), str(error.value)
        file.unlink()
        with pytest.raises((ValueError, FileNotFoundError), match=name.replace(".", r"\.")):
            contents.whole(place)
        file.write_bytes(good)
    (place / "__1_0.distcp").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"__1_0\.distcp is not as it was written"):
        contents.whole(place)
    (place / "__1_0.distcp").unlink()
    (place / ".nfs0001").touch()  # as a file system leaves it
    contents.whole(place)


def test_a_checkpoint_of_another_recipe_is_refused_though_all_shapes_are_the_same(tmp_path):
    one = fit(replace(RECIPE, epochs=1), tmp_path / "one", Monitor.none(), say=quiet)
    other = replace(RECIPE, epochs=1, seed=1)
    two = fit(other, tmp_path / "two", Monitor.none(), say=quiet)
    shutil.rmtree(two.folder / "checkpoints")
    shutil.copytree(one.folder / "checkpoints", two.folder / "checkpoints")
    with pytest.raises(ValueError, match=r"recipe\.toml has seed = 0, and this run 1: it is the"):
        fit(other, two.folder, Monitor.none(), say=quiet)


def test_a_value_that_is_not_finite_is_not_saved(tmp_path):
    method, optimizers = made()
    save(tmp_path, RECIPE, method, optimizers, step=1, classes=())
    bad = method.backbone.net.bn1.running_var
    for value in (float("inf"), float("nan")):
        bad[0] = value
        with pytest.raises(FloatingPointError, match=r"backbone\.net\.bn1\.running_var on rank 0"):
            save(tmp_path, RECIPE, method, optimizers, step=2, classes=())
    bad[0] = 1.0
    parameter = method.backbone.net.conv1.weight
    optimizers[0].state[parameter]["momentum_buffer"] = torch.full_like(parameter, float("nan"))
    with pytest.raises(FloatingPointError, match=r"momentum_buffer of backbone\.net\.conv1") as e:
        save(tmp_path, RECIPE, method, optimizers, step=2, classes=())
    assert "step-00000001 is kept" in str(e.value)
    assert checkpoint.latest(tmp_path).name == "step-00000001"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_the_checkpoint_before_stays_until_a_step_has_gone_on(tmp_path, monkeypatch):
    """Weights may be finite, and what they make of images not: `SGD(lr=1e12)`."""
    loop = importlib.import_module("marginlab.train.fit")._Loop
    step = loop.one_step

    def breaks(self, forward, parts, epoch):
        if self.step == 4:
            with torch.no_grad():
                self.method.head[0].weight.fill_(1e38)
        return step(self, forward, parts, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "one_step", breaks)
        with pytest.raises(FloatingPointError) as error:
            fit(replace(RECIPE, epochs=3), tmp_path / "run", Monitor.none(), say=quiet)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000004"]
    assert "step-00000004, holds finite numbers, but no step has gone on" in str(error.value)
    assert "the one before is kept" in str(error.value)
    fit(replace(RECIPE, epochs=3), tmp_path / "run", Monitor.none(), say=quiet)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000006"]


def test_a_wild_learning_rate_never_leaves_a_broken_checkpoint_alone(tmp_path):
    wild = replace(RECIPE, optimizer="SGD(lr=1e12)", schedule="Constant()", epochs=6)
    with pytest.raises((FloatingPointError, ValueError)):
        fit(wild, tmp_path / "run", Monitor.none(), say=quiet)
    for place in (tmp_path / "run").glob("checkpoints/step-*"):
        assert all(bool(v.isfinite().all()) for v in load(place).state_dict().values())


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of one's own that tells when it is imported."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / f"{name}.py").write_text(OWN.replace("OWNMODULE", name))
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield name
    settings.trust._NAMED.discard(name)
    sys.modules.pop(name, None)


def forget(module, tmp_path):
    settings.trust._NAMED.discard(module)
    sys.modules.pop(module, None)
    (tmp_path / "code" / "imported").unlink(missing_ok=True)


def test_a_run_of_ones_own_code_is_read_only_by_who_names_it(module, tmp_path):
    own = replace(
        RECIPE, epochs=1, backbone=f"{module}:Net(dim=6)", method=f"{module}:Mine(dim=8)",
        augmentation=f"Augmentation(('{module}:Op()',))",
    )  # fmt: skip
    run = fit(own, tmp_path / "run", WATCH, say=quiet)
    assert type(run.method).__module__ == module
    assert load(run.folder).encode(torch.rand(2, 3, 8, 8)).shape == (2, 6)  # named by the recipe
    forget(module, tmp_path)
    method = RECIPE.make_method(5)
    for attempt in (lambda: load(run.folder), lambda: keeping.start(method, run.folder)):
        with pytest.raises(SettingsError, match=f"names code of the module '{module}'"):
            attempt()
        assert not (tmp_path / "code" / "imported").exists()
    assert load(run.folder, code=(module,)).encode(torch.rand(2, 3, 8, 8)).shape == (2, 6)
    assert (tmp_path / "code" / "imported").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("subprocess:Popen('touch {mark}', shell=True)", "that is no Method"),
        ("no_such_module:Mine()", "cannot be imported"),
        ("{module}:Absent()", "has no class of that name"),
        ("{module}:Op()", "that is no Method"),
    ],
)
def test_what_is_no_method_is_not_made_by_a_name(module, tmp_path, text, words):
    recipe = replace(RECIPE, method=text.format(mark=tmp_path / "ran", module=module))
    with pytest.raises(SettingsError, match=words):
        recipe.make_method()
    assert not (tmp_path / "ran").exists()


def test_a_class_that_is_no_optimizer_is_not_made_by_a_name():
    with pytest.raises(SettingsError, match="has a Popen that is no OptimizerSettings"):
        replace(RECIPE, optimizer="subprocess:Popen('true')")


def test_angles_that_stay_high_after_the_warm_up_warn_once():
    schedule = RECIPE.make_schedule()
    angles = Angles(100, replace(schedule, warmup=0.05), 50)
    for epoch in range(1, 8):  # five epochs of warm-up
        angles.see(epoch, 90.0)
    with pytest.warns(CollapseWarning, match=r"Target angles are 89\.5 .* in epoch 8"):
        angles.see(8, 89.5)
    for epoch in range(9, 20):
        angles.see(epoch, 90.0)
    falls = Angles(100, schedule, 50)
    for epoch in range(1, 20):
        falls.see(epoch, 87.0 if epoch % 3 == 0 else 90.0)
    for epoch in range(1, 20):
        Angles(100, schedule, 50).see(epoch, 0.0)


@pytest.mark.parametrize("where", ["recipe", "monitor"])
def test_an_augmentation_that_images_do_not_take_is_refused_before_the_folder_is_taken(
    tmp_path, where
):
    blur = "Augmentation(('GaussianBlur(sigma=(1.0, 20.0))',))"
    recipe, monitor = RECIPE, WATCH
    if where == "recipe":
        recipe = replace(RECIPE, augmentation=blur)
    else:
        monitor = replace(WATCH, augmentation=blur)
    with pytest.raises(SettingsError, match=r"augmentation = .* makes no views .* Take a smaller"):
        fit(recipe, tmp_path / "run", monitor, say=quiet)
    assert not (tmp_path / "run").exists()


def test_no_code_of_a_folders_recipe_is_imported_to_compare_it(module, tmp_path):
    (tmp_path / "run").mkdir()
    theirs = f"augmentation = \"Augmentation(('{module}:Op()',))\""
    (tmp_path / "run" / "recipe.toml").write_text(theirs)
    with pytest.raises(SettingsError, match=f"names code of the module '{module}'"):
        fit(RECIPE, tmp_path / "run", WATCH, say=quiet)
    assert not (tmp_path / "code" / "imported").exists()


def test_a_short_training_has_not_collapsed():
    angles = Angles(100, RECIPE.make_schedule(), 2)
    for epoch in range(1, 55):  # five epochs of warm-up, 98 steps after it
        angles.see(epoch, 90.0)
    with pytest.warns(CollapseWarning, match="for 50 epochs after the warm-up"):
        angles.see(55, 90.0)
