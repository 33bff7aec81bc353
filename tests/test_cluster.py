"""The client of a cluster, in both colours, against a real one."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme

from clusters import Cluster, Node, until
from conftest import ClusterRedis
from rawredis_llm import (
    AsyncClusterClient,
    Batch,
    Client,
    ClusterClient,
    Command,
    EmbeddedServer,
    Retry,
    Script,
    errors,
)
from rawredis_llm.protocol.slots import key_slot
from tls import TlsProxy

KEYS = [f"key:{number}" for number in range(60)]  # of all three nodes
SPREAD = ("a", "b", "c")  # one of each


def test_the_keys_are_spread(shared_cluster: Cluster) -> None:
    for keys in (KEYS, SPREAD):
        assert len({shared_cluster.owner(key_slot(key.encode())) for key in keys}) == 3


# -- single commands ---------------------------------------------------------------------------


def test_calls_find_their_nodes(cluster: ClusterRedis) -> None:
    call = cluster.client.call
    for key in KEYS:
        assert cluster.do(call("SET", key, f"value of {key}")) == b"OK"
    for key in KEYS:
        assert cluster.do(call("GET", key.encode())) == f"value of {key}".encode()
    assert cluster.do(call("PING")) == b"PONG"
    assert cluster.do(call("ECHO", "x")) == b"x"
    assert cluster.do(call("EVAL", "return ARGV[1]", 0, "y")) == b"y"
    for other_kind in (7, 2.5, memoryview(b"view")):
        assert cluster.do(call("SET", other_kind, "1")) == b"OK"
        assert cluster.do(call("EXISTS", other_kind)) == 1


def test_keys_of_several_nodes(cluster: ClusterRedis) -> None:
    call = cluster.client.call
    for key in KEYS[::2]:
        cluster.do(call("SET", key, key))
    found = [key.encode() if at % 2 == 0 else None for at, key in enumerate(KEYS)]
    assert cluster.do(call("MGET", *KEYS)) == found
    assert cluster.do(call("EXISTS", *KEYS, KEYS[0])) == len(KEYS) // 2 + 1
    assert cluster.do(call("TOUCH", *KEYS)) == len(KEYS) // 2
    assert cluster.do(call("DEL", *KEYS[:20])) == 10
    assert cluster.do(call("UNLINK", *KEYS)) == 20


@pytest.mark.parametrize(
    "args", [("MSET", "a", 1, "b", 2), ("RENAME", "a", "b"), ("EVAL", "return 1", 2, "a", "b")]
)
def test_what_must_be_one_is_refused_for_several_nodes(
    cluster: ClusterRedis, args: tuple[Any, ...]
) -> None:
    with pytest.raises(errors.CrossSlotError, match=f"{args[0]}.*one slot"):
        cluster.do(cluster.client.call(*args))
    assert cluster.do(cluster.client.call("EXISTS", "a", "b")) == 0
    # In a pipeline it is one command's error.
    found = cluster.do(
        cluster.client.pipeline([("SET", "a", 1), args, ("GET", "a")], raise_errors=False)
    )
    assert found[0] == b"OK"
    assert isinstance(found[1], errors.CrossSlotError)
    assert found[2] == b"1"


def test_what_all_nodes_have_to_do_or_to_say(cluster: ClusterRedis) -> None:
    call = cluster.client.call
    cluster.do(cluster.client.pipeline([("SET", key, 1) for key in KEYS]))
    assert cluster.do(call("DBSIZE")) == len(KEYS)
    assert sorted(cluster.do(call("KEYS", "key:*"))) == sorted(key.encode() for key in KEYS)
    digest = cluster.do(call("SCRIPT", "LOAD", "return 'here'"))
    for key in SPREAD:
        assert cluster.do(call("EVALSHA", digest, 1, key)) == b"here"
    assert cluster.do(call("FLUSHALL")) == b"OK"
    assert [node.call("DBSIZE") for node in cluster.cluster.nodes[:3]] == [0, 0, 0]


def test_errors_are_the_server_s(cluster: ClusterRedis) -> None:
    cluster.do(cluster.client.call("SET", "a", "text"))
    owner = cluster.cluster.owner(key_slot(b"a"))
    with pytest.raises(errors.WrongTypeError) as caught:
        cluster.do(cluster.client.call("LPUSH", "a", 1))
    assert (caught.value.command, owner.name in caught.value.address) == ("LPUSH", True)
    with pytest.raises(errors.ReplyError, match="wrong number of arguments"):
        cluster.do(cluster.client.call("GET"))
    with pytest.raises(errors.ReplyError, match="unknown command"):
        cluster.do(cluster.client.call("NOSUCH", "a"))
    with pytest.raises(ValueError, match="SELECT changes the state"):
        cluster.do(cluster.client.call("SELECT", 1))
    with pytest.raises(TypeError, match="argument 2"):
        cluster.do(cluster.client.call("SET", "a", None))


def test_a_key_elsewhere_than_the_table_says(cluster: ClusterRedis) -> None:
    """The node says whose it is: of a command that we do not know."""
    call = cluster.client.call
    for key in SPREAD:  # DEBUG-like: its key is the second argument
        cluster.do(call("LPUSH", key, "x"))
        owner = cluster.cluster.owner(key_slot(key.encode()))
        assert cluster.do(call("SORT_RO", key, "ALPHA")) == [b"x"]
        assert owner.call("LLEN", key) == 1


def test_commands_that_wait(cluster: ClusterRedis) -> None:
    cluster.do(cluster.client.call("RPUSH", "{q}1", "x"))
    assert cluster.do(cluster.client.call("BLPOP", "{q}1", "{q}2", 1)) == [b"{q}1", b"x"]
    assert cluster.do(cluster.client.call("BLPOP", "{q}1", 0.01)) is None
    batch = [("SET", "a", 1), ("BLPOP", "{q}1", 0.01), ("GET", "a")]
    assert cluster.do(cluster.client.pipeline(batch)) == [b"OK", None, b"1"]


def test_who_waits_in_a_pipeline_keeps_nobody_waiting(cluster: ClusterRedis) -> None:
    client = cluster.client
    pops = [("SET", "a", 1), ("BLPOP", "q", 10), ("SET", "b", 1)]

    async def both() -> Any:
        task = asyncio.ensure_future(client.pipeline(pops))
        await asyncio.to_thread(until, lambda: blocked(cluster), "it waits")
        for key in ("{q}", "a", "b"):
            await client.call("GET", key, timeout=5)
        await client.call("RPUSH", "q", "x", timeout=5)
        return await task

    if cluster.kind == "aio":
        found = cluster.do(both())
    else:
        told: list[Any] = []
        thread = threading.Thread(target=lambda: told.append(client.pipeline(pops)))
        thread.start()
        until(lambda: blocked(cluster), "it waits")
        for key in ("{q}", "a", "b"):
            client.call("GET", key, timeout=5)
        client.call("RPUSH", "q", "x", timeout=5)
        thread.join()
        [found] = told
    assert found == [b"OK", [b"q", b"x"], b"OK"]


def blocked(cluster: ClusterRedis) -> bool:
    """Return whether any client waits in any of the servers."""
    infos = [node.call("INFO", "clients") for node in cluster.cluster.nodes]
    return any(b"blocked_clients:0" not in info for info in infos)


# -- pipelines ---------------------------------------------------------------------------------


def test_pipelines_keep_the_order_of_their_replies(cluster: ClusterRedis) -> None:
    pipeline = cluster.client.pipeline
    values = [f"{number}" for number in range(len(KEYS))]
    sets = [("SET", *pair) for pair in zip(KEYS, values, strict=True)]
    assert cluster.do(pipeline(sets)) == [b"OK"] * len(KEYS)
    assert cluster.do(pipeline([("GET", key) for key in KEYS])) == [v.encode() for v in values]
    mixed: list[Any] = [("GET", KEYS[0]), Command(("GET", KEYS[1]), int), ("DBSIZE",)]
    mixed += [
        ("MGET", *KEYS[:4]),
        ("ECHO", "e"),
        Batch([("INCR", "{t}"), ("INCR", "{t}")], atomic=True),
    ]
    mixed += [Batch([("GET", KEYS[2]), ("GET", KEYS[3])])]
    found = [b"0", 1, len(KEYS), [b"0", b"1", b"2", b"3"], b"e", [1, 2], [b"2", b"3"]]
    assert cluster.do(cluster.client.run(Batch(mixed))) == found
    assert cluster.do(pipeline([])) == []


def test_a_long_pipeline_of_large_values(cluster: ClusterRedis) -> None:
    """Of several portions for each node, sent and read in turns."""
    size = 300_000
    sets = [("SET", key, bytes([number]) * size) for number, key in enumerate(KEYS)]
    assert cluster.do(cluster.client.pipeline(sets)) == [b"OK"] * len(KEYS)
    found = cluster.do(cluster.client.pipeline([("GET", key) for key in KEYS]))
    assert found == [bytes([number]) * size for number in range(len(KEYS))]


def test_errors_stand_in_their_places(cluster: ClusterRedis) -> None:
    cluster.do(cluster.client.call("SET", "b", "text"))
    commands: list[Any] = [
        ("SET", "a", 1),
        ("LPUSH", "b", 1),
        ("GET", "c"),
        ("INCR", "b"),
        ("GET", "a"),
    ]
    found = cluster.do(cluster.client.pipeline(commands, raise_errors=False))
    assert [type(reply) for reply in found] == [
        bytes,
        errors.WrongTypeError,
        type(None),
        errors.ReplyError,
        bytes,
    ]
    with pytest.raises(errors.WrongTypeError):
        cluster.do(cluster.client.pipeline(commands))


def test_a_bad_argument_stops_all_before_a_byte_is_sent(cluster: ClusterRedis) -> None:
    for bad in ([("SET", "b", None)], [("MGET", "a", "b", "c", object())]):
        with pytest.raises(TypeError, match="command 1: argument"):
            cluster.do(cluster.client.pipeline([("SET", "a", 1), *bad]))
        assert cluster.do(cluster.client.call("EXISTS", "a")) == 0


def test_what_has_no_key_keeps_its_place_among_writes(cluster: ClusterRedis) -> None:
    """All nodes are counted between what was to be written before and after."""
    commands: list[Any] = []
    for number, key in enumerate(KEYS[:20]):
        commands += [("SET", key, number), ("DBSIZE",)]
    found = cluster.do(cluster.client.pipeline(commands))
    assert found[1::2] == list(range(1, 21))


def test_ops_of_several_nodes_go_together(cluster: ClusterRedis) -> None:
    def twice(key: str) -> Any:
        first = yield from Command(("INCR", key))
        second = yield from Command(("INCR", key))
        return first, second

    assert cluster.do(cluster.client.gather([twice(key) for key in KEYS])) == [(1, 2)] * len(KEYS)
    ops = [twice("x"), Command(("LPUSH", "x", 1)), twice("y")]
    found = cluster.do(cluster.client.gather(ops, raise_errors=False))
    assert isinstance(found[1], errors.WrongTypeError)
    assert (found[0], found[2]) == ((1, 2), (1, 2))


def test_scripts_reach_every_node(cluster: ClusterRedis) -> None:
    script = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    cluster.do(cluster.client.call("SCRIPT", "FLUSH"))
    assert [cluster.do(cluster.client.run(script([key], [2]))) for key in KEYS[:9]] == [2] * 9
    cluster.do(cluster.client.call("SCRIPT", "FLUSH"))
    runs = [script([key], [number]) for number, key in enumerate(KEYS)]
    found = cluster.do(cluster.client.pipeline(runs))
    assert found == [n + (2 if n < 9 else 0) for n in range(len(KEYS))]


def test_what_goes_first_is_done_before_the_rest(cluster: ClusterRedis) -> None:
    """Although it stands last, on another node, which is stopped for a while."""
    script = Script("return redis.call('SET', KEYS[1], 'first')", goes_first=True)
    commands = [("SET", "a", "later"), script(["b"])]
    owner = cluster.cluster.owner(key_slot(b"b"))
    owner.call("CLIENT", "PAUSE", 200, "WRITE")
    seen: list[Any] = []

    def watch() -> None:
        with (
            Client(cluster.cluster.owner(key_slot(b"a")).url) as watcher,
            Client(owner.url) as other,
        ):
            while not over.is_set():
                later = watcher.call("EXISTS", "a")
                seen.append((later, other.call("EXISTS", "b")))

    over = threading.Event()
    watching = threading.Thread(target=watch)
    watching.start()
    try:
        assert cluster.do(cluster.client.pipeline(commands)) == [b"OK", b"OK"]
    finally:
        over.set()
        watching.join()
        owner.call("CLIENT", "UNPAUSE")
    assert (1, 0) not in seen
    assert (0, 0) in seen


# -- transactions ------------------------------------------------------------------------------


def test_transactions_are_of_one_slot(cluster: ClusterRedis) -> None:
    transaction = cluster.client.transaction
    assert cluster.do(transaction([("SET", "{t}a", 1), ("INCR", "{t}a")])) == [b"OK", 2]
    assert cluster.do(transaction([("PING",)])) == [b"PONG"]
    assert cluster.do(transaction([])) == []
    with pytest.raises(errors.CrossSlotError, match="one slot"):
        cluster.do(transaction([("SET", "a", 1), ("SET", "b", 1)]))
    assert cluster.do(cluster.client.call("EXISTS", "a", "b")) == 0
    with pytest.raises(errors.WrongTypeError):
        cluster.do(transaction([("SET", "{t}a", "x"), ("LPUSH", "{t}a", 1)]))
    with pytest.raises(errors.ExecAbortError):
        cluster.do(transaction([("SET", "{t}a", "y"), ("NOSUCH", "{t}a")]))
    assert cluster.do(cluster.client.call("GET", "{t}a")) == b"x"


def test_watched_keys(cluster: ClusterRedis) -> None:
    cluster.do(cluster.client.call("SET", "{w}n", 5))

    def read() -> Any:
        value = yield from Command(("GET", "{w}n"))
        return [("SET", "{w}n", int(value) + 1), ("SET", "{w}m", "done")]

    assert cluster.do(cluster.client.transaction(read, watch=["{w}n"])) == [b"OK", b"OK"]
    assert cluster.do(cluster.client.transaction(read)) == [b"OK", b"OK"]
    assert cluster.do(cluster.client.call("GET", "{w}n")) == b"7"


def test_a_watched_key_that_changes_is_read_again(cluster: ClusterRedis) -> None:
    cluster.do(cluster.client.call("SET", "n", 1))
    owner = cluster.cluster.owner(key_slot(b"n"))
    turns = []

    def read() -> Any:
        value = yield from Command(("GET", "n"))
        turns.append(value)
        if len(turns) < 3:
            owner.call("INCR", "n")
        return [("SET", "n", int(value) * 10)]

    assert cluster.do(cluster.client.transaction(read, watch=["n"])) == [b"OK"]
    assert turns == [b"1", b"2", b"3"]
    assert cluster.do(cluster.client.call("GET", "n")) == b"30"


def test_a_watching_transaction_stays_in_its_slot(cluster: ClusterRedis) -> None:
    def reads_elsewhere() -> Any:
        yield from Command(("GET", "other"))
        return []

    def writes_elsewhere() -> Any:
        yield from Command(("GET", "{w}"))
        return [("SET", "other", 1)]

    for read in (reads_elsewhere, writes_elsewhere):
        with pytest.raises(errors.CrossSlotError):
            cluster.do(cluster.client.transaction(read, watch=["{w}"]))
    with pytest.raises(errors.CrossSlotError):
        cluster.do(cluster.client.transaction(reads_elsewhere, watch=["a", "b"]))
    assert cluster.do(cluster.client.call("EXISTS", "other")) == 0


# -- iteration ---------------------------------------------------------------------------------


def collect(cluster: ClusterRedis, iterator: Any) -> list[Any]:
    if cluster.kind == "sync":
        return list(iterator)

    async def drain() -> list[Any]:
        return [item async for item in iterator]

    found: list[Any] = cluster.do(drain())
    return found


def test_scan_comes_to_all_nodes(cluster: ClusterRedis) -> None:
    cluster.do(cluster.client.pipeline([("SET", key, 1) for key in KEYS]))
    cluster.do(cluster.client.call("HSET", "hash", *range(8)))
    found = collect(cluster, cluster.client.scan("key:*", count=5))
    assert sorted(found) == sorted(key.encode() for key in KEYS)
    assert collect(cluster, cluster.client.scan(of_type="hash")) == [b"hash"]
    pairs = [(b"%d" % n, b"%d" % (n + 1)) for n in range(0, 8, 2)]
    assert sorted(collect(cluster, cluster.client.hscan("hash"))) == pairs
    with pytest.raises(errors.ReplyError, match="invalid cursor"):
        cluster.do(cluster.client.call("SCAN", "nonsense"))


def test_scan_begins_anew_when_slots_move(moving: Cluster) -> None:
    """Keys that move behind the scan's back to where it has been are found all the same."""
    slots: dict[str, int] = {key: key_slot(key.encode()) for key in KEYS}
    with ClusterClient(moving.urls) as client:
        client.call("FLUSHALL")
        client.pipeline([("SET", key, 1) for key in KEYS])
        pages = iter(client.scan(count=4))
        found = {next(pages)}
        target = next(
            node
            for node in moving.nodes
            if node.call("EXISTS", *[k for k in KEYS if moving.owner(slots[k]) is node][:1])
            and found & set(node.call("KEYS", "*"))
        )
        there = moving.nodes.index(target)
        away = next(key for key in KEYS if moving.owner(slots[key]) is not target)
        moving.move(slots[away], moving.nodes[there])
        found |= set(pages)
        assert found == {key.encode() for key in KEYS}


