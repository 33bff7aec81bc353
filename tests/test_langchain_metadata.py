"""Metadata in LangChain's vector store: kept exactly, and filtered by without a schema."""

from __future__ import annotations

import json
import math
import pathlib
from datetime import datetime, timezone
from functools import partial
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rawredis_llm import Client
from rawredis_llm.langchain import RedisNum, RedisTag, RedisText, RedisVectorStore
from stores import Stores, eventually, ids_of, texts_of


def found(store: RedisVectorStore, condition: Any) -> set[str]:
    """Return the ids of all documents that match."""
    return ids_of(store.similarity_search("anything", k=100, filter=condition))


# -- kept ----------------------------------------------------------------------------------------

EXACT: list[dict[str, Any]] = [
    {},
    {"nested": {"a": [1, {"b": None}], "c": {"d": True}}},
    {"unicode": "日本 🎈 é\u0301", "ключ": "знач", "line": "a\nb\t\x01\x1f"},
    {"none": None, "yes": True, "no": False, "zero": 0, "empty": "", "list": [], "dict": {}},
    {"float": 0.1, "tiny": 5e-324, "huge": 1.7e308, "whole": 3.0, "minus": -0.0},
    {"beyond": 2**60, "far": -(10**40), "edge": 2**53 + 1},
    {"text": "not the text", "content": "nor this", "page_content": "nor that"},
    {"embedding": [1, 2], "content_vector": "no vector", "vector": "x"},
    {"_metadata_json": "{}", "__distance": 3, "distance": "far", "score": "0.5"},
    {"id": "another", "key": "doc:x", "_id": 7, "vector_distance": 1.5},
    {"my-key": 1, "a b": 2, "": "nameless", "1st": 3, "$.x": 4, "@a": "b", "a.b": "c", "ü": 1},
    {"AS": "as", "SORTABLE": "x", "limit": 3, "RETURN": ["a"], "NOINDEX": "n", "PREFIX": "p"},
    {"weight": 3.5, "separator": 4, "text": 7, "tag": 8, "numeric": 9},
    {"labels": ["a,b", "c d", "", " x ", "\x1f"], "mixed": [1, "a", None], "nums": [1, 2.5]},
]


@pytest.mark.parametrize("metadata", EXACT, ids=lambda metadata: ",".join(metadata)[:40])
def test_metadata_comes_back_as_it_was_given(stores: Stores, metadata: dict[str, Any]) -> None:
    store = stores()
    before = json.dumps(metadata)
    store.add_texts(["said", "beside"], [metadata, {}], ids=["1", "2"])
    assert json.dumps(metadata) == before
    (by_id,) = store.get_by_ids(["1"])
    by_search = store.similarity_search("said", k=1)[0]
    diverse = store.max_marginal_relevance_search("said", k=1)[0]
    other = stores().similarity_search("said", k=1)[0]
    for one in (by_id, by_search, diverse, other):
        assert (one.id, one.page_content) == ("1", "said")
        assert json.dumps(one.metadata) == before
    assert ids_of(store.similarity_search("x")) == {"1", "2"}


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # A surrogate alone is no Unicode, so that no server could keep it.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(metadatas=st.lists(st.dictionaries(NAMES, JSON, max_size=4), min_size=1, max_size=3))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_metadata_comes_back_and_its_document_is_found(
    stores: Stores, client: Client, metadatas: list[dict[str, Any]]
) -> None:
    client.call("FLUSHALL")
    store = stores()
    names = store.add_texts(["text"] * len(metadatas), metadatas)
    assert [one.metadata for one in store.get_by_ids(names)] == metadatas
    assert ids_of(store.similarity_search("text", k=10)) == set(names)
    store.close()


