"""Counter-based draws: a random number is a function of (seed, names of its use, indices) alone.

    word(key, i, j, ...) = Philox4x32-10(counter = (i, j, ...), key)
                           Salmon et al., "Parallel random numbers", SC 2011

There is no state to carry, save or synchronise. So a draw does not depend on batch order, worker,
rank, or earlier draws, and any draw can be made again alone. The words are made of integer
operations only: they are equal on CPU and CUDA, bit for bit.
"""

import hashlib
import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # Philox's constants for four 32-bit words
_WEYL = (0x9E3779B9, 0xBB67AE85)
_UNIFORM_BITS = 32  # two places of `Key.shuffle` are jointly uniform to this many bits
_FEWEST_ROUNDS = 4  # of two steps each: twice the four steps of Luby and Rackoff 1988


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute Philox4x32-10 on int64 tensors that hold unsigned 32-bit words.

    `key` is an unsigned 64-bit integer. A product of two 32-bit words overflows int64's sign, but
    two's complement keeps its 64 bits, and shifting, then masking, reads them.
    """
    a, b, c, d = counter
    low, high = key & _MASK, key >> 32
    for _ in range(10):
        p, q = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (q >> 32 & _MASK) ^ b ^ low, q & _MASK, (p >> 32 & _MASK) ^ d ^ high, p & _MASK
        low, high = low + _WEYL[0] & _MASK, high + _WEYL[1] & _MASK
    return a, b, c, d


def _below(high: int, a: Tensor, b: Tensor) -> Tensor:
    """Map 32-bit words to integers: uniform in [0, high) for uniform words.

    The result is floor(high * (a * 2**32 + b) / 2**64), in 64-bit steps that do not overflow.
    """
    return (a * high + (b * high >> 32)) >> 32


def _hash(*parts: int | str) -> int:
    """Return 64 bits of BLAKE2b over the parts.

    Each part is hashed with its type and length, so that ("a", "b") and ("ab",) differ.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        text = f"{type(part).__name__}:{part}"
        digest.update(f"{len(text)}:{text}".encode())
    return int.from_bytes(digest.digest(), "little")


# What torch.compiler.assume_constant_result does, without its import of the whole compiler
_hash.__dict__["_dynamo_marked_constant"] = True


