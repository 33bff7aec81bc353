"""Aggregations against a Python model of the same documents."""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from counting import cost
from rawredis_llm import Client, Numeric, Tag, Text, Vector, VectorIndex
from rawredis_llm.search.aggregate import (
    Reducer,
    Step,
    apply,
    avg,
    count,
    count_distinct,
    first_value,
    group_by,
    keep,
    limit,
    load,
    maximum,
    minimum,
    quantile,
    random_sample,
    sort_by,
    stddev,
    text,
    to_list,
    total,
)

if TYPE_CHECKING:
    from conftest import Redis

FIELDS = (
    Tag("color"),
    Tag("size", sortable=True),
    Numeric("price", sortable=True),
    Numeric("stock"),
    Text("body"),
    Vector("vec", 2),
)
ALL = load("color", "size", "price", "stock", "body")


def documents(size: int = 90) -> list[dict[str, Any]]:
    """Return documents; all have a price and a body, some no color, size or stock."""
    rng = random.Random(4)
    found = []
    for i in range(size):
        document: dict[str, Any] = {"price": rng.choice([i, i + 0.25, -i]), "body": f"text {i}"}
        if rng.random() < 0.8:
            document["color"] = rng.choice(["red", "green", "blue"])
        if rng.random() < 0.8:
            document["size"] = rng.choice(["s", "m"])
        if rng.random() < 0.7:
            document["stock"] = rng.randint(0, 9)
        found.append(document)
    return found


def make(redis: Redis, given: Sequence[dict[str, Any]], **options: Any) -> VectorIndex[Any]:
    """Return an index of documents."""
    index: VectorIndex[Any] = VectorIndex(redis.client, "docs", FIELDS, **options)
    redis.do(index.create())
    redis.do(index.load(range(len(given)), np.ones((len(given), 2)), given))
    if index.schema.json:
        redis.do(index.wait_until_indexed())
    return index


def plain(rows: Sequence[dict[str, Any]]) -> list[tuple[tuple[str, Any], ...]]:
    """Return rows without an order, for comparing; a row as its pairs."""
    return sorted((tuple(sorted(row.items())) for row in rows), key=repr)


def groups(
    given: Sequence[dict[str, Any]], names: Sequence[str]
) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Return documents by the values of fields, None where there is none."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for document in given:
        found[tuple(document.get(name) for name in names)].append(document)
    return found


