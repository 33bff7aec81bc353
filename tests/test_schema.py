"""Schemas: written down, declared to a real server, and compared with what it says of itself."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawredis_llm import (
    Client,
    Geo,
    GeoShape,
    Numeric,
    Schema,
    Tag,
    Text,
    Vector,
    VectorIndex,
    errors,
)
from rawredis_llm.search.fields import Field
from rawredis_llm.search.schema import UNTOLD

if TYPE_CHECKING:
    from conftest import Redis

VEC = Vector("vec", 4)

# -- to_dict and from_dict -----------------------------------------------------------------------

NAMES = st.from_regex(r"[a-z][A-Za-z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: name.upper() not in {"AS", "SORTABLE", "UNF", "NOINDEX", "INDEXMISSING"}
)
FLAG = st.booleans()
COUNT = st.integers(1, 500)
PATH = st.none() | NAMES.map(lambda name: f"$.a.{name}")
SHARED = {"indexmissing": FLAG, "path": PATH}
DTYPES = st.sampled_from(["float32", "float64", "float16", "bfloat16", "int8", "uint8"])
METRIC = st.sampled_from(["cosine", "l2", "ip"])
EPSILON = st.floats(1e-6, 1e6)


def vector(algorithm: str, dtypes: st.SearchStrategy[str], parameters: dict[str, Any]) -> Any:
    """Return a strategy of vectors with any of the algorithm's parameters."""
    known = {"metric": METRIC, "dtype": dtypes, "algorithm": st.just(algorithm), **SHARED}
    return st.builds(
        lambda name, dim, given, chosen: Vector(name, dim, **given, **chosen),
        NAMES,
        COUNT,
        st.fixed_dictionaries(known),
        st.fixed_dictionaries({}, optional=parameters),
    )


GRAPH = dict.fromkeys(("m", "ef_construction", "ef_runtime", "initial_cap"), COUNT)
VAMANA = ("reduce", "graph_max_degree", "search_window_size", "construction_window_size")
COMPRESSION = st.sampled_from(["LVQ8", "LeanVec4x8"])
VECTORS = st.one_of(
    vector("flat", DTYPES, {"initial_cap": COUNT, "block_size": COUNT}),
    vector("hnsw", DTYPES, {**GRAPH, "epsilon": EPSILON}),
    vector(
        "svs-vamana",
        st.sampled_from(["float32", "float16"]),
        {**dict.fromkeys((*VAMANA, "training_threshold"), COUNT)}
        | {"compression": COMPRESSION, "epsilon": EPSILON},
    ),
)
SUFFIXED: dict[str, Any] = {"withsuffixtrie": FLAG, "sortable": FLAG, "indexempty": FLAG, **SHARED}
PHONETIC = st.sampled_from([None, "dm:en", "dm:fr", "dm:pt", "dm:es"])
OTHERS = st.one_of(
    st.builds(Text, NAMES, weight=EPSILON, nostem=FLAG, phonetic=PHONETIC, **SUFFIXED),
    st.builds(
        *(Tag, NAMES), separator=st.sampled_from(',;|"\\ x'), case_sensitive=FLAG, **SUFFIXED
    ),
    st.builds(Numeric, NAMES, sortable=FLAG, **SHARED),
    st.builds(Geo, NAMES, sortable=FLAG, **SHARED),
    st.builds(GeoShape, NAMES, coord_system=st.sampled_from(["flat", "spherical"]), **SHARED),
)
SCHEMAS = st.builds(
    lambda fields, options: Schema(fields, on="json", **options),
    st.tuples(VECTORS, st.lists(OTHERS, max_size=6))
    .map(lambda both: [both[0], *both[1]])
    .filter(lambda fields: len({field.name for field in fields}) == len(fields)),
    st.fixed_dictionaries(
        {},
        optional={
            "language": st.sampled_from(["german", "French"]),
            "stopwords": st.lists(NAMES, unique_by=str.lower),
            "filter_expression": st.just("@year > 1990"),
        },
    ),
)


