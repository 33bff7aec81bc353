"""What no client sends: texts for commands, and commands that change what later replies mean."""

from __future__ import annotations

import asyncio
import enum
import math
from collections.abc import Callable
from typing import Any

import pytest

from rawredis_llm import AsyncClient, Client
from rawredis_llm.protocol.operation import Command, Sent, as_member, name_of
from rawredis_llm.protocol.vetting import STATEFUL, vet


class Witness:
    """An observer that remembers whatever it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def exchange(self, what: Sent, *_: object) -> None:
        """Remember an exchange."""
        self.told.append(name_of(what))

    def connection(self, event: str) -> None:
        """Remember a connection."""
        self.told.append(event)


NOWHERE = "redis://127.0.0.1:1"  # nobody listens: whatever is sent ends in a ConnectError


def stateful(name: str) -> tuple[str, ...]:
    """Return the command in full; CLIENT, SCRIPT and HELLO have forms that change nothing."""
    return {"CLIENT": (name, "REPLY", "OFF"), "SCRIPT": (name, "DEBUG", "YES")}.get(
        name, (name, "x")
    )


def uses(client: Any, args: tuple[Any, ...]) -> list[Callable[[], Any]]:
    """Return every way to send a command by a client."""
    return [
        lambda: client.call(*args),
        lambda: client.run(Command(args)),
        lambda: client.pipeline([("PING",), args]),
        lambda: client.pipeline([Command(args)]),
        lambda: client.transaction([args]),
        lambda: client.gather([Command(args), Command(args)]),
    ]


@pytest.mark.parametrize("name", sorted(STATEFUL))
def test_a_command_of_state_is_refused_and_says_what_to_do(name: str) -> None:
    first, *rest = stateful(name)
    for spelling in (first, first.lower(), first.encode(), first.lower().encode()):
        with pytest.raises(ValueError, match=f"^{name} ") as caught:
            vet((spelling, *rest))
        assert STATEFUL[name] in str(caught.value)


def test_no_command_of_state_is_forgotten() -> None:
    known = "AUTH CLIENT DISCARD EXEC HELLO MONITOR MULTI PSUBSCRIBE PSYNC PUNSUBSCRIBE QUIT RESET"
    known += " SELECT SSUBSCRIBE SUBSCRIBE SUNSUBSCRIBE SYNC UNSUBSCRIBE UNWATCH WATCH"
    assert set(known.split()) <= set(STATEFUL)


@pytest.mark.parametrize("part", ["reply", b"TRACKING", "Caching"])
def test_only_some_of_client_is_refused(part: str | bytes) -> None:
    vet((b"client", "ID"))
    with pytest.raises(ValueError, match="CLIENT"):
        vet((b"client", part, "ON"))


@pytest.mark.parametrize(
    "args", [("CLIENT", "ID"), ("client", b"list"), ("GET", "MULTI"), (b"get", b"k"), ("WATCHED",)]
)
def test_other_commands_pass_again_and_again(args: tuple[Any, ...]) -> None:
    for _ in range(3):
        vet(args)


@pytest.mark.parametrize("name", [bytearray(b"MULTI"), memoryview(b"MULTI"), ["MULTI"], 5, None])
def test_a_name_is_text_or_bytes(name: Any) -> None:
    with pytest.raises(TypeError):
        vet((name, "k"))


def test_an_enum_is_refused_by_its_value() -> None:
    class Verb(str, enum.Enum):
        BEGIN = "multi"

    with pytest.raises(ValueError, match=r"^MULTI "):
        vet((Verb.BEGIN,))


@pytest.mark.parametrize("name", sorted(STATEFUL))
def test_a_client_refuses_before_anything_is_sent(name: str) -> None:
    witness = Witness()
    with Client(NOWHERE, observer=witness) as client:
        for use in uses(client, stateful(name)):
            with pytest.raises(ValueError, match=f"{name} changes the state"):
                use()
    assert witness.told == []


@pytest.mark.parametrize("name", sorted(STATEFUL))
def test_an_asyncio_client_refuses_before_anything_is_sent(name: str) -> None:
    witness = Witness()

    async def use_all() -> None:
        async with AsyncClient(NOWHERE, observer=witness) as client:
            for use in uses(client, stateful(name)):
                with pytest.raises(ValueError, match=f"{name} changes the state"):
                    await use()

    asyncio.run(use_all())
    assert witness.told == []


@pytest.mark.parametrize("text", ["GET k", b"GET k", bytearray(b"GET k")])
def test_a_text_is_no_command(text: Any) -> None:
    with pytest.raises(TypeError, match="not one text"):
        as_member(text)


def test_a_sequence_or_a_command_is_a_member() -> None:
    command = Command(("GET", "k"))
    assert as_member(command) is command
    assert as_member(["GET", "k"]) == as_member(("GET", "k")) == ("GET", "k")


@pytest.mark.parametrize("text", ["GET k", b"GET k", bytearray(b"GET k")])
def test_a_client_takes_no_text_for_a_command(text: Any) -> None:
    with Client(NOWHERE) as client:
        for send in (client.pipeline, client.transaction):
            with pytest.raises(TypeError, match="not one text"):
                send([("PING",), text])


@pytest.mark.parametrize("name", ["XREAD", b"xread"])
@pytest.mark.parametrize("keys", [("a", "b", b"a"), ("a", "a")])
def test_a_stream_is_read_once_in_a_call(name: str | bytes, keys: tuple[str | bytes, ...]) -> None:
    # hiredis 3.5 would give the second value of a key to the key that was read before it.
    with pytest.raises(ValueError, match="name each once"):
        vet((name, "COUNT", 1, "streams", *keys, *["0"] * len(keys)))
    vet((name, "STREAMS", "a", "b", "0", "0"))


@pytest.mark.parametrize(
    ("args", "seconds"),
    [
        (("BLPOP", "a", "b", 2), 2),
        ((b"blpop", "a", b"0.5"), 0.5),
        (("BLPOP", "a", 0), math.inf),
        (("BLMPOP", "1.5", 1, "a", "LEFT"), 1.5),
        (("WAIT", 1, 250), 0.25),
        (("WAITAOF", 1, 0, "100"), 0.1),
        (("XREAD", "BLOCK", 1500, "STREAMS", "a", "$"), 1.5),
        (("xread", "count", 1, b"block", 0, "STREAMS", "a", "$"), math.inf),
        (("XREAD", "STREAMS", "a", "$"), 0),
        (("XREAD", "STREAMS", "block", 0), 0),
        (("XREAD", "COUNT", 1, "BLOCK", 2000, "STREAMS", "block", 0), 2),
        (("XREADGROUP", "GROUP", "block", "c", "STREAMS", "a", ">"), 0),
        (
            (
                *[
                    "XREADGROUP",
                    "GROUP",
                    "g",
                    "c",
                    "COUNT",
                    "10",
                    "CLAIM",
                    "100",
                    "NOACK",
                    "BLOCK",
                    "5000",
                    "STREAMS",
                    "a",
                    ">",
                ],
            ),
            5,
        ),
        (("BLPOP", "a", 3_000_000), math.inf),
        (("GET", "BLPOP"), 0),
    ],
)
def test_a_command_says_how_long_it_waits(args: tuple[Any, ...], seconds: float) -> None:
    assert vet(args) == pytest.approx(seconds)


def test_a_waiting_command_that_says_nothing_sensible_is_known_to_wait() -> None:
    for args in [("BLPOP", "a"), ("BLPOP", "a", "soon"), ("WAIT",), ("BLPOP", "a", -1)]:
        assert vet(args) > 0


@pytest.mark.parametrize(
    "args",
    [
        ("SCRIPT", "DEBUG", "YES"),
        (b"script", b"debug", "SYNC"),
        ("ASKING",),
        ("READONLY",),
        ("readwrite",),
        ("CLIENT", "NO-TOUCH", "ON"),
        ("CLIENT", "no-evict", "ON"),
        ("CLIENT", "SETNAME", "me"),
    ],
)
def test_what_would_stick_to_a_connection_is_refused(args: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="changes the state"):
        vet(args)


@pytest.mark.parametrize(
    "args", [("LATENCY", "HISTOGRAM", "set", "get", "set"), ("COMMAND", "DOCS", "get", b"get")]
)
def test_what_a_map_is_asked_for_is_named_once(args: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="name each once"):
        vet(args)
    vet(args[:3])
    vet(("COMMAND", "COUNT"))
    vet(("SCRIPT", "LOAD", "return 1"))
