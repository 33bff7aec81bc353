"""Documents that the server stores and drops from the index: a load says which, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from documents import DIM, FIELDS, both_kinds, made, make, meanwhile, vectors
from rawredis_llm import Client, EmbeddedServer, Numeric, Tag, Vector, VectorIndex, errors
from rawredis_llm.search.fields import Geo

if TYPE_CHECKING:
    from conftest import Redis

N = 10
BAD = [2, 3, 7]
PLAIN = [Vector("vec", DIM)]
"""What our side believes the schema to be: it lets through what the live index cannot take."""


def column(good: Any, bad: Any) -> list[Any]:
    """Return a column with what the live index cannot take at its places."""
    return [bad if i in BAD else good for i in range(N)]


# What the live index has, and a column that does not fit it, for each kind of documents.
CASES: dict[str, tuple[str, list[Any], dict[str, list[Any]]]] = {
    "number-hash": ("hash", [Numeric("n")], {"n": column("5", "five")}),
    "number-json": ("json", [Numeric("n")], {"n": column(5, "five")}),
    "nested": ("json", [Numeric("n", path="$.meta.n")], {"meta": column({"n": 1}, {"n": "x"})}),
    "label": ("json", [Tag("t", path="$.meta.t")], {"meta": column({"t": "x"}, {"t": {"u": 1}})}),
    "place-hash": ("hash", [Geo("p")], {"p": column("1,2", "1000,2")}),
    "place-json": ("json", [Geo("p")], {"p": column("1,2", "1000,2")}),
}


def believed(client: Any, on: str, name: str = "docs") -> Any:
    """Return the index as our side knows it, with none of the live one's other fields."""
    return VectorIndex(client, name, PLAIN, on=on)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch_size", [4, 500])
def test_what_the_server_did_not_index_is_told(redis: Redis, case: str, batch_size: int) -> None:
    on, fields, columns = CASES[case]
    live = made(redis, on, fields=[*fields, *PLAIN])
    index = believed(redis.client, on)
    with pytest.raises(errors.NotIndexedError, match="3 of 10 documents") as caught:
        redis.do(index.load(range(N), vectors(N), columns, batch_size=batch_size))
    assert caught.value.ids == tuple(map(str, BAD))
    assert redis.do(redis.client.call("DBSIZE")) == N  # all are written before it is raised
    assert redis.do(live.count()) == N - len(BAD)
    loaded = redis.do(
        index.load(range(N), vectors(N), columns, batch_size=batch_size, raise_errors=False)
    )
    assert (loaded, loaded.failed) == (N, [str(i) for i in BAD])
    documents = [
        {"id": i, "vec": vectors(N)[i], **{name: c[i] for name, c in columns.items()}}
        for i in range(N)
    ]
    with pytest.raises(errors.NotIndexedError) as caught:
        redis.do(index.load_documents(iter(documents), batch_size=batch_size))
    assert caught.value.ids == tuple(map(str, BAD))
    loaded = redis.do(index.load_documents(iter(documents), raise_errors=False))
    assert (loaded, loaded.failed) == (N, [str(i) for i in BAD])
    good = [document for document in documents if document["id"] not in BAD]
    assert redis.do(index.load_documents(good)).failed == []


@both_kinds
def test_an_index_of_another_size_takes_none(redis: Redis, on: str) -> None:
    made(redis, on, fields=[Vector("vec", DIM + 1)])
    index = believed(redis.client, on)
    with pytest.raises(errors.NotIndexedError, match="10 of 10") as caught:
        redis.do(index.load(range(N), vectors(N)))
    assert caught.value.ids == tuple(map(str, range(N)))
    assert redis.do(index.load(None, vectors(2), raise_errors=False)).failed


@both_kinds
def test_an_index_of_another_prefix_takes_none(redis: Redis, on: str) -> None:
    made(redis, on, prefix="elsewhere:")
    with pytest.raises(errors.NotIndexedError, match="10 of 10"):
        redis.do(believed(redis.client, on).load(range(N), vectors(N)))


def test_the_error_holds_a_thousand_ids_and_counts_all(client: Client) -> None:
    make(client, "hash", fields=[Vector("vec", DIM + 1)])
    index = believed(client, "hash")
    with pytest.raises(errors.NotIndexedError, match="1100 of 1100") as caught:
        index.load(range(1100), vectors(1100))
    assert caught.value.ids == tuple(map(str, range(1000)))
    failed = index.load(range(1100), vectors(1100), raise_errors=False).failed
    assert failed == [str(i) for i in range(1100)]


