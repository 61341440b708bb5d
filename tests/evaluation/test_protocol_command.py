"""The command on files of each protocol's layout, made here, against an encoder that knows."""

import csv
import pickle

import numpy as np
import pytest
import torch
from insightface_files import face, write_pack, write_training_folder
from scipy.io import savemat

from marginlab.data.protocols import read_protocol
from marginlab.evaluation import __main__ as command
from marginlab.evaluation import roc
from marginlab.methods import SimCLR
from marginlab.models import Backbone
from marginlab.train import Recipe
from marginlab.train.__main__ import main as train

SIDE = 16


def lfw(path, folds=2, n=3):
    lines = [f"{folds}\t{n}"]
    for fold in range(folds):
        people = range(fold * n, fold * n + n)
        lines += [f"P{p}\t1\t2" for p in people]
        lines += [f"P{p}\t1\tP{fold * n + (p + 1) % n}\t2" for p in people]
        for p in people:
            (path / f"P{p}").mkdir(parents=True)
            for shot in (1, 2):
                face(p, shot).save(path / f"P{p}" / f"P{p}_{shot:04d}.jpg", quality=95)
    (path / "pairs.txt").write_text("\n".join(lines) + "\n")


def tinyface(path):
    sets = {"Gallery_Match": ("gallery_match", "gallery", 1), "Probe": ("probe", "probe", 2)}
    for folder, (file, key, shot) in sets.items():
        (path / folder).mkdir(parents=True)
        names = [f"{p}_{shot}.png" for p in range(6)]
        for p, name in enumerate(names):
            face(p, shot).save(path / folder / name)
        ids = np.arange(6)[:, None]
        table = {f"{key}_set": np.array(names, dtype=object)[:, None], f"{key}_ids": ids}
        savemat(path / f"{file}_img_ID_pairs.mat", table)
    (path / "Gallery_Distractor").mkdir()
    face(9, 0).save(path / "Gallery_Distractor" / "d.png")


def ijb(path):
    (path / "meta").mkdir(parents=True)
    (path / "loose_crop").mkdir()
    faces, points, pairs = [], [], []
    landmarks = "38.3 51.7 73.5 51.5 56.0 71.7 41.5 92.4 70.7 92.2"
    for p in range(4):
        for shot in range(4):
            name = f"{p}{shot}.jpg"
            face(p, shot, 112).save(path / "loose_crop" / name)
            faces.append(f"{name} {10 * p + shot // 2} {100 * p + shot}")
            points.append(f"{name} {landmarks} 0.9")
        pairs += [f"{10 * p} {10 * p + 1} 1", f"{10 * p} {10 * ((p + 1) % 4)} 0"]
    for name, rows in (
        ("face_tid_mid", faces),
        ("name_5pts_score", points),
        ("template_pair_label", pairs),
    ):
        (path / "meta" / f"ijbx_{name}.txt").write_text("\n".join(rows) + "\n")


class Colour(SimCLR):
    """Embeds a picture as its mean colour: each made person is told from the others."""

    def project(self, features):
        return features - 0.35


@pytest.fixture
def knowing(monkeypatch):
    method = Colour(Backbone("resnet18", stem="strided", width=0.125)).eval()
    method.backbone.forward = lambda images: images.mean((2, 3))
    monkeypatch.setattr(command, "load", lambda run, device: method)
    monkeypatch.setattr(command, "recipe_of", lambda run: Recipe(image_size=SIDE))


MAKERS = {"lfw": lfw, "pack": write_pack, "tinyface": tinyface, "ijb": ijb}


@pytest.mark.parametrize("protocol", MAKERS)
def test_an_encoder_that_knows_the_people_is_right(protocol, knowing, tmp_path, capsys):
    path = tmp_path / ("faces.bin" if protocol == "pack" else "faces")
    MAKERS[protocol](path)
    out = tmp_path / "out"
    arguments = ["run", str(path), "--protocol", protocol, "--out", str(out)]
    size = ["--size", "112"] if protocol == "ijb" else []  # otherwise that of the recipe
    assert command.main([*arguments, *size, "--replicates", "20"]) == 0
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    found = {(row["quantity"], row["at"]): float(row["value"]) for row in rows}
    if protocol == "tinyface":
        assert found["rank", "1"] == 1.0
    else:
        assert found["eer", ""] == 0.0
        assert found["auc", ""] == 1.0
        assert (out / "roc.html").stat().st_size > 100_000
    if protocol == "pack":
        assert found["accuracy", "10 folds"] == 1.0
        assert found["accuracy_deviation", "10 folds"] == 0.0
    assert (out / "worst.png").exists() == (protocol != "ijb")
    assert "interval over identities" in capsys.readouterr().out


def test_a_folder_that_is_not_named_is_called_by_the_run_and_the_protocol(
    knowing, tmp_path, monkeypatch
):
    write_pack(tmp_path / "faces.bin")
    monkeypatch.chdir(tmp_path)
    arguments = ["runs/a", "faces.bin", "--protocol", "pack", "--replicates", "20"]
    assert command.main(arguments) == 0
    assert (tmp_path / "a-pack" / "results.csv").is_file()
    assert command.main(arguments) == 2  # it is there already


