"""No password is ever shown: by no repr, no error, no log, and no local of a traceback.

Each kind of failure is brought about with a password that came in each of the ways there are. The
error is then searched with all that hangs on it: what it follows from and what it was raised in the
middle of, shown or not, and the locals of the library's frames. A crash reporter takes them all.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import rawredis_llm
from conftest import Redis
from fake import Answer, Fake, polite, script
from rawredis_llm import AsyncClient, Client, Retry, errors
from rawredis_llm.aio.connection import Connection as AsyncConnection
from rawredis_llm.protocol.address import Secret
from rawredis_llm.protocol.handshake import as_login
from rawredis_llm.sync.connection import Connection

SECRET = "hunter2+s3cret"
QUOTED = "hunter2%2Bs3cret"
PACKAGE = str(Path(rawredis_llm.__file__).parent)
NO_HELLO = (
    b"-ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'hunter2+s3cret'\r\n"
)


# -- looking for it ----------------------------------------------------------------------------


def chain(error: BaseException) -> list[BaseException]:
    """Return an error with all that it hangs on, whether a traceback would show that or not."""
    found: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        link = left.pop()
        if link is not None and all(link is not other for other in found):
            found.append(link)
            left += [link.__cause__, link.__context__]
    return found


def places(error: BaseException) -> Iterator[tuple[str, str]]:
    """Yield everything that an error shows, and where: texts, and locals of our own frames."""
    for depth, link in enumerate(chain(error)):
        where = f"{type(link).__name__} at depth {depth}"
        yield f"text of {where}", str(link)
        yield f"repr of {where}", repr(link)
        yield f"fields of {where}", repr(vars(link))
        for frame, _ in traceback.walk_tb(link.__traceback__):
            code = frame.f_code
            if code.co_filename.startswith(PACKAGE):
                for name, value in frame.f_locals.items():
                    yield (
                        f"local {name} of {Path(code.co_filename).name}:{code.co_name}",
                        shown(value),
                    )


def shown(value: object) -> str:
    """Return what a crash reporter shows of a local: a repr may well fail."""
    try:
        return repr(value)
    except AttributeError:
        return object.__repr__(value)


def assert_hidden(error: BaseException, log: pytest.LogCaptureFixture) -> None:
    """Fail if a secret can be seen in an error, or in what was logged."""
    found = [where for where, value in places(error) if SECRET in value or QUOTED in value]
    assert found == []
    logging.getLogger("of a caller").error("it failed", exc_info=error)
    assert SECRET not in log.text
    assert QUOTED not in log.text


# -- how it came, and what went wrong ----------------------------------------------------------


class Way(NamedTuple):
    """How a password gets into a client."""

    user: str
    options: dict[str, Any]


async def ask_slowly() -> str:
    await asyncio.sleep(0)
    return SECRET


WAYS = {
    "url": Way(f"ada:{QUOTED}@", {}),
    "parameters": Way("", {"username": "ada", "password": SECRET}),
    "function": Way("", {"credentials": lambda: SECRET}),
    "coroutine": Way("", {"credentials": ask_slowly}),
}
# Which protocol is spoken makes no difference to who holds a password, but for the fallback.
SYNC, AIO = "sync-3", "aio-2"
COLOURS = pytest.mark.parametrize("redis", [SYNC, AIO], indirect=True)

EVERY_WAY = pytest.mark.parametrize(
    ("redis", "way"),
    [
        pytest.param(colour, way, id=f"{colour}-{name}")
        for colour in (SYNC, AIO)
        for name, way in WAYS.items()
        if colour == AIO or name != "coroutine"
    ],
    indirect=["redis"],
)


def client_for(redis: Redis, url: str, way: Way, **options: Any) -> Any:
    """Return a client that was given the password in this way."""
    scheme, _, rest = url.partition("://")
    given = {"timeout": 0.03, "retry": Retry(base=0.001), "client_name": "me"}
    return redis.connect(url=f"{scheme}://{way.user}{rest}", **{**given, **way.options, **options})


def failed(redis: Redis, call: Callable[[], Any]) -> BaseException:
    """Return the error of a call; an interrupt leaves a loop by another door."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - each is looked through
        redis.do(call())
    return caught.value


def refuse(name: str, refusal: bytes | None) -> Answer:
    """Return an answer: the first word of some command is refused, or hung up upon."""
    return lambda _, line: refusal if line.startswith(name) else polite(line)


def old(refusal: bytes | None) -> Answer:
    """Return an answer of a server without HELLO, which does so with AUTH."""
    answers = {"HELLO": NO_HELLO, "AUTH": refusal}
    return lambda _, line: answers.get(line.split(" ", maxsplit=1)[0], polite(line))


