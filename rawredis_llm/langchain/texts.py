"""What LangChain's vector store holds: texts with metadata, written, read and deleted.

A document is a hash `doc:<index>:<id>` with its text, its vector, all of its metadata as JSON, and
beside that what of the metadata can be filtered by. The index is created, of the size of the first
vector, when the first texts are added; names of metadata that come later are added to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from ..embedding import as_embedder
from ..errors import IndexExistsError, IndexMismatchError, IndexNotFoundError, ReplyError
from ..index.life import MANIFESTS, manifest
from ..index.writing import made_ids
from ..keys import from_json, key_segment, milliseconds, require_text, to_json
from ..protocol import commands
from ..protocol.operation import Op, Plan
from ..search import query as search
from ..search.fields import Field, Text
from ..search.filters import Filter, whole_number
from ..search.schema import Vector
from ..vector_index import Row, VectorIndex, opening
from .fields import indexable, inferred, plain_options, read_schema, written_schema
from .link import Link, Linked, first

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["RedisConfig", "StoredTexts"]

METADATA = "_metadata_json"
_RIVALS = 5  # processes that may change the same index at the same moment
_CONTENTS = ("content", "text")  # names of the text's field, here and in stores of others


class RedisConfig(dict[str, Any]):
    """The parameters of a `RedisVectorStore`, given at once as its `config`."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__(parameters)


