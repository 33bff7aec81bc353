"""A cluster in trouble under load: no wrong value, nothing twice, nothing lost that was promised.

Each worker has lists of its own in many slots. It appends unique values and reads them back, and
counts what the server said; in the end each list must hold what was acknowledged, once, in order.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from clusters import Cluster, until
from rawredis_llm import AsyncClusterClient, ClusterClient, errors
from rawredis_llm.protocol.slots import key_slot

KEYS = 12  # lists of each worker


class Worker:
    """What one worker did, and what it was told."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = self.unknown = 0
        self.odd: list[tuple[str, Any, int, int]] = []  # key, reply, promised and maybe there
        self.failed: list[Exception] = []
        self.kept: dict[str, list[tuple[bytes, float]]] = {}  # acknowledged, and when
        self.maybe: dict[str, set[bytes]] = {}
        self._serial = itertools.count()

    def steps(self) -> Iterator[tuple[list[tuple[Any, ...]], Callable[[list[Any]], None]]]:
        """Yield commands, and what is to be told their replies."""
        for turn in itertools.count():
            key = f"{self.number}:{turn % KEYS}"
            if turn % 5 == 4:  # a pipeline over several nodes
                keys = [f"{self.number}:{(turn + n) % KEYS}" for n in range(6)]
                values = [self._next(key) for key in keys]
                commands = [("RPUSH", *pair) for pair in zip(keys, values, strict=True)]
                yield commands, partial(self._all, keys, values)
            elif turn % 5 == 2:
                yield [("LINDEX", key, -1)], partial(self._last, key)
            else:
                value = self._next(key)
                by_script = ("EVAL", "return redis.call('RPUSH', KEYS[1], ARGV[1])", 1, key, value)
                command = by_script if turn % 5 == 3 else ("RPUSH", key, value)
                yield [command], partial(self._all, [key], [value])

    def _next(self, key: str) -> bytes:
        value = b"%d:%d" % (self.number, next(self._serial))
        self.maybe.setdefault(key, set()).add(value)
        return value

    def _all(self, keys: list[str], values: list[bytes], replies: list[Any]) -> None:
        for key, value, reply in zip(keys, values, replies, strict=True):
            self.maybe[key].discard(value)
            kept = self.kept.setdefault(key, [])
            kept.append((value, time.monotonic()))
            if not len(kept) <= reply <= len(kept) + len(self.maybe[key]):
                self.odd.append((key, reply, len(kept), len(self.maybe[key])))

    def _last(self, key: str, replies: list[Any]) -> None:
        kept = self.kept.get(key, [])
        last = kept[-1][0] if kept else None
        if replies[0] != last and replies[0] not in self.maybe.get(key, ()):
            self.odd.append((key, replies[0], len(kept), 0))

    def wrong(self, lost: set[bytes]) -> list[Any]:
        """Return the replies that are wrong, even if these values were lost before."""
        found = []
        for key, reply, count, more in self.odd:
            promised = [value for value, _ in self.kept.get(key, [])[:count]]
            if isinstance(reply, int):  # how long the list is
                right = count - len(lost.intersection(promised)) <= reply <= count + more
            else:  # its last value
                after = promised.index(reply) + 1 if reply in promised else 0
                right = lost.issuperset(promised[after:])
            if not right:
                found.append((key, reply, promised[-3:], more))
        return found

    def fail(self, error: Exception) -> None:
        if isinstance(error, errors.OutcomeUnknownError):
            self.unknown += 1
        else:
            self.failed.append(error)


def work(client: Any, worker: Worker, over: threading.Event) -> None:
    for commands, tell in worker.steps():
        if over.is_set():
            return
        worker.calls += len(commands)
        try:
            tell(client.pipeline(commands) if len(commands) > 1 else [client.call(*commands[0])])
        except Exception as error:  # noqa: BLE001 - it is counted
            worker.fail(error)


async def task(client: Any, worker: Worker, over: threading.Event) -> None:
    for commands, tell in worker.steps():
        if over.is_set():
            return
        worker.calls += len(commands)
        try:
            if len(commands) > 1:
                tell(await client.pipeline(commands))
            else:
                tell([await client.call(*commands[0])])
        except Exception as error:  # noqa: BLE001 - it is counted
            worker.fail(error)


def storm(
    kind: str, cluster: Cluster, trouble: Callable[[int], Any], size: tuple[float, int]
) -> list[Worker]:
    """Work while there is trouble again and again, for so many seconds and calls at least."""
    options: dict[str, Any] = {"timeout": 20.0, "connect_timeout": 2.0}
    workers = [Worker(number) for number in range(8 if kind == "sync" else 32)]
    over = threading.Event()
    before = [node.url for node in cluster.nodes[:2]]

    def run_tasks() -> None:
        async def main() -> None:
            async with AsyncClusterClient(before, **options) as client:
                await asyncio.gather(*(task(client, worker, over) for worker in workers))

        asyncio.run(main())

    client = ClusterClient(before, **options)
    if kind == "sync":
        crew = [threading.Thread(target=work, args=(client, one, over)) for one in workers]
    else:
        crew = [threading.Thread(target=run_tasks)]
    for thread in crew:
        thread.start()
    try:
        until(lambda: all(worker.calls > 20 for worker in workers), "they work")
        end, least = time.monotonic() + size[0], size[1]
        for turn in itertools.count():
            trouble(turn)
            if time.monotonic() >= end and summary(workers)[0] >= least:
                break
        calls = [worker.calls for worker in workers]
        until(
            lambda: all(w.calls > c + 20 for w, c in zip(workers, calls, strict=True)), "they go on"
        )
    finally:
        over.set()
        for thread in crew:
            thread.join(60)
    client.close()
    assert not any(thread.is_alive() for thread in crew)
    return workers


