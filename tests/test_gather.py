"""Unlike things in one round trip, counted by the server itself."""

from __future__ import annotations

import logging
import threading
from time import sleep
from typing import TYPE_CHECKING, Any

import pytest

from counting import cost
from rawredis_llm import (
    ChatHistory,
    Client,
    Command,
    HashingEmbedder,
    LLMCache,
    Retriever,
    SemanticCache,
    Tag,
    Text,
    Vector,
    VectorIndex,
    VectorMemory,
    errors,
)
from rawredis_llm.protocol.operation import Call, Pause
from rawredis_llm.search.query import info

if TYPE_CHECKING:
    from conftest import Redis

QUESTION = "How tall is the Eiffel Tower?"
EMBEDDER = HashingEmbedder(64)


class Application:
    """What an LLM application keeps, filled."""

    def __init__(self, redis: Redis) -> None:
        client = redis.client
        self.exact = LLMCache(client, ttl=1000)
        self.semantic = SemanticCache(client, EMBEDDER, max_distance=0.3)
        self.history = ChatHistory(client, "u1")
        self.index = VectorIndex(
            client, "docs", [Text("text"), Tag("lang"), Vector("vec", EMBEDDER.dim)]
        )
        self.retriever = Retriever(self.index, EMBEDDER, k=4)
        self.memory = VectorMemory(client, EMBEDDER, scope="u1", k=2)
        texts = [f"The tower number {i} is {i * 10} metres tall" for i in range(12)]
        redis.do(self.index.create())
        columns = {"text": texts, "lang": ["en"] * len(texts)}
        redis.do(self.index.load(range(12), EMBEDDER(texts), columns))
        redis.do(self.history.add_many([{"role": "user", "content": i} for i in range(25)]))
        redis.do(self.exact.store(QUESTION, "330 m", "m"))
        redis.do(self.semantic.store(QUESTION, "330 metres", "m"))
        redis.do(self.memory.save("I am in Paris", "lovely"))
        # An index is asked once, with the first search, whether it is being built.
        redis.do(self.index.wait_until_indexed())
        while not redis.do(client.run(info("memory"))).whole:
            sleep(0.01)
        redis.do(self.memory.load("Paris"))

    def same(self, results: list[Any]) -> list[Any]:
        """Return results without the ages of hits, which pass."""
        return [
            (hit.response, hit.id, hit.prompt) if hasattr(hit, "age") else hit for hit in results
        ]


@pytest.fixture
def app(redis: Redis) -> Application:
    """Return an application on the fixture's client."""
    return Application(redis)


def test_the_count_itself(redis: Redis) -> None:
    client = redis.client
    one = cost(redis, lambda: client.call("SET", "k", "v"))
    assert (one.round_trips, one.connections, one.commands) == (1, 0, {"SET": 1})
    assert one.result == b"OK"
    pipelined = cost(redis, lambda: client.pipeline([("GET", "k"), ("GET", "k"), ("TTL", "k")]))
    assert (pipelined.round_trips, pipelined.commands) == (1, {"GET": 2, "TTL": 1})
    none = cost(redis, lambda: client.gather([]))
    assert (none.round_trips, none.commands) == (0, {})

    def two() -> Any:
        yield from Command(("GET", "k"))
        yield from Command(("TTL", "k"))

    assert cost(redis, lambda: client.run(two())).round_trips == 2
    fresh = redis.connect()
    assert cost(redis, lambda: fresh.call("PING")).connections == 1


def test_cache_history_and_retrieval_are_one_round_trip(redis: Redis, app: Application) -> None:
    found = cost(
        redis,
        lambda: redis.client.gather(
            [
                app.exact.plan.lookup(QUESTION, "m"),
                app.history.plan.messages(last=10),
                app.retriever.plan.retrieve(QUESTION),
            ]
        ),
    )
    assert (found.round_trips, found.connections) == (1, 0)
    assert found.commands == {"GET": 1, "XREVRANGE": 1, "FT.SEARCH": 1}
    hit, messages, documents = found.result
    assert hit.response == "330 m"
    assert [message.content for message in messages] == list(range(15, 25))
    assert len(documents) == 4
    one_by_one = [
        redis.do(app.exact.lookup(QUESTION, "m")),
        redis.do(app.history.messages(last=10)),
        redis.do(app.retriever.retrieve(QUESTION)),
    ]
    assert app.same(found.result) == app.same(one_by_one)


def test_everything_an_application_asks_is_one_round_trip(redis: Redis, app: Application) -> None:
    vector = EMBEDDER([QUESTION])[0]
    found = cost(
        redis,
        lambda: redis.client.gather(
            [
                app.exact.plan.lookup(QUESTION, "m"),
                app.exact.plan.lookup_many([QUESTION, "other"], "m"),
                app.semantic.plan.lookup("How tall is the Eiffel tower", "m"),
                app.history.plan.messages(last=3),
                app.history.plan.count(),
                app.index.plan.search(vector, 3, filter=Tag("lang") == "en"),
                app.index.plan.count(),
                app.retriever.plan.retrieve_many([QUESTION, "tower number 3"]),
                app.memory.plan.load("Paris"),
                Command(("GET", "nothing")),
            ]
        ),
    )
    assert (found.round_trips, found.connections) == (1, 0)
    assert found.commands == {
        "GET": 2,
        "MGET": 1,
        "XREVRANGE": 1,
        "XLEN": 1,
        "FT.SEARCH": 6,
    }
    exact, both, semantic, messages, count, rows, total, documents, turns, nothing = found.result
    assert (exact.response, semantic.response) == ("330 m", "330 metres")
    assert [hit and hit.response for hit in both] == ["330 m", None]
    assert [message.content for message in messages] == [22, 23, 24]
    assert (count, len(rows.rows), total, nothing) == (25, 3, 12, None)
    assert documents == redis.do(app.retriever.retrieve_many([QUESTION, "tower number 3"]))
    assert turns[0].metadata["inputs"] == {"input": "I am in Paris"}


