"""The sharpened distance: what it is of, that it never grows, that its views could have been drawn,
that it finds what is known to be there.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from marginlab import augment, data, kernels
from marginlab.augment import (
    Augmentation,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    ResizedCrop,
    Sharpened,
    search,
    sharpen,
)
from marginlab.augment.geometry import Box, Coin
from marginlab.augment.operation import Searchable
from marginlab.rng import Key
from marginlab.settings import SettingsError, make


def smooth(number, height, width, seed=0):
    """Pictures with large and small forms, as photographs have, where nearby crops are alike."""
    coarse = torch.rand(number, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    fine = torch.rand(
        number, 3, height // 3, width // 3, generator=torch.Generator().manual_seed(seed + 1)
    )
    both = [
        torch.nn.functional.interpolate(part, (height, width), mode="bicubic").clamp(0, 1)
        for part in (coarse, fine)
    ]
    return 0.7 * both[0] + 0.3 * both[1]


def draws(augmentation, pairs, size=(16, 16), view=1):
    numbers = torch.arange(pairs)
    return [
        augmentation.drawn(numbers + side * pairs, torch.full((pairs,), view), size=size)
        for side in (0, 1)
    ]


def best_of(augmentation, x, y, V=32):
    """The nearest of sampled views, and their parameters."""
    M = len(x)
    views = augmentation.views(torch.cat([x, y]), n_views=V, identity=True).flatten(2)
    nearest = [kernels.between(views[m : m + 1], views[M + m : M + m + 1]) for m in range(M)]
    u = torch.stack([n.views[0, 0, 0] for n in nearest]).long()
    distance = torch.stack([n.distance[0, 0, 0] for n in nearest])
    return distance, *(
        augmentation.drawn(torch.arange(M) + side * M, u[:, side], size=tuple(x.shape[2:]))
        for side in (0, 1)
    )


def of_views(augmentation, x, y, found):
    a, b = (
        augmentation.apply(image, p)[:, 0].double().numpy()
        for image, p in ((x, found.x), (y, found.y))
    )
    return np.sqrt(((a - b) ** 2).sum((1, 2, 3)))


def supported(augmentation, parameters, size):
    return torch.stack(
        [
            operation.supports(parameters[type(operation).__name__], size)[:, 0]
            for operation in augmentation.composed
        ]
    ).all(0)


OPERATIONS = [
    *(
        ResizedCrop(scale, ratio)
        for scale in ((0.08, 1.0), (0.3, 0.5), (1.0, 1.0))
        for ratio in ((3 / 4, 4 / 3), (1.0, 1.0), (2.0, 3.0))
    ),
    *(ColorJitter(0.4, 1.5, 0.0, hue, p) for hue in (0.0, 0.1, 0.5) for p in (0.0, 0.8, 1.0)),
    *(kind(p=p) for kind in (Grayscale, HorizontalFlip, GaussianBlur) for p in (0.0, 0.5, 1.0)),
    GaussianBlur(sigma=(0.1, 2.0)),
]


@pytest.mark.parametrize("size", [(8, 8), (33, 20)])
@pytest.mark.parametrize("operation", OPERATIONS, ids=repr)
def test_what_is_drawn_and_what_is_near_it_lies_in_the_support(operation, size):
    assert isinstance(operation, Searchable)
    key = Key(1).at(torch.arange(40)[:, None], torch.arange(25))
    drawn = operation.draw(key, size)
    assert operation.supports(drawn, size).all()
    itself = operation.unchanged((40, 1), size)
    for start in (drawn, type(drawn)(*(field[:, :1] for field in drawn)), itself):
        for step in (0.02, 0.3, torch.logspace(-2, 0, 25)):
            near = operation.near(start, key.named("other"), size, step)
            assert operation.supports(near, size).all()
            assert all(
                field.shape == (40, 25) and field.dtype == own.dtype
                for field, own in zip(near, drawn, strict=True)
            )
    for field in drawn._fields:  # what draws vary, proposals vary
        if (getattr(drawn, field) != getattr(drawn, field)[0, 0]).any():
            assert (
                getattr(operation.near(drawn, key, size, 0.3), field) != getattr(drawn, field)
            ).any(), field


def test_a_small_step_stays_near():
    key, size = Key(1).at(torch.arange(2000)), (96, 96)
    for operation in (ResizedCrop(), ColorJitter(), GaussianBlur(sigma=(0.1, 2.0))):
        drawn = operation.draw(key, size)
        near = operation.near(drawn, key, size, 0.02)
        for name, old, new in zip(drawn._fields, drawn, near, strict=True):
            if name in ("on", "order"):
                assert 0.005 < (new != old).double().mean() < 0.04, name
            else:
                low, high = (0, 96) if isinstance(drawn, Box) else operation.intervals()[name]
                assert 0.005 < ((new - old) / (high - low)).square().mean().sqrt() < 0.05, name


@given(
    st.floats(0.02, 1),
    st.floats(0.02, 1),
    st.floats(-1.2, 1.2),
    st.floats(-1.2, 1.2),
    st.sampled_from([(5, 5), (4, 7)]),
)
@settings(max_examples=12)
def test_sides_in_the_support_are_those_a_linear_program_finds_an_area_and_an_aspect_for(
    a, b, c, d, size
):
    scale, ratio = tuple(sorted((a, b))), tuple(sorted((math.exp(c), math.exp(d))))
    crop = ResizedCrop(scale, ratio)
    for h in range(1, size[0] + 1):
        for w in range(1, size[1] + 1):
            # unknown: log height, log width before rounding, and the room t that is left to every
            # bound
            rows = [
                (1, 0, h + 0.5),
                (-1, 0, 1 / (h - 0.5)),
                (0, 1, w + 0.5),
                (0, -1, 1 / (w - 0.5)),
            ]
            area = [s * size[0] * size[1] for s in scale]
            rows += [
                (1, 1, area[1]),
                (-1, -1, 1 / area[0]),
                (-1, 1, ratio[1]),
                (1, -1, 1 / ratio[0]),
            ]
            limits = [math.log(row[2]) for row in rows]
            room = -linprog(
                [0, 0, -1],
                A_ub=[[u, v, 1] for u, v, _ in rows],
                b_ub=limits,
                bounds=[(None, None)] * 3,
            ).fun
            if abs(room) > 1e-5:
                box = Box(*(torch.tensor([float(side)]) for side in (size[0] - h, 0, h, w)))
                central = crop._central(*size) == (size[0] - h, 0, h, w)
                assert bool(crop.supports(box, size)) == (room > 0) or (central and room < 0), (
                    h,
                    w,
                    room,
                )


@pytest.mark.parametrize(
    ("operation", "field", "value"),
    [
        (ResizedCrop(), "top", 0.5),
        (ResizedCrop(), "height", 20.5),
        (ResizedCrop(), "left", 31.0),
        (ResizedCrop(), "top", -1.0),
        (ResizedCrop(), "width", 1.0),
        (ColorJitter(), "brightness", 0.59),
        (ColorJitter(), "hue", -0.11),
        (ColorJitter(), "order", 24),
        (ColorJitter(p=1.0), "on", False),
        (GaussianBlur(), "sigma", 0.9),
        (GaussianBlur(p=0.0), "on", True),
        (Grayscale(p=1.0), "on", False),
        (HorizontalFlip(p=0.0), "on", True),
    ],
)
def test_what_cannot_be_drawn_is_outside_the_support(operation, field, value):
    drawn = operation.draw(Key(0).at(torch.arange(9)), (32, 32))
    other = drawn._replace(**{field: torch.full_like(getattr(drawn, field), value)})
    assert not operation.supports(other, (32, 32)).any()


def test_the_central_box_is_in_the_support_where_draws_can_fail_to_fit():
    whole = Box(*(torch.tensor([side]) for side in (0.0, 0.0, 20.0, 20.0)))
    assert ResizedCrop().supports(whole, (20, 20)).all()
    assert not ResizedCrop(scale=(0.08, 0.5)).supports(whole, (20, 20)).any()
    # 28 pixels wide at least: always the central box
    wide = ResizedCrop(scale=(1.0, 1.0), ratio=(2.0, 3.0))
    box = wide.draw(Key(0).at(torch.arange(1)), (20, 20))
    assert wide.supports(box, (20, 20)).all()
    assert not wide.supports(box._replace(top=box.top + 1), (20, 20)).any()


@pytest.mark.parametrize("size", [(9, 9), (33, 20), (96, 96)])
def test_unchanged_parameters_leave_images_as_they_are(size):
    images = torch.rand(6, 3, *size, generator=torch.Generator().manual_seed(0))
    images[0], images[1], images[2] = 0.0, 1.0, images[2, :1]
    for operation in OPERATIONS:
        same = operation.unchanged((6,), size)
        torch.testing.assert_close(operation.apply(images, same), images, rtol=0, atol=5e-6)
        outside = getattr(operation, "p", 0.0) == 1 and not isinstance(operation, ColorJitter)
        if isinstance(operation, ResizedCrop):
            outside = (
                operation.scale[1] < 1
                or not operation.ratio[0] <= 1 <= operation.ratio[1]
                or size == (33, 20)
            )
        assert operation.supports(same, size).all() != outside, operation
    alone = Augmentation(jitter_p=1.0).drawn(
        torch.arange(6), torch.zeros(6, dtype=torch.int64), size=size
    )
    torch.testing.assert_close(
        Augmentation(jitter_p=1.0).apply(images, alone)[:, 0], images, rtol=0, atol=5e-6
    )


def test_one_drawn_view_of_each_image_is_that_of_the_grid():
    augmentation, index, view = (
        Augmentation(),
        torch.tensor([3, 0, 7, 3]),
        torch.tensor([2, 0, 1, 0]),
    )
    images = torch.rand(9, 3, 16, 16)
    views = augmentation.views(images, n_views=3, seed=8, identity=True)
    drawn = augmentation.drawn(index, view, size=(16, 16), seed=8)
    torch.testing.assert_close(
        augmentation.apply(images[index], drawn)[:, 0], views[index, view], rtol=0, atol=5e-6
    )
    plain = augmentation.drawn(index, view, size=(16, 16), seed=8, identity=False)
    assert torch.equal(
        augmentation.apply(images[index], plain)[:, 0],
        augmentation.views(images, n_views=3, seed=8)[index, view],
    )


def test_a_view_for_each_image_is_asked_for(unchecked):
    with pytest.raises(ValueError, match=r"each of 3 images, but has the shape \(2,\)"):
        Augmentation("a").drawn(torch.arange(3), torch.arange(2), size=(8, 8))


@given(
    st.sampled_from(["", "a", "b", "c", "d", "e", "ad", "abcde"]),
    st.integers(0, 99),
    st.integers(0, 2),
    st.integers(1, 9),
    st.booleans(),
)
@settings(max_examples=40)
def test_it_never_grows_and_is_the_distance_of_views_that_could_have_been_drawn(
    letters, seed, rounds, proposals, whole
):
    augmentation, size = Augmentation(letters, jitter_p=0.9), (13, 11)
    x, y = smooth(4, *size, seed), (smooth(4, *size, seed + 50) * 255).to(torch.uint8)
    if whole:
        y = y.float() / 255
    start = draws(augmentation, 4, size, view=seed % 2)  # view 0 is the image itself
    found = sharpen(augmentation, x, y, *start, rounds=rounds, proposals=proposals, seed=seed)
    assert (found.distance <= found.start).all()
    assert found.distance.dtype == torch.float64
    np.testing.assert_allclose(found.distance, of_views(augmentation, x, y, found), rtol=1e-12)
    np.testing.assert_allclose(
        found.start,
        of_views(augmentation, x, y, Sharpened(found.start, found.start, *start)),
        rtol=1e-12,
    )
    for now, before in ((found.x, start[0]), (found.y, start[1])):
        assert list(now) == list(before)
        same = torch.ones(4, dtype=torch.bool)
        for name, fields in now.items():
            assert type(fields) is type(before[name])
            same &= torch.stack(
                [a[:, 0] == b[:, 0] for a, b in zip(fields, before[name], strict=True)]
            ).all(0)
        assert (same | (not letters or supported(augmentation, now, size))).all()


def test_an_image_itself_that_no_draw_gives_is_kept_as_it_is_or_left_for_one_that_is_drawn():
    """y is x brighter, and no view of the support is near: descent from the images themselves would
    end outside the support.
    """
    jitter, size = ColorJitter(p=1.0), (16, 16)
    for more in (ResizedCrop(scale=(0.08, 0.3)), HorizontalFlip(p=1.0), Grayscale(p=1.0)):
        augmentation, x = Augmentation((more, jitter)), 0.8 * smooth(6, *size)
        y = (x * 1.02).clamp(0, 1)
        start = draws(augmentation, 6, size, view=0)
        found = sharpen(augmentation, x, y, *start, rounds=4)
        for now, before in ((found.x, start[0]), (found.y, start[1])):
            same = [
                (a == b)[:, 0] for name in now for a, b in zip(now[name], before[name], strict=True)
            ]
            assert (torch.stack(same).all(0) | supported(augmentation, now, size)).all(), more


@pytest.mark.parametrize("letters", ["abcde", "ac"])
@pytest.mark.parametrize("size", [(16, 16), (64, 200)])
def test_a_pair_gives_the_same_alone_bit_for_bit_in_any_batch_and_number_of_threads(
    monkeypatch, letters, size
):
    augmentation = Augmentation(
        letters
        if letters == "ac"
        else (*Augmentation("acde").composed, GaussianBlur(sigma=(0.3, 1.5)))
    )
    pairs = 5 if size[0] == 16 else 3
    x, y = smooth(pairs, *size, 3), smooth(pairs, *size, 9)
    start = draws(augmentation, pairs, size)
    more = {"rounds": 2, "proposals": 5, "seed": 4}
    found = sharpen(augmentation, x, y, *start, **more)
    assert (found.distance < found.start).all()
    one = slice(1, 2)
    own = [{name: type(p)(*(f[one] for f in p)) for name, p in side.items()} for side in start]
    others = [(sharpen(augmentation, x[one], y[one], *own, index=torch.tensor([1]), **more), one)]
    torch.set_num_threads(2)
    try:
        others.append(
            (sharpen(augmentation, x[one], y[one], *own, index=torch.tensor([1]), **more), one)
        )
        monkeypatch.setattr(search, "BATCH", {"cpu": 2 * 4 * x[0].numel() * 5})
        others.append((sharpen(augmentation, x, y, *start, **more), slice(None)))
    finally:
        torch.set_num_threads(1)
    for other, rows in others:
        assert torch.equal(other.distance, found.distance[rows])
        for name, fields in other.x.items():
            assert all(
                torch.equal(a, b[rows]) for a, b in zip(fields, found.x[name], strict=True)
            ), name
    if letters != "ac":
        assert not torch.equal(
            sharpen(augmentation, x, y, *start, **{**more, "seed": 5}).distance, found.distance
        )


def test_it_finds_the_colours_an_image_was_given():
    augmentation = Augmentation((ColorJitter(p=1.0),))
    x = smooth(12, 16, 16)
    y = augmentation.views(x, n_views=1, seed=77)[:, 0].clamp(0, 1)
    sampled, *start = best_of(augmentation, x, y)
    found = sharpen(augmentation, x, y, *start)
    torch.testing.assert_close(found.start, sampled, rtol=0, atol=1e-5)
    assert (found.distance / sampled).median() < 0.2


def test_factors_at_the_ends_of_their_ranges_do_not_hinder_the_others():
    """y is brighter than any factor reaches, so brightness goes to its end, where saturation alone
    is left to find.
    """
    jitter = ColorJitter(brightness=0.4, contrast=0.0, saturation=0.9, hue=0.0, p=1.0)
    augmentation, x = Augmentation((jitter,)), 0.2 * smooth(6, 16, 16)
    same = jitter.unchanged((6, 1), (16, 16))
    y = augmentation.apply(
        x,
        {
            "ColorJitter": same._replace(
                brightness=torch.full((6, 1), 3.0), saturation=torch.full((6, 1), 1.5)
            )
        },
    )[:, 0]
    start = [{"ColorJitter": same} for _ in range(2)]
    found = sharpen(augmentation, x, y, *start, rounds=6, proposals=1)
    factors = torch.cat([found.x["ColorJitter"].brightness, found.y["ColorJitter"].brightness], 1)
    torch.testing.assert_close(factors, torch.tensor([1.4, 0.6]).expand(6, 2), rtol=0, atol=1e-6)
    # by hand: over a fine grid of both saturations at these ends
    grid = torch.linspace(0.1, 1.9, 61)
    a, b = (
        jitter.unchanged((6, 61), (16, 16))._replace(
            brightness=torch.full((6, 61), f), saturation=grid.expand(6, 61)
        )
        for f in (1.4, 0.6)
    )
    views = [
        augmentation.apply(image, {"ColorJitter": p}).flatten(2).double()
        for image, p in ((x, a), (y, b))
    ]
    ratio = found.distance / torch.cdist(*views).flatten(1).amin(1)
    assert ratio.median() < 1.001
    assert ratio.max() < 1.1  # a saturation held at black or white has a valley of its own


def test_it_finds_the_common_part_of_two_crops_and_a_flip_between_them():
    picture = smooth(8, 32, 32)
    # alike to the bit in 20 x 18 pixels
    x, y = picture[:, :, :24, :24], picture[:, :, 4:28, 6:30].flip(-1)
    augmentation = Augmentation("ae")
    sampled, *start = best_of(augmentation, x, y)
    found = sharpen(augmentation, x, y, *start, rounds=24)
    assert (found.distance / sampled).median() < 0.35
    assert (found.x["HorizontalFlip"].on ^ found.y["HorizontalFlip"].on).any()


class Shade(NamedTuple):
    factor: torch.Tensor


@dataclass(frozen=True)
class Veil:
    """An operation of one's own that says nothing about its support."""

    def draw(self, key, size):
        return Shade(key.named("Veil").uniform(0.5, 1.0))

    def apply(self, images, parameters):
        return images * parameters.factor[:, None, None, None]


