import time
from dataclasses import replace

import pytest
import scipy.stats
import torch
from kornia.enhance import adjust_hue
from sklearn.neighbors import KNeighborsClassifier
from torchvision.transforms.v2 import functional

from marginlab.data import Shapes
from marginlab.data.shapes import EASY
from marginlab.data.silhouettes import SILHOUETTES, distance
from marginlab.settings import SettingsError

PLAIN = Shapes(position=0.0, scale=(0.4, 0.4), rotation=0.0, hue=0.0, background=0.0, noise=0.0)
INDEX = torch.arange(400)


def render(shapes, index, split="train", labels=None):
    return shapes.render(
        index % len(shapes.silhouettes) if labels is None else labels, shapes.draw(split, index)
    )


def grid(n=400, reach=2.5):
    axis = (torch.arange(n) + 0.5) * (2 * reach / n) - reach
    return axis.expand(n, n), -axis[:, None].expand(n, n), (2 * reach / n) ** 2


@pytest.mark.parametrize("name", SILHOUETTES)
def test_a_silhouette_is_a_mirror_symmetric_distance_of_area_pi(name):
    x, y, cell = grid()
    found = distance(name, x, y)
    assert float((found < 0).sum() * cell) == pytest.approx(torch.pi, rel=0.01)
    assert torch.allclose(found, found.flip(1), atol=1e-5)
    # a distance changes by no more than the step along any axis, and has slope 1 near the outline
    # but at few corners
    step = x[0, 1] - x[0, 0]
    right, down = found.diff(dim=1) / step, found.diff(dim=0) / step
    assert float(right.abs().max()) < 1.001
    assert float(down.abs().max()) < 1.001
    slope = torch.hypot(right[:-1], down[:, :-1])[found[:-1, :-1].abs() < 3 * step]
    assert float(slope.median()) == pytest.approx(1, abs=0.01)


def test_a_polygon_equals_the_brute_force_distance_to_its_outline():
    x, y, _ = grid(60)
    half = torch.pi**0.5 / 2  # half the side of the square of area pi
    exact = torch.hypot(
        (x.abs() - half).clamp(min=0), (y.abs() - half).clamp(min=0)
    ) + torch.maximum(x.abs() - half, y.abs() - half).clamp(max=0)
    assert torch.allclose(distance("square", x, y), exact, atol=0.01)


def test_silhouettes_differ_from_each_other():
    x, y, cell = grid()
    masks = torch.stack([distance(name, x, y) < 0 for name in SILHOUETTES]).flatten(1).float()
    shared = masks @ masks.T * cell / torch.pi  # 1 for equal silhouettes, all of area pi
    assert float((shared - torch.eye(10)).max()) < 0.93
    easy = [SILHOUETTES.index(name) for name in EASY.silhouettes]
    assert float((shared - torch.eye(10))[easy][:, easy].max()) < 0.85


def test_an_image_alone_equals_the_image_in_a_batch():
    shapes = Shapes(seed=3)
    batch = render(shapes, INDEX)
    for index in (0, 7, 255, 256, 399):
        alone = render(shapes, torch.tensor([index]))
        assert torch.allclose(alone[0], batch[index], atol=1e-5)
        assert torch.equal((255 * alone[0]).round(), (255 * batch[index]).round())
        assert all(
            torch.equal(one[0], many[index])
            for one, many in zip(
                shapes.draw("train", index), shapes.draw("train", INDEX), strict=True
            )
        )


def test_seeds_splits_and_indices_give_other_images():
    images = [
        render(Shapes(seed=seed), INDEX[:20], split)
        for seed, split in ((0, "train"), (0, "test"), (1, "train"))
    ]
    flat = torch.cat(images).flatten(1)
    assert float((torch.cdist(flat, flat) + 10 * torch.eye(60)).min()) > 1


def test_without_nuisances_the_images_of_a_class_are_identical():
    images = render(PLAIN, INDEX[:40]).view(4, 10, 3, 32, 32)
    assert torch.equal(images, images[:1].expand_as(images))
    flat = images[0].flatten(1)
    assert float((torch.cdist(flat, flat) + 100 * torch.eye(10)).min()) > 2


@pytest.mark.parametrize("field", ["position", "scale", "rotation", "hue", "background", "noise"])
def test_each_nuisance_switches_on_alone(field):
    only = replace(PLAIN, **{field: getattr(Shapes(), field)})
    parameters, plain = only.draw("train", INDEX), PLAIN.draw("train", INDEX)
    mine = {"scale": "radius", "background": "ground"}.get(field, field)
    for name in parameters._fields:
        assert torch.equal(getattr(parameters, name), getattr(plain, name)) == (name != mine)
    discs = only.render(torch.full((40,), 2), only.draw("train", INDEX[:40]))
    assert float((discs[1:] - discs[:1]).abs().amax((1, 2, 3)).min()) > 0.01


