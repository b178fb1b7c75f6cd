"""The operator that puts made state where the job's own operator will find it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyflink.common import Row
from pyflink.datastream import KeyedProcessFunction, RuntimeContext

from udfs.lifetime import close_at_end
from udfs.offline.state_files import read_blocks
from udfs.stages.state import first_events, histories

LOADED = "loaded"
"""The counter of files that are in the state."""


class StateLoader(KeyedProcessFunction):
    """Fills a stage's map state from files; it stands where the stage's operator will stand.

    Input: paths of files of ``state_files``, keyed by bucket; an empty one stands for none.
    Output: nothing.

    Args:
        key: The stage's name.
        idle_ms: As the job's.
    """

    def __init__(self, key: str, idle_ms: int) -> None:
        self._key, self._idle_ms = key, idle_ms

    def open(self, runtime_context: RuntimeContext) -> None:
        """Register the state under the stage's name."""
        close_at_end(self.close)
        self._state = runtime_context.get_map_state(histories(self._key))
        self._first = runtime_context.get_map_state(first_events(self._key, self._idle_ms))
        self._loaded = runtime_context.get_metrics_group().counter(LOADED)

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Row]:
        """One file."""
        if value:
            for entries in read_blocks(Path(value)):
                first = {name: value for name, value in entries.items() if name[0] == "f"}
                if first:
                    self._first.put_all(first)
                self._state.put_all({n: v for n, v in entries.items() if n not in first})
            self._loaded.inc()
        return ()
