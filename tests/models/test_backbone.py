import pytest
import torch
from torch import nn

from marginlab import models, settings
from marginlab.models import Backbone, Projector
from marginlab.models.backbone import _group_norm
from marginlab.train import Recipe


@pytest.mark.parametrize(
    ("stem", "stride", "side"), [("cifar", 1, 32), ("strided", 2, 16), ("imagenet", 2, 8)]
)
def test_the_stem_decides_the_resolution_of_the_first_stage(stem, stride, side):
    backbone = Backbone("resnet18", stem=stem, width=0.125)
    seen = []
    backbone.net.layer1.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].shape[-1])
    )
    assert backbone(torch.rand(2, 3, 32, 32)).shape == (2, backbone.dim)
    assert seen == [side]
    assert backbone.net.conv1.stride == (stride, stride)


def test_the_full_width_is_the_papers_resnet_18():
    backbone = Backbone("resnet18", stem="cifar")
    assert backbone.dim == 512
    # torchvision's ResNet-18 has 11,689,512 parameters; minus its classifier (513,000) and the
    # larger first kernel (3 x 64 x 40)
    assert sum(p.numel() for p in backbone.parameters()) == 11_689_512 - 513_000 - 3 * 64 * 40


def test_normalisation_is_the_first_layer():
    backbone = Backbone("resnet18", stem="strided", width=0.125).eval()
    images = torch.rand(2, 3, 32, 32)
    mean, std = (
        torch.tensor([0.485, 0.456, 0.406])[:, None, None],
        torch.tensor([0.229, 0.224, 0.225])[:, None, None],
    )
    torch.testing.assert_close(backbone(images), backbone.net((images - mean) / std))
    assert "mean" not in backbone.state_dict()


def test_any_other_model_of_timm_keeps_its_own_stem():
    backbone = Backbone("vit_tiny_patch16_224", stem="imagenet")
    assert backbone(torch.rand(1, 3, 224, 224)).shape == (1, 192)


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("test_vit", 64),
        ("test_convnext", 64),
        ("test_efficientnet", 256),
        ("mobilenetv3_small_050", 1024),
    ],
)
def test_models_of_many_kinds_take_a_step_of_margin_training(name, dim):
    recipe = Recipe(
        backbone=f"Backbone({name!r}, stem='imagenet')",
        method="MarginClassifier(scale=16.0, dim=8)",
        optimizer="SGD(lr=0.1)",
    )
    method = recipe.make_method(num_classes=3)
    assert method.backbone.dim == dim
    before = torch.cat([p.detach().flatten() for p in method.backbone.parameters()])
    views, labels = torch.rand(4, 1, 3, 160, 160), torch.tensor([0, 1, 2, 0])
    method(views, labels)["loss"].backward()
    for optimizer in method.optimizers(recipe.make_optimizer()):
        optimizer.step()
    assert not torch.equal(
        torch.cat([p.detach().flatten() for p in method.backbone.parameters()]), before
    )


def test_group_normalisation_leaves_images_to_themselves():
    images = torch.rand(4, 3, 32, 32)
    for norm, alone in (("batch", False), ("group", True)):
        backbone = Backbone("resnet18", stem="strided", width=0.25, norm=norm).double()
        together, one = backbone(images.double()), backbone(images[:1].double())
        assert torch.allclose(together[:1], one) == alone
        assert settings.make(repr(backbone), models, Backbone).norm == norm
    groups = {
        (module.num_channels, module.num_groups)
        for module in backbone.modules()
        if isinstance(module, nn.GroupNorm)
    }
    assert groups == {(64, 4), (16, 1), (32, 2), (64, 4), (128, 8)}
    # a number that divides them
    assert [_group_norm(channels).num_groups for channels in (8, 38, 89, 153)] == [1, 2, 1, 9]


def test_a_smooth_activation_takes_every_place_of_the_other():
    made = {
        kind: Backbone("resnet18", stem="strided", width=0.125, activation=kind)
        for kind in ("relu", "silu")
    }
    for kind, other in (("relu", "SiLU"), ("silu", "ReLU")):
        assert [type(module).__name__ for module in made[kind].modules()].count(other) == 0
        assert settings.make(repr(made[kind]), models, Backbone).activation == kind
    counts = [
        sum(isinstance(module, torch.nn.ReLU | torch.nn.SiLU) for module in backbone.modules())
        for backbone in made.values()
    ]
    assert counts[0] == counts[1] == 17
    with pytest.raises(ValueError, match=r"no activation 'gelu': .*relu, silu"):
        Backbone("resnet18", activation="gelu")


def test_its_repr_reads_back():
    made = settings.make(repr(Backbone("resnet18", stem="strided", width=0.25)), models, Backbone)
    assert (made.name, made.stem, made.width, made.dim) == ("resnet18", "strided", 0.25, 128)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "resnet19"}, "timm has no model 'resnet19'; near it are: resnet1"),
        ({"stem": "cifr"}, "no stem 'cifr': did you mean 'cifar'"),
        ({"norm": "layer"}, "no norm 'layer': .*batch, group"),
        (
            {"name": "vit_tiny_patch16_224", "stem": "imagenet", "norm": "group"},
            "no batch normalisation of a ResNet to replace",
        ),
        ({"width": 0.0}, r"at least 1/16, not 0\.0"),
        ({"name": "vit_tiny_patch16_224"}, "use stem='imagenet'"),
        (
            {"name": "vit_tiny_patch16_224", "stem": "imagenet", "width": 0.5},
            "no width, norm, activation or image size to change",
        ),
    ],
)
def test_what_cannot_be_made_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Backbone(**arguments)


def test_projectors_are_the_papers():
    simclr, barlow = Projector((512, 512, 128)), Projector((512, 2048, 2048, 2048), batch_norm=True)
    assert [type(layer) for layer in simclr] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in barlow] == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [
        nn.Linear
    ]
    with pytest.raises(ValueError, match="at least two sizes"):
        Projector((3,))


class Own(nn.Module):
    dim = 4

    def forward(self, images):
        return images.mean((2, 3)).repeat(1, 2)[:, :4]


def test_a_module_of_ones_own_gives_its_own_feature_map_or_a_sentence():
    images = torch.rand(2, 3, 8, 8)
    backbone = models.OwnBackbone(Own())
    with pytest.raises(ValueError, match=r"Own has no feature map: give it a method feature_map"):
        backbone.feature_map(images)
    backbone.net.feature_map = lambda images: images[:, :, ::2, ::2]
    assert torch.equal(backbone.feature_map(images), images[:, :, ::2, ::2])
    backbone.net.feature_map = backbone.net.forward
    with pytest.raises(ValueError, match=r"Own.feature_map gives \(2, 4\) of 2 images, not \(2, C"):
        backbone.feature_map(images)
