"""What an exchange is called, and how its arguments may be shown: never a value, never a secret.

Must not import numpy, or what records.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from ..protocol.operation import Batch, Command, Ready, Sent
from ..protocol.retry import READS
from ..protocol.vetting import command_name

if TYPE_CHECKING:
    from typing import TypeGuard

_CONTAINERS: Final = frozenset(
    "ACL CLIENT CLUSTER COMMAND CONFIG DEBUG FT.CONFIG FT.CURSOR FT.DEBUG FUNCTION JSON.DEBUG"
    " LATENCY MEMORY MODULE OBJECT PUBSUB SCRIPT SENTINEL SLOWLOG XGROUP XINFO".split()
)
"""Commands of which only the second word says what they do."""
_SECRET: Final = frozenset("ACL AUTH CONFIG HELLO MIGRATE REPLICAOF SENTINEL SLAVEOF".split())
_KEY_THIRD: Final = frozenset("BITOP FT.CURSOR JSON.DEBUG MEMORY OBJECT XGROUP XINFO".split())
_COUNTED: Final = {
    **dict.fromkeys("EVAL EVALSHA EVALSHA_RO EVAL_RO FCALL FCALL_RO BLMPOP BZMPOP".split(), 3),
    **dict.fromkeys("LMPOP MSETEX SINTERCARD ZDIFF ZINTER ZINTERCARD ZMPOP ZUNION".split(), 2),
}
"""Commands that say how many keys there are, and where the first one is, behind that number."""
_NAMED: Final = frozenset("EVALSHA EVALSHA_RO FCALL FCALL_RO".split())
_KEYLESS: Final = frozenset(
    "DBSIZE ECHO INFO KEYS LASTSAVE LOLWUT PING RANDOMKEY SCAN TIME".split()
)
_KEY_SECOND: Final = (READS - _KEYLESS) | frozenset(
    """
    APPEND BITFIELD BLMOVE BLPOP BRPOP BRPOPLPUSH BZPOPMAX BZPOPMIN COPY DECR DECRBY DEL DELEX
    DIGEST EXPIRE EXPIREAT GEOADD GEORADIUS GEORADIUSBYMEMBER GEOSEARCHSTORE GETDEL GETEX GETSET
    HDEL HEXPIRE HEXPIREAT HGETDEL HGETEX HINCRBY HINCRBYFLOAT HMSET HPERSIST HPEXPIRE HPEXPIREAT
    HSET HSETEX HSETNX INCR INCRBY INCRBYFLOAT LINSERT LMOVE LPOP LPUSH LPUSHX LREM LSET LTRIM MOVE
    MSET MSETNX PERSIST PEXPIRE PEXPIREAT PFADD PFMERGE PSETEX RENAME RENAMENX RESTORE RPOP
    RPOPLPUSH RPUSH RPUSHX SADD SDIFFSTORE SET SETBIT SETEX SETNX SETRANGE SINTERSTORE SMOVE SORT
    SPOP SREM SUNIONSTORE TOUCH UNLINK VADD VCARD VDIM VEMB VGETATTR VINFO VISMEMBER VLINKS
    VRANDMEMBER VRANGE VREM VSETATTR VSIM WATCH XACK XACKDEL XADD XAUTOCLAIM XCLAIM XDEL XDELEX
    XSETID XTRIM ZADD ZDIFFSTORE ZINCRBY ZINTERSTORE ZPOPMAX ZPOPMIN ZRANGESTORE ZREM
    ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE ZUNIONSTORE
    """.split()
)
"""Commands whose first argument is a key. Of those that nobody knows, such as a misspelt AUTH, it
may be a secret, and is not shown."""
_MODULES: Final = frozenset("BF CF CMS FT JSON TDIGEST TOPK TS".split())
"""The same, by what stands before the point."""
_QUERIES: Final = {"FT.AGGREGATE": 2, "FT.HYBRID": 3, "FT.SEARCH": 2}  # where the query stands
_MOST: Final = 6  # names in the name of a pipeline
_LINES: Final = 4  # of it that are shown


def label(what: Sent, prefixes: Sequence[str] = ()) -> str:
    """Return the name under which an exchange is counted.

    `GET`, `CONFIG GET`, `FT.SEARCH docs` (with its index), `GET user:*` (if its first key begins by
    one of the prefixes, the first that fits), `PIPELINE SET+GET`, `MULTI INCR`, and
    `PIPELINE DEL+HSET+FT.SEARCH docs` where one index is named.
    """
    found = names(what, prefixes)
    if not is_batch(what):
        return found[0]
    commands, indexes = (list(dict.fromkeys(one)) for one in zip(*map(parted, found), strict=True))
    shown = "+".join(commands[:_MOST]) + ("+..." if len(commands) > _MOST else "")
    indexes = [index for index in indexes if index]
    shown = f"{shown} {indexes[0]}" if len(indexes) == 1 else shown
    return f"{'MULTI' if what.atomic else 'PIPELINE'} {shown}"


def names(what: Sent, prefixes: Sequence[str] = ()) -> list[str]:
    """Return the labels of an exchange's commands, each once."""
    if not isinstance(what, Batch):
        return [_one(what, prefixes)]
    members: Any = what.members if not isinstance(what, Ready) else [(one,) for one in what.names]
    if not prefixes and {*map(type, members)} == {tuple}:
        heads = dict.fromkeys(map(itemgetter(0), members))
        if all(is_plain((head,)) for head in heads):  # of thousands of commands there are few names
            return list(dict.fromkeys(_one((head,), ()) for head in heads))
    found: dict[str, None] = {}
    plain = set()
    for args in _flat(what):
        if args[0] not in plain:
            found[_one(args, prefixes)] = None
            if not prefixes and is_plain(args):
                plain.add(args[0])
    return list(found)


