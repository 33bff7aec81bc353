"""What an exchange is called, and how its arguments may be shown: never a value, never a secret.

Must not import numpy, or what records.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from ..protocol.operation import Batch, Command, Sent
from ..protocol.vetting import command_name

_CONTAINERS: Final = frozenset(
    "ACL CLIENT CLUSTER COMMAND CONFIG DEBUG FT.CONFIG FT.CURSOR FUNCTION JSON.DEBUG LATENCY MEMORY"
    " MODULE OBJECT PUBSUB SCRIPT SLOWLOG XGROUP XINFO".split()
)
"""Commands of which only the second word says what they do."""
_KEY_THIRD: Final = frozenset("JSON.DEBUG MEMORY OBJECT XGROUP XINFO BITOP FT.CURSOR".split())
_SCRIPTS: Final = frozenset("EVAL EVALSHA EVALSHA_RO EVAL_RO FCALL FCALL_RO".split())
_KEYLESS: Final = frozenset(
    "AUTH BGREWRITEAOF BGSAVE DBSIZE ECHO FLUSHALL FLUSHDB HELLO INFO LASTSAVE MULTI EXEC PING"
    " PUBLISH PUBSUB SCAN SPUBLISH TIME WAIT WAITAOF".split()
)
_SECRET: Final = frozenset("ACL AUTH CONFIG HELLO MIGRATE REPLICAOF".split())
_MOST: Final = 4  # names in the name of a pipeline


def label(what: Sent, prefixes: Sequence[str] = ()) -> str:
    """Return the name under which an exchange is counted.

    `GET`, `CONFIG GET`, `FT.SEARCH docs` (with its index), `GET user:*` (if its first key begins by
    one of the prefixes, the first that fits), `PIPELINE SET+GET`, `MULTI INCR`.
    """
    if not isinstance(what, Batch):
        return _one(what, prefixes)
    members = list(_flat(what))
    if len(members) == 1 and not what.atomic:
        return _one(members[0], prefixes)
    names = list(dict.fromkeys(_one(args, prefixes) for args in members))
    shown = "+".join(names[:_MOST]) + ("+..." if len(names) > _MOST else "")
    return f"{'MULTI' if what.atomic else 'PIPELINE'} {shown}"


def is_plain(args: Sequence[Any]) -> bool:
    """Return whether a command's label is its name, whatever the other arguments are."""
    name = command_name(args)
    return name not in _CONTAINERS and not name.startswith("FT.")


def argv(what: Sent) -> list[str]:
    """Return an exchange's commands as they may be logged, one text each: `SET user:1 ?`.

    The name, the sub-command, the first key or the index, and words of the search language are
    shown; all values are `?`. Of AUTH, HELLO, ACL, CONFIG and MIGRATE only the names are.
    """
    members = list(_flat(what)) if isinstance(what, Batch) else [what]
    lines = [_shown(args) for args in members[:_MOST]]
    return [*lines, f"(and {len(members) - _MOST} more)"] if len(members) > _MOST else lines


def key_of(args: Sequence[Any]) -> str | None:
    """Return the first key (or index) that a command names, or None."""
    position = _key_position(args)
    return None if position is None or position >= len(args) else _text(args[position])


def visible(text: str) -> str:
    """Return a text with what does not print, or turns others' direction, escaped as in `repr`."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def _flat(batch: Batch) -> Iterator[Sequence[Any]]:
    for member in batch.members:
        if isinstance(member, Batch):
            yield from _flat(member)
        else:
            yield member.args if isinstance(member, Command) else member


def _one(args: Sequence[Any], prefixes: Sequence[str]) -> str:
    name = command_name(args)
    if name in _CONTAINERS:
        name = f"{name} {_text(args[1]).upper()}" if len(args) > 1 else name
    if name.startswith("FT."):
        key = key_of(args)
        return f"{name} {key}" if key is not None else name
    if prefixes:
        key = key_of(args) or ""
        fitting = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        name = name if fitting is None else f"{name} {fitting}*"
    return name


def _key_position(args: Sequence[Any]) -> int | None:
    name = command_name(args)
    if name in _KEY_THIRD:
        return 2
    if name in _SCRIPTS:
        return 3 if len(args) > 2 and _text(args[2]) != "0" else None
    if name in _CONTAINERS or name in _KEYLESS or name == "FT._LIST":
        return None
    if name in {"XREAD", "XREADGROUP"}:
        words = [_text(arg).upper() for arg in args]
        return words.index("STREAMS") + 1 if "STREAMS" in words else None
    return 1


def _shown(args: Sequence[Any]) -> str:
    name = command_name(args)
    words = [name]
    position = _key_position(args)
    for at, arg in enumerate(args[1:_LONG], 1):
        text = _text(arg)
        if (name in _CONTAINERS and at == 1) or at == position:
            words.append(_cut(text.upper() if at != position else text))
        elif name not in _SECRET and isinstance(arg, (str, bytes)) and text in _OPTIONS:
            words.append(text)
        elif name in {"FT.SEARCH", "FT.AGGREGATE", "FT.HYBRID"} and at == 2:
            words.append(f'"{_cut(_query(text))}"')
        elif words[-1] != "?":
            words.append("?")
    return " ".join([*words, "..."] if len(args) > _LONG else words)


def _query(text: str) -> str:
    """Return a query's outline: its fields, its operators, and a ? for every value."""
    return re.sub(r"(?:\?\s*)+", "? ", _WORD.sub(_word, text)).strip()


def _word(found: re.Match[str]) -> str:
    word = found[0]
    return word if word[0] in "@$=" or word in _OPTIONS else "?"


def _cut(text: str) -> str:
    text = visible(text)
    return text if len(text) <= _WIDE else f"{text[: _WIDE - 3]}..."


def _text(arg: Any) -> str:
    if isinstance(arg, bytes):
        return arg.decode(errors="replace")
    return arg if isinstance(arg, str) else str(arg) if isinstance(arg, (int, float)) else "?"


_LONG: Final = 24  # arguments
_WIDE: Final = 80  # characters
_WORD: Final = re.compile(r"@[\w.]+|\$\w+|=>|(?:\\.|[^\s@$()\[\]{}|:=*~-])+")
_OPTIONS: Final = frozenset(
    "AGGREGATE AND APPLY AS ASC BLOCK BY BYLEX BYSCORE CH COUNT DESC DIALECT EF_RUNTIME EX EXAT"
    " EXPLAIN FIELDS FILTER GET GROUPBY GT IDLE INCR INKEYS KEEPTTL KNN LIMIT LOAD LT MATCH MAXLEN"
    " MINID NOCONTENT NX OR PARAMS PERSIST PX PXAT QUERY REDUCE RETURN REV SEARCH SORTBY STREAMS"
    " TIMEOUT TYPE VECTOR_RANGE VERBATIM WITHCURSOR WITHSCORES WITHVALUES XX".split()
)
