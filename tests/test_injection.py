"""No text means more than itself, wherever text is taken."""

from __future__ import annotations

import functools
import operator
import re
import string
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rawredis_llm import (
    Client,
    EmbeddedServer,
    Filter,
    Geo,
    GeoShape,
    Numeric,
    Tag,
    Text,
    Vector,
    VectorIndex,
    errors,
)
from rawredis_llm.search import aggregate as steps
from rawredis_llm.search.filters import STOP_WORDS

Index = VectorIndex[Client]
ONE = [1.0, 0.0]

tenant = Tag("tenant", case_sensitive=True, separator="\x1f")
label = Tag("label", separator="\x1f")
exact = Tag("exact", case_sensitive=True, separator="\x1f")
body, year = Text("body"), Numeric("year")
place, shape = Geo("place"), GeoShape("shape")
FIELDS = [tenant, label, exact, body, year, place, shape, Vector("vec", 2)]


@pytest.fixture(scope="module")
def index(server: EmbeddedServer) -> Iterator[Index]:
    """Return an index of this module's own."""
    with Client(server.url) as client:
        yield VectorIndex(client, "injection", FIELDS)


@pytest.fixture(autouse=True)
def empty(request: pytest.FixtureRequest) -> None:
    """Give each test that uses the index an empty one."""
    if "index" in request.fixturenames:
        index: Index = request.getfixturevalue("index")
        index.client.call("FLUSHALL")
        index.create()


# -- each text is found by itself ----------------------------------------------------------------

OTHERS = [
    *("é", "e\u0301", "ß", "İ", "日", "א", "\u202e", "ي", "😀", "\U0001f469\u200d\U0001f680"),
    *("\xa0", "\u2028", "\u200b", "\ufeff", "\u3000", "\x85", "\x01", "\x7f", "\t", "\x1b", "“"),
]
POSITIONS = ["{}", "{}x", "x{}", "x{}y", "{}{}"]


def is_tag(text: str) -> bool:
    """Return whether a tag can hold a text and a query can ask for it, by its documentation."""
    if not text or text.strip(" \t\n\v\f\r") != text or {"\0", "\x1f"} & set(text):
        return False
    return not (text.endswith("\\") and re.search(r"[\x01-\x08\x0e-\x1f\x7f]", text))


def each_finds_itself(index: Index, field: Tag, values: list[str]) -> None:
    """Store the values, and look for each in one write: by itself, by all but it, among two."""
    index.load(range(len(values)), [ONE] * len(values), {field.name: values})
    plan = index.plan

    def ask(condition: Filter) -> Any:
        return plan.query(condition, limit=len(values) + 1, return_fields=["year"])

    own = index.client.gather([ask(field == value) for value in values])
    near = index.client.gather(
        [plan.search(ONE, len(values), filter=field == v, return_fields=["year"]) for v in values]
    )
    counts = index.client.gather([plan.count(field != value) for value in values])
    several = index.client.gather([ask(field.one_of([value, "(none)"])) for value in values])
    for i, value in enumerate(values):
        for found in (own[i], near[i], several[i]):
            assert [row.id for row in found.rows] == [str(i)], value
        assert counts[i] == len(values) - 1, value


@pytest.mark.parametrize("where", POSITIONS)
@pytest.mark.parametrize("field", [exact, label], ids=["case", "no case"])
def test_a_tag_with_any_character_is_found_by_itself_alone(
    index: Index, field: Tag, where: str
) -> None:
    known = [where.replace("{}", c) for c in dict.fromkeys([*string.printable, *OTHERS])]
    values = list(filter(is_tag, known))
    if field is label:  # ASCII letters are one, whatever their case
        values = [value for value in values if not re.search("[A-Z]", value)]
    assert len(values) > 70
    each_finds_itself(index, field, values)


