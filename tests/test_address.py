"""URLs: what each part means, what is refused and how, and that no password is ever shown."""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rawredis_llm import AsyncClient, Client
from rawredis_llm.protocol.address import Address, Secret, parse_url
from rawredis_llm.protocol.settings import Settings, make_settings

SECRET = "hunter2"
HIDDEN = Secret(SECRET)
SOCKET = Address(host="", port=0, path="/run/redis.sock")

URLS: list[tuple[str, Address]] = [
    ("redis://", Address()),
    ("redis://cache.example", Address("cache.example")),
    ("REDIS://Cache.Example", Address("cache.example")),
    ("redis://cache:7000/", Address("cache", 7000)),
    ("redis://cache:0", Address("cache", 0)),
    ("redis://:7000/2", Address(port=7000, db=2)),
    ("redis:///3", Address(db=3)),
    ("redis://cache?db=4", Address("cache", db=4)),
    ("redis://[::1]:7000/1", Address("::1", 7000, db=1)),
    ("redis://127.0.0.1", Address("127.0.0.1")),
    ("rediss://cache/5", Address("cache", tls=True, db=5)),
    ("redis://:hunter2@cache", Address("cache", password=HIDDEN)),
    ("redis://ada:hunter2@cache", Address("cache", username="ada", password=HIDDEN)),
    ("redis://ada@cache", Address("cache", username="ada")),
    ("redis://ada:@cache", Address("cache", username="ada", password=Secret(""))),
    ("redis://a%3Ab:p%40%2F%25@cache", Address("cache", username="a:b", password=Secret("p@/%"))),
    ("redis://:%E2%82%AC+@cache", Address("cache", password=Secret("€+"))),
    ("unix:///run/redis.sock", SOCKET),
    ("unix:///run/a%20b%3F?db=6", Address(host="", port=0, path="/run/a b?", db=6)),
    (
        "unix://ada:hunter2@/s",
        Address(host="", port=0, path="/s", username="ada", password=HIDDEN),
    ),
    (
        "redis://cache/1?timeout=2.5&client_name=a%2Bb",
        Address("cache", db=1, options=(("timeout", "2.5"), ("client_name", "a+b"))),
    ),
    (
        "unix:///s?max_connections=3&db=2&protocol=2&connect_timeout=1",
        Address(
            host="",
            port=0,
            path="/s",
            db=2,
            options=(("max_connections", "3"), ("protocol", "2"), ("connect_timeout", "1")),
        ),
    ),
]


@pytest.mark.parametrize(("url", "address"), URLS)
def test_every_part_of_a_url(url: str, address: Address) -> None:
    assert parse_url(url) == address


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://", "redis://localhost:6379/0"),
        ("rediss://ada:hunter2@cache:7000/2?timeout=1", "rediss://cache:7000/2"),
        ("redis://[::1]", "redis://[::1]:6379/0"),
        ("unix://ada:hunter2@/run/redis.sock", "unix:///run/redis.sock"),
        ("unix:///run/redis.sock?db=3", "unix:///run/redis.sock?db=3"),
    ],
)
def test_the_text_is_the_url_without_credentials_and_options(url: str, text: str) -> None:
    assert str(parse_url(url)) == text
    assert parse_url(text) == parse_url(str(parse_url(text)))


CREDENTIAL = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
HOST = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True)


