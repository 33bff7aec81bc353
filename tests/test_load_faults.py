"""A load whose connection dies, or whose index goes: it says so, and run again it is right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from documents import FIELDS, both_kinds, contents, made, make, meanwhile, vectors
from proxy import TO_CLIENT, TO_SERVER, Fault, Proxy
from rawredis_llm import Client, Numeric, Vector, VectorIndex, errors

if TYPE_CHECKING:
    from conftest import Redis

N = 60


def expected() -> dict[str, Any]:
    return {str(i): ({"year": i}, vectors(N)[i].tobytes()) for i in range(N)}


def loading(index: Any, how: str, **options: Any) -> Any:
    """Return a load of all documents, by one call or the other."""
    if how == "load":
        return index.load(range(N), vectors(N), {"year": range(N)}, batch_size=20, **options)
    documents = ({"id": i, "vec": vectors(N)[i], "year": i} for i in range(N))
    return index.load_documents(documents, batch_size=20, **options)


@both_kinds
@pytest.mark.parametrize("how", ["load", "load_documents"])
@pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_load_that_is_cut_off_says_so_and_is_run_again(
    redis: Redis, on: str, how: str, direction: int, share: float
) -> None:
    made(redis, on)
    with Proxy(redis.url) as proxy:  # how much it is in all
        client = redis.connect(url=proxy.url)
        redis.do(client.call("PING"))
        base = proxy.passed[direction]  # the greeting, which would be tried again
        redis.do(loading(VectorIndex(client, "docs", FIELDS, on=on), how))
        size = proxy.passed[direction] - base
        redis.do(client.close())
    redis.do(redis.client.call("FLUSHALL"))
    index = made(redis, on)
    redis.do(index.load([1, 2], vectors(2), {"text": ["old", "old"]}, ttl=1000))
    done: list[int] = []
    with Proxy(redis.url, Fault("rst", direction, base + int(size * share))) as proxy:
        client = redis.connect(url=proxy.url)
        redis.do(client.call("PING"))
        through: Any = VectorIndex(client, "docs", FIELDS, on=on)
        with pytest.raises(errors.OutcomeUnknownError):
            redis.do(loading(through, how, progress=lambda n, _: done.append(n)))
        assert proxy.fired
        sure = range(done[-1] if done else 0)
        assert contents(redis.do(index.get(sure))) == {str(i): expected()[str(i)] for i in sure}
        assert redis.do(loading(through, how)) == N  # the client has found a new connection
        redis.do(client.close())
    assert contents(redis.do(index.get(range(N)))) == expected()
    assert redis.do(index.count()) == N
    assert redis.do(redis.client.call("PTTL", "docs:1")) == -1


@both_kinds
def test_a_load_that_nobody_hears_is_an_error(redis: Redis, on: str) -> None:
    index: Any = VectorIndex(redis.connect(url="redis://127.0.0.1:1/0", retry=None), "docs", FIELDS)
    for how in ("load", "load_documents"):
        with pytest.raises(errors.ConnectError):
            redis.do(loading(index, how))
    assert made(redis, on).name == "docs"


@both_kinds
@pytest.mark.parametrize("how", ["load", "load_documents"])
def test_an_index_that_is_dropped_under_a_load_loses_no_document(
    client: Client, on: str, how: str
) -> None:
    index = make(client, on)
    batches: list[str] = []

    def second(name: str) -> bool:
        batches.append(name)
        return len([one for one in batches if one.startswith("DEL")]) == 2

    loaded = meanwhile(client, loading(index.plan, how), index.drop, second)
    assert (loaded, loaded.failed) == (N, [])
    assert contents(index.get(range(N))) == expected()
    index.create()
    index.wait_until_indexed()
    assert index.count() == N
    assert index.count(Numeric("year") < 30) == 30


@both_kinds
def test_an_index_that_is_another_one_under_a_load_takes_none_of_the_rest(
    client: Client, on: str
) -> None:
    index = make(client, on)
    batches: list[str] = []

    def third(name: str) -> bool:
        batches.append(name)
        return len([one for one in batches if one.startswith("DEL")]) == 3

    def replace() -> None:
        index.drop()
        make(client, on, fields=[Vector("vec", 9)])

    plan = loading(index.plan, "load", raise_errors=False)
    assert meanwhile(client, plan, replace, third).failed == [str(i) for i in range(40, N)]


@both_kinds
def test_what_the_server_refuses_is_raised(client: Client, on: str) -> None:
    index = make(client, on)
    limit = client.call("CONFIG", "GET", "maxmemory")[b"maxmemory"]
    client.call("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(errors.OutOfMemoryError):
            loading(index, "load")
        with pytest.raises(errors.OutOfMemoryError):
            loading(index, "load_documents")
    finally:
        client.call("CONFIG", "SET", "maxmemory", limit)
    assert loading(index, "load") == N