def values(documents: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """Return the values of a field that there are."""
    return [document[name] for document in documents if name in document]


def near(number: float) -> Any:
    """Return what equals a number to the 12 digits that the server writes."""
    return pytest.approx(number, rel=1e-9, abs=1e-9)


def middle(numbers: list[float]) -> Any:
    """Return what lies about the middle of numbers: the server's quantiles are estimates."""
    order = sorted(numbers)
    low, high = order[int(0.4 * (len(order) - 1))], order[math.ceil(0.6 * (len(order) - 1))]
    return pytest.approx((low + high) / 2, abs=(high - low) / 2 + 1e-9)


REDUCERS: list[tuple[Reducer, Callable[[list[dict[str, Any]]], Any]]] = [
    (count(), len),
    (count_distinct("color"), lambda d: len(set(values(d, "color")))),
    (count_distinct("price"), lambda d: len(set(values(d, "price")))),
    (total("price"), lambda d: near(sum(values(d, "price")))),
    (total("stock"), lambda d: sum(values(d, "stock"))),
    (minimum("price"), lambda d: min(values(d, "price"))),
    (maximum("price"), lambda d: max(values(d, "price"))),
    (minimum("stock"), lambda d: min(values(d, "stock"), default=0)),
    (maximum("stock"), lambda d: max(values(d, "stock"), default=0)),
    (avg("price"), lambda d: near(statistics.fmean(values(d, "price")))),
    (
        stddev("price"),
        lambda d: near(statistics.stdev(values(d, "price")) if len(d) > 1 else 0),
    ),
    (quantile("price", 0.5), lambda d: middle(values(d, "price"))),
    (quantile("price", 0), lambda d: min(values(d, "price"))),
    (quantile("price", 1), lambda d: max(values(d, "price"))),
]


@pytest.mark.parametrize("names", [[], ["color"], ["size"], ["color", "size"], ["price"]])
def test_groups_are_reduced(redis: Redis, names: list[str]) -> None:
    given = documents()
    index = make(redis, given)
    reducers = {f"r{i}": reducer for i, (reducer, _) in enumerate(REDUCERS)}
    result = redis.do(index.aggregate(ALL, group_by(*names, **reducers)))
    found = {tuple(row[name] for name in names): row for row in result.rows}
    expected = groups(given, names)
    assert found.keys() == expected.keys()
    assert len(result.rows) == len(expected)
    assert (result.partial, result.warnings) == (False, [])
    for key, members in expected.items():
        row = found[key]
        assert set(row) == {*names, *reducers}
        for i, (reducer, model) in enumerate(REDUCERS):
            assert (key, reducer.args, row[f"r{i}"]) == (key, reducer.args, model(members))
            assert type(row[f"r{i}"]) in (int, float)


@pytest.mark.xfail(strict=True, reason="RediSearch 2.10 says 77 of 1,000 numbers")
@pytest.mark.parametrize("size", [90, 2000])
def test_an_approximate_count_is_near_the_exact_one(redis: Redis, size: int) -> None:
    given = [{"price": i, "body": f"text {i}"} for i in range(size)]
    index = make(redis, given)
    reducers = {name: count_distinct(name, approximate=True) for name in ("price", "body")}
    [row] = redis.do(index.aggregate(ALL, group_by(**reducers))).rows
    assert row["price"] == pytest.approx(size, rel=0.2)
    assert row["body"] == pytest.approx(size, rel=0.2)


@pytest.mark.xfail(
    strict=True, reason="the server counts documents without the number as 0 in their mean"
)
def test_a_mean_is_of_the_numbers_there_are(redis: Redis) -> None:
    given = documents()
    [row] = redis.do(make(redis, given).aggregate(ALL, group_by(mean=avg("stock")))).rows
    assert row["mean"] == near(statistics.fmean(values(given, "stock")))


def test_lists_firsts_and_samples(redis: Redis) -> None:
    given = documents()
    index = make(redis, given)
    reducers = {
        "all": to_list("body"),
        "colors": to_list("color"),
        "low": first_value("body", by="price"),
        "high": first_value("body", by="-price"),
        "any": first_value("color"),
        "some": random_sample("body", 5),
        "every": random_sample("body", 1000),
    }
    for row in redis.do(index.aggregate(ALL, group_by("size", **reducers))).rows:
        members = groups(given, ["size"])[(row["size"],)]
        bodies = values(members, "body")
        by_price = sorted(members, key=lambda one: one["price"])
        assert sorted(row["all"]) == sorted(bodies)
        assert sorted(row["colors"]) == sorted(set(values(members, "color")))
        assert row["low"] in {d["body"] for d in members if d["price"] == by_price[0]["price"]}
        assert row["high"] in {d["body"] for d in members if d["price"] == by_price[-1]["price"]}
        assert row["any"] in {*values(members, "color"), None}
        assert len(row["some"]) == min(5, len(members))
        assert set(row["some"]) <= set(bodies)
        assert sorted(row["every"]) == sorted(bodies)


def test_numbers_in_lists_are_numbers(redis: Redis) -> None:
    index = make(redis, [{"price": 1}, {"price": 2.5}])
    reducers = {"a": to_list("price"), "b": first_value("price", by="price")}
    [row] = redis.do(index.aggregate(ALL, group_by(**reducers))).rows
    assert (sorted(row["a"]), row["b"]) == ([1, 2.5], 1)


@pytest.mark.parametrize("on", ["hash", "json"])
def test_fields_are_loaded(redis: Redis, on: str) -> None:
    given = documents(30)
    index = make(redis, given, on=on)
    result = redis.do(index.aggregate(ALL))
    assert plain(result.rows) == plain(given)
    assert [type(row["price"]) for row in result.rows] == [type(d["price"]) for d in given]
    names = redis.do(index.aggregate(load("__key", "color"))).rows
    assert plain(names) == plain(
        [
            {"__key": f"docs:{i}"} | ({"color": d["color"]} if "color" in d else {})
            for i, d in enumerate(given)
        ]
    )
    assert redis.do(index.aggregate()).rows == [{}] * 30
    assert redis.do(index.aggregate(load("nowhere"))).rows == [{}] * 30


def test_all_of_a_hash_is_loaded(redis: Redis) -> None:
    given = documents(5)
    index = make(redis, [{**document, "extra": "x"} for document in given])
    rows = redis.do(index.aggregate(load())).rows
    assert [{k: v for k, v in row.items() if k != "vec"} for row in rows] == [
        {**document, "extra": "x"} for document in given
    ]


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        (Tag("color") == "red", lambda d: d.get("color") == "red"),
        (Numeric("price") > 10, lambda d: d["price"] > 10),
        (
            ~(Tag("size") == "m") & (Numeric("price") < 0),
            lambda d: d.get("size") != "m" and d["price"] < 0,
        ),
        (Numeric("price") > 1e9, lambda _: False),
    ],
    ids=repr,
)
def test_a_filter_comes_first(
    redis: Redis, condition: Any, wanted: Callable[[dict[str, Any]], bool]
) -> None:
    given = documents()
    index = make(redis, given)
    kept = [document for document in given if wanted(document)]
    assert plain(redis.do(index.aggregate(ALL, filter=condition)).rows) == plain(kept)
    rows = redis.do(index.aggregate(group_by(n=count()), filter=condition)).rows
    assert rows == ([{"n": len(kept)}] if kept else [])


