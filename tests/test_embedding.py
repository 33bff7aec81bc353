"""Embedders of every form, in both colours; none of it needs a server."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

import numpy as np
import pytest

from rawredis_llm import AsyncClient, Client, HashingEmbedder
from rawredis_llm.embedding import Embedder, as_embedder
from rawredis_llm.protocol.operation import together

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens; embedding does not ask it."""

TEXTS = ["one", "three"]
LENGTHS = [[3.0], [5.0]]


def lengths(texts: list[str]) -> list[list[float]]:
    """Embed each text as its length."""
    return [[float(len(text))] for text in texts]


async def alengths(texts: list[str]) -> list[list[float]]:
    """Embed each text as its length, in a while."""
    await asyncio.sleep(0)
    return lengths(texts)


class Callable_:  # noqa: N801 - the one that can be called
    """An object that is called."""

    fingerprint = "of a callable"

    def __call__(self, texts: list[str]) -> list[list[float]]:
        """Embed."""
        return lengths(texts)


class AsyncCallable:
    """An object that is called and awaited."""

    async def __call__(self, texts: list[str]) -> list[list[float]]:
        """Embed."""
        return await alengths(texts)


class Documents:
    """What frameworks have; queries are embedded as minus their length."""

    model = "of documents"

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed what will be stored."""
        self.threads.append(threading.current_thread())
        return lengths(texts)

    def embed_query(self, text: str) -> list[float]:
        """Embed what is asked."""
        self.threads.append(threading.current_thread())
        return [-float(len(text))]


class BothDocuments(Documents):
    """What frameworks have that can do it either way."""

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed what will be stored."""
        return self.embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        """Embed what is asked."""
        return self.embed_query(text)


