"""Filters: the query text of each operator, and that no value ever means more than itself."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from rawredis_llm import (
    Client,
    EmbeddedServer,
    Filter,
    Numeric,
    Tag,
    Text,
    Vector,
    VectorIndex,
)

color, exact = Tag("color"), Tag("exact", case_sensitive=True)
year, body = Numeric("year"), Text("body")

# -- what is written -----------------------------------------------------------------------------

WRITTEN: list[tuple[Filter, str]] = [
    (color == "red", '@color:{"red"}'),
    (color != "red", '(-@color:{"red"})'),
    (color.one_of(["red", "blue"]), '@color:{"red" | "blue"}'),
    (color.one_of(iter(["red"])), '@color:{"red"}'),
    (color == 'say "hi" \\ {}', r'@color:{"say \"hi\" \\ {}"}'),
    (year == 5, "@year:[5 5]"),
    (year != 5, "(-@year:[5 5])"),
    (year > 5, "@year:[(5 +inf]"),
    (year >= 5, "@year:[5 +inf]"),
    (year < 5, "@year:[-inf (5]"),
    (year <= 5, "@year:[-inf 5]"),
    (5 < year, "@year:[(5 +inf]"),  # noqa: SIM300 - turned round by Python
    (year.between(-1, 2.5), "@year:[-1 2.5]"),
    (year > 0.1, "@year:[(0.1 +inf]"),
    (year > 1e22, "@year:[(1e+22 +inf]"),
    (year <= math.inf, "@year:[-inf inf]"),
    (year >= -math.inf, "@year:[-inf +inf]"),
    (year == np.int64(7), "@year:[7 7]"),
    (year == np.float32(0.5), "@year:[0.5 0.5]"),
    (year == 2**53, "@year:[9007199254740992 9007199254740992]"),
    (body.matches("hello, world!"), '@body:("hello" "world")'),
    (body.matches("The cat, is it IN?"), '@body:("cat")'),
    (body.phrase("the cat is in"), '@body:("cat")'),
    (body.phrase("hello, world!"), '@body:("hello world")'),
    (body.prefix("hel"), "@body:(hel*)"),
    (body.matches("foo_bar é日本"), '@body:("foo_bar" "é日本")'),
    ((color == "a") & (year > 1), '(@color:{"a"} @year:[(1 +inf])'),
    ((color == "a") | (year > 1), '(@color:{"a"} | @year:[(1 +inf])'),
    (~(color == "a"), '(-@color:{"a"})'),
    (
        (color == "a") | (color == "b") & (year > 1),
        '(@color:{"a"} | (@color:{"b"} @year:[(1 +inf]))',
    ),
    (
        ((color == "a") | (color == "b")) & (year > 1),
        '((@color:{"a"} | @color:{"b"}) @year:[(1 +inf])',
    ),
    (~((color == "a") | (year > 1)), '(-(@color:{"a"} | @year:[(1 +inf]))'),
]


@pytest.mark.parametrize(("condition", "query"), WRITTEN, ids=[query for _, query in WRITTEN])
def test_each_operator_has_its_query_text(condition: Filter, query: str) -> None:
    assert condition.query == query
    names = {"Tag": Tag, "Numeric": Numeric, "Text": Text, "inf": math.inf}
    assert eval(repr(condition), names) == condition


@pytest.mark.parametrize(
    ("condition", "shown"),
    [
        (color == "red", "(Tag('color') == 'red')"),
        (color != 'a "b"', """~(Tag('color') == 'a "b"')"""),
        (color.one_of(["red", "it's"]), """Tag('color').one_of(['red', "it's"])"""),
        (year >= np.float32(0.5), "(Numeric('year') >= 0.5)"),
        (5 < year, "(Numeric('year') > 5)"),  # noqa: SIM300 - turned round by Python
        (year.between(1, 2), "Numeric('year').between(1, 2)"),
        (body.phrase("a b"), "Text('body').phrase('a b')"),
        ((color == "a") & (year > 1), "((Tag('color') == 'a') & (Numeric('year') > 1))"),
        (~((color == "a") | (year > 1)), "~((Tag('color') == 'a') | (Numeric('year') > 1))"),
    ],
    ids=str,
)
def test_a_filter_is_shown_as_it_is_written(condition: Filter, shown: str) -> None:
    assert repr(condition) == str(condition) == shown


def test_filters_are_equal_by_what_they_say() -> None:
    assert (color == "red") == (Tag("color") == "red")
    assert {color == "red", Tag("color") == "red", color == "blue"} == {
        color == "blue",
        color == "red",
    }
    assert hash((color == "a") & (year > 1)) == hash((color == "a") & (year > 1))
    assert ((color == "red") == (color == "blue")) is False
    assert ((color == "red") == '@color:{"red"}') is False


def test_a_filter_has_no_truth() -> None:
    red = color == "red"
    mistakes: list[Callable[[], object]] = [
        lambda: bool(red),
        lambda: red and (year > 1),
        lambda: red or (year > 1),
        lambda: not red,
        lambda: 1 < year < 5,
    ]
    for mistake in mistakes:
        with pytest.raises(TypeError, match="&"):
            mistake()


@pytest.mark.parametrize("other", [None, "@a:{b}", True, color])
def test_a_filter_joins_filters_only(other: Any) -> None:
    with pytest.raises(TypeError):
        _ = (color == "red") & other
    with pytest.raises(TypeError):
        _ = other | (color == "red")


NAN: Any = np.float32(math.nan)
REFUSED: list[tuple[type[Exception], str, Callable[[], object]]] = [
    (TypeError, "'color' takes text", lambda: color == 5),
    (TypeError, "'color' takes text", lambda: color == None),  # noqa: E711 - what must not pass
    (TypeError, "'color' takes text", lambda: color == b"red"),
    (TypeError, "'color' takes text", lambda: color == ["red"]),
    (TypeError, "'color' takes text", lambda: color == Tag("color")),
    (TypeError, "'color' takes text", lambda: color.one_of(["red", 5])),  # type: ignore[list-item]
    (TypeError, "one_of takes a list", lambda: color.one_of("red")),
    (ValueError, "no value is given", lambda: color.one_of([])),
    (ValueError, "must not be empty", lambda: color == ""),
    (ValueError, "must not be empty", lambda: color != ""),
    (ValueError, "white space", lambda: color == " red"),
    (ValueError, "white space", lambda: color == "red\n"),
    (ValueError, "NUL", lambda: color == "r\0d"),
    (ValueError, "4096", lambda: color == "é" * 2049),
    (ValueError, "control characters may not end", lambda: color == "a\x01b\\"),
    (TypeError, "'year' takes a number", lambda: year > "5"),  # type: ignore[operator]
    (TypeError, "'year' takes a number", lambda: year == None),  # noqa: E711 - as above
    (TypeError, "'year' takes a number", lambda: year == True),  # noqa: E712 - as above
    (TypeError, "'year' takes a number", lambda: year == 1j),
    (TypeError, "'year' takes a number", lambda: year == np.bool_(True)),  # noqa: FBT003 - as above
    (TypeError, "'year' takes a number", lambda: year.between(1, "2")),  # type: ignore[arg-type]
    (TypeError, "'year' takes a number", lambda: year == "1] @owner:{b}"),
    (ValueError, "NaN", lambda: year > NAN),
    (ValueError, "NaN", lambda: year.between(0, NAN)),
    (ValueError, "doubles", lambda: year == 2**53 + 1),
    (ValueError, "doubles", lambda: year < -(2**53) - 1),
    (ValueError, "doubles", lambda: year > 10**400),
    (ValueError, "no word", lambda: body.matches("")),
    (ValueError, "no word", lambda: body.matches(" -- !")),
    (ValueError, "no word", lambda: body.phrase('"*')),
    (TypeError, "'body' takes text", lambda: body.matches(None)),  # type: ignore[arg-type]
    # An index may have other stop words, so these are filters; they have no query of the default.
    (ValueError, "stop words", lambda: body.matches("is it in the").query),
    (ValueError, "stop words", lambda: (body.phrase("The") & (year > 1)).query),
    (ValueError, "body", lambda: body.prefix("a")),
    (ValueError, "prefix is one word", lambda: body.prefix("x")),
    (ValueError, "prefix is one word", lambda: body.prefix("two words")),
    (ValueError, "prefix is one word", lambda: body.prefix("he*")),
    (ValueError, "prefix is one word", lambda: body.prefix(" he")),
]


@pytest.mark.parametrize(("error", "message", "write"), REFUSED)
def test_what_cannot_be_meant_is_refused(
    error: type[Exception], message: str, write: Callable[[], object]
) -> None:
    with pytest.raises(error, match=message):
        write()


# -- what is found -------------------------------------------------------------------------------

Index = VectorIndex[Client]
ONE = [[1.0, 0.0]]


@pytest.fixture(scope="module")
def index(server: EmbeddedServer) -> Iterator[Index]:
    """Return an index of this module's own, by a sync RESP3 client."""
    with Client(server.url) as client:
        fields = [color, exact, Tag("tenant", case_sensitive=True), year, body, Vector("vec", 2)]
        yield VectorIndex(client, "filters", fields)


