"""SCAN and its kin as iterators: all that was there comes, page by page, when it is asked for."""

from __future__ import annotations

import asyncio
import math
from itertools import islice
from typing import Any

import pytest

from conftest import Redis
from counting import cost
from rawredis_llm import errors

SIZE = 1000
NUMBERS = range(SIZE)
KINDS = ["scan", "hscan", "sscan", "zscan"]


def collect(redis: Redis, items: Any, limit: int | None = None) -> list[Any]:
    """Return what an iterator of the fixture's colour gives, or the first of it."""
    if redis.kind == "sync":
        return list(islice(items, limit))

    async def read() -> list[Any]:
        found: list[Any] = []
        async for item in items:
            found.append(item)
            if len(found) == limit:
                break
        await items.aclose()
        return found

    found: list[Any] = redis.do(read())
    return found


def fill(redis: Redis, kind: str, numbers: range = NUMBERS) -> list[Any]:
    """Store numbered items where an iterator of this kind finds them; return what it is to give."""
    names = [f"item:{n}" for n in numbers]
    pairs = [part for n in numbers for part in (f"item:{n}", n)]
    scored = [part for n in numbers for part in (n + 0.5, f"item:{n}")]
    command: tuple[Any, ...]
    expected: list[Any] = [name.encode() for name in names]
    if kind == "scan":
        command = ("MSET", *pairs)
    elif kind == "sscan":
        command = ("SADD", "s", *names)
    elif kind == "hscan":
        command, expected = ("HSET", "h", *pairs), [(b"item:%d" % n, b"%d" % n) for n in numbers]
    else:
        command, expected = ("ZADD", "z", *scored), [(b"item:%d" % n, n + 0.5) for n in numbers]
    redis.do(redis.client.call(*command))
    return expected


