"""Measures of directions see no length: rows beyond 1e19, subnormal ones, float64's ends."""

import pytest
import torch

from marginlab.measures import (
    Alignment,
    AngleStatistics,
    AugmentationConfusion,
    ClassDivergence,
    ClassVariance,
    Concentration,
    EffectiveRank,
    IntraAngle,
    LiDAR,
    NearestCenterMismatch,
    NeuralCollapse,
    SpectrumDecay,
    Uniformity,
)
from marginlab.measures.composed import numbers
from marginlab.theory import certify

C, D = 3, 4
MADE = {
    "Alignment": Alignment,
    "AngleStatistics": lambda: AngleStatistics(C, D),
    "AugmentationConfusion": AugmentationConfusion,
    "ClassDivergence": lambda: ClassDivergence(C, D),
    "ClassVariance": lambda: ClassVariance(C, D),
    "Concentration": lambda: Concentration(normalize=True),
    "EffectiveRank": lambda: EffectiveRank(D, True),
    "IntraAngle": lambda: IntraAngle(torch.eye(C, D)),
    "LiDAR": lambda: LiDAR(D, True),
    "NearestCenterMismatch": lambda: NearestCenterMismatch(torch.eye(C, D), True),
    "NeuralCollapse": lambda: NeuralCollapse(C, D, normalize=True),
    "SpectrumDecay": lambda: SpectrumDecay(D, (1, 3), True),
    "Uniformity": Uniformity,
}
SCALES = [
    (torch.float32, 2.0**100),
    (torch.float32, 2.0**-120),
    (torch.float64, 2.0**900),
    (torch.float64, 2.0**-900),
]


def features(dtype):
    """Numbers with few bits, which stay exact where they are subnormal."""
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(9, 2, D, generator=generator).mul(64).round().div(64)
    return f.to(dtype), torch.arange(9) % C


@pytest.mark.parametrize("name", list(MADE))
@pytest.mark.parametrize(("dtype", "scale"), SCALES, ids=lambda value: str(value))
def test_the_length_of_rows_changes_nothing(name, dtype, scale):
    f, labels = features(dtype)
    factors = torch.tensor([scale, 1.0, scale], dtype=dtype).repeat(3)[:, None, None]
    for factor in (scale, factors):
        plain, scaled = MADE[name](), MADE[name]()
        plain.update(f, labels)
        scaled.update(f * factor, labels)
        expected, found = numbers(plain.compute()), numbers(scaled.compute())
        for number, value in expected.items():
            torch.testing.assert_close(
                found[number], value, rtol=1e-6, atol=1e-6, equal_nan=True, msg=number
            )


@pytest.mark.parametrize(("dtype", "scale"), SCALES, ids=lambda value: str(value))
def test_certificates_see_no_length(dtype, scale):
    f, labels = features(dtype)
    plain, scaled = certify(f, labels), certify(f * scale, labels)
    assert [form.value for form in plain.forms] == pytest.approx(
        [form.value for form in scaled.forms], abs=1e-9
    )


@pytest.mark.parametrize("make", [lambda: EffectiveRank(D), lambda: NeuralCollapse(C, D)])
def test_moments_beyond_float64_are_refused_with_the_remedy(make):
    f, labels = features(torch.float64)
    with pytest.raises(ValueError, match="Scale them down, or give them length 1"):
        make().update(f * 1e80, labels)