def judge(cluster: Cluster, workers: list[Worker]) -> list[float]:
    """Compare what is stored with what was promised; return when what is lost was promised."""
    lost: list[float] = []
    with ClusterClient(cluster.urls, timeout=20.0) as client:
        for worker in workers:
            assert worker.failed[:3] == []
            gone: list[tuple[bytes, float]] = []
            for key, kept in worker.kept.items():
                stored = client.call("LRANGE", key, 0, -1)
                assert len(set(stored)) == len(stored), "a command was executed twice"
                there, promised = set(stored), [value for value, _ in kept]
                assert there <= {*promised, *worker.maybe[key]}
                assert [v for v in stored if v in set(promised)] == [
                    v for v in promised if v in there
                ]
                gone += [one for one in kept if one[0] not in there]
            assert worker.wrong({value for value, _ in gone})[:3] == []
            lost += [when for _, when in gone]
    return lost


def summary(workers: list[Worker]) -> tuple[int, int]:
    return sum(worker.calls for worker in workers), sum(worker.unknown for worker in workers)


@pytest.fixture(scope="module")
def stormy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three primaries with a replica each, which the tests of this module ill-treat in turn."""
    cluster = Cluster(tmp_path_factory.mktemp("stormy"), replicas=1)
    yield cluster
    cluster.stop()


def primaries(cluster: Cluster) -> list[Any]:
    return [node for node in cluster.nodes if node.call("ROLE")[0] == b"master"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each storm is short in the suite, and of 10^5 calls and more in the long one."""
    if "size" in metafunc.fixturenames:
        long = pytest.param((45.0, 100_000), marks=pytest.mark.long, id="long")
        metafunc.parametrize("size", [pytest.param((2.0, 0), id="short"), long])


kinds = pytest.mark.parametrize("kind", ["sync", "aio"])


@kinds
def test_slots_move_under_load(stormy: Cluster, kind: str, size: tuple[float, int]) -> None:
    stormy.flush()
    stormy.settle()
    slots = sorted({key_slot(b"%d:%d" % (w, k)) for w in range(32) for k in range(KEYS)})
    nodes = primaries(stormy)

    def move(turn: int) -> None:
        slot = slots[turn * 7 % len(slots)]
        source = stormy.owner(slot)
        target = nodes[(nodes.index(source) + 1) % len(nodes)]
        stormy.begin_move(slot, target)
        while stormy.move_keys(slot, source, target, 1):  # one by one, so there is a half-way
            time.sleep(0.001)
        stormy.end_move(slot, source, target)

    workers = storm(kind, stormy, move, size)
    assert judge(stormy, workers) == []
    assert summary(workers)[1] == 0  # every command was answered


@kinds
def test_primaries_hand_over_under_load(
    stormy: Cluster, kind: str, size: tuple[float, int]
) -> None:
    stormy.flush()
    stormy.settle()

    def hand_over(turn: int) -> None:
        # The others vote for nobody of the same shard twice within two seconds, and after five a
        # primary goes on writing, whoever takes over.
        time.sleep(0.8)
        stormy.settle()
        pair = stormy.nodes[turn % 3], stormy.nodes[turn % 3 + 3]
        replica = next(node for node in pair if node.call("ROLE")[0] == b"slave")
        replica.call("CLUSTER", "FAILOVER")
        until(lambda: replica.call("ROLE")[0] == b"master", "it took over", 4.0)

    workers = storm(kind, stormy, hand_over, size)
    stormy.settle()
    assert judge(stormy, workers) == []


@kinds
def test_primaries_are_killed_under_load(
    stormy: Cluster, kind: str, size: tuple[float, int]
) -> None:
    stormy.flush()
    stormy.settle()
    killed = []

    def kill(_: int) -> None:
        stormy.settle()
        time.sleep(0.5)  # in which much is done
        victim = primaries(stormy)[0]
        killed.append(time.monotonic())
        victim.kill()
        until(lambda: len(primaries_alive(stormy)) == 3, "a replica took over")
        victim.server.start()
        until(lambda: victim.call("ROLE")[0] == b"slave", "it is back, as a replica")

    workers = storm(kind, stormy, kill, size)
    stormy.settle()
    for when in judge(stormy, workers):  # Redis replicates after it has answered
        assert any(0 <= at - when < 1.0 for at in killed)


def primaries_alive(cluster: Cluster) -> list[Any]:
    found = []
    for node in cluster.nodes:
        try:
            if node.call("ROLE")[0] == b"master" and b"cluster_state:ok" in node.call(
                "CLUSTER", "INFO"
            ):
                found.append(node)
        except errors.RedisError:
            continue
    return found


@kinds
def test_nodes_restart_under_load(stormy: Cluster, kind: str, size: tuple[float, int]) -> None:
    """Faster than the others notice, so that nobody takes over; what it had is on its disk."""
    stormy.flush()
    stormy.settle()

    def restart(turn: int) -> None:
        stormy.settle()
        time.sleep(0.5)  # in which much is done
        node = primaries(stormy)[turn % 3]
        node.kill()
        node.server.start()
        until(lambda: node in primaries_alive(stormy) or node.call("ROLE")[0] == b"slave", "back")

    workers = storm(kind, stormy, restart, size)
    stormy.settle()
    assert judge(stormy, workers) == []
