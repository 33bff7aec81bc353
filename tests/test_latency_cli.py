"""`latency`, `top` and `compare`, run as a user runs them."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from rawredis_llm import Client, EmbeddedServer, cli
from rawredis_llm.cli import main
from rawredis_llm.latency import live, page
from rawredis_llm.latency.report import Report

COMMAND = [sys.executable, "-m", "rawredis_llm"]


def calls_of(client: Client, name: str) -> int:
    lines = client.call("INFO", "commandstats").decode().splitlines()
    found = [line for line in lines if line.startswith(f"cmdstat_{name}:")]
    return int(found[0].partition("calls=")[2].partition(",")[0]) if found else 0


def wait_for_calls(client: Client, name: str, count: int, process: subprocess.Popen[Any]) -> None:
    while calls_of(client, name) < count:
        assert process.poll() is None
        time.sleep(0.02)


def on_a_terminal(*arguments: str, out: Path | None = None) -> str:
    """Return what a command writes to a terminal; its output may go to a file instead."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "50"}
    with (
        out.open("wb") if out else nullcontext(follower) as output,
        subprocess.Popen(
            [*COMMAND, *arguments], stdout=output, stderr=follower, env=environment
        ) as process,
    ):
        os.close(follower)
        shown = b""
        with suppress(OSError):  # the other end was closed
            while part := os.read(leader, 65536):
                shown += part
    os.close(leader)
    assert process.returncode == 0
    return shown.decode()


