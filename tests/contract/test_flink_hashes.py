"""The hashes in udfs.batches.buckets against Flink's own classes, in a JVM."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from pyflink.java_gateway import get_gateway

from udfs.batches.buckets import (
    DEFAULT_MAX_PARALLELISM,
    even_labels,
    hash_int_row,
    key_group,
    murmur_int,
    sql_buckets,
)

EDGES = [0, 1, -1, 127, 128, 255, 256, 65_535, 2**31 - 1, -(2**31), -(2**31) + 1]
CODES = EDGES + random.Random(5).sample(range(-(2**31), 2**31), 250)


@pytest.fixture(scope="module")
def jvm() -> Iterator[Any]:
    """Flink's classes; PyFlink ends its one JVM with this process."""
    yield get_gateway().jvm


@pytest.fixture(scope="module")
def java_row_hash(jvm: Any) -> Any:
    table = jvm.org.apache.flink.table.data
    row = table.binary.BinaryRowData(1)
    writer = table.writer.BinaryRowWriter(row)

    def of(value: int) -> int:
        writer.reset()
        writer.writeInt(0, value)
        writer.complete()
        return int(row.hashCode())

    return of


def test_murmur_hash(jvm: Any) -> None:
    java = jvm.org.apache.flink.util.MathUtils.murmurHash
    assert [murmur_int(c) for c in CODES] == [java(c) for c in CODES]


@pytest.mark.parametrize("max_parallelism", [1, 128, 720, 32_768])
def test_key_groups(jvm: Any, max_parallelism: int) -> None:
    java = jvm.org.apache.flink.runtime.state.KeyGroupRangeAssignment.computeKeyGroupForKeyHash
    codes = CODES[:100]
    assert [key_group(c, max_parallelism) for c in codes] == [
        java(c, max_parallelism) for c in codes
    ]


def test_hash_of_a_binary_row_of_one_int(java_row_hash: Any) -> None:
    assert [hash_int_row(c) for c in CODES] == [java_row_hash(c) for c in CODES]


@pytest.mark.parametrize(("count", "parallelism"), [(2, 2), (8, 4), (12, 6)])
def test_labels_are_even_in_flink_itself(
    jvm: Any, java_row_hash: Any, count: int, parallelism: int
) -> None:
    assignment = jvm.org.apache.flink.runtime.state.KeyGroupRangeAssignment
    limit = DEFAULT_MAX_PARALLELISM
    for hash_of in (lambda label: label, java_row_hash):
        subtasks = [
            assignment.computeOperatorIndexForKeyGroup(
                limit, parallelism, assignment.computeKeyGroupForKeyHash(hash_of(label), limit)
            )
            for label in even_labels(count)
        ]
        assert sorted(subtasks) == sorted([*range(parallelism)] * (count // parallelism))


def test_buckets_of_keys_are_those_of_the_sql_source(jvm: Any) -> None:
    keys = ["", "c00001", "pan-Ünï", "日本", "x" * 300, *map(str, range(100))]
    functions = jvm.org.apache.flink.table.runtime.functions.SqlFunctionUtils
    hashes = [functions.hashCode(key.encode().decode("latin-1")) for key in keys]
    for count in (1, 2, 7, 128):
        assert sql_buckets(keys, count).tolist() == [abs(h) % count for h in hashes]
