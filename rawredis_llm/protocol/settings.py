"""What a client was told, checked once and kept as one frozen value for both shells.

Must not import sockets, ssl or asyncio; a TLS context is passed through untouched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .address import Address, Secret, parse_url
from .commands import hello, select

if TYPE_CHECKING:
    from ssl import SSLContext

__all__ = ["Observer", "Settings", "Sizes", "Times", "make_settings", "seconds"]


class Times(NamedTuple):
    """When a call began and ended, by the monotonic clock, in seconds."""

    start: float
    end: float


class Sizes(NamedTuple):
    """Bytes sent and received. `received` is None where one socket carries many calls at once."""

    sent: int
    received: int | None


class Observer(Protocol):
    """What is told of every exchange. Its methods are called in line: keep them short."""

    def command(self, name: str, times: Times, sizes: Sizes, error: BaseException | None) -> None:
        """Take note of one exchange; `name` joins the commands of a batch by `+`."""

    def connection(self, event: str) -> None:
        """Take note of a connection: `opened` or `closed`."""


@dataclass(frozen=True)
class Settings:
    """All that is needed to connect. Times are seconds; infinity stands for "no limit"."""

    address: Address
    timeout: float
    connect_timeout: float
    max_connections: int
    client_name: str | None
    protocol: int
    ssl_context: SSLContext | None = field(repr=False)
    observer: Observer | None = field(repr=False)

    def handshake(self) -> list[tuple[str | int, ...]]:
        """Return the commands that open a connection; they leave in its first write."""
        address = self.address
        password = address.password.reveal() if address.password is not None else None
        greeting = hello(self.protocol, address.username, password, self.client_name)
        return [greeting, select(address.db)] if address.db else [greeting]

    def tls(self) -> SSLContext | None:
        """Return the TLS context to connect with, or None; host names are verified by default."""
        if not self.address.tls:
            return None
        if self.ssl_context is not None:
            return self.ssl_context
        import ssl  # noqa: PLC0415 - 7 ms that a plain connection does not need

        return ssl.create_default_context()


def make_settings(
    url: str,
    *,
    timeout: float | None,
    connect_timeout: float | None,
    max_connections: int,
    username: str | None,
    password: str | None,
    client_name: str | None,
    protocol: int,
    ssl_context: SSLContext | None,
    observer: Observer | None,
) -> Settings:
    """Check what a client was given, and return it; the URL's options count before the parameters.

    Raises TypeError or ValueError naming the parameter or the part of the URL.
    """
    address = parse_url(url)
    options: dict[str, str] = dict(address.options)
    if username is not None or password is not None:
        address = Address(
            **{
                **vars(address),
                "username": address.username if username is None else _text("username", username),
                "password": (
                    address.password if password is None else Secret(_text("password", password))
                ),
            }
        )
    if address.username is not None and address.password is None:
        raise ValueError("username: a user needs a password")
    if ssl_context is not None and not address.tls:
        raise ValueError("ssl_context: only a rediss:// URL connects by TLS")
    if observer is not None and (isinstance(observer, type) or not hasattr(observer, "command")):
        raise TypeError("observer must be an object with command() and connection()")
    limit = seconds("timeout", _number("timeout", options, timeout))
    connect_limit = _number("connect_timeout", options, connect_timeout)
    level = _number("protocol", options, protocol)
    if level not in (2, 3):
        raise ValueError(f"protocol must be 2 or 3, not {level!r}")
    most = _number("max_connections", options, max_connections)
    if isinstance(most, bool) or not isinstance(most, (int, float)) or most not in range(1, 2**20):
        raise ValueError(f"max_connections must be a whole number above 0, not {most!r}")
    name = options.get("client_name", client_name)
    if name is not None and (not _text("client_name", name) or not _is_client_name(name)):
        raise ValueError("client_name must be printable ASCII without spaces")
    return Settings(
        address=address,
        timeout=limit,
        connect_timeout=min(limit, seconds("connect_timeout", connect_limit)),
        max_connections=int(most),
        client_name=name,
        protocol=int(level),
        ssl_context=ssl_context,
        observer=observer,
    )


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


def _number(name: str, options: dict[str, str], value: Any) -> Any:
    """Return the option of the URL as a number if there is one, else the parameter."""
    if name not in options:
        return value
    try:
        return float(options[name])
    except ValueError:
        raise ValueError(f"url: {name} must be a number, not {options[name]!r}") from None


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    return value


def _is_client_name(name: str) -> bool:
    """CLIENT SETNAME takes what stands between `!` and `~`."""
    return all("!" <= char <= "~" for char in name)
