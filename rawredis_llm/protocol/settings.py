"""What a client was told, checked once and kept as one frozen value for both shells.

Must not import sockets or asyncio; ssl, and the names of socket options, only where a connection
needs them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from .address import NUMBERS, Address, Secret, parse_url
from .observing import Observer
from .pushes import PushQueue
from .retry import Retry

if TYPE_CHECKING:
    from ssl import SSLContext

    from .tracking import NearCache


class ConnectionFigures(NamedTuple):
    """A client's connections: those there are, and what happened so far.

    `open` of them `in_use`; `waiting` callers now. `created` in all; `waited` callers had to wait
    for a place, `wait_time` seconds together. `dropped` counts closed ones by the reason: the name
    of the error that ended them, or `ended while idle`, `idle_timeout`, `READONLY`,
    `reauthenticated`, `abandoned` (by an interrupted or cancelled call), `closed` (by the client).
    """

    open: int
    in_use: int
    waiting: int
    created: int
    waited: int
    wait_time: float
    dropped: Mapping[str, int]

    @classmethod
    def sum(cls, figures: Iterable[ConnectionFigures]) -> ConnectionFigures:
        """Return the figures of several clients as one's."""
        total: dict[str, Any] = dict.fromkeys(cls._fields, 0)
        dropped: dict[str, int] = {}
        for one in figures:
            for name, figure in zip(cls._fields[:-1], one[:-1], strict=True):
                total[name] += figure
            for why, count in one.dropped.items():
                dropped[why] = dropped.get(why, 0) + count
        return cls(**{**total, "dropped": dropped})


class _Given(NamedTuple):
    address: Address
    timeout: float
    connect_timeout: float
    idle_timeout: float
    keepalive: int
    max_connections: int
    client_name: str | None
    protocol: int
    integrity: bool
    retry: Retry
    credentials: Callable[[], Any] | None
    ssl_context: SSLContext | None
    pushes: PushQueue | None
    observer: Observer | None
    readonly: bool = False  # a replica is to answer reads, of a cluster
    near: NearCache | None = None
    role: str = ""  # as which the server has to be known to itself: master or slave


class Settings(_Given):
    """All that is needed to connect. Times are seconds; infinity stands for "no limit"."""

    def __repr__(self) -> str:
        return f"<Settings {self.address!r}>"

    @cached_property
    def tls(self) -> SSLContext | None:
        """The TLS context to connect with, or None; certificate and host name are verified."""
        if not self.address.tls:
            return None
        if self.ssl_context is not None:
            return self.ssl_context
        import ssl  # noqa: PLC0415 - 7 ms that a plain connection does not need

        options = dict(self.address.options)
        try:
            context = ssl.create_default_context(cafile=options.get("tls_ca_cert_file"))
            if "tls_cert_file" in options:
                context.load_cert_chain(options["tls_cert_file"], options.get("tls_key_file"))
        except OSError as error:
            named = {name: path for name, path in options.items() if name.endswith("_file")}
            raise ValueError(f"url: {named} cannot be loaded: {error}") from error
        if options.get("tls_verify") == "none":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def tune(self, sock: Any) -> None:
        """Set a TCP socket's options: no delay, and probes that notice a peer which is gone.

        Raises ConnectionRefusedError for one that is connected to itself: to a port that the system
        also gives to clients, and on which nobody listens, this happens once in some thousand tries
        (a simultaneous open, RFC 9293, 3.5), and would give every request back as its reply.
        """
        import socket  # noqa: PLC0415 - for the names of its options

        if sock.getsockname() == sock.getpeername():
            raise ConnectionRefusedError("nobody listens there")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(self.keepalive > 0))
        if self.keepalive and hasattr(socket, "TCP_KEEPIDLE"):  # macOS calls it otherwise
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, self.keepalive)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, self.keepalive // 3))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def make_settings(given: dict[str, Any]) -> Settings:
    """Check what a client was given; the URL's options count before the parameters.

    Raises TypeError or ValueError naming the parameter or the part of the URL.
    """
    address = _with_login(parse_url(given["url"]), given)
    options = {**given, **dict(address.options)}
    options |= {name: _number(name, text) for name, text in address.options if name in NUMBERS}
    _check_tls(address, given["ssl_context"])
    observer, retry, on_push = given["observer"], given["retry"], given["on_push"]
    if observer is not None and (isinstance(observer, type) or not hasattr(observer, "exchange")):
        raise TypeError("observer must be an object with exchange() and connection()")
    if not isinstance(retry, (Retry, type(None))):
        raise TypeError(f"retry must be a Retry or None, not {type(retry).__name__}")
    for name in ("on_push", "credentials"):
        if given[name] is not None and not callable(given[name]):
            raise TypeError(f"{name} must be callable, not {type(given[name]).__name__}")
    limit = seconds("timeout", options["timeout"])
    name = options["client_name"]
    if name is not None and not re.fullmatch("[!-~]+", _text("client_name", name)):
        raise ValueError("client_name must be printable ASCII without spaces")
    if options["integrity"] not in (None, "echo"):
        raise ValueError(f"integrity must be 'echo' or None, not {options['integrity']!r}")
    return Settings(
        address=address,
        timeout=limit,
        connect_timeout=min(limit, seconds("connect_timeout", options["connect_timeout"])),
        idle_timeout=seconds("idle_timeout", options["idle_timeout"]),
        keepalive=_whole("keepalive", options, range(32768)),
        max_connections=_whole("max_connections", options, range(1, 2**20)),
        client_name=name,
        protocol=_whole("protocol", options, range(2, 4)),
        integrity=options["integrity"] == "echo",
        retry=Retry(attempts=1) if retry is None else retry,
        credentials=given["credentials"],
        ssl_context=given["ssl_context"],
        pushes=None if on_push is None else PushQueue(on_push),
        observer=observer,
        near=_near(given["near_cache"], options),
    )


