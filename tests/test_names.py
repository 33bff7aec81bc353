"""Host names: how long looking one up may take, and which of its addresses is used."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from conftest import Redis
from obedient import Obedient
from rawredis_llm import errors


@pytest.fixture(scope="module")
def obedient() -> Iterator[Obedient]:
    with Obedient() as server:
        yield server


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine on which nobody listens, and nobody else will."""
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def name_has(monkeypatch: pytest.MonkeyPatch, *ports: int) -> list[Any]:
    """Give every name these ports of this machine for addresses; return the list of look-ups."""
    asked: list[Any] = []

    def look_up(host: str, *_: object, **__: object) -> list[Any]:
        asked.append(host)
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("127.0.0.1", port)) for port in ports]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@pytest.mark.parametrize("options", [{"timeout": 0.1}, {"connect_timeout": 0.1, "retry": None}])
def test_looking_up_a_name_ends_at_the_deadline(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    over = threading.Event()

    def look_up(*_: object, **__: object) -> list[Any]:
        over.wait(20)
        raise OSError("too late")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    client = redis.connect(url="redis://slow.example:1", **options)
    began = time.monotonic()
    try:
        with pytest.raises(errors.ConnectTimeoutError, match=r"slow\.example") as caught:
            redis.do(client.call("PING"))
        assert 0.09 <= time.monotonic() - began < 5
    finally:
        over.set()
    assert caught.value.command == "PING"


def test_addresses_of_a_name_are_tried_in_turn(
    redis: Redis, obedient: Obedient, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = name_has(monkeypatch, closed_port, closed_port, obedient.port)
    client = redis.connect(url="redis://many.example:1", retry=None)
    assert redis.do(client.call("ECHO", "here")) == b"here"
    assert asked == ["many.example"]
    assert client.connections[:4] == (1, 0, 0, 1)


def test_the_first_address_that_answers_is_used(
    redis: Redis, obedient: Obedient, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_has(monkeypatch, obedient.port, closed_port)
    client = redis.connect(url="redis://many.example:1", retry=None)
    assert redis.do(client.call("ECHO", "here")) == b"here"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_name_none_of_whose_addresses_answers_is_a_connect_error(
    redis: Redis, closed_port: int, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    name_has(monkeypatch, *[closed_port] * count)
    client = redis.connect(url="redis://dead.example:1", retry=None)
    with pytest.raises(errors.ConnectError, match=r"dead\.example"):
        redis.do(client.call("PING"))


def test_an_unknown_name_is_a_connect_error(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    client = redis.connect(url="redis://nobody.example:1", retry=None)
    with pytest.raises(errors.ConnectError, match="not known") as caught:
        redis.do(client.call("PING"))
    assert not isinstance(caught.value, errors.ConnectTimeoutError)
    assert client.connections.dropped == {"ConnectError": 1}


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example", "\u00e4" * 70])
def test_what_can_be_no_name_is_a_connect_error(redis: Redis, host: str) -> None:
    with pytest.raises(errors.ConnectError):
        redis.do(redis.connect(url=f"redis://{host}:1", retry=None).call("PING"))


def test_a_name_is_looked_up_anew_for_each_connection(
    redis: Redis, obedient: Obedient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = name_has(monkeypatch, obedient.port)
    client = redis.connect(url="redis://moving.example:1", retry=None)
    for times in (1, 2, 3):
        assert redis.do(client.call("ECHO", "here")) == b"here"
        assert len(asked) == times
        with pytest.raises(errors.OutcomeUnknownError):
            redis.do(client.call("HANGUP"))


class Obedient6(Obedient):
    """The same on the machine's IPv6 address."""

    address_family = socket.AF_INET6
    host = "::1"


def has_ipv6() -> bool:
    try:
        with closing(socket.socket(socket.AF_INET6)) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_an_ipv6_address_is_written_in_brackets(redis: Redis) -> None:
    with Obedient6() as server:
        client = redis.connect(url=server.url)
        assert redis.do(client.call("ECHO", "here")) == b"here"
        assert "[::1]" in repr(client)
