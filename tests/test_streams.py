"""Answers that come in chunks: passed on as they come, stored when whole, replayed as they came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counting import cost
from rawredis_llm import AsyncClient, Client, EmbeddedServer, LLMCache, errors
from stored import change, entry, keys, left

if TYPE_CHECKING:
    from conftest import Redis

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens: any I/O raises ConnectError."""


class Producing:
    """Produces chunks for a client's kind; `log` says what happened, and `error` ends it."""

    def __init__(self, redis: Redis, *chunks: Any, error: Exception | None = None) -> None:
        self.kind = redis.kind
        self.chunks = chunks
        self.error = error
        self.log: list[Any] = []

    def __call__(self) -> Any:
        self.log.append("called")
        return self._plain() if self.kind == "sync" else self._asynchronous()

    def _plain(self) -> Iterator[Any]:
        try:
            for chunk in self.chunks:
                self.log.append(("made", chunk))
                yield chunk
            if self.error is not None:
                raise self.error
        finally:
            self.log.append("ended")

    async def _asynchronous(self) -> AsyncIterator[Any]:
        for chunk in self._plain():
            await asyncio.sleep(0)
            yield chunk


def take(redis: Redis, stream: Any, log: list[Any] | None = None, most: int | None = None) -> Any:
    """Return what a stream gives, at most so many chunks; then it is closed."""
    taken = [] if log is None else log

    async def main() -> None:
        async for chunk in stream:
            taken.append(chunk)
            if len(taken) == most:
                break
        await stream.aclose()

    if redis.kind == "aio":
        redis.do(main())
        return taken
    for chunk in stream:
        taken.append(chunk)
        if len(taken) == most:
            break
    stream.close()
    return taken


DICTS = [{"delta": {"content": "a"}}, {"delta": {}}, {"usage": {"tokens": 3}}]


@pytest.mark.parametrize(
    ("chunks", "response"),
    [
        (["a", "bc", "", "é🦜", "\0"], "abcé🦜\0"),
        (["whole"], "whole"),
        (["", ""], ""),
        (DICTS, DICTS),
        (["a", {"b": 1}, ["c"]], ["a", {"b": 1}, ["c"]]),
        ([1, None, True], [1, None, True]),
    ],
    ids=["texts", "one", "empty texts", "dicts", "mixed", "values"],
)
def test_chunks_are_stored_and_come_again(redis: Redis, chunks: list[Any], response: Any) -> None:
    cache, producing = LLMCache(redis.client), Producing(redis, *chunks)
    options: dict[str, Any] = {"params": {"n": 1}, "metadata": {"a": 1}, "sources": ["doc"]}
    for _ in range(3):
        assert take(redis, cache.stream("p", producing, "m", ttl=100, **options)) == chunks
    assert producing.log.count("called") == 1
    hit = redis.do(cache.lookup("p", "m", params={"n": 1}))
    assert (hit.response, hit.metadata) == (response, {"a": 1})
    assert 90_000 < left(redis, keys(redis)[0]) <= 100_000
    assert redis.do(cache.get_or_compute("p", lambda: "no", "m", params={"n": 1})) == response
    assert redis.do(cache.delete_source("doc")) == 1


def test_chunks_are_passed_on_before_the_next_is_made(redis: Redis) -> None:
    cache, producing = LLMCache(redis.client), Producing(redis, "a", "b")
    take(redis, cache.stream("p", producing), producing.log)
    assert producing.log == ["called", ("made", "a"), "a", ("made", "b"), "b", "ended"]


def test_nothing_is_asked_or_made_before_the_first_chunk_is_wanted(redis: Redis) -> None:
    cache, producing = LLMCache(redis.connect(url=NOBODY), on_error="raise"), Producing(redis, "a")
    stream = cache.stream("p", producing)
    assert producing.log == []
    with pytest.raises(errors.ConnectionError):
        take(redis, stream)
    assert producing.log == []


@pytest.mark.parametrize("most", [1, 2])
def test_what_was_left_is_not_stored_and_its_producer_ended(redis: Redis, most: int) -> None:
    cache, producing = LLMCache(redis.client), Producing(redis, "a", "b", "c")
    assert take(redis, cache.stream("p", producing), most=most) == ["a", "b"][:most]
    assert producing.log[-1] == "ended"
    assert keys(redis) == []
    assert take(redis, cache.stream("p", producing)) == ["a", "b", "c"]
    # Of what is replayed one may leave, too.
    assert take(redis, cache.stream("p", producing), most=most) == ["a", "b"][:most]
    assert redis.do(cache.lookup("p")).response == "abc"


def test_a_producer_that_fails_stores_nothing(redis: Redis) -> None:
    cache, producing = LLMCache(redis.client), Producing(redis, "a", error=ValueError("lost"))
    taken: list[Any] = []
    with pytest.raises(ValueError, match="lost"):
        take(redis, cache.stream("p", producing), taken)
    assert (taken, keys(redis)) == (["a"], [])


