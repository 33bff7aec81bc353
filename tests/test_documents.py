"""Documents of an index changed, read, counted, iterated over and deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from counting import cost
from documents import (
    DIM,
    FIELDS,
    NOBODY,
    both_kinds,
    collected,
    contents,
    made,
    make,
    stored,
    vectors,
)
from rawredis_llm import (
    Client,
    EmbeddedServer,
    Filter,
    Numeric,
    Row,
    Tag,
    Text,
    Vector,
    VectorIndex,
    errors,
)

if TYPE_CHECKING:
    from conftest import Redis

COLORS = ["red", "green", "blue"]


def columns(count: int) -> dict[str, Any]:
    """Return a colour in turns, and the number of the document as its year."""
    return {"color": [COLORS[i % 3] for i in range(count)], "year": range(count)}


def filled(redis: Redis, on: str, count: int = 10) -> Any:
    """Return an index of documents 0, 1, ..."""
    index = made(redis, on)
    redis.do(index.load(range(count), vectors(count), columns(count), batch_size=5000))
    return index


def full(client: Client, on: str, count: int) -> Any:
    """Return an index of many documents, by a sync client."""
    index = make(client, on)
    index.load(range(count), vectors(count), columns(count), batch_size=5000)
    return index


def model(count: int = 10) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Return what `filled` has stored."""
    return {
        str(i): ({"color": COLORS[i % 3], "year": i}, vectors(count)[i].tobytes())
        for i in range(count)
    }


# -- update --------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("shape", ["columns", "dicts"])
def test_update_changes_what_is_named_and_no_more(redis: Redis, on: str, shape: str) -> None:
    index = filled(redis, on)
    fields: Any = {"year": [100, None, 102], "text": ["new", "words", None]}
    if shape == "dicts":
        fields = [
            {"year": 100, "text": "new"},
            {"year": None, "text": "words"},
            {"year": 102, "text": None},
        ]
    assert redis.do(index.update(["1", 2, "5"], fields)) == 3
    expected = model()
    expected["1"][0].update(year=100, text="new")
    expected["2"][0].update(text="words")
    del expected["2"][0]["year"]
    expected["5"][0].update(year=102)
    assert contents(collected(redis, index.scan())) == expected
    assert redis.do(index.count(Numeric("year") >= 100)) == 2
    assert redis.do(index.count(Text("text").matches("words"))) == 1


@both_kinds
def test_update_of_vectors_keeps_the_fields(redis: Redis, on: str) -> None:
    index = filled(redis, on)
    new = vectors(2, seed=9)
    assert redis.do(index.update([3, 4], vectors=new)) == 2
    assert redis.do(index.update([5], [{"year": 50}], vectors=new[:1])) == 1
    expected = model()
    expected["3"] = (expected["3"][0], new[0].tobytes())
    expected["4"] = (expected["4"][0], new[1].tobytes())
    expected["5"] = ({**expected["5"][0], "year": 50}, new[0].tobytes())
    assert contents(collected(redis, index.scan())) == expected
    assert redis.do(index.search(new[1], 1)).rows[0].id == "4"


@both_kinds
def test_update_passes_over_what_is_not_there(redis: Redis, on: str) -> None:
    index = filled(redis, on)
    assert redis.do(index.update(["nowhere", 1, "gone"], {"year": [1, 2, 3]})) == 1
    assert redis.do(index.update(["nowhere"], vectors=vectors(1))) == 0
    assert redis.do(index.update([], {})) == 0
    assert redis.do(redis.client.call("DBSIZE")) == 10


@both_kinds
def test_update_keeps_the_time_to_live(redis: Redis, on: str) -> None:
    index = made(redis, on)
    redis.do(index.load(["a", "b"], vectors(2), {"year": [1, 2]}, ttl=1000))
    redis.do(index.update(["a"], {"year": [5], "text": [None]}, vectors=vectors(1)))
    redis.do(index.update_where(Numeric("year") == 2, {"year": None}))
    for key in ("docs:a", "docs:b"):
        assert redis.do(redis.client.call("PTTL", key)) > 900_000