def _near(given: Any, options: dict[str, Any]) -> NearCache | None:
    if given is None or given is False:
        return None
    from .tracking import NearCache  # noqa: PLC0415 - most need none

    if given is not True and not isinstance(given, NearCache):
        raise TypeError(f"near_cache must be True or a NearCache, not {type(given).__name__}")
    if options["protocol"] == 2:
        raise ValueError("near_cache needs RESP3, over which the server says what changes")
    return NearCache() if given is True else given


def _with_login(address: Address, given: dict[str, Any]) -> Address:
    """Return the address with the user and password that were given as parameters."""
    username, password = given["username"], given["password"]
    if username is not None:
        address = address._replace(username=_text("username", username))
    if password is not None:
        address = address._replace(password=Secret(_text("password", password)))
    if address.username is not None and address.password is None:
        raise ValueError("username: a user needs a password")
    if address.password is not None and given["credentials"] is not None:
        raise ValueError("credentials: give a function or a password, not both")
    return address


def seconds(name: str, value: float | None) -> float:
    """Return a time limit; None is none. Raises TypeError or ValueError naming the parameter."""
    if value is None:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {type(value).__name__}")
    if not value > 0:
        raise ValueError(f"{name} must be above 0 seconds, not {value}")
    return math.inf if value > _LONGEST else float(value)


_LONGEST = 2_000_000  # seconds, 23 days; poll() takes no more, so longer limits are none


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"url: {name} must be a number, not {text!r}") from None


def _whole(name: str, options: dict[str, Any], allowed: range) -> int:
    value = options[name]
    least, most = allowed[0], allowed[-1]
    text = f"{name} must be a whole number from {least} to {most}, not {value!r}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(text)
    if value not in allowed:
        raise ValueError(text)
    return int(value)


def _check_tls(address: Address, context: SSLContext | None) -> None:
    options = {name: value for name, value in address.options if name.startswith("tls_")}
    if not address.tls and (options or context is not None):
        raise ValueError("ssl_context and the tls_ options: only a rediss:// URL connects by TLS")
    if context is not None and not hasattr(context, "wrap_socket"):
        raise TypeError(f"ssl_context must be an ssl.SSLContext, not {type(context).__name__}")
    if options and context is not None:
        raise ValueError("ssl_context: give a context or tls_ options in the URL, not both")
    if options.get("tls_verify", "full") not in {"full", "none"}:
        raise ValueError("url: tls_verify must be 'full' or, to trust any server, 'none'")
    if "tls_key_file" in options and "tls_cert_file" not in options:
        raise ValueError("url: tls_key_file needs a tls_cert_file")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    if not is_unicode(value):
        raise ValueError(f"{name} is not valid Unicode")
    return value


def is_unicode(text: str) -> bool:
    """Return True for what can be encoded; an error of `encode()` would show what it was."""
    return not any("\ud800" <= char <= "\udfff" for char in text)
