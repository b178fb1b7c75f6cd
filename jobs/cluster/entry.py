"""What ``flink run`` and ``standalone-job.sh`` run: one packaged job.

With ``--told FOLDER`` it does all that takes time, writes ``ready`` there, and waits for ``go``,
which names the savepoint: an upgrade stops the old job only then. ``rehearse`` before that has the
job run without outputs. Without ``--told``, it starts at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_POLL_S = 0.02
_PARENT_S = 1800.0


def main(argv: Sequence[str] | None = None) -> int:
    """Build the job, wait to be told if asked to, submit it; returns the exit code."""
    # Names that no option of Flink's begins with: its own parser sees them first.
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packed-job", type=Path, required=True, help="job/ of the package")
    parser.add_argument("--told", type=Path, help="folder of the files ready, go and submitted")
    chosen = parser.parse_args(argv)
    env, name = _built(chosen.packed_job)
    if chosen.told is None:
        env.execute(name)
        return 0
    graph = env._generate_stream_graph(clear_transformations=True, job_name=name)
    tell(chosen.told / "ready", {})
    if savepoint := _go(chosen.told, chosen.packed_job)["savepoint"]:
        _restore_from(env, savepoint)
    client = env._j_stream_execution_environment.executeAsync(graph)
    tell(chosen.told / "submitted", {"job_id": str(client.getJobID())})
    return 0


def _built(job: Path) -> tuple[Any, str]:
    """The environment that the job is wired into, and its name."""
    from jobs import shapes

    loaded = _settings(job)
    env = _environment(job, loaded, {})
    shapes.build(env, loaded)
    _compile(loaded)
    return env, loaded.name


def _settings(job: Path) -> Any:
    from jobs import settings

    overrides = json.loads((job / "conf" / "overrides.json").read_text(encoding="utf-8"))
    return settings.load(job / "conf" / "job.yaml", overrides)


def _environment(job: Path, settings: Any, options: Mapping[str, str]) -> Any:
    """One for a job; the options win over all others."""
    from pyflink.datastream import StreamExecutionEnvironment

    from jobs import pipeline

    jars = ";".join(jar.absolute().as_uri() for jar in sorted((job / "jars").glob("*.jar")))
    configuration = pipeline.flink_configuration(settings, {"pipeline.jars": jars})
    for name, value in options.items():
        configuration.set_string(name, value)
    return StreamExecutionEnvironment.get_execution_environment(configuration)


def _rehearse(job: Path, asked: dict[str, Any]) -> str:
    """Submit the job so that it reads, computes and leaves no trace; its id."""
    from jobs import shapes, sinks
    from jobs.starting import Position, Start

    loaded = _settings(job)
    if savepoint := asked["savepoint"]:
        begin = Start(savepoint, drops=True)  # of the sinks
    else:
        newest = Position(time_ms=time.time_ns() // 1_000_000)
        read = (loaded.topics.events, loaded.topics.labels)
        begin = Start(positions={topic: newest for topic in read if topic})
    options = {
        sinks.OUTPUTS: sinks.NOWHERE,
        "parallelism.default": str(asked["parallelism"]),
        "restart-strategy.type": "none",
        # A checkpoint would tell Kafka how far the job has read.
        "execution.checkpointing.interval": "36500 d",
        **begin.options,
    }
    env = _environment(job, loaded, options)
    shapes.build(env, loaded, begin)
    return str(env.execute_async(f"{loaded.name} (rehearsal)").get_job_id())


def _compile(settings: Any) -> None:
    """Compile the loops of the job's stages beside their source, before TaskManagers need them."""
    from udfs.features.keyed import KeyedStage

    for key in settings.schema_.stages:
        KeyedStage(settings.schema_, key).warm_up()


def _restore_from(env: Any, savepoint: str) -> None:
    """Also for a graph that is made: what submits it reads the environment's options."""
    from pyflink.common import Configuration

    changed = Configuration()
    changed.set_string("execution.state-recovery.path", savepoint)
    env.configure(changed)


def tell(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is complete once it is there."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content), encoding="utf-8")
    draft.replace(path)


def _go(folder: Path, job: Path) -> dict[str, Any]:
    """What ``go`` says; ends the process when nobody is left to say it."""
    deadline_s = time.monotonic() + _PARENT_S
    while not (folder / "go").exists():
        if time.monotonic() > deadline_s or os.getppid() == 1:
            sys.exit("nobody said go")
        if (folder / "rehearse").exists() and not (folder / "rehearsing").exists():
            tell(folder / "rehearsing", {"job_id": _rehearse(job, _read(folder / "rehearse"))})
        time.sleep(_POLL_S)
    return _read(folder / "go")


def _read(path: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return told


if __name__ == "__main__":
    sys.exit(main())
