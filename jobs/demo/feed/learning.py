"""A feed learns: the next version from its topics, what it is worth, and whom the gate stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs import ranking_data, ranking_training
from jobs.demo import steps
from jobs.demo.feed.stage import Stage
from jobs.training import Trained, TrainingError
from model_server.repository import find_version
from udfs.ranking.evaluation import Measured

__all__ = ["Learnt", "compared", "learn", "story"]


@dataclass(frozen=True, slots=True)
class Learnt:
    """What became of a training on the topics.

    Attributes:
        trained: The version, published; none if it was refused.
        refused: Why there is none; empty if there is.
        took_s: Until the running job had it, after it was published.
    """

    trained: Trained | None
    refused: str = ""
    took_s: float = 0.0


def learn(stage: Stage, time_ms: int, name: str = "next model") -> Learnt:
    """Train on the topics as ``streamscore train --from training`` does; the job is to follow.

    Args:
        stage: What runs.
        time_ms: Event time at which the job is asked whether it has the version.
        name: Of the step.

    Raises:
        JobError: The running job does not take what was published.
    """

    def train(tell: steps.Tell) -> Learnt:
        found = ranking_data.load(stage.settings, None, True, steps.parts(tell))
        try:
            trained = ranking_training.train(stage.settings, found, steps.parts(tell))
        except TrainingError as exc:
            return Learnt(None, str(exc))
        version = trained.version.version
        taken = stage.wait(
            lambda: stage.answers_with(version, time_ms),
            "the new version in the running job",
            tell,
        )
        return Learnt(trained, took_s=taken)

    def text(it: Learnt) -> str:
        if it.trained is None:
            return f"refused: {it.refused}"
        return f"version {it.trained.version.version}, published and followed by the running job"

    return steps.step(name, train, text)


def compared(stage: Stage, versions: Sequence[int], since_ms: int) -> dict[int, Measured]:
    """How versions rank the same requests: those before each basket in the topics from then on.

    Recomputed from the topics by the code that the job runs, so that a version can be asked what it
    was not asked live.
    """

    def measure(tell: steps.Tell) -> dict[int, Measured]:
        chosen, found = stage.settings, dict[int, Measured]()
        log = ranking_data.load(chosen, None, True, steps.parts(tell)).log
        for number in versions:
            tell(f"the same requests, version {number}")
            version = find_version(chosen.model.path, chosen.model.name, number)
            found[number] = ranking_training.measured(chosen, version, log, since_ms)
        return found

    def text(found: dict[int, Measured]) -> str:
        rates = ", ".join(f"version {n} {one.hit_rate:.3f}" for n, one in found.items())
        requests = next(iter(found.values())).requests
        return f"{requests:,} of them, recomputed with each version: hit rate@10 {rates}"

    return steps.step("same requests", measure, text)


def story(learnt: Learnt) -> str:
    """What became of a training, in words."""
    if learnt.trained is None:
        return f"There is no new version and the old one goes on: {learnt.refused}."
    metrics, number = learnt.trained.metrics, learnt.trained.version.version
    new = metrics["figures"]["every_basket"][ranking_training.OURS]
    before, examples = metrics["present"], metrics["examples"]
    return (
        f"Version {number} was trained on {metrics['purchases']:,} purchases and "
        f"{examples['of_feedback']:,} answered requests. On the newest {new['requests']:,} baskets "
        f"its hit rate was {new['hit_rate']:.3f}, version {before['version']}'s "
        f"{before['hit_rate']:.3f}: it passed the gate, and the running job took it in "
        f"{learnt.took_s:.1f} s, without a restart."
    )
