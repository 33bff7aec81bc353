"""Filters by LangChain's names: each finds what plain Python says it should."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rawredis_llm import Filter, Numeric, Tag, Text
from rawredis_llm.errors import ReplyError
from rawredis_llm.langchain import RedisFilter, RedisNum, RedisTag, RedisText, RedisVectorStore
from stores import Stores, ids_of

HOLDS: dict[str, dict[str, Any]] = {
    "1": {"kinds": ["food", "fine art"], "year": 1990, "job": "senior software engineer"},
    "2": {"kinds": ["food"], "year": 2000, "job": "chemical engineering"},
    "3": {"kinds": ["Food"], "year": -2.5, "job": "medical doctor"},
    "4": {"kinds": ["a,b", "c|d", "x:y"], "year": 2000.5, "job": "engine driver"},
    "5": {"kinds": ["a"], "year": 0, "job": "driver, senior"},
    "6": {"kinds": ["b"], "job": "software for engines"},
    "7": {"year": 10**15, "job": "imagine"},
    "8": {"kinds": ["日本", "-5", "*", "the"]},
    "9": {"kinds": ['say "hi" {x} | @y:(z) \\ $p', "a b"], "year": 7, "job": "senior engineer"},
    "0": {},
}


def filled(store: RedisVectorStore) -> RedisVectorStore:
    """Return a store that holds the documents above."""
    # First one with all the names, so that they are not added while documents are there.
    store.add_texts([f"text {name}" for name in HOLDS], [*HOLDS.values()], ids=[*HOLDS])
    return store


def found(store: RedisVectorStore, condition: Any) -> set[str]:
    """Return the ids of all documents that match."""
    return ids_of(store.similarity_search("anything", k=50, filter=condition))


def having(name: str, true: Callable[[Any], bool]) -> set[str]:
    """Return the ids of documents that have a value of which something is true."""
    return {one for one, held in HOLDS.items() if name in held and true(held[name])}


ALL = set(HOLDS)
tag, num, job = RedisTag("kinds"), RedisNum("year"), RedisText("job")

CASES: list[tuple[Filter, set[str]]] = [
    (tag == "food", {"1", "2"}),
    (tag == "Food", {"3"}),
    (tag == "fine art", {"1"}),
    (tag == "fine", set()),
    (tag == ["food", "a"], {"1", "2", "5"}),
    (tag == ("a,b",), {"4"}),
    (tag == {"a,b", "b"}, {"4", "6"}),
    (tag != "food", ALL - {"1", "2"}),
    (tag != ["food", "Food"], ALL - {"1", "2", "3"}),
    (tag == "c|d", {"4"}),
    (tag == "x:y", {"4"}),
    (tag == "a b", {"9"}),
    (tag == 'say "hi" {x} | @y:(z) \\ $p', {"9"}),
    (tag == "日本", {"8"}),
    (tag == "-5", {"8"}),
    (tag == "*", {"8"}),
    (tag == "the", {"8"}),
    (tag == "foo*", set()),
    (num == 2000, {"2"}),
    (num == 2000.5, {"4"}),
    (num == -2.5, {"3"}),
    (num == 10**15, {"7"}),
    (num != 2000, ALL - {"2"}),
    (num > 2000, {"4", "7"}),
    (num >= 2000, {"2", "4", "7"}),
    (num < 0, {"3"}),
    (num <= 0, {"3", "5"}),
    ((num >= 0) & (num < 2000), {"1", "5", "9"}),
    (job == "senior software", {"1"}),
    (job == "software senior", set()),
    (job == "Senior", {"1", "5", "9"}),
    (job != "senior", ALL - {"1", "5", "9"}),
    (job % "senior", {"1", "5", "9"}),
    (job % "engineer senior", {"1", "9"}),
    (job % "engine*", {"1", "2", "4", "6", "9"}),
    (job % "*gine", {"4", "7"}),
    (job % "*ngin*", {"1", "2", "4", "6", "9"}),
    (job % "%doktor%", {"3"}),
    (job % "%%doktr%%", {"3"}),
    (job % "%doktr%", set()),
    (job % "engineer|doctor", {"1", "3", "9"}),
    (job % "senior driver | medical*", {"3", "5"}),
    (job % "soft* *gineer", {"1"}),
    ((tag == "food") & (num > 1995), {"2"}),
    ((tag == "food") | (num == 7), {"1", "2", "9"}),
    (~(tag == "food") & (job % "engine*"), {"4", "6", "9"}),
    (~((tag == "food") | (num <= 0)), ALL - {"1", "2", "3", "5"}),
    (~~(tag == "food"), {"1", "2"}),
    ((tag == "food") | (tag == "a") & (num == 5), {"1", "2"}),
    (RedisFilter.tag("kinds") == "food", {"1", "2"}),
    (RedisFilter.num("year") == 7, {"9"}),
    (RedisFilter.text("job") % "doctor", {"3"}),
    (Tag("kinds") == "food", {"1", "2"}),
    (Tag("kinds").one_of(["food", "a"]), {"1", "2", "5"}),
    (Numeric("year").between(0, 7), {"5", "9"}),
    (Text("job").prefix("medi"), {"3"}),
    ((Tag("kinds") == "food") & (num == 1990), {"1"}),
]


def test_every_filter_finds_what_it_says(stores: Stores) -> None:
    store = filled(stores())
    wrong = {str(one): (found(store, one), names) for one, names in CASES}
    assert {name: pair for name, pair in wrong.items() if pair[0] != pair[1]} == {}


async def test_every_filter_finds_the_same_in_asyncio_and_by_diversity(stores: Stores) -> None:
    store = filled(stores())
    for condition, names in CASES:
        documents = await store.asimilarity_search("x", k=50, filter=condition)
        assert ids_of(documents) == names, condition
        diverse = await store.amax_marginal_relevance_search(
            "x", k=50, fetch_k=50, filter=condition
        )
        assert ids_of(diverse) == names, condition


def test_the_nearest_are_among_those_that_match(stores: Stores) -> None:
    store = stores()
    points = [f"1 {i} 0 0 0 0 0 0" for i in range(60)]
    store.add_texts(points, [{"even": i % 2} for i in range(60)], ids=[str(i) for i in range(60)])
    query = "1 0 0 0 0 0 0 0"
    odd = store.similarity_search(query, k=20, filter=RedisNum("even") == 1)
    assert [one.id for one in odd] == [str(i) for i in range(1, 41, 2)]


# -- any filter ----------------------------------------------------------------------------------

Pair = tuple[Filter, set[str]]
LABELS = [*sorted({one for held in HOLDS.values() for one in held.get("kinds", ())}), "none"]
NUMBERS = [*sorted({held["year"] for held in HOLDS.values() if "year" in held}), 5, -1e9]
WORDS = sorted({w for held in HOLDS.values() for w in re.findall(r"\w+", held.get("job", ""))})
WORDS = [word for word in WORDS if word != "for"]  # a stop word, which is not indexed


def _tag(labels: list[str], unlike: bool) -> Pair:
    same = having("kinds", lambda held: bool(set(held) & set(labels)))
    return (tag != labels, ALL - same) if unlike else (tag == labels, same)


def _num(sign: str, value: float) -> Pair:
    compared: dict[str, Pair] = {
        "==": (num == value, having("year", lambda held: bool(held == value))),
        "!=": (num != value, ALL - having("year", lambda held: bool(held == value))),
        "<": (num < value, having("year", lambda held: bool(held < value))),
        "<=": (num <= value, having("year", lambda held: bool(held <= value))),
        ">": (num > value, having("year", lambda held: bool(held > value))),
        ">=": (num >= value, having("year", lambda held: bool(held >= value))),
    }
    return compared[sign]


def _words(held: str) -> list[str]:
    return re.findall(r"\w+", held)


def _text(form: str, word: str) -> Pair:
    part = word[:4]
    forms: dict[str, Pair] = {
        "==": (job == word, having("job", lambda held: word in _words(held))),
        "!=": (job != word, ALL - having("job", lambda held: word in _words(held))),
        "a*": (
            job % f"{part}*",
            having("job", lambda held: any(w.startswith(part) for w in _words(held))),
        ),
        "*a": (
            job % f"*{word[-4:]}",
            having("job", lambda held: any(w.endswith(word[-4:]) for w in _words(held))),
        ),
        "*a*": (
            job % f"*{word[1:4]}*",
            having("job", lambda held: any(word[1:4] in w for w in _words(held))),
        ),
    }
    return forms[form]


LEAVES = (
    st.builds(_tag, st.lists(st.sampled_from(LABELS), min_size=1, max_size=3), st.booleans())
    | st.builds(_num, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), st.sampled_from(NUMBERS))
    # Ends of words are apart: a stem that the server keeps beside a word counts as one.
    | st.builds(_text, st.sampled_from(["==", "!=", "a*", "*a*"]), st.sampled_from(WORDS))
)


def _joined(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    return (
        st.builds(lambda a, b: (a[0] & b[0], a[1] & b[1]), inner, inner)
        | st.builds(lambda a, b: (a[0] | b[0], a[1] | b[1]), inner, inner)
        | st.builds(lambda a: (~a[0], ALL - a[1]), inner)
    )


@given(cases=st.lists(st.recursive(LEAVES, _joined, max_leaves=6), min_size=1, max_size=6))
@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], print_blob=True
)
def test_any_combination_of_filters_finds_what_python_says(
    any_store: RedisVectorStore, cases: list[Pair]
) -> None:
    for condition, names in cases:
        assert found(any_store, condition) == names, condition


def test_negations_among_alternatives_lose_no_document(any_store: RedisVectorStore) -> None:
    neither = ~(num == -2.5) & ~(num == 1990)
    assert found(any_store, ~(num == -2.5) & ((tag == "*") | neither)) == ALL - {"1", "3"}


@pytest.fixture
def any_store(stores: Stores) -> RedisVectorStore:
    """A filled store, one for all of a property's examples."""
    return filled(stores())


