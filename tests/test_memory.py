"""Vector memory: what was said is found again, and only by whom it was said to."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import time
from typing import TYPE_CHECKING, Any

import pytest

from counting import cost
from rawredis_llm import (
    Client,
    EmbeddedServer,
    HashingEmbedder,
    Numeric,
    Tag,
    Text,
    Vector,
    VectorIndex,
    VectorMemory,
    errors,
)

if TYPE_CHECKING:
    from conftest import Redis

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens: any I/O raises ConnectError."""

EMBEDDER = HashingEmbedder(64)
SCOPE = Tag("scope", case_sensitive=True)


def make(redis: Redis, scope: str = "u1", **options: Any) -> VectorMemory[Any]:
    """Return a memory of the fixture's client."""
    return VectorMemory(redis.client, EMBEDDER, scope=scope, **options)


def keys(redis: Redis) -> set[bytes]:
    """Return every key there is."""
    return set(redis.do(redis.client.call("KEYS", "*")))


def inputs(documents: list[Any]) -> list[str]:
    """Return what was put in, in order."""
    return [document.metadata["inputs"]["input"] for document in documents]


# -- save and load -------------------------------------------------------------------------------


def test_what_was_said_is_found_nearest_first(redis: Redis) -> None:
    memory = make(redis, k=2)
    redis.do(memory.save("my dog is called Rex", "what a nice dog"))
    redis.do(memory.save("I live in Lisbon", "a beautiful city"))
    id_ = redis.do(memory.save("my cat is called Tom", "what a nice cat"))
    found = redis.do(memory.load("what is my cat called?"))
    assert inputs(found) == ["my cat is called Tom", "my dog is called Rex"]
    first = found[0]
    assert first.id == id_
    assert first.text == "input: my cat is called Tom\noutput: what a nice cat"
    assert first.metadata["outputs"] == {"output": "what a nice cat"}
    assert abs(first.metadata["created"] - time()) < 60
    assert set(first.metadata) == {"inputs", "outputs", "created", "importance"}
    assert 0 < found[0].distance < found[1].distance


def test_turns_are_texts_or_dicts(redis: Redis) -> None:
    memory = make(redis)
    said = {"question": 'é日本🦜 \0 "q" {}', "n": 5, "list": [1, None]}
    redis.do(memory.save(said, {"answer": "fine"}))
    [found] = redis.do(memory.load("question"))
    assert found.metadata["inputs"] == said
    assert found.metadata["outputs"] == {"answer": "fine"}
    assert found.text.startswith('question: é日本🦜 \0 "q" {}\nn: 5\n')


def test_without_anything_saved_there_is_nothing(redis: Redis) -> None:
    memory = make(redis)
    assert redis.do(memory.load("anything")) == []
    assert redis.do(memory.clear()) == 0
    redis.do(make(redis, "another").save("x", "y"))
    assert redis.do(memory.load("anything")) == []


def test_the_same_turn_is_kept_once(redis: Redis) -> None:
    memory = make(redis)
    first = redis.do(memory.save("hello", "hi"))
    assert redis.do(memory.save("hello", "hi")) == first
    assert redis.do(memory.save("hello", "hi there")) != first
    assert len(redis.do(memory.load("hello"))) == 2
    assert len(keys(redis)) == 2


SAME_WORDS: list[tuple[Any, Any, Any, Any]] = [
    ({"text": "one"}, {"text": "same"}, {"text": "two"}, {"text": "same"}),
    ("a\noutput: b", "c", "a", "b\noutput: c"),
]


@pytest.mark.parametrize(("said", "answered", "said_2", "answered_2"), SAME_WORDS)
def test_another_turn_never_replaces_one(
    client: Client, said: Any, answered: Any, said_2: Any, answered_2: Any
) -> None:
    memory = VectorMemory(client, EMBEDDER, scope="u1")
    assert memory.save(said, answered) != memory.save(said_2, answered_2)
    assert client.call("DBSIZE") == 2


def test_what_was_said_is_found_under_equal_names(client: Client) -> None:
    memory = VectorMemory(client, EMBEDDER, scope="u1")
    memory.save({"content": "my cat is called Tom"}, {"content": "noted"})
    assert "Tom" in memory.load("what is my cat called?")[0].text


def test_k_is_how_many_come_back(redis: Redis) -> None:
    memory = make(redis, k=12)
    for i in range(15):
        redis.do(memory.save(f"turn {i}", "ok"))
    assert len(redis.do(memory.load("turn"))) == 12
    assert len(redis.do(make(redis, k=1).load("turn"))) == 1


