"""Vectors as the bytes that Redis stores, and distances as similarities.

A zero vector under cosine, or a NaN or infinity under any metric, is stored by the server without
complaint and from then on falsifies everybody's nearest neighbours; a blob of the wrong size drops
the whole document from the index. So every vector, stored or queried, is checked here first.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from struct import error as StructError  # noqa: N812 - an exception
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import UnexpectedReplyError

Array = npt.NDArray[Any]

DTYPES: Final = {
    "float32": "<f4",
    "float64": "<f8",
    "float16": "<f2",
    "bfloat16": "<u2",  # numpy has none: the upper halves of float32
    "int8": "i1",
    "uint8": "u1",
}
"""Our name of a vector type -> numpy's, little-endian as Redis reads it."""


# What needs no conversion: nearly all vectors are of the index's type already.
_WIRES: Final = {name: np.dtype(DTYPES[name]) for name in DTYPES if name != "bfloat16"}


def as_matrix(
    vectors: Any,
    dim: int | None = None,
    *,
    dtype: str = "float32",
    metric: str = "cosine",
    name: str = "vectors",
) -> Array:
    """Return vectors as a C-contiguous, little-endian array of shape (n, dim).

    `vectors` is anything numpy takes for numbers of shape (n, dim). Raises TypeError if it is not
    numeric, ValueError naming the first row that is not finite, or, under cosine, is zero, and
    where int8 or uint8 cannot hold a number. An array of bfloat16 comes as uint16.
    """
    matrix = _numbers(vectors, dtype, name)
    if matrix.shape == (0,):  # what numpy makes of an empty list
        return matrix.reshape(0, dim or 0)
    if matrix.ndim != 2:
        raise ValueError(f"{name} must have shape (n, dim), not {matrix.shape}")
    if dim is not None and matrix.shape[1] != dim:
        raise ValueError(f"{name} have {matrix.shape[1]} dimensions, the index has {dim}")
    if len(matrix) and matrix.shape[1] == 0:
        raise ValueError(f"{name} have no dimensions")
    _check(matrix, metric, name)
    return _bfloat16(matrix) if dtype == "bfloat16" else matrix


def as_vector(
    vector: Any,
    dim: int | None = None,
    *,
    dtype: str = "float32",
    metric: str = "cosine",
    name: str = "vector",
) -> Array:
    """Return one vector as a C-contiguous, little-endian array of shape (dim,); see `as_matrix`."""
    array = _numbers(vector, dtype, name)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (dim,), not {array.shape}")
    if dim is not None and len(array) != dim:
        raise ValueError(f"{name} has {len(array)} dimensions, the index has {dim}")
    if len(array) == 0:
        raise ValueError(f"{name} has no dimensions")
    # For one vector a dot product is the cheapest proof; only a doubtful one is looked at closely.
    if array.dtype.itemsize == 1 or not _SAFE[0] < float(np.vdot(array, array)) < _SAFE[1]:
        _check(array[np.newaxis], metric, name)
    return _bfloat16(array) if dtype == "bfloat16" else array


def to_blob(vector: Any, dtype: str = "float32", *, metric: str = "l2") -> bytes:
    """Return one vector's little-endian bytes, as HSET and PARAMS take them.

    Raises TypeError if it is not numeric, ValueError if it is not finite or, with
    `metric="cosine"`, is zero.
    """
    return as_vector(vector, dtype=dtype, metric=metric).tobytes()


def from_blob(blob: bytes, dtype: str = "float32") -> Array:
    """Return the vector in a blob, as a read-only view of its bytes; of bfloat16 as float32.

    Raises UnexpectedReplyError if they are no whole number of numbers.
    """
    wire = np.dtype(_numpy_name(dtype))
    if len(blob) % wire.itemsize:
        raise UnexpectedReplyError(f"a vector of {len(blob)} bytes is no {dtype}")
    array = np.frombuffer(blob, wire)
    if dtype != "bfloat16":
        return array
    widened: Array = (array.astype("<u4") << 16).view("<f4")
    widened.flags.writeable = False  # as the views of the other types
    return widened


def similarity(distance: float, metric: str) -> float:
    """Return a distance as nearness from 0 to 1.

    cosine and ip: 1 - d/2, which is (1 + cos)/2, cut to 0..1; l2: 1 / (1 + d), d being squared.
    """
    if metric == "l2":
        return 1.0 / (1.0 + max(distance, 0.0))
    return min(max(1.0 - distance / 2.0, 0.0), 1.0)