@both_kinds
def test_update_of_many_documents(client: Client, on: str) -> None:
    index = full(client, on, 2500)
    assert index.update(range(2500), {"text": [f"t{i}" for i in range(2500)]}) == 2500
    rows = index.get(range(2500))
    assert [row.fields["text"] for row in rows] == [f"t{i}" for i in range(2500)]


def test_update_in_a_json_document_reaches_a_nested_place(redis: Redis) -> None:
    fields = [Tag("city", path="$.at.city"), Numeric("zip", path="$.at.zip"), *FIELDS[-1:]]
    index = made(redis, "json", fields=fields)
    redis.do(index.load(["a"], vectors(1), {"city": ["Rome"], "zip": [1], "note": ["n"]}))
    assert redis.do(index.update(["a"], {"city": ["Oslo"], "note": [None]})) == 1
    assert redis.do(index.get(["a"]))[0].fields == {"at": {"city": "Oslo", "zip": 1}}
    assert redis.do(index.count(Tag("city") == "Oslo")) == 1


def test_update_of_a_json_field_replaces_its_value(client: Client) -> None:
    index = make(client, "json")
    index.load(["a"], vectors(1), {"meta": [{"x": 1}]})
    index.update(["a"], {"meta": [{"y": 2}]})
    assert index.get(["a"])[0].fields == {"meta": {"y": 2}}


@both_kinds
def test_update_where_changes_all_that_match(redis: Redis, on: str) -> None:
    index = filled(redis, on)
    changes = {"color": "black", "year": None, "text": "changed"}
    assert redis.do(index.update_where(Tag("color") == "red", changes)) == 4
    expected = model()
    for i in ("0", "3", "6", "9"):
        expected[i] = ({"color": "black", "text": "changed"}, expected[i][1])
    assert contents(redis.do(index.get(range(10)))) == expected
    assert redis.do(index.count(Tag("color") == "black")) == 4
    assert redis.do(index.update_where(Tag("color") == "red", changes)) == 0


@both_kinds
def test_update_where_ends_although_what_it_changes_still_matches(client: Client, on: str) -> None:
    index = full(client, on, 2500)
    assert index.update_where(Numeric("year") >= 500, {"year": 700}) == 2000
    assert index.count(Numeric("year") == 700) == 2000
    assert index.count(Numeric("year") < 500) == 500


# -- get -----------------------------------------------------------------------------------------


@both_kinds
def test_get_keeps_the_order_and_says_what_is_missing(redis: Redis, on: str) -> None:
    index = filled(redis, on)
    spent = cost(redis, lambda: index.get([7, "nowhere", "0", 7, 3]))
    assert spent.round_trips == 1
    rows = spent.result
    assert [row and row.id for row in rows] == ["7", None, "0", "7", "3"]
    assert contents(rows) == {id_: model()[id_] for id_ in ("7", "0", "3")}
    assert redis.do(index.get([])) == []


@pytest.mark.parametrize(
    ("on", "dtype"),
    [
        ("hash", "float32"),
        ("hash", "float16"),
        ("hash", "bfloat16"),
        ("json", "float32"),
    ],
)
def test_vectors_are_read_only(client: Client, on: str, dtype: str) -> None:
    index = make(client, on, fields=[Vector("vec", DIM, dtype=dtype)])
    index.load(["a"], vectors(1))
    rows = [index.get(["a"])[0], next(iter(index.scan()))]
    rows += index.search(vectors(1)[0], include_vectors=True).rows
    for row in rows:
        assert row.vector.shape == (DIM,)
        with pytest.raises(ValueError, match="read-only"):
            row.vector[0] = 1


@both_kinds
def test_get_of_what_has_expired(redis: Redis, on: str) -> None:
    index = made(redis, on)
    redis.do(index.load(["a"], vectors(1), ttl=0.001))
    sleep(0.01)
    assert redis.do(index.get(["a"])) == [None]


# -- delete --------------------------------------------------------------------------------------


