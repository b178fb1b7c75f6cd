"""What a user declares about episodes: when one opens and closes, and whose it is."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from udfs.definition.event import EventSpec, is_key
from udfs.definition.types import DurationMs, Mistake, Strict


class ThresholdSpec(Strict):
    """Thresholds that depend on a field of the event."""

    field: str = Field(description="string field whose value chooses the threshold")
    values: dict[str, float] = Field(
        description="threshold of each value, 0 to 1; any other has alerts.threshold"
    )

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        for name, threshold in self.values.items():
            if not 0 <= threshold <= 1:
                yield Mistake(("values", name), f"{threshold} is not between 0 and 1")


class EpisodeSpec(Strict):
    """One alert for a whole stretch of high scores, not one for each.

    Counted are the last scores of an entity by event time. A fallback is no score.
    """

    entity: str = Field(description="string field that names what an episode is of, as a machine")
    open_at: int = Field(3, ge=1, description="opens when so many of `of_last` are above")
    of_last: int = Field(5, ge=1, le=1_000, description="how many last scores are looked at")
    close_below: int = Field(1, ge=1, description="closes when fewer than so many are above")
    close_after: DurationMs | None = Field(
        None,
        ge=1,
        description="a longer pause between events closes it and starts the counting anew; "
        "none: never",
    )
    lateness: DurationMs | None = Field(
        None,
        ge=0,
        description="scores this much older than the entity's newest still correct an episode; "
        "older ones are counted and left out; none: event.time.allowed_lateness",
    )
    silent_after: DurationMs | None = Field(
        None,
        ge=100,
        description="an entity without events for so long by the clock gets a `silent` episode; "
        "none: never",
    )
    thresholds: ThresholdSpec | None = Field(
        None, description="thresholds by a field's value; none: alerts.threshold for all"
    )
    features: tuple[str, ...] = Field(
        (), description="z-scores; the alert names the one that moved most. None: model's reasons"
    )
    last_scores: int = Field(
        30, ge=1, le=1_000, description="how many of the entity's last scores an alert shows"
    )

    def with_lateness(self, event: EventSpec) -> EpisodeSpec:
        """The same with a lateness, if need be the event's."""
        lateness = self.lateness
        own = event.time.allowed_lateness if lateness is None else lateness
        return self.model_copy(update={"lateness": own})

    @property
    def fields(self) -> tuple[str, ...]:
        """The event's fields it reads."""
        return (self.entity, *((self.thresholds.field,) if self.thresholds else ()))

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if self.open_at > self.of_last:
            yield Mistake(("open_at",), f"{self.open_at} of {self.of_last} scores can never be")
        if self.close_below > self.open_at:
            message = f"must be at most open_at, {self.open_at}: it would close as it opens"
            yield Mistake(("close_below",), message)

    def unfit(self, event: EventSpec, columns: tuple[str, ...]) -> Iterator[Mistake]:
        """What does not fit the event or its features; paths are below the section.

        Args:
            event: The event with the fields that tables add.
            columns: The names of all features.
        """
        yield from event.unfit(("entity",), self.entity, is_key, "a required string, as a key")
        if self.thresholds is not None:
            path = ("thresholds", "field")
            name = self.thresholds.field
            yield from event.unfit(path, name, lambda f: f.type == "string", "a string")
        for n, name in enumerate(self.features):
            if name not in columns:
                yield Mistake(("features", n), f"no feature {name!r}; see streamscore features")
