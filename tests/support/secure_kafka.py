"""A Kafka broker that wants TLS, and a login: real certificates, SCRAM users, OAuth tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from jobs.kafka_broker import KafkaBroker
from jobs.ports import HOST, free_port
from tests.support.hidden import PASSWORD
from tests.support.token_server import AUDIENCE, TokenServer

USER = "scorer"
STRANGER = "stranger"
"""Gets tokens that are for another service."""
_LOGIN = "org.apache.kafka.common.security"

_SECURITY = """
listeners=SASL_SSL://{host}:{port},SSL://{host}:{mtls_port},CONTROLLER://{host}:{controller_port}
advertised.listeners=SASL_SSL://{host}:{port},SSL://{host}:{mtls_port}
listener.security.protocol.map=SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:PLAINTEXT
inter.broker.listener.name=SSL
ssl.keystore.type=PEM
ssl.keystore.location={identity}
ssl.truststore.type=PEM
ssl.truststore.location={ca}
ssl.client.auth=none
listener.name.ssl.ssl.client.auth=required
sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512,PLAIN,OAUTHBEARER
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={login}.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={login}.scram.ScramLoginModule required;
listener.name.sasl_ssl.plain.sasl.jaas.config={login}.plain.PlainLoginModule required \
user_{user}="plain-password";
{oauth}.jaas.config={login}.oauthbearer.OAuthBearerLoginModule required;
{oauth}.server.callback.handler.class={login}.oauthbearer.OAuthBearerValidatorCallbackHandler
{oauth}.oauthbearer.jwks.endpoint.url={keys}
{oauth}.oauthbearer.expected.issuer={tokens.issuer}
{oauth}.oauthbearer.expected.audience={audience}
"""
_OAUTH = "listener.name.sasl_ssl.oauthbearer.sasl"
_ALLOWED = "-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls"


def pem(path: Path, authority: trustme.CA, *names: str, **options: Any) -> Path:
    """A certificate for these names, with its chain and key in one file."""
    certificate = authority.issue_cert(*names, **options)
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pkcs8 + b"".join(part.bytes() for part in certificate.cert_chain_pems))
    return path


class SecureKafka(KafkaBroker):
    """A broker with two ports: SASL over TLS, and TLS with client certificates.

    Attributes:
        authority: Who signs its certificates, and those it takes.
        ca: The authority's certificate, a PEM file.
        mtls_port: Port for clients with a certificate.
        tokens: Grants ``USER`` tokens that the broker takes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        self._identity = pem(folder / "broker.pem", self.authority, HOST, "localhost")
        self.mtls_port = free_port()
        secrets = dict.fromkeys((USER, STRANGER), PASSWORD)
        self.tokens = TokenServer(self._identity, secrets, {STRANGER: "another"})
        self._keys = folder / "keys.json"
        self._keys.write_text(json.dumps(self.tokens.keys))
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            self._format_options += (
                "--add-scram",
                f"{mechanism}=[name={USER},password={PASSWORD}]",
            )
        client = pem(folder / "admin.pem", self.authority, "admin")
        self.login = {
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": str(self.ca),
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": USER,
            "sasl.password": PASSWORD,
        }
        self.identity = client

    def __enter__(self) -> Self:
        self.tokens.__enter__()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.tokens.__exit__()

    def _java(self, *arguments: str) -> list[str]:
        return super()._java(f"{_ALLOWED}={self._keys.as_uri()}", *arguments)

    def _server_properties(self, port: int) -> str:
        plain = super()._server_properties(port)
        lines = dict(line.split("=", 1) for line in plain.splitlines())
        controller = lines["controller.quorum.voters"].rpartition(":")[2]
        security = _SECURITY.format(
            host=HOST,
            port=port,
            mtls_port=self.mtls_port,
            controller_port=controller,
            identity=self._identity,
            ca=self.ca,
            login=_LOGIN,
            user=USER,
            oauth=_OAUTH,
            tokens=self.tokens,
            keys=self._keys.as_uri(),
            audience=AUDIENCE,
        )
        lines |= dict(line.split("=", 1) for line in security.strip().splitlines())
        return "".join(f"{name}={value}\n" for name, value in lines.items())
