"""Recorder, histogram and report under threads, signals, forks, years and mutilated JSON."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawredis_llm import Batch, Client, EmbeddedServer, Recorder, Report, errors
from rawredis_llm.latency import recorder as recording
from rawredis_llm.latency.histogram import Histogram
from rawredis_llm.latency.recorder import FULL, MOST, OTHERS, WIDTH, SlowCall
from rawredis_llm.latency.report import SLICES, Timeline
from rawredis_llm.latency.tables import table
from rawredis_llm.protocol.observing import PHASES

if TYPE_CHECKING:
    from conftest import Redis

ROWS = FULL // WIDTH // 8
"""So many exchanges of one name are set aside together."""


def marks(
    *spans: float, began: float = 1e5, out: int = 10, commands: int = 1, attempts: int = 1
) -> tuple[float, ...]:
    """Return an exchange's marks; phases that are not given took no time."""
    times = accumulate((*spans, *[0.0] * (6 - len(spans))), initial=began)
    return (*times, out, 20, commands, attempts)


def counts(report: Report) -> dict[str, int]:
    return {name: one.count for name, one in report.commands.items()}


# -- threads, signals, processes ---------------------------------------------------------------


def test_threads_lose_nothing_while_another_reports() -> None:
    recorder = Recorder()
    failure = errors.WrongTypeError("WRONGTYPE")
    each, threads, names = 20_000, 8, ["GET", "get", "SET", "CONFIG"]
    seen: list[int] = []
    done = threading.Event()

    def record(number: int) -> None:
        for turn in range(each):
            name = names[(turn + number) % len(names)]
            failed = failure if turn % 10 == 0 else None
            recorder.exchange((name, "GET"), marks(1e-3, commands=2, attempts=3), failed)

    def report() -> None:
        while not done.is_set():
            seen.append(sum(counts(recorder.report()).values()))

    workers = [threading.Thread(target=record, args=(number,)) for number in range(threads)]
    reporter = threading.Thread(target=report)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in (*workers, reporter):
            thread.start()
        for thread in workers:
            thread.join()
    finally:
        done.set()
        reporter.join()
        sys.setswitchinterval(before)
    report_ = recorder.report()
    whole = each * threads
    assert counts(report_) == {"GET": whole // 2, "SET": whole // 4, "CONFIG GET": whole // 4}
    for one in report_.commands.values():
        assert one.sent == 10 * one.count
        assert one.received == 20 * one.count
        assert one.commands == 2 * one.count
        assert one.retries == 2 * one.count
        assert all(phase.count == one.count for phase in one.phases.values())
    failed = sum(sum(one.errors.values()) for one in report_.commands.values())
    assert failed == whole // 10 == sum(one.errors for one in report_.timeline.slices)
    assert sum(one.total.count for one in report_.timeline.slices) == whole
    assert seen == sorted(seen)  # a later report never tells of less


def test_what_is_recorded_is_in_the_next_report() -> None:
    recorder = Recorder()
    for number in range(1, ROWS * 3):
        recorder.exchange(("GET", "k"), marks(1.0), None)
        if number % 97 == 0 or number in {ROWS - 1, ROWS, ROWS + 1}:
            assert counts(recorder.report()) == {"GET": number}


def test_reset_while_others_record_forgets_all_before() -> None:
    recorder, done = Recorder(), threading.Event()
    failures: list[BaseException] = []

    def record() -> None:
        try:
            while not done.is_set():
                recorder.exchange(("GET", "k"), marks(1e-3), None)
                recorder.exchange(("CONFIG", "GET"), marks(1e-3), errors.BusyError())
                recorder.connection("opened")
        except BaseException as error:  # noqa: BLE001 - it fails the test below
            failures.append(error)

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        recorder.reset()
        recorder.report()
        time.sleep(1e-4)
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    recorder.reset()
    report = recorder.report()
    assert (report.commands, report.connections, report.timeline) == ({}, {}, Timeline())
    recorder.exchange(("GET", "k"), marks(1.0), None)
    assert counts(recorder.report()) == {"GET": 1}


@contextmanager
def storm(handler: Callable[[], object], every: float) -> Iterator[list[int]]:
    """Call a function in a signal handler, again and again; give a list as long as the calls."""
    calls: list[int] = []

    def handle(*_: object) -> None:
        handler()
        calls.append(1)

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, every, every)
    try:
        yield calls
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_calls_in_signal_handlers_are_counted(server: EmbeddedServer) -> None:
    recorder = Recorder()
    with Client(server.url, observer=recorder) as client:
        client.call("DEL", "k")
        with storm(lambda: client.call("GET", "k"), 1e-3) as handled:
            for _ in range(5000):
                client.call("TTL", "k")
        assert len(handled) > 50
        assert counts(recorder.report()) == {"DEL": 1, "TTL": 5000, "GET": len(handled)}


