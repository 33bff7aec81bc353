"""What Prometheus and OpenTelemetry are told."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from proxy import Proxy
from rawredis_llm import Client, Command, EmbeddedServer, Recorder, Script, errors, profile
from rawredis_llm.latency.histogram import Histogram
from rawredis_llm.latency.otel import BOUNDS, MOST, OpenTelemetry
from rawredis_llm.latency.prometheus import exposition
from rawredis_llm.latency.report import CommandTimes, Report
from rawredis_llm.protocol.observing import PHASES
from rawredis_llm.protocol.settings import ConnectionFigures

if TYPE_CHECKING:
    from conftest import Redis

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(text: str) -> Samples:
    """Return what Prometheus' own parser makes of it; no sample comes twice."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def labelled(**labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


def report_of(name: str, seconds: list[float], **more: Any) -> Report:
    total = Histogram()
    for one in seconds:
        total.record(one)
    phases = {phase: total.copy() for phase in PHASES}
    given = {"commands": 1, "retries": 0, "errors": {}, "sent": 1, "received": 1, **more}
    return Report(0.0, 1.0, {name: CommandTimes(name, total=total, phases=phases, **given)})


def test_exposition_tells_what_a_report_does(redis: Redis) -> None:
    recorder = Recorder()
    client = redis.connect(observer=recorder)
    for _ in range(3):
        redis.do(client.call("SET", "k", "v"))
    with pytest.raises(errors.WrongTypeError):
        redis.do(client.call("LPUSH", "k", 1))
    redis.do(client.pipeline([("GET", "k"), ("GET", "k")]))
    redis.do(client.call("FT.CREATE", "docs", "SCHEMA", "t", "TEXT"))
    redis.do(client.call("FT.SEARCH", "docs", "*"))
    text = exposition(recorder, client.connections)
    report, found = recorder.report(), read(text)
    name = "redis_client_operation_duration_seconds"
    assert found[f"{name}_count", labelled(command="SET")] == 3
    assert found[f"{name}_count", labelled(command="FT.SEARCH", index="docs")] == 1
    assert found[f"{name}_count", labelled(command="PIPELINE GET")] == 1
    for one in report.commands.values():
        command, _, index = one.name.partition(" ") if "FT." in one.name else (one.name, "", "")
        labels = {"command": command, "index": index} if index else {"command": command}
        assert found[f"{name}_sum", labelled(**labels)] == one.total.sum
        assert found[f"{name}_bucket", labelled(**labels, le="+Inf")] == one.count
        assert found["redis_client_sent_bytes_total", labelled(**labels)] == one.sent
        received = found.get(("redis_client_received_bytes_total", labelled(**labels)))
        assert received == one.received
        for phase in PHASES:
            told = found["redis_client_phase_duration_seconds_sum", labelled(**labels, phase=phase)]
            assert told == one.phases[phase].sum
    assert found["redis_client_commands_total", labelled(command="PIPELINE GET")] == 2
    failed = labelled(command="LPUSH", error_type="WrongTypeError")
    assert found["redis_client_errors_total", failed] == 1
    assert found["redis_client_retries_total", labelled(command="SET")] == 0
    assert found["redis_client_connection_events_total", labelled(event="opened")] == 1
    assert found["redis_client_connections", labelled(state="idle")] == 1
    assert found["redis_client_connections", labelled(state="used")] == 0
    assert found["redis_client_waiting_callers", ()] == 0


@given(st.lists(st.floats(0, 100) | st.sampled_from([2.0**-16, 1.0, 16.0]), max_size=60))
def test_buckets_are_exact(seconds: list[float]) -> None:
    found = read(exposition(report_of("GET", seconds)))
    buckets = [
        (float(dict(labels)["le"]), count)
        for (name, labels), count in found.items()
        if name == "redis_client_operation_duration_seconds_bucket"
    ]
    assert [bound for bound, _ in buckets] == [2.0**power for power in range(-16, 5)] + [math.inf]
    for bound, count in buckets:
        assert count == sum(one < bound for one in seconds)