SERVERS: dict[str, Answer] = {
    "wrong password": refuse("HELLO", b"-WRONGPASS invalid username-password pair\r\n"),
    "no password wanted": refuse("HELLO", b"-ERR AUTH <password> called without any password\r\n"),
    "syntax error": refuse("HELLO", b"-ERR Syntax error in HELLO option 'SETNAME'\r\n"),
    "no permission": refuse("", b"-NOPERM User ada has no permissions\r\n"),
    "loading": refuse("HELLO", b"-LOADING Redis is loading\r\n"),
    "no such database": refuse("SELECT", b"-ERR DB index is out of range\r\n"),
    "hangs up": refuse("HELLO", None),
    "hangs up in the middle": refuse("CLIENT", None),
    "silent": refuse("HELLO", b""),
    "silent in the middle": refuse("CLIENT", b""),
    "not Redis": refuse("HELLO", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "says too much": refuse("SELECT", b"+OK\r\n+OK\r\n"),
    "attribute": refuse("HELLO", b"|1\r\n+a\r\n+b\r\n%0\r\n"),
    "old, wrong password": old(b"-ERR invalid password\r\n"),
}
REFUSED_BEFORE: dict[str, Answer] = {
    "full": lambda _, line: (
        b"-ERR max number of clients reached\r\n" if line.startswith("HELLO") else None
    ),
    "old, hangs up": old(None),
    "old, silent": old(b""),
    "old, not Redis": old(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
}


@EVERY_WAY
@pytest.mark.parametrize("harm", SERVERS)
def test_a_handshake_that_fails_shows_no_password(
    redis: Redis, caplog: pytest.LogCaptureFixture, way: Way, harm: str
) -> None:
    caplog.set_level(logging.DEBUG)
    with Fake(SERVERS[harm]) as fake:
        client = client_for(redis, f"{fake.url}/3", way)
        assert_hidden(failed(redis, lambda: client.call("GET", "k")), caplog)
        assert fake.sent("GET") == 0


@EVERY_WAY
@pytest.mark.parametrize("harm", REFUSED_BEFORE)
def test_a_handshake_that_fails_after_a_refusal_shows_no_password(
    redis: Redis, caplog: pytest.LogCaptureFixture, way: Way, harm: str
) -> None:
    with Fake(REFUSED_BEFORE[harm]) as fake:
        client = client_for(redis, f"{fake.url}/3", way, retry=None)
        assert_hidden(failed(redis, lambda: client.call("GET", "k")), caplog)


@EVERY_WAY
def test_no_server_at_all_shows_no_password(
    redis: Redis, caplog: pytest.LogCaptureFixture, way: Way
) -> None:
    caplog.set_level(logging.DEBUG)
    urls = ["redis://127.0.0.1:1", "redis://no.such.host.invalid", "unix:///no/such/socket"]
    urls += ["redis://a..b", "rediss://127.0.0.1:1"]
    for url in urls:
        client = client_for(redis, url, way)
        assert_hidden(failed(redis, partial(client.call, "GET", "k")), caplog)


@EVERY_WAY
def test_a_full_server_shows_no_password(
    redis: Redis, caplog: pytest.LogCaptureFixture, way: Way
) -> None:
    with Fake(script(), greeting=b"-ERR max number of clients reached\r\n") as fake:
        client = client_for(redis, fake.url, way, retry=None)
        assert_hidden(failed(redis, lambda: client.call("GET", "k")), caplog)


@EVERY_WAY
def test_no_other_use_of_a_connection_shows_a_password(
    redis: Redis, caplog: pytest.LogCaptureFixture, way: Way
) -> None:
    caplog.set_level(logging.DEBUG)

    def uses(client: Any) -> list[Callable[[], Any]]:
        return [
            lambda: client.pipeline([("GET", "k")]),
            lambda: client.transaction([("GET", "k")]),
            lambda: client.transaction(lambda: iter(()), watch=["k"]),
            lambda: client.server_info,
            lambda: first_of(client.scan()),
            lambda: subscribed(client),
        ]

    def first_of(pages: Any) -> Any:
        return anext(pages) if redis.kind == "aio" else next(pages)

    def subscribed(client: Any) -> Any:
        subscription = client.subscribe("c")
        return subscription.get(0.05)

    for harm in ("wrong password", "hangs up"):
        with Fake(SERVERS[harm]) as fake:
            for use in uses(client_for(redis, fake.url, way)):
                assert_hidden(failed(redis, use), caplog)


@EVERY_WAY
@pytest.mark.parametrize("reply", [b"-WRONGTYPE no\r\n", b"?\r\n", b"", None])
def test_a_call_that_fails_later_shows_no_password(
    redis: Redis, caplog: pytest.LogCaptureFixture, way: Way, reply: bytes | None
) -> None:
    with Fake(script(reply)) as fake:
        client = client_for(redis, f"{fake.url}/3", way)
        assert_hidden(failed(redis, lambda: client.call("GET", "k")), caplog)


@EVERY_WAY
def test_what_a_client_consists_of_shows_no_password(redis: Redis, way: Way) -> None:
    with Fake(script(b"+OK\r\n")) as fake:
        client = client_for(redis, fake.url, way)
        redis.do(client.call("GET", "k"))
        parts = [client, vars(client), client._settings, client._settings.address]
        parts += [tuple(client._settings), tuple(client._settings.address), client.connections]
        for part in parts:
            assert SECRET not in f"{part} {part!r}"


def test_a_secret_and_a_login_show_nothing() -> None:
    login = as_login(Client(credentials=lambda: None)._settings, ("ada", SECRET))
    assert SECRET not in f"{Secret(SECRET)} {Secret(SECRET)!r} {login} {login!r}"
    assert login.password is not None
    assert login.password.reveal() == SECRET


# -- parameters --------------------------------------------------------------------------------


@COLOURS
@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0},
        {"timeout": "5"},
        {"protocol": 4},
        {"max_connections": 0},
        {"client_name": "a b"},
        {"client_name": b"a"},
        {"retry": 3},
        {"on_push": 3},
        {"observer": object()},
        {"integrity": "crc"},
        {"ssl_context": object()},
        {"credentials": "pw"},
        {"credentials": str},
        {"username": 5},
    ],
    ids=str,
)
def test_a_wrong_parameter_beside_a_password_does_not_show_it(
    redis: Redis, caplog: pytest.LogCaptureFixture, wrong: dict[str, Any]
) -> None:
    for way in ("url", "parameters"):
        make = partial(client_for, redis, "redis://cache", WAYS[way], **wrong)
        error = failed(redis, make)
        assert isinstance(error, (TypeError, ValueError))
        assert_hidden(error, caplog)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_traceback_with_locals_can_be_made_of_a_wrong_parameter(kind: type[Any]) -> None:
    with pytest.raises(ValueError, match="timeout") as caught:
        kind("redis://cache", timeout=0)
    error = caught.value
    parts = traceback.TracebackException(
        type(error), error, error.__traceback__, capture_locals=True
    )
    assert "timeout" in "".join(parts.format())