class Interrupting(list[Any]):
    """A list to whose `append` a signal handler comes, once."""

    def __init__(self, handler: Callable[[], object]) -> None:
        super().__init__()
        self.handler: Callable[[], object] | None = handler

    def append(self, one: Any) -> None:
        super().append(one)
        handler, self.handler = self.handler, None
        if handler is not None:
            handler()


def test_a_signal_while_rows_are_set_aside_counts_none_twice() -> None:
    recorder = Recorder()
    for _ in range(ROWS - 1):
        recorder.exchange(("GET", "k"), marks(1.0), None)

    def handler() -> None:
        recorder.exchange(("GET", "k"), marks(1.0), None)

    recorder._series["GET"].full = Interrupting(handler)
    recorder.exchange(("GET", "k"), marks(1.0), None)
    assert counts(recorder.report()) == {"GET": ROWS + 1}


def test_a_signal_while_a_report_is_made_may_bring_a_new_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = Recorder()
    for name in ("GET", "SET"):
        recorder.exchange((name, "k"), marks(1.0), None)
    times = recording._times

    def interrupted(name: str, seen: Any) -> Any:
        recorder.exchange((f"NEW{name}", "k"), marks(1.0), None)
        return times(name, seen)

    monkeypatch.setattr(recording, "_times", interrupted)
    assert {"GET", "SET"} <= set(counts(recorder.report()))


class Racing(bytearray):
    """Rows to which another thread adds one, right after somebody asked how many there are."""

    others = b""

    def __len__(self) -> int:
        size = super().__len__()
        others, self.others = self.others, b""
        self += others
        return size


def test_what_comes_while_rows_are_set_aside_stays() -> None:
    recorder = Recorder()
    for _ in range(3):
        recorder.exchange(("GET", "k"), marks(1.0), None)
    series = recorder._series["GET"]
    series.rows = Racing(series.rows)
    series.rows.others = bytes(series.rows[: WIDTH * 8])
    assert counts(recorder.report()) == {"GET": 3}
    assert counts(recorder.report()) == {"GET": 4}


def test_a_report_stays_as_it_is() -> None:
    recorder = Recorder()

    def record() -> None:
        recorder.connection("opened")
        recorder.exchange(("GET", "k"), marks(1.0), errors.BusyError())

    record()
    report = recorder.report()
    before = report.to_json()
    record()
    assert recorder.report().connections == {"opened": 2}
    assert recorder.report().commands["GET"].errors == {"BusyError": 2}
    assert report.to_json() == before


def forked(child: Callable[[], object]) -> int:
    """Return the exit code of a forked process: 0 if the function returned in time."""
    process = os.fork()
    if process == 0:  # pragma: no cover - coverage does not look into it
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, 2)
            child()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_goes_on_recording(server: EmbeddedServer) -> None:
    recorder = Recorder()
    with Client(server.url, observer=recorder) as client:
        client.call("GET", "k")

        def child() -> None:
            client.call("GET", "k")
            client.call("TTL", "k")
            assert counts(recorder.report()) == {"GET": 2, "TTL": 1}  # the parent's, too

        assert forked(child) == 0
        assert counts(recorder.report()) == {"GET": 1}


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_while_another_thread_reports_stops_nothing() -> None:
    recorder = Recorder()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with recorder._lock:
            held.set()
            done.wait(5)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(5)
    try:
        code = forked(lambda: recorder.exchange(("GET", "k"), marks(1.0), None))
    finally:
        done.set()
        thread.join()
    assert code == 0