@pytest.mark.parametrize("where", POSITIONS)
def test_a_text_with_any_character_is_found_by_its_words_alone(index: Index, where: str) -> None:
    texts = [where.replace("{}", c) for c in (*string.punctuation, *string.ascii_lowercase)]
    texts += [where.replace("{}", c) for c in (*string.digits, *OTHERS[:16], "“")]
    texts = [t for t in texts if "\\" not in t]  # which the server joins words at
    texts = [f"{text} number{i}" for i, text in enumerate(texts)]
    index.load(range(len(texts)), [ONE] * len(texts), {"body": texts})
    plan = index.plan
    asked = [plan.query(body.matches(t), limit=99, return_fields=["year"]) for t in texts]
    asked += [plan.query(body.phrase(t), limit=99, return_fields=["year"]) for t in texts]
    for i, found in enumerate(index.client.gather(asked)):
        assert [row.id for row in found.rows] == [str(i % len(texts))], texts[i % len(texts)]


def words(text: str) -> list[str]:
    """Return the words of a text as the documentation says: ASCII marks but `_` separate them."""
    split = re.split(f"[{re.escape(string.punctuation.replace('_', ''))} ]+", text.lower())
    return [word for word in split if word and word not in STOP_WORDS]


MARKS = st.sampled_from(string.punctuation + ' \\"')
TAGS = st.text(st.characters(codec="utf-8") | MARKS, max_size=40).filter(is_tag)
WORDS = st.sampled_from(["cat", "dog", "the", "12", "inf", "日本", "é", "x_y"])
TEXTS = st.lists(WORDS | st.sampled_from(string.punctuation.replace("\\", "")), max_size=8)


def tags_find_themselves(index: Index, values: list[str]) -> None:
    index.create(exist_ok=True)
    try:
        each_finds_itself(index, exact, values)
    finally:
        index.drop(delete_documents=True)


MEANT: list[tuple[Callable[[str], Filter], Callable[[list[str], list[str]], bool]]] = [
    (body.matches, lambda asked, its: set(asked) <= set(its)),
    (body.phrase, lambda asked, its: f" {' '.join(asked)} " in f" {' '.join(its)} "),
]


def texts_are_found_by_their_words(index: Index, texts: list[str]) -> None:
    """Compare all texts as queries with the model: all words, and all words in this order."""
    index.create(exist_ok=True)
    try:
        index.load(range(len(texts)), [ONE] * len(texts), {"body": texts})
        for method, meant in MEANT:
            asked = [text for text in texts if words(text)]
            if method == body.phrase:  # see test_a_phrase_that_repeats_a_word
                asked = [text for text in asked if len(set(words(text))) == len(words(text))]
            ops = [index.plan.search(ONE, 99, filter=method(t), return_fields=[]) for t in asked]
            for text, found in zip(asked, index.client.gather(ops), strict=True):
                wanted = {str(i) for i, t in enumerate(texts) if meant(words(text), words(t))}
                assert {row.id for row in found.rows} == wanted, text
    finally:
        index.drop(delete_documents=True)


@pytest.fixture(scope="module")
def shelf(server: EmbeddedServer) -> Iterator[Index]:
    """Return an index for hypothesis' many examples, each of which clears up behind itself."""
    with Client(server.url) as client:
        yield VectorIndex(client, "shelf", FIELDS)


MANY_TAGS = st.lists(TAGS, min_size=1, max_size=40, unique=True)
MANY_TEXTS = st.lists(TEXTS.map(" ".join), min_size=1, max_size=30, unique=True)


@given(values=MANY_TAGS)
@example(values=["\\", "a\\", "\\\\", '"', '\\"', "\\a", '"\\', "a\t\\", "😀\\", "\xa0\\"])
@settings(max_examples=30, database=None)
def test_tags_at_random_find_themselves(shelf: Index, values: list[str]) -> None:
    tags_find_themselves(shelf, values)


@given(texts=MANY_TEXTS)
@settings(max_examples=30, database=None)
def test_texts_at_random_are_found_by_their_words(shelf: Index, texts: list[str]) -> None:
    texts_are_found_by_their_words(shelf, texts)


@pytest.mark.long
@given(
    values=st.lists(TAGS, min_size=12, max_size=40, unique=True),
    texts=st.lists(TEXTS.map(" ".join), min_size=8, max_size=20, unique=True),
)
@settings(max_examples=1000, database=None)
def test_twenty_thousand_strings_find_themselves(
    shelf: Index, values: list[str], texts: list[str]
) -> None:
    tags_find_themselves(shelf, values)
    texts_are_found_by_their_words(shelf, texts)