@pytest.mark.parametrize("proposals", [3, 20])
def test_an_operation_of_ones_own_is_searched_by_its_draws(proposals):
    augmentation, x = Augmentation((HorizontalFlip(), Veil())), 0.1 + 0.9 * smooth(10, 16, 16)
    y = 0.75 * x
    start = [
        augmentation.drawn(torch.arange(10), torch.full((10,), v), size=(16, 16), identity=False)
        for v in (1, 2)
    ]
    found = sharpen(augmentation, x, y, *start, rounds=12, proposals=proposals)
    assert (found.distance / found.start).median() < 0.2
    assert all(
        ((p["Veil"].factor >= 0.5) & (p["Veil"].factor < 1)).all() for p in (found.x, found.y)
    )
    with pytest.raises(
        ValueError,
        match=r"Veil does not say which parameters leave an image as it is.*Pass identity=False",
    ):
        augmentation.drawn(torch.arange(2), torch.tensor([0, 1]), size=(16, 16))
    assert augmentation.drawn(torch.arange(2), torch.tensor([3, 1]), size=(16, 16))[
        "Veil"
    ].factor.shape == (2, 1)


def test_no_gradient_leaks_and_nothing_given_is_written_to():
    augmentation, x, y = (
        Augmentation("ad", jitter_p=1.0),
        smooth(3, 16, 16, 1).requires_grad_(),
        smooth(3, 16, 16, 2),
    )
    start = draws(augmentation, 3)
    before = [
        {name: type(p)(*(f.clone() for f in p)) for name, p in side.items()} for side in start
    ]
    plain = sharpen(augmentation, x, y, *start, rounds=2)
    for side, old in zip(start, before, strict=True):
        assert all(
            torch.equal(a, b) for name in old for a, b in zip(side[name], old[name], strict=True)
        )
    start[0]["ColorJitter"].contrast.requires_grad_()
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            enabled = torch.is_grad_enabled()
            found = sharpen(augmentation, x, y, *start, rounds=2)
            assert torch.is_grad_enabled() == enabled
        assert torch.equal(found.distance, plain.distance)
        assert not any(
            tensor.requires_grad
            for tensor in (found.distance, found.start, *(f for p in found.x.values() for f in p))
        )
    assert x.grad is None


