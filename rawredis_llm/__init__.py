"""What an LLM application keeps in Redis, over Redis' own protocol.

The public names, loaded when first used: `Client` pulls in neither numpy nor asyncio nor ssl.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors as errors
    from .aio.client import AsyncClient as AsyncClient
    from .cache import CacheHit as CacheHit
    from .cache import LLMCache as LLMCache
    from .embedding import HashingEmbedder as HashingEmbedder
    from .errors import RedisError as RedisError
    from .history import ChatHistory as ChatHistory
    from .history import Message as Message
    from .memory import VectorMemory as VectorMemory
    from .protocol.operation import Batch as Batch
    from .protocol.operation import Command as Command
    from .protocol.operation import Plan as Plan
    from .retriever import Document as Document
    from .retriever import Retriever as Retriever
    from .search.filters import Filter as Filter
    from .search.schema import Numeric as Numeric
    from .search.schema import Tag as Tag
    from .search.schema import Text as Text
    from .search.schema import Vector as Vector
    from .semantic_cache import SemanticCache as SemanticCache
    from .server import EmbeddedServer as EmbeddedServer
    from .sync.client import Client as Client
    from .vector_index import Row as Row
    from .vector_index import SearchResult as SearchResult
    from .vector_index import VectorIndex as VectorIndex

_HOMES = {
    "AsyncClient": "aio.client",
    "Batch": "protocol.operation",
    "CacheHit": "cache",
    "ChatHistory": "history",
    "Client": "sync.client",
    "Command": "protocol.operation",
    "Document": "retriever",
    "EmbeddedServer": "server",
    "Filter": "search.filters",
    "HashingEmbedder": "embedding",
    "LLMCache": "cache",
    "Message": "history",
    "Numeric": "search.schema",
    "Plan": "protocol.operation",
    "RedisError": "errors",
    "Retriever": "retriever",
    "Row": "vector_index",
    "SearchResult": "vector_index",
    "SemanticCache": "semantic_cache",
    "Tag": "search.schema",
    "Text": "search.schema",
    "Vector": "search.schema",
    "VectorIndex": "vector_index",
    "VectorMemory": "memory",
}

__version__ = "0.1.0"
__all__ = [*_HOMES, "errors"]  # noqa: PLE0604 - all are literal keys, a test holds them to be there


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        if name == "errors":
            return import_module(".errors", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
