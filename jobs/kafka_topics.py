"""Topics of a Kafka cluster: which there are, and making a job's."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.cimpl import NewTopic

from jobs.environment import NotReadyError

if TYPE_CHECKING:
    from jobs.sections.topics import TopicSettings

NO_LOGIN: Mapping[str, Any] = {}
"""What a client of a broker without security adds to its properties."""
_ATTEMPT_TIMEOUT_S = 0.5
_FINAL = (KafkaError._AUTHENTICATION, KafkaError._SSL)
"""No later attempt would end otherwise."""
_SILENT = logging.getLogger("streamscore.kafka-probe")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


class StackError(NotReadyError):
    """The local stack cannot be started, reached or stopped."""


def partitions_of(topics: TopicSettings) -> dict[str, int]:
    """Partition count of every topic of a job, by name; the labels only if it has any."""
    names = [topics.events, topics.labels, topics.predictions, topics.alerts]
    names += [topics.dead_letters, topics.duplicates, topics.shed, topics.shadow]
    names += [topics.impressions, topics.examples]
    return {name: topics.partitions for name in names if name}


def create_topics(
    bootstrap: str,
    partitions: Mapping[str, int],
    configs: Mapping[str, str] | None = None,
    *,
    timeout_s: float = 30.0,
    login: Mapping[str, Any] = NO_LOGIN,
) -> list[str]:
    """Create topics that are not there yet, with as many replicas as the brokers' default.

    Args:
        bootstrap: host:port of a broker.
        partitions: Partition count by topic name.
        configs: Topic settings for all of them, e.g. ``{"cleanup.policy": "compact"}``.
        timeout_s: Longest wait for the broker.
        login: Further properties of librdkafka.

    Returns:
        The topics that were created; the others were there.

    Raises:
        StackError: the broker refused one or did not answer, or one that was there has another
            partition count.
    """
    if not partitions:
        return []
    client = probe(bootstrap, login)
    topics = [
        NewTopic(name, num_partitions=count, config=dict(configs or {}))
        for name, count in partitions.items()
    ]
    futures = client.create_topics(topics, operation_timeout=timeout_s, request_timeout=timeout_s)
    created = [name for name, future in futures.items() if _created(name, future.result)]
    _check_partitions(_wait_visible(bootstrap, set(partitions), timeout_s, login), partitions)
    return created


def _created(name: str, result: Callable[[], object]) -> bool:
    try:
        result()
    except KafkaException as exc:
        error = exc.args[0]
        if error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return False
        raise StackError(f"topic {name}: {error.str()}", "run: streamscore stack status") from exc
    return True


def _wait_visible(
    bootstrap: str, names: set[str], timeout_s: float, login: Mapping[str, Any]
) -> dict[str, int]:
    """Wait until the metadata lists the topics; a broker shows them a moment after it made them."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        found = topic_partitions(bootstrap, timeout_s=timeout_s, login=login)
        missing = names - found.keys()
        if not missing:
            return found
        if time.monotonic() > deadline_s:
            raise StackError(
                f"no sign of topics {sorted(missing)}", "run: streamscore stack status"
            )


def _check_partitions(found: Mapping[str, int], wanted: Mapping[str, int]) -> None:
    for name, count in wanted.items():
        if found[name] != count:
            raise StackError(
                f"topic {name} has {found[name]} partitions instead of {count}",
                "change topics.partitions, or remove the topic",
            )


def topic_partitions(
    bootstrap: str, *, timeout_s: float = 10.0, login: Mapping[str, Any] = NO_LOGIN
) -> dict[str, int]:
    """Partition count of each topic of a broker, internal ones left out.

    Raises:
        StackError: the broker does not answer.
    """
    errors: list[KafkaError] = []
    client = probe(bootstrap, {**login, "error_cb": errors.append})
    left_s = timeout_s
    while True:
        try:
            topics = client.list_topics(timeout=min(_ATTEMPT_TIMEOUT_S, left_s)).topics
            break
        except KafkaException as exc:
            client.poll(0)  # calls back with what went wrong: the exception says that time is up
            left_s -= _ATTEMPT_TIMEOUT_S
            if left_s <= 0 or any(error.code() in _FINAL for error in errors):
                why = f": {_plain(errors[0].str())}" if errors else ""
                problem = f"no broker answers at {bootstrap}{why}"
                raise StackError(problem, "run: streamscore stack up") from exc
    names = sorted(name for name in topics if not name.startswith("__"))
    return {name: len(topics[name].partitions) for name in names if topics[name].partitions}


def _plain(reason: str) -> str:
    """What librdkafka says, without the client's thread and the time it took."""
    text = re.sub(r"^\S+/bootstrap: |\(after .*$", "", reason)
    return re.sub(r": \(?[0-9A-F]{8}:.*$|\s+$", "", text).rstrip(".: ")


def broker_setting(
    bootstrap: str, name: str, *, timeout_s: float = 10.0, login: Mapping[str, Any] = NO_LOGIN
) -> str | None:
    """A setting of one of the brokers, e.g. ``transaction.max.timeout.ms``; None if it hides it."""
    client = probe(bootstrap, login)
    with suppress(KafkaException):
        broker = next(iter(client.list_topics(timeout=timeout_s).brokers))
        resource = ConfigResource(ConfigResource.Type.BROKER, str(broker))
        found = client.describe_configs([resource], request_timeout=timeout_s)
        entry = found[resource].result().get(name)
        return None if entry is None else entry.value
    return None


def probe(bootstrap: str, login: Mapping[str, Any] = NO_LOGIN) -> AdminClient:
    """A client that keeps quiet about refused connections, which are expected during a start."""
    options: dict[str, Any] = {
        "bootstrap.servers": bootstrap,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 200,
        "log_level": 0,
        **login,
    }
    return AdminClient(options, logger=_SILENT)


def answers(client: AdminClient) -> bool:
    """Whether a broker answers it now."""
    try:
        return bool(client.list_topics(timeout=_ATTEMPT_TIMEOUT_S).brokers)
    except KafkaException:
        return False
