"""Names for the state of operators that Flink SQL makes: sources, windows, sinks.

Flink would tell them apart by their place in the job: one more sink, and 17 of the fraud job's 30
operators had another id. Here an operator is named by what it leads to: the next operator that has
a name, or the sink.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pyflink.datastream import StreamExecutionEnvironment

_NUMBER = re.compile(r"\[\d+\]")
"""The planner's, which depends on what else is in the job."""


def assign(env: StreamExecutionEnvironment) -> None:
    """Name every operator of a job that is wired and has no name yet; the same job, the same names.

    Args:
        env: The environment, before it executes.
    """
    roots = list(env._j_stream_execution_environment.getTransformations())
    seen: set[int] = set()
    led_to = {before.getId() for root in roots for before in _before(root, seen)}
    taken: set[str] = set()
    known: set[int] = set()
    for root in roots:
        if root.getId() not in led_to:
            _name(root, _label(root), known, taken)


def _before(transformation: Any, seen: set[int]) -> Iterator[Any]:
    """Every transformation that leads to this one."""
    if transformation.getId() in seen:
        return
    seen.add(transformation.getId())
    for before in transformation.getInputs():
        yield before
        yield from _before(before, seen)


def _name(transformation: Any, label: str, known: set[int], taken: set[str]) -> None:
    """Name a transformation and all that lead to it."""
    if transformation.getId() in known:
        return
    known.add(transformation.getId())
    if (own := transformation.getUid()) is not None:
        label = str(own)
    else:
        transformation.setUid(_free(f"{label} < {_label(transformation)}", taken))
    for before in transformation.getInputs():
        _name(before, label, known, taken)


def _free(wanted: str, taken: set[str]) -> str:
    number, name = 1, wanted
    while name in taken:
        number += 1
        name = f"{wanted} {number}"
    taken.add(name)
    return name


def _label(transformation: Any) -> str:
    return _NUMBER.sub("", str(transformation.getName()))
