"""Addresses: `redis://`, `rediss://` and `unix://` URLs as a value that never shows its password.

Must not import sockets or ssl; an address is only words and numbers.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit


class Secret:
    """A password that no repr, log or traceback shows; `reveal()` it where it is sent."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def reveal(self) -> str:
        """Return the password."""
        return self._text


class Address(NamedTuple):
    """Where a server is and who we are to it. `path` is a unix socket's; then host is ''."""

    host: str = "localhost"
    port: int = 6379
    path: str = ""
    tls: bool = False
    db: int = 0
    username: str | None = None
    password: Secret | None = None
    options: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return f"Address({self}, username={self.username!r}, password={self.password!r})"

    def __str__(self) -> str:
        """Return the URL without credentials and options."""
        if self.path:
            return f"unix://{self.path}" + (f"?db={self.db}" if self.db else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"


NUMBERS = ("connect_timeout", "idle_timeout", "keepalive", "max_connections", "protocol", "timeout")
_TLS = ("tls_ca_cert_file", "tls_cert_file", "tls_key_file", "tls_verify")
OPTIONS = sorted((*NUMBERS, *_TLS, "client_name", "db", "integrity"))
"""What may stand in a URL's query: `db`, files for TLS as the server's own configuration names them
(`tls_verify=none` trusts any server), and the client's parameters of the same name."""


def parse_url(url: str) -> Address:
    """Return the address in a URL.

    `redis://[user[:password]@]host[:port][/db][?option=value]`, `rediss://` for TLS,
    `unix://[user:password@]/path/to.sock[?db=n]`. User, password and path may be percent-encoded.
    The options are those of `OPTIONS`.

    Raises TypeError if `url` is no text, ValueError naming the part that is wrong; never the
    password.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type(url).__name__}")
    if "#" in url:
        raise ValueError("url: a '#' must be written %23")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(
            "url: host or port is malformed; '/' and '?' in a password are %2F, %3F"
        ) from None
    # A '/' or '?' cut a password in two; what stands behind it must not be quoted in an error.
    if "@" in parts.query or ("@" in parts.path and (parts.netloc or parts.scheme != "unix")):
        raise ValueError("url: '/', '?' and '@' in a password must be written %2F, %3F and %40")
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError(f"url: scheme must be redis, rediss or unix, not {parts.scheme!r}")
    options = _options(parts.query)
    password = Secret(unquote(parts.password)) if parts.password is not None else None
    username = unquote(parts.username) or None if parts.username is not None else None
    rest = tuple((name, value) for name, value in options.items() if name != "db")
    who = Address(username=username, password=password, options=rest)
    if parts.scheme == "unix":
        if parts.hostname or port is not None or not parts.path.startswith("/"):
            raise ValueError("url: a unix socket is written unix:///absolute/path.sock")
        return who._replace(host="", port=0, path=unquote(parts.path), db=_database("", options))
    return who._replace(
        host=parts.hostname or "localhost",
        port=6379 if port is None else port,
        tls=parts.scheme == "rediss",
        db=_database(parts.path.strip("/"), options),
    )


def _options(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise ValueError("url: options are written ?name=value&name=value") from None
    options: dict[str, str] = {}
    for name, value in pairs:
        if name not in OPTIONS:
            raise ValueError(f"url: unknown option {name!r}; there are {', '.join(OPTIONS)}")
        if name in options:
            raise ValueError(f"url: option {name!r} is given twice")
        options[name] = value
    return options


def _database(path: str, options: dict[str, str]) -> int:
    if path and "db" in options:
        raise ValueError("url: the database is given both in the path and as an option")
    text = path or options.get("db", "0")
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"url: database must be a number, not {text!r}")
    return int(text)
