"""The bank of unrecognizable images: one direction that their embeddings share.

    u = mean of unit embeddings / R,    R = |mean of unit embeddings|  (the resultant)

A network trained on recognizable identities sends unrecognizable images of any cause (blur,
occlusion, pixels, darkness) into one cluster (Deng et al. 2021, "Harnessing Unrecognizable Faces").
The embedding recognizability score of that paper is the distance 1 - cos(v, u).

u has length 1. With the raw mean, of length R < 1, v - <v, u> u would be no projection.

The cluster is found by average linkage on 1 - cosine. Single linkage chained 3,047 of 3,300 images
into one blob in a trial. Images ruined in different ways need not share a cluster: centers of
images of 3 pixels and of 1 pixel had a cosine of -.01. Several centers, of which the nearest
counts, are an extension of the paper.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist
from torch import Tensor

from marginlab.statistics import unit_vectors

TIGHT = 0.8
"""Least resultant of a tight cluster."""
MEMORY = 1 << 30  # bytes of the distances of all pairs of a clustering


@dataclass(frozen=True, eq=False)
class UnrecognizableBank:
    """Centers of unrecognizable images.

    Args:
        centers: (U, D), scaled to length 1; in float64 where the bank made them.
        resultants: (U,) lengths of the means, between 0 and 1.
        sizes: (U,) numbers of images.
        members: (N,) marks the images of the bank among those that it was found in.

    Example:
        >>> bank = UnrecognizableBank.from_degraded(torch.tensor([[1.0, 0.1], [1.0, -0.1]]))
        >>> bank.centers, bank.distances(torch.eye(2))
        (tensor([[1., 0.]], dtype=torch.float64), tensor([0., 1.]))
    """

    centers: Float[Tensor, "U D"]
    resultants: Float[Tensor, " U"]
    sizes: Int64[Tensor, " U"]
    members: Bool[Tensor, " N"]

    def __post_init__(self) -> None:
        if self.centers.ndim != 2 or not len(self.centers):
            raise ValueError(f"Centers are (U, D), U at least 1, not {tuple(self.centers.shape)}.")
        object.__setattr__(self, "centers", unit_vectors(self.centers))
        if not bool((self.centers.square().sum(1) > 0.5).all()):
            raise ValueError("A center of unrecognizable images has length 0, and no direction.")

    @classmethod
    def from_degraded(
        cls, embeddings: Float[Tensor, "N D"], *, centers: int = 1, tight: float = TIGHT
    ) -> "UnrecognizableBank":
        """Take embeddings of images that were ruined on purpose.

        Args:
            embeddings: (N, D), of any length.
            centers: Number of centers; several are found by average linkage.
            tight: Least resultant of each.

        Raises:
            ValueError: Embeddings are no (N, D) finite numbers with N at least 2, or a resultant is
                below `tight`: the images do not share a direction.
        """
        everything = torch.ones(len(embeddings), dtype=torch.bool)
        return cls.from_mask(embeddings, everything, centers=centers, tight=tight)

    @classmethod
    def from_mask(
        cls,
        embeddings: Float[Tensor, "N D"],
        mask: Bool[Tensor, " N"],
        *,
        centers: int = 1,
        tight: float = TIGHT,
    ) -> "UnrecognizableBank":
        """Take the marked embeddings, such as those that a person has found unrecognizable.

        Args:
            embeddings: (N, D), of any length.
            mask: Marks the unrecognizable ones.
            centers: Number of centers; several are found by average linkage.
            tight: Least resultant of each.

        Raises:
            ValueError: As for `from_degraded`, or the mask does not fit.
        """
        rows = _directions(embeddings)
        mask = _marked(mask, rows, least=2)
        group = torch.full((len(rows),), -1, dtype=torch.int64, device=rows.device)
        _check_centers(centers, int(mask.sum()))
        group[mask] = _clusters(rows[mask], centers=centers).to(rows.device)
        return cls._of(rows, group, centers, tight)

    @classmethod
    def from_clustering(
        cls,
        embeddings: Float[Tensor, "N D"],
        *,
        distance: float = 0.5,
        centers: int = 1,
        tight: float = 0.0,
        recognizable: Bool[Tensor, " N"] | None = None,
        most_recognizable: float = 0.5,
    ) -> "UnrecognizableBank":
        """Take the largest cluster of a mixed pool, which is the unrecognizable one.

        The size of the next cluster says little about a good one: 2.4 times smaller in a trial.
        `accept` says whether the bank found is the right one.

        Args:
            embeddings: (N, D) of images of all kinds, of any length.
            distance: Clusters are joined up to this mean distance 1 - cosine.
            centers: Number of largest clusters to take.
            tight: Least resultant of each.
            recognizable: Marks images that are known to be recognizable.
            most_recognizable: Largest share of these that may fall into the bank.

        Raises:
            ValueError: As for `from_mask`; there are fewer clusters than centers; more of the
                recognizable images fall into the bank; or the pool is too large to be clustered.
        """
        rows = _directions(embeddings)
        if not 0 < distance < 2:
            raise ValueError(f"A distance 1 - cosine is in (0, 2), such as 0.5, not {distance}.")
        _check_centers(centers, len(rows))
        if recognizable is not None:
            recognizable = _marked(recognizable, rows, least=1)
        label = _clusters(rows, distance=distance).to(rows.device)
        sizes = torch.bincount(label)
        order = sizes.sort(descending=True, stable=True).indices
        if len(order) < centers or int(sizes[order[centers - 1]]) < 2:
            raise ValueError(
                f"{centers} clusters of 2 images or more are wanted, but {len(rows)} images fall "
                f"into clusters of {sizes[order][:5].tolist()}... Take a larger distance than "
                f"{distance}, or more unrecognizable images."
            )
        group = torch.full_like(label, -1)
        for number, chosen in enumerate(order[:centers].tolist()):
            group[label == chosen] = number
        bank = cls._of(rows, group, centers, tight)
        if recognizable is not None:
            share = float(bank.members[recognizable.cpu()].double().mean())
            if not share <= most_recognizable:
                raise ValueError(
                    f"{share:.1%} of {int(recognizable.sum())} recognizable images fall into the "
                    f"bank of {int(bank.sizes.sum())}, more than {most_recognizable:.0%}: the "
                    f"largest cluster is not the unrecognizable one. Take a smaller distance than "
                    f"{distance}, or more unrecognizable images."
                )
        return bank

    @classmethod
    def _of(cls, rows: Tensor, group: Tensor, centers: int, tight: float) -> "UnrecognizableBank":
        """Make the bank of the rows of groups 0 to `centers` - 1; -1 is no group."""
        sizes = torch.bincount(group[group >= 0], minlength=centers)
        if not bool(sizes.all()):
            raise ValueError(
                f"{int(sizes.sum())} embeddings fall into {int((sizes > 0).sum())} clusters, not "
                f"{centers}, for too many are equal. Take fewer centers."
            )
        means = torch.stack([rows[group == number].mean(0) for number in range(centers)])
        resultants = means.square().sum(1).sqrt()
        if not bool((resultants >= tight).all()) or not bool((resultants > 0).all()):
            raise ValueError(
                f"Embeddings of unrecognizable images have resultants "
                f"{[round(float(r), 3) for r in resultants]} over {sizes.tolist()} images, below "
                f"{tight:g}: they share no direction. Ruin the images more, take several centers, "
                "or lower `tight`."
            )
        return cls(means, resultants, sizes, (group >= 0).cpu())

    def distances(self, embeddings: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Return 1 - cosine with the nearest center: the embedding recognizability score.

        Args:
            embeddings: (B, D), of any length.

        Raises:
            ValueError: The embeddings have another dimension than the centers.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.centers.shape[1]:
            raise ValueError(
                f"A bank of centers {tuple(self.centers.shape)} measures embeddings (B, "
                f"{self.centers.shape[1]}), not {tuple(embeddings.shape)}. Encode all by one "
                "network."
            )
        rows = unit_vectors(embeddings)
        return 1 - (rows @ self.centers.to(rows).T).amax(1)

    def accept(
        self,
        degraded: Float[Tensor, "M D"],
        recognizable: Float[Tensor, "N D"],
        *,
        least_cosine: float = 0.9,
        within: float = 0.5,
        most_recognizable: float = 0.5,
    ) -> tuple[float, float]:
        """Compare with images of known kinds: do degraded ones lie here, and recognizable ones not?

        Args:
            degraded: (M, D) embeddings of ruined images.
            recognizable: (N, D) embeddings of images at full resolution.
            least_cosine: Least cosine of the nearest center with the mean direction of `degraded`.
            within: An image is taken for unrecognizable below this distance 1 - cosine.
            most_recognizable: Largest share of `recognizable` taken for unrecognizable.

        Returns:
            The cosine and the share.

        Raises:
            ValueError: One of the two is out of its bound.
        """
        mean = _directions(degraded).mean(0, keepdim=True)
        cosine = float(1 - self.distances(mean.float())[0])
        share = float((self.distances(recognizable) < within).double().mean())
        if not (cosine >= least_cosine and share <= most_recognizable):  # also if there are none
            raise ValueError(
                f"The bank is not that of unrecognizable images: its cosine with {len(degraded)} "
                f"degraded ones is {cosine:.3f} (at least {least_cosine:g}), and {share:.1%} of "
                f"{len(recognizable)} recognizable ones lie within {within:g} (at most "
                f"{most_recognizable:.0%}). Ruin the images more, or train the network longer."
            )
        return cosine, share


def _directions(embeddings: Tensor) -> Float[Tensor, "N D"]:
    """Return unit vectors in float64."""
    if embeddings.ndim != 2 or len(embeddings) < 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"A bank takes at least 2 embeddings (N, D), not {embeddings.dtype} "
            f"{tuple(embeddings.shape)}."
        )
    if not bool(embeddings.isfinite().all()):
        raise ValueError("Embeddings of a bank are finite, but some hold NaN or infinity.")
    return unit_vectors(embeddings.detach().double())


def _marked(mask: Tensor, rows: Tensor, *, least: int) -> Bool[Tensor, " N"]:
    """Return a mask of rows on their device, after a look at it."""
    if mask.shape != rows.shape[:1] or mask.dtype != torch.bool or int(mask.sum()) < least:
        raise ValueError(
            f"A mask of {len(rows)} embeddings marks at least {least} of them by bools, not "
            f"{mask.dtype} {tuple(mask.shape)} with {int(mask.sum())} marked."
        )
    return mask.to(rows.device)


def _check_centers(centers: int, images: int) -> None:
    if not 1 <= centers <= images:
        raise ValueError(f"{images} images have 1 to {images} centers, not {centers}.")


def _clusters(
    rows: Float[Tensor, "N D"], *, centers: int = 0, distance: float = 0.0
) -> Int64[Tensor, " N"]:
    """Return the cluster of each row by average linkage: cut at a number, else at a distance."""
    if centers == 1:
        return torch.zeros(len(rows), dtype=torch.int64)
    if 4 * len(rows) * (len(rows) - 1) > MEMORY:
        most = int((MEMORY / 4) ** 0.5)
        raise ValueError(
            f"The distances of all pairs of {len(rows):,} images take more than {MEMORY >> 20} "
            f"MiB. Give a random choice of at most {most:,}."
        )
    pairs = pdist(rows.cpu().numpy(), "sqeuclidean") / 2  # of unit vectors: 1 - cosine
    tree = linkage(pairs, "average")
    found = fcluster(tree, centers, "maxclust") if centers else fcluster(tree, distance, "distance")
    return torch.from_numpy(found.astype(np.int64) - 1)