@given(schema=SCHEMAS)
@settings(max_examples=300, database=None)
def test_a_schema_makes_the_round_trip_through_json(schema: Schema) -> None:
    described = json.loads(json.dumps(schema.to_dict()))
    again = Schema.from_dict(described)
    assert again.to_dict() == schema.to_dict() == described
    assert again.definition(["p:"]) == schema.definition(["p:"])
    assert [repr(f) for f in again.fields.values()] == [repr(f) for f in schema.fields.values()]
    for field in schema.fields.values():
        names = {kind.__name__: kind for kind in (Text, Tag, Numeric, Geo, GeoShape, Vector)}
        assert eval(repr(field), dict(names)).to_dict() == field.to_dict()


def test_an_index_makes_the_round_trip(client: Client) -> None:
    fields = [Tag("color", sortable=True), VEC]
    index = VectorIndex(client, "docs", fields, prefix=["a:", "b:"], stopwords=[], embedder="model")
    described = json.loads(json.dumps(index.to_dict()))
    assert VectorIndex.from_dict(client, described).to_dict() == index.to_dict() == described


VEC_DICT = VEC.to_dict()
BAD: list[tuple[type[Exception], str, Callable[[], object]]] = [
    (ValueError, "type is one of text, tag", lambda: described({"name": "a"})),
    (ValueError, "type is one of text, tag", lambda: described({"name": "a", "type": "bool"})),
    (TypeError, "'nostm'", lambda: described({"name": "a", "type": "text", "nostm": True})),
    (TypeError, "'sortable'", lambda: described({"name": "a", "type": "geoshape", "sortable": 1})),
    (TypeError, "name", lambda: described({"type": "tag"})),
    (TypeError, "unknown", lambda: Schema.from_dict({"fields": [VEC_DICT], "unknown": 1})),
    (TypeError, "m: flat has only", lambda: Vector("v", 2, m=5)),
    (
        TypeError,
        "graph_max_degree: hnsw",
        lambda: Vector("v", 2, algorithm="hnsw", graph_max_degree=5),
    ),
    (ValueError, "m must be", lambda: Vector("v", 2, algorithm="hnsw", m=0)),
    (TypeError, "m must be", lambda: Vector("v", 2, algorithm="hnsw", m="5")),
    (ValueError, "epsilon must be above 0", lambda: Vector("v", 2, algorithm="hnsw", epsilon=0)),
    (ValueError, "epsilon", lambda: Vector("v", 2, algorithm="hnsw", epsilon=float("nan"))),
    (ValueError, "compression", lambda: Vector("v", 2, algorithm="svs-vamana", compression="a b")),
    (ValueError, "svs-vamana holds", lambda: Vector("v", 2, algorithm="svs-vamana", dtype="int8")),
    (ValueError, "metric must be one of", lambda: Vector("v", 2, metric="COSINE")),
    (ValueError, "weight", lambda: Text("t", weight=0)),
    (ValueError, "weight", lambda: Text("t", weight="2")),  # type: ignore[arg-type]
    (ValueError, "phonetic", lambda: Text("t", phonetic="dm:de")),
    (ValueError, "separator", lambda: Tag("t", separator="ab")),
    (ValueError, "coord_system", lambda: GeoShape("g", coord_system="round")),
    (ValueError, "JSON path", lambda: Tag("t", path="a.b")),
    (ValueError, "only JSON documents", lambda: Schema([Tag("t", path="$.a"), VEC])),
    (ValueError, "on must be", lambda: Schema([VEC], on="HASH")),
    (ValueError, "one Vector field, 0", lambda: Schema([Tag("t")])),
    (ValueError, "one Vector field, 2", lambda: Schema([VEC, Vector("w", 2)])),
    (ValueError, "'t' is given twice", lambda: Schema([Tag("t"), Text("t"), VEC])),
    (TypeError, "fields must be a list", lambda: Schema(VEC)),  # type: ignore[arg-type]
    (TypeError, "fields are text, tag", lambda: Schema(["vec"])),  # type: ignore[list-item]
    (TypeError, "stopwords must be a list", lambda: Schema([VEC], stopwords="the")),
    (ValueError, "prefix must not be", lambda: VectorIndex(Client(), "n", [VEC], prefix=[])),
]


