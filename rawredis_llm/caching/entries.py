"""What a cache stores of an answer, and what it hands out of it. Imports no numpy.

An entry is JSON, compressed by zlib where a cache is told so; the first byte tells which. It
repeats its identity, and whatever is not of the form written here is no hit.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ..keys import from_json, milliseconds, require_text, to_json

_FAR: Final = 2**53  # beyond any time of ours, and below what a float could not hold
_LONGEST: Final = 2**29  # bytes: what a server takes for one value, and what is unpacked at most


@dataclass(slots=True)
class CacheHit:
    """An answer found in a cache.

    `response` is what was stored: text, or what JSON has. `age` is seconds since it was stored,
    `ttl` seconds until it goes or turns stale (None: never). `stale` is True past that time, where
    a cache was told to keep answers longer. `distance` (cosine, 0 to 2) and `similarity` (0 to 1)
    are None for an exact hit. `error` is what went wrong where a failure was stored; then
    `response` is None.
    """

    response: Any
    prompt: str
    model: str
    id: str
    metadata: dict[str, Any] = field(default_factory=dict)
    age: float = 0.0
    ttl: float | None = None
    stale: bool = False
    distance: float | None = None
    similarity: float | None = None
    error: str | None = None


class Found(NamedTuple):
    """What a look into a cache came to: a hit, of which kind and entry, or why it is none."""

    hit: CacheHit | None
    miss: str = ""
    entry: Mapping[str, Any] = {}
    kind: str = "exact"


class Lifetime(NamedTuple):
    """How long entries live: `ttl` and `stale_for` in milliseconds, None for ever, never."""

    ttl: int | None
    stale_for: int | None
    jitter: float

    def of(self, identity: str, ttl: float | None) -> tuple[int | None, int | None]:
        """Return an entry's time to live and, of that, how long it is fresh, in milliseconds.

        `ttl` in seconds replaces the cache's.
        """
        px = self.ttl if ttl is None else milliseconds("ttl", ttl)
        if px is None:
            return None, None
        if self.jitter:
            # By the entry's own name: entries that were stored together do not go together.
            px = max(round(px * (1 - self.jitter * int(identity[:8], 16) / 2**32)), 1)
        return (px, None) if self.stale_for is None else (px + self.stale_for, px)


def as_lifetime(ttl: float | None, stale_for: float | None, jitter: float) -> Lifetime:
    """Return how long entries live; raise naming the parameter that is wrong."""
    if isinstance(jitter, bool) or not isinstance(jitter, (int, float)):
        raise TypeError(f"jitter must be a number, not {type(jitter).__name__}")
    if not 0 <= jitter < 1:
        raise ValueError(f"jitter must be a share of the ttl from 0 to below 1, not {jitter}")
    return Lifetime(milliseconds("ttl", ttl), milliseconds("stale_for", stale_for), jitter)


def check_response(response: Any) -> None:
    """Raise TypeError or ValueError unless an answer is text, a dict or a list."""
    if not isinstance(response, (dict, list)):
        require_text("response", response, empty=True)


def details(
    metadata: dict[str, Any] | None, sources: list[str], took: float | None = None
) -> dict[str, Any]:
    """Return what an entry holds beside its answer, as far as there is any.

    `took` is how many seconds the answer took where nobody tells.
    """
    check_metadata(metadata)
    saved = saving(metadata, took)
    parts = {"metadata": metadata, "sources": sources, "saves": saved if any(saved) else None}
    return {name: part for name, part in parts.items() if part}


def check_metadata(metadata: Any) -> None:
    """Raise TypeError unless it is a dict or None."""
    if not isinstance(metadata, (dict, type(None))):
        raise TypeError(f"metadata must be a dict or None, not {type(metadata).__name__}")


def saving(metadata: dict[str, Any] | None, seconds: float | None) -> list[int]:
    """Return the milliseconds and tokens that a hit saves, as far as they were told or measured."""
    told = metadata or {}
    took, tokens = told.get("seconds", seconds), told.get("tokens", 0)
    plain: list[Any] = [
        number if type(number) in (int, float) and 0 <= number < _FAR / 1000 else 0  # type: ignore[operator]  # they are numbers
        for number in (took, tokens)
    ]
    return [round(plain[0] * 1000), round(plain[1])]


def packed(entry: dict[str, Any], compress_above: int | None = None) -> str | bytes:
    """Return an entry as it is stored."""
    text = to_json("response or metadata", entry)
    if compress_above is None or len(text) <= compress_above:
        return text
    return zlib.compress(text.encode(), 1)  # a third of the default's time for a tenth more bytes


def unpacked(data: bytes | None) -> Any:
    """Return what was stored, or None if it is damaged."""
    if data is not None and data[:1] == b"x":  # zlib's; JSON of ours begins with a brace
        unpacker = zlib.decompressobj()
        try:
            data = unpacker.decompress(data, _LONGEST)
        except zlib.error:
            return None
        if not unpacker.eof:  # cut, or longer than anything of ours
            return None
    return from_json(data)


ABSENT: Final = Found(None, "absent")
DAMAGED: Final = Found(None, "damaged")
EXPIRED: Final = Found(None, "expired")
UNREACHABLE: Final = Found(None, "unreachable")
SHARED: Final = Found(None, "shared")  # no hit, and no miss either


def hit_of(
    entry: dict[str, Any],
    identity: str,
    now: float,
    left: int | None = None,
    distance: float | None = None,
    similarity: float | None = None,
) -> CacheHit | None:
    """Return the hit in an entry of ours, None if it is damaged.

    `left` is how many milliseconds the server still keeps it (-1: for ever), where it was asked.
    """
    get: Any = entry.get
    response, prompt, created, px = get("response"), get("prompt"), get("created"), get("px")
    metadata = get("metadata")
    if type(response) is not str and type(response) not in (dict, list):
        if response is not None or type(get("error")) is not str:
            return None
    elif "error" in entry:
        return None
    if type(prompt) is not str or (metadata is not None and type(metadata) is not dict):
        return None
    if type(created) not in (float, int) or not 0 <= created < _FAR:  # NaN, too, is damage
        return None
    ttl: float | None = None
    stale = False
    if px is not None:
        fresh = get("fresh", px)
        if type(px) is not int or type(fresh) is not int or not 0 <= fresh <= px < _FAR:
            return None
        remains: float = fresh / 1000 + created - now
        if left is not None and left >= 0:  # its time was renewed
            remains = (left - px + fresh) / 1000
        ttl = max(remains, 0.0)
        stale = remains <= 0.0 and fresh < px
    age = now - created
    return CacheHit(
        response,
        prompt,
        entry["model"],
        identity,
        {} if metadata is None else metadata,
        max(0.0, age),
        ttl,
        stale,
        distance,
        similarity,
        get("error"),
    )
