"""The first words on a connection, and what the server says of itself.

Must not import another ring.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from .. import __version__, errors
from ..errors import NoPermissionError, RedisError, ReplyError
from .address import Secret
from .commands import as_mapping
from .operation import Batch, Command, Op
from .settings import Settings, is_unicode

Commands = list[Sequence[str | int]]


class Login(NamedTuple):
    """Who we are to the server; without a password the connection stays as it is."""

    username: str | None
    password: Secret | None


def as_login(settings: Settings, given: Any) -> Login:
    """Return who we are: what the credential provider gave, if there is one, or the address says.

    Raises TypeError for what is neither a password nor (username, password), ValueError for what is
    not valid Unicode; without a word of what it was.
    """
    if settings.credentials is None:
        return Login(settings.address.username, settings.address.password)
    username, password = given if isinstance(given, tuple) and len(given) == 2 else (None, given)
    failure: Exception | None = None
    if hasattr(given, "__await__"):
        getattr(given, "close", int)()  # a coroutine would complain of never having been awaited
        text = "credentials: this function is asynchronous: use it with an AsyncClient"
        failure = TypeError(text)
    elif not isinstance(password, str) or not isinstance(username, (str, type(None))):
        text = "credentials must return a password or (username, password), as str, not"
        failure = TypeError(f"{text} {type(given).__name__}")
    elif not is_unicode(password + (username or "")):
        failure = ValueError("credentials: what was returned is not valid Unicode")
    else:
        return Login(username, Secret(password))
    del given, username, password  # a traceback may show the locals of this frame
    raise failure


def greet(settings: Settings, login: Login) -> Generator[Commands, list[Any], None]:
    """Yield the commands of the handshake, one write each; raise the server's refusal.

    One write is enough where the server knows HELLO (Redis >= 6); others speak RESP2. What is not
    needed to be understood (CLIENT SETINFO, Redis >= 7.2; a name) may be refused.
    """
    # A password is revealed in place: an error's traceback shows the locals of this frame.
    user = login.username or "default"
    name = () if settings.client_name is None else ("SETNAME", settings.client_name)
    tail: Commands = [("CLIENT", "SETINFO", "LIB-NAME", "rawredis_llm")]
    tail += [("CLIENT", "SETINFO", "LIB-VER", __version__)]
    tail += [("SELECT", settings.address.db)] if settings.address.db else []
    hello = ("HELLO", settings.protocol)
    for named in (name, ()):
        if login.password is None:
            replies = yield [(*hello, *named), *tail]
        else:
            replies = yield [(*hello, "AUTH", user, login.password.reveal(), *named), *tail]
        refusal = replies[0]
        if not (named and isinstance(refusal, ReplyError) and "SETNAME" in refusal.message.upper()):
            break  # else it takes no names: the same without
    if isinstance(replies[0], ReplyError) and _lacks_hello(replies[0]):
        tail = [("CLIENT", *name), *tail] if name else tail
        if login.password is None:
            replies = yield [("PING",), *tail]
        elif login.username is None:
            replies = yield [("AUTH", login.password.reveal()), *tail]
        else:
            replies = yield [("AUTH", user, login.password.reveal()), *tail]
    for reply in replies[:1] + replies[-1:] * bool(settings.address.db):
        if isinstance(reply, ReplyError):
            raise reply


def _lacks_hello(refusal: ReplyError) -> bool:
    words = refusal.message.lower()
    return "unknown command" in words or refusal.code in {"NOPROTO", "NOPERM"}


def without_frames(error: BaseException) -> BaseException:
    """Return an error whose chain shows no frames: the locals of a handshake's hold a password."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def failure_of(error: Exception, refusals: list[ReplyError], address: str) -> RedisError:
    """Return what to raise when no connection came about.

    A server that has too many clients, or does not trust them, says so, and hangs up.
    """
    for refusal in refusals:
        if isinstance(refusal, errors.MaxClientsError) or refusal.code == "DENIED":
            return refusal
    text = getattr(error, "strerror", None) or str(error)
    if type(error).__name__ == "SSLCertVerificationError":  # without importing ssl
        return errors.CertificateError(text, address=address)
    if isinstance(error, TimeoutError):
        failure: errors.ConnectError = errors.ConnectTimeoutError(
            "no connection in time", address=address
        )
    else:
        text = error.message if isinstance(error, RedisError) else text
        failure = errors.ConnectError(text, address=address)
    if not isinstance(error, (ConnectionRefusedError, FileNotFoundError)):
        failure.hint = "Is it a Redis, and is it rediss:// (TLS) there or redis://?"
    return failure