def test_no_pairs_have_no_distances():
    augmentation, none = Augmentation("ad"), torch.rand(0, 3, 16, 16)
    found = sharpen(augmentation, none, none, *draws(augmentation, 0))
    assert found.distance.shape == found.start.shape == (0,)
    assert found.x["ResizedCrop"].top.shape == (0, 1)


@given(st.integers(1, 10), st.integers(0, 99))
def test_elimination_solves(n, seed):
    generator = torch.Generator().manual_seed(seed)
    root, b = (
        torch.randn(3, 2, *shape, generator=generator, dtype=torch.float64)
        for shape in ((n, n), (n,))
    )
    A = root @ root.mT + torch.eye(n)
    torch.testing.assert_close(search._solve(A, b), torch.linalg.solve(A, b))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"y": torch.rand(2, 3, 16, 16)},
            r"have one shape, not \(3, 3, 16, 16\) and \(2, 3, 16, 16\)",
        ),
        (
            {"x": torch.rand(3, 1, 16, 16), "y": torch.rand(3, 1, 16, 16)},
            r"\(N, 3, H, W\), not \(3, 1, 16, 16\)",
        ),
        (
            {"start_x": {"HorizontalFlip": Coin(torch.ones(3, 2))}},
            r"start_x .*3 images, \(3, 1\), not of shape \(3, 2\)",
        ),
        (
            {"start_y": draws(Augmentation("ad"), 2)[0]},
            r"start_y .*3 images, \(3, 1\), not .*\(2, 1\)",
        ),
        (
            {"start_y": draws(Augmentation("a"), 3)[0]},
            r"Parameters are of \['ResizedCrop'\], but the augmentation is",
        ),
        ({"rounds": -1}, r"rounds is at least 0 and proposals at least 1, not -1 and 8"),
        ({"proposals": 0}, r"rounds is at least 0 and proposals at least 1, not 8 and 0"),
        ({"index": torch.arange(4)}, r"each of 3 pairs, but has the shape \(4,\)"),
        ({"y": torch.rand(3, 3, 16, 16) * 255}, r"Divide by 255"),
    ],
)
def test_what_does_not_fit_is_refused(change, sentence, unchecked):
    start = draws(Augmentation("ad"), 3)
    arguments = {
        "x": torch.rand(3, 3, 16, 16),
        "y": torch.rand(3, 3, 16, 16),
        "start_x": start[0],
        "start_y": start[1],
        **change,
    }
    with pytest.raises(ValueError, match=sentence):
        sharpen(Augmentation("ad"), **arguments)


def test_the_names_of_the_search_are_no_operations_in_call_notation():
    for text, sentence in (
        ("sharpen()", "names no class"),
        ("Sharpened()", "names no class"),
        ("Sharpened(1, 2, {}, {})", "names no class"),
    ):
        with pytest.raises(SettingsError, match=sentence):
            Augmentation((text,))
    assert make("ResizedCrop(scale=(0.2, 1.0))", augment, object) == ResizedCrop(scale=(0.2, 1.0))


@pytest.mark.parametrize(("letters", "most"), [("ad", 0.6), ("ac", 0.8), ("bc", 1.0)])
def test_real_images_come_nearer_than_sampled_views(real_images, letters, most):
    images = data.load("cifar10", root=real_images).images[:16]
    augmentation = Augmentation(letters)
    x, y = images[:8], images[8:]
    sampled, *start = best_of(augmentation, x, y)
    found = sharpen(augmentation, x, y, *start)
    assert (found.distance / sampled).mean() <= most + 1e-6
    assert supported(augmentation, found.x, (32, 32)).all()
