"""What every job file does: one settings file wired into the environment that Flink supplies."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pyflink.datastream import StreamExecutionEnvironment

from jobs import pipeline, settings
from jobs.environment import ROOT


def run(description: str, conf: str, argv: Sequence[str] | None = None) -> int:
    """Build a job and hand it to Flink's environment; returns the exit code.

    Args:
        description: For ``--help``.
        conf: Settings below ``conf/`` that are taken without ``--config``.
        argv: The arguments; none takes the process'.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, default=ROOT / "conf" / conf)
    chosen = settings.load(parser.parse_args(argv).config)
    env = StreamExecutionEnvironment.get_execution_environment(pipeline.flink_configuration(chosen))
    pipeline.build(env, chosen)
    env.execute(chosen.name)
    return 0
