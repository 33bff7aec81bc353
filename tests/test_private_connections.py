"""In asyncio: the connection that tasks share, and those of commands that wait in the server."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from typing import Any

import pytest

from obedient import Obedient, balanced, until_blocked
from rawredis_llm import AsyncClient, Client, Command, EmbeddedServer, errors
from rawredis_llm.protocol.operation import Op


class Tasks:
    """Runs a test's coroutine on a client of its own, on an empty database."""

    def __init__(self, url: str, protocol: int) -> None:
        self.url = url
        self._protocol = protocol

    def run(self, test: Callable[[AsyncClient], Coroutine[Any, Any, Any]], **options: Any) -> Any:
        async def main() -> Any:
            async with AsyncClient(self.url, protocol=self._protocol, **options) as client:
                return await test(client)

        return asyncio.run(main())

    async def blocked(self, clients: int) -> None:
        """Return when so many clients wait in the server."""
        await asyncio.to_thread(until_blocked, self.url, clients)


@pytest.fixture(params=[2, 3])
def tasks(request: pytest.FixtureRequest, server: EmbeddedServer, client: Client) -> Tasks:
    assert client.call("DBSIZE") == 0
    return Tasks(server.url, request.param)


def begin(call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(call)


async def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        await asyncio.sleep(0.001)


async def turns(count: int) -> None:
    """Let the event loop turn; now and then so that the server has time to answer."""
    for turn in range(count):
        await asyncio.sleep(0 if turn % 3 else 0.0005)


def test_tasks_share_one_connection_and_waiting_commands_do_not(tasks: Tasks) -> None:
    async def main(client: AsyncClient) -> None:
        await asyncio.gather(*[client.call("PING") for _ in range(50)])
        assert client.connections[:4] == (1, 0, 0, 1)
        waiting = [begin(client.call("BLPOP", f"q{i}", 0)) for i in range(3)]
        await tasks.blocked(3)
        assert await asyncio.gather(*[client.call("PING") for _ in range(50)]) == [b"PONG"] * 50
        assert client.connections[:4] == (4, 3, 0, 4)
        for i in range(3):
            await client.call("RPUSH", f"q{i}", i)
        assert [(await task)[1] for task in waiting] == [b"0", b"1", b"2"]
        assert client.connections[:4] == (4, 0, 0, 4)

    tasks.run(main)


def test_private_connections_are_used_again(tasks: Tasks) -> None:
    async def main(client: AsyncClient) -> None:
        shared = await client.call("CLIENT", "ID")
        await client.call("RPUSH", "q", *range(5))
        pop = [("CLIENT", "ID"), ("BLPOP", "q", 1)]
        private = [(await client.pipeline(pop))[0] for _ in range(5)]
        assert len(set(private)) == 1
        assert shared not in private
        assert client.connections.created == 2

    tasks.run(main)


def test_there_are_never_more_private_connections_than_allowed(tasks: Tasks) -> None:
    async def main(client: AsyncClient) -> None:
        pops = [begin(client.call("BLPOP", "q", 0)) for _ in range(10)]
        await until(lambda: client.connections.waiting == 7)
        await tasks.blocked(3)
        assert client.connections[:3] == (3, 3, 7)
        await client.call("RPUSH", "q", *range(10))
        assert sorted([int((await pop)[1]) for pop in pops]) == list(range(10))
        figures = client.connections
        assert figures[:5] == (4, 0, 0, 4, 7)  # and the shared one
        assert figures.wait_time > 0
        assert balanced(figures)

    tasks.run(main, max_connections=3)


def test_waiting_tasks_are_served_in_the_order_of_arrival(tasks: Tasks) -> None:
    served: list[int] = []

    async def pop(client: AsyncClient, number: int) -> Any:
        reply = await client.call("BLPOP", "q", 0)
        served.append(number)
        return int(reply[1])

    async def main(client: AsyncClient) -> list[int]:
        pops = [begin(pop(client, number)) for number in range(8)]
        await until(lambda: client.connections.waiting == 7)
        await client.call("RPUSH", "q", *range(8))
        return list(await asyncio.gather(*pops))

    assert tasks.run(main, max_connections=1) == list(range(8)) == served


def test_a_task_gives_up_waiting_at_its_deadline(tasks: Tasks) -> None:
    async def main(client: AsyncClient) -> None:
        pop = begin(client.call("BLPOP", "q", 0))
        await tasks.blocked(1)
        began = time.monotonic()
        with pytest.raises(errors.PoolTimeoutError, match="all 1 connections") as caught:
            await client.call("BRPOP", "other", 0, timeout=0.1)
        assert 0.09 <= time.monotonic() - began < 3
        assert caught.value.command == "BRPOP"
        assert client.connections[:3] == (1, 1, 0)
        await client.call("RPUSH", "q", "x")
        assert await pop == [b"q", b"x"]
        assert await client.call("BLPOP", "q", 0.01) is None

    tasks.run(main, max_connections=1)


STEPS = 24


@pytest.mark.parametrize("holder", ["cancelled", "answered"])
def test_a_task_cancelled_at_any_moment_loses_no_place(tasks: Tasks, holder: str) -> None:
    async def main(client: AsyncClient) -> None:
        await client.call("PING")
        for step in range(STEPS):
            first = begin(client.call("BLPOP", "q", 0))
            await until(lambda: client.connections.in_use == 1)
            second, third = begin(client.call("BLPOP", "q", 0)), begin(client.call("PING"))
            await third
            assert client.connections.waiting == 1
            if holder == "cancelled":
                first.cancel()
            else:
                await client.call("RPUSH", "q", "x")
            await turns(step)
            second.cancel()
            await asyncio.wait([first, second])
            assert client.connections[1:3] == (0, 0)
            await client.call("DEL", "q", "p")
            await client.call("RPUSH", "p", step)
            assert await client.call("BLPOP", "p", 0, timeout=5) == [b"p", b"%d" % step]
            assert balanced(client.connections)

    tasks.run(main, max_connections=1)


def test_a_task_cancelled_while_it_connects_loses_no_place(tasks: Tasks) -> None:
    async def main(client: AsyncClient) -> None:
        await client.call("RPUSH", "p", *range(STEPS))
        for step in range(STEPS):
            first = begin(client.call("BLPOP", "q", 0))
            await turns(step // 2)
            first.cancel()
            await asyncio.wait([first])
            assert await client.call("BLPOP", "p", 0, timeout=5) == [b"p", b"%d" % step]
            assert balanced(client.connections)
            await client.reauthenticate()  # so that the next one connects anew

    tasks.run(main, max_connections=1)


def test_a_cancelled_task_takes_no_element_later(tasks: Tasks) -> None:
    async def main(client: AsyncClient) -> None:
        pop = begin(client.call("BLPOP", "q", 0))
        await tasks.blocked(1)
        pop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pop
        await tasks.blocked(0)
        await client.call("RPUSH", "q", "x")
        assert await client.call("LRANGE", "q", 0, -1) == [b"x"]
        assert client.connections.dropped == {"abandoned": 1}

    tasks.run(main)


def test_a_task_whose_time_is_up_takes_no_element_later(tasks: Tasks) -> None:
    async def main(client: AsyncClient) -> None:
        with pytest.raises(errors.ReadTimeoutError):
            await client.call("BLPOP", "q", 0, timeout=0.05)
        await tasks.blocked(0)
        await client.call("RPUSH", "q", "x")
        assert await client.call("LRANGE", "q", 0, -1) == [b"x"]
        assert sum(client.connections.dropped.values()) == 1

    tasks.run(main)


def test_a_task_whose_time_is_up_is_counted_as_such(tasks: Tasks) -> None:
    async def main(client: AsyncClient) -> None:
        with pytest.raises(errors.ReadTimeoutError):
            await client.call("BLPOP", "q", 0, timeout=0.05)
        assert client.connections.dropped == {"ReadTimeoutError": 1}

    tasks.run(main)


def test_a_task_cancelled_while_it_connects_abandons_its_connection(tasks: Tasks) -> None:
    async def main(client: AsyncClient) -> None:
        pop = begin(client.call("BLPOP", "q", 0))
        await asyncio.sleep(0)
        pop.cancel()
        await asyncio.wait([pop])
        assert client.connections.dropped == {"abandoned": 1}

    tasks.run(main)


def test_the_figures_are_right_while_a_connection_is_made(tasks: Tasks) -> None:
    async def main(client: AsyncClient) -> None:
        ping = begin(client.call("PING"))
        while not ping.done():
            assert balanced(client.connections)
            await asyncio.sleep(0)

    tasks.run(main)


@pytest.mark.parametrize("command", [("PING",), ("BLPOP", "q", 0.001)])
def test_what_was_idle_for_too_long_is_not_used_again(
    tasks: Tasks, command: tuple[Any, ...]
) -> None:
    async def main(client: AsyncClient) -> None:
        await client.call(*command)
        [connection] = client._live
        connection._heard -= 9
        await client.call(*command)
        assert client._live == {connection}
        connection._heard -= 11
        await client.call(*command)
        assert connection.closed
        assert client.connections[:4] == (1, 0, 0, 2)
        assert client.connections.dropped == {"idle_timeout": 1}

    tasks.run(main, idle_timeout=10)


def test_one_that_is_at_work_is_never_too_old(tasks: Tasks) -> None:
    async def main(client: AsyncClient) -> None:
        first = await client.call("CLIENT", "ID")
        slow = begin(client.call("EVAL", "for i = 1, 3e6 do end", 0))
        await asyncio.sleep(0)
        [connection] = client._live
        connection._heard -= 11
        assert await client.call("CLIENT", "ID") == first
        await slow

    tasks.run(main, idle_timeout=10)


def test_each_event_loop_has_connections_of_its_own(server: EmbeddedServer) -> None:
    client = AsyncClient(server.url, max_connections=1)
    loops = [asyncio.new_event_loop() for _ in range(3)]
    pop = [("CLIENT", "ID"), ("BLPOP", "nothing", 0.001)]
    for _ in range(2):
        found = [loop.run_until_complete(client.pipeline(pop))[0] for loop in loops]
        found += [loop.run_until_complete(client.call("CLIENT", "ID")) for loop in loops]
        assert len(set(found)) == 6
        assert client.connections[:4] == (6, 0, 0, 6)
    loops[0].run_until_complete(client.close())
    for loop in loops:
        loop.run_until_complete(asyncio.sleep(0.001))
        loop.close()
    assert client.connections.open == 0
    assert balanced(client.connections)


# The event loop is gone before its transports: asyncio says so when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_the_connections_of_a_closed_loop_are_accounted_for(server: EmbeddedServer) -> None:
    client = AsyncClient(server.url)
    for _ in range(3):
        with closing(asyncio.new_event_loop()) as loop:
            loop.run_until_complete(client.call("PING"))
    figures = client.connections
    asyncio.run(client.close())
    del client
    gc.collect()
    assert figures.open == 1
    assert balanced(figures)


def test_closing_ends_who_waits_for_a_place(tasks: Tasks) -> None:
    async def main(client: AsyncClient) -> None:
        pops = [begin(client.call("BLPOP", "q", 0)) for _ in range(2)]
        await tasks.blocked(1)
        assert client.connections.waiting == 1
        await client.close()
        done, pending = await asyncio.wait(pops, timeout=0.2)
        for pop in pending:
            pop.cancel()
        assert len(done) == 2
        assert [type(pop.exception()) for pop in pops] == [
            errors.OutcomeUnknownError,
            RuntimeError,
        ]

    tasks.run(main, max_connections=1)


def test_closing_ends_who_is_about_to_connect(tasks: Tasks) -> None:
    async def main(client: AsyncClient) -> None:
        pop = begin(client.call("BLPOP", "q", 0))
        await asyncio.sleep(0)
        await client.close()
        _, pending = await asyncio.wait([pop], timeout=0.2)
        figures = client.connections
        pop.cancel()
        assert not pending
        assert figures.open == 0

    tasks.run(main)


def test_closing_leaves_no_task_behind(tasks: Tasks) -> None:
    async def main(client: AsyncClient) -> None:
        with pytest.raises(errors.ConnectTimeoutError):
            await client.call("PING", timeout=1e-6)
        await client.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    tasks.run(main)


def popping() -> Op[list[Any]]:
    """Take an element and put it elsewhere: a transaction that waits for what it reads."""
    [_, value] = yield from Command(("BLPOP", "q", 0.2))
    return [("SET", "k", value)]


@pytest.mark.parametrize(
    "most",
    [1, 2],
)
def test_a_transaction_may_wait_for_what_it_reads(tasks: Tasks, most: int) -> None:
    async def main(client: AsyncClient) -> None:
        await client.call("RPUSH", "q", "x")
        assert await client.transaction(popping, watch=["k"]) == [b"OK"]
        assert balanced(client.connections)

    tasks.run(main, max_connections=most, timeout=0.3)


def test_a_connection_that_watches_keys_is_in_use(tasks: Tasks) -> None:
    async def main(client: AsyncClient) -> None:
        def read() -> Op[list[Any]]:
            yield from Command(("GET", "k"))
            seen.append(client.connections.in_use)
            return []

        seen: list[int] = []
        await client.transaction(read, watch=["k"])
        assert seen == [1]

    tasks.run(main)


def test_an_answered_call_does_not_end_one_that_waits(tasks: Tasks) -> None:
    async def main(client: AsyncClient) -> None:
        pop = begin(client.call("BLPOP", "q", 0, timeout=math.inf))  # behind a handshake
        await tasks.blocked(1)
        await asyncio.sleep(0.3)
        await client.call("RPUSH", "q", "x")
        assert await pop == [b"q", b"x"]

    tasks.run(main, timeout=0.2)


def test_an_answered_call_does_not_end_one_that_has_more_time(obedient: Obedient) -> None:
    async def main() -> Any:
        async with AsyncClient(obedient.url, timeout=0.2) as client:
            began = time.monotonic()
            await client.call("ECHO", 1)
            with pytest.raises(errors.ReadTimeoutError):
                await client.call("SILENCE", timeout=0.5)
            return time.monotonic() - began

    assert asyncio.run(main()) >= 0.5


@pytest.fixture
def obedient() -> Iterator[Obedient]:
    with Obedient() as server:
        yield server
