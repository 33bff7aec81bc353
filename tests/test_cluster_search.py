"""Search in a cluster whose search module has no coordinator, in both colours; caches, too."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from clusters import Cluster, until
from conftest import ClusterRedis
from rawredis_llm import (
    AsyncClusterClient,
    ChatHistory,
    Client,
    ClusterClient,
    EmbeddedServer,
    HashingEmbedder,
    LLMCache,
    Numeric,
    Retriever,
    SemanticCache,
    Tag,
    Text,
    TieredCache,
    Vector,
    VectorIndex,
    errors,
)
from test_faults import Scripted

DIM = 16
COUNT = 300
FIELDS = [Vector("v", DIM), Tag("color"), Numeric("year"), Text("words")]


def documents() -> tuple[list[str], Any, dict[str, Any]]:
    dice = np.random.default_rng(5)
    ids = [str(number) for number in range(COUNT)]
    vectors = dice.normal(size=(COUNT, DIM)).astype(np.float32)
    fields = {
        "color": [("red", "green", "blue")[number % 3] for number in range(COUNT)],
        "year": [1900 + number for number in range(COUNT)],
        "words": [f"number {number} of many" for number in range(COUNT)],
    }
    return ids, vectors, fields


def filled(cluster: ClusterRedis, client: Any, name: str, prefix: str) -> Any:
    index = VectorIndex(client, name, FIELDS, prefix=prefix)
    cluster.do(index.create())
    ids, vectors, fields = documents()
    assert cluster.do(index.load(ids, vectors, fields)) == COUNT
    cluster.do(index.wait_until_indexed(20))
    return index


@pytest.fixture
def alone(server: EmbeddedServer) -> Iterator[Any]:
    """The same documents on one server."""
    with Client(server.url) as client:
        client.call("FLUSHALL")
        index = VectorIndex(client, "docs", FIELDS, prefix="doc:")
        index.create()
        ids, vectors, fields = documents()
        index.load(ids, vectors, fields)
        index.wait_until_indexed(20)
        yield index


def test_search_is_refused_where_it_would_be_partial(cluster: ClusterRedis) -> None:
    index = VectorIndex(cluster.client, "docs", FIELDS, prefix="doc:")
    with pytest.raises(errors.UnsupportedError, match=r"one node's documents.*per-node.*one-slot"):
        cluster.do(index.create())
    with pytest.raises(errors.UnsupportedError, match="coordinator"):
        cluster.do(cluster.client.call("FT.SEARCH", "docs", "*"))
    for node in cluster.cluster.nodes[:3]:
        assert node.call("FT._LIST") == []


def rows(result: Any) -> list[Any]:
    return [(row.id, round(row.distance or 0.0, 5), row.fields) for row in result.rows]


def test_each_node_is_asked(cluster: ClusterRedis, alone: Any) -> None:
    client = cluster.connect(search="per-node")
    index = filled(cluster, client, "docs", "doc:")
    assert all(len(node.call("FT._LIST")) == 1 for node in cluster.cluster.nodes[:3])
    _, vectors, _ = documents()
    for at in range(0, COUNT, 37):
        query = vectors[at] + 0.1
        assert rows(cluster.do(index.search(query, 20))) == rows(alone.search(query, 20))
        red = Tag("color") == "red"
        assert rows(cluster.do(index.search(query, 5, filter=red))) == rows(
            alone.search(query, 5, filter=red)
        )
        assert rows(cluster.do(index.search(query, 7, offset=9))) == rows(
            alone.search(query, 7, offset=9)
        )
        nearest = cluster.do(index.range(query, 0.5))
        assert sorted(rows(nearest)) == sorted(rows(alone.range(query, 0.5)))
    assert cluster.do(index.count()) == COUNT
    old = Numeric("year") < 1950
    assert cluster.do(index.count(old)) == 50
    found = cluster.do(index.text("17"))
    assert [row.id for row in found.rows] == ["17"]
    many = cluster.do(index.search_many(vectors[:10], 3))
    assert [rows(one) for one in many] == [rows(one) for one in alone.search_many(vectors[:10], 3)]
    assert cluster.do(index.info()).documents == COUNT
    assert cluster.do(index.delete_where(old)) == 50
    assert cluster.do(index.count()) == COUNT - 50
    with pytest.raises(errors.UnsupportedError, match="delete them first"):
        cluster.do(index.drop(delete_documents=True))
    assert cluster.do(index.count()) == COUNT - 50
    cluster.do(index.drop())
    assert all(node.call("FT._LIST") == [] for node in cluster.cluster.nodes[:3])


def test_one_slot(cluster: ClusterRedis, alone: Any) -> None:
    client = cluster.connect(search="one-slot")
    index = filled(cluster, client, "docs{t}", "{t}:")
    _, vectors, _ = documents()
    assert rows(cluster.do(index.search(vectors[3], 20))) == rows(alone.search(vectors[3], 20))
    assert cluster.do(index.count(Tag("color") == "red")) == COUNT // 3
    assert sum(len(node.call("FT._LIST")) for node in cluster.cluster.nodes[:3]) == 1
    wrong = VectorIndex(client, "docs{t}", FIELDS, prefix="other:")
    with pytest.raises(ValueError, match=r"same {tag}"):
        cluster.do(wrong.create())
    wrong = VectorIndex(client, "docs", FIELDS, prefix="{t}:")
    with pytest.raises(ValueError, match=r"same {tag}"):
        cluster.do(wrong.create())


@pytest.mark.parametrize(("search", "namespace"), [("per-node", "sem"), ("one-slot", "{sem}")])
def test_caches_and_a_retriever(cluster: ClusterRedis, search: str, namespace: str) -> None:
    client = cluster.connect(search=search)
    embedder = HashingEmbedder(64)
    semantic = SemanticCache(client, embedder, namespace=namespace, max_distance=0.2)
    exact = LLMCache(client, namespace="exact")
    tiered = TieredCache(exact, semantic)
    for number in range(20):
        cluster.do(tiered.store(f"what is the number {number} of these", f"answer {number}"))
    for number in range(20):
        hit = cluster.do(semantic.lookup(f"what is the number {number} of these"))
        assert hit.response == f"answer {number}"
    hit = cluster.do(tiered.lookup("what is the number 7 of these"))
    assert hit.response == "answer 7"
    assert cluster.do(semantic.lookup("something else entirely")) is None
    cluster.do(semantic.clear())
    assert cluster.do(semantic.lookup("what is the number 3 of these")) is None
    index = VectorIndex(
        client, f"{namespace}:r", [Vector("v", 64), Text("text")], prefix=f"{namespace}r:"
    )
    if search == "one-slot":
        index = VectorIndex(client, "r{sem}", [Vector("v", 64), Text("text")], prefix="{sem}:r:")
    cluster.do(index.create())
    texts = ["the cat sat", "the dog ran", "a bird flew"]
    cluster.do(index.load(list("abc"), embedder(texts), {"text": texts}))
    cluster.do(index.wait_until_indexed(20))
    found = cluster.do(Retriever(index, embedder, k=1).retrieve("the dog ran"))
    assert [document.id for document in found] == ["b"]


def test_documents_that_move_stay_found(tmp_path_factory: pytest.TempPathFactory) -> None:
    cluster = Cluster(tmp_path_factory.mktemp("moves"), search=True)
    try:
        with ClusterClient(cluster.urls, search="per-node") as client:
            index = VectorIndex(client, "docs", FIELDS, prefix="doc:")
            index.create()
            ids, vectors, fields = documents()
            index.load(ids, vectors, fields)
            index.wait_until_indexed(20)
            before = rows(index.search(vectors[0], COUNT))
            assert len(before) == COUNT
            source, target = cluster.nodes[0], cluster.nodes[1]
            for slot in range(100, 140):
                cluster.begin_move(slot, target)
                cluster.move_keys(slot, source, target)
                cluster.end_move(slot, source, target)
            until(lambda: rows(index.search(vectors[0], COUNT)) == before, "all are found")
            # A node whose first slot was moved has no index under the name that follows from it.
            cluster.move(0, target)
            with pytest.raises(errors.IndexNotFoundError):
                until(lambda: not index.search(vectors[0], COUNT), "it is noticed", 5.0)
            index.create(exist_ok=True)
            index.wait_until_indexed(20)
            assert rows(index.search(vectors[0], COUNT)) == before
    finally:
        cluster.stop()


def test_a_frozen_shard_is_a_time_out_and_no_partial_answer(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    cluster = Cluster(tmp_path_factory.mktemp("frozen"), search=True)
    try:
        with ClusterClient(cluster.urls, search="per-node", timeout=1.0) as client:
            index = VectorIndex(client, "docs", FIELDS, prefix="doc:")
            index.create()
            _, vectors, _ = documents()
            index.search(vectors[0], 3)
            os.kill(cluster.nodes[1].pid, signal.SIGSTOP)
            with pytest.raises(errors.TimeoutError):
                index.search(vectors[0], 3)
            os.kill(cluster.nodes[1].pid, signal.SIGCONT)
    finally:
        cluster.stop()


def coordinating(port: int, seen: list[bytes]) -> Any:
    """Return a script of `Scripted`: the only node of a cluster, whose engine has a coordinator."""
    slots = b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % port
    entry = b"*1\r\n*6\r\n$9\r\nft.search\r\n:-3\r\n*0\r\n:0\r\n:0\r\n:0\r\n"

    def script(sock: Any) -> None:
        while data := sock.recv(65536):
            seen.append(data)
            if b"HELLO" in data:
                sock.sendall(b"*0\r\n" + b"+OK\r\n" * 2)
            elif b"CLUSTER" in data:
                sock.sendall(slots)
            elif b"COMMAND" in data:
                sock.sendall(entry)
            else:
                sock.sendall(b"*1\r\n:0\r\n")

    return script


def test_a_coordinator_is_asked_through_any_node(cluster: ClusterRedis) -> None:
    """A faked one: the search module at hand has none."""
    seen: list[bytes] = []
    scripts: list[Any] = []
    node = Scripted(lambda sock: scripts[0](sock))  # noqa: PLW0108 - it is known once it listens
    scripts.append(coordinating(int(node.url.rpartition(":")[2]), seen))
    client = cluster.connect(url=node.url)
    try:
        for _ in range(2):
            assert cluster.do(client.call("FT.SEARCH", "docs", "*")) == [0]
        said = b"".join(seen)
        assert (said.count(b"COMMAND"), said.count(b"FT.SEARCH\r\n$4\r\ndocs")) == (1, 2)
    finally:
        cluster.do(client.close())
        node.close()


def test_histories_and_exact_caches_need_no_search(cluster: ClusterRedis) -> None:
    history = ChatHistory(cluster.client, "s")
    cluster.do(history.add("user", "hello"))
    cluster.do(history.add("assistant", "hi"))
    assert [message.content for message in cluster.do(history.messages())] == ["hello", "hi"]
    cache = LLMCache(cluster.client)
    for number in range(30):
        cluster.do(cache.store(f"p{number}", f"r{number}", sources=["page"]))
    found = cluster.do(cache.lookup_many([f"p{number}" for number in range(30)]))
    assert [hit.response for hit in found] == [f"r{number}" for number in range(30)]
    assert cluster.do(cache.delete_source("page")) == 30
    cluster.do(cache.store("p", "r"))
    assert cluster.do(cache.get_or_compute("p", lambda: "never")) == "r"
    assert cluster.do(cache.get_or_compute("new", lambda: "computed")) == "computed"
    assert cluster.do(cache.lookup("new")).response == "computed"
    cluster.do(cache.clear())
    assert cluster.do(cache.lookup("p")) is None


async def test_langchain_s_classes_take_a_cluster(shared_cluster: Cluster) -> None:
    from rawredis_llm.langchain import RedisCache

    shared_cluster.flush()
    with ClusterClient(shared_cluster.urls) as client:
        cache = RedisCache(client)
        assert isinstance(cache.link.aio, AsyncClusterClient)
        assert await cache.alookup("p", "model") is None
        await cache.aclose()
