"""The Kafka cluster in a job's settings, and its security in the terms of both kinds of clients.

Flink's connector holds Kafka's Java client under other package names; Python's client is
librdkafka. One section of settings speaks to both, so that a login is written once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from udfs.definition.types import DurationMs, Mistake, Strict

_HOST_PORT = re.compile(r"[^\s,]+:\d{1,5}")
_SHADED = "org.apache.flink.kafka.shaded.org.apache.kafka.common.security"
_LOGIN_MODULES = {
    "PLAIN": f"{_SHADED}.plain.PlainLoginModule",
    "SCRAM-SHA-256": f"{_SHADED}.scram.ScramLoginModule",
    "SCRAM-SHA-512": f"{_SHADED}.scram.ScramLoginModule",
    "OAUTHBEARER": f"{_SHADED}.oauthbearer.OAuthBearerLoginModule",
}
_OF_OAUTH = ("oauth_url", "client_id", "client_secret")
_OAUTH_HANDLER = f"{_SHADED}.oauthbearer.OAuthBearerLoginCallbackHandler"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
OAUTH_PROPERTY = "org.apache.flink.kafka.shaded.org.apache.kafka.sasl.oauthbearer.allowed.urls"
"""System property of a JVM: the URLs that its Kafka clients may ask for tokens."""


def host_ports(text: str) -> str:
    """Check a list of addresses; raises ValueError."""
    if not all(_HOST_PORT.fullmatch(part.strip()) for part in text.split(",")):
        raise ValueError(f"{text!r} is not host:port")
    return text


HostPorts = Annotated[str, AfterValidator(host_ports)]


class KafkaTlsSettings(Strict):
    """How the job knows its brokers, and they it."""

    ca: Path | None = Field(None, description="PEM file of who signs brokers; the system's if none")
    identity: Path | None = Field(
        None,
        description="PEM file with the job's certificate chain and its private key (PKCS #8), for "
        "brokers that ask for one",
    )
    check_name: bool = Field(True, description="the broker's certificate must name its host")


class KafkaSaslSettings(Strict):
    """How the job logs in."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        "SCRAM-SHA-512", description="how the broker asks for it"
    )
    username: str = Field("", description="of PLAIN and SCRAM")
    password: str = Field("", description="its password, as `${KAFKA_PASSWORD}`")
    oauth_url: str = Field(
        "", description="of OAUTHBEARER: https URL that grants tokens to client credentials"
    )
    oauth_ca: Path | None = Field(
        None,
        description="of OAUTHBEARER: PEM file of who signs that URL's server; the system's if none",
    )
    client_id: str = Field("", description="of OAUTHBEARER")
    client_secret: str = Field("", description="of OAUTHBEARER, as `${KAFKA_CLIENT_SECRET}`")
    scope: str = Field("", description="of OAUTHBEARER; none asks for the endpoint's usual one")

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        oauth = self.mechanism == "OAUTHBEARER"
        for name in _OF_OAUTH if oauth else ("username", "password"):
            if not getattr(self, name):
                yield Mistake((name,), f"{self.mechanism} needs it")
        if not oauth or not self.oauth_url:
            return
        url = urlsplit(self.oauth_url)
        if url.scheme != "https" and (url.scheme != "http" or url.hostname not in _LOOPBACK):
            problem = "must begin with https://, or the client's secret could be read on its way"
            yield Mistake(("oauth_url",), problem)

    def jaas(self) -> str:
        """The login as the Java client's ``sasl.jaas.config``."""
        if self.mechanism == "OAUTHBEARER":
            options = {"clientId": self.client_id, "clientSecret": self.client_secret}
            options |= {"scope": self.scope} if self.scope else {}
            if self.oauth_ca is not None:
                options["ssl.truststore.type"] = "PEM"
                options["ssl.truststore.location"] = str(self.oauth_ca.absolute())
        else:
            options = {"username": self.username, "password": self.password}
        told = " ".join(f'{name}="{_escaped(value)}"' for name, value in options.items())
        return f"{_LOGIN_MODULES[self.mechanism]} required {told};"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


