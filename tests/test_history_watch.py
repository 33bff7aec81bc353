"""A session that is watched: each message that is added comes, once, to each who watches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest

from chats import Follower, calls, put, said, wait_until
from obedient import until_blocked
from proxy import TO_CLIENT, Proxy
from rawredis_llm import AsyncClient, ChatHistory, EmbeddedServer, errors
from rawredis_llm import history as module

if TYPE_CHECKING:
    from conftest import Redis

FAR = 9_999_999_999_999


@pytest.fixture(scope="module")
def server(plain_server: EmbeddedServer) -> EmbeddedServer:
    """A server without a search module: history needs none."""
    return plain_server


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a watch ask anew every 50 milliseconds."""
    monkeypatch.setattr(module, "_WATCHED", 50)


@pytest.fixture
def follow(redis: Redis) -> Iterator[Callable[..., Follower]]:
    """Return what starts a follower that waits in the server; all of them end with the test."""
    made: list[Follower] = []

    def start(since: Any = None, url: str = "") -> Follower:
        made.append(Follower(redis, "s", since, url))
        until_blocked(redis.url, len(made))
        return made[-1]

    yield start
    for follower in made:
        follower.end()


def asked(redis: Redis, times: int) -> None:
    """Wait until watches have asked the server anew so many times."""
    before = calls(redis, "xread")
    wait_until(lambda: calls(redis, "xread") >= before + times)


def test_what_is_added_comes_and_what_was_there_does_not(
    redis: Redis, follow: Callable[..., Follower]
) -> None:
    history = ChatHistory(redis.client, "s")
    redis.do(history.add_many(said("old", "older")))
    follower = follow()
    for i in range(5):
        redis.do(history.add("user", i))
        assert follower.next(1) == [i]
    redis.do(ChatHistory(redis.client, "S").add("user", "elsewhere"))
    redis.do(history.add_many(said(*"abc")))
    assert follower.next(3) == [*"abc"]


def test_a_session_that_is_not_there_yet_can_be_watched(
    redis: Redis, follow: Callable[..., Follower]
) -> None:
    follower = follow()
    redis.do(ChatHistory(redis.client, "s").add_many(said(*range(3))))
    assert follower.next(3) == [0, 1, 2]


SINCE: dict[str, tuple[Any, list[int]]] = {
    "the beginning": (0, [0, 1, 2, 3]),
    "the first": ("1700000000000-0", [1, 2, 3]),
    "the second of two": ("1700000000000-1", [2, 3]),
    "none that is there": ("1700000000500-7", [2, 3]),
    "a time": (1_700_000_001, [2, 3]),
    "a datetime": (datetime.fromtimestamp(1_700_000_002, timezone.utc), [3]),
    "an id before all": ("0-0", [0, 1, 2, 3]),
    "after all": ("1700000002000-0", []),
}


@pytest.mark.parametrize("since", SINCE)
def test_it_begins_where_it_is_told(
    redis: Redis, follow: Callable[..., Follower], since: str
) -> None:
    history = ChatHistory(redis.client, "s")
    for i, id_ in enumerate(["0000-0", "0000-1", "1000-0", "2000-0"]):
        put(redis, history.key, f"170000000{id_}", i)
    argument, wanted = SINCE[since]
    follower = follow(argument)
    redis.do(history.add("user", "new"))
    assert follower.next(len(wanted) + 1) == [*wanted, "new"]


def test_all_who_watch_get_all(redis: Redis, follow: Callable[..., Follower]) -> None:
    history = ChatHistory(redis.client, "s")
    followers = [follow(), follow(), follow(0)]
    for start in range(0, 60, 3):
        redis.do(history.add("user", start))
        redis.do(history.add_many(said(start + 1, start + 2)))
    for follower in followers:
        assert follower.next(60) == list(range(60))


def test_a_burst_comes_whole_and_in_order(redis: Redis, follow: Callable[..., Follower]) -> None:
    history = ChatHistory(redis.client, "s")
    follower = follow()
    redis.do(history.add_many(said(*range(1000))))
    redis.do(redis.client.gather([history.plan.add("user", i) for i in range(1000, 1300)]))
    assert follower.next(1300) == list(range(1300))
    late = follow(0)
    assert late.next(1300) == list(range(1300))


@pytest.mark.usefixtures("short")
def test_times_without_a_message_are_waited_out(
    redis: Redis, follow: Callable[..., Follower]
) -> None:
    history = ChatHistory(redis.client, "s")
    redis.do(history.add("user", "old"))
    follower = follow()
    for i in range(2):
        asked(redis, 4)
        redis.do(history.add("user", i))
        assert follower.next(1) == [i]