@both_kinds
def test_delete_says_how_many_there_were(redis: Redis, on: str) -> None:
    index = filled(redis, on)
    assert redis.do(index.delete([1, "1", "nowhere", 2])) == 2
    assert redis.do(index.delete([])) == 0
    assert [row is None for row in redis.do(index.get([0, 1, 2, 3]))] == [False, True, True, False]
    assert redis.do(index.count()) == 8


@both_kinds
def test_delete_of_many_documents(client: Client, on: str) -> None:
    index = full(client, on, 2500)
    assert index.delete(range(100, 2400)) == 2300
    left = {str(i) for i in (*range(100), *range(2400, 2500))}
    assert {row.id for row in index.scan()} == left


@both_kinds
@pytest.mark.parametrize("count", [10, 5000])
def test_delete_where_deletes_all_that_match(redis: Redis, on: str, count: int) -> None:
    index = filled(redis, on, count)
    redis.do(redis.client.call("SET", "docs", "another's"))
    condition = Tag("color").one_of(["red", "blue"])
    wanted = sum(1 for i in range(count) if i % 3 != 1)
    assert redis.do(index.delete_where(condition, dry_run=True)) == wanted
    assert redis.do(index.count()) == count
    assert redis.do(index.delete_where(condition)) == wanted
    assert redis.do(index.count()) == count - wanted
    assert redis.do(redis.client.call("DBSIZE")) == 1 + count - wanted
    assert redis.do(index.delete_where(condition)) == 0
    assert redis.do(index.delete_where(condition, dry_run=True)) == 0
    left = redis.do(redis.client.call("KEYS", "docs:*"))
    assert set(left) == {b"docs:%d" % i for i in range(1, count, 3)}


def slow_server() -> EmbeddedServer:
    """Return a server that does not expire by itself, and may be given no time to search."""
    return EmbeddedServer(extra=("--enable-debug-command", "yes"))


def test_delete_where_goes_on_beyond_what_has_expired() -> None:
    with slow_server() as server, Client(server.url) as client:
        client.call("DEBUG", "SET-ACTIVE-EXPIRE", 0)
        index = make(client, "hash")
        index.load(range(1100), vectors(1100), {"year": [1] * 1100}, ttl=0.001)
        index.load(["a", "b"], vectors(2), {"year": [1, 1]})
        sleep(0.01)
        assert index.delete_where(Numeric("year") == 1) == 2
        assert index.get(["a", "b"]) == [None, None]


@pytest.mark.long
@pytest.mark.parametrize("protocol", [2, 3])
def test_what_the_server_has_no_time_for_is_no_answer(protocol: int) -> None:
    with slow_server() as server, Client(server.url, protocol=protocol, timeout=60) as client:
        index = make(client, "hash")
        index.load(range(60_000), vectors(60_000), {"year": range(60_000)}, batch_size=5000)
        client.call("FT.CONFIG", "SET", "TIMEOUT", 1)
        assert len(list(index.scan())) == 60_000
        for condition in (Numeric("year") != 5, Numeric("year") > 10):
            count: int | None = None
            try:
                count = index.count(condition)
            except errors.RedisError:
                continue  # saying so is as good
            assert count == (59_999 if condition == (Numeric("year") != 5) else 59_989)
        assert index.delete_where(Numeric("year") > 10) == 59_989


# -- count and scan ------------------------------------------------------------------------------

FILTERS: list[tuple[Filter | None, Callable[[int], bool]]] = [
    (None, lambda _: True),
    (Tag("color") == "red", lambda i: i % 3 == 0),
    (Numeric("year") < 5, lambda i: i < 5),
    ((Tag("color") != "red") & (Numeric("year") >= 5), lambda i: i % 3 != 0 and i >= 5),
    (Numeric("year") == -1, lambda _: False),
]


