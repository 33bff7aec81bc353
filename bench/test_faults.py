"""What faults do to a client: ours, redis-py's three, side by side.

    pytest bench/test_faults.py                      prints the tables
    pytest bench/test_faults.py --write-results      writes them to FAULTS.md too

What happens to a client is in `faults.py`, which runs once for each in a process of its own. Of
ours it is asserted that no value is wrong and no write executed twice; of redis-py nothing is.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from rawredis_llm import Client, EmbeddedServer
from subjects import OURS, RIVALS, Maker

ROOT = Path(__file__).parent.parent
FILE = Path(__file__).with_name("FAULTS.md")
PATIENCE = 300  # seconds for a client, whose measures have limits of their own
NAMES: dict[Maker, str] = {make: getattr(make, "name", "") for make in OURS + RIVALS}

Row: TypeAlias = "dict[str, dict[str, Any] | str | None]"
"""By measure: the counts by their headings, or how it ended; None where it does not apply."""

TITLE = """\
# What faults do to a client

Written by `pytest bench/test_faults.py --write-results`; `faults.py` does what is told below.
Counts, not judgements. Those of cuts, signals, cancels and seconds vary from run to run, and are
given as this run saw them.
"""
FOOT = """\
All have their own defaults but for a common time limit, and RESP3, which is the default of both.
redis-py's constructors `Redis()` try a failed call again by default (up to ten times); `from_url()`
does not. rawredis_llm tries again what was not sent, and what only reads. An error is one that the
caller sees; "-" stands where a scenario is for the other kind of client, threads' or asyncio's.

Not measured: redis-py with other settings (no retries, RESP2 but where it is named, without
hiredis), its other clients (cluster, sentinel, asyncio `from_url()`), TLS, unix sockets, networks,
other servers, blocking commands and pub/sub; and what any of it costs in time, but for one column.
"""
SECTIONS = {
    "cuts": """\
The connection is cut (FIN, RST), stalled, or its bytes come late, at a sample of offsets in both
directions of a session of reads and counters, and later connections are good. Twice: counters that
were raised twice; outlasted: calls that took half a second more than their time limit.""",
    "lost_answers": """\
A proxy hangs up in place of the reply to every tenth RPUSH or so, which the server has executed.
Twice and never are the values that its list then has more than once, and not at all.""",
    "interrupts": """\
A signal handler raises in the middle of calls of one thread, 250 times in each of 8 processes.
Errors are those of calls that no signal reached; 20 calls follow when there are no more signals.
Hung: not done in 6 seconds. Of a process that crashed or hung there are no other counts.""",
    "cancels": """\
Fifty tasks at a time, more than half of them cancelled after a few turns of the event loop.
Reconnects: the connections that the server then saw beyond those that were open before.""",
    "additions": """\
A server adds one thing to the first of four replies: a reply behind it (surplus), an attribute or
an invalidation before it (push), or a reply some time later (idle). Under each: wrong values of the
four calls.""",
    "silence": """\
One call with a time limit of 0.5 s, where a server accepts and never answers.""",
    "wrong_password": """\
One call by a client whose password is wrong: how often the server had to refuse it.""",
    "second_loop": """\
A call in a second event loop, after one in a first that is still open, or was closed.""",
}
GLANCE = {  # the columns of the first table: each says of which measure it is, and under what name
    "cut: wrong": ("cuts", "wrong"),
    "cut: twice": ("cuts", "twice"),
    "cut: errors": ("cuts", "errors"),
    "lost reply: twice": ("lost_answers", "twice"),
    "lost reply: errors": ("lost_answers", "errors"),
    "signals: wrong": ("interrupts", "wrong"),
    "signals: crashed": ("interrupts", "crashed"),
    "cancel: reconnects": ("cancels", "per cancellation"),
    "additions: wrong": ("additions", "wrong"),
    "silence: s": ("silence", "seconds"),
    "password: tries": ("wrong_password", "tried"),
    "second loop": ("second_loop", "first open"),
}


def cell(row: Row, measure: str, column: str) -> str:
    """Return a count, or how the measure ended."""
    counts = row[measure]
    if isinstance(counts, dict):
        return str(counts[column])
    return counts or "-"


@dataclass
class Report:
    """A plugin of pytest that shows the rows at the end of the run."""

    redis: str  # the server's version
    rows: dict[str, Row] = field(default_factory=dict)

    def table(self, columns: dict[str, tuple[str, str]]) -> list[str]:
        """Return a table with these columns, of all clients that were measured."""
        measured = [(name, self.rows[name]) for name in NAMES.values() if name in self.rows]
        lines = [["client", *columns]]
        lines += [
            [name, *[cell(row, *column) for column in columns.values()]] for name, row in measured
        ]
        first, *rest = [f"| {' | '.join(line)} |" for line in lines]
        return [first, "|---|" + "--:|" * len(columns), *rest]

    def text(self) -> str:
        """Return all tables, with what they say."""
        libraries = [name for name in ("hiredis", "redis") if importlib.util.find_spec(name)]
        versions = [f"{platform.python_implementation()} {platform.python_version()}"]
        versions += [f"Redis {self.redis}", *[f"{name} {version(name)}" for name in libraries]]
        parts = [TITLE, ", ".join(versions) + ".\n", *self.table(GLANCE), "", FOOT]
        for measure, text in SECTIONS.items():
            found = [row[measure] for row in self.rows.values()]
            names = next((list(counts) for counts in found if isinstance(counts, dict)), [])
            columns = {name: (measure, name) for name in names}
            title = measure.replace("_", " ").capitalize()
            parts += [f"## {title}\n", text, "", *self.table(columns), ""]
        return "\n".join(parts)

    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int, config: Any) -> None:
        """Print the tables; write them if that was asked for, and all clients were measured."""
        if not self.rows:
            return
        terminalreporter.section("faults")
        terminalreporter.write_line(self.text())
        complete = len(self.rows) == len(NAMES) and exitstatus == pytest.ExitCode.OK
        if config.getoption("--write-results") and complete:
            FILE.write_text(self.text(), encoding="utf-8")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Start a real Redis with search, reached by TCP as most are."""
    with EmbeddedServer(port=0) as server:
        yield server.url


@pytest.fixture(scope="module")
def report(pytestconfig: pytest.Config, url: str) -> Report:
    """Return what the rows are to be put into."""
    with Client(url) as client:
        info = client.call("INFO", "server").decode().splitlines()
    [redis] = [line.partition(":")[2] for line in info if line.startswith("redis_version:")]
    report = Report(redis)
    pytestconfig.pluginmanager.register(report)
    return report


def measure(name: str, url: str) -> Row:
    """Return a client's row, measured in a process of its own: what it leaves behind ends there."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-m", "bench.faults", name, url],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    row: Row = json.loads(done.stdout)
    return row


@pytest.mark.parametrize("make", OURS, ids=NAMES.get)
def test_ours(make: Maker, url: str, report: Report) -> None:
    name = NAMES[make]
    row = report.rows[name] = measure(name, url)
    for counts in row.values():
        assert not isinstance(counts, str), row  # it hung, or crashed
        if counts is not None:
            assert {counts.get(key, 0) for key in ("wrong", "twice", "hung")} == {0}, row
            assert counts.get("crashed", "0 of").startswith("0 of"), row


@pytest.mark.skipif(not importlib.util.find_spec("redis"), reason="redis-py is not installed")
@pytest.mark.parametrize("make", RIVALS, ids=NAMES.get)
def test_redis_py(make: Maker, url: str, report: Report) -> None:
    name = NAMES[make]
    report.rows[name] = measure(name, url)