def test_what_was_edited_does_not_come_again_and_what_was_deleted_is_passed_over(
    redis: Redis, follow: Callable[..., Follower]
) -> None:
    history = ChatHistory(redis.client, "s")
    old = redis.do(history.add("user", "old"))
    follower = follow()
    id_ = redis.do(history.add("user", 0))
    assert follower.next(1) == [0]
    redis.do(history.edit(id_, "edited"))
    redis.do(history.edit(old, "edited"))
    redis.do(history.add("user", 1))
    redis.do(history.edit(id_, "edited again"))
    redis.do(history.delete(id_))
    redis.do(history.truncate(1))
    redis.do(history.add("user", 2))
    assert follower.next(2) == [1, 2]
    redis.do(history.truncate(0))
    redis.do(history.add("user", 3))
    assert follower.next(1) == [3]


def test_a_message_that_goes_at_once_does_not_come(
    redis: Redis, follow: Callable[..., Follower]
) -> None:
    history = ChatHistory(redis.client, "s")
    ids = redis.do(history.add_many(said(*range(5))))
    redis.do(history.delete(ids[2]))
    follower = follow(ids[0])
    assert follower.next(3) == [1, 3, 4]


@pytest.mark.usefixtures("short")
def test_a_session_that_is_cleared_and_begun_anew_is_still_watched(
    redis: Redis, follow: Callable[..., Follower]
) -> None:
    history = ChatHistory(redis.client, "s")
    follower = follow()
    for i in range(3):
        redis.do(history.add_many(said(i, "more")))
        assert follower.next(2) == [i, "more"]
        assert redis.do(history.clear()) is True
        asked(redis, 2)  # ids are by the clock: let a millisecond pass


@pytest.mark.usefixtures("short")
def test_a_session_begun_anew_is_watched_whatever_its_ids_were(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    follower = Follower(redis, "s")
    until_blocked(redis.url)
    put(redis, history.key, f"{FAR}-0", "by a clock that was ahead")
    assert follower.next(1) == ["by a clock that was ahead"]
    redis.do(history.clear())
    redis.do(history.add("user", "new"))
    missed = follower.silent(1.0)
    redis.do(history.clear())
    put(redis, history.key, f"{FAR}-1", Follower.STOP)
    follower.join()
    assert not missed


def test_a_connection_that_is_lost_loses_no_message(
    redis: Redis, follow: Callable[..., Follower]
) -> None:
    history = ChatHistory(redis.client, "s")
    with Proxy(redis.url) as proxy:
        follower = follow(url=proxy.url)
        redis.do(history.add("user", 0))
        assert follower.next(1) == [0]
        until_blocked(redis.url)
        proxy.arm("rst", TO_CLIENT)
        redis.do(history.add_many(said(1, 2)))
        redis.do(history.add("user", 3))
        assert follower.next(3) == [1, 2, 3]
        assert any(link.fired for link in proxy._links)
        follower.end()


def test_an_iteration_that_is_broken_off_leaves_the_client_as_it_was(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")
    redis.do(history.add_many(said(*range(300))))

    async def aio() -> list[Any]:
        messages: Any = history.watch(since=0)
        found = [(await anext_(messages)).content for _ in range(3)]
        await messages.aclose()
        return found

    async def anext_(messages: Any) -> Any:
        return await messages.__anext__()

    def sync() -> list[Any]:
        messages: Any = history.watch(since=0)
        found = [next(messages).content for _ in range(3)]
        messages.close()
        return found

    for _ in range(40):  # more than there may be connections
        assert redis.do(aio() if redis.kind == "aio" else sync()) == [0, 1, 2]
        assert redis.client.connections.in_use == 0
    assert redis.do(history.count()) == 300
    assert redis.client.connections.open <= 2


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_task_that_is_cancelled_while_it_watches_leaves_the_client_as_it_was(
    server: EmbeddedServer, protocol: int
) -> None:
    async def main() -> None:
        async with AsyncClient(server.url, protocol=protocol, max_connections=3) as own:
            await own.call("FLUSHALL")
            history = ChatHistory(own, "s")

            async def watch() -> None:
                async for _ in history.watch():
                    pass

            for turn in range(5):
                task = asyncio.create_task(watch())
                await asyncio.to_thread(until_blocked, server.url)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await history.add("user", turn)
            assert [m.content for m in await history.messages()] == list(range(5))

    asyncio.run(main())


def test_what_watches_cannot_be_planned(redis: Redis) -> None:
    plan = ChatHistory(redis.client, "s").plan
    with pytest.raises(TypeError, match="needs a client"):
        plan.watch()  # type: ignore[arg-type]  # pyright: ignore[reportAttributeAccessIssue]


def test_what_is_no_session_is_an_error_to_who_watches(redis: Redis) -> None:
    history = ChatHistory(redis.client, "s")

    def first(since: Any) -> Any:
        messages: Any = history.watch(since)
        return messages.__anext__() if redis.kind == "aio" else next(messages)

    redis.do(redis.client.call("SET", history.key, "no stream"))
    for since in (None, 0, "5-0"):
        with pytest.raises(errors.WrongTypeError):
            redis.do(first(since))
    redis.do(redis.client.call("DEL", history.key))
    redis.do(redis.client.call("XADD", history.key, "*", "foreign", "entry"))
    with pytest.raises(errors.UnexpectedReplyError, match="not a message of ours"):
        redis.do(first(0))
    assert redis.client.connections.in_use == 0