class KafkaSettings(Strict):
    """The Kafka cluster."""

    bootstrap_servers: HostPorts = Field(
        "${STREAMSCORE_KAFKA:-127.0.0.1:9092}",
        description="host:port of the brokers, commas between them",
    )
    group_id: str = Field("streamscore-fraud", description="consumer group; shows the lag")
    start: Literal["earliest", "latest", "committed"] = Field(
        "earliest", description="where a job without a checkpoint begins"
    )
    keyed_by_record_key: bool = Field(
        True,
        description="producers key records by `key`; false reads the key from each record's JSON",
    )
    align: Literal["off", "kafka_time", "event_time"] = Field(
        "off",
        description="keeps partitions, and events and labels, in step by this time while the job "
        "is behind",
    )
    align_drift: DurationMs = Field(
        60_000, ge=1, description="a partition this far ahead of the last one waits for it"
    )
    stop_at_end: bool = Field(False, description="end at the offsets seen at start (a backfill)")
    tls: KafkaTlsSettings | None = Field(None, description="TLS to the brokers; plain text if none")
    sasl: KafkaSaslSettings | None = Field(None, description="login at the brokers; none if none")
    properties: dict[str, str] = Field(
        default_factory=dict,
        description="passed to Flink's Kafka clients, by the Java client's names",
    )
    client_properties: dict[str, str] = Field(
        default_factory=dict,
        description="passed to Python's Kafka clients (tables, commands), by librdkafka's names",
    )

    @property
    def token_url(self) -> str:
        """Where OAUTHBEARER gets its tokens; empty with other logins."""
        is_oauth = self.sasl is not None and self.sasl.mechanism == "OAUTHBEARER"
        return self.sasl.oauth_url if self.sasl is not None and is_oauth else ""

    @property
    def _protocol(self) -> str:
        return f"{'SASL_' if self.sasl else ''}{'SSL' if self.tls else 'PLAINTEXT'}"

    def java_properties(self) -> dict[str, str]:
        """Security and ``properties`` for the Kafka client in Flink's connector."""
        found = {} if self._protocol == "PLAINTEXT" else {"security.protocol": self._protocol}
        if self.tls is not None:
            if self.tls.ca is not None:
                found["ssl.truststore.type"] = "PEM"
                found["ssl.truststore.location"] = str(self.tls.ca.absolute())
            if self.tls.identity is not None:
                found["ssl.keystore.type"] = "PEM"
                found["ssl.keystore.location"] = str(self.tls.identity.absolute())
            if not self.tls.check_name:
                found["ssl.endpoint.identification.algorithm"] = ""
        if self.sasl is not None:
            found["sasl.mechanism"] = self.sasl.mechanism
            found["sasl.jaas.config"] = self.sasl.jaas()
            if self.sasl.mechanism == "OAUTHBEARER":
                found["sasl.login.callback.handler.class"] = _OAUTH_HANDLER
                found["sasl.oauthbearer.token.endpoint.url"] = self.sasl.oauth_url
        return found | self.properties

    def python_properties(self) -> dict[str, str]:
        """Security and ``client_properties`` for librdkafka, without the brokers' addresses."""
        found = {} if self._protocol == "PLAINTEXT" else {"security.protocol": self._protocol}
        if self.tls is not None:
            if self.tls.ca is not None:
                found["ssl.ca.location"] = str(self.tls.ca.absolute())
            if self.tls.identity is not None:
                found["ssl.certificate.location"] = str(self.tls.identity.absolute())
                found["ssl.key.location"] = str(self.tls.identity.absolute())
            if not self.tls.check_name:
                found["ssl.endpoint.identification.algorithm"] = "none"
        if self.sasl is not None:
            found["sasl.mechanism"] = self.sasl.mechanism
            found |= _python_login(self.sasl)
        return found | self.client_properties


def _python_login(sasl: KafkaSaslSettings) -> dict[str, str]:
    if sasl.mechanism != "OAUTHBEARER":
        return {"sasl.username": sasl.username, "sasl.password": sasl.password}
    found = {
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.token.endpoint.url": sasl.oauth_url,
        "sasl.oauthbearer.client.id": sasl.client_id,
        "sasl.oauthbearer.client.secret": sasl.client_secret,
    }
    found |= {"sasl.oauthbearer.scope": sasl.scope} if sasl.scope else {}
    return found | ({"https.ca.location": str(sasl.oauth_ca.absolute())} if sasl.oauth_ca else {})
