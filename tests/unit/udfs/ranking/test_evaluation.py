import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.purchases import build, middle_ms, small_log
from udfs.ranking.baselines import baselines
from udfs.ranking.candidates import CandidateOptions
from udfs.ranking.evaluation import (
    FIRST,
    Measured,
    Tally,
    every_basket,
    measure,
    next_basket,
    ranked_by,
)
from udfs.ranking.examples import ExampleOptions, examples_before, replay_of
from udfs.ranking.features import FEATURES
from udfs.ranking.gate import GateOptions, refusal

rows_of_items = st.lists(st.integers(0, 30), min_size=1, max_size=15, unique=True)


def silent(what: str, part: float) -> None:
    pass


def replay(filter_seen: bool = False):
    options = CandidateOptions(count=60, popular=20, filter_seen=filter_seen)
    return replay_of(small_log(), middle_ms(small_log()), build, options)


@given(rows_of_items, rows_of_items)
def test_figures_of_one_ranking_by_definition(shown, wanted):
    tally = Tally()
    tally.add(np.array(shown, np.int32), frozenset(wanted), len(wanted))
    measured = tally.measured(31)
    first = shown[:10]
    assert measured.hit_rate == float(bool(set(first) & set(wanted)))
    gain = sum(1 / np.log2(n + 2) for n, row in enumerate(first) if row in wanted)
    best = sum(1 / np.log2(n + 2) for n in range(min(10, len(wanted))))
    assert measured.ndcg == pytest.approx(gain / best)
    assert measured.coverage == pytest.approx(len(first) / 31)


def test_the_best_ranking_has_an_ndcg_of_one():
    tally = Tally()
    tally.add(np.arange(10, dtype=np.int32), frozenset(range(12)), 12)
    assert tally.measured(12).ndcg == pytest.approx(1.0)


def test_each_known_user_is_asked_once_for_the_first_basket_after_the_split():
    log, split = small_log(), middle_ms(small_log())
    asked = list(next_basket(replay(), log, split))
    after = log.since(split)
    known = set(log.before(split).users.tolist())
    again = [user for user in dict.fromkeys(after.users.tolist()) if user in known]
    assert len(asked) == len(again)
    for (request, wanted, count), user in zip(asked, again, strict=True):
        first = after.times_ms[after.users == user][0]
        basket = after.items[(after.users == user) & (after.times_ms == first)]
        assert wanted == frozenset(basket.tolist())
        assert count == len(set(basket.tolist()))
        assert request.view.time_ms == split


def test_what_was_seen_is_not_wanted_where_it_is_filtered():
    log, split = small_log(), middle_ms(small_log())
    past = log.before(split)
    cases = list(next_basket(replay(filter_seen=True), log, split))
    assert cases
    for request, wanted, _ in cases:
        assert not wanted & set(request.view.rows.tolist())
        assert wanted <= set(range(len(log.item_ids)))
    assert len(past)


def test_every_basket_is_asked_for_with_the_state_just_before_it():
    log, split = small_log(), middle_ms(small_log())
    cases = list(every_basket(replay(), log, split))
    assert len(cases) == len(np.unique(log.since(split).baskets))
    times = [request.view.time_ms for request, _, _ in cases]
    assert times == sorted(times)
    last = [r.view.state.last_ms for r, _, _ in cases if r.view.state.baskets]
    assert max(last) > split


def test_baselines_show_each_item_once_and_nothing_seen():
    log, split = small_log(), middle_ms(small_log())
    state = replay(filter_seen=True)
    for request, _, _ in next_basket(state, log, split):
        for ranker in baselines(log, state, split).values():
            rows = ranker(request)
            assert len(set(rows.tolist())) == FIRST
            assert not set(rows.tolist()) & set(request.view.rows.tolist())


def test_popularity_is_the_most_bought_before_the_split():
    log, split = small_log(), middle_ms(small_log())
    state = replay()
    request = state.request(0, split)
    rows = baselines(log, state, split)["popularity, all time"](request)
    counts = np.bincount(log.before(split).items, minlength=len(log.item_ids))
    assert counts[rows].tolist() == sorted(counts.tolist(), reverse=True)[:FIRST]


def test_all_rankings_meet_the_same_cases():
    log, split = small_log(), middle_ms(small_log())
    state = replay()
    share = FEATURES.index("item_log_share_14d")
    rankers = {
        "by share": ranked_by(lambda features: features[:, share]),
        "by its negative": ranked_by(lambda features: -features[:, share]),
    }
    found = measure(next_basket(state, log, split), rankers, len(log.item_ids))
    assert found["by share"].requests == found["by its negative"].requests > 0
    assert found["by share"].hit_rate > found["by its negative"].hit_rate


def test_examples_come_from_before_the_split_alone():
    log, split = small_log(), middle_ms(small_log())
    options = CandidateOptions(count=60, popular=20)
    chosen = ExampleOptions(folds=2, fold_days=10, negatives=0.5)

    def made(part):
        return examples_before(part, split, build, options, chosen, silent)

    full, cut = made(log), made(log.before(split))
    assert full.requests > 10
    assert full.features.tobytes() == cut.features.tobytes()
    assert full.labels.tobytes() == cut.labels.tobytes()
    assert 0 < full.labels.mean() < 1


def test_fewer_negatives_leave_every_positive():
    log, split = small_log(), middle_ms(small_log())
    options = CandidateOptions(count=60, popular=20)
    positives, rows = [], []
    for share in (0.1, 1.0):
        chosen = ExampleOptions(folds=1, fold_days=10, negatives=share)
        made = examples_before(log, split, build, options, chosen, silent)
        positives.append(made.labels.sum())
        rows.append(len(made))
    assert positives[0] == positives[1]
    assert rows[0] < rows[1] / 2


GATE = GateOptions(hit_rate=0.02, ndcg=0.01, least_requests=50)


@pytest.mark.parametrize(
    ("hit_rate", "ndcg", "requests", "refused"),
    [
        (0.50, 0.20, 100, None),
        (0.481, 0.191, 100, None),
        (0.47, 0.20, 100, "hit rate 0.4700"),
        (0.50, 0.18, 100, "NDCG 0.1800"),
        (0.90, 0.90, 49, "49 requests"),
        (float("nan"), 0.2, 100, "hit rate nan"),
    ],
)
def test_the_gate_refuses_what_is_worse_or_unknown(hit_rate, ndcg, requests, refused):
    present = Measured(100, 0.50, 0.20, 0.1)
    said = refusal(Measured(requests, hit_rate, ndcg, 0.1), present, GATE)
    assert (said is None) if refused is None else (said is not None and refused in said)


def test_a_first_version_needs_only_a_holdout():
    assert refusal(Measured(100, 0.01, 0.01, 0.1), None, GATE) is None
    assert refusal(Measured(0, float("nan"), float("nan"), 0.0), None, GATE) is not None