def _work(url: str, count: int) -> str:
    """Make calls in a process of its own; return what was recorded."""
    recorder = Recorder()
    with Client(url, observer=recorder) as client:
        for number in range(count):
            client.call("SET", f"merged{count}", number)
            client.pipeline([("GET", f"merged{count}")] * 3)
        with suppress(errors.WrongTypeError):
            client.call("LPUSH", f"merged{count}", 1)
    return recorder.report().to_json()


def test_reports_of_processes_add_up(server: EmbeddedServer) -> None:
    sizes = [10, 20, 30, 40]
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        texts = pool.starmap(_work, [(server.url, size) for size in sizes])
    reports = [Report.from_json(text) for text in texts]
    assert [report.to_json() for report in reports] == texts
    for order in (reports, reports[::-1]):
        merged = sum(order[1:], order[0])
        assert counts(merged) == {"SET": 100, "PIPELINE GET": 100, "LPUSH": 4}
        assert merged.commands["LPUSH"].errors == {"WrongTypeError": 4}
        assert merged.commands["PIPELINE GET"].commands == 300
        assert merged.connections == {"opened": 4, "closed": 4}
        assert merged.began == min(report.began for report in reports)
        ends = [report.began + report.seconds for report in reports]
        assert merged.began + merged.seconds == pytest.approx(max(ends))
        assert sum(one.total.count for one in merged.timeline.slices) == 204
        assert sum(one.errors for one in merged.timeline.slices) == 4
        for name, one in merged.commands.items():
            parts = [report.commands[name] for report in reports]
            assert one.sent == sum(part.sent for part in parts)
            assert one.received == sum(part.received or 0 for part in parts)
            for phase in PHASES:
                spans = [part.phases[phase] for part in parts]
                assert one.phases[phase].sum == pytest.approx(sum(span.sum for span in spans))
                assert one.phases[phase].most == max(span.most for span in spans)
    assert [report.to_json() for report in reports] == texts  # adding changed none of them


def test_a_later_report_is_added_where_it_belongs() -> None:
    recorder = Recorder()
    recorder.exchange(("GET", "k"), marks(1.0, attempts=3), None)
    commands = recorder.report().commands
    early, late = Report(100.0, 5.0, commands), Report(110.0, 20.0, commands)
    late.timeline.failed(1.05)
    for merged in (early + late, late + early):
        assert (merged.began, merged.seconds) == (100.0, 30.0)
        assert [number for number, one in enumerate(merged.timeline.slices) if one.errors] == [110]
        assert merged.commands["GET"].retries == 4
    assert (late + Report(111.0, 1.0, {})).seconds == 20.0


# -- memory, and names without end -------------------------------------------------------------


