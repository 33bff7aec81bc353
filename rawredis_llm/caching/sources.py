"""What an answer was made of: under each source a sorted set of entries by when they end.

Imports no numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ..errors import CrossSlotError
from ..keys import digest, require_text
from ..protocol import commands
from ..protocol.operation import Batch, Command, Member, Op
from ..protocol.script import Script

_NOTE: Final = Script(
    """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local left = redis.call('PTTL', KEYS[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if ARGV[2] == '' then
  redis.call('ZADD', KEYS[1], '+inf', ARGV[1])
  return redis.call('PERSIST', KEYS[1])
end
local px = ARGV[2] + 1000
redis.call('ZADD', KEYS[1], 'GT', now + px, ARGV[1])
if left == -2 or left >= 0 and left < px then
  return redis.call('PEXPIRE', KEYS[1], px)
end
""",
    goes_first=True,
)
"""Notes an entry's key (1) with its time to live (2, milliseconds) under a source.

The note outlives the entry by a second, and the set its notes: else a source could be deleted, and
an answer made of it live on."""


def as_sources(sources: Iterable[str]) -> list[str]:
    """Return the names of what an answer was made of, each once; raise for a single text."""
    if isinstance(sources, (str, bytes)):
        raise TypeError("sources must be a list of texts, not one text")
    return list(dict.fromkeys(require_text("sources", source) for source in sources))


def notes(prefix: str, sources: Iterable[str], key: str, px: int | None) -> list[Member]:
    """Return what notes an entry under its sources; it must be sent before the entry is."""
    args = [key, "" if px is None else px]
    return [_NOTE([prefix + digest(source)], args) for source in sources]


def delete_noted(prefix: str, source: str) -> Op[int]:
    """Delete the entries that are noted under a source; return how many there were."""
    key = prefix + digest(require_text("source", source))
    found = yield from commands.zrange(key)
    if not found:
        return 0
    # What is noted meanwhile stays noted.
    both = [commands.unlink(found), Command(("ZREM", key, *found))]
    try:
        deleted, _ = yield from Batch(both, atomic=True)
    except CrossSlotError:  # of a cluster: one after the other, so that no note is lost before
        deleted = yield from both[0]
        yield from both[1]
    return int(deleted)
