"""Credentials that somebody else keeps: asked for each connection, and exchanged while we run."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count
from typing import Any

import pytest

from conftest import Redis
from fake import Fake, polite, script
from rawredis_llm import AsyncClient, Client, EmbeddedServer, errors

NOISE = 0.05 + 0.5  # by which a call may outlast its deadline; most of it for a busy machine


class Vault:
    """Keeps a password, and counts how often it was asked."""

    def __init__(self, given: Any) -> None:
        self.given = given
        self.asked = 0

    def __call__(self) -> Any:
        self.asked += 1
        return self.given

    async def slowly(self) -> Any:
        """Return it as a service in the network would."""
        await asyncio.sleep(0.001)
        return self()

    def later(self) -> Any:
        """Return what has to be awaited."""
        return self.slowly()


def forms(redis: Redis, vault: Vault) -> list[Callable[[], Any]]:
    """Return the functions that a client of this kind may be given."""
    # The last: what is no coroutine function by its looks, and returns a coroutine.
    return [vault, vault.slowly, partial(vault.later)] if redis.kind == "aio" else [vault]


@pytest.fixture(scope="module")
def guarded() -> Iterator[EmbeddedServer]:
    """A real server that wants a password: `root`."""
    with EmbeddedServer(search=False, extra=["--requirepass", "root"]) as server:
        yield server


@pytest.fixture
def admin(guarded: EmbeddedServer) -> Iterator[Client]:
    """One who may change passwords; ada's is `one`."""
    with Client(guarded.url, password="root") as admin:
        admin.call("FLUSHALL")
        set_password(admin, "one")
        yield admin
        admin.call("ACL", "DELUSER", "ada")
        admin.call("CONFIG", "SET", "requirepass", "root")


def set_password(admin: Client, password: str) -> None:
    """Make this ada's only password; connections that she has stay as they are."""
    admin.call("ACL", "SETUSER", "ada", "reset", "on", f">{password}", "~*", "&*", "+@all")


def connections_of(admin: Client, user: str) -> int:
    """Return how many connections a user has."""
    return sum(
        f" user={user} ".encode() in line for line in admin.call("CLIENT", "LIST").splitlines()
    )


def reauthenticate(redis: Redis, client: Any) -> None:
    """Exchange the credentials, inside of an event loop where there is one."""

    async def inside() -> None:
        await client.reauthenticate()

    if redis.kind == "aio":
        redis.do(inside())
    else:
        client.reauthenticate()


# -- what a function may return ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("pw", "default pw"),
        (("ada", "pw"), "ada pw"),
        ((None, "pw"), "default pw"),
        ("", "default "),
    ],
)
def test_a_function_returns_a_password_or_a_user_and_one(
    redis: Redis, given: Any, words: str
) -> None:
    for function in forms(redis, Vault(given)):
        with Fake(lambda _, line: polite(line)) as fake:
            client = redis.connect(url=fake.url, credentials=function)
            redis.do(client.call("GET", "k"))
            assert fake.lines[0] == f"HELLO {redis.protocol} AUTH {words}"


@pytest.mark.parametrize("given", [None, b"pw", 5, ("ada", b"pw"), ("a", "b", "c"), ["ada", "pw"]])
def test_whatever_else_it_returns_is_a_type_error_and_nothing_is_sent(
    redis: Redis, given: Any
) -> None:
    vault = Vault(given)
    with Fake(lambda _, line: polite(line)) as fake:
        client = redis.connect(url=fake.url, credentials=vault)
        with pytest.raises(TypeError, match=r"^credentials must return"):
            redis.do(client.call("GET", "k"))
        assert (vault.asked, fake.accepted) == (1, 0)
        vault.given = "pw"
        assert redis.do(client.call("GET", "k")) == b"OK"


def test_a_function_is_asked_for_each_new_connection(
    redis: Redis, guarded: EmbeddedServer, admin: Client
) -> None:
    for function in forms(redis, vault := Vault(("ada", "one"))):
        vault.asked = 0
        client = redis.connect(url=guarded.url, credentials=function)
        for connection in (1, 2, 3):
            redis.do(client.call("GET", "k"))  # a read is asked again if the connection was lost
            assert redis.do(client.call("ACL", "WHOAMI")) == b"ada"
            assert vault.asked == client.connections.created == connection
            admin.call("CLIENT", "KILL", "USER", "ada")


def test_an_asynchronous_function_is_not_for_a_sync_client() -> None:
    vault = Vault("pw")
    loop = asyncio.new_event_loop()
    functions: list[Callable[[], Any]] = [vault.slowly, vault.later, loop.create_future]
    with Fake(script()) as fake, closing(loop):
        for function in functions:
            with Client(fake.url, credentials=function) as client:
                with pytest.raises(TypeError, match="use it with an AsyncClient"):
                    client.call("GET", "k")
                assert client.connections.open == 0
        assert (vault.asked, fake.accepted) == (0, 0)


# -- functions that fail -----------------------------------------------------------------------


class VaultError(Exception):
    """The caller's own."""


