"""What both Sentinel clients have in common: their parameters, and what sentinels say.

Source: Redis documentation, "Guidelines for Redis clients with support for Redis Sentinel". Must
not import sockets, asyncio, numpy, or another ring.
"""

# What is here and in the shells' clients is one mechanism in several classes.

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import (
    ConnectError,
    ConnectTimeoutError,
    NoPrimaryError,
    RedisError,
    UnexpectedReplyError,
)
from .address import Address, Secret, parse_url
from .client import BaseClient
from .commands import as_mapping
from .retry import Retry
from .settings import Settings

LOOK: Final = 1.0  # seconds from one look for the primary to the next, while all seems well
PATIENCE: Final = 0.5  # seconds for one sentinel to answer


class _Given(NamedTuple):
    sentinels: tuple[Address, ...]
    service: str
    replica: bool


class Place(NamedTuple):
    """Where a sentinel says that the primary is, since the failover of that number."""

    host: str
    port: int
    epoch: int


class BaseSentinel(BaseClient):
    """What `SentinelClient` and `AsyncSentinelClient` have in common."""

    _kind = "sentinels"
    _given: _Given

    if TYPE_CHECKING:  # of the shells

        def _make_sentinel(self, settings: Settings) -> Any: ...

    def __init__(
        self,
        urls: str | Sequence[str] = "redis://localhost:26379",
        service: str = "mymaster",
        *,
        replica: bool = False,
        sentinel_username: str | None = None,
        sentinel_password: str | None = None,
        **options: Any,
    ) -> None:
        """Check the parameters; nothing is sent.

        `urls` name the sentinels (the port is 26379 if none is given); the scheme, `rediss://` for
        TLS, the database and the options of the first one count for the servers, too. `service` is
        the name that the sentinels watch the primary by. With `replica=True` commands go to one of
        its replicas, which may be behind, and to the primary only if there is none.

        The sentinels' user and password stand in the URLs, or are `sentinel_username` and
        `sentinel_password`; `username`, `password` and `credentials` are the servers' own. The
        other `options` are those of `Client`.

        Raises ValueError or TypeError naming the parameter that is wrong.
        """
        given = [urls] if isinstance(urls, str) else list(urls)
        login = (sentinel_username, sentinel_password)
        failure: Exception | None = None
        try:
            self._given = _checked(given, service, login, replica=replica)
            if options.get("near_cache"):
                raise ValueError("near_cache: the sentinels' client has none yet")
            super().__init__(_without_login(given[0]), **options)
        except (TypeError, ValueError) as error:
            failure = error.with_traceback(None)
        # A traceback may show the locals of its frames: nobody's password is to be among them.
        del urls, given, login, sentinel_password, options
        if failure is not None:
            failure.__context__ = None
            raise failure

    def _start(self) -> None:
        self._epoch = 0
        self._primary = ""  # where it was when it was looked for last
        self._next_look = 0.0
        self._question = ("SENTINEL", "MASTER", self._given.service)
        plain = self._settings._replace(
            retry=self._settings.retry._replace(attempts=1),
            ssl_context=self._settings.tls,
            protocol=2,  # which sentinels of every version speak
            client_name=None,
            credentials=None,
            integrity=False,
            pushes=None,
            observer=None,
        )
        self._sentinels = [
            self._make_sentinel(plain._replace(address=address))
            for address in self._given.sentinels
        ]
        super()._start()

    def _settings_of(self, host: str, port: int, *, primary: bool) -> Settings:
        address = self._settings.address._replace(host=host, port=port)
        return self._settings._replace(
            address=address,
            ssl_context=self._settings.tls,
            role="master" if primary else "slave",
        )

    def _turned(self) -> list[Any]:
        """Return the sentinels, another one first each time, so that none is believed for ever."""
        self._sentinels = [*self._sentinels[1:], self._sentinels[0]]
        return self._sentinels

    def _take(self, reply: Any) -> Place:
        """Return where the primary is; a sentinel that knows less than another did is refused."""
        place = place_of(reply)
        if place.epoch < self._epoch:
            raise NoPrimaryError("knows an older primary than another one did")
        self._epoch = place.epoch
        return place

    def _has_moved(self, place: Place) -> bool:
        """Return whether the primary is no longer where it was."""
        before, self._primary = self._primary, f"{place.host}:{place.port}"
        return before not in ("", self._primary)

    def _nobody(self, said: Sequence[RedisError]) -> NoPrimaryError:
        what = "; ".join(f"{error.address or 'a sentinel'}: {error.message}" for error in said)
        return NoPrimaryError(f"no sentinel told where {self._given.service!r} is: {what}")


class Why:
    """Why no connection came about so far, and when to try again: a failover takes its time."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry.patient()._replace(cap=min(retry.cap, 0.2))
        self._error: ConnectError | None = None
        self._tried = 0

    def pause(self, error: ConnectError, left: float) -> float:
        """Return how long to wait; raise the last error that says more than that time was up."""
        self._tried += 1
        if self._error is None or not isinstance(error, ConnectTimeoutError):
            self._error = error
        pause = self._retry.pause(error, (), self._tried, idempotent=True)
        if pause is None or pause >= left:
            why = self._error
            if not isinstance(why, NoPrimaryError):
                why = NoPrimaryError(f"the primary cannot be reached: {why.message}")
                why.address = self._error.address
            raise why
        return pause


def place_of(reply: Any) -> Place:
    """Return what SENTINEL MASTER says. Raises UnexpectedReplyError for what is none."""
    try:
        told = as_mapping(reply)
        return Place(told[b"ip"].decode(), int(told[b"port"]), int(told[b"config-epoch"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnexpectedReplyError(f"SENTINEL MASTER: {error!r}") from error


def replica_of(reply: Any) -> tuple[str, int] | None:
    """Return one of the replicas of SENTINEL REPLICAS that are well; None if there is none."""
    try:
        replicas = [as_mapping(replica) for replica in reply]
        well = [
            (replica[b"ip"].decode(), int(replica[b"port"]))
            for replica in replicas
            if not _ILL & {*replica[b"flags"].split(b",")}
            and replica.get(b"master-link-status") == b"ok"
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnexpectedReplyError(f"SENTINEL REPLICAS: {error!r}") from error
    return random.choice(well) if well else None  # noqa: S311 - so that they share the load


_ILL: Final = {b"s_down", b"o_down", b"disconnected"}


def _checked(
    urls: list[str], service: str, login: tuple[str | None, str | None], *, replica: bool
) -> _Given:
    if not urls:
        raise ValueError("urls: name at least one sentinel")
    if not isinstance(service, str) or not service:
        raise ValueError("service must be the name that the sentinels watch the primary by")
    if not isinstance(replica, bool):
        raise TypeError(f"replica must be True or False, not {type(replica).__name__}")
    username, password = login
    if username is not None and password is None:
        raise ValueError("sentinel_username: a user needs a password")
    sentinels = []
    for url in urls:
        address = parse_url(url)
        if address.path:
            raise ValueError("urls: sentinels are named by host and port")
        if password is not None:
            if not isinstance(password, str):
                raise TypeError("sentinel_password must be a str")
            address = address._replace(username=username, password=Secret(password))
        port = address.port if _names_port(url) else 26379
        sentinels.append(address._replace(port=port, db=0, options=()))
    return _Given(tuple(sentinels), service, replica)


def _names_port(url: str) -> bool:
    from urllib.parse import urlsplit  # noqa: PLC0415 - it is loaded, and of use here alone

    return urlsplit(url).port is not None


def _without_login(url: str) -> str:
    """Return a URL without its user and password, which are the sentinels'."""
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"
