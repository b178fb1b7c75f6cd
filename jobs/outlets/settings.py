"""Where alerts and predictions go beyond Kafka: the ``delivery`` and ``store`` sections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from udfs.definition.enrichment import dsn_mistakes
from udfs.definition.store_tls import StoreTlsSpec
from udfs.definition.types import DurationMs, Mistake, Strict

_ARN = re.compile(r"arn:aws[a-z-]*:sns:[a-z0-9-]+:\d{12}:[A-Za-z0-9_-]+(\.fifo)?")
_TABLE = re.compile(r"([a-z_][a-z0-9_]*\.)?[a-z_][a-z0-9_]*")


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://\S+", text):
        raise ValueError(f"{text!r} is no http:// or https:// URL")
    return text


def _arn(text: str) -> str:
    if not _ARN.fullmatch(text):
        raise ValueError(
            f"{text!r} is no topic's ARN; it is like arn:aws:sns:eu-west-1:123456789012:x"
        )
    return text


def _table(text: str) -> str:
    if not _TABLE.fullmatch(text):
        raise ValueError(f"{text!r} is no table or schema.table in lower case")
    return text


class SnsSettings(Strict):
    """An Amazon SNS topic. Credentials are found as AWS tools find them, in no settings."""

    topic_arn: Annotated[str, AfterValidator(_arn)] = Field(
        description="the topic; one ending in .fifo drops repeats within 5 minutes"
    )
    endpoint: str | None = Field(None, description="URL of another endpoint; none: AWS's own")
    timeout: DurationMs = Field(10_000, ge=1, description="longest wait for an answer")


class WebhookSettings(Strict):
    """An HTTP server that alerts are posted to."""

    url: Annotated[str, AfterValidator(_url)] = Field(
        description="where to POST; hidden when shown, as `${WEBHOOK_URL}` if it is a secret"
    )
    token: str = Field("", description="bearer token, as `${WEBHOOK_TOKEN}`; none if empty")
    timeout: DurationMs = Field(10_000, ge=1, description="longest wait for an answer")
    per_request: int = Field(
        1,
        ge=1,
        description="alerts of a request; 1 posts the alert, more a list, one after the other",
    )
    in_flight: int = Field(
        8, ge=1, description="requests at once; those of one entity go one after the other"
    )


class RetrySettings(Strict):
    """How what fails is tried again; Kafka holds what waits."""

    backoff: DurationMs = Field(
        500, ge=1, description="pause before the first repetition; doubles, with jitter"
    )
    max_backoff: DurationMs = Field(30_000, ge=1, description="longest pause")


class DeliverySettings(RetrySettings):
    """What `streamscore deliver` does with the alerts topic."""

    group_id: str | None = Field(
        None,
        description="consumer group, with the target's name behind; none: kafka.group_id-deliver",
    )
    batch: int = Field(100, ge=1, description="most alerts that are under way at once")
    linger: DurationMs = Field(50, ge=0, description="longest time an alert waits for others")
    give_up_after: DurationMs = Field(
        3_600_000, ge=1, description="since an alert's first try; then it is a dead letter"
    )
    dead_letters: str = Field(
        "undelivered", description="topic of what was refused or given up, with the reason"
    )
    sns: SnsSettings | None = Field(None, description="Amazon SNS; none: not there")
    webhook: WebhookSettings | None = Field(None, description="HTTP; none: not there")

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if self.sns is None and self.webhook is None:
            yield Mistake((), "names no target: sns, webhook or both")


class PostgresStoreSettings(Strict):
    """A table of PostgreSQL with a row per prediction and a column per feature."""

    dsn: str = Field(description="connection string of libpq: host=... dbname=..., or a URL")
    password: str = Field("", description="as `${PGPASSWORD}`; none if empty")
    tls: StoreTlsSpec | None = Field(None, description="TLS; none: as dsn says, or libpq's usual")
    table: Annotated[str, AfterValidator(_table)] = Field(
        "predictions", description="table, as name or schema.name; `store init` makes it"
    )
    batch: int = Field(5_000, ge=1, description="most rows of a transaction")
    linger: DurationMs = Field(500, ge=0, description="longest time a row waits for others")
    chunk: DurationMs = Field(86_400_000, ge=60_000, description="TimescaleDB: span of a chunk")
    compress_after: DurationMs | None = Field(
        7 * 86_400_000,
        ge=1,
        description="TimescaleDB: age at which chunks are compressed; none: never",
    )
    keep: DurationMs | None = Field(
        None, ge=1, description="TimescaleDB: age at which chunks are dropped; none: never"
    )

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        yield from dsn_mistakes(self.dsn, self.tls)


class ParquetStoreSettings(Strict):
    """Parquet files in a folder for each day of event time."""

    folder: Path = Field(description="where date=YYYY-MM-DD folders are made")
    batch: int = Field(50_000, ge=1, description="rows after which files are written")
    linger: DurationMs = Field(
        60_000, ge=0, description="longest time a row waits for its file; more: larger files"
    )


class StoreSettings(RetrySettings):
    """What `streamscore store run` does with the predictions topic."""

    group_id: str | None = Field(
        None, description="consumer group, with the store's name behind; none: kafka.group_id-store"
    )
    dead_letters: str = Field(
        "unstored", description="topic of predictions that a store cannot hold, with the reason"
    )
    postgres: PostgresStoreSettings | None = Field(None, description="PostgreSQL; none: not there")
    parquet: ParquetStoreSettings | None = Field(None, description="Parquet; none: not there")

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if self.postgres is None and self.parquet is None:
            yield Mistake((), "names no store: postgres, parquet or both")
