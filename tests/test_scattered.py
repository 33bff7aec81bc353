"""FT.* asked of three servers, and joined, says what one server with all documents says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from documents import DIM, FIELDS, vectors
from rawredis_llm import Client, EmbeddedServer, Numeric, Plan, Tag, VectorIndex
from rawredis_llm.errors import (
    IndexExistsError,
    IndexMismatchError,
    IndexNotFoundError,
    ReplyError,
    UnexpectedReplyError,
    UnsupportedError,
    reply_error,
)
from rawredis_llm.index.queries import _flat
from rawredis_llm.protocol.joining import asked_name
from rawredis_llm.protocol.operation import steps_of
from rawredis_llm.protocol.scattered import local_name, scatter
from rawredis_llm.protocol.slots import SLOTS, key_slot

NODES = 3
COUNT = 60
HOMES = [index * SLOTS // NODES + 7 for index in range(NODES)]  # a slot of each node
CREATE: list[Any] = ["FT.CREATE", "docs", "ON", "HASH", "PREFIX", 1, "docs:", "SCHEMA"]
CREATE += ["color", "TAG", "year", "NUMERIC", "text", "TEXT", "town", "TEXT", "SORTABLE", "UNF"]
CREATE += ["vec", "VECTOR", "FLAT", 6, "TYPE", "FLOAT32", "DIM", DIM, "DISTANCE_METRIC", "L2"]


class Servers:
    """Three that share the documents, and one that has them all; `ask` is for both."""

    def __init__(self, urls: list[str], protocol: int) -> None:
        self.clients = [Client(url, protocol=protocol) for url in urls]
        self.whole, self.nodes = self.clients[0], self.clients[1:]

    def sole(self, *args: Any) -> Any:
        return self.whole.pipeline([args], raise_errors=False)[0]

    def joined(self, *args: Any) -> Any:
        asked = scatter(args, NODES)
        replies = [
            node.pipeline([asked.args_for(home)], raise_errors=False)[0]
            for node, home in zip(self.nodes, HOMES, strict=True)
        ]
        return asked.join(replies)

    def same(self, *args: Any) -> Any:
        """Ask both; they must say the same, and it is returned."""
        joined, sole = self.joined(*args), self.sole(*args)
        assert settled(joined) == settled(sole)
        return joined

    def write(self, key: str, *fields: Any) -> None:
        node = self.nodes[key_slot(key.encode()) * NODES // SLOTS]
        for client in (self.whole, node):
            client.call("HSET", key, *fields)


def settled(reply: Any) -> Any:
    """Return a reply without the order in which a hash has its fields, which is anyone's."""
    if not isinstance(reply, list):
        return reply
    return [
        dict(zip(part[::2], part[1::2], strict=True)) if isinstance(part, list) else part
        for part in reply
    ]


@pytest.fixture(scope="module")
def urls() -> Iterator[list[str]]:
    with ExitStack() as stack:
        yield [stack.enter_context(EmbeddedServer()).url for _ in range(1 + NODES)]


@pytest.fixture(params=[3, 2])
def servers(request: pytest.FixtureRequest, urls: list[str]) -> Iterator[Servers]:
    servers = Servers(urls, request.param)
    for client in servers.clients:
        client.call("FLUSHALL")
    assert servers.same(*CREATE) == b"OK"
    words = ["red", "green", "blue"]
    for i, vector in enumerate(vectors(COUNT)):
        fields = ["color", words[i % 3], "text", " ".join(words[: i % 3 + 1] * (i + 1)), "vec"]
        year = [] if i % 10 == 9 else ["year", 1990.25 + (i * 7 % COUNT)]
        town = [] if i % 10 == 8 else ["town", f"{'aBcZ'[i % 4]}{i}é"]
        servers.write(f"docs:{i}", *fields, vector, *year, *town)
    yield servers
    for client in servers.clients:
        client.close()