def test_an_empty_stream_is_no_answer(redis: Redis) -> None:
    cache, producing = LLMCache(redis.client), Producing(redis)
    for _ in range(2):
        assert take(redis, cache.stream("p", producing)) == []
    assert (producing.log.count("called"), keys(redis)) == (2, [])


def test_a_chunk_that_cannot_be_stored_is_named_at_once(redis: Redis) -> None:
    cache, taken = LLMCache(redis.client), list[Any]()
    with pytest.raises(TypeError, match="chunk"):
        take(redis, cache.stream("p", Producing(redis, "a", b"b", "c")), taken)
    assert (taken, keys(redis)) == (["a"], [])


@pytest.mark.parametrize("response", ["whole", {"a": 1}, ["a", "b"], ""])
def test_what_was_stored_at_once_comes_in_one_chunk(redis: Redis, response: Any) -> None:
    cache, producing = LLMCache(redis.client), Producing(redis, "never")
    redis.do(cache.store("p", response))
    assert take(redis, cache.stream("p", producing)) == [response]
    assert producing.log == []


@pytest.mark.parametrize("chunks", [[1, 1], [-1, 5], [4, 1], "no", [True, 3], [1.0, 3.0], False])
def test_lengths_that_do_not_fit_are_not_believed(redis: Redis, chunks: Any) -> None:
    cache = LLMCache(redis.client)
    take(redis, cache.stream("p", Producing(redis, "ab", "cd")))
    assert entry(redis)["chunks"] == [2, 2]
    change(redis, chunks=chunks)
    assert "".join(take(redis, cache.stream("p", Producing(redis, "never")))) == "abcd"


def test_pace_is_kept_between_chunks_that_were_stored(redis: Redis) -> None:
    cache, producing = LLMCache(redis.client), Producing(redis, "a", "b", "c", "d")
    assert take(redis, cache.stream("p", producing, pace=100)) == ["a", "b", "c", "d"]  # not made
    assert take(redis, cache.stream("one", Producing(redis, "a"))) == ["a"]
    start = time.monotonic()
    assert take(redis, cache.stream("one", producing, pace=4)) == ["a"]  # nothing comes before it
    assert time.monotonic() - start < 3
    times: list[float] = []

    class Noting(list[Any]):
        def append(self, chunk: Any) -> None:
            times.append(time.monotonic())
            super().append(chunk)

    assert take(redis, cache.stream("p", producing, pace=0.05), Noting()) == ["a", "b", "c", "d"]
    assert all(late - early >= 0.04 for early, late in pairwise(times))


def test_a_stream_costs_a_lookup_and_a_store(redis: Redis) -> None:
    cache, producing = LLMCache(redis.client), Producing(redis, *"abcdefghij")

    async def awaited() -> list[Any]:
        chunks: Any = cache.stream("p", producing)
        return [chunk async for chunk in chunks]

    def call() -> Any:
        return list(cache.stream("p", producing)) if redis.kind == "sync" else awaited()

    redis.do(cache.stats())  # so that no counts are due
    made, replayed = cost(redis, call), cost(redis, call)
    assert made.result == replayed.result == list("abcdefghij")
    assert (made.round_trips, replayed.round_trips) == (2, 1)


def test_stale_answers_and_failures_are_made_anew(redis: Redis) -> None:
    cache = LLMCache(redis.client, ttl=100, stale_for=100)
    redis.do(cache.store("p", "old"))
    change(redis, created=entry(redis)["created"] - 150)
    assert take(redis, cache.stream("p", Producing(redis, "new"))) == ["new"]
    assert redis.do(cache.lookup("p")).response == "new"
    redis.do(cache.store_error("p", "down"))
    assert take(redis, cache.stream("p", Producing(redis, "up"))) == ["up"]
    assert redis.do(cache.lookup("p")).response == "up"


def test_a_server_out_of_reach_makes_no_difference(redis: Redis) -> None:
    cache, producing = LLMCache(redis.connect(url=NOBODY)), Producing(redis, "a", "b")
    for _ in range(2):
        assert take(redis, cache.stream("p", producing)) == ["a", "b"]
    assert producing.log.count("called") == 2


def test_it_cannot_be_planned(redis: Redis) -> None:
    with pytest.raises(TypeError, match="cannot be planned"):
        LLMCache(redis.client).plan.stream("p", list)  # type: ignore[arg-type]


BAD: dict[str, tuple[type[Exception], str, Callable[[LLMCache[Client]], Any]]] = {
    "no function": (TypeError, "produce", lambda c: c.stream("p", ["a"])),  # type: ignore[arg-type]
    "ttl": (ValueError, "ttl", lambda c: c.stream("p", list, ttl=0)),
    "sources": (TypeError, "sources", lambda c: c.stream("p", list, sources="doc")),
    "metadata": (TypeError, "metadata", lambda c: c.stream("p", list, metadata=[])),  # type: ignore[arg-type]
    "prompt": (ValueError, "prompt", lambda c: c.stream("", list)),
}


