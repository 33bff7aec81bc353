"""Which slot a key is in, and which arguments of a command are keys."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusters import Cluster, until
from rawredis_llm import Client, errors
from rawredis_llm.protocol.keyed import KEYLESS, keys_of, one_slot, single
from rawredis_llm.protocol.slots import SLOTS, SlotMap, key_slot, slot_map, split_node
from rawredis_llm.protocol.vetting import STATEFUL

# Redis Cluster specification: CRC16 of 123456789 is 0x31C3, and its examples of hash tags.
SPECIFIED = [
    (b"123456789", 0x31C3 % SLOTS),
    (b"{user1000}.following", key_slot(b"user1000")),
    (b"foo{}{bar}", None),
    (b"foo{{bar}}zap", key_slot(b"{bar")),
    (b"foo{bar}{zap}", key_slot(b"bar")),
    (b"", 0),
]


def crc16(data: bytes) -> int:
    """The reference implementation of the specification's appendix, bit by bit."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1
        crc &= 0xFFFF
    return crc


@pytest.mark.parametrize(("key", "slot"), SPECIFIED)
def test_the_specification_s_examples(key: bytes, slot: int | None) -> None:
    assert key_slot(key) == (crc16(key) % SLOTS if slot is None else slot)


@given(st.binary(max_size=40).filter(lambda key: b"{" not in key))
def test_a_slot_is_crc16(key: bytes) -> None:
    assert key_slot(key) == crc16(key) % SLOTS


def test_the_server_says_the_same_of_10000_keys(shared_cluster: Cluster) -> None:
    dice = random.Random(7)
    letters = [b"{", b"}", b"a", b"\0", b"\xff", b":", b"7"]
    keys = [b"".join(dice.choices(letters, k=dice.randrange(12))) for _ in range(9000)]
    keys += [dice.randbytes(dice.randrange(40)) for _ in range(1000)]
    found = shared_cluster.nodes[0].client.pipeline([("CLUSTER", "KEYSLOT", key) for key in keys])
    assert found == [key_slot(key) for key in keys]


COMMANDS: list[tuple[tuple[Any, ...], list[Any]]] = [
    (("GET", "a"), ["a"]),
    (("MGET", "a", "b", "c"), ["a", "b", "c"]),
    (("MSET", "a", 1, "b", 2), ["a", "b"]),
    (("DEL", "a"), ["a"]),
    (("BLPOP", "a", "b", 5), ["a", "b"]),
    (("RENAME", "a", "b"), ["a", "b"]),
    (("BITOP", "AND", "a", "b", "c"), ["a", "b", "c"]),
    (("EVAL", "return 1", 2, "a", "b", "x"), ["a", "b"]),
    (("EVALSHA", "0" * 40, "0", "x"), []),
    (("ZUNIONSTORE", "a", 2, "b", "c", "WEIGHTS", 1, 2), ["a", "b", "c"]),
    (("ZINTER", 2, "a", "b"), ["a", "b"]),
    (("BZMPOP", 1, 2, "a", "b", "MIN"), ["a", "b"]),
    (("SINTERCARD", 2, "a", "b", "LIMIT", 1), ["a", "b"]),
    (("XREAD", "COUNT", 1, "STREAMS", "a", "b", "0", "0"), ["a", "b"]),
    (("XREADGROUP", "GROUP", "g", "c", b"streams", "a", ">"), ["a"]),
    (("XINFO", "STREAM", "a"), ["a"]),
    (("OBJECT", "ENCODING", "a"), ["a"]),
    (("MEMORY", "USAGE", "a"), ["a"]),
    (("LMOVE", "a", "b", "LEFT", "RIGHT"), ["a", "b"]),
    (("SORT", "a", "BY", "x"), ["a"]),
    (("COPY", "a", "b", "REPLACE"), ["a", "b"]),
    (("LCS", "a", "b", "LEN"), ["a", "b"]),
    (("PING",), []),
    (("SCAN", 0), []),
    (("FLUSHALL", "SYNC"), []),
    (("MEMORY", "DOCTOR"), []),
]