def test_writes_of_many_steps_walk_together(redis: Redis, app: Application) -> None:
    redis.do(app.semantic.store("warm", "up"))
    found = cost(
        redis,
        lambda: redis.client.gather(
            [app.exact.plan.store(f"p{i}", f"r{i}") for i in range(5)]
            + [app.semantic.plan.store(f"question {i}", f"s{i}") for i in range(5)]
            + [app.history.plan.add_many([{"role": "user", "content": "x"}] * 2)]
            + [app.memory.plan.save("hello", "hi")]
        ),
    )
    assert found.round_trips == 1
    assert found.commands == {
        "SET": 5,
        "MULTI": 5,
        "EXEC": 5,
        "DEL": 6,
        "HSET": 6,
        "EVALSHA": 1,
        "XREVRANGE": 1,
        "XADD": 2,
        "FT.CREATE": 6,
        "FT.SEARCH": 1,  # whether what the memory saved is indexed
    }
    assert [redis.do(app.exact.lookup(f"p{i}")).response for i in range(5)] == [
        f"r{i}" for i in range(5)
    ]
    assert redis.do(app.semantic.lookup("question 3", max_distance=0.01)).response == "s3"
    assert redis.do(app.history.count()) == 27


def test_a_plan_runs_nothing_by_itself(redis: Redis, app: Application) -> None:
    op = app.exact.plan.delete(QUESTION, "m")
    assert redis.do(app.exact.lookup(QUESTION, "m")).response == "330 m"
    assert redis.do(redis.client.gather([op])) == [True]
    assert redis.do(app.exact.lookup(QUESTION, "m")) is None


def test_one_failure_leaves_the_others_their_results(redis: Redis, app: Application) -> None:
    redis.do(redis.client.call("SET", "chat:broken", "no stream"))
    missing = VectorIndex(redis.client, "nowhere", [Vector("v", 2)])

    def ops() -> list[Any]:
        return [
            app.exact.plan.lookup(QUESTION, "m"),
            ChatHistory(redis.client, "broken").plan.messages(),
            missing.plan.search([1.0, 2.0]),
            app.retriever.plan.retrieve(" "),
            app.history.plan.count(),
            SemanticCache(redis.client, EMBEDDER, namespace="none").plan.lookup("x"),
        ]

    hit, wrong_type, no_index, blank, count, miss = redis.do(
        redis.client.gather(ops(), raise_errors=False)
    )
    assert (hit.response, count, miss) == ("330 m", 25, None)
    assert isinstance(wrong_type, errors.WrongTypeError)
    assert wrong_type.command == "XRANGE"
    assert isinstance(no_index, errors.IndexNotFoundError)
    assert isinstance(blank, ValueError)
    with pytest.raises(errors.WrongTypeError):
        redis.do(redis.client.gather(ops()))
    assert redis.do(app.exact.lookup(QUESTION, "m")).response == "330 m"


def test_an_argument_without_a_form_fails_its_own_op_only(client: Client) -> None:
    bad, good = client.gather(
        [Command(("SET", "k", "\ud800")), Command(("PING",))], raise_errors=False
    )
    assert isinstance(bad, ValueError)
    assert good == b"PONG"


def test_without_a_server_each_op_follows_its_own_policy(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    client = redis.connect(url="redis://127.0.0.1:1/0")
    with caplog.at_level(logging.WARNING, "rawredis_llm"):
        miss, error, history = redis.do(
            client.gather(
                [
                    LLMCache(client).plan.lookup("p"),
                    LLMCache(client, on_error="raise").plan.lookup("p"),
                    ChatHistory(client, "s").plan.messages(),
                ],
                raise_errors=False,
            )
        )
    assert miss is None
    assert isinstance(error, errors.ConnectError)
    assert isinstance(history, errors.ConnectError)
    assert len(caplog.records) == 1


def test_functions_that_block_and_waits_walk_along(redis: Redis) -> None:
    threads: list[int] = []

    def work(number: int) -> int:
        threads.append(threading.get_ident())
        return number // (3 - number)

    def steps(number: int) -> Any:
        yield from Pause(0.001)
        yield from Command(("SET", f"k{number}", number))
        return (yield from Call(work, number))

    results = redis.do(redis.client.gather([steps(i) for i in range(5)], raise_errors=False))
    assert [results[i] for i in (0, 1, 2, 4)] == [0, 0, 2, -4]
    assert isinstance(results[3], ZeroDivisionError)
    assert redis.do(redis.client.call("DBSIZE")) == 5
    # Not in the thread of the event loop, which it would stop.
    assert (threading.get_ident() in threads) == (redis.kind == "sync")