INDEX = VectorIndex(Plan(), "docs", FIELDS)
QUERY = vectors(1, seed=2)[0]
EVERY_QUERY: dict[str, Callable[[], Any]] = {
    "knn": lambda: INDEX.search(QUERY, 7),
    "knn of more than there are": lambda: INDEX.search(QUERY, 500),
    "knn of a page": lambda: INDEX.search(QUERY, 5, offset=8),
    "knn with vectors": lambda: INDEX.search(QUERY, 7, include_vectors=True),
    "knn of a filter": lambda: INDEX.search(QUERY, 9, filter=Tag("color") != "red"),
    "knn of few": lambda: INDEX.search(QUERY, 9, filter=Numeric("year") < 1995),
    "knn of nothing": lambda: INDEX.search(QUERY, 9, filter=Tag("color") == "[KNN 3 @vec $v]"),
    "range": lambda: INDEX.range(QUERY, 3.0),
    "range of a page": lambda: INDEX.range(QUERY, 6.0, limit=5, offset=3),
    "range of a filter": lambda: INDEX.range(QUERY, 6.0, filter=Tag("color") == "red"),
    "sorted": lambda: INDEX.query(Numeric("year") > 0, sort_by="year", limit=20),
    "sorted downwards": lambda: INDEX.query(sort_by="-year", limit=20, offset=15),
    "named as a knn": lambda: INDEX.query(Tag("color") == "a=>[KNN 3 @vec $v]"),
    "count": lambda: INDEX.count(Tag("color") == "blue"),
}


def run(op: Any, ask: Any) -> Any:
    """Return the result of an op whose commands are asked by `ask`."""
    steps, value = steps_of(op), cast("Any", None)
    try:
        while True:
            request: Any = steps.send(value)
            value = request.result([ask(*command.args) for command in _flat(request)])
    except StopIteration as end:
        return end.value


@pytest.mark.parametrize("name", EVERY_QUERY)
def test_what_the_library_asks_is_answered_as_by_one_server(servers: Servers, name: str) -> None:
    joined, sole = (run(EVERY_QUERY[name](), ask) for ask in (servers.joined, servers.sole))
    if name == "count":
        assert joined == sole == 20
        return
    assert repr(joined) == repr(sole)
    assert (joined.total == 0) is (name in ("knn of nothing", "named as a knn"))
    assert len({row.id for row in joined.rows}) == len(joined.rows)


def test_all_keys_of_a_filter(servers: Servers) -> None:
    ending = ("LIMIT", 0, 1_000_000, "TIMEOUT", 0, "DIALECT", 2)
    args = ("FT.SEARCH", "docs", "@color:{red|blue}", "NOCONTENT", *ending)
    sole, joined = servers.sole(*args), servers.joined(*args)
    if isinstance(sole, dict):
        assert {**sole, b"results": 0} == {**joined, b"results": 0}
        sole, joined = ([row[b"id"] for row in one[b"results"]] for one in (sole, joined))
        assert len(joined) == 40
    assert sorted(map(str, sole)) == sorted(map(str, joined))


ORDERS = [["town"], ["town", "ASC"], ["town", b"desc"], ["year"], ["year", "DESC"]]


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("shown", [[], ["NOCONTENT"], ["RETURN", 0], ["RETURN", 1, "town"]])
def test_sorted_as_one_server_sorts(servers: Servers, order: list[Any], shown: list[Any]) -> None:
    args = ["FT.SEARCH", "docs", "@color:{red|blue}", "SORTBY", *order, *shown, "DIALECT", 2]
    assert servers.same(*args, "LIMIT", 0, 30)
    servers.same(*args, "LIMIT", 7, 11)
    servers.same(*args)  # the first ten
    servers.same(*args, "WITHSCORES", "LIMIT", 0, 0)
    servers.same(*args, "WITHSORTKEYS", "LIMIT", 3, 30)


def rows(reply: Any, width: int = 2) -> list[Any]:
    """Return the keys of a reply, in RESP2 with whatever else is in them."""
    if isinstance(reply, dict):
        return [row[b"id"] for row in reply[b"results"]]
    return list(reply[1::width])


def test_documents_without_the_field_come_last_and_pages_have_each_once(servers: Servers) -> None:
    for order in ("ASC", "DESC"):
        args = ("FT.SEARCH", "docs", "*", "SORTBY", "year", order, "NOCONTENT", "LIMIT")
        pages = [rows(servers.joined(*args, start, 7), 1) for start in range(0, COUNT, 7)]
        all_rows = [key for page in pages for key in page]
        assert len(all_rows) == COUNT == len(set(all_rows))
        assert {int(key[5:]) % 10 for key in all_rows[-6:]} == {9}
        assert all_rows[:-6] == rows(servers.sole(*args, 0, 54), 1)