def described(field: dict[str, Any]) -> Schema:
    return Schema.from_dict({"fields": [VEC_DICT, field]})


@pytest.mark.parametrize(("error", "message", "build"), BAD)
def test_what_is_no_schema_is_refused(
    error: type[Exception], message: str, build: Callable[[], object]
) -> None:
    with pytest.raises(error, match=message):
        build()


UNCHECKED: dict[str, Callable[[], object]] = {
    "a flag is a text": lambda: Text("t", sortable="yes"),  # type: ignore[arg-type]
    "a flag is a number": lambda: Tag("t", sortable=1),  # type: ignore[arg-type]
    "a flag brings words": lambda: Text("t", nostem="f TAG"),  # type: ignore[arg-type]
    "an endless weight": lambda: Text("t", weight=float("inf")),
    "a NUL separates": lambda: Tag("t", separator="\0"),
    "a line break separates": lambda: Tag("t", separator="\n"),
    "a stop word is a number": lambda: Schema([VEC], stopwords=[5]),  # type: ignore[list-item]
    "the language is a number": lambda: Schema([VEC], language=5),  # type: ignore[arg-type]
    "the filter is a number": lambda: Schema([VEC], filter_expression=5),  # type: ignore[arg-type]
    "no fields": lambda: Schema.from_dict({}),
}


