"""Published files by name: insightface's as they are, CVLface's and AdaFace's in other names."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from test_face_backbones import trained
from torch import nn

from marginlab.models import FaceViT, IResNet, MobileFaceNet, load_weights

SMALL = {"width": 0.25, "image_size": 16}
IMAGES = torch.linspace(0, 1, 2 * 3 * 16 * 16, dtype=torch.float64).reshape(2, 3, 16, 16).sin()


class Adaface(nn.Module):
    """AdaFace's ResNet of depth 18 at a quarter of the width, under its published names."""

    def __init__(self):
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.PReLU(16)
        )
        self.body = nn.ModuleList()
        here = 16
        for there in (16, 32, 64, 128):
            for stride in (2, 1):
                unit = nn.Module()
                unit.shortcut_layer = nn.MaxPool2d(1, stride)
                if here != there:
                    unit.shortcut_layer = nn.Sequential(
                        nn.Conv2d(here, there, 1, stride, bias=False), nn.BatchNorm2d(there)
                    )
                unit.res_layer = nn.Sequential(
                    nn.BatchNorm2d(here),
                    nn.Conv2d(here, there, 3, 1, 1, bias=False),
                    nn.BatchNorm2d(there),
                    nn.PReLU(there),
                    nn.Conv2d(there, there, 3, stride, 1, bias=False),
                    nn.BatchNorm2d(there),
                )
                self.body.append(unit)
                here = there
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(128),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(128, 512),
            nn.BatchNorm1d(512, affine=False),
        )

    def forward(self, images):
        x = self.input_layer(images)
        for unit in self.body:
            x = unit.res_layer(x) + unit.shortcut_layer(x)
        return self.output_layer(x)


@pytest.mark.parametrize(
    ("wrap", "bgr"),
    [
        (lambda state: state, False),
        (lambda state: {f"net.{name}": value for name, value in state.items()}, False),
        (
            lambda state: {
                "epoch": 3,
                "state_dict": {"head.kernel": torch.ones(2)}
                | {f"model.{name}": value for name, value in state.items()},
            },
            True,
        ),
    ],
)
def test_a_resnet_of_adaface_gives_its_own_features(tmp_path, wrap, bgr):
    published = trained(Adaface())
    torch.save(wrap(published.state_dict()), tmp_path / "model.pt")
    backbone = IResNet(18, variant="cvlface", **SMALL).double().eval()
    assert load_weights(backbone, tmp_path / "model.pt", bgr=bgr) is backbone
    images = IMAGES.flip(1) if bgr else IMAGES
    torch.testing.assert_close(backbone(IMAGES), published(images * 2 - 1))
    with pytest.raises(ValueError, match="Make the backbone with variant='cvlface'"):
        load_weights(IResNet(18, **SMALL), tmp_path / "model.pt")


def test_files_of_insightface_and_safetensors_are_read(tmp_path):
    given = IResNet(18, **SMALL)
    state = given.net.state_dict()
    torch.save(state, tmp_path / "model.pt")
    checkpoint = {"epoch": 1, "state_dict_backbone": {f"module.{k}": v for k, v in state.items()}}
    torch.save(checkpoint | {"state_optimizer": {"step": 1}}, tmp_path / "checkpoint_gpu_0.pt")
    save_file({f"model.net.{k}": v for k, v in state.items()}, tmp_path / "model.safetensors")
    for name in ("model.pt", "checkpoint_gpu_0.pt", "model.safetensors"):
        read = load_weights(IResNet(18, **SMALL), str(tmp_path / name)).net.state_dict()
        assert all(torch.equal(read[key], value) for key, value in state.items())
    # counts of batches are not needed; half precision is widened
    fewer = {key: value.half() for key, value in state.items() if "num_batches" not in key}
    assert load_weights(IResNet(18, **SMALL), fewer).net.fc.weight.dtype == torch.float32


def test_a_token_of_hidden_patches_is_wanted_where_patches_are_hidden():
    state = FaceViT("t", image_size=18).net.state_dict()
    load_weights(FaceViT("t", image_size=18, mask=0.0), state)
    del state["mask_token"]
    with pytest.raises(ValueError, match="lacks mask_token, which the backbone has"):
        load_weights(FaceViT("t", image_size=18), state)


def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path):
    state = MobileFaceNet(image_size=16).net.state_dict()
    backbone = MobileFaceNet(image_size=16)
    before = {key: value.clone() for key, value in backbone.net.state_dict().items()}
    assert not torch.equal(before["conv_sep.layers.0.weight"], state["conv_sep.layers.0.weight"])
    odd = {"fc.weight": torch.ones(1)}
    last = "features.layers.3.bias"
    for given, sentence in (
        ({k: v for k, v in state.items() if k != last}, f"state dict lacks {last}, which"),
        (state | odd, r"holds fc\.weight, which the backbone lacks.*MobileFaceNet\(size='base'"),
        (
            state | {last: torch.ones(3)},
            r"bias of shape \(3,\), which the backbone has as \(512,\)",
        ),
        ({"conv1.weight": torch.ones(1)}, r"lacks layers\.0.*, .* and \d+ more"),
        (state | {"epoch": 3}, "'epoch', which is no tensor but int"),
        (state | {0: torch.ones(1)}, "holds 0, which the backbone lacks"),
        (state | {last: state[last].to_sparse()}, rf"holds {last} as .*sparse_coo"),
        (state | {last: state[last].to("meta")}, rf"holds {last} as .* on meta"),
        (state | {last: state[last].to(torch.complex64)}, rf"holds {last} as .*complex64"),
        (state | {last: state[last].long()}, rf"holds {last} as torch\.int64"),
        ({}, "holds no state dict, but dict"),
    ):
        with pytest.raises(ValueError, match=sentence):
            load_weights(backbone, given)
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds no state dict, but list"):
        load_weights(backbone, tmp_path / "list.pt")
    assert all(torch.equal(v, before[k]) for k, v in backbone.net.state_dict().items())


class Harm:
    def __reduce__(self):
        return print, ("harm",)


def test_files_are_data(tmp_path, capsys):
    backbone = MobileFaceNet(image_size=16)
    torch.save({"conv1.weight": Harm()}, tmp_path / "code.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Harm()))
    (tmp_path / "short.pt").write_bytes(b"PK\3\4")
    (tmp_path / "short.safetensors").write_bytes(b"\1")
    for name in ("code.pt", "old.pt", "short.pt", "short.safetensors"):
        with pytest.raises(ValueError, match=rf"{name} could not be read as tensors and plain"):
            load_weights(backbone, tmp_path / name)
    assert capsys.readouterr().out == ""
    torch.save(backbone.net.state_dict(), tmp_path / "flipped.pt")
    data = bytearray((tmp_path / "flipped.pt").read_bytes())
    weight = backbone.net.conv_sep.layers[0].weight
    data[data.index(weight.detach().numpy().tobytes()) + 5] ^= 1
    (tmp_path / "flipped.pt").write_bytes(data)
    with pytest.raises(ValueError, match=r"flipped\.pt could not be read .*CRC"):
        load_weights(backbone, tmp_path / "flipped.pt")
    with pytest.raises(FileNotFoundError):
        load_weights(backbone, tmp_path / "none.pt")
    with pytest.raises(OSError, match="a folder"):
        load_weights(backbone, tmp_path)