@both_kinds
@pytest.mark.parametrize(("condition", "wanted"), FILTERS, ids=[repr(f) for f, _ in FILTERS])
def test_scan_brings_what_count_counts(
    redis: Redis, on: str, condition: Filter | None, wanted: Callable[[int], bool]
) -> None:
    for count in (0, 10):
        redis.do(redis.client.call("FLUSHALL"))
        index = filled(redis, on, count)
        redis.do(redis.client.call("SET", "docs:other", "no document"))
        expected = {id_: one for id_, one in model(count).items() if wanted(int(id_))}
        rows = collected(redis, index.scan(condition))
        assert len(rows) == len(expected) == redis.do(index.count(condition))
        assert contents(rows) == expected


@both_kinds
def test_scan_of_more_than_a_page(redis: Redis, on: str) -> None:
    index = filled(redis, on, 2100)
    rows = collected(redis, index.scan())
    assert len(rows) == redis.do(index.count()) == 2100
    assert contents(rows) == model(2100)
    rows = collected(redis, index.scan(Tag("color") != "red"))
    assert {row.id for row in rows} == {str(i) for i in range(2100) if i % 3}
    assert len(rows) == 1400


@both_kinds
def test_scan_fetches_a_page_at_a_time(client: Client, on: str) -> None:
    index = make(client, on)
    index.load(range(2500), vectors(2500))

    def reads() -> int:
        info = client.call("INFO", "commandstats").decode()
        name = "cmdstat_hgetall:calls=" if on == "hash" else "cmdstat_json.get:calls="
        return int(info.lower().partition(name)[2].partition(",")[0] or 0)

    before = reads()
    rows = index.scan()
    assert reads() == before
    assert isinstance(next(rows), Row)
    first = reads()
    assert 0 < first - before <= 1000
    rows.close()
    assert reads() == first


@both_kinds
def test_breaking_off_a_scan_harms_nothing(redis: Redis, on: str) -> None:
    index = filled(redis, on, 1100)

    async def first() -> Any:
        rows = index.scan()
        row = await anext(rows)
        await rows.aclose()
        return row

    for _ in range(2):
        row = redis.do(first()) if redis.kind == "aio" else next(iter(index.scan()))
        assert 0 <= int(row.id) < 1100
    assert len({row.id for row in collected(redis, index.scan())}) == 1100


def test_any_number_of_scans_may_be_broken_off(client: Client) -> None:
    index = make(client, "hash")
    index.load(range(1100), vectors(1100))
    for _ in range(150):
        rows = index.scan()
        next(rows)
        rows.close()


@both_kinds
def test_scan_leaves_out_what_was_deleted_meanwhile(client: Client, on: str) -> None:
    index = make(client, on)
    index.load(range(1500), vectors(1500))
    rows = index.scan()
    seen = [next(rows).id]
    index.delete(range(1500))
    seen += [row.id for row in rows]
    assert len(seen) == 1000  # the page that was fetched


def test_scan_cannot_be_planned() -> None:
    index: Any = VectorIndex(Client(NOBODY), "docs", FIELDS).plan
    with pytest.raises(TypeError, match="iterates"):
        index.scan()


UNFINISHED: dict[str, Callable[[Any, Any], int]] = {
    "scan": lambda index, _: len(list(index.scan())),
    "export": lambda index, path: int(index.export(path / "docs.jsonl")),
    "reindex": lambda index, _: int(index.reindex(VectorIndex(index.client, "new", FIELDS))),
    "update_where": lambda index, _: int(index.update_where(Numeric("year") >= 0, {"year": 1})),
}


@pytest.mark.parametrize("use", UNFINISHED)
def test_an_index_that_is_being_built_is_not_taken_for_whole(
    client: Client, use: str, tmp_path: Path
) -> None:
    index = VectorIndex(client, "docs", FIELDS)
    index.load(range(6000), vectors(6000), columns(6000), batch_size=2000)
    index.create()
    assert index.info().indexing
    try:
        found = UNFINISHED[use](index, tmp_path)
    except errors.RedisError:
        return  # saying so is as good as waiting
    assert found == 6000


# -- wrong arguments -----------------------------------------------------------------------------