def is_batch(what: Sent) -> TypeGuard[Batch]:
    """Return whether it counts as a pipeline or a transaction: one command alone does not."""
    return isinstance(what, Batch) and what.width > 1


def is_plain(args: Sequence[Any]) -> bool:
    """Return whether a command's label is its name, whatever the other arguments are."""
    name = command_name(args)
    return name not in _CONTAINERS and not name.startswith("FT.")


def parted(name: str) -> tuple[str, str]:
    """Return a single command's label without its index, and the index, or ''."""
    command, _, rest = name.partition(" ")
    if command in _CONTAINERS:
        second, _, rest = rest.partition(" ")
        command = f"{command} {second}".rstrip()
    return (command, rest) if command.startswith("FT.") else (name, "")


def argv(what: Sent) -> list[str]:
    """Return an exchange's commands as they may be logged, one text each: `SET user:1 ?`.

    The name, the sub-command, the first key or the index, and words of the search language are
    shown; all values are `?`. Of AUTH, HELLO, ACL, CONFIG and MIGRATE only the names are, and of
    commands that are not known to have a key.
    """
    if not isinstance(what, Batch):
        return [_shown(what)]
    lines = [_shown(args) for args in islice(_flat(what), _LINES)]
    more = what.width - 2 * what.atomic - len(lines)
    return [*lines, f"(and {more} more)"] if more > 0 else lines


def key_of(args: Sequence[Any]) -> str | None:
    """Return the first key (or index) that a command names, or None."""
    position = _key_position(args)
    return None if position is None or position >= len(args) else _text(args[position])


def visible(text: str) -> str:
    """Return a text with what does not print, or turns others' direction, escaped as in `repr`."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def procedure(what: Sent) -> str | None:
    """Return the function, or a script's digest, that a command runs, or None."""
    if isinstance(what, Batch) or len(what) < 2:
        return None
    return _cut(_text(what[1])) if command_name(what) in _NAMED else None


def _flat(batch: Batch) -> Iterator[Sequence[Any]]:
    for member in batch.commands() if isinstance(batch, Ready) else batch.members:
        if isinstance(member, Batch):
            yield from _flat(member)
        else:
            yield member.args if isinstance(member, Command) else member


def _one(args: Sequence[Any], prefixes: Sequence[str]) -> str:
    name = command_name(args)
    shown = _cut(name)
    if name in _CONTAINERS and len(args) > 1:
        shown = f"{shown} {_second(args)}"
    if name.startswith("FT."):
        key = key_of(args)
        return f"{shown} {_cut(key)}" if key is not None else shown
    if prefixes:
        key = key_of(args) or ""
        fitting = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        shown = shown if fitting is None else f"{shown} {fitting}*"
    return shown


