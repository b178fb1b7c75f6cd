"""``streamscore stack``: the local broker with a job's topics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.jars import Progress, fetch, silent
from jobs.kafka_broker import STACK, BrokerState, KafkaBroker
from jobs.kafka_topics import StackError, create_topics, partitions_of, topic_partitions
from jobs.ports import port_of

if TYPE_CHECKING:
    from jobs.sections.topics import TopicSettings


def up(
    bootstrap: str,
    topics: TopicSettings,
    progress: Progress = silent,
    folder: Path = STACK,
    tables: Sequence[str] = (),
) -> BrokerState:
    """Bring the local broker up with a job's topics; does only what is left to do.

    Args:
        bootstrap: host:port it is to have, of this machine.
        topics: The topics to make.
        tables: Topics of reference tables, to be made as compacted ones.
        progress: Called with one line per step.
        folder: The broker's folder.

    Raises:
        StackError: it cannot be had there, or refused a topic.
        JarsError: the jars cannot be fetched.
    """
    port = port_of(bootstrap)
    fetch(progress)
    progress("starting Kafka")
    broker = KafkaBroker(folder, port=port)
    started = broker.start()
    if port_of(started) != port:
        raise StackError(
            f"the local broker already runs at {started}", "run: streamscore stack down"
        )
    progress("making topics")
    create_topics(started, partitions_of(topics))
    compacted = dict.fromkeys(tables, topics.partitions)
    create_topics(started, compacted, {"cleanup.policy": "compact"})
    state = broker.status()
    if state is None:
        raise StackError("Kafka ended", f"see {broker.log}")
    return state


def summary(state: BrokerState) -> dict[str, str]:
    """What ``streamscore stack status`` shows: the process, then each topic's partitions."""
    topics = topic_partitions(state.bootstrap)
    return {"process": str(state.pid)} | {
        f"topic {name}": f"{count} partitions" for name, count in topics.items()
    }
