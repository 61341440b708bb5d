"""Inputs of the golden values: sines of whole numbers, rounded to three decimals, in float64.

Three decimals are the same on every processor, whatever its sine does with the last digit.
"""

import math

import torch


def numbers(*shape, start=1):
    """Rounded sin(start), sin(start + 1), ..., in a shape."""
    count = math.prod(shape)
    made = [round(math.sin(start + k), 3) for k in range(count)]
    return torch.tensor(made, dtype=torch.float64).view(shape)


Z1, Z2 = numbers(6, 4), numbers(6, 4) + 0.5 * numbers(6, 4, start=101)
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2])
X, CENTERS = numbers(5, 4, start=201), numbers(7, 4, start=301)
LABELS = torch.tensor([0, 6, 3, 3, 1])
NEAREST = torch.tensor([int(k) for k in (X @ torch.nn.functional.normalize(CENTERS).T).argmax(1)])
IGNORED = torch.tensor([0, -100, 3, 3, 1])
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.25, 1.0, 3.0, 1.5], dtype=torch.float64)
FEATURES, OF_CLASS = numbers(12, 2, 3, start=401), torch.arange(12) % 3