@pytest.mark.xfail(strict=True, reason="the server takes one word for both of a phrase's")
def test_a_phrase_that_repeats_a_word_finds_the_repetition(index: Index) -> None:
    index.load([1, 2], [ONE] * 2, {"body": ["cat dog", "cat cat"]})
    assert rows(index.query(body.phrase("cat cat"), return_fields=["year"])) == ["2"]


# -- the corpus ----------------------------------------------------------------------------------

WRAPPERS = ["{}", "red{}", "{}red", '"{}"', "red {} b"]
PIECES = [
    *("} | @tenant:{b", '"} | @tenant:{"b"} | @label:{"', '"} | *', '\\"} | *', '\\\\"} | *', "\\"),
    *(") | (@tenant:{b}", ")) | ((", "=>[KNN 10 @vec $vector]", "*=>[KNN 9 @vec $vector AS d]"),
    *("$vector", "$p", "$shape", "-@tenant:{a}", "%", "%%b%%", "w'*'", "w'b'", "' | *", "*", "|"),
    *("~", "-", "@tenant:{b}", "ismissing(@tenant)", "[-inf +inf]", "=> {$weight: 0}", '"', "'"),
    *("\r\n$1\r\nb\r\n", "\r\n*1\r\n$8\r\nFLUSHALL\r\n", "+OK\r\n", "PARAMS 2 p b", "LIMIT 0 99"),
    *("x" * 200, "//", "/*", "#", ";", "\t", "\n", "\u2028", "\u201c} | *", "\uff02} | *"),
]
LONGEST = ["x" * 5000, "@tenant:{b} | " * 400, '"' * 4000, "\\" * 4000]
CORPUS = [
    *dict.fromkeys(w.replace("{}", piece) for piece in PIECES for w in WRAPPERS),
    *("AS", "as", "@tenant", "__key", "__distance", "$", "$..*", "b", "1==1", " || 1==1", *LONGEST),
]


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) >= 200


@pytest.fixture(scope="module")
def shared() -> Iterator[Index]:
    """Return an index with documents of two tenants, on a server that others do not empty."""
    with EmbeddedServer() as own, Client(own.url) as client:
        index = VectorIndex(client, "shared", FIELDS)
        index.create()
        values = [text for text in CORPUS if is_tag(text) and len(text.encode()) <= 4096]
        for owner in "ab":
            documents = [
                {"tenant": owner, "label": [v, "red"] if v.lower() != "red" else v, "exact": v}
                | {"body": f"{v} red b", "year": i, "place": (1, 2), "shape": "POINT(1 2)"}
                for i, v in enumerate(values)
            ]
            ids = [f"{owner}{i}" for i in range(len(values))]
            index.load(ids, [ONE] * len(ids), documents)
        yield index


OWN = tenant == "a"
Use = Callable[[Index, str], Any]
CONDITIONS: dict[str, Callable[[str], Filter]] = {
    "==": lambda t: label == t,
    "!=": lambda t: label != t,
    "one_of": lambda t: label.one_of(["none", t]),
    "matches": body.matches,
    "phrase": body.phrase,
    "prefix": body.prefix,
    "suffix": body.suffix,
    "infix": body.infix,
    "wildcard": body.wildcard,
    "fuzzy": lambda t: body.fuzzy(t, 2),
    "number": lambda t: year == t,
    "radius": lambda t: place.within(1, 2, t),  # type: ignore[arg-type]  # as a mistake
    "unit": lambda t: place.within(1, 2, 5, t),
    "shape": shape.within,
    "shape's end": lambda t: shape.intersects(f"POINT(1 2){t}"),
    "shape's number": lambda t: shape.intersects(f"POINT(1 {t})"),
    "field": lambda t: Tag(t) == "b",
}


def owners(result: Any) -> set[str]:
    """Return the tenants whose documents are in a result."""
    if isinstance(result, list):
        return {row.id[0] for row in result if row}
    found = getattr(result, "rows", [])
    return {row.id[0] if hasattr(row, "id") else row.get("tenant", "a") for row in found}


