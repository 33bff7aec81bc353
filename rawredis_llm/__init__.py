"""What an LLM application keeps in Redis, over Redis' own protocol.

The public names, loaded when first used: `Client` pulls in neither numpy nor asyncio nor ssl.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # type checkers know better; to import typing takes longer than all of this

if TYPE_CHECKING:
    from typing import Any

    from . import errors as errors
    from .aio.client import AsyncClient as AsyncClient
    from .aio.cluster import AsyncClusterClient as AsyncClusterClient
    from .aio.sentinel import AsyncSentinelClient as AsyncSentinelClient
    from .cache import CacheHit as CacheHit
    from .cache import CacheStats as CacheStats
    from .cache import LLMCache as LLMCache
    from .caching.calibration import Calibration as Calibration
    from .caching.calibration import calibration as calibration
    from .caching.guards import extractor as extractor
    from .caching.identity import fingerprint as fingerprint
    from .embedding import HashingEmbedder as HashingEmbedder
    from .embedding_cache import EmbeddingCache as EmbeddingCache
    from .errors import RedisError as RedisError
    from .history import ChatHistory as ChatHistory
    from .history import Message as Message
    from .latency.profiler import Profile as Profile
    from .latency.profiler import profile as profile
    from .latency.recorder import Recorder as Recorder
    from .latency.report import Report as Report
    from .memory import VectorMemory as VectorMemory
    from .protocol.operation import Batch as Batch
    from .protocol.operation import Command as Command
    from .protocol.operation import Plan as Plan
    from .protocol.pubsub import ChannelMessage as ChannelMessage
    from .protocol.retry import Retry as Retry
    from .protocol.script import Script as Script
    from .protocol.tracking import NearCache as NearCache
    from .retriever import Document as Document
    from .retriever import Retriever as Retriever
    from .router import Route as Route
    from .router import Routing as Routing
    from .router import SemanticRouter as SemanticRouter
    from .search.fields import Geo as Geo
    from .search.fields import GeoShape as GeoShape
    from .search.fields import Numeric as Numeric
    from .search.fields import Tag as Tag
    from .search.fields import Text as Text
    from .search.filters import Filter as Filter
    from .search.filters import Raw as Raw
    from .search.schema import Schema as Schema
    from .search.schema import Vector as Vector
    from .semantic_cache import Lookup as Lookup
    from .semantic_cache import SemanticCache as SemanticCache
    from .semantic_history import Recalled as Recalled
    from .semantic_history import SemanticHistory as SemanticHistory
    from .server import EmbeddedServer as EmbeddedServer
    from .sessions import ChatSessions as ChatSessions
    from .sessions import Session as Session
    from .sync.client import Client as Client
    from .sync.cluster import ClusterClient as ClusterClient
    from .sync.sentinel import SentinelClient as SentinelClient
    from .tiered_cache import TieredCache as TieredCache
    from .vector_index import Row as Row
    from .vector_index import SearchResult as SearchResult
    from .vector_index import VectorIndex as VectorIndex

_NAMES = {
    "aio.client": ("AsyncClient",),
    "aio.cluster": ("AsyncClusterClient",),
    "aio.sentinel": ("AsyncSentinelClient",),
    "cache": ("CacheHit", "CacheStats", "LLMCache"),
    "caching.calibration": ("Calibration", "calibration"),
    "caching.guards": ("extractor",),
    "caching.identity": ("fingerprint",),
    "embedding": ("HashingEmbedder",),
    "embedding_cache": ("EmbeddingCache",),
    "errors": ("RedisError",),
    "history": ("ChatHistory", "Message"),
    "latency.profiler": ("Profile", "profile"),
    "latency.recorder": ("Recorder",),
    "latency.report": ("Report",),
    "memory": ("VectorMemory",),
    "protocol.operation": ("Batch", "Command", "Plan"),
    "protocol.pubsub": ("ChannelMessage",),
    "protocol.retry": ("Retry",),
    "protocol.script": ("Script",),
    "protocol.tracking": ("NearCache",),
    "retriever": ("Document", "Retriever"),
    "router": ("Route", "Routing", "SemanticRouter"),
    "search.fields": ("Geo", "GeoShape", "Numeric", "Tag", "Text"),
    "search.filters": ("Filter", "Raw"),
    "search.schema": ("Schema", "Vector"),
    "semantic_cache": ("Lookup", "SemanticCache"),
    "semantic_history": ("Recalled", "SemanticHistory"),
    "server": ("EmbeddedServer",),
    "sessions": ("ChatSessions", "Session"),
    "sync.client": ("Client",),
    "sync.cluster": ("ClusterClient",),
    "sync.sentinel": ("SentinelClient",),
    "tiered_cache": ("TieredCache",),
    "vector_index": ("Row", "SearchResult", "VectorIndex"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__version__ = "0.1.0"
if not TYPE_CHECKING:  # type checkers take the names from the imports
    __all__ = [*_HOMES, "errors"]  # noqa: PLE0604 - names


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module(".errors", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "errors"})