@pytest.mark.parametrize(
    "error",
    [VaultError("sealed"), LookupError("no such secret"), OSError(5, "no"), ValueError("bad")],
    ids=repr,
)
def test_its_own_error_reaches_the_caller(redis: Redis, error: Exception) -> None:
    asked = 0

    def fail() -> Any:
        nonlocal asked
        asked += 1
        raise error

    async def fail_slowly() -> Any:
        fail()

    with Fake(script(b"+OK\r\n")) as fake:
        functions = [fail, fail_slowly] if redis.kind == "aio" else [fail]
        for tried, function in enumerate(functions, 1):
            client = redis.connect(url=fake.url, credentials=function)
            with pytest.raises(type(error)) as caught:
                redis.do(client.call("GET", "k"))
            assert caught.value is error
            assert (asked, fake.accepted) == (tried, 0)


def time_out(error: TimeoutError) -> Callable[[], Any]:
    """Return a function that fails by an error which asyncio raises, too, when time is up."""

    def fail() -> Any:
        raise error

    return fail


def test_a_time_out_of_its_own_is_not_ours() -> None:
    error = TimeoutError("the vault is slow")
    with Fake(script(b"+OK\r\n")) as fake, Client(fake.url, credentials=time_out(error)) as client:
        with pytest.raises(TimeoutError) as caught:
            client.call("GET", "k")
        assert caught.value is error
        assert fake.accepted == 0


def test_a_time_out_of_its_own_is_not_ours_in_asyncio_either() -> None:
    error = TimeoutError("the vault is slow")

    async def ask() -> None:
        async with AsyncClient(credentials=time_out(error)) as client:
            await client.call("GET", "k")

    with pytest.raises(TimeoutError, match="the vault is slow") as caught:
        asyncio.run(ask())
    assert not isinstance(caught.value, errors.RedisError)


def test_credentials_may_be_exchanged_by_the_first_coroutine_of_a_loop(
    guarded: EmbeddedServer,
) -> None:
    client = AsyncClient(guarded.url, password="root")
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(client.call("PING"))
        loop.run_until_complete(client.reauthenticate())
    finally:
        loop.run_until_complete(client.close())
        loop.close()


@pytest.mark.parametrize("redis", ["aio-2", "aio-3"], indirect=True)
def test_tasks_that_wait_together_all_get_its_error(redis: Redis) -> None:
    def fail() -> Any:
        raise VaultError

    async def together() -> list[Any]:
        client = redis.connect(credentials=fail)
        calls = [client.call("GET", "k") for _ in range(5)]
        return await asyncio.gather(*calls, return_exceptions=True)

    assert [type(outcome) for outcome in redis.do(together())] == [VaultError] * 5


# Nobody can cut a function in the thread that calls it, as a sync client does.
@pytest.mark.parametrize("redis", ["aio-2", "aio-3"], indirect=True)
@pytest.mark.parametrize(
    ("how", "limit"), [("a coroutine", "timeout"), ("a plain function", "connect_timeout")]
)
def test_a_slow_function_is_cut_at_the_deadline(redis: Redis, how: str, limit: str) -> None:
    release = threading.Event()

    async def sleep() -> str:
        await asyncio.sleep(30)
        return "pw"

    def block() -> str:
        release.wait(30)
        return "pw"

    with Fake(script(b"+OK\r\n")) as fake:
        options = {
            limit: 0.1,
            "retry": None,
            "credentials": {"a coroutine": sleep}.get(how, block),
        }
        start = time.monotonic()
        with pytest.raises(errors.ConnectTimeoutError):
            redis.do(redis.connect(url=fake.url, **options).call("GET", "k"))
        assert time.monotonic() - start < 0.1 + NOISE
        assert fake.accepted == 0
    release.set()


# -- exchanged while we run --------------------------------------------------------------------


def test_new_credentials_are_taken_without_a_failing_call(
    redis: Redis, guarded: EmbeddedServer, admin: Client
) -> None:
    for function in forms(redis, vault := Vault(("ada", "one"))):
        set_password(admin, "one")
        vault.given = ("ada", "one")
        client = redis.connect(url=guarded.url, credentials=function)
        first = redis.do(client.call("CLIENT", "ID"))
        set_password(admin, "two")
        assert redis.do(client.call("CLIENT", "ID")) == first  # it is known already
        vault.given = ("ada", "two")
        reauthenticate(redis, client)
        assert redis.do(client.call("CLIENT", "ID")) > first
        assert redis.do(client.pipeline([("SET", "k", "v"), ("GET", "k")])) == [b"OK", b"v"]
        figures = client.connections
        assert (figures.open, figures.created, figures.in_use) == (1, 2, 0)
        assert figures.dropped == {"reauthenticated": 1}
        redis.do(client.close())


def test_a_password_of_the_server_itself_may_change(
    redis: Redis, guarded: EmbeddedServer, admin: Client
) -> None:
    vault = Vault("root")
    client = redis.connect(url=guarded.url, credentials=vault)
    for turn in range(3):
        vault.given = f"root{turn}"
        admin.call("CONFIG", "SET", "requirepass", vault.given)
        reauthenticate(redis, client)
        assert redis.do(client.call("ACL", "WHOAMI")) == b"default"
    assert vault.asked == client.connections.created


