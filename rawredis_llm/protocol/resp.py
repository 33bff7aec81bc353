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

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import hiredis

from ..errors import ProtocolError, reply_error

__all__ = ["NOT_ENOUGH", "Decoder", "Push", "encode"]

Push = hiredis.PushNotification

MAX_ARGUMENT: Final = 512 * 1024 * 1024
"""Bytes: `proto-max-bulk-len`, which the server checks only after all of it was sent."""

# One %-template per number of arguments: 1.7 times as fast as hiredis' pack_command.
_TEMPLATES: Final = tuple(b"*%d\r\n" % n + b"$%d\r\n%b\r\n" * n for n in range(33))


def encode(args: Sequence[Any]) -> bytes:
    """Return one request: the command's name and arguments, in the order given.

    Raises TypeError for an argument that has no form on the wire, and ValueError for text that is
    not Unicode, for more than 512 MiB, and for no arguments at all.
    """
    flat: list[Any] = []
    try:
        for arg in args:
            kind = type(arg)
            if kind is str:
                arg = arg.encode()  # noqa: PLW2901 - one name is what keeps this loop fast
            elif kind is not bytes:
                arg = _uncommon(arg)  # noqa: PLW2901
            flat += (len(arg), arg)
    except (TypeError, ValueError) as error:
        raise _argument_error(len(flat) // 2, args, error) from None
    count = len(args)
    if not 0 < count < len(_TEMPLATES):
        return _encode_unusual(flat)
    data = _TEMPLATES[count] % tuple(flat)
    if len(data) > MAX_ARGUMENT:
        _check_sizes(flat)
    return data


def _encode_unusual(flat: list[Any]) -> bytes:
    count = len(flat) // 2
    if not count:
        raise ValueError("a command needs at least its name")
    _check_sizes(flat)
    return b"*%d\r\n" % count + (b"$%d\r\n%b\r\n" * count) % tuple(flat)


def _check_sizes(flat: list[Any]) -> None:
    for position, size in enumerate(flat[::2]):
        if size > MAX_ARGUMENT:
            raise ValueError(f"argument {position} has {size} bytes, Redis takes {MAX_ARGUMENT}")


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
        if isinstance(arg, numpy.number) and isinstance(plain := arg.item(), (int, float)):
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
    return view.tobytes()


class _NotEnough:
    """The type of `NOT_ENOUGH`: None is a reply, so it cannot stand for the lack of one."""

    def __repr__(self) -> str:
        return "NOT_ENOUGH"


NOT_ENOUGH: Final = _NotEnough()


class Decoder:
    """hiredis' reader behind guards. Not thread-safe: one connection, one decoder.

    `feed()` bytes in pieces of at most 64 KiB (more makes each reply up to 6.8 times dearer), then
    call `gets()` until it returns `NOT_ENOUGH`. After any exception the decoder is dead. `address`
    is for the errors it makes.

    hiredis returns an attribute (`|`) as if it were a reply, which would shift every later reply to
    the wrong caller. So the bytes are looked at first. Frames are flat (only strings have a
    payload), so a position in them is "how many bytes to skip" and "the start of a header line";
    that walk costs 0.3 us a frame, so it is taken only when a piece holds `|` where a header could
    stand, and starts from where the framing was last known.
    """

    __slots__ = ("_header", "_held", "_held_size", "_reader", "_skip", "gets")

    HOLD: Final = 1 << 20  # bytes kept for a walk that may never be needed

    def __init__(self, address: str = "") -> None:
        self._reader = hiredis.Reader(
            protocolError=ProtocolError,
            replyError=partial(reply_error, address=address),
            notEnoughData=NOT_ENOUGH,
        )
        self.gets = self._reader.gets
        self._held: list[bytes] = []
        self._held_size = 0
        self._skip = 0
        self._header = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes from the server; raise ProtocolError on an attribute."""
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size > self.HOLD or (
            b"|" in data and (data[0] == 124 or b"\n|" in data)  # 124 is `|`
        ):
            self._walk()
        self._reader.feed(data)

    def settled(self) -> bool:
        """Return True if every byte fed was part of a reply that `gets` has returned.

        Ask only right after `gets` returned a reply: after NOT_ENOUGH the reader may be in the
        middle of an array with no byte left over.
        """
        if self._reader.has_data():
            return False
        if self._held:
            self._held.clear()
            self._held_size = self._skip = 0
            self._header = b""
        return True

    def _walk(self) -> None:
        """Step over the frames of all held bytes."""
        data = self._header + b"".join(self._held)
        self._held.clear()
        self._held_size = 0
        position, size = self._skip, len(data)
        while position < size:
            kind = data[position : position + 1]
            if kind == b"|":
                raise ProtocolError("the server sent an attribute, which nobody asked for")
            end = data.find(b"\r\n", position)
            if end < 0:
                break
            try:
                length = int(data[position + 1 : end]) if kind in b"$=!" else -1
            except ValueError:
                break  # hiredis refuses such a header; it says why better than we could
            position = end + 2 + (length + 2 if length >= 0 else 0)
        self._header = data[position:]
        self._skip = max(position - size, 0)
