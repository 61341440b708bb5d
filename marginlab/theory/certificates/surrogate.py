"""A certificate from images without labels: a certified classifier, and how often another differs.

    Err(h)  <=  Err(s) + P[h(x) != s(x)]

If s carries a limit that holds with confidence 1 - a, and of unlabelled images, which neither h nor
s was made from, those are counted on which h and s differ, then with confidence 1 - a - b

    Err(h)  <=  limit of s  +  exact binomial limit of P[h != s] at confidence 1 - b

An image on which h errs and s does not is one on which they differ. Labels are needed for s alone,
which can be certified long before h exists. Where new images with labels are at hand, counting the
errors of h is tighter. In this form: Bazinet et al., UAI 2026 (arXiv 2602.23128); the proof is the
sentence above and a union bound (docs/derivations.md, 2.12).
"""

import torch

from marginlab.theory.bound import Bound
from marginlab.theory.certificates.by_class import upper_limit
from marginlab.theory.inputs import fraction


def surrogate(
    limit: float, *, different: int, n: int, confidence: float = 0.975, error: float = float("nan")
) -> Bound:
    """Bound the error of h by a limit of s and the number of images on which h and s differ.

    Args:
        limit: An upper limit of the error of s, such as `Certificate.best("new images").value`.
        different: Number of the unlabelled images on which h and s differ.
        n: Number of unlabelled images, which are drawn as the images of the limit are, and which
            neither h nor s was trained on or chosen by.
        confidence: Confidence of the limit of P[h != s]. The bound has that of the limit of s and
            this one, less 1: .95 of two limits of .975.
        error: Err(h), where it is known.

    Raises:
        ValueError: A number cannot be what it is named.

    Example:
        >>> round(surrogate(0.01, different=0, n=1000).right, 4)
        0.0137
    """
    if not 0 <= different <= n or n < 1:
        raise ValueError(
            f"h and s differ on 0 to n of n >= 1 unlabelled images, not on {different} of {n}."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is between 0 and 1, not {confidence}.")
    apart = upper_limit(torch.tensor([different]), torch.tensor([n]), confidence)
    right = fraction("The limit of s", limit) + float(apart)
    return Bound("Certificate from unlabelled images", error, right, 1.0)