NASTY = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(NASTY, NASTY)
def test_labels_are_escaped(name: str, kind: str) -> None:
    for told in (name, f"{name}\\", f'{name}"\n{{'):
        found = read(exposition(report_of(f"FT.SEARCH {told}", [1.0], errors={kind: 1})))
        labels = labelled(command="FT.SEARCH", index=told)
        assert found["redis_client_operation_duration_seconds_count", labels] == 1
        assert found["redis_client_errors_total", labelled(**dict(labels), error_type=kind)] == 1


def test_exposition_leaves_out_what_is_not_known() -> None:
    assert exposition(Report(0.0, 1.0, {})) == ""
    found = read(exposition(report_of("GET", [1.0], received=None)))
    assert ("redis_client_received_bytes_total", labelled(command="GET")) not in found
    figures = ConnectionFigures(3, 1, 2, 3, 0, 0.0, {})
    found = read(exposition(Report(0.0, 1.0, {}), figures))
    assert list(found.values()) == [2, 1, 2]


def test_a_profile_can_be_exposed(client: Client) -> None:
    with profile(client) as seen:
        client.call("PING")
    assert 'redis_client_commands_total{command="PING"} 1\n' in exposition(seen)


class Told:
    """An observer, and what became of what it told."""

    def __init__(self, client: Any, **options: Any) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.traces = TracerProvider(shutdown_on_exit=False)
        self.traces.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.tracer = self.traces.get_tracer("caller")
        self.client = client
        self.observer = self.another(client, **options)

    def another(self, client: Any, **options: Any) -> OpenTelemetry:
        """Observe one more client."""
        providers = {"tracer_provider": self.traces, "meter_provider": self.meters}
        observer = OpenTelemetry(client, **{**providers, **options})
        client.observe(observer)
        return observer

    @property
    def spans(self) -> list[ReadableSpan]:
        """The client's spans; seeing them forgets them."""
        found = [one for one in self.exporter.get_finished_spans() if one.kind.name == "CLIENT"]
        self.exporter.clear()
        return found

    def points(self, name: str) -> list[Any]:
        """The data points of a metric."""
        data: Any = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def close(self) -> None:
        self.traces.shutdown()
        self.meters.shutdown()


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[Proxy]:
    """The server at a TCP port."""
    with Proxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def told(redis: Redis) -> Iterator[Told]:
    """What is told of a client in each colour."""
    told = Told(redis.client)
    yield told
    told.close()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_call_is_a_span_of_its_caller(redis: Redis, proxy: Proxy) -> None:
    told = Told(redis.connect(url=proxy.url))
    before = time.time_ns()
    with told.tracer.start_as_current_span("caller") as caller:
        redis.do(told.client.call("set", "user:1", "hunter2", "EX", 100))
    [span] = told.spans
    assert span.parent is not None
    assert span.parent.span_id == caller.get_span_context().span_id
    host, _, port = proxy.url.removeprefix("redis://").partition(":")
    assert attributes(span) == {
        "db.system.name": "redis",
        "db.namespace": "0",
        "db.operation.name": "SET",
        "db.query.text": "SET user:1 ? EX ?",
        "server.address": host,
        "server.port": int(port),
    }
    assert span.name == f"SET {host}:{port}"
    assert span.status.status_code is trace.StatusCode.UNSET
    assert before <= (span.start_time or 0) <= (span.end_time or 0) <= time.time_ns()
    [point] = told.points("db.client.operation.duration")
    seconds = ((span.end_time or 0) - (span.start_time or 0)) / 1e9
    assert point.sum == pytest.approx(seconds, abs=1e-6)
    assert point.explicit_bounds == BOUNDS
    expected = attributes(span)
    del expected["db.query.text"]
    assert dict(point.attributes) == expected
    told.close()


def test_a_span_lasts_as_long_as_its_call(redis: Redis, told: Told) -> None:
    with pytest.raises(errors.ReadTimeoutError):
        redis.do(told.client.call("BLPOP", "nothing", 10, timeout=0.1))
    [span] = told.spans
    assert (span.end_time or 0) - (span.start_time or 0) >= 0.1e9
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.status.description is None
    assert not span.events
    assert attributes(span)["error.type"] == "ReadTimeoutError"
    assert "db.response.status_code" not in attributes(span)


