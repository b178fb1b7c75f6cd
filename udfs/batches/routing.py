"""Which bucket a record belongs to, and what becomes of one that came to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from zlib import crc32

import numpy as np
import numpy.typing as npt

from udfs.batches.buckets import sql_buckets
from udfs.batches.events import IntArray, Reject


@dataclass(frozen=True, slots=True)
class Routing:
    """Which bucket an entity belongs to.

    Attributes:
        labels: The buckets' labels; Flink hashes a label to a subtask.
        by_record_key: Whether the first stage's bucket was told from the Kafka record's key.
    """

    labels: tuple[int, ...]
    by_record_key: bool = False

    def of(self, entity: str) -> int:
        """The label of an entity's bucket; the same in every process and release."""
        return self.labels[crc32(entity.encode()) % len(self.labels)]

    def strays(self, bucket: int, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which records their Kafka key led to another bucket than their key field, bool (n,).

        Their history is elsewhere: their features would be wrong, and nobody would know.
        """
        if len(self.labels) == 1 or not self.by_record_key:
            return np.zeros(len(keys), np.bool_)
        own: npt.NDArray[np.bool_] = (
            np.array(self.labels)[sql_buckets(keys, len(self.labels))] != bucket
        )
        return own


class Records(Protocol):
    """Records and their places, of equal length."""

    @property
    def raw(self) -> list[bytes]:
        """Their bytes."""
        ...

    @property
    def positions(self) -> IntArray:
        """Partition, offset and Kafka time in ms, int64 (n, 3)."""
        ...


def refused(records: Records, row: int, code: str, message: str) -> Reject:
    """The refusal of one of some records."""
    partition, offset, kafka_time_ms = records.positions[row].tolist()
    return Reject(records.raw[row], code, message, partition, offset, kafka_time_ms)


def conflict(records: Records, row: int) -> Reject:
    """The refusal of one whose id is another's."""
    return refused(records, row, "id_conflict", "its id was seen before with another content")


def stray(records: Records, row: int, key: str) -> Reject:
    """The refusal of one that came to another bucket than its key's."""
    message = f"the record's Kafka key is not its {key}, which decides where it is kept"
    return refused(records, row, "key_mismatch", message)