# -- values that nobody should be able to put to use ----------------------------------------------

HOSTILE = [
    "a} | @kinds:{b",
    'a"} | @kinds:{"b',
    "a\\",
    '\\"} | @kinds:{"b',
    "$vector",
    "a => [KNN 3 @content_vector $vector]",
    "a|b",
    "{a}",
    "-a",
    "@kinds",
    "*",
    "%a%",
    "(a)",
    "a' b",
    "a;b",
    "w'*'",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_label_means_no_more_than_itself(stores: Stores, value: str) -> None:
    store = stores()
    metadatas = [{"kinds": ["a"]}, {"kinds": ["b"]}, {"kinds": [value]}]
    store.add_texts(["a", "b", "c"], metadatas, ids=["1", "2", "3"])
    assert found(store, RedisTag("kinds") == value) == {"3"}
    assert found(store, RedisTag("kinds") != value) == {"1", "2"}
    assert found(store, RedisTag("kinds") == ["a", value]) == {"1", "3"}


@given(
    label=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
        lambda text: text == text.strip() and text not in ("a", "b")
    )
)
@example(label="\\")
@example(label='"')
@example(label="ǅ")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_label_is_found_and_finds_nothing_else(stores: Stores, label: str) -> None:
    store = stores()
    metadatas = [{"kinds": ["a", label]}, {"kinds": ["b"]}]
    store.add_texts(["a", "b"], metadatas, ids=["1", "2"])
    assert found(store, RedisTag("kinds") == label) == {"1"}
    store.close()


