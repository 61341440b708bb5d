"""Nothing grows with the size of a label."""

import pytest
import torch

from marginlab.measures import Alignment, Concentration
from marginlab.theory import Population, certify

FAR = 2**40


def test_large_labels_take_no_memory():
    f = torch.randn(12, 2, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 3 * FAR
    with pytest.raises(ValueError, match=r"without a gap, not \[0, 1099511627776"):
        Population(f.double(), labels)
    small = certify(f, labels // FAR, new=0.3, v_curve=False)
    large = certify(f, labels, new=0.3, v_curve=False)
    assert [form.value for form in large.forms] == [form.value for form in small.forms]
    for measure in (Alignment(), Concentration(controls=True)):
        measure.update(f, labels)
        measure.compute()
