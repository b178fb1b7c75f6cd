"""What is told from predictions, settings and savepoints while a job is changed."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from typing import Any

import kubernetes_validate
import numpy as np
import psutil
import pytest
import yaml

from jobs import settings
from jobs.cluster import compatibility, inspection
from jobs.cluster.kubernetes import manifest
from jobs.cluster.savepoints import local
from jobs.cluster.watching import Seen, gap_of, shift
from jobs.environment import ROOT
from jobs.flink_rest import JobError
from jobs.processes import Started, end, find

FRAUD = ROOT / "conf" / "fraud.yaml"


def seen(*times_ms: int) -> list[Seen]:
    return [Seen(ms, 0, n, 0.5, False) for n, ms in enumerate(times_ms)]


def test_the_gap_is_the_longest_that_ends_after_the_stop() -> None:
    gap = gap_of(seen(0, 9_000, 9_100, 9_200, 12_700, 12_800), since_ms=9_150)
    assert gap is not None
    assert (gap.last_before_ms, gap.first_after_ms, gap.seconds) == (9_200, 12_700, 3.5)


def test_there_is_no_gap_without_two_predictions() -> None:
    assert gap_of(seen(5), since_ms=0) is None


def scored(scores: Any) -> list[Seen]:
    return [Seen(0, 0, n, float(score), False) for n, score in enumerate(scores)]


def test_equal_scores_are_no_shift_and_others_are() -> None:
    chance = np.random.default_rng(3)
    low, same = chance.beta(1, 9, 2_000), chance.beta(1, 9, 2_000)
    assert (shift(scored(low), scored(same)) or 0) < 0.05
    assert (shift(scored(low), scored(1 - low)) or 0) > 0.25
    assert shift(scored(low), scored(same[:100])) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch.buckets": 4}, "batch.buckets: was 2, now 4"),
        ({"topics.events": "others"}, "topics.events is others"),
    ],
)
def test_what_the_state_does_not_allow(change: dict[str, Any], message: str) -> None:
    old = settings.load(FRAUD)
    with pytest.raises(compatibility.Incompatible, match=message):
        compatibility.check(old, settings.load(FRAUD, change))


def test_another_parallelism_and_model_are_allowed() -> None:
    changed = {"flink.parallelism": 2, "model.version": 7, "batch.window": "20ms"}
    compatibility.check(settings.load(FRAUD), settings.load(FRAUD, changed))


def test_a_key_group_is_read_as_flink_writes_it() -> None:
    def pair(key: bytes, value: bytes, more: bool) -> bytes:
        key = bytes([key[0] | (0x80 if more else 0)]) + key[1:]
        return struct.pack(">i", len(key)) + key + struct.pack(">i", len(value)) + value

    group = b"\0\0" + pair(b"\x01a", b"1", False) + pair(b"\x01b", b"22", True)
    group += b"\0\1" + pair(b"\x01c", b"", True) + b"\xff\xff"
    raw = b"header" + group
    found = [(number, key[1:]) for number, key in inspection.entries(raw, len(b"header"))]
    assert found == [(0, b"a"), (0, b"b"), (1, b"c")]


def test_savepoints_elsewhere_are_not_looked_for_here() -> None:
    with pytest.raises(JobError, match="not on this machine"):
        local("s3://bucket/savepoint-1")


def test_a_process_is_known_by_its_start_and_mark() -> None:
    say = "import sys; print('up', flush=True); sys.stdin.readline()"
    command = [sys.executable, "-c", say, "a-mark"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        started = Started.of(child.pid)
        assert find(started, "a-mark") is not None
        assert find(started, "another") is None
        assert find(Started(child.pid, started.started_at_s - 60), "a-mark") is None
        end(psutil.Process(child.pid), signal.SIGTERM, 10)
        assert find(started, "a-mark") is None
    assert child.pid != os.getpid()


def test_the_manifest_fits_the_settings() -> None:
    chosen = settings.load(FRAUD, {"flink.parallelism": 2, "flink.checkpoint_dir": "s3://b/c"})
    parts = {part["kind"]: part for part in yaml.safe_load_all(manifest(chosen, FRAUD, "i:1"))}
    assert set(parts) == {"ConfigMap", "FlinkDeployment", "NetworkPolicy"}
    spec = parts["FlinkDeployment"]["spec"]
    assert spec["job"]["upgradeMode"] == "savepoint"
    assert spec["taskManager"]["replicas"] == spec["job"]["parallelism"] == 2
    assert all(isinstance(v, str) for v in spec["flinkConfiguration"].values())
    for kind in ("ConfigMap", "NetworkPolicy"):
        kubernetes_validate.validate(parts[kind], "1.37", strict=True)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **spec["podTemplate"]}
    pod["spec"]["containers"][0]["image"] = spec["image"]
    kubernetes_validate.validate(pod, "1.37", strict=True)
    assert parts["ConfigMap"]["data"]["job.yaml"] == FRAUD.read_text()