def grown(record: Callable[[], object]) -> int:
    """Return how many bytes it left behind."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        record()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_calls() -> None:
    recorder = Recorder()
    one, chance = recorder.exchange, random.Random(1)
    examples = [marks(chance.lognormvariate(-8, 2), began=1e5 + n) for n in range(1000)]

    def record(times: int) -> None:
        for _ in range(times):
            for example in examples:
                one(("GET", "k"), example, None)

    record(100)
    recorder.report()
    assert grown(lambda: record(900)) < 3_000_000
    assert counts(recorder.report()) == {"GET": 1_000_000}


def test_only_so_many_names_are_told_apart() -> None:
    recorder = Recorder()

    def record() -> None:
        for number in range(5 * MOST):
            recorder.exchange((f"nonsense{number}", "k"), marks(1e-3), None)
            recorder.exchange(("FT.SEARCH", f"index{number}", "*"), marks(1e-3), None)

    assert grown(record) < 20_000_000
    found = counts(recorder.report())
    assert len(found) == MOST + 1
    assert found[OTHERS] == 10 * MOST - MOST
    recorder.exchange(("NONSENSE1", "k"), marks(1e-3), None)
    assert counts(recorder.report())["NONSENSE1"] == 2  # who came early keeps its name


def test_names_that_users_make_up_are_forgotten() -> None:
    recorder = Recorder()
    for number in range(3 * MOST):
        recorder.exchange((f"nonsense{number}", "k"), marks(1e-3), None)
    assert len(recorder._known) <= MOST


def test_names_that_wait_to_be_sorted_are_not_too_large() -> None:
    recorder = Recorder()

    def record() -> None:
        for number in range(MOST):
            what = (f"nonsense{number}", "k")
            for _ in range(ROWS - 1):
                recorder.exchange(what, example, None)

    example = marks(1e-3)
    assert grown(record) < 64_000_000  # 45 KB for each of the names


# -- numbers -----------------------------------------------------------------------------------

SPANS = st.floats(0, 1e6) | st.sampled_from([0.0, 1e-10, 1e-9, 1e-6, 1e-3, 1.0, 1e6])


@settings(max_examples=60)
@given(st.lists(st.tuples(*[SPANS] * 6), min_size=1, max_size=60), st.floats(0, 100))
def test_percentiles_are_those_of_the_marks(spans: list[tuple[float, ...]], percent: float) -> None:
    recorder = Recorder()
    rows = [marks(*each, began=1.0) for each in spans]
    for row in rows:
        recorder.exchange(("GET", "k"), row, None)
    one = recorder.report().commands["GET"]
    rank = max(math.ceil(percent / 100 * len(rows)), 1) - 1
    taken = [[after - before for before, after in pairwise(row[:7])] for row in rows]
    exact = dict(zip(PHASES, zip(*taken, strict=True), strict=True))
    for histogram, values in (
        (one.total, [row[6] - row[0] for row in rows]),
        *((one.phases[phase], exact[phase]) for phase in PHASES),
    ):
        assert histogram.count == len(rows)
        assert histogram.sum == pytest.approx(sum(values))
        assert (histogram.least, histogram.most) == (min(values), max(values))
        expected = sorted(values)[rank]
        if expected < 2**20:  # twelve days, in which the last bucket ends
            seen = histogram.percentile(percent)
            assert seen == pytest.approx(expected, rel=1 / 128, abs=2**-33)


@given(st.lists(st.floats(2.0**-32, 2.0**20, exclude_max=True), min_size=1, max_size=50))
def test_numpy_sorts_as_the_histogram_does(seconds: list[float]) -> None:
    recorder, histogram = Recorder(), Histogram()
    for one in seconds:
        recorder.exchange(("GET", "k"), (0.0, one, one, one, one, one, one, 1, 1, 1, 1), None)
        histogram.record(one)
    assert recorder.report().commands["GET"].total.buckets == histogram.buckets


def test_a_clock_that_went_back_counts_as_nothing() -> None:
    recorder = Recorder()
    recorder.exchange(("GET", "k"), (5.0, 4.0, 3.0, 3.0, 3.0, 3.0, 2.0, 1, 1, 1, 1), None)
    one = recorder.report().commands["GET"]
    assert (one.total.sum, one.total.count, one.total.percentile(50)) == (0.0, 1, 0.0)
    histogram = Histogram()
    histogram.record(-1.0)
    assert (histogram.sum, histogram.percentile(50)) == (0.0, 0.0)


# -- the time line -----------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 1e5), st.booleans()), max_size=60))
def test_a_time_line_widens_and_keeps_what_it_counted(events: list[tuple[float, bool]]) -> None:
    line = Timeline()
    for seconds, failed in events:
        if failed:
            line.failed(seconds)
        else:
            line.at(seconds).total.record(1.0)
    assert len(line.slices) <= SLICES
    assert math.log2(line.width / 0.1) == int(math.log2(line.width / 0.1))
    for number, one in enumerate(line.slices):
        inside = [event for event in events if int(event[0] / line.width) == number]
        assert one.errors == sum(failed for _, failed in inside)
        assert one.total.count == len(inside) - one.errors


@given(st.lists(st.floats(0, 1e4), max_size=20), st.lists(st.floats(0, 100), max_size=20))
def test_time_lines_add_up(first: list[float], second: list[float]) -> None:
    lines = [Timeline(), Timeline()]
    for line, events in zip(lines, (first, second), strict=True):
        for seconds in events:
            line.at(seconds).total.record(seconds)
            line.failed(seconds)
    for one, other in (lines, lines[::-1]):
        merged = one.copy()
        merged.merge(other, 5.0)
        assert sum(part.total.count for part in merged.slices) == len(first + second)
        assert sum(part.errors for part in merged.slices) == len(first + second)
        assert len(merged.slices) <= SLICES


def test_a_recorders_time_line_tells_when(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "time", SimpleNamespace(time=time.time, monotonic=lambda: 1e3))
    recorder = Recorder()
    for began, took in ((1000.0, 0.05), (1000.0, 0.25), (1000.2, 0.05), (990.0, 1.0)):
        recorder.exchange(("GET", "k"), marks(took, began=began), None)
    recorder.exchange(("GET", "k"), marks(0.01, began=1000.3), errors.BusyError())
    line = recorder.report().timeline
    shown = [(one.total.count, one.errors) for one in line.slices]
    assert (line.width, shown) == (0.1, [(2, 0), (0, 0), (2, 0), (1, 1)])
    recorder.exchange(("GET", "k"), marks(1.0, began=1999.0), None)
    line = recorder.report().timeline
    assert line.width == 0.1 * 2**7
    assert (line.slices[0].total.count, line.slices[-1].total.count) == (5, 1)


# -- slow calls --------------------------------------------------------------------------------


def test_the_hook_is_called_for_slow_calls_alone() -> None:
    told: list[SlowCall] = []
    recorder = Recorder(slow_after=0.5, on_slow=told.append, prefixes=["user:"])
    for took in (0.25, 0.5, 0.4999, 0.75):
        recorder.exchange(("SET", "user:1", "hunter2"), marks(0.0, took, began=0.0), None)
    failure = errors.BusyError("BUSY")
    batch = Batch([("GET", "k"), ("SET", "k", "hunter2")])
    recorder.exchange(batch, marks(0.25, 0.25, 0.5, began=0.0), failure)
    assert [one.seconds for one in told] == [0.5, 0.75, 1.0]
    slow, _, failed = told
    assert (slow.name, slow.commands, slow.error) == ("SET user:*", ["SET user:1 ?"], None)
    assert slow.phases == {phase: 0.5 if phase == "acquire" else 0.0 for phase in PHASES}
    assert failed.commands == ["GET k", "SET k ?"]
    assert failed.error is failure
    assert "hunter2" not in repr(told)
    assert counts(recorder.report()) == {"SET user:*": 4, "PIPELINE GET+SET": 1}


def test_a_hook_that_raises_harms_no_call(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    def hook(slow: SlowCall) -> None:
        raise RuntimeError(slow.name)

    recorder = Recorder(slow_after=0.0, on_slow=hook)
    client = redis.connect(observer=recorder)
    with caplog.at_level(logging.ERROR, "rawredis_llm"):
        assert redis.do(client.call("SET", "k", "hunter2")) == b"OK"
        assert redis.do(client.call("GET", "k")) == b"hunter2"
    assert [record.getMessage() for record in caplog.records] == ["the observer failed"] * 2
    assert "RuntimeError: SET" in caplog.text
    assert "hunter2" not in caplog.text
    assert counts(recorder.report()) == {"SET": 1, "GET": 1}


def test_a_hook_may_use_the_client(server: EmbeddedServer) -> None:
    told: list[bytes] = []

    def hook(slow: SlowCall) -> None:
        if slow.name == "GET":
            told.append(client.call("ECHO", slow.name))

    recorder = Recorder(slow_after=0.0, on_slow=hook)
    with Client(server.url, observer=recorder) as client:
        client.call("GET", "k")
    assert told == [b"GET"]
    assert counts(recorder.report()) == {"GET": 1, "ECHO": 1}


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"prefixes": "user:"}, TypeError, "prefixes"),
        ({"slow_after": 1.0}, TypeError, "on_slow"),
        ({"on_slow": print}, TypeError, "slow_after"),
        ({"slow_after": -1.0, "on_slow": print}, ValueError, "slow_after"),
        ({"slow_after": math.nan, "on_slow": print}, ValueError, "slow_after"),
    ],
)
def test_wrong_parameters(options: Any, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        Recorder(**options)


# -- JSON --------------------------------------------------------------------------------------


def whole() -> dict[str, Any]:
    """Return a report as JSON has it."""
    recorder = Recorder()
    for number in range(5):
        recorder.exchange(("GET", "k"), marks(0.1 * number, 0.2), None)
    recorder.exchange(("FT.SEARCH", "docs", "x"), marks(0.1), errors.BusyError("BUSY"))
    recorder.connection("opened")
    given: dict[str, Any] = json.loads(recorder.report().to_json())
    given["server"] = {
        "version": "8.0",
        "commands": {"GET": {"calls": 1, "seconds": 0.5, "failed": 0, "rejected": 0}},
        "slow": [{"at": 1.0, "seconds": 0.5, "command": "GET k"}],
        "searches": [],
        "missing": [],
    }
    given["server"]["commands"]["GET"] |= {"p50": None, "p99": None}
    return given


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where something stands in a tree of JSON."""
    if path:
        yield path
    pairs: Any = tree.items() if isinstance(tree, dict) else ()
    for key, value in enumerate(tree) if isinstance(tree, list) else pairs:
        yield from places(value, (*path, key))