@pytest.mark.parametrize("what", UNCHECKED)
def test_what_the_server_would_refuse_or_change_is_refused(what: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        UNCHECKED[what]()


# -- what the server makes of it -----------------------------------------------------------------


def combined(make: Callable[..., Field], **options: list[Any]) -> list[Field]:
    """Return fields with every combination of options, each of its own name."""
    chosen = itertools.product(*options.values())
    return [
        make(f"{make.__name__.lower()}_{i}", **dict(zip(options, values, strict=True)))
        for i, values in enumerate(chosen)
    ]


BOTH = [False, True]
LENGTHY = {"withsuffixtrie": BOTH, "sortable": BOTH, "indexempty": BOTH, "indexmissing": BOTH}
EVERY: list[Field] = [
    *combined(Text, weight=[1, 2.5], nostem=BOTH, phonetic=[None, "dm:fr"], **LENGTHY),
    *combined(Tag, separator=[",", ";", "\\"], case_sensitive=BOTH, **LENGTHY),
    *combined(Numeric, sortable=BOTH, indexmissing=BOTH),
    *combined(Geo, sortable=BOTH, indexmissing=BOTH),
    *combined(GeoShape, coord_system=["flat", "spherical"], indexmissing=BOTH),
]
VECTORS_2_10 = [
    Vector("vec", 4, metric=metric, algorithm=algorithm, dtype=dtype, indexmissing=missing, **given)  # pyright: ignore[reportArgumentType]
    for metric in ("cosine", "l2", "ip")
    for dtype in ("float32", "float64", "float16", "bfloat16")
    for missing in BOTH
    for algorithm, given in (
        ("flat", {}),
        ("flat", {"initial_cap": 10, "block_size": 5}),
        ("hnsw", {}),
        ("hnsw", {"m": 8, "ef_construction": 50, "ef_runtime": 20, "epsilon": 0.5}),
    )
]
TOLD_BY_DEFAULT = {"m": 16, "ef_construction": 200}


def told(field: dict[str, Any]) -> dict[str, Any]:
    """Return a field as FT.INFO tells it: without what it leaves out, with a graph's defaults."""
    known = {name: value for name, value in field.items() if name not in UNTOLD}
    return (TOLD_BY_DEFAULT | known) if field.get("algorithm") == "hnsw" else known


def reopened(redis: Redis, index: Any) -> None:
    """Check that an index that was just created is found to be what it was declared to be."""
    redis.do(index.check())
    redis.do(index.create(exist_ok=True))
    again = redis.do(VectorIndex.open(redis.client, index.name))
    redis.do(again.check())
    fields = index.schema.to_dict().pop("fields")
    assert [told(f.to_dict()) for f in again.schema.fields.values()] == [told(f) for f in fields]
    expected = {**index.schema.options()}
    if "language" in expected:
        expected["language"] = expected["language"].lower()
    found = again.schema.options()
    for options in (expected, found):
        options["stopwords"] = sorted(options.get("stopwords", ["(default)"]))
    assert found == expected
    assert sorted(again.prefixes) == sorted(index.prefixes)


@pytest.mark.parametrize("on", ["hash", "json"])
def test_every_field_with_every_option_is_created_and_recognised(redis: Redis, on: str) -> None:
    fields: list[Field] = EVERY
    if on == "json":
        fields = [f for f in EVERY if "separator" not in f.to_dict()]
        fields += [Tag("deep", path="$.a.b[*]"), Numeric("other", path="$.n")]
    for start in range(0, len(fields), 60):  # a text field takes one of 128 bits
        index = VectorIndex(redis.client, f"docs{start}", [*fields[start : start + 60], VEC], on=on)
        redis.do(index.create())
        reopened(redis, index)


def test_every_vector_is_created_and_recognised(redis: Redis) -> None:
    for i, field in enumerate(VECTORS_2_10):
        index = VectorIndex(redis.client, f"docs{i}", [field])
        redis.do(index.create())
        reopened(redis, index)


@pytest.mark.parametrize(
    "options",
    [
        {"language": "german"},
        {"language": "French", "stopwords": ["Le", "la"]},
        {"stopwords": []},
        {"stopwords": ["a b", "x-y", "é"]},
        {"filter_expression": '@year > 1990 && @city == "Paris"'},
        {"prefix": ["a:", "b:", "*"]},
        {"on": "json", "language": "chinese"},
    ],
    ids=str,
)
def test_what_else_defines_an_index_is_recognised(redis: Redis, options: dict[str, Any]) -> None:
    fields = [Numeric("year"), Tag("city"), VEC]
    index = VectorIndex(redis.client, "docs", fields, **options)
    redis.do(index.create())
    reopened(redis, index)


@pytest.mark.parametrize(
    "fields",
    [
        [Text("body"), Numeric("weight")],
        [Tag("color"), Numeric("separator"), Geo("nostem")],
    ],
    ids=str,
)
def test_a_field_may_be_called_like_an_option(client: Client, fields: list[Field]) -> None:
    index = VectorIndex(client, "docs", [*fields, VEC])
    index.create()
    index.check()
    index.load(["a"], [[1, 0, 0, 0]])
    assert len(index.search([1, 0, 0, 0]).rows) == 1


@pytest.mark.parametrize("name", ["AS", "as", "sortable", "UNF", "NoIndex", "indexmissing"])
def test_a_word_that_every_field_may_have_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"FT\.CREATE and RETURN have"):
        Numeric(name)


@pytest.mark.parametrize("field", [Text("nostem"), Tag("weight"), Text("SEPARATOR")])
def test_a_text_or_tag_is_not_called_like_an_option(field: Field) -> None:
    with pytest.raises(ValueError, match="an option's"):
        Schema([Tag("color"), field, VEC]).definition(["docs:"])


def test_a_repeated_stop_word_is_one(client: Client) -> None:
    index = VectorIndex(client, "docs", [Text("body"), VEC], stopwords=["the", "a", "a"])
    index.create()
    index.create(exist_ok=True)


# -- differences ---------------------------------------------------------------------------------