def rows(result: Any) -> list[str]:
    return [row.id for row in result.rows]


CRASHING = ("suffix", "infix", "wildcard")


@pytest.mark.parametrize(
    "place_",
    list(CONDITIONS),
)
def test_no_text_in_a_filter_reaches_another_tenants_documents(shared: Index, place_: str) -> None:
    # Another tenant's document would be the first when sorted downwards.
    last: dict[str, Any] = {"sort_by": "-tenant", "limit": 1, "return_fields": ["tenant"]}
    asked: list[Any] = []
    for text in CORPUS:
        if place_ in CRASHING and len(text) > 1024:
            continue  # see test_a_long_part_of_a_word
        try:
            condition = CONDITIONS[place_](text)
            joined = (OWN & condition, condition & OWN, OWN & ~condition)
            asked += [shared.plan.query(one & (year >= 0), **last) for one in joined]
            either = OWN & (condition | condition)
            asked.append(shared.plan.search(ONE, 999, filter=either, return_fields=["tenant"]))
        except (ValueError, TypeError):
            continue
    for found in shared.client.gather(asked):
        assert {row.fields["tenant"] for row in found.rows} <= {"a"}
        assert owners(found) <= {"a"}


@pytest.mark.parametrize("place_", CRASHING)
def test_a_long_part_of_a_word_is_refused_or_answered(place_: str) -> None:
    with EmbeddedServer() as own, Client(own.url, retry=None) as client:
        index = VectorIndex(client, "docs", FIELDS)
        index.create()
        index.load(["a"], [ONE], {"body": ["zebra"]})
        try:
            condition = CONDITIONS[place_]("x" * 1025)
        except ValueError:
            return
        assert index.count(condition) == 0


@pytest.mark.parametrize("join", [operator.and_, operator.or_])
def test_many_conditions_join(index: Index, join: Callable[[Filter, Filter], Filter]) -> None:
    index.load(["a"], [ONE], {"year": [5]})
    conditions = [year != i for i in range(10, 310)]
    assert index.count(functools.reduce(join, conditions)) == 1


PLACES: dict[str, Use] = {
    "text": lambda i, t: i.text(t, 999, filter=OWN),
    "hybrid": lambda i, t: i.hybrid(t, ONE, 999, filter=OWN),
    "sort_by": lambda i, t: i.query(OWN, sort_by=t),
    "sort_by down": lambda i, t: i.query(OWN, sort_by=f"-{t}"),
    "fields": lambda i, t: i.text("red", 999, filter=OWN, fields=[t]),
    "fields, more": lambda i, t: i.text("red", 999, filter=OWN, fields=["body", t]),
    "return_fields": lambda i, t: i.search(ONE, 999, filter=OWN, return_fields=[t]),
    "return_fields, more": lambda i, t: i.query(OWN, limit=999, return_fields=["year", t, "label"]),
    "get": lambda i, t: i.get([f"a:{t}"]),
    "delete": lambda i, t: i.delete([f"nobody:{t}"]),
    "update": lambda i, t: i.update([f"nobody:{t}"], {"year": [1]}),
    "dialect": lambda i, t: i.query(OWN, dialect=t),  # type: ignore[arg-type]
    "hybrid_policy": lambda i, t: i.search(ONE, filter=OWN, hybrid_policy=t),
    "epsilon": lambda i, t: i.range(ONE, 1, filter=OWN, epsilon=t),  # type: ignore[arg-type]
    "k": lambda i, t: i.search(ONE, t, filter=OWN),  # type: ignore[arg-type]
    "radius": lambda i, t: i.range(ONE, t, filter=OWN),  # type: ignore[arg-type]
    "load": lambda i, t: i.aggregate(steps.load(t), filter=OWN),
    "group_by": lambda i, t: i.aggregate(steps.group_by(t), filter=OWN),
    "reducer": lambda i, t: i.aggregate(steps.group_by(n=steps.total(t)), filter=OWN),
    "reducer's name": lambda i, t: i.aggregate(steps.group_by(**{t: steps.count()}), filter=OWN),
    "order": lambda i, t: i.aggregate(steps.sort_by(t), filter=OWN),
    "order down": lambda i, t: i.aggregate(steps.sort_by(f"-{t}"), filter=OWN),
    "first by": lambda i, t: i.aggregate(
        steps.group_by(n=steps.first_value("year", t)), filter=OWN
    ),
    "apply's name": lambda i, t: i.aggregate(steps.apply(**{t: "@year"}), filter=OWN),
}