@settings(deadline=None)
@given(CREDENTIAL, CREDENTIAL, HOST, st.integers(1, 65535), st.integers(0, 99))
def test_what_was_quoted_comes_back(
    username: str, password: str, host: str, port: int, db: int
) -> None:
    user = f"{quote(username, safe='')}:{quote(password, safe='')}"
    expected = Address(host, port, db=db, username=username, password=Secret(password))
    assert parse_url(f"redis://{user}@{host}:{port}/{db}") == expected
    path = "/" + quote(password)
    assert parse_url(f"unix://{user}@{path}").path == f"/{password}"


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("", "scheme must be redis, rediss or unix, not ''"),
        ("http://cache", "scheme must be redis, rediss or unix, not 'http'"),
        ("cache:6379", "scheme"),
        ("redis://cache?speed=9", "unknown option 'speed'"),
        ("redis://cache?password=hunter2", "unknown option 'password'"),
        ("redis://cache?timeout=1&timeout=1", "option 'timeout' is given twice"),
        ("redis://cache?timeout", "options are written"),
        ("redis://cache/x", "database must be a number"),
        ("redis://cache/-1", "database must be a number"),
        ("redis://cache/²", "database must be a number"),
        ("redis://cache/1/2", "database must be a number"),
        ("redis://cache?db=x", "database must be a number"),
        ("redis://cache?db=", "database must be a number"),
        ("unix:///s?db=1.5", "database must be a number"),
        ("redis://cache/1?db=1", "database is given both"),
        ("redis://cache:port", "host or port is malformed"),
        ("redis://cache:65536", "host or port is malformed"),
        ("redis://cache:-1", "host or port is malformed"),
        ("redis://[::1", "host or port is malformed"),
        ("redis://cache/0#x", "a '#' must be written %23"),
        ("redis://ada:hunter2/x@cache", "host or port is malformed"),
        ("redis://ada:hunter2?x@cache", "host or port is malformed"),
        ("unix://", "a unix socket is written"),
        ("unix://run/redis.sock", "a unix socket is written"),
    ],
)
def test_a_wrong_url_is_a_value_error_that_names_the_part(url: str, part: str) -> None:
    with pytest.raises(ValueError, match=r"^url: ") as caught:
        parse_url(url)
    assert part in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("url", [b"redis://cache", None, 6379])
def test_a_url_is_text(url: Any) -> None:
    with pytest.raises(TypeError, match=r"^url must be a str, not "):
        parse_url(url)


def test_a_secret_is_equal_by_its_text_and_shows_none() -> None:
    assert Secret(SECRET) == HIDDEN
    assert Secret("other") != HIDDEN
    assert HIDDEN != SECRET
    assert hash(HIDDEN) == hash(Secret(SECRET))
    assert HIDDEN.reveal() == SECRET
    assert {str(HIDDEN), repr(HIDDEN), f"{HIDDEN}", format(HIDDEN, "")} == {"***"}


def checked(url: str = "redis://cache", **given: Any) -> Settings:
    """Return the settings that a client makes of its parameters, by its own defaults."""
    defaults: dict[str, Any] = dict(Client.__init__.__kwdefaults__ or {})
    return make_settings({**defaults, "url": url, **given})


URL_WITH_SECRET = f"rediss://ada:{SECRET}@cache:7000/2?client_name=me"


@pytest.mark.parametrize("make", [parse_url, checked, Client, AsyncClient])
def test_no_password_is_shown(make: Callable[[str], Any]) -> None:
    made = make(URL_WITH_SECRET)
    shown = f"{made} {made!r}"
    assert "cache" in shown
    assert SECRET not in shown