@COLOURS
@pytest.mark.parametrize(
    "url",
    [
        f"redis://ada:{QUOTED}@cache/x",
        f"redis://ada:{QUOTED}@cache:port",
        f"redis://ada:{QUOTED}@cache?timeout=soon",
        f"redis://ada:{QUOTED}@cache?unknown=1",
        f"redis://ada:{QUOTED}@cache?timeout=1&timeout=2",
        f"redis://ada:{QUOTED}@cache?timeout",
        f"http://ada:{QUOTED}@cache",
        f"redis://ada:{SECRET}#@cache",
        f"redis://ada:{SECRET}/x@cache",
        f"redis://ada:{SECRET}?x@cache",
        f"redis://[ada:{SECRET}@cache",
        f"unix://ada:{QUOTED}@relative/path",
        f"redis://ada:{QUOTED}@cache?tls_verify=none",
        f"rediss://ada:{QUOTED}@cache?tls_verify=some",
        f"rediss://ada:{QUOTED}@cache?tls_key_file=x",
    ],
)
def test_a_wrong_url_does_not_show_its_password(
    redis: Redis, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    error = failed(redis, lambda: redis.connect(url=url))
    assert isinstance(error, ValueError)
    assert_hidden(error, caplog)


@COLOURS
@pytest.mark.parametrize(
    "wrong", [SECRET.encode(), [SECRET], (SECRET,), {"pw": SECRET}, f"\ud800{SECRET}"], ids=ascii
)
def test_a_password_that_is_none_is_not_shown(
    redis: Redis, caplog: pytest.LogCaptureFixture, wrong: Any
) -> None:
    for name in ("password", "url", "username"):
        error = failed(redis, partial(redis.connect, **{name: wrong}))
        assert isinstance(error, (TypeError, ValueError))
        assert_hidden(error, caplog)


@COLOURS
def test_a_file_for_tls_that_is_missing_does_not_show_the_password(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"rediss://ada:{QUOTED}@127.0.0.1:1?tls_ca_cert_file=/no/such/file"
    client = redis.connect(url=url)
    assert_hidden(failed(redis, lambda: client.call("GET", "k")), caplog)


# -- functions that fail -----------------------------------------------------------------------


@COLOURS
@pytest.mark.parametrize(
    "given",
    [SECRET.encode(), ("ada", SECRET, ""), ["ada", SECRET], (5, SECRET), {"pw": SECRET}],
    ids=ascii,
)
def test_what_a_function_should_not_have_returned_is_not_shown(
    redis: Redis, caplog: pytest.LogCaptureFixture, given: Any
) -> None:
    with Fake(script()) as fake:
        client = redis.connect(url=fake.url, credentials=lambda: given)
        error = failed(redis, lambda: client.call("GET", "k"))
        assert isinstance(error, TypeError)
        assert_hidden(error, caplog)


@COLOURS
def test_a_password_of_a_function_that_is_not_unicode_is_not_shown(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with Fake(script()) as fake:
        client = redis.connect(url=fake.url, credentials=lambda: f"\ud800{SECRET}")
        error = failed(redis, lambda: client.call("GET", "k"))
        assert isinstance(error, ValueError)
        assert_hidden(error, caplog)


@COLOURS
def test_a_function_that_raises_shows_no_earlier_password(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    given = [SECRET]

    with Fake(script(None)) as fake:
        client = redis.connect(url=fake.url, credentials=given.pop, retry=None)
        lost = failed(redis, lambda: client.call("GET", "k"))
        assert isinstance(lost, errors.OutcomeUnknownError)
        error = failed(redis, lambda: client.call("GET", "k"))
        assert isinstance(error, IndexError)
        assert_hidden(error, caplog)


# -- interrupts --------------------------------------------------------------------------------


class Interrupt(KeyboardInterrupt):
    """Ctrl-C, of which pytest is to know nothing."""


@pytest.mark.parametrize("redis", [SYNC], indirect=True)
@pytest.mark.parametrize("way", [WAYS["url"], WAYS["parameters"], WAYS["function"]])
@pytest.mark.parametrize("place", ["_send", "_receive", "exchange", "_settle"])
def test_an_interrupt_in_the_middle_of_a_handshake_shows_no_password(
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    way: Way,
    place: str,
) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupt

    monkeypatch.setattr(Connection, place, interrupt)
    with Fake(SERVERS["says too much"]) as fake:
        client = client_for(redis, f"{fake.url}/3", way)
        error = failed(redis, lambda: client.call("GET", "k"))
        assert isinstance(error, Interrupt)
        assert_hidden(error, caplog)


@pytest.mark.parametrize("redis", [SYNC], indirect=True)
def test_an_interrupt_after_a_failed_write_shows_no_password(
    redis: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised in the middle of another error, whose frames are the same."""

    def interrupt(*_: object) -> None:
        raise Interrupt

    monkeypatch.setattr(Connection, "_failed", interrupt)
    with Fake(SERVERS["hangs up"]) as fake:
        client = client_for(redis, fake.url, WAYS["parameters"])
        error = failed(redis, lambda: client.call("GET", "k"))
        assert isinstance(error, Interrupt)
        assert_hidden(error, caplog)


@pytest.mark.parametrize("redis", [AIO], indirect=True)
def test_an_interrupt_in_the_middle_of_a_handshake_in_asyncio_shows_none_either(
    redis: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupt

    async def ask() -> None:
        with suppress(Interrupt):
            await client.call("GET", "k")

    with Fake(SERVERS["hangs up"]) as fake:
        client = client_for(redis, fake.url, WAYS["parameters"], timeout=5)
        with monkeypatch.context() as patch:
            patch.setattr(AsyncConnection, "send", interrupt)
            error = failed(redis, ask)
            redis.do(asyncio.sleep(0))  # in which the task that waited is told as well
        assert isinstance(error, Interrupt)
        assert_hidden(error, caplog)


@pytest.mark.parametrize("redis", [AIO], indirect=True)
def test_a_cancelled_handshake_shows_no_password(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async def cancel() -> None:
        call = asyncio.ensure_future(client.call("GET", "k"))
        await asyncio.sleep(0.02)
        call.cancel()
        await call

    with Fake(SERVERS["silent"]) as fake:
        client = client_for(redis, fake.url, WAYS["parameters"], timeout=5)
        assert_hidden(failed(redis, cancel), caplog)
