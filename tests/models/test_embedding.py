import pytest
import torch

from marginlab.models import EmbeddingLayer


def test_it_is_a_linear_layer_whose_output_is_centred_and_scaled_over_the_batch():
    layer, features = EmbeddingLayer(12, 5).double(), torch.rand(9, 12, dtype=torch.float64)
    out = features @ layer.linear.weight.T
    expected = (out - out.mean(0)) / (out.var(0, correction=0) + layer.norm.eps).sqrt()
    torch.testing.assert_close(layer(features), expected)
    with torch.no_grad():
        layer.norm.bias += torch.arange(5)
    torch.testing.assert_close(layer(features), expected + torch.arange(5))


def test_its_shift_is_learned_and_its_scale_is_not():
    layer = EmbeddingLayer(12, 5)
    layer(torch.rand(9, 12)).square().sum().backward()
    assert layer.norm.bias.grad is not None
    assert layer.norm.weight.grad is None


def test_it_stays_in_float32_inside_autocast():
    layer, features = EmbeddingLayer(12, 5).eval(), torch.rand(9, 12)
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer(features)
    assert torch.equal(inside, layer(features))


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises(ValueError, match="goes from at least 1 feature"):
        EmbeddingLayer(*sizes)