def test_nothing_of_the_metadata_takes_the_place_of_the_text_or_the_vector(stores: Stores) -> None:
    store = stores()
    store.add_texts(["mine"], [{"content": "x", "text": "y", "content_vector": [0.5] * 8}])
    ((document, distance),) = store.similarity_search_with_score("mine")
    assert document.page_content == "mine"
    assert distance == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    "value",
    [
        datetime(2024, 1, 1, tzinfo=timezone.utc),
        {1, 2},
        b"bytes",
        object(),
        math.nan,
        "\ud800",
        math.inf,
        {"x": [math.nan]},
    ],
    ids=lambda value: type(value).__name__,
)
async def test_metadata_that_json_does_not_have_is_refused_before_anything_is_sent(
    stores: Stores, client: Client, value: Any
) -> None:
    store = stores()
    for metadatas in ([{"when": value}, {}], [{}, {"when": value}]):
        with pytest.raises((TypeError, ValueError), match="metadatas"):
            store.add_texts(["a", "b"], metadatas)
        with pytest.raises((TypeError, ValueError), match="metadatas"):
            await store.aadd_texts(["a", "b"], metadatas)
    assert client.call("DBSIZE") == 0
    assert client.call("FT._LIST") in ([], set())


def test_metadata_with_names_that_are_no_text_is_kept_or_refused(stores: Stores) -> None:
    store = stores()
    metadatas: list[dict[Any, Any]] = [{1: "one", None: "none"}]
    try:
        names = store.add_texts(["a"], metadatas)
    except (TypeError, ValueError):
        return
    assert store.get_by_ids(names)[0].metadata == metadatas[0]


def test_metadata_of_wrong_kinds_is_refused(stores: Stores, client: Client) -> None:
    store = stores()
    wrong: list[Any] = [[{}], [{}, {}, {}], ["a", "b"], [1, 2]]
    for metadatas in wrong:
        with pytest.raises((TypeError, ValueError)):
            store.add_texts(["a", "b"], metadatas)
    assert client.call("DBSIZE") == 0


def test_metadata_may_be_left_out_of_what_is_found(stores: Stores) -> None:
    store = stores()
    store.add_texts(["a"], [{"x": 1}], ids=["1"])
    for one in (
        store.similarity_search("a", return_metadata=False)[0],
        store.similarity_search_with_score("a", return_metadata=False)[0][0],
        store.max_marginal_relevance_search("a", return_metadata=False)[0],
    ):
        assert (one.page_content, one.id, one.metadata) == ("a", "1", {})


def test_a_document_that_is_written_again_has_nothing_left_of_before(stores: Stores) -> None:
    store = stores()
    store.add_texts(["a"], [{"x": 1, "y": "old"}], ids=["1"])
    store.add_texts(["b"], [{"x": 2}], ids=["1"])
    assert store.get_by_ids(["1"])[0].metadata == {"x": 2}
    assert found(store, RedisText("y") == "old") == set()
    assert found(store, RedisNum("x") == 1) == set()
    assert found(store, RedisNum("x") == 2) == {"1"}


# -- indexed by what it is -----------------------------------------------------------------------


def test_metadata_is_indexed_by_its_kind_without_a_schema(stores: Stores) -> None:
    store = stores()
    store.add_texts(
        ["a", "b"],
        [
            {"city": "New York", "year": 1999, "price": 9.5, "kinds": ["food", "New York, NY"]},
            {"city": "Rome", "year": 2001, "price": 1e-3, "kinds": ["art"], "open": True},
        ],
        ids=["1", "2"],
    )
    for condition, names in (
        (RedisText("city") == "new york", {"1"}),
        (RedisNum("year") > 2000, {"2"}),
        (RedisNum("price") == 9.5, {"1"}),
        (RedisNum("open") == 1, {"2"}),
        (RedisTag("kinds") == "New York, NY", {"1"}),
        (RedisTag("kinds") == "art", {"2"}),
        (RedisTag("kinds") == ["food", "art"], {"1", "2"}),
    ):
        assert found(store, condition) == names, condition


