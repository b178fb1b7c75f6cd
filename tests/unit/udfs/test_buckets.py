"""The labels are even; that the hashes are Flink's own: tests/contract/test_flink_hashes.py."""

from __future__ import annotations

from collections import Counter

import pytest

from udfs.batches.buckets import (
    DEFAULT_MAX_PARALLELISM,
    even_labels,
    hash_int_row,
    key_group,
    murmur_int,
)

FROZEN = {2: (4, 16), 8: (196, 246, 247, 273, 301, 351, 375, 455)}
COUNTS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]


def subtask(hash_code: int, parallelism: int, max_parallelism: int) -> int:
    """``KeyGroupRangeAssignment.computeOperatorIndexForKeyGroup``."""
    return key_group(hash_code, max_parallelism) * parallelism // max_parallelism


def divisors(count: int) -> list[int]:
    return [n for n in range(1, count + 1) if count % n == 0]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("max_parallelism", [128, 180])
def test_even_at_every_parallelism_that_divides_the_count(count: int, max_parallelism: int) -> None:
    labels = even_labels(count, max_parallelism)
    assert len(set(labels)) == count
    for parallelism in divisors(count):
        even = {n: count // parallelism for n in range(parallelism)}
        assert Counter(subtask(v, parallelism, max_parallelism) for v in labels) == even
        assert (
            Counter(subtask(hash_int_row(v), parallelism, max_parallelism) for v in labels) == even
        )


@pytest.mark.parametrize("count", [3, 5, 7, 60])
def test_both_exchanges_agree_on_a_bucket(count: int) -> None:
    for label in even_labels(count):
        groups = {
            key_group(h, DEFAULT_MAX_PARALLELISM) * count // DEFAULT_MAX_PARALLELISM
            for h in (label, hash_int_row(label))
        }
        assert len(groups) == 1


def test_labels_are_frozen() -> None:
    """They are keys in savepoints: other labels would lose every key's history."""
    assert even_labels(1) == (0,)
    assert even_labels(2) == FROZEN[2]
    assert even_labels(8) == FROZEN[8]


@pytest.mark.parametrize(("count", "max_parallelism"), [(0, 128), (-1, 128), (129, 128), (2, 1)])
def test_more_labels_than_key_groups_are_refused(count: int, max_parallelism: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        even_labels(count, max_parallelism)


@pytest.mark.parametrize("code", [0, 1, -1, 2**31 - 1, -(2**31), 12_345])
def test_hashes_are_java_ints(code: int) -> None:
    assert 0 <= murmur_int(code) < 2**31
    assert -(2**31) <= hash_int_row(code) < 2**31
    assert 0 <= key_group(code, 128) < 128
