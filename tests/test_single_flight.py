"""Of all who ask for an answer that is not there, one computes it: within one process."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from conftest import Redis as Fixture
from counting import cost
from flights import PATIENCE, Computing, during, elsewhere, settled
from obedient import at_once, until
from rawredis_llm import AsyncClient, Client, EmbeddedServer, LLMCache, errors
from stored import change, entry, keys, leases, left

if TYPE_CHECKING:
    from conftest import Redis

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens: any I/O raises ConnectError."""


def slowly(computing: Computing, seconds: float = 0.15) -> None:
    """Let a held computation end after so long, in which others come to wait for it."""
    threading.Timer(seconds, computing.release.set).start()


# -- one computes --------------------------------------------------------------------------------


def test_one_of_many_computes_and_its_answer_is_stored(redis: Redis) -> None:
    cache = LLMCache(redis.client, ttl=1000)
    computing = Computing({"text": "r", "usage": [1]}, held=True)
    slowly(computing)
    options: dict[str, Any] = {"params": {"seed": 1}, "metadata": {"a": 1}, "sources": ["doc"]}
    call = partial(cache.get_or_compute, "p", computing, "m", ttl=100, **options)
    assert at_once(redis, *[call] * 8) == [{"text": "r", "usage": [1]}] * 8
    assert redis.do(call()) == computing.answer
    assert computing.calls == 1
    hit = redis.do(cache.lookup("p", "m", params={"seed": 1}))
    assert (hit.response, hit.metadata) == (computing.answer, {"a": 1})
    assert 90 < hit.ttl <= 100
    assert leases(redis) == []
    assert redis.do(cache.delete_source("doc")) == 1
    assert redis.do(call()) == computing.answer
    assert computing.calls == 2


def test_other_questions_do_not_wait(redis: Redis) -> None:
    cache, other = (LLMCache(redis.client, scope=scope) for scope in ("", "other"))
    computing = Computing("first", held=True)
    results = during(
        redis,
        computing,
        lambda: cache.get_or_compute("p", computing, "m"),
        lambda: cache.get_or_compute("q", lambda: "another prompt", "m"),
        lambda: cache.get_or_compute("p", lambda: "another model"),
        lambda: cache.get_or_compute("p", lambda: "other params", "m", params={"n": 1}),
        lambda: other.get_or_compute("p", lambda: "another scope", "m"),
    )
    assert results[-1] == "first"
    assert results[:-1] == ["another prompt", "another model", "other params", "another scope"]


def test_what_is_there_is_not_computed_and_costs_one_round_trip(redis: Redis) -> None:
    cache, computing = LLMCache(redis.client), Computing()
    redis.do(cache.store("p", "stored"))
    redis.do(cache.stats())  # so that no counts are due
    found = cost(redis, lambda: cache.get_or_compute("p", computing))
    assert (found.result, found.round_trips, computing.calls) == ("stored", 1, 0)
    assert set(found.commands) <= {"GET", "HINCRBY"}
    missed = cost(redis, lambda: cache.get_or_compute("q", computing))
    assert (missed.result, missed.round_trips, computing.calls) == ("answer", 3, 1)


class Machine:
    """What may be called."""

    def method(self, prompt: str) -> str:
        return f"method {prompt}"

    def __call__(self, prompt: str) -> str:
        return f"object {prompt}"


@pytest.mark.parametrize(
    ("compute", "answer"),
    [
        (lambda: "plain", "plain"),
        (lambda prompt: f"of {prompt}", "of p"),
        (lambda prompt="none": f"default {prompt}", "default none"),
        (lambda *args: f"{len(args)} args", "0 args"),
        (lambda prompt, /: f"positional {prompt}", "positional p"),
        (partial("{} {}".format, "a", "b"), "a b"),
        (Machine().method, "method p"),
        (Machine(), "object p"),
    ],
    ids=["none", "one", "default", "args", "positional", "partial", "method", "object"],
)
def test_compute_is_given_the_prompt_if_it_takes_one(
    redis: Redis, compute: Callable[..., Any], answer: str
) -> None:
    assert redis.do(LLMCache(redis.client).get_or_compute("p", compute)) == answer