def test_expressions(redis: Redis) -> None:
    given = documents()
    index = make(redis, given)
    steps = [
        ALL,
        keep("exists(@stock) && @price >= 5"),
        apply(worth="@price * @stock", loud="upper(@body)"),
        apply(more="@worth + 1"),
    ]
    expected = [
        {**d, "worth": d["price"] * d["stock"], "loud": d["body"].upper()}
        for d in given
        if "stock" in d and d["price"] >= 5
    ]
    rows = redis.do(index.aggregate(*steps)).rows
    assert all(isinstance(row["worth"], str) for row in rows)
    numbers = [
        {**row, "worth": float(row["worth"]), "more": float(row["more"]) - 1} for row in rows
    ]
    assert plain(numbers) == plain([{**row, "more": row["worth"]} for row in expected])
    assert len(rows) > 10


def test_the_order_and_the_first_rows(redis: Redis) -> None:
    given = documents()
    index = make(redis, given)
    down = sorted(given, key=lambda d: (-d["price"], d["body"]))
    rows = redis.do(index.aggregate(ALL, sort_by("-price", "body", most=90))).rows
    assert rows == down
    assert redis.do(index.aggregate(ALL, sort_by("-price", "body"), limit(20))).rows == down[:20]
    assert redis.do(index.aggregate(ALL, sort_by("-price", "body", most=7))).rows == down[:7]
    page = redis.do(index.aggregate(ALL, sort_by("-price", "body"), limit(20, 15))).rows
    assert page == down[15:35]
    up = sorted(given, key=lambda d: (d["price"], d["body"]))
    assert redis.do(index.aggregate(ALL, sort_by("price", "body"), limit(90))).rows == up
    assert len(redis.do(index.aggregate(ALL, limit(5, 87))).rows) == 3
    assert redis.do(index.aggregate(ALL, limit(0))).rows == []


