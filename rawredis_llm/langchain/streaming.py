"""Streams through the cache: LangChain itself looks up only what is invoked whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.caches import BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models._utils import _normalize_messages
from langchain_core.load import dumps
from langchain_core.messages import AIMessageChunk, BaseMessage, message_chunk_to_message
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase

__all__ = ["cached_stream"]


def cached_stream(
    model: Runnable[LanguageModelInput, Any], cache: BaseCache | None = None
) -> Runnable[LanguageModelInput, Any]:
    """Return a chat model whose `.stream()` and `.astream()` use the cache, too.

    `model` is a chat model, or one with bound arguments, as `bind_tools` gives. `cache` is by
    default the model's own, else that of `set_llm_cache`. An answer that was stored, by a stream or
    by `invoke`, comes as one chunk; one that is streamed is stored when it has ended, whole.
    """
    chosen = model if cache is None else _with_cache(model, cache)
    bound, kwargs = chosen, dict[str, Any]()
    while isinstance(bound, RunnableBindingBase):
        kwargs = {**bound.kwargs, **kwargs}
        bound = bound.bound
    if not isinstance(bound, BaseChatModel):
        raise TypeError(f"model must be a chat model, not {type(bound).__name__}")
    return _CachedStream(chosen, bound, kwargs)


def _with_cache(model: Any, cache: BaseCache) -> Any:
    """Return a copy of a model, bound or not, that has this cache, unless it is to have none."""
    if isinstance(model, RunnableBindingBase):
        return model.model_copy(update={"bound": _with_cache(model.bound, cache)})
    if isinstance(model, BaseChatModel) and model.cache is not False:
        return model.model_copy(update={"cache": cache})
    return model


class _CachedStream(Runnable[LanguageModelInput, Any]):
    def __init__(
        self, model: Runnable[LanguageModelInput, Any], bound: BaseChatModel, kwargs: dict[str, Any]
    ) -> None:
        self.model = model
        self._bound = bound
        self._kwargs = kwargs

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002 - as the base has it
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the whole answer, as the model itself does."""
        return self.model.invoke(input, config, **kwargs)

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002 - as the base has it
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the whole answer, as the model itself does."""
        return await self.model.ainvoke(input, config, **kwargs)

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002 - as the base has it
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Iterate over the stored answer, or over the model's, which is stored at its end."""
        cache = self._chosen()
        question = self._question(input, kwargs)
        found = None if cache is None else cache.lookup(*question)
        if found is not None:
            yield _chunk(found)
            return
        chunks: list[Any] = []
        for chunk in self.model.stream(input, config, **kwargs):
            chunks.append(chunk)
            yield chunk
        if cache is not None and chunks:
            cache.update(*question, _whole(chunks))

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002 - as the base has it
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """Do what `stream` does."""
        cache = self._chosen()
        question = self._question(input, kwargs)
        found = None if cache is None else await cache.alookup(*question)
        if found is not None:
            yield _chunk(found)
            return
        chunks: list[Any] = []
        async for chunk in self.model.astream(input, config, **kwargs):
            chunks.append(chunk)
            yield chunk
        if cache is not None and chunks:
            await cache.aupdate(*question, _whole(chunks))

    def _chosen(self) -> BaseCache | None:
        own = self._bound.cache
        if own is False:
            return None
        return own if isinstance(own, BaseCache) else get_llm_cache()

    def _question(self, asked: LanguageModelInput, kwargs: dict[str, Any]) -> tuple[str, str]:
        """Return what the model's own `invoke` asks the cache, so that both share their answers."""
        messages = self._bound._convert_input(asked).to_messages()  # noqa: SLF001 - as `invoke` does
        plain = [one.model_copy(update={"id": None}) for one in _normalize_messages(messages)]
        named = {"stop": None, **self._kwargs, **kwargs}
        for name in ("ls_structured_output_format", "structured_output_format"):
            named.pop(name, None)  # for tracing only
        return dumps(plain), self._bound._get_llm_string(**named)  # noqa: SLF001 - as above


def _chunk(found: Any) -> BaseMessage:
    """Return a stored answer as a stream's only chunk."""
    first = found[0]
    if not isinstance(first, ChatGeneration):
        return AIMessageChunk(content=first.text)
    data = first.message.model_dump(exclude={"type", "chunk_position", "tool_call_chunks"})
    return AIMessageChunk(**data, chunk_position="last")


def _whole(chunks: list[Any]) -> list[Generation]:
    """Return the answer that chunks make together."""
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return [ChatGeneration(message=message_chunk_to_message(whole))]
