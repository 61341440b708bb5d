"""Counter-based draws: a random number is a function of (seed, names of what it is for, indices), and of nothing else.

    word(key, i, j, ...) = Philox4x32-10(counter = (i, j, ...), key)          Salmon et al., "Parallel random numbers", SC 2011

There is no state to carry, save or synchronise, so a draw does not depend on batch order, worker, rank, or on what was drawn before it,
and any one of them can be made again alone. The words are made of integer operations only: they are equal on CPU and CUDA, bit for bit.
"""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # Philox's constants for four 32-bit words
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 on int64 tensors that hold unsigned 32-bit words; `key` is an unsigned 64-bit integer.

    A product of two 32-bit words overflows int64's sign, but two's complement keeps its 64 bits, and shifting, then masking, reads them.
    """
    a, b, c, d = counter
    low, high = key & _MASK, key >> 32
    for _ in range(10):
        p, q = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (q >> 32 & _MASK) ^ b ^ low, q & _MASK, (p >> 32 & _MASK) ^ d ^ high, p & _MASK
        low, high = low + _WEYL[0] & _MASK, high + _WEYL[1] & _MASK
    return a, b, c, d


def _hash(*parts: int | str) -> int:
    """64 bits of BLAKE2b over the parts, each with its type and length, so that ("a", "b") and ("ab",) differ."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        text = f"{type(part).__name__}:{part}"
        digest.update(f"{len(text)}:{text}".encode())
    return int.from_bytes(digest.digest(), "little")


@dataclass(frozen=True)
class Key:
    """The address of a draw: a seed and names, which choose the stream, and up to four indices, which choose the place in it.

    Indices are integers or integer tensors in [0, 2**32) that broadcast against each other; a draw has their common shape and device.

    >>> key = Key(seed=0).named("crop").at(torch.arange(3)[:, None], torch.arange(2))      # 3 images, 2 views
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
        """The same place in another stream: draws for different names are independent."""
        return replace(self, names=(*self.names, *names))

    def at(self, *indices: int | Tensor) -> "Key":
        """The same stream with these indices added behind the ones it has.

        Raises
        ------
        ValueError: more than four indices, or an index outside [0, 2**32).
        TypeError: a tensor index that is not of an integer type.

        """
        for index in indices:
            if isinstance(index, Tensor):
                if index.dtype.is_floating_point or index.dtype.is_complex or index.dtype == torch.bool:
                    raise TypeError(f"An index of a draw is an integer tensor, not {index.dtype}. Convert it with .long().")
                if index.device.type == "cpu" and index.numel():  # on a device the check would wait for it
                    low, high = (int(bound) for bound in index.aminmax())
                else:
                    continue
            else:
                low = high = index
            if low < 0 or high > _MASK:
                raise ValueError(f"An index of a draw lies in [0, 2**32), not at {low if low < 0 else high}. Fold larger numbers into names.")
        if len(self.indices) + len(indices) > 4:
            raise ValueError(f"A draw has at most 4 indices, not {len(self.indices) + len(indices)}. Put the fixed ones into its names.")
        return replace(self, indices=(*self.indices, *indices))

    def words(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Four int64 tensors of independent uniform 32-bit words, of the common shape of the indices."""
        device = next((index.device for index in self.indices if isinstance(index, Tensor)), torch.device("cpu"))
        padded = (*self.indices, *(0,) * (4 - len(self.indices)))
        a, b, c, d = torch.broadcast_tensors(*(torch.as_tensor(index, dtype=torch.int64, device=device) for index in padded))
        return philox((a, b, c, d), _hash(self.seed, *self.names))

    def bits(self) -> Tensor:
        """Uniform integers in [0, 2**62), int64."""
        a, b, _, _ = self.words()
        return (a >> 2 << 32) | b

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers in [low, high), float32; the underlying 24-bit fraction is exact, hence equal on every device."""
        fraction = (self.words()[0] >> 8).to(torch.float32) * 2.0**-24
        return fraction if (low, high) == (0.0, 1.0) else fraction * (high - low) + low

    def bernoulli(self, p: float) -> Tensor:
        """True with probability p."""
        return self.uniform() < p

    def integers(self, high: int) -> Tensor:
        """Uniform integers in [0, high), int64; bias below high * 2**-62."""
        if not 0 < high <= 1 << 31:
            raise ValueError(f"integers(high) draws from [0, high) with 1 <= high <= 2**31, not {high}.")
        a, b, _, _ = self.words()
        # floor(high * (a * 2**32 + b >> 2) / 2**62), in 64-bit steps that do not overflow
        return (a * high + (b * high >> 32)) >> 32

    def normal(self) -> Tensor:
        """Standard normal numbers, float32, by Box and Muller in float64 (equal across devices to float32 rounding)."""
        a, b, _, _ = self.words()
        radius = (-2 * torch.log((a.double() + 1) * 2.0**-32)).sqrt()
        return (radius * torch.cos(b.double() * (2 * torch.pi * 2.0**-32))).float()

    def permutation(self, n: int) -> Tensor:
        """A uniform permutation of 0..n-1, int64; the key's own indices must be plain integers."""
        return torch.argsort(self.at(torch.arange(n)).bits(), stable=True)

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A torch.Generator seeded by this key, for what draws in order: initial weights."""
        return torch.Generator(device).manual_seed(self.word())

    def word(self) -> int:
        """One 62-bit integer: a seed for somebody else's generator. The key's indices must be plain integers."""
        return int(self.bits())