PLACES = list(places(whole()))
DROP = object()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(PLACES),
            st.sampled_from([DROP, None, "x", "", [], [1], {}, {"a": 1}, -1, 0, 1.5, True]),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_mutated_json_is_a_report_or_a_value_error(changes: list[tuple[Any, Any]]) -> None:
    given = whole()
    for path, value in changes:
        tree: Any = given
        try:
            for step in path[:-1]:
                tree = tree[step]
            if value is DROP:
                del tree[path[-1]]
            else:
                tree[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change has taken it away
    try:
        report = Report.from_json(json.dumps(given))
    except ValueError:
        return
    assert isinstance(report, Report)


@given(st.text(max_size=40) | st.binary(max_size=40), st.integers(0, 3000), st.integers(0, 40))
def test_mutated_text_is_a_report_or_a_value_error(noise: Any, at: int, cut: int) -> None:
    text: Any = json.dumps(whole())
    if isinstance(noise, bytes):
        text = text.encode()
    with suppress(ValueError):
        Report.from_json(text[:at] + noise + text[at + cut :])


def changed(path: str, value: str) -> str:
    """Return a report's JSON with another text in this place."""
    given = whole()
    *steps, last = path.split("/")
    tree: Any = given
    for step in steps:
        tree = tree[int(step) if step.isdigit() else step]
    tree[int(last) if last.isdigit() else last] = "HERE"
    return json.dumps(given).replace('"HERE"', value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        changed("format", '"other"'),
        changed("began", '"x"'),
        changed("commands", "[]"),
        changed("commands/GET/phases", "{}"),
        changed("commands/GET/total/count", "3"),
        changed("commands/GET/total/buckets", "[[1]]"),
        changed("timeline/slices", "[1]"),
        changed("server", '{"version": ""}'),
        changed("server/slow", "[{}]"),
    ],
)
def test_what_is_no_report_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"report|JSON|histogram|float"):
        Report.from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        changed("commands/GET/total/buckets", "[[Infinity, 5]]"),
        changed("commands/GET/total/sum", "1" + "0" * 400),
    ],
)
def test_numbers_that_are_too_large_are_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"report|JSON|histogram|float"):
        Report.from_json(text)