# -- redirections ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose slots the tests of this module move."""
    cluster = Cluster(tmp_path_factory.mktemp("moving"))
    yield cluster
    cluster.stop()


@pytest.fixture(params=["sync", "aio"])
def mover(request: pytest.FixtureRequest, moving: Cluster) -> Iterator[ClusterRedis]:
    """A client of it, which has seen all nodes."""
    moving.settle()
    moving.flush()
    redis = ClusterRedis(moving.urls[0], request.param, 3)
    redis.cluster = moving
    try:
        redis.do(redis.client.pipeline([("SET", key, 0) for key in KEYS]))
        yield redis
    finally:
        redis.close()


def other(moving: Cluster, slot: int) -> Any:
    """Return a node that does not serve a slot."""
    return next(node for node in moving.nodes if node is not moving.owner(slot))


def asked_for_map(moving: Cluster) -> int:
    """Return how often the nodes were asked who serves what, by anybody but the tests."""
    total = 0
    for node in moving.nodes:
        lines = node.call("INFO", "commandstats").decode().splitlines()
        total += sum(
            int(line.split("calls=")[1].split(",")[0])
            for line in lines
            if line.startswith("cmdstat_cluster|slots:")
        )
    return total


def test_a_slot_that_moved_is_patched(mover: ClusterRedis) -> None:
    moving, slot = mover.cluster, key_slot(mover.kind.encode() + b":1")
    target = other(moving, slot)
    moving.move(slot, target)
    before = asked_for_map(moving)
    script = "return redis.call('INCR', KEYS[1])"
    assert mover.do(mover.client.call("EVAL", script, 1, f"{mover.kind}:1")) == 1
    assert mover.do(mover.client.call("INCR", f"{mover.kind}:1")) == 2
    assert mover.client._routes.owners[slot] == target.name
    assert asked_for_map(moving) == before