def test_a_span_is_dated_back(server: EmbeddedServer) -> None:
    with Client(server.url) as client:
        told = Told(client)
        now, ended = time.time_ns(), time.monotonic() - 60
        told.observer.exchange(("GET", "k"), (ended - 2, *[ended] * 6), None)
        [span] = told.spans
        assert (span.end_time or 0) == pytest.approx(now - 60e9, abs=5e9)
        assert (span.end_time or 0) - (span.start_time or 0) == 2_000_000_000
        told.close()


def test_each_task_has_its_own_spans(server: EmbeddedServer) -> None:
    async def run() -> None:
        from rawredis_llm import AsyncClient

        async with AsyncClient(server.url) as client:
            told = Told(client)

            async def caller(number: int) -> tuple[int, int]:
                with told.tracer.start_as_current_span(str(number)) as span:
                    await client.call("ECHO", number)
                    await asyncio.sleep(0)
                    await client.call("SET", f"k{number}", number)
                return number, span.get_span_context().span_id

            ids = dict(await asyncio.gather(*map(caller, range(20))))
            for span in told.spans:
                text = attributes(span)["db.query.text"]
                if text.startswith("SET"):
                    assert span.parent is not None
                    assert span.parent.span_id == ids[int(text.split()[1][1:])]
            told.close()

    asyncio.run(run())


def test_a_servers_error_is_told_by_its_first_word(redis: Redis, told: Told) -> None:
    redis.do(told.client.call("SET", "k", "v"))
    with pytest.raises(errors.WrongTypeError):
        redis.do(told.client.call("LPUSH", "k", "hunter2"))
    with pytest.raises(errors.ReplyError):
        redis.do(told.client.call("AUHT", "hunter2"))
    _, wrong, unknown = told.spans
    assert attributes(wrong)["error.type"] == "WRONGTYPE"
    assert attributes(wrong)["db.response.status_code"] == "WRONGTYPE"
    assert attributes(unknown)["error.type"] == "ERR"
    assert attributes(unknown)["db.query.text"] == "AUHT ?"
    assert "hunter2" not in wrong.to_json() + unknown.to_json()
    points = told.points("db.client.operation.duration")
    assert sorted(point.attributes.get("error.type", "") for point in points) == [
        "",
        "ERR",
        "WRONGTYPE",
    ]


def test_batches(redis: Redis, told: Told) -> None:
    client = told.client
    redis.do(client.call("FT.CREATE", "docs", "SCHEMA", "t", "TEXT"))
    redis.do(client.pipeline([("GET", "a"), ("GET", "b")]))
    redis.do(client.pipeline([("GET", "a"), ("TTL", "b")]))
    redis.do(client.pipeline([("GET", "a")]))
    redis.do(client.transaction([("INCR", "a"), ("INCR", "a")]))
    redis.do(client.transaction([("INCR", "a")]))
    redis.do(client.transaction([("INCR", "a"), ("GET", "a")]))
    redis.do(client.pipeline([("FT.SEARCH", "docs", "x"), ("FT.SEARCH", "docs", "y")]))
    spans = [attributes(span) for span in told.spans[1:]]
    shown = [(one["db.operation.name"], one.get("db.operation.batch.size")) for one in spans]
    assert shown == [
        ("PIPELINE GET", 2),
        ("PIPELINE", 2),
        ("GET", None),
        ("MULTI INCR", 2),
        ("MULTI INCR", None),
        ("MULTI", 2),
        ("PIPELINE FT.SEARCH", 2),
    ]
    assert spans[1]["db.query.text"] == "GET a; TTL b"
    assert spans[-1]["db.query.text"] == 'FT.SEARCH docs "?"; FT.SEARCH docs "?"'
    assert spans[-1]["db.collection.name"] == "docs"


def test_targets(redis: Redis, told: Told) -> None:
    client = told.client
    redis.do(client.call("FT.CREATE", "docs", "SCHEMA", "t", "TEXT"))
    redis.do(client.call("FT.SEARCH", "docs", "@t:(hunter2)"))
    script = Script("return ARGV[1]")
    redis.do(client.run(script(args=["hunter2"])))
    redis.do(client.run(script(args=["hunter2"])))
    _, search, *_, digest = told.spans
    assert search.name == "FT.SEARCH docs"
    assert attributes(search)["db.collection.name"] == "docs"
    sha = attributes(digest)["db.stored_procedure.name"]
    assert (digest.name, len(sha)) == (f"EVALSHA {sha}", 40)


