r"""The wire: Python values to RESP requests, and RESP2/RESP3 replies to Python values.

=====================================  ==========================================
Python argument                        on the wire
=====================================  ==========================================
bytes, bytearray, memoryview, ndarray  its bytes (C order; ndarrays are not text)
str                                    UTF-8; a lone surrogate is a ValueError
int, float, numpy number               its shortest exact decimal text
bool, None, anything else              TypeError
=====================================  ==========================================

==================================  ==============================================
RESP                                Python reply
==================================  ==============================================
``+`` ``$`` ``=`` ``(``             bytes
``:`` ``,`` ``#`` ``_`` ``$-1``     int, float, bool, None, None
``*`` ``~``                         list
``%``                               dict
``-``                               a `ReplyError` *value* (the client raises it)
``>``                               `Push`, never an answer
``|`` (attributes), anything else   `ProtocolError`: the connection must be closed
==================================  ==============================================

The encoder is ours: hiredis' own crashes when a signal arrives while it formats a number, and
misreads strided buffers. Numpy is never imported here, only recognised when the caller has it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Final, TypeAlias

import hiredis

from ..errors import ProtocolError, RedisError, ReplyError, reply_error

Push = hiredis.PushNotification
Portions: TypeAlias = list[tuple[bytes, int]]  # of a pipeline: bytes, and how many commands

READ_ERRORS: Final = (RedisError, OSError, TypeError, MemoryError)
"""What sockets, the decoder and hiredis raise. Any other exception comes from elsewhere, such as a
signal handler, and is the caller's."""

MAX_ARGUMENT: Final = 512 * 1024 * 1024
"""Bytes: `proto-max-bulk-len`, which the server checks only after all of it was sent."""

CHUNK: Final = 65536
"""Bytes: the most to feed at once; beyond it hiredis makes each reply up to 6.8 times dearer."""

PORTION: Final = 1 << 20
"""Bytes: about how much of a pipeline is written before its replies are read, so that neither the
client nor the server has to hold more than this for the other."""

# Joining ready pieces takes a third of the time of %-formatting each command of a pipeline.
_HEADS: Final = tuple(b"*%d" % n for n in range(33))
_SIZES: Final = tuple(b"\r\n$%d\r\n" % n for n in range(1024))
_MANY: Final = 1 << 13  # pieces that make a portion, if each is small: 1,024 SETs, 4 MiB at most


def encode(args: Sequence[Any]) -> bytes:
    """Return one request: the command's name and arguments, in the order given.

    Raises TypeError for an argument that has no form on the wire, and ValueError for text that is
    not Unicode, for more than 512 MiB, and for no arguments at all.
    """
    pieces: list[Any] = []
    _add_pieces(pieces, args)
    return b"".join(pieces)


def encode_many(commands: Iterable[Sequence[Any]], first: int = 0) -> Portions:
    """Return requests in portions of about 1 MiB, each with its number of commands.

    All are encoded, or none: raises as `encode` does, naming the command by its number, of which
    `first` is the first one's.
    """
    portions: Portions = []
    pieces: list[Any] = []
    count = large = 0
    try:
        for args in commands:
            large += _add_pieces(pieces, args)
            count += 1
            if large > PORTION or len(pieces) > _MANY:
                portions.append((b"".join(pieces), count))
                pieces.clear()
                count = large = 0
    except (TypeError, ValueError) as error:
        number = first + count + sum(width for _, width in portions)
        raise type(error)(f"command {number}: {error}") from None
    if count:
        portions.append((b"".join(pieces), count))
    return portions


def encode_alike(commands: Sequence[tuple[Any, ...]]) -> Portions | None:
    """Return what `encode_many` does for commands that are alike, or None if they are not.

    Alike are those of as many arguments, all of them str or bytes below 1 KiB. Their pieces are put
    in place column by column, in a third of the time that a loop over commands takes.
    """
    width = len(commands[0])
    if {*map(len, commands)} != {width} or not 0 < width < len(_HEADS):
        return None
    most = _MANY // (2 * width + 2) + 1
    portions: Portions = []
    for start in range(0, len(commands), most):
        part = commands[start : start + most]
        try:
            pieces = _placed(part, width)
        except (IndexError, TypeError, UnicodeEncodeError):  # the usual way says what is wrong
            return None
        portions.append((b"".join(pieces), len(part)))
    return portions


