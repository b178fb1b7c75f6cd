"""From features to the model's matrix, against an oracle that looks at one value at a time."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_server.errors import RepositoryError
from model_server.repository import load_features
from udfs.batches.categories import code_of
from udfs.preparation.encoders import Hashing, OneHot, Ordinal, Target
from udfs.preparation.preparation import Input, Preparation

TEXTS = ["app", "web", "", "日本", "a b", "[x]", "x" * 80, "other", "missing"]
UNKNOWN = "never seen"
finite = st.floats(-1e30, 1e30)


def known(texts: list[str]) -> dict[str, Any]:
    return {"texts": tuple(texts), "codes": tuple(map(code_of, texts))}


@st.composite
def encoders(draw: st.DrawFn) -> Any:
    texts = draw(st.lists(st.sampled_from(TEXTS), unique=True))
    kind = draw(st.sampled_from([OneHot, Ordinal, Hashing, Target]))
    if kind is OneHot:
        return OneHot(**known(texts), other=not texts or draw(st.booleans()))
    if kind is Ordinal:
        return Ordinal(**known(texts))
    if kind is Hashing:
        return Hashing(buckets=draw(st.integers(2, 20)))
    values = draw(st.lists(finite, min_size=len(texts), max_size=len(texts)))
    return Target(**known(texts), values=tuple(values), prior=draw(finite))


@st.composite
def preparations(draw: st.DrawFn) -> Preparation:
    names = draw(st.lists(st.sampled_from("abcdefg"), unique=True, min_size=1))
    inputs = []
    for name in names:
        encoding = draw(st.none() | encoders())
        impute = draw(st.none() | finite) if encoding is None else None
        flag = draw(st.booleans())
        inputs.append(Input(name=name, impute=impute, indicator=flag, encoding=encoding))
    return Preparation(inputs)


@st.composite
def with_features(draw: st.DrawFn) -> tuple[Preparation, npt.NDArray[np.float64]]:
    preparation = draw(preparations())
    rows = draw(st.integers(0, 6))
    code = st.sampled_from([float(code_of(t)) for t in (*TEXTS, UNKNOWN)] + [1.0, math.nan])
    number = st.floats(-1e30, 1e30) | st.just(math.nan)
    columns = [
        draw(st.lists(number if i.encoding is None else code, min_size=rows, max_size=rows))
        for i in preparation.inputs
    ]
    return preparation, np.array(columns, np.float64).reshape(len(columns), rows).T


def oracle(column: Input, value: float) -> list[float]:
    """The model's columns of one value, without a table or a search."""
    code, is_missing = value, math.isnan(value)
    match column.encoding:
        case None:
            shown = [column.impute if is_missing else value]
            shown = [math.nan if v is None else v for v in shown]
        case OneHot(codes=codes, other=other):
            shown = [float(code == c) for c in codes]
            shown += [float(not is_missing and code not in codes)] * other
        case Ordinal(codes=codes):
            rank = codes.index(int(code)) if code in codes else len(codes)
            shown = [-1.0 if is_missing else float(rank)]
        case Hashing(buckets=buckets):
            shown = [float(not is_missing and int(code) % buckets == b) for b in range(buckets)]
        case Target(codes=codes, values=values, prior=prior):
            shown = [values[codes.index(int(code))] if code in codes else prior]
    return shown + [float(is_missing)] * column.indicator


@given(with_features())
def test_every_value_becomes_what_the_oracle_says(
    given_: tuple[Preparation, npt.NDArray[np.float64]],
) -> None:
    preparation, features = given_
    before = features.copy()
    got = preparation.transform(features)
    expected = [
        [v for i, value in zip(preparation.inputs, row, strict=True) for v in oracle(i, value)]
        for row in features.tolist()
    ]
    shape = (len(features), len(preparation.columns))
    np.testing.assert_array_equal(got, np.array(expected, np.float64).astype("f4").reshape(shape))
    np.testing.assert_array_equal(features, before)
    assert got.dtype == np.float32 and got.flags.c_contiguous
    assert len(set(preparation.columns)) == len(preparation.columns)
    assert not any(set(name) & set("[]<") for name in preparation.columns)


@settings(max_examples=50)
@given(with_features())
def test_what_was_stored_gives_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory,
    given_: tuple[Preparation, npt.NDArray[np.float64]],
) -> None:
    preparation, features = given_
    folder = tmp_path_factory.mktemp("model")
    (folder / "features.json").write_bytes(orjson.dumps(preparation.document()))
    stored = Preparation.load(folder)
    shipped = pickle.loads(pickle.dumps(stored))
    expected = preparation.transform(features).tobytes()
    assert stored == preparation and stored.columns == preparation.columns
    assert stored.transform(features).tobytes() == shipped.transform(features).tobytes() == expected


