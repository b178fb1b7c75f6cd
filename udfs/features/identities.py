"""Who events and labels are: their ids and contents, as hashes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from udfs.batches.events import FloatArray, IntArray
from udfs.features import log_kernels as kernels

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Identities:
    """What names an entry: a hash of its id, and one of its content.

    Attributes:
        ids: xxh3 of the id's UTF-8, int64 (n,).
        checks: xxh3 of the record (events) or the bits of the value (labels), int64 (n,).
    """

    ids: IntArray
    checks: IntArray

    @classmethod
    def of_events(cls, ids: Sequence[str], raw: Sequence[bytes]) -> Identities:
        """The identities of events: two records of one id and other bytes differ in the check."""
        return cls(_hash(map(str.encode, ids), len(ids)), _hash(raw, len(raw)))

    @classmethod
    def without_content(cls, ids: Sequence[str]) -> Identities:
        """Of events whose records are not known: any record of such an id is a repeat."""
        hashes = _hash(map(str.encode, ids), len(ids))
        return cls(hashes, np.full(len(ids), kernels.ANY_CONTENT, np.int64))

    @classmethod
    def of_labels(cls, ids: Sequence[str], values: FloatArray) -> Identities:
        """The identities of labels: a corrected label differs in the check."""
        return cls(_hash(map(str.encode, ids), len(ids)), values.astype(np.float64).view(np.int64))

    def select(self, rows: Rows) -> Identities:
        """Those of these rows alone."""
        return Identities(self.ids[rows], self.checks[rows])

    @classmethod
    def none(cls, n: int) -> Identities:
        """For stages that need none."""
        zeros = np.zeros(n, np.int64)
        return cls(zeros, zeros)


def _hash(texts: Iterable[bytes], n: int) -> IntArray:
    return np.fromiter(map(xxh3_64_intdigest, texts), np.uint64, n).view(np.int64)
