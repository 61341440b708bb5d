"""A finite population: N images with V views each, and every quantity of the theory, exactly.

Each quantity is an exact expectation over the population, in float64. An image x_i has the
probability w_i. Its V views are equally likely and drawn with replacement, and view 0 is the image
itself. With nu(x) = E f(view of x) and mu_k = E_{x in C_k} nu(x), these identities tie the
quantities together:

    V_k = E_{C_k} ||f - mu_k||^2 = r^2 - ||mu_k||^2
    L_align = 2 (r^2 - E ||nu||^2)
    A_k = 2 (r^2 - E_{C_k} ||nu||^2)
    sum_k p_k V_k = L_align / 2 + tr Sigma_W
    M - B = Sigma_W = sum_k p_k Cov_{C_k}(nu)

with M = E nu nu^T and B = sum_k p_k mu_k mu_k^T (||f|| = r). Definitions: Huang et al. 2023,
sections 2 to 4; identities: docs/derivations.md, 1. A theorem about V sampled views of N sampled
images is exact for this population, and for no other.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from marginlab.kernels import BUDGET
from marginlab.measures.views.alignment import alignment
from marginlab.statistics.distances import EXACTLY
from marginlab.theory.inputs import positive
from marginlab.theory.logsum import expected_log_sum


@dataclass(frozen=True, eq=False)
class Population:
    """Features of all V views of N images, with labels and probabilities.

    Args:
        features: Features (N, V, D).
        labels: Labels (N,) that run over 0..C-1.
        weights: Probabilities (N,) of the images, equal if None.

    Raises:
        ValueError: Shapes do not fit, values are not finite, a class has no image, or probabilities
            are negative or do not sum to 1.

    Example:
        >>> f = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)
        >>> population = Population(f, torch.tensor([0, 1]))
        >>> population.gram.tolist(), population.error
        ([[1.0, 0.0], [0.0, 1.0]], 0.0)
    """

    features: Float[Tensor, "N V D"]
    labels: Int[Tensor, " N"]
    weights: Float[Tensor, " N"] | None = None

    def __post_init__(self) -> None:
        f, labels = self.features, self.labels
        if (
            f.ndim != 3
            or labels.shape != (len(f),)
            or min(f.shape) == 0
            or not bool(f.isfinite().all())
        ):
            raise ValueError(
                f"A population has finite features (N, V, D) and labels (N,), not {tuple(f.shape)} "
                f"and {tuple(labels.shape)}."
            )
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"Labels are integers, not {labels.dtype}.")
        names = labels.unique()
        if not torch.equal(names.long(), torch.arange(len(names), device=names.device)):
            raise ValueError(
                f"Labels run over 0..C-1 without a gap, not {names.tolist()}: take "
                "labels.unique(return_inverse=True)[1]."
            )
        if self.weights is None:
            return
        w = self.weights
        if (
            w.shape != labels.shape
            or not bool((w >= 0).all())
            or not abs(float(w.sum()) - 1) <= 1e-6
            or float(self.p.min()) <= 0
        ):
            raise ValueError(
                f"Probabilities of {len(f)} images are not negative, sum to 1 and leave no class "
                f"empty, not {w.tolist()}."
            )

    @cached_property
    def f(self) -> Float[Tensor, "N V D"]:
        """Features in float64."""
        return self.features.detach().double()

    @cached_property
    def w(self) -> Float[Tensor, " N"]:
        """Probabilities of the images."""
        if self.weights is None:
            return self.f.new_full((len(self.f),), 1 / len(self.f))
        return self.weights.detach().double() / self.weights.detach().double().sum()

    @cached_property
    def p(self) -> Float[Tensor, " C"]:
        """Class priors p_k."""
        return self.w.new_zeros(int(self.labels.max()) + 1).index_add(0, self.labels, self.w)

    def of_class(self, values: Float[Tensor, "N *S"]) -> Float[Tensor, "C *S"]:
        """Return the expectation over each class of a quantity of the images."""
        weighted = values * self.w.view(-1, *[1] * (values.ndim - 1))
        return weighted.new_zeros(len(self.p), *values.shape[1:]).index_add(
            0, self.labels, weighted
        ) / self.p.view(-1, *[1] * (values.ndim - 1))

    def share(self, members: Bool[Tensor, " N"]) -> Float[Tensor, " C"]:
        """Return P[member | class] of a set of images.

        For main parts this is sigma_k, and for main parts within S_eps it is q_k.
        """
        return self.of_class(members.double())

    def probability(self, members: Bool[Tensor, " N"]) -> float:
        """Return P[member] of a set of images."""
        return float(self.w @ members.double())

    @cached_property
    def radius(self) -> float:
        """Radius r with ||f|| = r for all views.

        Raises:
            ValueError: Lengths differ by more than 1e-9 of the largest.
        """
        norms = self.f.norm(dim=-1)
        if float(norms.max() - norms.min()) > 1e-9 * float(norms.max()):
            raise ValueError(
                f"Features have lengths from {float(norms.min()):.6g} to {float(norms.max()):.6g}, "
                "not one radius: normalize them."
            )
        return float(norms.mean())

    @cached_property
    def nu(self) -> Float[Tensor, "N D"]:
        """Mean over the views of each image."""
        return self.f.mean(1)

    @cached_property
    def centers(self) -> Float[Tensor, "C D"]:
        """Class centers mu_k."""
        return self.of_class(self.nu)

    @cached_property
    def gram(self) -> Float[Tensor, "C C"]:
        """Inner products mu_k . mu_l."""
        return self.centers @ self.centers.T

    @cached_property
    def within(self) -> Float[Tensor, " C"]:
        """V_k = E_{C_k} ||f - mu_k||^2."""
        return self.of_class((self.f - self.centers[self.labels, None]).square().sum(-1).mean(1))

    @cached_property
    def squares(self) -> Float[Tensor, " N"]:
        """E ||f(x_1) - f(x_2)||^2 of each image, the two views drawn with replacement."""
        return 2 * (self.f - self.nu[:, None]).square().sum(-1).mean(1)

    @cached_property
    def A(self) -> Float[Tensor, " C"]:  # noqa: N802  # A_k is its name
        """A_k = E_{x in C_k} E ||f(x_1) - f(x_2)||^2."""
        return self.of_class(self.squares)

    @cached_property
    def L_align(self) -> float:  # noqa: N802  # L_align is its name
        """L_align = E ||f(x_1) - f(x_2)||^2."""
        return float(self.w @ self.squares)

    @cached_property
    def diameters(self) -> Float[Tensor, " N"]:
        """Largest distance between two views of each image, in feature space."""
        if self.f.shape[1] == 1:
            return self.f.new_zeros(len(self.f))
        return alignment(self.f, normalize=False)[1]

    def aligned(self, epsilon: float) -> Bool[Tensor, " N"]:
        """Return S_eps: the images whose views all lie within epsilon of each other."""
        return self.diameters <= epsilon

    def R(self, epsilon: float) -> float:  # noqa: N802  # R_eps is its name
        """Return R_eps = P[x not in S_eps]."""
        return self.probability(~self.aligned(epsilon))

    @cached_property
    def M(self) -> Float[Tensor, "D D"]:  # noqa: N802  # M is its name
        """M = E f(x_1) f(x_2)^T = E nu nu^T.

        It is the cross-correlation F of uncentred, unscaled coordinates.
        """
        return (self.nu.T * self.w) @ self.nu

    @cached_property
    def sigma_within(self) -> Float[Tensor, "D D"]:
        """Sigma_W = sum_k p_k Cov_{C_k}(nu); its squared norm is tau' of Theorem 4."""
        deviations = self.nu - self.centers[self.labels]
        return (deviations.T * self.w) @ deviations

    def read(self, features: Float[Tensor, "N *V D"]) -> Int[Tensor, "N *V"]:
        """Return the class of the nearest class center G_f; of equally near ones the smallest."""
        nearest: Tensor = torch.cdist(features, self.centers, compute_mode=EXACTLY).argmin(-1)
        return nearest

    @cached_property
    def misread(self) -> Bool[Tensor, " N"]:
        """Mask of the images that the nearest class center puts into another class."""
        return self.read(self.f[:, 0]) != self.labels

    @cached_property
    def error(self) -> float:
        """Err(G_f), over the images themselves (view 0)."""
        return self.probability(self.misread)

    @cached_property
    def view_error(self) -> float:
        """Probability that a view is misread."""
        return float(self.w @ (self.read(self.f) != self.labels[:, None]).double().mean(1))

    def infonce(self, temperature: float = 1.0, negatives: int = 1) -> tuple[float, float]:
        """Return (L_1, L_2) of the population's InfoNCE.

            L_1 = -E s_+/T
            L_2 = E log(e^{s_+/T} + sum over M negatives of e^{s_j/T})

        The negatives are views of images drawn independently of x, x itself included (Huang et al.
        2023, section 4.1, has T = 1 and M = 1).

        Args:
            temperature: T.
            negatives: M.
        """
        positive(temperature=temperature)
        N, V, _ = self.f.shape
        views, atoms = self.f.flatten(0, 1), (self.w / V).repeat_interleave(V)
        first = second = 0.0
        for images in torch.arange(N).split(max(BUDGET // (8 * N * V**3), 1)):
            f, w = self.f[images], self.w[images]
            near = (f @ f.mT / temperature).flatten()
            # row (x, u, v) of near has the anchor u
            far = (f.flatten(0, 1) @ views.T / temperature).repeat_interleave(V, 0)
            first -= float(w @ near.view(len(f), -1).mean(1))
            second += float(
                w @ expected_log_sum(near, far, atoms, negatives).view(len(f), -1).mean(1)
            )
        return first, second

    @cached_property
    def correlation(self) -> tuple[float, float]:
        """(L_1, L_2) of the cross-correlation loss, with F = M.

            L_1 = sum_i (1 - F_ii)^2
            L_2 = ||F - I||_F^2

        Source: Huang et al. 2023, section 4.2.
        """
        difference = self.M - torch.eye(len(self.M), dtype=self.M.dtype, device=self.M.device)
        return float(difference.diagonal().square().sum()), float(difference.square().sum())
