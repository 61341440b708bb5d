"""ONNX files of backbones: the same features in another runtime, for any number of images."""

import importlib.util

import onnx
import onnxruntime
import pytest
import torch

from marginlab import models, settings
from marginlab.models import Backbone, IResNet, OwnBackbone, export, to_onnx


@pytest.mark.parametrize(
    ("text", "side"),
    [
        pytest.param("IResNet(18, width=0.25, image_size=32)", None, marks=pytest.mark.nightly),
        ("Backbone('resnet18', stem='strided', width=0.25)", 32),
        ("FaceViT('t', image_size=27)", None),
        pytest.param("MobileFaceNet(image_size=32)", None, marks=pytest.mark.nightly),
    ],
)
def test_another_runtime_gives_the_same_features(tmp_path, text, side):
    backbone = settings.make(text, models, models.Backbone).train()
    backbone(torch.rand(4, 3, side or backbone.image_size, side or backbone.image_size))
    path = to_onnx(backbone, tmp_path / "model.onnx", image_size=side)
    assert backbone.training
    assert all(module.training for module in backbone.modules())
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(str(path))
    runtime = onnxruntime.InferenceSession(str(path))
    assert [value.name for value in (*runtime.get_inputs(), *runtime.get_outputs())] == [
        "images",
        "features",
    ]
    side = side or backbone.image_size
    for count in (1, 3):
        images = torch.rand(count, 3, side, side)
        expected = backbone.eval()(images).detach()
        (found,) = runtime.run(None, {"images": images.numpy()})
        scale = expected.abs().max().item()
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5 * scale)


def test_large_weights_lie_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LIMIT", 0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 64))
    backbone = OwnBackbone(net, dim=64)
    path = to_onnx(backbone, tmp_path / "model.onnx", image_size=8)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    images = torch.rand(2, 3, 8, 8)
    (found,) = onnxruntime.InferenceSession(str(path)).run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), backbone(images).detach())


def test_what_cannot_be_written_is_refused_first(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"made for no size of images. Say to_onnx\(\.\.\., image"):
        to_onnx(Backbone("resnet18", width=0.125), tmp_path / "model.onnx")
    backbone = IResNet(18, width=0.125, image_size=16)
    with pytest.raises(FileNotFoundError, match=r"absent is no folder to write model\.onnx into"):
        to_onnx(backbone, tmp_path / "absent" / "model.onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs onnx: pip install 'marginlab\[onnx\]'"):
        to_onnx(backbone, tmp_path / "model.onnx")
