"""The names of a job's state do not depend on what else is in the job."""

from __future__ import annotations

from typing import Any

import pytest
from pyflink.datastream import StreamExecutionEnvironment

from jobs import pipeline, runner
from jobs.jars import flink_jars
from tests.support.fixtures import MakeSettings

pytestmark = [pytest.mark.minicluster]


def operator_ids(make_settings: MakeSettings, overrides: dict[str, Any]) -> set[str]:
    """What Flink would find each operator's state by."""
    settings = make_settings(overrides)
    runner.prepare()
    jars = ";".join(jar.absolute().as_uri() for jar in flink_jars())
    options = pipeline.flink_configuration(settings, {"pipeline.jars": jars})
    env = StreamExecutionEnvironment.get_execution_environment(options)
    pipeline.build(env, settings)
    vertices = env._generate_stream_graph().getJobGraph().getVertices()
    return {
        str(pair.getUserDefinedOperatorID().orElse(pair.getGeneratedOperatorID()))
        for vertex in vertices.iterator()
        for pair in vertex.getOperatorIDs()
    }


def test_a_further_sink_and_another_parallelism_move_no_state(make_settings: MakeSettings) -> None:
    before = operator_ids(make_settings, {})
    assert operator_ids(make_settings, {"topics.shadow": "shadow"}) > before
    other = {"flink.parallelism": 2, "batch.window": "20ms"}
    assert operator_ids(make_settings, other) == before
