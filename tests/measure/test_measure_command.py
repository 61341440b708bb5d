"""The command that measures: features that are there and features of encoders, in one table and one
page.
"""

import csv
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from marginlab.evaluation import knn_accuracy
from marginlab.measure import Features, Split, measure, read_features
from marginlab.measure.__main__ import main
from marginlab.measures import Alignment
from marginlab.theory import certify

C, N, V, D = 3, 24, 2, 5


def arrays(spread=0.2, views=V, seed=0):
    """Features around the axes of their classes, as the npz file has them."""
    draw = np.random.default_rng(seed)
    made = {}
    for side in ("train", "test"):
        labels = np.arange(N) % C
        x = np.eye(D)[labels][:, None] + spread * draw.normal(size=(N, 1, D))
        x = x + 0.05 * draw.normal(size=(N, views, D))
        made |= {f"{side}_features": x.astype(np.float32), f"{side}_labels": labels}
    return made


def saved(place, **fields):
    np.savez(place / "some.npz", **fields)
    return str(place / "some.npz")


def rows_of(folder):
    with (folder / "measures.csv").open(newline="") as file:
        return {(r["space"], r["quantity"], r["at"]): r for r in csv.DictReader(file)}


def test_features_that_are_there_are_measured_as_by_the_measures_themselves(tmp_path, capsys):
    fields = arrays()
    out = tmp_path / "out"
    assert main([saved(tmp_path, **fields), "--out", str(out)]) == 0
    rows = rows_of(out)
    tensors = {key: torch.from_numpy(value) for key, value in fields.items()}
    test = tensors["test_features"], tensors["test_labels"]
    train = tensors["train_features"], tensors["train_labels"]
    alignment = Alignment(epsilons=torch.tensor([0.5]))
    alignment.update(*test)
    found = alignment.compute()
    row = rows["features", "alignment", ""]
    assert float(row["value"]) == pytest.approx(float(found.L_align))
    half = 1.96 * float(found.standard_error)
    assert float(row["high"]) == pytest.approx(float(found.L_align) + half)
    assert float(rows["features", "R_epsilon", "0.5"]["high"]) == float(found.upper[0])
    accuracy = knn_accuracy(train[0][:, 0], train[1], test[0][:, 0], test[1])
    assert float(rows["features", "knn_error", ""]["value"]) == pytest.approx(1 - accuracy)
    certificate = certify(*train, new=test, v_curve=False)
    for form in certificate.forms:
        value = float(rows["features", "certified", form.key]["value"])
        assert value == pytest.approx(form.value)
    said = capsys.readouterr().out
    assert "knn_error" in said
    assert "shuffled classes" in said


def test_a_folder_that_is_not_named_is_called_by_what_is_measured(tmp_path, monkeypatch):
    file = Path(saved(tmp_path, **arrays()))
    monkeypatch.chdir(tmp_path)
    assert main([str(file)]) == 0
    assert (tmp_path / f"{file.stem}-measures" / "measures.csv").is_file()


def test_the_control_has_no_classes_and_the_same_views(tmp_path):
    main([saved(tmp_path, **arrays()), "--out", str(tmp_path / "out")])
    rows = rows_of(tmp_path / "out")
    for error in ("knn_error", "probe_error"):
        assert float(rows["features", error, ""]["value"]) < 0.1
        assert float(rows["features, shuffled classes", error, ""]["value"]) > 0.4
    assert ("features, shuffled classes", "alignment", "") not in rows
    assert float(rows["features, shuffled classes", "certified", "T"]["value"]) == 1
    mixed = rows["features, shuffled classes", "NeuralCollapse.NC1", ""]
    assert float(mixed["value"]) > 3 * float(rows["features", "NeuralCollapse.NC1", ""]["value"])


def test_the_page_opens_without_a_network_and_shows_names_as_they_are(tmp_path):
    out = tmp_path / "**out**"
    main([saved(tmp_path, **arrays()), "--out", str(out)])
    page = (out / "report.html").read_text()
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(r"(src|href)=[\"']http", own)
    assert "python -m marginlab.measure" in own
    assert "NeuralCollapse.NC1" in own
    assert "certif" in own


def test_one_view_gives_what_needs_no_more(tmp_path):
    fields = arrays(views=1)
    fields = {key: value.squeeze(1) if value.ndim == 3 else value for key, value in fields.items()}
    assert main([saved(tmp_path, **fields), "--out", str(tmp_path / "out")]) == 0
    names = {quantity for _, quantity, _ in rows_of(tmp_path / "out")}
    assert "knn_error" in names
    assert "Uniformity.L_unif" in names
    assert not names & {"alignment", "certified", "LiDAR.LiDAR", "one_minus_sigma"}


