"""Scores of a model server: calls in flight over restarts, limits, timers and the end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.connections import connections_to
from tests.support.flink import END_MS, EVENT_TIME, PROCESSING_TIME, Stored, Subtask
from tests.support.held import Switch
from tests.support.outputs import by_topic, plain, predicted
from tests.support.scorers import served
from tests.support.stages import next_stage, routed, scorable
from tests.support.streams import BUCKETS
from tests.support.waiting import wait_until
from udfs.batches.batch import FeatureBatch
from udfs.scoring.embedded import EmbeddedScoring
from udfs.scoring.output import Output
from udfs.scoring.served import ServedScoring

BUCKET = BUCKETS[0]


class Held:
    """Subtasks that score, the server's answers held back until they are let go."""

    def __init__(
        self, make: Callable[[], ServedScoring], switch: Switch, opened: Callable[..., Subtask]
    ) -> None:
        self._make = make
        self._switch = switch
        self._opened = opened
        self.let_go = switch.let_go
        batches = [b for _, b in scorable() if len(b)]
        self.batches = [(BUCKET, b.select(range(4))) for b in batches if len(b) >= 4]
        self.long = BUCKET, next(b for b in batches if len(b) > 4 and b.dead_letters)
        self.no_rows = BUCKET, FeatureBatch.empty((), ())
        self.no_rows[1].dead_letters.append(("0-1", b"{}"))

    def open(self, stored: Stored | None = None) -> Subtask:
        self._switch.hold()
        return self._opened(self._make(), stored)

    def ids(self, *numbers: int) -> list[str]:
        return sorted(i for n in numbers for i in self.batches[n][1].ids)


@pytest.fixture
def opened() -> Iterator[Callable[..., Subtask]]:
    """Opens subtasks that are closed after the test."""
    subtasks: list[Subtask] = []

    def open_(function: Any, stored: Stored | None = None) -> Subtask:
        subtasks.append(Subtask(function, stored))
        return subtasks[-1]

    yield open_
    for subtask in subtasks:
        subtask.close()


@pytest.fixture
def held(tmp_path: Path, server_port: int, output: Output, opened: Callable[..., Subtask]) -> Held:
    switch = Switch(tmp_path)
    return Held(lambda: served(server_port, output, switch=switch), switch, opened)


