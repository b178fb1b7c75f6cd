"""The jars that go with a job, by its settings."""

from __future__ import annotations

from pathlib import Path

from jobs.environment import NotReadyError
from jobs.jars import flink_jars, token_jars
from jobs.settings import Settings


def jars_of(settings: Settings) -> list[Path]:
    """The jars that a job needs beside Flink's own.

    Raises:
        NotReadyError: one is missing.
    """
    jars = [*flink_jars(), *(token_jars() if settings.kafka.token_url else ())]
    if settings.kinesis is None:
        return jars
    if not settings.kinesis.jar.is_file():
        raise NotReadyError(f"there is no {settings.kinesis.jar}", "put the connector's jar there")
    return [*jars, settings.kinesis.jar]
