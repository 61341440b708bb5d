"""Views: drawn alone as in a batch, on any number of processes, nested sets in common, in the
letters' order, redrawn from parameters.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from marginlab import augment, ranks, settings
from marginlab.augment import (
    Augmentation,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    ResizedCrop,
)
from marginlab.augment import augmentation as room
from marginlab.settings import SettingsError


def pictures(number, size, seed=0):
    return torch.randint(
        0,
        256,
        (number, 3, size, size),
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.uint8,
    )


@pytest.mark.parametrize("size", [8, 32, 96])
@pytest.mark.parametrize("letters", ["a", "b", "c", "d", "e", "abcde"])
def test_a_view_drawn_alone_is_the_view_of_the_batch_bit_for_bit(letters, size):
    images = pictures(13, size)
    augmentation = Augmentation(letters, jitter_p=0.9)
    views = augmentation.views(images, n_views=3, seed=5)
    for i in range(13):
        alone = augmentation.views(
            images[i : i + 1], index=torch.tensor([i]), n_views=1, first_view=i % 3, seed=5
        )
        assert torch.equal(alone[0, 0], views[i, i % 3]), i
    for batch in (2, 3, 5, 8):
        parts = [
            augmentation.views(
                images[s : s + batch], index=torch.arange(13)[s : s + batch], n_views=3, seed=5
            )
            for s in range(0, 13, batch)
        ]
        assert torch.equal(torch.cat(parts), views), batch


@pytest.mark.parametrize("piece", [1, 7 * 4 * 3 * 200 * 200, 2**40])
def test_pieces_and_threads_change_no_bit(monkeypatch, piece):
    images, augmentation = pictures(9, 200), Augmentation()
    views = augmentation.views(images, n_views=2)
    monkeypatch.setattr(room, "PIECE", {"cpu": piece, "cuda": piece})
    torch.set_num_threads(2)
    try:
        assert torch.equal(augmentation.views(images, n_views=2), views)
    finally:
        torch.set_num_threads(1)


def share_of_views(group, rank, images):
    rows = ranks.rank_slice(len(images), group)
    views = Augmentation().views(
        images[rows], index=torch.arange(len(images))[rows], n_views=2, seed=3
    )
    return ranks.all_gather(views, group).numpy()


@pytest.mark.xdist_group("ranks")
def test_three_processes_draw_the_views_of_one(pool):
    images = pictures(10, 32)
    expected = Augmentation().views(images, n_views=2, seed=3).numpy()
    for processes in (1, 3):
        for views in pool.run(processes, share_of_views, images):
            assert np.array_equal(views, expected)


@given(st.sets(st.sampled_from("abcde"), max_size=4), st.sampled_from("abcde"), st.integers(0, 99))
def test_nested_sets_share_their_draws(letters, extra, seed):
    smaller, larger = "".join(letters), "".join(letters | {extra})
    images, index, numbers = pictures(12, 16, seed), torch.arange(12), torch.arange(2)
    few = Augmentation(smaller).parameters(index, numbers, size=(16, 16), seed=seed)
    many = Augmentation(larger).parameters(index, numbers, size=(16, 16), seed=seed)
    assert all(
        torch.equal(a, b) for name in few for a, b in zip(few[name], many[name], strict=True)
    )
    coins = [
        parameters.on
        for name, parameters in many.items()
        if name not in few and hasattr(parameters, "on")
    ]
    a, b = (Augmentation(s).views(images, n_views=2, seed=seed) for s in (smaller, larger))
    if coins:
        assert torch.equal(a[~coins[0]], b[~coins[0]])
        assert not coins[0].any() or not torch.equal(a[coins[0]], b[coins[0]])


def test_operations_are_composed_in_the_papers_order_however_they_are_named():
    images = pictures(40, 32)
    views = Augmentation("edcba").views(images, n_views=2)
    assert torch.equal(views, Augmentation("abcde").views(images, n_views=2))
    objects = [GaussianBlur(), Grayscale(), HorizontalFlip(), ColorJitter(), ResizedCrop()]
    assert torch.equal(views, Augmentation(objects).views(images, n_views=2))
    drawn = Augmentation("abcde").parameters(torch.arange(40), torch.arange(2), size=(32, 32))
    for i in range(40):  # torchvision, one operation after another
        box, flip, jitter, grey, blur = ([field[i, 1] for field in drawn[name]] for name in drawn)
        image = tv.resized_crop(
            images[i].float() / 255, *(int(side) for side in box), size=[32, 32], antialias=True
        )
        image = tv.horizontal_flip(image) if flip[0] else image
        for step in augment.color.ORDERS[jitter[1]].tolist() if jitter[0] else ():
            adjust = (
                tv.adjust_brightness,
                tv.adjust_contrast,
                tv.adjust_saturation,
                tv.adjust_hue,
            )[step]
            image = adjust(image, float(jitter[2 + step]))
        image = tv.rgb_to_grayscale(image, 3) if grey[0] else image
        image = tv.gaussian_blur(image, [7, 7], [1.0, 1.0]) if blur[0] else image
        torch.testing.assert_close(views[i, 1], image, rtol=0, atol=2e-5)


def test_the_image_itself_is_the_first_view_and_the_others_stay_as_they_are():
    images, augmentation = pictures(5, 16), Augmentation("ad")
    plain = augmentation.views(images, n_views=4, first_view=2)
    views = augmentation.views(images, n_views=4, first_view=2, identity=True)
    assert torch.equal(views[:, 0], images.float() / 255)
    assert torch.equal(views[:, 1:], plain[:, 1:])
    assert torch.equal(plain[:, 2:], augmentation.views(images, n_views=2, first_view=4))
    assert torch.equal(
        augmentation.views(images, n_views=1, identity=True)[:, 0], images.float() / 255
    )
    assert not torch.equal(plain[:, 0], plain[:, 1])


def test_no_letters_leave_images_as_they_are_and_no_images_make_no_views():
    images = pictures(3, 8)
    assert torch.equal(
        Augmentation("").views(images, n_views=2),
        (images.float() / 255)[:, None].expand(3, 2, 3, 8, 8),
    )
    assert Augmentation().views(images[:0]).shape == (0, 2, 3, 8, 8)
    assert Augmentation("").apply(images, {}).shape == (3, 1, 3, 8, 8)


@pytest.mark.parametrize("letters", ["a", "b", "c", "d", "abcde"])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64, torch.float16])
def test_views_are_float32_in_the_unit_interval(kind, letters):
    images = pictures(20, 16)
    images[:6], images[6:10] = 255, images[6:10] // 128 * 255  # where rounding would show
    images = images if kind == torch.uint8 else (images.float() / 255).to(kind)
    views = Augmentation(letters, strength=1.0, jitter_p=1.0).views(images, n_views=5)
    assert views.dtype == torch.float32
    assert views.min() >= 0
    assert views.max() <= 1


def test_no_value_of_a_device_is_waited_for():
    """Images on the meta device have no values: asking for one, which on CUDA would wait for the
    device, is an error.
    """
    views = Augmentation(jitter_p=0.7).views(pictures(30, 32).to("meta"), n_views=3, identity=True)
    assert views.shape == (30, 3, 3, 32, 32)
    assert views.device.type == "meta"


def test_views_are_made_again_from_stored_parameters(tmp_path):
    images, augmentation = pictures(6, 32), Augmentation()
    drawn = augmentation.parameters(torch.arange(6), torch.arange(3, 5), size=(32, 32), seed=4)
    torch.save({name: tuple(fields) for name, fields in drawn.items()}, tmp_path / "drawn.pt")
    kept = {
        name: type(drawn[name])(*fields)
        for name, fields in torch.load(tmp_path / "drawn.pt").items()
    }
    assert torch.equal(
        augmentation.apply(images, kept),
        augmentation.views(images, n_views=2, first_view=3, seed=4),
    )


def test_parameters_can_be_searched_by_gradient(monkeypatch):
    # more than one piece
    monkeypatch.setattr(room, "PIECE", {"cpu": 5 * 4 * 3 * 16 * 16, "cuda": 1})
    images, augmentation = pictures(4, 16), Augmentation("ad", jitter_p=1.0)
    target = augmentation.views(images, n_views=2, seed=1)
    drawn = augmentation.parameters(torch.arange(4), torch.arange(2), size=(16, 16), seed=1)
    start = {
        "ResizedCrop": type(drawn["ResizedCrop"])(
            *(
                (side + 0.3 * (i < 2)).requires_grad_()
                for i, side in enumerate(drawn["ResizedCrop"])
            )
        ),
        "ColorJitter": drawn["ColorJitter"]._replace(
            brightness=(drawn["ColorJitter"].brightness + 0.1).requires_grad_()
        ),
    }
    leaves = [*start["ResizedCrop"], start["ColorJitter"].brightness]
    before = (augmentation.apply(images, start) - target).square().sum()
    gradients = torch.autograd.grad(before, leaves)
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients)
    length = 0.01 * before.detach() / sum(gradient.square().sum() for gradient in gradients)
    with torch.no_grad():
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf -= length * gradient
    assert (augmentation.apply(images, start) - target).square().sum() < before


class Shade(NamedTuple):
    factor: torch.Tensor


@dataclass(frozen=True)
class Shadow:
    """An operation of one's own."""

    def draw(self, key, size):
        return Shade(key.named("Shadow").uniform(0.5, 1.0))

    def apply(self, images, parameters):
        return images * parameters.factor[:, None, None, None]