def test_pages_among_equals_have_each_once(servers: Servers) -> None:
    for client in servers.clients:
        for key in client.call("KEYS", "docs:*"):
            client.call("HSET", key, "year", 5)
    args = ("FT.SEARCH", "docs", "*", "SORTBY", "year", "NOCONTENT", "LIMIT")
    pages = [rows(servers.joined(*args, start, 4), 1) for start in range(0, COUNT, 4)]
    assert len({key for page in pages for key in page}) == COUNT
    assert [key for page in pages for key in page] == rows(servers.joined(*args, 0, COUNT), 1)


def test_scores_that_need_no_other_document_are_one_servers(servers: Servers) -> None:
    ending = ("SCORER", "DISMAX", "RETURN", 1, "color", "LIMIT", 0, 5, "DIALECT", 2)
    reply = servers.same("FT.SEARCH", "docs", "blue", "WITHSCORES", *ending)
    assert len(rows(reply, 3)) == 5
    reply = servers.same("FT.SEARCH", "docs", "blue", *ending)
    assert len(rows(reply)) == 5
    found, sole = (run(INDEX.text("green", 50), ask) for ask in (servers.joined, servers.sole))
    assert found.total == sole.total == len(found.rows) == 40
    assert [row.score for row in found.rows] == sorted((r.score for r in found.rows), reverse=True)
    assert {row.id: row.fields for row in found.rows} == {row.id: row.fields for row in sole.rows}


KNN = "*=>[KNN 4 @vec $v AS near]"
BLOB = QUERY.tobytes()


def test_other_spellings_of_a_knn(servers: Servers) -> None:
    given = ("PARAMS", 4, "v", QUERY, "k", 4)
    ending = (*given, "DIALECT", "2", "LIMIT", b"1", "9")
    for query, by in (
        (KNN, "near"),
        (b"@color:{red} => [knn $k @vec $v]=>{$yield_distance_as: far} ", b"far"),
        ('@color:{"\\"[KNN 9 @a $b]"|blue}=>[KNN $k @vec $v]', "__vec_score"),
    ):
        reply = servers.same("FT.SEARCH", "docs", query, "SORTBY", by, "RETURN", 1, by, *ending)
        assert (reply[b"total_results"] if isinstance(reply, dict) else reply[0]) == 4
        assert len(rows(reply)) == 3
    args = ("SORTBY", "near", "LIMIT", 0, 0, *given, "DIALECT", 2)
    assert servers.same("FT.SEARCH", "docs", KNN, *args)


def test_the_life_of_an_index(servers: Servers) -> None:
    assert servers.same("FT.ALIASADD", "other", "docs") == b"OK"
    by_alias = ("FT.SEARCH", "other", "*", "SORTBY", "town", "NOCONTENT", "DIALECT", 2)
    servers.same(*by_alias)
    assert isinstance(servers.joined("FT.ALIASADD", "other", "docs"), ReplyError)
    assert servers.same("FT.ALIASUPDATE", b"other", b"docs") == b"OK"
    assert servers.same("FT.ALIASDEL", "other") == b"OK"
    assert servers.same("FT.ALTER", "docs", "SCHEMA", "ADD", "more", "TAG") == b"OK"
    assert servers.same("FT._LIST") == [b"docs"]
    assert sorted(servers.same("FT.TAGVALS", "docs", "color")) == [b"blue", b"green", b"red"]
    assert servers.same("FT.EXPLAIN", "docs", "@color:{red}")
    assert servers.same("FT.DROPINDEX", "docs", "DD") == b"OK"
    assert [client.call("DBSIZE") for client in servers.clients] == [0] * 4
    gone = servers.joined("FT.SEARCH", "docs", "*")
    with pytest.raises(IndexNotFoundError):
        raise reply_error(gone.message, "FT.SEARCH")