def test_ranges_are_respected_and_filled():
    shapes = Shapes(
        position=0.2, scale=(0.25, 0.5), rotation=40.0, hue=0.5, background=0.5, noise=0.2
    )
    p = shapes.draw("test", torch.arange(5_000))
    for values, low, high in (
        (p.position[:, 0], -0.2, 0.2),
        (p.position[:, 1], -0.2, 0.2),
        (p.radius.log2(), -2, -1),
        (p.rotation, -40, 40),
        (p.hue, -0.25, 0.25),
        (p.noise, 0, 0.2),
        (p.wave[:, 2], 0, 1),
        (p.wave[:, :2].norm(dim=1), 0.25, 1),
    ):
        assert low - 1e-5 <= float(values.min())
        assert float(values.max()) <= high + 1e-5
        assert scipy.stats.kstest((values - low) / (high - low), "uniform").pvalue > 1e-3
    # half way from grey, 0.28, to black and to the lightest, 0.55
    assert float(p.ground.min()) >= 0.14 - 1e-6
    assert float(p.ground.max()) <= 0.415 + 1e-6
    images = shapes.render(torch.arange(300) % 10, shapes.draw("test", torch.arange(300)))
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1


def test_hue_is_undone_by_the_hue_of_colour_jitter_and_is_the_one_of_torchvision():
    shapes = Shapes(noise=0.0, hue=1.0)
    turned, plain = render(shapes, INDEX[:50]), render(replace(shapes, hue=0.0), INDEX[:50])
    hue = shapes.draw("train", INDEX[:50]).hue
    assert float((turned - plain).abs().amax((1, 2, 3)).median()) > 0.3
    assert torch.allclose(adjust_hue(turned, -2 * torch.pi * hue), plain, atol=1e-4)
    for image, before, factor in zip(turned[:5], plain[:5], hue[:5], strict=True):
        assert torch.allclose(image, functional.adjust_hue(before, float(factor)), atol=1e-4)


def test_a_flip_mirrors_position_and_rotation():
    shapes = replace(Shapes(), background=0.0, noise=0.0)
    p, labels = shapes.draw("train", INDEX), INDEX % 10
    mirrored = p._replace(rotation=-p.rotation, position=p.position * torch.tensor([-1.0, 1.0]))
    assert torch.allclose(
        shapes.render(labels, p).flip(-1), shapes.render(labels, mirrored), atol=1e-4
    )


def test_a_crop_undoes_position_and_scale():
    shapes = replace(PLAIN, size=64)
    p = shapes.draw("train", INDEX[:10])
    small = shapes.render(
        INDEX[:10],
        p._replace(radius=p.radius / 2, position=torch.tensor([0.5, -0.5]).expand(10, 2)),
    )
    # the upper right quarter, at twice its size
    crop = functional.resize(small[..., :32, 32:], [64, 64], antialias=True)
    assert float((crop - shapes.render(INDEX[:10], p)).abs().mean()) < 0.02


def test_blur_undoes_noise():
    shapes = replace(PLAIN, noise=0.3)
    noisy, clean = render(shapes, INDEX[:50]), render(PLAIN, INDEX[:50])
    blurred = [functional.gaussian_blur(images, [5, 5], [1.0, 1.0]) for images in (noisy, clean)]
    assert float((blurred[0] - blurred[1]).norm()) < 0.4 * float((noisy - clean).norm())


def test_noise_is_normal_with_the_drawn_deviation():
    shapes = replace(PLAIN, noise=0.2)
    p = shapes.draw("train", INDEX)
    # a margin of grey
    noise = (
        shapes.render(INDEX % 10, p) - PLAIN.render(INDEX % 10, p._replace(noise=torch.zeros(400)))
    )[..., :3]
    small = p.noise < 0.06  # where 0.28 does not clip
    assert torch.allclose(noise[small].std((1, 2, 3)), p.noise[small], rtol=0.15)
    one = noise[p.noise < 0.08] / p.noise[p.noise < 0.08][:, None, None, None]
    assert scipy.stats.kstest(one.flatten()[:20_000], "norm").pvalue > 1e-3
    assert abs(float((one[:, 0] * one[:, 1]).mean())) < 0.03


