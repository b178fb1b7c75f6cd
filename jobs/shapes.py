"""The shape of a job: what its settings ask for, scoring or ranking."""

from __future__ import annotations

from pyflink.datastream import StreamExecutionEnvironment

from jobs import pipeline, ranking
from jobs.settings import Settings
from jobs.starting import EMPTY, Start


def build(env: StreamExecutionEnvironment, settings: Settings, begin: Start = EMPTY) -> None:
    """Wire the job into an environment.

    Args:
        env: An environment with ``pipeline.flink_configuration``.
        settings: The job's.
        begin: From which state and positions; a ranking job begins as ``kafka.start`` says.

    Raises:
        SettingsError: as those of ``pipeline.build`` and ``ranking.build``.
    """
    if settings.ranking is not None:
        ranking.build(env, settings)
    else:
        pipeline.build(env, settings, begin)