def test_info(servers: Servers) -> None:
    servers.write("docs:bad", "vec", b"short", "color", "red")
    describe: Any = INDEX.info()
    sole, joined = (
        describe.value(ask("FT.INFO", "docs")) for ask in (servers.sole, servers.joined)
    )
    assert joined.name == "docs"
    assert joined.documents == sole.documents == COUNT
    assert joined.failures == sole.failures == 1
    assert (joined.last_failure, joined.last_failed_key) == (sole.last_failure, "docs:bad")
    assert joined.attributes == sole.attributes
    assert joined.whole
    sizes = [node.call("FT.INFO", local_name(b"docs", home)) for node, home in _homes(servers)]
    each = [describe.value(size).memory_mb for size in sizes]
    assert joined.memory_mb == pytest.approx(sum(each))
    assert joined.memory_mb > max(each) > 0


def _homes(servers: Servers) -> list[tuple[Client, int]]:
    return list(zip(servers.nodes, HOMES, strict=True))


@pytest.mark.parametrize("text", [False, True])
def test_an_index_is_whole_when_it_is_so_on_every_node(text: bool) -> None:
    def node(percent: float, indexing: int) -> Any:
        numbers = {b"num_docs": 3, b"indexing": indexing, b"percent_indexed": percent}
        told = {name: repr(n).encode() if text else n for name, n in numbers.items()}
        return {b"index_name": b"docs", b"index_definition": [], b"attributes": [], **told}

    joined = scatter(("FT.INFO", "docs"), 3).join([node(1.0, 0), node(0.25, 1), node(1.0, 0)])
    found = {name: float(joined[name]) for name in (b"num_docs", b"indexing", b"percent_indexed")}
    assert found == {b"num_docs": 9, b"indexing": 1, b"percent_indexed": 0.25}


def test_indexes_that_differ_are_told(servers: Servers) -> None:
    (node, home), *_ = _homes(servers)
    node.call("FT.ALTER", local_name(b"docs", home), "SCHEMA", "ADD", "more", "TAG")
    with pytest.raises(IndexMismatchError, match="attributes"):
        servers.joined("FT.INFO", "docs")


def test_half_made_and_half_dropped_indexes_heal(servers: Servers) -> None:
    (node, home), *_ = _homes(servers)
    node.call("FT.DROPINDEX", local_name(b"docs", home))
    assert isinstance(servers.joined("FT.SEARCH", "docs", "*"), ReplyError)  # and no part of it
    assert servers.joined(*CREATE) == b"OK"
    error = servers.joined(*CREATE)
    assert isinstance(reply_error(error.message, "FT.CREATE"), IndexExistsError)
    node.call("FT.DROPINDEX", local_name(b"docs", home))
    assert servers.joined("FT.DROPINDEX", "docs") == b"OK"
    error = servers.joined("FT.DROPINDEX", "docs")
    assert isinstance(reply_error(error.message, "FT.DROPINDEX"), IndexNotFoundError)


def test_counts(servers: Servers) -> None:
    count = ("GROUPBY", 0, "REDUCE", "COUNT", "0")
    servers.same("FT.AGGREGATE", "docs", "@color:{red}", *count, "AS", "many", "DIALECT", 2)
    servers.same("FT.AGGREGATE", "docs", "*", "TIMEOUT", 0, *count)
    servers.same("FT.AGGREGATE", "docs", "@year:[1990 1992]", *count)
    servers.same("FT.AGGREGATE", "docs", "@year:[1 2]", *count)


REFUSED: list[tuple[Any, ...]] = [
    ("FT.HYBRID", "docs", "SEARCH", "a"),
    ("FT.CURSOR", "READ", "docs", 1),
    ("FT.PROFILE", "docs", "SEARCH", "QUERY", "*"),
    ("FT.SPELLCHECK", "docs", "a"),
    ("FT.SUGGET", "docs", "a"),
    ("FT.SEARCH", "docs", "*", "WITHPAYLOADS"),
    ("FT.SEARCH", "docs", "*", "WITHSCORES", "EXPLAINSCORE"),
    ("FT.SEARCH", "docs", "*", "NOSUCHOPTION"),
    ("FT.SEARCH", "docs", "*", np.zeros(2)),
    ("FT.SEARCH", "docs", "*", "LIMIT", 0, 1, "LIMIT", 0, 2),
    ("FT.SEARCH", "docs", "*", "LIMIT", 1, 1_000_000),
    ("FT.SEARCH", "docs", KNN),
    ("FT.SEARCH", "docs", KNN, "SORTBY", "year"),
    ("FT.SEARCH", "docs", KNN, "SORTBY", "near", "DESC"),
    ("FT.SEARCH", "docs", f"({KNN})", "SORTBY", "near"),
    ("FT.AGGREGATE", "docs", "*"),
    ("FT.AGGREGATE", "docs", "*", "GROUPBY", 0, "REDUCE", "COUNT", 0, "WITHCURSOR"),
    ("FT.AGGREGATE", "docs", "*", *("GROUPBY", 0, "REDUCE", "COUNT", 0) * 2),
    ("FT.AGGREGATE", "docs", "*", "GROUPBY", 1, "@color", "REDUCE", "COUNT", 0),
    ("FT.AGGREGATE", "docs", "*", "GROUPBY", 0, "REDUCE", "SUM", 1, "@year"),
    ("FT.AGGREGATE", "docs", KNN, "GROUPBY", 0, "REDUCE", "COUNT", 0),
]


