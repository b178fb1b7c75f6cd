"""Predictions to PostgreSQL and to Parquet: the targets of ``streamscore store run``."""

from __future__ import annotations

from jobs.outlets.parquet import ParquetTarget
from jobs.outlets.postgres import PostgresTarget
from jobs.outlets.run import Outlet
from jobs.outlets.settings import ParquetStoreSettings, PostgresStoreSettings, StoreSettings
from jobs.outlets.target import Target
from jobs.outlets.worker import WorkerOptions
from jobs.settings import Settings
from jobs.settings_file import SettingsError


def store_of(settings: Settings) -> StoreSettings:
    """The ``store`` section; raises SettingsError if there is none."""
    if settings.store is None:
        raise SettingsError("there is no section store: name postgres or parquet in it")
    return settings.store


def postgres_of(settings: Settings) -> PostgresStoreSettings:
    """The ``store.postgres`` section; raises SettingsError if there is none."""
    postgres = store_of(settings).postgres
    if postgres is None:
        raise SettingsError("there is no section store.postgres; Parquet needs no init")
    return postgres


def outlets(settings: Settings) -> list[Outlet]:
    """Each target of the ``store`` section, with a consumer group of its own.

    Raises:
        SettingsError: There is no such section.
    """
    store, features = store_of(settings), settings.schema_.columns
    found: list[tuple[Target, PostgresStoreSettings | ParquetStoreSettings]] = []
    if store.postgres is not None:
        found.append((PostgresTarget(store.postgres, features), store.postgres))
    if store.parquet is not None:
        found.append((ParquetTarget(store.parquet, features), store.parquet))
    return [
        Outlet(target, _options(settings, store, target.name, own), store.dead_letters)
        for target, own in found
    ]


def _options(
    settings: Settings,
    store: StoreSettings,
    name: str,
    own: PostgresStoreSettings | ParquetStoreSettings,
) -> WorkerOptions:
    kafka = settings.kafka
    return WorkerOptions(
        bootstrap=kafka.bootstrap_servers,
        login=kafka.python_properties(),
        topic=settings.topics.predictions,
        group=f"{store.group_id or f'{kafka.group_id}-store'}-{name}",
        batch=own.batch,
        linger_ms=own.linger,
        backoff_ms=store.backoff,
        max_backoff_ms=store.max_backoff,
    )