def test_many_who_want_to_know_the_map_do_not_all_ask(mover: ClusterRedis) -> None:
    client, most = mover.client, 10
    mover.do(client.call("GET", "a"))
    before, began = asked_for_map(mover.cluster), time.monotonic()
    client._next_look = 0.0  # as if it had been asked for long ago

    async def look() -> None:
        for _ in range(most):
            await asyncio.gather(*(client._look(time.monotonic() + 5) for _ in range(most)))

    if mover.kind == "aio":
        mover.do(look())
    else:
        with ThreadPoolExecutor(most) as pool:
            list(pool.map(lambda _: client._look(time.monotonic() + 5), range(most * most)))
    asked = asked_for_map(mover.cluster) - before
    assert 1 <= asked <= 1 + (time.monotonic() - began) / 0.1  # at most one in 0.1 seconds


def test_commands_follow_a_slot_half_way(mover: ClusterRedis) -> None:
    moving, slot = mover.cluster, key_slot(mover.kind.encode() + b":2")
    target = other(moving, slot)
    mover.do(
        mover.client.pipeline(
            [("SET", f"{{{mover.kind}:2}}here", 1), ("SET", f"{{{mover.kind}:2}}there", 2)]
        )
    )
    source = moving.begin_move(slot, target)
    place = ("MIGRATE", "127.0.0.1", target.port, f"{{{mover.kind}:2}}there", 0, 5000)
    source.call(*place)
    call = mover.client.call
    assert mover.do(call("GET", f"{{{mover.kind}:2}}here")) == b"1"
    assert mover.do(call("GET", f"{{{mover.kind}:2}}there")) == b"2"  # ASK
    assert mover.do(call("GET", f"{{{mover.kind}:2}}new")) is None  # ASK, too
    assert mover.do(call("SET", f"{{{mover.kind}:2}}new", 3)) == b"OK"
    both = [
        ("GET", f"{{{mover.kind}:2}}here"),
        ("GET", f"{{{mover.kind}:2}}there"),
        ("GET", f"{{{mover.kind}:2}}new"),
        ("GET", KEYS[0]),
    ]
    assert mover.do(mover.client.pipeline(both)) == [b"1", b"2", b"3", b"0"]
    on_target = [("INCR", f"{{{mover.kind}:2}}there"), ("INCR", f"{{{mover.kind}:2}}new")]
    assert mover.do(mover.client.transaction(on_target)) == [3, 4]
    script = "return redis.call('INCR', KEYS[1])"
    assert mover.do(call("EVAL", script, 1, f"{{{mover.kind}:2}}new")) == 5
    assert mover.do(call("EVAL", script, 1, f"{{{mover.kind}:2}}new")) == 6
    assert mover.client._routes.owners[slot] == source.name  # ASK is for once
    # Of two keys of which one has moved the node says TRYAGAIN, until both have.
    later = threading.Timer(0.3, lambda: moving.move_keys(slot, source, target))
    later.start()
    assert mover.do(call("MGET", f"{{{mover.kind}:2}}here", f"{{{mover.kind}:2}}there")) == [
        b"1",
        b"3",
    ]
    later.join()
    moving.end_move(slot, source, target)
    assert mover.do(call("MGET", f"{{{mover.kind}:2}}here", f"{{{mover.kind}:2}}there")) == [
        b"1",
        b"3",
    ]


