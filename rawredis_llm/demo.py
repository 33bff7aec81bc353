"""The demo: every part of the library on a real Redis, on real documents, each step checked.

Must work with hiredis and numpy alone (`--embedder hashing`, plain text); wordllama and rich are
used where they are installed. Leaves nothing behind on a server that is not its own.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .cache import LLMCache
from .embedding import HashingEmbedder
from .explain import argv
from .history import ChatHistory
from .latency.recorder import Recorder
from .memory import VectorMemory
from .protocol.operation import Request, Runnable, watched
from .retriever import Retriever
from .search.fields import Numeric, Tag, Text
from .search.schema import Vector
from .semantic_cache import SemanticCache
from .server import EmbeddedServer
from .sync.client import Client
from .vector_index import VectorIndex

__all__ = ["Passage", "embedder_named", "read_passages", "run"]

T = TypeVar("T")

MODEL = "stand-in-1"
MODEL_SECONDS = 0.25  # how long the stand-in for a language model takes to answer


class Passage(NamedTuple):
    """A document of the demo, with a question that it answers, asked in two ways."""

    id: str
    topic: str
    question: str
    paraphrase: str
    answer: str


class WordLlamaEmbedder:
    """The small real embedder of the extra `[demo]`: static token vectors, 256 dimensions."""

    fingerprint = "wordllama-l2-supercat-256"
    max_distance = 0.3

    def __init__(self) -> None:
        wordllama: Any = import_module("wordllama")  # an extra, loaded only when asked for
        # Its weights are inside the wheel; load() alone would look for a download.
        self._model = wordllama.WordLlama.load(
            cache_dir=Path(wordllama.__file__).parent, disable_download=True
        )

    def __call__(self, texts: list[str]) -> Any:
        """Return float32 (n, 256), each of length 1."""
        return self._model.embed(texts, norm=True)


class LexicalEmbedder(HashingEmbedder):
    """The dependency-free one, with the distance up to which two wordings count as the same."""

    max_distance = 0.6


def embedder_named(name: str) -> WordLlamaEmbedder | LexicalEmbedder:
    """Return the embedder of a command line. Raises ValueError if it is not installed."""
    if name == "hashing":
        return LexicalEmbedder()
    try:
        return WordLlamaEmbedder()
    except ImportError as error:
        text = "wordllama is not installed: pip install 'rawredis-llm[demo]', or take"
        raise ValueError(f"{text} --embedder hashing, which needs numpy alone") from error


def read_passages(path: Path | None) -> list[Passage]:
    """Return the passages of a .txt file (one a paragraph), a .jsonl file, or the shipped corpus.

    A line of .jsonl is an object with `text`, or with `question` and `answer`; `id` and `topic` if
    there are any. Raises ValueError naming the line that is wrong, OSError if there is no file.
    """
    file = path or Path(__file__).with_name("corpus.jsonl")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name}: is not UTF-8 at byte {error.start}") from None
    suffix = file.suffix.lower()
    if suffix == ".txt":
        paragraphs = [" ".join(part.split()) for part in re.split(r"\n[^\S\n]*\n", text)]
        items: list[dict[str, Any]] = [{"text": part} for part in paragraphs if part]
    elif suffix == ".jsonl":
        items = [_object(line, n) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    else:
        raise ValueError(f"{file.name}: documents are .txt or .jsonl")
    if len(items) < 3:
        wanted = "three documents or more; in .txt, paragraphs with an empty line in between"
        raise ValueError(f"{file.name}: the demo needs {wanted}")
    return [_passage(item, position) for position, item in enumerate(items, 1)]


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is not JSON: {error}") from None
    if not isinstance(item, dict) or not isinstance(item.get("text", item.get("answer")), str):
        raise ValueError(f"line {number} needs a text, or a question and an answer")  # noqa: TRY004 - of a file
    return item


PARAPHRASES = {
    "bread-11": "After being fed, when does a sourdough starter reach its peak?",
    "bread-25": "How can I make an even challah braid using three strands?",
    "bread-46": "What makes my starter smell of nail polish?",
}


def _passage(item: dict[str, Any], position: int) -> Passage:
    answer = str(item.get("text", item.get("answer")))
    id_ = str(item.get("id", f"p{position}"))
    question = str(item.get("question") or f"What is said about {' '.join(answer.split()[:8])}?")
    paraphrase = PARAPHRASES.get(id_, f"Please tell me, {question[:1].lower()}{question[1:]}")
    topic = str(item.get("topic") or "").strip() or f"part {position % 3 + 1}"
    return Passage(id_, topic, question, paraphrase, answer)


class Screen:
    """Prints steps as they end, by rich where it is installed and the output is a terminal."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        try:
            from rich.console import Console  # noqa: PLC0415 - an extra
        except ImportError:
            self._console: Any = None
        else:
            self._console = Console(highlight=False, markup=False, soft_wrap=True)

    def say(self, text: str, style: str = "") -> None:
        """Print one line."""
        if self._console is None:
            print(text)
        else:
            self._console.print(text, style=style)

    def step(self, title: str, came_out: bool, detail: str = "", seconds: float = 0.0) -> None:  # noqa: FBT001 - its verdict
        """Print how a step came out; remember it if it did not come out as it should."""
        if not came_out:
            self.failed.append(title)
        word, style = (" ok ", "") if came_out else ("FAIL", "bold red")
        self.say(f"{word} {title:<38} {seconds * 1e3:8.2f} ms  {detail}", style)


