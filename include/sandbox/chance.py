"""Chance without state: every draw is a hash of the seed and of what is drawn, so no order of requests changes it."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")


class Chance:
    def __init__(self, seed: int) -> None:
        self._seed = blake2b(str(seed).encode(), digest_size=16).digest()

    def bits(self, *parts: object) -> int:
        """64 bits named by `parts`."""
        name = "|".join(map(str, parts)).encode()
        return int.from_bytes(blake2b(name, digest_size=8, key=self._seed).digest())

    def __call__(self, *parts: object) -> float:
        """A number in [0, 1)."""
        return (self.bits(*parts) >> 11) / (1 << 53)

    def between(self, low: int, high: int, *parts: object) -> int:
        """An integer in [low, high]."""
        return low + self.bits(*parts) % (high - low + 1)

    def pick(self, choices: Sequence[T], *parts: object) -> T:
        return choices[self.bits(*parts) % len(choices)]

    def text(self, alphabet: str, length: int, *parts: object) -> str:
        """`length` characters of `alphabet`, e.g. an openid."""
        digest = blake2b("|".join(map(str, parts)).encode(), digest_size=max(length, 1), key=self._seed).digest()
        return "".join(alphabet[byte % len(alphabet)] for byte in digest)
