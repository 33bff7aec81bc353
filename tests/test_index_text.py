"""Full text: which documents words find, by a model of words, stems and stop words."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rawredis_llm import Client, Numeric, Tag, Text, Vector, VectorIndex, errors
from rawredis_llm.search.filters import STOP_WORDS

if TYPE_CHECKING:
    from conftest import Redis

FIELDS = (
    Text("title"),
    Text("body"),
    Text("exact", nostem=True),
    Tag("color"),
    Numeric("n"),
    Vector("vec", 2),
)

STEMS = {
    "run": ["run", "runs", "running"],
    "cat": ["cat", "cats"],
    "connect": ["connect", "connects", "connected", "connecting", "connection", "connections"],
    "walk": ["walk", "walks", "walked", "walking"],
    "hous": ["house", "houses"],
}
"""Stems by Porter's algorithm, and words that have them."""

WHOLE = ["1E5", "12", "3", "007", "inf", "nan", "INF", "naïve", "日本", "über", "_x", "a_b", "x_"]
WHOLE += ["__", "e5", "0x10", "true", "ismissing", "🦜", "“quoted”", "x\u00a0y"]
"""Words that have no other form: numbers, what looks like them, other scripts."""

NOISE = ["the", "and", "of", "-", "|", '"', "(", "THE", "@body:", "*", "~", "%"]
"""What counts for nothing: stop words and punctuation, but for the word in `@body:`."""

WORDS = [word for forms in STEMS.values() for word in forms] + WHOLE


def stem(word: str) -> str:
    """Return a word's stem, lower-case."""
    small = word.lower()
    return next((base for base, forms in STEMS.items() if small in forms), small)


def tokens(text: str) -> set[str]:
    """Return the words of a text as they are indexed, without stop words."""
    found = re.split(r"[^\w\x80-\U0010ffff]+", text, flags=re.ASCII)
    return {word.lower() for word in found if word and word.lower() not in STOP_WORDS}


def is_found(document: dict[str, str], query: str, fields: list[str]) -> bool:
    """Return whether a document holds one of the words, in a form of its own where stems count."""
    for field in fields:
        held = tokens(document.get(field, ""))
        if field != "exact":
            held = {stem(word) for word in held}
        if held & ({stem(word) for word in tokens(query)} | tokens(query)):
            return True
    return False


def sentence(rng: random.Random, most: int = 6) -> str:
    """Return some words, among noise."""
    words = rng.choices(WORDS, k=rng.randint(1, most)) + rng.choices(NOISE, k=rng.randint(0, 3))
    rng.shuffle(words)
    return " ".join(words)


def documents(count: int = 120) -> list[dict[str, str]]:
    """Return documents of words; some lack a field."""
    rng = random.Random(7)
    return [
        {name: sentence(rng) for name in ("title", "body", "exact") if rng.random() < 0.7}
        for _ in range(count)
    ]


def make(redis: Redis, given: list[dict[str, str]], **options: Any) -> VectorIndex[Any]:
    """Return an index of documents."""
    index: VectorIndex[Any] = VectorIndex(redis.client, "docs", FIELDS, **options)
    redis.do(index.create())
    rows = [
        {**document, "color": ["red", "blue"][i % 2], "n": i} for i, document in enumerate(given)
    ]
    redis.do(index.load(range(len(given)), np.ones((len(given), 2)), rows))
    return index


def ids(result: Any) -> set[int]:
    """Return the ids of rows."""
    return {int(row.id) for row in result.rows}


def test_words_find_what_holds_one_of_them(redis: Redis) -> None:
    given = documents()
    index = make(redis, given)
    rng = random.Random(8)
    hits = 0
    for query in [*WORDS, *(sentence(rng, 3) for _ in range(60))]:
        for fields in (None, ["title"], ["body", "title"]):
            looked = ["title", "body", "exact"] if fields is None else fields
            expected = {i for i, one in enumerate(given) if is_found(one, query, looked)}
            result = redis.do(index.text(query, 500, fields=fields, return_fields=["n"]))
            assert (query, ids(result)) == (query, expected)
            assert result.total == len(result.rows) == len(expected)
            scores = [row.score for row in result.rows]
            assert scores == sorted(scores, reverse=True)
            assert all(row.fields["n"] == int(row.id) for row in result.rows)
            hits += len(expected)
    assert hits > 1000