@dataclass(frozen=True)
class Key:
    """The address of a draw: a seed, names and indices.

    Seed and names choose the stream; up to four indices choose the place in it. Indices are
    integers or integer tensors in [0, 2**32) that broadcast against each other. A draw has their
    common shape and device.

    Example:
        >>> image, view = torch.arange(3)[:, None], torch.arange(2)
        >>> key = Key(seed=0).named("crop").at(image, view)  # 3 images, 2 views
        >>> key.named("scale").uniform(0.08, 1.0).shape
        torch.Size([3, 2])
        >>> whole, alone = Key(7).at(torch.arange(100)).uniform(), Key(7).at(42).uniform()
        >>> bool(whole[42] == alone)
        True
    """

    seed: int
    names: tuple[int | str, ...] = ()
    indices: tuple[int | Tensor, ...] = ()

    def named(self, *names: int | str) -> "Key":
        """Return the same place in another stream: draws for different names are independent."""
        return replace(self, names=(*self.names, *names))

    def at(self, *indices: int | Tensor) -> "Key":
        """Return the same stream with these indices appended to its own.

        Raises:
            ValueError: More than four indices, or an index outside [0, 2**32).
            TypeError: A tensor index that is not of an integer type.
        """
        for index in indices:
            if isinstance(index, Tensor):
                if (
                    index.dtype.is_floating_point
                    or index.dtype.is_complex
                    or index.dtype == torch.bool
                ):
                    raise TypeError(
                        f"An index of a draw is an integer tensor, not {index.dtype}. Convert it "
                        "with .long()."
                    )
                # on a device the check would wait for it, and in a graph break it
                readable = index.device.type == "cpu" and not torch.compiler.is_compiling()
                if readable and index.numel():
                    low, high = (int(bound) for bound in index.aminmax())
                else:
                    continue
            else:
                low = high = index
            if low < 0 or high > _MASK:
                raise ValueError(
                    f"An index of a draw lies in [0, 2**32), not at {low if low < 0 else high}. "
                    "Fold larger numbers into names."
                )
        if len(self.indices) + len(indices) > 4:
            raise ValueError(
                f"A draw has at most 4 indices, not {len(self.indices) + len(indices)}. Put the "
                "fixed ones into its names."
            )
        return replace(self, indices=(*self.indices, *indices))

    def words(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw four int64 tensors of independent uniform 32-bit words, of the indices' shape."""
        device = next(
            (index.device for index in self.indices if isinstance(index, Tensor)),
            torch.device("cpu"),
        )
        padded = (*self.indices, *(0,) * (4 - len(self.indices)))
        # a number is filled in on the device: a copy to it would wait for it
        a, b, c, d = torch.broadcast_tensors(
            *(
                i.to(device, torch.int64)
                if isinstance(i, Tensor)
                else torch.full((), i, dtype=torch.int64, device=device)
                for i in padded
            )
        )
        return philox((a, b, c, d), _hash(self.seed, *self.names))

    def bits(self) -> Tensor:
        """Draw uniform integers in [0, 2**62), int64."""
        a, b, _, _ = self.words()
        return (a >> 2 << 32) | b

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw uniform numbers in [low, high), float32.

        The underlying 24-bit fraction is exact, hence equal on every device.
        """
        fraction = (self.words()[0] >> 8).to(torch.float32) * 2.0**-24
        return fraction if (low, high) == (0.0, 1.0) else fraction * (high - low) + low

    def bernoulli(self, p: float) -> Tensor:
        """Draw booleans, true with probability p."""
        return self.uniform() < p

    def integers(self, high: int) -> Tensor:
        """Draw uniform integers in [0, high), int64; bias below high * 2**-62."""
        if not 0 < high <= 1 << 31:
            raise ValueError(
                f"integers(high) draws from [0, high) with 1 <= high <= 2**31, not {high}."
            )
        a, b, _, _ = self.words()
        return _below(high, a, b)

    def normal(self) -> Tensor:
        """Draw standard normal numbers, float32, by Box and Muller in float64.

        They are equal across devices to float32 rounding.
        """
        a, b, _, _ = self.words()
        radius = (-2 * torch.log((a.double() + 1) * 2.0**-32)).sqrt()
        return (radius * torch.cos(b.double() * (2 * torch.pi * 2.0**-32))).float()

    def permutation(self, n: int) -> Tensor:
        """Draw a uniform permutation of 0..n-1, int64.

        The key's own indices must be plain integers.
        """
        return torch.argsort(self.at(torch.arange(n)).bits(), stable=True)

    def shuffle(self, index: Int[Tensor, "n"], n: int) -> Int[Tensor, "*keys n"]:
        """Return the images of the places `index` under a keyed permutation of 0..n-1.

        The rest of the permutation is not computed: time O(len(index) + sqrt(n)).

        A place is a pair (l, r) in Z_a x Z_b, with a = ceil(sqrt(n)) and b = ceil(n / a), both at
        least 2. A round adds to each half a random function of the other, and can be undone, so
        that t rounds permute the a*b pairs:

            l <- l + F(r) mod a,        r <- r + G(l) mod b.

        The functions are tables: one Philox call on t*a counters makes all of them, of 64 bits an
        entry (bias below a * 2**-64). A place that comes out at n or beyond (from n = 3 on fewer
        than a do) goes through again until it is inside (cycle-walking: Black and Rogaway 2002,
        "Ciphers with arbitrary finite domains"). The result is a permutation of 0..n-1, uniform if
        the one of a*b is.

        Two places that differ in one half only stay so through a round with probability at most
        1/b, and are spread otherwise. Where a*b = n, the law of a pair is within b**(1-t) of the
        uniform one in total variation (a test computes it), and t, at least 4, makes that less than
        2**-32. This is a law of pairs (tests look at triples and whole sets too). Of the n! orders
        not all can be reached from the bits of a key, nor an odd one where a*b = n is odd.
        `permutation` draws all orders of a short list; it is another permutation, not this one.

        The key's indices are at most three.

        Args:
            index: Places in [0, n), one dimension, any order, repeated or not.
            n: Length of the permutation, 1 <= n <= 2**32.

        Returns:
            int64 of the shape of the key's own indices (plain integers: none), then of `index`, on
            the device of `index`.

        Raises:
            ValueError: An n out of range, or a place outside [0, n).

        Example:
            >>> key = Key(0).named("negatives").at(7)
            >>> sorted(key.shuffle(torch.arange(5), 5).tolist())
            [0, 1, 2, 3, 4]
            >>> places = torch.tensor([42, 3])
            >>> whole, part = key.shuffle(torch.arange(100), 100), key.shuffle(places, 100)
            >>> bool((part == whole[places]).all())
            True
        """
        if not 1 <= n <= 1 << 32:
            raise ValueError(
                f"shuffle(index, n) permutes 0..n-1 with 1 <= n <= 2**32, not n = {n}."
            )
        if index.numel():
            low, high = (int(bound) for bound in index.aminmax())
            if low < 0 or high >= n:
                raise ValueError(
                    f"shuffle(index, {n}) takes places in [0, {n}), not "
                    f"{low if low < 0 else high}. Give indices of the permutation."
                )
        a = max(2, math.isqrt(n - 1) + 1)
        b = max(2, -(-n // a))
        rounds = max(_FEWEST_ROUNDS, 1 - (-_UNIFORM_BITS // (b.bit_length() - 1)))
        entries = torch.arange(rounds * a, device=index.device)
        key = replace(
            self, indices=tuple(i[..., None] if isinstance(i, Tensor) else i for i in self.indices)
        )
        words = key.named("shuffle", n).at(entries).words()
        keys = words[0].shape[:-1]
        to_left, to_right = _below(a, *words[:2]).flatten(), _below(b, *words[2:]).flatten()
        # Places and tables lie flat: the tables of key number j begin at j * rounds * a
        tables = torch.arange(keys.numel(), device=index.device).repeat_interleave(
            len(index)
        ) * len(entries)
        places = index.long().repeat(keys.numel())
        walking = torch.arange(len(places), device=index.device)
        while len(walking):
            first, place = tables[walking], places[walking]
            left, right = place // b, place % b
            for _ in range(rounds):
                left = (left + to_left.index_select(0, first + right)) % a
                right = (right + to_right.index_select(0, first + left)) % b
                first = first + a
            place = left * b + right
            places[walking] = place
            walking = walking[place >= n]
        return places.view(*keys, len(index))

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """Make a torch.Generator seeded by this key, for draws in sequence: initial weights."""
        return torch.Generator(device).manual_seed(self.word())

    def word(self) -> int:
        """Draw one 62-bit integer: a seed for a generator of another library.

        The key's indices must be plain integers.
        """
        return int(self.bits())
