"""Theorem 2: eta in closed form against a grid, and R_eps against all forms on discrete populations
and on an analytic continuous family.
"""

import cmath
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from populations import MANY, epsilons, samples

from marginlab.theory import eta, theorem_2, theorem_2_discrete

TARGETS = [
    ((0.5, 1, 1, 1.0, 0.3), 77.76),
    ((0.5, 1, 4, 1.0, 0.3), 182.857),
    ((1.0, 2, 3, 1.0, 0.2), 53.460),
    ((1.5, 3, 2, 0.5, 0.5), 19.689),
    ((0.2, 1, 10, 1.0, 1.0), 13500.0),
]


@pytest.mark.parametrize(("at", "value"), TARGETS)
def test_eta_is_its_infimum_over_a_grid(at, value):
    epsilon, n, m, L, M = at
    c = 2 * math.sqrt(n) * L * M
    h = torch.linspace(0, min(epsilon / c, 1.0), 200_001, dtype=torch.float64)[1:-1]
    assert abs(eta(epsilon, n=n, m=m, L=L, M=M) - value) < 6e-4 * value
    forms = theorem_2(L_align=1.0, epsilon=epsilon, n=n, m=m, L=L, M=M)
    mass = (h ** (-2 * n)).clamp(min=m**2)
    for bound, grid in (
        (forms.printed, 4 * mass / (epsilon - c * h)),
        (forms.linear, 4 * mass / (epsilon - c * h).square()),
        (forms.variance, 2 * (h**-n).clamp(min=m) / (epsilon - c * h).square()),
    ):
        assert bound.right <= float(grid.min()) * (1 + 1e-12)
        assert bound.right >= float(grid.min()) * (1 - 1e-4)


def test_orders_in_epsilon():
    """For small eps eta is of order eps^-(2n+1), not 1/eps, which it is where cubes are as large as
    a discrete transformation is likely.
    """
    for n in (1, 2, 3):
        small = [theorem_2(L_align=1.0, epsilon=e, n=n, m=1, L=1.0, M=1.0) for e in (1e-3, 1e-4)]
        for form, order in (("printed", 2 * n + 1), ("linear", 2 * n + 2), ("variance", n + 2)):
            ratio = getattr(small[1], form).right / getattr(small[0], form).right
            assert abs(math.log10(ratio) - order) < 1e-6
    assert abs(eta(1e-3, n=1, m=1, L=1.0, M=1.0) - 108 / 1e-9) < 1
    assert abs(eta(2e6, n=1, m=4, L=1.0, M=1.0) / eta(1e6, n=1, m=4, L=1.0, M=1.0) - 0.5) < 1e-5
    assert eta(0.5, n=0, m=3, L=1.0, M=1.0) == 4 * 9 / 0.5
    # a constant encoder: the largest cube that counts
    assert abs(eta(0.5, n=2, m=3, L=0.0, M=1.0) - 4 * 9 / 0.5) < 1e-9


@given(
    st.floats(1e-3, 2), st.integers(0, 4), st.integers(1, 12), st.floats(1e-3, 5), st.floats(0, 1)
)
def test_the_variance_form_is_below_the_printed_one_where_that_says_something(
    epsilon, n, m, LM, share
):
    # the printed right side is `share`
    L_align = (share / eta(epsilon, n=n, m=m, L=LM, M=1.0)) ** 2
    forms = theorem_2(L_align=L_align, epsilon=epsilon, n=n, m=m, L=LM, M=1.0)
    assert abs(forms.printed.right - share) < 1e-9
    assert forms.variance.right <= forms.printed.right * (1 + 1e-9)
    assert forms.variance.right <= forms.linear.right * (1 + 1e-9)


@MANY
@given(samples(), st.data())
def test_discrete_views(sample, data):
    population, epsilon = sample.population, data.draw(epsilons(sample))
    if epsilon == 0:
        return
    forms = theorem_2_discrete(
        L_align=population.L_align,
        epsilon=epsilon,
        V=sample.pixels.shape[1],
        R_epsilon=min(population.R(epsilon), 1.0),
    )
    for bound in (forms.printed, forms.linear, forms.variance):
        assert bound.holds, bound
    assert forms.variance.right <= forms.linear.right
    assert min(forms.variance.right, 1.0) <= min(forms.printed.right, 1.0) + 1e-12


def test_the_variance_form_is_an_equality_for_two_views():
    angle = 0.3
    f = torch.tensor(
        [[[1.0, 0.0], [math.cos(angle), math.sin(angle)]], [[0.0, 1.0], [0.0, 1.0]]]
    ).double()
    gap = float((f[0, 0] - f[0, 1]).norm())
    forms = theorem_2_discrete(L_align=0.5 * gap**2 / 2, epsilon=gap, V=2)
    assert abs(forms.variance.right - 0.5) < 1e-9