HNSW = {"algorithm": "hnsw", "m": 16, "ef_construction": 200}
MANY: dict[str, Field] = {
    "body": Text("body"),
    "city": Tag("city"),
    "year": Numeric("year"),
    "place": Geo("place"),
    "area": GeoShape("area"),
    "vec": Vector("vec", 4, **HNSW),  # type: ignore[arg-type]
}
CHANGED: list[tuple[Field, str]] = [
    (Text("body", weight=2), "'body': weight is 1(.0)?, not 2.0"),
    (Text("body", nostem=True), "'body': nostem is no, not yes"),
    (Text("body", withsuffixtrie=True), "'body': withsuffixtrie is no, not yes"),
    (Text("body", sortable=True), "'body': sortable is no, not yes"),
    (Text("body", indexempty=True), "'body': indexempty is no, not yes"),
    (Text("body", indexmissing=True), "'body': indexmissing is no, not yes"),
    (Tag("body"), "'body': type is text, not tag"),
    (Tag("city", separator=";"), "'city': separator is ,, not ;"),
    (Tag("city", case_sensitive=True), "'city': case_sensitive is no, not yes"),
    (Tag("city", withsuffixtrie=True), "'city': withsuffixtrie is no, not yes"),
    (Tag("city", sortable=True), "'city': sortable is no, not yes"),
    (Tag("city", indexempty=True), "'city': indexempty is no, not yes"),
    (Tag("city", indexmissing=True), "'city': indexmissing is no, not yes"),
    (Text("city"), "'city': type is tag, not text"),
    (Numeric("year", sortable=True), "'year': sortable is no, not yes"),
    (Numeric("year", indexmissing=True), "'year': indexmissing is no, not yes"),
    (Geo("year"), "'year': type is numeric, not geo"),
    (Geo("place", sortable=True), "'place': sortable is no, not yes"),
    (Geo("place", indexmissing=True), "'place': indexmissing is no, not yes"),
    (GeoShape("place"), "'place': type is geo, not geoshape"),
    (GeoShape("area", coord_system="flat"), "'area': coord_system is spherical, not flat"),
    (GeoShape("area", indexmissing=True), "'area': indexmissing is no, not yes"),
    (Vector("vec", 5, **HNSW), "'vec': dim is 4, not 5"),  # type: ignore[arg-type]
    (Vector("vec", 4, metric="ip", **HNSW), "'vec': metric is cosine, not ip"),  # type: ignore[arg-type]
    (Vector("vec", 4, dtype="float64", **HNSW), "'vec': dtype is float32, not float64"),  # type: ignore[arg-type]
    (Vector("vec", 4), "'vec': algorithm is hnsw, not flat"),
    (Vector("vec", 4, algorithm="hnsw", m=8), "'vec': m is 16, not 8"),
    (Vector("vec", 4, algorithm="hnsw", ef_construction=9), "'vec': ef_construction is 200, not 9"),
]
OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"prefix": "x:"}, r"prefixes are \['docs:'\], not \['x:'\]"),
    ({"prefix": ["docs:", "x:"]}, r"prefixes are \['docs:'\], not \['docs:', 'x:'\]"),
    ({"language": "german"}, "language is english, not german"),
    ({"stopwords": []}, r"stop words are None, not \[\]"),
    ({"stopwords": ["the"]}, r"stop words are None, not \['the'\]"),
    ({"filter_expression": "@year > 5"}, "filter is None, not @year > 5"),
    ({"on": "json"}, "documents are hash, not json"),
]


def both_ways(redis: Redis, live: Any, other: Any, message: str) -> None:
    """Check that the difference is told, and that the other way round there is one too."""
    redis.do(live.create())
    for use in (other.check, lambda: other.create(exist_ok=True)):
        with pytest.raises(errors.IndexMismatchError, match=message) as caught:
            redis.do(use())
        assert "docs" in caught.value.message
    redis.do(live.check())
    redis.do(live.drop())
    redis.do(other.create())
    with pytest.raises(errors.IndexMismatchError):
        redis.do(live.check())


