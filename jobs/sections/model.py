"""The model, how it is called, and which score is an alert."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from jobs.sections.kafka import HostPorts
from jobs.sections.names import Name
from udfs.definition.episode import EpisodeSpec
from udfs.definition.types import DurationMs, Mistake, Strict


class BreakerSettings(Strict):
    """The circuit breaker before the model server."""

    failures: int = Field(5, ge=1, description="consecutive failed calls that open it")
    open_for: DurationMs = Field(1_000, ge=1, description="how long it stays open")
    trial_calls: int = Field(1, ge=1, description="calls let through while half-open")


class ModelTlsSettings(Strict):
    """How the job knows its model servers, and they it."""

    ca: Path | None = Field(None, description="PEM file of who signs servers; the system's if none")
    certificate: Path | None = Field(
        None, description="PEM file of the job's certificate, for servers that ask for one"
    )
    key: Path | None = Field(None, description="PEM file of its private key")
    server_name: str = Field(
        "", description="name in the server's certificate, if not the address's"
    )

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if (self.certificate is None) != (self.key is None):
            yield Mistake(("certificate",), "certificate and key belong together")


class ModelSettings(Strict):
    """The model and how it is called."""

    name: Name = Field("fraud", description="model name, as the server knows it")
    path: Path = Field(Path("build/models"), description="folder of <name>/<version>/ folders")
    version: int | None = Field(None, ge=1, description="pinned version; none takes the newest")
    embedded: bool = Field(False, description="score inside the operator, without a server")
    follow: DurationMs = Field(
        2_000,
        description="embedded and without `version`: how often to look for a newer version, or "
        "for the one that serve.json beside the versions names; 0 for never",
    )
    server: HostPorts = Field(
        "${STREAMSCORE_MODEL_SERVER:-127.0.0.1:8500}",
        description="host:port, gRPC; of several servers, commas between them",
    )
    tls: ModelTlsSettings | None = Field(None, description="TLS to the server; plain text if none")
    token: str = Field("", description="bearer token to show, as `${MODEL_TOKEN}`; none if empty")
    protocol: Literal["tfserving", "oip"] = Field(
        "tfserving",
        description="what the server speaks; `oip`: the Open Inference Protocol, as MLServer",
    )
    signature: str = Field("serving_default", description="TF Serving signature")
    input: str = Field("inputs", description="name of the input tensor, float32 (rows, features)")
    output: str = Field("scores", description="name of the output tensor, (rows,) or (rows, 1)")
    deadline: DurationMs = Field(
        200, ge=1, le=10_000, description="longest wait for a score, retries included"
    )
    max_attempts: int = Field(3, ge=1, description="calls within one deadline")
    backoff: DurationMs = Field(10, ge=1, description="first pause before a retry; doubles")
    calls_in_flight: int = Field(4, ge=1, description="Predict calls a bucket has open at once")
    retry_budget: float = Field(
        0.2, ge=0, description="retries for each call, on average; 0.2 is one for five"
    )
    hedge: DurationMs = Field(
        0, ge=0, description="wait after which a second server is asked too; 0 for never"
    )
    breaker: BreakerSettings = Field(default_factory=lambda: BreakerSettings())
    rollout: Path | None = Field(
        None,
        description="file that sends a share of the keys to another version or server; "
        "`streamscore rollout` writes it",
    )
    fallback_score: float = Field(0.0, ge=0, le=1, description="score when the model cannot answer")


class AlertSettings(Strict):
    """When a prediction becomes an alert."""

    threshold: float = Field(0.85, ge=0, le=1, description="a score above it is an alert")
    explain: bool = Field(True, description="ask for the three largest feature contributions")
    episodes: EpisodeSpec | None = Field(
        None, description="one alert per stretch of high scores; none: one per score above"
    )