class ExplainingClient(Client):
    """A client that prints each command before it is sent."""

    say: Callable[[str], None] = print

    def run(self, op: Runnable[T]) -> T:
        """Run an op, printing what it sends."""
        return super().run(watched(op, self._explain))

    def _explain(self, request: Request) -> None:
        for line in argv(request):
            self.say(f"       > {line}")


def run(
    *,
    docs: Path | None = None,
    url: str | None = None,
    embedder: str = "wordllama",
    explain: bool = False,
) -> int:
    """Run the demo; return 0 if every step came out as it should, else 1."""
    passages = read_passages(docs)
    embed = embedder_named(embedder)
    screen = Screen()
    recorder = Recorder()
    with ExitStack() as stack:
        if url is None:
            url = stack.enter_context(EmbeddedServer()).url
        kind = ExplainingClient if explain else Client
        client = stack.enter_context(kind(url, observer=recorder))
        client.call("PING")  # what is wrong with the server is said before anything is shown
        screen.say(f"{client!r}, {len(passages)} documents, {type(embed).__name__}")
        demo = Demo(client, screen, recorder, passages, embed)
        stack.callback(demo.clean)
        for part in (demo.exact, demo.semantic, demo.isolation, demo.retrieval, demo.talk):
            part()
        demo.one_round_trip()
        screen.say("\nEvery command, as the client saw it:")
        screen.say(recorder.report().table().partition("\n\n")[0])
    if screen.failed:
        screen.say(f"\nFAILED: {', '.join(screen.failed)}", "bold red")
        return 1
    screen.say("\nEvery step came out right.", "bold green")
    return 0


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return a call's result and how many seconds it took."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