def test_a_save_and_a_load_cost_one_round_trip(redis: Redis) -> None:
    memory = make(redis)
    redis.do(memory.save("x", "y"))
    saved = cost(redis, lambda: memory.save("hello", "hi"))
    # FT.SEARCH asks in the same write if it was indexed.
    commands = {"FT.CREATE": 1, "DEL": 1, "HSET": 1, "FT.SEARCH": 1}
    assert (saved.round_trips, saved.commands) == (1, commands)
    first = cost(redis, lambda: memory.load("hello"))
    assert (first.round_trips, first.commands) == (1, {"FT.SEARCH": 1, "FT.INFO": 1})
    loaded = cost(redis, lambda: memory.load("hello"))
    assert (loaded.round_trips, loaded.commands) == (1, {"FT.SEARCH": 1})
    assert len(loaded.result) == 2


# -- scopes --------------------------------------------------------------------------------------

SCOPES = [
    "u1",
    "U1",
    "u1 ",
    " u1",
    "u1,u2",
    "u2",
    "u1|u2",
    "*",
    '"} | @scope:{*',
    "u1\0x",
    "é",
    "u:1",
]


def test_a_scope_sees_only_its_own(redis: Redis) -> None:
    memories = [make(redis, scope) for scope in SCOPES]
    for scope, memory in zip(SCOPES, memories, strict=True):
        redis.do(memory.save(f"secret {scope}", "ok"))
    for scope, memory in zip(SCOPES, memories, strict=True):
        assert inputs(redis.do(memory.load("secret"))) == [f"secret {scope}"]


@pytest.mark.parametrize("which", range(len(SCOPES)))
def test_clear_forgets_its_own_only(redis: Redis, which: int) -> None:
    memories = [make(redis, scope) for scope in SCOPES]
    for memory in memories:
        redis.do(memory.save("one", "ok"))
        redis.do(memory.save("two", "ok"))
    mine = {key for key in keys(redis) if key.split(b":")[2] == memories[which]._scope.encode()}
    foreign = {next(iter(mine)) + b"0", next(iter(mine))[:-1], b"memory:v:", b"other"}
    for key in foreign:
        redis.do(redis.client.call("SET", key, "x"))
    before = keys(redis)
    assert redis.do(memories[which].clear()) == 2
    assert keys(redis) == before - mine
    assert redis.do(memories[which].load("one")) == []
    for i, memory in enumerate(memories):
        assert len(redis.do(memory.load("one"))) == (0 if i == which else 2)


# -- the index -----------------------------------------------------------------------------------


def test_a_flush_under_the_client_heals(redis: Redis) -> None:
    memory = make(redis)
    redis.do(memory.save("old", "x"))
    redis.do(redis.client.call("FLUSHALL"))
    assert redis.do(memory.load("old")) == []
    redis.do(memory.save("new", "x"))
    assert inputs(redis.do(memory.load("new"))) == ["new"]


def test_a_given_index_is_used(redis: Redis) -> None:
    index = VectorIndex(
        redis.client,
        "mine",
        [SCOPE, Text("text"), Vector("embedding", 64, metric="l2", algorithm="hnsw")],
        prefix="m/",
    )
    memory = VectorMemory(index, EMBEDDER, scope="u1")
    assert redis.do(memory.load("hello")) == []
    redis.do(memory.save("hello", "hi"))
    assert redis.do(index.count()) == 1
    redis.do(index.load(["foreign"], EMBEDDER(["hello"]), {"text": ["hello"]}))
    redis.do(index.load(["scoped"], EMBEDDER(["hello"]), {"scope": ["u1"]}))
    assert inputs(redis.do(memory.load("hello"))) == ["hello"]
    other = VectorMemory(index, EMBEDDER, scope="u2")
    redis.do(other.save("hello", "other"))
    assert redis.do(memory.clear()) == 1
    assert redis.do(memory.load("hello")) == []
    assert inputs(redis.do(other.load("hello"))) == ["hello"]
    assert all(key.startswith(b"m/") for key in keys(redis))


def test_a_given_index_that_is_another_is_refused(redis: Redis) -> None:
    redis.do(VectorIndex(redis.client, "mine", [SCOPE, Vector("v", 8)]).create())
    index = VectorIndex(redis.client, "mine", [SCOPE, Vector("v", 64)])
    with pytest.raises(errors.IndexMismatchError, match="dim is 8, not 64"):
        redis.do(VectorMemory(index, EMBEDDER, scope="u1").save("x", "y"))
    assert keys(redis) == set()


