"""A second reader of RESP, slow and simple, that says what a stream of replies means.

It shares no code with the client but the table of error classes. Values are in the client's terms:
bytes, int, float, bool, None, list, dict, ReplyError. Where hiredis takes what the protocol has no
word for, this reader goes on as hiredis does and leaves a note, so that a test can ask for less
there and nowhere else.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from rawredis_llm.errors import reply_error

# Notes: what is no RESP, and hiredis reads all the same.
LINE_END: Final = "the two bytes after a payload are not looked at"
LOST: Final = "after such a payload an attribute may pass for a reply"
TWICE: Final = "a map that holds a key twice gives values to the wrong keys"
LAX: Final = "a null set, map, verbatim string or push, an empty big number, `#T`, a push inside"

DEEPEST: Final = 1024  # aggregates inside each other
MOST: Final = 2**32 - 1  # elements of an aggregate
OWED: Final = 2**24  # elements that may be missing at once, by the library's own rule
_INTEGER = re.compile(rb"0|-?[1-9][0-9]*")  # the canonical form; hiredis takes no other
_DOUBLE = re.compile(rb"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WORDS = {b"inf": math.inf, b"-inf": -math.inf, b"nan": math.nan, b"-nan": math.nan}


class Frame(NamedTuple):
    """A whole reply or push, and where the next one starts."""

    value: Any
    end: int
    is_push: bool


@dataclass
class Reading:
    """All that a stream says. `fault`: after how many bytes it cannot be RESP any more."""

    frames: list[Frame] = field(default_factory=list)
    fault: float = math.inf
    notes: set[str] = field(default_factory=set)

    def is_pushes(self, start: int, stop: int) -> bool:
        """Return True if nothing but whole pushes stands between two places."""
        ends = [0, *(frame.end for frame in self.frames)]
        if start not in ends or stop not in ends:
            return False
        return all(frame.is_push for frame in self.frames[ends.index(start) : ends.index(stop)])


def read(data: bytes) -> Reading:
    """Read until the bytes are used up, or wrong."""
    reading = Reading()
    start = 0
    try:
        while start < len(data):
            value, end = _Reader(data, reading.notes).frame(start)
            is_push = data[start] == ord(">") and value is not None
            reading.frames.append(Frame(value, end, is_push))
            start = end
    except _MalformedError as error:
        reading.fault = error.after
    except _IncompleteError:
        pass
    return reading


class _MalformedError(Exception):
    def __init__(self, after: int) -> None:
        self.after = after


class _IncompleteError(Exception):
    pass


class _Open:
    """An aggregate that wants more elements."""

    def __init__(self, kind: int, width: int) -> None:
        self.kind = kind
        self.width = 2 * width if kind == ord("%") else width
        self.items: list[Any] = []


class _Reader:
    def __init__(self, data: bytes, notes: set[str]) -> None:
        self.data = data
        self.notes = notes
        self.place = 0
        self.open: list[_Open] = []

    def frame(self, start: int) -> tuple[Any, int]:
        """Read one frame. A loop, because Python's stack is not as deep as replies may be."""
        self.place = start
        while True:
            value = self._item()
            if isinstance(value, _Open):
                self.open.append(value)
                if value.width:
                    continue
                value = self._closed()
            while self.open:
                self.open[-1].items.append(value)
                if len(self.open[-1].items) < self.open[-1].width:
                    break
                value = self._closed()
            else:
                return value, self.place

    def _closed(self) -> Any:
        done = self.open.pop()
        if done.kind != ord("%"):
            return done.items
        pairs = dict(zip(done.items[::2], done.items[1::2], strict=True))
        if len(pairs) * 2 < done.width:
            self.notes.add(TWICE)
        return pairs

    def _item(self) -> Any:
        """Read one header, and its payload: a value, or an aggregate that wants elements."""
        data, start = self.data, self.place
        if start >= len(data):
            raise _IncompleteError
        kind = data[start]
        if kind not in b"+-:,_#($=*~%>":  # so an attribute is malformed, wherever it stands
            if kind == ord("|") and LINE_END in self.notes:
                self.notes.add(LOST)
            raise _MalformedError(start + 1)
        if kind in b"*~%>" and len(self.open) >= DEEPEST:
            raise _MalformedError(start + 1)
        stop = data.find(b"\r\n", start)
        if stop < 0:
            raise _IncompleteError
        line = data[start + 1 : stop]
        self.place = stop + 2
        try:
            if kind in b"*~%>":
                return self._aggregate(kind, _integer(line))
            if kind in b"$=":
                return self._payload(kind, _integer(line))
            return self._line(kind, line)
        except ValueError:
            raise _MalformedError(self.place) from None

    def _aggregate(self, kind: int, width: int) -> _Open | None:
        owed = sum(outer.width - len(outer.items) for outer in self.open) - bool(self.open)
        if not -1 <= width <= MOST or owed + width * (2 if kind == ord("%") else 1) > OWED:
            raise ValueError
        if kind == ord(">") and (width < 0 or width >= 2**16):
            raise ValueError  # hiredis would take the first for a reply, and pay for the second
        if (width < 0 and kind != ord("*")) or (kind == ord(">") and self.open):
            self.notes.add(LAX)
        if width < 0:
            return None
        outer = self.open[-1] if self.open else None
        if outer is not None and outer.kind == ord("%") and len(outer.items) % 2 == 0:
            raise ValueError  # RESP allows it; but no Python dict has such a key
        return _Open(kind, width)

    def _payload(self, kind: int, size: int) -> bytes | None:
        if size < -1:
            raise ValueError
        if size == -1:
            if kind == ord("="):
                self.notes.add(LAX)
            return None
        start, stop = self.place, self.place + size
        if stop + 2 > len(self.data):
            raise _IncompleteError
        if self.data[stop : stop + 2] != b"\r\n":
            self.notes.add(LINE_END)
        self.place = stop + 2
        if kind == ord("$"):
            return self.data[start:stop]
        if size < 4 or self.data[start + 3] != ord(":"):
            raise ValueError
        return self.data[start + 4 : stop]

    def _line(self, kind: int, line: bytes) -> Any:
        if kind in b"+-":
            if b"\r" in line or b"\n" in line:
                raise ValueError
            return line if kind == ord("+") else reply_error(line.decode(errors="replace"))
        if kind == ord(":"):
            return _integer(line)
        if kind == ord(","):
            return _double(line)
        if kind == ord("("):
            digits = line.removeprefix(b"-")
            if not digits:
                self.notes.add(LAX)
            elif not digits.isdigit():
                raise ValueError
            return line
        if kind == ord("#"):
            if line not in (b"t", b"f"):
                self.notes.add(LAX)
            if line not in (b"t", b"f", b"T", b"F", b"\0"):
                raise ValueError
            return line in (b"t", b"T")
        if line:
            raise ValueError  # of `_`, the null
        return None


def _integer(line: bytes) -> int:
    """Return a 64-bit number."""
    if len(line) > 20 or not _INTEGER.fullmatch(line):
        raise ValueError
    number = int(line)
    if not -(2**63) <= number < 2**63:
        raise ValueError
    return number


def _double(line: bytes) -> float:
    """Return a number that a float can hold, which one of 1e999 or 1e-999 cannot."""
    word = _WORDS.get(line.lower())
    if word is not None:
        return word
    if len(line) > 325 or not _DOUBLE.fullmatch(line):
        raise ValueError
    number = float(line)
    mantissa = re.split(rb"[eE]", line)[0]
    if math.isinf(number) or (number == 0 and mantissa.strip(b"-.0")):
        raise ValueError
    return number