def iterate(redis: Redis, kind: str, *args: Any, **options: Any) -> Any:
    """Return the iterator of this kind over what `fill` has stored."""
    key = () if kind == "scan" else (kind[0],)
    return getattr(redis.client, kind)(*key, *args, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_all_items_come(redis: Redis, kind: str) -> None:
    expected = fill(redis, kind)
    found = collect(redis, iterate(redis, kind))
    assert sorted(found) == sorted(expected)  # nothing changed meanwhile, so none came twice


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", ["item:99*", b"item:99*"])
def test_match_takes_a_glob_pattern(redis: Redis, kind: str, pattern: str | bytes) -> None:
    expected = fill(redis, kind)
    found = collect(redis, iterate(redis, kind, pattern))
    keys = [one[0] if isinstance(one, tuple) else one for one in expected]
    matching = [e for e, key in zip(expected, keys, strict=True) if key.startswith(b"item:99")]
    assert sorted(found) == sorted(matching)
    assert len(found) == 11
    assert collect(redis, iterate(redis, kind, "nothing*")) == []


@pytest.mark.parametrize("kind", KINDS)
def test_count_is_how_much_one_page_costs(redis: Redis, kind: str) -> None:
    expected = fill(redis, kind)
    one_page = cost(redis, lambda: gathered(redis, iterate(redis, kind, count=SIZE * 10)))
    assert one_page.commands[kind.upper()] == 1
    assert sorted(one_page.result) == sorted(expected)
    pages = cost(redis, lambda: gathered(redis, iterate(redis, kind, count=100)))
    assert 2 < pages.commands[kind.upper()] <= 20
    assert sorted(pages.result) == sorted(expected)


def gathered(redis: Redis, items: Any) -> Any:
    """Return what an iterator gives: as a list, or as the coroutine of one."""
    if redis.kind == "sync":
        return list(items)

    async def read() -> list[Any]:
        return [item async for item in items]

    return read()


def test_of_type_leaves_other_keys_out(redis: Redis) -> None:
    for kind in KINDS:
        fill(redis, kind, range(20))
    redis.do(redis.client.call("RPUSH", "l", "x"))
    for of_type, key in {"hash": b"h", "set": b"s", "zset": b"z", "list": b"l"}.items():
        assert collect(redis, redis.client.scan(of_type=of_type)) == [key]
    strings = collect(redis, redis.client.scan("item:1*", of_type="string", count=7))
    assert sorted(strings) == sorted(b"item:%d" % n for n in (1, *range(10, 20)))


def test_scores_are_floats_to_the_last_bit(redis: Redis) -> None:
    scores = {
        b"one": 1.0,
        b"tenth": 0.1,
        b"tiny": 5e-324,
        b"huge": 1.7976931348623157e308,
        b"whole": 2.0**53,
        b"minus zero": -0.0,
        b"inf": math.inf,
        b"-inf": -math.inf,
    }
    pairs = [part for member, score in scores.items() for part in (score, member)]
    redis.do(redis.client.call("ZADD", "z", *pairs))
    found = dict(collect(redis, redis.client.zscan("z")))
    assert found == scores
    assert all(type(score) is float for score in found.values())


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_is_nothing_comes(redis: Redis, kind: str) -> None:
    assert collect(redis, iterate(redis, kind)) == []


@pytest.mark.parametrize("kind", KINDS[1:])
def test_another_kind_of_value_is_an_error(redis: Redis, kind: str) -> None:
    redis.do(redis.client.call("SET", kind[0], "text"))
    with pytest.raises(errors.WrongTypeError) as caught:
        collect(redis, iterate(redis, kind))
    assert caught.value.command == kind.upper()


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_fetched_when_it_is_needed(redis: Redis, kind: str) -> None:
    fill(redis, kind)
    made: list[Any] = []

    def make() -> Any:
        made.append(iterate(redis, kind))
        return redis.client.call("PING")

    unused = cost(redis, make)
    assert kind.upper() not in unused.commands
    few = cost(redis, lambda: first_of(redis, made[0]))
    assert few.commands[kind.upper()] == 1
    if redis.kind == "aio":
        redis.do(made[0].aclose())


def first_of(redis: Redis, items: Any) -> Any:
    """Return an iterator's first item, or the coroutine of it."""
    return next(items) if redis.kind == "sync" else items.__anext__()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_there_all_the_time_comes_whatever_else_changes(redis: Redis, kind: str) -> None:
    fill(redis, kind)
    items = iterate(redis, kind, count=50)
    found = collect_changing(redis, items, kind)
    keys = {one[0] if isinstance(one, tuple) else one for one in found}
    assert keys >= {b"item:%d" % n for n in range(SIZE // 2)}


def collect_changing(redis: Redis, items: Any, kind: str) -> list[Any]:
    """Read an iterator; after its first item the upper half goes, and as many others come."""
    remove = {"scan": ("DEL",), "hscan": ("HDEL", "h"), "sscan": ("SREM", "s")}
    gone = [f"item:{n}" for n in range(SIZE // 2, SIZE)]
    found = [redis.do(first_of(redis, items))]
    redis.do(redis.client.call(*remove.get(kind, ("ZREM", "z")), *gone))
    fill(redis, kind, range(SIZE, 2 * SIZE))
    return found + collect(redis, items)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_fields_and_members_are_bytes(redis: Redis, kind: str) -> None:
    strange = [b"\x00\xff\r\n", "grün".encode(), b" "] + [b""] * (kind != "scan")
    key = b"\xfe\r\n"
    for one in strange:
        command = {
            "scan": ("SET", one, one),
            "hscan": ("HSET", key, one, one),
            "sscan": ("SADD", key, one),
            "zscan": ("ZADD", key, 1, one),
        }[kind]
        redis.do(redis.client.call(*command))
    head = () if kind == "scan" else (key,)
    found = collect(redis, getattr(redis.client, kind)(*head))
    expected: dict[str, list[Any]] = {
        "hscan": [(one, one) for one in strange],
        "zscan": [(one, 1.0) for one in strange],
    }
    assert sorted(found) == sorted(expected.get(kind, strange))
    pattern = collect(redis, getattr(redis.client, kind)(*head, b"*\xff*"))
    assert len(pattern) == 1


def test_two_iterators_and_the_client_do_not_disturb_each_other(redis: Redis) -> None:
    expected = fill(redis, "sscan")
    first, second = iterate(redis, "sscan", count=10), iterate(redis, "sscan", count=30)
    found: tuple[list[Any], list[Any]] = ([], [])
    for _ in range(SIZE // 2):
        found[0].append(redis.do(first_of(redis, first)))
        found[1].append(redis.do(first_of(redis, second)))
    assert redis.do(redis.client.call("ECHO", "mine")) == b"mine"
    assert sorted(found[0] + collect(redis, first)) == sorted(expected)
    assert sorted(found[1] + collect(redis, second)) == sorted(expected)


def test_many_iterators_run_together_in_tasks(redis: Redis) -> None:
    if redis.kind == "sync":
        return
    expected = sorted(fill(redis, "zscan"))

    async def main() -> list[Any]:
        readers = [gathered(redis, iterate(redis, "zscan", count=20)) for _ in range(8)]
        return await asyncio.gather(*readers)

    assert all(sorted(found) == expected for found in redis.do(main()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_count_that_is_none_is_the_servers_to_refuse(redis: Redis, kind: str) -> None:
    fill(redis, kind, range(3))
    with pytest.raises(errors.ReplyError, match="syntax"):
        collect(redis, iterate(redis, kind, count=0))
