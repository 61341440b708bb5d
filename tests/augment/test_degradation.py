"""Degradations: each against a plain form, alone as in a batch, and what is drawn is known."""

import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

from marginlab.augment import Augmentation, Jpeg, LowResolution, MotionBlur, Noise, Occlusion
from marginlab.augment.degradation import Grain, Motion, Rows
from marginlab.augment.occlusion import Rectangle, visible
from marginlab.augment.operation import Operation
from marginlab.rng import Key
from marginlab.settings import SettingsError

ALL = (LowResolution((2, 12), 0.8), MotionBlur(), Noise(), Jpeg(), Occlusion())
SIZES = [(16, 16), (24, 18), (32, 32)]


def pictures(number, size, seed=0):
    return torch.rand(number, 3, *size, generator=torch.Generator().manual_seed(seed))


def keys(number):
    return Key(3).at(torch.arange(number))


def on(number):
    return torch.ones(number, dtype=torch.bool)


@given(st.integers(0, 10**6), st.sampled_from(SIZES), st.sampled_from(ALL))
def test_a_view_is_the_same_alone_and_stays_in_range(seed, size, operation):
    assert isinstance(operation, Operation)
    images = pictures(6, size, seed)
    drawn = operation.draw(Key(seed).at(torch.arange(6)), size)
    made = operation.apply(images, drawn)
    assert made.shape == images.shape
    assert 0 <= float(made.min()) <= float(made.max()) <= 1
    for row in range(6):
        alone = operation.apply(
            images[row : row + 1], type(drawn)(*(x[row : row + 1] for x in drawn))
        )
        assert torch.equal(alone[0], made[row])
        if not drawn.on[row]:
            assert torch.equal(made[row], images[row])


def test_they_stand_in_an_augmentation_and_their_draws_are_known():
    texts = ("HorizontalFlip()", *(repr(operation) for operation in ALL))
    augmentation = Augmentation(texts)
    assert Augmentation(tuple(repr(o) for o in augmentation.composed)) == augmentation
    images, index = pictures(5, (16, 16)), torch.arange(5)
    views = augmentation.views(images, n_views=3, seed=2)
    drawn = augmentation.parameters(index, torch.arange(3), size=(16, 16), seed=2)
    assert torch.equal(views, augmentation.apply(images, drawn))
    assert drawn["LowResolution"].rows.shape == (5, 3)
    alone = augmentation.views(images[3:4], index=index[3:4], n_views=1, seed=2, first_view=2)
    assert torch.equal(alone[0, 0], views[3, 2])


@pytest.mark.parametrize("r", [1, 3, 8, 15])
def test_low_resolution_is_area_down_and_bicubic_up(r):
    images = pictures(4, (24, 18))
    made = LowResolution().apply(images, Rows(on(4), torch.full((4,), r)))
    small = F.adaptive_avg_pool2d(images, (r, max(1, round(r * 18 / 24))))
    expected = F.interpolate(small, size=(24, 18), mode="bicubic", align_corners=False)
    torch.testing.assert_close(made, expected.clamp(0, 1))
    if r == 1:
        flat = images.mean((2, 3), keepdim=True).expand_as(made)
        torch.testing.assert_close(made, flat)


def test_rows_are_uniform_and_no_more_rows_than_the_image_has_change_nothing():
    drawn = LowResolution((4, 7)).draw(keys(4000), (32, 32))
    counts = torch.bincount(drawn.rows)[4:]
    assert len(counts) == 4
    assert bool(((counts > 850) & (counts < 1150)).all())
    images = pictures(2, (16, 16))
    assert torch.equal(LowResolution().apply(images, Rows(on(2), torch.tensor([16, 40]))), images)


def test_motion_along_a_row_is_a_mean_along_it():
    images = pictures(2, (9, 21))
    blur = MotionBlur(length=(4.0, 4.0), p=1.0)
    made = blur.apply(
        images, Motion(on(2), torch.full((2,), 4.0), torch.tensor([0.0, math.pi / 2]))
    )
    along = images[0].unfold(2, 5, 1).mean(-1)
    torch.testing.assert_close(made[0, :, :, 2:-2], along, atol=1e-5, rtol=0)
    down = images[1].unfold(1, 5, 1).mean(-1)
    torch.testing.assert_close(made[1, :, 2:-2], down, atol=1e-5, rtol=0)


def test_noise_is_normal_and_other_in_every_view():
    images, noise = torch.full((3, 3, 64, 64), 0.5), Noise((0.05, 0.05), 1.0)
    drawn = noise.draw(keys(3), (64, 64))
    grain = (noise.apply(images, drawn) - 0.5) / 0.05
    assert abs(float(grain.mean())) < 0.02
    assert abs(float(grain.std()) - 1) < 0.02
    assert abs(float((grain[0] * grain[1]).mean())) < 0.03
    again = noise.apply(images[:1], Grain(*(x[:1] for x in drawn)))
    assert torch.equal(again[0], noise.apply(images, drawn)[0])


def test_lower_quality_is_further_from_the_image():
    images = F.interpolate(pictures(8, (6, 6)), size=(32, 32), mode="bicubic").clamp(0, 1)
    far = [
        float(
            (Jpeg((q, q), 1.0).apply(images, Jpeg((q, q), 1.0).draw(keys(8), (32, 32))) - images)
            .square()
            .mean()
        )
        for q in (5, 30, 95)
    ]
    assert far[0] > far[1] > far[2] > 0


@given(st.integers(0, 10**6), st.sampled_from(SIZES))
def test_an_occlusion_covers_what_was_drawn_and_nothing_else(seed, size):
    images, cover = pictures(5, size, seed), Occlusion((0.2, 0.5), p=0.7)
    drawn = cover.draw(Key(seed).at(torch.arange(5)), size)
    made, seen = cover.apply(images, drawn), visible(drawn, size)
    grey = drawn.grey[:, None, None, None].expand_as(images)
    assert torch.equal(made, torch.where(seen[:, None], images, grey))
    assert torch.equal((~seen).sum((1, 2)), drawn.height * drawn.width * drawn.on)
    assert bool(
        ((drawn.top + drawn.height <= size[0]) & (drawn.left + drawn.width <= size[1])).all()
    )
    half = Rectangle(
        on(1), *(torch.tensor([n]) for n in (0, 0, size[0], size[1] // 2)), torch.ones(1)
    )
    assert float(visible(half, size).double().mean()) == 0.5


def test_settings_out_of_range_are_refused(unchecked):
    for make, words in (
        (lambda: LowResolution((0, 4)), "whole numbers .* from 1"),
        (lambda: LowResolution((8, 4)), "whole numbers"),
        (lambda: Jpeg((5, 101)), "from 1 to 100"),
        (lambda: MotionBlur((0.0, 2.0)), "length"),
        (lambda: Noise((0.1, 0.01)), "sigma"),
        (lambda: Occlusion(area=(0.1, 1.5)), "area"),
        (lambda: Noise(p=2.0), "probability"),
        (lambda: LowResolution(rows=3), r"rows is a pair of whole numbers .*, not 3\."),
        (lambda: LowResolution(rows=(3, True)), "rows is a pair of whole numbers"),
        (lambda: MotionBlur(length=3.0), r"length is a pair .*, not 3\.0"),
        (lambda: Noise(sigma=("a", "b")), "sigma is a pair"),
    ):
        with pytest.raises(SettingsError, match=words):
            make()
