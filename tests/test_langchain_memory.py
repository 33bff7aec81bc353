"""Memory of a conversation in LangChain's vector store: ours, and LangChain's own over it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore

from rawredis_llm import Client
from rawredis_llm.langchain import RedisNum, RedisVectorStore, VectorStoreRetrieverMemory
from stores import AsyncPoints, Points, Stores, eventually, ids_of, texts_of


def remembering(store: RedisVectorStore, **options: Any) -> VectorStoreRetrieverMemory:
    """Return a memory that gives all that it has."""
    return VectorStoreRetrieverMemory(store.as_retriever(k=50), **options)


def lines(memory: Any) -> list[str]:
    """Return what a memory remembers, in the order of the alphabet."""
    said: str = memory.load_memory_variables({"input": "anything"})["history"]
    return sorted(said.splitlines())


def test_a_turn_is_found_by_what_was_said(stores: Stores) -> None:
    memory = VectorStoreRetrieverMemory(stores().as_retriever(k=1))
    assert memory.memory_variables == ["history"]
    memory.save_context({"input": "My dog is Rex"}, {"output": "Nice"})
    memory.save_context({"input": "I like tea"}, {"output": "Me too"})
    asked = "input: I like tea\noutput: Me too"
    assert memory.load_memory_variables({"input": asked}) == {"history": asked}
    dog = "input: My dog is Rex\noutput: Nice"
    assert memory.load_memory_variables({"prompt": dog}) == {"history": dog}


async def test_a_turn_is_found_in_asyncio_without_a_sync_call(stores: Stores) -> None:
    memory = remembering(stores(embeddings=AsyncPoints()))
    assert await memory.aload_memory_variables({"input": "x"}) == {"history": ""}
    await memory.asave_context({"input": "hi"}, {"output": "ho"})
    found = await memory.aload_memory_variables({"input": "x"})
    assert found == {"history": "input: hi\noutput: ho"}
    await memory.aclear()
    assert await memory.aload_memory_variables({"input": "x"}) == {"history": ""}


def test_nothing_is_remembered_before_anything_was_said(stores: Stores, client: Client) -> None:
    memory = remembering(stores())
    assert memory.load_memory_variables({"input": "x"}) == {"history": ""}
    assert remembering(stores(), return_docs=True, memory_key="past").load_memory_variables(
        {"input": "x"}
    ) == {"past": []}
    memory.clear()
    assert client.call("DBSIZE") == 0


async def test_nothing_is_remembered_of_a_store_that_holds_other_documents(
    stores: Stores,
) -> None:
    store = stores()
    store.add_texts(["a document"])
    memory = remembering(store)
    assert memory.load_memory_variables({"input": "a document"}) == {"history": ""}
    assert await memory.aload_memory_variables({"input": "a document"}) == {"history": ""}


def test_what_a_memory_says_can_be_chosen(stores: Stores) -> None:
    memory = remembering(
        stores(),
        memory_key="past",
        input_key="question",
        return_docs=True,
        exclude_input_keys=["secret", "chat_history"],
    )
    assert memory.memory_variables == ["past"]
    memory.save_context(
        {"question": "why", "secret": "hidden", "past": "before", "other": "kept"},
        {"answer": "so", "note": 5},
    )
    found = memory.load_memory_variables({"question": "x", "other": "y", "secret": "z"})
    (document,) = found["past"]
    assert isinstance(document, Document)
    assert document.page_content == "question: why\nother: kept\nanswer: so\nnote: 5"
    assert document.id
    assert document.metadata == {}


def test_the_only_input_is_what_is_looked_for(stores: Stores) -> None:
    memory = remembering(stores())
    memory.save_context({"a": "b"}, {"c": "d"})
    for inputs in ({"question": "x"}, {"question": "x", "stop": ["y"], "history": "z"}):
        assert memory.load_memory_variables(inputs) == {"history": "a: b\nc: d"}
    for wrong in ({}, {"one": "x", "two": "y"}, {"history": "x"}):
        with pytest.raises(ValueError, match="input_key"):
            memory.load_memory_variables(wrong)
    with pytest.raises(KeyError, match="question"):
        remembering(stores(), input_key="question").load_memory_variables({"input": "x"})


def test_memories_of_different_scopes_do_not_see_each_other(stores: Stores) -> None:
    store = stores()
    scopes = ["", "ann", "an", "ann:", "Ann", "a b", "a,b", "*", "日本", "a} | @memory_scope:{b"]
    memories = {scope: remembering(store, scope=scope) for scope in scopes}
    for scope, memory in memories.items():
        memory.save_context({"input": "same"}, {"output": f"for {scope}"})
    for scope, memory in memories.items():
        assert lines(memory) == sorted(["input: same", f"output: for {scope}"])
    assert lines(remembering(store, scope="nobody")) == []
    assert lines(remembering(stores(), scope="ann")) == ["input: same", "output: for ann"]


async def test_clear_forgets_one_scope_and_nothing_else(stores: Stores) -> None:
    store = stores()
    ann, bob = remembering(store, scope="ann"), remembering(store, scope="bob")
    for memory in (ann, bob):
        memory.save_context({"input": "a"}, {"output": "b"})
        memory.save_context({"input": "c"}, {"output": "d"})
    store.add_texts(["a document"], [{"n": 1}], ids=["1"])
    ann.clear()
    assert lines(ann) == []
    assert len(lines(bob)) == 4
    assert len(store.similarity_search("x", k=50)) == 3
    await bob.aclear()
    assert lines(bob) == []
    assert ids_of(store.similarity_search("x", k=50)) == {"1"}
    ann.save_context({"input": "again"}, {"output": "so"})
    assert lines(ann) == ["input: again", "output: so"]
    for _ in range(2):
        ann.clear()


def test_clear_forgets_more_than_a_page_of_turns(stores: Stores, client: Client) -> None:
    store = stores()
    memory = remembering(store)
    memory.save_context({"input": "a"}, {"output": "b"})
    scope = store.similarity_search("x", k=1)[0].metadata
    store.add_texts([f"turn {i}" for i in range(2500)], [scope] * 2500)
    memory.clear()
    assert client.call("KEYS", "doc:*") == []


async def test_clear_of_what_was_flushed_is_no_error(stores: Stores, client: Client) -> None:
    memory = remembering(stores())
    memory.save_context({"input": "a"}, {"output": "b"})
    client.call("FLUSHALL")
    memory.clear()
    await memory.aclear()


def test_what_was_flushed_is_forgotten_and_the_next_turn_is_kept(
    stores: Stores, client: Client
) -> None:
    memory = remembering(stores())
    memory.save_context({"input": "a"}, {"output": "b"})
    client.call("FLUSHALL")
    assert lines(memory) == []
    memory.save_context({"input": "c"}, {"output": "d"})
    assert lines(memory) == ["input: c", "output: d"]


def test_turns_live_as_long_as_they_are_told(stores: Stores, client: Client) -> None:
    store = stores(ttl=5000)
    remembering(store).save_context({"input": "a"}, {"output": "b"})
    (key,) = client.call("KEYS", "doc:*")
    assert 4000 < client.call("TTL", key) <= 5000
    brief = remembering(store, ttl=0.05, scope="brief")
    brief.save_context({"input": "c"}, {"output": "d"})
    eventually(lambda: lines(brief), [])
    assert len(lines(remembering(store))) == 2


@pytest.mark.parametrize("kind", ["similarity", "similarity_limit", "mmr"])
def test_any_kind_of_search_serves_a_memory(stores: Stores, kind: str) -> None:
    store = stores()
    options = {"score_threshold": 2.0} if kind == "similarity_limit" else {}
    memory = VectorStoreRetrieverMemory(store.as_retriever(search_type=kind, k=9, **options))
    other = remembering(store, scope="other")
    memory.save_context({"input": "a"}, {"output": "b"})
    other.save_context({"input": "c"}, {"output": "d"})
    assert lines(memory) == ["input: a", "output: b"]


def test_a_filter_of_the_retriever_counts_beside_the_scope(stores: Stores) -> None:
    store = stores()
    memory = remembering(store)
    memory.save_context({"input": "a"}, {"output": "b"})
    scope = store.similarity_search("x", k=1)[0].metadata
    store.add_texts(["wanted", "unwanted"], [{**scope, "n": 1}, {**scope, "n": 2}])
    store.add_texts(["another's"], [{"n": 1}])
    retriever = store.as_retriever(search_kwargs={"filter": RedisNum("n") == 1})
    assert lines(VectorStoreRetrieverMemory(retriever)) == ["wanted"]


def test_a_filter_of_the_retriever_may_be_text(stores: Stores) -> None:
    store = stores()
    remembering(store).save_context({"input": "a"}, {"output": "b"})
    retriever = store.as_retriever(search_kwargs={"filter": "@content:nowhere"})
    assert lines(VectorStoreRetrieverMemory(retriever)) == []


def test_a_store_with_its_own_schema_serves_a_memory_or_says_why_not(stores: Stores) -> None:
    store = stores(index_schema={"tag": [{"name": "kinds"}]})
    try:
        memory = remembering(store)
    except (TypeError, ValueError):
        return
    memory.save_context({"input": "a"}, {"output": "b"})
    assert lines(memory) == ["input: a", "output: b"]


def test_a_memory_needs_a_retriever_of_ours(stores: Stores) -> None:
    foreign = InMemoryVectorStore(DeterministicFakeEmbedding(size=8)).as_retriever()
    kinds: list[Any] = [foreign, stores(), None, "retriever"]
    for wrong in kinds:
        with pytest.raises(TypeError, match="retriever"):
            VectorStoreRetrieverMemory(wrong)
    for options in ({"memory_key": ""}, {"memory_key": 5}, {"scope": 5}):
        with pytest.raises((TypeError, ValueError), match=r"memory_key|scope"):
            remembering(stores(), **options)


@pytest.mark.parametrize("ttl", [0, -1, "5", True])
def test_a_time_to_live_that_is_none_is_refused_at_once(stores: Stores, ttl: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="ttl"):
        remembering(stores(), ttl=ttl)


# -- LangChain's own -----------------------------------------------------------------------------


def classic(retriever: Any, **options: Any) -> Any:
    """Return LangChain's memory over a retriever; it is deprecated there."""
    from langchain_classic.memory import VectorStoreRetrieverMemory as Classic
    from langchain_core._api import LangChainDeprecationWarning

    with warnings.catch_warnings():  # it comes once only
        warnings.simplefilter("ignore", LangChainDeprecationWarning)
        return Classic(retriever=retriever, **options)


