"""Alignment by five points: similarities recovered, no reflections, landmarks on the template."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from marginlab.data import FACE_TEMPLATE, align_faces, similarity_transform

TEMPLATE = torch.tensor(FACE_TEMPLATE, dtype=torch.float64)


def moved(points, angle, scale, shift):
    turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return points @ (scale * torch.tensor(turn, dtype=points.dtype)).T + torch.tensor(
        shift, dtype=points.dtype
    )


def umeyama(points, targets):
    """Umeyama's theorem by a singular value decomposition, in numpy: (2, 3)."""
    mean, aim = points.mean(0), targets.mean(0)
    u, d, v = np.linalg.svd((targets - aim).T @ (points - mean) / len(points))
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    turn = u @ np.diag(sign) @ v * (d * sign).sum() / ((points - mean) ** 2).sum(1).mean()
    return np.column_stack((turn, aim - turn @ mean))


numbers = st.floats(-100, 100)


@given(st.floats(-3.1, 3.1), st.floats(0.05, 20), numbers, numbers)
def test_a_known_similarity_is_recovered(angle, scale, right, down):
    (found,) = similarity_transform(TEMPLATE[None], moved(TEMPLATE, angle, scale, (right, down)))
    expected = moved(torch.tensor([[1.0, 0], [0, 1], [0, 0]]).double(), angle, scale, (right, down))
    columns = torch.stack((expected[0] - expected[2], expected[1] - expected[2], expected[2]), 1)
    torch.testing.assert_close(found, columns, rtol=1e-10, atol=1e-9)


@given(st.integers(0, 2**31), st.integers(2, 7), st.booleans())
def test_it_is_umeyamas_also_of_reflected_points(seed, count, reflected):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(3, count, 2, generator=generator, dtype=torch.float64)
    targets = points + 0.3 * torch.randn(points.shape, generator=generator, dtype=torch.float64)
    if reflected:
        targets = targets * torch.tensor([-1.0, 1.0])
    found = similarity_transform(points, targets)
    for mine, here, there in zip(found, points, targets, strict=True):
        expected = torch.from_numpy(umeyama(here.numpy(), there.numpy()))
        torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-8)
        assert torch.linalg.det(mine[:, :2]) >= 0


def spots(points, height, width, sigma):
    """Images with a bright spot on each of five points, the points' mean told by each color."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=points.dtype),
        torch.arange(width, dtype=points.dtype),
        indexing="ij",
    )
    away = (x - points[:, :, 0, None, None]) ** 2 + (y - points[:, :, 1, None, None]) ** 2
    return (-away / (2 * sigma**2)).exp()


@pytest.mark.parametrize("size", [112, 56])
def test_landmarks_land_on_the_template(size):
    settings = ((0.4, 1.7, (90.0, 20.0)), (-0.7, 1.2, (40.0, 110.0)), (0.0, 1.0, (5.0, 9.0)))
    landmarks = torch.stack([moved(TEMPLATE, *given) for given in settings])
    drawn = spots(landmarks, 300, 280, sigma=3.0)  # one picture for each landmark
    aligned = [
        align_faces(drawn[:, number, None].expand(-1, 3, -1, -1), landmarks, size=size)[:, 0]
        for number in range(5)
    ]
    at = torch.arange(size, dtype=torch.float64)
    for picture, aim in zip(aligned, TEMPLATE * size / 112, strict=True):
        mass = picture.sum((1, 2))
        centers = (picture.sum(1) @ at / mass, picture.sum(2) @ at / mass)
        torch.testing.assert_close(torch.stack(centers, 1), aim.expand(3, 2), rtol=0, atol=0.05)


def test_landmarks_on_the_template_leave_the_image_and_black_surrounds_it():
    images = torch.rand(2, 3, 112, 112)
    landmarks = torch.tensor([FACE_TEMPLATE, FACE_TEMPLATE])
    torch.testing.assert_close(align_faces(images, landmarks), images, rtol=0, atol=1e-4)
    shifted = align_faces(images[:, :, :, :100], landmarks + torch.tensor([10.0, 0.0]))
    torch.testing.assert_close(shifted[..., :90], images[..., 10:100], rtol=0, atol=1e-4)
    assert (shifted[..., 91:] == 0).all()
    for dtype in (torch.uint8, torch.bfloat16):
        given = (images * 255).to(torch.uint8) if dtype == torch.uint8 else images.to(dtype)
        found = align_faces(given, landmarks)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), given.float(), rtol=0, atol=0.004)


def test_what_says_nothing_is_refused():
    images, good = torch.rand(2, 3, 20, 20), torch.tensor([FACE_TEMPLATE, FACE_TEMPLATE])
    lost, one = good.clone(), good.clone()
    lost[1, 2, 0] = math.nan
    one[1] = 1e3 / 3
    with pytest.raises(ValueError, match="points of image 1 are not all finite"):
        align_faces(images, lost)
    with pytest.raises(ValueError, match="points of image 1 lie in one place"):
        align_faces(images, one)
    with pytest.raises(ValueError, match="targets are not all finite"):
        similarity_transform(good, lost[1])
    with pytest.raises(ValueError, match="at least 1 pixel on a side, not 0"):
        align_faces(images, good, size=0)
