"""From one index to another: all of it, once, with the right vectors, and the alias at the end."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from documents import DIM, both_kinds, collected, contents, made, make, meanwhile, stored, vectors
from proxy import TO_CLIENT, TO_SERVER, Fault, Proxy
from rawredis_llm import Client, Numeric, Tag, Text, Vector, VectorIndex, errors
from rawredis_llm.index import documents as pages
from rawredis_llm.search.vectors import from_blob, to_blob

if TYPE_CHECKING:
    from conftest import Redis

PLAIN = [Tag("color"), Numeric("year"), Text("text")]
OLD = [*PLAIN, Vector("vec", DIM)]


class Embedder:
    """Makes a vector of a text, the same each time, and remembers what it was asked."""

    def __init__(self, dim: int = DIM, name: str = "new model") -> None:
        self.dim = dim
        self.name = name
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> npt.NDArray[np.float32]:
        self.asked += texts
        return np.array([self.one(text) for text in texts]).reshape(-1, self.dim)

    def one(self, text: str) -> npt.NDArray[np.float32]:
        [vector] = vectors(1, self.dim, seed=zlib.crc32(text.encode()))
        made_of_it: npt.NDArray[np.float32] = vector
        return made_of_it


def columns(count: int) -> dict[str, Any]:
    return {
        "color": [["red", "blue"] if i % 2 else None for i in range(count)],
        "year": range(count),
        "text": [f"text {i}" for i in range(count)],
        "extra": [f"extra {i}" for i in range(count)],
    }


def filled(redis: Redis, on: str, count: int = 30, **options: Any) -> Any:
    """Return the old index."""
    index = made(redis, on, "old", OLD, **options)
    redis.do(index.load(range(count), vectors(count), columns(count), batch_size=2000))
    return index


def target(redis: Redis, on: str, fields: Any = OLD, **options: Any) -> Any:
    """Return the new index, which nobody has created yet."""
    return VectorIndex(redis.client, "new", fields, on=on, **options)


# -- what arrives --------------------------------------------------------------------------------

TARGETS: dict[str, tuple[list[Any], Embedder | None]] = {
    "the same": (OLD, None),
    "other fields": ([Numeric("year", sortable=True), Tag("extra"), Vector("vec", DIM)], None),
    "other algorithm": ([*PLAIN, Vector("vec", DIM, algorithm="hnsw", metric="l2")], None),
    "other name": ([*PLAIN, Vector("embedding", DIM)], None),
    "float64": ([*PLAIN, Vector("vec", DIM, dtype="float64")], None),
    "float16": ([*PLAIN, Vector("vec", DIM, dtype="float16")], None),
    "bfloat16": ([*PLAIN, Vector("vec", DIM, dtype="bfloat16")], None),
    "other size": ([*PLAIN, Vector("vec", 7)], Embedder(7)),
    "other model": (OLD, Embedder(DIM)),
    "all of it": ([Numeric("year"), Vector("emb", 9, dtype="float16")], Embedder(9)),
}


@both_kinds
@pytest.mark.parametrize("case", TARGETS)
def test_all_documents_arrive(redis: Redis, on: str, case: str) -> None:
    fields, embedder = TARGETS[case]
    old, new = filled(redis, on), target(redis, on, fields)
    before = contents(redis.do(old.get(range(30))))
    seen: list[tuple[int, int]] = []
    copied = redis.do(old.reindex(new, embedder=embedder, progress=lambda *step: seen.append(step)))
    assert copied == 30
    assert seen == [(30, 30)]
    dtype = new.schema.vector.dtype
    for i, row in enumerate(redis.do(new.get(range(30)))):
        given = embedder.one(f"text {i}") if embedder else vectors(30)[i]
        expected = from_blob(to_blob(given, dtype), dtype)
        if on == "json" and dtype == "float64":  # whose last digit is RedisJSON's own affair
            assert row.vector == pytest.approx(expected, rel=1e-14)
        else:
            assert row.vector.tobytes() == expected.tobytes()
        assert row.fields == before[str(i)][0]
    assert redis.do(new.count()) == 30
    assert redis.do(new.count(Numeric("year") < 5)) == 5
    assert contents(redis.do(old.get(range(30)))) == before
    if embedder:
        assert sorted(embedder.asked[-30:]) == sorted(f"text {i}" for i in range(30))


@both_kinds
def test_times_to_live_go_along(client: Client, on: str) -> None:
    old = make(client, on, "old", OLD)
    old.load(["a", "b"], vectors(2), ttl=1000)
    client.call("PERSIST", "old:b")
    old.reindex(VectorIndex(client, "new", OLD, on=on))
    assert client.call("PEXPIRETIME", "new:a") == client.call("PEXPIRETIME", "old:a") > 0
    assert client.call("PTTL", "new:b") == -1


@both_kinds
def test_bytes_and_odd_names_go_along(client: Client, on: str) -> None:
    old = make(client, on, "old", OLD)
    extra = b"\xff\x00\xfe" if on == "hash" else {"a": [1, {"b": None}]}
    old.load(["日 本", "a:b"], vectors(2), {"with space": [extra, "x"]})
    old.reindex(VectorIndex(client, "new", OLD, on=on))
    assert stored(client, "new:") == {
        key.replace(b"old:", b"new:"): value for key, value in stored(client, "old:").items()
    }


@both_kinds
def test_nothing_is_a_reindex_too(redis: Redis, on: str) -> None:
    old, new = filled(redis, on, 0), target(redis, on)
    embedder = Embedder()
    assert redis.do(old.reindex(new, embedder=embedder, alias="live")) == 0
    assert embedder.asked == []
    assert redis.do(VectorIndex(redis.client, "live", OLD, on=on).count()) == 0


@both_kinds
def test_what_is_there_stays_as_it_is(redis: Redis, on: str) -> None:
    old, new = filled(redis, on), target(redis, on)
    redis.do(new.create())
    redis.do(new.load([3, "own"], vectors(2, seed=7), {"year": [300, 1]}))
    embedder = Embedder()
    assert redis.do(old.reindex(new, embedder=embedder)) == 29
    assert "text 3" not in embedder.asked
    assert len(embedder.asked) == 29
    [three, own] = redis.do(new.get([3, "own"]))
    assert (three.fields, own.fields) == ({"year": 300}, {"year": 1})
    assert (three.vector == vectors(2, seed=7)[0]).all()
    assert redis.do(old.reindex(new, embedder=embedder)) == 0
    assert len(embedder.asked) == 29


@both_kinds
def test_what_changes_while_its_text_is_embedded_is_embedded_anew(client: Client, on: str) -> None:
    old = make(client, on, "old", OLD)
    old.load(range(3), vectors(3), {"text": ["a0", "a1", "a2"], "year": [0, 1, 2]}, ttl=1000)
    new: Any = VectorIndex(client, "new", OLD, on=on)
    embedder = Embedder()

    def change() -> None:
        old.update([0], {"text": ["changed"]})
        old.update([1], {"year": [100]})
        old.delete([2])

    plan = old.plan.reindex(new, embedder=embedder)
    meanwhile(client, plan, change, lambda name: name.startswith("EVAL"))
    rows = new.get(range(3))
    assert rows[2] is None
    assert rows[0].fields == {"text": "changed", "year": 0}
    assert (rows[0].vector == embedder.one("changed")).all()
    assert rows[1].fields == {"text": "a1", "year": 100}
    assert (rows[1].vector == embedder.one("a1")).all()


@both_kinds
def test_what_is_written_to_the_new_index_meanwhile_stays(client: Client, on: str) -> None:
    old = make(client, on, "old", OLD)
    old.load(range(3), vectors(3), columns(3))
    new = make(client, on, "new", OLD)
    mine = vectors(1, seed=9)

    def write() -> None:
        new.load([1], mine, {"year": [100]})

    plan = old.plan.reindex(new)
    assert meanwhile(client, plan, write, lambda name: name.startswith("EVAL")) == 2
    assert contents(new.get([1])) == {"1": ({"year": 100}, mine[0].tobytes())}


# -- the alias -----------------------------------------------------------------------------------


@both_kinds
def test_the_alias_is_moved_when_all_is_there(client: Client, on: str) -> None:
    old = make(client, on, "old", OLD)
    old.load(range(30), vectors(30), columns(30))
    old.alias("live")
    new: Any = VectorIndex(client, "new", OLD, on=on)
    found: list[tuple[str, int]] = []

    def look(name: str) -> bool:
        prefix = client.call("FT.SEARCH", "live", "*", "NOCONTENT")[b"results"][0][b"id"][:3]
        there = 0 if not new.exists() else new.count()
        found.append((prefix.decode(), there))
        return name == "FT.ALIASUPDATE"

    plan = old.plan.reindex(new, embedder=Embedder(), alias="live")
    meanwhile(client, plan, lambda: None, look)
    assert {prefix for prefix, _ in found} == {"old"}
    assert found[-1] == ("old", 30)
    reply = client.call("FT.SEARCH", "live", "*", "NOCONTENT", "LIMIT", 0, 50)
    assert {row[b"id"][:4] for row in reply[b"results"]} == {b"new:"}
    assert reply[b"total_results"] == 30


def test_ids_are_right_after_the_alias_was_moved(client: Client) -> None:
    old = make(client, "hash", "old", OLD)
    old.load(["a"], vectors(1))
    old.alias("live")
    searcher = VectorIndex(client, "live", OLD, prefix="old:")
    old.reindex(VectorIndex(client, "newer", OLD), alias="live")
    assert searcher.search(vectors(1)[0]).rows[0].id in ("a", "newer:a")


# -- cut off -------------------------------------------------------------------------------------


def connected(redis: Redis, url: str, on: str, fields: Any) -> tuple[Any, Any, Any]:
    """Return a client that tries nothing again, and the old and the new index by it."""
    client = redis.connect(url=url, retry=None)
    old = VectorIndex(client, "old", OLD, on=on)
    return client, old, VectorIndex(client, "new", fields, on=on)


@both_kinds
@pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT])
@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
def test_what_was_cut_off_goes_on(
    redis: Redis, on: str, direction: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_PAGE", 20)  # so that there are some
    fields = [*PLAIN, Vector("vec", 6)]
    old = filled(redis, on, 100)
    redis.do(old.alias("live"))
    with Proxy(redis.url) as proxy:  # how much it is in all
        client, whole, copy = connected(redis, proxy.url, on, fields)
        redis.do(whole.reindex(copy, embedder=Embedder(6)))
        size = proxy.passed[direction]
        redis.do(client.close())
    redis.do(target(redis, on, fields).drop(delete_documents=True))
    embedder = Embedder(6)
    with Proxy(redis.url, Fault("rst", direction, int(size * share))) as proxy:
        client, through, new = connected(redis, proxy.url, on, fields)
        with pytest.raises(errors.ConnectionError):
            redis.do(through.reindex(new, embedder=embedder, alias="live"))
        assert proxy.fired
        redis.do(client.close())
    new = target(redis, on, fields)
    redis.do(new.wait_until_indexed())  # until then a document may be found twice, or not at all
    there = {row.fields["text"] for row in collected(redis, new.scan())}
    with Client(redis.url) as other:
        assert b"old:" in other.call("FT.SEARCH", "live", "*", "NOCONTENT")[b"results"][0][b"id"]
    embedder.asked.clear()
    assert redis.do(old.reindex(new, embedder=embedder, alias="live")) == 100 - len(there)
    assert len(embedder.asked) == 100 - len(there)
    assert not there & set(embedder.asked)
    rows = redis.do(new.get(range(100)))
    assert all((row.vector == embedder.one(row.fields["text"])).all() for row in rows)
    assert [row.fields["year"] for row in rows] == list(range(100))
    assert redis.do(new.count()) == 100


# -- errors --------------------------------------------------------------------------------------

Make = Callable[[Any], tuple[Any, Any, dict[str, Any]]]


def pair(client: Any, old: dict[str, Any], new: dict[str, Any], **options: Any) -> Any:
    def index(given: dict[str, Any], name: str) -> Any:
        return VectorIndex(client, given.pop("name", name), given.pop("fields", OLD), **given)

    return index(old, "old"), index(new, "new"), options


WRONG: dict[str, tuple[type[Exception], str, Make]] = {
    "itself": (ValueError, "keys in common", lambda c: pair(c, {}, {"name": "old"})),
    "prefix": (ValueError, "keys in common", lambda c: pair(c, {}, {"prefix": "old:"})),
    "inside": (ValueError, "keys in common", lambda c: pair(c, {}, {"prefix": "old:x:"})),
    "around": (ValueError, "keys in common", lambda c: pair(c, {}, {"prefix": "o"})),
    "kinds": (ValueError, "same kind of documents", lambda c: pair(c, {}, {"on": "json"})),
    "kinds, too": (ValueError, "same kind of documents", lambda c: pair(c, {"on": "json"}, {})),
    "prefixes": (ValueError, "one prefix each", lambda c: pair(c, {}, {"prefix": ["a:", "b:"]})),
    "embedder": (
        ValueError,
        "for the embedder 'x', not 'new model'",
        lambda c: pair(c, {}, {"embedder": "x"}, embedder=Embedder()),
    ),
    "no embedder": (
        ValueError,
        "for the embedder 'x', not ''",
        lambda c: pair(c, {}, {"embedder": "x"}),
    ),
    "old embedder": (
        ValueError,
        "for the embedder 'x', not 'y'",
        lambda c: pair(c, {"embedder": "y"}, {"embedder": "x"}),
    ),
    "no index": (
        TypeError,
        "to must be a VectorIndex",
        lambda c: (*pair(c, {}, {})[:1], "new", {}),
    ),
    "text_field": (TypeError, "text_field", lambda c: pair(c, {}, {}, text_field=5)),
    "no callable": (TypeError, "embedder must be", lambda c: pair(c, {}, {}, embedder=5)),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("method", ["reindex", "both"])
def test_what_cannot_be_is_refused_before_any_io(case: str, method: str) -> None:
    error, message, make_pair = WRONG[case]
    with Client("redis://127.0.0.1:1/0") as client:
        old, new, options = make_pair(client)
        with pytest.raises(error, match=message):
            getattr(old, method)(new, **options)


@both_kinds
def test_a_document_without_the_text_is_named(redis: Redis, on: str) -> None:
    old = made(redis, on, "old", OLD)
    redis.do(old.alias("live"))
    for lacking in ({"year": 1}, {"text": ""}):
        redis.do(old.load(["a", "b"], vectors(2), [{"text": "x"}, lacking]))
        with pytest.raises(ValueError, match="'b' has no text in 'text'"):
            redis.do(old.reindex(target(redis, on), embedder=Embedder(), alias="live"))
    assert redis.do(old.reindex(target(redis, on))) == 2  # which needs no text


@both_kinds
def test_vectors_of_another_size_are_refused(redis: Redis, on: str) -> None:
    old = filled(redis, on)
    fields = [*PLAIN, Vector("vec", 7)]
    for embedder in (None, Embedder(5)):
        with pytest.raises(ValueError, match="dimensions, the index has 7"):
            redis.do(old.reindex(target(redis, on, fields), embedder=embedder))
    assert redis.do(target(redis, on, fields).count()) == 0


def test_an_index_that_is_another_one_is_refused(redis: Redis) -> None:
    old = filled(redis, "hash")
    redis.do(target(redis, "hash", OLD[1:]).create())
    with pytest.raises(errors.IndexMismatchError, match="no field 'color'"):
        redis.do(old.reindex(target(redis, "hash")))


UNFIT = [Numeric("extra"), Vector("vec", DIM)]


@both_kinds
def test_what_the_new_index_does_not_take_is_told(client: Client, on: str) -> None:
    old = make(client, on, "old", OLD)
    old.load(range(4), vectors(4), {"extra": [1, "x", 2, 3]})
    old.alias("live")
    new = VectorIndex(client, "new", UNFIT, on=on)
    with pytest.raises(errors.NotIndexedError, match=r"Invalid numeric value|Invalid JSON type"):
        old.reindex(new, alias="live")
    reply = client.call("FT.SEARCH", "live", "*", "NOCONTENT", "LIMIT", 0, 0)
    assert reply[b"total_results"] == 4


@pytest.mark.parametrize(
    "on",
    ["hash", "json"],
)
def test_each_document_that_was_not_taken_counts_once(client: Client, on: str) -> None:
    old = make(client, on, "old", OLD)
    old.load(range(4), vectors(4), {"extra": ["x", 1, 2, 3], "text": ["t"] * 4})
    with pytest.raises(errors.NotIndexedError, match=r"^1 of 4 documents"):
        old.reindex(VectorIndex(client, "new", UNFIT, on=on))


@both_kinds
def test_what_the_new_index_did_not_take_is_told_again(client: Client, on: str) -> None:
    old = make(client, on, "old", OLD)
    old.load(range(4), vectors(4), {"extra": [1, "x", 2, 3]})
    new = VectorIndex(client, "new", UNFIT, on=on)
    for _ in range(2):
        with pytest.raises(errors.NotIndexedError):
            old.reindex(new, alias="live")


def test_the_text_of_a_json_document_may_have_a_path(client: Client) -> None:
    fields = [Text("text", path="$.content.body"), Vector("vec", DIM)]
    old = make(client, "json", "old", fields)
    old.load(["a"], vectors(1), {"text": ["hello"]})
    new = VectorIndex(client, "new", fields, on="json")
    embedder = Embedder()
    assert old.reindex(new, embedder=embedder) == 1
    assert embedder.asked == ["hello"]


def test_a_json_vector_may_have_a_path(client: Client) -> None:
    old = make(client, "json", "old", [*PLAIN, Vector("vec", DIM, path="$.a.vec")])
    old.load(["x"], vectors(1), {"text": ["hello"]})
    new: Any = VectorIndex(client, "new", [*PLAIN, Vector("emb", DIM, path="$.b.c.emb")], on="json")
    assert old.reindex(new) == 1
    document = json.loads(client.call("JSON.GET", "new:x"))
    assert np.array(document["b"]["c"].pop("emb"), "f4").tobytes() == vectors(1)[0].tobytes()
    assert document == {"text": "hello", "a": {}, "b": {"c": {}}}
    assert new.count() == 1
