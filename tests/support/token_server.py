"""An OpenID provider: grants signed tokens to clients that show their secret."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from jobs.ports import HOST

AUDIENCE = "kafka"
_KEY_ID = "1"
_LIFE_S = 600


class TokenServer:
    """HTTPS on a free port of the loopback address; a context manager.

    Args:
        identity: PEM file with its certificate, chain and key.
        secrets: Of each client.
        audiences: Of clients whose tokens are for others than ``AUDIENCE``.

    Attributes:
        granted: Clients that got a token, in order.
    """

    def __init__(
        self, identity: Path, secrets: dict[str, str], audiences: dict[str, str] | None = None
    ) -> None:
        self.granted: list[str] = []
        self._secrets = secrets
        self._audiences = audiences or {}
        self._key = rsa.generate_private_key(65_537, 2_048)
        self._server = ThreadingHTTPServer((HOST, 0), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(identity)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def issuer(self) -> str:
        return f"https://{HOST}:{self._server.server_port}"

    @property
    def token_url(self) -> str:
        return f"{self.issuer}/token"

    @property
    def keys(self) -> dict[str, Any]:
        """What its tokens are checked with, a JSON Web Key Set."""
        numbers = self._key.public_key().public_numbers()
        key = {"kty": "RSA", "alg": "RS256", "use": "sig", "kid": _KEY_ID}
        return {"keys": [key | {"n": _of_number(numbers.n), "e": _of_number(numbers.e)}]}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                client = server._client(self.headers.get("Authorization", ""))
                if client is None or parse_qs(body)["grant_type"] != ["client_credentials"]:
                    self._answer(401, {"error": "invalid_client"})
                    return
                server.granted.append(client)
                token = {"access_token": server._token(client), "expires_in": _LIFE_S}
                self._answer(200, token | {"token_type": "Bearer"})

            def _answer(self, status: int, document: dict[str, Any]) -> None:
                content = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _client(self, authorization: str) -> str | None:
        """Who shows a right secret."""
        shown = base64.b64decode(authorization.removeprefix("Basic ")).decode()
        name, _, secret = shown.partition(":")
        return name if self._secrets.get(name) == secret else None

    def _token(self, client: str) -> str:
        now_s = int(time.time())
        claims = {
            "iss": self.issuer,
            "sub": client,
            "aud": self._audiences.get(client, AUDIENCE),
            "iat": now_s,
            "exp": now_s + _LIFE_S,
        }
        parts = ({"alg": "RS256", "typ": "JWT", "kid": _KEY_ID}, claims)
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in parts)
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_encoded(signature)}"


def _of_number(number: int) -> str:
    return _encoded(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
