"""What keys and values are made of: digests, namespaces, times to live, JSON.

A key holds a digest, not a prompt, and a namespace always ends in `:`. Keys of the caches have the
form `namespace:kind:<32 hex: scope>:<32 hex: identity>`, so that the pattern which finds one
owner's keys can find nobody else's, whatever the namespaces are called. Pure; imports no numpy.
"""

from __future__ import annotations

import json
import re
from hashlib import blake2b
from typing import Any, Final

from .protocol import commands
from .protocol.operation import Batch, Op

_scan: Final = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # it is public
# Made once: json.dumps makes an encoder for each call with options.
_write: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode

LONGEST_TTL: Final = 10**12  # seconds; the clock plus it must fit 64 bits of milliseconds


def digest(*parts: str) -> str:
    """Return 32 hex digits of BLAKE2b over the parts, each framed by its length in bytes.

    Framing keeps ("a:b", "c") and ("a", "b:c") apart; 128 bits make an accidental collision among
    2**40 entries less likely than 2**-48. Raises ValueError for text that is not valid Unicode.
    """
    state = blake2b(digest_size=16)
    for part in parts:
        framed(state, part)
    return state.hexdigest()


def framed(state: blake2b, part: str) -> blake2b:
    """Add a part, framed by its length in bytes, to a state of `digest`; return the state."""
    data = part.encode()
    state.update(b"%d:%b" % (len(data), data))
    return state


def digest_of(data: bytes) -> str:
    """Return 32 hex digits of BLAKE2b over bytes."""
    return blake2b(data, digest_size=16).hexdigest()


def require_text(name: str, value: Any, *, empty: bool = False) -> str:
    """Return `value` if it is text, and not blank unless `empty`; raise naming the argument."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    if not empty and not value.strip():
        raise ValueError(f"{name} must not be empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is not valid Unicode: {error.reason}") from None
    return value


def indexed_key_part(name: str, value: Any) -> str:
    """Return text for a key of an index; RediSearch cuts it at a NUL and shows another document."""
    if "\0" in require_text(name, value):
        raise ValueError(f"{name} must not hold a NUL")
    return str(value)


def key_segment(text: str) -> str:
    """Return text with `:` and `%` percent-encoded: a part of a key that ends at the next `:`."""
    return text.replace("%", "%25").replace(":", "%3A")


def milliseconds(name: str, ttl: float | None) -> int | None:
    """Return a time to live in whole milliseconds, None for "for ever".

    Raises TypeError if it is no number, ValueError if it is not above 0.
    """
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {type(ttl).__name__}")
    if not 0 < ttl <= LONGEST_TTL:
        raise ValueError(f"{name} must be above 0 seconds (None: for ever), not {ttl}")
    return max(round(ttl * 1000), 1)


def to_json(name: str, value: Any) -> str:
    """Return compact JSON. Raises TypeError or ValueError naming the argument that has none."""
    try:
        text = _write(value)
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is not valid Unicode: {error.reason}") from None
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} cannot be written as JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{name} cannot be written as JSON: nested too deeply") from None
    return text


def from_json(data: bytes | str | None) -> Any:
    """Return the value of JSON, or None if there is none or it is damaged."""
    if data is None:
        return None
    try:
        text = data if isinstance(data, str) else data.decode()
        value, end = _scan(text, 0)  # half of what loads() takes, as it knows the encoding
    except (ValueError, RecursionError, StopIteration):
        return None
    return value if end == len(text) else None


def distance_limit(name: str, value: float) -> float:
    """Return a distance up to which something counts as near; raise naming the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not value >= 0:
        raise ValueError(f"{name} must be 0 or above, in the metric's unit, not {value}")
    return float(value)


def escape_glob(text: str) -> str:
    """Return a SCAN pattern that matches exactly this text."""
    return re.sub(r"([\\*?\[\]^-])", r"\\\1", text)


def clear_matching(pattern: str, exact: re.Pattern[bytes] | None = None) -> Op[int]:
    """Delete the keys that a SCAN pattern finds (and that `exact` matches); return how many.

    Keys written meanwhile may stay. Each page is one round trip: the keys of one page are deleted
    in the write that asks for the next.
    """
    deleted: int = 0
    cursor: bytes = b"0"
    doomed: list[bytes] = []
    while True:
        step: list[Any] = [commands.unlink(doomed)] if doomed else []
        step.append(commands.scan(cursor, pattern, 1000))
        replies = yield from Batch(step)
        cursor, keys = replies[-1]
        deleted += sum(replies[:-1])
        doomed = [key for key in keys if exact is None or exact.fullmatch(key)]
        if cursor == b"0":
            return deleted + (yield from commands.unlink(doomed)) if doomed else deleted


def clear_entries(prefix: str, digests: int = 1) -> Op[int]:
    """Delete the keys that are `prefix` and so many digests joined by `:`; return how many."""
    tail = b":".join([rb"[0-9a-f]{32}"] * digests)
    exact = re.compile(re.escape(prefix.encode()) + tail)
    return (yield from clear_matching(escape_glob(prefix) + "*", exact))
