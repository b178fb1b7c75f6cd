import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.purchases import middle_ms, replay_before, small_index, small_log
from udfs.ranking.arrays import largest
from udfs.ranking.candidates import CandidateOptions, Source, candidates, reason
from udfs.ranking.counters import ItemCounters
from udfs.ranking.kernels import best
from udfs.ranking.users import UserState
from udfs.ranking.views import view_of


def ask(user: int | None, options: CandidateOptions, off_sale=None):
    log, index = small_log(), small_index()
    replay = replay_before(log, index, middle_ms(log), options)
    state = UserState() if user is None else replay.users[user]
    view = view_of(index, state, middle_ms(log))
    return view, candidates(index, replay.counters, view, options, off_sale)


def a_user() -> int:
    log = small_log().before(middle_ms(small_log()))
    return int(np.bincount(log.users).argmax())


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(0, 25))
def test_largest_is_the_head_of_a_stable_sort(values, count):
    scores = np.array(values, np.float64)
    assert largest(scores, count).tolist() == np.argsort(-scores, kind="stable")[:count].tolist()


@pytest.mark.parametrize("count", [1, 20, 60, 120, 500])
def test_as_many_as_asked_for_come_each_once(count):
    _, found = ask(a_user(), CandidateOptions(count=count, popular=10, fresh=5))
    assert len(found) == min(count, len(small_index()))
    assert (np.diff(found.rows) > 0).all()
    assert found.sources.all()


def test_seen_ones_come_only_if_they_may():
    options = {"count": 60, "popular": 10, "fresh": 5}
    view, found = ask(a_user(), CandidateOptions(**options))
    assert np.isin(found.rows, view.rows).any()
    assert (found.sources & Source.REPEAT).any()
    view, found = ask(a_user(), CandidateOptions(**options, filter_seen=True))
    assert not np.isin(found.rows, view.rows).any()
    assert not (found.sources & Source.REPEAT).any()


def test_what_is_off_sale_never_comes():
    index = small_index()
    off_sale = np.zeros(len(index), bool)
    off_sale[::2] = True
    _, found = ask(a_user(), CandidateOptions(count=500), off_sale)
    assert (found.rows % 2 == 1).all()
    assert len(found) == len(index) // 2


def test_a_cold_user_gets_popular_and_fresh_ones():
    options = CandidateOptions(count=30, popular=20, fresh=5, fresh_days=60)
    _, found = ask(None, options)
    assert len(found) == 30
    assert not (found.sources & ~(Source.POPULAR | Source.FRESH) & 0xFF).any()
    counters = ItemCounters.of_index(small_index())
    popular = found.rows[(found.sources & Source.POPULAR) > 0]
    assert set(largest(counters.sums[:, 1], 20)) <= set(popular)


def test_every_source_gives_some_and_has_a_reason():
    _, found = ask(a_user(), CandidateOptions(count=60, popular=10, fresh=5, fresh_days=60))
    for source in Source:
        assert (found.sources & source).any(), source
        assert reason(int(source))


@given(
    st.lists(st.tuples(st.integers(-2, 5), st.booleans()), min_size=1, max_size=40),
    st.integers(0, 45),
)
def test_the_best_are_the_head_of_a_stable_sort_of_those_that_may_come(items, count):
    scores = np.array([score for score, _ in items], np.float64)
    allowed = np.array([may for _, may in items])
    wanted = [n for n in np.argsort(-scores, kind="stable") if allowed[n] and scores[n] >= 1.0]
    assert best(scores, allowed, 1.0, count).tolist() == wanted[:count]
