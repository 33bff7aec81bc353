"""A client's observer that keeps how long each command took, phase by phase.

A call appends its marks to a list; hundreds of them at a time are sorted into histograms by numpy.
So a recorder costs a call about as much as reading the clock four times, and can stay on.

Must not import what reports or draws.
"""

from __future__ import annotations

import math
import os
import struct
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from ..protocol.observing import PHASES, Marks
from ..protocol.operation import Sent
from .histogram import SHIFT, Histogram
from .names import argv, is_plain, label
from .report import CommandTimes, Report, Timeline

__all__ = ["Recorder", "SlowCall"]

WIDTH: Final = len(Marks._fields)
FULL: Final = 512 * WIDTH * 8  # bytes
PIECES: Final = 32  # so full, of all names together, are sorted at once
MOST: Final = 1000  # names; what comes after them is counted together
OTHERS: Final = "(others)"


@dataclass(frozen=True)
class SlowCall:
    """An exchange that took longer than it should: `seconds` in all, and by phase.

    `commands` are its commands without values: see `names.argv`.
    """

    name: str
    seconds: float
    phases: dict[str, float]
    commands: list[str]
    error: BaseException | None


class _Series:
    """What one name's exchanges took."""

    __slots__ = ("commands", "errors", "full", "received", "retries", "rows", "sent", "times")

    def __init__(self) -> None:
        self.rows = bytearray()  # marks that wait to be sorted,
        self.full: list[bytearray] = []  # and what was taken from there
        self.commands = self.retries = self.sent = 0
        self.received = 0.0
        self.errors: Counter[str] = Counter()
        self.times = [Histogram() for _ in range(len(PHASES) + 1)]  # the first one: in all