def test_watching_transactions_follow_a_slot(mover: ClusterRedis) -> None:
    moving, slot = mover.cluster, key_slot(mover.kind.encode() + b":3")
    target = other(moving, slot)
    turns = []

    def read() -> Any:
        value = yield from Command(("GET", f"{mover.kind}:3"))
        turns.append(value)
        if len(turns) == 1:
            moving.move(slot, target)
        return [("INCR", f"{mover.kind}:3")]

    assert mover.do(mover.client.transaction(read, watch=[f"{mover.kind}:3"])) == [1]
    assert len(turns) == 2
    assert target.call("GET", f"{mover.kind}:3") == b"1"


def test_a_pipeline_follows_many_slots(mover: ClusterRedis) -> None:
    moving = mover.cluster
    keys = [f"{mover.kind}:several:{number}" for number in range(6)]
    for key in keys:
        slot = key_slot(key.encode())
        moving.move(slot, other(moving, slot))
    keys += KEYS
    assert mover.do(mover.client.pipeline([("INCR", key) for key in keys])) == [1] * len(keys)
    assert mover.do(mover.client.pipeline([("INCR", key) for key in keys])) == [2] * len(keys)


def test_a_new_node_is_found(mover: ClusterRedis) -> None:
    moving, slot = mover.cluster, key_slot(mover.kind.encode() + b":4")
    node = moving.add()
    moving.nodes[0].call("CLUSTER", "MEET", "127.0.0.1", node.port)
    until(lambda: len(moving.known(node)) == len(moving.nodes), "it is known")
    moving.settle()
    moving.move(slot, node)
    assert mover.do(mover.client.call("INCR", f"{mover.kind}:4")) == 1
    assert mover.client._routes.owners[slot] == node.name


