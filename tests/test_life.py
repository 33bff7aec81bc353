"""The life of an index: made, grown, renamed, built over what was there, refused, lost, healed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from counting import cost
from fake import Fake, polite
from rawredis_llm import (
    Client,
    EmbeddedServer,
    Filter,
    HashingEmbedder,
    Numeric,
    Retriever,
    Tag,
    Text,
    Vector,
    VectorIndex,
    errors,
)
from rawredis_llm.protocol.operation import watched
from rawredis_llm.server import _find_module, _find_server

if TYPE_CHECKING:
    from conftest import Redis

VEC = Vector("vec", 2)
ONE = [1.0, 0.0]


def made(redis: Redis, fields: list[Any] | None = None, name: str = "docs", **options: Any) -> Any:
    """Create an index by the fixture's client."""
    given = [Tag("city"), Numeric("year"), VEC] if fields is None else fields
    index = VectorIndex(redis.client, name, given, **options)
    redis.do(index.create())
    return index


def ids(result: Any) -> list[str]:
    return sorted(row.id for row in result.rows)


# -- built over documents that were there --------------------------------------------------------

MANY, DIM = 5000, 64


@pytest.fixture(scope="module")
def crowd() -> Iterator[tuple[EmbeddedServer, Any]]:
    """Return a server of one's own with many documents, and their vectors."""
    vectors = np.random.default_rng(4).normal(size=(MANY, DIM)).astype(np.float32)
    with EmbeddedServer() as server, Client(server.url) as client:
        VectorIndex(client, "docs", [Vector("vec", DIM)]).load(range(MANY), vectors)
        yield server, vectors


@pytest.mark.parametrize("kind", ["sync-2", "aio-3"])
def test_an_index_over_documents_is_waited_for(
    crowd: tuple[EmbeddedServer, Any], kind: str
) -> None:
    from conftest import Redis

    server, vectors = crowd
    redis = Redis(server.url, kind.split("-", maxsplit=1)[0], int(kind[-1]))
    index = made(redis, [Vector("vec", DIM, algorithm="hnsw", m=32, ef_construction=100)])
    try:
        with pytest.raises(errors.TimeoutError, match=r"'docs': [\d.]+% done after 0.001 s"):
            redis.do(index.wait_until_indexed(0.001))
        early = redis.do(index.search(vectors[0], 5))
        assert early.partial
        assert "being built" in early.warnings[0]
        shares: list[float] = []
        redis.do(index.wait_until_indexed(progress=shares.append))
        assert shares == sorted(shares)
        assert shares[0] < shares[-1] == 1.0
        assert redis.do(index.count()) == MANY
        found = cost(redis, lambda: index.search(vectors[7], 5, ef_runtime=500))
        assert found.commands == {"FT.SEARCH": 1}  # nothing more is asked of a complete index
        assert not found.result.partial
        nearest = np.argsort(1 - vectors @ vectors[7] / np.linalg.norm(vectors, axis=1))[:5]
        assert [int(row.id) for row in found.result.rows] == nearest.tolist()
    finally:
        redis.do(index.drop())
        redis.close()


def test_there_is_nothing_to_wait_for_in_an_empty_index(redis: Redis) -> None:
    shares: list[float] = []
    redis.do(made(redis).wait_until_indexed(0.001, progress=shares.append))
    assert shares == [1.0]
    with pytest.raises(errors.IndexNotFoundError):
        redis.do(VectorIndex(redis.client, "nowhere", [VEC]).wait_until_indexed())
    with pytest.raises((TypeError, ValueError), match="timeout"):
        redis.do(made(redis, name="other").wait_until_indexed(-1))


# -- grown ---------------------------------------------------------------------------------------