def test_an_exact_field_knows_no_stems(client: Client) -> None:
    index = VectorIndex(client, "docs", FIELDS)
    index.create()
    index.load(["a", "b"], np.ones((2, 2)), [{"exact": "running"}, {"body": "running"}])
    assert [row.id for row in index.text("runs").rows] == ["b"]
    assert [row.id for row in index.text("runs", fields=["exact"]).rows] == []
    assert {row.id for row in index.text("RUNNING").rows} == {"a", "b"}


@pytest.mark.parametrize(
    ("stored", "asked"),
    [("informed people", "inform"), ("the infants", "infant"), ("nannies", "nanny")],
)
def test_words_that_begin_like_a_number_have_stems_too(
    client: Client, stored: str, asked: str
) -> None:
    index = VectorIndex(client, "docs", FIELDS)
    index.create()
    index.load(["a"], np.ones((1, 2)), [{"body": stored}])
    assert index.text(asked).total == 1


@pytest.mark.parametrize("query", ["_", "_ cats", "cats _ dogs", "snake - _ - case"])
def test_an_underscore_is_a_word_like_others(client: Client, query: str) -> None:
    index = VectorIndex(client, "docs", FIELDS)
    index.create()
    index.load(["a", "b"], np.ones((2, 2)), [{"body": "cats"}, {"body": "snake"}])
    assert index.text(query).total == len({"cats", "snake"} & set(query.split()))


def test_a_filter_and_pages(redis: Redis) -> None:
    given = documents()
    index = make(redis, given)
    red = {i for i in range(len(given)) if i % 2 == 0 and i < 60}
    expected = {i for i in red if is_found(given[i], "cats running", ["title", "body", "exact"])}
    condition = (Tag("color") == "red") & (Numeric("n") < 60)
    whole = redis.do(index.text("cats running", 500, filter=condition))
    assert ids(whole) == expected
    assert len(expected) > 10
    pages = [
        redis.do(index.text("cats running", 4, filter=condition, offset=at)) for at in (0, 4, 8)
    ]
    assert [row.score for page in pages for row in page.rows] == [
        row.score for row in whole.rows[:12]
    ]
    assert {page.total for page in pages} == {len(expected)}
    assert len({row.id for page in pages for row in page.rows}) == 12


@pytest.mark.parametrize("scorer", ["BM25STD", "BM25", "TFIDF", "TFIDF.DOCNORM", "DISMAX"])
def test_scorers_rank_what_is_found(redis: Redis, scorer: str) -> None:
    index = make(redis, [{"body": "cat " * (i + 1) + "word " * (20 - i)} for i in range(20)])
    rows = redis.do(index.text("cats", 20, scorer=scorer)).rows
    scores = [row.score for row in rows]
    assert len(rows) == 20
    assert scores == sorted(scores, reverse=True)
    assert all(isinstance(score, float) and score > 0 for score in scores)
    assert rows[0].id == "19"  # what speaks of nothing else


def test_a_word_that_few_have_counts_more(redis: Redis) -> None:
    index = make(redis, [{"body": "common"}] * 30 + [{"body": "rare"}] + [{"body": "rare common"}])
    rows = redis.do(index.text("common rare", 40)).rows
    assert {row.id for row in rows[:2]} == {"30", "31"}
    assert len(rows) == 32


def test_an_unknown_scorer_is_the_servers_error(redis: Redis) -> None:
    index = make(redis, [{"body": "cat"}])
    with pytest.raises(errors.ReplyError, match=r"(?i)scorer"):
        redis.do(index.text("cat", scorer="NOBODY"))


def test_stop_words_are_the_indexs_own(redis: Redis) -> None:
    given = [{"body": "the cat"}, {"body": "the house"}, {"body": "redis"}]
    index = make(redis, given, stopwords=["redis", "Cat"])
    assert ids(redis.do(index.text("the"))) == {0, 1}
    assert ids(redis.do(index.text("cat house redis"))) == {1}
    for query in ("redis", "REDIS cat", "cat - redis"):
        with pytest.raises(ValueError, match="apart from stop words"):
            redis.do(index.text(query))
    redis.do(index.drop(delete_documents=True))
    index = make(redis, given, stopwords=[])
    for query in ("the", "THE", "as the if"):
        assert ids(redis.do(index.text(query))) == {0, 1}


NOTHING = ["the", "The AND of", "-", "|*|", " . ", "to be or not to be"]