def test_compute_is_given_the_messages_as_they_are(redis: Redis) -> None:
    messages = [{"role": "user", "content": b"bytes", "name": None}]
    given: list[Any] = []
    compute = lambda prompt: given.append(prompt) or "r"  # type: ignore[func-returns-value]  # noqa: E731
    redis.do(LLMCache(redis.client).get_or_compute(messages, compute))
    assert given == [messages]


@pytest.mark.parametrize("protocol", [2, 3])
def test_compute_may_be_asynchronous(server: EmbeddedServer, protocol: int) -> None:
    async def compute(prompt: str) -> str:
        await asyncio.sleep(0.01)
        return f"{prompt} {threading.current_thread() is threading.main_thread()}"

    async def main() -> list[Any]:
        async with AsyncClient(server.url, protocol=protocol) as client:
            await client.call("FLUSHALL")
            cache = LLMCache(client)
            functions: tuple[Any, ...] = (
                compute,
                lambda text: compute(text + "!"),
                partial(compute, "q"),
            )
            return [
                *[await cache.get_or_compute(f"{i}", one) for i, one in enumerate(functions)],
                await cache.get_or_compute("t", lambda: f"{threading.get_ident() == here}"),
            ]

    here = threading.get_ident()
    # What is not asynchronous is called in a thread, so that it does not stop the loop.
    assert asyncio.run(main()) == ["0 True", "1! True", "q True", "False"]


def test_an_asynchronous_compute_needs_an_async_client(client: Client) -> None:
    async def compute() -> str:
        return "never"

    cache = LLMCache(client)
    with pytest.raises(TypeError, match="use it with an AsyncClient"):
        cache.get_or_compute("p", compute)
    assert not [
        key for key in client.call("KEYS", "llm:f:*") if client.call("TYPE", key) != b"stream"
    ]
    assert cache.get_or_compute("p", lambda: "now") == "now"


@pytest.mark.parametrize("answer", [None, 5, b"r", ("a",), {"a": {1}}], ids=str)
def test_what_is_no_answer_is_refused_and_the_lease_given_back(redis: Redis, answer: Any) -> None:
    cache = LLMCache(redis.client)
    with pytest.raises(TypeError, match="response"):
        redis.do(cache.get_or_compute("p", lambda: answer))
    assert (keys(redis), leases(redis)) == ([], [])
    assert redis.do(LLMCache(elsewhere(redis)).get_or_compute("p", lambda: "r")) == "r"


BAD: dict[str, tuple[type[Exception], str, Callable[[Any], Any]]] = {
    "no function": (TypeError, "compute", lambda c: c.get_or_compute("p", "r")),
    "lease 0": (ValueError, "lease", lambda c: c.get_or_compute("p", Computing(), lease=0)),
    "lease None": (TypeError, "lease", lambda c: c.get_or_compute("p", Computing(), lease=None)),
    "lease text": (TypeError, "lease", lambda c: c.get_or_compute("p", Computing(), lease="1")),
    "ttl": (ValueError, "ttl", lambda c: c.get_or_compute("p", Computing(), ttl=-1)),
    "sources": (TypeError, "sources", lambda c: c.get_or_compute("p", Computing(), sources="a")),
    "metadata": (TypeError, "metadata", lambda c: c.get_or_compute("p", Computing(), metadata=[])),
    "prompt": (ValueError, "prompt", lambda c: c.get_or_compute("", Computing())),
}


@pytest.mark.parametrize(("error", "name", "use"), BAD.values(), ids=BAD)
def test_a_bad_argument_is_named_before_any_io(
    error: type[Exception], name: str, use: Callable[[LLMCache[Any]], Any]
) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=name):
        use(LLMCache(client, on_error="raise"))


def test_it_cannot_be_planned(redis: Redis) -> None:
    cache, computing = LLMCache(redis.client), Computing()
    with pytest.raises(TypeError, match="cannot be planned"):
        redis.do(redis.client.gather([cache.plan.get_or_compute("p", computing)]))
    assert computing.calls == 0


# -- failures ------------------------------------------------------------------------------------