def test_labels_of_any_numbers_and_classes_of_one_split_only_are_measured():
    fields = {key: torch.from_numpy(value) for key, value in arrays().items()}
    split = Split(fields["test_features"], fields["test_labels"])
    labels = fields["train_labels"].clone()
    keep = labels != C - 1
    train = Split(fields["train_features"][keep], labels[keep])
    rows = {(r.quantity, r.at): r for r in measure(Features("some", train, split)).rows}
    assert rows["nearest_center_error", "test images"].n < N
    rates = [row for row in rows.values() if row.quantity.endswith("_error")]
    assert all(row.low <= row.value <= row.high for row in rates if not math.isnan(row.low))


def test_the_numbers_of_labels_do_not_matter(tmp_path):
    fields = arrays()
    one = measure(read_features(tmp_path_file(tmp_path, "a", fields))).rows
    fields["train_labels"] = 10 * fields["train_labels"] + 7
    fields["test_labels"] = 10 * fields["test_labels"] + 7
    other = measure(read_features(tmp_path_file(tmp_path, "b", fields))).rows
    assert [row[:3] for row in one] == [row[:3] for row in other]
    # sums of equal numbers may differ in the last bit with the place of their memory
    assert [row.value for row in one] == pytest.approx([row.value for row in other])


def tmp_path_file(place, name, fields):
    np.savez(place / f"{name}.npz", **fields)
    return place / f"{name}.npz"


BAD = {
    "no file": (None, "There is no file"),
    "a key is missing": ({"test_labels": None}, "has no test_labels"),
    "integers": ({"train_features": np.ones((N, V, D), dtype=int)}, "floating-point numbers"),
    "four axes": ({"train_features": np.ones((N, V, D, 1))}, r"are \(N, V, D\) or \(N, D\)"),
    "labels of another number": ({"test_labels": np.zeros(3, dtype=int)}, "test_labels"),
    "other views": ({"test_features": np.ones((N, V + 1, D))}, "have equal V and D"),
    "nan": ({"test_features": np.full((N, V, D), np.nan)}, "of image 0 are not finite"),
    "one class": (
        {"train_labels": np.zeros(N, int), "test_labels": np.zeros(N, int)}, "of one class",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_features_that_cannot_be_used_are_refused_and_nothing_is_written(tmp_path, capsys, case):
    changes, message = BAD[case]
    file = str(tmp_path / "none.npz")
    if changes is not None:
        fields = arrays() | changes
        file = saved(tmp_path, **{key: x for key, x in fields.items() if x is not None})
    assert main([file, "--out", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_arguments_that_make_no_sense_are_refused(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    file, out = saved(tmp_path, **arrays()), str(tmp_path / "out")
    for words, message in (
        ([file, "--out", str(tmp_path / "mine")], "something else"),
        ([file, "--out", out, "--data", "digits"], "need no --data"),
        (["timm:resnet18", "--out", out], "needs images"),
        (["timm:resnet81", "--data", "digits", "--out", out], "timm has no model 'resnet81'"),
        (["timm:resnet18", "--data", "digits", "--out", out, "--weights", "a.pth"], "safetensors"),
        (["nowhere", "--data", "digits", "--out", out], "no folder of a run"),
        (["nowhere", "--data", "digits", "--out", out, "--untrained"], "weights of its own"),
        (["timm:resnet18", "--data", "digits", "--out", out, "--views", "0"], "at least 1"),
        (
            ["timm:resnet18", "--data", "digits", "--out", out, "--augmentation", "GaussianBlur()"],
            "is no Augmentation",
        ),
    ):
        assert main(words) == 2, words
        assert message in capsys.readouterr().err, words
    assert not (tmp_path / "out").exists()


def test_a_model_of_timm_is_measured_with_weights_of_a_file(tmp_path):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = timm.create_model("resnet10t", pretrained=False)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    common = [
        "timm:resnet10t",
        "--data",
        "digits",
        "--images",
        "30",
        "--views",
        "2",
        "--size",
        "32",
    ]
    common += ["--augmentation", "Augmentation('e')"]
    weights = ["--weights", str(tmp_path / "net.safetensors")]
    for name in ("one", "two"):
        assert main([*common, *weights, "--out", str(tmp_path / name)]) == 0
    one, two = (rows_of(tmp_path / name) for name in ("one", "two"))
    assert one == two
    assert int(one["backbone", "knn_error", ""]["n"]) == 30
