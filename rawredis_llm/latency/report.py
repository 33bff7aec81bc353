"""What was seen of a client's exchanges, as plain data: from a `Recorder`, from JSON, and merged.

Times are seconds, sizes bytes. Reports of threads, tasks and processes add up: `first + second`.

Must not import numpy, or what records.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..protocol.observing import PHASES
from .histogram import Histogram

if TYPE_CHECKING:
    from .tables import Comparison

__all__ = ["Report"]

FORMAT: Final = "rawredis_llm latency report 1"
SLICES: Final = 120  # of a time line, at most


@dataclass
class CommandTimes:
    """The exchanges of one name (`GET`, `FT.SEARCH docs`, `PIPELINE SET`, ...).

    `total` and `phases` (by the names in PHASES) are histograms of seconds, one number for each
    exchange; `commands` counts the commands in them. `received` is None where it is not known: an
    `AsyncClient` has one socket for many calls. `due` counts from when a load generator should have
    sent each, which is what users would have waited (without coordinated omission).
    """

    name: str
    commands: int
    retries: int
    errors: dict[str, int]
    sent: int
    received: int | None
    total: Histogram
    phases: dict[str, Histogram]
    due: Histogram | None = None

    @property
    def count(self) -> int:
        """How many exchanges."""
        return self.total.count

    @property
    def server_name(self) -> str:
        """The command's name as the server counts it; of a pipeline the first one's."""
        name = self.name.removeprefix("PIPELINE ").removeprefix("MULTI ").partition("+")[0]
        first, _, second = name.partition(" ")
        return first if first.startswith("FT.") or second.endswith("*") else name

    def copy(self) -> CommandTimes:
        """Return the same, to add to."""
        return replace(
            self,
            errors=dict(self.errors),
            total=self.total.copy(),
            phases={name: phase.copy() for name, phase in self.phases.items()},
            due=self.due and self.due.copy(),
        )

    def merge(self, other: CommandTimes) -> None:
        """Add what another report has of the same name."""
        self.commands += other.commands
        self.retries += other.retries
        self.errors = dict(Counter(self.errors) + Counter(other.errors))
        self.sent += other.sent
        known = None not in (self.received, other.received)
        self.received = (self.received or 0) + (other.received or 0) if known else None
        self.total.merge(other.total)
        for name, phase in self.phases.items():
            phase.merge(other.phases[name])
        if other.due is not None:
            self.due = self.due or Histogram()
            self.due.merge(other.due)


@dataclass
class Slice:
    """What ended in one part of the time: failed exchanges, and how long all took."""

    errors: int = 0
    total: Histogram = field(default_factory=Histogram)


@dataclass
class Timeline:
    """The run in at most 120 slices of `width` seconds, which double as it goes on."""

    width: float = 0.1
    slices: list[Slice] = field(default_factory=list)

    def at(self, seconds: float) -> Slice:
        """Return the slice of a time since the beginning, in which to count."""
        while seconds >= self.width * SLICES:
            self._widen()
        number = max(int(seconds / self.width), 0)
        while len(self.slices) <= number:
            self.slices.append(Slice())
        return self.slices[number]

    def failed(self, seconds: float) -> None:
        """Count a failure at a time since the beginning."""
        self.at(seconds).errors += 1

    def copy(self) -> Timeline:
        """Return the same, to add to."""
        return Timeline(self.width, [Slice(one.errors, one.total.copy()) for one in self.slices])

    def merge(self, other: Timeline, offset: float = 0.0) -> None:
        """Add another time line, that began `offset` seconds later."""
        for number, one in enumerate(other.slices):
            if one.total.count or one.errors:
                mine = self.at(offset + (number + 0.5) * other.width)
                mine.errors += one.errors
                mine.total.merge(one.total)

    def _widen(self) -> None:
        pairs = [self.slices[at : at + 2] for at in range(0, len(self.slices), 2)]
        for first, *second in pairs:
            for other in second:
                first.errors += other.errors
                first.total.merge(other.total)
        self.slices = [pair[0] for pair in pairs]
        self.width *= 2


@dataclass
class ServerTimes:
    """What the server counted of one command in the window, of all its clients.

    `seconds` is the sum that its execution took; `p50` and `p99` are None where the server does not
    tell, and else the upper ends of the server's own buckets, which are powers of two.
    """

    calls: int
    seconds: float
    failed: int = 0
    rejected: int = 0
    p50: float | None = None
    p99: float | None = None


@dataclass
class SlowEntry:
    """An entry of the server's SLOWLOG in the window: when (seconds since the epoch), how long.

    `command` shows no values.
    """

    at: float
    seconds: float
    command: str


@dataclass
class ServerShare:
    """The server's own view of the window. `missing` says what could not be asked, and why."""

    version: str = ""
    commands: dict[str, ServerTimes] = field(default_factory=dict)
    slow: list[SlowEntry] = field(default_factory=list)
    searches: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What was seen in a window that began at `began` (seconds since the epoch).

    `about` says what was measured on: versions, address. `connections` counts what was opened and
    closed.
    """

    began: float
    seconds: float
    commands: dict[str, CommandTimes]
    timeline: Timeline = field(default_factory=Timeline)
    connections: dict[str, int] = field(default_factory=dict)
    server: ServerShare | None = None
    about: dict[str, str] = field(default_factory=dict)

    def rows(self) -> list[CommandTimes]:
        """Return the commands, the one that took most time in all first."""
        return sorted(self.commands.values(), key=lambda one: (-one.total.sum, one.name))

    def __add__(self, other: Report) -> Report:
        """Return a report of both; of the server's shares, the first one's that has one."""
        if not isinstance(other, Report):
            return NotImplemented
        if other.began < self.began:
            return other + self
        commands = {name: one.copy() for name, one in self.commands.items()}
        for name, one in other.commands.items():
            if name in commands:
                commands[name].merge(one)
            else:
                commands[name] = one.copy()
        timeline = self.timeline.copy()
        offset = other.began - self.began
        timeline.merge(other.timeline, offset)
        return Report(
            began=self.began,
            seconds=max(self.seconds, offset + other.seconds),
            commands=commands,
            timeline=timeline,
            connections=dict(Counter(self.connections) + Counter(other.connections)),
            server=self.server or other.server,
            about={**other.about, **self.about},
        )

    def table(self) -> str:
        """Return it as plain text for a terminal."""
        from .tables import table  # noqa: PLC0415 - it needs what is here

        return table(self)

    def to_json(self) -> str:
        """Return it as JSON, which `from_json` reads back."""
        return json.dumps({"format": FORMAT, **_plain(self)}, indent=None)

    def to_html(self, path: str | Path) -> None:
        """Write it as one HTML file that needs nothing else."""
        from .page import page  # noqa: PLC0415 - only who wants one

        Path(path).write_text(page(self), encoding="utf-8")

    def compare(self, other: Report) -> Comparison:
        """Return what changed from another report, of before, to this one."""
        from .tables import Comparison  # noqa: PLC0415 - it needs what is here

        return Comparison(other, self)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Return the report that `to_json` made a text of. Raises ValueError for any other text."""
        try:
            given = json.loads(text, parse_constant=int)  # which knows no NaN
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from error
        if not isinstance(given, dict) or given.get("format") != FORMAT:
            raise ValueError("not a latency report of this version")
        try:
            report = _report(given)
        except (ArithmeticError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a whole latency report: {error!r}") from error
        if not _fits(report, "Report") or report.timeline.width <= 0:
            raise ValueError("not a latency report: some of its fields are of the wrong type")
        return report


def _plain(value: Any) -> Any:
    if isinstance(value, Histogram):
        return value.to_dict()
    if hasattr(value, "__dataclass_fields__"):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _fits(value: Any, kind: str) -> bool:
    """Whether a value is of a type that is written as in the classes above."""
    if kind.endswith(" | None"):
        return value is None or _fits(value, kind.removesuffix(" | None"))
    if kind.startswith("dict[str, "):
        kind = kind.removeprefix("dict[str, ").removesuffix("]")
        return isinstance(value, dict) and all(_fits(one, kind) for one in value.values())
    if kind.startswith("list["):
        kind = kind.removeprefix("list[").removesuffix("]")
        return isinstance(value, list) and all(_fits(one, kind) for one in value)
    if type(value).__name__ != kind:
        return kind == "Any" or (kind == "float" and type(value) is int)
    parts = fields(value) if hasattr(value, "__dataclass_fields__") else ()
    return all(_fits(getattr(value, part.name), str(part.type)) for part in parts)


def _report(given: Mapping[str, Any]) -> Report:
    server = given["server"]
    slices = [
        Slice(one["errors"], Histogram.from_dict(one["total"]))
        for one in given["timeline"]["slices"]
    ]
    return Report(
        began=float(given["began"]),
        seconds=float(given["seconds"]),
        commands={name: _times(one) for name, one in given["commands"].items()},
        timeline=Timeline(float(given["timeline"]["width"]), slices),
        connections=dict(given["connections"]),
        server=server
        and ServerShare(
            **{
                **server,
                "commands": {name: ServerTimes(**one) for name, one in server["commands"].items()},
                "slow": [SlowEntry(**one) for one in server["slow"]],
            }
        ),
        about=dict(given["about"]),
    )


def _times(given: Mapping[str, Any]) -> CommandTimes:
    phases = {name: Histogram.from_dict(given["phases"][name]) for name in PHASES}
    due = given["due"] and Histogram.from_dict(given["due"])
    total = Histogram.from_dict(given["total"])
    return CommandTimes(**{**given, "total": total, "phases": phases, "due": due})