def _placed(commands: Sequence[tuple[Any, ...]], width: int) -> list[bytes]:
    """Return the pieces of commands that are alike; raise TypeError or others if they are not."""
    step = 2 * width
    pieces = [b"\r\n"] * (step * len(commands))
    names = [*map(_NAME, commands)]
    begins = {}  # what a command begins by is one piece, and few differ in it
    for name in {*names}:
        [data] = _encoded([name])
        begins[name] = _HEADS[width] + _SIZES[len(data)] + data
    pieces[::step] = map(begins.__getitem__, names)
    for at in range(1, width):
        column = _encoded([*map(itemgetter(at), commands)])
        pieces[2 * at - 1 :: step] = map(_SIZES.__getitem__, map(len, column))
        pieces[2 * at :: step] = column
    return pieces


def _encoded(column: list[Any]) -> list[bytes]:
    kinds = {*map(type, column)}
    if kinds == {str}:
        return [*map(str.encode, column)]
    if not kinds <= _TEXT:
        raise TypeError
    return column if kinds == {bytes} else [_encoded([arg])[0] for arg in column]


_NAME: Final = itemgetter(0)
_TEXT: Final[set[type]] = {str, bytes}


def sealed(portions: Portions) -> tuple[Portions, bytes]:
    """Return portions that end in an ECHO of a fresh nonce, and the nonce."""
    nonce = os.urandom(12).hex().encode()
    *head, (data, width) = portions
    return [*head, (data + encode(("ECHO", nonce)), width + 1)], nonce


def prove(replies: list[Any], nonce: bytes) -> None:
    """Take the last reply away, and raise ProtocolError unless it is the nonce.

    A server that refuses everything alike, being busy, refuses the proof, too.
    """
    proof = replies[-1]
    refused = isinstance(proof, ReplyError) and len(set(map(type, replies))) == 1
    if proof != nonce and not refused:
        raise ProtocolError("the replies are not those to this request")
    replies.pop()


