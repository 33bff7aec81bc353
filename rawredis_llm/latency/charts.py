"""The charts of a report, as inline SVG.

Sideways, places are percentages, and curves are in an inner drawing that is stretched while its
strokes are not. So one drawing fits a phone and a wide window, and its text keeps its size.

Must not import numpy, or what records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from html import escape
from typing import Final, NamedTuple

from .histogram import Histogram
from .names import visible
from .report import CommandTimes, Report, Slice
from .tables import FLOOR, shares

DRAWN: Final = 8  # commands at most: as many colours can be told apart
_PHASES: Final = {  # their colours, and what they are
    "encode": (1, "arguments to bytes"),
    "acquire": (3, "until there was a connection"),
    "send": (2, "until the kernel had it"),
    "wait": (0, "until the reply: network, server"),
    "read": (4, "reply to Python values"),
    "resume": (5, "until the caller had it"),
}
_GRAIN: Final = 4000  # units of a drawing that is stretched, both ways
_ROUND: Final = [float(f"{digit}e{power}") for power in range(-7, 13) for digit in (1, 2, 5)]
_CLOCK: Final = [
    *(step for step in _ROUND if step <= 10),
    *(30.0, 60.0, 120.0, 300.0, 600.0, 1800.0),
    *(step * 3600 for step in _ROUND if step >= 1),
]
_Height = Callable[[float], float]


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


class _Axis(NamedTuple):
    """What is told along it, and its ticks: where, from 0 to 1, and what is written there."""

    title: str
    ticks: Sequence[tuple[float, str]]


class _Part(NamedTuple):
    """A slice of the time line: from where to where (0 to 1), exchanges per second, its tooltip."""

    one: Slice
    left: float
    right: float
    rate: float
    told: str

    def mark(self, kind: str, y: float | str, height: float | str) -> Markup:
        """Return a rectangle over the whole slice."""
        return _rect(self.told, self.left, self.right - self.left, y=y, height=height, class_=kind)


def tag(name: str, /, *content: str, **attributes: object) -> Markup:
    """Return an element. Content that is no Markup is escaped, and so are all attributes.

    Of their names, `class_` is class, and `text_anchor` is text-anchor.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(visible(str(value)))}"'
        for key, value in attributes.items()
    )
    inside = "".join(
        one if isinstance(one, Markup) else escape(visible(one), quote=False) for one in content
    )
    return Markup(f"<{name}{given}>{inside}</{name}>")


def human(seconds: float) -> str:
    """Return a time with two or three digits, as us, ms or s."""
    unit, size = ("s", 1.0) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-3 else ("us", 1e-6)
    value = seconds / size
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def clock(seconds: float) -> str:
    """Return a time of the run: seconds, and from a minute on hours, minutes and seconds."""
    return f"{seconds:.4g} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def drawn(report: Report) -> list[CommandTimes]:
    """Return the commands that are drawn, those that took most time in all."""
    return [one for one in report.rows() if one.count][:DRAWN]


def percentiles(report: Report) -> Markup:
    """Draw latency over percentiles, of which each nine is as wide as the others."""
    rows = drawn(report)
    curves = [
        (number, one, seen, seen is one.due)
        for number, one in enumerate(rows)
        for seen in (one.total, one.due)
        if seen is not None and seen.count
    ]
    most = max(seen.count for _, _, seen, _ in curves)
    width = max(math.log10(most), 1.0)
    high, latency = _latencies([seen for _, _, seen, _ in curves])
    marks: list[Markup] = []
    for number, one, seen, due in curves:
        name = f"{one.name}, from when it was due" if due else one.name
        marks.append(_curve(_ranks(seen, width, high), name, number, "due" if due else ""))
        for percent in () if due else _percents(seen.count):
            value = seen.percentile(percent)
            title = tag("title", f"{name}: {percent:.10g} % within {human(value)}")
            x, y = _percent(_place(percent) / width), _percent(1 - high(value))
            marks.append(tag("circle", title, cx=x, cy=y, r=4, style=_colour(number)))
    keys = [_key(one.name, style=_colour(number)) for number, one in enumerate(rows)]
    if any(due for *_, due in curves):
        keys.append(_key("from when it was due", class_="due"))
    told = "; ".join(f"{one.name} {human(one.total.percentile(99))}" for one in rows)
    percents = (0.0, *_percents(max(most, 10)))
    axis = _Axis("percentile", [(_place(one) / width, f"{one:.10g}") for one in percents])
    return _figure(keys, _plot(f"Latency by percentile. 99 % within: {told}", axis, latency, marks))


