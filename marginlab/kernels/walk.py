"""The walk over a matrix that is never held: its blocks, row by row, within a byte budget.

A reduction (minimum, top-k, softmax sum) asks for the blocks of its (rows, columns) matrix, makes
one block at a time with a matrix product, reduces it, and forgets it. Its memory is therefore the
budget, whatever the number of rows and columns.
"""

from collections.abc import Iterator

# bytes of a block: large enough for full-speed matrix products, small enough for the second pass to
# find it in cache
BUDGET = 32 * 2**20


def walk(
    rows: int,
    columns: int,
    *,
    entry: int = 4,
    budget: int = BUDGET,
    unit: tuple[int, int] = (1, 1),
    upper: bool = False,
) -> Iterator[tuple[slice, slice]]:
    """Cut a (rows, columns) matrix into blocks of at most `budget` bytes, columns fastest.

    The blocks cover every entry once.

    Args:
        rows, columns: The size of the matrix.
        entry: Bytes held for each entry of a block, all temporaries counted.
        budget: Bytes of a block; a block is never smaller than one unit, even if a unit exceeds the
            budget.
        unit: Block bounds are multiples of these (the last block may be short), so that entries
            that belong together are not cut apart.
        upper: Leave out blocks that lie wholly below the diagonal of a square matrix: each
            unordered pair once. Blocks are then square.

    Example:
        >>> [(r.start, r.stop, c.start, c.stop) for r, c in walk(4, 3, budget=4 * 4)]
        [(0, 2, 0, 2), (0, 2, 2, 3), (2, 4, 0, 2), (2, 4, 2, 3)]
    """
    if budget <= 0:
        raise ValueError(f"A block needs a positive byte budget, not {budget}.")
    if upper and (rows != columns or unit[0] != unit[1]):
        raise ValueError(
            f"Only a square walk has an upper half, not one of {rows} x {columns} in units of "
            f"{unit[0]} x {unit[1]}."
        )
    most = budget // entry  # entries of a block
    side = int(most**0.5)
    if upper:
        high = wide = _multiple(side, unit[0])
    else:
        high = _multiple(min(rows, max(side, most // max(columns, 1)), most // unit[1]), unit[0])
        wide = _multiple(min(columns, most // high), unit[1])
    for top in range(0, rows, high):
        for left in range(top if upper else 0, columns, wide):
            yield slice(top, min(top + high, rows)), slice(left, min(left + wide, columns))


def _multiple(n: int, unit: int) -> int:
    return max(n // unit, 1) * unit
