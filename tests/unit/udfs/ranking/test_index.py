from dataclasses import fields, replace

import numpy as np
import pytest

from tests.support.purchases import OPTIONS, middle_ms, small_index, small_log
from udfs.ranking.arrays import keys_of
from udfs.ranking.building import build_index
from udfs.ranking.index import INDEX_FILE, IndexFileError, ItemIndex
from udfs.ranking.views import list_scores


def test_a_saved_index_is_the_same(tmp_path):
    index = small_index()
    index.save(tmp_path)
    again = ItemIndex.load(tmp_path)
    for field in fields(index):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(index, field.name))


def test_rows_are_found_by_key_and_unknown_ones_are_minus_one():
    index = small_index()
    keys = np.concatenate((index.keys[::-1], keys_of(["nobody knows this"])))
    expected = [*range(len(index) - 1, -1, -1), -1]
    assert index.rows_of(keys).tolist() == expected


def test_what_is_not_an_index_is_refused(tmp_path):
    with pytest.raises(IndexFileError, match="train again"):
        ItemIndex.load(tmp_path)
    (tmp_path / INDEX_FILE).write_bytes(b"PK not a zip")
    with pytest.raises(IndexFileError, match="train again"):
        ItemIndex.load(tmp_path)


def test_pickled_objects_are_not_read(tmp_path):
    np.savez(tmp_path / INDEX_FILE, format=np.int64(1), ids=np.array([{}], dtype=object))
    with pytest.raises(IndexFileError, match="allow_pickle"):
        ItemIndex.load(tmp_path)


def test_a_list_that_names_no_item_is_refused(tmp_path):
    index = small_index()
    lists = index.user_lists.copy()
    lists[0, 0] = len(index)
    replace(index, user_lists=lists).save(tmp_path)
    with pytest.raises(IndexFileError, match="user_lists names an item"):
        ItemIndex.load(tmp_path)


def test_two_items_of_one_id_are_refused():
    index = small_index()
    with pytest.raises(IndexFileError, match="one id"):
        replace(index, ids=np.array([index.ids[0]] * len(index)))


def test_an_index_knows_nothing_of_later_purchases():
    log = small_log()
    full, cut = (
        build_index(part, middle_ms(log), OPTIONS) for part in (log, log.before(middle_ms(log)))
    )
    for field in fields(full):
        np.testing.assert_array_equal(getattr(full, field.name), getattr(cut, field.name))


def test_covisitation_is_the_decayed_cosine():
    log = small_log()
    index = small_index()
    past = log.before(middle_ms(log))
    ages_days = (middle_ms(log) - past.times_ms) / 86_400_000
    size = (past.users.max() + 1, len(index))
    matrix = np.zeros(size)
    np.maximum.at(matrix, (past.users, past.items), 0.5 ** (ages_days / OPTIONS.half_life_days))
    roots = np.sqrt(matrix)
    lengths = np.linalg.norm(roots, axis=0)
    cosines = roots.T @ roots / np.maximum(np.outer(lengths, lengths), 1e-300)
    for row in range(len(index)):
        for item, weight in zip(index.user_lists[row], index.user_weights[row], strict=True):
            assert item == -1 or weight == pytest.approx(cosines[row, item], rel=1e-5)
        others = np.delete(cosines[row], row)
        best = np.sort(others)[::-1][: OPTIONS.neighbours]
        np.testing.assert_allclose(index.user_weights[row], best, rtol=1e-5, atol=1e-12)


def test_list_scores_are_sums_over_the_lists():
    index = small_index()
    rows, shares = np.array([3, 7], np.int32), np.array([0.5, 2.0])
    expected = np.zeros(len(index))
    for row, share in zip(rows, shares, strict=True):
        for item, weight in zip(index.user_lists[row], index.user_weights[row], strict=True):
            if item >= 0:
                expected[item] += share * weight
    scores = list_scores(index.user_lists, index.user_weights, rows, shares)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