@pytest.mark.parametrize("args", REFUSED, ids=str)
def test_what_cannot_be_joined_is_refused_by_name(args: tuple[Any, ...]) -> None:
    with pytest.raises(UnsupportedError) as caught:
        scatter(args, NODES)
    assert caught.value.command == args[0]
    assert "docs" not in str(caught.value)


WRONG: list[tuple[Any, ...]] = [
    ("FT.SEARCH",),
    ("FT.SEARCH", "docs"),
    ("FT.AGGREGATE", "docs"),
    ("FT.SEARCH", "", "*"),
    ("FT.SEARCH", "docs{a}", "*"),
    ("FT.ALIASADD", "other", "{docs"),
    ("FT.ALIASADD", "other"),
    ("FT.SEARCH", "docs", "*", "LIMIT", 0),
    ("FT.SEARCH", "docs", "*", "LIMIT", 0, -1),
    ("FT.SEARCH", "docs", "*", "RETURN"),
    ("FT.SEARCH", "docs", "*", "INKEYS", -3, "a"),
    ("FT.SEARCH", "docs", "*=>[KNN $k @vec $v AS near]", "SORTBY", "near", "PARAMS", 2, "v", BLOB),
]


@pytest.mark.parametrize("args", WRONG, ids=str)
def test_wrong_arguments(args: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"takes|missing|must not"):
        scatter(args, NODES)


def test_a_blob_is_sent_as_it_is_and_names_of_options_may_be_fields() -> None:
    ending = ("RETURN", 2, "LIMIT", "SORTBY", "LIMIT", 4, 2, "PARAMS", 2, "v", QUERY)
    args = scatter(("FT.SEARCH", "docs", KNN, "SORTBY", "near", *ending), 2).args_for(5)
    assert args[:4] == ("FT.SEARCH", local_name(b"docs", 5), KNN, b"WITHSORTKEYS")
    assert args[4:13] == ("SORTBY", "near", "RETURN", 2, "LIMIT", "SORTBY", "LIMIT", 0, 6)
    assert args[-1] is QUERY


def test_replies_that_do_not_fit() -> None:
    asked = scatter(("FT.SEARCH", "docs", "*", "SORTBY", "year"), 2)
    row = [1, b"a", b"#1", [b"year", b"1"]]
    with pytest.raises(ValueError, match="1 replies, but"):
        asked.join([row])
    for wrong in (
        [1, b"a", b"#1"],
        {b"total_results": 1},
        None,
        b"X",
        [b"1"],
        [1, b"a", b"?", []],
    ):
        with pytest.raises(UnexpectedReplyError):
            asked.join([row, wrong])
    error: Exception = reply_error("LOADING")
    assert asked.join([row, error]) is error
    error = OSError("Index already exists")  # which no server said
    assert scatter(CREATE, 2).join([b"OK", error]) is error
    with pytest.raises(UnexpectedReplyError):
        scatter(("FT.ALTER", "docs"), 2).join([b"OK", b"QUEUED"])
    with pytest.raises(ValueError, match="at least one"):
        scatter(("FT.INFO", "docs"), 0)


