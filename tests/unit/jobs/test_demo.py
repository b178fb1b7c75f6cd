"""The demo's parts that need no Kafka and no Flink; tests/cluster/test_demo.py runs all of it."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from jobs import cli, settings
from jobs.demo import demo
from jobs.demo import model as demo_model
from jobs.demo import result as demo_result
from jobs.demo import run as demo_run
from jobs.demo.demo import DemoOptions
from jobs.demo.live import LiveView
from jobs.demo.model import Model
from jobs.demo.run import Performance, Plan, Stage
from jobs.demo.script import Script
from jobs.demo.steps import alone
from jobs.demo.watch import Tally
from jobs.environment import NotReadyError
from jobs.exit_codes import ExitCode
from jobs.flink_rest import JobError

MODEL = Model(3, {"average_precision": 0.8, "test": {"from": "1970-01-01T00:00:05.003+00:00"}})
FRAME = pd.DataFrame(
    {
        "transaction_id": [f"t{n}" for n in range(6)],
        "event_time_ms": [5_000 + n for n in range(6)],
        "is_fraud": [0, 1, 0, 1, 0, 1],
    }
)


def tally(fallback_at: tuple[int, ...] = (), count: int = 6) -> Tally:
    made = Tally("transactions", 0.85)
    for n in range(count):
        document = {
            "prediction_id": f"transactions-0-{n}",
            "event_id": f"t{n}",
            "score": n / 10,
            "fallback_reason": "unavailable" if n in fallback_at else None,
            "event_time_ms": 5_000 + n,
            "ingest_time_ms": 1_000,
            "scored_time_ms": 1_010,
        }
        made.add("predictions", orjson.dumps(document), 1_020 + n)
    return made


class FakeJob:
    """A job that runs until it is told to be something else."""

    def __init__(self) -> None:
        self.rest = SimpleNamespace(url="http://127.0.0.1:1")
        self.now = "RUNNING"

    def state(self) -> str:
        return self.now

    def cause(self) -> str:
        return "a lost disk"

    def checkpoints_completed(self) -> int:
        return 4

    def restarts(self) -> int:
        return 0


class FakeServer:
    """A model server that notes what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.is_serving = True

    def stop(self) -> None:
        self.calls.append("stop")
        self.is_serving = False

    def start(self) -> None:
        self.calls.append("start")
        self.is_serving = True


def performance(server: FakeServer | None = None, outage_s: float = 0.01) -> Performance:
    topics = SimpleNamespace(events="transactions", labels="fraud-labels")
    chosen: Any = SimpleNamespace(
        name="fraud",
        topics=topics,
        alerts=SimpleNamespace(threshold=0.85, episodes=None),
        model=SimpleNamespace(name="fraud"),
    )
    content = Script([], np.zeros(0), Counter({"empty": 2}), 0)
    stage = Stage(chosen, FakeJob(), server)  # type: ignore[arg-type]
    return Performance(stage, Plan(content, 10.0, 1.0, 0.0, outage_s))


def view() -> LiveView:
    return LiveView(Console(file=open(os.devnull, "w")), plain=True)


class TestOptions:
    def test_a_short_run_has_a_short_ramp_and_outage(self) -> None:
        assert (DemoOptions().ramp_s, DemoOptions().outage_s) == (3.0, 5.0)
        short = DemoOptions(seconds=8)
        assert (short.ramp_s, short.outage_s) == (2.0, 0.8)


class TestResult:
    def test_the_test_part_is_what_the_model_scored_and_was_not_trained_on(self) -> None:
        scores, labels = demo_result.test_part(tally((4,)), FRAME, MODEL.test_from_ms)
        assert scores.tolist() == [0.3, 0.5]
        assert labels.tolist() == [1, 1]

    def test_the_numbers_add_up(self) -> None:
        played = performance()
        played.tally = tally((4, 5))
        played.tally.duplicates = 2
        played._replay.events_sent = 8
        outcome = demo_result.outcome(MODEL, played.stage, played, FRAME, {"a": "b"})
        assert (outcome.input, outcome.predictions, outcome.fallbacks) == (8, 6, 2)
        assert outcome.unaccounted == 0
        assert outcome.latency_ms.tolist() == [20, 21, 22, 23, 24, 25]
        assert dict(outcome.facts) == {"a": "b"}

    def test_the_facts_tell_of_the_ramp_and_the_outage(self) -> None:
        played = performance(FakeServer())
        played.result.outages_ms.append((1_000, 7_500))
        facts = demo_result.facts(MODEL, played.stage, played, FRAME)
        assert "first 1 s" in facts["replay"]
        assert "6.5 s without" in facts["outage"]
        assert "version 3" in facts["model"]

    def test_the_summary_of_an_empty_run_has_no_numbers_made_up(self) -> None:
        played = performance()
        outcome = demo_result.outcome(MODEL, played.stage, played, FRAME, {})
        assert demo_result.summary(outcome)["latency"] == "p50 none ms, p99 none ms"


