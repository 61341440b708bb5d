"""Purification: the rule against a loop, planted noise, restarts, ranks, sets that do not fit."""

import dataclasses
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from planted import D, Pixels, classifier, planted

from marginlab.data.streaming import Streamed
from marginlab.losses import PartialFC
from marginlab.purify import judged, noise_shares, purify, streaming


@given(data=st.data())
def test_the_rule_is_that_of_a_loop(data):
    N, K, C = (data.draw(st.integers(1, m)) for m in (12, 3, 4))
    values = st.sampled_from([-0.5, 0.0, 0.2, 0.3, 0.9])
    cosines = [data.draw(st.lists(values, min_size=K, max_size=K)) for _ in range(N)]
    labels = data.draw(st.lists(st.integers(0, C - 1), min_size=N, max_size=N))
    found = judged(
        torch.tensor(cosines, dtype=torch.float64),
        torch.tensor(labels),
        tuple("abcd"[:C]),
        max_angle=75.0,
    )
    nearest = [row.index(max(row)) for row in cosines]
    for c in range(C):
        votes = [
            sum(n == k and label == c for n, label in zip(nearest, labels, strict=True))
            for k in range(K)
        ]
        assert found.votes[c].tolist() == votes
        assert int(found.dominant[c]) == votes.index(max(votes))
    for i, (row, label) in enumerate(zip(cosines, labels, strict=True)):
        cosine = row[int(found.dominant[label])]
        assert bool(found.keep[i]) == (cosine > math.cos(math.radians(75)))
        assert float(found.angle[i]) == pytest.approx(math.degrees(math.acos(cosine)))
    assert found.nearest.tolist() == nearest
    gone = [
        c for c in range(C) if c in labels and not bool(found.keep[torch.tensor(labels) == c].any())
    ]
    assert found.vanished == tuple("abcd"[c] for c in gone)


def test_the_rule_is_strict():
    limit = math.cos(math.radians(60.0))
    cosines = torch.tensor([[limit], [math.nextafter(limit, 1)]], dtype=torch.float64)
    assert judged(cosines, torch.tensor([0, 1]), ("a", "b"), max_angle=60.0).keep.tolist() == [
        False,
        True,
    ]


@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("max_angle", [60.0, "mixture"])
def test_planted_noise_is_found(K, max_angle):
    noisy, centers = planted()
    head, before = classifier(centers[:, :K]), noisy.images.digest()
    found = purify(Pixels(), noisy.images, max_angle=max_angle, head=head)
    assert torch.equal(found.keep, ~noisy.flipped)
    assert found.threshold.separated in (None, True)
    left = found.apply(noisy.images)
    assert torch.equal(left.labels, noisy.truth[~noisy.flipped])
    assert noisy.images.digest() == before
    torch.testing.assert_close(found.dominant_centers(head.centers), centers[:, 0])
    shares = noise_shares(found, noisy.flipped)
    assert shares.dominant_clean == pytest.approx(0.7)
    assert sum(shares) == pytest.approx(1)


def test_a_class_that_vanishes_is_named_and_the_others_are_numbered_anew():
    noisy, centers = planted(share=0.0)
    centers = centers.clone()
    centers[2] *= -1
    found = purify(Pixels(), noisy.images, head=classifier(centers[:, :1]))
    assert found.vanished == ("class 2",)
    left = found.apply(noisy.images)
    assert left.classes == tuple(f"class {c}" for c in (0, 1, 3, 4, 5))
    assert sorted(set(left.labels.tolist())) == [0, 1, 2, 3, 4]
    assert len(found.dominant_centers(centers[:, :1])) == 5
    with pytest.raises(ValueError, match="were judged"):
        found.apply(left)


def files_in(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_stopped_pass_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", 64)
    noisy, centers = planted()
    head = classifier(centers)
    whole = purify(Pixels(), noisy.images, head=head, batch=10, folder=tmp_path / "whole")

    def stop(done, _):
        if done >= 128:
            raise KeyboardInterrupt

    model = Pixels()
    with pytest.raises(KeyboardInterrupt):
        purify(model, noisy.images, head=head, batch=10, folder=tmp_path / "cut", say=stop)
    assert model.seen == 128
    again = purify(model, noisy.images, head=head, batch=10, folder=tmp_path / "cut")
    assert model.seen == 300
    for one in (again, purify(model, noisy.images, head=head, batch=10, folder=tmp_path / "cut")):
        assert torch.equal(one.angle, whole.angle)
        assert torch.equal(one.keep, whole.keep)
    assert model.seen == 300
    assert files_in(tmp_path / "whole") == files_in(tmp_path / "cut")
    with pytest.raises(ValueError, match="other images, another model"):
        purify(model, noisy.images, head=head, batch=20, folder=tmp_path / "cut")
    other = classifier(centers * 2)
    with pytest.raises(ValueError, match="other images, another model"):
        purify(model, noisy.images, head=other, batch=10, folder=tmp_path / "cut")
    (tmp_path / "cut" / "cosines-000001.npy").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"cosines-000001.npy cannot be read"):
        purify(model, noisy.images, head=head, batch=10, folder=tmp_path / "cut")


def test_streamed_images_are_judged_as_held_ones():
    noisy, centers = planted()
    held, head = noisy.images, classifier(centers)
    streamed = dataclasses.replace(
        held,
        images=Streamed(held.images, torch.arange(300), 10**6, 0),
        fingerprints=torch.arange(300),
    )
    a, b = (purify(Pixels(), images, head=head, batch=32) for images in (held, streamed))
    assert torch.equal(a.angle, b.angle)


def on_a_rank(group, rank, folder):
    streaming.BLOCK = 64
    noisy, centers = planted()
    head = PartialFC(6, D, subcenters=2, group=group)
    head.load_centers(centers)
    model = Pixels()
    found = purify(model, noisy.images, head=head, batch=10, folder=folder)
    return found.angle, found.nearest, found.keep, model.seen


@pytest.mark.xdist_group("ranks")
def test_ranks_share_the_work_and_find_the_same(pool, tmp_path):
    single = pool.run(1, on_a_rank, str(tmp_path / "one"))[0]
    for n in (2, 4):
        answers = pool.run(n, on_a_rank, str(tmp_path / str(n)))
        assert sum(answer[3] for answer in answers) == 300
        for answer in answers:
            for a, b in zip(answer[:3], single[:3], strict=True):
                assert torch.equal(a, b)
        assert files_in(tmp_path / "one") == files_in(tmp_path / str(n))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_angle": 0}, "between 0 and 180"),
        ({"max_angle": "mix"}, "between 0 and 180"),
        ({"batch": 0}, "1 image or more"),
        ({"head": None}, "no class centers"),
        ({"head": "five"}, "trained on 5"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_folder_is_made(tmp_path, change, said):
    noisy, centers = planted()
    head = classifier(centers[:5]) if change.get("head") == "five" else classifier(centers)
    arguments = {"head": head} | {k: v for k, v in change.items() if v != "five"}
    with pytest.raises(ValueError, match=said):
        purify(Pixels(), noisy.images, folder=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_other_names_are_refused():
    noisy, centers = planted()
    model = Pixels()
    model.classes = ("class 1", "class 0", *noisy.images.classes[2:])
    with pytest.raises(ValueError, match="Class 0 of planted is 'class 0'"):
        purify(model, noisy.images, head=classifier(centers))
