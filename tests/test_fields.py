"""Every condition of every field, on a real server, against a model in Python."""

from __future__ import annotations

import copy
import enum
import math
import pickle
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from rawredis_llm import (
    Client,
    EmbeddedServer,
    Filter,
    Geo,
    GeoShape,
    Numeric,
    Raw,
    Tag,
    Text,
    Vector,
    VectorIndex,
)
from rawredis_llm.search.filters import STOP_WORDS

Index = VectorIndex[Client]
Document = dict[str, Any]
Model = Callable[[Document], bool]
Rectangle = tuple[float, float, float, float]

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens: any I/O raises ConnectError."""

body = Text("body", nostem=True, indexempty=True, indexmissing=True)
label = Tag("label", indexempty=True, indexmissing=True)
year = Numeric("year", indexmissing=True)
place = Geo("place", indexmissing=True)
plane = GeoShape("plane", coord_system="flat", indexmissing=True)
globe = GeoShape("globe", indexmissing=True)
FIELDS = [body, label, year, place, plane, globe]
ONE = [1.0, 0.0]
COUNT = 80

# -- the documents -------------------------------------------------------------------------------

WORDS = (
    "cat cats catalogue concat scatter dog dogma underdog 12 1234 inf info 1e5 foo_bar"  # noqa: SIM905 - easier to read
    " bar_foo naïve native 日本語 本日 zebra".split()
)


def rectangle(rng: random.Random, size: float) -> Rectangle:
    """Return (left, bottom, right, top), a point as often as not."""
    left, bottom = rng.uniform(-9, 9 - size), rng.uniform(-9, 9 - size)
    width, height = (rng.uniform(1, size), rng.uniform(1, size)) if rng.random() < 0.5 else (0, 0)
    return left, bottom, left + width, bottom + height


def wkt(shape: Rectangle) -> str:
    """Return a rectangle, or the point that it is, as WKT."""
    left, bottom, right, top = shape
    if left == right:
        return f"POINT({left!r} {bottom!r})"
    corners = [(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)]
    return f"POLYGON(({', '.join(f'{x!r} {y!r}' for x, y in corners)}))"


def documents() -> list[Document]:
    """Return documents of which some lack each field; the shapes are rectangles yet."""
    rng = random.Random(7)
    found = []
    for _ in range(COUNT):
        whole = {
            "body": " ".join(rng.choices(WORDS, k=3)) if rng.random() < 0.85 else "",
            "label": rng.choice(["red", "Blue", "a b", ""]),
            "year": rng.choice([-1.5, 0, 7, 1990, 2024]),
            "place": (rng.uniform(-179, 179), rng.uniform(-60, 60)),
            "plane": rectangle(rng, 4),
            "globe": rectangle(rng, 4),
        }
        found.append({name: value for name, value in whole.items() if rng.random() < 0.8})
    return found


DOCUMENTS = documents()


@pytest.fixture(scope="module")
def index(server: EmbeddedServer) -> Iterator[Index]:
    """Return an index of the documents."""
    with Client(server.url) as client:
        index = VectorIndex(client, "fields", [*FIELDS, Vector("vec", 2)])
        yield index


@pytest.fixture(autouse=True)
def filled(request: pytest.FixtureRequest) -> None:
    """Fill the index anew for a test that uses it, since others empty the database."""
    if "index" in request.fixturenames:
        index: Index = request.getfixturevalue("index")
        index.client.call("FLUSHALL")
        index.create()
        stored = [
            {n: wkt(v) if n in ("plane", "globe") else v for n, v in document.items()}
            for document in DOCUMENTS
        ]
        index.load(range(COUNT), [ONE] * COUNT, stored)


def found(index: Index, condition: Filter) -> set[str]:
    """Return the ids of the documents that match, the same in each kind of query."""
    near = index.search(ONE, COUNT, filter=condition, return_fields=["year"])
    plain = index.query(condition, limit=COUNT, return_fields=["year"])
    ids = {row.id for row in near.rows}
    assert {row.id for row in plain.rows} == ids
    assert index.count(condition) == plain.total == len(ids)
    return ids


# -- the model -----------------------------------------------------------------------------------


def words(document: Document) -> list[str]:
    """Return the indexed words of a document."""
    split = re.split(r"[^\w]+", document.get("body", "").lower())
    return [word for word in split if word and word not in STOP_WORDS]


def some_word(is_it: Callable[[str], bool]) -> Model:
    return lambda document: any(map(is_it, words(document)))


def edits(a: str, b: str) -> int:
    """Return the distance of Levenshtein."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