@pytest.fixture(autouse=True)
def empty(request: pytest.FixtureRequest) -> None:
    """Give each test that uses the index an empty one."""
    if "index" in request.fixturenames:
        index: Index = request.getfixturevalue("index")
        index.client.call("FLUSHALL")
        index.create()


def found(index: Index, condition: Filter) -> set[str]:
    """Return the ids of the documents that match, by KNN (which has PARAMS) and by count."""
    rows = index.search(ONE[0], 100, filter=condition, return_fields=[]).rows
    assert index.count(condition) == len(rows)
    return {row.id for row in rows}


def load(index: Index, name: str, values: list[Any]) -> None:
    """Store one document per value; its id is the value's position."""
    index.load(range(len(values)), ONE * len(values), {name: values})


# Any text; more often than chance has it, of the characters that mean something to a query.
TEXT = st.text(st.characters(codec="utf-8") | st.sampled_from(string.punctuation + ' \\"'))


def is_tag(text: str) -> bool:
    """Return whether a tag can hold a text, and a query of several tags can ask for it."""
    whole = text.strip(" \t\n\v\f\r") == text != "" and not {"\0", ","} & set(text)
    return whole and not (text.endswith("\\") and CONTROL.search(text))


CONTROL = re.compile("[\x01-\x08\x0e-\x1f\x7f]")
TAGS = TEXT.filter(is_tag)
SERVED = settings(deadline=None, database=None, max_examples=300)