@st.composite
def circles(draw):
    """Images i whose continuous views are f = exp(j (a_i + b_i theta)), theta uniform on [0, 1],
    and whose m discrete ones are at angles c_i.
    """
    m = draw(st.integers(1, 4))
    images = []
    for _ in range(draw(st.integers(1, 6))):
        tame = draw(st.booleans())
        speed = draw(st.floats(0, 0.02 if tame else 2.5))
        angles = [draw(st.floats(0, 0.02 if tame else 3.0)) for _ in range(m)]
        images.append((speed, angles))
    return m, images, draw(st.floats(0.01, 1.9))


def longest(speed, angles):
    """Largest chord between two views: of the arc [0, speed] and the points `angles`, all within
    half a circle of each other.
    """
    low, high = min(0.0, *angles), max(speed, *angles)
    return 2 * math.sin(min((high - low) / 2, math.pi / 2))


@MANY
@given(circles())
def test_continuous_views_of_an_analytic_family(family):
    m, images, epsilon = family
    if any(max(speed, *angles) > math.pi for speed, angles in images):
        raise AssertionError("chords are those of their angles only up to half a circle")
    # L M: the chord is at most speed times the difference of theta
    fastest = max(speed for speed, _ in images)
    total = 0.0
    for speed, angles in images:
        arc = (cmath.exp(1j * speed) - 1) / (1j * speed) if speed > 1e-8 else 1.0
        mean = arc / 2 + sum(cmath.exp(1j * angle) for angle in angles) / (2 * m)
        total += 2 - 2 * abs(mean) ** 2
    L_align = max(total / len(images), 0.0)
    R = sum(longest(*image) > epsilon for image in images) / len(images)
    forms = theorem_2(L_align=L_align, epsilon=epsilon, n=1, m=m, L=1.0, M=fastest, R_epsilon=R)
    for bound in (forms.printed, forms.linear, forms.variance):
        assert bound.holds, bound


def test_the_family_tests_something():
    """One image of ten whose views are an arc: the variance form certifies where the printed one
    says nothing.
    """
    speed = 1.5
    L_align = (
        2
        - 2 * abs((cmath.exp(1j * speed) - 1) / (2j * speed) + 0.5 * cmath.exp(0.75j * speed)) ** 2
    ) / 100
    forms = theorem_2(L_align=L_align, epsilon=1.2, n=1, m=1, L=1.0, M=speed, R_epsilon=0.01)
    assert forms.variance.certifies
    assert forms.variance.right < 0.1
    assert not forms.printed.certifies


def test_vacuity_at_the_scale_of_real_augmentations():
    """n = 1, LM = 1, eps = 0.5: the printed form needs L_align < 1.3e-6; the variance form 1000
    times more, 1.3e-3 or so.
    """
    assert not theorem_2(L_align=1.4e-6, epsilon=0.5, n=1, m=1, L=1.0, M=1.0).printed.certifies
    assert theorem_2(L_align=1.3e-6, epsilon=0.5, n=1, m=1, L=1.0, M=1.0).printed.certifies
    assert theorem_2(L_align=1.3e-3, epsilon=0.5, n=1, m=1, L=1.0, M=1.0).variance.certifies


def test_what_cannot_be_is_refused():
    sane = {"L_align": 0.1, "epsilon": 0.5, "n": 1, "m": 1, "L": 1.0, "M": 1.0}
    for change, words in (
        ({"L_align": -0.1}, "L_align"),
        ({"epsilon": 0.0}, "epsilon is positive"),
        ({"m": 0}, "identity"),
        ({"n": -1}, "n is finite"),
    ):
        with pytest.raises(ValueError, match=words):
            theorem_2(**sane | change)
    with pytest.raises(ValueError, match="R_epsilon is a probability"):
        theorem_2(**sane, R_epsilon=1.5)
    with pytest.raises(ValueError, match="V is positive"):
        theorem_2_discrete(L_align=0.1, epsilon=0.5, V=0)


def test_many_dimensions_say_nothing_and_say_so():
    theorem = theorem_2(L_align=1e-4, epsilon=0.5, n=64, m=1, L=10.0, M=10.0)
    assert theorem.printed.right == math.inf
    assert not theorem.variance.certifies
    assert theorem_2(L_align=0.0, epsilon=0.5, n=64, m=1, L=10.0, M=10.0).printed.right == 0.0
