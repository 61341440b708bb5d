"""The theorems of an encoder while it trains, as rows: both sides of each inequality.

The population is finite: test images and their views.

    InfoNCE_L_2            E log(e^{s+} + e^{s-}) at T = 1, one negative: Theorem 3 bounds the mean
                           mu_k . mu_l by it
    CrossCorrelation_L_2   ||M - I||_F^2 of standardised coordinates: Theorem 4 bounds
                           |mu_k . mu_l| by it and tau = ||Sigma_W||_F^2
    companion              sum_k p_k min(1, 4 V_k / min ||mu_k - mu_l||^2), which bounds the error
                           of views without a premise
    certified              what `marginlab.theory.certify` certifies by each form, `at` its key: of
                           training images; of test images as new ones (`image_wise`, `new_images`,
                           `prototypes`); of the population (`population`, `population_T`)
    certified_test         Theorem 1 of the test images by themselves, with their own centers: a
                           population that was not trained on
    certificate_...        terms of a form at its best point, `at` its key

Test images are new only where training has not seen them, nor chosen by them. All other forms are
exact for the population that these images and views make, and for no other. Of the bounds of pairs
the least right side is given. For Theorem 4 it is in units of r^2, where 1 holds for every encoder.
Source: Huang et al. 2023, Theorems 3 and 4.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.statistics import index_within_group
from marginlab.theory import (
    Population,
    certify,
    companion,
    normalisation,
    theorem_3,
    theorem_3_printed,
    theorem_4,
)
from marginlab.theory.bound import PairBound
from marginlab.train.rows import Row

# most terms (an anchor's pair and a negative) in the expectation of InfoNCE, which has no cheaper
# exact form
PAIRS = 2e7


CONDITIONS = ("P", "T", "T_lengths")  # of Theorem 1: keys of forms
OF_NEW = ("new_images", "image_wise", "prototypes", "population_T", "population")
FORMS = (*CONDITIONS, "per_class", "fixed_centers", *OF_NEW)


def certified(
    seen: tuple[Float[Tensor, "N V D"], Int[Tensor, " N"]],
    new: tuple[Float[Tensor, "M V D"], Int[Tensor, " M"]],
    space: str,
    epoch: int,
) -> list[Row]:
    """Return rows of what each form certifies, and of the error of new images with its own limit.

    A form that certifies nothing has the value 1. More rows give the terms of (T') at its best
    point, and those of Theorem 1 for the population.

    The first view of each image is the image itself. New images are images that training has not
    seen. They count only if their class is seen.
    """
    known = torch.isin(new[1], seen[1])  # an encoder has no center of a class that it has not seen
    new = new[0][known], new[1][known]
    certificate = certify(*seen, new=new, v_curve=False)
    rows = [
        Row(
            epoch,
            space,
            "certified",
            key,
            certificate[key].value,
            n=certificate.new_images if key in OF_NEW else certificate.images,
        )
        for key in FORMS
    ]
    form, printed = certificate["T_lengths"], certificate["P"]
    terms = (
        ("certificate_outside", form.key, form.outside),
        ("certificate_R_epsilon", form.key, form.R_epsilon),
        ("certificate_delta", form.key, form.delta),
        ("certificate_epsilon", form.key, form.epsilon),
        ("certificate_rho", form.key, form.rho),
        ("certificate_rho", printed.key, printed.rho),
    )
    rows += [
        Row(epoch, space, quantity, key, value, n=certificate.images)
        for quantity, key, value in terms
    ]
    form = certificate["population"]
    of_new: tuple[tuple[str, str, float], ...] = (
        ("certificate_outside", form.key, form.outside),
        ("certificate_rho", form.key, form.rho),
        ("certificate_margin", form.key, form.margin),
        ("certificate_prototypes", "prototypes", certificate["prototypes"].prototypes),
        ("prototypes_error", "", certificate["prototypes"].bound.left),
    )
    rows += [
        Row(epoch, space, quantity, key, value, n=certificate.new_images)
        for quantity, key, value in of_new
    ]
    tested = certify(*new, v_curve=False)
    rows += [
        Row(epoch, space, "certified_test", key, tested[key].value, n=tested.images)
        for key in CONDITIONS
    ]
    error, limit = certificate.new_error
    return [
        *rows,
        Row(epoch, space, "new_error", "", error, high=limit, n=certificate.new_images),
    ]


def theorems(
    features: Float[Tensor, "N V D"],
    labels: Int[Tensor, " N"],
    space: str,
    epoch: int,
    epsilon: float = 0.5,
) -> list[Row]:
    """Return rows of both sides of the theorems, for features of length one.

    Theorem 3 takes as many of the images and views as its cost allows; `n` says how many.

    Args:
        features: Features of N images in V views each.
        labels: Class of each image.
        space: Name of the space of the features.
        epoch: Epoch of the rows.
        epsilon: Where the printed Theorem 3 takes R_epsilon.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> f = torch.nn.functional.normalize(torch.randn(12, 2, 4, generator=generator), dim=-1)
        >>> rows = theorems(f, torch.arange(12) % 3, "backbone", epoch=0)
        >>> [row.quantity for row in rows][:2]
        ['companion', 'view_error']
    """
    labels = labels.unique(return_inverse=True)[1]  # a class without an image has no center
    # Theorem 3 needs length 1 to all digits
    features = torch.nn.functional.normalize(features.double(), dim=-1)
    population = Population(features, labels)
    C = len(population.p)
    spread = companion(
        p=population.p,
        gram=population.gram,
        within=population.within,
        view_error=population.view_error,
    )
    found = {"companion": spread.right, "view_error": spread.left}
    rows = _rows(found, epoch, space, len(features))
    if C < 2:
        return rows
    views = min(features.shape[1], 4)
    images = max(2, int(math.sqrt(PAIRS / views**3) / C)) * C
    order = _balanced(labels)[:images]
    small = Population(features[order, :views], labels[order])
    L_2 = small.infonce()[1]
    exact = theorem_3(p=small.p, gram=small.gram, A=small.A, L_2=L_2)
    printed = theorem_3_printed(
        p=small.p, gram=small.gram, L_2=L_2, R_epsilon=min(small.R(epsilon), 1.0), epsilon=epsilon
    )
    found = {
        "InfoNCE_L_2": L_2,
        "theorem_3_mean_product": exact.average.left,
        "theorem_3_all_terms": exact.average.right,
        "theorem_3_printed": _least(printed),
    }
    rows += _rows(found, epoch, space, len(order))
    standard = _standardised(population)
    if standard is None:
        return rows
    dim, r = standard.f.shape[2], float(standard.f.norm(dim=-1).max())
    L_2, tau = standard.correlation[1], float(standard.sigma_within.square().sum())
    theorem = theorem_4(p=standard.p, gram=standard.gram, L_2=L_2, tau=tau, dim=dim, r=r)
    found = {
        "CrossCorrelation_L_2": L_2,
        "tau": tau,
        "theorem_4_product": float(theorem.printed.left.nan_to_num(nan=0.0).max()) / r**2,
        "theorem_4_printed": _least(theorem.printed) / r**2,
        "theorem_4_refined": _least(theorem.refined) / r**2,
        "theorem_4_length_deviation": normalisation(standard).length,
    }
    return rows + _rows(found, epoch, space, len(features))


def _rows(found: dict[str, float], epoch: int, space: str, n: int) -> list[Row]:
    return [Row(epoch, space, quantity, "", value, n=n) for quantity, value in found.items()]


def _least(bound: PairBound) -> float:
    return float(bound.right.nan_to_num(nan=math.inf).min())


def _balanced(labels: Tensor) -> Tensor:
    """Return indices of images: the first of each class, then the second of each, and so on."""
    by_class = labels.argsort(stable=True)
    return by_class[index_within_group(labels)[by_class].argsort(stable=True)]


def _standardised(population: Population) -> Population | None:
    """Standardise coordinates to E f_i = 0, E f_i^2 = 1, as the paper's cross-correlation asks.

    Coordinates that do not vary are left out. The result is None if none varies.
    """
    f = population.f - population.w @ population.nu
    square = population.w @ f.square().mean(1)
    varied = square > 1e-9
    return (
        Population(f[..., varied] / square[varied].sqrt(), population.labels)
        if bool(varied.any())
        else None
    )