@pytest.fixture(scope="module")
def shelf(server: EmbeddedServer) -> Iterator[Index]:
    """Return an index for hypothesis' many examples, each of which clears up behind itself."""
    with Client(server.url) as client:
        yield VectorIndex(client, "shelf", [exact, year, body, Vector("vec", 2)])


@given(values=st.lists(TAGS, min_size=1, max_size=8, unique=True))
@example(values=["\\", "a\\", "a\t\\", "\\\\", '"', '\\"', "\\a", '"\\'])
@example(values=["$vector", "*", "|", "é", "e\u0301", "É", "\x85", "\ufeff"])
@example(values=["x" * 4096, "x" * 4095, "😀" * 1024])
@SERVED
def test_a_tag_equals_itself_and_nothing_else(shelf: Index, values: list[str]) -> None:
    shelf.create(exist_ok=True)
    try:
        load(shelf, "exact", list(values))
        for i, value in enumerate(values):
            assert found(shelf, exact == value) == {str(i)}, value
        assert found(shelf, exact.one_of(values)) == {str(i) for i in range(len(values))}
        assert found(shelf, exact != values[0]) == {str(i) for i in range(1, len(values))}
    finally:
        shelf.drop(delete_documents=True)


@given(
    numbers=st.lists(
        st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53),
        min_size=1,
        max_size=8,
        unique=True,
    ),
    bounds=st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)),
)
@SERVED
def test_numbers_compare_as_pythons_do(
    shelf: Index, numbers: list[float], bounds: tuple[float, float]
) -> None:
    shelf.create(exist_ok=True)
    try:
        load(shelf, "year", numbers)
        for low in (*bounds, numbers[0]):
            for condition, wanted in (
                (year > low, [n > low for n in numbers]),
                (year >= low, [n >= low for n in numbers]),
                (year < low, [n < low for n in numbers]),
                (year <= low, [n <= low for n in numbers]),
                (year == low, [n == low for n in numbers]),
                (year != low, [n != low for n in numbers]),
                (year.between(low, bounds[1]), [low <= n <= bounds[1] for n in numbers]),
            ):
                assert found(shelf, condition) == {str(i) for i, yes in enumerate(wanted) if yes}
    finally:
        shelf.drop(delete_documents=True)


@given(text=TEXT)
@SERVED
def test_a_text_is_found_by_its_own_words(shelf: Index, text: str) -> None:
    # Where a document is indexed, a backslash or a control character joins what stands around it.
    assume(not re.search(r"[\x00-\x08\x0a-\x1f\x7f\\]", text))
    assume(len(text.encode()) <= 128)  # longer words are cut
    text = text.lower()  # see test_a_word_that_looks_like_a_number_is_a_word
    text = f"zebra {text} zebra"  # so that there is a word that is no stop word
    shelf.create(exist_ok=True)
    try:
        shelf.load(["own", "other"], ONE * 2, {"body": [text, "hyena"]})
        for condition in (body.matches(text), body.phrase(text), body.matches("zebra")):
            rows = {row.id for row in shelf.search(ONE[0], filter=condition).rows}
            assert rows == {"own"}
    finally:
        shelf.drop(delete_documents=True)


