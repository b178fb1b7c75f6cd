"""Finds the records in a joined micro-batch, compiled to machine code by Numba."""

from __future__ import annotations

import numpy as np

from udfs.compiled import Bytes, Ints, compiled

SPACE, MINUS, ZERO = 32, 45, 48
LARGEST = 2**63 - 1


@compiled
def _number(text: Bytes, at: int) -> tuple[int, int]:
    """A decimal int64 that a space ends, and where what follows it begins; -1 if it is none."""
    if at < 0 or at >= len(text):
        return 0, -1
    sign, first = (-1, at + 1) if text[at] == MINUS else (1, at)
    at, value = first, 0
    while at < len(text) and ZERO <= text[at] < ZERO + 10:
        digit = text[at] - ZERO
        if value > LARGEST // 10 or (value == LARGEST // 10 and digit > LARGEST % 10):
            return 0, -1
        value = 10 * value + digit
        at += 1
    if at == first or at == len(text) or text[at] != SPACE:
        return 0, -1
    return sign * value, at + 1


@compiled
def frames(text: Bytes) -> tuple[Ints, int]:
    """Find the records of a joined batch: ``partition offset time_ms length record`` and so on.

    Returns:
        Partition, offset, Kafka time in ms, start and end of each record, int64 (n, 5); and where
        a frame begins that is malformed or cut off, -1 if there is none.
    """
    found = np.empty((len(text) // 8 + 1, 5), np.int64)  # the shortest frame has 8 bytes
    n, begin = 0, 0
    while begin < len(text):
        at = begin
        for column in range(4):
            found[n, column], at = _number(text, at)
        length = found[n, 3]
        # Not at + length > len(text): compiled code takes it that no sum ever wraps.
        if at < 0 or length < 0 or length > len(text) - at:
            return found[:n], begin
        end = at + length
        if end < len(text) and (text[end] != SPACE or end + 1 == len(text)):
            return found[:n], begin
        found[n, 3], found[n, 4] = at, end
        n, begin = n + 1, end + 1
    return found[:n], -1