@both_kinds
def test_the_failures_of_others_are_not_ours(client: Client, on: str) -> None:
    live = make(client, on, fields=[Numeric("n"), *PLAIN])
    index = believed(client, on)

    def spoil() -> None:
        index.load(["theirs"], vectors(1), {"n": ["x"]}, raise_errors=False)

    spoil()
    assert live.info().failures == 1
    assert index.load(range(N), vectors(N), {"n": [5] * N}).failed == []
    # In the middle of ours, too: between its batches, and before it looks which have failed.
    plan = index.plan.load(range(N), vectors(N), {"n": [5] * N}, batch_size=4)
    assert meanwhile(client, plan, spoil, lambda name: name.startswith("DEL")).failed == []
    column = [5] * (N - 1) + ["x"]
    plan = index.plan.load(range(N), vectors(N), {"n": column}, raise_errors=False)
    assert meanwhile(client, plan, spoil, lambda name: "FT.INFO" in name).failed == ["9"]


@both_kinds
def test_what_somebody_deletes_meanwhile_has_not_failed(client: Client, on: str) -> None:
    make(client, on, fields=[Numeric("n"), *PLAIN])
    index = believed(client, on)
    plan = index.plan.load(range(N), vectors(N), {"n": column(5, "x")}, raise_errors=False)

    def delete() -> None:
        client.call("DEL", "docs:0", "docs:2", "docs:9")  # 2 is one that was not indexed

    loaded = meanwhile(client, plan, delete, lambda name: "FT.INFO" in name)
    assert (loaded, loaded.failed) == (N, ["3", "7"])


@both_kinds
def test_what_was_replaced_meanwhile_and_is_indexed_has_not_failed(client: Client, on: str) -> None:
    make(client, on, fields=[Numeric("n"), *PLAIN])
    index = believed(client, on)
    plan = index.plan.load(range(N), vectors(N), {"n": column(5, "x")}, raise_errors=False)

    def replace() -> None:
        index.load([3], vectors(1), {"n": [1]})

    assert meanwhile(client, plan, replace, lambda name: "FT.INFO" in name).failed == ["2", "7"]


@both_kinds
def test_documents_that_expire_at_once_have_not_failed(redis: Redis, on: str) -> None:
    index = made(redis, on)
    loaded = redis.do(index.load(range(2000), vectors(2000), ttl=0.001, batch_size=100))
    assert (loaded, loaded.failed) == (2000, [])


@both_kinds
def test_without_an_index_documents_are_only_stored(redis: Redis, on: str) -> None:
    index: Any = VectorIndex(redis.client, "docs", FIELDS, on=on)
    loaded = redis.do(index.load(range(N), vectors(N), {"year": range(N)}, batch_size=3))
    assert (loaded, loaded.failed) == (N, [])
    redis.do(index.create())
    redis.do(index.wait_until_indexed())
    assert redis.do(index.count()) == N


def test_without_a_search_module_documents_are_only_stored(plain_server: EmbeddedServer) -> None:
    with Client(plain_server.url) as client:
        client.call("FLUSHALL")
        assert VectorIndex(client, "docs", FIELDS).load(range(N), vectors(N)) == N
        assert client.call("DBSIZE") == N


def test_a_user_who_may_not_search_may_still_write(client: Client, server: EmbeddedServer) -> None:
    index = make(client, "hash")
    client.call("ACL", "SETUSER", "writer", "on", ">secret", "~docs:*", "+del", "+hset", "+hello")
    try:
        with Client(server.url, username="writer", password="secret") as writer:
            assert VectorIndex(writer, "docs", FIELDS).load(range(N), vectors(N)) == N
    finally:
        client.call("ACL", "DELUSER", "writer")
    assert index.count() == N


@both_kinds
def test_a_condition_of_the_index_leaves_out_what_it_should(redis: Redis, on: str) -> None:
    index = made(redis, on, filter_expression="@year > 4")
    loaded = redis.do(index.load(range(N), vectors(N), {"year": range(N)}))
    assert (loaded, loaded.failed) == (N, [])
    assert redis.do(index.count()) == 5


@both_kinds
def test_what_comes_from_a_file_is_looked_at_too(
    redis: Redis, on: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("files") / "docs.jsonl"
    source = made(redis, on, fields=PLAIN)
    values = column(5, "x")
    redis.do(source.load(range(N), vectors(N), {"n": values}))
    redis.do(source.export(path))
    target = made(redis, on, "other", [Numeric("n"), *PLAIN])
    with pytest.raises(errors.NotIndexedError, match="3 of 10") as caught:
        redis.do(target.import_(path))
    assert sorted(caught.value.ids) == [str(i) for i in BAD]


def test_the_loads_of_a_gather_fail_each_for_itself(redis: Redis) -> None:
    made(redis, "hash", "good")
    made(redis, "hash", "bad", [Vector("vec", DIM + 1)])
    ops = [
        believed(redis.client, "hash", name).plan.load(range(N), np.asarray(vectors(N)))
        for name in ("good", "bad", "good")
    ]
    [first, error, last] = redis.do(redis.client.gather(ops, raise_errors=False))
    assert (first, last) == (N, N)
    assert isinstance(error, errors.NotIndexedError)
    assert error.ids == tuple(map(str, range(N)))
