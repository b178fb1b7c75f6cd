"""The slots of names: a hash table that stays fast with a million of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from xxhash import xxh3_128_digest

from udfs.compiled import Ints
from udfs.features import slot_kernels

_SMALLEST = 4_096


class SlotTable:
    """Slots by name.

    Names are known by their 128-bit xxh3: of a million, two are taken for one with a probability of
    1 in 10**27.
    """

    def __init__(self) -> None:
        self._table = np.zeros((_SMALLEST, 3), np.int64)
        self._count = 0

    def __len__(self) -> int:
        """How many names there are."""
        return self._count

    def find(self, names: Sequence[str]) -> Ints:
        """The slot of each name, -1 of one that is not there; int64 (n,)."""
        slots = np.empty(len(names), np.int64)
        slot_kernels.find(self._table, _digests(names), slots)
        return slots

    def add(self, names: Sequence[str]) -> Ints:
        """Give further slots to names that are not there, in their order; int64 (n,)."""
        slots = np.arange(self._count, self._count + len(names))
        self._count += len(names)
        if 2 * self._count > len(self._table):
            self._grow()
        slot_kernels.insert(self._table, _digests(names), slots)
        return slots

    def _grow(self) -> None:
        old = self._table[self._table[:, 2] != 0]
        self._table = np.zeros((1 << (4 * self._count).bit_length(), 3), np.int64)
        slot_kernels.insert(self._table, np.ascontiguousarray(old[:, :2]), old[:, 2] - 1)


def _digests(names: Sequence[str]) -> Ints:
    digests = b"".join(map(xxh3_128_digest, map(str.encode, names)))
    return np.frombuffer(digests, np.int64).reshape(-1, 2)
