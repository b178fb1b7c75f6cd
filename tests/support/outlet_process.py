"""``streamscore deliver`` and ``streamscore store run`` as processes, and topics for them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import yaml
from confluent_kafka import Consumer, Producer, TopicPartition

from jobs.environment import ROOT
from jobs.kafka_topics import create_topics
from jobs.settings import Settings, load
from tests.support.fixtures import CONFIG
from tests.support.waiting import wait_until

PARTITIONS = 3
_STOP_S = 30.0
_numbers = count()


class Topics:
    """conf/fraud.yaml with topics and groups of its own, and what is written to them.

    Attributes:
        conf: The file.
        settings: It, loaded.
    """

    def __init__(self, bootstrap: str, folder: Path, **sections: Any) -> None:
        name = f"outlet{next(_numbers)}"
        document = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        document["kafka"] = {"bootstrap_servers": bootstrap, "group_id": name}
        document["topics"] |= {
            "alerts": f"{name}-alerts",
            "predictions": f"{name}-predictions",
            "partitions": PARTITIONS,
        }
        for section in sections.values():
            section["dead_letters"] = f"{name}-dead"
        self.conf = folder / f"{name}.yaml"
        self.conf.write_text(yaml.safe_dump(document | sections), encoding="utf-8")
        self.settings: Settings = load(self.conf)
        self._bootstrap = bootstrap
        self.dead = f"{name}-dead"
        create_topics(bootstrap, dict.fromkeys(self._names, PARTITIONS))
        self._producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "log_level": 0})

    @property
    def _names(self) -> Sequence[str]:
        return (self.settings.topics.alerts, self.settings.topics.predictions, self.dead)

    def write(self, topic: str, documents: Sequence[Any], key: str = "entity") -> None:
        """JSON records, keyed by a field; a document of bytes goes as it is."""
        for n, document in enumerate(documents):
            raw = isinstance(document, bytes)
            self._producer.produce(
                topic,
                document if raw else orjson.dumps(document),
                b"" if raw else str(document[key]).encode(),
                n % PARTITIONS if raw else hash_of(str(document[key])) % PARTITIONS,
            )
            self._producer.poll(0)
        assert self._producer.flush(30) == 0

    def dead_letters(self) -> list[dict[str, Any]]:
        """All of them so far."""
        consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": "reader"})
        parts = [TopicPartition(self.dead, n, 0) for n in range(PARTITIONS)]
        ends = {p.partition: consumer.get_watermark_offsets(p, timeout=10)[1] for p in parts}
        consumer.assign(parts)
        found: list[dict[str, Any]] = []
        while len(found) < sum(ends.values()):
            found += [orjson.loads(m.value() or b"") for m in consumer.consume(100, 1.0)]
        consumer.close()
        return found

    def lag(self, topic: str, group: str) -> int:
        """How many records the group has not committed."""
        consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": group})
        parts = [TopicPartition(topic, n) for n in range(PARTITIONS)]
        at = {p.partition: max(0, p.offset) for p in consumer.committed(parts, timeout=10)}
        ends = {p.partition: consumer.get_watermark_offsets(p, timeout=10)[1] for p in parts}
        consumer.close()
        return sum(ends[n] - at[n] for n in ends)


def hash_of(text: str) -> int:
    """The same in every process."""
    return sum(text.encode())


class OutletProcess:
    """A command of the project, in a process that is stopped or killed by its pid."""

    def __init__(self, log: Path, *words: str) -> None:
        self.log = log
        self._words = words
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs.cli", *self._words],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            error.add_note(self.log.read_text(encoding="utf-8")[-3_000:])
        self.kill()

    def says(self, text: str) -> bool:
        return text in self.log.read_text(encoding="utf-8")

    def kill(self) -> None:
        """As a crash would."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(_STOP_S)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_STOP_S)

    def until(self, text: str) -> None:
        wait_until(lambda: self.says(text), 60, f"{self.log} says {text!r}")
