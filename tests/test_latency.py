"""Histogram, recorder and report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawredis_llm import errors
from rawredis_llm.latency.histogram import Histogram
from rawredis_llm.latency.recorder import Recorder
from rawredis_llm.latency.report import Report
from rawredis_llm.latency.tables import text_table

if TYPE_CHECKING:
    from conftest import Redis

SECONDS = st.floats(min_value=1e-9, max_value=1e4)


def histogram_of(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(st.lists(SECONDS, min_size=1, max_size=200), st.floats(min_value=0, max_value=100))
def test_percentiles_are_within_a_256th(values: list[float], percent: float) -> None:
    rank = max(-(-percent / 100 * len(values) // 1), 1)
    exact = sorted(values)[int(rank) - 1]
    assert histogram_of(values).percentile(percent) == pytest.approx(exact, rel=1 / 256)


@given(st.lists(SECONDS, max_size=50), st.lists(SECONDS, min_size=1, max_size=50))
def test_merging_is_recording_in_one(first: list[float], second: list[float]) -> None:
    merged = histogram_of(first)
    merged.merge(histogram_of(second))
    whole = histogram_of(first + second)
    assert merged.buckets == whole.buckets
    assert (merged.count, merged.least, merged.most) == (whole.count, whole.least, whole.most)
    assert merged.sum == pytest.approx(whole.sum)


def test_an_empty_histogram_and_a_wrong_percentile_raise() -> None:
    with pytest.raises(ValueError, match="nothing was recorded"):
        Histogram().percentile(50)
    with pytest.raises(ValueError, match="percent"):
        histogram_of([1]).percentile(101)


def test_recorder_counts_calls_errors_and_bytes(redis: Redis) -> None:
    recorder = Recorder()
    client = redis.connect(observer=recorder)
    redis.do(client.call("DEL", "k"))
    for _ in range(3):
        redis.do(client.call("GET", "k"))
    redis.do(client.pipeline([("SET", "k", "v"), ("GET", "k")]))
    with pytest.raises(errors.WrongTypeError):
        redis.do(client.call("LPUSH", "k", 1))
    redis.do(client.close())
    report = recorder.report()
    seen = report.commands
    assert {name: (one.count, one.commands, one.errors) for name, one in seen.items()} == {
        "GET": (3, 3, {}),
        "DEL": (1, 1, {}),
        "PIPELINE SET+GET": (1, 2, {}),
        "LPUSH": (1, 1, {"WrongTypeError": 1}),
    }
    assert seen["GET"].sent == 3 * len(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n")
    if redis.kind == "sync":
        assert seen["GET"].received == 3 * len(b"_\r\n" if redis.protocol == 3 else b"$-1\r\n")
    else:
        assert seen["GET"].received is None
    assert 0 < seen["GET"].total.percentile(50) <= seen["GET"].total.percentile(99)
    assert report.connections == {"opened": 1, "closed": 1}
    for one in seen.values():
        assert sum(phase.sum for phase in one.phases.values()) == pytest.approx(one.total.sum)
    assert Report.from_json(report.to_json()) == report


def test_table_has_a_line_for_each_command() -> None:
    recorder = Recorder()
    marks = (1.0, 1.00001, 1.00002, 1.00003, 1.00004, 1.00005, 1.0002, 20, 1234567, 1, 2)
    recorder.exchange(("GET", "k"), marks, None)
    calls, phases = recorder.report().table().split("\n\n")
    heading, line = calls.splitlines()
    assert heading.split("  ")[0] == "command"
    name, count, _, *rest = line.split()
    assert [name, count, *rest] == ["GET", "1", "0", "1", *["200"] * 5, "20", "1,234,567"]
    assert phases.splitlines()[1].split() == ["GET", "200", *["10.0"] * 5, "150"]
    assert text_table(("a", "b"), []) == "a  b"