@pytest.mark.parametrize("where", ["{}x", "x{}", "x{}x", "{}{}", "{}"])
def test_every_printable_character_stands_for_itself_in_a_tag(index: Index, where: str) -> None:
    values = [where.replace("{}", character) for character in string.printable]
    values = [value for value in values if value.strip() == value and "," not in value]
    load(index, "exact", list(values))
    for i, value in enumerate(values):
        assert found(index, exact == value) == {str(i)}, value
    for character in " \t\n\v\f\r":
        if where == "x{}x":
            assert f"x{character}x" in values
        else:
            with pytest.raises(ValueError, match="white space"):
                _ = exact == where.replace("{}", character)


def test_a_tag_folds_case_only_where_told_so(index: Index) -> None:
    index.load(["a", "b"], ONE * 2, {"color": ["Red", "red"], "exact": ["Red", "red"]})
    assert found(index, color == "RED") == {"a", "b"}
    assert found(index, exact == "red") == {"b"}
    assert found(index, exact == "RED") == set()


def test_each_of_several_labels_is_found(index: Index) -> None:
    index.load(["a", "b"], ONE * 2, {"exact": [["x y", "z"], ["x", "y z"]]})
    assert found(index, exact == "x y") == {"a"}
    assert found(index, exact == "z") == {"a"}
    assert found(index, exact == "x") == {"b"}
    assert found(index, exact.one_of(["z", "y z"])) == {"a", "b"}


def test_precedence_is_pythons(index: Index) -> None:
    index.load(
        range(8),
        ONE * 8,
        {
            "color": ["ab"[i & 1] for i in range(8)],
            "exact": ["cd"[i >> 1 & 1] for i in range(8)],
            "year": [i >> 2 for i in range(8)],
        },
    )
    a, c, y = color == "a", exact == "c", year == 1
    cases: list[tuple[Filter, Callable[[bool, bool, bool], bool]]] = [
        (a | c & y, lambda a, c, y: a or (c and y)),
        ((a | c) & y, lambda a, c, y: (a or c) and y),
        (a & c | y, lambda a, c, y: (a and c) or y),
        (a & (c | y), lambda a, c, y: a and (c or y)),
        (~a & c, lambda a, c, _: not a and c),
        (~(a & c), lambda a, c, _: not (a and c)),
        (~(a | c) | y, lambda a, c, y: not (a or c) or y),
        (~~a & ~y, lambda a, _, y: a and not y),
        (~a | ~c | ~y, lambda a, c, y: not a or not c or not y),
        (~(~a & ~(c | ~y)), lambda a, c, y: not (not a and not (c or not y))),
    ]
    for condition, meant in cases:
        wanted = {str(i) for i in range(8) if meant(not i & 1, not i >> 1 & 1, bool(i >> 2))}
        assert found(index, condition) == wanted, condition


WORDS = ["the cat sat", "cat the 12 in inf nan", "naïve 日本語 don't foo_bar", 'CAT-dog; "cow"']


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        (body.matches("cat"), {"0", "1", "3"}),
        (body.matches("sat cat"), {"0"}),
        (body.matches("CAT (sat)"), {"0"}),
        (body.phrase("cat sat"), {"0"}),
        (body.phrase("sat cat"), set()),
        (body.phrase("cat dog"), {"3"}),
        (body.phrase("cat-dog"), {"3"}),
        (body.matches("12"), {"1"}),
        (body.matches("inf nan"), {"1"}),
        (body.matches("don't"), {"2"}),
        (body.matches("naïve"), {"2"}),
        (body.matches("日本語"), {"2"}),
        (body.prefix("ca"), {"0", "1", "3"}),
        (body.prefix("日本"), {"2"}),
        (body.prefix("foo_"), {"2"}),
        (body.prefix("12"), {"1"}),
        (body.prefix("inf"), {"1"}),
        (body.matches("ca"), set()),
        (body.matches("the cat is"), {"0", "1", "3"}),
        (body.phrase("the cat sat"), {"0"}),
        (body.phrase("cats"), set()),
    ],
    ids=str,
)
def test_words_are_found_as_the_server_splits_them(
    index: Index, condition: Filter, wanted: set[str]
) -> None:
    load(index, "body", list(WORDS))
    assert found(index, condition) == wanted


def test_words_mean_the_same_in_a_count_and_in_a_search(index: Index) -> None:
    load(index, "body", list(WORDS))
    condition = body.matches("cats")
    assert index.count(condition) == len(index.search(ONE[0], filter=condition).rows)


