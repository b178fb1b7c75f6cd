"""Three brokers with a replica of everything each: what they can be asked to break comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import Producer

from jobs.chaos.broker import Brokers
from jobs.chaos.kafka_faults import LostTopic, MovedLeader
from jobs.kafka_topics import create_topics, probe, topic_partitions

pytestmark = [pytest.mark.cluster, pytest.mark.kafka, pytest.mark.timeout(300)]


def leaders(brokers: Brokers) -> list[int]:
    found = probe(brokers.bootstrap).list_topics("events", timeout=10).topics["events"].partitions
    return [found[n].leader for n in sorted(found)]


def test_a_topic_is_lost_and_a_leader_moves_and_both_come_back(tmp_path: Path) -> None:
    with Brokers.in_folder(tmp_path, 3) as brokers:
        create_topics(brokers.bootstrap, {"events": 3, "alerts": 2})
        lost = LostTopic(brokers.bootstrap, "alerts", 2)
        assert lost.inject(0.0) == "alerts deleted"
        lost.heal()
        assert topic_partitions(brokers.bootstrap)["alerts"] == 2
        before, first = leaders(brokers), brokers.leader("events")
        assert sorted(before) == [1, 2, 3]
        fault = MovedLeader(brokers, "events")
        fault.heal()  # nothing was moved yet
        assert fault.inject(0.0).startswith(f"broker {first.node} stopped, ")
        assert first.node not in leaders(brokers)
        producer = Producer({"bootstrap.servers": brokers.bootstrap, "acks": "all"})
        for n in range(3):
            producer.produce("events", b"taken by two", partition=n)
        assert producer.flush(30) == 0
        fault.heal()
        assert leaders(brokers) == before
    assert all(broker.status() is None for broker in brokers.all)
