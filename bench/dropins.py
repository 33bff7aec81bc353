"""The contenders of LangChain's classes, and what they are filled with and asked.

* `rawredis_llm`: the classes of `rawredis_llm.langchain`, which take and give LangChain's objects.
* `rawredis_llm, ChatHistory`: our own API for the same, without LangChain's objects.
* `langchain-redis`: its classes of the same names, their own defaults. Its history and its exact
  cache need the server's JSON module.

Embeddings compute nothing: they look vectors up that were made beforehand, lists of floats, as
LangChain's type for them says. Indexes are flat, of cosine distances.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration

from bench.caches import NO_JSON
from bench.race import Contender, Run
from bench.results import OURS, installed
from rawredis_llm import ChatHistory, Client
from rawredis_llm.langchain import (
    RedisCache,
    RedisChatMessageHistory,
    RedisSemanticCache,
    RedisVectorStore,
)

MODEL = "gpt-4o-mini, temperature 0"
LIMIT = 0.2  # cosine distance up to which a prompt counts as the same
TURNS: list[BaseMessage] = [
    (HumanMessage if number % 2 == 0 else AIMessage)(f"message {number}: " + "word " * 30)
    for number in range(100)
]
ANSWER = [
    ChatGeneration(
        message=AIMessage(
            "It is 330 metres high. " * 20,
            usage_metadata={"input_tokens": 20, "output_tokens": 100, "total_tokens": 120},
        )
    )
]


class Known(Embeddings):
    """Embeddings of texts that are known: each ends in its vector's number."""

    def __init__(self, vectors: Sequence[list[float]]) -> None:
        self._vectors = vectors

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        number = text.rpartition(" ")[2]
        return self._vectors[int(number) if number.isdecimal() else 0]


class Dropin(Contender):
    """LangChain's classes of one library; None is what it has not."""

    def read(self) -> Run | None:
        """Read a session of 100 messages."""
        return None

    def add(self) -> Run | None:
        """Add a message to a session."""
        return None

    def exact(self) -> Run | None:
        """Look a prompt up that was stored."""
        return None

    def semantic(self, stored: list[str], asked: list[str], known: Known) -> Run | None:
        """Look up prompts near to stored ones."""
        return None

    def load(self, texts: list[str], known: Known) -> Run | None:
        """Add texts whose vectors are ready."""
        return None

    def search(self, texts: list[str], asked: list[str], known: Known) -> Run | None:
        """Find the 4 texts nearest to each."""
        return None


class _Classes(Dropin):
    """The classes of one of the two, which are used alike."""

    json = True

    def __init__(self, url: str) -> None:
        self._url = url

    def history(self, session: str) -> Any:
        raise NotImplementedError

    def cache(self) -> Any:
        raise NotImplementedError

    def meaning(self, known: Known) -> Any:
        raise NotImplementedError

    def store(self, name: str, known: Known, dim: int) -> Any:
        raise NotImplementedError

    def read(self) -> Run | None:
        if not self.json:
            return None
        history = self.history("read")
        history.add_messages(TURNS)
        return lambda: [message.content for message in history.messages]

    def add(self) -> Run | None:
        if not self.json:
            return None
        history = self.history("add")
        message = TURNS[0]
        return lambda: history.add_message(message)

    def exact(self) -> Run | None:
        if not self.json:
            return None
        cache = self.cache()
        cache.update("How high is it?", MODEL, ANSWER)
        return lambda: cache.lookup("How high is it?", MODEL)[0].message.content

    def semantic(self, stored: list[str], asked: list[str], known: Known) -> Run:
        cache = self.meaning(known)
        for prompt in stored:
            cache.update(prompt, MODEL, ANSWER)
        return lambda: [cache.lookup(prompt, MODEL)[0].message.content for prompt in asked]

    def load(self, texts: list[str], known: Known) -> Run:
        ids = [f"{number}" for number in range(len(texts))]
        metadatas = [{"page": number} for number in range(len(texts))]
        store = self.store(f"bench-load-{self.name}", known, known_dim(known))
        return lambda: len(store.add_texts(texts, metadatas, ids=ids))

    def search(self, texts: list[str], asked: list[str], known: Known) -> Run:
        store = self.store(f"bench-search-{self.name}", known, known_dim(known))
        store.add_texts(texts)
        return lambda: [
            [found.page_content for found in store.similarity_search(text, k=4)] for text in asked
        ]

    def close(self) -> None:
        pass  # what was opened goes with its objects


def known_dim(known: Known) -> int:
    """Return the size of the vectors."""
    return len(known.embed_query(""))


class _Ours(_Classes):
    name = OURS

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._client = Client(url)

    def history(self, session: str) -> Any:
        return RedisChatMessageHistory(session, client=self._client, key_prefix="bench-ours")

    def cache(self) -> Any:
        return RedisCache(client=self._client, prefix="bench-ours")

    def meaning(self, known: Known) -> Any:
        options: Any = {"client": self._client, "name": "bench-ours"}
        return RedisSemanticCache(known, distance_threshold=LIMIT, **options)

    def store(self, name: str, known: Known, dim: int) -> Any:
        return RedisVectorStore(known, name, client=self._client)

    def close(self) -> None:
        self._client.close()


class _ChatHistory(Dropin):
    name = f"{OURS}, ChatHistory"

    def __init__(self, url: str) -> None:
        self._client = Client(url)

    def read(self) -> Run:
        history = ChatHistory(self._client, "read", namespace="bench-own")
        history.add_many({"role": "user", "content": turn.content} for turn in TURNS)
        return lambda: [message.content for message in history.messages()]

    def add(self) -> Run:
        history = ChatHistory(self._client, "add", namespace="bench-own")
        content = TURNS[0].content
        return lambda: history.add("user", content)

    def close(self) -> None:
        self._client.close()


class _LangChain(_Classes):
    name = "langchain-redis"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._module = importlib.import_module("langchain_redis")
        with Client(url) as client:
            self.json = client.call("COMMAND", "INFO", "JSON.GET") != [None]
        self.notes = () if self.json else (NO_JSON,)

    def history(self, session: str) -> Any:
        make: Callable[..., Any] = self._module.RedisChatMessageHistory
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it is deprecated
            place = {"key_prefix": f"bench-{session}:", "index_name": f"bench-{session}"}
            return make(session, redis_url=self._url, **place)

    def cache(self) -> Any:
        return self._module.RedisCache(redis_url=self._url, prefix="bench-langchain")

    def meaning(self, known: Known) -> Any:
        make: Callable[..., Any] = self._module.RedisSemanticCache
        return make(known, self._url, distance_threshold=LIMIT, name="bench-langchain-semantic")

    def store(self, name: str, known: Known, dim: int) -> Any:
        fields = [{"name": "page", "type": "numeric"}]
        config = self._module.RedisConfig(
            index_name=name,
            redis_url=self._url,
            metadata_schema=fields,
            embedding_dimensions=dim,
        )
        return self._module.RedisVectorStore(known, config)


def dropins(url: str) -> list[Dropin]:
    """Return the contenders that are there."""
    rivals = [_LangChain(url)] if installed("langchain_redis") is not None else []
    return [_Ours(url), _ChatHistory(url), *rivals]
