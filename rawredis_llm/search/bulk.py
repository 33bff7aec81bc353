"""Many documents at once: columns of values, and the HSETs of all rows, as bytes for the wire.

What `resp.encode_many` makes of one tuple per document, made of whole columns. A loop in Python
over the values of a document costs several times what copying its vector does, so everything here
is done to a column by one call into C, and a look at the whole tells whether a value needs a look.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..protocol.resp import MAX_ARGUMENT, PORTION
from .fields import Field, Numeric, Tag, Text
from .filters import EXACT, LONGEST_TAG

__all__ = ["arguments", "hset_portions", "stored_column", "with_each"]

Values = Sequence[Any] | npt.NDArray[Any]
Wires = list[bytes | None]


def stored_column(name: str, field: Field | None, values: Values) -> Wires:
    """Return a column as HSET takes it, as bytes; a None stays None and is to be left out.

    `field` is None for a field outside of the schema, which takes text, bytes and numbers. Raises
    what `field.stored` raises of the first value that it refuses, else TypeError or ValueError
    naming the field for a value that has no form on the wire.
    """
    column = _plain(values)
    kinds = set(map(type, column)) - {type(None)}
    wires = None
    if len(kinds) == 1:
        try:
            wires = _uniform(field, kinds.pop(), column)
        except ValueError:  # a lone surrogate, or more digits than Python writes
            wires = None
    if wires is None:
        # The values as they were given, because errors name their types.
        stored = _as_it_is if field is None else field.stored
        wires = [None if value is None else _wire(name, stored(value)) for value in values]
    return wires


def _plain(values: Values) -> list[Any]:
    """Return values as a list; of Python's own numbers, where they are as exact as numpy's."""
    if type(values) is np.ndarray and values.dtype.char in "bBhHiIlLqQefdUS":
        plain: list[Any] = values.tolist()
        return plain
    return values if type(values) is list else list(values)


def _uniform(field: Field | None, kind: type, column: list[Any]) -> Wires | None:
    """Return a column of one type, or None if its values have to be looked at one by one."""
    if kind is str and type(field) is Tag:
        return _tags(field.separator, column)
    if kind in (int, float) and (field is None or type(field) is Numeric):
        return _numbers(column, kind, finite=field is not None)
    if kind is str and (field is None or type(field) is Text):
        wires = [None if value is None else value.encode() for value in column]
    elif kind is bytes and field is None:
        wires = list(column)
    else:
        return None
    return wires if max(map(len, filter(None, wires)), default=0) <= MAX_ARGUMENT else None


def _tags(separator: str, column: list[Any]) -> Wires | None:
    # Labels repeat: each is looked at once, and its bytes are shared by all rows.
    labels = list(set(column) - {None})
    letters = "".join(labels)
    doubtful = (
        "\0" in letters
        or separator in letters
        or not all(labels)
        or max(map(len, labels)) > LONGEST_TAG // 4  # in UTF-8 it may be four times as long
        or list(map(str.strip, labels)) != labels
    )
    if doubtful:
        return None
    table = {None: None} | {label: label.encode() for label in labels}
    return list(map(table.__getitem__, column))


def _numbers(column: list[Any], kind: type, *, finite: bool) -> Wires | None:
    present = column if None not in column else [v for v in column if v is not None]
    if finite and kind is int and not -EXACT <= min(present) <= max(present) <= EXACT:
        return None
    # A list's repr is that of each number, by one call. Only nan and inf have an n in theirs.
    text = repr(present)[1:-1]
    if finite and "n" in text:
        return None
    wires = text.encode().split(b", ")
    if len(wires) == len(column):
        return wires  # type: ignore[return-value]  # a list of bytes only
    rest = iter(wires)
    return [None if value is None else next(rest) for value in column]


def _as_it_is(value: Any) -> Any:
    return value.item() if isinstance(value, np.number) else value


def _wire(name: str, value: Any) -> bytes:
    """Return one value as the encoder writes it."""
    if isinstance(value, bool) or not isinstance(value, (str, bytes, int, float)):
        raise TypeError(f"field {name!r} takes text, bytes or a number, not {type(value).__name__}")
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, float):
        return float.__repr__(value).encode()
    try:
        wire = str.encode(value) if isinstance(value, str) else bytes(value)
    except UnicodeEncodeError as error:
        raise ValueError(f"field {name!r} is not valid Unicode: {error.reason}") from None
    if len(wire) > MAX_ARGUMENT:
        raise ValueError(f"field {name!r} has {len(wire)} bytes, Redis takes {MAX_ARGUMENT}")
    return wire


def arguments(texts: Sequence[bytes]) -> bytes:
    """Return arguments, one or more, as they stand in a request."""
    widths = list(map(len, texts))
    headers = _headers(b"", set(widths))
    pieces: list[bytes] = [b""] * (2 * len(texts))
    pieces[::2] = map(headers.__getitem__, widths)
    pieces[1::2] = texts
    return b"".join(pieces)[2:] + b"\r\n"  # a header begins with the end of what is before it


def with_each(
    before: Sequence[bytes], blobs: npt.NDArray[np.uint8], after: Sequence[bytes]
) -> list[tuple[bytes, int]]:
    """Return one request for each row of `blobs`, shape (n, bytes), between the same arguments.

    In portions, as `hset_portions`.
    """
    total, size = blobs.shape
    width = len(before) + 1 + len(after)
    head = b"*%d\r\n%b$%d\r\n" % (width, arguments(before), size)
    tail = b"\r\n" + arguments(after)
    view = blobs.data.cast("B")
    rows = [view[at : at + size] for at in range(0, total * size, size)]
    step = PORTION // (len(head) + size + len(tail)) + 1
    parts = [rows[start : start + step] for start in range(0, total, step)]
    return [(head + (tail + head).join(part) + tail, len(part)) for part in parts]


def hset_portions(
    keys: Sequence[bytes],
    vector_name: bytes,
    blobs: npt.NDArray[np.uint8],
    columns: Sequence[tuple[bytes, Sequence[bytes | None]]],
    before: bytes = b"",
    after: bytes = b"",
) -> list[tuple[bytes, int]]:
    """Return the requests `HSET key name value ... vector_name blob`, one for each key, in order.

    `blobs` is C-contiguous, of shape (n, bytes of a vector), for n keys; a column has n values, of
    which None is left out. The result is portions of about 1 MiB, each with its number of requests,
    as `encode_many` returns, the first and the last with what is to leave `before` and `after`
    them, not counted. Raises ValueError if a length is not n.
    """
    total, size = blobs.shape
    if any(len(column) != total for column in (keys, *(column for _, column in columns))):
        raise ValueError(f"keys and columns must have {total} values, as there are vectors")
    if not total:
        return []
    # The pieces of one row, repeated for all, are right where rows are alike. What differs is put
    # in place by place: that takes half the time of joining the rows of a zip.
    row = [_head(len(columns))]
    differing: dict[int, Sequence[bytes | memoryview]] = {}
    gaps, uneven = [], []
    about = size + 64  # bytes of a row, apart from those in `uneven`
    for preface, column in [(b"", keys)] + [(_argument(name), column) for name, column in columns]:
        values, widths = _measured(column)
        distinct = set(widths)
        headers = _headers(preface, distinct)
        if len(headers) > 1:
            differing[len(row)] = list(map(headers.__getitem__, widths))
        differing[len(row) + 1] = values
        row += (headers[widths[0]], b"")
        least, most = min(distinct), max(distinct)
        if least == _ABSENT:
            gaps.append(widths)
        if most - least > _EVEN:
            uneven.append(widths)
            most = 0
        about += len(preface) + 8 + most
    if gaps:
        heads = [_head(count) for count in range(len(columns) + 1)]
        differing[0] = [heads[~gap.count(_ABSENT)] for gap in zip(*gaps, strict=True)]
    row.append(_argument(vector_name) + b"\r\n$%d\r\n" % size)
    view = blobs.data.cast("B")
    differing[len(row)] = [view[at : at + size] for at in range(0, total * size, size)]
    row += (b"", b"\r\n")
    pieces: list[Any] = row * total
    wide = len(row)
    for place, ready in differing.items():
        pieces[place::wide] = ready
    pieces[0] = before + pieces[0]
    pieces[-1] += after
    return [
        (b"".join(pieces[start * wide : end * wide]), end - start)
        for start, end in _cuts(total, about, uneven)
    ]


_ABSENT: Final = -1  # the width of a None
_EVEN: Final = 64  # bytes: values that differ by no more count as equally wide in a portion


def _head(count: int) -> bytes:
    """Return how a HSET of a key, a vector and `count` other fields begins."""
    return b"*%d\r\n$4\r\nHSET" % (4 + 2 * count)


def _argument(text: bytes) -> bytes:
    return b"\r\n$%d\r\n%b" % (len(text), text)


def _headers(before: bytes, widths: set[int]) -> dict[int, bytes]:
    """Return by a value's width what is written before it; of one that is absent, nothing."""
    return {
        width: b"%b\r\n$%d\r\n" % (before, width) if width != _ABSENT else b"" for width in widths
    }


def _measured(column: Sequence[bytes | None]) -> tuple[Sequence[bytes], list[int]]:
    """Return a column with b"" for None, and its widths."""
    try:
        return column, list(map(len, column))  # type: ignore[arg-type,return-value]  # see below
    except TypeError:  # there is a None; finding out by trying is free for columns that have none
        widths = [_ABSENT if value is None else len(value) for value in column]
        return [value or b"" for value in column], widths


def _cuts(total: int, about: int, uneven: list[list[int]]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the rows of each portion."""
    if not uneven:
        step = PORTION // about + 1
        yield from ((start, min(start + step, total)) for start in range(0, total, step))
        return
    start = large = 0
    for end, widths in enumerate(zip(*uneven, strict=True), 1):
        large += about + sum(widths)
        if large > PORTION or end == total:
            yield start, end
            start, large = end, 0