def test_a_given_index_may_have_a_numeric_time(client: Client) -> None:
    index = VectorIndex(client, "mine", [SCOPE, Numeric("created"), Vector("v", 64)])
    memory = VectorMemory(index, EMBEDDER, scope="u1")
    memory.save("x", "y")
    assert abs(memory.load("x")[0].metadata["created"] - time()) < 60


@pytest.mark.parametrize(
    "fields",
    [[], [Tag("scope")], [Text("scope")], [Tag("Scope", case_sensitive=True)]],
    ids=["no scope", "case folded", "a text", "another name"],
)
def test_an_index_that_cannot_keep_scopes_apart_is_refused(fields: list[Any]) -> None:
    with Client(NOBODY) as client:
        index = VectorIndex(client, "mine", [*fields, Vector("v", 64)])
        with pytest.raises(ValueError, match=r'Tag\("scope", case_sensitive=True\)'):
            VectorMemory(index, EMBEDDER, scope="u1")


def test_an_embedder_of_another_size_is_refused(redis: Redis) -> None:
    redis.do(make(redis).save("x", "y"))
    other = VectorMemory(redis.client, HashingEmbedder(32), scope="u1")
    with pytest.raises(errors.IndexMismatchError, match="dim is 64, not 32"):
        redis.do(other.save("x", "y"))


def test_turns_of_another_embedder_are_not_mixed_in(client: Client) -> None:
    another = HashingEmbedder(EMBEDDER.dim)
    another.fingerprint = "another"
    VectorMemory(client, EMBEDDER, scope="u1").save("hello", "hi")
    assert VectorMemory(client, another, scope="u1").load("hello") == []


def test_a_server_without_search_is_said_to_have_none(
    redis: Redis, plain_server: EmbeddedServer
) -> None:
    client = redis.connect(url=plain_server.url)
    redis.do(client.call("FLUSHALL"))
    memory = VectorMemory(client, EMBEDDER, scope="u1")
    calls: list[Callable[[], Any]] = [lambda: memory.save("x", "y"), lambda: memory.load("x")]
    for call in calls:
        with pytest.raises(errors.SearchUnavailableError, match="Redis Stack"):
            redis.do(call())
    assert redis.do(client.call("DBSIZE")) == 0


# -- the caller's mistakes -----------------------------------------------------------------------

BAD_CALLS: list[tuple[type[Exception], str, Callable[[Any], object]]] = [
    (TypeError, "inputs", lambda m: m.save(None, "x")),
    (TypeError, "inputs", lambda m: m.save(["x"], "x")),
    (TypeError, "outputs", lambda m: m.save("x", 5)),
    (ValueError, "inputs", lambda m: m.save({}, "x")),
    (ValueError, "outputs", lambda m: m.save("x", {})),
    (ValueError, "inputs", lambda m: m.save({"": "x"}, "x")),
    (TypeError, "inputs", lambda m: m.save({5: "x"}, "x")),
    (TypeError, "inputs or outputs", lambda m: m.save({"a": {1}}, "x")),
    (ValueError, "inputs or outputs", lambda m: m.save("x", {"a": math.nan})),
    (ValueError, "Unicode", lambda m: m.save("\ud800", "x")),
    (ValueError, "query", lambda m: m.load("")),
    (TypeError, "query", lambda m: m.load(None)),
]


@pytest.mark.parametrize(("error", "argument", "use"), BAD_CALLS)
def test_a_bad_argument_is_refused_before_any_io(
    error: type[Exception], argument: str, use: Callable[[Any], object]
) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=argument) as caught:
        use(VectorMemory(client, EMBEDDER, scope="u1"))
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"scope": ""}, ValueError),
        ({"scope": " "}, ValueError),
        ({"scope": None}, TypeError),
        ({"k": 0}, ValueError),
        ({"k": True}, ValueError),
        ({"k": 1.5}, TypeError),
        ({"embedder": "model"}, TypeError),
    ],
    ids=str,
)
def test_a_bad_option_is_named(options: dict[str, Any], error: type[Exception]) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=next(iter(options))):
        VectorMemory(client, **{"embedder": EMBEDDER, "scope": "u1", **options})


def test_what_is_saved_after_a_flush_is_found(redis: Redis) -> None:
    memory = make(redis)
    redis.do(memory.save("the first", "gone"))
    redis.do(redis.client.call("FLUSHALL"))
    redis.do(memory.save("the second", "stays"))  # nobody looked in between
    assert [turn.metadata["inputs"] for turn in redis.do(memory.load("second"))] == [
        {"input": "the second"}
    ]
