"""The retriever of LangChain's vector store, by each kind of search."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import VectorStoreRetriever

from rawredis_llm import Client, EmbeddedServer
from rawredis_llm.langchain import (
    RedisNum,
    RedisTag,
    RedisVectorStore,
    RedisVectorStoreRetriever,
)
from stores import Stores, ids_of, texts_of

# The cosine distances of 0, 1, ... from the query: 0, 0.1, ... 1.0, then 2.
ASKED = "1 0 0 0 0 0 0 0"
TENTHS = [f"{1 - i / 10} {(1 - (1 - i / 10) ** 2) ** 0.5} 0 0 0 0 0 0" for i in range(11)]
TEXTS = [*TENTHS, "-1 0 0 0 0 0 0 0"]
NEAR = 0.0001  # single precision is not exact


@pytest.fixture
async def store(server: EmbeddedServer, client: Client) -> AsyncIterator[RedisVectorStore]:
    """A store of documents `0` to `11`, each a tenth farther away."""
    assert client.call("DBSIZE") == 0
    stores = Stores(server.url)
    store = stores()
    metadatas = [{"even": i % 2 == 0, "kinds": [f"k{i % 3}"]} for i in range(12)]
    store.add_texts(TEXTS, metadatas, ids=[str(i) for i in range(12)])
    yield store
    await stores.aclose()


def names(count: int, start: int = 0) -> list[str]:
    """Return the ids of so many documents, nearest first."""
    return [str(i) for i in range(start, start + count)]


CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, names(4)),
    ({"search_type": "similarity"}, names(4)),
    ({"k": 7}, names(7)),
    ({"search_kwargs": {"k": 7}}, names(7)),
    ({"search_kwargs": {"k": 2}, "k": 7}, names(7)),
    ({"search_kwargs": {"k": 50}}, names(12)),
    ({"search_type": "similarity_limit"}, names(4)),
    ({"search_type": "similarity_limit", "score_threshold": 0.1 + NEAR}, names(2)),
    ({"search_type": "similarity_limit", "score_threshold": 0.6 + NEAR, "k": 12}, names(7)),
    (
        {"search_type": "similarity_limit", "search_kwargs": {"score_threshold": 0.3 + NEAR}},
        names(4),
    ),
    (
        {"search_type": "similarity_limit", "k": 12, "search_kwargs": {"score_threshold": NEAR}},
        names(1),
    ),
    (
        {
            "search_type": "similarity_distance_threshold",
            "search_kwargs": {"distance_threshold": 0.5 + NEAR, "k": 12},
        },
        names(6),
    ),
    (
        {"search_type": "similarity_distance_threshold", "distance_threshold": 0.2 + NEAR},
        names(3),
    ),
    (
        {
            "search_type": "similarity_score_threshold",
            "search_kwargs": {"score_threshold": 0.8 - NEAR, "k": 12},
        },
        names(3),
    ),
    ({"search_type": "similarity_score_threshold", "score_threshold": 0.5 - NEAR}, names(4)),
    ({"search_type": "similarity_score_threshold", "score_threshold": 0.5, "k": 1}, names(1)),
    ({"search_kwargs": {"filter": RedisNum("even") == 0}}, ["1", "3", "5", "7"]),
    ({"search_kwargs": {"filter": "@even:[0 0]", "k": 2}}, ["1", "3"]),
    (
        {
            "search_type": "similarity_limit",
            "k": 12,
            "score_threshold": 0.7 + NEAR,
            "search_kwargs": {"filter": RedisTag("kinds") == "k1"},
        },
        ["1", "4", "7"],
    ),
    ({"search_type": "mmr", "search_kwargs": {"k": 3, "lambda_mult": 1.0}}, names(3)),
    ({"search_type": "mmr", "search_kwargs": {"k": 2, "lambda_mult": 0.0}}, ["0", "11"]),
    (
        {"search_type": "mmr", "search_kwargs": {"k": 2, "lambda_mult": 0.0, "fetch_k": 5}},
        ["0", "4"],
    ),
]


@pytest.mark.parametrize(("options", "found"), CASES, ids=lambda value: str(value)[:90])
async def test_every_kind_of_search_finds_what_it_should(
    store: RedisVectorStore, options: dict[str, Any], found: list[str]
) -> None:
    retriever = store.as_retriever(**options)
    assert [one.id for one in retriever.invoke(ASKED)] == found
    assert [one.id for one in await retriever.ainvoke(ASKED)] == found
    made = RedisVectorStoreRetriever(vectorstore=store, **options)
    assert [one.id for one in made.invoke(ASKED)] == found


def test_the_limit_is_four_tenths_if_nobody_says_another(store: RedisVectorStore) -> None:
    # Off by a tenth, so that rounding decides nothing.
    store.add_texts(["0.62 0.7846 0 0 0 0 0 0", "0.58 0.8146 0 0 0 0 0 0"], ids=["in", "out"])
    found = ids_of(store.as_retriever(search_type="similarity_limit", k=50).invoke(ASKED))
    assert {*names(4), "in"} <= found <= {*names(5), "in"}


@pytest.mark.parametrize(
    "options",
    [
        {"search_type": "unheard_of"},
        {"search_type": ""},
        {"search_type": "similarity_score_threshold"},
        {"search_type": "similarity_score_threshold", "search_kwargs": {"k": 3}},
        {"search_type": "similarity_score_threshold", "search_kwargs": {"score_threshold": "x"}},
        {"search_type": "similarity_distance_threshold"},
        {"search_type": "similarity_distance_threshold", "score_threshold": 0.5},
        {
            "search_type": "similarity_distance_threshold",
            "search_kwargs": {"distance_threshold": None},
        },
    ],
    ids=str,
)
def test_a_retriever_that_cannot_search_is_refused(
    store: RedisVectorStore, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"search_type|threshold|not allowed"):
        store.as_retriever(**options)
    with pytest.raises(ValueError, match=r"search_type|threshold|not allowed"):
        RedisVectorStoreRetriever(vectorstore=store, **options)


def test_what_it_was_given_is_left_as_it_was(store: RedisVectorStore) -> None:
    given = {"k": 2, "distance_threshold": None}
    tags = ["mine"]
    retriever = store.as_retriever(search_kwargs=given, tags=tags, score_threshold=None)
    assert [one.id for one in retriever.invoke(ASKED)] == names(2)
    assert given == {"k": 2, "distance_threshold": None}
    assert tags == ["mine"]
    assert retriever.tags is not None
    assert "mine" in retriever.tags
    assert "RedisVectorStore" in retriever.tags
    assert isinstance(retriever, VectorStoreRetriever)
    assert retriever.vectorstore is store


async def test_the_older_default_arguments_serve_every_kind_of_search(
    store: RedisVectorStore,
) -> None:
    # What LangChain's own RedisVectorStoreRetriever had as its default search_kwargs.
    older = {"k": 4, "score_threshold": 0.9, "distance_threshold": None}
    for kind in ("similarity", "similarity_limit", "similarity_score_threshold", "mmr"):
        retriever = store.as_retriever(search_type=kind, search_kwargs=older)
        assert retriever.invoke(ASKED)[0].id == "0"
        assert (await retriever.ainvoke(ASKED))[0].id == "0"


def test_a_limit_of_none_is_the_default_limit(store: RedisVectorStore) -> None:
    retriever = store.as_retriever(
        search_type="similarity_limit", search_kwargs={"score_threshold": None, "k": 12}
    )
    assert ids_of(retriever.invoke(ASKED)) <= {*names(5)}


async def test_a_call_may_say_more(store: RedisVectorStore) -> None:
    retriever = store.as_retriever(search_kwargs={"k": 3})
    even = RedisNum("even") == 1
    assert [one.id for one in retriever.invoke(ASKED, k=2, filter=even)] == ["0", "2"]
    assert [one.id for one in await retriever.ainvoke(ASKED, filter=even)] == ["0", "2", "4"]
    assert [one.id for one in retriever.invoke(ASKED)] == names(3)
    limited = store.as_retriever(search_type="similarity_limit", k=12)
    assert [one.id for one in limited.invoke(ASKED, score_threshold=NEAR)] == names(1)
    assert [one.id for one in await limited.ainvoke(ASKED, score_threshold=NEAR)] == names(1)


async def test_documents_are_added_through_a_retriever(store: RedisVectorStore) -> None:
    retriever = store.as_retriever(search_kwargs={"k": 1})
    assert retriever.add_documents([Document("new 1", id="n1", metadata={"x": 1})]) == ["n1"]
    assert await retriever.aadd_documents([Document("new 2")], ids=["n2"]) == ["n2"]
    assert retriever.invoke("new 1") == [Document("new 1", id="n1", metadata={"x": 1})]
    assert texts_of(await retriever.ainvoke("new 2")) == ["new 2"]


async def test_a_retriever_is_a_link_of_a_chain(store: RedisVectorStore) -> None:
    def joined(documents: list[Document]) -> str:
        return ",".join(str(one.id) for one in documents)

    def answered(asked: dict[str, str]) -> str:
        return f"{asked['question'][:2]}: {asked['context']}"

    retriever = store.as_retriever(search_kwargs={"k": 2})
    chain: Any = {"context": retriever | RunnableLambda(joined), "question": RunnablePassthrough()}
    chain = chain | RunnableLambda(answered)
    assert chain.invoke(ASKED) == "1 : 0,1"
    assert await chain.ainvoke(ASKED) == "1 : 0,1"
    assert chain.batch([ASKED, TEXTS[-1]]) == ["1 : 0,1", "-1: 11,10"]
    assert await chain.abatch([ASKED, TEXTS[-1]]) == ["1 : 0,1", "-1: 11,10"]


async def test_a_retriever_of_an_empty_store_finds_nothing(
    server: EmbeddedServer, client: Client
) -> None:
    assert client.call("DBSIZE") == 0
    stores = Stores(server.url)
    for kind in ("similarity", "similarity_limit", "similarity_score_threshold", "mmr"):
        options = {"score_threshold": 0.5} if "_" in kind else {}
        retriever = stores().as_retriever(search_type=kind, **options)
        assert retriever.invoke("x") == []
        assert await retriever.ainvoke("x") == []
    await stores.aclose()
