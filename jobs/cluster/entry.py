"""What ``flink run`` and ``standalone-job.sh`` run: one packaged job.

With ``--told FOLDER`` it does all that takes time, writes ``ready`` there, and waits for ``go``,
which names the savepoint: an upgrade stops the old job only then. Without, it starts at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
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
    tell(chosen.told / "ready", {})
    if savepoint := _go(chosen.told)["savepoint"]:
        _restore_from(env, savepoint)
    client = env.execute_async(name)
    tell(chosen.told / "submitted", {"job_id": str(client.get_job_id())})
    return 0


def _built(job: Path) -> tuple[Any, str]:
    from pyflink.datastream import StreamExecutionEnvironment

    from jobs import pipeline, settings, shapes

    overrides = json.loads((job / "conf" / "overrides.json").read_text(encoding="utf-8"))
    loaded = settings.load(job / "conf" / "job.yaml", overrides)
    jars = ";".join(jar.absolute().as_uri() for jar in sorted((job / "jars").glob("*.jar")))
    configuration = pipeline.flink_configuration(loaded, {"pipeline.jars": jars})
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    shapes.build(env, loaded)
    _compile(loaded)
    return env, loaded.name


def _compile(settings: Any) -> None:
    """Compile the loops of the job's stages beside their source, before TaskManagers need them."""
    from udfs.features.keyed import KeyedStage

    for key in settings.schema_.stages:
        KeyedStage(settings.schema_, key).warm_up()


def _restore_from(env: Any, savepoint: str) -> None:
    from pyflink.common import Configuration

    changed = Configuration()
    changed.set_string("execution.state-recovery.path", savepoint)
    env.configure(changed)


def tell(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is complete once it is there."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content), encoding="utf-8")
    draft.replace(path)


def _go(folder: Path) -> dict[str, Any]:
    """What ``go`` says; ends the process when nobody is left to say it."""
    deadline_s = time.monotonic() + _PARENT_S
    while not (folder / "go").exists():
        if time.monotonic() > deadline_s or os.getppid() == 1:
            sys.exit("nobody said go")
        time.sleep(_POLL_S)
    told: dict[str, Any] = json.loads((folder / "go").read_text(encoding="utf-8"))
    return told


if __name__ == "__main__":
    sys.exit(main())
