"""Card-fraud scoring: one settings file wired into one Flink job.

The cluster supplies: the topics of ``conf/fraud.yaml``, a checkpoint folder that every TaskManager
reaches, the model folder (read when the job is built) and, unless ``model.embedded``, a server that
speaks TensorFlow Serving's Predict API.

Run by ``streamscore run`` or by Flink itself: ``flink run -py jobs/fraud.py --config FILE``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pyflink.datastream import StreamExecutionEnvironment

from jobs import pipeline, settings
from jobs.environment import ROOT


def main(argv: Sequence[str] | None = None) -> int:
    """Build the job and hand it to the environment that Flink supplies; returns the exit code."""
    parser = argparse.ArgumentParser(description="Score card transactions.")
    parser.add_argument("--config", type=Path, default=ROOT / "conf" / "fraud.yaml")
    chosen = settings.load(parser.parse_args(argv).config)
    env = StreamExecutionEnvironment.get_execution_environment(pipeline.flink_configuration(chosen))
    pipeline.build(env, chosen)
    env.execute(chosen.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
