"""The state of the keyed stages, by the names that savepoints know."""

from __future__ import annotations

from pyflink.common import Types
from pyflink.datastream.state import MapStateDescriptor

from udfs.state_ttl import state_ttl

_BACKSTOP_S = 3_650 * 86_400
"""Flink's own time to live goes by the wall clock, which says nothing of a replay or of a paused
job: ``idle`` removes histories long before. Without one, state of earlier releases is not read."""

_FIRST_TTL_S = 365 * 86_400
"""How long the first events of a key live after the last of them came."""


def histories(key: str) -> MapStateDescriptor[str, bytes]:
    """The state of a stage: what reads a savepoint must name it as what wrote it did."""
    return _map_state(f"histories-{key}", _BACKSTOP_S)


def first_events(key: str, idle_ms: int) -> MapStateDescriptor[str, bytes]:
    """Where each key's first events lie; they are written once, so that they live longer."""
    return _map_state(f"first-{key}", max(idle_ms // 1_000, _FIRST_TTL_S))


def _map_state(name: str, ttl_s: int) -> MapStateDescriptor[str, bytes]:
    descriptor = MapStateDescriptor(name, Types.STRING(), Types.PICKLED_BYTE_ARRAY())
    descriptor.enable_time_to_live(state_ttl(ttl_s))
    return descriptor
