"""A report as one HTML file: no network, no scripts. It is well-formed XML, too.

Must not import numpy, or what records.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Final

from .charts import DRAWN, Markup, clock, percentiles, phases, tag, timeline
from .report import Report
from .tables import Section, sections

__all__ = ["page"]


def page(report: Report) -> str:
    """Return a report as HTML."""
    parts = list(sections(report))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>Latency</title>{tag('style', Markup(_STYLE))}</head>"
        f"{tag('body', _head(report), *_charts(report), *_tables(parts))}</html>\n"
    )


def _head(report: Report) -> Markup:
    """Tell what was measured, when, and how much."""
    rows = report.commands.values()
    calls = sum(one.count for one in rows)
    failed = sum(sum(one.errors.values()) for one in rows)
    rate = calls / report.seconds if report.seconds else 0.0
    began = datetime.fromtimestamp(report.began, timezone.utc)
    figures = {
        "calls": f"{calls:,}",
        "errors": f"{failed:,}",
        "calls per second": f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}",
        "duration": clock(report.seconds),
        "began": f"{began:%Y-%m-%d %H:%M:%S} UTC",
    }
    told = {**report.about, **{f"connections {k}": f"{n:,}" for k, n in report.connections.items()}}
    return tag(
        "header",
        tag("h1", "Latency"),
        tag("dl", *(_pair(*pair) for pair in figures.items()), class_="figures"),
        tag("dl", *(_pair(*pair) for pair in told.items()), class_="about"),
    )


def _pair(name: str, value: str) -> Markup:
    return tag("div", tag("dt", name), tag("dd", tag("bdi", value)))


def _charts(report: Report) -> list[Markup]:
    """Draw what there is; name the commands that are not drawn."""
    if not report.commands:
        return [tag("p", "Nothing was recorded.", class_="none")]
    rows = [one for one in report.rows() if one.count]
    if not rows:
        return []
    charts = [
        tag("section", tag("h2", "Percentiles"), percentiles(report)),
        tag("section", tag("h2", "Where the mean went"), phases(report)),
    ]
    if report.timeline.slices:
        charts.append(tag("section", tag("h2", "Time line"), timeline(report)))
    rest = [one.name for one in rows[DRAWN:]]
    if rest:
        summary = tag("summary", f"{len(rest):,} more commands took less time and are not drawn")
        names = [tag("li", tag("bdi", name)) for name in rest]
        charts.insert(2, tag("details", summary, tag("ul", *names)))
    return charts


def _tables(parts: list[Section]) -> list[Markup]:
    if not parts:
        return []
    note = "Times are microseconds. Calls are exchanges: a pipeline is one."
    return [tag("section", tag("h2", "Figures"), tag("p", note), *map(_table, parts))]


def _table(section: Section) -> Markup:
    title, headings, lines = section
    if not headings:
        listed = [tag("li", tag("bdi", *line)) for line in lines]
        return tag("div", tag("h3", title), tag("ul", *listed))
    top = tag("tr", *(tag("th", heading, scope="col") for heading in (title, *headings)))
    rows = [
        tag(
            "tr",
            tag("th", tag("bdi", name, title=name), scope="row"),
            *(tag("td", figure) for figure in figures),
        )
        for name, *figures in lines
    ]
    table = tag("table", tag("thead", top), tag("tbody", *rows))
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=title)


# The colours keep apart under each kind of colour blindness, and from the background by 3 to 1.
_STYLE: Final = """
:root { color-scheme: light dark; --page: #f4f6f8; --card: #fff; --text: #1b232e; --soft: #566273;
  --line: #dde3ea; --error: #c8102e; --own: #10151c;
  --colour0: #345f95; --colour1: #ab9017; --colour2: #0c8a7c; --colour3: #d0363e;
  --colour4: #4c3182; --colour5: #37a1b8; --colour6: #662707; --colour7: #7d3b5d; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1116; --card: #14181f; --text: #e6ebf2;
  --soft: #9aa7b8; --line: #2a323d; --error: #ff5c6c; --own: #fff;
  --colour0: #4065df; --colour1: #d7d468; --colour2: #68d0bf; --colour3: #c35401;
  --colour4: #928efe; --colour5: #8af5ff; --colour6: #e87f25; --colour7: #b474a1; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 76rem; background: var(--page);
  color: var(--text); font: 15px/1.45 system-ui, sans-serif; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
h1 { margin: 0 0 .75rem; font-size: 1.7rem; }
h2 { margin: 0 0 .75rem; font-size: 1.15rem; }
h3 { margin: 1.25rem 0 .25rem; font-size: 1rem; }
p { margin: 0 0 .75rem; color: var(--soft); }
bdi { text-align: left; }
section, details, .none { margin: 1rem 0; padding: 1rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0 0 .75rem; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; }
.figures dd { font-size: 1.3rem; font-weight: 600; }
figure { margin: 0; }
ul { margin: 0; padding-left: 1.25rem; }
figure ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin-bottom: 1rem; padding: 0;
  list-style: none; font-size: .85rem; }