class TestServedScoring:
    def test_answers_come_by_timer(self, held: Held) -> None:
        subtask = held.open()
        assert subtask.run(held.batches[0]) == []
        assert subtask.fire() == []
        held.let_go()
        assert predicted(subtask.answers()) == held.ids(0)
        assert subtask.in_flight(BUCKET) == {}

    def test_answers_come_with_a_later_batch(self, held: Held) -> None:
        subtask = held.open()
        subtask.run(held.batches[0])
        held.let_go()
        wait_until(lambda: bool(predicted(subtask.run(held.no_rows))), 60, "an answer")
        assert subtask.in_flight(BUCKET) == {}

    def test_a_batch_is_kept_until_its_records_are_out(self, held: Held) -> None:
        subtask = held.open()
        subtask.run(held.batches[0])
        assert plain(subtask.in_flight(BUCKET)) == plain({0: held.batches[0][1]})
        held.let_go()
        with subtask.at(BUCKET) as context:
            rows = subtask.function.on_timer(BUCKET, END_MS - 1, context)
            next(rows)
            assert subtask.in_flight(BUCKET).keys() == {0}
            assert [*rows] == []
        assert subtask.in_flight(BUCKET) == {}

    def test_what_was_open_is_asked_again_after_a_restart(self, held: Held) -> None:
        """And the buckets part ways, as in a rescale."""
        before = held.open()
        first, second, third, *_ = held.batches
        assert before.run_all([first, second, (BUCKETS[1], third[1])]) == []
        stored = before.snapshot()
        before.close()
        rows = {}
        for bucket, later, numbers in ((BUCKETS[0], 3, [0, 1, 2]), (BUCKETS[1], 4, [0, 1])):
            mine: Stored = {name: {bucket: of[bucket]} for name, of in stored.items()}
            after = held.open(mine)
            assert after.run((bucket, held.batches[later][1])) == []
            assert [*after.in_flight(bucket)] == numbers
            held.let_go()
            rows[bucket] = after.answers()
            assert after.in_flight(bucket) == {}
        assert predicted(rows[BUCKETS[0]]) == held.ids(0, 1, 3)
        assert predicted(rows[BUCKETS[1]]) == held.ids(2, 4)

    def test_with_enough_calls_open_a_batch_waits(self, held: Held) -> None:
        subtask = held.open()
        subtask.run_all(held.batches[:3])
        held.let_go()
        with subtask.at(BUCKET) as context:
            rows = subtask.function.take(*held.batches[3], context)
            got = [next(rows)]
            # One of those answers, for which the operator waited.
            assert predicted(got) in (held.ids(0), held.ids(1), held.ids(2))
            assert subtask.in_flight(BUCKET).keys() == {0, 1, 2, 3}
            got += rows
        assert predicted(got + subtask.answers()) == held.ids(0, 1, 2, 3)

    def test_what_comes_while_a_call_is_open_shares_the_next(self, held: Held) -> None:
        subtask = held.open()
        small = [(BUCKET, b.select([0])) for _, b in held.batches[:4]]
        assert subtask.run_all(small) == []
        assert [len(b) for b in subtask.in_flight(BUCKET).values()] == [1, 1, 1, 1]
        held.let_go()
        answers = [row[0] for row in plain(subtask.answers())]
        assert [[p["event_id"] for _, p in row] for row in answers] == [
            [small[0][1].ids[0]],
            [b.ids[0] for _, b in small[1:]],
        ]
        assert subtask.in_flight(BUCKET) == {}

    def test_a_large_batch_is_cut(self, held: Held) -> None:
        subtask = held.open()
        subtask.run(held.long)
        parts = [*subtask.in_flight(BUCKET).values()]
        batch = held.long[1]
        assert [i for part in parts for i in part.ids] == batch.ids
        assert max(map(len, parts)) == 4
        assert [part.dead_letters for part in parts] == [batch.dead_letters] + [[]] * len(parts[1:])

    def test_a_batch_without_rows_passes_at_once(self, held: Held) -> None:
        subtask = held.open()
        [row] = plain(subtask.run(held.no_rows))
        assert row == [[], [], [("0-1", {})], [], []]
        assert subtask.in_flight(BUCKET) == {}
        assert not subtask.context.timers_set

    def test_the_end_of_the_input_waits_for_all(self, held: Held) -> None:
        subtask = held.open()
        subtask.run_all([*held.batches[:2], (BUCKETS[1], held.batches[2][1])])
        held.let_go()
        got = subtask.end()
        late = subtask.run(held.batches[3])  # comes with the last watermark
        assert (predicted(got), predicted(late)) == (held.ids(0, 1, 2), held.ids(3))
        assert [subtask.in_flight(bucket) for bucket in BUCKETS] == [{}, {}]

    def test_one_timer_at_a_time(self, held: Held) -> None:
        subtask = held.open()
        subtask.run_all(held.batches[:3])
        assert subtask.context.timers_set == {PROCESSING_TIME: 1, EVENT_TIME: 1}
        assert subtask.pending(EVENT_TIME) == [(BUCKET, END_MS - 1)]
        subtask.fire()
        assert subtask.context.timers_set[PROCESSING_TIME] == 2
        held.let_go()
        subtask.answers()
        set_ = dict(subtask.context.timers_set)
        assert subtask.fire() == []
        assert subtask.context.timers_set == set_  # none while no call is open

    def test_the_connection_is_closed(
        self, server_port: int, output: Output, opened: Callable[..., Subtask]
    ) -> None:
        wait_until(lambda: connections_to(server_port) == 0, 60, "no connection of other tests")
        subtask = opened(served(server_port, output))
        subtask.run_all(scorable())
        subtask.answers()
        assert connections_to(server_port) == 1
        subtask.close()
        wait_until(lambda: connections_to(server_port) == 0, 60, "the connection's end")

    def test_a_call_in_flight_does_not_keep_it_from_closing(
        self, output: Output, held: Held
    ) -> None:
        """Neither one that is about to ask, nor one that a server leaves without answer."""
        waiting = held.open()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            asking = Subtask(served(int(silent.getsockname()[1]), output))
            begun_s = time.monotonic()
            for subtask in (waiting, asking):
                subtask.run(held.batches[0])
                subtask.close()
            assert time.monotonic() - begun_s < 10  # half a deadline

    def test_it_may_be_closed_unused_and_twice(self, server_port: int, output: Output) -> None:
        subtask = Subtask(served(server_port, output))
        subtask.close()
        subtask.close()

    def test_it_may_be_opened_again(
        self, server_port: int, output: Output, opened: Callable[..., Subtask]
    ) -> None:
        first = opened(served(server_port, output))
        expected = by_topic(first.run_all(scorable()) + first.answers())
        first.close()
        again = opened(first.function)
        assert by_topic(again.run_all(scorable()) + again.answers()) == expected
        assert again.context.metrics.counters["fallbacks"].value == 0

    def test_all_share_one_event_loop(self, held: Held) -> None:
        for _ in range(2):
            held.open().run(held.batches[0])
        assert [t.name for t in threading.enumerate()].count("streamscore-calls") == 1

    def test_served_and_embedded_give_the_same(
        self,
        server_port: int,
        output: Output,
        embedded: EmbeddedScoring,
        opened: Callable[..., Subtask],
    ) -> None:
        stage = opened(next_stage(served(server_port, output)))
        got = stage.run_all(routed()) + stage.answers()
        expected = opened(next_stage(embedded)).run_all(routed())
        assert by_topic(got) == by_topic(expected)
        assert stage.context.metrics.counters["fallbacks"].value == 0
        assert stage.context.metrics.counters["breaker_state"].value == 0

    @pytest.mark.parametrize("hung", [False, True], ids=["closed", "hung"])
    def test_without_an_answer_every_row_gets_the_fallback(
        self, output: Output, opened: Callable[..., Subtask], hung: bool
    ) -> None:
        stream = scorable()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = int(silent.getsockname()[1])
            if not hung:
                silent.close()
            subtask = opened(served(port, output, deadline_ms=500))
            rows = plain(subtask.run_all(stream) + subtask.answers())
        predictions = [p for row in rows for _, p in row[0]]
        ids = sorted(i for _, b in stream for i in b.ids)
        assert sorted(p["event_id"] for p in predictions) == ids
        assert {p["score"] for p in predictions} == {0.25}
        assert all(p["fallback_reason"] and p["model"]["version"] is None for p in predictions)
        assert [row[1] for row in rows] == [[]] * len(rows)
        assert subtask.context.metrics.counters["fallbacks"].value == len(predictions)
