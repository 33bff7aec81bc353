"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rawredis_llm import Client, EmbeddedServer, Tag, Vector, VectorIndex, cli, demo
from rawredis_llm.cli import main

COMMAND = [sys.executable, "-m", "rawredis_llm"]


def test_demo_shows_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--embedder", "hashing"]) == 0
    shown = capsys.readouterr().out
    for title in (
        "first lookup is a miss",
        "second lookup is a hit",
        "the paraphrase is a hit",
        "another tenant, exact: a miss",
        "another tenant, semantic: a miss",
        "another model, exact: a miss",
        "another model, semantic: a miss",
        "the filtered search finds it",
        "history recalls all, in order",
        "memory recalls the turn by meaning",
        "three answers, one round trip",
    ):
        [line] = [line for line in shown.splitlines() if title in line]
        assert line.startswith(" ok ")
        assert " ms" in line
    assert "GET+XREVRANGE+FT.SEARCH" in shown
    assert "p99.9" in shown
    assert "Every step came out right." in shown


def test_demo_explains_on_documents_of_ones_own(
    tmp_path: Path, server: EmbeddedServer, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.call("SET", "mine", "untouched")
    docs = tmp_path / "docs.jsonl"
    lines = [{"text": f"A note on {word}, number {n}."} for n, word in enumerate("abc")]
    docs.write_text("\n".join(map(json.dumps, lines)))
    options = ["--docs", str(docs), "--url", server.url, "--embedder", "hashing", "--explain"]
    assert main(["demo", *options]) == 0
    shown = capsys.readouterr().out
    assert " > GET rawredis-demo-" in shown
    assert "vector <2048 bytes>" in shown
    assert "=>[KNN 1 @vector $vector AS __distance]" in shown
    assert client.call("KEYS", "*") == [b"mine"]  # it cleans up after itself
    assert client.call("FT._LIST") == []


def test_demo_takes_paragraphs_of_text(tmp_path: Path) -> None:
    text = tmp_path / "docs.txt"
    text.write_text("One thing\nis this.\n\n\nAnother is that.\n\nAnd so on.\n")
    answers = [passage.answer for passage in demo.read_passages(text)]
    assert answers == ["One thing is this.", "Another is that.", "And so on."]


def test_shipped_corpus_is_whole() -> None:
    passages = demo.read_passages(None)
    assert len(passages) == 60
    assert len({passage.question for passage in passages}) == 60
    assert set(demo.PARAPHRASES) <= {passage.id for passage in passages}


def test_demo_fails_when_a_step_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo.LexicalEmbedder, "max_distance", 0.0)
    assert main(["demo", "--embedder", "hashing"]) == 1
    shown = capsys.readouterr().out
    assert "FAIL the paraphrase is a hit" in shown
    assert "FAILED: the paraphrase is a hit" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["demo", "--url", "http://x"], 2, "scheme must be redis"),
        (["demo", "--url", "redis://127.0.0.1:1"], 1, "Connection refused"),
        (["demo", "--docs", "/nonexistent.txt"], 2, "No such file"),
        (["demo", "--docs", __file__], 2, ".txt or .jsonl"),
        (["serve", "--path", "/nonexistent"], 1, "not an executable file"),
        (["serve", "--port", "-1"], 2, "port must be in 0..65535"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = ["--embedder", "hashing"] if arguments[0] == "demo" else []
    assert main([*arguments, *extra]) == code
    shown = capsys.readouterr()
    assert shown.err.startswith("rawredis-llm: ")
    assert said in shown.err
    assert "Traceback" not in shown.err


def test_a_demo_that_is_told_to_stop_cleans_up(server: EmbeddedServer, client: Client) -> None:
    command = [*COMMAND, "demo", "--embedder", "hashing", "--url", server.url]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not client.call("DBSIZE"):
            assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=20) == 130
    assert client.call("KEYS", "*") == []
    assert client.call("FT._LIST") == []


def test_a_broken_document_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs = tmp_path / "docs.jsonl"
    docs.write_text('{"text": "fine"}\n{"txt": 1}\n')
    assert main(["demo", "--embedder", "hashing", "--docs", str(docs)]) == 2
    assert "line 2 needs a text" in capsys.readouterr().err


def test_no_command_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_runs_in_the_foreground_until_told_to_stop(number: int) -> None:
    command = [*COMMAND, "serve", "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[4]
            with Client(url) as client:
                assert client.call("PING") == b"PONG"
                assert client.call("FT._LIST") == []
        finally:
            process.send_signal(number)
        rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "stopped" in rest


def test_documents_go_to_files_and_back(
    tmp_path: Path, server: EmbeddedServer, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    index = VectorIndex(client, "docs", [Tag("kind"), Vector("v", 3)])
    index.create()
    vectors = np.arange(1, 31, dtype=np.float32).reshape(10, 3)
    index.load(range(10), vectors, {"kind": ["a", "b"] * 5})
    file = tmp_path / "docs.jsonl"
    assert main(["export", server.url, "docs", str(file)]) == 0
    assert len(file.read_text().splitlines()) == 10
    index.drop(delete_documents=True)
    index.create()
    assert main(["import", server.url, "docs", str(file)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["exported 10 documents", "imported 10 documents"]
    assert err == ""  # no bar where nobody watches
    back = index.get(range(10))
    assert [row and row.fields["kind"] for row in back] == ["a", "b"] * 5
    assert np.array_equal(np.array([row and row.vector for row in back]), vectors)


def test_a_terminal_is_shown_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    cli._bar(1, 4)
    cli._bar(4, 4)
    first, last = capsys.readouterr().err.split("\r")[1:]
    assert first == f"[{'#' * 10}{'.' * 30}]  25% 1"
    assert last == f"[{'#' * 40}] 100% 4\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["export", "redis://localhost", "docs", "docs.txt"], 2, "docs.txt"),
        (["import", "redis://localhost", "docs", "none.jsonl"], 2, "none.npy"),
        (["export", "redis://localhost", "none", "docs.jsonl"], 1, "Call create"),
        (["export", "nowhere://localhost", "docs", "docs.jsonl"], 2, "nowhere"),
    ],
)
def test_what_cannot_be_moved_is_one_line(
    arguments: list[str],
    code: int,
    said: str,
    server: EmbeddedServer,
    client: Client,
    capsys: pytest.CaptureFixture[str],
) -> None:
    VectorIndex(client, "docs", [Vector("v", 3)]).create()
    arguments[1] = arguments[1].replace("redis://localhost", server.url)
    assert main(arguments) == code
    err = capsys.readouterr().err
    assert err.startswith("rawredis-llm: ")
    assert said in err
    assert err.count("\n") == 1