@pytest.mark.parametrize(("error", "name", "use"), BAD.values(), ids=BAD)
def test_a_bad_argument_is_named_at_once(
    error: type[Exception], name: str, use: Callable[[LLMCache[Client]], Any]
) -> None:
    with Client(NOBODY) as client, pytest.raises(error, match=name):
        use(LLMCache(client, on_error="raise"))


async def asynchronously(*chunks: str) -> AsyncIterator[str]:
    """Yield chunks."""
    for chunk in chunks:
        yield chunk


async def opened(*chunks: str) -> AsyncIterator[str]:
    """Return an asynchronous iterator, once awaited, as clients of models do."""
    await asyncio.sleep(0)
    return asynchronously(*chunks)


async def coroutine() -> list[str]:
    """Return what is no asynchronous iterator."""
    return ["a"]


def test_what_is_of_the_wrong_kind_for_threads(client: Client) -> None:
    cache = LLMCache(client)
    wrong: list[Callable[[], Any]] = [lambda: None, lambda: 5, asynchronously, opened, coroutine]
    for produce in wrong:
        with pytest.raises(TypeError, match="iterator"):
            list(cache.stream("p", produce))
    assert list(cache.stream("p", lambda prompt: [prompt, "!"])) == ["p", "!"]
    assert list(cache.stream("p", lambda: ["never"])) == ["p", "!"]


def test_what_is_of_the_wrong_kind_for_tasks(server: EmbeddedServer) -> None:
    async def main() -> None:
        async with AsyncClient(server.url) as client:
            await client.call("FLUSHALL")
            cache = LLMCache(client)
            wrong: list[Callable[[], Any]] = [lambda: None, lambda: iter("ab"), list, coroutine]
            for produce in wrong:
                with pytest.raises(TypeError, match="asynchronous iterator"):
                    _ = [chunk async for chunk in cache.stream("p", produce)]
            assert await client.call("EXISTS", cache.asked("p", "", None).key) == 0
            right: list[Callable[[str], Any]] = [asynchronously, opened]
            right += [lambda prompt: opened(f"{prompt}"), lambda prompt: asynchronously(prompt[:1])]
            for name, function in zip(("function", "coroutine", "lambda", "p"), right, strict=True):
                given = [chunk async for chunk in cache.stream(name, lambda p, f=function: f(p))]
                assert given == [name]

    asyncio.run(main())


def test_a_task_that_is_cancelled_stores_nothing(server: EmbeddedServer) -> None:
    async def endless() -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(60)

    async def main() -> None:
        async with AsyncClient(server.url) as client:
            await client.call("FLUSHALL")
            cache, first = LLMCache(client), asyncio.Event()

            async def read() -> None:
                async for _ in cache.stream("p", endless):
                    first.set()

            task = asyncio.ensure_future(read())
            await first.wait()
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await cache.lookup("p") is None

    asyncio.run(main())


@given(chunks=st.lists(st.text(max_size=3) | st.just(""), min_size=1, max_size=8))
def test_any_boundaries_come_again(server: EmbeddedServer, chunks: list[str]) -> None:
    with Client(server.url) as client:
        client.call("FLUSHALL")
        cache = LLMCache(client, compress_above=200)
        assert list(cache.stream("p", lambda: chunks)) == chunks
        assert list(cache.stream("p", lambda: ["never"])) == chunks
        hit = cache.lookup("p")
        assert hit is not None
        assert hit.response == "".join(chunks)


# -- what must not come back ---------------------------------------------------------------------


def test_what_is_done_to_a_chunk_is_not_stored(redis: Redis) -> None:
    cache = LLMCache(redis.client)

    class Spoiling(list[Any]):
        def append(self, chunk: Any) -> None:
            super().append(dict(chunk))
            chunk.clear()

    taken = take(redis, cache.stream("p", Producing(redis, {"a": 1}, {"b": 2})), Spoiling())
    assert taken == [{"a": 1}, {"b": 2}]
    assert redis.do(cache.lookup("p")).response == [{"a": 1}, {"b": 2}]


def test_a_stale_answer_that_was_made_anew_is_a_miss(redis: Redis) -> None:
    cache = LLMCache(redis.client, ttl=100, stale_for=100)
    redis.do(cache.store("p", "old", metadata={"tokens": 5}))
    change(redis, created=entry(redis)["created"] - 150)
    take(redis, cache.stream("p", Producing(redis, "new")))
    stats = redis.do(cache.stats())
    assert (stats.stale, stats.misses, stats.saved_tokens) == (0, {"expired": 1}, 0)