def phases(report: Report) -> Markup:
    """Draw which share of a command's mean each phase took, and the server itself."""
    its: dict[str, float] = {}
    if report.server is not None:
        views = shares(report.rows(), report.server)
        its = {name: view.seconds / view.calls for name, _, _, view in views if view.calls}
    keys = [
        _key(f"{phase}: {what}", style=_colour(number)) for phase, (number, what) in _PHASES.items()
    ]
    if its:
        keys.append(_key("the server itself", class_="own"))
    quarters = [(quarter / 4, f"{quarter * 25} %") for quarter in range(5)]
    bars = [_bar(one, its.get(one.server_name), quarters) for one in drawn(report)]
    scale = tag("svg", *_written(quarters), class_="scale", aria_hidden="true")
    axis = tag("div", scale, tag("p", "share of the mean time"), class_="row")
    return _figure(keys, tag("div", *bars, axis, class_="bars"))


def timeline(report: Report) -> Markup:
    """Draw the run, slice by slice: how many exchanges ended, how long they took, and errors."""
    width, slices = report.timeline.width, report.timeline.slices
    end = max(report.seconds, width * (len(slices) - 0.9))  # some end while a report is made
    parts = [_part(one, number * width, width, end) for number, one in enumerate(slices)]
    fastest = max(part.rate for part in parts)
    step = _step(fastest or 1.0, _ROUND)
    top = max(math.ceil(fastest / step), 1) * step
    rate = _Axis("exchanges per second", _ticks(top, _ROUND, "{:,.9g}".format))
    unit, size = _unit(_step(end, _CLOCK))
    time = _Axis(f"time, {unit}", _ticks(end, _CLOCK, lambda seconds: f"{seconds / size:.9g}"))
    failed = [part.mark("error", -9, 6) for part in parts if part.one.errors]
    hits = [part.mark("hit", 0, "100%") for part in parts]
    marks = [
        part.mark("bar", _percent(1 - part.rate / top), _percent(part.rate / top)) for part in parts
    ]
    told = f"Exchanges per second, at most {fastest:,.0f}. Slices with errors: {len(failed)}"
    plots = [_plot(told, time, rate, [*marks, *failed, *hits], "low")]
    keys = [_key("exchanges", class_="bar"), *([_key("errors", class_="error")] if failed else [])]
    timed = [(part, part.one.total) for part in parts if part.one.total.count]
    if timed:
        high, latency = _latencies([total for _, total in timed])
        curves = []
        for number, percent in enumerate((50, 99)):
            steps = ((part.left, part.right, high(t.percentile(percent))) for part, t in timed)
            curves.append(_curve(steps, f"p{percent}", number))
            keys.append(_key(f"p{percent}", style=_colour(number)))
        told = "Latency over time: p50 and p99"
        plots.append(_plot(told, time, latency, [*curves, *hits], "low"))
    return _figure(keys, *plots)


def _latencies(seen: Iterable[Histogram]) -> tuple[_Height, _Axis]:
    """Return a logarithmic axis that has room for all, and how high on it a latency is (0 to 1).

    What is less than the clock can tell stands at the bottom.
    """
    histograms = list(seen)
    least = max(min(one.least for one in histograms), FLOOR)
    most = max(one.most for one in histograms)
    low = max((step for step in _ROUND if step <= least), default=FLOOR)
    top = min((step for step in _ROUND if step >= max(most, 4 * low)), default=_ROUND[-1])
    ticks = [step for step in _ROUND if low <= step <= top]
    if len(ticks) > 9:
        ticks = [step for step in ticks if f"{step:e}".startswith("1")]

    def high(seconds: float) -> float:
        return min(math.log(max(seconds, low) / low) / math.log(top / low), 1.0)

    return high, _Axis("latency", [(high(step), human(step)) for step in ticks])


def _place(percent: float) -> float:
    """Return how many nines a percentage has: 0, 90, 99, 99.9 are 0, 1, 2, 3."""
    return 2 - math.log10(100 - percent)


def _percents(count: int) -> Iterator[float]:
    """Yield 50, 90, 99, 99.9, ... as far as so many calls can tell."""
    yield 50.0
    digits = 1
    while 10**digits <= count:
        yield round(100 - 10.0 ** (2 - digits), digits)
        digits += 1


def _ranks(seen: Histogram, width: float, high: _Height) -> Iterator[tuple[float, float, float]]:
    """Yield the steps of `percentile` from the least; the last one ends where one call is left."""
    before, count = 0, seen.count
    for value, upto in seen.steps():
        left = math.log10(count / (count - before))
        right = math.log10(count / max(count - upto, min(1, count / 2)))
        yield left / width, right / width, high(value)
        before = upto


def _curve(
    steps: Iterable[tuple[float, float, float]], told: str, colour: int, kind: str = ""
) -> Markup:
    """Draw steps (from, to, height: 0 to 1) as one line, with gaps where there is none."""
    path: list[str] = []
    pen: tuple[int, int] | None = None
    for left, right, height in steps:
        x, end, y = round(left * _GRAIN), round(right * _GRAIN), round((1 - height) * _GRAIN)
        if pen is None or pen[0] != x:
            path.append(f"M{x} {y}")
        elif pen[1] != y:
            path.append(f"V{y}")
        path.append(f"H{end}")
        pen = end, y
    line = tag(
        "path",
        tag("title", told),
        d="".join(path),
        vector_effect="non-scaling-stroke",
        class_=f"curve {kind}".strip(),
        style=_colour(colour),
    )
    return tag("svg", line, viewBox=f"0 0 {_GRAIN} {_GRAIN}", preserveAspectRatio="none")


