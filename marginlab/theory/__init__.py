"""The bounds of the theory as code: each takes named quantities and returns both sides.

The printed and the sharpened forms of an inequality come together.

    Population                                           a finite population and every quantity of
                                                         the theory of it, exactly
    lemma_3_1 theorem_1 theorem_2
    theorem_3 theorem_4 lemma_4_1                        Huang et al. 2023
    per_class fixed_centers image_wise
    prototype_margin companion                           corollaries and a companion, ours
    theorem_1_population theorem_3_population            Theorems 1 and 3 of a distribution, from
                                                         limits
    surrogate                                            a certificate from unlabelled images
    pac_bayes held_out                                   the loss on new batches
    saunshi haochen infonce_limit                        neighbouring theory
    clique_part anchor_part observed_stretch             main parts of classes
    certify                                              all of them, of an encoder's features:
                                                         a Certificate

Results that are not in the papers are derived in docs/derivations.md.
"""

from marginlab.theory.bound import Bound, PairBound, rounded_up
from marginlab.theory.certificates.by_class import ByClass
from marginlab.theory.certificates.certificate import Certificate
from marginlab.theory.certificates.certify import certify
from marginlab.theory.certificates.form import Form
from marginlab.theory.certificates.main_parts import (
    MainPart,
    anchor_part,
    clique_part,
    observed_stretch,
)
from marginlab.theory.certificates.prototypes import find_prototypes
from marginlab.theory.certificates.surrogate import surrogate
from marginlab.theory.population import Population
from marginlab.theory.theorems.companion import companion
from marginlab.theory.theorems.fixed_centers import FixedCenters, fixed_centers
from marginlab.theory.theorems.haochen import HaoChen, haochen
from marginlab.theory.theorems.image_wise import image_wise, prototype_margin
from marginlab.theory.theorems.lemma_3_1 import Lemma31, lemma_3_1
from marginlab.theory.theorems.pac_bayes import (
    PacBayes,
    Range,
    drawn_losses,
    held_out,
    normal_divergence,
    pac_bayes,
)
from marginlab.theory.theorems.per_class import PerClass, per_class
from marginlab.theory.theorems.saunshi import Saunshi, saunshi
from marginlab.theory.theorems.theorem_1 import (
    Theorem1,
    center_radius,
    divergence_limit,
    largest_rho,
    rho_2,
    theorem_1,
)
from marginlab.theory.theorems.theorem_1_population import (
    Theorem1Population,
    theorem_1_population,
)
from marginlab.theory.theorems.theorem_2 import (
    Theorem2,
    eta,
    theorem_2,
    theorem_2_discrete,
    theorem_2_worst_view,
)
from marginlab.theory.theorems.theorem_3 import Theorem3, tau, theorem_3, theorem_3_printed
from marginlab.theory.theorems.theorem_3_population import (
    Theorem3Population,
    theorem_3_population,
)
from marginlab.theory.theorems.theorem_4 import (
    Normalisation,
    Theorem4,
    closed_tau,
    lemma_4_1,
    normalisation,
    theorem_4,
)
from marginlab.theory.theorems.wang_isola import (
    InfoNCELimit,
    infonce_floor,
    infonce_limit,
    log_mean_exp,
    uniformity_floor,
)

__all__ = [
    "Bound",
    "ByClass",
    "Certificate",
    "FixedCenters",
    "Form",
    "HaoChen",
    "InfoNCELimit",
    "Lemma31",
    "MainPart",
    "Normalisation",
    "PacBayes",
    "PairBound",
    "PerClass",
    "Population",
    "Range",
    "Saunshi",
    "Theorem1",
    "Theorem1Population",
    "Theorem2",
    "Theorem3",
    "Theorem3Population",
    "Theorem4",
    "anchor_part",
    "center_radius",
    "certify",
    "clique_part",
    "closed_tau",
    "companion",
    "divergence_limit",
    "drawn_losses",
    "eta",
    "find_prototypes",
    "fixed_centers",
    "haochen",
    "held_out",
    "image_wise",
    "infonce_floor",
    "infonce_limit",
    "largest_rho",
    "lemma_3_1",
    "lemma_4_1",
    "log_mean_exp",
    "normal_divergence",
    "normalisation",
    "observed_stretch",
    "pac_bayes",
    "per_class",
    "prototype_margin",
    "rho_2",
    "rounded_up",
    "saunshi",
    "surrogate",
    "tau",
    "theorem_1",
    "theorem_1_population",
    "theorem_2",
    "theorem_2_discrete",
    "theorem_2_worst_view",
    "theorem_3",
    "theorem_3_population",
    "theorem_3_printed",
    "theorem_4",
    "uniformity_floor",
]