async def test_langchain_s_own_memory_works_over_our_retriever(
    stores: Stores, client: Client
) -> None:
    store = stores()
    memory = classic(store.as_retriever(k=50), exclude_input_keys=["secret"])
    assert memory.load_memory_variables({"input": "x"}) == {"history": ""}
    memory.save_context({"input": "a", "secret": "hidden"}, {"output": "b"})
    await memory.asave_context({"input": "c"}, {"output": "d"})
    assert len(client.call("KEYS", "doc:trips:*")) == 2
    assert lines(memory) == ["input: a", "input: c", "output: b", "output: d"]
    found = await memory.aload_memory_variables({"input": "input: c\noutput: d"})
    assert found["history"].startswith("input: c\noutput: d")
    memory.clear()  # which does nothing


def test_langchain_s_own_memory_has_its_options(stores: Stores) -> None:
    store = stores(embeddings=Points(16))
    memory = classic(
        store.as_retriever(search_type="mmr"),
        memory_key="past",
        input_key="question",
        return_docs=True,
    )
    memory.save_context({"question": "why", "past": "x"}, {"answer": "so"})
    found = memory.load_memory_variables({"question": "why", "other": "y"})
    assert texts_of(found["past"]) == ["question: why\nanswer: so"]


def test_both_memories_keep_a_turn_in_the_same_words(stores: Stores) -> None:
    store = stores()
    ours = remembering(store, exclude_input_keys=["secret"])
    theirs = classic(stores("theirs").as_retriever(), exclude_input_keys=["secret"])
    inputs = {"question": "why", "secret": "hidden", "history": "x", "n": 5, "l": ["a"]}
    for memory in (ours, theirs):
        memory.save_context(inputs, {"answer": "so", "more": "ü"})
    assert lines(ours) == lines(theirs)