def _bar(one: CommandTimes, own: float | None, quarters: Sequence[tuple[float, str]]) -> Markup:
    """Draw the phases of a command's mean beside each other; `own` is the server's mean of one."""
    whole = sum(one.phases[phase].mean for phase in _PHASES) or 1.0
    marks, left, waited = _grid(quarters), 0.0, 0.0
    told = []
    for phase, (number, _) in _PHASES.items():
        mean = one.phases[phase].mean
        told.append(f"{phase} {human(mean)} ({mean / whole:.0%})")
        title = f"{one.name}, {told[-1]}"
        marks.append(
            _rect(title, left, mean / whole, y=5, height=22, class_="phase", style=_colour(number))
        )
        left += mean / whole
        if phase == "wait":
            waited = left
    if own is not None and "+" not in one.name:
        # It ended as the reply began; where the loop is late, part of it was in `send`.
        own *= one.commands / one.count
        part = min(own / whole, waited)
        told.append(f"the server itself {human(own)}")
        marks.append(
            _rect(f"{one.name}, {told[-1]}", waited - part, part, y=13, height=6, class_="own")
        )
    name = tag("bdi", one.name, title=one.name)
    drawing = tag("svg", *marks, role="img", aria_label=f"{one.name}: {', '.join(told)}")
    return tag("div", name, tag("b", human(one.total.mean)), drawing, class_="row")


def _part(one: Slice, since: float, width: float, end: float) -> _Part:
    until = min(since + width, end)
    # What ended in the first moments of a slice that is not over yet is no rate.
    rate = one.total.count / max(until - since, width / 10)
    told = f"{clock(since)} to {clock(until)}: {rate:,.0f} exchanges per second"
    if one.total.count:
        p50, p99 = (human(one.total.percentile(percent)) for percent in (50, 99))
        told += f", p50 {p50}, p99 {p99}"
    told += f", {one.errors:,} errors" if one.errors else ""
    return _Part(one, since / end, until / end, rate, told)


def _unit(step: float) -> tuple[str, float]:
    return ("h", 3600.0) if step >= 3600 else ("min", 60.0) if step >= 60 else ("s", 1.0)


def _step(span: float, steps: Sequence[float]) -> float:
    """Return the least step of which at most six make the span."""
    return next((step for step in steps if step * 6 >= span), steps[-1])


def _ticks(
    span: float, steps: Sequence[float], write: Callable[[float], str]
) -> list[tuple[float, str]]:
    step = _step(span, steps)
    count = int(span / step * 1.000001)
    return [(each * step / span, write(each * step)) for each in range(count + 1)]


def _plot(told: str, x: _Axis, y: _Axis, marks: Sequence[Markup], kind: str = "") -> Markup:
    across = [
        tag("line", x1=0, x2="100%", y1=_percent(1 - at), y2=_percent(1 - at)) for at, _ in y.ticks
    ]
    beside = [
        tag("text", text, x=-8, y=_percent(1 - at), dy=".35em", class_="beside")
        for at, text in y.ticks
    ]
    ground = [*_grid(x.ticks), *across, *beside, *_written(x.ticks, "100%")]
    drawing = tag("svg", *ground, *marks, role="img", aria_label=told)
    return tag("div", tag("p", y.title), drawing, tag("p", x.title), class_=f"plot {kind}".strip())


def _grid(ticks: Sequence[tuple[float, str]]) -> list[Markup]:
    return [tag("line", x1=_percent(at), x2=_percent(at), y1=0, y2="100%") for at, _ in ticks]


def _written(ticks: Sequence[tuple[float, str]], y: str = "0") -> list[Markup]:
    """Write what is told along the bottom; of many, each second one only where there is room."""
    kinds = ("kept", "spare" if len(ticks) > 6 else "kept")
    return [
        tag("text", text, x=_percent(at), y=y, dy="1.5em", class_=kinds[number % 2])
        for number, (at, text) in enumerate(ticks)
    ]


def _rect(told: str, x: float, width: float, **attributes: object) -> Markup:
    return tag("rect", tag("title", told), x=_percent(x), width=_percent(width), **attributes)


def _key(text: str, **attributes: str) -> Markup:
    return tag("li", tag("i", **attributes), tag("bdi", text, title=text))


def _figure(keys: Sequence[Markup], *drawings: Markup) -> Markup:
    return tag("figure", tag("ul", *keys), *drawings)


def _percent(share: float) -> str:
    return f"{share:.3%}"


def _colour(number: int) -> str:
    return f"--colour: var(--colour{number})"
