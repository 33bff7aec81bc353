"""A report as sections of figures, as plain text for a terminal, and two reports beside each other.

Must not import numpy, or what records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from ..protocol.observing import PHASES
from .histogram import Histogram
from .names import visible
from .report import CommandTimes, Report, ServerShare, ServerTimes

__all__ = ["Change", "Comparison", "table", "text_table"]

HEADINGS: Final = "calls per_s errors retries p50 p90 p99 p99.9 max bytes_out bytes_in".split()
FLOOR: Final = 1e-7  # seconds: differences below this are the clock's


class Section(NamedTuple):
    """A part of a report: what it tells, the headings of the figures, and the lines.

    The first cell of a line is a name. A section without headings has names only.
    """

    title: str
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]


def table(report: Report) -> str:
    """Return what callers saw, where their time went, and what of it was the server's.

    All times are microseconds. Calls are exchanges: a pipeline is one.
    """
    return "\n\n".join(map(_text, sections(report))) or "nothing was recorded"


def sections(report: Report) -> Iterator[Section]:
    """Yield what `table` shows, part by part; nothing if nothing was recorded."""
    rows = report.rows()
    if not rows:
        return
    yield _calls(report, rows)
    yield _phases(rows)
    if any(one.due is not None for one in rows):
        yield _due(rows)
    if report.server is not None:
        yield from _server(rows, report.server)


def us(seconds: float | None) -> str:
    """Return microseconds, with a digit behind the point where there are few."""
    if seconds is None:
        return "-"
    return f"{seconds * 1e6:,.1f}" if seconds < 1e-4 else f"{seconds * 1e6:,.0f}"


def at(histogram: Histogram | None, percent: float) -> float | None:
    """Return a percentile, or None where nothing was recorded."""
    return histogram.percentile(percent) if histogram is not None and histogram.count else None


def text_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return lines in columns, the first to the left and the others to the right."""
    cells = [[visible(cell) for cell in line] for line in (headings, *lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if position == 0 else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def _text(section: Section) -> str:
    title, headings, lines = section
    if headings:
        return text_table((title, *headings), lines)
    return "\n".join(f"{title}: {visible(one)}" for (one,) in lines)


def _calls(report: Report, rows: Sequence[CommandTimes]) -> Section:
    lines = [
        (
            one.name,
            f"{one.count:,}",
            f"{one.count / report.seconds:,.0f}" if report.seconds else "-",
            f"{sum(one.errors.values()):,}",
            f"{one.retries:,}",
            *(us(at(one.total, percent)) for percent in (50, 90, 99, 99.9, 100)),
            f"{one.sent:,}",
            "-" if one.received is None else f"{one.received:,}",
        )
        for one in rows
    ]
    return Section("command", [heading.replace("_", " ") for heading in HEADINGS], lines)


def _phases(rows: Sequence[CommandTimes]) -> Section:
    lines = [
        (one.name, us(one.total.mean), *(us(one.phases[phase].mean) for phase in PHASES))
        for one in rows
    ]
    return Section("where the mean went, us", ("in all", *PHASES), lines)


def _due(rows: Sequence[CommandTimes]) -> Section:
    lines = [
        (one.name, *(us(at(one.due, percent)) for percent in (50, 90, 99, 99.9, 100)))
        for one in rows
        if one.due is not None
    ]
    return Section("from when it was due, us", ("p50", "p90", "p99", "p99.9", "max"), lines)


def _server(rows: Sequence[CommandTimes], server: ServerShare) -> Iterator[Section]:
    lines = []
    for name, count, wait, mine in shares(rows, server):
        mean = mine.seconds / mine.calls if mine.calls else 0.0
        alone = [one for one in rows if one.server_name == name]
        total = alone[0].total if len(alone) == 1 else None
        lines.append(
            (
                name,
                f"{count:,}",
                *(us(at(total, 50)), us(at(total, 99)), us(wait)),
                f"{mine.calls:,}",
                *(us(mean), us(mine.p50), us(mine.p99), us(max(wait - mean, 0.0))),
            )
        )
    headings = "p50,p99,send and wait,server's calls,its mean,its p50,its p99,network and queues"
    yield Section("beside the server, us", ("calls", *headings.split(",")), lines)
    if server.slow:
        entries = [(one.command, us(one.seconds)) for one in server.slow]
        yield Section("the server's slow log", ("us",), entries)
    if server.missing:
        yield Section("not asked of the server", (), [(one,) for one in server.missing])


def shares(
    rows: Sequence[CommandTimes], server: ServerShare
) -> Iterator[tuple[str, int, float, ServerTimes]]:
    """Yield each command that both saw: its name, our commands, our mean wait, the server's view.

    The wait is from sending to the first byte, of which a command in a pipeline has its part.
    """
    for name, mine in server.commands.items():
        ours = [one for one in rows if one.server_name == name and "+" not in one.name]
        commands = sum(one.commands for one in ours)
        if commands:
            waited = sum(one.phases["send"].sum + one.phases["wait"].sum for one in ours)
            yield name, commands, waited / commands, mine


@dataclass(frozen=True)
class Change:
    """A command before and after: exchanges, and percentiles in seconds (None: not there)."""

    name: str
    counts: tuple[int, int]
    p50: tuple[float | None, float | None]
    p99: tuple[float | None, float | None]

    @property
    def ratio(self) -> float | None:
        """The median after, divided by that of before."""
        before, after = self.p50
        return after / max(before, FLOOR) if before is not None and after is not None else None


class Comparison:
    """Two reports, command by command; `str()` is a table, `changes` are its rows."""

    def __init__(self, before: Report, after: Report) -> None:
        names = [one.name for one in after.rows()]
        names += [one.name for one in before.rows() if one.name not in after.commands]
        self.changes = [_changed(name, before, after) for name in names]

    def __str__(self) -> str:
        headings = "command,calls,calls now,p50 us,p50 now,p50,p99 us,p99 now,p99".split(",")
        lines = [
            (
                one.name,
                *(f"{count:,}" for count in one.counts),
                *(*map(us, one.p50), _change(*one.p50)),
                *(*map(us, one.p99), _change(*one.p99)),
            )
            for one in self.changes
        ]
        return text_table(headings, lines)


def _changed(name: str, before: Report, after: Report) -> Change:
    seen = [report.commands.get(name) for report in (before, after)]
    totals = [one.total if one is not None else None for one in seen]
    first, second = totals
    return Change(
        name,
        (first.count if first else 0, second.count if second else 0),
        (at(first, 50), at(second, 50)),
        (at(first, 99), at(second, 99)),
    )


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "new" if before is None else "gone"
    return f"{after / max(before, FLOOR) - 1:+.0%}"
