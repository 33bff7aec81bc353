"""What both cluster clients have in common: their parameters, and when to ask who serves what.

Must not import sockets, asyncio, numpy, or another ring.
"""

# What is here and in the client of a node is one mechanism in two classes.
# ruff: noqa: SLF001

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .. import errors
from ..errors import RedisError
from .address import parse_url
from .client import BaseClient
from .keyed import one_slot
from .observing import Observer
from .operation import Batch, Command, Op, members_of, reading, watched
from .routes import Routes
from .settings import Settings
from .slots import node_name, split_node

WHO: Final = ("CLUSTER", "SLOTS")
PATIENCE: Final = 1.0  # seconds for one node to say who serves what
_LEAST: Final = 0.1  # seconds between two looks at the map, and up to as many more
_SEARCHES: Final = (None, "coordinator", "one-slot", "per-node")


class _Given(NamedTuple):
    seeds: tuple[str, ...]
    read_from: str
    search: str | None


class BaseCluster(BaseClient):
    """What `ClusterClient` and `AsyncClusterClient` have in common."""

    _kind = "cluster"
    _given: _Given
    _closed = False

    if TYPE_CHECKING:  # of the shells

        def _make_node(self, settings: Settings) -> Any: ...

    def __init__(
        self,
        urls: str | Sequence[str] = "redis://localhost:6379/0",
        *,
        read_from: str = "primary",
        search: str | None = None,
        **options: Any,
    ) -> None:
        """Check the parameters; nothing is sent.

        `urls` name one node of the cluster or several; the others are found by them. Users,
        passwords and options are taken from the first URL. `read_from="replica"` has commands that
        only read answered by replicas where there are any: they may be behind, even behind what
        this client has written itself.

        `search` says how FT.* commands are run. None (default) sends them to any node of a search
        engine with a coordinator (Redis 8), and refuses them without one (UnsupportedError), as
        one node knows only its own documents; "coordinator" does not ask which it is. For engines
        without there are "per-node", an index on each node, all of which are asked and their
        replies joined, and "one-slot", where an index and its documents share a `{tag}`.

        `options` are those of `Client`; `max_connections` counts for each node.

        Raises ValueError or TypeError naming the parameter that is wrong.
        """
        given = [urls] if isinstance(urls, str) else list(urls)
        failure: Exception | None = None
        try:
            self._given = _checked(given, read_from, search)
            if options.get("near_cache"):
                raise ValueError("near_cache: a cluster's client has none yet")
            super().__init__(given[0], **options)
        except (TypeError, ValueError) as error:
            failure = error.with_traceback(None)
        # A traceback may show the locals of its frames: nobody's password is to be among them.
        del urls, given, options
        if failure is not None:
            failure.__context__ = None
            raise failure

    def _start(self) -> None:
        self._routes = Routes(
            replicas=self._given.read_from == "replica", search=self._given.search
        )
        self._nodes: dict[str, Any] = {}  # by `host:port`, for as long as this client lives
        self._next_look = 0.0  # when the map may be asked for again

    def _node(self, name: str) -> Any:
        """Return the client of one node."""
        node = self._nodes.get(name)
        if node is None:
            host, port = split_node(name)
            address = self._settings.address._replace(host=host, port=port)
            # One TLS context for all nodes: it reads files. What is tried again is said here.
            settings = self._settings._replace(
                address=address,
                ssl_context=self._settings.tls,
                retry=self._settings.retry._replace(attempts=1),
                readonly=self._given.read_from == "replica",
            )
            made = self._make_node(settings)
            self._share_observers(made)
            node = self._nodes.setdefault(name, made)
        return node

    def _share_observers(self, node: Any) -> None:
        node._observers, node._observer = self._observers, self._observer

    def observe(self, observer: Observer) -> None:
        """Tell an observer of each exchange with a node from now on, too."""
        super().observe(observer)
        for node in list(self._nodes.values()):
            self._share_observers(node)

    def unobserve(self, observer: Observer) -> None:
        """Tell this observer nothing more. Raises ValueError if it was told nothing."""
        super().unobserve(observer)
        for node in list(self._nodes.values()):
            self._share_observers(node)

    def _candidates(self) -> list[str]:
        """Return the nodes to ask who serves what: those known, in random order, then the seeds."""
        return list(dict.fromkeys((*self._routes.known, *self._given.seeds)))

    def _check_open(self, connection: Any = None) -> None:  # noqa: ARG002 - a node's client has one
        if self._closed:
            raise RuntimeError("the client is closed")

    def _may_look(self, now: float) -> bool:
        """Return whether the map may be asked for again; if so, it is not for a while."""
        if self._routes.primaries and now < self._next_look:
            return False
        self._next_look = now + _LEAST * (1 + random.random())  # noqa: S311 - so that clients differ
        return True


def confined(read: Callable[[], Any], keys: Sequence[Any]) -> Callable[[], Op[Any]]:
    """Return the function of a transaction that watches keys, kept to their slot.

    It raises CrossSlotError for what lies in another one, before it is sent.
    """
    watch = ("WATCH", *keys)

    def check(request: Any) -> None:
        if isinstance(request, (Command, Batch)):
            one_slot([watch, *_arguments(request)])

    def checked() -> Op[Any]:
        members = members_of((yield from watched(reading(read()), check)))
        check(Batch(members))
        return members

    return checked


def elsewhere(error: RedisError) -> bool:
    """Return whether nothing was done, as a slot is not there, or not yet."""
    return isinstance(error, errors.ConnectError) or error.code in _ELSEWHERE


_ELSEWHERE: Final = {"ASK", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MOVED", "READONLY", "TRYAGAIN"}


def why_not(error: RedisError) -> RedisError:
    """Return why a node did not say who serves what: one without a cluster says so."""
    if "cluster support disabled" in error.message:
        return errors.UnsupportedError("this server is no cluster's node", address=error.address)
    return error


def _arguments(request: Any) -> list[Sequence[Any]]:
    """Return the arguments of each command of a request."""
    if isinstance(request, Command):
        return [request.args]
    if isinstance(request, Batch):
        return [args for member in request.members for args in _arguments(member)]
    return [request]


def _checked(urls: list[str], read_from: str, search: str | None) -> _Given:
    if not urls:
        raise ValueError("urls: name at least one node")
    if read_from not in ("primary", "replica"):
        raise ValueError(f"read_from must be 'primary' or 'replica', not {read_from!r}")
    if search not in _SEARCHES:
        raise ValueError(f"search must be one of {_SEARCHES}, not {search!r}")
    seeds = []
    for url in urls:
        address = parse_url(url)
        if address.path:
            raise ValueError("urls: a cluster's nodes are named by host and port")
        if address.db:
            raise ValueError("urls: a cluster has one database, 0")
        seeds.append(node_name(address.host, address.port))
    return _Given(tuple(dict.fromkeys(seeds)), read_from, search)
