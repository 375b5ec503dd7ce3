"""One uniform number per (seed, position), by counting instead of by state. Knows no batch, no model, no sampler.

The generator is splitmix64 (Steele, Lea, Flood 2014) read at an arbitrary index: a draw depends on nothing but its seed
and its position, hence not on the batch around it, on a retry, or on which worker makes it.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15  # odd, 2^64 / golden ratio: consecutive counters land far apart
MUL_1 = 0xBF58476D1CE4E5B9
MUL_2 = 0x94D049BB133111EB
_SHIFTS = tuple(map(np.uint64, (30, 27, 31)))
_MULS = tuple(map(np.uint64, (MUL_1, MUL_2)))
ULP = 2.0**-53  # a double holds 53 bits exactly, so the top 53 of a word are a uniform in [0, 1)

Words = NDArray[np.uint64]


def mix64(word: int) -> int:
    """A bijection of 64-bit words in which every input bit flips half of the output bits."""
    word = ((word ^ (word >> 30)) * MUL_1) & _MASK
    word = ((word ^ (word >> 27)) * MUL_2) & _MASK
    return word ^ (word >> 31)


def mix64s(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`mix64` for an array."""
    words = words ^ (words >> _SHIFTS[0])
    words *= _MULS[0]
    words ^= words >> _SHIFTS[1]
    words *= _MULS[1]
    words ^= words >> _SHIFTS[2]
    return words


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) with which output token `position` of a choice with `seed` is drawn."""
    return (mix64((mix64(seed & _MASK) + (position + 1) * GAMMA) & _MASK) >> 11) * ULP


def uniforms(seeds: Sequence[int] | Words, positions: Sequence[int] | NDArray[np.int32]) -> NDArray[np.float64]:
    """`uniform` of each pair, bit for bit; [S] float64."""
    words = mix64s(seeds if isinstance(seeds, np.ndarray) else np.array([seed & _MASK for seed in seeds], np.uint64))
    words += (np.asarray(positions, dtype=np.uint64) + np.uint64(1)) * np.uint64(GAMMA)
    return (mix64s(words) >> np.uint64(11)).astype(np.float64) * ULP


def choice_seed(seed: int, index: int) -> int:
    """The seed of choice `index` of n; choice 0 draws as the same request with n = 1 would."""
    return seed if index == 0 else mix64((mix64(seed & _MASK) ^ index * GAMMA) & _MASK)


def seed_from_text(text: str) -> int:
    """A 64-bit seed from a request id, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