@pytest.mark.parametrize("make", [checked, Client, AsyncClient])
def test_no_password_is_shown_when_it_is_a_parameter(make: Callable[..., Any]) -> None:
    made = make("redis://ada@cache", password=SECRET)
    assert SECRET not in f"{made} {made!r}"
    with pytest.raises(TypeError, match=r"^password must be a str, not bytes$"):
        make("redis://ada@cache", password=SECRET.encode())
    with pytest.raises(ValueError, match=r"^protocol") as caught:
        make(f"redis://:{SECRET}@cache", password=SECRET, protocol=9)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "given", "expected"),
    [
        ("redis://c", {}, (5.0, 5.0, 32, None, 3)),
        ("redis://c", {"timeout": 2}, (2.0, 2.0, 32, None, 3)),
        ("redis://c", {"timeout": None}, (math.inf, math.inf, 32, None, 3)),
        ("redis://c", {"timeout": None, "connect_timeout": 1.5}, (math.inf, 1.5, 32, None, 3)),
        ("redis://c", {"max_connections": 1, "protocol": 2}, (5.0, 5.0, 1, None, 2)),
        ("redis://c", {"client_name": "web-1"}, (5.0, 5.0, 32, "web-1", 3)),
        (
            "redis://c?timeout=0.5&connect_timeout=0.25&max_connections=7&protocol=2&client_name=x",
            {
                "timeout": 9.0,
                "connect_timeout": 9.0,
                "max_connections": 9,
                "protocol": 3,
                "client_name": "y",
            },
            (0.5, 0.25, 7, "x", 2),
        ),
        ("redis://c?timeout=0.5", {"connect_timeout": 3}, (0.5, 0.5, 32, None, 3)),
    ],
)
def test_options_of_the_url_count_before_parameters(
    url: str, given: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    made = checked(url, **given)
    found = (
        made.timeout,
        made.connect_timeout,
        made.max_connections,
        made.client_name,
        made.protocol,
    )
    assert repr(found) == repr(expected)  # by repr: 7 is not to be 7.0


@pytest.mark.parametrize(
    ("url", "given", "kind", "part"),
    [
        ("redis://c", {"timeout": 0}, ValueError, "timeout must be above 0"),
        ("redis://c", {"timeout": -1.5}, ValueError, "timeout must be above 0"),
        ("redis://c", {"timeout": math.nan}, ValueError, "timeout must be above 0"),
        ("redis://c", {"timeout": "5"}, TypeError, "timeout must be a number"),
        ("redis://c", {"timeout": True}, TypeError, "timeout must be a number"),
        ("redis://c", {"connect_timeout": 0}, ValueError, "connect_timeout must be above 0"),
        ("redis://c?timeout=0", {}, ValueError, "timeout must be above 0"),
        ("redis://c?timeout=nan", {}, ValueError, "timeout must be above 0"),
        ("redis://c?timeout=soon", {}, ValueError, "url: timeout must be a number"),
        ("redis://c?connect_timeout=", {}, ValueError, "url: connect_timeout must be a number"),
        ("redis://c", {"protocol": 4}, ValueError, "protocol must be a whole number from 2 to 3"),
        (
            "redis://c",
            {"protocol": True},
            TypeError,
            "protocol must be a whole number from 2 to 3",
        ),
        ("redis://c", {"protocol": "3"}, TypeError, "protocol must be a whole number from 2 to 3"),
        ("redis://c?protocol=1", {}, ValueError, "protocol must be a whole number from 2 to 3"),
        ("redis://c", {"max_connections": 0}, ValueError, "max_connections must be a whole"),
        ("redis://c", {"max_connections": 2.5}, ValueError, "max_connections must be a whole"),
        ("redis://c", {"max_connections": True}, TypeError, "max_connections must be a whole"),
        ("redis://c", {"max_connections": None}, TypeError, "max_connections must be a whole"),
        ("redis://c?max_connections=-1", {}, ValueError, "max_connections must be a whole"),
        ("redis://c", {"client_name": ""}, ValueError, "client_name must be printable"),
        ("redis://c", {"client_name": "a b"}, ValueError, "client_name must be printable"),
        ("redis://c", {"client_name": "naïve"}, ValueError, "client_name must be printable"),
        ("redis://c", {"client_name": b"a"}, TypeError, "client_name must be a str"),
        ("redis://c?client_name=a+b", {}, ValueError, "client_name must be printable"),
        ("redis://c", {"username": 5}, TypeError, "username must be a str"),
        (
            "redis://c",
            {"ssl_context": object()},
            ValueError,
            "ssl_context and the tls_ options: only",
        ),
        ("redis://c?tls_verify=none", {}, ValueError, "ssl_context and the tls_ options: only"),
        ("rediss://c?tls_verify=no", {}, ValueError, "url: tls_verify must be"),
        ("rediss://c?tls_key_file=k", {}, ValueError, "url: tls_key_file needs a tls_cert_file"),
        (
            "rediss://c?tls_verify=none",
            {"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)},
            ValueError,
            "ssl_context: give a context or tls_ options",
        ),
        ("rediss://c", {"ssl_context": 5}, TypeError, "ssl_context must be an ssl.SSLContext"),
        ("redis://c", {"idle_timeout": 0}, ValueError, "idle_timeout must be above 0"),
        ("redis://c", {"keepalive": -1}, ValueError, "keepalive must be a whole number"),
        ("redis://c", {"keepalive": None}, TypeError, "keepalive must be a whole number"),
        ("redis://c?keepalive=often", {}, ValueError, "url: keepalive must be a number"),
        ("redis://c", {"retry": 3}, TypeError, "retry must be a Retry or None"),
        ("redis://c", {"on_push": 3}, TypeError, "on_push must be callable"),
        ("redis://c", {"credentials": "pw"}, TypeError, "credentials must be callable"),
        ("redis://:x@c", {"credentials": str}, ValueError, "credentials: give a function or a"),
        ("redis://c", {"integrity": "yes"}, ValueError, "integrity must be 'echo' or None"),
        ("redis://c?integrity=crc", {}, ValueError, "integrity must be 'echo' or None"),
        ("redis://c", {"password": "\ud800"}, ValueError, "password is not valid Unicode"),
        ("redis://c", {"observer": object()}, TypeError, "observer must be an object"),
    ],
)
@pytest.mark.parametrize("make", [checked, Client, AsyncClient])
def test_a_wrong_parameter_is_named(
    make: Callable[..., Any], url: str, given: dict[str, Any], kind: type[Exception], part: str
) -> None:
    with pytest.raises(kind) as caught:
        make(url, **given)
    assert str(caught.value).startswith(part)


def test_tls_verifies_unless_a_context_says_otherwise() -> None:
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    default = checked("rediss://c").tls
    assert default is not None
    assert default.check_hostname
    assert default.verify_mode == ssl.CERT_REQUIRED
    assert checked("rediss://c", ssl_context=own).tls is own
    assert checked("redis://c").tls is None


@pytest.mark.parametrize(
    "url",
    [
        "redis://:/abc+secret@host:6379/0",
        "redis://:12/secret@h",
        "redis://:?secret=1@h",
        "unix://:1?secret=1@/tmp/redis.sock",
        "redis://ada:hunter#secret@h",
    ],
)
def test_a_password_cut_in_two_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(ValueError, match=r"must be written %2") as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


def test_a_socket_may_have_an_at_sign() -> None:
    assert parse_url("unix:///tmp/a@b.sock").path == "/tmp/a@b.sock"


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["client_name", "connect_timeout", "max_connections", "protocol", "timeout"]
        ),
        CREDENTIAL,
    ),
    CREDENTIAL,
    st.sampled_from(["redis://:{}@cache:7000/2?{}", "unix://ada:{}@/run/redis.sock?{}"]),
)
def test_options_come_back_as_they_were_quoted(
    options: dict[str, str], password: str, form: str
) -> None:
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in options.items())
    address = parse_url(form.format(quote(password, safe=""), query).rstrip("?"))
    assert dict(address.options) == options
    assert address.password == Secret(password)


