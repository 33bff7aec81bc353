"""Answers that are not whole: time that was up, an index that is being built, rows that expired."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from time import sleep
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from conftest import Redis
from rawredis_llm import (
    Client,
    EmbeddedServer,
    Numeric,
    Retriever,
    Tag,
    Text,
    Vector,
    VectorIndex,
    errors,
)
from rawredis_llm.search.aggregate import count, group_by, load
from rawredis_llm.search.replies import SearchReply, search_reply
from scripted import Script, shape

if TYPE_CHECKING:
    from rawredis_llm.protocol.operation import Batch

DIM = 16
BIG = 20_000
FIELDS = (Text("body"), Tag("color"), Numeric("n", sortable=True), Vector("vec", DIM))
WORDS = "some words more"
UP = "Timeout limit was reached"


def vectors(count: int) -> Any:
    """Return random vectors, the same each time."""
    return np.random.default_rng(1).normal(size=(count, DIM)).astype(np.float32)


# -- time that was up ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def big() -> Iterator[EmbeddedServer]:
    """A server of its own with an index that takes more than a millisecond to look through."""
    with EmbeddedServer() as server, Client(server.url) as client:
        index = VectorIndex(client, "docs", FIELDS)
        index.create()
        columns = {"n": range(BIG), "body": ["some words more"] * BIG}
        index.load(range(BIG), vectors(BIG), columns, batch_size=5000)
        yield server


@pytest.fixture(params=["sync-2", "sync-3", "aio-2", "aio-3"])
def slow(request: pytest.FixtureRequest, big: EmbeddedServer) -> Iterator[Redis]:
    """A client of that server, in four colours."""
    kind, _, protocol = request.param.partition("-")
    redis = Redis(big.url, kind, int(protocol))
    yield redis
    redis.do(redis.client.call("FT.CONFIG", "SET", "ON_TIMEOUT", "return"))
    redis.close()


Ask = Callable[..., Any]
LONG: dict[str, Ask] = {
    "search": lambda i, **o: i.search(vectors(1)[0], 9000, filter=Numeric("n") >= 0, **o),
    "text": lambda i, **o: i.text(WORDS, BIG, **o),
    "query": lambda i, **o: i.query(Numeric("n") >= 0, sort_by="n", limit=BIG, **o),
    "aggregate": lambda i, **o: i.aggregate(load("body"), group_by("n", many=count()), **o),
    "mmr": lambda i, **o: i.mmr(vectors(1)[0], 5, candidates=9000, filter=Numeric("n") >= 0, **o),
    "hybrid": lambda i, **o: i.hybrid(WORDS, vectors(1)[0], 2, window=BIG, **o),
}


@pytest.mark.parametrize("name", LONG)
def test_time_that_was_up_is_told_where_the_server_tells_it(slow: Redis, name: str) -> None:
    index = VectorIndex(slow.client, "docs", FIELDS)
    result = slow.do(LONG[name](index, timeout=0.001))
    if slow.protocol == 2:  # which has no place for it
        assert (result.partial, result.warnings) == (False, [])
    else:
        assert result.partial is True
        assert set(result.warnings) == {UP}
    if name in ("text", "query"):
        assert len(result.rows) < BIG


@pytest.mark.parametrize("name", ["aggregate", "hybrid"])
def test_a_warning_is_given_once(big: EmbeddedServer, name: str) -> None:
    with Client(big.url) as client:
        index = VectorIndex(client, "docs", FIELDS)
        assert LONG[name](index, timeout=0.001).warnings == [UP]


@pytest.mark.parametrize("name", LONG)
def test_time_that_was_up_raises_where_one_says_so(slow: Redis, name: str) -> None:
    index = VectorIndex(slow.client, "docs", FIELDS)
    if slow.protocol == 2:
        assert not slow.do(LONG[name](index, timeout=0.001, on_partial="raise")).partial
    else:
        with pytest.raises(errors.PartialResultError, match=f"index 'docs': {UP}"):
            slow.do(LONG[name](index, timeout=0.001, on_partial="raise"))


@pytest.mark.parametrize("name", LONG)
def test_with_time_enough_the_answer_is_whole(big: EmbeddedServer, name: str) -> None:
    with Client(big.url) as client:
        result = LONG[name](VectorIndex(client, "docs", FIELDS), timeout=60, on_partial="raise")
    assert (result.partial, result.warnings) == (False, [])
    if name in ("text", "query"):
        assert len(result.rows) == BIG


@pytest.mark.parametrize("name", ["text", "query", "aggregate", "hybrid"])
def test_a_server_may_be_set_to_fail_instead(slow: Redis, name: str) -> None:
    slow.do(slow.client.call("FT.CONFIG", "SET", "ON_TIMEOUT", "fail"))
    index = VectorIndex(slow.client, "docs", FIELDS)
    with pytest.raises(errors.SearchTimeoutError, match="more timeout="):
        slow.do(LONG[name](index, timeout=0.001))


# -- an index that is being built ----------------------------------------------------------------

ASKS: dict[str, Callable[[Any], Any]] = {
    "search": lambda i: i.search(vectors(1)[0], 5),
    "range": lambda i: i.range(vectors(1)[0], 0.5, limit=5),
    "query": lambda i: i.query(),
    "text": lambda i: i.text("word"),
    "hybrid": lambda i: i.hybrid("word", vectors(1)[0], method="linear"),
    "mmr": lambda i: i.mmr(vectors(1)[0], 5),
    "aggregate": lambda i: i.aggregate(group_by(many=count())),
}


def test_an_index_that_is_being_built_is_said_to_be(redis: Redis) -> None:
    size = 5000
    graph = (*FIELDS[:3], Vector("vec", DIM, algorithm="hnsw"))
    with Client(redis.url) as client:
        unbuilt = VectorIndex(client, "docs", FIELDS)
        unbuilt.load(range(size), vectors(size), {"n": range(size), "body": ["word"] * size})
    index = VectorIndex(redis.client, "docs", graph)
    redis.do(index.create())
    for name, ask in ASKS.items():
        result = redis.do(ask(index))
        assert (name, result.partial) == (name, True)
        assert all("the index is being built" in text for text in result.warnings)
    [one] = redis.do(index.search_many(vectors(1), 5))
    assert one.partial
    with pytest.raises(errors.PartialResultError, match=r"being built.*wait_until_indexed\(\)"):
        redis.do(index.search(vectors(1)[0], 5, on_partial="raise"))
    other = VectorIndex(redis.client, "docs", graph)
    redis.do(index.wait_until_indexed())
    for known in (index, other):
        result = redis.do(known.search(vectors(1)[0], 5, on_partial="raise"))
        assert (result.partial, result.warnings, result.rows[0].id) == (False, [], "0")
        assert redis.do(known.aggregate(group_by(many=count()))).rows == [{"many": size}]


@pytest.mark.parametrize("many", [False, True])
def test_the_server_is_asked_before_it_searches(*, many: bool) -> None:
    index = VectorIndex(Client("redis://127.0.0.1:1/0"), "docs", FIELDS).plan
    op: Any = index.search_many(vectors(3)) if many else index.search(vectors(1)[0])
    batch: Batch = next(iter(op))
    assert shape(batch)[0] == ("FT.INFO", "docs")


def test_an_index_that_is_made_anew_is_looked_at_anew(redis: Redis) -> None:
    graph = (*FIELDS[:3], Vector("vec", DIM, algorithm="hnsw", ef_construction=400))
    index = VectorIndex(redis.client, "docs", graph)
    redis.do(index.create())
    assert not redis.do(index.search(vectors(1)[0])).partial
    redis.do(index.drop())
    redis.do(index.load(range(3000), vectors(3000)))
    redis.do(index.create())
    assert redis.do(index.search(vectors(1)[0])).partial
    while redis.do(index.search(vectors(1)[0])).partial:
        sleep(0.02)


# -- documents that expire meanwhile -------------------------------------------------------------

NEAR = {b"__distance": b"0.25", b"n": b"1"}
GONE: list[dict[bytes, Any]] = [
    {b"id": b"docs:a", b"extra_attributes": NEAR, b"values": []},
    {b"id": b"docs:b", b"extra_attributes": None, b"values": []},
    {b"id": b"docs:c", b"extra_attributes": {**NEAR, b"__distance": b"nan"}, b"values": []},
]
RESP3: dict[bytes, Any] = {
    b"attributes": [],
    b"total_results": 3,
    b"format": b"STRING",
    b"warning": [],
}
PAIRS = [b"__distance", b"0.25", b"n", b"1"]
RESP2 = [3, b"docs:a", PAIRS, b"docs:b", None, b"docs:c", [b"__distance", b"nan", b"n", b"1"]]


def answered(reply: Any) -> Any:
    """Return the result of a search that is answered so, by an index that is complete."""
    index = VectorIndex(Client("redis://127.0.0.1:1/0"), "docs", FIELDS)
    index._known.settled = True
    command: Any = index.plan.search(vectors(1)[0], 5)
    return Script((command.args, reply)).run(command)


@pytest.mark.parametrize("reply", [{**RESP3, b"results": GONE}, RESP2], ids=["resp3", "resp2"])
def test_a_row_that_expired_meanwhile_is_left_out(reply: Any) -> None:
    result = answered(reply)
    assert [(row.id, row.distance) for row in result.rows[:1]] == [("a", 0.25)]
    assert [row.id for row in result.rows] == ["a", "c"]  # what is no number goes last
    assert np.isnan(result.rows[1].distance)
    assert not result.partial


def test_a_stump_is_left_out_only_of_what_is_partial() -> None:
    rows: list[Any] = [*GONE[:1], {b"extra_attributes": NEAR}, {}]
    told = {**RESP3, b"results": rows, b"warning": [UP.encode()]}
    result = answered(told)
    assert [row.id for row in result.rows] == ["a"]
    assert (result.partial, result.warnings) == (True, [UP])
    with pytest.raises(errors.UnexpectedReplyError):
        answered({**told, b"warning": []})


def test_a_row_without_a_distance_is_no_neighbour() -> None:
    for reply in (
        {**RESP3, b"results": [{b"id": b"docs:a", b"extra_attributes": {b"n": b"1"}}]},
        [1, b"docs:a", [b"n", b"1"]],
        [1, b"docs:a", [b"__distance", b"near"]],
    ):
        with pytest.raises(errors.UnexpectedReplyError, match="without a distance"):
            answered(reply)


@pytest.mark.parametrize("protocol", [2, 3])
def test_nothing_but_a_row_of_one_that_expired(protocol: int) -> None:
    rows: Any = [1, b"docs:b", b"0.5", None]
    if protocol == 3:
        rows = {**RESP3, b"results": [{**GONE[1], b"score": 0.5}]}
    assert search_reply(rows, scores=True).rows == [(b"docs:b", None, 0.5)]
    assert isinstance(search_reply(rows, scores=True), SearchReply)


@pytest.mark.parametrize("protocol", [2, 3])
def test_documents_expire_while_one_searches(protocol: int) -> None:
    with (
        EmbeddedServer(extra=("--enable-debug-command", "yes")) as server,
        Client(server.url, protocol=protocol) as client,
    ):
        client.call("DEBUG", "SET-ACTIVE-EXPIRE", 0)
        index = VectorIndex(client, "docs", FIELDS)
        index.create()
        columns = {"n": range(40), "body": ["word"] * 40}
        index.load(range(40), vectors(40), columns)
        dead = random.Random(1).sample(range(40), 20)
        for i in dead:
            client.call("PEXPIRE", f"docs:{i}", 1)
        sleep(0.01)
        living = {str(i) for i in range(40)} - {str(i) for i in dead}
        near = vectors(1)[0]
        results = [
            index.search(near, 40),
            index.range(near, 2),
            index.query(limit=40),
            index.text("word", 40),
            index.hybrid("word", near, 40),
            index.mmr(near, 40, candidates=40),
        ]
        for result in results:
            assert {row.id for row in result.rows} == living


# -- an index that is gone, a user who may not look ----------------------------------------------


@pytest.mark.parametrize("how", [("FLUSHALL",), ("FT.DROPINDEX", "docs")], ids=str)
def test_an_index_that_is_gone_is_said_to_be(redis: Redis, how: tuple[str, ...]) -> None:
    index = VectorIndex(redis.client, "docs", FIELDS)
    redis.do(index.create())
    redis.do(index.load(["a"], vectors(1), {"body": ["word"]}))
    retriever = Retriever(index, lambda texts: vectors(len(texts)), text_field="body")
    for known in (False, True):  # it is asked of at the first search, and not later
        for ask in ASKS.values():
            if known:
                redis.do(ask(index))
        with Client(redis.url) as another:
            another.call(*how)
        for ask in ASKS.values():
            for asked in (index, VectorIndex(redis.client, "docs", FIELDS)):
                with pytest.raises(errors.IndexNotFoundError, match=r"create\(\)"):
                    redis.do(ask(asked))
        with pytest.raises(errors.IndexNotFoundError, match=r"create\(\)"):
            redis.do(index.search_many(vectors(2)))
        with pytest.raises(errors.IndexNotFoundError, match=r"create\(\)"):
            redis.do(retriever.retrieve("a"))
        redis.do(index.create())


def test_a_user_who_may_not_look_may_search(redis: Redis) -> None:
    index = VectorIndex(redis.client, "docs", FIELDS)
    redis.do(index.create())
    redis.do(index.load(["a"], vectors(1), {"body": ["word"]}))
    redis.do(redis.client.call("ACL", "SETUSER", "guest", "on", ">p", "~*", "+@all", "-ft.info"))
    try:
        guest = redis.connect(username="guest", password="p")
        for name, ask in ASKS.items():
            mine = VectorIndex(guest, "docs", FIELDS)
            for _ in range(2):
                result = redis.do(ask(mine))
                assert (name, result.partial, len(result.rows)) == (name, False, 1)
        strict = VectorIndex(guest, "docs", FIELDS)
        assert len(redis.do(strict.search(vectors(1)[0], on_partial="raise")).rows) == 1
        with pytest.raises(errors.NoPermissionError):
            redis.do(strict.info())
    finally:
        redis.do(redis.client.call("ACL", "DELUSER", "guest"))