def test_colours_carry_no_information_of_the_class():
    # the drawn colours do not know the label: the same parameters render any class in the same ink
    # on the same ground
    shapes = replace(Shapes(), position=0.0, noise=0.0)
    p = shapes.draw("train", INDEX[:30])
    disc, square = (shapes.render(torch.full((30,), label), p) for label in (0, 2))
    assert torch.allclose(disc[:, :, 15:17, 15:17], square[:, :, 15:17, 15:17], atol=1e-5)
    assert torch.allclose(disc[:, :, ::31, ::31], square[:, :, ::31, ::31], atol=1e-5)
    # nor does the share of ink, as all areas are equal: the class cannot be told from an image's
    # colour mean and deviation better than by chance
    shown = [
        Shapes(background=background).load(split, n)
        for background in (0.0, 1.0)
        for split, n in (("train", 2_000), ("test", 1_000))
    ]
    for train, test in (shown[:2], shown[2:]):
        means = [images.images.double().mean((2, 3)) for images in (train, test)]
        right = (
            KNeighborsClassifier(25).fit(means[0], train.labels).predict(means[1])
            == test.labels.numpy()
        )
        assert right.mean() < 0.1 + 4 * (0.1 * 0.9 / 1_000) ** 0.5


def test_a_set_is_bytes_balanced_and_any_n_begins_the_same():
    train = Shapes().load("train", 200)
    assert train.images.dtype == torch.uint8
    assert train.images.shape == (200, 3, 32, 32)
    assert torch.bincount(train.labels).tolist() == [20] * 10
    assert train.classes == SILHOUETTES
    assert torch.equal(Shapes().load("train", 30).images, train.images[:30])
    # the same images at another size
    large = Shapes(size=64, noise=0.0).load("train", 50).images.float()
    small = Shapes(noise=0.0).load("train", 50).images.float()
    assert float((torch.nn.functional.avg_pool2d(large, 2) - small).abs().mean()) < 2


def test_nuisances_hide_the_silhouette_from_pixels_but_not_all_of_it():
    accuracy = {}
    for name, shapes in {
        "hard": replace(Shapes(), hue=1.0, background=1.0, position=0.3, rotation=30.0),
        "usual": Shapes(),
        "easy": EASY,
    }.items():
        train, test = shapes.load("train", 1_000), shapes.load("test", 300)
        fitted = KNeighborsClassifier(5).fit(train.images.flatten(1), train.labels)
        accuracy[name] = (fitted.predict(test.images.flatten(1)) == test.labels.numpy()).mean()
    assert 0.15 < accuracy["hard"] < 0.5
    assert accuracy["hard"] < accuracy["usual"] - 0.2
    assert accuracy["usual"] < accuracy["easy"]


def test_five_thousand_images_take_seconds():
    Shapes().load("train", 2)  # imports
    started = time.process_time()
    Shapes().load("train", 5_000)
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"silhouettes": ("disc", "tringle")}, "no silhouette 'tringle': did you mean 'triangle'"),
        ({"silhouettes": ("disc",)}, "at least two silhouettes"),
        ({"silhouettes": ("disc", "disc", "ring")}, "each named once"),
        ({"silhouettes": ()}, "at least two silhouettes"),
        ({"size": 4}, "at least 8 pixels, not 4"),
        ({"scale": (0.5, 0.4)}, r"0 < low <= high <= 2 half sides, not \(0\.5, 0\.4\)"),
        ({"scale": (0.0, 0.4)}, "0 < low"),
        ({"position": -0.1}, r"position lies in \[0, 1\], not at -0\.1; 0 switches it off"),
        ({"rotation": 181.0}, r"rotation lies in \[0, 180\], not at 181"),
        ({"hue": 1.5}, "hue lies in"),
        ({"background": 2.0}, "background lies in"),
        ({"noise": float("nan")}, "noise lies in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(SettingsError, match=message):
        Shapes(**change)


def test_wrong_draws_and_renders_are_refused():
    shapes = Shapes()
    with pytest.raises(SettingsError, match="no split 'tran': did you mean 'train'"):
        shapes.draw("tran", 0)
    with pytest.raises(ValueError, match="2 labels do not fit the parameters of 1 images"):
        shapes.render(torch.tensor([0, 1]), shapes.draw("train", 0))
    with pytest.raises(ValueError, match="Labels from 0 to 10 do not number 10 silhouettes"):
        shapes.render(torch.tensor([0, 10]), shapes.draw("train", torch.arange(2)))
    with pytest.raises(ValueError, match="at least n = 2 images, not 1"):
        shapes.load("train", 1)