class ServerInfo(NamedTuple):
    """What a server is and can do.

    `name` is `redis` or `valkey`, `version` its version, `protocol` the RESP level in use, `mode`
    `standalone`, `cluster` or `sentinel`; '' where it is not told. `search` is the search engine's
    version as a number (21005 is 2.10.5), 0 if that is not told, None without one. `coordinator`:
    whether it can search a whole cluster; `hybrid`: whether it has FT.HYBRID; `json`: whether it
    has JSON documents, or does not tell.
    """

    name: str
    version: str
    protocol: int
    mode: str
    search: int | None
    coordinator: bool
    hybrid: bool
    json: bool = False


def server_info() -> Op[ServerInfo]:
    """Return what the server says of itself, in one round trip.

    COMMAND INFO tells whether there is a search engine, and whether it has a coordinator: then
    FT.SEARCH has no key (Redis 8), without one its first "key" is the index (RediSearch 2). Of
    HELLO, INFO and COMMAND a managed service may refuse any; the others' answers have to do then.
    """
    hello, info, *entries = yield from Batch(
        [
            Command(("HELLO",), as_mapping),
            Command(("INFO", "server"), _fields),
            *(
                Command(("COMMAND", "INFO", name), lambda reply: reply[0] if reply else None)
                for name in ("FT.SEARCH", "FT.HYBRID", "JSON.SET")
            ),
        ],
        raise_errors=False,
    )
    for reply in (hello, info, *entries):
        if isinstance(reply, Exception) and type(reply) not in (ReplyError, NoPermissionError):
            raise reply  # it is no refusal: loading, or no answer to be understood
    greeting = {} if isinstance(hello, Exception) else hello
    fields = {} if isinstance(info, Exception) else info
    name, version = (greeting.get(part, b"").decode() for part in (b"server", b"version"))
    name = ("valkey" if "valkey_version" in fields else "redis") if fields else name
    modules = [as_mapping(module) for module in greeting.get(b"modules", ())]
    versions = {module[b"name"]: int(module[b"ver"]) for module in modules}
    search, coordinator, hybrid, json = _abilities(name, versions, *entries)
    return ServerInfo(
        name=name,
        version=fields.get("valkey_version") or fields.get("redis_version") or version,
        protocol=greeting.get(b"proto", 2),
        mode=fields.get("redis_mode")
        or fields.get("server_mode")
        or greeting.get(b"mode", b"").decode(),
        search=search,
        coordinator=coordinator,
        hybrid=hybrid,
        json=json,
    )


def _abilities(
    name: str, modules: dict[bytes, int], search: Any, hybrid: Any, json: Any
) -> tuple[int | None, bool, bool, bool]:
    """Return what is to be known of searching, by COMMAND INFO's entries, else by the modules."""
    version = modules.get(b"search", 0)
    if not any(isinstance(entry, Exception) for entry in (search, hybrid, json)):
        there = search is not None
        return (
            version if there else None,
            there and search[3] == 0,  # name, arity, flags, first key, ...
            hybrid is not None,
            json is not None,
        )
    # What may be there is taken to be there, for the server itself says what it lacks; not so
    # what would be used unasked. Valkey counts the versions of its own engine.
    redis = version if name == "redis" else 0
    return version, redis >= 80000, redis >= 80400, not modules or bool(modules.keys() & _JSON)


_JSON = {b"ReJSON", b"json"}


def _fields(reply: bytes) -> dict[str, str]:
    """Return what INFO says by name."""
    return dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)
