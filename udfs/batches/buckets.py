"""Bucket labels that spread evenly over the subtasks.

Flink sends a key to a subtask by hashing it, so a handful of arbitrary labels can all land on one
subtask. The labels chosen here are spread evenly by both exchanges a bucket goes through: the
DataStream's ``keyBy`` (a Java int) and SQL's ``GROUP BY`` (a binary row of one INT).

The hashes are Flink's own: ``MathUtils.murmurHash``, ``MurmurHashUtils.hashBytesByWords`` and
``KeyGroupRangeAssignment`` (Apache Flink 2.3); a test compares them with the running classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from numba import njit

from udfs.batches.events import IntArray

DEFAULT_MAX_PARALLELISM = 128
"""Key groups of a job; Flink's own default for small parallelisms."""

_MASK = 0xFFFFFFFF


def _rotate(value: int, bits: int) -> int:
    value &= _MASK
    return ((value << bits) | (value >> (32 - bits))) & _MASK


def _mix_k1(k1: int) -> int:
    return (_rotate((k1 * 0xCC9E2D51) & _MASK, 15) * 0x1B873593) & _MASK


def _mix_h1(h1: int, k1: int) -> int:
    return (_rotate(h1 ^ k1, 13) * 5 + 0xE6546B64) & _MASK


def _finish(h: int) -> int:
    h ^= h >> 16
    h = (h * 0x85EBCA6B) & _MASK
    h ^= h >> 13
    h = (h * 0xC2B2AE35) & _MASK
    return h ^ (h >> 16)


def _signed(value: int) -> int:
    return value - (1 << 32) if value & 0x80000000 else value


def murmur_int(code: int) -> int:
    """``MathUtils.murmurHash``: a Java hash code to a non-negative int."""
    result = _signed(_finish(_mix_h1(0, _mix_k1(code & _MASK)) ^ 4))
    return result if result >= 0 else (-result if result != -(1 << 31) else 0)


def hash_int_row(value: int) -> int:
    """``BinaryRowData.hashCode`` of a row of one INT: 8 header bytes and 8 of value."""
    h1 = 42
    for word in (0, 0, value & _MASK, 0):
        h1 = _mix_h1(h1, _mix_k1(word))
    return _signed(_finish(h1 ^ 16))


def key_group(hash_code: int, max_parallelism: int) -> int:
    """``KeyGroupRangeAssignment.computeKeyGroupForKeyHash``."""
    return murmur_int(hash_code) % max_parallelism


def even_labels(count: int, max_parallelism: int = DEFAULT_MAX_PARALLELISM) -> tuple[int, ...]:
    """``count`` labels; the n-th lies in the n-th of ``count`` equal ranges of key groups.

    So at any parallelism that divides ``count``, each subtask gets the same number of buckets, in
    both exchanges. The labels depend on ``count`` alone: they are the same after every restart.

    Raises:
        ValueError: more labels than key groups.
    """
    if not 1 <= count <= max_parallelism:
        raise ValueError(f"{count} buckets do not fit {max_parallelism} key groups")
    hashes: tuple[Callable[[int], int], ...] = (lambda v: v, hash_int_row)
    labels: list[int] = []
    candidate = 0
    for wanted in range(count):
        while any(
            key_group(h(candidate), max_parallelism) * count // max_parallelism != wanted
            for h in hashes
        ):
            candidate += 1
        labels.append(candidate)
        candidate += 1
    return tuple(labels)


def sql_buckets(keys: Sequence[str], count: int) -> IntArray:
    """The number of each key's bucket, 0 to ``count - 1``, as the SQL of the source computes it.

    That is ``MOD(ABS(HASH_CODE(DECODE(key, 'ISO-8859-1'))), count)``: Java's ``String.hashCode``
    of the key's UTF-8 bytes as characters. Keys have no control characters.
    """
    text = ("\n".join(keys) + "\n").encode()
    hashes: IntArray = java_hashes(np.frombuffer(text, np.uint8), len(keys))
    return np.abs(hashes) % count


@njit(cache=True)
def java_hashes(text: npt.NDArray[np.uint8], count: int) -> IntArray:
    """``String.hashCode`` of texts that a line feed ends, int64 (count,)."""
    hashes = np.empty(count, np.int64)
    n, code = 0, np.int32(0)
    for character in text:
        if character == 10:
            hashes[n] = code
            n, code = n + 1, np.int32(0)
        else:
            code = np.int32(31 * code + character)
    return hashes
