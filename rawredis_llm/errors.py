"""Every error the library raises about Redis: one tree, and one table from a reply's first word.

Rules: an error carries the command's *name* and the server's address, never an argument.
`ConnectionError` and what is below it: the exchange failed. `ReplyError` and what is below it: the
server answered, and said no. The caller's own mistakes are `ValueError` or `TypeError`, raised
before a byte is sent, and are not defined here. Imports nothing of this package.
"""

from __future__ import annotations

import builtins
import re


class RedisError(Exception):
    """The root of all errors about Redis.

    `code` is the first word of the server's error, if it sent one; `command` the name of the
    command (no arguments); `address` where the server is. `hint` says what to do about it.
    """

    hint = ""

    def __init__(self, message: str = "", *, command: str = "", address: str = "") -> None:
        super().__init__(message)
        self.command = command
        self.address = address

    @property
    def message(self) -> str:
        """What the server or the library said, without the context that `str()` adds."""
        return str(self.args[0]) if self.args else ""

    @property
    def code(self) -> str:
        """The first word of a server's error in capitals, such as `WRONGTYPE`; else ''."""
        first = self.message.split(" ", 1)[0]
        return first if isinstance(self, ReplyError) and first.isupper() else ""

    def __str__(self) -> str:
        text = f"{self.command}: {self.message}" if self.command else self.message
        if self.address:
            text += f" [{self.address}]"
        return f"{text}. {self.hint}" if self.hint else text


class ConnectionError(RedisError, builtins.ConnectionError):  # noqa: A001 - the field's own name
    """The exchange with the server failed."""


class ConnectError(ConnectionError):
    """No connection could be made; nothing was sent."""

    hint = (
        "Is a server running there? `rawredis-llm serve` starts one with search, "
        "docker/ has a container"
    )


class NoPrimaryError(ConnectError):
    """No sentinel knows where the primary is, or none could be asked; nothing was sent."""

    hint = "See SENTINEL MASTERS, and that service= is the name there"


class CertificateError(ConnectError):
    """The server's certificate is not one that the client trusts, or is not for this host."""

    hint = "See the host and tls_ca_cert_file= in the URL, or give an ssl_context="


class ProtocolError(ConnectionError):
    """The server sent bytes that are no RESP, or that nobody asked for; the connection closed."""


class OutcomeUnknownError(ConnectionError):
    """The request was sent, at least in part, and no answer came: it may or may not have run."""

    hint = "It may have run: look before you repeat it, or say idempotent=True"


class TimeoutError(RedisError, builtins.TimeoutError):  # noqa: A001 - the field's own name
    """The deadline of a call passed."""


class ConnectTimeoutError(TimeoutError, ConnectError):
    """The deadline passed while connecting; nothing was sent."""


class PoolTimeoutError(TimeoutError):
    """The deadline passed while waiting for a free connection; nothing was sent."""

    hint = "Raise max_connections; in a transaction's function, read by `yield from`"


class ReadTimeoutError(TimeoutError, OutcomeUnknownError):
    """The deadline passed after the request was sent: it may or may not have run."""


class UnexpectedReplyError(RedisError):
    """The server answered in a shape that this library does not know; nothing was guessed."""


class IndexMismatchError(RedisError):
    """An index, or the embedder it was filled by, is not the one that was asked for."""

    hint = "Take another name or namespace, or drop the index and fill it anew"


class UnsupportedError(RedisError):
    """The server's version does not have what was asked for; nothing was sent."""


class NotIndexedError(RedisError):
    """Documents were stored that the server did not index; `ids` are those, up to 1,000 of them."""

    ids: tuple[str, ...] = ()
    hint = "Compare them with the schema; they are stored, and no search finds them"


class PartialResultError(RedisError):
    """The server could not look at everything: its time was up, or the index is being built."""

    hint = "Give more timeout=, or call wait_until_indexed() first"


class CachedFailureError(RedisError):
    """To compute this answer failed lately, and a cache was told to keep that for a while."""


class WatchError(RedisError):
    """A watched key changed, so the transaction did not run."""


class ReplyError(RedisError):
    """The server answered with an error."""


class AuthenticationError(ReplyError):
    """The server wants other credentials, or some at all."""

    hint = "Check username= and password=, or the user part of the URL"


class NoPermissionError(ReplyError):
    """The user may not run this command on this key."""

    hint = "See ACL WHOAMI and ACL GETUSER on the server"


class BusyError(ReplyError):
    """The server runs a script and answers nobody else."""


