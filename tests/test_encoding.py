"""Features of all images: batches, flip, maps, views and modes change nothing but what they say."""

import functools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from marginlab.augment import Augmentation
from marginlab.data.streaming import Streamed
from marginlab.encoding import encode, encode_views, evaluating
from marginlab.methods import SimCLR
from marginlab.models import Backbone
from marginlab.testing.memory import peak_of


def pictures(n, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def network(dtype=torch.float64):
    """A network whose features in training mode depend on the batch, and change it."""
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
    return nn.Sequential(*parts, nn.Linear(6 * 36, 5)).to(dtype)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@given(
    st.integers(1, 13),
    st.integers(1, 15),
    st.booleans(),
    st.sampled_from(["bytes", "floats", "streamed"]),
)
def test_batches_are_one_pass_in_evaluation_mode(n, batch, flip, kind):
    net, bytes_ = network(), pictures(n)
    images = bytes_.double() / 255
    before = state(net)
    given = {
        "bytes": bytes_,
        "floats": images,
        "streamed": Streamed(bytes_, torch.arange(n), 10, 0),
    }
    found = encode(net, given[kind], batch=batch, flip=flip)
    assert net.training
    assert not found.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.eval()
    expected = net(images) + (net(images.flip(-1)) if flip else 0)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", ["method", "bound", "partial", "closure", "global", "object"])
def test_modules_behind_any_encoder_are_found_and_put_back(how):
    class Wrapped:
        def __init__(self, inside):
            self.inside = inside

        def __call__(self, images):
            return self.inside(images)

    method = SimCLR(Backbone("resnet18", stem="strided", width=1 / 16), hidden=8, dim=4)
    method.backbone.net.bn1.eval()  # frozen
    globals()["_global"] = method
    encoder = {
        "method": method,
        "bound": method.encode,
        "partial": functools.partial(torch.nn.Module.__call__, method.backbone),
        "closure": lambda x: method.project(method.encode(x)),
        "global": lambda x: _global.project(_global.encode(x)),
        "object": Wrapped(method.backbone),
    }[how]
    modes, before = [part.training for part in method.modules()], state(method)
    found = encode(encoder, pictures(6, 16), batch=2)
    assert [part.training for part in method.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    method.eval()
    with torch.no_grad():
        expected = method.encode(pictures(6, 16).float() / 255)
        if how in ("closure", "global"):
            expected = method.project(expected)
    torch.testing.assert_close(found, expected)


def test_modes_are_put_back_after_an_error():
    net = network()
    net[1].eval()
    modes = [part.training for part in net.modules()]
    with evaluating(net):
        assert not any(part.training for part in net.modules())
    assert [part.training for part in net.modules()] == modes
    with pytest.raises(RuntimeError):  # images of another size than its linear layer takes
        encode(net, pictures(2, 9))
    assert [part.training for part in net.modules()] == modes


# feature maps


@pytest.mark.parametrize(
    ("name", "options", "side", "grid"),
    [
        ("resnet18", {"stem": "strided", "width": 1 / 16}, 32, (2, 2)),
        ("swin_tiny_patch4_window7_224", {"stem": "imagenet", "image_size": 32}, 32, (1, 1)),
        ("convnext_atto", {"stem": "imagenet"}, 64, (2, 2)),
    ],
)
def test_features_are_pooled_from_the_map(name, options, side, grid):
    backbone = Backbone(name, **options).eval()
    images = torch.rand(2, 3, side, side)
    with torch.no_grad():
        found = backbone.feature_map(images)
        assert found.shape[2:] == grid
        pooled = found.mean((2, 3))
        if hasattr(backbone.net, "head") and hasattr(backbone.net.head, "norm"):
            pooled = backbone.net.head.norm(pooled[:, :, None, None]).flatten(1)
        torch.testing.assert_close(pooled, backbone(images), rtol=1e-4, atol=1e-5)


def test_tokens_stand_where_their_patches_are():
    backbone = Backbone("vit_tiny_patch16_224", stem="imagenet", image_size=48).eval()
    images = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        found = backbone.feature_map(images)
        tokens = backbone.net.forward_features((images - backbone.mean) / backbone.std)
    assert found.shape == (1, 192, 3, 3)
    assert torch.equal(found[0, :, 1, 2], tokens[0, 1 + 3 * 1 + 2])
    with pytest.raises(ValueError, match=r"hiera_tiny_224 gives .* \(1, 49, 768\), and no grid"):
        Backbone("hiera_tiny_224", stem="imagenet").feature_map(torch.rand(1, 3, 224, 224))


def test_the_map_of_the_mirror_image_is_mirrored_back():
    images = pictures(4)

    def columns(x):  # a map that follows the image
        return torch.nn.functional.avg_pool2d(x, 2)

    torch.testing.assert_close(encode(columns, images, flip=True), 2 * encode(columns, images))
    with pytest.raises(ValueError, match=r"\(4, 3, 64\) are neither .* flip=False"):
        encode(lambda x: x.flatten(2), images, flip=True)


# views


@settings(max_examples=15)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 20))
def test_views_are_those_of_the_augmentation_in_any_batches(n, V, batch):
    net, images = network(torch.float32), pictures(n)
    draw = functools.partial(Augmentation("ad").views, seed=3, identity=True)
    found = encode_views(net, images, draw, V, batch=batch)
    assert net.training
    net.eval()
    with torch.no_grad():
        views = draw(images, n_views=V)
        torch.testing.assert_close(found, net(views.flatten(0, 1)).unflatten(0, (n, V)))
    torch.testing.assert_close(found[:, 0], encode(net, images))