# -- who is asked ------------------------------------------------------------------------------


def test_seeds_that_are_down(cluster: ClusterRedis) -> None:
    dead = "redis://127.0.0.1:1"
    client = cluster.connect(url=[dead, cluster.cluster.urls[1]])
    assert cluster.do(client.call("SET", "a", 1)) == b"OK"
    nowhere = cluster.connect(url=[dead], retry=None)
    with pytest.raises(errors.ConnectError):
        cluster.do(nowhere.call("GET", "a"))
    with pytest.raises(errors.ConnectError):
        cluster.do(nowhere.pipeline([("GET", "a"), ("GET", "b")]))


def test_a_cluster_behind_tls_by_its_host_name(tmp_path: Path) -> None:
    """As managed services have it: the nodes are told apart by ports, and trusted by a name."""
    authority, papers = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(papers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with ExitStack() as stack:
        behind = Cluster(tmp_path)
        stack.callback(behind.stop)
        places: set[tuple[bytes, int]] = set()
        for node in behind.nodes:
            proxy = stack.enter_context(TlsProxy(node.url, context))
            places.add((b"localhost", proxy.port))
            named = ("cluster-announce-hostname", "localhost", "cluster-announce-port", proxy.port)
            kept = ("cluster-announce-bus-port", node.port + 10000)
            node.call("CONFIG", "SET", *named, *kept)
            node.call("CONFIG", "SET", "cluster-preferred-endpoint-type", "hostname")
        until(lambda: all(named_by(node) == places for node in behind.nodes), "their names")
        for kind in ("sync", "aio"):
            redis = ClusterRedis(
                f"rediss://localhost:{max(places)[1]}?tls_ca_cert_file={papers}", kind, 3
            )
            stack.callback(redis.close)
            assert redis.do(redis.client.pipeline([("SET", key, key) for key in KEYS]))
            assert redis.do(redis.client.call("MGET", *KEYS)) == [key.encode() for key in KEYS]
            assert len(redis.client._routes.primaries) == 3


def named_by(node: Node) -> set[tuple[bytes, int]]:
    return {tuple(entry[2][:2]) for entry in node.call("CLUSTER", "SLOTS")}


def test_a_server_that_is_no_cluster(cluster: ClusterRedis) -> None:
    with EmbeddedServer(port=0, search=False) as alone:
        client = cluster.connect(url=alone.url)
        with pytest.raises(errors.UnsupportedError, match="no cluster"):
            cluster.do(client.call("GET", "a"))


@pytest.mark.parametrize("kind", [ClusterClient, AsyncClusterClient])
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"urls": []}, "at least one"),
        ({"urls": "redis://localhost/1"}, "one database"),
        ({"urls": "unix:///tmp/x.sock"}, "host and port"),
        ({"read_from": "nearest"}, "read_from"),
        ({"search": "everywhere"}, "search"),
        ({"timeout": 0}, "timeout"),
        ({"urls": ["redis://a", "http://b"]}, "scheme"),
    ],
)
def test_bad_parameters(kind: Any, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        kind(**options)


def test_replicas_answer_reads(cluster: ClusterRedis) -> None:
    nodes = cluster.cluster.nodes
    client = cluster.connect(read_from="replica")
    cluster.do(cluster.client.pipeline([("SET", key, key) for key in KEYS]))
    for node in nodes[:3]:
        node.call("WAIT", 1, 1000)
    until(lambda: sum(node.call("DBSIZE") for node in nodes[3:]) == len(KEYS), "replicated")
    for node in nodes:
        node.call("CONFIG", "RESETSTAT")
    found = [cluster.do(client.call("GET", key)) for key in KEYS]
    found += cluster.do(client.pipeline([("GET", key) for key in KEYS]))
    assert found == [key.encode() for key in KEYS] * 2
    assert cluster.do(client.call("SET", KEYS[0], "x")) == b"OK"

    def gets(node: Any) -> int:
        info = node.call("INFO", "commandstats").decode()
        return (
            int(info.split("cmdstat_get:calls=")[1].split(",")[0]) if "cmdstat_get:" in info else 0
        )

    assert [gets(node) for node in nodes[:3]] == [0, 0, 0]
    assert sum(gets(node) for node in nodes[3:]) == 2 * len(KEYS)


# -- pub/sub -----------------------------------------------------------------------------------


def test_messages_cross_the_cluster(cluster: ClusterRedis) -> None:
    async def heard() -> Any:
        async with cluster.client.subscribe("news") as subscription:
            await cluster.client.call("PUBLISH", "news", "x")
            return await subscription.get(5)

    if cluster.kind == "aio":
        message = cluster.do(heard())
    else:
        with cluster.client.subscribe("news") as subscription:
            cluster.client.call("PUBLISH", "news", "x")
            message = subscription.get(5)
    assert (message.kind, message.channel, message.data) == ("message", b"news", b"x")


def test_shard_channels(cluster: ClusterRedis) -> None:
    names = [f"shard:{number}" for number in range(6)]

    async def each(name: str) -> Any:
        async with cluster.client.subscribe(name, sharded=True) as subscription:
            await subscription.subscribe(f"{{{name}}}2", sharded=True)
            with pytest.raises(errors.CrossSlotError, match="of a subscription"):
                await subscription.subscribe("elsewhere", sharded=True)
            await cluster.client.call("SPUBLISH", f"{{{name}}}2", name)
            return await subscription.get(5)

    for name in names:
        if cluster.kind == "aio":
            message = cluster.do(each(name))
        else:
            with cluster.client.subscribe(name, sharded=True) as subscription:
                subscription.subscribe(f"{{{name}}}2", sharded=True)
                with pytest.raises(errors.CrossSlotError, match="of a subscription"):
                    subscription.subscribe("elsewhere", sharded=True)
                cluster.client.call("SPUBLISH", f"{{{name}}}2", name)
                message = subscription.get(5)
        assert (message.kind, message.data) == ("smessage", name.encode())
    with pytest.raises(errors.CrossSlotError):
        cluster.do(awaited(cluster, cluster.client.subscribe, "a", "b", sharded=True))


def awaited(cluster: ClusterRedis, function: Any, *args: Any, **options: Any) -> Any:
    async def call() -> Any:
        return await function(*args, **options)

    return call() if cluster.kind == "aio" else function(*args, **options)


def test_a_shard_channel_is_followed(mover: ClusterRedis) -> None:
    moving, slot = mover.cluster, key_slot(f"{mover.kind}:followed".encode())

    async def follow() -> list[Any]:
        async with mover.client.subscribe(f"{mover.kind}:followed", sharded=True) as subscription:
            await mover.client.call("SPUBLISH", f"{mover.kind}:followed", "1")
            first = await subscription.get(5)
            await asyncio.to_thread(moving.move, slot, other(moving, slot))
            gap = await subscription.get(5)
            await mover.client.call("SPUBLISH", f"{mover.kind}:followed", "2")
            return [first, gap, await subscription.get(5)]

    if mover.kind == "aio":
        found = mover.do(follow())
    else:
        with mover.client.subscribe(f"{mover.kind}:followed", sharded=True) as subscription:
            mover.client.call("SPUBLISH", f"{mover.kind}:followed", "1")
            found = [subscription.get(5)]
            moving.move(slot, other(moving, slot))
            found.append(subscription.get(5))
            mover.client.call("SPUBLISH", f"{mover.kind}:followed", "2")
            found.append(subscription.get(5))
    assert [(message.kind, message.data) for message in found] == [
        ("smessage", b"1"),
        ("gap", b""),
        ("smessage", b"2"),
    ]


# -- what surrounds ----------------------------------------------------------------------------


def test_what_is_told_of_a_cluster(cluster: ClusterRedis) -> None:
    seen: list[Any] = []

    class Seeing:
        def exchange(self, what: Any, marks: Any, error: Any) -> None:
            seen.append((what, marks, error))

        def connection(self, event: str) -> None:
            pass

    observer = Seeing()
    cluster.do(cluster.client.call("GET", "a"))
    cluster.client.observe(observer)
    cluster.do(cluster.client.call("SET", "a", 1))
    cluster.do(cluster.client.pipeline([("GET", key) for key in KEYS]))
    assert [what[0] for what, *_ in seen[:1]] == ["SET"]
    assert sorted(marks[9] for _, marks, _ in seen[1:]) == sorted(
        sum(1 for key in KEYS if cluster.cluster.owner(key_slot(key.encode())) is node)
        for node in cluster.cluster.nodes[:3]
    )
    for _, marks, error in seen:
        assert error is None
        assert list(marks[:7]) == sorted(marks[:7])
    cluster.client.unobserve(observer)
    cluster.do(cluster.client.call("GET", "a"))
    assert len(seen) == 4


def test_the_figures_are_of_all_nodes(cluster: ClusterRedis) -> None:
    cluster.do(cluster.client.pipeline([("GET", key) for key in KEYS]))
    figures = cluster.client.connections
    assert (figures.open, figures.in_use, figures.waiting) == (3, 0, 0)
    info = cluster.do(awaitable(cluster, cluster.client))
    assert (info.mode, info.coordinator) == ("cluster", False)


def awaitable(cluster: ClusterRedis, client: Any) -> Any:
    async def get() -> Any:
        return await client.server_info

    return get() if cluster.kind == "aio" else client.server_info


def test_a_closed_client(cluster: ClusterRedis) -> None:
    client = cluster.connect()
    cluster.do(client.call("GET", "a"))
    client.before_close(lambda: [("SET", "bye", 1)])
    cluster.do(client.close())
    assert cluster.do(cluster.client.call("GET", "bye")) == b"1"
    with pytest.raises(RuntimeError, match="closed"):
        cluster.do(client.call("GET", "a"))
    with pytest.raises(RuntimeError, match="closed"):
        cluster.do(client.pipeline([("GET", "a"), ("GET", "b")]))
    unused = cluster.connect()
    cluster.do(unused.close())
    with pytest.raises(RuntimeError, match="closed"):
        cluster.do(unused.call("GET", "a"))


def test_a_client_like_another(cluster: ClusterRedis) -> None:
    given = cluster.connect(client_name="me", read_from="replica")
    with ClusterClient.like(given) as twin:
        assert twin.call("CLIENT", "GETNAME") == b"me"
        assert repr(twin).split()[1:] == repr(given).split()[1:]
    for kind, other in ((ClusterClient, Client()), (Client, twin)):
        with pytest.raises(TypeError, match="is not like"):
            kind.like(other)


def test_nothing_is_tried_again_if_so_told(cluster: ClusterRedis) -> None:
    client = cluster.connect(retry=Retry(attempts=1))
    cluster.do(client.call("SET", "a", 1))
    owner = cluster.cluster.owner(key_slot(b"a"))
    client._routes.owners[key_slot(b"a")] = "127.0.0.1:1"  # a node that has gone
    with pytest.raises(errors.ConnectError):
        cluster.do(client.call("GET", "a"))
    patient = cluster.connect()
    cluster.do(patient.call("SET", "a", 1))
    patient._routes.owners[key_slot(b"a")] = "127.0.0.1:1"
    patient._next_look = 0.0
    assert cluster.do(patient.call("GET", "a")) == b"1"
    assert patient._routes.owners[key_slot(b"a")] == owner.name


def test_forked_children_have_connections_of_their_own(shared_cluster: Cluster) -> None:
    shared_cluster.flush()
    with ClusterClient(shared_cluster.urls) as client:
        client.pipeline([("SET", key, key) for key in KEYS])
        child = os.fork()
        if not child:
            wrong = 255
            try:
                signal.alarm(20)
                wrong = sum(client.call("GET", key) != key.encode() for key in KEYS)
            finally:
                os._exit(wrong)
        assert [client.call("GET", key) for key in KEYS] == [key.encode() for key in KEYS]
        assert os.waitpid(child, 0)[1] == 0
        assert [client.call("GET", key) for key in KEYS] == [key.encode() for key in KEYS]


def test_two_tasks_or_threads_never_wait_for_each_other_s_connections(
    cluster: ClusterRedis,
) -> None:
    """Each of several pipelines needs the only connection of each of three nodes."""
    client = cluster.connect(max_connections=1)
    commands = [("INCR", key) for key in KEYS]
    if cluster.kind == "aio":

        async def many() -> Any:
            return await asyncio.gather(*(client.pipeline(commands) for _ in range(20)))

        found = cluster.do(many())
    else:
        found = []
        crew = [
            threading.Thread(target=lambda: found.append(client.pipeline(commands)))
            for _ in range(20)
        ]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
    assert sorted(replies[0] for replies in found) == list(range(1, 21))