def test_an_operation_of_ones_own_comes_last():
    images = pictures(4, 16)
    views = Augmentation((Shadow(), ResizedCrop())).views(images)
    drawn = Augmentation((Shadow(),)).parameters(torch.arange(4), torch.arange(2), size=(16, 16))
    torch.testing.assert_close(
        views,
        Augmentation("a").views(images) * drawn["Shadow"].factor[..., None, None, None],
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        Augmentation("da", strength=0.125, jitter_p=1.0),
        Augmentation(""),
        Augmentation((ResizedCrop(scale=(0.2, 1.0)), HorizontalFlip())),
        Augmentation(("GaussianBlur(sigma=(0.1, 2.0))", "Grayscale()")),
    ],
)
def test_the_notation_reads_back_equal(augmentation):
    again = settings.make(repr(augmentation), augment, Augmentation)
    assert again == augmentation
    assert repr(again) == repr(augmentation)
    assert hash(again) == hash(augmentation)


def test_strength_scales_the_jitter_alone():
    jitter = Augmentation("ad", strength=0.25, jitter_p=1.0).composed[1]
    assert jitter == ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, p=1.0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Augmentation("ax"), r"'x' is no operation's letter: .*There are: a, b, c, d, e"),
        (lambda: Augmentation("aa"), r"ResizedCrop is named twice"),
        (lambda: Augmentation((Grayscale(), Grayscale(p=0.5))), r"Grayscale is named twice"),
        (lambda: Augmentation(("Grayscal()",)), r"did you mean 'Grayscale'"),
        (
            lambda: Augmentation(("Augmentation('a')",)),
            r"names no class of .*operations",
        ),
        (lambda: Augmentation((3,)), r"3 is not a choice in call notation"),
        (lambda: Augmentation("d", strength=-1.0), r"strength is in \[0, 2\.5\].*not -1"),
        (lambda: Augmentation("ad", jitter_p=1.2), r"in \[0, 1\], not 1\.2"),
    ],
)
def test_what_is_no_augmentation_is_refused(make, sentence, unchecked):
    with pytest.raises(SettingsError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("images", "more", "error", "sentence"),
    [
        (torch.rand(2, 1, 8, 8), {}, ValueError, r"\(N, 3, H, W\), not \(2, 1, 8, 8\)"),
        (
            torch.ones(2, 3, 8, 8, dtype=torch.int64),
            {},
            TypeError,
            r"uint8 in 0\.\.255 or floating in \[0, 1\], not torch.int64",
        ),
        (torch.rand(2, 3, 8, 8) * 255, {}, ValueError, r"Divide by 255"),
        (torch.full((2, 3, 8, 8), float("nan")), {}, ValueError, r"\[0, 1\], not in \[nan, nan\]"),
        (
            torch.rand(2, 3, 8, 8),
            {"index": torch.arange(3)},
            ValueError,
            r"each of 2 images, but has the shape \(3,\)",
        ),
        (torch.rand(2, 3, 8, 8), {"index": torch.rand(2)}, TypeError, r"integer tensor"),
        (torch.rand(2, 3, 8, 8), {"n_views": 0}, ValueError, r"n_views is at least 1"),
        (torch.rand(2, 3, 8, 8), {"first_view": -1}, ValueError, r"first_view at least 0"),
        (torch.rand(2, 3, 3, 3), {}, ValueError, r"Take a smaller sigma"),
    ],
)
def test_unfit_images_are_refused(images, more, error, sentence, unchecked):
    with pytest.raises(error, match=sentence):
        Augmentation().views(images, **more)


def test_parameters_of_other_operations_or_images_are_refused():
    images, drawn = (
        pictures(4, 8),
        Augmentation("ae").parameters(torch.arange(4), torch.arange(2), size=(8, 8)),
    )
    with pytest.raises(
        ValueError,
        match=r"Parameters are of \['HorizontalFlip', 'ResizedCrop'\], but the augmentation is "
        r"Augmentation",
    ):
        Augmentation("a").apply(images, drawn)
    with pytest.raises(ValueError, match=r"one shape \(N, V\) with N = 3 images, not \[\(4, 2\)\]"):
        Augmentation("ae").apply(images[:3], drawn)