@given(preparations())
def test_the_server_imputes_what_a_row_of_nothing_becomes(preparation: Preparation) -> None:
    features = preparation.document()["features"]
    nothing = preparation.transform(np.full((1, len(preparation.names)), np.nan))[0]
    imputed = [math.nan if f["impute"] is None else f["impute"] for f in features]
    assert tuple(f["name"] for f in features) == preparation.columns
    np.testing.assert_array_equal(np.array(imputed, np.float32), nothing)


@given(preparations(), st.integers(0, 3))
def test_a_feature_contributes_what_its_columns_do(preparation: Preparation, rows: int) -> None:
    contributions = np.random.default_rng(1).normal(size=(rows, len(preparation.columns)))
    got = preparation.by_feature(contributions)
    assert got.shape == (rows, len(preparation.names))
    np.testing.assert_allclose(got.sum(axis=1), contributions.sum(axis=1))
    for n in range(len(preparation.names)):
        own = contributions[:, preparation.columns_of(n)]
        np.testing.assert_allclose(got[:, n], own.sum(axis=1))


def test_columns_are_named_after_their_feature() -> None:
    one_hot = OneHot(**known(["app", "a<b[c]\n", "missing", "other", "a<b c]"]), other=True)
    inputs = [
        Input(name="amount", impute=1.0, indicator=True),
        Input(name="channel", encoding=one_hot, indicator=True),
        Input(name="shop", encoding=Hashing(buckets=2)),
        Input(name="device", encoding=Ordinal(**known(["a"]))),
    ]
    assert Preparation(inputs).columns == (
        *("amount", "amount_missing", "channel_app", "channel_a_b_c__", "channel_missing"),
        *("channel_other", "channel_a_b_c_", "channel_other_2", "channel_missing_2"),
        *("shop_0", "shop_1", "device"),
    )


def test_a_double_too_large_for_a_float_is_infinite() -> None:
    for flag in (False, True):
        preparation = Preparation([Input(name="a", impute=0.0, indicator=flag)])
        assert preparation.transform(np.array([[1e300]]))[0, 0] == np.inf


# -- what lies in the folder --------------------------------------------------------------------


def write(folder: Path, document: Any) -> Path:
    (folder / "features.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_format_1_is_read(tmp_path: Path) -> None:
    features = [
        {"name": "a", "type": "float", "impute": 0.1},
        {"name": "b", "type": "float", "impute": None},
    ]
    found = Preparation.load(write(tmp_path, {"format": 1, "features": features}))
    assert found.names == found.columns == ("a", "b")
    got = found.transform(np.array([[np.nan, np.nan], [2.0, 3.0]]))
    np.testing.assert_array_equal(got, np.array([[0.1, np.nan], [2, 3]], np.float32))


def test_the_server_reads_the_columns_of_format_2(tmp_path: Path) -> None:
    preparation = Preparation(
        [
            Input(name="amount", impute=2.5, indicator=True),
            Input(name="kind", encoding=OneHot(**known(["CP"]), other=False)),
        ]
    )
    write(tmp_path, preparation.document() | {"config_hash": "abc"})
    listed = load_features(tmp_path)
    assert listed.names == ("amount", "amount_missing", "kind_CP")
    assert [f.impute for f in listed.features] == [2.5, 1.0, 0.0]
    assert listed.config_hash == "abc"


def document(**changes: Any) -> dict[str, Any]:
    encoding = {"kind": "target", "texts": ["a"], "codes": [code_of("a")], "values": [0.5]}
    encoding = encoding | {"prior": 0.1} | changes
    return {
        "format": 2,
        "features": [{"name": "k", "type": "float", "impute": 0.1}],
        "inputs": [{"name": "k", "encoding": encoding}],
    }


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (document() | {"inputs": None}, "inputs: must be a list"),
        (document() | {"inputs": []}, "inputs: must be a list"),
        (document() | {"inputs": ["k"]}, "inputs: "),
        (document() | {"inputs": [{"name": "k", "imput": 1}]}, "imput"),
        (document() | {"inputs": [{"name": "other"}]}, '"features" must name the columns'),
        (document(kind="label"), "kind"),
        (document(codes=[1]), "must be the codes of the texts"),
        (document(texts=["a", "b"]), "must be the codes of the texts"),
        (document(values=[]), "one for each text"),
        (document(values=[float("inf")]), "finite"),
        (document(prior=None), "prior"),
        (
            document(texts=["a", "a"], codes=[code_of("a")] * 2, values=[0.5, 0.5]),
            "must differ",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path: Path, stored: Any, words: str) -> None:
    with pytest.raises(RepositoryError, match=words) as refused:
        Preparation.load(write(tmp_path, stored))
    assert str(tmp_path / "features.json") in str(refused.value)