def test_added_fields_are_found_in_old_documents_and_new(redis: Redis) -> None:
    index = made(redis)
    redis.do(index.load([1, 2], [ONE] * 2, {"year": [1, 2], "stars": [4, 5], "body": ["a x", "b"]}))
    redis.do(index.alter([Numeric("stars", sortable=True), Text("body")]))
    redis.do(index.wait_until_indexed())
    redis.do(index.load([3], [ONE], {"stars": [5], "body": ["x"]}))
    assert ids(redis.do(index.search(ONE, filter=Numeric("stars") == 5))) == ["2", "3"]
    assert ids(redis.do(index.query(Text("body").matches("x")))) == ["1", "3"]
    redis.do(index.check())
    again = redis.do(VectorIndex.open(redis.client, "docs"))
    assert again.schema.to_dict() == index.schema.to_dict()
    with pytest.raises(ValueError, match="'stars' is given twice"):
        redis.do(index.alter([Tag("stars")]))
    with pytest.raises(ValueError, match="one Vector field, 2"):
        redis.do(index.alter([Vector("other", 2)]))
    with pytest.raises(ValueError, match="none is given"):
        redis.do(index.alter([]))
    redis.do(index.check())


def test_added_fields_come_with_the_rows(client: Client) -> None:
    index = VectorIndex(client, "docs", [Tag("city"), VEC])
    index.create()
    index.alter([Numeric("stars")])
    index.load([1], [ONE], {"stars": [4], "city": ["Rome"]})
    fields = {"city": "Rome", "stars": 4}
    assert index.get([1])[0].fields == fields  # type: ignore[union-attr]
    assert index.search(ONE).rows[0].fields == fields


# -- other names ---------------------------------------------------------------------------------


def test_an_alias_is_a_second_name(redis: Redis) -> None:
    first, second = made(redis, name="first"), made(redis, name="second")
    redis.do(first.load(["a"], [ONE]))
    redis.do(second.load(["b"], [ONE]))
    redis.do(first.alias("current"))
    current = VectorIndex(redis.client, "current", [VEC], prefix="first:")
    assert ids(redis.do(current.search(ONE))) == ["a"]
    assert redis.do(current.exists()) is True
    with pytest.raises(errors.ReplyError, match=r"[Aa]lias"):
        redis.do(second.alias("current"))
    redis.do(second.alias("current", move=True))
    assert redis.do(current.search(ONE)).rows[0].fields == {}
    assert redis.do(current.info()).name == "second"
    redis.do(second.drop_alias("current"))
    with pytest.raises(errors.IndexNotFoundError):
        redis.do(current.search(ONE))
    with pytest.raises(errors.ReplyError, match=r"[Aa]lias"):
        redis.do(second.drop_alias("current"))
    for name in ("", "a\0b"):
        with pytest.raises(ValueError, match="name"):
            redis.do(first.alias(name))


def test_nobody_sees_an_alias_move(server: EmbeddedServer, client: Client) -> None:
    """A searcher in a loop finds the one index or the other, never none."""
    indexes = [VectorIndex(client, name, [VEC], prefix=f"{name}:") for name in ("first", "second")]
    for index in indexes:
        index.create()
        index.load([f"only-{index.name}"], [ONE])
    indexes[0].alias("current")
    seen: list[Any] = []
    stop = threading.Event()

    def look() -> None:
        with Client(server.url) as own:
            current = VectorIndex(own, "current", [VEC], prefix=["first:", "second:"])
            while not stop.is_set():
                try:
                    seen.append(tuple(ids(current.search(ONE))))
                except errors.RedisError as error:
                    seen.append(error)

    searcher = threading.Thread(target=look)
    searcher.start()
    try:
        for i in range(400):
            indexes[i % 2].alias("current", move=True)
    finally:
        stop.set()
        searcher.join()
    assert set(seen) <= {("first:only-first",), ("second:only-second",)}
    assert seen


# -- the embedder --------------------------------------------------------------------------------