def test_a_picture_of_several_pairs_is_encoded_once(tmp_path):
    write_pack(tmp_path / "a.bin", people=5)
    found = read_protocol("pack", tmp_path / "a.bin")
    assert len(found.pictures) == 10
    assert found.people[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_templates_differ_from_landmarks(tmp_path):
    ijb(tmp_path)
    file = tmp_path / "meta" / "ijbx_name_5pts_score.txt"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match="differ from face 0 on"):
        read_protocol("ijb", tmp_path)


def test_bad_input_takes_no_folder(knowing, tmp_path, capsys):
    lfw(tmp_path / "faces")
    (tmp_path / "faces" / "P0" / "P0_0001.jpg").unlink()
    out = tmp_path / "out"
    base = ["run", str(tmp_path / "faces"), "--protocol", "lfw", "--out", str(out)]
    assert command.main(base) == 2
    assert "1 of 12 pictures are missing" in capsys.readouterr().err
    (tmp_path / "faces" / "P0" / "P0_0001.jpg").write_bytes(b"no picture")
    assert command.main(base) == 2
    assert "P0_0001.jpg cannot be read" in capsys.readouterr().err
    assert command.main([*base, "--size", "4"]) == 2
    assert command.main([*base, "--device", "abacus"]) == 2
    assert "--device abacus cannot be used" in capsys.readouterr().err
    assert not out.exists()
    out.mkdir()
    (out / "mine").touch()
    assert command.main(base) == 2
    assert "Name a new folder" in capsys.readouterr().err
    with pytest.raises(ValueError, match="There is no protocol"):
        read_protocol("megaface", tmp_path)


def test_a_probe_without_a_mate_is_refused_before_pictures_are_encoded(
    knowing, tmp_path, capsys, monkeypatch
):
    tinyface(tmp_path / "faces")
    (tmp_path / "faces" / "probe_img_ID_pairs.mat").unlink()
    names = np.array([f"{p}_2.png" for p in range(6)], dtype=object)[:, None]
    ids = np.array([0, 1, 2, 3, 4, 77])[:, None]
    savemat(tmp_path / "faces" / "probe_img_ID_pairs.mat", {"probe_set": names, "probe_ids": ids})
    monkeypatch.setattr(command, "embeddings", None)
    out = tmp_path / "out"
    arguments = ["run", str(tmp_path / "faces"), "--protocol", "tinyface", "--out", str(out)]
    assert command.main(arguments) == 2
    assert "1 of 6 probes have no mate" in capsys.readouterr().err
    assert not out.exists()


def test_a_pack_that_contradicts_itself_is_measured_with_a_warning(knowing, tmp_path, capsys):
    write_pack(tmp_path / "a.bin")
    images, same = pickle.loads((tmp_path / "a.bin").read_bytes())
    # a picture under two names, whose owners are an impostor pair
    images[4:6], images[6:8] = [images[0], images[5]], [images[0], images[5]]
    (tmp_path / "a.bin").write_bytes(pickle.dumps((images, same), protocol=2))
    arguments = ["run", str(tmp_path / "a.bin"), "--protocol", "pack", "--replicates", "20"]
    assert command.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "of 2 impostor pairs, the first of them pair 1" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert rows[0]["quantity"] == "accuracy"
    assert int(rows[0]["n"]) == 12 + 2 * 12


def test_the_drawn_curve_reaches_the_smallest_rate():
    impostors = 50_000
    scores = torch.cat([torch.linspace(0, 1, impostors), torch.linspace(0.5, 1.5, 900)])
    curve = roc(scores, torch.arange(len(scores)) >= impostors)
    at = command.drawn(curve)
    assert len(at) <= 4000
    assert float(curve.far[at[0]]) == 1 / impostors
    assert float(curve.far[at[-1]]) == float(curve.tar[at[-1]]) == 1.0
    assert bool((curve.far[at].diff() > 0).all())


def test_a_training_folder_and_a_pack_of_insightface(tmp_path, capsys):
    """Train on record files and judge by a pack, both of bytes that are not of our writers."""
    write_training_folder(tmp_path / "faces", people=12, shots=10)
    (tmp_path / "faces.toml").write_text(
        "batch = 24\nepochs = 4\naugmentation = \"Augmentation(('HorizontalFlip()',))\"\n"
        "backbone = \"Backbone('resnet18', stem='strided', width=0.125)\"\n"
        "method = \"MarginClassifier(margin='CosFace(0.2)', scale=8.0, dim=16)\"\n"
    )
    words = [str(tmp_path / "faces.toml"), "--folder", str(tmp_path / "run")]
    assert train([*words, "--data", f"record:{tmp_path / 'faces'}"]) == 0
    pack = tmp_path / "lfw.bin"
    write_pack(pack)
    arguments = [str(tmp_path / "run"), str(pack), "--protocol", "pack", "--size", "16"]
    assert command.main([*arguments, "--out", str(tmp_path / "out"), "--replicates", "20"]) == 0
    assert torch.is_grad_enabled()
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    found = {row["quantity"]: float(row["value"]) for row in rows}
    assert found["auc"] > 0.9  # the colours of people are easy to tell
    capsys.readouterr()
