"""The server's own view of a window: what it counts, before and after, and the difference.

Managed services refuse some of the commands; what is refused is named, and the rest is there.

Must not import numpy, or what records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..protocol.commands import as_mapping
from ..protocol.operation import Batch, Command, Op
from ..protocol.vetting import command_name
from ..search.replies import profile_reply
from .names import argv
from .report import ServerShare, ServerTimes, SlowEntry

_ASKED: Final = {
    "version": ("INFO", "server"),
    "histograms": ("LATENCY", "HISTOGRAM"),
    "percentiles": ("INFO", "latencystats"),
    "slow": ("SLOWLOG", "GET", 128),
    "commands": ("INFO", "commandstats"),  # the last, so that the others are not in the window
}


@dataclass
class Snapshot:
    """What the server said at one moment; a part that it refused is in `missing`, with its reason.

    `histograms` are cumulated counts by the upper ends of buckets, in microseconds.
    """

    version: str = ""
    commands: dict[str, dict[str, float]] = field(default_factory=dict)
    histograms: dict[str, dict[int, int]] = field(default_factory=dict)
    percentiles: dict[str, dict[str, float]] = field(default_factory=dict)
    slow: list[list[Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def snapshot() -> Op[Snapshot]:
    """Ask the server for its counts, in one round trip. Raises only when nobody answers."""
    decoders: dict[str, Callable[[Any], Any]] = {
        "version": _version,
        "histograms": _histograms,
        "percentiles": lambda reply: _stats(reply, "latency_percentiles_usec_"),
        "slow": list,
        "commands": lambda reply: _stats(reply, "cmdstat_"),
    }
    asked = [Command(args, decoders[name]) for name, args in _ASKED.items()]
    replies = yield from Batch(asked, raise_errors=False)
    given = dict(zip(_ASKED, replies, strict=True))
    refused = {name: str(one) for name, one in given.items() if isinstance(one, Exception)}
    return Snapshot(**{n: one for n, one in given.items() if n not in refused}, missing=refused)


def share(before: Snapshot, after: Snapshot) -> ServerShare:
    """Return what the server did between two snapshots, for all of its clients."""
    commands: dict[str, ServerTimes] = {}
    for name, now in after.commands.items():
        then = before.commands.get(name, {})
        if now["calls"] < then.get("calls", 0):  # its statistics were reset meanwhile
            then = {}
        calls, took, failed, rejected = (
            now.get(figure, 0) - then.get(figure, 0)
            for figure in ("calls", "usec", "failed_calls", "rejected_calls")
        )
        if calls or rejected:
            times = ServerTimes(int(calls), took / 1e6, int(failed), int(rejected))
            times.p50, times.p99 = _percentiles(name, before, after)
            commands[name.upper().replace("|", " ")] = times
    last = before.slow[0][0] if before.slow else -1
    slow = [
        SlowEntry(float(at), took / 1e6, argv(tuple(args))[0])
        for number, at, took, args, *_ in after.slow
        if number > last
    ]
    missing = [f"{' '.join(map(str, _ASKED[name]))}: {why}" for name, why in after.missing.items()]
    return ServerShare(after.version, commands, slow, [], missing)


def search_profile(*args: Any) -> Op[dict[str, Any]]:
    """Run an FT.SEARCH or FT.AGGREGATE (its arguments, without a cursor) under FT.PROFILE.

    Returns the arguments' outline, `command`, and what the server says, `profile`, in milliseconds.
    Raises ValueError for another command.
    """
    name = command_name(args)
    if name not in {"FT.SEARCH", "FT.AGGREGATE"} or len(args) < 3:
        raise ValueError(f"FT.PROFILE takes an FT.SEARCH or FT.AGGREGATE, not {name}")
    asked = ("FT.PROFILE", args[1], name.removeprefix("FT."), "QUERY", *args[2:])
    profile = yield from Command(asked, profile_reply)
    return {"command": argv(args)[0], "profile": profile}


def _version(reply: bytes) -> str:
    lines = (line.partition(":") for line in reply.decode().splitlines())
    fields = {name: value for name, _, value in lines}
    return fields.get("redis_version", "")


def _stats(reply: bytes, prefix: str) -> dict[str, dict[str, float]]:
    """Return `prefixNAME:figure=1,other=2` lines as dicts by name."""
    lines = [line.partition(":") for line in reply.decode().splitlines() if line.startswith(prefix)]
    return {
        name.removeprefix(prefix): {
            figure: float(number)
            for figure, _, number in (pair.partition("=") for pair in figures.split(","))
        }
        for name, _, figures in lines
    }


def _histograms(reply: Any) -> dict[str, dict[int, int]]:
    return {
        name.decode(): as_mapping(as_mapping(one)[b"histogram_usec"])
        for name, one in as_mapping(reply).items()
    }


def _percentiles(name: str, before: Snapshot, after: Snapshot) -> tuple[float | None, float | None]:
    """Return the window's p50 and p99 in seconds, as exactly as the server's buckets say it."""
    now = after.histograms.get(name)
    if now is None:
        since = after.percentiles.get(name, {})  # of all the time since the server was started
        return tuple(since[key] / 1e6 if key in since else None for key in ("p50", "p99"))  # type: ignore[return-value]
    then = before.histograms.get(name, {})
    if sum(now.values()) < sum(then.values()):
        then = {}
    edges = sorted({*now, *then})
    counts = [_up_to(now, edge) - _up_to(then, edge) for edge in edges]
    if not counts or counts[-1] <= 0:
        return None, None
    p50, p99 = (
        next(edge for edge, count in zip(edges, counts, strict=True) if count >= part * counts[-1])
        for part in (0.5, 0.99)
    )
    return p50 / 1e6, p99 / 1e6


def _up_to(cumulated: Mapping[int, int], edge: int) -> int:
    return max((count for end, count in cumulated.items() if end <= edge), default=0)
