"""Small purchase logs and what the ranking's state should be of them, the slow way."""

from functools import cache

import numpy as np

from jobs.demo.retail import synthetic
from udfs.ranking.arrays import DAY_MS
from udfs.ranking.building import BuildOptions, build_index
from udfs.ranking.candidates import CandidateOptions
from udfs.ranking.counters import ItemCounters
from udfs.ranking.index import ItemIndex
from udfs.ranking.log import PurchaseLog, item_keys, log_of
from udfs.ranking.replay import Replay

OPTIONS = BuildOptions(dimensions=8, neighbours=20)


def build(log: PurchaseLog, as_of_ms: int) -> ItemIndex:
    """The items of a log, small."""
    return build_index(log, as_of_ms, OPTIONS)


@cache
def small_log() -> PurchaseLog:
    """Some 400 baskets of 60 users and 120 items over 100 days."""
    return synthetic(seed=3, users=60, items=120, days=100)


def renewed_log() -> PurchaseLog:
    """A log in whose last fifth seven of eight items have made way for new ones."""
    old = synthetic(users=120, items=300, days=100)
    since_ms = int(old.times_ms[int(len(old) * 0.8)])
    ids = old.item_ids[old.items].astype("<U10")
    is_new = (old.items % 8 != 0) & (old.times_ms >= since_ms)
    ids[is_new] = np.char.add("N", ids[is_new])
    categories = dict(zip(old.item_ids.tolist(), old.categories.tolist(), strict=True))
    categories |= {f"N{item}": category for item, category in categories.items()}
    return log_of(old.user_ids[old.users], ids, old.times_ms, old.prices, categories)


def middle_ms(log: PurchaseLog) -> int:
    """An event time with purchases before and after."""
    return int(log.times_ms[len(log) // 2])


@cache
def small_index() -> ItemIndex:
    """The items of ``small_log`` as of its middle."""
    return build_index(small_log(), middle_ms(small_log()), OPTIONS)


def replay_before(
    log: PurchaseLog, index: ItemIndex, time_ms: int, options: CandidateOptions
) -> Replay:
    """A replay that took all before an event time."""
    replay = Replay(index, item_keys(log), options, ItemCounters.empty(len(index), time_ms))
    replay.take_all(log.before(time_ms))
    return replay


def decayed(log: PurchaseLog, item: int, time_ms: int, half_life_days: float) -> float:
    """The decayed purchases of one item before an event time, by definition."""
    ages = time_ms - log.times_ms[(log.items == item) & (log.times_ms < time_ms)]
    return float(np.sum(0.5 ** (ages / (half_life_days * DAY_MS))))