@pytest.mark.parametrize("value", HOSTILE)
def test_a_text_means_no_more_than_its_words(stores: Stores, value: str) -> None:
    store = stores()
    store.add_texts(
        ["x", "y"], [{"job": "harmless", "kinds": ["b"]}, {"job": "b other", "kinds": ["z"]}]
    )
    asks: list[Callable[[], Filter]] = [
        lambda: RedisText("job") == value,
        lambda: RedisText("job") % value,
        lambda: (RedisText("job") == "harmless") & (RedisText("job") == value),
    ]
    for ask in asks:
        try:
            documents = store.similarity_search("x", filter=ask())
        except ValueError:  # no word in it
            continue
        assert all("b other" in one.metadata["job"] for one in documents)


def test_a_field_s_name_cannot_hold_a_query() -> None:
    for name in ("a b", "", "a:[0 1] | @b", "1a", "x}", "ü", "@x", "-x"):
        for kind in (RedisTag, RedisNum, RedisText):
            with pytest.raises(ValueError, match="field"):
                kind(name)


NAN = float("nan")
REFUSED: list[Callable[[], object]] = [
    lambda: tag == [],
    lambda: tag != [],
    lambda: tag == set(),
    lambda: tag == None,  # noqa: E711 - what must not pass
    lambda: tag != None,  # noqa: E711 - what must not pass
    lambda: tag == [None],
    lambda: tag == "",
    lambda: tag == ["a", ""],
    lambda: tag == 5,
    lambda: num == None,  # noqa: E711 - what must not pass
    lambda: num == "5",
    lambda: num == [],
    lambda: num == NAN,
    lambda: num == 2**60,
    lambda: num > "5",  # type: ignore[operator] # pyright: ignore[reportOperatorIssue]
    lambda: job == None,  # noqa: E711 - what must not pass
    lambda: job == "",
    lambda: job == [],
    lambda: job != "",
    lambda: job % "",
    lambda: job % " ",
    lambda: job % "a |",
    lambda: job % "|",
    lambda: job % "*",
    lambda: job % "**",
    lambda: job % "e*",
    lambda: job % None,  # type: ignore[operator] # pyright: ignore[reportOperatorIssue]
    lambda: job % 5,  # type: ignore[operator] # pyright: ignore[reportOperatorIssue]
    lambda: bool(tag == "a"),
    lambda: (tag == "a") and (num == 5),
    lambda: (tag == "a") & "@b:{c}",  # type: ignore[operator] # pyright: ignore[reportOperatorIssue]
    lambda: 1 < num < 5,
]


