"""Histogram, recorder and report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawredis_llm import Client, EmbeddedServer, errors
from rawredis_llm.latency.histogram import Histogram
from rawredis_llm.latency.recorder import Recorder
from rawredis_llm.latency.report import table, text_table
from rawredis_llm.protocol.settings import Sizes, Times

SECONDS = st.floats(min_value=1e-9, max_value=1e4)


@given(st.lists(SECONDS, min_size=1, max_size=200), st.floats(min_value=0, max_value=100))
def test_percentiles_are_within_a_64th(values: list[float], percent: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    rank = max(-(-percent / 100 * len(values) // 1), 1)
    exact = sorted(values)[int(rank) - 1]
    # a nanosecond is the resolution
    assert abs(histogram.percentile(percent) - exact) <= exact / 64 + 1e-9


@given(st.lists(SECONDS, max_size=50), st.lists(SECONDS, min_size=1, max_size=50))
def test_merging_is_recording_in_one(first: list[float], second: list[float]) -> None:
    parts = [Histogram(), Histogram()]
    whole = Histogram()
    for part, values in zip(parts, (first, second), strict=True):
        for value in values:
            part.record(value)
            whole.record(value)
    parts[0].merge(parts[1])
    assert (parts[0].buckets, parts[0].count) == (whole.buckets, whole.count)


def test_an_empty_histogram_and_a_wrong_percentile_raise() -> None:
    with pytest.raises(ValueError, match="nothing was recorded"):
        Histogram().percentile(50)
    histogram = Histogram()
    histogram.record(1)
    with pytest.raises(ValueError, match="percent"):
        histogram.percentile(101)


def test_recorder_counts_calls_errors_and_bytes(server: EmbeddedServer) -> None:
    recorder = Recorder()
    with Client(server.url, observer=recorder) as client:
        client.call("DEL", "k")
        for _ in range(3):
            client.call("GET", "k")
        client.pipeline([("SET", "k", "v"), ("GET", "k")])
        with pytest.raises(errors.WrongTypeError):
            client.call("LPUSH", "k", 1)
    stats = {seen.name: seen for seen in recorder.stats()}
    assert next(iter(stats)) == "GET"
    assert {name: (seen.count, seen.errors) for name, seen in stats.items()} == {
        "GET": (3, 0),
        "DEL": (1, 0),
        "SET+GET": (1, 0),
        "LPUSH": (1, 1),
    }
    assert stats["GET"].sent == 3 * len(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n")
    assert stats["GET"].received == 3 * len(b"_\r\n")
    assert 0 < stats["GET"].p50 <= stats["GET"].p99
    assert recorder.connections == {"opened": 1, "closed": 1}


def test_table_has_a_line_for_each_command() -> None:
    recorder = Recorder()
    recorder.command("GET", Times(1.0, 1.0 + 1e-4), Sizes(20, 1234567), None)
    heading, line = table(recorder).splitlines()
    assert heading.split("  ")[0] == "command"
    assert line.split() == ["GET", "1", "0", "100", "100", "20", "1,234,567"]
    assert text_table(("a", "b"), []) == "a  b"
