"""LangChain's vector-store retriever memory, without langchain-classic, and with a clear()."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.documents import Document

from ..keys import digest, milliseconds, require_text
from ..search.fields import Tag
from ..search.filters import Filter
from .filters import as_filter
from .retriever import RedisVectorStoreRetriever
from .vectorstore import RedisVectorStore

__all__ = ["VectorStoreRetrieverMemory"]

_SCOPE = "memory_scope"  # of the metadata, and so of the index


class VectorStoreRetrieverMemory:
    """Keeps each turn of a conversation in a vector store, and finds those near to an input.

    `retriever` is that of a `RedisVectorStore`. `memory_key` is where what was found stands in the
    result, joined as text or, with `return_docs`, as documents. `input_key` names the input to look
    for (default: the only one), `exclude_input_keys` those that are not kept. Memories of one store
    with different `scope` do not see each other; `ttl` (seconds) is each turn's.
    """

    def __init__(
        self,
        retriever: RedisVectorStoreRetriever,
        *,
        memory_key: str = "history",
        input_key: str | None = None,
        return_docs: bool = False,
        exclude_input_keys: Sequence[str] = (),
        scope: str = "",
        ttl: float | None = None,
    ) -> None:
        store: Any = getattr(retriever, "vectorstore", None)
        if not isinstance(retriever, RedisVectorStoreRetriever) or not isinstance(
            store, RedisVectorStore
        ):
            raise TypeError("retriever must be that of a RedisVectorStore: store.as_retriever()")
        self.retriever = retriever
        self._store = store
        store.want(Tag(_SCOPE, case_sensitive=True))
        self.memory_key = require_text("memory_key", memory_key)
        self.input_key = input_key
        self.return_docs = return_docs
        self.exclude_input_keys = exclude_input_keys
        self._scope = digest("langchain.memory", require_text("scope", scope, empty=True))
        milliseconds("ttl", ttl)
        self._ttl = ttl

    @property
    def memory_variables(self) -> list[str]:
        """The names in the result of `load_memory_variables`."""
        return [self.memory_key]

    def load_memory_variables(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was said that is near to an input."""
        query = self._query(inputs)
        if self._store.link.run(self._store.knows([_SCOPE])) is None:
            return self._result([])
        return self._result(self.retriever.invoke(query, **self._options()))

    async def aload_memory_variables(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was said that is near to an input."""
        query = self._query(inputs)
        if await self._store.link.arun(self._store.knows([_SCOPE])) is None:
            return self._result([])
        return self._result(await self.retriever.ainvoke(query, **self._options()))

    def save_context(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Keep a turn."""
        self._store.add_texts(**self._turn(inputs, outputs))

    async def asave_context(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Keep a turn."""
        await self._store.aadd_texts(**self._turn(inputs, outputs))

    def clear(self) -> None:
        """Forget every turn of this scope, and nothing else of the store."""
        self._store.link.run(self._store.forget(self._mine))

    async def aclear(self) -> None:
        """Forget every turn of this scope, and nothing else of the store."""
        await self._store.link.arun(self._store.forget(self._mine))

    @property
    def _mine(self) -> Filter:
        return Tag(_SCOPE) == self._scope

    def _options(self) -> dict[str, Any]:
        given = as_filter(self.retriever.search_kwargs.get("filter"))
        return {"filter": self._mine if given is None else self._mine & given}

    def _query(self, inputs: Mapping[str, Any]) -> str:
        names = [name for name in inputs if name not in (self.memory_key, "stop")]
        name = self.input_key
        if name is None:
            if len(names) != 1:
                raise ValueError(f"input_key: which of the inputs {names} is to be looked for?")
            name = names[0]
        return str(inputs[name])

    def _turn(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, Any]:
        excluded = {*self.exclude_input_keys, self.memory_key}
        said = [(name, value) for name, value in inputs.items() if name not in excluded]
        text = "\n".join(f"{name}: {value}" for name, value in [*said, *outputs.items()])
        return {"texts": [text], "metadatas": [{_SCOPE: [self._scope]}], "ttl": self._ttl}

    def _result(self, found: list[Document]) -> dict[str, Any]:
        for document in found:
            document.metadata.pop(_SCOPE, None)
        if self.return_docs:
            return {self.memory_key: found}
        return {self.memory_key: "\n".join(document.page_content for document in found)}
