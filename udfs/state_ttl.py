"""How long Flink keeps state that is not written any more."""

from __future__ import annotations

from pyflink.common import Time
from pyflink.datastream.state import StateTtlConfig


def state_ttl(seconds: int) -> StateTtlConfig:
    """Idle keys expire; background cleanup is off because in thread mode it starts a gateway."""
    return (
        StateTtlConfig.new_builder(Time.seconds(seconds))
        .disable_cleanup_in_background()
        .cleanup_full_snapshot()
        .build()
    )
