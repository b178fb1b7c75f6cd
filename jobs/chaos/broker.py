"""Local brokers with a second way in, which leads over a link that can be hurt."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from confluent_kafka import KafkaException

from jobs.chaos.proxy import Link
from jobs.environment import NotReadyError
from jobs.kafka_broker import KafkaBroker
from jobs.kafka_topics import probe
from jobs.ports import HOST, free_port

_SECOND = "LINK"
_ANSWER_S = 5.0
_IN_SYNC_S = 60.0
_POLL_S = 0.1


class LinkedBroker(KafkaBroker):
    """A broker that clients reach directly, or by a proxy that it tells them of.

    Args:
        folder: See ``KafkaBroker``.
        node: Its number among several.

    Attributes:
        node: The same.
        link_port: Where the proxy's bytes go.
        proxy_port: Where the proxy listens.
    """

    def __init__(self, folder: Path, node: int = 1) -> None:
        super().__init__(folder, port=free_port())
        self.node = node
        self.link_port = free_port(other_than=self._port)
        self.proxy_port = free_port(other_than=self.link_port)
        self._controller_port = free_port(other_than=self.proxy_port)
        self._others: dict[str, str] = {}

    def join(self, all_of_them: Sequence[LinkedBroker]) -> None:
        """Be one of several brokers, each of which has a replica of everything."""
        voters = [f"{b.node}@{HOST}:{b._controller_port}" for b in all_of_them]
        replicas, in_sync = str(len(all_of_them)), str(max(1, len(all_of_them) - 1))
        self._cluster_id = all_of_them[0]._cluster_id
        self._others = {
            "controller.quorum.voters": ",".join(voters),
            "default.replication.factor": replicas,
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": replicas,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": in_sync,
            "leader.imbalance.check.interval.seconds": "2",  # not five minutes
            "leader.imbalance.per.broker.percentage": "0",
        }

    @property
    def direct(self) -> str:
        """host:port that leads around the proxy, also of a broker that does not run."""
        return f"{HOST}:{self._port}"

    def _server_properties(self, port: int) -> str:
        lines = dict(line.split("=", 1) for line in super()._server_properties(port).splitlines())
        plain = f"PLAINTEXT://{HOST}:{port}"
        control = f"CONTROLLER://{HOST}:{self._controller_port}"
        lines |= {
            "node.id": str(self.node),
            "controller.quorum.voters": f"{self.node}@{HOST}:{self._controller_port}",
            "listeners": f"{_SECOND}://{HOST}:{self.link_port},{plain},{control}",
            "advertised.listeners": f"{_SECOND}://{HOST}:{self.proxy_port},{plain}",
        }
        lines["listener.security.protocol.map"] += f",{_SECOND}:PLAINTEXT"
        lines |= self._others
        return "".join(f"{name}={value}\n" for name, value in lines.items())


@dataclass
class Brokers:
    """One broker or several that replicate everything, each behind a link; a context manager.

    Attributes:
        all: They.
    """

    all: list[LinkedBroker]

    @classmethod
    def in_folder(cls, folder: Path, count: int) -> Self:
        """Brokers 1, 2 and so on, in folders of these names."""
        found = [LinkedBroker(folder / str(n), n) for n in range(1, count + 1)]
        for broker in found:
            broker.join(found)
        return cls(found)

    def __enter__(self) -> Self:
        self._opened = ExitStack()
        with self._opened:
            self._links = [
                self._opened.enter_context(Link(b.link_port, b.proxy_port)) for b in self.all
            ]
            for broker in self.all:
                self._opened.callback(broker.kill)  # the last ones would wait for those that ended
            self.revive()
            self._opened = self._opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def bootstrap(self) -> str:
        """Addresses that lead around the links."""
        return ",".join(broker.direct for broker in self.all)

    @property
    def address(self) -> str:
        """Addresses that lead over the links."""
        return ",".join(link.address for link in self._links)

    def be(self, how: str) -> None:
        """Have every link obey a line, see ``Link``."""
        for link in self._links:
            link.be(how)

    def revive(self) -> None:
        """Start those that do not run, at once: none answers before most of them do."""
        ended = [broker for broker in self.all if broker.status() is None]
        if ended:
            with ThreadPoolExecutor(len(ended)) as pool:
                list(pool.map(LinkedBroker.start, ended))

    def leader(self, topic: str) -> LinkedBroker:
        """The broker that leads most partitions of a topic.

        Raises:
            NotReadyError: no broker tells.
        """
        with suppress(KafkaException, KeyError):
            found = probe(self.bootstrap).list_topics(topic, timeout=_ANSWER_S).topics[topic]
            leads = Counter(partition.leader for partition in found.partitions.values())
            for node, _ in leads.most_common():
                for broker in self.all:
                    if broker.node == node and broker.status() is not None:
                        return broker
        raise NotReadyError(f"no broker leads {topic}", f"see {self.all[0].log}")

    def wait_settled(self, timeout_s: float = _IN_SYNC_S) -> None:
        """Wait until every replica is in sync and every partition has its first leader again.

        Raises:
            NotReadyError: it is not so in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self._is_settled():
            if time.monotonic() > deadline_s:
                raise NotReadyError(
                    f"after {timeout_s:.0f} s not every replica is in sync and every leader back",
                    f"see {self.all[0].log}",
                )
            time.sleep(_POLL_S)

    def _is_settled(self) -> bool:
        with suppress(KafkaException):
            topics = probe(self.bootstrap).list_topics(timeout=_ANSWER_S).topics.values()
            return all(
                len(p.isrs) == len(p.replicas) and p.leader == p.replicas[0]
                for topic in topics
                for p in topic.partitions.values()
            )
        return False
