"""Follows a topic of popularities in a thread."""

from __future__ import annotations

import logging
from threading import Event, Thread

from udfs.enrichment.table_sources import POLL_S, KafkaAccess, TopicSource
from udfs.ranking.live_popularity import PopularItems

__all__ = ["PopularFeed"]

logger = logging.getLogger(__name__)

_STOP_S = 5.0
_LOGGED_REFUSALS = 10


class PopularFeed:
    """A thread that keeps ``items`` as the topic has them.

    Staleness: what the item stage has not published yet (``ranking.publish``), and what Kafka
    takes to bring it, some 10 ms.

    Attributes:
        items: The items; empty until the first is read.
        records: How many records were read.
    """

    def __init__(self, topic: str, kafka: KafkaAccess) -> None:
        """Read nothing yet."""
        self.items = PopularItems()
        self.records = 0
        self._refused = 0
        self._topic = topic
        self._source = TopicSource(topic, kafka, self)
        self._stop, self._loaded = Event(), Event()
        self._thread = Thread(target=self._run, name=f"streamscore-{topic}", daemon=True)

    @property
    def table(self) -> PopularItems:
        """See ``TopicSink``."""
        return self.items

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Read no longer."""
        self._stop.set()
        self._thread.join(_STOP_S)

    def wait_loaded(self, timeout_s: float) -> bool:
        """Block until what was there is read, or not longer than that; returns whether it is."""
        return self._loaded.wait(timeout_s)

    def took(self, records: int) -> None:
        """See ``TopicSink``."""
        self.records += records

    def refuse(self, where: str, why: str) -> None:
        """See ``TopicSink``."""
        self._refused += 1
        if self._refused <= _LOGGED_REFUSALS:
            logger.warning("popularity: %s of %s refused: %s", where, self._topic, why)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._source.read(self._stop, self._loaded.set)
            except Exception as exc:  # whatever it is, the topic must be followed again
                logger.warning("topic %s is read again: %s", self._topic, exc)
                self._stop.wait(POLL_S)
