"""Documents to files and back: JSON Lines, and beside them the vectors as one `.npy` array.

`docs.jsonl` has one object for each document: `id`, `fields` (bytes that are not UTF-8 as
`{"base64": ...}`), `vector`, the row of `docs.npy` that is its vector, or null, and `ttl`, the
milliseconds that it had left, or null. Both files are written beside their names and renamed at the
end, so what has a file's name is whole.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Generator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..keys import to_json
from ..protocol.operation import Batch, C_co, Call, Op, operation
from ..search.filters import Filter, whole_number
from .documents import Progress, Writing
from .migration import Migration
from .rows import Row, plain_dtype


class Transfer(Migration[C_co]):
    """What brings documents into files, and files into an index."""

    @operation
    def export(
        self,
        path: str | os.PathLike[str],
        *,
        filter: Filter | None = None,  # noqa: A002 - the API's own name
        progress: Progress | None = None,
    ) -> Op[int]:
        """Write all documents, or those that match a filter, to `path` (.jsonl); return how many.

        Their vectors go to the same name with .npy, an array of shape (n, dim) in the index's type
        (bfloat16: float32). What is there of these names is replaced when all is written.
        """
        total = yield from self._planned().count(filter)
        files = yield from Call(_Files, path, self.schema.vector.dim, self.schema.vector.dtype)
        page = self._pages(filter)
        try:
            cursor = b"0"
            while True:
                cursor, rows = yield from page(cursor)
                keys = [self.prefix + row.id for row in rows]
                left = yield from Batch([("PTTL", key) for key in keys])
                yield from Call(files.write, rows, left)
                if progress is not None:
                    progress(files.written, total)
                if cursor == b"0":
                    break
            yield from Call(files.finish)
        except BaseException:
            files.discard()
            raise
        written: int = files.written
        return written

    @operation
    def import_(
        self,
        path: str | os.PathLike[str],
        *,
        batch_size: int = 500,
        progress: Progress | None = None,
    ) -> Op[int]:
        """Write the documents of files that `export` wrote; return how many. See `load`.

        Each replaces whole what was under its id, and lives as long as it had left. Raises
        ValueError, naming the line, for a file that is no such, and for a document that had no
        vector; the batches before are written by then.
        """
        whole_number("batch_size", batch_size)
        vectors: Any = yield from Call(_opened, path)
        lines = _documents(Path(path), vectors, self)
        writing = Writing()
        try:
            while True:
                found: list[Any] = yield from Call(lambda: list(islice(lines, batch_size)))
                if not found:
                    return writing.result([], raise_errors=True)
                # The last one, where a document came twice: it was written meanwhile.
                last = {one[0]: one for one in found}.values()
                ids, rows, fields, px = (list(column) for column in zip(*last, strict=True))
                part = self._encoder.checked(ids, np.asarray(rows), fields, px, raw=True)
                yield from self._write(writing, part)
                if progress is not None:
                    progress(writing.done, len(vectors))
        finally:
            lines.close()


class _Files:
    """The two files of an export, under other names until they are whole."""

    def __init__(self, path: str | os.PathLike[str], dim: int, dtype: str) -> None:
        target = Path(path)
        if target.suffix != ".jsonl":
            raise ValueError(f"path: documents go to a .jsonl file, not {target.name!r}")
        self._targets = [target, target.with_suffix(".npy")]
        self._parts = [one.with_name(f"{one.name}.{os.getpid()}.part") for one in self._targets]
        self._lines: IO[bytes] = self._parts[0].open("wb")
        self._vectors: IO[bytes] = self._parts[1].open("wb")
        self._dim, self._dtype = dim, np.dtype(plain_dtype(dtype))
        self.written = self._rows = 0
        self._header()

    def _header(self) -> None:
        shape = (self._rows, self._dim)
        described = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        # numpy leaves room in its header for a longer shape, so it can be written again in place.
        write_header: Any = np.lib.format.write_array_header_1_0  # not every numpy types it
        write_header(self._vectors, described)

    def write(self, rows: Sequence[Row], left: Sequence[int]) -> None:
        """Write documents with the milliseconds that they have left."""
        for row, ttl in zip(rows, left, strict=True):
            if ttl == _GONE:
                continue
            fields = {name: _written(value) for name, value in row.fields.items()}
            line = {"id": row.id, "fields": fields, "vector": None, "ttl": ttl if ttl > 0 else None}
            if row.vector is not None:
                line["vector"] = self._rows
                self._vectors.write(np.ascontiguousarray(row.vector, self._dtype).tobytes())
                self._rows += 1
            self._lines.write(to_json("fields", line).encode() + b"\n")
            self.written += 1

    def finish(self) -> None:
        """Give the files their names."""
        self._vectors.seek(0)
        self._header()
        for file, part, target in zip(
            (self._lines, self._vectors), self._parts, self._targets, strict=True
        ):
            file.close()
            part.replace(target)

    def discard(self) -> None:
        """Leave nothing behind."""
        for file, part in zip((self._lines, self._vectors), self._parts, strict=True):
            file.close()
            part.unlink(missing_ok=True)


def _opened(path: str | os.PathLike[str]) -> Any:
    """Return the vectors beside a file of documents, which stay on the disk."""
    beside = Path(path).with_suffix(".npy")
    return np.load(beside, mmap_mode="r", allow_pickle=False)


def _documents(path: Path, vectors: Any, index: Transfer[Any]) -> Generator[tuple[Any, ...]]:
    """Yield id, vector, fields and milliseconds to live of each document."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield _document(json.loads(line), vectors, index)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{path.name}, line {number}: {error!r}") from None


def _document(line: dict[str, Any], vectors: Any, index: Transfer[Any]) -> tuple[Any, ...]:
    """Return what a line holds; raise for what no export wrote."""
    name, row, ttl, fields = line["id"], line["vector"], line["ttl"], line["fields"]
    index._encoder.ids([name if isinstance(name, str) else ""])
    if type(row) is not int or not 0 <= row < len(vectors):
        raise ValueError("a document without a vector")
    if ttl is not None and (type(ttl) is not int or ttl <= 0):
        raise ValueError(f"ttl is {ttl!r}")
    if index.schema.vector.name in fields:
        raise ValueError("a vector among the fields")
    if not index.schema.json:
        fields = {key: _read(value) for key, value in fields.items()}
    return name, vectors[row], dict(fields), ttl


_GONE = -2  # what PTTL says of a key that is not there


def _written(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read(value: Any) -> Any:
    """Return a hash's value: text, a number, bytes, or a place."""
    if isinstance(value, dict) and value.keys() == {"base64"}:
        return base64.b64decode(value["base64"], validate=True)
    place = isinstance(value, list) and len(value) == 2 and set(map(type, value)) <= {int, float}
    if type(value) not in (str, int, float) and not place:
        raise TypeError(f"a field holds {value!r}")
    return value
