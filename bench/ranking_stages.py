"""What runs while ``bench/ranking.py`` asks: one way of ranking behind one gateway."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import BENCH
from bench.feature_runs import PEER_PYTHONS
from bench.lab import Child, Place
from jobs import ranking_data, settings
from jobs.demo.feed.topics import write_history
from jobs.settings import Settings
from model_server.repository import find_version

__all__ = ["HISTORY", "JOBS", "MODELS", "PEERS", "Stage", "stage"]

JOBS = ("served", "embedded")
PEERS = ("bytewax",)
MODELS = BENCH / "ranking-models"
HISTORY = 20_000
"""Purchases that are in the topic before the first request."""

_TOPICS = ("events", "predictions", "impressions", "examples", "dead_letters", "duplicates")


@dataclass
class Stage:
    """What runs for one mode.

    Attributes:
        url: The gateway's.
        children: What was started, by name.
        time_ms: Event time of the newest purchase.
    """

    url: str
    children: dict[str, Child]
    time_ms: int

    def cpu_s(self) -> float:
        """CPU seconds of all of it so far."""
        return sum(child.cpu_s() for child in self.children.values())


@contextmanager
def stage(at: Place, mode: str, data: ranking_data.TrainingData) -> Iterator[Stage]:
    """Start one of ``JOBS`` or ``PEERS`` on topics of its own; stopped after."""
    overrides = _overrides(at, mode)
    at.create(*(f"{mode}_{name}" for name in _TOPICS), partitions=1)
    at.create(f"{mode}_popularity", partitions=1, **{"cleanup.policy": "compact"})
    children: dict[str, Child] = {}
    try:
        if mode == "served":
            arguments = ["--models-dir", str(MODELS), "--model-name", "feed", "--port", "0"]
            server = children["server"] = Child("server", "model_server", arguments, at.folder)
            overrides["model.server"] = f"127.0.0.1:{server.line('ready port=').partition('=')[2]}"
        path = at.folder / f"{mode}.yaml"
        chosen = settings.load(at.config, overrides)
        path.write_text(settings.as_yaml(chosen), encoding="utf-8")
        children["job"] = (_peer if mode in PEERS else _job)(at, mode, chosen, path)
        children["job"].line("started")
        gateway = children["gateway"] = Child(
            f"{mode}-gateway", "jobs.cli", ["gateway", str(path)], at.folder
        )
        port = gateway.line("ready port=").partition("=")[2]
        write_history(chosen, data.log.part(slice(max(0, len(data.log) - HISTORY), None)))
        yield Stage(f"http://127.0.0.1:{port}", children, int(data.log.times_ms[-1]))
    finally:
        for child in reversed(children.values()):
            child.stop()


def _overrides(at: Place, mode: str) -> dict[str, Any]:
    return {
        **at.overrides,
        "kafka.bootstrap_servers": at.bootstrap,
        "kafka.group_id": f"{mode}-{at.tag}",
        "flink.checkpoint_dir": str(at.folder / "checkpoints" / mode),
        "flink.restart_attempts": 0,
        "model.embedded": mode != "served",
        "gateway.port": 0,
        **{f"topics.{name}": at.topic(f"{mode}_{name}") for name in (*_TOPICS, "popularity")},
    }


def _job(at: Place, mode: str, chosen: Settings, path: Path) -> Child:
    arguments = ["--config", str(path)]
    return Child(f"{mode}-job", "bench.ours_job", arguments, at.folder, ends_at_eof=True)


def _peer(at: Place, mode: str, chosen: Settings, path: Path) -> Child:
    assert chosen.ranking is not None
    arguments = ["--bootstrap", at.bootstrap, "--events", chosen.topics.events]
    arguments += ["--replies", chosen.topics.predictions]
    arguments += ["--version", str(find_version(MODELS, "feed").path)]
    arguments += ["--candidates", str(chosen.ranking.candidates)]
    arguments += ["--libraries", sysconfig.get_path("purelib")]
    python = PEER_PYTHONS[mode]
    return Child(mode, f"bench.peer_{mode}_ranking", arguments, at.folder, python=python)