@pytest.mark.parametrize("query", NOTHING)
def test_a_text_without_words_is_refused(query: str) -> None:
    with Client("redis://127.0.0.1:1/0") as client:
        index = VectorIndex(client, "docs", FIELDS)
        with pytest.raises(ValueError, match="no word to search for"):
            index.text(query)
        with pytest.raises(ValueError, match="no word to search for"):
            index.hybrid(query, [1.0, 0.0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"query": ""}, ValueError, "query must not be empty"),
        ({"query": None}, TypeError, "query must be"),
        ({"k": 0}, ValueError, "limit must be|k must be"),
        ({"offset": -1}, ValueError, "offset must be"),
        ({"fields": []}, ValueError, "not Text fields"),
        ({"fields": ["color"]}, ValueError, "not Text fields"),
        ({"fields": ["nowhere"]}, ValueError, "not Text fields"),
        ({"scorer": ""}, ValueError, "scorer"),
        ({"filter": Tag("nowhere") == "x"}, ValueError, "no field 'nowhere'"),
        ({"return_fields": "body"}, TypeError, "return_fields"),
    ],
)
def test_a_bad_argument_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    given: dict[str, Any] = {"query": "cat", **options}
    with Client("redis://127.0.0.1:1/0") as client, pytest.raises(error, match=message):
        VectorIndex(client, "docs", FIELDS).text(**given)


def test_an_index_without_texts_has_none_to_search() -> None:
    with Client("redis://127.0.0.1:1/0") as client, pytest.raises(ValueError, match="Text fields"):
        VectorIndex(client, "docs", [Vector("vec", 2)]).text("cat")


@pytest.mark.parametrize("method", ["text", "query", "hybrid"])
def test_no_fields_may_be_asked_for(redis: Redis, method: str) -> None:
    index = make(redis, [{"body": "cat"}, {"body": "cat"}])
    args: dict[str, tuple[Any, ...]] = {"text": ("cat",), "query": ()}
    args["hybrid"] = ("cat", [1.0, 0.0])
    result = redis.do(getattr(index, method)(*args[method], return_fields=[]))
    assert ids(result) == {0, 1}
    assert [row.fields for row in result.rows] == [{}, {}]


def test_json_documents_are_found_alike(redis: Redis) -> None:
    given = documents(40)
    index = make(redis, given, on="json")
    redis.do(index.wait_until_indexed())
    for query in WORDS:
        expected = {
            i for i, one in enumerate(given) if is_found(one, query, ["title", "body", "exact"])
        }
        result = redis.do(index.text(query, 100))
        assert (query, ids(result)) == (query, expected)
        for row in result.rows:
            assert {k: v for k, v in row.fields.items() if k in given[int(row.id)]} == given[
                int(row.id)
            ]


# -- whatever somebody types ---------------------------------------------------------------------

CHARACTERS = [chr(code) for code in range(1, 0x250)] + list("日本🦜\u200b\u202e\ufeff\u2028\u0661")
SIGNS = list("_'\"\\|-+*%()[]{}~@:;,.<>=$!?/")
PIECES = ["AND", "inf", "-inf", "nan", "1e5", "0x1", "w'a*'", "=>[KNN", "$vector", "@body:", "as"]


def typed(rng: random.Random) -> str:
    """Return what nobody would type, of signs and letters."""
    parts = rng.choices(CHARACTERS + SIGNS * 6 + PIECES * 10, k=rng.randint(1, 12))
    return "".join(parts)


def check_typed(client: Client, count: int, seed: int) -> None:
    index = VectorIndex(client, "docs", FIELDS, stopwords=[])
    index.create()
    index.load(["a"], np.ones((1, 2)), [{"body": "x"}])
    rng = random.Random(seed)
    asked = 0
    for _ in range(count):
        query = typed(rng)
        try:
            index.text(query, 1)
            asked += 1
        except ValueError:
            pass
    assert asked > count / 2


def test_nothing_that_is_typed_is_an_error_of_the_server(client: Client) -> None:
    check_typed(client, 300, 1)


@pytest.mark.long
def test_nothing_of_much_that_is_typed_is_an_error_of_the_server(client: Client) -> None:
    check_typed(client, 20_000, 2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.text(min_size=1, max_size=20))
def test_what_was_stored_is_found_by_itself(client: Client, word: str) -> None:
    # But for control characters and backslashes, which join what stands around them.
    text = re.sub(r"[\x00-\x1f\x7f\\\ud800-\udfff]", "", word)
    words = [part for part in re.split(r"[^\w\x80-\U0010ffff]+", text, flags=re.ASCII) if part]
    if not words or not text.strip() or len(text.encode()) > 100:
        return
    client.call("FLUSHALL")
    index = VectorIndex(
        client, "docs", [Text("exact", nostem=True), Vector("vec", 2)], stopwords=[]
    )
    index.create()
    index.load(["a"], np.ones((1, 2)), [{"exact": text}])
    assert index.text(text).total == 1