@pytest.mark.parametrize(("changed", "message"), CHANGED, ids=[repr(f) for f, _ in CHANGED])
def test_a_field_that_differs_is_named(redis: Redis, changed: Field, message: str) -> None:
    live = VectorIndex(redis.client, "docs", list(MANY.values()))
    fields = list({**MANY, changed.name: changed}.values())
    both_ways(redis, live, VectorIndex(redis.client, "docs", fields), f"field {message}")


@pytest.mark.parametrize("name", [name for name in MANY if name != "vec"])
def test_a_field_too_many_or_too_few_is_named(redis: Redis, name: str) -> None:
    live = VectorIndex(redis.client, "docs", list(MANY.values()))
    fewer = [field for field in MANY.values() if field.name != name]
    other = VectorIndex(redis.client, "docs", fewer)
    both_ways(redis, live, other, f"it has a field '{name}'")
    with pytest.raises(errors.IndexMismatchError, match=f"it has no field '{name}'"):
        redis.do(live.check())


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=[str(o) for o, _ in OPTIONS])
def test_what_else_differs_is_named(redis: Redis, options: dict[str, Any], message: str) -> None:
    live = VectorIndex(redis.client, "docs", list(MANY.values()))
    other = VectorIndex(redis.client, "docs", list(MANY.values()), **options)
    both_ways(redis, live, other, f"its {message}")


def test_a_path_that_differs_is_named(redis: Redis) -> None:
    live = VectorIndex(redis.client, "docs", [Tag("city"), VEC], on="json")
    other = VectorIndex(redis.client, "docs", [Tag("city", path="$.a.city"), VEC], on="json")
    both_ways(redis, live, other, r"field 'city': path is no, not \$.a.city")


def test_a_field_that_is_not_indexed_differs(client: Client) -> None:
    index = VectorIndex(client, "docs", [Numeric("year", sortable=True), VEC])
    declared = VEC.declaration()
    year = ("year", "NUMERIC", "SORTABLE", "NOINDEX")
    client.call("FT.CREATE", "docs", "PREFIX", 1, "docs:", "SCHEMA", *year, *declared)
    with pytest.raises(errors.IndexMismatchError, match="year"):
        index.check()


# -- open ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([Tag("city")], "one Vector field, 0 are given"),
        ([VEC, Vector("other", 2)], "one Vector field, 2 are given"),
    ],
)
def test_an_index_without_one_vector_is_not_opened(
    redis: Redis, fields: list[Field], message: str
) -> None:
    declared = [part for field in fields for part in field.declaration()]
    redis.do(redis.client.call("FT.CREATE", "docs", "PREFIX", 1, "docs:", "SCHEMA", *declared))
    with pytest.raises(ValueError, match=message):
        redis.do(VectorIndex.open(redis.client, "docs"))


def test_an_index_whose_fields_have_other_names_is_not_opened(redis: Redis) -> None:
    declared = ("a", "AS", "b", "TAG", *VEC.declaration())
    redis.do(redis.client.call("FT.CREATE", "docs", "PREFIX", 1, "docs:", "SCHEMA", *declared))
    with pytest.raises(
        ValueError, match=r"only JSON documents have a path|a JSON path begins with"
    ):
        redis.do(VectorIndex.open(redis.client, "docs"))


def test_an_unknown_name_is_said_to_be_none(redis: Redis) -> None:
    with pytest.raises(errors.IndexNotFoundError):
        redis.do(VectorIndex.open(redis.client, "nowhere"))


def test_an_index_is_opened_by_an_alias_too(redis: Redis) -> None:
    index = VectorIndex(redis.client, "docs", list(MANY.values()), embedder="model")
    redis.do(index.create())
    redis.do(index.alias("current"))
    again = redis.do(VectorIndex.open(redis.client, "current"))
    assert (again.name, again.prefixes, again.embedder) == ("docs", ["docs:"], "model")
    assert again.schema.to_dict() == index.schema.to_dict()
    redis.do(again.check())