def test_a_socket_and_a_database_are_told(tmp_path: Any) -> None:
    told = Told(Client(f"unix://{tmp_path}/nothing.sock?db=3", retry=None))
    with pytest.raises(errors.ConnectError):
        told.client.call("PING")
    [span] = told.spans
    assert attributes(span)["server.address"] == f"{tmp_path}/nothing.sock"
    assert attributes(span)["db.namespace"] == "3"
    assert attributes(span)["error.type"] == "ConnectError"
    assert "server.port" not in attributes(span)
    assert span.name == f"PING {tmp_path}/nothing.sock"
    told.close()


def test_spans_and_metrics_can_be_left_out(redis: Redis) -> None:
    without = Told(redis.connect(), spans=False)
    redis.do(without.client.call("PING"))
    assert not without.spans
    assert without.points("db.client.operation.duration")
    without.close()
    without = Told(redis.connect(), metrics=False)
    redis.do(without.client.call("PING"))
    assert without.spans
    assert not without.points("db.client.operation.duration")
    assert not without.points("db.client.connection.count")
    without.close()


def test_connections_of_all_clients_of_an_address_are_counted(redis: Redis, proxy: Proxy) -> None:
    first, second = redis.connect(url=proxy.url), redis.connect(url=proxy.url)
    told = Told(first)
    told.another(second)
    redis.do(first.call("PING"))
    pool = proxy.url.removeprefix("redis://") + "/0"

    def counted() -> dict[str, int]:
        return {
            point.attributes["db.client.connection.state"]: point.value
            for point in told.points("db.client.connection.count")
            if point.attributes["db.client.connection.pool.name"] == pool
        }

    assert counted() == {"idle": 1, "used": 0}
    redis.do(second.call("PING"))
    assert counted() == {"idle": 2, "used": 0}
    redis.do(first.close())
    assert counted() == {"idle": 1, "used": 0}
    redis.do(second.close())
    told.close()


def test_a_connection_in_use_is_counted(client: Client) -> None:
    told = Told(client)
    states = {}

    def look() -> Any:
        yield from Command(("GET", "k"))
        for point in told.points("db.client.connection.count"):
            name = point.attributes["db.client.connection.pool.name"]
            if name.startswith(client.place[0].removeprefix("unix://")):
                states[point.attributes["db.client.connection.state"]] = point.value
        return []

    client.transaction(look, watch=["k"])
    assert states == {"idle": 0, "used": 1}
    told.close()


def test_a_client_that_is_gone_is_not_counted(server: EmbeddedServer) -> None:
    told = Told(Client(f"{server.url}?db=7"))
    told.client.call("PING")
    pools = [dict(point.attributes) for point in told.points("db.client.connection.count")]
    assert any("/7" in pool["db.client.connection.pool.name"] for pool in pools)
    told.client.close()
    del told.client
    pools = [dict(point.attributes) for point in told.points("db.client.connection.count")]
    assert not any("/7" in pool["db.client.connection.pool.name"] for pool in pools)
    told.close()


def test_the_metric_tells_only_so_many_operations_apart(server: EmbeddedServer) -> None:
    with Client(server.url) as client:
        told = Told(client)
        for number in range(MOST + 50):
            told.observer.exchange((f"nonsense{number}", "k"), (0.0,) * 7, None)
        points = {
            point.attributes["db.operation.name"]: point.count
            for point in told.points("db.client.operation.duration")
        }
        assert len(points) == MOST + 1
        assert points["_OTHER"] == 50
        told.close()


def test_what_opentelemetry_raises_harms_no_call(redis: Redis, told: Told) -> None:
    told.traces.shutdown()
    told.observer._place = None  # type: ignore[assignment]  # so it raises
    assert redis.do(told.client.call("PING")) == b"PONG"


def test_only_who_asks_needs_opentelemetry() -> None:
    missing = "import sys; sys.modules['opentelemetry'] = None; import rawredis_llm; "
    used = "from rawredis_llm import Client, Recorder, profile; import rawredis_llm.latency.otel"
    run = subprocess.run(
        [sys.executable, "-c", missing + used], capture_output=True, text=True, check=False
    )
    last = run.stderr.splitlines()[-1]
    assert last == "ImportError: OpenTelemetry needs: pip install 'rawredis-llm[otel]'"
