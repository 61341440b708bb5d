import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from sklearn.neighbors import NearestCentroid

from marginlab.evaluation import nearest_center_error
from marginlab.testing.memory import peak_of


@given(st.integers(0, 2**20), st.integers(1, 4), st.booleans(), st.floats(0.1, 3))
def test_the_error_is_that_of_the_nearest_mean_over_views(seed, V, normalize, spread):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(3, 5, generator=generator).double()
    labels, asked = torch.arange(12) % 3 * 2, torch.arange(30) % 3 * 2  # classes 0, 2, 4
    features = (
        centers[labels // 2][:, None] + spread * torch.randn(12, V, 5, generator=generator).double()
    )
    queries = centers[asked // 2] + spread * torch.randn(30, 5, generator=generator).double()
    found = nearest_center_error(features, labels, queries, asked, normalize=normalize)
    z, q = (
        torch.nn.functional.normalize(x, dim=-1) if normalize else x for x in (features, queries)
    )
    peer = NearestCentroid().fit(z.flatten(0, 1).numpy(), labels.repeat_interleave(V).numpy())
    assert found.error == pytest.approx(1 - peer.score(q.numpy(), asked.numpy()))
    assert found.standard_error == pytest.approx((found.error * (1 - found.error) / 30) ** 0.5)
    assert found.n == 30


def test_centers_are_means_over_views_and_not_over_clean_images():
    views = torch.tensor([[[1.0], [5.0]], [[6.0], [6.0]]])  # centers 3 and 6, first views 1 and 6
    labels = torch.tensor([0, 1])
    queries = torch.tensor([[4.0], [4.6]])
    assert nearest_center_error(views, labels, queries, labels, normalize=False).error == 0
    assert nearest_center_error(views[:, :1], labels, queries, labels, normalize=False).error == 0.5


def test_bad_input_is_refused(unchecked):
    views, labels = torch.randn(4, 2, 3), torch.tensor([0, 0, 2, 2])
    for arguments, sentence in (
        (
            (views, labels, torch.randn(2, 3), torch.tensor([0, 1])),
            r"classes \[1\] that no training image has",
        ),
        ((views[:, 0], labels, torch.randn(1, 3), labels[:1]), "features\\[:, None\\]"),
        ((views, labels, torch.randn(1, 2), labels[:1]), r"shape \(M, 3\), .* \(1, 2\)"),
        ((views, labels, torch.randn(20, 3), torch.arange(20) + 9), r"13\] and 15 more that no"),
        ((views, labels[:2], torch.randn(1, 3), labels[:1]), "4 rows"),
        ((views / 0, labels, torch.randn(1, 3), labels[:1]), "not finite"),
    ):
        with pytest.raises(ValueError, match=sentence):
            nearest_center_error(*arguments)


@given(st.integers(0, 2**20), st.sampled_from([100, 2000, 2**25]), st.booleans())
def test_blocks_change_nothing_and_the_first_of_equal_centers_is_taken(seed, budget, tied):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(15, 2, 3, generator=generator).double()
    queries = torch.randn(20, 3, generator=generator).double()
    if tied:  # exact distances, and many of them equal
        features, queries = features.sign(), queries.sign()
    labels, asked = torch.arange(15) * 5, torch.arange(20) % 15 * 5
    found = nearest_center_error(features, labels, queries, asked, normalize=False, budget=budget)
    apart = (queries[:, None] - features.mean(1)[None]).square().sum(-1)
    near = [next(k for k, d in enumerate(row) if d <= row.min() + 1e-12) for row in apart]
    assert found.error == pytest.approx(float((torch.tensor(near) * 5 != asked).double().mean()))
    again = nearest_center_error(
        features.numpy(), labels.numpy(), queries.numpy(), asked.numpy(), normalize=False
    )
    assert again == found


@pytest.mark.parametrize("normalize", [True, False])
def test_scores_of_all_classes_are_not_held(normalize):
    n, budget = 3000, 2**20
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(n) * 100_000

    def work():
        more = {"normalize": normalize, "budget": budget}
        return nearest_center_error(x[:, None], labels, x, labels, **more)

    assert work().error == 0
    assert peak_of(work) < 8 * budget  # of 72 MB of scores; centers in float64 are 192 kB


def test_features_of_any_finite_length_have_a_direction():
    x = torch.randn(30, 1, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 5
    whole = nearest_center_error(x, labels, x[:, 0], labels)
    assert nearest_center_error(x * 1e30, labels, x[:, 0] * 1e-30, labels) == whole
