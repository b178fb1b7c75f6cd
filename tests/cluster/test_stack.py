"""The local broker, for real: started, found again, taken over, killed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from jobs import jars, kafka_topics, ports, stack
from jobs.kafka_broker import KafkaBroker
from jobs.kafka_topics import StackError
from jobs.ports import HOST
from jobs.sections.topics import TopicSettings

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

TOPICS = {"one": 1, "four": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One broker's folder for all tests; whatever they leave running in it is stopped."""
    jars.fetch()
    path = tmp_path_factory.mktemp("stack")
    yield path
    KafkaBroker(path).kill()


@pytest.fixture
def broker(folder: Path) -> KafkaBroker:
    """The running broker, started if the test before has stopped it."""
    broker = KafkaBroker(folder)
    broker.start()
    return broker


def pid_of(broker: KafkaBroker) -> int:
    state = broker.status()
    assert state is not None
    return state.pid


def write(bootstrap: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all"})
    producer.produce("one", value)
    assert producer.flush(30) == 0


def read_all(bootstrap: str, count: int) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test"})
    try:
        consumer.assign([TopicPartition("one", 0, 0)])
        messages = consumer.consume(count, timeout=30)
        return [value for m in messages if m.error() is None and (value := m.value()) is not None]
    finally:
        consumer.close()


def test_topics_are_made_once(broker: KafkaBroker) -> None:
    assert kafka_topics.create_topics(broker.bootstrap, {}) == []
    assert sorted(kafka_topics.create_topics(broker.bootstrap, TOPICS)) == ["four", "one"]
    assert kafka_topics.create_topics(broker.bootstrap, TOPICS) == []
    assert kafka_topics.topic_partitions(broker.bootstrap).items() >= TOPICS.items()


def test_a_topic_with_another_partition_count_is_an_error(broker: KafkaBroker) -> None:
    kafka_topics.create_topics(broker.bootstrap, TOPICS)
    with pytest.raises(StackError, match="topic four has 4 partitions instead of 5"):
        kafka_topics.create_topics(broker.bootstrap, {"four": 5})


def test_a_name_that_kafka_refuses_is_an_error(broker: KafkaBroker) -> None:
    with pytest.raises(StackError, match="topic a b: "):
        kafka_topics.create_topics(broker.bootstrap, {"a b": 1})


def test_a_second_start_does_nothing(broker: KafkaBroker, folder: Path) -> None:
    pid, bootstrap = pid_of(broker), broker.bootstrap
    assert broker.start() == bootstrap
    assert KafkaBroker(folder).start() == bootstrap
    assert pid_of(broker) == pid


def test_topics_records_and_the_port_survive_a_stop(broker: KafkaBroker, folder: Path) -> None:
    bootstrap = broker.bootstrap
    kafka_topics.create_topics(bootstrap, TOPICS)
    write(bootstrap, b"before the stop")
    assert broker.stop() is True
    assert broker.status() is None
    with pytest.raises(StackError, match="does not run"):
        _ = broker.bootstrap
    assert KafkaBroker(folder).start() == bootstrap
    assert kafka_topics.topic_partitions(bootstrap).items() >= TOPICS.items()
    assert read_all(bootstrap, 1) == [b"before the stop"]


def test_another_object_can_stop_it(broker: KafkaBroker, folder: Path) -> None:
    pid = pid_of(broker)
    assert KafkaBroker(folder).stop() is True
    assert broker.status() is None
    assert broker.stop() is False
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_the_start_after_a_crash_copes_with_what_it_left(broker: KafkaBroker, folder: Path) -> None:
    kafka_topics.create_topics(broker.bootstrap, TOPICS)
    pid = pid_of(broker)
    process = psutil.Process(pid)
    process.kill()
    process.wait(30)
    assert (folder / "stack.json").is_file()
    assert broker.status() is None
    assert KafkaBroker(folder).status() is None
    bootstrap = KafkaBroker(folder).start()
    assert pid_of(broker) != pid
    assert kafka_topics.topic_partitions(bootstrap).items() >= TOPICS.items()


def test_up_makes_the_jobs_topics_and_again_nothing(broker: KafkaBroker, folder: Path) -> None:
    topics = TopicSettings(labels="labels", partitions=2)
    steps: list[str] = []
    first = stack.up(broker.bootstrap, topics, steps.append, folder)
    assert stack.up(broker.bootstrap, topics, folder=folder) == first
    assert stack.summary(first).items() >= {"topic labels": "2 partitions"}.items()
    assert steps[-1] == "making topics"


def test_up_at_another_port_than_the_running_broker_is_an_error(
    broker: KafkaBroker, folder: Path
) -> None:
    other = f"{HOST}:{ports.free_port()}"
    with pytest.raises(StackError, match="already runs at") as caught:
        stack.up(other, TopicSettings(labels=None), folder=folder)
    assert caught.value.fix == "run: streamscore stack down"


def test_a_taken_port_is_an_error_with_its_fix(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        broker = KafkaBroker(tmp_path, port=port)
        with pytest.raises(StackError, match=f"port {port} is taken") as caught:
            broker.start()
    assert "STREAMSCORE_KAFKA" in caught.value.fix
    assert broker.status() is None


def test_a_broker_that_does_not_answer_in_time_is_not_left_running(tmp_path: Path) -> None:
    broker = KafkaBroker(tmp_path, start_timeout_s=0.0)
    with pytest.raises(StackError, match="did not answer within 0 s"):
        broker.start()
    assert broker.status() is None
    properties = str(tmp_path / "conf" / "server.properties")
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if properties in (p.info["cmdline"] or [])
    ]


@pytest.mark.parametrize("bootstrap", ["kafka.example:9092", "127.0.0.1", "a:1,b:2", ""])
def test_only_a_broker_of_this_machine_can_be_brought_up(bootstrap: str) -> None:
    with pytest.raises(StackError, match="not a local broker"):
        ports.port_of(bootstrap)