def test_latency_prints_a_table_and_writes_files(
    tmp_path: Path,
    client: Client,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page, "page", lambda report: f"{sorted(report.commands)}")
    file, html = tmp_path / "a.json", tmp_path / "a.html"
    options = ["--commands", "GET,FT.SEARCH", "--dim", "8", "--clients", "2", "--duration", "0.2"]
    files = ["--json", str(file), "--html", str(html)]
    assert main(["latency", client.place[0], *options, *files]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    report = Report.from_json(file.read_text())
    assert out == report.table() + "\n"
    assert set(report.commands) == {"GET", "FT.SEARCH"}
    assert html.read_text() == "['FT.SEARCH', 'GET']"
    assert client.call("DBSIZE") == 0
    assert client.call("FT._LIST") == []


def test_json_to_standard_output_is_alone_there(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--json", "-", "--duration", "0.1", "--async", "--protocol", "2", "--rate", "100"]
    assert main(["latency", client.place[0], *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    report = Report.from_json(out)
    assert set(report.commands) == {"GET", "SET", "HSET"}
    assert sum(one.count for one in report.commands.values()) == 10


def test_a_rate_that_was_not_reached_is_one_line(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--commands", "PING", "--rate", "1e7", "--duration", "0.1"]
    assert main(["latency", client.place[0], *options]) == 0
    out, err = capsys.readouterr()
    assert "from when it was due" in out
    assert err.startswith("rawredis-llm: the rate was not reached: ")
    assert err.endswith(" calls of 1000000 were made\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", [[], ["--async"]], ids=["sync", "aio"])
def test_a_load_that_is_told_to_stop_reports_and_cleans(
    number: int, kind: list[str], tmp_path: Path, client: Client
) -> None:
    client.call("SET", "mine", "untouched")
    client.call("CONFIG", "RESETSTAT")
    file = tmp_path / "a.json"
    options = ["--commands", "INCR,FT.SEARCH", "--duration", "60", "--clients", "2", *kind]
    command = [*COMMAND, "latency", client.place[0], *options, "--json", str(file)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        wait_for_calls(client, "incr", 100, process)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert err == ""
    report = Report.from_json(file.read_text())
    assert out == report.table() + "\n"
    assert report.commands["INCR"].count + 2 == calls_of(client, "incr")  # 2: the first round
    assert client.call("KEYS", "*") == [b"mine"]
    assert client.call("FT._LIST") == []


def test_a_slow_schedule_is_told_to_stop_between_two_calls(client: Client) -> None:
    client.call("CONFIG", "RESETSTAT")
    options = ["--commands", "INCR", "--rate", "0.02", "--duration", "1000", "--json"]
    command = [*COMMAND, "latency", client.place[0], *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        wait_for_calls(client, "incr", 2, process)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert Report.from_json(out).commands["INCR"].count == 1
    assert client.call("DBSIZE") == 0


def test_a_second_signal_ends_it_at_once(client: Client) -> None:
    client.call("CONFIG", "RESETSTAT")
    command = [*COMMAND, "latency", client.place[0], "--commands", "INCR", "--duration", "60"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        wait_for_calls(client, "incr", 100, process)
        client.call("CLIENT", "PAUSE", 4000, "WRITE")  # so it cannot end by itself
        time.sleep(0.5)  # once its next call is under way
        began = time.monotonic()
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        took = time.monotonic() - began
        out, err = process.communicate()
    client.call("CLIENT", "UNPAUSE")
    assert process.returncode == -signal.SIGINT
    assert took < 3
    assert (out, err) == ("", "")


def test_a_terminal_is_shown_a_table_each_second(server: EmbeddedServer) -> None:
    options = ["--commands", "PING", "--duration", "2.5"]
    shown = on_a_terminal("latency", server.url, *options)
    assert shown.count("p99.9") >= 3  # two that were replaced, and the report's
    assert shown.count("where the mean went") == 1
    assert "\x1b[2K" in shown.split("command ")[-2]  # the last is wiped before the report


def test_json_is_alone_on_a_terminal_too(server: EmbeddedServer) -> None:
    options = ["--commands", "PING", "--duration", "1.3", "--json", "-"]
    shown = on_a_terminal("latency", server.url, *options)
    *_, line = shown.splitlines()
    assert Report.from_json(line).commands["PING"].count > 0
    assert "\x1b" not in shown


def test_who_looks_only_at_errors_is_shown_a_line_each_second(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    options = ["--commands", "PING", "--duration", "2.5", "--json", "-"]
    shown = on_a_terminal("latency", server.url, *options, out=tmp_path / "out")
    lines = shown.splitlines()
    assert [line[:8] for line in lines] == ["   1 s: ", "   2 s: "]
    assert all(line.endswith("/s, 0 errors") for line in lines)
    assert Report.from_json((tmp_path / "out").read_text()).commands["PING"].count > 0


def test_without_rich_a_terminal_is_written_to_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.live", None)  # importing it raises ImportError
    shown: list[int] = []
    with live.display(str, shown.append) as show:
        show(7)
    assert shown == [7]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["latency", "URL", "--commands", "GET,NOPE"], 2, "commands: no 'NOPE'"),
        (["latency", "URL", "--commands", ""], 2, "commands: no ''"),
        (["latency", "URL", "--rate", "0"], 2, "rate must"),
        (["latency", "URL", "--rate", "-1"], 2, "rate must"),
        (["latency", "URL", "--clients", "0"], 2, "clients must"),
        (["latency", "URL", "--size", "many"], 2, "argument --size: invalid int value: 'many'"),
        (["latency", "URL", "--protocol", "4"], 2, "argument --protocol"),
        (["latency", "URL", "--json", "/nonexistent/a.json"], 2, "no folder"),
        (["latency", "URL", "--html", "/nonexistent/a.html"], 2, "no folder"),
        (["latency", "http://x"], 2, "scheme must be redis"),
        (["latency", "redis://127.0.0.1:1"], 1, "PING: Connection refused"),
        (["latency", "URL", "--wrong", "a\nb"], 2, "unrecognized arguments: --wrong a b"),
        (["top", "redis://127.0.0.1:1"], 1, "Connection refused"),
        (["top", "nowhere"], 2, "scheme must be redis"),
        (["top", "URL", "--interval", "0"], 2, "interval must"),
        (["top", "URL", "--count", "0"], 2, "count must"),
        (["top"], 2, "required: URL"),
        (["compare", "/nonexistent.json", "FILE"], 2, "No such file"),
        (["compare", "FILE", "FILE"], 2, "test_latency_cli.py: not JSON"),
        (["compare", ".", "FILE"], 2, "Is a directory"),
        (["nothing"], 2, "invalid choice: 'nothing'"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    arguments: list[str],
    code: int,
    said: str,
    server: EmbeddedServer,
    client: Client,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in = {"URL": server.url, "FILE": __file__}
    try:
        ended = main([stand_in.get(one, one) for one in arguments])
    except SystemExit as error:
        ended = int(str(error.code))
    out, err = capsys.readouterr()
    assert (ended, out) == (code, "")
    assert err.startswith("rawredis-llm: ")
    assert said in err
    assert err.count("\n") == 1
    assert client.call("DBSIZE") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["latency", "redis://x", "redis://me:secret@host"],
        ["latency", "--clients", "redis://me:secret@host"],
        ["latency", "redis://me:se/cret@host"],
        ["latency", "redis://me:secret@127.0.0.1:1"],
        ["redis://me:secret@host"],
        ["top", "redis://me:secret@127.0.0.1:1"],
        ["compare", "redis://me:secret@host", "b.json"],
    ],
)
def test_passwords_are_not_shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(arguments) > 0
    except SystemExit as error:
        assert error.code == 2  # noqa: PT017 - some are noticed before `main` can return
    out, err = capsys.readouterr()
    assert err
    assert "cret" not in out + err


def test_compare_shows_what_changed(
    tmp_path: Path, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = []
    for name, commands in (("a", "FT.SEARCH,SET"), ("b", "FT.SEARCH,GET")):
        file = tmp_path / f"{name}.json"
        options = ["--dim", "4", "--commands", commands, "--duration", "0.1", "--json", str(file)]
        assert main(["latency", client.place[0], *options]) == 0
        reports.append(Report.from_json(file.read_text()))
    capsys.readouterr()
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert main(["compare", *files]) == 0
    out = capsys.readouterr().out
    before, after = reports
    assert out == f"{after.compare(before)}\n"
    lines = {line.split()[0]: line.split() for line in out.splitlines()}
    counts = [f"{one.commands['FT.SEARCH'].count:,}" for one in reports]
    assert lines["FT.SEARCH"][1:3] == counts  # their indexes had other names
    assert lines["GET"][1:3] == ["0", f"{after.commands['GET'].count:,}"]


def test_compare_takes_no_other_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.json"
    for text in ("{}", "[]", json.dumps({"format": "rawredis_llm latency report 1"})):
        file.write_text(text)
        assert main(["compare", str(file), str(file)]) == 2
        assert f"{file}: not a" in capsys.readouterr().err


def sampled(client: Client, at: float) -> live.Sample:
    return live.Sample(at, *client.run(live.sample()))


@pytest.mark.parametrize("protocol", [2, 3])
def test_top_shows_what_the_server_did_meanwhile(server: EmbeddedServer, protocol: int) -> None:
    with Client(server.url, protocol=protocol) as client:
        client.call("SET", "k", "v")
        before = sampled(client, 5.0)
        client.pipeline([("SET", "k", "v")] * 30)
        client.pipeline([("LPUSH", "k", 1)] * 4, raise_errors=False)
        client.pipeline([("SETBIT", "k")] * 3, raise_errors=False)
        after = sampled(client, 7.0)

    def used(name: str) -> float:
        then = before.server.commands.get(name, {"usec": 0.0})
        return after.server.commands[name]["usec"] - then["usec"]

    head, headings, *lines = live.block(before, after).splitlines()
    assert headings.split("  ")[0] == "command"
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows["SET"][0] == "15"  # a second
    assert rows["SET"][-2:] == ["0", "0"]
    assert rows["LPUSH"][-2:] == ["4", "0"]  # failed
    assert rows["SETBIT"][-2:] == ["0", "3"]  # rejected
    took = [used(line.split("  ")[0].lower().replace(" ", "|")) for line in lines]
    assert took == sorted(took, reverse=True)
    assert float(rows["SET"][1]) == pytest.approx(used("set") / 30, abs=0.06)
    said = dict(part.rsplit(" ", 1) for part in head.split("  ") if part.count(" ") == 1)
    commands = (float(one.figures["total_commands_processed"]) for one in (before, after))
    first, last = commands
    assert said["ops/s"] == f"{(last - first) / 2:,.0f}"
    assert int(said["clients"]) >= 1


def test_top_shows_what_there_is(server: EmbeddedServer, client: Client) -> None:
    client.call("ACL", "SETUSER", "less", "on", ">pw", "+@all", "-slowlog", "-latency")
    try:
        with Client(server.url.replace("//", "//less:pw@")) as less:
            before, after = sampled(less, 0.0), sampled(less, 1.0)
        assert "ops/s " in live.block(before, after)
        client.call("ACL", "SETUSER", "less", "-info")
        with Client(server.url.replace("//", "//less:pw@")) as less:
            before, after = sampled(less, 0.0), sampled(less, 1.0)
    finally:
        client.call("ACL", "DELUSER", "less")
    head, _, *lines = live.block(before, after).splitlines()
    assert head.startswith("server -  ops/s -  clients -  blocked -  memory -  in -/s  out -/s")
    assert head.endswith("CPU -")
    for name in ("INFO stats", "INFO cpu", "INFO commandstats", "SLOWLOG GET"):
        assert any(line.startswith(f"not told: {name}") for line in lines), name


def test_top_prints_a_block_for_each_interval(
    server: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", server.url, "--interval", "0.05", "--count", "3"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    blocks = out.rstrip("\n").split("\n\n")
    assert len(blocks) == 3
    for text in blocks:
        assert text.startswith("server ")
        assert any(line.startswith("INFO ") for line in text.splitlines())


def test_top_on_a_terminal_draws_in_place(server: EmbeddedServer) -> None:
    shown = on_a_terminal("top", server.url, "--interval", "0.05", "--count", "3")
    assert shown.count("calls/s") >= 3
    assert "\x1b[2K" in shown
    assert "\x1b[2K" not in shown.split("command ")[-1]  # the last one stays


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_top_ends_when_it_is_told_to(number: int, server: EmbeddedServer) -> None:
    command = [*COMMAND, "top", server.url, "--interval", "0.05"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("server ")
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["latency", "--help"]])
def test_help_loads_no_numpy(arguments: list[str]) -> None:
    source = (
        "import sys, rawredis_llm.cli as cli\n"
        f"try: cli.main({arguments!r})\n"
        "except SystemExit as end: assert end.code == 0\n"
        "loaded = {'numpy', 'asyncio', 'hiredis', 'rich'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", source], check=True, stdout=subprocess.DEVNULL)


def test_sizes_are_read_at_a_glance() -> None:
    sizes = [live._size(number) for number in (None, 0, 9_999, 10_240, 123_456_789, 2e15)]
    assert sizes == ["-", "0 B", "9,999 B", "10 KiB", "118 MiB", "1,862,645 GiB"]


def test_a_report_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], client: Client
) -> None:
    from rawredis_llm import errors, profile

    with profile(client) as profiled:
        client.call("SET", "k", "v")
        with pytest.raises(errors.WrongTypeError):
            client.call("LPUSH", "k", 1)
    cli._tell(profiled)
    assert capsys.readouterr().err == ""  # nobody looks
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    cli._tell(profiled)
    assert "2 calls, " in (said := capsys.readouterr().err)
    assert said.endswith(" 1 errors\n")