class static_too:  # noqa: N801 - it is used as a decorator
    """A method that may be called on the class as well; then `self` is the class."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return partial(self._function, owner if instance is None else instance)


class StoredTexts(Linked, VectorStore):
    """A vector store without its searches; see `RedisVectorStore`."""

    def __init__(  # noqa: PLR0917 - the older class's order
        self,
        embeddings: Any = None,
        index_name: Any = None,
        embedding: Embeddings | None = None,
        index_schema: Any = None,
        vector_schema: Mapping[str, Any] | None = None,
        relevance_score_fn: Callable[[float], float] | None = None,
        key_prefix: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        redis_url: str | None = None,
        client: Any = None,
        redis_client: Any = None,
        metadata_schema: Any = None,
        indexing_algorithm: str | None = None,
        distance_metric: str | None = None,
        vector_datatype: str | None = None,
        ttl: float | None = None,
    ) -> None:
        if isinstance(index_name, Mapping):  # the second argument of (embeddings, config)
            config, index_name = index_name, None
        if config is not None:
            given = {name: value for name, value in locals().items() if value is not None}
            del given["self"], given["config"]
            if twice := given.keys() & config.keys():
                raise TypeError(f"{min(twice)} is given twice: by config, and beside it")
            StoredTexts.__init__(self, **{**given, **config})
            return
        if isinstance(embeddings, str):  # the older order
            embeddings, redis_url = None, first(embeddings, redis_url, of="redis_url")
        self._embeddings = first(embeddings, embedding, of="embeddings and embedding")
        if self._embeddings is None:
            raise TypeError("a RedisVectorStore needs embeddings")
        self._embedder = as_embedder(self._embeddings)
        self.link = Link(first(client, redis_client, of="client and redis_client"), redis_url)
        self.index_name: str = uuid4().hex if index_name is None else index_name
        if key_prefix is None:
            key_prefix = f"doc:{key_segment(require_text('index_name', self.index_name))}"
        self.key_prefix = key_prefix.removesuffix(":")
        self.relevance_score_fn = relevance_score_fn
        milliseconds("ttl", ttl)
        self._ttl = ttl
        schema = first(index_schema, metadata_schema or None, of="index_schema, metadata_schema")
        fields, vector = ({}, {}) if schema is None else read_schema(schema)
        named = {"algorithm": indexing_algorithm, "metric": distance_metric}
        named |= {"dtype": vector_datatype, **(vector_schema or {})}
        vector = {"name": "content_vector", **vector, **plain_options(named)}
        vector.pop("dim", None)  # the first vector tells
        self._vector = vector
        self._grows = schema is None
        self._fields: dict[str, Field] = {"content": Text("content"), **fields}
        self._wanted: dict[str, Field] = {}  # by who uses this store
        self._content = "content"
        self._index: VectorIndex[Plan] | None = None
        self._made(1)  # so that what is wrong with its fields or its name is said now

    @property
    def embeddings(self) -> Embeddings:
        """The embeddings."""
        found: Embeddings = self._embeddings
        return found

    # -- the index ---------------------------------------------------------------------------------

    def _made(self, dim: int) -> VectorIndex[Plan]:
        fields = [*self._fields.values(), Vector(dim=dim, **self._vector)]
        named = self._embedder.fingerprint or None
        prefix = f"{self.key_prefix}:"
        return VectorIndex(Plan(), self.index_name, fields, prefix=prefix, embedder=named)

    def _open(self) -> Op[VectorIndex[Plan] | None]:
        """Return the index as it is on the server; None if there is none."""
        if self._index is not None:
            return self._index
        try:
            index: VectorIndex[Plan] = yield from opening(Plan(), self.index_name)
        except IndexNotFoundError:
            return None
        named = self._embedder.fingerprint
        if index.embedder and named and index.embedder != named:
            raise IndexMismatchError(
                f"index {self.index_name!r} is for vectors by {index.embedder!r}, not {named!r}"
            )
        if index.prefix.removesuffix(":") != self.key_prefix:
            raise IndexMismatchError(
                f"index {self.index_name!r} has the prefix {index.prefix!r}, not"
                f" {self.key_prefix + ':'!r}: give it as key_prefix"
            )
        schema = index.schema
        fields = list(schema.fields.values())
        self._content = next((name for name in _CONTENTS if name in schema.fields), self._content)
        # Keys are joined by ":", whether or not the prefix says so.
        self._index = VectorIndex(
            *(Plan(), self.index_name, fields),
            **schema.options(),
            prefix=f"{self.key_prefix}:",
            embedder=index.embedder or named or None,
        )
        return self._index

    def want(self, field: Field) -> None:
        """See that the index has a field, when something is added."""
        self._wanted[field.name] = field

    def knows(self, names: Collection[str]) -> Op[VectorIndex[Plan] | None]:
        """Return the index if it has fields of these names, else None, in an op."""
        index = yield from self._open()
        if index is not None and not set(names) <= index.schema.fields.keys():
            self._index = None  # somebody may have added them
            index = yield from self._open()
        return index if index is not None and set(names) <= index.schema.fields.keys() else None

    def _ready(
        self,
        dim: int,
        metadatas: Sequence[Mapping[str, Any]],
        check: Callable[[VectorIndex[Plan]], object],
    ) -> Op[VectorIndex[Plan]]:
        """Return the index, created if need be, with fields for what metadata holds.

        Before anything is created `check(index)` may raise.
        """
        rivals = _RIVALS
        while True:
            index = yield from self._open()
            known = self._fields if index is None else index.schema.fields
            new = {name: one for name, one in self._wanted.items() if name not in known}
            if self._grows:
                new |= inferred(metadatas, {**known, **new}, (self._vector["name"], METADATA))
            try:
                if index is None:
                    self._fields |= new
                    index = self._made(dim)
                    check(index)
                    yield from index.create()
                    self._index = index
                elif new:
                    check(index)
                    yield from index.alter(list(new.values()))
            except ReplyError:
                # Another process was faster, or has dropped it; what it did is seen anew.
                self._index = None
                rivals -= 1
                if not rivals:
                    raise
            else:
                return index

    # -- writing -----------------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **options: Any,
    ) -> list[str]:
        """Add texts; return their ids, which are made where none are given.

        A text replaces whole what was under its id. `options`: `keys` (ids by their older name; a
        key of this store stands for its id), `embeddings` (ready vectors, shape (n, dim)), `ttl`
        (seconds; default: the store's), `batch_size` (texts in one write, default 500). Raises
        ValueError or TypeError, before anything is sent, for metadata that JSON does not have.
        """
        return self.link.run(self._add(texts, metadatas, ids, **options))

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **options: Any,
    ) -> list[str]:
        """Do what `add_texts` does."""
        return await self.link.arun(self._add(texts, metadatas, ids, **options))

    def _add(
        self,
        texts: Iterable[str],
        metadatas: Sequence[Mapping[str, Any]] | None,
        ids: Sequence[str | None] | None,
        *,
        keys: Sequence[str] | None = None,
        embeddings: Any = None,
        ttl: float | None = None,
        batch_size: int = 500,
    ) -> Op[list[str]]:
        if isinstance(texts, str):
            raise TypeError("texts must be a list of texts, not one text")
        said = list(texts)
        beside: Sequence[Mapping[str, Any]] = [{}] * len(said) if metadatas is None else metadatas
        chosen = first(ids, keys, of="ids and keys")
        given = [None] * len(said) if chosen is None else list(chosen)
        for name, values in (("metadatas", beside), ("ids", given), ("embeddings", embeddings)):
            if values is not None and len(values) != len(said):
                raise ValueError(f"{name}: {len(values)} for {len(said)} texts")
        lasts = self._ttl if ttl is None else ttl
        milliseconds("ttl", lasts)
        whole_number("batch_size", batch_size)
        if not all(isinstance(one, str) for one in said):
            raise TypeError("texts must be texts")
        if not all(isinstance(name, str) for one in beside for name in one):
            raise TypeError("metadatas: names must be texts")
        metadata = [to_json("metadatas", dict(one)) for one in beside]
        if not said:
            return []
        made = iter(made_ids(given.count(None)))
        names = [next(made) if one is None else self._id(one) for one in given]
        vectors = embeddings
        if vectors is None:
            vectors = yield from self._embedder.documents(said)
        # What stands twice under one id: the last of them stays.
        order = list({name: at for at, name in enumerate(names)}.values())
        kept: Any = names
        if len(order) < len(names):
            columns: Any = (names, said, vectors, beside, metadata)
            kept, said, vectors, beside, metadata = ([c[at] for at in order] for c in columns)
        check: Any = partial(VectorIndex.check_load, ids=kept, vectors=vectors)
        index = yield from self._ready(len(vectors[0]), beside, check)
        fields = {self._content: said, METADATA: metadata, **self._columns(index, beside)}
        # Somebody may have dropped the index: what is not indexed is not found.
        with suppress(IndexExistsError):
            yield from search.create_index(index.name, index.prefixes, index.schema)
            if index.embedder:
                yield from commands.set_value(MANIFESTS + index.name, manifest(index.embedder))
        yield from index.load(kept, vectors, fields, ttl=lasts, batch_size=batch_size)
        return names

    def _columns(
        self, index: VectorIndex[Plan], metadatas: Sequence[Mapping[str, Any]]
    ) -> dict[str, list[Any]]:
        """Return what of the metadata can be filtered by, by field."""
        columns: dict[str, list[Any]] = {}
        for name, field in index.schema.fields.items():
            if name not in (index.schema.vector.name, self._content):
                column = [indexable(field, one.get(name)) for one in metadatas]
                if any(value is not None for value in column):
                    columns[name] = column
        return columns

    def _id(self, given: str) -> str:
        """Return a document's id, also where its whole key was given."""
        if not isinstance(given, str):
            raise TypeError(f"an id must be a str, not {type(given).__name__}")
        return given.removeprefix(f"{self.key_prefix}:")

    @classmethod
    def from_texts_return_keys(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        index_name: str | None = None,
        **options: Any,
    ) -> tuple[Self, list[str]]:
        """Return a store with these texts in it, and their keys. `options`: see `from_texts`."""
        store, adding = cls._opened(embedding, index_name, options)
        ids = store.add_texts(texts, metadatas, **adding)
        return store, [f"{store.key_prefix}:{one}" for one in ids]

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> Self:
        """Return a store with these texts in it; `options` are the store's and `add_texts`'s."""
        store, adding = cls._opened(embedding, None, options)
        store.add_texts(texts, metadatas, ids=ids, **adding)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> Self:
        """Do what `from_texts` does."""
        store, adding = cls._opened(embedding, None, options)
        await store.aadd_texts(texts, metadatas, ids=ids, **adding)
        return store

    @classmethod
    def _opened(
        cls, embedding: Embeddings, index_name: str | None, options: dict[str, Any]
    ) -> tuple[Self, dict[str, Any]]:
        """Return a store, and what of the options is for adding texts to it."""
        adding = ("ids", "keys", "embeddings", "batch_size")
        own = {name: value for name, value in options.items() if name not in adding}
        if index_name is not None:
            own["index_name"] = index_name
        return cls(embedding, **own), {name: options[name] for name in adding if name in options}

    @classmethod
    def from_existing_index(
        cls,
        embedding: Embeddings,
        index_name: str,
        schema: Any = None,
        key_prefix: str | None = None,
        **options: Any,
    ) -> Self:
        """Return the store of an index that there is. Raises ValueError if there is none.

        Its fields are those that the server tells of; `schema` is accepted, and not needed.
        """
        if schema is not None:
            read_schema(schema)
        store = cls(embedding, index_name, key_prefix=key_prefix, **options)
        if key_prefix is None:
            store.key_prefix = store.link.run(_prefix_of(index_name)).removesuffix(":")
        if store.link.run(store._open()) is None:
            raise ValueError(f"there is no index {index_name!r}")
        return store

    # -- reading and deleting ----------------------------------------------------------------------

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents that there are of these ids, in order."""
        return self.link.run(self._get(ids))

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Do what `get_by_ids` does."""
        return await self.link.arun(self._get(ids))

    def _get(self, ids: Sequence[str]) -> Op[list[Document]]:
        index = yield from self._open()
        if index is None:
            return []
        rows = yield from index.get([self._id(one) for one in ids])
        return [self._document(row) for row in rows if row is not None]

    def _document(self, row: Row, *, metadata: bool = True) -> Document:
        text = row.fields.get(self._content, "")
        kept = from_json(row.fields.get(METADATA)) if metadata else {}
        if not isinstance(kept, dict):
            kept = {name: v for name, v in row.fields.items() if name != self._content}
        return Document(str(text), id=row.id, metadata=kept)

    @static_too
    def delete(  # pyright: ignore[reportIncompatibleMethodOverride] - it can be called so, too
        self: Any, ids: Sequence[str] | None = None, **where: Any
    ) -> bool:
        """Delete documents by id, if they are there; return True.

        `RedisVectorStore.delete(keys, redis_url=...)`, on the class, deletes keys. Raises
        ValueError without ids: all go by `drop_index(delete_documents=True)`.
        """
        if isinstance(self, type):
            keys = _given(ids)
            link = Link(where.pop("client", None), where.pop("redis_url", None), **where)
            try:
                if keys:
                    link.run(commands.unlink(keys))
            finally:
                link.close()
            return True
        store: StoredTexts = self
        store.link.run(store._unlinked(_given(ids), **where))
        return True

    async def adelete(self, ids: Sequence[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents by id, if they are there; return True."""
        await self.link.arun(self._unlinked(_given(ids), **kwargs))
        return True

    def _unlinked(self, ids: Sequence[str]) -> Op[None]:
        keys = [f"{self.key_prefix}:{self._id(one)}" for one in ids]
        for start in range(0, len(keys), 1000):
            yield from commands.unlink(keys[start : start + 1000])

    def forget(self, condition: Filter) -> Op[int]:
        """Delete the documents that match a filter, in an op; its value is how many they were."""
        index = yield from self.knows([name for name, _ in condition.fields])
        try:
            return 0 if index is None else (yield from index.delete_where(condition))
        except IndexNotFoundError:
            self._index = None
            return 0

    @static_too
    def drop_index(
        self: Any,
        index_name: str | None = None,
        delete_documents: bool = False,  # noqa: FBT001, FBT002 - as LangChain has it
        **where: Any,
    ) -> bool:
        """Drop this store's index, its documents only if told so; return whether there was one.

        `RedisVectorStore.drop_index(index_name, delete_documents, redis_url=...)` drops any.
        """
        if isinstance(self, type):
            if not index_name:
                raise ValueError("index_name: which index is to be dropped?")
            link = Link(where.pop("client", None), where.pop("redis_url", None), **where)
            index: VectorIndex[Plan] = VectorIndex(Plan(), index_name, [Vector("v", 1)])
            try:
                link.run(index.drop(delete_documents))
            except IndexNotFoundError:
                return False
            finally:
                link.close()
            return True
        store: StoredTexts = self
        if index_name not in (None, store.index_name):
            raise ValueError(f"index_name: this is the store of {store.index_name!r}")
        try:
            store.link.run(store._made(1).drop(delete_documents))
        except IndexNotFoundError:
            return False
        finally:
            store._index = None
        return True

    @property
    def schema(self) -> dict[str, list[dict[str, Any]]]:
        """The fields by kind, as `index_schema` takes them."""
        if self._index is not None:
            return written_schema(self._index.schema.fields.values())
        schema = written_schema(self._fields.values())
        vector = Vector(dim=1, **self._vector)
        described = written_schema([vector])["vector"][0]
        del described["dims"]
        return {**schema, "vector": [described]}

    def write_schema(self, path: str | os.PathLike[str]) -> None:
        """Write the schema to a YAML file."""
        import yaml  # noqa: PLC0415 - langchain-core brings it, and few need it

        with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123 - any path
            yaml.safe_dump(self.schema, file, allow_unicode=True)


def _given(ids: Sequence[str] | None) -> list[str]:
    if ids is None or isinstance(ids, str):
        raise ValueError("ids must be a list; all go by drop_index(delete_documents=True)")
    return list(ids)


def _prefix_of(name: str) -> Op[str]:
    """Return the prefix of an index that there is. Raises ValueError."""
    try:
        info = yield from search.info(name)
    except IndexNotFoundError:
        raise ValueError(f"there is no index {name!r}") from None
    if len(info.prefixes) != 1:
        raise ValueError(f"index {name!r} has {len(info.prefixes)} prefixes, not one")
    return str(info.prefixes[0])