@pytest.mark.parametrize("grouped", [False, True])
def test_all_rows_come_sorted(redis: Redis, *, grouped: bool) -> None:
    index = make(redis, documents())
    steps = [group_by("body", n=count())] if grouped else [ALL]
    rows = redis.do(index.aggregate(*steps, sort_by("body"))).rows
    assert [row["body"] for row in rows] == sorted(d["body"] for d in documents())


def test_steps_run_in_their_order(redis: Redis) -> None:
    given = documents()
    index = make(redis, given)
    steps = [
        ALL,
        group_by("color", "size", n=count(), sum=total("price")),
        keep("@n > 2"),
        group_by("color", kinds=count(), most=maximum("n")),
        sort_by("-most", "color"),
        limit(2),
    ]
    by_both = groups(given, ["color", "size"])
    by_color: dict[Any, list[int]] = defaultdict(list)
    for (color, _), members in by_both.items():
        if len(members) > 2:
            by_color[color].append(len(members))
    expected = [{"color": c, "kinds": len(n), "most": max(n)} for c, n in by_color.items()]
    # The server puts what has no value last, downwards too.
    expected.sort(key=lambda row: (-row["most"], row["color"] is None, row["color"] or ""))
    assert redis.do(index.aggregate(*steps)).rows == expected[:2]


def test_more_than_a_page_of_rows_comes_whole(redis: Redis) -> None:
    index: VectorIndex[Any] = VectorIndex(redis.client, "docs", FIELDS)
    redis.do(index.create())
    size = 3500
    redis.do(index.load(range(size), np.ones((size, 2)), {"price": range(size)}))
    redis.do(index.search([1.0, 1.0], 1))
    found = cost(redis, lambda: index.aggregate(load("price")))
    assert sorted(row["price"] for row in found.result.rows) == list(range(size))
    assert found.commands["FT.AGGREGATE"] == 1
    reads = [calls for name, calls in found.commands.items() if name.startswith("FT.CURSOR")]
    assert 3 <= sum(reads) <= 4
    grouped = redis.do(index.aggregate(group_by("price", n=count())))
    assert sorted((row["price"], row["n"]) for row in grouped.rows) == [(i, 1) for i in range(size)]
    few = redis.do(index.aggregate(load("price"), limit(1500))).rows
    assert len({row["price"] for row in few}) == 1500
    for size_of in (1000, 2000):  # whole pages
        rows = redis.do(index.aggregate(load("price"), filter=Numeric("price") < size_of)).rows
        assert len(rows) == size_of
    # No cursor stays behind.
    stats = redis.do(redis.client.call("FT.INFO", "docs"))
    stats = stats if isinstance(stats, dict) else dict(zip(stats[::2], stats[1::2], strict=True))
    cursors = stats[b"cursor_stats"]
    if isinstance(cursors, list):
        cursors = dict(zip(cursors[::2], cursors[1::2], strict=True))
    assert cursors[b"index_total"] == 0


# -- values in expressions -----------------------------------------------------------------------

VALUES = ["", "plain", 'a"b', '"', '""', "a'b", "é日本", "$x", "@y", "a\tb"]
VALUES += ["{x}", "(1)", "%", "1 || 1==1", '" || 1==1 || "', "\x01"]


@pytest.mark.parametrize("value", VALUES)
def test_a_quoted_value_is_itself(client: Client, value: str) -> None:
    index = VectorIndex(client, "docs", FIELDS)
    index.create()
    index.load(range(3), np.ones((3, 2)), {"body": [value, "other", "x"], "price": [0, 1, 2]})
    rows = index.aggregate(load("body", "price"), keep(f"@body == {text(value)}")).rows
    assert [row["price"] for row in rows] == [0]
    [row] = index.aggregate(apply(v=text(value)), limit(1)).rows
    assert row["v"] == value


