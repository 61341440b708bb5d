"""The backbones of face recognition: sizes and names as published, outputs as written out anew."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from marginlab import models, settings
from marginlab.models import FaceViT, IResNet, MobileFaceNet
from marginlab.models.convolution import Convolution
from marginlab.train import Recipe


# parameters of the published networks; operations of the tables of An et al. 2022 and insightface
@pytest.mark.parametrize(
    ("text", "parameters", "giga"),
    [
        ("IResNet(18)", 24_025_600, 2.6),
        ("IResNet(34)", 34_139_328, 4.5),
        ("IResNet(50)", 43_590_848, 6.3),
        ("IResNet(100)", 65_156_160, 12.1),
        ("IResNet(200)", 118_833_920, 23.5),
        ("MobileFaceNet()", 2_059_520, 0.45),
        ("FaceViT('t')", 19_137_792, 1.5),
        ("FaceViT('s')", 76_023_296, 5.7),
        ("FaceViT('b')", 113_833_472, 11.4),
        ("FaceViT('l')", 255_684_352, 25.3),
    ],
)
def test_sizes_are_the_published_ones(text, parameters, giga):
    with torch.device("meta"):
        backbone = settings.make(text, models, models.Backbone).eval()
        images = torch.empty(2, 3, 112, 112)
        with FlopCounterMode(display=False) as counter:
            assert backbone(images).shape == (2, 512)
        maps = backbone.feature_map(images).shape
        assert repr(settings.make(repr(backbone), models, models.Backbone)) == repr(backbone)
    assert maps[2:] == ((12, 12) if "ViT" in text else (7, 7))
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    # two images, two operations a multiply-add; the tables also count what is no product
    assert counter.get_total_flops() / 4e9 == pytest.approx(giga, rel=0.03)


# sizes of insightface's float32 files, in MiB (its README says MB)
@pytest.mark.parametrize(("depth", "size"), [(18, 91.7), (34, 130.2), (50, 166.3), (100, 248.6)])
def test_the_weights_fill_the_published_files(depth, size):
    with torch.device("meta"):
        parameters = sum(p.numel() for p in IResNet(depth).parameters())
    assert 4 * parameters / 2**20 == pytest.approx(size, abs=0.1)


def test_names_are_insightfaces():
    with torch.device("meta"):
        resnet, mobile, vit = (
            set(backbone.net.state_dict()) for backbone in (IResNet(34), MobileFaceNet(), FaceViT())
        )
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    wanted = {"conv1.weight", "prelu.weight", "fc.weight", "fc.bias"}
    wanted |= {f"{name}.{leaf}" for name in ("bn1", "bn2", "features") for leaf in norm}
    for stage, units in enumerate((3, 4, 6, 3), start=1):
        for unit in range(units):
            place = f"layer{stage}.{unit}"
            wanted |= {f"{place}.{name}.weight" for name in ("conv1", "prelu", "conv2")}
            wanted |= {f"{place}.bn{number}.{leaf}" for number in (1, 2, 3) for leaf in norm}
        wanted |= {f"layer{stage}.0.downsample.0.weight"}
        wanted |= {f"layer{stage}.0.downsample.1.{leaf}" for leaf in norm}
    assert resnet == wanted
    assert {
        "layers.0.layers.0.weight",
        "layers.1.layers.2.weight",
        "layers.2.layers.1.layers.0.weight",
        "layers.3.layers.3.layers.2.layers.1.running_var",
        "layers.7.layers.1.layers.2.layers.0.weight",
        "conv_sep.layers.2.weight",
        "features.layers.0.layers.0.weight",
        "features.layers.2.weight",
        "features.layers.3.bias",
    } <= mobile
    block = {"attn.qkv.weight", "attn.proj.weight", "attn.proj.bias"}
    block |= {f"{name}.{leaf}" for name in ("norm1", "norm2") for leaf in ("weight", "bias")}
    block |= {f"mlp.{name}.{leaf}" for name in ("fc1", "fc2") for leaf in ("weight", "bias")}
    around = {"mask_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    around |= {"norm.weight", "norm.bias", "feature.0.weight", "feature.2.weight"}
    around |= {f"feature.{number}.{leaf}" for number in (1, 3) for leaf in norm}
    assert vit == around | {f"blocks.{n}.{name}" for n in range(12) for name in block}


def test_first_weights_are_drawn_as_published():
    resnet, mobile, vit = IResNet(18, image_size=32), MobileFaceNet(image_size=32), FaceViT("t")
    weight = resnet.net.layer3[1].conv1.weight
    assert (weight.mean().item(), weight.std().item()) == pytest.approx((0, 0.1), abs=1e-3)
    assert resnet.net.fc.weight.abs().max() <= (512 * 4) ** -0.5  # torch's own
    assert not resnet.net.features.weight.requires_grad
    assert (resnet.net.features.weight == 1).all()
    weight = IResNet(18, variant="cvlface", image_size=32).net.layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    assert mobile.net.features.layers[2].weight.std().item() == pytest.approx(
        (2 / 512) ** 0.5, rel=0.01
    )
    for weight in (vit.net.blocks[3].mlp.fc1.weight, vit.net.pos_embed, vit.net.mask_token):
        assert weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert (vit.net.blocks[3].mlp.fc1.bias == 0).all()
    assert [IResNet(18, width=0.125).dropout, IResNet(18, variant="cvlface").dropout] == [0.0, 0.4]
    assert vit.net.norm.eps == vit.net.blocks[0].norm1.eps == 1e-5
    assert vit.net.feature[1].eps == 2e-5


def trained(backbone):
    """Give the backbone in float64, with statistics and scales that differ from the first ones."""
    generator = torch.Generator().manual_seed(3)
    for layer in backbone.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
        scaled = isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.PReLU | nn.LayerNorm)
        if scaled and layer.weight is not None:
            layer.weight.data.uniform_(0.2, 1, generator=generator)
    return backbone.double().eval()


def normalised(x, state, name, eps=1e-5):
    """Batch normalisation written out."""
    mean, var, weight, bias = (
        state[f"{name}.{leaf}"].view(-1, *[1] * (x.ndim - 2))
        for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + eps).sqrt() * weight + bias


def test_a_resnet_is_what_its_file_says():
    backbone = trained(IResNet(18, width=0.25, image_size=20))
    state = backbone.net.state_dict()
    images = torch.rand(2, 3, 20, 20, dtype=torch.float64)

    def prelu(x, name):
        return torch.where(x > 0, x, x * state[f"{name}.weight"].view(-1, 1, 1))

    x = F.conv2d((images - 0.5) / 0.5, state["conv1.weight"], padding=1)
    x = prelu(normalised(x, state, "bn1"), "prelu")
    for place in (f"layer{stage}.{unit}" for stage in range(1, 5) for unit in range(2)):
        stride = 2 if place.endswith("0") else 1
        y = F.conv2d(
            normalised(x, state, f"{place}.bn1"), state[f"{place}.conv1.weight"], padding=1
        )
        y = prelu(normalised(y, state, f"{place}.bn2"), f"{place}.prelu")
        y = F.conv2d(y, state[f"{place}.conv2.weight"], stride=stride, padding=1)
        if stride == 2:
            x = F.conv2d(x, state[f"{place}.downsample.0.weight"], stride=2)
            x = normalised(x, state, f"{place}.downsample.1")
        x = x + normalised(y, state, f"{place}.bn3")
    torch.testing.assert_close(backbone.feature_map(images), x)
    x = normalised(x, state, "bn2").flatten(1) @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(backbone(images), normalised(x, state, "features"))


def test_a_transformer_is_what_its_file_says():
    backbone = trained(FaceViT("t", image_size=20))
    state = backbone.net.state_dict()
    images = torch.rand(2, 3, 20, 20, dtype=torch.float64)
    x = (images[:, :, :18, :18] * 2 - 1).unflatten(3, (2, 9)).unflatten(2, (2, 9))
    x = (
        x.permute(0, 2, 4, 1, 3, 5).reshape(2, 4, 243)
        @ state["patch_embed.proj.weight"].flatten(1).T
    )
    x = x + state["patch_embed.proj.bias"] + state["pos_embed"]

    def layer_norm(x, name):
        apart = (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        return apart * state[f"{name}.weight"] + state[f"{name}.bias"]

    for place in (f"blocks.{number}" for number in range(12)):
        y = layer_norm(x, f"{place}.norm1") @ state[f"{place}.attn.qkv.weight"].T
        q, k, v = (part.unflatten(2, (8, 32)).movedim(2, 1) for part in y.split(256, dim=2))
        y = ((q @ k.mT / 32**0.5).softmax(-1) @ v).movedim(1, 2).flatten(2)
        x = x + y @ state[f"{place}.attn.proj.weight"].T + state[f"{place}.attn.proj.bias"]
        y = layer_norm(x, f"{place}.norm2") @ state[f"{place}.mlp.fc1.weight"].T
        y = (y + state[f"{place}.mlp.fc1.bias"]).clamp(0, 6)
        x = x + y @ state[f"{place}.mlp.fc2.weight"].T + state[f"{place}.mlp.fc2.bias"]
    x = layer_norm(x, "norm")
    torch.testing.assert_close(backbone.feature_map(images), x.mT.unflatten(2, (2, 2)))
    x = normalised(x.flatten(1) @ state["feature.0.weight"].T, state, "feature.1", 2e-5)
    x = normalised(x @ state["feature.2.weight"].T, state, "feature.3", 2e-5)
    torch.testing.assert_close(backbone(images), x)


def test_training_hides_tokens_and_recomputation_changes_nothing():
    images = torch.rand(3, 3, 36, 36)
    found = []
    for recompute in (False, True):
        torch.manual_seed(1)
        backbone = FaceViT("t", image_size=36, mask=0.5, recompute=recompute).train()
        seen = []
        backbone.net.blocks[5].register_forward_hook(lambda m, i, o, s=seen: s.append(o.shape[1]))
        maps = backbone.feature_map(images)
        hidden = (maps == backbone.net.mask_token[0, 0, :, None, None]).all(1)
        assert hidden.flatten(1).sum(1).tolist() == [8, 8, 8]
        maps.square().sum().backward()
        assert set(seen) == {8}
        found.append((maps, backbone.net.blocks[0].attn.qkv.weight.grad))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)
    shown = FaceViT("t", image_size=36, mask=0.0)
    assert shown.net.mask_token is None
    assert "mask_token" not in shown.net.state_dict()


@pytest.mark.parametrize(
    "text", ["IResNet(18, width=0.25, image_size=8)", "MobileFaceNet(image_size=8)"]
)
def test_maps_of_one_pixel_have_finite_gradients_in_bfloat16(text):
    backbone = settings.make(text, models, models.Backbone).to(memory_format=torch.channels_last)
    layers = [layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d)]
    assert {type(layer) for layer in layers} == {Convolution}
    images = torch.rand(8, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        # freed memory that is not finite, for whoever takes memory and does not write it
        for power in range(6, 19):
            freed = [torch.full((2**power,), float("nan"), dtype=torch.bfloat16) for _ in range(6)]
            del freed
        with torch.autocast("cpu", torch.bfloat16):
            out = backbone(images)
        assert out.dtype == torch.float32
        backbone.zero_grad()
        out.square().mean().backward()
        assert all(p.grad.isfinite().all() for p in backbone.parameters() if p.requires_grad)


def test_a_recipe_trains_one_without_an_embedding_layer():
    recipe = Recipe(
        backbone="IResNet(18, width=0.125, image_size=32)",
        method="MarginClassifier(scale=16.0, dim=0)",
        optimizer="SGD(lr=0.1)",
    )
    method = recipe.make_method(num_classes=3)
    assert "dim=0" in repr(method)
    method(torch.rand(4, 1, 3, 32, 32), torch.tensor([0, 1, 2, 0]))["loss"].backward()
    for optimizer in method.optimizers(recipe.make_optimizer()):
        optimizer.step()
    images = torch.rand(2, 3, 32, 32)
    method.eval()
    assert torch.equal(method.project(method.encode(images)), method.encode(images))
    assert (method.backbone.net.features.weight == 1).all()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "IResNet(101)",
            "no IResNet of depth 101 in the variant 'insightface'.*18, 34, 50, 100, 200",
        ),
        ("IResNet(200, variant='cvlface')", "no IResNet of depth 200 in the variant 'cvlface'"),
        ("IResNet(18, variant='cvl')", "no variant 'cvl'"),
        ("IResNet(18, dropout=1.0)", "from 0 to below 1, not 1.0"),
        ("IResNet(18, width=0.0)", "at least 1/16"),
        ("IResNet(18, image_size=0)", "at least 1 pixels, not 0"),
        ("MobileFaceNet('mbf')", "no MobileFaceNet 'mbf'"),
        ("MobileFaceNet(dim=0)", "at least 1 feature, not 0"),
        ("FaceViT('x')", "no FaceViT 'x'"),
        ("FaceViT('t', image_size=8)", "at least 9 pixels, not 8"),
        ("FaceViT('t', mask=1.0)", "mask is a part from 0 to below 1"),
    ],
)
def test_what_cannot_be_made_is_refused(text, sentence):
    with pytest.raises(settings.SettingsError, match=sentence):
        settings.make(text, models, models.Backbone)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"IResNet is made for images of 16 x 16, not of 16 x 24"):
        IResNet(18, width=0.125, image_size=16)(torch.rand(1, 3, 16, 24))
