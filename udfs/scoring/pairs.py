"""Kafka records as a sink's column takes them."""

from __future__ import annotations

from collections.abc import Iterable

from pyflink.common import Types

Pair = list[bytes]
"""Key and value of a Kafka record; PyFlink wants a list for an array."""


PAIRS = Types.OBJECT_ARRAY(Types.OBJECT_ARRAY(Types.PRIMITIVE_ARRAY(Types.BYTE())))
"""Flink's type of a list of them."""


def pairs(records: Iterable[tuple[str, bytes]]) -> list[Pair]:
    """Records as a sink's column takes them."""
    return [[key.encode(), value] for key, value in records]