class TestPerformance:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo_run, "TICK_S", 0.01)
        monkeypatch.setattr(demo_run, "ASK_FLINK_S", 0.02)
        monkeypatch.setattr(demo_run, "QUIET_S", 0.05)
        monkeypatch.setattr(Performance, "_watch", lambda self: self._stop.wait() and None)
        monkeypatch.setattr(Performance, "_play", lambda self: _played(self))

    def test_it_ends_when_everything_is_accounted_for(self) -> None:
        played = performance()
        played.run(view())
        assert played.missing == 0
        assert played.result.checkpoints == 4
        assert played.result.ended_ms >= played.result.started_ms > 0

    def test_the_model_server_is_stopped_and_started_again(self) -> None:
        server = FakeServer()
        played = performance(server)
        played.run(view())
        assert server.calls == ["stop", "start"]
        (begun_ms, ended_ms) = played.result.outages_ms[0]
        assert ended_ms >= begun_ms

    def test_a_missing_record_ends_it_with_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo_run, "STALLED_S", 0.2)
        played = performance()
        played._expected = 7
        with pytest.raises(JobError, match=r"nothing moved.*of 7 records.*a lost disk"):
            played.run(view())

    def test_a_missing_alert_is_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo_run, "STALLED_S", 0.2)
        played = performance()
        played.tally.alerts_due = 1
        with pytest.raises(JobError, match="0 of 1 alerts"):
            played.run(view())

    def test_a_failed_job_ends_it_with_the_cause(self) -> None:
        played = performance()
        played._expected = 7
        played.stage.job.now = "FAILED"  # type: ignore[attr-defined]
        with pytest.raises(JobError, match="ended as FAILED: a lost disk"):
            played.run(view())

    def test_a_failing_thread_ends_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Performance, "_play", lambda self: [][0])
        with pytest.raises(IndexError):
            performance().run(view())


def _played(played: Performance) -> None:
    played._replay.is_done = True


class TestModel:
    @pytest.fixture
    def stored(self, tmp_path: Path) -> Any:
        folder = tmp_path / "models" / "fraud" / "3"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_bytes(orjson.dumps(MODEL.metrics))
        (tmp_path / "model.json").write_bytes(orjson.dumps({"stamp": {"a": 1}, "version": 3}))
        return SimpleNamespace(model=SimpleNamespace(path=tmp_path / "models", name="fraud"))

    def test_the_model_of_an_earlier_demo_is_used_again(self, stored: Any, tmp_path: Path) -> None:
        assert demo_model.stored(stored, tmp_path, {"a": 1}) == MODEL

    def test_not_for_other_data_or_settings(self, stored: Any, tmp_path: Path) -> None:
        assert demo_model.stored(stored, tmp_path, {"a": 2}) is None

    def test_not_when_its_folder_is_gone(self, stored: Any, tmp_path: Path) -> None:
        (tmp_path / "models").rename(tmp_path / "elsewhere")
        assert demo_model.stored(stored, tmp_path, {"a": 1}) is None

    def test_the_stamp_names_what_a_model_depends_on(self) -> None:
        chosen = settings.load(demo.CONFIG)
        changed = chosen.training.model_copy(update={"trees": 3})
        stamps = [
            demo_model.stamp(chosen, "small", 0),
            demo_model.stamp(chosen, "small", 5),
            demo_model.stamp(chosen, "full", 0),
            demo_model.stamp(chosen.model_copy(update={"training": changed}), "small", 0),
        ]
        assert all(a != b for n, a in enumerate(stamps) for b in stamps[:n])


class TestAlone:
    def test_a_second_demo_is_refused(self, tmp_path: Path) -> None:
        again = pytest.raises(NotReadyError, match="another demo runs")
        with alone(tmp_path), again, alone(tmp_path):
            pass
        with alone(tmp_path):
            pass

    def test_sigterm_ends_it_as_ctrl_c_does(self, tmp_path: Path) -> None:
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), alone(tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        assert signal.getsignal(signal.SIGTERM) is before


class TestCommand:
    def outcome(self, missing: int) -> Any:
        played = performance()
        outcome = demo_result.outcome(MODEL, played.stage, played, FRAME, {})
        return replace(outcome, input=missing)

    @pytest.mark.parametrize(("missing", "code"), [(0, ExitCode.OK), (2, ExitCode.FAILED)])
    def test_unaccounted_records_fail_it(
        self, missing: int, code: ExitCode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[DemoOptions] = []
        monkeypatch.setattr(
            demo, "run", lambda options: asked.append(options) or self.outcome(missing)
        )
        done = CliRunner().invoke(cli.app, ["demo", "--no-live", "--seconds", "20"])
        assert done.exit_code == code
        assert asked == [DemoOptions(seconds=20.0, live=False)]

    def test_a_failed_job_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(options: DemoOptions) -> None:
            raise JobError("the job ended as FAILED: a lost disk")

        monkeypatch.setattr(demo, "run", fail)
        done = CliRunner().invoke(cli.app, ["demo"])
        assert done.exit_code == ExitCode.FAILED
        assert "the demo failed: the job ended as FAILED: a lost disk" in done.stderr