RED = Tag("color") == "red"
WRONG: list[tuple[type[Exception], str, Callable[[Any], object]]] = [
    (TypeError, "filter must be a Filter", lambda i: i.delete_where(None)),
    (TypeError, "filter must be a Filter", lambda i: i.delete_where("*")),
    (TypeError, "filter must be a Filter", lambda i: i.delete_where(filter=True)),
    (TypeError, "filter must be a Filter", lambda i: i.delete_where(None, dry_run=True)),
    (TypeError, "filter must be a Filter", lambda i: i.update_where(None, {"year": 1})),
    (TypeError, "must be a Filter or None", lambda i: i.scan("*")),
    (ValueError, "no field 'a'", lambda i: i.delete_where(Tag("a") == "x")),
    (ValueError, "no field 'a'", lambda i: i.update_where(Tag("a") == "x", {"year": 1})),
    (ValueError, "no field 'a'", lambda i: i.scan(Tag("a") == "x")),
    (ValueError, "no field 'a'", lambda i: i.count(Tag("a") == "x")),
    (ValueError, "is NUMERIC, not TAG", lambda i: i.delete_where(Tag("year") == "x")),
    (TypeError, "'year' takes a number", lambda i: i.update_where(RED, {"year": "1"})),
    (ValueError, "vec", lambda i: i.update_where(RED, {"vec": None})),
    (ValueError, "vec", lambda i: i.update_where(RED, {"vec": b"abc"})),
    (TypeError, "ids must be a list", lambda i: i.update("a", {"year": [1]})),
    (TypeError, "ids must be a list", lambda i: i.get("a")),
    (TypeError, "ids must be a list", lambda i: i.delete(b"a")),
    (ValueError, "'a' is given twice", lambda i: i.update(["a", "a"], {"year": [1, 2]})),
    (ValueError, "1 values, but 2 ids", lambda i: i.update(["a", "b"], {"year": [1]})),
    (ValueError, "1 documents, but 2 ids", lambda i: i.update(["a", "b"], [{"year": 1}])),
    (ValueError, "1 ids, but 2 vectors", lambda i: i.update(["a"], vectors=vectors(2))),
    (ValueError, "vec", lambda i: i.update(["a"], {"vec": [None]})),
    (ValueError, "vec", lambda i: i.update(["a"], {"vec": [b"1234"]})),
    (ValueError, "length of zero", lambda i: i.update(["a"], vectors=np.zeros((1, DIM)))),
    (TypeError, "'year' takes a number", lambda i: i.update(["a"], {"year": ["x"]})),
    (TypeError, "a column is a list", lambda i: i.update(["a"], {"color": "x"})),
]


@both_kinds
@pytest.mark.parametrize(
    ("error", "message", "use"), WRONG, ids=[str(n) for n in range(len(WRONG))]
)
def test_a_wrong_argument_is_refused_before_any_io(
    on: str, error: type[Exception], message: str, use: Callable[[Any], object]
) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=message) as caught:
        use(VectorIndex(client, "docs", FIELDS, on=on))
    assert type(caught.value) is error


@pytest.mark.parametrize("fields", [None, "year", ["year"], [("year", 1)]])
def test_update_where_takes_a_dict(fields: Any) -> None:
    with Client(NOBODY) as client, pytest.raises(TypeError):
        VectorIndex(client, "docs", FIELDS).update_where(RED, fields)


def test_count_takes_a_filter() -> None:
    with Client(NOBODY) as client, pytest.raises(TypeError, match="must be a Filter or None"):
        VectorIndex(client, "docs", FIELDS).count("*")  # type: ignore[arg-type]


@both_kinds
def test_a_wrong_value_among_good_ones_changes_nothing(redis: Redis, on: str) -> None:
    index = filled(redis, on)
    with Client(redis.url) as client:
        before = stored(client)
        with pytest.raises(TypeError):
            redis.do(index.update([1, 2, 3], {"year": [5, 6, "x"]}))
        with pytest.raises(ValueError, match="finite"):
            redis.do(index.update([1, 2], {"year": [5, 6]}, vectors=[[1] * DIM, [np.nan] * DIM]))
        assert stored(client) == before