def test_names_that_first_come_in_a_later_call_can_be_filtered_by(stores: Stores) -> None:
    store, other = stores(), stores()
    store.add_texts(["a"], [{"year": 1}], ids=["1"])
    assert ids_of(other.similarity_search("a")) == {"1"}
    store.add_texts(["b"], [{"year": 2, "city": "Rome", "kinds": ["x"]}], ids=["2"])
    for one in (store, other):
        eventually(partial(found, one, RedisText("city") == "rome"), {"2"})
        eventually(partial(found, one, RedisTag("kinds") == "x"), {"2"})
        eventually(partial(found, one, RedisNum("year") >= 1), {"1", "2"})


async def test_names_that_come_later_can_be_filtered_by_in_asyncio(stores: Stores) -> None:
    store, other = stores(), stores()
    await store.aadd_texts(["a"], ids=["1"])
    assert len(await other.asimilarity_search("a")) == 1
    await store.aadd_texts(["b"], [{"city": "Rome"}], ids=["2"])
    rome = RedisText("city") == "rome"
    assert ids_of(await other.asimilarity_search("a", filter=rome)) == {"2"}


def test_two_processes_may_bring_the_same_new_name(stores: Stores) -> None:
    one, two = stores(), stores()
    one.add_texts(["a"], ids=["1"])
    two.add_texts(["b"], ids=["2"])
    one.add_texts(["c"], [{"city": "Rome"}], ids=["3"])
    two.add_texts(["d"], [{"city": "Rome"}], ids=["4"])
    eventually(lambda: found(two, RedisText("city") == "rome"), {"3", "4"})


def test_two_processes_may_bring_new_names_of_which_some_are_the_same(stores: Stores) -> None:
    one, two = stores(), stores()
    one.add_texts(["a"], ids=["1"])
    two.add_texts(["b"], ids=["2"])
    one.add_texts(["c"], [{"city": "Rome"}], ids=["3"])
    two.add_texts(["d"], [{"city": "Rome", "year": 5}], ids=["4"])
    eventually(lambda: found(two, RedisText("city") == "rome"), {"3", "4"})
    eventually(lambda: found(two, RedisNum("year") == 5), {"4"})


