"""What changes while one looks: a table in place, and `top`, the server's commands as they run.

By rich where it is installed and the output is a terminal. Must not import numpy.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from time import monotonic, sleep
from typing import Any, Final, TypeVar

from ..errors import ReplyError
from ..protocol.operation import Command, Op, together
from ..sync.client import Client
from .server_share import Snapshot, share, snapshot
from .tables import text_table, us

T = TypeVar("T")

SECTIONS: Final = ("stats", "clients", "memory", "cpu")  # of INFO; before 7.0 it takes one a time


@contextmanager
def display(
    draw: Callable[[T], str], plain: Callable[[T], object], *, live: bool = True, keep: bool = False
) -> Iterator[Callable[[T], object]]:
    """Give what shows a thing: drawn in place of the one before, or else by `plain`.

    `keep` leaves the last one on the terminal.
    """
    if live and sys.stdout.isatty():
        try:
            from rich.live import Live  # noqa: PLC0415 - an extra
            from rich.text import Text  # noqa: PLC0415
        except ImportError:
            pass
        else:
            with Live(auto_refresh=False, transient=not keep) as screen:
                screen.console.show_cursor()  # who is killed by a second Ctrl-C keeps it
                yield lambda thing: screen.update(Text(draw(thing), no_wrap=True), refresh=True)
            return
    yield plain


@dataclass
class Sample:
    """The server's figures at one moment of the monotonic clock; `missing` says what it refused."""

    at: float
    server: Snapshot
    figures: dict[str, str]
    missing: list[str]


def top(url: str, interval: float = 1.0, count: int | None = None) -> None:
    """Show what a server does, each `interval` seconds, `count` times or until interrupted.

    Raises ValueError naming the parameter that is wrong.
    """
    if not 0 < interval < math.inf:
        raise ValueError(f"interval must be a number of seconds above 0, not {interval}")
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    plain: Callable[[str], object] = partial(print, end="\n\n", flush=True)
    with Client(url) as client, display(str, plain, keep=True) as show:
        before = Sample(monotonic(), *client.run(sample()))
        for _ in repeat(None) if count is None else repeat(None, count):
            sleep(interval)
            after = Sample(monotonic(), *client.run(sample()))
            show(block(before, after))
            before = after


def sample() -> Op[tuple[Snapshot, dict[str, str], list[str]]]:
    """Ask for all figures, in one round trip. Raises only when nobody answers."""
    asked: list[Any] = [Command(("INFO", section), _fields) for section in SECTIONS]
    server, *sections = yield from together([snapshot(), *asked], raise_errors=False)
    if isinstance(server, Exception):
        raise server
    figures: dict[str, str] = {}
    for one in sections:
        figures |= {} if isinstance(one, ReplyError) else one
    refused = zip(SECTIONS, sections, strict=True)
    missing = [f"INFO {name}: {one}" for name, one in refused if isinstance(one, ReplyError)]
    return server, figures, missing


def block(before: Sample, after: Sample) -> str:
    """Return what happened between two samples, as text: the server, then its commands."""
    seconds = after.at - before.at
    done = share(before.server, after.server)

    def number(name: str, *, since: bool = False) -> float | None:
        if name not in after.figures or (since and name not in before.figures):
            return None
        earlier = float(before.figures[name]) if since else 0.0
        return max(float(after.figures[name]) - earlier, 0.0) / (seconds if since else 1)

    cpu = [number(f"used_cpu_{kind}", since=True) for kind in ("user", "sys")]
    used, most = number("used_memory"), number("maxmemory")
    head = [
        f"server {done.version or '-'}",
        f"ops/s {_count(number('total_commands_processed', since=True))}",
        f"clients {_count(number('connected_clients'))}",
        f"blocked {_count(number('blocked_clients'))}",
        f"memory {_size(used)}{f' of {_size(most)}' if most else ''}",
        f"in {_size(number('total_net_input_bytes', since=True))}/s",
        f"out {_size(number('total_net_output_bytes', since=True))}/s",
        f"CPU {'-' if None in cpu else format(sum(filter(None, cpu)), '.0%')}",
    ]
    lines = [
        (
            name,
            f"{one.calls / seconds:,.0f}",
            us(one.seconds / one.calls if one.calls else None),
            us(one.p99),
            f"{one.seconds / seconds:.1%}",
            f"{one.failed:,}",
            f"{one.rejected:,}",
        )
        for name, one in sorted(done.commands.items(), key=lambda pair: -pair[1].seconds)
    ]
    headings = ("command", "calls/s", "us/call", "p99 us", "of the time", "failed", "rejected")
    missing = [f"not told: {one}" for one in (*after.missing, *done.missing)]
    return "\n".join(["  ".join(head), text_table(headings, lines), *missing])


def _fields(reply: bytes) -> dict[str, str]:
    lines = reply.decode().splitlines()
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


def _count(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}"


def _size(number: float | None) -> str:
    """Return bytes in units of which there are at least ten."""
    if number is None:
        return "-"
    power = min(int(math.log(max(number / 10, 1), 1024)), 3)
    return f"{number / 1024**power:,.0f} {('B', 'KiB', 'MiB', 'GiB')[power]}"
