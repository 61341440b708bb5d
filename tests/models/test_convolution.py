"""Convolutions steered clear of two kernels: equal to torch's own in float64, and right where those
are wrong.
"""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from marginlab.models import Backbone
from marginlab.models.convolution import Convolution


@given(st.data())
def test_it_is_torchs_convolution(data):
    kernel = tuple(data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=2), label="kernel"))
    padding = tuple(data.draw(st.integers(0, 3), label="padding") for _ in range(2))
    dilation = tuple(data.draw(st.integers(1, 2), label="dilation") for _ in range(2))
    stride = tuple(data.draw(st.integers(1, 3), label="stride") for _ in range(2))
    # a map of one pixel, and larger ones that the kernel fits
    least = [
        max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)
    ]
    size = tuple(data.draw(st.sampled_from([low, low + 1, low + 4]), label="size") for low in least)
    groups = data.draw(st.sampled_from([1, 2]), label="groups")
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": data.draw(st.booleans(), label="bias"),
    }
    plain = nn.Conv2d(4, 6, kernel, **options).double()
    ours = nn.Sequential(nn.Conv2d(4, 6, kernel, **options)).double()
    Convolution.within(ours)
    ours[0].load_state_dict(plain.state_dict())
    images = torch.randn(3, 4, *size, dtype=torch.float64)
    found = []
    for layer in (plain, ours):
        leaf = images.clone().requires_grad_()
        out = layer(leaf)
        weighed = (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()
        found.append((out, *torch.autograd.grad(weighed, [leaf, *layer.parameters()])))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride", "channels"), [(3, 2, 32), (5, 1, 128)])
def test_taps_that_see_only_padding_have_no_gradient_in_bfloat16(kernel, stride, channels):
    layer = Convolution(channels, 64, kernel, stride=stride, padding=kernel // 2, bias=False).to(
        torch.bfloat16, memory_format=torch.channels_last
    )
    images = torch.randn(40, channels, 1, 1, dtype=torch.bfloat16).contiguous(
        memory_format=torch.channels_last
    )
    for _ in range(4):
        # freed memory that is not finite, for whoever takes memory and does not write it
        for power in range(6, 21):
            freed = [torch.full((2**power,), float("nan"), dtype=torch.bfloat16) for _ in range(6)]
            del freed
        (gradient,) = torch.autograd.grad(layer(images).sum(), layer.weight)
        seen = torch.zeros(kernel, kernel, dtype=torch.bool)
        seen[kernel // 2, kernel // 2] = True
        assert gradient.isfinite().all()
        assert (gradient[:, :, ~seen] == 0).all()
        assert (gradient[:, :, seen] != 0).any()


def test_few_channels_and_a_stride_leave_the_heap_whole():
    program = (
        "import torch; from marginlab.models.convolution import Convolution\n"
        "for channels in (3, 4, 8, 12):\n"
        "    for side in (4, 8, 16, 32):\n"
        "        layer = Convolution(channels, 2 * channels, 1, "
        "stride=2).to(memory_format=torch.channels_last)\n"
        "        images = torch.randn(32, channels, side, "
        "side).contiguous(memory_format=torch.channels_last)\n"
        "        for _ in range(5): layer(images).square().mean().backward()\n"
        "        assert layer.weight.grad.isfinite().all()\n"
        "print('whole')"
    )
    # the block of 8, which any CPU here can run
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "whole\n"


def test_a_backbone_is_made_of_them():
    for name, options in (
        ("resnet18", {"stem": "strided", "width": 0.125}),
        ("resnet50", {"stem": "imagenet"}),
    ):
        layers = [
            layer for layer in Backbone(name, **options).modules() if isinstance(layer, nn.Conv2d)
        ]
        assert {type(layer) for layer in layers} == {Convolution}
