"""What a version of a job has of its own: topics, consumer group, transactions, checkpoints."""

from __future__ import annotations

import re

from jobs.settings import Settings
from jobs.settings_file import SettingsError

BASE = "base"
"""The version that writes to the topics as the settings name them."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}")
_OUTPUTS = ("predictions", "alerts", "dead_letters", "duplicates", "shed", "shadow")


def topic_of(topic: str, version: str) -> str:
    """The topic that a version writes to in place of another one."""
    return topic if version == BASE else f"{topic}.{version}"


def control_topic(settings: Settings) -> str:
    """The compacted topic that says which version readers follow."""
    return f"{settings.topics.predictions}.current"


def version_of(name: str) -> str:
    """The name, if a version can have it.

    Raises:
        SettingsError: it cannot be part of a topic's name.
    """
    if not _NAME.fullmatch(name) or name == "current":
        raise SettingsError(f"{name!r} is no name of a version: write letters and digits, as v2")
    return name


def versioned(settings: Settings, version: str) -> Settings:
    """The settings of a version: they share with the others what they read, and nothing else.

    Args:
        settings: As in the file.
        version: ``BASE`` gives the settings themselves.

    Raises:
        SettingsError: a version cannot have that name.
    """
    if version_of(version) == BASE:
        return settings
    named = {name: getattr(settings.topics, name) for name in _OUTPUTS}
    topics = {name: topic_of(topic, version) for name, topic in named.items() if topic}
    group = f"{settings.kafka.group_id}-{version}"
    folder = f"{settings.flink.checkpoint_dir.rstrip('/')}/{version}"
    return settings.model_copy(
        update={
            "name": f"{settings.name}-{version}",
            "topics": settings.topics.model_copy(update=topics),
            "kafka": settings.kafka.model_copy(update={"group_id": group}),
            "flink": settings.flink.model_copy(update={"checkpoint_dir": folder}),
            "overload": None,  # a version begins with what is old, and old is lag
        }
    )
