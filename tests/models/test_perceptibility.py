"""Perceptibility attention and quality head: the blocks by hand, heat maps, batches, gradients."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from marginlab.models import (
    Backbone,
    IResNet,
    OwnBackbone,
    PerceptibilityAttention,
    QualityHead,
)


def test_the_attention_by_hand():
    torch.manual_seed(0)
    attention = PerceptibilityAttention(16, (3, 5), 4).double()
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    first, _, second = attention.channel.mlp
    assert first.out_features == 2

    def mlp(z):
        return second(torch.relu(first(z)))

    weight = torch.sigmoid(mlp(x.flatten(2).mean(2)) + mlp(x.flatten(2).amax(2)))
    y = x * weight[:, :, None, None]
    both = torch.stack([y.mean(1), y.amax(1)], 1)
    places = torch.sigmoid(attention.spatial.convolution(both))
    expected = attention.linear((y * places).flatten(1))
    torch.testing.assert_close(attention(x), expected)
    same = attention.heat_map(x, (3, 5))
    torch.testing.assert_close(same, places[:, 0])
    large = attention.heat_map(x, (30, 50))
    assert bool(((large > 0) & (large < 1)).all())
    assert bool((large <= same.max() + 1e-12).all())
    assert PerceptibilityAttention(256, (1, 1), 4).channel.mlp[0].out_features == 16


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_scores_and_embeddings_do_not_depend_on_the_batch(seed, rows):
    torch.manual_seed(seed)
    attention = PerceptibilityAttention(8, (4, 4), 6).double().eval()
    head = QualityHead(8, (4, 4)).double().eval()
    x = torch.randn(rows + 3, 8, 4, 4, dtype=torch.float64)
    for part in (attention, head, lambda z: attention.heat_map(z, (16, 16))):
        torch.testing.assert_close(part(x)[:rows], part(x[:rows]), rtol=0, atol=1e-12)


def test_the_head_drops_in_training_only_and_both_learn():
    torch.manual_seed(0)
    head, attention = QualityHead(8, (2, 2), dropout=0.5), PerceptibilityAttention(8, (2, 2), 3)
    x = torch.rand(4, 8, 2, 2, requires_grad=True)
    assert not torch.equal(head(x), head(x))
    (head(x).sum() + attention(x).sum()).backward()
    assert all(p.grad is not None for part in (head, attention) for p in part.parameters())
    assert float(x.grad.norm()) > 0
    head.eval()
    assert torch.equal(head(x), head.linear(x.flatten(1))[:, 0])
    with torch.autocast("cpu", torch.bfloat16):
        assert head(x).dtype == attention(x).dtype == torch.float32


def test_maps_of_another_shape_are_refused():
    for part in (QualityHead(8, (2, 2)), PerceptibilityAttention(8, (2, 2), 3)):
        with pytest.raises(ValueError, match="images of another size or another backbone"):
            part(torch.rand(1, 8, 2, 3))
    with pytest.raises(ValueError, match="dropout"):
        QualityHead(8, (2, 2), dropout=1.0)
    with pytest.raises(ValueError, match="at least 1 channel"):
        QualityHead(8, (0, 2))


class Own(nn.Module):
    dim = 4

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 8, stride=8)

    def feature_map(self, images):
        return self.convolution(images)

    def forward(self, images):
        return self.convolution(images).mean((2, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Backbone("resnet18", stem="strided", width=0.125),
        lambda: IResNet(18, width=0.125, image_size=32),
        lambda: OwnBackbone(Own()),
    ],
)
def test_a_backbone_gives_map_and_features_in_one_pass(make):
    torch.manual_seed(0)
    backbone, images = make().eval(), torch.rand(2, 3, 32, 32)
    maps, features = backbone.map_and_features(images)
    torch.testing.assert_close(maps, backbone.feature_map(images))
    torch.testing.assert_close(features, backbone(images))