def test_warnings_stumps_and_rows_that_are_on_two_nodes() -> None:
    def reply(*rows: Any, warning: bytes = b"") -> dict[bytes, Any]:
        said = {b"total_results": len(rows), b"results": list(rows), b"format": b"STRING"}
        return {**said, b"warning": [warning] if warning else []}

    def row(key: bytes, score: float) -> dict[bytes, Any]:
        return {b"id": key, b"score": score, b"extra_attributes": None, b"values": []}

    asked = scatter(("FT.SEARCH", "docs", "a"), 3)
    both = reply(row(b"a", 2.0), row(b"b", float("nan")))
    stumps = reply({b"values": []}, {b"values": []}, warning=b"Timeout")
    joined = asked.join([both, stumps, reply(row(b"a", 2.0), row(b"c", 1.0), warning=b"Timeout")])
    assert joined[b"warning"] == [b"Timeout"]
    assert joined[b"total_results"] == 5
    assert [one.get(b"id") for one in joined[b"results"]] == [b"a", b"c", b"b", None, None]
    assert joined[b"results"][0] == {b"id": b"a", b"extra_attributes": None, b"values": []}


KEYS = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([-2.5, float("inf"), 1e-300]))


@given(
    st.lists(st.lists(KEYS, max_size=6), min_size=1, max_size=4),
    st.integers(0, 12),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from([2, 3]),
    st.lists(st.sampled_from(["NOCONTENT", "WITHSCORES", "WITHSORTKEYS"]), unique=True),
)
def test_a_page_is_a_page_of_one_order(
    nodes: list[list[Any]], start: int, size: int, down: bool, protocol: int, shown: list[str]
) -> None:
    """What is asked of the nodes, and what is made of their answers, for whatever they hold."""
    args = ("FT.SEARCH", "docs", "*", "SORTBY", "n", "DESC" if down else "ASC", *shown)
    asked = scatter((*args, "LIMIT", start, size), len(nodes))
    sent = asked.args_for(0)
    assert sent[-2:] == ((0, start + size) if start else (start, size))

    def order(row: tuple[Any, bytes]) -> Any:
        return (row[0] is None, 0 if row[0] is None else -row[0] if down else row[0])

    def reply(rows: list[tuple[Any, bytes]], args: Any) -> Any:
        options = str(args)
        wire: Any = []
        for key, name in rows:
            parts: dict[bytes, Any] = {b"id": name}
            if "WITHSCORES" in options:
                parts[b"score"] = 1.0
            if "WITHSORTKEYS" in options:
                parts[b"sortkey"] = None if key is None else b"#%.17g" % key
            if "NOCONTENT" not in options:
                parts[b"extra_attributes"] = None if key is None else {b"n": repr(key).encode()}
            wire += [parts] if protocol == 3 else list(parts.values())
        return wire

    def whole(total: int, wire: Any) -> Any:
        if protocol == 3:
            return {b"total_results": total, b"results": wire, b"warning": []}
        return [total, *wire]

    held = [
        sorted(((key, b"%d-%d" % (n, i)) for i, key in enumerate(keys)), key=order)
        for n, keys in enumerate(nodes)
    ]
    said = [whole(len(rows), reply(rows[: start + size], sent)) for rows in held]
    everything = sorted((row for rows in held for row in rows), key=order)
    page = everything[start : start + size]
    assert asked.join(said) == whole(len(everything), reply(page, args))


@given(st.binary(min_size=1, max_size=9).filter(lambda name: b"{" not in name))
def test_a_local_name_has_its_slot_and_is_known_again(name: bytes) -> None:
    for slot in (0, 1, 9000, SLOTS - 1):
        local = local_name(name, slot)
        assert key_slot(local) == slot
        assert local.startswith(name + b"{")
        assert asked_name(local) == name
    assert asked_name(name) == name


def test_every_slot_has_a_name_and_others_names_stay() -> None:
    names = {local_name(b"docs", slot) for slot in range(SLOTS)}
    assert len(names) == SLOTS
    assert {key_slot(name) for name in names} == set(range(SLOTS))
    for name in (b"docs{a}", b"docs{~hhhhh", b"docs{~}", b"{docs{~hhhhh}", b"docs{~onion}x"):
        assert asked_name(name) == name


def test_slots_are_the_servers() -> None:
    assert key_slot(b"123456789") == 0x31C3
    assert key_slot(b"{user1000}.following") == key_slot(b"user1000")
    assert key_slot(b"foo{}{bar}") == 8363
    assert key_slot(b"foo{{bar}}zap") == key_slot(b"{bar")
    assert key_slot(b"a{b") == key_slot(b"{a{b}")
