"""Machine anomalies: readings rolled up to windows, scored by a model in the operator.

The cluster supplies: the topics of ``conf/iot.yaml``, a checkpoint folder and a model folder that
every TaskManager reaches. ``jobs/anomaly.md`` tells of it.

Run by ``streamscore run conf/iot.yaml`` or by Flink itself: ``flink run -py jobs/anomaly.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job_file


def main(argv: Sequence[str] | None = None) -> int:
    """Build the job and hand it to the environment that Flink supplies; returns the exit code."""
    return job_file.run("Score windows of machine readings.", "iot.yaml", argv)


if __name__ == "__main__":
    sys.exit(main())
