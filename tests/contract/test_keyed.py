"""Keying in the JVM against PyFlink's own ``key_by``, in Flink's plan of a job."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from pyflink.common import Row, Types
from pyflink.datastream import DataStream, KeyedProcessFunction, StreamExecutionEnvironment

from jobs import keyed

VALUE = Types.PICKLED_BYTE_ARRAY()
ROUTED = Types.ROW([Types.INT(), VALUE])


class Passing(KeyedProcessFunction):
    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        yield ctx.get_current_key(), value


@pytest.fixture
def stream() -> DataStream:
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(1)
    return env.from_collection([Row(3, b"x")], ROUTED).map(lambda row: row, ROUTED)


def nodes(stream: DataStream) -> list[dict[str, Any]]:
    stream.print()
    plan = json.loads(stream.get_execution_environment().get_execution_plan())
    found: list[dict[str, Any]] = plan["nodes"]
    return found


def test_it_adds_no_operator(stream: DataStream) -> None:
    ours = keyed.by_first_field(stream, VALUE).process(Passing(), ROUTED)
    types = [node["type"] for node in nodes(ours)]
    theirs = stream.key_by(lambda row: row[0], Types.INT()).process(Passing(), ROUTED)
    assert len(types) < len([node["type"] for node in nodes(theirs)])


def test_it_is_exchanged_by_hash(stream: DataStream) -> None:
    plan = nodes(keyed.by_first_field(stream, VALUE).process(Passing(), ROUTED))
    shipped = [by["ship_strategy"] for node in plan for by in node.get("predecessors", [])]
    assert shipped.count("HASH") == 1


def test_the_key_is_the_first_field(stream: DataStream) -> None:
    java = keyed.by_first_field(stream, VALUE)._j_data_stream
    assert java.getKeyType().equals(Types.ROW([Types.INT()]).get_java_type_info())