def test_a_password_that_is_fixed_may_be_given_up_and_taken_again(
    redis: Redis, guarded: EmbeddedServer, admin: Client
) -> None:
    client = redis.connect(url=guarded.url, username="ada", password="one")
    first = redis.do(client.call("CLIENT", "ID"))
    reauthenticate(redis, client)
    assert redis.do(client.call("CLIENT", "ID")) > first
    assert connections_of(admin, "ada") == 1


def test_wrong_credentials_are_an_error_until_they_are_right(
    redis: Redis, guarded: EmbeddedServer, admin: Client
) -> None:
    vault = Vault(("ada", "wrong"))
    client = redis.connect(url=guarded.url, credentials=vault)
    with pytest.raises(errors.AuthenticationError):
        redis.do(client.call("GET", "k"))
    vault.given = ("ada", "one")
    assert redis.do(client.call("ACL", "WHOAMI")) == b"ada"
    vault.given = ("ada", "wrong")
    with pytest.raises(errors.AuthenticationError):
        reauthenticate(redis, client)
    with pytest.raises(errors.AuthenticationError):
        redis.do(client.call("GET", "k"))
    assert connections_of(admin, "ada") == client.connections.open == 0
    vault.given = ("ada", "one")
    reauthenticate(redis, client)
    assert redis.do(client.call("ACL", "WHOAMI")) == b"ada"
    assert vault.asked == client.connections.created == 5  # each of them once


def test_a_call_under_way_ends_on_the_connection_that_it_has(
    redis: Redis, guarded: EmbeddedServer, admin: Client
) -> None:
    vault = Vault(("ada", "one"))
    client = redis.connect(url=guarded.url, credentials=vault)

    def push_when_it_waits() -> None:
        deadline = time.monotonic() + 5
        while b"blocked_clients:0" in admin.call("INFO", "clients"):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        go.set()
        assert replaced.wait(5)
        admin.call("RPUSH", "list", "x")

    async def asyncio_calls() -> Any:
        waiting = asyncio.ensure_future(client.call("BLPOP", "list", 0, timeout=5))
        assert await asyncio.to_thread(go.wait, 5)
        await client.reauthenticate()
        replaced.set()
        return await waiting

    def threads_call() -> Any:
        found: list[Any] = []
        waiting = threading.Thread(
            target=lambda: found.append(client.call("BLPOP", "list", 0, timeout=5))
        )
        waiting.start()
        assert go.wait(5)
        client.reauthenticate()
        replaced.set()
        waiting.join()
        return found[0]

    go, replaced = threading.Event(), threading.Event()
    pushing = threading.Thread(target=push_when_it_waits)
    pushing.start()
    reply = redis.do(asyncio_calls()) if redis.kind == "aio" else threads_call()
    pushing.join()
    assert reply == [b"list", b"x"]
    assert redis.do(client.call("ACL", "WHOAMI")) == b"ada"
    assert client.connections.dropped == {"reauthenticated": 1}


def test_credentials_that_change_all_the_time_fail_no_call(
    redis: Redis, guarded: EmbeddedServer, admin: Client
) -> None:
    """A vault hands out a new password each time; the server knows the last two."""
    numbers = count()
    users: list[str] = []

    def fresh() -> tuple[str, str]:
        users.append(f"pw{next(numbers)}")
        set_password(admin, users[-1])
        return "ada", users[-1]

    client = redis.connect(url=guarded.url, credentials=fresh)
    for i in range(20):
        assert redis.do(client.call("INCR", "n")) == i + 1
        if i % 2:
            reauthenticate(redis, client)
    assert len(users) == client.connections.created == 11
    assert client.connections.dropped == {"reauthenticated": 10}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_credentials_may_be_exchanged_after_a_loop_was_closed(guarded: EmbeddedServer) -> None:
    client = AsyncClient(guarded.url, password="root")

    async def use() -> bytes:
        reply: bytes = await client.call("PING")
        return reply

    async def renew() -> bytes:
        await client.reauthenticate()
        reply = await use()
        await client.close()
        return reply

    asyncio.run(use())
    assert asyncio.run(renew()) == b"PONG"
    gc.collect()  # of the first loop's transport, which would complain later


def test_who_connects_meanwhile_does_so_again(guarded: EmbeddedServer) -> None:
    passwords = ["root", "wrong"]

    async def slowly() -> str:
        password = passwords[0]
        await asyncio.sleep(0.1)
        return password

    async def main() -> None:
        async with AsyncClient(guarded.url, credentials=slowly, retry=None) as client:
            first = asyncio.ensure_future(client.call("PING"))
            await asyncio.sleep(0.02)
            passwords.pop(0)
            with pytest.raises(errors.AuthenticationError):
                await client.reauthenticate()
            await asyncio.gather(first, return_exceptions=True)
            assert client.connections.open == 0

    asyncio.run(main())