# memory, and what is refused


def test_only_the_features_and_a_batch_are_held():
    images = pictures(4000, 16)

    def encoder(x):
        return x.flatten(2).mean(2)

    whole = images.numel() * 4
    peak = peak_of(lambda: encode(encoder, images, batch=100))
    assert peak < whole / 8


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_encoded_is_refused():
    net, images = network(torch.float32), pictures(4)
    for arguments, more, sentence in (
        ((net, images.numpy()), {}, "not of type ndarray.*from_numpy"),
        ((net, images[0]), {}, r"\(N, 3, H, W\), not \(3, 8, 8\)"),
        ((net, images[:, :1]), {}, r"not \(4, 1, 8, 8\). .* repeat a grey"),
        ((net, images[:0]), {}, r"not \(0, 3, 8, 8\)"),
        ((net, images.long()), {}, "not torch.int64"),
        ((net, images.float()), {}, r"in \[0, 1\], not in \[\d+, 25\d\]. Give bytes"),
        ((net, images / 127.5 - 1), {}, r"in \[0, 1\], not in \[-1"),
        ((net, images * torch.nan), {}, r"in \[0, 1\], not in \[nan, nan\]"),
        ((net, images), {"batch": 0}, "1 image or more, not 0"),
        (("resnet18", images), {}, "a module or a function of images, not a str"),
        (
            (lambda x: x.sum((1, 2, 3)), images),
            {},
            r"4 rows of floating-point features, not \(4,\)",
        ),
        ((lambda x: x[:2].flatten(1), images), {}, r"4 images 4 rows .* not \(2, 192\)"),
        ((lambda x: (x, x), images), {}, "not tuple"),
        ((lambda x: x.flatten(1).long(), images), {}, r"floating-point features, not \(4, 192\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            encode(*arguments, **more)
    draw = Augmentation("a").views
    for arguments, sentence in (
        ((net, images, draw, 0), "1 view or more, not 0"),
        (
            (net, images, lambda x, index, n_views: x, 2),
            r"shape \(4, 2, 3, H, W\), not \(4, 3, 8, 8\)",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            encode_views(*arguments)


def test_views_that_leave_the_range_by_a_rounding_are_encoded_as_a_method_does():
    """One rule for both doors; in evaluation mode a method refuses what `encode` does."""
    method = SimCLR(Backbone("resnet18", stem="strided", width=0.125)).eval()
    images = pictures(4) / 255
    images[0, 0, 0, 0], images[1, 0, 0, 0] = 1 + 2**-20, -(2**-20)
    torch.testing.assert_close(encode(method, images), method.encode(images).detach())
    for bad in (images * 4, images - 1, images * torch.nan):
        for door in (method.encode, functools.partial(encode, method)):
            with pytest.raises(ValueError, match=r"are in \[0, 1\], not in "):
                door(bad)