# A password that nobody quoted: its special characters cut the URL in unexpected places.
UNQUOTED = st.lists(
    st.sampled_from([SECRET, *"/?#@:[]%&= é\n", "?db=", "&timeout=", "%2", "12"]), max_size=6
).map("".join)


def everything(error: BaseException | None) -> str:
    """Return all that a traceback of an error says."""
    if error is None:
        return ""
    hidden = error.__suppress_context__ and error.__cause__ is None
    inner = None if hidden else error.__cause__ or error.__context__
    return f"{error} {error!r} {everything(inner)}"


@settings(deadline=None, max_examples=500)
@given(
    st.sampled_from(["redis", "rediss", "unix", "http"]),
    st.sampled_from(["", "ada"]),
    UNQUOTED,
    UNQUOTED,
    st.sampled_from(["cache:7000/2", "cache?timeout=x", "/run/redis.sock", "/run/redis.sock?db=x"]),
)
def test_no_part_of_any_password_is_shown(
    scheme: str, user: str, first: str, last: str, rest: str
) -> None:
    url = f"{scheme}://{user}:{first}{SECRET}{last}@{rest}"
    assume(not (scheme == "unix" and not user and first[:1] in ("/", "@", "\n")))  # the test below
    try:
        made = checked(url)
    except ValueError as error:
        assert SECRET not in everything(error)  # noqa: PT017 - a URL that is good after all is fine
    else:
        assert SECRET not in f"{made} {made!r} {made.address}"


def test_a_password_that_begins_with_a_slash_is_no_path() -> None:
    with pytest.raises(ValueError, match=r"must be written %2"):
        parse_url("unix://:/hunter2@/run/redis.sock")