def test_json_that_is_too_deep_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Report.from_json("[" * 100_000)


@pytest.mark.parametrize(
    "text",
    [
        changed("commands/GET/total/most", "Infinity"),
        changed("commands/GET/total/buckets", "[[1000000, 5]]"),
        changed("commands/GET/sent", '"x"'),
        changed("commands/GET/errors", '{"BusyError": "x"}'),
        changed("commands/GET/name", "1"),
        changed("began", "NaN"),
        changed("timeline/slices/0/errors", '"x"'),
        changed("timeline/width", "0"),
        changed("connections", '{"opened": "x"}'),
        changed("server", '""'),
        changed("server/commands/GET/calls", '"x"'),
        changed("server/slow", '[{"at": 1.0, "seconds": "x", "command": "GET k"}]'),
        changed("server/missing", "[1]"),
    ],
)
def test_what_only_looks_like_a_report_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"report|JSON|histogram|float"):
        Report.from_json(text)


@pytest.mark.parametrize("given", [{}, {"buckets": 1}, {"buckets": [], "count": 1}])
def test_what_is_no_histogram_is_a_value_error(given: Any) -> None:
    with pytest.raises(ValueError, match="not a histogram"):
        Histogram.from_dict(given)


def test_a_report_with_every_field_comes_back() -> None:
    text = json.dumps(whole())
    report = Report.from_json(text)
    assert json.loads(report.to_json()) == json.loads(text)
    assert "GET k" in table(report)
    assert "BusyError" in report.to_json()
    assert Report.from_json((report + report).to_json()) == report + report
