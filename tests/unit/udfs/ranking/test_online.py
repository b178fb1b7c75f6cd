from dataclasses import replace

import numpy as np
import pytest

from tests.support.purchases import small_index
from udfs.ranking.online import OnlineEmbeddings, OnlineOptions

BASKET = np.array([3, 8, 21, 40], np.int32)


def agreement(embeddings: np.ndarray) -> float:
    own = embeddings[BASKET]
    return float((own @ own.T).sum())


def test_items_that_are_bought_together_come_nearer():
    index = small_index()
    before = index.embeddings.copy()
    online = OnlineEmbeddings(index, OnlineOptions())
    seen = [agreement(before)]
    for _ in range(30):
        online.take(BASKET)
        seen.append(agreement(online.index.embeddings))
    assert seen[-1] > seen[0] + 0.5
    assert np.array_equal(index.embeddings, before)  # the version itself stays


def test_embeddings_stay_directions_and_only_the_named_ones_change():
    index = small_index()
    online = OnlineEmbeddings(index, OnlineOptions())
    changed = online.take(BASKET)
    assert set(BASKET.tolist()) <= set(changed.tolist())
    others = np.setdiff1d(np.arange(len(index)), changed)
    assert np.array_equal(online.index.embeddings[others], index.embeddings[others])
    lengths = np.linalg.norm(online.index.embeddings[changed], axis=1)
    assert lengths == pytest.approx(1.0, abs=1e-5)


def test_an_item_without_a_direction_takes_that_of_its_basket():
    index = small_index()
    index = replace(index, embeddings=index.embeddings.copy())
    index.embeddings[8] = 0
    online = OnlineEmbeddings(index, OnlineOptions())
    online.take(BASKET)
    expected = index.embeddings[[3, 21, 40]].sum(axis=0)
    expected /= np.linalg.norm(expected)
    assert online.index.embeddings[8] @ expected > 0.99


@pytest.mark.parametrize("basket", [[], [5], [-1, -1, 7], [5, 5]])
def test_a_basket_of_one_known_item_says_nothing(basket):
    online = OnlineEmbeddings(small_index(), OnlineOptions())
    assert not len(online.take(np.array(basket, np.int32)))
    assert np.array_equal(online.index.embeddings, small_index().embeddings)


def test_the_same_baskets_give_the_same_embeddings():
    first, second = (OnlineEmbeddings(small_index(), OnlineOptions()) for _ in range(2))
    for online in (first, second):
        online.take(BASKET)
    assert first.index.embeddings.tobytes() == second.index.embeddings.tobytes()