class Named:
    """An embedder with a fingerprint."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def __call__(self, texts: list[str]) -> Any:
        return [ONE] * len(texts)


def test_another_embedder_is_refused(redis: Redis) -> None:
    index = made(redis, embedder=Named("model-1"))
    redis.do(index.check())
    redis.do(index.create(exist_ok=True))
    assert redis.do(VectorIndex.open(redis.client, "docs")).embedder == "model-1"
    fields = list(index.schema.fields.values())
    other = VectorIndex(redis.client, "docs", fields, embedder="model-2")
    for use in (other.check, lambda: other.create(exist_ok=True)):
        with pytest.raises(errors.IndexMismatchError, match="embedder 'model-1', not 'model-2'"):
            redis.do(use())
    redis.do(VectorIndex(redis.client, "docs", fields).check())  # whoever says none uses any
    Retriever(index, Named("model-1"))
    Retriever(index, Named(""))
    with pytest.raises(ValueError, match="the index is for 'model-1', not 'model-2'"):
        Retriever(index, Named("model-2"))
    with pytest.raises(ValueError, match="the index is for 'model-1', not"):
        Retriever(index, HashingEmbedder(8))
    redis.do(index.drop())
    redis.do(other.create())
    assert redis.do(VectorIndex.open(redis.client, "docs")).embedder == "model-2"
    redis.do(other.drop())
    assert redis.do(redis.client.call("KEYS", "*")) == []


def test_an_embedder_that_has_no_name_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="no fingerprint"):
        VectorIndex(client, "docs", [VEC], embedder=lambda texts: [ONE] * len(texts))


def test_no_embedder_outlives_its_index(client: Client) -> None:
    VectorIndex(client, "docs", [VEC], embedder="model-1").create()
    VectorIndex(client, "docs", [VEC]).drop()
    VectorIndex(client, "docs", [VEC]).create()
    assert VectorIndex.open(client, "docs").embedder == ""


def test_an_alias_has_the_embedder_of_its_index(client: Client) -> None:
    index = VectorIndex(client, "docs", [VEC], embedder="model-1")
    index.create()
    index.alias("current")
    other = VectorIndex(client, "current", [VEC], prefix="docs:", embedder="model-2")
    with pytest.raises(errors.IndexMismatchError, match="model-1"):
        other.check()


def test_an_alias_is_not_created_over(client: Client) -> None:
    index = VectorIndex(client, "docs", [VEC])
    index.create()
    index.alias("current")
    VectorIndex(client, "current", [VEC], prefix="docs:").create(exist_ok=True)
    assert client.call("FT._LIST") == [b"docs"]


def test_who_loses_the_race_to_create_leaves_the_winners_embedder(client: Client) -> None:
    winner = VectorIndex(client, "docs", [VEC], embedder="theirs")
    loser = VectorIndex(client, "docs", [VEC], embedder="ours")
    raced: list[bool] = []

    def see(request: Any) -> None:
        if getattr(request, "name", "") == "FT.CREATE" and not raced:
            raced.append(True)
            winner.create()

    with pytest.raises(errors.IndexMismatchError, match="by the embedder 'theirs', not 'ours'"):
        client.run(watched(loser.plan.create(exist_ok=True), see))
    assert raced
    assert VectorIndex.open(client, "docs").embedder == "theirs"


# -- what the server does not have ---------------------------------------------------------------

NEWER = [
    (Vector("vec", 2, dtype="int8"), "INT8 needs RediSearch 8.0"),
    (Vector("vec", 2, dtype="uint8"), "UINT8 needs RediSearch 8.0"),
    (Vector("vec", 2, algorithm="svs-vamana"), "SVS-VAMANA needs RediSearch 8.2"),
]


@pytest.mark.parametrize(("field", "message"), NEWER, ids=[m for _, m in NEWER])
def test_what_a_newer_server_has_is_refused_by_name_and_version(
    redis: Redis, field: Vector, message: str
) -> None:
    index = VectorIndex(redis.client, "docs", [field])
    for exist_ok in (False, True):
        with pytest.raises(errors.UnsupportedError, match=f"{message}, the server's is 210"):
            redis.do(index.create(exist_ok=exist_ok))
    redis.do(redis.client.call("CONFIG", "RESETSTAT"))
    with pytest.raises(errors.UnsupportedError):
        redis.do(index.create())
    calls = redis.do(redis.client.call("INFO", "commandstats"))
    assert b"FT.CREATE" not in calls.upper()
    assert redis.do(index.exists()) is False


@pytest.fixture(scope="module")
def without_json(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """Return a server whose search module stands alone, so that none for JSON lies beside it."""
    binary = _find_server(None, search=True)
    module = _find_module(binary)
    assert module is not None
    alone = Path(tmp_path_factory.mktemp("alone")) / "redisearch.so"
    alone.symlink_to(module)
    with EmbeddedServer(search=False, extra=("--loadmodule", str(alone))) as server:
        yield server


def test_json_on_a_server_without_it_is_refused(redis: Redis, without_json: EmbeddedServer) -> None:
    client = redis.connect(url=without_json.url)
    assert redis.do(VectorIndex(client, "plain", [VEC]).create()) is None
    index = VectorIndex(client, "docs", [Tag("city"), VEC], on="json")
    with pytest.raises(errors.UnsupportedError, match=r"redis \d+\.\d+\.\d+ has no JSON"):
        redis.do(index.create())
    assert redis.do(index.exists()) is False
    redis.do(VectorIndex(client, "plain", [VEC]).drop())


OLD = [
    ([Tag("city", indexmissing=True), VEC], "INDEXMISSING needs RediSearch 2.10"),
    ([Text("body", indexempty=True), VEC], "INDEXEMPTY needs RediSearch 2.10"),
    ([Vector("vec", 2, dtype="float16")], "FLOAT16 needs RediSearch 2.10"),
    ([Vector("vec", 2, dtype="bfloat16")], "BFLOAT16 needs RediSearch 2.10"),
]


@pytest.mark.parametrize(("fields", "message"), OLD, ids=[m for _, m in OLD])
def test_an_older_servers_lack_is_known_from_its_version(fields: list[Any], message: str) -> None:
    """A server that says it is of 2.8, and refuses to search."""
    module = b"%2\r\n$4\r\nname\r\n$6\r\nsearch\r\n$3\r\nver\r\n:20809\r\n"
    info = b"redis_version:7.2.4\r\nredis_mode:standalone\r\n"
    said = {
        "HELLO": b"%1\r\n$7\r\nmodules\r\n*1\r\n" + module,
        "INFO server": b"$%d\r\n%b\r\n" % (len(info), info),
        "COMMAND INFO FT.SEARCH": b"*1\r\n*4\r\n$9\r\nFT.SEARCH\r\n:-1\r\n*0\r\n:1\r\n",
        "COMMAND INFO FT.HYBRID": b"*1\r\n_\r\n",
        "COMMAND INFO JSON.SET": b"*1\r\n_\r\n",
    }

    def answer(_: int, line: str) -> bytes:
        refusal = b"-ERR no\r\n" if line.startswith("FT.") else polite(line)
        return said.get(line, refusal)

    with Fake(answer) as fake, Client(fake.url) as client:
        with pytest.raises(errors.UnsupportedError, match=f"{message}, the server's is 20809"):
            VectorIndex(client, "docs", fields).create()
        assert fake.sent("FT.CREATE") == 0


# -- what else defines an index ------------------------------------------------------------------


def test_an_index_over_several_prefixes(redis: Redis) -> None:
    index = made(redis, prefix=["a:", "b:"])
    redis.do(index.load(["a:1", "b:1"], [ONE] * 2, {"year": [1, 2]}))
    redis.do(redis.client.call("HSET", "c:1", "vec", np.array(ONE, "<f4")))
    assert ids(redis.do(index.search(ONE))) == ["a:1", "b:1"]
    assert [row and row.fields for row in redis.do(index.get(["b:1", "a:2"]))] == [
        {"year": 2},
        None,
    ]
    uses: list[Callable[[], Any]] = [
        lambda: index.load(["c:1"], [ONE]),
        lambda: index.get(["c:1"]),
        lambda: index.delete(["1"]),
        lambda: index.update(["c:1"], {"year": [1]}),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="begins with none of"):
            redis.do(use())
    assert redis.do(index.delete(["a:1"])) == 1
    redis.do(index.drop(delete_documents=True))
    assert redis.do(redis.client.call("KEYS", "*")) == [b"c:1"]


body = Text("body")
QUOTE = {1: "to be or not to be", 2: "be quick", 3: "the cat", 4: "le chat"}
STOPPED: list[tuple[list[str] | None, Filter, set[int]]] = [
    ([], body.matches("to be"), {1}),
    ([], body.phrase("be or"), {1}),
    ([], body.matches("The"), {3}),
    ([], body.prefix("to"), {1}),
    (["le", "Quick"], body.matches("to be le"), {1}),
    (["le", "Quick"], body.matches("be quick"), {1, 2}),
    (["le", "Quick"], body.phrase("le chat"), {4}),
    (["le", "Quick"], body.matches("the"), {3}),
    (None, body.matches("the cat"), {3}),
    (None, body.matches("le"), {4}),
]


@pytest.mark.parametrize(("stopwords", "condition", "wanted"), STOPPED)
def test_stop_words_are_the_indexs_own(
    redis: Redis, stopwords: list[str] | None, condition: Filter, wanted: set[int]
) -> None:
    index = made(redis, [body, VEC], stopwords=stopwords)
    redis.do(index.load(list(QUOTE), [ONE] * len(QUOTE), {"body": list(QUOTE.values())}))
    for one in (index, redis.do(VectorIndex.open(redis.client, "docs"))):
        assert ids(redis.do(one.search(ONE, filter=condition))) == sorted(map(str, wanted))
        assert redis.do(one.count(condition)) == len(wanted)
        everything = set(map(str, QUOTE)) - set(ids(redis.do(one.query(~condition))))
        assert everything == set(map(str, wanted))


@pytest.mark.parametrize(
    ("stopwords", "text"), [(None, "to be"), (["le", "la"], "Le la"), (["é"], "é")]
)
def test_nothing_but_stop_words_is_refused_by_the_index_that_has_them(
    stopwords: list[str] | None, text: str
) -> None:
    index = VectorIndex(Client("redis://127.0.0.1:1"), "docs", [body, VEC], stopwords=stopwords)
    condition = body.matches(text)  # which no index has seen yet
    uses: list[Callable[[], object]] = [
        lambda: index.count(condition),
        lambda: index.search(ONE, filter=~condition & body.prefix("cat")),
        lambda: index.text(text),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="stop words"):
            use()


def test_a_language_says_how_words_are_stemmed(redis: Redis) -> None:
    german = made(redis, [body, VEC], name="german", prefix="d:", language="german")
    plain = made(redis, [body, VEC], name="plain", prefix="d:")
    redis.do(german.load(["a"], [ONE], {"body": ["Kategorien"]}))
    redis.do(plain.wait_until_indexed())
    # Of German words an English stemmer does not know the plural.
    for text, wanted in (("kategorien", (1, 1)), ("kategorie", (1, 0))):
        assert tuple(redis.do(one.text(text)).total for one in (german, plain)) == wanted


def test_only_what_meets_the_filter_expression_is_indexed(redis: Redis) -> None:
    index = made(redis, filter_expression="@year > 1990")
    redis.do(index.load([1, 2, 3], [ONE] * 3, {"year": [1980, 1991, 2000]}))
    assert ids(redis.do(index.search(ONE))) == ["2", "3"]
    assert redis.do(index.count()) == 2
    assert [row.fields["year"] for row in redis.do(index.get([1, 2]))] == [1980, 1991]


# -- lost under the client -----------------------------------------------------------------------


@pytest.mark.parametrize("how", [("FT.DROPINDEX", "docs"), ("FLUSHALL",)])
def test_an_index_that_was_lost_is_said_to_be_and_made_again(redis: Redis, how: Any) -> None:
    index = made(redis, [Tag("city"), body, VEC], embedder="model")
    redis.do(index.load(["a"], [ONE], {"city": ["Rome"]}))
    redis.do(index.wait_until_indexed())
    redis.do(redis.client.call(*how))
    for use in (
        lambda: index.search(ONE),
        lambda: index.search(ONE, filter=Tag("city") == "Rome"),
        lambda: index.search_many([ONE]),
        lambda: index.range(ONE, 1),
        index.query,
        lambda: index.text("cat"),
        lambda: index.hybrid("cat", ONE),
        lambda: index.mmr(ONE),
        index.aggregate,
        *(index.count, index.info, index.check, index.drop),
        lambda: index.delete_where(Tag("city") == "Rome"),
        lambda: index.alias("current"),
        lambda: index.alter([Tag("new")]),
        index.wait_until_indexed,
    ):
        with pytest.raises(errors.IndexNotFoundError):
            redis.do(use())
    redis.do(index.create(exist_ok=True))
    redis.do(index.wait_until_indexed())
    redis.do(index.check())
    assert redis.do(index.count()) == (how != ("FLUSHALL",))
    redis.do(index.load(["b"], [ONE], {"city": ["Paris"]}))
    assert "b" in ids(redis.do(index.search(ONE)))
