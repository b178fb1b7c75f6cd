"""Versions beside each other: names, the control record, what a cutover objects to."""

from __future__ import annotations

import pytest

from jobs import settings
from jobs.environment import ROOT
from jobs.settings_file import SettingsError
from jobs.versions.control import Generation, dumps, first, followed_by, loads
from jobs.versions.cutover import Cutover, lines, previous
from jobs.versions.naming import BASE, versioned
from jobs.versions.overlap import Limits, Outcome, Overlap, compared
from jobs.versions.reader import Recent

CONFIG = ROOT / "conf" / "fraud.yaml"


def test_a_version_shares_only_what_it_reads() -> None:
    base = settings.load(CONFIG, {"topics.shadow": "shadows"})
    own = versioned(base, "v2")
    assert (own.topics.events, own.topics.labels) == (base.topics.events, base.topics.labels)
    assert own.topics.predictions == "fraud-predictions.v2"
    assert own.topics.shadow == "shadows.v2"
    assert own.kafka.group_id == "streamscore-fraud-v2"
    assert own.name == "fraud-v2"  # starts the transactional ids
    assert own.flink.checkpoint_dir == "build/checkpoints/v2"
    assert own.features_hash == base.features_hash
    assert versioned(base, BASE) == base


@pytest.mark.parametrize("name", ["", "a.b", "current", "v 2", "-v"])
def test_a_name_must_fit_a_topic(name: str) -> None:
    with pytest.raises(SettingsError, match="no name of a version"):
        versioned(settings.load(CONFIG), name)


def test_generations_split_the_inputs() -> None:
    one = first("predictions")
    new = Generation("v2", "predictions.v2", {0: 10, 1: 5}, {0: 3}, switched_ms=7)
    both = followed_by(one, {0: 20}, new)
    assert loads(dumps(both)) == both
    assert (both[0].end, both[1].end) == ({0: 20}, None)
    assert (previous(one), previous(both)) == (None, BASE)
    assert [new.takes(0, 9), new.takes(0, 10), new.takes(2, 0)] == [False, True, True]


def outcome(*scores: float, refused: int = 0) -> Outcome:
    made = Outcome({(0, n): score for n, score in enumerate(scores)})
    made.refused = {(0, len(scores) + n) for n in range(refused)}
    return made


def overlap(old: Outcome, new: Outcome, inputs: int, behind: int = 0) -> Overlap:
    return compared({(0, n) for n in range(inputs)}, old, new, behind)


SCORES = [n / 100 for n in range(100)]


@pytest.mark.parametrize(
    ("old", "new", "behind", "words"),
    [
        (outcome(*SCORES), outcome(*SCORES), 0, []),
        (outcome(*SCORES), outcome(*SCORES[:90]), 0, ["has not dealt with 10"]),
        (outcome(*SCORES[:99]), outcome(*SCORES), 0, ["old version has not dealt with 1"]),
        (outcome(*SCORES), outcome(*SCORES[:99], refused=1), 0, ["1 inputs are scored by one"]),
        (outcome(*SCORES), outcome(*[0.5] * 100), 0, ["PSI"]),
        (outcome(*SCORES), outcome(*SCORES), 20_000, ["behind by 20,000, at most 10,000"]),
    ],
)
def test_what_is_objected_to(old: Outcome, new: Outcome, behind: int, words: list[str]) -> None:
    found = Limits().objections(overlap(old, new, 100, behind))
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


def test_fallbacks_are_objected_to_and_shown() -> None:
    old, new = outcome(*SCORES), outcome(*SCORES)
    new.fallbacks = {(0, n) for n in range(6)}
    seen = overlap(old, new, 100)
    (objection,) = Limits().objections(seen)
    assert objection == "6 more fallbacks than of the old version"
    shown = lines(Cutover(BASE, "v2", seen, [objection], is_done=False))
    assert shown[-2:] == [f"objection: {objection}", "readers follow base"]


def test_reading_begins_at_the_first_later_prediction() -> None:
    made = Outcome(read={0: 50, 1: 60}, later={0: 44})
    assert made.begin == {0: 44, 1: 60}


def test_repeats_are_known_for_a_while() -> None:
    recent = Recent(2)
    assert [recent.is_new((0, n)) for n in (1, 1, 2, 3, 1)] == [True, False, True, True, True]
