"""What may be sent on a connection that others use, and for how long a command may wait.

Must not import another ring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def command_name(args: Sequence[Any]) -> str:
    """Return a command's name in capitals; errors and observers see this, never an argument."""
    if not args:
        raise ValueError("a command needs at least its name")
    name = args[0]
    if not isinstance(name, (str, bytes)):
        raise TypeError(f"a command's name is str or bytes, not {type(name).__name__}")
    if name.split() != [name]:  # a second word may be a secret, so it is not shown
        raise ValueError("a command's name is one word: give each argument by itself")
    return (name.decode(errors="replace") if isinstance(name, bytes) else name).upper()


def vet(args: Sequence[Any]) -> float:
    """Return for how long a command may wait in the server, in seconds (inf: for ever).

    Raises ValueError for one that would change what later replies on a connection mean. A name that
    passed and never waits is remembered as it was written, so asking again costs one look-up.
    """
    if args and type(args[0]) in NAMES and args[0] in HARMLESS:
        return 0.0
    name = command_name(args)
    stateful = name in STATEFUL
    if name in _STATE_BY_FORM:
        stateful = len(args) > 1 and command_name(args[1:]) in _STATE_BY_FORM[name]
    elif name == "HELLO":
        stateful = len(args) > 1
    if stateful:
        raise ValueError(f"{name} changes the state of a shared connection; {STATEFUL[name]}")
    if name in _MAPS:
        _refuse_repeated(name, args)
    if name in BLOCKING:
        return _waits(name, args)
    if name not in STATEFUL and name not in _MAPS and len(name) < 32 and len(HARMLESS) < 1000:
        HARMLESS[args[0]] = name
    return 0.0


def _refuse_repeated(name: str, args: Sequence[Any]) -> None:
    """Raise ValueError for what is named twice: its value would come under another's name.

    hiredis 3.5 gives the second value of a map's key to the key before it.
    """
    words = _words(args)
    if words[1:2] in (["GETKEYS"], ["GETKEYSANDFLAGS"]):  # whose reply is a list
        return
    start = _MAPS[name] or _streams(words) + 1
    names = words[start:] if _MAPS[name] else words[start : (start + len(words)) // 2]
    if len(set(names)) < len(names):
        raise ValueError(f"{name}: name each once")


def _words(args: Sequence[Any]) -> list[str]:
    return [arg.decode("latin-1") if isinstance(arg, bytes) else str(arg) for arg in args]


def _streams(words: list[str]) -> int:
    """Return where STREAMS stands, behind which there are keys."""
    known = (i for i, word in enumerate(words) if word.upper() == "STREAMS")
    return next(known, len(words))


def _waits(name: str, args: Sequence[Any]) -> float:
    """Return a waiting command's own time limit, in seconds; 0 on the wire is no limit."""
    position, unit = BLOCKING[name]
    if position is None:
        words = [word.upper() for word in _words(args)]
        start = 4 if name == "XREADGROUP" else 1
        if "BLOCK" not in words[start : _streams(words)]:
            return 0.0
        position = words.index("BLOCK", start) + 1
    try:
        text = args[position]
        limit = float(text.decode() if isinstance(text, bytes) else text) * unit
    except (IndexError, TypeError, ValueError):
        return 1e-3  # the server refuses it, and says why
    return limit if 0 < limit < 10**6 else math.inf


HARMLESS: dict[str | bytes, str] = {}  # as it was written -> as it is told
NAMES: set[type] = {str, bytes}
_CLIENT_STATE = "CACHING CAPA IMPORT-SOURCE NO-EVICT NO-TOUCH REPLY SETNAME TRACKING".split()  # noqa: SIM905
_STATE_BY_FORM = {"CLIENT": _CLIENT_STATE, "SCRIPT": ["DEBUG"]}
_MAPS = {"COMMAND": 2, "LATENCY": 2, "XREAD": 0, "XREADGROUP": 0}
"""Commands whose reply is a map of what they name, and from where they do (0: behind STREAMS)."""

_NOT_POOLED = "it needs a connection of its own"
_SUBSCRIBE = "use client.subscribe()"
_INSTEAD = {
    "give it to the client, by an option or in the URL": "AUTH HELLO SELECT",
    _NOT_POOLED: "ASKING MONITOR PSYNC READONLY READWRITE REPLCONF RESET SYNC",
    "its debugger needs a connection of its own": "SCRIPT",
    "this form is not for shared connections; a name is given by client_name=": "CLIENT",
    "use client.close()": "QUIT",
    _SUBSCRIBE: "PSUBSCRIBE PUNSUBSCRIBE SSUBSCRIBE SUBSCRIBE SUNSUBSCRIBE UNSUBSCRIBE",
    "use client.transaction()": "DISCARD EXEC MULTI UNWATCH",
    "use client.transaction(..., watch=keys)": "WATCH",
}
STATEFUL = {name: instead for instead, names in _INSTEAD.items() for name in names.split()}
"""Commands after which a connection would no longer answer one request by one reply, or answer it
for another user or database: name -> what to do instead."""


_LIMIT_LAST = ("BLMOVE", "BLPOP", "BRPOP", "BRPOPLPUSH", "BZPOPMAX", "BZPOPMIN")
BLOCKING: dict[str, tuple[int | None, float]] = {
    **dict.fromkeys(_LIMIT_LAST, (-1, 1.0)),
    **dict.fromkeys(("BLMPOP", "BZMPOP"), (1, 1.0)),
    **dict.fromkeys(("WAIT", "WAITAOF"), (-1, 1e-3)),
    **dict.fromkeys(("XREAD", "XREADGROUP"), (None, 1e-3)),
}
"""Commands that may wait in the server for something to happen: where among the arguments their
own time limit stands (None: behind the word BLOCK), and its unit in seconds."""
