"""Anchor form of the concentration: the share of a class near one fixed point.

An image is near the point if one of its views lies within delta / 2.

    main part of class k  =  { x in C_k : min over views || x' - b_k || <= delta / 2 }
    sigma_k               =  its share of the class

For any fixed point b_k (pixels or features) this is a main part in the sense of Huang et al., ICLR
2023, Definition 1. Each of two members has a view within delta / 2 of b_k, so by one triangle
inequality their d_A is at most delta. This main part may be smaller than the largest one, but
membership is decided image by image. If b_k and delta are chosen on other images, the number of
members among n held-out images is binomial. So sigma_k has an exact (Clopper-Pearson) interval. The
share of a largest clique (concentration.py) has none.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.measures.anchors.anchor_points import Anchors, anchor_distances, check_anchors
from marginlab.measures.anchors.anchor_result import AnchorCurve as AnchorCurve
from marginlab.measures.anchors.anchor_result import (
    AnchorResult,
    binomial,
    count_members,
    least_share,
)
from marginlab.measures.measure import Measure, constant, rows


class AnchorConcentration(Measure):
    """sigma of the anchor form on held-out images, with intervals.

    It takes views (N, V, ...) and labels (N,); streams, merges and reduces over ranks. The
    intervals are for V sampled views of an image, drawn independently of the choice of the anchors.
    The theory takes all views, and more views can only come nearer. So sigma of V views is a LOWER
    estimate of the theory's sigma. One float64 distance is kept of each image, so a curve over
    delta comes from the same pass.

    Args:
        anchors: Points and delta, chosen on other images (`choose_anchors`) or known before; one
            for each class that will come.
        confidence: Confidence of the intervals.
        kwargs: Keyword arguments of torchmetrics.Metric.

    Raises:
        ValueError: Views have another shape than the points or another number of views than before,
            are not finite or are pixels outside [0, 1]; a label has no anchor; an anchor's class
            has no image; measures of other anchors are merged; or nothing was measured.

    Example:
        >>> anchors = Anchors(torch.tensor([0, 1]), torch.tensor([[0.0], [1.0]]), delta=0.5)
        >>> measure = AnchorConcentration(anchors)
        >>> views = torch.tensor([[[0.2], [0.9]], [[0.6], [0.4]], [[1.2], [5.0]]])
        >>> measure.update(views, torch.tensor([0, 0, 1]))
        >>> result = measure.compute()
        >>> result.members.tolist(), result.sigma_k.tolist()
        ([1, 1], [0.5, 1.0])
        >>> float(result.sigma), result.sigma_at(1.0)[0]
        (0.5, 1.0)
    """

    distance: list[Tensor]
    label: list[Tensor]
    n_views: Tensor
    classes: Tensor
    points: Tensor

    def __init__(self, anchors: Anchors, confidence: float = 0.95, **kwargs: Any):
        super().__init__(**kwargs)
        check_anchors(anchors)
        if not 0 < confidence < 1:
            raise ValueError(
                f"The confidence of an interval lies between 0 and 1, not at {confidence}."
            )
        self.delta, self.confidence = float(anchors.delta), confidence
        self.register_buffer("classes", anchors.classes.long().clone(), persistent=False)
        self.register_buffer("points", anchors.points.detach().double().clone(), persistent=False)
        for name in ("distance", "label"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        none = torch.zeros(1, dtype=torch.int64)
        self.add_state("n_views", default=none, dist_reduce_fx=constant)

    def update(self, views: Float[Tensor, "N V *P"], labels: Int[Tensor, " N"]) -> None:
        """Take V views of N more held-out images and their labels.

        Args:
            views: The views, (N, V, ...).
            labels: The images' classes, (N,).
        """
        distance = anchor_distances(views, labels, Anchors(self.classes, self.points, self.delta))
        if int(self.n_views) not in (0, views.shape[1]):
            raise ValueError(
                f"Images have {views.shape[1]} views, those before had {int(self.n_views)}: sigma "
                "of both together has no meaning."
            )
        if len(views):
            self.n_views = torch.full_like(self.n_views, views.shape[1])
            self.distance.append(distance)
            self.label.append(labels.long().clone())  # a caller may use its buffer again

    def compute(self) -> AnchorResult:
        """Return the result, over all ranks under a process group."""
        empty = self.points.new_zeros(0)
        distances, labels = rows(self.distance, empty), rows(self.label, empty.long())
        if not len(distances):
            raise ValueError(
                "AnchorConcentration has seen no image yet: call update(views, labels) with views "
                "of shape (N, V, ...) first."
            )
        n = (labels == self.classes[:, None]).sum(1)
        if not bool(n.all()):
            raise ValueError(
                f"Classes {self.classes[n == 0].tolist()} have an anchor and no held-out image, so "
                "nothing is known of the least sigma over classes: give images of them, or "
                "anchors without them."
            )
        members = count_members(distances, labels, self.classes, distances.new_tensor([self.delta]))
        sigma_k, lower, upper = binomial(members, n, self.confidence)
        # the lower tail takes the whole risk of a class
        together = binomial(members, n, 1 - 2 * (1 - self.confidence) / len(n))[1]
        sigma, sigma_lower, sigma_upper = least_share(members, n, self.confidence)
        mean, mean_lower, mean_upper = binomial(
            members.sum(0, keepdim=True), n.sum()[None], self.confidence
        )
        V, certain = int(self.n_views), f"{self.confidence:.0%}"
        return AnchorResult(
            classes=self.classes.clone(),
            delta=self.delta,
            n=n,
            members=members[:, 0],
            sigma_k=sigma_k[:, 0],
            lower=lower[:, 0],
            upper=upper[:, 0],
            together=together[:, 0],
            sigma=sigma[0],
            sigma_lower=sigma_lower[0],
            sigma_upper=sigma_upper[0],
            mean=mean[0, 0],
            mean_lower=mean_lower[0, 0],
            mean_upper=mean_upper[0, 0],
            distances=distances,
            labels=labels,
            V=V,
            confidence=self.confidence,
            meaning=(
                f"sigma of the anchor form at delta = {self.delta:g}: an image is a member if one "
                f"of its {V} sampled views lies within delta / 2 of the point of its class; a "
                f"LOWER estimate of the same over all views, growing with V. The {certain} "
                f"intervals are exact binomial ones for {V} views, drawn independently of the "
                f"choice of points and delta, on {int(n.min())} to {int(n.max())} other images a "
                f"class. Least sigma: Bonferroni over {len(n)} classes in its upper end, none "
                "needed in its lower; mean: pooled over classes, with the class shares of these "
                "images."
            ),
        )
