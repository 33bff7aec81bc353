"""A report in Prometheus' text format (0.0.4), for an application's own `/metrics`.

Must not import numpy, what records, or anything of Prometheus.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from .histogram import Histogram
from .names import parted
from .report import CommandTimes, Report

if TYPE_CHECKING:
    from ..protocol.settings import ConnectionFigures
    from .profiler import Profile
    from .recorder import Recorder

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS: Final = tuple(2.0**power for power in range(-16, 5))
"""Seconds, 15 us to 16 s. The buckets of a `Histogram` begin at powers of two, so the counts are
exact, but that a time which is a bound itself is counted above it."""

_Sample = tuple[str, dict[str, str], float]  # of a family: what follows its name, labels, value


def exposition(
    source: Report | Recorder | Profile, connections: ConnectionFigures | None = None
) -> str:
    """Return a report, or a recorder's of now, as Prometheus reads it.

    With a client's `connections`, what they do now. Each sample has the labels `command` and, where
    there is one, `index`. A pipeline is one operation. Recorders of a process are to be added up
    before: `exposition(first.report() + second.report())`.
    """
    report = source if isinstance(source, Report) else source.report()
    rows = [(_labels(one.name), one) for one in report.rows()]
    text = "".join(_family(*family) for family in _families(rows))
    text += _family(
        "connection_events_total",
        "counter",
        "Connections that were opened and closed.",
        (("", {"event": event}, count) for event, count in report.connections.items()),
    )
    if connections is not None:
        idle = connections.open - connections.in_use
        states = [("idle", idle), ("used", connections.in_use)]
        samples: list[_Sample] = [("", {"state": state}, count) for state, count in states]
        text += _family("connections", "gauge", "Connections that are open.", samples)
        waiting: list[_Sample] = [("", {}, connections.waiting)]
        text += _family("waiting_callers", "gauge", "Callers that wait for one.", waiting)
    return text


_Rows = list[tuple[dict[str, str], CommandTimes]]


def _families(rows: _Rows) -> Iterator[tuple[str, str, str, Iterable[_Sample]]]:
    yield (
        "operation_duration_seconds",
        "histogram",
        "From the call to its result, with all attempts.",
        (sample for labels, one in rows for sample in _buckets(labels, one.total)),
    )
    yield (
        "phase_duration_seconds",
        "summary",
        "The parts of the same.",
        (
            sample
            for labels, one in rows
            for name, phase in one.phases.items()
            for sample in _sums({**labels, "phase": name}, phase)
        ),
    )
    yield (
        "errors_total",
        "counter",
        "Operations that failed.",
        (
            ("", {**labels, "error_type": kind}, count)
            for labels, one in rows
            for kind, count in one.errors.items()
        ),
    )
    for name, about in (
        ("commands", "Commands in the operations."),
        ("retries", "Attempts after the first one."),
        ("sent", "Bytes of requests."),
        ("received", "Bytes of replies, where they are known."),
    ):
        unit = "_bytes" if name in {"sent", "received"} else ""
        counts = ((labels, getattr(one, name)) for labels, one in rows)
        known = (("", labels, count) for labels, count in counts if count is not None)
        yield f"{name}{unit}_total", "counter", about, known


def _labels(name: str) -> dict[str, str]:
    command, index = parted(name)
    return {"command": command, "index": index} if index else {"command": command}


def _buckets(labels: dict[str, str], histogram: Histogram) -> Iterator[_Sample]:
    steps = list(histogram.steps())
    values, counts = [value for value, _ in steps], [0, *(count for _, count in steps)]
    for bound in BOUNDS:
        yield "_bucket", {**labels, "le": repr(bound)}, counts[bisect_left(values, bound)]
    yield "_bucket", {**labels, "le": "+Inf"}, histogram.count
    yield from _sums(labels, histogram)


def _sums(labels: dict[str, str], histogram: Histogram) -> Iterator[_Sample]:
    yield "_sum", labels, histogram.sum
    yield "_count", labels, histogram.count


def _family(name: str, kind: str, about: str, samples: Iterable[_Sample]) -> str:
    """Return the lines of one family; nothing, where it has no samples."""
    name = f"redis_client_{name}"
    lines = [f"{name}{part}{_written(labels)} {value!r}\n" for part, labels, value in samples]
    return "".join([f"# HELP {name} {about}\n# TYPE {name} {kind}\n", *lines] if lines else [])


def _written(labels: dict[str, str]) -> str:
    pairs = (f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items())
    return f"{{{','.join(pairs)}}}" if labels else ""


_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
