"""What a job needs before it is submitted: said at once, with what to do, instead of by Flink."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from jobs.environment import NotReadyError
from jobs.kafka_topics import broker_setting, topic_partitions
from jobs.ports import HOST
from jobs.settings import Settings
from model_server.errors import RepositoryError
from model_server.repository import find_version
from udfs.definition.enrichment import LookupSpec
from udfs.definition.types import format_duration
from udfs.enrichment.store import MissingClient, Store
from udfs.enrichment.stores import store_of

_CONNECT_S = 1.0
_KAFKA_S = 5.0
_STORE_S = 3.0


def check(settings: Settings, conf: Path) -> list[str]:
    """Check the model, Kafka, its topics, the look-ups' stores and the model server.

    Args:
        settings: The job's settings.
        conf: Their file, named in what to do.

    Returns:
        Warnings: with these the job runs, but not as one would want.

    Raises:
        NotReadyError: the job cannot run.
    """
    _check_model(settings, conf)
    _check_clients(settings)
    warnings = [*_check_topics(settings, conf), *check_stores(settings.lookups)]
    _check_transactions(settings)
    servers = settings.model.server.split(",")
    if settings.model.embedded or any(_answers(server.strip()) for server in servers):
        return warnings
    return [
        *warnings,
        f"no model server answers at {settings.model.server}: predictions will be the fallback "
        f"score until one does; start it with: streamscore serve --config {conf}",
    ]


def _check_model(settings: Settings, conf: Path) -> None:
    model = settings.model
    try:
        find_version(model.path, model.name, model.version)
    except RepositoryError as exc:
        fix = f"train a model: streamscore train --config {conf}"
        raise NotReadyError(f"no model: {exc}", fix) from exc


def _check_clients(settings: Settings) -> None:
    for lookup in settings.lookups:
        try:
            store_of(lookup)
        except MissingClient as exc:
            raise NotReadyError(exc.problem, exc.fix) from exc


def check_stores(lookups: Iterable[LookupSpec]) -> Iterator[str]:
    """Warn of stores that do not answer, or not to this login."""
    for lookup in lookups:
        if lookup.feast is not None:
            continue  # whose client may take its time
        try:
            asyncio.run(_reach(store_of(lookup)))
        except Exception as exc:  # whatever a store's client raises
            why = str(exc).strip() or type(exc).__name__
            yield (
                f"the store of look-up {lookup.name!r} does not answer: {why}: predictions will "
                "have its defaults until it does"
            )


async def _reach(store: Store) -> None:
    try:
        async with asyncio.timeout(_STORE_S):
            await store.connect()
    finally:
        await store.close()


def _check_topics(settings: Settings, conf: Path) -> list[str]:
    kafka, topics = settings.kafka, settings.topics
    login = kafka.python_properties()
    if kafka.properties and not login:
        return []  # names and values are the Java client's: ours cannot log in with them
    is_local = kafka.bootstrap_servers.startswith((f"{HOST}:", "localhost:"))
    make = f"streamscore stack up --config {conf}"
    try:
        found = topic_partitions(kafka.bootstrap_servers, timeout_s=_KAFKA_S, login=login)
    except NotReadyError as exc:
        fix = f"start the local broker: {make}" if is_local else "correct kafka.bootstrap_servers"
        if login:
            fix = "correct kafka.bootstrap_servers, kafka.tls or kafka.sasl"
        raise NotReadyError(exc.problem, fix) from exc
    names = [topics.events, topics.labels, topics.predictions, topics.alerts]
    names += [topics.dead_letters, topics.duplicates, topics.shed, topics.shadow]
    names += [topics.impressions, topics.examples, topics.popularity]
    if missing := [name for name in names if name and name not in found]:
        word = "topics are" if len(missing) > 1 else "topic is"
        fix = make if is_local else "make them, or correct topics in the settings"
        raise NotReadyError(f"{word} missing: {', '.join(missing)}", fix)
    return [
        f"table {table.name!r} has no topic {table.topic} yet: no event is scored before it has"
        for table in settings.tables
        if table.topic and table.topic not in found
    ]


def _check_transactions(settings: Settings) -> None:
    """Kafka would refuse the producer when the job has started."""
    kafka, wanted_ms = settings.kafka, settings.flink.transaction_timeout
    if settings.flink.delivery != "exactly_once":
        return
    name = "transaction.max.timeout.ms"
    login = kafka.python_properties()
    limit = broker_setting(kafka.bootstrap_servers, name, timeout_s=_KAFKA_S, login=login)
    if limit is not None and wanted_ms > int(limit):
        raise NotReadyError(
            f"flink.transaction_timeout is {format_duration(wanted_ms)}, the broker allows "
            f"{format_duration(int(limit))}",
            f"lower it, or raise the broker's {name}",
        )


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), _CONNECT_S):
        return True
    return False
