import pytest
import torch

from marginlab.models import EmbeddingLayer


def test_it_is_a_linear_layer_whose_output_is_centred_and_scaled_over_the_batch():
    layer, features = EmbeddingLayer(12, 5).double(), torch.rand(9, 12, dtype=torch.float64)
    out = features @ layer.linear.weight.T
    expected = (out - out.mean(0)) / (out.var(0, correction=0) + layer.norm.eps).sqrt()
    torch.testing.assert_close(layer(features), expected)
    assert [name for name, _ in layer.named_parameters()] == ["linear.weight"]


def test_features_of_one_orthant_are_centred():
    features = torch.rand(40, 12) + 100 * torch.rand(12)
    directions = torch.nn.functional.normalize(EmbeddingLayer(12, 5)(features), dim=1)
    assert float(directions.detach().mean(0).norm()) < 0.3


def test_it_stays_in_float32_inside_autocast():
    layer, features = EmbeddingLayer(12, 5).eval(), torch.rand(9, 12)
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer(features)
    assert torch.equal(inside, layer(features))


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises(ValueError, match="goes from at least 1 feature"):
        EmbeddingLayer(*sizes)
