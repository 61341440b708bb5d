"""Saunshi et al.: the contrastive loss bounds the loss of the mean classifier.

It does so where positives are drawn from one latent class.

    L_un  = E loss( f(x) . (f(x+) - f(x-)) )
            c+, c- ~ p independently,  x, x+ ~ C_{c+} i.i.d.,  x- ~ C_{c-}
    tau   = P[c+ = c-] = sum p_k^2
    L_sup = E over c+ != c- of loss( f(x) . (mu_{c+} - mu_{c-}) )

    L_sup  <=  (L_un - tau L_equal) / (1 - tau)  <=  (L_un - tau) / (1 - tau)

for a convex loss with loss(0) = 1, hinge max(0, 1 - v) or logistic log2(1 + e^-v). L_equal is the
part of L_un with c+ = c-, at least 1. The right bound is printed (Saunshi et al. 2019, Lemma 4.3);
the left one keeps the measured collision part. The proof is Jensen's inequality over x+ and x-,
which given the classes are independent of x. Positives made by augmentation of x are not, and then
this is no theorem. (Huang et al. 2023 drop this assumption; docs/derivations.md, 6.)
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from marginlab.theory.bound import Bound
from marginlab.theory.inputs import not_negative, priors

Positives = Literal["class", "augmentation"]


@dataclass(frozen=True)
class Saunshi:
    """tau, the bound with the measured collision part, and the printed one."""

    tau: float
    collision: Bound
    printed: Bound


def saunshi(
    *,
    p: Float[Tensor, " C"],
    L_un: float,
    L_equal: float,
    positives: Positives,
    L_sup: float = float("nan"),
) -> Saunshi:
    """Bound the loss of the mean classifier on pairs of classes by the contrastive loss.

    A right side below 1, the loss of guessing, says something. Both losses are at least 1 where a
    margin is not positive. So L_sup bounds the mean pairwise error: the probability that an image
    of c+ has mu_{c-} at least as near (by inner products) as mu_{c+}, for c- != c+ drawn by p. The
    error among all C classes may be larger. It is at most (1 - tau) / min_k p_k times L_sup, that
    is C - 1 times with equal priors. A test has features with L_sup = 0.113 and error 1.

    Args:
        p: Class priors, of anchors and negatives.
        L_un: The contrastive loss, one negative, no temperature.
        L_equal: Its conditional expectation where the negative is of the anchor's class; at least
            1.
        positives: "class": x and x+ are drawn independently from one class. "augmentation", two
            views of one image, is refused.
        L_sup: L_sup, where it is known.

    Raises:
        ValueError: Positives are made by augmentation, or a quantity cannot be what it is named.

    Example:
        >>> import torch
        >>> result = saunshi(p=torch.tensor([0.5, 0.5]), L_un=0.75, L_equal=1.0, positives="class")
        >>> result.tau, result.printed.right
        (0.5, 0.5)
    """
    if positives != "class":
        raise ValueError(
            "Saunshi's bound needs positives drawn independently from one class, not "
            f"{positives!r}: two views of an image share the image, and the step that averages "
            "over the positive fails. Take Theorems 1 to 4."
        )
    p = priors(p)
    not_negative(L_un=L_un)
    tau = float(p.square().sum())
    if not L_equal >= 1 - 1e-6 or tau * L_equal > L_un * (1 + 1e-6):
        raise ValueError(
            f"The collision part is at least 1, and tau = {tau:.4g} times it is a part of L_un = "
            f"{L_un:.4g}: it cannot be {L_equal:.4g}. Take the logarithm of the logistic loss to "
            "base 2."
        )
    return Saunshi(
        tau,
        Bound(
            "Saunshi, measured collisions", L_sup, max(L_un - tau * L_equal, 0.0) / (1 - tau), 1.0
        ),
        Bound("Saunshi, printed", L_sup, max(L_un - tau, 0.0) / (1 - tau), 1.0),
    )
