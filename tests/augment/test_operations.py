"""Each operation against torchvision v2: pixels from the same parameters, and the law of the
parameters drawn.
"""

import math
from itertools import permutations

import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from marginlab.augment import ColorJitter, GaussianBlur, Grayscale, HorizontalFlip, ResizedCrop
from marginlab.augment.blur import Blur
from marginlab.augment.color import ORDERS, Jitter
from marginlab.augment.geometry import Box, Coin
from marginlab.rng import Key
from marginlab.settings import SettingsError

SIZES = [(8, 8), (32, 32), (33, 20), (96, 96)]


def pictures(number, size, seed=0):
    """Noise, with flat, grey, black, white and two-level images among them: where maxima tie and
    chroma is zero.
    """
    images = torch.rand(number, 3, *size, generator=torch.Generator().manual_seed(seed))
    images[0], images[1], images[2] = images[0, :1], 0.0, 1.0
    images[3] = images[3].round()
    images[4] = (images[4] * 255).round() / 255
    return images


def keys(number):
    return Key(3).at(torch.arange(number))


def on(number):
    return torch.ones(number, dtype=torch.bool)


@pytest.mark.parametrize("size", SIZES)
def test_a_crop_is_torchvisions_antialiased_resized_crop(size):
    images = pictures(24, size)
    crop = ResizedCrop()
    boxes = crop.draw(keys(24), size)
    expected = torch.stack(
        [
            tv.resized_crop(image, *(int(side) for side in box), size=list(size), antialias=True)
            for image, *box in zip(images, *boxes, strict=True)
        ]
    )
    torch.testing.assert_close(crop.apply(images, boxes), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_a_blur_is_torchvisions(size):
    images, blur = pictures(16, size), GaussianBlur(sigma=(0.3, 1.0))
    drawn = Blur(on(16), blur.draw(keys(16), size).sigma)
    expected = torch.stack(
        [
            tv.gaussian_blur(image, [7, 7], [float(s)] * 2)
            for image, s in zip(images, drawn.sigma, strict=True)
        ]
    )
    torch.testing.assert_close(blur.apply(images, drawn), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_grey_and_flip_are_torchvisions(size):
    images, coins = pictures(8, size), Coin(torch.tensor([True, False] * 4))
    for operation, function in (
        (Grayscale(), lambda x: tv.rgb_to_grayscale(x, 3)),
        (HorizontalFlip(), tv.horizontal_flip),
    ):
        expected = torch.stack(
            [
                function(image) if coin else image
                for image, coin in zip(images, coins.on, strict=True)
            ]
        )
        torch.testing.assert_close(operation.apply(images, coins), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_jitter_is_torchvisions_four_adjustments_in_the_drawn_order(size):
    number = 72
    images = pictures(number, size)
    drawn = (
        ColorJitter(0.8, 0.8, 0.8, 0.5)
        .draw(keys(number), size)
        ._replace(on=on(number), order=torch.arange(number) % 24)
    )
    adjustments = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    expected = []
    for i, image in enumerate(images):
        for step in ORDERS[drawn.order[i]].tolist():
            image = adjustments[step](image, float(drawn[2 + step][i]))
        expected.append(image)
    torch.testing.assert_close(
        ColorJitter().apply(images, drawn), torch.stack(expected), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("step", range(4))
def test_each_adjustment_alone_is_torchvisions_over_its_whole_range(step):
    images = pictures(64, (16, 16))
    identity = [torch.ones(64), torch.ones(64), torch.ones(64), torch.zeros(64)]
    identity[step] = torch.linspace(-0.5, 0.5, 64) if step == 3 else torch.linspace(0, 3, 64)
    function = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)[step]
    expected = torch.stack(
        [function(image, float(f)) for image, f in zip(images, identity[step], strict=True)]
    )
    made = ColorJitter().apply(
        images, Jitter(on(64), torch.zeros(64, dtype=torch.int64), *identity)
    )
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


# The law of the draws. Seeds are fixed on both sides, so a test either holds or does not; p below
# 1e-3 would be a real difference.


def theirs(transform, size, number, seed=11):
    """torchvision's own parameters, drawn one after another."""
    torch.manual_seed(seed)
    image = [torch.zeros(3, *size)]
    return [transform.make_params(image) for _ in range(number)]


def same_law(ours, others, bins=None):
    """p-value: Kolmogorov-Smirnov for continuous values, chi-square for discrete ones."""
    if bins is None:
        return stats.ks_2samp(ours, others).pvalue
    table = torch.stack(
        [
            torch.bincount(torch.as_tensor(values).long(), minlength=bins)
            for values in (ours, others)
        ]
    )
    return stats.chi2_contingency(table[:, table.sum(0) >= 10].numpy()).pvalue


@pytest.mark.parametrize(
    ("size", "ratio"),
    [((32, 32), (3 / 4, 4 / 3)), ((8, 24), (3 / 4, 4 / 3)), ((10, 10), (0.2, 3.0))],
)
def test_boxes_have_torchvisions_law(size, ratio):
    number = 4000
    ours = ResizedCrop(ratio=ratio).draw(keys(number), size)
    drawn = theirs(v2.RandomResizedCrop(size, ratio=ratio), size, number)
    others = Box(*(torch.tensor([float(box[side]) for box in drawn]) for side in Box._fields))
    for side in Box._fields:
        assert same_law(getattr(ours, side), getattr(others, side), bins=max(size) + 1) > 1e-3, side
    assert stats.ks_2samp(ours.height * ours.width, others.height * others.width).pvalue > 1e-3
    assert (
        stats.ks_2samp(
            ours.top / (size[0] - ours.height + 1), others.top / (size[0] - others.height + 1)
        ).pvalue
        > 1e-3
    )
    assert (ours.top >= 0).all()
    assert (ours.top + ours.height <= size[0]).all()
    assert (ours.left + ours.width <= size[1]).all()
    assert all((side == side.round()).all() for side in ours)


@pytest.mark.parametrize(
    ("size", "ratio"),
    [((20, 20), (2.0, 3.0)), ((20, 20), (0.2, 0.4)), ((20, 6), (0.9, 1.1)), ((6, 20), (0.9, 1.1))],
)
def test_the_central_box_is_torchvisions_where_no_attempt_fits(size, ratio):
    ours = ResizedCrop(scale=(1.0, 1.0), ratio=ratio).draw(keys(5), size)
    box = theirs(v2.RandomResizedCrop(size, scale=(1.0, 1.0), ratio=ratio), size, 1)[0]
    assert [side.tolist() for side in ours] == [[box[name]] * 5 for name in Box._fields]


def test_jitter_has_torchvisions_law():
    number = 4000
    ours = ColorJitter(0.4, 1.5, 0.2, 0.1, p=0.8).draw(keys(number), (8, 8))
    drawn = theirs(v2.ColorJitter(0.4, 1.5, 0.2, 0.1), (8, 8), number)
    for name in ("brightness", "contrast", "saturation", "hue"):
        others = [parameters[f"{name}_factor"] for parameters in drawn]
        assert same_law(getattr(ours, name).double(), others) > 1e-3, name
    place = {order: i for i, order in enumerate(permutations(range(4)))}
    assert (
        same_law(
            ours.order,
            [place[tuple(parameters["fn_idx"].tolist())] for parameters in drawn],
            bins=24,
        )
        > 1e-3
    )
    assert stats.binomtest(int(ours.on.sum()), number, 0.8).pvalue > 1e-3
    joint = torch.stack(
        [
            ours.brightness,
            ours.contrast,
            ours.saturation,
            ours.hue,
            ours.order.float(),
            ours.on.float(),
        ]
    ).double()
    # independent of each other
    assert (torch.corrcoef(joint) - torch.eye(6)).abs().max() < 4 / math.sqrt(number)


@pytest.mark.parametrize(
    ("operation", "p"),
    [(GaussianBlur(sigma=(0.1, 2.0)), 0.5), (Grayscale(), 0.2), (HorizontalFlip(), 0.5)],
)
def test_coins_are_fair_and_sigma_has_torchvisions_law(operation, p):
    number = 4000
    drawn = operation.draw(keys(number), (32, 32))
    assert stats.binomtest(int(drawn.on.sum()), number, p).pvalue > 1e-3
    if isinstance(drawn, Blur):
        assert (
            same_law(
                drawn.sigma.double(),
                [p["sigma"][0] for p in theirs(v2.GaussianBlur(13, (0.1, 2.0)), (32, 32), number)],
            )
            > 1e-3
        )


def test_draws_have_the_shape_of_the_key():
    for operation in (ResizedCrop(), GaussianBlur(), Grayscale(), ColorJitter(), HorizontalFlip()):
        for key, shape in (
            (Key(0), ()),
            (Key(0).at(3, 4), ()),
            (Key(0).at(torch.arange(5)[:, None], torch.arange(2)), (5, 2)),
        ):
            assert all(field.shape == shape for field in operation.draw(key, (16, 16))), operation
        whole, alone = (
            operation.draw(Key(1).at(torch.arange(6)), (16, 16)),
            operation.draw(Key(1).at(4), (16, 16)),
        )
        assert all(field[4] == other for field, other in zip(whole, alone, strict=True))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_gradients_of_the_parameters(seed):
    """By central differences in float64, away from the kinks."""
    images = 0.25 + 0.5 * torch.rand(
        3, 3, 9, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    draws = torch.rand(4, 3, generator=torch.Generator().manual_seed(seed + 9), dtype=torch.float64)
    box = [
        (side + add).requires_grad_()
        for side, add in zip(draws, (0.3, 0.6, 5.17, 6.23), strict=True)
    ]
    assert torch.autograd.gradcheck(lambda *sides: ResizedCrop().apply(images, Box(*sides)), box)
    sigma = (0.5 + draws[0] / 2).detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: GaussianBlur().apply(images, Blur(torch.tensor([True, False, True]), s)), sigma
    )
    factors = [(0.9 + 0.1 * draw).detach().requires_grad_() for draw in draws[:3]] + [
        (0.07 * draws[3]).detach().requires_grad_()
    ]
    order, coins = torch.tensor([1, 9, 22]), torch.tensor([True, True, False])
    assert torch.autograd.gradcheck(
        lambda *f: ColorJitter().apply(images, Jitter(coins, order, *f)), factors
    )


def test_no_gradient_is_nan_on_grey_and_flat_images():
    images = pictures(8, (8, 8)).requires_grad_()
    factors = [torch.full((8,), f, requires_grad=True) for f in (1.1, 0.9, 1.2, 0.05)]
    ColorJitter().apply(images, Jitter(on(8), torch.arange(8), *factors)).sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (images, *factors))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResizedCrop(scale=(0.0, 1.0)),
        lambda: ResizedCrop(scale=(0.5, 1.2)),
        lambda: ResizedCrop(ratio=(2.0, 1.0)),
        lambda: GaussianBlur(sigma=(0.0, 1.0)),
        lambda: GaussianBlur(p=1.5),
        lambda: Grayscale(p=-0.1),
        lambda: HorizontalFlip(p=float("nan")),
        lambda: ColorJitter(hue=0.6),
        lambda: ColorJitter(contrast=-0.1),
        lambda: ColorJitter(p=2.0),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(SettingsError, match=r"not "):
        make()


def test_a_blur_wider_than_the_image_is_refused():
    with pytest.raises(ValueError, match=r"reaches 6 pixels .* not 6 x 32"):
        GaussianBlur(sigma=(0.1, 2.0)).draw(Key(0), (6, 32))