class Demo:
    """The steps, over one set of objects."""

    def __init__(
        self,
        client: Client,
        screen: Screen,
        recorder: Recorder,
        passages: list[Passage],
        embed: WordLlamaEmbedder | LexicalEmbedder,
    ) -> None:
        self.client, self.screen, self.recorder = client, screen, recorder
        self.passages, self.embed = passages, embed
        self.first = next((p for p in passages if p.id in PARAPHRASES), passages[0])
        name = self.name = f"rawredis-demo-{os.getpid()}"
        limit = embed.max_distance
        # A demo that cannot reach its server must say so, not show misses.
        shared: dict[str, Any] = {"namespace": name, "scope": "acme", "ttl": 600}
        self.cache = LLMCache(client, **shared, on_error="raise")
        self.near = SemanticCache(client, embed, max_distance=limit, **shared, on_error="raise")
        dim = len(embed(["a word"])[0])
        fields = [Text("text"), Tag("topic"), Numeric("position"), Vector("vector", dim)]
        self.index = VectorIndex(client, f"{name}-docs", fields)
        remembered = [Tag("scope", case_sensitive=True), Vector("vector", dim)]
        self.turns = VectorIndex(client, f"{name}-memory", remembered)
        self.history = ChatHistory(client, "session-1", namespace=name, ttl=600)
        self.memory = VectorMemory(self.turns, embed, scope="acme")

    def clean(self) -> None:
        """Remove all that the demo stored."""
        self.cache.clear()
        self.near.drop()
        for cache in (self.cache, self.near):
            cache.stats(reset=True)
        self.history.clear()
        for index in (self.index, self.turns):
            if index.exists():
                index.drop(delete_documents=True)

    def model(self) -> str:
        """Answer the first question slowly, as a language model would."""
        time.sleep(MODEL_SECONDS)
        return self.first.answer

    def exact(self) -> None:
        """Miss, ask the stand-in model, hit."""
        question, step = self.first.question, self.screen.step
        self.screen.say(f"\nExact cache: {question}")
        hit, seconds = timed(lambda: self.cache.lookup(question, MODEL))
        step("first lookup is a miss", hit is None, "", seconds)
        answer, seconds = timed(self.model)
        step("the stand-in model answers", bool(answer), f"{answer[:40]}...", seconds)
        _, seconds = timed(lambda: self.cache.store(question, answer, MODEL))
        step("the answer is stored", came_out=True, seconds=seconds)
        hit, seconds = timed(lambda: self.cache.lookup(question, MODEL))
        same = hit is not None and hit.response == answer
        step("second lookup is a hit", same, "the same answer" if same else repr(hit), seconds)

    def semantic(self) -> None:
        """Answer a paraphrase."""
        self.screen.say(f"\nSemantic cache: {self.first.paraphrase}")
        _, seconds = timed(lambda: self.near.store(self.first.question, self.first.answer, MODEL))
        self.screen.step("the first question is stored", came_out=True, seconds=seconds)
        hit, seconds = timed(lambda: self.near.lookup(self.first.paraphrase, MODEL))
        same = hit is not None and hit.response == self.first.answer
        detail = f"distance {hit.distance:.4f}" if hit and hit.distance is not None else "a miss"
        self.screen.step("the paraphrase is a hit", same, detail, seconds)

    def isolation(self) -> None:
        """Ask the same as another tenant, and of another model."""
        self.screen.say("\nThe same question from elsewhere")
        question = self.first.question
        stranger: dict[str, Any] = {"namespace": self.name, "scope": "globex"}
        other = LLMCache(self.client, **stranger)
        other_near = SemanticCache(self.client, self.embed, **stranger, max_distance=2)
        for title, call in (
            ("another tenant, exact: a miss", lambda: other.lookup(question, MODEL)),
            ("another tenant, semantic: a miss", lambda: other_near.lookup(question, MODEL)),
            ("another model, exact: a miss", lambda: self.cache.lookup(question, "other")),
            ("another model, semantic: a miss", lambda: self.near.lookup(question, "other")),
        ):
            hit, seconds = timed(call)
            self.screen.step(title, hit is None, "" if hit is None else repr(hit), seconds)

    def retrieval(self) -> None:
        """Load the documents, and find those of one topic that are nearest to a question."""
        passages, target = self.passages, self.first
        self.screen.say(f"\nRetrieval: {target.question}")
        self.index.create()
        texts = [f"{passage.question} {passage.answer}" for passage in passages]
        vectors, seconds = timed(lambda: self.embed(texts))
        self.screen.step("documents are embedded", len(vectors) == len(texts), "", seconds)
        positions = range(1, len(passages) + 1)
        ids = [str(position) for position in positions]
        topics = [passage.topic for passage in passages]
        columns = {"text": texts, "topic": topics, "position": positions}
        count, seconds = timed(lambda: self.index.load(ids, vectors, columns))
        indexed = self.index.count()
        self.screen.step("documents are loaded", indexed == len(ids), f"{count} rows", seconds)
        condition = (Tag("topic") == target.topic) & (Numeric("position") <= len(ids))
        retriever = Retriever(self.index, self.embed, k=4, filter=condition)
        found, seconds = timed(lambda: retriever.retrieve(target.question))
        right = bool(found) and all(doc.metadata["topic"] == target.topic for doc in found)
        right = right and found[0].id == ids[passages.index(target)]
        detail = f"{len(found)} of topic {target.topic!r}, nearest {found[0].id}" if found else ""
        self.screen.step("the filtered search finds it", right, detail, seconds)

    def talk(self) -> None:
        """Hold a conversation of three turns, and recall it in order and by nearness."""
        self.screen.say("\nA conversation of three turns")
        others = [passage for passage in self.passages if passage is not self.first]
        turns = [self.first, *others[:2]]
        _, seconds = timed(lambda: self._store_turns(turns))
        self.screen.step("three turns are stored", came_out=True, seconds=seconds)
        messages, seconds = timed(self.history.messages)
        said = [(message.role, message.content) for message in messages]
        expected = [pair for p in turns for pair in (("user", p.question), ("assistant", p.answer))]
        self.screen.step("history recalls all, in order", said == expected, "6 messages", seconds)
        found, seconds = timed(lambda: self.memory.load(self.first.paraphrase))
        right = bool(found) and found[0].metadata["outputs"] == {"assistant": self.first.answer}
        detail = f"distance {found[0].distance:.4f}" if found and found[0].distance else ""
        self.screen.step("memory recalls the turn by meaning", right, detail, seconds)

    def _store_turns(self, turns: list[Passage]) -> None:
        for passage in turns:
            said = [("user", passage.question), ("assistant", passage.answer)]
            self.history.add_many([{"role": role, "content": text} for role, text in said])
            self.memory.save({"user": passage.question}, {"assistant": passage.answer})

    def one_round_trip(self) -> None:
        """Ask three unlike things in one write."""
        self.screen.say("\nExact lookup + last 10 messages + 4 documents, together")
        question = self.first.question
        retriever = Retriever(self.index, self.embed, k=4)
        before = sum(seen.count for seen in self.recorder.report().rows())
        lookup = self.cache.plan.lookup(question, MODEL)
        recall, search = self.history.plan.messages(last=10), retriever.plan.retrieve(question)
        found, seconds = timed(lambda: self.client.gather([lookup, recall, search]))
        hit, messages, documents = found
        trips = sum(seen.count for seen in self.recorder.report().rows()) - before
        wanted = min(4, len(self.passages))
        right = hit is not None and len(messages) == 6 and len(documents) == wanted
        detail = f"{trips} round trip, {len(messages)} messages, {len(documents)} documents"
        self.screen.step("three answers, one round trip", right and trips == 1, detail, seconds)