class LoadingError(ReplyError):
    """The server still loads its data from disk."""


class ReadOnlyError(ReplyError):
    """This server is a replica: the primary is elsewhere."""


class MasterDownError(ReplyError):
    """A replica without its primary refuses to answer."""


class ClusterDownError(ReplyError):
    """The cluster has no majority, or slots that nobody serves."""


class TryAgainError(ReplyError):
    """The keys of one command are on their way to another node."""


class MovedError(ReplyError):
    """The slot lives on another node."""


class AskError(ReplyError):
    """The slot is moving; the key is already on another node."""


class CrossSlotError(ReplyError):
    """The keys of one command lie in different slots."""


class OutOfMemoryError(ReplyError):
    """The server's memory limit is reached."""


class MisconfiguredError(ReplyError):
    """The server refuses writes because it cannot persist them."""


class NoScriptError(ReplyError):
    """The server does not have the script of this digest."""


class ExecAbortError(ReplyError):
    """A transaction was dropped because one of its commands was refused."""


class WrongTypeError(ReplyError):
    """The key holds another kind of value."""


class MaxClientsError(ReplyError):
    """The server has as many connections as it allows."""


class SearchUnavailableError(ReplyError):
    """This server has no search module."""

    hint = "Use Redis >= 8, Redis Stack, `rawredis-llm serve`, or the container in docker/"


class IndexNotFoundError(ReplyError):
    """There is no search index of this name on the server."""

    hint = "Call create() first, and mind that FLUSHDB drops indexes"


class VectorSizeError(ReplyError, IndexMismatchError):
    """The index holds vectors of another size: another embedder filled it."""


class SearchTimeoutError(ReplyError):
    """The server's own time limit of a search passed; it is set to fail then."""

    hint = "Give the search more timeout=, or see ON_TIMEOUT and TIMEOUT in FT.CONFIG"


class IndexExistsError(ReplyError):
    """There is a search index of this name already."""

    hint = "create(exist_ok=True) takes an index of the same fields as it is"


_BY_CODE: dict[str, type[ReplyError]] = {
    "ASK": AskError,
    "BUSY": BusyError,
    "CLUSTERDOWN": ClusterDownError,
    "CROSSSLOT": CrossSlotError,
    "ERRCLUSTER": ClusterDownError,
    "EXECABORT": ExecAbortError,
    "LOADING": LoadingError,
    "MASTERDOWN": MasterDownError,
    "MISCONF": MisconfiguredError,
    "MOVED": MovedError,
    "NOAUTH": AuthenticationError,
    "NOPERM": NoPermissionError,
    "NOSCRIPT": NoScriptError,
    "OOM": OutOfMemoryError,
    "READONLY": ReadOnlyError,
    "TRYAGAIN": TryAgainError,
    "WRONGPASS": AuthenticationError,
    "WRONGTYPE": WrongTypeError,
}

# Errors without a code word of their own, by their text. Those of the search module count only for
# FT.* commands, because their texts differ between versions and commands (RediSearch 2.10 to 8.4).
_BY_TEXT: tuple[tuple[str, re.Pattern[str], type[ReplyError]], ...] = (
    ("", re.compile("^ERR max number of clients reached"), MaxClientsError),
    ("", re.compile("invalid password|AUTH.* without any password"), AuthenticationError),
    ("FT.", re.compile("unknown command", re.IGNORECASE), SearchUnavailableError),
    ("FT.", re.compile("no such index|unknown index name", re.IGNORECASE), IndexNotFoundError),
    ("FT.", re.compile("vector blob size", re.IGNORECASE), VectorSizeError),
    ("FT.", re.compile("index already exists", re.IGNORECASE), IndexExistsError),
    ("FT.", re.compile("timeout limit was reached", re.IGNORECASE), SearchTimeoutError),
)


_QUOTED = re.compile(r"(unknown command ['`][^'`]*['`]|unknown subcommand).*", re.DOTALL)


def reply_error(text: str, command: str = "", address: str = "") -> ReplyError:
    """Return the error that stands for a server's error text.

    Arguments that it quotes when it does not know a command are left out.
    """
    text = _QUOTED.sub(r"\1", text)
    kind = _BY_CODE.get(text.split(" ", 1)[0])
    if kind is None:
        kind = ReplyError
        for prefix, pattern, cls in _BY_TEXT:
            if command.startswith(prefix) and pattern.search(text):
                kind = cls
                break
    return kind(text, command=command, address=address)


__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    name for name, value in dict(globals()).items() if isinstance(value, type)
]