@pytest.mark.parametrize(("args", "keys"), COMMANDS, ids=lambda each: str(each[0]) if each else "")
def test_which_arguments_are_keys(args: tuple[Any, ...], keys: list[Any], client: Client) -> None:
    assert list(keys_of(args)) == keys
    try:  # and the server's own word for it
        found = client.call("COMMAND", "GETKEYS", *args)
    except errors.ReplyError as error:
        assert "no key arguments" in error.message  # noqa: PT017 - it says there are none
        found = []
    assert [key.decode() for key in found] == keys


@pytest.mark.parametrize(
    "args",
    [("EVAL", "x"), ("EVAL", "x", "many", "a"), ("EVAL", "x", -1, "a"), ("XREAD", "a"), ("GET",)],
)
def test_what_is_malformed_has_no_keys(args: tuple[Any, ...]) -> None:
    assert list(keys_of(args)) == []


@pytest.fixture(scope="module")
def table(server: Any) -> Iterator[dict[str, list[Any]]]:
    """What the server says of each command."""
    with Client(server.url, protocol=2) as client:
        yield {entry[0].decode().upper(): entry for entry in client.call("COMMAND")}


def test_commands_said_to_have_one_key_have_it(table: dict[str, list[Any]]) -> None:
    wrong = []
    for name, entry in table.items():
        if name.startswith(("FT.", "_")) or "|" in name:
            continue
        first, last, step = entry[3:6]
        told = bool(single(name))
        movable = b"movablekeys" in entry[2]
        if told and first and (first, last, step) != (1, 1, 1):
            wrong.append((name, first, last, step))
        if told and first == 0 and not movable and b"pubsub" not in entry[2] and entry[7:8] == [[]]:
            wrong.append((name, first, last, step))
        if name in KEYLESS and first:
            wrong.append((name, first, last, step))
    assert [each for each in wrong if each[0] not in STATEFUL] == []  # those are refused


def test_what_runs_together_is_in_one_slot() -> None:
    assert one_slot([("SET", "{t}a", 1), ("GET", b"{t}b"), ("PING",)]) == key_slot(b"t")
    assert one_slot([("PING",)]) is None
    with pytest.raises(errors.CrossSlotError, match="one slot"):
        one_slot([("SET", "a", 1), ("GET", "b")])


def test_a_map_is_read(shared_cluster: Cluster) -> None:
    node = shared_cluster.nodes[0]

    def read() -> SlotMap:
        return slot_map(node.call("CLUSTER", "SLOTS"), node.name)

    # A server does not name a replica that was too busy to answer it in time.
    until(lambda: read().replicas[node.name], "its replica answers")
    found = read()
    assert set(found.owners) == {one.name for one in shared_cluster.nodes[:3]}
    assert found.replicas[node.name] == (shared_cluster.nodes[3].name,)


def test_hosts_in_a_map() -> None:
    reply = [
        [0, 1, [b"", 7000, b"id"]],
        [2, 3, [None, 7001]],
        [4, 5, [b"::1", 7002]],
        [6, 6, [b"?", 1]],
    ]
    owners = slot_map(reply, "asked.example:1").owners
    assert owners[:8] == [
        *["asked.example:7000"] * 2,
        *["asked.example:7001"] * 2,
        *["::1:7002"] * 2,
        None,
        None,
    ]
    assert split_node("::1:7002") == ("::1", 7002)


@pytest.mark.parametrize(
    "reply",
    [None, 7, [[]], [[0, 5]], [[0, 20000, [b"h", 1]]], [[0, 5, [b"h", b"1"]]], [b"x"], {1: 2}],
)
def test_what_is_no_map_is_refused(reply: Any) -> None:
    with pytest.raises(errors.UnexpectedReplyError):
        slot_map(reply, "h:1")


def test_a_cluster_without_slots_is_not_there_yet() -> None:
    with pytest.raises(errors.ClusterDownError, match="no slots yet"):
        slot_map([], "h:1")