def _add_pieces(pieces: list[Any], args: Sequence[Any]) -> int:
    """Add one request's pieces; return how many bytes there are in its large arguments."""
    width = len(args)
    large = 0
    pieces.append(_HEADS[width] if 0 < width < len(_HEADS) else _unusual_head(width))
    start = len(pieces)
    try:
        for arg in args:
            kind = type(arg)
            if kind is str:
                arg = arg.encode()  # noqa: PLW2901 - one name is what keeps this loop fast
            elif kind is not bytes:
                arg = _uncommon(arg)  # noqa: PLW2901
            size = len(arg)
            if size < 1024:
                pieces += (_SIZES[size], arg)
            else:
                pieces += (_size(size), arg)
                large += size
    except (TypeError, ValueError) as error:
        raise _argument_error((len(pieces) - start) // 2, args, error) from None
    pieces.append(b"\r\n")
    return large


def _unusual_head(width: int) -> bytes:
    if not width:
        raise ValueError("a command needs at least its name")
    return b"*%d" % width


def _size(size: int) -> bytes:
    if size > MAX_ARGUMENT:
        raise ValueError(f"has {size} bytes, Redis takes {MAX_ARGUMENT}")
    return b"\r\n$%d\r\n" % size


def _argument_error(position: int, args: Sequence[Any], error: Exception) -> Exception:
    """Name the argument by its position and type; its value may be a secret and stays out."""
    kind = type(args[position]).__name__
    if isinstance(error, UnicodeError):
        return ValueError(f"argument {position} ({kind}) is not valid Unicode: {error.args[-1]}")
    return type(error)(f"argument {position} ({kind}): {error}")


def _uncommon(arg: Any) -> bytes | memoryview:
    """Return the wire form of all that is neither exactly `str` nor exactly `bytes`."""
    if isinstance(arg, bool) or arg is None:
        raise TypeError("bool and None have no form in Redis; say which text or number is meant")
    if isinstance(arg, int):
        return b"%d" % arg
    if isinstance(arg, float):
        # Not repr(arg): a numpy.float64 is a float whose repr is `np.float64(1.5)`.
        return float.__repr__(arg).encode()
    if isinstance(arg, str):
        return str.encode(arg)
    if isinstance(arg, bytes):
        return bytes(arg)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(arg, numpy.generic):
        plain = arg.item() if isinstance(arg, numpy.number) else None
        if isinstance(plain, (int, float)) and not isinstance(arg, numpy.timedelta64):
            return _uncommon(plain)
        raise TypeError("has no form in Redis; convert it to bytes, str, int or float")
    if numpy is not None and isinstance(arg, numpy.ndarray) and arg.dtype.hasobject:
        raise TypeError("an array of Python objects has no bytes to send")
    try:
        view = memoryview(arg)
    except (TypeError, ValueError):
        raise TypeError("has no form in Redis; convert it to bytes, str, int or float") from None
    if view.c_contiguous and view.nbytes:
        return view.cast("B")
    _size(view.nbytes)  # refuses what is too large, before it is copied
    return view.tobytes()


def key_bytes(key: Any) -> bytes:
    """Return one argument as it goes on the wire. Raises as `encode` does."""
    if type(key) is bytes:
        return key
    return key.encode() if type(key) is str else bytes(_uncommon(key))


class _NotEnough:
    """The type of `NOT_ENOUGH`: None is a reply, so it cannot stand for the lack of one."""

    def __repr__(self) -> str:
        return "NOT_ENOUGH"


NOT_ENOUGH: Final = _NotEnough()


class Decoder:
    """hiredis' reader behind guards. Not thread-safe: one connection, one decoder.

    `feed()` bytes in pieces of at most `CHUNK`, then call `gets()` until it returns `NOT_ENOUGH`.
    After any exception the decoder is dead. `address` is for the errors it makes, which are also
    kept in `refusals` until the connection clears it: so nobody has to search replies for them.

    hiredis returns an attribute (`|`) as if it were a reply, which would shift every later reply to
    the wrong caller, and believes the header of an array: ten bytes can cost it gigabytes. So the
    bytes are looked at first. Frames are flat (only strings have a payload), so a position in them
    is "how many bytes to skip" and "the start of a header line". A walk from frame to frame costs
    0.3 us for each, looking for what could be such a header 0.4 us for a KiB: large strings are
    stepped over, all else is searched, and walked only if something was found. The two bytes behind
    a payload are not looked at, as hiredis does not.
    """

    __slots__ = (
        "_has_data",
        "_held",
        "_held_size",
        "_owed",
        "_position",
        "_reader",
        "gets",
        "refusals",
    )

    HOLD: Final = 1 << 24  # bytes kept for a walk that may never be needed
    OWED: Final = 1 << 24  # the most elements that a reply may be lacking at any moment

    def __init__(self, address: str = "") -> None:
        self.refusals: list[ReplyError] = []
        self._reader = hiredis.Reader(
            protocolError=ProtocolError,
            replyError=partial(_refusal, self.refusals, address),
            notEnoughData=NOT_ENOUGH,
        )
        self.gets = self._reader.gets
        self._has_data = self._reader.has_data
        self._held: list[bytes] = []
        self._held_size = self._owed = 0
        self._position = _START

    def feed(self, data: bytes) -> None:
        """Take the next bytes from the server.

        Raises ProtocolError for an attribute, and for an array of an absurd size.
        """
        fresh = not self._held and self._position is _START
        self._held.append(data)
        if not fresh or len(data) > _SHORT:
            self._look()
        elif _suspicious(data) or (data[0] in _RISKY_KINDS and _begins_so(data)):
            self._walk(self._held.pop(), _TO_THE_END)
        self._reader.feed(data)

    def begin_array(self, width: int) -> None:
        """Have the next replies come as one list, with the pushes that stand between them.

        Only when it is settled: the header must not land among bytes that nobody has taken yet.
        """
        self._reader.feed(b"*%d\r\n" % width)

    def settled(self) -> bool:
        """Return True if every byte fed was part of a reply that `gets` has returned.

        Ask only right after `gets` returned a reply: after NOT_ENOUGH the reader may be in the
        middle of an array with no byte left over.
        """
        if self._has_data():
            return False
        self._held.clear()
        self._held_size = self._owed = 0
        self._position = _START
        return True

    def _look(self) -> None:
        """Step over large strings; walk on if a risky header may stand in the rest."""
        if len(self._held) == 1:  # the framing is known up to here
            self._walk(self._held.pop(), 4)
        if not self._held:
            return
        data = self._held[-1]
        self._held_size += len(data)
        # A header is shorter than that; and where nothing is held a frame begins.
        before = (b"\n" + b"".join([piece[-25:] for piece in self._held[-25:-1]]))[-25:]
        if _suspicious(data) or _suspicious(before + data[:24]):
            data = b"".join(self._held)
            self._held.clear()
            self._held_size = 0
            self._walk(data, _TO_THE_END)
        elif self._held_size > self.HOLD:
            data = self._held.pop(0)
            self._held_size -= len(data)
            self._walk(data, _TO_THE_END)

    def _walk(self, data: bytes, steps: int) -> None:
        """Step over frames, as long as a step leads 512 bytes on average; hold what is left."""
        skip, header = self._position
        data = header + data
        position, size, owed = skip, len(data), self._owed
        while position < size and steps > 0:
            kind = data[position]
            if kind == _ATTRIBUTE:
                raise ProtocolError("the server sent an attribute, which nobody asked for")
            end = data.find(b"\r\n", position)
            if end < 0:
                if size - position > _LONGEST_LINE:
                    raise ProtocolError("the server sent a line without an end")
                break
            owed = max(owed - 1, 0)
            length = -1
            if kind in _SIZED:
                try:
                    length = int(data[position + 1 : end])
                except ValueError:
                    break  # hiredis refuses such a header; it says why better than we could
                if kind in _MANY_IN:
                    owed += max(length, 0) * (2 if kind == _MAP else 1)
                    if owed > self.OWED or (kind == _PUSH and not 0 <= length < 1 << 16):
                        raise ProtocolError(f"the server promised {length} elements")
                    length = -1
            steps += (max(length, 0) >> 9) - 1
            position = end + 2 + (length + 2 if length >= 0 else 0)
        self._owed = owed
        if steps > 0:
            self._position = (max(position - size, 0), data[position:])
        else:
            self._position = _START
            if position < size:
                self._held.append(data[position:])
            else:
                self._position = (position - size, b"")


def _refusal(refusals: list[ReplyError], address: str, text: str) -> ReplyError:
    # No method of the decoder: the reader would keep it alive, and it the reader.
    error = reply_error(text, address=address)
    refusals.append(error)
    return error


_ATTRIBUTE, _PUSH, _MAP = b"|>%"
_MANY_IN: Final = frozenset(b">*~%")
_SIZED: Final = _MANY_IN | set(b"$=!")
# What may be an attribute, a push without or of an absurd size, or a million elements and more:
# behind a line's end, and where a reply begins.
_RISKY: Final = rb"(?:\||>(?:-|\d{5})|[*~%]\d{7})"
_RISKY_KINDS: Final = _MANY_IN | {_ATTRIBUTE}
_SHORT: Final = 4096  # bytes that are searched as a whole sooner than walked
_TO_THE_END: Final = 1 << 62
_LONGEST_LINE: Final = 1 << 20  # bytes; a line is searched anew with every piece of it
_suspicious: Final = re.compile(rb"\n" + _RISKY).search
_begins_so: Final = re.compile(_RISKY).match
_START: Final = (0, b"")  # bytes to skip, and the start of a header line
