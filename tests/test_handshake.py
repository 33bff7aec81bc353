"""The first words on a connection, what servers make of them, and what they say of themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import Redis
from counting import cost
from fake import Answer, Fake, polite, script
from rawredis_llm import Client, EmbeddedServer, Retry, __version__, errors
from rawredis_llm.protocol.handshake import ServerInfo

SET_INFO = ["CLIENT SETINFO LIB-NAME rawredis_llm", f"CLIENT SETINFO LIB-VER {__version__}"]
NO_HELLO = b"-ERR unknown command 'HELLO', with args beginning with: '3' \r\n"
NOISE = 0.05 + 0.5  # by which a call may outlast its deadline; most of it for a busy machine

# The options of a client, then what its HELLO ends in, what an old server is asked instead of
# HELLO, and what comes last in both.
FORMS = pytest.mark.parametrize(
    ("options", "hello", "instead", "last"),
    [
        ({}, "", ["PING"], []),
        ({"client_name": "me"}, " SETNAME me", ["PING", "CLIENT SETNAME me"], []),
        ({"password": "pw"}, " AUTH default pw", ["AUTH pw"], []),
        ({"username": "ada", "password": "pw"}, " AUTH ada pw", ["AUTH ada pw"], []),
        ({"db": 3}, "", ["PING"], ["SELECT 3"]),
        (
            {"username": "ada", "password": "pw", "client_name": "me", "db": 3},
            " AUTH ada pw SETNAME me",
            ["AUTH ada pw", "CLIENT SETNAME me"],
            ["SELECT 3"],
        ),
    ],
)


def to(redis: Redis, url: str, options: dict[str, Any]) -> Any:
    """Return a client with these options; the database belongs to the URL."""
    rest = {name: value for name, value in options.items() if name != "db"}
    return redis.connect(url=f"{url}/{options.get('db', 0)}", **rest)


def refusing(name: str, refusal: bytes) -> Answer:
    """Return an answer that refuses the commands of this name; others are welcome."""
    return lambda _, line: refusal if line.startswith(name) else polite(line)


def old_server(hello: bytes = NO_HELLO, password: str = "") -> Answer:
    """Return what a Redis 5 answers: it has neither HELLO nor CLIENT SETINFO."""
    known: set[int] = set()

    def answer(connection: int, line: str) -> bytes:
        name = line.split(" ", maxsplit=1)[0]
        if name == "HELLO":
            return hello
        if name == "AUTH":
            known.add(connection)
        elif password and connection not in known:
            return b"-NOAUTH Authentication required.\r\n"
        return b"-ERR Syntax error\r\n" if "SETINFO" in line else polite(line)

    return answer


def fields(client_info: bytes) -> dict[str, str]:
    """Return what CLIENT INFO says of a connection."""
    return dict(word.split("=", 1) for word in client_info.decode().split())


# -- what is said ------------------------------------------------------------------------------


@FORMS
def test_the_whole_handshake_is_one_write(
    redis: Redis, options: dict[str, Any], hello: str, instead: list[str], last: list[str]
) -> None:
    del instead
    with Fake(lambda _, line: polite(line)) as fake:
        redis.do(to(redis, fake.url, options).call("GET", "k"))
        expected = [f"HELLO {redis.protocol}{hello}", *SET_INFO, *last]
        assert fake.lines == [*expected, "GET k"]
        assert len(fake.writes) == 2
        assert fake.writes[0].count(b"*") == len(expected)


def test_the_server_knows_who_is_there(redis: Redis) -> None:
    client = redis.connect(url=f"{redis.url}?db=3", client_name="me")
    info = fields(redis.do(client.call("CLIENT", "INFO")))
    expected = {
        "name": "me",
        "db": "3",
        "resp": str(redis.protocol),
        "lib-name": "rawredis_llm",
        "lib-ver": __version__,
        "user": "default",
    }
    assert expected.items() <= info.items()
    listed = redis.do(redis.client.call("CLIENT", "LIST")).splitlines()
    assert info["id"] in {fields(line)["id"] for line in listed if b" name=me " in line}


@pytest.mark.parametrize("refusal", [b"-ERR Syntax error\r\n", b"-NOPERM no\r\n"])
def test_a_server_may_refuse_to_be_told_what_we_are(redis: Redis, refusal: bytes) -> None:
    with Fake(refusing("CLIENT SETINFO", refusal)) as fake:
        client = redis.connect(url=f"{fake.url}/2", client_name="me")
        assert redis.do(client.call("GET", "k")) == b"OK"
        assert (fake.accepted, fake.sent("HELLO"), fake.sent("SELECT")) == (1, 1, 1)


@pytest.mark.parametrize("password", [None, "pw"])
def test_a_server_that_quotes_the_name_with_hello_lacks_hello(
    redis: Redis, password: str | None
) -> None:
    quoting = NO_HELLO.replace(b"'3' ", b"'3' 'SETNAME' 'me' ")
    with Fake(refusing("HELLO", quoting)) as fake:
        client = redis.connect(url=fake.url, client_name="me", password=password)
        assert redis.do(client.call("GET", "k")) == b"OK"
        assert (fake.sent("HELLO"), fake.lines.count("CLIENT SETNAME me")) == (1, 1)


@pytest.mark.parametrize("password", [None, "pw"])
def test_a_server_that_takes_no_names_is_told_none(redis: Redis, password: str | None) -> None:
    refusal = b"-ERR Syntax error in HELLO option 'setname'\r\n"
    with Fake(lambda _, line: refusal if "SETNAME" in line else polite(line)) as fake:
        client = redis.connect(url=fake.url, client_name="me", password=password)
        assert redis.do(client.call("GET", "k")) == b"OK"
        who = " AUTH default pw" if password else ""
        assert fake.lines[len(SET_INFO) + 1] == f"HELLO {redis.protocol}{who}"
        assert (fake.accepted, fake.sent("HELLO")) == (1, 2)


# -- servers without HELLO ---------------------------------------------------------------------


@FORMS
def test_a_server_without_hello_is_spoken_to_as_before(
    redis: Redis, options: dict[str, Any], hello: str, instead: list[str], last: list[str]
) -> None:
    with Fake(old_server(password=options.get("password", ""))) as fake:
        assert redis.do(to(redis, fake.url, options).call("GET", "k")) == b"OK"
        first = [f"HELLO {redis.protocol}{hello}", *SET_INFO, *last]
        assert fake.lines == [*first, *instead, *SET_INFO, *last, "GET k"]
        assert (fake.accepted, len(fake.writes)) == (1, 3)


@pytest.mark.parametrize(
    "refusal",
    [
        b"-ERR unknown command `HELLO`, with args beginning with: `3`, \r\n",
        b"-NOPROTO unsupported protocol version\r\n",
        b"-NOPERM this user has no permissions to run the 'hello' command\r\n",
    ],
)
def test_a_server_may_lack_hello_in_several_ways(redis: Redis, refusal: bytes) -> None:
    with Fake(old_server(refusal, "pw")) as fake:
        client = redis.connect(url=fake.url, password="pw")
        assert redis.do(client.call("GET", "k")) == b"OK"
        assert (fake.accepted, fake.sent("AUTH")) == (1, 1)


@pytest.mark.parametrize(
    ("name", "refusal", "kind"),
    [
        ("AUTH", b"-ERR invalid password\r\n", errors.AuthenticationError),
        ("AUTH", b"-WRONGPASS no\r\n", errors.AuthenticationError),
        ("SELECT", b"-ERR DB index is out of range\r\n", errors.ReplyError),
    ],
)
def test_a_refusal_of_an_old_server_is_raised(
    redis: Redis, name: str, refusal: bytes, kind: type[Exception]
) -> None:
    def answer(_: int, line: str) -> bytes:
        if line.startswith("HELLO"):
            return NO_HELLO
        return refusal if line.startswith(name) else polite(line)

    with Fake(answer) as fake:
        client = redis.connect(url=f"{fake.url}/3", password="pw")
        with pytest.raises(kind):
            redis.do(client.call("GET", "k"))
        assert (fake.accepted, fake.sent("GET")) == (1, 0)


@pytest.mark.parametrize("refused", ["HELLO", "CLIENT SETINFO"])
def test_a_handshake_that_is_cut_after_a_refusal_that_does_no_harm_is_tried_again(
    redis: Redis, refused: str
) -> None:
    def answer(connection: int, line: str) -> bytes | None:
        if line.startswith(refused):
            return NO_HELLO
        # The fallback, or what comes behind the refusal.
        cut = line.startswith("PING" if refused == "HELLO" else "SELECT") and connection == 1
        return None if cut else polite(line)

    with Fake(answer) as fake:
        assert redis.do(redis.connect(url=f"{fake.url}/3").call("GET", "k")) == b"OK"
        assert fake.accepted == 2


@pytest.mark.parametrize("refused", ["HELLO", "CLIENT SETINFO"])
def test_a_silence_after_a_refusal_that_does_no_harm_is_a_time_out(
    redis: Redis, refused: str
) -> None:
    silent = "PING" if refused == "HELLO" else "SELECT"

    def answer(_: int, line: str) -> bytes:
        if line.startswith(refused):
            return NO_HELLO
        return b"" if line.startswith(silent) else polite(line)

    with Fake(answer) as fake:
        client = redis.connect(url=f"{fake.url}/3", connect_timeout=0.05, retry=None)
        with pytest.raises(errors.ConnectTimeoutError):
            redis.do(client.call("GET", "k"))


def test_a_hello_that_fails_otherwise_is_an_error(redis: Redis) -> None:
    with Fake(refusing("HELLO", b"-ERR Syntax error in HELLO option\r\n")) as fake:
        with pytest.raises(errors.ReplyError, match="Syntax error in HELLO"):
            redis.do(redis.connect(url=fake.url).call("GET", "k"))
        assert fake.accepted == 1


@pytest.fixture(scope="module")
def hello_less() -> Iterator[EmbeddedServer]:
    """A real server with HELLO taken away, and a password."""
    extra = ["--rename-command", "HELLO", "", "--requirepass", "pw"]
    with EmbeddedServer(search=False, extra=extra) as server:
        yield server


@pytest.mark.parametrize("user", [{}, {"username": "default"}])
def test_a_real_server_without_hello_speaks_resp2(
    redis: Redis, hello_less: EmbeddedServer, user: dict[str, str]
) -> None:
    url = f"{hello_less.url}?db=4"
    client = redis.connect(url=url, password="pw", client_name="me", **user)
    info = fields(redis.do(client.call("CLIENT", "INFO")))
    expected = {"name": "me", "db": "4", "resp": "2", "lib-name": "rawredis_llm"}
    assert expected.items() <= info.items()
    assert redis.do(client.server_info).protocol == 2
    with pytest.raises(errors.AuthenticationError):
        redis.do(redis.connect(url=url, password="wrong").call("PING"))
    with pytest.raises(errors.AuthenticationError):
        redis.do(redis.connect(url=url).call("PING"))


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "refusal", "kind"),
    [
        ("HELLO", b"-WRONGPASS invalid username-password pair\r\n", errors.AuthenticationError),
        ("HELLO", b"-NOAUTH HELLO must be called with AUTH\r\n", errors.AuthenticationError),
        ("", b"-NOPERM User ada has no permissions\r\n", errors.NoPermissionError),
        ("SELECT", b"-NOPERM User ada has no permissions\r\n", errors.NoPermissionError),
        ("SELECT", b"-ERR DB index is out of range\r\n", errors.ReplyError),
    ],
)
def test_a_refusal_is_raised_and_not_tried_again(
    redis: Redis, name: str, refusal: bytes, kind: type[Exception]
) -> None:
    with Fake(refusing(name, refusal)) as fake:
        client = redis.connect(url=f"{fake.url}/3", username="ada", password="pw")
        with pytest.raises(kind) as caught:
            redis.do(client.call("GET", "k"))
        for batch in (client.pipeline, client.transaction):
            with pytest.raises(kind):
                redis.do(batch([("GET", "k")]))
        assert (fake.accepted, fake.sent("GET")) == (3, 0)
        assert type(caught.value) is kind
        assert str(fake.port) in str(caught.value)


@pytest.mark.parametrize(
    ("db", "options", "kind"),
    [
        (99, {}, errors.ReplyError),
        (0, {"username": "nobody", "password": "pw"}, errors.AuthenticationError),
        (0, {"username": "bob", "password": "wrong"}, errors.AuthenticationError),
        (1, {"username": "bob", "password": "pw"}, errors.NoPermissionError),  # by SELECT
    ],
)
def test_a_real_server_refuses_by_the_same_errors(
    redis: Redis, db: int, options: dict[str, Any], kind: type[Exception]
) -> None:
    redis.do(redis.client.call("ACL", "SETUSER", "bob", "on", ">pw", "~*", "+get", "+hello"))
    client = redis.connect(url=f"{redis.url}?db={db}", **options)
    with pytest.raises(kind) as caught:
        redis.do(client.call("GET", "k"))
    assert type(caught.value) is kind
    assert client.connections.created == 1
    redis.do(redis.client.call("ACL", "DELUSER", "bob"))


FULL = b"-ERR max number of clients reached\r\n"


def test_a_full_server_is_waited_for_until_the_deadline(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By chance a try might begin so late that there is no time for its answer.
    monkeypatch.setattr("random.uniform", lambda _, most: most)
    with Fake(script(), greeting=FULL) as fake:
        retry = Retry(attempts=2, base=0.35, cap=0.35)
        client = redis.connect(url=fake.url, timeout=1.0, retry=retry)
        start = time.monotonic()
        with pytest.raises(errors.MaxClientsError):
            redis.do(client.call("INCR", "k"))
        assert 0.3 < time.monotonic() - start < 1.0 + NOISE
        assert fake.accepted > 1


def test_a_full_server_that_has_read_our_words_is_no_different(redis: Redis) -> None:
    """It hangs up after the handshake came, as a server does that is a little slower."""
    full = iter([True] * 6)  # more often than a failed connection is tried again

    def answer(_: int, line: str) -> bytes | None:
        if line.startswith("HELLO") and next(full, False):
            return FULL
        return None if line.startswith("CLIENT") and next(hang_up, False) else polite(line)

    hang_up = iter([True] * 6)
    with Fake(answer) as fake:
        client = redis.connect(url=fake.url, retry=Retry(cap=0.02))
        assert redis.do(client.call("INCR", "k")) == b"OK"
        assert (fake.accepted, fake.sent("INCR")) == (7, 1)


def test_protected_mode_says_what_to_do(redis: Redis) -> None:
    text = b"-DENIED Redis is running in protected mode because no password is set.\r\n"
    with Fake(script(), greeting=text) as fake:
        with pytest.raises(errors.ReplyError, match="running in protected mode") as caught:
            redis.do(redis.connect(url=fake.url).call("GET", "k"))
        assert caught.value.code == "DENIED"
        assert fake.accepted == 1


@pytest.fixture(scope="module")
def narrow() -> Iterator[EmbeddedServer]:
    """A real server that takes few clients, all of which are taken."""
    with EmbeddedServer(search=False, port=0) as server, Client(server.url) as client:
        client.call("CONFIG", "SET", "maxclients", 1)
        yield server


def test_a_real_server_that_is_full_says_so(redis: Redis, narrow: EmbeddedServer) -> None:
    for _ in range(20):  # whether it hangs up before we speak, or after, is a matter of luck
        client = redis.connect(url=narrow.url, retry=None)
        with pytest.raises(errors.MaxClientsError):
            redis.do(client.call("PING"))


# -- what a server says of itself --------------------------------------------------------------


def test_a_server_with_search_says_so(redis: Redis) -> None:
    version = redis.do(redis.client.call("INFO", "server")).decode().split("redis_version:")[1]
    info = redis.do(redis.client.server_info)
    assert info._replace(search=0) == ServerInfo(
        name="redis",
        version=version.split("\r\n")[0],
        protocol=redis.protocol,
        mode="standalone",
        search=0,
        coordinator=info.coordinator,
        hybrid=info.hybrid,
        json=info.json,
    )
    assert info.search is not None
    assert info.search > 20000
    entry = redis.do(redis.client.call("COMMAND", "INFO", "FT.SEARCH"))[0]
    assert info.coordinator == (entry[3] == 0)
    assert info.hybrid == (redis.do(redis.client.call("COMMAND", "INFO", "FT.HYBRID")) != [None])
    assert info.json == (redis.do(redis.client.call("COMMAND", "INFO", "JSON.SET")) != [None])


def test_a_server_without_search_says_so(redis: Redis, plain_server: EmbeddedServer) -> None:
    info = redis.do(redis.connect(url=plain_server.url).server_info)
    assert (info.search, info.coordinator, info.hybrid) == (None, False, False)
    assert (info.name, info.protocol, info.mode) == ("redis", redis.protocol, "standalone")


def test_a_server_is_asked_once_and_in_one_round_trip(redis: Redis) -> None:
    first = cost(redis, lambda: redis.client.server_info)
    assert (first.round_trips, first.connections) == (1, 0)
    assert first.commands == {"HELLO": 1, "COMMAND|INFO": 3}
    second = cost(redis, lambda: redis.client.server_info)
    assert (second.round_trips, second.commands) == (0, {})
    assert second.result == first.result


def bulk(*lines: str) -> bytes:
    """Return a text as the server sends it."""
    text = "\r\n".join(lines).encode()
    return b"$%d\r\n%s\r\n" % (len(text), text)


NONE, ENTRY = b"*1\r\n*-1\r\n", b"*1\r\n*6\r\n$9\r\nft.search\r\n:-1\r\n*0\r\n:%d\r\n:1\r\n:1\r\n"
MODULES = b"*4\r\n+proto\r\n:2\r\n+modules\r\n*1\r\n*4\r\n+name\r\n+search\r\n+ver\r\n:80400\r\n"


@pytest.mark.parametrize(
    ("hello", "told", "search", "hybrid", "expected"),
    [
        (
            NO_HELLO,
            ("redis_version:5.0.7", "redis_mode:standalone"),
            NONE,
            NONE,
            ServerInfo("redis", "5.0.7", 2, "standalone", None, coordinator=False, hybrid=False),
        ),
        (
            NO_HELLO,  # and so nobody says which version the search engine has
            ("redis_version:5.0.7", "redis_mode:standalone"),
            ENTRY % 1,
            NONE,
            ServerInfo("redis", "5.0.7", 2, "standalone", 0, coordinator=False, hybrid=False),
        ),
        (
            MODULES,
            ("redis_version:8.4.0", "redis_mode:cluster"),
            ENTRY % 0,
            ENTRY % 0,
            ServerInfo("redis", "8.4.0", 2, "cluster", 80400, coordinator=True, hybrid=True),
        ),
        (
            b"%0\r\n",
            ("redis_version:7.2.4", "server_mode:standalone", "valkey_version:8.1.0"),
            NONE,
            NONE,
            ServerInfo("valkey", "8.1.0", 2, "standalone", None, coordinator=False, hybrid=False),
        ),
    ],
)
def test_servers_are_told_apart(
    redis: Redis,
    hello: bytes,
    told: tuple[str, ...],
    search: bytes,
    hybrid: bytes,
    expected: ServerInfo,
) -> None:
    answers = {
        "HELLO": hello,
        "INFO server": bulk("# Server", *told),
        "COMMAND INFO FT.SEARCH": search,
        "COMMAND INFO FT.HYBRID": hybrid,
        "COMMAND INFO JSON.SET": NONE,
    }
    with Fake(lambda _, line: answers.get(line, polite(line))) as fake:
        if hello == NO_HELLO:
            answers[f"HELLO {redis.protocol}"] = NO_HELLO
        client = redis.connect(url=fake.url)
        assert redis.do(client.server_info) == expected
        commands = len(fake.lines)
        assert redis.do(client.server_info) == expected
        assert len(fake.lines) == commands


REFUSALS = [b"-ERR unknown command 'INFO'\r\n", b"-NOPERM no\r\n", b"-ERR not allowed\r\n"]
SAYS = b"*10\r\n+server\r\n+%s\r\n+version\r\n+8.4.0\r\n+proto\r\n:2\r\n+mode\r\n+standalone\r\n"
LISTS = b"+modules\r\n*%d\r\n" + b"*4\r\n+name\r\n+%s\r\n+ver\r\n:%d\r\n" * 2


def told(name: str, search: int, abilities: str) -> ServerInfo:
    """Return what is known of a server that may have said no more than its name."""
    can = (one in abilities.split() for one in ("coordinator", "hybrid", "json"))
    version, mode = ("8.4.0", "standalone") if name else ("", "")
    return ServerInfo(name, version, 2, mode, search, *can)


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize(
    ("hello", "expected"),
    [
        (
            SAYS % b"redis" + LISTS % (2, b"search", 80400, b"ReJSON", 80400),
            told("redis", 80400, "coordinator hybrid json"),
        ),
        (
            SAYS % b"redis" + LISTS % (2, b"search", 21005, b"bf", 20803),
            told("redis", 21005, ""),
        ),
        (  # an engine of another kind, with versions of its own
            SAYS % b"valkey" + LISTS % (2, b"search", 131072, b"json", 65536),
            told("valkey", 131072, "json"),
        ),
        (  # of what it can do nothing is said: then the server itself will
            SAYS % b"redis" + b"+modules\r\n*0\r\n",
            told("redis", 0, "json"),
        ),
        (None, told("", 0, "json")),
    ],
)
def test_where_little_is_told_the_rest_is_taken_from_the_greeting(
    redis: Redis, refusal: bytes, hello: bytes | None, expected: ServerInfo
) -> None:
    def answer(_: int, line: str) -> bytes:
        if line == "HELLO":
            return hello or refusal
        return refusal if line.startswith(("INFO", "COMMAND", "MODULE")) else polite(line)

    with Fake(answer) as fake:
        assert redis.do(redis.connect(url=fake.url).server_info) == expected


def test_a_server_that_cannot_tell_yet_is_an_error_and_is_asked_again(redis: Redis) -> None:
    may_tell = iter([False])

    def answer(_: int, line: str) -> bytes:
        if line == "INFO server":
            told = bulk("redis_version:7.2.4", "redis_mode:standalone")
            return told if next(may_tell, True) else b"-LOADING not yet\r\n"
        return NONE if line.startswith("COMMAND") else polite(line)

    with Fake(answer) as fake:
        client = redis.connect(url=fake.url, retry=None)
        with pytest.raises(errors.LoadingError):
            redis.do(client.server_info)
        assert redis.do(client.server_info).version == "7.2.4"
