"""Encoding inside a graph, an export or a transform of torch.func."""

import os
import sys

import forked

TRACED = """
import torch
from torch import nn
from marginlab.methods import Method


class Tiny(Method):
    def loss(self, views, labels):
        return {"loss": self.embed(views).sum()}


class Encoder(nn.Module):
    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, images):
        return self.method.encode(images)


method = Tiny(nn.Flatten(), nn.Identity()).eval()
encoder, images = Encoder(method), torch.rand(2, 3, 4, 4)
expected = method.encode(images)
compiled = torch.compile(encoder, fullgraph=True, backend="eager")
torch.testing.assert_close(compiled(images), expected)
torch.testing.assert_close(torch.export.export(encoder, (images,)).module()(images), expected)
each = torch.func.vmap(lambda image: method.encode(image[None])[0])(images)
torch.testing.assert_close(each, expected)
try:
    method.encode(255 * images)
except ValueError as error:
    assert "by 255" in str(error)
else:
    raise AssertionError("images in 0..255 passed")
"""


def test_encoding_is_compiled_exported_and_vmapped(tmp_path):
    """In a process of its own: the checker of annotations in tests breaks graphs."""
    program = [sys.executable, "-c", TRACED]
    done = forked.run(program, cwd=tmp_path, env=dict(os.environ), timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