@pytest.mark.parametrize("ask", REFUSED)
def test_what_is_no_condition_is_refused(ask: Callable[[], object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        ask()


@pytest.mark.parametrize("given", [5, ["@a:{b}"], {"year": 5}, True, object(), RedisTag("kinds")])
def test_what_is_no_filter_is_refused(stores: Stores, given: Any) -> None:
    store = stores()
    for _ in range(2):
        with pytest.raises(TypeError, match="filter"):
            store.similarity_search("x", filter=given)
        with pytest.raises(TypeError, match="filter"):
            store.max_marginal_relevance_search("x", filter=given)
        store.add_texts(["a"])


# -- texts in the server's language, fields that there are not ------------------------------------


def test_a_query_in_the_server_s_language_is_sent_as_it_is(stores: Stores) -> None:
    store = filled(stores())
    assert found(store, "@year:[1990 2000] -@kinds:{fine art}") == {"2"}
    assert found(store, "@kinds:{food} | @year:[7 7]") == {"1", "2", "9"}
    assert found(store, None) == ALL
    with pytest.raises(ReplyError):
        store.similarity_search("x", filter="@year:[")
    with pytest.raises(ValueError, match="filter"):
        store.similarity_search("x", filter=" ")


def test_a_filter_on_what_is_not_indexed_says_so(stores: Stores) -> None:
    store = filled(stores())
    with pytest.raises(ValueError, match="nowhere"):
        store.similarity_search("x", filter=RedisTag("nowhere") == "a")
    with pytest.raises(ValueError, match="TEXT"):
        store.similarity_search("x", filter=RedisTag("job") == "a")
    with pytest.raises(ValueError, match="TAG"):
        store.similarity_search("x", filter=(RedisNum("year") == 5) | (RedisText("kinds") == "a"))


def test_a_filter_on_the_text_itself_looks_at_its_words(stores: Stores) -> None:
    store = stores()
    store.add_texts(["a red car", "a blue car"], [{"content": "green"}, {}], ids=["1", "2"])
    assert found(store, RedisText("content") == "red car") == {"1"}
    assert found(store, RedisText("content") % "car") == {"1", "2"}
    assert found(store, RedisText("content") == "green") == set()


def test_a_filter_is_kept_and_used_again(stores: Stores) -> None:
    store = filled(stores())
    food = RedisTag("kinds") == "food"
    assert {food: "x"}[RedisTag("kinds") == "food"] == "x"
    assert len({RedisTag("kinds"), RedisNum("year"), RedisText("job")}) == 3
    for _ in range(2):
        assert found(store, food) == {"1", "2"}
        assert found(store, food & (num < 1995)) == {"1"}