@pytest.mark.parametrize(
    "place_",
    list(PLACES),
)
def test_no_text_elsewhere_reaches_another_tenants_documents(shared: Index, place_: str) -> None:
    before = shared.count()
    answered = 0
    for text in CORPUS:
        try:
            result = PLACES[place_](shared, text)
        except (ValueError, TypeError):
            continue
        except errors.ReplyError:  # a step may speak of what an earlier one made, by a name
            assert not place_.startswith("return_fields")
            assert re.fullmatch("-?[A-Za-z_][A-Za-z0-9_]*", text), text
            continue
        answered += 1
        assert owners(result) <= {"a"}, text
    assert shared.count() == before
    assert answered or place_ not in ("text", "hybrid", "return_fields", "get", "delete")


def test_a_returned_field_is_not_called_as(shared: Index) -> None:
    for names in (["year", "AS", "label"], ["as"]):
        with pytest.raises(ValueError, match="reads AS as a word of its own"):
            shared.query(OWN, return_fields=names)


def test_an_unknown_scorer_is_the_servers_to_refuse(shared: Index) -> None:
    for text in CORPUS:
        with pytest.raises((ValueError, errors.ReplyError), match="scorer"):
            shared.text("red", filter=OWN, scorer=text)


@pytest.mark.parametrize("before", [True, False], ids=["before the tenant", "after the tenant"])
def test_no_text_in_an_expression_reaches_another_tenants_documents(
    shared: Index, *, before: bool
) -> None:
    for text in CORPUS:
        try:
            mine, its = '@tenant == "a"', f"@exact == {steps.text(text)}"
        except ValueError:
            continue
        keep = steps.keep(f"{its} && {mine}" if before else f"{mine} && {its}")
        found = shared.aggregate(steps.load("tenant", "exact"), keep).rows
        is_stored = is_tag(text) and len(text.encode()) <= 4096
        assert found == ([{"tenant": "a", "exact": text}] if is_stored else []), text


def test_a_text_that_would_swallow_its_quote_is_refused() -> None:
    for text in ("\\", "a\\", "1 || 1==1\n", "\r"):
        with pytest.raises(ValueError, match="without backslashes"):
            steps.text(text)


def test_any_name_and_prefix_keeps_its_own_documents() -> None:
    with EmbeddedServer() as own, Client(own.url) as client:
        other = VectorIndex(client, "other", FIELDS)
        other.create()
        other.load(["b"], [ONE], {"tenant": ["b"]})
        for text in CORPUS[::2]:
            for given_ in ({"name": text}, {"name": "docs", "prefix": text}):
                try:
                    index = VectorIndex(client, fields=FIELDS, **given_)
                except (ValueError, TypeError):
                    continue
                index.create()
                if not set("\r\n") & set(text):  # see test_a_prefix_may_hold_a_line_break
                    index.check()
                index.load(["a"], [ONE], {"tenant": ["a"]})
                index.alias(f"alias {text}")
                alias = VectorIndex(client, f"alias {text}", FIELDS, prefix=index.prefixes)
                both: list[Any] = [index, alias]
                for one in both:
                    assert [r.fields for r in one.search(ONE).rows] == [{"tenant": "a"}]
                    assert [row.id for row in one.scan()] == ["a"]
                assert rows(other.search(ONE)) == ["b"]
                index.drop_alias(f"alias {text}")
                index.drop(delete_documents=True)
        assert other.count() == 1


@pytest.mark.parametrize("prefix", ["a\n:", "a\r:"])
def test_a_prefix_may_hold_a_line_break(client: Client, prefix: str) -> None:
    try:
        index = VectorIndex(client, "docs", FIELDS, prefix=prefix)
    except ValueError:
        return
    index.create()
    index.create(exist_ok=True)
