"""What every Flink function must keep: shipping, restarts, input purity, independence.

``tests.support.flink`` stands for Flink; the real engine is under test in tests/minicluster and
tests/cluster.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest

from tests.support.contract_case import Case
from tests.support.flink import Stored
from tests.support.outputs import plain
from tests.support.scorers import served
from tests.support.stages import (
    episodes,
    feedback_stage,
    first_stage,
    label_reader,
    next_stage,
    overload,
    routed,
)
from tests.support.streams import events, feedback, labels, scored
from udfs.scoring.embedded import EmbeddedScoring
from udfs.scoring.output import Output

SHEDDING = ["FirstStage that sheds", "NextStage that sheds"]


@pytest.fixture(
    params=[
        "FirstStage",
        "NextStage",
        "LabelReader",
        "EpisodeOperator",
        "FeedbackStage",
        "EmbeddedScoring",
        "ServedScoring",
        *SHEDDING,
    ]
)
def case(
    request: pytest.FixtureRequest, embedded: EmbeddedScoring, output: Output, server_port: int
) -> Iterator[Case]:
    made = {
        "FirstStage": Case(first_stage, events),
        "NextStage": Case(next_stage, routed),
        SHEDDING[0]: Case(lambda: first_stage(overload=overload("features")), events),
        SHEDDING[1]: Case(lambda: next_stage(overload=overload("scoring")), routed),
        "LabelReader": Case(label_reader, labels),
        "FeedbackStage": Case(feedback_stage, feedback),
        "EpisodeOperator": Case(episodes, scored),
        "EmbeddedScoring": Case(lambda: next_stage(copy.copy(embedded)), routed),
        "ServedScoring": Case(
            lambda: next_stage(served(server_port, output)), routed, in_order=False
        ),
    }[request.param]
    yield made
    for subtask in made.opened:
        subtask.close()


class TestEveryFunction:
    def test_it_is_shipped_as_pyflink_ships_it(self, case: Case) -> None:
        shipped = cloudpickle.loads(cloudpickle.dumps(case.make()))
        twice = pickle.loads(cloudpickle.dumps(shipped))  # the TaskManager knows no cloudpickle
        expected = case.expected()
        assert expected
        for function in (shipped, twice):
            assert case.run_whole(case.open(function=function)) == expected

    @pytest.mark.parametrize("part", [0.0, 0.25, 0.5, 0.75, 1.0])
    def test_a_restart_changes_no_output(self, case: Case, part: float) -> None:
        stream = case.stream(1)
        cut = int(part * len(stream))
        before = case.open()
        first = before.run_all(stream[:cut])
        after = case.open(before.snapshot())
        rest = after.run_all(stream[cut:]) + after.end()
        assert case.plain(first + rest) == case.expected()

    def test_a_restart_after_every_element_changes_no_output(self, case: Case) -> None:
        stored: Stored = {}
        got = []
        for element in case.stream(1):
            subtask = case.open(stored)
            got += subtask.run(element)
            stored = subtask.snapshot()
        got += case.open(stored).end()
        assert case.plain(got) == case.expected()

    def test_input_is_left_alone(self, case: Case) -> None:
        stream = case.stream(1)
        before = plain(copy.deepcopy(stream))
        subtask = case.open()
        subtask.run_all(stream)
        subtask.end()
        assert plain(stream) == before

    def test_output_given_away_never_changes(self, case: Case) -> None:
        subtask = case.open()
        outputs, at_once = [], []
        for step in (*(lambda e=e: subtask.run(e) for e in case.stream(1)), subtask.end):
            given = step()
            at_once.append(copy.deepcopy(plain(given)))
            outputs.append(given)
        assert plain(outputs) == at_once

    def test_two_instances_share_nothing(self, case: Case) -> None:
        one, other = case.open(), case.open()
        streams = case.stream(1), case.stream(2)
        got: tuple[list[Any], list[Any]] = ([], [])
        for n in range(max(map(len, streams))):
            for subtask, stream, outputs in zip((one, other), streams, got, strict=True):
                outputs.extend(subtask.run_all(stream[n : n + 1]))
        assert case.plain(got[0] + one.end()) == case.expected(1)
        assert case.plain(got[1] + other.end()) == case.expected(2)
        alone = case.open()
        case.run_whole(alone)
        counted = [
            {n: c.value for n, c in s.context.metrics.counters.items() if n != "lag_ms"}
            for s in (one, alone)
        ]
        assert counted[0] == counted[1]

    def test_the_same_input_gives_the_same_output(self, case: Case) -> None:
        assert case.expected() == case.expected()
