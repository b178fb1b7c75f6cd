"""The server's settings, and where it listens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from model_server.lifecycle import ModelConfig, VersionPolicy
from model_server.logs import LogFormat
from model_server.security import TlsOptions

__all__ = ["Ports", "ServerOptions"]

_PORTS = ("port", "http_port", "admin_port", "admin_http_port", "metrics_port")


@dataclass(frozen=True)
class ServerOptions:
    """Settings of the server.

    Attributes:
        models: What to serve.
        poll_s: Seconds between two looks for new versions; 0 for none.
        host: Address to listen on; the default is reachable from this machine only.
        port: Port of gRPC; 0 takes a free one.
        http_port: Port of HTTP; 0 takes a free one, None opens none.
        admin_port: Port of gRPC on which models may be loaded and unloaded and the configuration
            replaced, beside all that ``port`` does; None opens none.
        admin_http_port: The same for HTTP.
        metrics_port: Port of HTTP for Prometheus alone, in plain text and without the token; None
            opens none. The other HTTP ports have the metrics too.
        tls: The server's identity on every port; plain text if None.
        token: Bearer token that callers must show, but for health; none if empty.
        max_message_bytes: Largest request or response, in bytes.
        max_concurrent_rpcs: Calls at work at once; more are refused with RESOURCE_EXHAUSTED.
        http_timeout_s: Seconds that an HTTP connection may take for a request's head, and for its
            body, and may be idle.
        grace_s: Seconds that calls in flight get when the server stops.
        threads: Large batches and explanations worked on at once, each by one XGBoost thread.
        workers: Processes that share the ports of calls; limits and threads are each one's.
        model_python: Interpreter of the processes that SavedModels and PyTorch's models run in;
            this one's if empty.
        tracing_endpoint: OTLP address over gRPC that spans are sent to; empty for no tracing.
        log_format: For who runs a server as a program and sets up its log: ``text`` or ``json``.
        log_calls: Whether every call is logged.

    Raises:
        ValueError: A setting is out of range.
    """

    models: tuple[ModelConfig, ...]
    poll_s: float = 2.0
    host: str = "127.0.0.1"
    port: int = 0
    http_port: int | None = None
    admin_port: int | None = None
    admin_http_port: int | None = None
    metrics_port: int | None = None
    tls: TlsOptions | None = None
    token: str = field(default="", repr=False)
    max_message_bytes: int = 16 * 1024 * 1024
    max_concurrent_rpcs: int = 256
    http_timeout_s: float = 75.0
    grace_s: float = 10.0
    threads: int = 2
    workers: int = 1
    model_python: str = ""
    tracing_endpoint: str = ""
    log_format: LogFormat = "text"
    log_calls: bool = False

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        for name in _PORTS:
            if not 0 <= (getattr(self, name) or 0) <= 65_535:
                raise ValueError(f"{name} must be 0 to 65535, is {getattr(self, name)}")
        if not self.models:
            raise ValueError("models must name at least one")
        for name in ("grace_s", "poll_s", "http_timeout_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, is {getattr(self, name)}")
        for name in ("max_message_bytes", "max_concurrent_rpcs", "threads", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")

    @classmethod
    def of_one_model(
        cls, models_dir: Path | str, name: str, version: int | None = None, **others: Any
    ) -> Self:
        """Serve one model: a given version of it, or always the newest.

        Args:
            models_dir: Root of the model repository; a text such as ``s3://…`` for one elsewhere,
                or ``models:/name@alias`` for a model of MLflow's registry.
            name: The model's folder there, and the name that clients ask for.
            version: Version to serve; the newest when None.
            others: Further settings.
        """
        policy = VersionPolicy("specific", versions=(version,)) if version else VersionPolicy()
        return cls((ModelConfig(name, models_dir, policy=policy),), **others)


class Ports(NamedTuple):
    """Where a server listens.

    Attributes:
        grpc: Port of gRPC.
        http: Port of HTTP, if it is open.
        admin: Port of gRPC for admin calls, if it is open.
        admin_http: Port of HTTP for admin calls, if it is open.
        metrics: Port of HTTP for metrics alone, if it is open.
    """

    grpc: int
    http: int | None = None
    admin: int | None = None
    admin_http: int | None = None
    metrics: int | None = None

    def __str__(self) -> str:
        """``port=1 http_port=2``, of those that are open."""
        return " ".join(f"{name}={port}" for name, port in self.opened().items())

    def opened(self) -> dict[str, int]:
        """Return those that are open, by the names of their settings."""
        return {name: port for name, port in zip(_PORTS, self, strict=True) if port}