figure li { display: flex; align-items: center; gap: .45rem; max-width: 100%; }
figure bdi { overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
i { flex: none; width: 14px; height: 14px; border-radius: 3px; background: var(--colour); }
i.due { height: 0; border-top: 2px dashed var(--text); border-radius: 0; background: none; }
i.own { height: 6px; background: var(--own); }
i.bar { background: var(--soft); }
i.error { height: 6px; background: var(--error); }
svg { display: block; width: 100%; overflow: visible; }
svg text { fill: var(--soft); font-size: 12px; text-anchor: middle; }
line { stroke: var(--line); }
.plot { padding: 0 1.6rem 0 4rem; }
.plot > svg { height: 22rem; }
.low > svg { height: 10rem; }
.plot p { margin: 0 0 .8rem -4rem; font-size: .8rem; }
.plot svg + p { margin: 1.6rem 0 .5rem; text-align: center; }
.plot .beside { text-anchor: end; }
.curve { fill: none; stroke: var(--colour); stroke-width: 2; stroke-linejoin: round; }
.curve.due { stroke-dasharray: 5 4; }
circle { fill: var(--colour); stroke: var(--card); stroke-width: 1.5; }
.bar { fill: var(--soft); shape-rendering: crispEdges; }
.error { fill: var(--error); }
.hit { fill: transparent; }
.hit:hover { fill: var(--text); fill-opacity: .12; }
.bars { padding-right: 1.2rem; }
.row { display: grid; grid-template-columns: 15rem 5rem 1fr; column-gap: .75rem;
  align-items: center; }
.row b { text-align: right; }
.row svg { grid-column: 3; height: 32px; }
.row p { grid-column: 3; margin: 0; font-size: .8rem; text-align: center; }
.row .scale { height: 22px; }
.phase { fill: var(--colour); stroke: var(--card); stroke-width: 1; }
.own { fill: var(--own); stroke: var(--card); }
.scroll { max-height: 75vh; margin: 0 0 1.25rem; overflow: auto; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .85rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
thead th { position: sticky; top: 0; z-index: 1; background: var(--card); color: var(--soft); }
th:first-child { position: sticky; left: 0; background: var(--card); text-align: left; }
thead th:first-child { z-index: 2; min-width: 8rem; color: var(--text); white-space: normal; }
tbody th bdi { display: block; max-width: 22rem; overflow: hidden; text-overflow: ellipsis; }
tbody th:nth-last-child(2) bdi { max-width: none; white-space: normal; }
@media (max-width: 640px) {
  .row { grid-template-columns: 1fr auto; padding-top: .4rem; }
  .row svg, .row p { grid-column: 1 / 3; }
  .plot > svg { height: 17rem; }
  .low > svg { height: 8rem; }
  .spare { display: none; }
  .plot { padding: 0 1rem 0 3.6rem; }
  .plot p:first-child { margin-left: -3.6rem; }
  tbody th bdi { max-width: 40vw; }
}
"""
