"""Choice of the anchor of each class: a point that many of its images come close to.

    b_k = argmax over candidates of #{ x in C_k : min over views || x' - b_k || <= delta / 2 }

The best of all points is a hard problem (the ball that covers most of a set). It need not be found,
because any fixed point gives a main part (anchor.py). The candidates are sampled views and the
class mean. The mean of a candidate's members, as in a mean-shift step, replaces it where it is
better.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from marginlab.kernels import BUDGET
from marginlab.measures.anchors.anchor_points import Anchors, check_views, nearest
from marginlab.rng import Key


def choose_anchors(
    views: Float[Tensor, "N V *P"],
    labels: Int[Tensor, " N"],
    delta: float,
    *,
    candidates: int = 256,
    refinements: int = 5,
    seed: int = 0,
    budget: int = BUDGET,
) -> Anchors:
    """Choose for each class a point that has a view of many of its images within delta / 2.

    Measure the concentration on OTHER images. The candidates are the mean over all views of the
    class and `candidates` of its views, drawn without replacement (all views, if there are no
    more). Then the mean and the best view are each moved, up to `refinements` times, to the mean of
    their members' nearest views, as long as that is better. Better means more members, or as many
    members at a smaller mean distance. The best point of all is unknown, but any point is valid.

    Membership agrees with exact arithmetic up to float64 rounding. Distances come from a product,
    and those that it cannot tell from delta / 2 are computed again by differences. Points are
    float64.

    Args:
        views: V views of N images: pixels (N, V, 3, H, W) in [0, 1], or features (N, V, D), which
            are used as they are.
        labels: The images' classes.
        delta: Twice the radius, in the unit of the views.
        candidates: Number of views of a class that are tried.
        refinements: Most moves of a point.
        seed: Seed of the draw of candidates, which depends on the order of a class's images and on
            nothing else.
        budget: Bytes of a block of distances.

    Raises:
        ValueError: There is no image, views or labels have another shape, values are not finite,
            pixels lie outside [0, 1], delta is negative, or there are no candidates.

    Example:
        Five images with one view of one number each. The point 0.25 has the members 0, 0.25 and
        0.5; the mean has none.

        >>> x = torch.tensor([[[0.0]], [[0.25]], [[0.5]], [[3.0]], [[9.0]]])
        >>> choose_anchors(x, torch.tensor([0, 0, 0, 0, 1]), delta=0.5).points
        tensor([[0.2500],
                [9.0000]], dtype=torch.float64)
    """
    check_views(views, labels)
    if not len(views):
        raise ValueError(
            f"Anchors are chosen from images, but views of shape {tuple(views.shape)} hold none."
        )
    if not 0 <= delta < float("inf") or candidates < 1 or refinements < 0:
        raise ValueError(
            f"Anchors need delta >= 0, a candidate and refinements >= 0, not {delta}, "
            f"{candidates}, {refinements}."
        )
    V, half = views.shape[1], delta / 2
    views, labels = views.detach(), labels.to(views.device)
    classes, points = labels.unique().long(), []
    for label in classes.tolist():
        images = (labels == label).nonzero()[:, 0]
        every = torch.arange(len(images) * V, device=views.device)
        mean = _mean(views, images[every // V], every % V, budget)
        drawn = (
            Key(seed)
            .named("anchor")
            .at(label)
            .permutation(len(every))[:candidates]
            .to(views.device)
        )
        best = _best(views, images, (images[drawn // V], drawn % V), mean, half, budget)
        found = (
            _refined(views, images, start, half, refinements, budget) for start in (best, mean)
        )
        # of equally good points the first, which starts from an image's own view
        points.append(max(found, key=lambda scored: scored[:2])[2])
    return Anchors(classes, torch.stack(points).view(len(points), *views.shape[2:]), float(delta))


def _mean(views: Tensor, images: Tensor, view: Tensor, budget: int) -> Tensor:
    """Return the mean of one view of each of some images, (P,) float64."""
    total = views.new_zeros(views[0, 0].numel(), dtype=torch.float64)
    step = max(budget // (16 * len(total)), 1)
    for image, which in zip(images.split(step), view.split(step), strict=True):
        total += views[image, which].double().flatten(1).sum(0)
    return total / len(images)


def _best(
    views: Tensor,
    images: Tensor,
    drawn: tuple[Tensor, Tensor],
    center: Tensor,
    half: float,
    budget: int,
) -> Tensor:
    """Return the view among those `drawn` (images, views) with most images within `half`, (P,).

    Of views with equally many images it is the one with the least mean distance.
    """
    V, P = views.shape[1], len(center)
    # side of a square block of float64 distances, such that the block and the rows and columns
    # that make it fit the budget
    side = (P * P + budget / 8) ** 0.5 - P
    members = torch.zeros(len(drawn[0]), dtype=torch.int64, device=views.device)
    total = torch.zeros(len(drawn[0]), dtype=torch.float64, device=views.device)
    for part in images.split(max(int(side / V), 1)):
        x = views[part].double().flatten(2).sub_(center).flatten(0, 1)
        squares = torch.linalg.vecdot(x, x)
        for columns in torch.arange(len(total), device=views.device).split(max(int(side), 1)):
            raw = views[drawn[0][columns], drawn[1][columns]].double().flatten(1)
            y = raw - center
            norms = torch.linalg.vecdot(y, y)
            product = torch.addmm(norms, x, y.T, alpha=-2).add_(squares[:, None])
            lowest = product.view(len(part), V, -1).amin(1)
            inside = lowest <= half * half
            reach = squares.view(-1, V).amax(1).sqrt()[:, None] + norms.sqrt()
            # twice the largest error of P float64 products and sums
            near = (lowest - half * half).abs() <= 2.0**-52 * (P + 8) * reach.square()
            i, j = near.nonzero(as_tuple=True)
            inside[i, j] = nearest(views, part[i], raw, j, budget)[0] <= half
            members[columns] += inside.sum(0)
            total[columns] += lowest.clamp_(min=0).sqrt_().sum(0)
    best = int(total.masked_fill(members < members.amax(), torch.inf).argmin())
    return views[drawn[0][best], drawn[1][best]].double().flatten()


def _refined(
    views: Tensor, images: Tensor, point: Tensor, half: float, rounds: int, budget: int
) -> tuple[int, float, Tensor]:
    """Move a point to the mean of its members' nearest views while that is better.

    Return the number of its members, minus the mean distance, and the point.
    """
    best = (-1, 0.0, point)
    for _ in range(rounds + 1):
        distance, view = nearest(views, images, point[None], torch.zeros_like(images), budget)
        inside = distance <= half
        scored = (int(inside.sum()), -float(distance.mean()), point)
        if scored[:2] <= best[:2]:
            break
        best = scored
        if not scored[0]:
            break
        point = _mean(views, images[inside], view[inside], budget)
    return best