@pytest.mark.parametrize(
    "value", ['a\\"b', "a\\ b", "\\\\", "a\\.b", "C:\\Users\\.x", "1 || 1==1\n"]
)
def test_a_value_that_cannot_be_quoted_is_refused(client: Client, value: str) -> None:
    index = VectorIndex(client, "docs", FIELDS)
    index.create()
    index.load(range(2), np.ones((2, 2)), {"body": [value, "other"], "price": [0, 1]})
    try:
        quoted = text(value)
    except ValueError:
        return
    rows = index.aggregate(load("body", "price"), keep(f"@body == {quoted}")).rows
    assert [row["price"] for row in rows] == [0]


# -- the caller's mistakes -----------------------------------------------------------------------

BAD: list[tuple[type[Exception], str, Callable[[], object]]] = [
    (ValueError, "field's name", lambda: load("a b")),
    (ValueError, "field's name", lambda: load("@price")),
    (TypeError, "field's name", lambda: load(5)),  # type: ignore[arg-type]
    (ValueError, "begin with __", lambda: load("__score")),
    (ValueError, "field's name", lambda: group_by("a} x")),
    (TypeError, "must be a reducer", lambda: group_by("color", n=5)),  # type: ignore[arg-type]
    (TypeError, "must be a reducer", lambda: group_by("color", n=count)),  # type: ignore[arg-type]
    (ValueError, "field's name", lambda: group_by("color", **{"a b": count()})),
    (ValueError, "field's name", lambda: count_distinct("")),
    (ValueError, "q must be", lambda: quantile("price", 1.5)),
    (ValueError, "q must be", lambda: quantile("price", -0.1)),
    (ValueError, "'q'", lambda: quantile("price", math.nan)),
    (TypeError, "'q' takes", lambda: quantile("price", "0.5")),  # type: ignore[arg-type]
    (ValueError, "field's name", lambda: first_value("price", by="-a b")),
    (ValueError, "1000", lambda: random_sample("price", 1001)),
    (ValueError, "size must be", lambda: random_sample("price", 0)),
    (ValueError, "expression", lambda: apply(x="")),
    (ValueError, "expression", lambda: apply(x=5)),  # type: ignore[arg-type]
    (ValueError, "field's name", lambda: apply(**{"a b": "1"})),
    (ValueError, "expression", lambda: keep(" ")),
    (ValueError, "sort_by takes", sort_by),
    (ValueError, "most must be", lambda: sort_by("price", most=0)),
    (ValueError, "field's name", lambda: sort_by("--price")),
    (ValueError, "rows must be", lambda: limit(-1)),
    (ValueError, "offset must be", lambda: limit(1, -1)),
    (TypeError, "rows must be", lambda: limit(1.5)),  # type: ignore[arg-type]
    (ValueError, "NUL", lambda: text("a\0b")),
    (ValueError, "text takes a str", lambda: text(5)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(
    ("error", "message", "use"), BAD, ids=[f"{i} {b[1]}" for i, b in enumerate(BAD)]
)
def test_a_bad_step_is_refused(
    error: type[Exception], message: str, use: Callable[[], object]
) -> None:
    with pytest.raises(error, match=message):
        use()


@pytest.mark.parametrize("step", ["GROUPBY", None, count(), ("LIMIT", 0, 1), load])
def test_what_is_no_step_is_refused(step: Any) -> None:
    with Client("redis://127.0.0.1:1/0") as client, pytest.raises(TypeError, match="a step is"):
        VectorIndex(client, "docs", FIELDS).aggregate(ALL, step)


def test_a_step_is_its_arguments() -> None:
    step = group_by("color", n=count(), mean=avg("price"), first=first_value("body", by="-price"))
    assert step == Step(
        (
            *("GROUPBY", 1, "@color", "REDUCE", "COUNT", 0, "AS", "n"),
            *("REDUCE", "AVG", 1, "@price", "AS", "mean"),
            *("REDUCE", "FIRST_VALUE", 4, "@body", "BY", "@price", "DESC", "AS", "first"),
        ),
        frozenset({"n", "mean"}),
        (("first", "body"),),
    )
