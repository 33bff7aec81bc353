"""Where a command's keys stand among its arguments, as a table.

Source: `COMMAND DOCS` and the key specifications of Redis 8. A command that is not here is taken
to have one key, behind its name: where that is wrong, a cluster's node says whose it is (MOVED).

Must not import another ring.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from ..errors import CrossSlotError
from .resp import key_bytes
from .slots import key_slot
from .vetting import command_name


def _table(groups: dict[str, Any]) -> dict[str, Any]:
    return {name: value for names, value in groups.items() for name in names.split()}


_RANGES: Final[dict[str, tuple[int, int, int]]] = _table(
    {
        "DEL EXISTS MGET PFCOUNT PFMERGE SDIFF SDIFFSTORE SINTER SINTERSTORE SUNION SUNIONSTORE"
        " TOUCH UNLINK WATCH": (1, -1, 1),
        "BLPOP BRPOP BZPOPMAX BZPOPMIN JSON.MGET": (1, -2, 1),
        "MSET MSETNX": (1, -1, 2),
        "JSON.MSET": (1, -1, 3),
        "BLMOVE BRPOPLPUSH COPY GEOSEARCHSTORE LCS LMOVE RENAME RENAMENX RPOPLPUSH SMOVE"
        " ZRANGESTORE": (1, 2, 1),
        "BITOP": (2, -1, 1),
        "JSON.DEBUG OBJECT PFDEBUG XGROUP XINFO": (2, 2, 1),
        "MIGRATE": (3, 3, 1),
    }
)
"""The first argument that is a key, the last (from the end if negative), and the step."""

_COUNTED: Final[dict[str, tuple[int, int]]] = _table(
    {
        "EVAL EVALSHA EVALSHA_RO EVAL_RO FCALL FCALL_RO BLMPOP BZMPOP": (2, 3),
        "LMPOP SINTERCARD ZDIFF ZINTER ZINTERCARD ZMPOP ZUNION": (1, 2),
        "ZDIFFSTORE ZINTERSTORE ZUNIONSTORE": (2, 1),
    }
)
"""Where it stands how many keys there are, and where they begin; before the number there may be
one more, of which they store."""

KEYLESS: Final = frozenset(
    """
    ACL BGREWRITEAOF BGSAVE CLIENT CLUSTER COMMAND CONFIG DBSIZE DEBUG ECHO FAILOVER FLUSHALL
    FLUSHDB FUNCTION HELLO INFO KEYS LASTSAVE LATENCY LOLWUT MODULE PFSELFTEST PING PUBLISH PUBSUB
    RANDOMKEY REPLICAOF ROLE SAVE SCAN SCRIPT SHUTDOWN SLAVEOF SLOWLOG SWAPDB TIME WAIT WAITAOF
    """.split()  # noqa: SIM905 - a list to read
)


def keys_of(args: Sequence[Any]) -> Sequence[Any]:
    """Return a command's keys as they were given; FT.* has none (but FT.SUG*).

    A command that is malformed is said to have none, too: the server says what is wrong with it.
    """
    name = command_name(args)
    if name in KEYLESS or (name.startswith("FT.") and not name.startswith("FT.SUG")):
        return ()
    if name in _RANGES:
        first, last, step = _RANGES[name]
        return args[first : len(args) + last + 1 if last < 0 else last + 1 : step]
    if name in _COUNTED:
        at, first = _COUNTED[name]
        try:
            count = int(args[at])
        except (IndexError, TypeError, ValueError):
            return ()
        if count < 0:
            return ()
        return args[first : first + count] if first > at else (args[1], *args[3 : 3 + count])
    if name in {"XREAD", "XREADGROUP"}:
        words = [arg.upper() if isinstance(arg, (str, bytes)) else arg for arg in args]
        start = next((i for i, word in enumerate(words) if word in ("STREAMS", b"STREAMS")), 0)
        return args[start + 1 : (start + 1 + len(args)) // 2] if start else ()
    if name == "MEMORY":
        return args[2:3] if len(args) > 2 else ()
    return args[1:2]


def slots_of(keys: Sequence[Any]) -> set[int]:
    """Return the slots that keys are in. Raises TypeError for what cannot be a key."""
    return {key_slot(key_bytes(key)) for key in keys}


def one_slot(commands: Iterable[Sequence[Any]]) -> int | None:
    """Return the slot of what runs together; None if it has no keys.

    Raises CrossSlotError for keys of several slots.
    """
    slots = {slot for args in commands for slot in slots_of(keys_of(args))}
    if len(slots) > 1:
        raise CrossSlotError("what runs together must be in one slot: give its keys one {tag}")
    return next(iter(slots), None)


SINGLE: Final[dict[str | bytes, bool]] = {}
"""Names, as they were written, of commands whose only key is the first argument."""


def single(name: str | bytes) -> bool:
    """Return whether a command's only key is its first argument; remember it."""
    if name in SINGLE:
        return SINGLE[name]
    word = command_name((name,))
    several = KEYLESS | _RANGES.keys() | _COUNTED.keys() | {"XREAD", "XREADGROUP", "MEMORY"}
    found = word not in several and not word.startswith("FT.")
    if len(word) < 32 and len(SINGLE) < 1000:
        SINGLE[name] = found
    return found