def _numpy_name(dtype: str) -> str:
    try:
        return DTYPES[dtype]
    except KeyError:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}") from None


def _numbers(values: Any, dtype: str, name: str) -> Array:
    """Return numbers as an array of the wire's type; refuse what would lose their value."""
    wire = _numpy_name(dtype)
    ready = _WIRES.get(dtype)
    plain = type(values) is np.ndarray and ready is not None and values.dtype == ready
    if plain and values.flags.c_contiguous:
        return values  # type: ignore[no-any-return]  # an array
    if type(values) is list and dtype == "float32":
        packed = _packed(values)
        if packed is not None:
            return packed
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"{name} is ragged: its rows differ in length") from None
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, not {array.dtype}")
    if wire[-2:] in ("i1", "u1"):
        limits = np.iinfo(wire)
        good = (array >= limits.min) & (array <= limits.max) & (array == np.floor(array))
        if not good.all():
            raise ValueError(
                f"{name} must hold whole numbers from {limits.min} to {limits.max} for {dtype};"
                " scale and round them first"
            )
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused as such
        return _rounded(array) if dtype == "bfloat16" else np.ascontiguousarray(array, dtype=wire)


_struct: Final = lru_cache(maxsize=8)(Struct)


def _packed(values: list[Any]) -> Array | None:
    """Return the array of a list of floats, or of such lists, in a third of numpy's time.

    None for what is something else, of which numpy says what it is.
    """
    first = values[0] if values else None
    try:
        if type(first) is float:
            return np.frombuffer(_struct(f"<{len(values)}f").pack(*values), "<f4")
        if type(first) is list and first and {type(first[0]), *map(type, values)} == {float, list}:
            pack = _struct(f"<{len(first)}f").pack
            data = b"".join([pack(*row) for row in values])
            return np.frombuffer(data, "<f4").reshape(len(values), len(first))
    except (TypeError, OverflowError, StructError):
        pass
    return None


def _rounded(numbers: Array) -> Array:
    """Return float32 numbers that bfloat16 holds, the nearest ones, half-way to even."""
    array = np.ascontiguousarray(numbers, dtype="<f4")
    bits = array.view("<u4").astype("<i8")
    # What float32 rounded to half-way lay on one of its sides.
    half = (bits & 0xFFFF) == 0x8000
    with np.errstate(invalid="ignore"):
        side = np.sign(np.abs(numbers) - np.abs(array.astype("<f8")))
    bits += np.where(half, side, 0).astype("<i8")
    bits += 0x7FFF + ((bits >> 16) & 1)
    rounded = (bits & 0xFFFF0000).astype("<u4").view("<f4")
    # The carry would make some NaNs infinite or zero; what is not finite stays as it is.
    return np.where(np.isfinite(array), rounded, array)


_SAFE: Final = (2.0**-99, 2.0**126)  # squared lengths that no type has a doubt about


def _bfloat16(array: Array) -> Array:
    return np.ascontiguousarray(array.view("<u2")[..., 1::2])


def _check(matrix: Array, metric: str, name: str) -> None:
    # A sum of squares that is finite and above zero proves a row good at half the price of
    # isfinite() and any(). The server sums float16 as float32, so half of the numbers must not
    # overflow here.
    precision = np.float64 if matrix.dtype.itemsize in (1, 8) else np.float32
    limits = np.finfo(precision)
    least = limits.tiny  # below it the squares of a vector's parts lose their digits
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        squares = np.einsum("ij,ij->i", matrix, matrix, dtype=precision)
        suspects = np.flatnonzero(~((squares > least) & (squares < limits.max / 2)))
    for row in suspects:
        where = f"row {row} of {name}" if len(matrix) > 1 else name
        if not np.isfinite(matrix[row]).all():
            raise ValueError(f"{where} is not finite; Redis would store it and search wrongly")
        if metric == "cosine" and squares[row] <= least:
            raise ValueError(f"{where} has a length of zero, or nearly: it has no direction")
        if metric != "l2" and not squares[row] < limits.max / 2:
            raise ValueError(f"{where} has a length of infinity for the server, so no distances")
