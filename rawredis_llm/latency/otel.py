"""An observer that tells OpenTelemetry of each exchange, by its conventions for Redis clients.

Needs the extra `otel`, which is the API alone: without an SDK nothing is recorded.

Must not import numpy, or what records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from time import monotonic, time_ns
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from ..errors import ReplyError
from ..protocol.operation import Sent
from .names import argv, is_batch, names, parted, procedure

try:
    from opentelemetry import metrics as meters
    from opentelemetry import trace
except ImportError as error:
    raise ImportError("OpenTelemetry needs: pip install 'rawredis-llm[otel]'") from error

if TYPE_CHECKING:
    from ..aio.client import AsyncClient
    from ..sync.client import Client

__all__ = ["OpenTelemetry"]

BOUNDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)  # as the conventions advise
MOST: Final = 1000  # operations that the metric tells apart; what comes after them is one
_TARGET: Final = ("db.collection.name", "db.stored_procedure.name")


class OpenTelemetry:
    """Spans and metrics of a client's exchanges: `client.observe(OpenTelemetry(client))`.

    Each exchange is a span of the kind CLIENT, a child of the caller's own, and is counted in the
    histogram `db.client.operation.duration`. `db.client.connection.count` tells how many
    connections are idle and used, those of all clients of an address together. `spans=False` and
    `metrics=False` leave one of them out; the providers are the global ones unless given.

    No value is told, and no server's message: `db.query.text` is `SET user:1 ?`, as `names.argv`
    has it. `error.type` is the first word of a server's error, else the exception's name;
    `db.namespace` is the database that the client was given.
    """

    def __init__(
        self,
        client: Client | AsyncClient,
        *,
        spans: bool = True,
        metrics: bool = True,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: meters.MeterProvider | None = None,
    ) -> None:
        self._place = _place(client)
        self._told: set[Any] = set()
        self._tracer = trace.get_tracer("rawredis_llm", None, tracer_provider) if spans else None
        self._durations: meters.Histogram | None = None
        if metrics:
            meter = meters.get_meter("rawredis_llm", meter_provider=meter_provider)
            self._durations = meter.create_histogram(
                "db.client.operation.duration",
                unit="s",
                description="Duration of database client operations.",
                explicit_bucket_boundaries_advisory=BOUNDS,
            )
            _clients.add(client)
            # One callback for all clients: a meter keeps the first that an instrument was given.
            meter.create_observable_up_down_counter(
                "db.client.connection.count",
                [_connections],
                unit="{connection}",
                description="The number of connections that are currently in that state.",
            )

    def exchange(self, what: Sent, marks: tuple[float, ...], error: BaseException | None) -> None:
        """Tell of one exchange (called by the client)."""
        operation, failure = _operation(what), {} if error is None else _failure(error)
        seconds = marks[6] - marks[0]
        if self._durations is not None:
            counted = self._bounded(operation)
            self._durations.record(seconds, {**self._place, **counted, **failure})
        if self._tracer is not None:
            attributes = {**self._place, **operation, **failure}
            attributes["db.query.text"] = "; ".join(argv(what))
            if is_batch(what) and (size := what.width - 2 * what.atomic) > 1:
                attributes["db.operation.batch.size"] = size
            # The clocks are compared anew each time: the epoch's is corrected now and then.
            end = time_ns() - int((monotonic() - marks[6]) * 1e9)
            span = self._tracer.start_span(
                f"{operation['db.operation.name']} {self._target(operation)}",
                kind=trace.SpanKind.CLIENT,
                attributes=attributes,
                start_time=end - int(seconds * 1e9),
            )
            if error is not None:
                span.set_status(trace.StatusCode.ERROR)
            span.end(end)

    def connection(self, event: str) -> None:
        """Do nothing: connections are counted when a reader asks."""

    def _target(self, operation: dict[str, str]) -> str:
        known = (operation[name] for name in _TARGET if name in operation)
        return next(known, _server(self._place))

    def _bounded(self, operation: dict[str, str]) -> dict[str, str]:
        """Return an operation's attributes, or those of all others when there are too many."""
        key = tuple(operation.values())
        if key not in self._told:
            if len(self._told) >= MOST:
                return {"db.operation.name": "_OTHER"}
            self._told.add(key)
        return operation


def _place(client: Any) -> dict[str, Any]:
    address = client._settings.address  # noqa: SLF001 - of the same package
    place = {"db.system.name": "redis", "db.namespace": str(address.db)}
    if address.path:
        return {**place, "server.address": address.path}
    return {**place, "server.address": address.host, "server.port": address.port}


def _server(place: dict[str, Any]) -> str:
    port = place.get("server.port")
    return place["server.address"] if port is None else f"{place['server.address']}:{port}"


def _operation(what: Sent) -> dict[str, str]:
    """Return what tells an operation from others: its name, and its index or script."""
    parts = [parted(name) for name in names(what)]
    commands, indexes = (list(dict.fromkeys(column)) for column in zip(*parts, strict=True))
    name = commands[0]
    if is_batch(what):
        kind = "MULTI" if what.atomic else "PIPELINE"
        name = f"{kind} {name}" if len(commands) == 1 else kind
    operation = {"db.operation.name": name}
    if len(indexes) == 1 and indexes[0]:
        operation["db.collection.name"] = indexes[0]
    script = procedure(what)
    if script is not None:
        operation["db.stored_procedure.name"] = script
    return operation


def _failure(error: BaseException) -> dict[str, str]:
    code = error.code if isinstance(error, ReplyError) else ""
    if not code:
        return {"error.type": type(error).__name__}
    return {"error.type": code, "db.response.status_code": code}


_clients: WeakSet[Any] = WeakSet()


def _connections(_: meters.CallbackOptions) -> Iterator[meters.Observation]:
    counts: Counter[tuple[str, str]] = Counter()
    for client in list(_clients):
        place, figures = _place(client), client.connections
        pool = f"{_server(place)}/{place['db.namespace']}"
        counts[pool, "idle"] += figures.open - figures.in_use
        counts[pool, "used"] += figures.in_use
    for (pool, state), count in counts.items():
        told = {"db.client.connection.pool.name": pool, "db.client.connection.state": state}
        yield meters.Observation(count, told)
