"""A hash table from the 128-bit hashes of names to the slots of their histories.

A dictionary of a million names costs some five places far apart in memory per look-up; here it is
one, and the look-ups of a batch do not wait for each other.
"""

from __future__ import annotations

from udfs.compiled import Ints, compiled


@compiled
def find(table: Ints, digests: Ints, slots: Ints) -> int:
    """Look names up.

    Args:
        table: Hash (two words) and slot + 1 of each, 0 is free; its length is a power of two.
        digests: Hashes, (n, 2).
        slots: Written: the slot of each, -1 if there is none; (n,).

    Returns:
        How many there are not.
    """
    missing, mask = 0, len(table) - 1
    for n in range(len(digests)):
        place = digests[n, 0] & mask
        while table[place, 2] != 0 and (
            table[place, 0] != digests[n, 0] or table[place, 1] != digests[n, 1]
        ):
            place = (place + 1) & mask
        slots[n] = table[place, 2] - 1
        missing += slots[n] < 0
    return missing


@compiled
def insert(table: Ints, digests: Ints, slots: Ints) -> None:
    """Add names that are not there; the table has room.

    Args:
        table: As ``find`` takes it.
        digests: Hashes, (n, 2).
        slots: Theirs, (n,).
    """
    mask = len(table) - 1
    for n in range(len(digests)):
        place = digests[n, 0] & mask
        while table[place, 2] != 0:
            place = (place + 1) & mask
        table[place, 0], table[place, 1] = digests[n, 0], digests[n, 1]
        table[place, 2] = slots[n] + 1
