"""Settings of a ranking job, its feedback join and the gateway before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from udfs.definition.types import DurationMs, Mistake, Strict
from udfs.ranking.candidates import CandidateOptions
from udfs.ranking.users import UserLimits


class RankingSettings(Strict):
    """How a request becomes a ranked list."""

    candidates: int = Field(200, ge=1, le=2_000, description="items that the model scores")
    items: int = Field(20, ge=1, le=200, description="items of an answer")
    history: int = Field(256, ge=1, le=10_000, description="newest items kept of each user")
    session_gap: DurationMs = Field(
        30 * 60_000, ge=1, description="a longer pause begins a user's next session"
    )
    user_idle: DurationMs = Field(
        365 * 86_400_000,
        ge=1_000,
        description="event time without a purchase after which a user is as new; after twice that "
        "their state is freed",
    )
    filter_seen: bool = Field(False, description="whether what the user has had is left out")
    publish: DurationMs = Field(
        1_000, ge=100, description="how often changed popularities are written to their topic"
    )
    weights: dict[str, float] = Field(
        default_factory=lambda: {"purchase": 1.0},
        description="interactions that make a user's history and an item's popularity, and what "
        "each adds to the latter",
    )
    reload: DurationMs = Field(
        2_000, ge=100, description="how often the model's folder is looked at for a new version"
    )

    @property
    def candidate_options(self) -> CandidateOptions:
        """How candidates are chosen, live and in training."""
        return CandidateOptions(count=self.candidates, filter_seen=self.filter_seen)

    @property
    def user_limits(self) -> UserLimits:
        """What is kept of a user, live and in training."""
        return UserLimits(self.history, self.session_gap, self.user_idle)

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if self.items > self.candidates:
            yield Mistake(("items",), f"more than the {self.candidates} candidates")
        if not self.weights or any(weight <= 0 for weight in self.weights.values()):
            yield Mistake(("weights",), "name a kind of interaction, and a weight above 0 for each")


class FeedbackSettings(Strict):
    """Which interactions answer what was shown."""

    window: DurationMs = Field(
        30 * 60_000, ge=1, description="event time after a request in which an interaction counts"
    )
    lateness: DurationMs = Field(
        5 * 60_000, ge=0, description="event time that a request's labels wait for late records"
    )
    kinds: tuple[Literal["click", "like", "purchase"], ...] = Field(
        ("click", "like", "purchase"), min_length=1, description="interactions that are labels"
    )
    keep_closed: DurationMs = Field(
        86_400_000, ge=0, description="event time in which a late interaction is known as one"
    )


class GatewaySettings(Strict):
    """The HTTP side of a ranking job."""

    host: str = Field("127.0.0.1", description="address that the gateway listens on")
    port: int = Field(8088, ge=0, le=65_535, description="its port; 0 takes a free one")
    deadline: DurationMs = Field(
        180, ge=1, le=30_000, description="longest wait for the job; then popular items"
    )
    token: str = Field(
        "", description="bearer token that callers must show, as `${FEED_TOKEN}`; none if empty"
    )
    in_flight: int = Field(512, ge=1, description="requests at work at most; then HTTP 429")
    retry_after: DurationMs = Field(1_000, ge=1_000, description="what a refused caller is told")
    max_body_bytes: int = Field(65_536, ge=1_024, description="largest body of a request")
    max_events: int = Field(500, ge=1, description="events in one request at most")
    drain: DurationMs = Field(
        5_000, ge=0, description="time that requests at work get when the gateway stops"
    )


class RankingTraining(Strict):
    """How `streamscore train` makes a version of a ranking job."""

    model: Literal["trees", "network"] = Field(
        "trees",
        description="boosted trees over features of an SVD's embeddings, or a two-tower and a "
        "ranking network, which need TensorFlow",
    )
    folds: int = Field(2, ge=1, description="spans before the split that give examples")
    fold: DurationMs = Field(28 * 86_400_000, ge=1, description="length of a span")
    negatives: float = Field(
        0.3, gt=0, le=1, description="share of the candidates not taken that is trained on"
    )
    dimensions: int = Field(48, ge=1, le=1_024, description="of an item's embedding")
    neighbours: int = Field(100, ge=1, description="length of an item's co-visitation list")
    half_life: DurationMs = Field(
        180 * 86_400_000, ge=1, description="age at which a purchase counts half in co-visitation"
    )
    off_sale: DurationMs | None = Field(
        None, ge=1, description="an item not bought for so long is not shown; none: never"
    )
    tolerance: float = Field(
        0.01,
        ge=0,
        description="how much less hit rate on the newest part a new version may have than the "
        "present one, and half of it in NDCG; else it is not published",
    )
    epochs: int = Field(8, ge=1, description="passes of the networks over their examples")
    python: str = Field(
        "", description="interpreter that has TensorFlow, for the networks; empty: this one"
    )
    export: Literal["onnx", "saved_model"] = Field(
        "onnx", description="what of the network the server is to load; the other lies beside it"
    )