def test_what_compute_raised_reaches_all_who_wait_and_is_not_stored(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    failing, fine = Computing(ValueError("overloaded"), held=True), Computing("fine", held=True)
    slowly(failing)
    slowly(fine)
    calls = [partial(cache.get_or_compute, "p", failing) for _ in range(4)]
    others = [partial(cache.get_or_compute, "q", fine) for _ in range(2)]
    results = settled(redis, *calls, *others)
    assert [f"{error!r}" for error in results[:4]] == ["ValueError('overloaded')"] * 4
    assert results[4:] == ["fine", "fine"]
    assert (failing.calls, fine.calls) == (1, 1)
    assert redis.do(cache.lookup("p")) is None
    assert redis.do(cache.get_or_compute("p", lambda: "now")) == "now"


def test_a_failure_is_kept_for_its_time_where_a_cache_is_told_so(redis: Redis) -> None:
    cache, computing = (
        LLMCache(redis.client, error_ttl=100),
        Computing(KeyError("surrogate \ud800")),
    )
    with pytest.raises(KeyError, match="surrogate"):
        redis.do(cache.get_or_compute("p", computing, "m"))
    [key] = keys(redis)
    assert 90_000 < left(redis, key) <= 100_000
    for client in (redis.client, elsewhere(redis)):
        with pytest.raises(errors.CachedFailureError, match=r"KeyError: .*surrogate"):
            redis.do(LLMCache(client).get_or_compute("p", computing, "m"))
    assert computing.calls == 1
    assert "KeyError" in redis.do(cache.lookup("p", "m")).error
    redis.do(redis.client.call("PEXPIRE", key, 1))
    until(lambda: not keys(redis))
    assert redis.do(cache.get_or_compute("p", lambda: "r", "m")) == "r"


def test_a_failure_does_not_replace_a_stale_answer_without_error_ttl(redis: Redis) -> None:
    cache = LLMCache(redis.client, ttl=100, stale_for=1000)
    redis.do(cache.store("p", "old"))
    change(redis, created=entry(redis)["created"] - 200)
    with pytest.raises(ValueError, match="no"):
        redis.do(cache.get_or_compute("p", Computing(ValueError("no"))))
    hit = redis.do(cache.lookup("p"))
    assert (hit.response, hit.stale) == ("old", True)


def test_others_have_the_stale_answer_meanwhile(redis: Redis) -> None:
    cache = LLMCache(redis.client, ttl=100, stale_for=1000)
    redis.do(cache.store("p", {"text": "old"}))
    change(redis, created=entry(redis)["created"] - 200)
    computing, never = Computing({"text": "new"}, held=True), Computing("never")
    there = LLMCache(elsewhere(redis))
    results = during(
        redis,
        computing,
        lambda: cache.get_or_compute("p", computing),
        lambda: cache.get_or_compute("p", never),
        lambda: there.get_or_compute("p", never),
    )
    assert results == [{"text": "old"}, {"text": "old"}, {"text": "new"}]
    assert (computing.calls, never.calls) == (1, 0)
    hit = redis.do(cache.lookup("p"))
    assert (hit.response, hit.stale) == ({"text": "new"}, False)


@pytest.mark.parametrize("on_error", ["miss", "raise"])
def test_a_server_out_of_reach(redis: Redis, on_error: str) -> None:
    cache, computing = LLMCache(redis.connect(url=NOBODY), on_error=on_error), Computing()
    for _ in range(2):
        if on_error == "miss":
            assert redis.do(cache.get_or_compute("p", computing)) == "answer"
        else:
            with pytest.raises(errors.ConnectionError):
                redis.do(cache.get_or_compute("p", computing))
    assert computing.calls == (2 if on_error == "miss" else 0)


def test_who_was_cancelled_takes_nobody_along(server: EmbeddedServer) -> None:
    begun: list[int] = []
    computing = asyncio.Event()

    async def compute() -> str:
        begun.append(1)
        computing.set()
        await asyncio.sleep(0.1 if len(begun) > 1 else PATIENCE)
        return "answer"

    async def main() -> list[Any]:
        async with AsyncClient(server.url) as client:
            await client.call("FLUSHALL")
            ask = partial(LLMCache(client).get_or_compute, "p", compute, lease=1)
            tasks = [asyncio.ensure_future(ask()) for _ in range(4)]
            await asyncio.wait_for(computing.wait(), PATIENCE)
            await asyncio.sleep(0.05)
            tasks[0].cancel()  # the one who computes
            tasks[1].cancel()  # one who waits
            return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE)

    results = asyncio.run(main())
    assert [type(one) for one in results[:2]] == [asyncio.CancelledError] * 2
    assert results[2:] == ["answer", "answer"]
    assert len(begun) == 2


