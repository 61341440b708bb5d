"""Hypothesis strategies for embeddings, labels, pairs of views, and features of several views.

All embeddings are float64, and no entry is zero: entries are odd multiples of 1/64 below 4, which
print in few digits and shrink to one seed. What has no direction, no spread or a double is drawn on
request (`degenerate=True`).
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

try:
    import hypothesis.strategies as st
    from hypothesis.strategies import SearchStrategy
except ImportError as error:
    raise ImportError(
        "marginlab.testing draws its inputs with hypothesis, which is not installed. Say: pip "
        "install 'marginlab[test]'"
    ) from error

#: How many: exactly so many, or as a strategy says, or by default.
Count = int | SearchStrategy[int] | None

#: Small whole numbers, of which generators of torch are made.
seeds: SearchStrategy[int] = st.integers(0, 2**20)


def count(number: Count, fewest: int, most: int) -> SearchStrategy[int]:
    """The strategy of a number; of None from `fewest` to `most`."""
    if number is None:
        return st.integers(fewest, most)
    return st.just(number) if isinstance(number, int) else number


def grid(*shape: int, seed: int) -> Float[Tensor, "..."]:
    """Normal numbers, moved to odd multiples of 1/64: (shape), float64.

    Example:
        >>> grid(1, 2, seed=0) * 64
        tensor([[ 99., -19.]], dtype=torch.float64)
    """
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, dtype=torch.float64, generator=generator)
    return ((32 * normal).floor().clamp(-128, 127) * 2 + 1) / 64


def degenerate(z: Float[Tensor, "B D"], which: int) -> Float[Tensor, "B D"]:
    """Embeddings as a collapsed or dead network gives them.

    Args:
        z: embeddings.
        which: 0 all rows are one; 1 the first row is zero; 2 all are zero; 3 the last two rows
            coincide; 4 one feature is constant; 5 one row is opposite to another.
    """
    z = z.clone()
    if which == 0:
        z[:] = z[:1].clone()
    elif which == 1:
        z[:1] = 0.0
    elif which == 2:
        z[:] = 0.0
    elif which == 3:
        z[-1:] = z[:-1][-1:].clone() if len(z) > 1 else z[-1:].clone()
    elif which == 4:
        z[:, :1] = 1.0
    else:
        z[-1:] = -z[:1].clone()
    return z


def embeddings(
    rows: Count = None,
    dim: Count = None,
    degenerate_rows: bool = False,
) -> SearchStrategy[Float[Tensor, "B D"]]:
    """Embeddings (B, D).

    Args:
        rows: B; None is 2 to 8.
        dim: D; None is 1 to 5.
        degenerate_rows: draw collapsed and dead ones (`degenerate`) instead.
    """

    def made(B: int, D: int, seed: int, which: int) -> Tensor:
        z = grid(B, D, seed=seed)
        return degenerate(z, which) if degenerate_rows else z

    return st.builds(made, count(rows, 2, 8), count(dim, 1, 5), seeds, st.integers(0, 5))


def labels(rows: int, num_classes: int) -> SearchStrategy[Int[Tensor, " B"]]:
    """Labels (B,) from 0; a class may have no row, or all."""
    drawn = st.lists(st.integers(0, num_classes - 1), min_size=rows, max_size=rows)
    return drawn.map(lambda values: torch.tensor(values, dtype=torch.int64))


def two_views(
    rows: Count = None,
    dim: Count = None,
    degenerate_rows: bool = False,
) -> SearchStrategy[tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]]:
    """Two views (B, D) that resemble each other: the second is the first and half as much noise.

    With `degenerate_rows` both are made degenerate alike. Arguments as in `embeddings`.
    """

    def made(z1: Tensor, seed: int, which: int) -> tuple[Tensor, Tensor]:
        z2 = z1 + grid(*z1.shape, seed=seed) / 2
        if degenerate_rows:
            return degenerate(z1, which), degenerate(z2, which)
        return z1, z2

    return st.builds(made, embeddings(rows, dim), seeds, st.integers(0, 5))


def labelled(
    num_classes: int = 3,
    rows: Count = None,
    dim: Count = None,
    degenerate_rows: bool = False,
) -> SearchStrategy[tuple[Float[Tensor, "B D"], Int[Tensor, " B"]]]:
    """Embeddings (B, D) and their labels (B,). Arguments as in `embeddings` and `labels`."""
    return embeddings(rows, dim, degenerate_rows).flatmap(
        lambda z: st.tuples(st.just(z), labels(len(z), num_classes))
    )


def features(
    images: Count = None,
    num_views: Count = None,
    dim: Count = None,
    num_classes: int = 3,
) -> SearchStrategy[tuple[Float[Tensor, "N V D"], Int[Tensor, " N"]]]:
    """Features of N images in V views, around their classes' centers, and the labels (N,).

    Args:
        images: N; None is 6 to 12.
        num_views: V; None is 2 to 4.
        dim: D; None is 2 to 5.
        num_classes: C. Each class has at least N // C images.
    """

    def made(N: int, V: int, D: int, seed: int) -> tuple[Tensor, Tensor]:
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
        classes = (torch.arange(N) % num_classes)[order]
        centers = 2 * grid(num_classes, 1, D, seed=seed + 1)
        return centers[classes] + grid(N, V, D, seed=seed), classes

    sizes = count(images, 6, 12), count(num_views, 2, 4), count(dim, 2, 5)
    return st.builds(made, *sizes, seeds)


def given_by(
    data: Callable[[int, torch.Generator], Sequence[Tensor]], rows: Count = None
) -> SearchStrategy[tuple[Tensor, ...]]:
    """Tensors that `data(rows, generator)` returns. rows: None is 6 to 12."""
    return st.builds(
        lambda n, seed: tuple(data(n, torch.Generator().manual_seed(seed))),
        count(rows, 6, 12),
        seeds,
    )
