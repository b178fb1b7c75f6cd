"""The topics of a version."""

from __future__ import annotations

from collections.abc import Mapping

from confluent_kafka.admin import AdminClient

from jobs.settings import Settings
from jobs.versions.control import create

_TIMEOUT_S = 15.0


def make_topics(base: Settings, own: Settings, options: Mapping[str, str]) -> None:
    """Make a version's topics, each with as many partitions as the one it stands for.

    Args:
        base: The settings as in the file.
        own: The version's.
        options: Of librdkafka, with ``bootstrap.servers``.

    Raises:
        ControlError: the brokers refused one.
    """
    admin = AdminClient(dict(options))
    known = admin.list_topics(timeout=_TIMEOUT_S).topics
    wanted = {}
    for name in ("predictions", "alerts", "dead_letters", "duplicates", "shed", "shadow"):
        topic, model = getattr(own.topics, name), getattr(base.topics, name)
        if topic and topic not in known:
            there = known.get(model)
            wanted[topic] = len(there.partitions) if there else own.topics.partitions
    if wanted:
        create(admin, wanted, {})