def test_who_waits_may_be_cancelled(server: EmbeddedServer) -> None:
    computing = Computing(held=True)

    async def main() -> list[Any]:
        async with AsyncClient(server.url) as client:
            await client.call("FLUSHALL")
            ask = partial(LLMCache(client).get_or_compute, "p", computing)
            tasks = [asyncio.ensure_future(ask()) for _ in range(4)]
            assert await asyncio.to_thread(computing.begun.wait, PATIENCE)
            tasks[2].cancel()
            await asyncio.wait([tasks[2]])
            computing.release.set()
            return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(main())
    assert isinstance(results.pop(2), asyncio.CancelledError)
    assert (results, computing.calls) == (["answer"] * 3, 1)


def test_tasks_of_many_loops_share_a_flight(server: EmbeddedServer) -> None:
    computing, found = Computing({"n": 1}, held=True), []

    def loop() -> None:
        async def main() -> None:
            async with AsyncClient(server.url) as client:
                found.append(await LLMCache(client).get_or_compute("p", computing))

        asyncio.run(main())

    def thread() -> None:
        with Client(server.url) as client:
            found.append(LLMCache(client).get_or_compute("p", computing))

    with Client(server.url) as client:
        client.call("FLUSHALL")
    threads = [threading.Thread(target=one) for one in (loop, thread, loop, thread)]
    for one in threads:
        one.start()
    slowly(computing)
    for one in threads:
        one.join(PATIENCE)
    assert (found, computing.calls) == ([{"n": 1}] * 4, 1)


def mutated(redis: Redis, cache: LLMCache[Any], computing: Computing, who: str) -> list[Any]:
    """Let some add to the answer that they get at once, and return what each one got."""
    got: list[Any] = []

    def taken(answer: Any, name: str) -> None:
        got.append(list(answer["seen"]))
        if name == who:
            answer["seen"].append(name)

    def call(name: str) -> Any:
        if redis.kind == "sync":
            return taken(cache.get_or_compute("p", computing), name)

        async def ask() -> None:
            taken(await cache.get_or_compute("p", computing), name)

        return ask()

    at_once(redis, *[partial(call, name) for name in ("first", "other", "other", "other")])
    return got


def test_what_one_does_to_its_answer_does_not_reach_others(redis: Redis) -> None:
    cache, computing = LLMCache(redis.client), Computing({"seen": []}, held=True)
    slowly(computing)
    if redis.kind == "sync":  # any thread may be the first to ask
        calls = [partial(cache.get_or_compute, "p", computing)] * 4
        results = at_once(redis, *calls)
        assert len({id(one["seen"]) for one in results}) == 4
    else:
        assert mutated(redis, cache, computing, "other") == [[]] * 4
    assert redis.do(cache.lookup("p")).response == {"seen": []}


@pytest.mark.parametrize("redis", ["aio-3"], indirect=True)
def test_what_the_first_does_to_its_answer_does_not_reach_others(redis: Redis) -> None:
    cache, computing = LLMCache(redis.client), Computing({"seen": []}, held=True)
    slowly(computing)
    assert mutated(redis, cache, computing, "first") == [[]] * 4


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent(server: EmbeddedServer) -> None:
    redis = Fixture(server.url, "sync", 3)
    redis.do(redis.client.call("FLUSHALL"))
    cache, computing = LLMCache(redis.client), Computing("parent", held=True)
    reading, writing = os.pipe()

    def fork() -> int:
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, b"began ")
                os.write(writing, cache.get_or_compute("p", lambda: "child").encode())
            finally:
                os._exit(0)
        assert os.read(reading, 6) == b"began "
        return child

    child, answer = during(redis, computing, lambda: cache.get_or_compute("p", computing), fork)
    assert answer == "parent"
    end = threading.Timer(PATIENCE, os.kill, (child, 9))
    end.start()
    os.waitpid(child, 0)
    end.cancel()
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"parent"
    redis.close()


def test_a_compute_that_raises_stop_iteration(server: EmbeddedServer) -> None:
    def compute() -> str:
        return next(iter(()))

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        async with AsyncClient(server.url) as client:
            await client.call("FLUSHALL")
            ask = LLMCache(client).get_or_compute("p", compute, lease=1)
            await asyncio.wait_for(ask, 0.5)

    with pytest.raises(RuntimeError):
        asyncio.run(main())
