"""Card-fraud scoring: one settings file wired into one Flink job.

The cluster supplies: the topics of ``conf/fraud.yaml``, a checkpoint folder that every TaskManager
reaches, the model folder (read when the job is built) and, unless ``model.embedded``, a server that
speaks TensorFlow Serving's Predict API.

Run by ``streamscore run`` or by Flink itself: ``flink run -py jobs/fraud.py --config FILE``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job_file


def main(argv: Sequence[str] | None = None) -> int:
    """Build the job and hand it to the environment that Flink supplies; returns the exit code."""
    return job_file.run("Score card transactions.", "fraud.yaml", argv)


if __name__ == "__main__":
    sys.exit(main())
