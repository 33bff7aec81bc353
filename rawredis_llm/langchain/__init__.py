"""Drop-in classes for LangChain; they need langchain-core: `pip install 'rawredis-llm[langchain]'`.

Existing code switches to them by changing an import. Each asynchronous twin runs on an
`AsyncClient` of the same settings, not in a thread. Names are loaded when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .caches import RedisCache as RedisCache
    from .filters import RedisFilter as RedisFilter
    from .filters import RedisNum as RedisNum
    from .filters import RedisTag as RedisTag
    from .filters import RedisText as RedisText
    from .history import RedisChatMessageHistory as RedisChatMessageHistory
    from .memory import VectorStoreRetrieverMemory as VectorStoreRetrieverMemory
    from .retriever import RedisVectorStoreRetriever as RedisVectorStoreRetriever
    from .semantic import RedisSemanticCache as RedisSemanticCache
    from .store import RedisStore as RedisStore
    from .streaming import cached_stream as cached_stream
    from .vectorstore import Redis as Redis
    from .vectorstore import RedisConfig as RedisConfig
    from .vectorstore import RedisVectorStore as RedisVectorStore

_NAMES = {
    "caches": ("RedisCache",),
    "filters": ("RedisFilter", "RedisNum", "RedisTag", "RedisText"),
    "history": ("RedisChatMessageHistory",),
    "memory": ("VectorStoreRetrieverMemory",),
    "retriever": ("RedisVectorStoreRetriever",),
    "semantic": ("RedisSemanticCache",),
    "store": ("RedisStore",),
    "streaming": ("cached_stream",),
    "vectorstore": ("Redis", "RedisConfig", "RedisVectorStore"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

if not TYPE_CHECKING:  # type checkers take the names from the imports
    __all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