class AsyncDocuments:
    """What is asynchronous under the plain names."""

    async def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed what will be stored."""
        return await alengths(texts)

    async def embed_query(self, text: str) -> list[float]:
        """Embed what is asked."""
        return [-x for x in (await alengths([text]))[0]]


PLAIN = {
    "function": lengths,
    "partial": partial(lengths),
    "array": lambda texts: np.array(lengths(texts)),
    "object": Callable_(),
    "documents": Documents(),
    "both": BothDocuments(),
    "one form": as_embedder(lengths),
}
ASYNC_ONLY = {
    "async function": alengths,
    "async partial": partial(alengths),
    "async object": AsyncCallable(),
    "async documents": AsyncDocuments(),
}


def embedded_sync(embedder: Any, texts: list[str]) -> tuple[Any, Any]:
    """Return texts as documents and as queries, by a sync client."""
    one = as_embedder(embedder)
    with Client(NOBODY) as client:
        return client.run(one.documents(texts)), client.run(one.queries(texts))


def embedded_async(embedder: Any, texts: list[str]) -> tuple[Any, Any]:
    """Return texts as documents and as queries, by an asyncio client."""

    async def main() -> tuple[Any, Any]:
        one = as_embedder(embedder)
        async with AsyncClient(NOBODY) as client:
            return await client.run(one.documents(texts)), await client.run(one.queries(texts))

    return asyncio.run(main())


def expected(name: str) -> tuple[Any, Any]:
    """Return what an embedder of a form gives for TEXTS."""
    negative = [[-x for x in row] for row in LENGTHS]
    return LENGTHS, negative if "documents" in name or name == "both" else LENGTHS


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_embedder_serves_both_clients(name: str) -> None:
    for embedded in (embedded_sync, embedded_async):
        documents, queries = embedded(PLAIN[name], TEXTS)
        assert (np.asarray(documents).tolist(), np.asarray(queries).tolist()) == expected(name)


@pytest.mark.parametrize("name", ASYNC_ONLY)
def test_an_async_embedder_serves_the_async_client_only(name: str) -> None:
    assert embedded_async(ASYNC_ONLY[name], TEXTS) == expected(name)
    with pytest.raises(TypeError, match="AsyncClient"):
        embedded_sync(ASYNC_ONLY[name], TEXTS)


def test_a_plain_function_that_returns_an_awaitable_is_awaited() -> None:
    def later(texts: list[str]) -> Any:
        return alengths(texts)

    assert embedded_async(later, TEXTS) == (LENGTHS, LENGTHS)


def test_a_model_that_blocks_does_not_run_on_the_loop() -> None:
    blocking, both = Documents(), BothDocuments()
    embedded_async(blocking, TEXTS)
    assert threading.current_thread() not in blocking.threads
    embedded_async(both, TEXTS)
    assert set(both.threads) == {threading.current_thread()}
    embedded_sync(blocking, TEXTS)
    assert blocking.threads[-1] is threading.current_thread()


@pytest.mark.parametrize("embedder", [None, 5, "model", b"", ["x"], {}, object()])
def test_what_cannot_embed_is_refused(embedder: Any) -> None:
    with pytest.raises(TypeError, match=f"embed_query; {type(embedder).__name__} is neither"):
        as_embedder(embedder)


def test_one_form_is_taken_as_it_is() -> None:
    one = as_embedder(lengths)
    assert isinstance(one, Embedder)
    assert as_embedder(one) is one


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_vectors_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"returned {count} vectors for 2 texts"):
        embedded_sync(lambda _: [[1.0]] * count, TEXTS)


@pytest.mark.parametrize(
    ("attributes", "fingerprint"),
    [
        ({}, ""),
        ({"fingerprint": "f", "name": "n", "model": "m"}, "f"),
        ({"name": "n", "model": "m"}, "n"),
        ({"model": "m"}, "m"),
        ({"fingerprint": "", "name": None, "model": "m"}, "m"),
        ({"name": 5, "model": ["m"]}, ""),
    ],
    ids=str,
)
def test_an_embedder_is_known_by_its_fingerprint(
    attributes: dict[str, Any], fingerprint: str
) -> None:
    embedder = type("Named", (), {"__call__": lambda _, texts: lengths(texts), **attributes})()
    assert as_embedder(embedder).fingerprint == fingerprint
    documents = type("Documents", (Documents,), {"model": None, **attributes})()
    assert as_embedder(documents).fingerprint == fingerprint


# -- many at once --------------------------------------------------------------------------------


def test_texts_of_many_ops_are_embedded_in_one_call() -> None:
    calls: list[list[str]] = []

    def counting(texts: list[str]) -> list[list[float]]:
        calls.append(texts)
        return lengths(texts)

    one = as_embedder(counting)
    with Client(NOBODY) as client:
        vectors = client.gather(
            [one.documents(["a", "bb"]), one.documents([]), one.queries(["ccc"])]
        )
    assert vectors == [[[1.0], [2.0]], [], [[3.0]]]
    assert calls == [["a", "bb", "ccc"]]


def test_a_wrong_number_of_vectors_is_refused_where_texts_are_collected() -> None:
    one = as_embedder(lambda texts: [[0.0], *lengths(texts)])
    with (
        Client(NOBODY) as client,
        pytest.raises(ValueError, match="returned 3 vectors for 2 texts"),
    ):
        client.run(together([one.documents(["a"]), one.documents(["bb"])]))


def test_one_embedders_failure_is_not_anothers() -> None:
    def broken(texts: list[str]) -> list[list[float]]:
        raise RuntimeError(f"out of memory at {texts}")

    with Client(NOBODY) as client:
        bad, good = client.gather(
            [as_embedder(broken).documents(["a"]), as_embedder(lengths).documents(["a"])],
            raise_errors=False,
        )
    assert isinstance(bad, RuntimeError)
    assert good == [[1.0]]


# -- the one that is built in --------------------------------------------------------------------


@pytest.mark.parametrize("dim", [8, 100, 512])
def test_hashing_gives_unit_vectors_of_float32(dim: int) -> None:
    embedder = HashingEmbedder(dim)
    vectors = embedder(["hello world", "x", "日本語", "é 1 2 3", "word " * 1000])
    assert vectors.shape == (5, dim)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    assert embedder([]).shape == (0, dim)


def test_hashing_is_the_same_everywhere_and_known_by_its_size() -> None:
    one, other = HashingEmbedder(16), HashingEmbedder(16)
    assert (one(["hello", "world"]) == other(["hello", "world"])).all()
    assert (one(["hello", "world"])[1] == one(["world"])[0]).all()
    assert one.fingerprint == other.fingerprint != HashingEmbedder(17).fingerprint
    # A change here makes every stored vector a stranger, and wants another fingerprint.
    assert one.fingerprint == "rawredis-hashing-1-16"
    assert np.flatnonzero(one(["hi"])[0]).tolist() == [6, 10, 13]


def test_hashing_knows_spelling() -> None:
    embedder = HashingEmbedder()
    question, near, far = embedder(
        ["What is the capital of France?", "what's the CAPITAL of france", "How to bake bread"]
    )
    assert question @ near > 0.6
    assert question @ far < 0.3


@pytest.mark.parametrize("text", ["", " ", "?!", "🦜"])
def test_hashing_refuses_a_text_without_a_word(text: str) -> None:
    with pytest.raises(ValueError, match="without letters or digits"):
        HashingEmbedder()(["fine", text])


@pytest.mark.parametrize("dim", [0, 7, -8, True, 8.0, "8", None])
def test_hashing_refuses_a_bad_size(dim: Any) -> None:
    with pytest.raises(ValueError, match="dim"):
        HashingEmbedder(dim)