def test_two_processes_may_begin_at_once_with_different_metadata(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = stores(), stores()
    opened = two._open

    def while_another_begins() -> Any:
        index = yield from opened()
        if not one.get_by_ids(["1"]):
            one.add_texts(["a"], [{"city": "Rome"}], ids=["1"])
        return index

    monkeypatch.setattr(two, "_open", while_another_begins)
    two.add_texts(["b"], [{"year": 5}], ids=["2"])
    eventually(lambda: found(two, RedisNum("year") == 5), {"2"})
    eventually(lambda: found(two, RedisText("city") == "rome"), {"1"})


def test_values_of_another_kind_than_the_fields_lose_no_document(stores: Stores) -> None:
    store = stores()
    store.add_texts(["first"], [{"n": 1, "t": "a", "l": ["x"]}], ids=["0"])
    odd: list[Any] = ["text", 5, 2.5, True, None, [], ["y"], [1], {"a": 1}, 2**60, -(10**400), ""]
    odd += [" x ", "a\0b", "y" * 5000, ["y" * 5000], ["a\x1fb"], ["", "z"]]
    metadatas = [{"n": value, "t": value, "l": value} for value in odd]
    names = store.add_texts(["x"] * len(odd), metadatas)
    documents = store.similarity_search("x", k=100)
    assert ids_of(documents) == {"0", *names}
    assert [one.metadata for one in store.get_by_ids(names)] == metadatas


@pytest.mark.parametrize("metadata", [{"x": "text"}, {"x": ["label"]}, {"x": 2**60}])
def test_whole_numbers_beyond_doubles_and_others_come_first_without_harm(
    stores: Stores, metadata: dict[str, Any]
) -> None:
    store = stores()
    (name,) = store.add_texts(["a"], [metadata])
    names = store.add_texts(["b", "c"], [{"x": 5}, {"x": "five"}])
    assert ids_of(store.similarity_search("a", k=10)) == {name, *names}


@pytest.mark.parametrize(
    ("labels", "kept"), [(["a", ""], "a"), (["a", " b"], "a"), (["a", "y" * 5000], "a")]
)
def test_a_label_that_cannot_be_indexed_does_not_hide_the_others(
    stores: Stores, labels: list[str], kept: str
) -> None:
    store = stores()
    store.add_texts(["a", "b"], [{"kinds": labels}, {"kinds": ["z"]}], ids=["1", "2"])
    assert found(store, RedisTag("kinds") == kept) == {"1"}


def test_labels_of_a_declared_tag_may_stand_beside_numbers(stores: Stores) -> None:
    store = stores(index_schema={"tag": [{"name": "kinds"}]})
    store.add_texts(["a"], [{"kinds": ["x", 5]}], ids=["1"])
    assert found(store, RedisTag("kinds") == "x") == {"1"}
    assert found(store, RedisTag("kinds") == "5") == {"1"}


def test_more_names_of_texts_than_an_index_has_room_for_lose_nothing(stores: Stores) -> None:
    store = stores()
    many = {f"t{i}": f"word{i}" for i in range(60)}
    store.add_texts(["a"], [{**many, "n": 5, "l": ["x"]}], ids=["1"])
    store.add_texts(["b"], [{f"u{i}": f"word{i}" for i in range(60)}], ids=["2"])
    assert ids_of(store.similarity_search("a")) == {"1", "2"}
    assert store.get_by_ids(["1"])[0].metadata == {**many, "n": 5, "l": ["x"]}
    for condition in (RedisText("t0") == "word0", RedisText("t20") == "word20", RedisNum("n") == 5):
        assert found(store, condition) == {"1"}
    assert found(store, RedisTag("l") == "x") == {"1"}


def test_more_names_than_an_index_has_fields_lose_nothing(stores: Stores) -> None:
    store = stores()
    many = {f"n{i}": i for i in range(1100)}
    store.add_texts(["a"], [many], ids=["1"])
    assert store.get_by_ids(["1"])[0].metadata == many
    assert found(store, RedisNum("n5") == 5) == {"1"}


@pytest.mark.parametrize(
    "name",
    ["weight", "separator", "nostem", "phonetic", "casesensitive", "withsuffixtrie", "indexempty"],
)
@pytest.mark.parametrize("value", ["heavy", ["heavy"]], ids=["text", "labels"])
def test_metadata_named_as_an_option_of_the_server_is_kept(
    stores: Stores, name: str, value: Any
) -> None:
    store = stores()
    store.add_texts(["a"], [{"title": "b", name: value, "year": 5}], ids=["1"])
    assert store.get_by_ids(["1"])[0].metadata[name] == value
    assert found(store, RedisNum("year") == 5) == {"1"}


# -- indexed by a schema -------------------------------------------------------------------------

SCHEMA: dict[str, Any] = {
    "text": [{"name": "city", "no_stem": True, "weight": 2, "sortable": False}],
    "tag": [{"name": "kinds", "separator": "|", "case_sensitive": False}],
    "numeric": [{"name": "year", "sortable": True}],
}
LISTED = [
    {"name": "city", "type": "text"},
    {"name": "kinds", "type": "tag", "attrs": {"separator": "|"}},
    {"name": "year", "type": "numeric", "attrs": {"sortable": True}},
]


@pytest.mark.parametrize("form", ["dict", "path", "text", "list"])
def test_a_schema_says_what_is_indexed(stores: Stores, tmp_path: pathlib.Path, form: str) -> None:
    path = tmp_path / "schema.yaml"
    path.write_text(yaml.safe_dump(SCHEMA), encoding="utf-8")
    forms: dict[str, dict[str, Any]] = {
        "dict": {"index_schema": SCHEMA},
        "path": {"index_schema": path},
        "text": {"index_schema": str(path)},
        "list": {"metadata_schema": LISTED},
    }
    store = stores(**forms[form])
    metadata = {"city": "Rome", "kinds": "food|Fine Art", "year": 5, "other": "kept"}
    store.add_texts(["a", "b"], [metadata, {}], ids=["1", "2"])
    for condition in (
        RedisText("city") == "rome",
        RedisTag("kinds") == "food",
        RedisTag("kinds") == "fine art",
        RedisNum("year") == 5,
    ):
        assert found(store, condition) == {"1"}
    assert store.get_by_ids(["1"])[0].metadata == metadata
    with pytest.raises(ValueError, match="other"):
        store.similarity_search("a", filter=RedisText("other") == "kept")


def test_a_list_is_labels_of_a_declared_tag(stores: Stores) -> None:
    store = stores(index_schema={"tag": [{"name": "kinds"}]})
    store.add_texts(["a", "b"], [{"kinds": ["x", "y"]}, {"kinds": "x,z"}], ids=["1", "2"])
    assert found(store, RedisTag("kinds") == "x") == {"1", "2"}
    assert found(store, RedisTag("kinds") == "y") == {"1"}
    assert found(store, RedisTag("kinds") == "z") == {"2"}


def test_a_schema_goes_round_through_a_file(stores: Stores, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "schema.yaml"
    store = stores(vector_schema={"algorithm": "HNSW", "m": 8, "distance_metric": "L2"})
    store.add_texts(["a"], [{"city": "Rome", "kinds": ["a,b", "c"], "year": 5}], ids=["1"])
    store.write_schema(path)
    again = stores("again", index_schema=path)
    again.add_texts(["b"], [{"city": "Oslo", "kinds": ["a,b", "d"], "year": 6}], ids=["2"])
    assert again.schema == store.schema
    assert found(again, RedisTag("kinds") == "a,b") == {"2"}
    assert found(again, RedisText("city") == "oslo") == {"2"}
    assert again.similarity_search_with_score("b")[0][1] == pytest.approx(0, abs=1e-5)
    third = stores.keep(
        RedisVectorStore.from_existing_index(
            store.embeddings, "trips", schema=str(path), redis_url=stores.url
        )
    )
    assert {**third.schema, "vector": 0} == {**store.schema, "vector": 0}
    # The server tells of the parameters that it chose, too.
    assert third.schema["vector"][0].items() >= store.schema["vector"][0].items()
    assert texts_of(third.similarity_search("a")) == ["a"]


def test_a_schema_before_anything_is_added_can_be_read_again(stores: Stores) -> None:
    store = stores(index_schema=SCHEMA, distance_metric="ip")
    again = stores("again", index_schema=store.schema)
    assert again.schema == store.schema
    assert again.schema["vector"][0]["distance_metric"] == "IP"


WRONG: list[Any] = [
    5,
    {"tex": [{"name": "x"}]},
    {"text": 5},
    {"text": [{"name": "a b"}]},
    {"text": [{"name": "x", "unheard_of": 1}]},
    {"tag": [{"name": "x", "separator": "ab"}]},
    {"vector": [{"algorithm": "unheard_of"}]},
    [{"name": "x", "type": "unheard_of"}],
    [{"type": "text"}],
    {"text": [{}]},
]
BADLY_SAID: list[Any] = [
    {"text": ["x"]},
    {"vector": ["x"]},
    [{"name": "x"}],
    ["x"],
    {"index": {"name": "redisvl"}, "fields": [{"name": "x", "type": "unheard_of"}]},
    {"text": [{"name": "content_vector"}]},
]


@pytest.mark.parametrize("schema", [*WRONG, *BADLY_SAID])
def test_a_schema_that_is_none_is_refused_at_once(stores: Stores, schema: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        stores(index_schema=schema)


def test_a_schema_under_two_names_is_refused(stores: Stores) -> None:
    with pytest.raises(TypeError, match="only one"):
        stores(index_schema=SCHEMA, metadata_schema=LISTED)
    with pytest.raises(OSError, match="nowhere"):
        stores(index_schema="/nowhere/schema.yaml")


def test_what_is_said_of_the_vector_beside_a_schema_counts_or_is_refused(stores: Stores) -> None:
    schema = {"vector": [{"name": "content_vector", "algorithm": "FLAT"}]}
    try:
        store = stores(index_schema=schema, vector_schema={"distance_metric": "L2"})
    except (TypeError, ValueError):
        return
    assert store.schema["vector"][0]["distance_metric"] == "L2"