METRES = {"m": 1.0, "km": 1000.0, "mi": 1609.34, "ft": 0.3048}


def metres(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Return the great circle's length between two places, by the haversine."""
    (lon, lat), (east, north) = (tuple(map(math.radians, where)) for where in (a, b))
    half = math.sin((north - lat) / 2) ** 2
    half += math.cos(lat) * math.cos(north) * math.sin((east - lon) / 2) ** 2
    return 2 * 6372797.560856 * math.asin(math.sqrt(half))


def inside(small: Rectangle, large: Rectangle) -> bool:
    return (
        large[0] <= small[0]
        and large[1] <= small[1]
        and small[2] <= large[2]
        and small[3] <= large[3]
    )


def touching(a: Rectangle, b: Rectangle) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


RELATIONS: dict[str, Callable[[Rectangle, Rectangle], bool]] = {
    "within": inside,
    "contains": lambda its, given: inside(given, its),
    "intersects": touching,
    "disjoint": lambda its, given: not touching(its, given),
}


def shaped(field: GeoShape, how: str, shape: Rectangle) -> tuple[Filter, Model]:
    """Return a condition on shapes and its model."""
    condition: Filter = getattr(field, how)(wkt(shape))
    name, is_so = field.name, RELATIONS[how]
    return condition, lambda d: name in d and is_so(d[name], shape)


def inner(field: GeoShape, at: int) -> Rectangle:
    """Return a rectangle within that of a document, so that something contains it."""
    large = [
        d[field.name] for d in DOCUMENTS if field.name in d and d[field.name][0] < d[field.name][2]
    ]
    left, bottom, right, top = large[at]
    return left + 0.2, bottom + 0.2, right - 0.2, top - 0.2


QUERIED: list[Rectangle] = [
    (-5, -5, 4, 6),
    (0.5, -8, 8.5, -0.5),
    (3, 3, 3, 3),
    (-9.5, -9.5, 9.5, 9.5),
]
SHAPED = [
    shaped(field, how, shape)
    for field in (plane, globe)
    for how in RELATIONS
    for shape in (*QUERIED, inner(field, 0), inner(field, 3))
]

PLAIN_CONDITIONS: list[tuple[Filter, Model]] = [
    (body.suffix("cat"), some_word(lambda w: w.endswith("cat"))),
    (body.suffix("34"), some_word(lambda w: w.endswith("34"))),
    (body.suffix("_bar"), some_word(lambda w: w.endswith("_bar"))),
    (body.suffix("本語"), some_word(lambda w: w.endswith("本語"))),
    (body.infix("cat"), some_word(lambda w: "cat" in w)),
    (body.infix("DOG"), some_word(lambda w: "dog" in w)),
    (body.infix("nf"), some_word(lambda w: "nf" in w)),
    (body.infix("o_b"), some_word(lambda w: "o_b" in w)),
    (body.prefix("cat"), some_word(lambda w: w.startswith("cat"))),
    (body.prefix("in"), some_word(lambda w: w.startswith("in"))),
    (body.wildcard("cat*"), some_word(lambda w: w.startswith("cat"))),
    (body.wildcard("?at?"), some_word(lambda w: bool(re.fullmatch(".at.", w)))),
    (body.wildcard("na?*ve"), some_word(lambda w: bool(re.fullmatch("na..*ve", w)))),
    (body.wildcard("*og*"), some_word(lambda w: "og" in w)),
    (body.wildcard("1??4"), some_word(lambda w: bool(re.fullmatch("1..4", w)))),
    (body.wildcard("cats"), some_word(lambda w: w == "cats")),
    (body.fuzzy("cat"), some_word(lambda w: edits(w, "cat") <= 1)),
    (body.fuzzy("kats", 2), some_word(lambda w: edits(w, "kats") <= 2)),
    (body.fuzzy("dogmatx", 3), some_word(lambda w: edits(w, "dogmatx") <= 3)),
    (body.fuzzy("naive"), some_word(lambda w: edits(w, "naive") <= 1)),
    (body.fuzzy("inf"), some_word(lambda w: edits(w, "inf") <= 1)),
    (body.matches("zebra the cats"), lambda d: {"zebra", "cats"} <= set(words(d))),
    (body.phrase("cat dog"), lambda d: "cat dog" in f" {' '.join(words(d))} "),
    (body.is_empty(), lambda d: d.get("body") == ""),
    (body.missing(), lambda d: "body" not in d),
    (label == "BLUE", lambda d: d.get("label") == "Blue"),
    (label.one_of(["a b", "none"]), lambda d: d.get("label") == "a b"),
    (label.is_empty(), lambda d: d.get("label") == ""),
    (label.missing(), lambda d: "label" not in d),
    (year.missing(), lambda d: "year" not in d),
    (year != 0, lambda d: d.get("year") != 0),
    (year.between(-2, 7), lambda d: -2 <= d.get("year", 99) <= 7),
    (place.missing(), lambda d: "place" not in d),
    (plane.missing(), lambda d: "plane" not in d),
    (globe.missing(), lambda d: "globe" not in d),
    (
        Raw("@year:[0 7] | @label:{red}"),
        lambda d: d.get("year") in (0, 7) or d.get("label") == "red",
    ),
    (place.within(13, 5, 4000), lambda d: "place" in d and metres((13, 5), d["place"]) < 4e6),
]
CONDITIONS = [*PLAIN_CONDITIONS, *SHAPED]


def wanted(model: Model) -> set[str]:
    return {str(i) for i, document in enumerate(DOCUMENTS) if model(document)}


@pytest.mark.parametrize(("condition", "model"), CONDITIONS, ids=[str(f) for f, _ in CONDITIONS])
def test_a_condition_finds_what_it_says(index: Index, condition: Filter, model: Model) -> None:
    assert found(index, condition) == wanted(model)
    assert found(index, ~condition) == wanted(lambda d: not model(d))


def test_every_kind_of_condition_finds_some_and_leaves_some() -> None:
    kinds: dict[str, list[int]] = {}
    for condition, model in CONDITIONS:
        kind = re.sub(r"(\(['\"].*['\"]\)?)?\)*$", "", str(condition))
        kinds.setdefault(kind, []).append(len(wanted(model)))
    assert {kind for kind, counts in kinds.items() if not any(counts)} == set()
    assert all(min(counts) < COUNT for counts in kinds.values())


@pytest.mark.parametrize("unit", METRES)
def test_places_within_a_radius_are_those_of_the_haversine(index: Index, unit: str) -> None:
    rng = random.Random(unit)
    some = 0
    for _ in range(60):
        centre = (rng.uniform(-180, 180), rng.uniform(-60, 60))
        away = sorted(metres(centre, d["place"]) for d in DOCUMENTS if "place" in d)
        at = rng.randrange(12)
        limit = (away[at] + away[at + 1]) / 2  # between two of them, so on nobody's edge
        if not away[at] * 1.01 < limit < away[at + 1] / 1.01 or limit > 3e6:
            continue
        near = wanted(lambda d: "place" in d and metres(centre, d["place"]) < limit)  # noqa: B023
        assert found(index, place.within(*centre, limit / METRES[unit], unit)) == near
        some += 1
    assert some >= 5


@pytest.mark.parametrize(
    "given", [(1e-7, -1e-7, 1e-3), (5e-324, 0.0, 1.0), (-180, 85.05112878, 1e6), (0, 0, 1e300)]
)
def test_any_place_and_radius_can_be_asked_for(
    index: Index, given: tuple[float, float, float]
) -> None:
    everywhere = {str(i) for i, d in enumerate(DOCUMENTS) if "place" in d}
    assert found(index, place.within(*given)) == (everywhere if given[2] > 1e5 else set())


def test_any_tree_of_conditions_means_what_pythons_operators_mean(index: Index) -> None:
    rng = random.Random(3)

    def tree(depth: int) -> tuple[Filter, Model]:
        if depth == 0 or rng.random() < 0.2:
            return rng.choice(PLAIN_CONDITIONS)
        (a, is_a), (b, is_b) = tree(depth - 1), tree(depth - 1)
        which = rng.randrange(3)
        if which == 0:
            return a & b, lambda d: is_a(d) and is_b(d)
        if which == 1:
            return a | b, lambda d: is_a(d) or is_b(d)
        return ~a, lambda d: not is_a(d)

    for _ in range(150):
        condition, model = tree(4)
        assert found(index, condition) == wanted(model), condition


def test_a_shape_joins_other_conditions(index: Index) -> None:
    for shape, has_shape in SHAPED:
        for other, has_other in PLAIN_CONDITIONS[::5]:
            both = found(index, shape & other)
            assert both == wanted(lambda d: has_shape(d) and has_other(d))  # noqa: B023
            either = found(index, other | shape)
            assert either == wanted(lambda d: has_shape(d) or has_other(d))  # noqa: B023
            assert found(index, ~(other | shape)) == wanted(lambda _: True) - either


def test_shapes_of_several_conditions_are_all_sent(index: Index) -> None:
    (small, is_small), (large, is_large), (right, is_right) = SHAPED[0], SHAPED[6], SHAPED[19]
    joined = small | large | small | right | ~small
    assert {text for _, text in joined.params} == {wkt(QUERIED[0]), wkt(QUERIED[1])}
    assert len(joined.params) == 2
    either = found(index, small | large | right)
    assert either == wanted(lambda d: is_small(d) or is_large(d) or is_right(d))
    assert found(index, joined) == wanted(lambda _: True)


LOST = "RediSearch 2.10 loses documents where a shape's condition meets another in an `and`"


def test_two_shapes_are_both_asked_for(index: Index) -> None:
    left, right = shaped(plane, "intersects", QUERIED[0]), shaped(plane, "disjoint", QUERIED[1])
    both = wanted(lambda d: left[1](d) and right[1](d))
    assert found(index, ~(~left[0] | ~right[0])) == both  # the same, and the server knows it
    assert found(index, left[0] & right[0]) == both


def test_a_shape_that_is_not_wanted_joins_other_conditions(index: Index) -> None:
    for shape, has_shape in SHAPED:
        for other, has_other in PLAIN_CONDITIONS:
            rest = wanted(lambda d: has_other(d) and not has_shape(d))  # noqa: B023
            assert found(index, ~(~other | shape)) == rest
            assert found(index, other & ~shape) == rest


# -- filters as values ---------------------------------------------------------------------------

NAMES = {kind.__name__: kind for kind in (Filter, Geo, GeoShape, Numeric, Tag, Text, Vector)} | {
    "Raw": Raw
}
VALUES = [condition for condition, _ in CONDITIONS] + [
    place.within(1, -2.5, 3, "mi"),
    year == 1e22,
    (year > 5) & ~(label == "it's \"\n\\"),
    (plane.within(wkt(QUERIED[0])) | globe.missing()) & Raw("@year:[1 2]"),
]


DISTANT = [condition for condition in VALUES if "fuzzy" in str(condition)][1:3]


@pytest.mark.parametrize("condition", VALUES, ids=str)
def test_a_filter_is_a_value(condition: Filter) -> None:
    others = [
        pickle.loads(pickle.dumps(condition)),
        copy.copy(condition),
        copy.deepcopy(condition),
    ]
    if condition not in DISTANT:  # see the test below
        others.append(eval(repr(condition), dict(NAMES)))
    for other in others:
        assert other == condition
        assert hash(other) == hash(condition)
        assert repr(other) == repr(condition)
        assert (other.fields, other.params) == (condition.fields, condition.params)
    assert [one for one in VALUES if one == condition] == [condition]
    assert condition != ~condition


@pytest.mark.parametrize("condition", DISTANT, ids=lambda f: f.query)
def test_a_fuzzy_condition_is_shown_with_its_distance(condition: Filter) -> None:
    assert eval(repr(condition), dict(NAMES)) == condition


@pytest.mark.parametrize("condition", [year <= math.inf, year.between(-math.inf, 5)], ids=str)
def test_an_infinite_bound_is_shown_as_python(condition: Filter) -> None:
    assert eval(repr(condition), dict(NAMES)) == condition


def test_a_missing_vector_is_shown_as_python() -> None:
    condition = Vector("vec", 2, indexmissing=True).missing()
    assert eval(repr(condition), dict(NAMES)) == condition


class Word(str, enum.Enum):
    """Texts by name, whose str() is not the text."""

    CAT = "cat"


@pytest.mark.parametrize("method", ["prefix", "suffix", "infix", "wildcard", "fuzzy", "matches"])
def test_a_text_may_be_of_a_kind_of_its_own(method: str) -> None:
    plain: Filter = getattr(body, method)("cat")
    own: Filter = getattr(body, method)(Word.CAT)
    assert own.query == plain.query
    assert repr(own) == repr(plain)


# -- what is refused, before anything is sent ----------------------------------------------------

HUGE = 2**53 + 1
POLYGON = wkt(QUERIED[0])
REFUSED: list[tuple[type[Exception], str, Callable[[], object]]] = [
    *(
        (error, message, lambda method=method, value=value: getattr(body, method)(value))
        for method in ("suffix", "infix", "wildcard", "fuzzy", "prefix")
        for error, message, value in (
            (ValueError, f"a {method} is one word", ""),
            (ValueError, f"a {method} is one word", "x"),
            (ValueError, f"a {method} is one word", "two words"),
            (ValueError, f"a {method} is one word", "x*'} | *"),
            (ValueError, f"a {method} is one word", "it's"),
        )
    ),
    (ValueError, "wildcard is one word", lambda: body.wildcard("**")),
    (ValueError, "wildcard is one word", lambda: body.wildcard("?a*")),
    (ValueError, "suffix is one word", lambda: body.suffix("ca?")),
    (ValueError, "distance must be 1, 2 or 3", lambda: body.fuzzy("word", 0)),
    (ValueError, "distance must be 1, 2 or 3", lambda: body.fuzzy("word", 4)),
    (ValueError, "distance must be 1, 2 or 3", lambda: body.fuzzy("word", distance=True)),
    (ValueError, "unit must be m, km, mi or ft", lambda: place.within(0, 0, 1, "yd")),
    (ValueError, "unit must be m, km, mi or ft", lambda: place.within(0, 0, 1, "km] | *")),
    (ValueError, "radius must be above 0", lambda: place.within(0, 0, 0)),
    (ValueError, "radius must be above 0", lambda: place.within(0, 0, -1)),
    (ValueError, "radius must be above 0", lambda: place.within(0, 0, math.inf)),
    (ValueError, "NaN", lambda: place.within(0, 0, math.nan)),
    (ValueError, "NaN", lambda: place.within(math.nan, 0, 1)),
    (ValueError, "NaN", lambda: place.within(0, float(np.float32(math.nan)), 1)),
    (ValueError, "doubles", lambda: place.within(0, 0, HUGE)),
    (ValueError, "no .longitude, latitude", lambda: place.within(180.1, 0, 1)),
    (ValueError, "no .longitude, latitude", lambda: place.within(0, 85.06, 1)),
    (ValueError, "no .longitude, latitude", lambda: place.within(math.inf, 0, 1)),
    (TypeError, "takes a number", lambda: place.within("0", 0, 1)),  # type: ignore[arg-type]
    (TypeError, "takes a number", lambda: place.within(0, 0, "1 km]")),  # type: ignore[arg-type]
    (TypeError, "takes a number", lambda: place.within(0, 0, radius=True)),
    (TypeError, "takes a number", lambda: year.between(0, None)),  # type: ignore[arg-type]
    (ValueError, "doubles", lambda: year.between(-HUGE, 0)),
    (ValueError, "NaN", lambda: year.between(math.nan, 0)),
    (ValueError, "WKT|POINT", lambda: plane.within("")),
    (ValueError, "POINT", lambda: plane.within("CIRCLE(1 2)")),
    (ValueError, "POINT", lambda: plane.contains("POINT(1 2) POINT(1 2)")),
    (ValueError, "POINT", lambda: plane.contains("POINT(1)")),
    (ValueError, "POINT", lambda: plane.disjoint("POINT(nan 2)")),
    (ValueError, "POINT", lambda: globe.intersects("POLYGON((0 0, 0 9, 9 9, 0 0)")),
    (ValueError, "POINT", lambda: globe.intersects(f"{POLYGON}] | *")),
    (ValueError, "POINT", lambda: globe.intersects(None)),  # type: ignore[arg-type]
    (ValueError, "Raw", lambda: Raw("")),
    (ValueError, "Raw", lambda: Raw(" \n")),
    (ValueError, "Raw", lambda: Raw(None)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("error", "message", "write"), REFUSED)
def test_what_cannot_be_meant_is_refused(
    error: type[Exception], message: str, write: Callable[[], object]
) -> None:
    with pytest.raises(error, match=message):
        write()


PLAIN = [Text("body"), Tag("label"), Numeric("year"), Geo("place"), GeoShape("plane")]
UNFIT: list[tuple[str, Filter]] = [
    ("'body' is not declared indexmissing=True", body.missing()),
    ("'label' is not declared indexmissing=True", label.missing()),
    ("'year' is not declared indexmissing=True", year.missing()),
    ("'place' is not declared indexmissing=True", place.missing()),
    ("'plane' is not declared indexmissing=True", plane.missing()),
    ("'vec' is not declared indexmissing=True", Vector("vec", 2).missing()),
    ("'body' is not declared indexempty=True", body.is_empty()),
    ("'label' is not declared indexempty=True", label.is_empty()),
    ("no field 'globe', only body, label", globe.missing()),
    ("no field 'globe', only body, label", globe.within(POLYGON)),
    ("no field 'nobody', only body, label", Text("nobody").infix("cat")),
    ("'label' is TAG, not TEXT", Text("label").fuzzy("red")),
    ("'label' is TAG, not GEO", Geo("label").within(0, 0, 1)),
    ("'place' is GEO, not GEOSHAPE", GeoShape("place").within(POLYGON)),
    ("'plane' is GEOSHAPE, not GEO", Geo("plane").within(0, 0, 1)),
    ("'vec' is VECTOR, not NUMERIC", Numeric("vec") == 1),
    ("'year' is NUMERIC, not TEXT", (Tag("label") == "x") & ~(Text("year").suffix("99"))),
]
USES: dict[str, Callable[[Any, Filter], object]] = {
    "count": lambda i, f: i.count(f),
    "search": lambda i, f: i.search(ONE, filter=f),
    "search_many": lambda i, f: i.search_many([ONE], filter=f),
    "range": lambda i, f: i.range(ONE, 1, filter=f),
    "query": lambda i, f: i.query(f),
    "text": lambda i, f: i.text("cat", filter=f),
    "hybrid": lambda i, f: i.hybrid("cat", ONE, filter=f),
    "mmr": lambda i, f: i.mmr(ONE, filter=f),
    "aggregate": lambda i, f: i.aggregate(filter=f),
    "scan": lambda i, f: list(i.scan(f)),
    "delete_where": lambda i, f: i.delete_where(f),
    "update_where": lambda i, f: i.update_where(f, {"year": 1}),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("message", "condition"), UNFIT)
def test_a_filter_that_the_index_cannot_answer_is_refused(
    use: str, message: str, condition: Filter
) -> None:
    with Client(NOBODY) as client, pytest.raises(ValueError, match=message):
        USES[use](VectorIndex(client, "docs", [*PLAIN, Vector("vec", 2)]), condition)


# -- what the server does otherwise than the words say -------------------------------------------

STEMMED = [
    (Text("body").suffix("run"), False),
    (Text("body").wildcard("?run"), False),
    (Text("body").fuzzy("rub", 2), False),
    (Text("body").infix("run"), True),
]


@pytest.mark.parametrize(("condition", "match"), STEMMED, ids=[str(f) for f, _ in STEMMED])
def test_a_stem_is_no_word_of_the_document(
    request: pytest.FixtureRequest, client: Client, condition: Filter, match: bool
) -> None:
    if not match:
        reason = "the server keeps the stem, `+run`, among the words of `running`"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    index = VectorIndex(client, "docs", [Text("body"), Vector("vec", 2)])
    index.create()
    index.load(["running"], [ONE], {"body": ["running"]})
    assert index.count(condition) == match


@pytest.mark.xfail(strict=True, reason="the server takes 200 words for a part of one, silently")
@pytest.mark.parametrize("method", ["prefix", "infix", "wildcard"])
def test_a_part_of_many_words_is_found_in_all_of_them_or_marked_as_partial(
    client: Client, method: str
) -> None:
    index = VectorIndex(client, "docs", [Text("body"), Vector("vec", 2)])
    index.create()
    index.load(range(300), [ONE] * 300, {"body": [f"word{i}" for i in range(300)]})
    given = {"prefix": "word", "infix": "ord", "wildcard": "word*"}[method]
    result = index.query(getattr(Text("body"), method)(given), limit=300, return_fields=["body"])
    assert result.total == 300 or result.partial


BAD_SHAPES = [
    *("POINT(e e)", "POINT(1e 2)", "POINT(- 2)", "POINT(1.2.3 4)", "POINT(1e400 2)"),
    *("POINT(\u0661 \u0662)", "POINT(1\u00a02)", "point(1 2)", " POINT(1 2)"),
    "POLYGON((0 0, 0 0, 0 0, 0 0))",
    "POLYGON((0 0, 9 9, 9 0, 0 9, 0 0))",
]


@pytest.mark.parametrize("shape", BAD_SHAPES)
def test_a_shape_is_refused_or_found(client: Client, shape: str) -> None:
    index = VectorIndex(client, "docs", [GeoShape("plane", coord_system="flat"), Vector("vec", 2)])
    index.create()
    try:
        index.load(["a"], [ONE], {"plane": [shape]})
    except ValueError:
        return
    assert index.count(GeoShape("plane").intersects(shape)) == 1


@pytest.mark.parametrize(
    "query",
    [
        "@n:[(5 +inf]",
        "(a|b) c",
        r"@t:{a\)b}",
        '@t:{"a)b"}',
        '"a)b"',
        r"a\) b",
        "@t:{x} (y)",
        '@t:{"(" | "}"} (y)',
    ],
)
def test_raw_text_whose_brackets_match_is_sent_as_it_is(query: str) -> None:
    assert Raw(query).query == f"({query})"
