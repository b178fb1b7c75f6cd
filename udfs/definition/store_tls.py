"""TLS to a store of look-ups or predictions, in one section for Redis and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from udfs.definition.types import Mistake, Strict

__all__ = ["StoreTlsSpec"]

SYSTEM = "system"
"""libpq's word for the authorities that OpenSSL finds on the machine."""


class StoreTlsSpec(Strict):
    """How the job knows the store's server, and that the job; a server's name is always checked."""

    ca: Path | None = Field(
        None, description="PEM file of who signs the server; the system's if none"
    )
    certificate: Path | None = Field(
        None, description="PEM file of the job's certificate, for servers that ask for one"
    )
    key: Path | None = Field(None, description="PEM file of its private key")

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if (self.certificate is None) != (self.key is None):
            yield Mistake(("certificate",), "certificate and key belong together")

    def for_redis(self) -> dict[str, Any]:
        """As arguments of Redis' client."""
        return {
            "ssl_ca_certs": _text(self.ca),
            "ssl_certfile": _text(self.certificate),
            "ssl_keyfile": _text(self.key),
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,  # which is not that client's default
        }

    def for_postgres(self) -> dict[str, str]:
        """As parameters of libpq; without this section it would fall back to plain text."""
        found = {"sslmode": "verify-full", "sslrootcert": _text(self.ca) or SYSTEM}
        own = {"sslcert": _text(self.certificate), "sslkey": _text(self.key)}
        return found | {name: path for name, path in own.items() if path is not None}


def _text(path: Path | None) -> str | None:
    return str(path.absolute()) if path is not None else None
