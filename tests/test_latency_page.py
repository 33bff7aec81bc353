"""A report as an HTML page: what it shows is what was recorded, and it looks right in a browser."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawredis_llm import Client, EmbeddedServer, Report, errors, profile
from rawredis_llm.latency.charts import _PHASES, DRAWN, clock, human
from rawredis_llm.latency.histogram import Histogram
from rawredis_llm.latency.names import visible
from rawredis_llm.latency.page import page
from rawredis_llm.latency.report import (
    CommandTimes,
    ServerShare,
    ServerTimes,
    Slice,
    SlowEntry,
    Timeline,
)
from rawredis_llm.latency.tables import text_table
from rawredis_llm.protocol.observing import PHASES

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
NASTY = [
    "</style><script>alert(1)</script>",
    "<b>&amp;\"'",
    "\x00\x1b[31m\r\n\u202eevil",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "w" * 500,
    "FT.SEARCH " + "a b " * 125,
    "\ud800 half a character",
]


@pytest.fixture(scope="module")
def recorded(server: EmbeddedServer) -> Report:
    """A report of a real server, with all that a page can show."""
    with Client(server.url) as client:
        client.call("FLUSHALL")
        with profile(client) as p:
            for number in range(150):
                client.call("SET", f"k{number}", "v")
                client.call("GET", f"k{number}")
            for _ in range(20):
                client.pipeline([("SET", "a", 1), ("INCR", "a")])
                client.pipeline([("GET", "a")] * 5)
            with pytest.raises(errors.WrongTypeError):
                client.call("LPUSH", "a", 1)
    report = p.report()
    assert report.server is not None
    report.server.slow = [SlowEntry(report.began, 0.02, "GET a")]
    report.server.missing = ["LATENCY HISTOGRAM: no permission", "SLOWLOG GET 128: no"]
    report.about = {"address": server.url.removeprefix("redis://"), "python": "<3>"}
    report.commands["GET"].due = histogram_of(0.001 * number for number in range(1, 151))
    return report


def histogram_of(values: Iterable[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


def times(name: str, *values: float) -> CommandTimes:
    phases = {phase: histogram_of(value / 6 for value in values) for phase in PHASES}
    return CommandTimes(name, len(values), 0, {}, 9, None, histogram_of(values), phases)


def report_of(*commands: CommandTimes, seconds: float = 1.0, slices: int = 1) -> Report:
    line = Timeline(slices=[Slice(number % 2) for number in range(slices)])
    for one in commands:
        for value in [one.total.mean] * one.count:
            line.slices[0].total.record(value)
    return Report(1.7e9, seconds, {one.name: one for one in commands}, line)


def parsed(report: Report) -> ET.Element:
    """Return the page as a tree; it is well-formed XML, so nothing was left open or unescaped."""
    return ET.fromstring(page(report))


def classed(tree: ET.Element, name: str) -> list[ET.Element]:
    return [one for one in tree.iter() if name in one.get("class", "").split()]


def share(one: ET.Element, attribute: str) -> float:
    return float(one.get(attribute, "").removesuffix("%")) / 100


def figure(tree: ET.Element, heading: str) -> ET.Element:
    [found] = [one for one in tree.iter("section") if one.findtext("h2") == heading]
    return found


def test_the_tables_are_those_of_the_text(recorded: Report, tmp_path: Path) -> None:
    recorded.to_html(tmp_path / "report.html")
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    parts = []
    for part in figure(ET.fromstring(written), "Figures").findall("div"):
        if part.find("table") is None:
            items = ["".join(one.itertext()) for one in part.iter("li")]
            parts.append("\n".join(f"{part.findtext('h3')}: {one}" for one in items))
        else:
            rows = [["".join(cell.itertext()) for cell in row] for row in part.iter("tr")]
            parts.append(text_table(rows[0], rows[1:]))
    assert len(parts) == 6
    assert "\n\n".join(parts) == recorded.table()


def test_the_heading_says_what_was_measured(recorded: Report) -> None:
    tree = parsed(recorded)
    shown = {
        one.findtext("dt"): one.findtext("dd/bdi")
        for one in tree.iter("div")
        if one.find("dt") is not None
    }
    assert shown["calls"] == "341"
    assert shown["errors"] == "1"
    assert shown["python"] == "<3>"
    assert shown["duration"] == clock(recorded.seconds)
    assert shown["began"] is not None
    assert shown["began"].endswith(" UTC")


def test_nothing_is_fetched_or_run(recorded: Report) -> None:
    assert not re.search(r"http|src=|href|url\(|<script|@import|<link|\bon\w+=", page(recorded))


def test_points_and_curves_are_percentiles(recorded: Report) -> None:
    """The axis is read as a reader does: by what is written beside its lines."""
    tree = figure(parsed(recorded), "Percentiles")
    marks = [(share(one, "y"), one.text or "") for one in classed(tree, "beside")]
    (low, first), *_, (high, last) = [(y, text.split()) for y, text in marks]
    bottom, top = (math.log(float(number) * UNITS[unit]) for number, unit in (first, last))
    written = {
        text: share(one, "x") for one in classed(tree, "plot")[0].iter("text") if (text := one.text)
    }
    curves = {one.findtext("title"): one.get("d", "") for one in classed(tree, "curve")}
    assert set(curves) == {*recorded.commands, "GET, from when it was due"}
    seen = 0
    for point in tree.iter("circle"):
        name, _, told = (point.findtext("title") or "").partition(": ")
        percent, _, _, value = told.split(" ", 3)
        expected = recorded.commands[name].total.percentile(float(percent))
        assert value == human(expected)
        assert share(point, "cx") == pytest.approx(written[percent], abs=1e-4)
        at = bottom + (share(point, "cy") - low) / (high - low) * (top - bottom)
        assert math.exp(at) == pytest.approx(expected, rel=1e-3)
        assert abs(height_at(curves[name], share(point, "cx")) - share(point, "cy")) < 1e-3
        seen += 1
    assert seen == sum(1 + int(math.log10(one.count)) for one in recorded.commands.values())


def height_at(path: str, x: float) -> float:
    """Return how far down a stepped curve is, just before x."""
    at, y, found = 0, 0, 0
    for kind, first, second in re.findall(r"([MHV])(\d+)(?: (\d+))?", path):
        if kind == "M":
            at, y = int(first), int(second)
        elif kind == "V":
            y = int(first)
        elif at < x * 4000 - 1:  # places are rounded
            at, found = int(first), y
    return found / 4000


def test_bars_are_shares_of_the_mean(recorded: Report) -> None:
    tree = figure(parsed(recorded), "Where the mean went")
    rows = [one for one in classed(tree, "row") if one.find("bdi") is not None]
    assert [row.findtext("bdi") for row in rows] == [one.name for one in recorded.rows()]
    assert recorded.server is not None
    its = recorded.server.commands
    marked = set()
    for row, one in zip(rows, recorded.rows(), strict=True):
        bars = classed(row, "phase")
        widths = [share(bar, "width") for bar in bars]
        means = [one.phases[phase].mean for phase in PHASES]
        assert widths == pytest.approx([mean / sum(means) for mean in means], abs=1e-4)
        lefts = [sum(widths[:number]) for number in range(len(widths))]
        assert [share(bar, "x") for bar in bars] == pytest.approx(lefts, abs=1e-4)
        for own in classed(row, "own"):
            marked.add(one.name)
            mean = its[one.server_name].seconds / its[one.server_name].calls
            took = mean * one.commands / one.count
            assert share(own, "width") == pytest.approx(took / sum(means), abs=1e-4)
            assert share(own, "x") + share(own, "width") == pytest.approx(lefts[4], abs=1e-4)
    assert {"GET", "SET", "PIPELINE GET"} <= marked
    assert "PIPELINE SET+INCR" not in marked
    assert tuple(_PHASES) == PHASES


def test_the_time_line_has_all_exchanges_and_errors() -> None:
    line = Timeline()
    for second in (0.01, 0.02, 0.15, 0.45, 0.46):
        line.at(second).total.record(0.001)
    line.failed(0.46)
    tree = figure(parsed(Report(0, 0.46, {"GET": times("GET", *[0.001] * 5)}, line)), "Time line")
    [top] = [one.text for one in classed(tree, "beside") if share(one, "y") == 0][:1]
    bars = [one for one in tree.iter("rect") if one.get("class") == "bar"]
    counts = [share(one, "width") * 0.46 * share(one, "height") * float(top or 0) for one in bars]
    assert counts == pytest.approx([2, 1, 0, 0, 2], abs=1e-3)
    [failed] = [one for one in tree.iter("rect") if one.get("class") == "error"]
    assert share(failed, "x") == pytest.approx(0.4 / 0.46, abs=1e-4)
    assert (failed.findtext("title") or "").endswith(", 1 errors")
    paths = [one.get("d", "") for one in classed(tree, "curve")]
    assert [path.count("M") for path in paths] == [2, 2]  # a gap where nothing ended


def luminance(colour: str) -> float:
    """Return what WCAG 2 calls relative luminance."""
    digits = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(map(float.__mul__, linear, (0.2126, 0.7152, 0.0722)))


def test_colours_stand_out_in_both_schemes() -> None:
    colours = re.findall(r"--(\w+): #(\w+)", page(EDGES["empty"]))
    half = len(colours) // 2
    for scheme in (dict(colours[:half]), dict(colours[half:])):
        card = luminance(scheme["card"])
        for name in {*scheme} - {"card", "page", "line"}:
            brighter, darker = sorted((card, luminance(scheme[name])), reverse=True)
            least = 4.5 if name in {"text", "soft"} else 3
            assert (brighter + 0.05) / (darker + 0.05) >= least, name


@given(
    st.lists(st.text(st.characters(), min_size=1, max_size=30), min_size=3, max_size=3, unique=True)
)
def test_every_text_is_escaped(names: list[str]) -> None:
    one, other, told = names
    tree = named(one, other, told)
    plain = named("one", "other", "told")
    assert [element.tag for element in tree.iter()] == [element.tag for element in plain.iter()]
    assert [sorted(e.attrib) for e in tree.iter()] == [sorted(e.attrib) for e in plain.iter()]
    texts = ["".join(element.itertext()) for element in tree.iter("bdi")]
    assert texts.count(visible(one)) >= 4  # both legends, and the tables
    assert texts.count(visible(other)) >= 4
    assert texts.count(visible(told)) >= 3


def named(one: str, other: str, told: str) -> ET.Element:
    """Return a page with these texts wherever a report has any."""
    report = report_of(times(one, 1.0, 2.0), times(other, 0.1))
    report.about = {told: told}
    report.server = ServerShare(slow=[SlowEntry(0, 1, told)], missing=[told])
    return parsed(report)


def test_text_cannot_move_the_cursor_of_a_terminal() -> None:
    shown = report_of(times("\x1b[2J\n\u202e", 1.0)).table()
    assert shown.replace("\n", " ").isprintable()
    assert "\\x1b[2J\\n\\u202e" in shown


def million() -> CommandTimes:
    one = times("GET", 0.0001, 0.001)
    for _ in range(19):
        one.merge(one.copy())
    return one


def nasty() -> Report:
    report = report_of(*(times(name, 0.1 * n + 0.1) for n, name in enumerate(NASTY)), slices=120)
    report.about = {name: name for name in NASTY}
    slow = [SlowEntry(0, 1, name) for name in NASTY]
    report.server = ServerShare("7", {NASTY[0]: ServerTimes(1, 0.01)}, slow, [], NASTY)
    return report


EDGES = {
    "empty": Report(0, 0, {}),
    "no exchange ended": report_of(times("GET")),
    "a million": Report(0, 9, {"GET": million()}),
    "one": report_of(times("GET", 0.001)),
    "no time": report_of(times("GET", 0.0, 0.0), seconds=0),
    "no slices": Report(0, 1, {"GET": times("GET", 1.0)}),
    "very long": report_of(times("GET", 1e-9, 1e6), seconds=1e8, slices=120),
    "many": report_of(*(times(f"N{number}", 0.1, 0.2) for number in range(1000))),
    "nasty": nasty(),
    "no successes": Report(0, 1, {"GET": times("GET", 1)}, Timeline(slices=[Slice(1)])),
    "none was due": Report(0, 1, {"GET": replace(times("GET", 1), due=Histogram())}),
    "server alone": Report(0, 1, {}, server=ServerShare("7", {"GET": ServerTimes(1, 0.1)})),
    "no calls": Report(
        0, 1, {"GET": times("GET", 1)}, server=ServerShare("7", {"GET": ServerTimes(0, 0)})
    ),
}


@pytest.mark.parametrize("name", EDGES)
def test_a_page_of(name: str) -> None:
    report = EDGES[name]
    tree = parsed(report)
    rows = [one.name for one in report.rows() if one.count]
    drawn = [one.get("d") for one in classed(tree, "curve")]
    slices = 2 if rows and any(one.total.count for one in report.timeline.slices) else 0
    assert len(drawn) == min(len(rows), DRAWN) + slices
    assert all(drawn)
    assert ("Nothing was recorded." in "".join(tree.itertext())) is (not report.commands)
    names = ["".join(one.itertext()) for one in tree.iter("bdi")]
    assert {visible(one) for one in report.commands} <= set(names)
    left = [one.text for one in tree.findall("body/details/ul/li/bdi")]
    assert left == [visible(one) for one in rows[DRAWN:]]
    assert not any("e-" in (one.text or "") for one in tree.iter("text"))
    for one in tree.iter():
        for attribute in ("x", "y", "width", "height", "cx", "cy", "d"):
            assert not re.search("nan|inf|e-", one.get(attribute, ""))
        for attribute in ("width", "height"):
            if "%" in one.get(attribute, ""):
                assert 0 <= share(one, attribute) <= 1.00001


def test_percentile_is_not_a_rank_too_high() -> None:
    assert histogram_of([0.001] * 999 + [1.0]).percentile(99.9) == pytest.approx(0.001, rel=0.01)


MEASURE = """<!DOCTYPE html><meta charset="utf-8">
<style>iframe { border: 0; height: 900px; }</style>
<body>FRAMES<script>
function overlap(a, b) {
  return a.left < b.right - 1 && b.left < a.right - 1
    && a.top < b.bottom - 3 && b.top < a.bottom - 3;
}
window.onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const inner = frame.contentWindow, root = inner.document.documentElement;
    const seen = { name: frame.name, width: inner.innerWidth,
      room: root.clientWidth, needed: root.scrollWidth,
      ground: inner.getComputedStyle(inner.document.body).backgroundColor,
      fetched: inner.performance.getEntriesByType("resource").length,
      overlaps: [], outside: [], small: [], texts: 0 };
    for (const drawing of inner.document.querySelectorAll("svg[role=img], svg.scale")) {
      const texts = [...drawing.querySelectorAll("text")].map(one => ({ one,
        box: one.getBoundingClientRect() })).filter(({ box }) => box.width);
      seen.texts += texts.length;
      texts.forEach(({ one, box }, number) => {
        if (box.left < 0 || box.right > inner.innerWidth) seen.outside.push(one.textContent);
        if (box.height < 11) seen.small.push(one.textContent);
        for (const other of texts.slice(number + 1))
          if (overlap(box, other.box)) seen.overlaps.push([one.textContent, other.one.textContent]);
      });
    }
    return seen;
  });
  document.body.innerHTML = "";
  document.body.appendChild(document.createElement("pre")).textContent = JSON.stringify(found);
};
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")
@pytest.mark.parametrize(("scheme", "dark"), [(0, True), (1, False)])
def test_it_fits_into_a_window_and_a_phone(
    scheme: int, dark: bool, recorded: Report, tmp_path: Path
) -> None:
    """Frames of both widths are measured by a script in the page around them."""
    reports = {**EDGES, "recorded": recorded}
    frames = []
    for number, (name, report) in enumerate(reports.items()):
        report.to_html(tmp_path / f"{number}.html")
        frames += [
            f'<iframe src="{number}.html" name="{name}" style="width: {width}px"></iframe>'
            for width in (1280, 375)
        ]
    (tmp_path / "all.html").write_text(MEASURE.replace("FRAMES", "".join(frames)))
    found = measured(tmp_path, scheme)
    assert [(one["name"], one["width"]) for one in found] == [
        (name, width) for name in reports for width in (1280, 375)
    ]
    for seen in found:
        assert seen["needed"] == seen["room"], seen
        assert not any(seen[fault] for fault in ("fetched", "overlaps", "outside", "small")), seen
        assert (seen["texts"] > 0) is any(one.count for one in reports[seen["name"]].rows()), seen
        assert (sum(map(int, re.findall(r"\d+", seen["ground"]))) < 3 * 128) is dark, seen


def measured(folder: Path, scheme: int) -> list[dict[str, Any]]:
    """Return what the script in `all.html` found, in a browser that reaches no network."""
    assert BROWSER is not None
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
        " --disable-background-networking --disable-component-update --disable-dev-shm-usage"
        " --proxy-server=socks5://127.0.0.1:9 --allow-file-access-from-files --dump-dom"
        f" --user-data-dir={folder / 'profile'} --blink-settings=preferredColorScheme={scheme}"
    )
    run = subprocess.run(
        [BROWSER, *options.split(), (folder / "all.html").as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    shown = re.search("<pre>(.*)</pre>", run.stdout, re.DOTALL)
    assert shown, run.stderr
    found: list[dict[str, Any]] = json.loads(unescape(shown[1]))
    return found
