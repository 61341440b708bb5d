import math

import pytest
import torch

from marginlab.margins import ArcFace
from marginlab.models import EmbeddingLayer


def test_it_is_a_linear_layer_whose_output_is_centred_and_scaled_over_the_batch():
    layer, features = EmbeddingLayer(12, 5).double(), torch.rand(9, 12, dtype=torch.float64)
    out = features @ layer.linear.weight.T
    expected = (out - out.mean(0)) / (out.var(0, correction=0) + layer.norm.eps).sqrt()
    torch.testing.assert_close(layer(features), expected)
    assert [name for name, _ in layer.named_parameters()] == ["linear.weight"]


def test_embeddings_cannot_all_point_one_way():
    layer = EmbeddingLayer(12, 5)
    features = torch.rand(40, 12) + 100 * torch.rand(12)
    directions = torch.nn.functional.normalize(layer(features), dim=1)
    assert float(directions.detach().mean(0).norm()) < 0.3


def test_a_margin_costs_a_quarter_where_all_embeddings_point_one_way():
    # why there is no shift: what the file's head says of angles t common to all embeddings and centers
    cosine = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    cost = cosine - ArcFace(0.5).value(cosine)
    torch.testing.assert_close(cost, torch.tensor([math.sin(0.5), 1 - math.cos(0.5), 1 - math.cos(0.5)], dtype=torch.float64))
    assert 0.25 < cost[1] / cost[0] < 0.26


def test_it_stays_in_float32_inside_autocast():
    layer, features = EmbeddingLayer(12, 5).eval(), torch.rand(9, 12)
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer(features)
    assert torch.equal(inside, layer(features))


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises(ValueError, match="goes from at least 1 feature"):
        EmbeddingLayer(*sizes)