def _second(args: Sequence[Any]) -> str:
    """Return a container's second word: no other text, which may be a value in the wrong place."""
    text = _text(args[1])
    return text.upper() if re.fullmatch("[A-Za-z_-]{1,24}", text) else "?"


def _key_position(args: Sequence[Any]) -> int | None:
    name = command_name(args)
    if name in _KEY_THIRD:
        return 2
    if name in _COUNTED:
        at = _COUNTED[name]
        counted = len(args) > at and re.fullmatch("[1-9][0-9]*", _text(args[at - 1]))
        return at if counted else None
    if name in {"XREAD", "XREADGROUP"}:
        words = [_text(arg).upper() for arg in args]
        start = 4 if name == "XREADGROUP" else 1
        return words.index("STREAMS", start) + 1 if "STREAMS" in words[start:] else None
    known = name in _KEY_SECOND or name.partition(".")[0] in _MODULES
    return 1 if known and name not in _CONTAINERS and name != "FT._LIST" else None


def _shown(args: Sequence[Any]) -> str:
    name = command_name(args)
    words = [_cut(name)]
    position = _key_position(args)
    for at, arg in enumerate(args[1:_LONG], 1):
        text = _text(arg)
        if at == position:
            words.append(_cut(text))
        elif at == 1 and name in _CONTAINERS:
            words.append(_second(args))
        elif at == _QUERIES.get(name):
            words.append(f'"{_cut(_query(text))}"')
        elif text in _OPTIONS and name not in _SECRET:
            words.append(text)
        elif words[-1] != "?":
            words.append("?")
    return " ".join([*words, "..."] if len(args) > _LONG else words)


def _query(text: str) -> str:
    """Return a query's outline: its fields, its operators, and a ? for every value."""
    return re.sub(r"\?(?:\s*\?)+", "?", _WORD.sub(_word, text))


def _word(found: re.Match[str]) -> str:
    word = found[0]
    if word.startswith("{"):
        return "{?}"
    if word.startswith("KNN"):
        return f"KNN ? {word.split()[-1]}"
    return word if word[0] in "@=" or word in _OPTIONS else "?"


def _cut(text: str) -> str:
    text = visible(text)
    return text if len(text) <= _WIDE else f"{text[: _WIDE - 3]}..."


def _text(arg: Any) -> str:
    if isinstance(arg, bytes):
        return arg[:_FAR].decode(errors="replace")
    return (
        arg[:_FAR] if isinstance(arg, str) else str(arg) if isinstance(arg, (int, float)) else "?"
    )


_LONG: Final = 24  # arguments
_WIDE: Final = 80  # characters,
_FAR: Final = 1000  # and that are looked at: values may be of megabytes
_WORD: Final = re.compile(
    r"""
    "(?:\\.|[^"\\])*"? | w'(?:\\.|[^'\\])*'?  # what is quoted, whatever it looks like
    | \{(?:\\.|"(?:\\.|[^"\\])*"|[^}"\\])*\}?  # tags, and attributes
    | KNN\s+\S+\s+@[\w.]+ | (?<![\w\\])@[\w.]+(?:\|[\w.]+)*(?=\s*:)  # fields
    | => | (?:\\.|[^\s@()\[\]{}|:=*~"-])+
    """,
    re.VERBOSE | re.DOTALL,
)
_OPTIONS: Final = frozenset(
    "AGGREGATE AND APPLY AS ASC BLOCK BY BYLEX BYSCORE CH COUNT DESC DIALECT EF_RUNTIME EX EXAT"
    " EXPLAIN FIELDS FILTER GET GROUPBY GT IDLE INCR INKEYS KEEPTTL KNN LIMIT LOAD LT MATCH MAXLEN"
    " MINID NOCONTENT NX OR PARAMS PERSIST PX PXAT QUERY REDUCE RETURN REV SEARCH SORTBY STREAMS"
    " TIMEOUT TYPE VECTOR_RANGE VERBATIM WITHCURSOR WITHSCORES WITHVALUES XX".split()
)