class Recorder:
    """Give it to a client as `observer=`; read it by `report()`. Safe among threads and tasks.

    Commands are told apart by name, sub-command and index, and by those of the key prefixes that
    are given. Exchanges of `slow_after` seconds and more go to `on_slow(slow_call)`, too, at once.
    Memory does not grow with the number of calls.
    """

    def __init__(
        self,
        *,
        prefixes: Sequence[str] = (),
        slow_after: float | None = None,
        on_slow: Callable[[SlowCall], object] | None = None,
    ) -> None:
        """Raise TypeError or ValueError for a threshold without a hook, or a wrong one."""
        if isinstance(prefixes, str):
            raise TypeError("prefixes is a list of key prefixes, not one text")
        if (slow_after is None) is not (on_slow is None):
            raise TypeError("slow_after and on_slow go together")
        if slow_after is not None and not slow_after >= 0:
            raise ValueError(f"slow_after must be a number of seconds, not {slow_after}")
        self._prefixes = tuple(prefixes)
        self._slow_after, self._on_slow = slow_after, on_slow
        self._unlock()
        self.reset()
        _recorders.add(self)

    def _unlock(self) -> None:
        self._lock = threading.RLock()  # a signal handler may call, too
        self._busy = False

    def reset(self) -> None:
        """Forget everything that was recorded."""
        with self._lock:
            self._series: dict[str, _Series] = {}
            self._waiting = 0  # pieces in all
            self._known: dict[Any, _Series] = {}  # by a plain command's name, as it was written
            self._timeline = Timeline()
            self._connections: Counter[str] = Counter()
            self._began, self._clock = time.time(), time.monotonic()

    def exchange(self, what: Sent, marks: tuple[float, ...], error: BaseException | None) -> None:
        """Take note of one exchange (called by the client)."""
        try:
            series = self._known[what[0]]  # type: ignore[index]  # a batch has no items
        except (KeyError, TypeError):
            series = self._series_of(what)
        rows = series.rows
        rows += _pack(*marks)  # at once, whatever other threads do
        if error is not None:
            with self._lock:
                series.errors[type(error).__name__] += 1
                self._timeline.failed(marks[6] - self._clock)
        if len(rows) >= FULL:
            self._set_aside(series)
        if self._slow_after is not None and marks[6] - marks[0] >= self._slow_after:
            self._tell_slow(what, marks, error)

    def connection(self, event: str) -> None:
        """Count a connection that was opened or closed (called by the client)."""
        with self._lock:
            self._connections[event] += 1

    def report(self) -> Report:
        """Return what was recorded so far; recording goes on."""
        with self._lock:
            for series in list(self._series.values()):
                self._set_aside(series)
            self._sort()
            return Report(
                began=self._began,
                seconds=time.monotonic() - self._clock,
                commands={name: _times(name, seen) for name, seen in list(self._series.items())},
                timeline=self._timeline.copy(),
                connections=dict(self._connections),
            )

    def _series_of(self, what: Sent) -> _Series:
        name = label(what, self._prefixes)
        with self._lock:
            if name not in self._series and len(self._series) >= MOST:
                name = OTHERS
            series = self._series.setdefault(name, _Series())
            room = not self._prefixes and len(self._known) < MOST  # spellings are the users'
            if room and isinstance(what, tuple) and is_plain(what):
                self._known[what[0]] = series
        return series

    def _tell_slow(self, what: Sent, marks: tuple[float, ...], error: BaseException | None) -> None:
        assert self._on_slow is not None
        spans = (after - before for before, after in pairwise(marks[:7]))
        phases = dict(zip(PHASES, spans, strict=True))
        took = marks[6] - marks[0]
        self._on_slow(SlowCall(label(what, self._prefixes), took, phases, argv(what), error))

    def _set_aside(self, series: _Series) -> None:
        """Take the rows from where others are added meanwhile; sort, when there are many."""
        with self._alone() as alone:
            rows = series.rows
            size = len(rows)
            if alone and size:
                series.full.append(rows[:size])
                del rows[:size]
                self._waiting += 1
        if self._waiting >= PIECES:
            self._sort()

    def _sort(self) -> None:
        with self._alone() as alone:
            for series in list(self._series.values()) if alone else ():
                pieces, series.full = series.full, []
                if pieces:
                    self._take(series, np.frombuffer(b"".join(pieces)).reshape(-1, WIDTH))
            if alone:
                self._waiting = 0

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Hold the lock; give False in a signal handler that met its holder in the middle."""
        with self._lock:
            alone, self._busy = not self._busy, True
            try:
                yield alone
            finally:
                self._busy = not alone

    def _take(self, series: _Series, rows: Any) -> None:
        sent, received, commands, attempts = rows[:, 7:].sum(axis=0).tolist()
        series.sent += int(sent)
        series.received += received
        series.commands += int(commands)
        series.retries += int(attempts) - len(rows)
        times = rows[:, :7].T.copy()
        spans = np.empty_like(times)
        np.subtract(times[6], times[0], out=spans[0])
        np.subtract(times[1:], times[:-1], out=spans[1:])
        np.maximum(spans, 0.0, out=spans)
        self._place(times[6] - self._clock, spans[0])
        for histogram, counted in zip(series.times, _counted(spans), strict=True):
            histogram.add(*counted)

    def _place(self, ended: Any, took: Any) -> None:
        """Put exchanges into the time line."""
        self._timeline.at(float(ended.max()))  # now it is as wide as it has to be
        slots = (ended / self._timeline.width).astype(int)
        for slot in np.unique(slots).tolist():
            [counted] = _counted(took[None, slots == slot])
            self._timeline.at((slot + 0.5) * self._timeline.width).total.add(*counted)


def _counted(rows: Any) -> Iterable[tuple[list[tuple[int, int]], float, float, float]]:
    """Return for each row of numbers what `Histogram.add` takes."""
    places = np.clip((rows.view(np.int64) >> SHIFT) - _LEAST, 0, _RANGE - 1)
    places += np.arange(len(rows))[:, None] * _RANGE
    counts = np.bincount(places.ravel(), minlength=len(rows) * _RANGE)
    found = counts.nonzero()[0]
    limits = np.searchsorted(found, np.arange(len(rows) + 1) * _RANGE).tolist()
    buckets = found % _RANGE
    buckets = np.where(buckets > 0, buckets + _LEAST, 0).tolist()
    pairs = list(zip(buckets, counts[found].tolist(), strict=True))
    parts = [pairs[start:end] for start, end in pairwise(limits)]
    figures = [rows.sum(axis=1).tolist(), rows.min(axis=1).tolist(), rows.max(axis=1).tolist()]
    return zip(parts, *figures, strict=True)


_pack: Final = struct.Struct(f"{WIDTH}d").pack
# The buckets from 2**-33 s (0.1 ns, less counts as 0) to 2**20 s (12 days).
_LEAST: Final = (1023 - 33) << (52 - SHIFT)
_RANGE: Final = (33 + 20) << (52 - SHIFT)


_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _after_fork() -> None:
    for recorder in list(_recorders):
        recorder._unlock()  # noqa: SLF001 - who held it is not in this process


os.register_at_fork(after_in_child=_after_fork)


def _times(name: str, seen: _Series) -> CommandTimes:
    total, *phases = [histogram.copy() for histogram in seen.times]
    return CommandTimes(
        name=name,
        commands=seen.commands,
        retries=seen.retries,
        errors=dict(seen.errors),
        sent=seen.sent,
        received=None if math.isnan(seen.received) else int(seen.received),
        total=total,
        phases=dict(zip(PHASES, phases, strict=True)),
    )