@pytest.mark.parametrize("word", ["INF", "Inf", "1E5"])
def test_a_word_that_looks_like_a_number_is_a_word(index: Index, word: str) -> None:
    load(index, "body", [f"zebra {word}"])
    assert found(index, body.phrase(word)) == {"0"}
    assert found(index, body.matches(word)) == {"0"}


@pytest.mark.parametrize("prefix", ["in", "to", "for"])
def test_a_stop_word_may_begin_others(index: Index, prefix: str) -> None:
    load(index, "body", ["india", "total", "forest"])
    assert len(found(index, body.prefix(prefix))) == 1


# -- injection -----------------------------------------------------------------------------------

CORPUS = [
    *r"""
red} | @tenant:{b
red"} | @tenant:{"b
"} | *
"} | @tenant:{*} | @color:{"
"
""
\"
\"} | *
\\"} | *
\} | *
\}
*
**
%%
%b%
w'*'
w'b'
(
)
)) | ((
-
-@tenant:{a}
~
|
| *
red | b
red|b
@x:{y}
@tenant:{b}
@tenant:{b} | @tenant:{a}
@year:[-inf +inf]
[
]
{
}
{}
$v
$vector
$ef
=>[KNN 10 @vec $vector]
*=>[KNN 10 @vec $vector AS d]
x"}=>[KNN 9 @vec $vector]//
=> {$weight: 0}
x'}
red LIMIT 0 9
ismissing(@tenant)
;
#
--
/*
b
tenant b
red
""".strip().split("\n"),
    "\u201c} | *",
    "\uff02} | *",
    "red\n| *",
    "red\t*",
]


def tenants(index: Index) -> None:
    """Store what each tenant has: every text of the corpus, in all fields, and simple words."""
    columns: dict[str, list[Any]] = {
        "color": [[text, "red"] if text != "red" else "red" for text in CORPUS],
        "body": CORPUS,
        "year": list(range(len(CORPUS))),
    }
    for tenant in ("a", "b"):
        names = [f"{tenant}{i}" for i in range(len(CORPUS))]
        index.load(names, ONE * len(CORPUS), {"tenant": [tenant] * len(CORPUS), **columns})


def of_words(write: Callable[[str], Filter], text: str) -> list[Filter]:
    """Return the filter of a text's words, nothing if it has none and is refused."""
    try:
        condition = write(text)
        assert condition.query
    except ValueError:
        return []
    return [condition]


@pytest.mark.parametrize("text", CORPUS)
def test_no_text_reaches_another_tenants_documents(index: Index, text: str) -> None:
    tenants(index)
    own = Tag("tenant", case_sensitive=True) == "a"
    conditions = [color == text, color != text, color.one_of(["none", text]), color.one_of([text])]
    for write in (body.matches, body.phrase, body.prefix):
        conditions += of_words(write, text)
    for condition in conditions:
        for joined in (own & condition, condition & own, own & ~condition):
            assert all(row.startswith("a") for row in found(index, joined)), joined
        either = own & (condition | (color == "nowhere"))
        assert found(index, either) == found(index, own & condition)
    mine = {f"a{i}" for i, label in enumerate(CORPUS) if text in {label, "red"}}
    assert found(index, own & (color == text)) == mine
    assert found(index, own & (color != text)) == {f"a{i}" for i in range(len(CORPUS))} - mine


@pytest.mark.parametrize("text", ["\\", "\\\\", "C:\\", '"\\', '\\"\\'])
@pytest.mark.parametrize(
    "join",
    [
        lambda tag, own: own & tag,
        lambda tag, own: tag & own,
        lambda tag, own: (tag | (color == "nowhere")) & own,
    ],
    ids=["last", "first", "in a group"],
)
def test_a_tag_may_end_in_a_backslash(
    index: Index, join: Callable[[Filter, Filter], Filter], text: str
) -> None:
    own = Tag("tenant", case_sensitive=True) == "a"
    index.load(["a", "b"], ONE * 2, {"tenant": ["a", "b"], "color": [text, text]})
    assert found(index, join(color == text, own)) == {"a"}


@pytest.mark.parametrize("text", CORPUS)
def test_a_tenants_name_is_itself_whatever_it_says(index: Index, text: str) -> None:
    tenant = Tag("tenant", case_sensitive=True)
    index.load(["own", "other"], ONE * 2, {"tenant": [text, "someone else"]})
    assert found(index, tenant == text) == {"own"}
    assert found(index, ~(tenant == text)) == {"other"}
