"""The command `rawredis-llm` (and `python -m rawredis_llm`).

Bad input: one line on standard error and exit code 2. An error of Redis: one line, exit code 1.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from . import __version__
from .errors import RedisError

if TYPE_CHECKING:
    from .latency.load import Load
    from .latency.profiler import Profile
    from .latency.report import Report

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    # As Ctrl-C: what was begun is cleaned up.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _COMMANDS[options.command](options)
    except (RedisError, ValueError, OSError) as error:
        print(_line(error), file=sys.stderr)
        return 1 if isinstance(error, RedisError) else 2
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


def _line(message: object) -> str:
    """Return what is said of an error, without the passwords of URLs that it may quote."""
    return "rawredis-llm: " + re.sub("(:/+).*@", r"\1***@", str(message), flags=re.DOTALL)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with the error alone: the usage would be many lines."""
        self.exit(2, _line(message.replace("\n", " ")) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="rawredis-llm", description="What an LLM application keeps in Redis.")
    parser.add_argument("--version", action="version", version=f"rawredis-llm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="show every part at work on a real Redis")
    own = "your documents: paragraphs (.txt) or objects (.jsonl)"
    demo.add_argument("--docs", type=Path, metavar="FILE", help=own)
    demo.add_argument("--url", help="a Redis with search (default: one is started for the demo)")
    kinds = ("wordllama", "hashing")
    told = "a real one, or a lexical one of numpy alone (default: wordllama)"
    demo.add_argument("--embedder", choices=kinds, default="wordllama", help=told)
    demo.add_argument("--explain", action="store_true", help="print the argv of each command")
    serve = commands.add_parser("serve", help="run a Redis with search in the foreground")
    serve.add_argument("--port", type=int, default=6379, help="on 127.0.0.1 (default 6379; 0: any)")
    serve.add_argument("--persist-to", type=Path, metavar="FOLDER", help="keep the data here")
    serve.add_argument("--path", type=Path, metavar="FILE", help="the redis-server to run")
    for name, what in (
        ("export", "write an index's documents to FILE.jsonl and their vectors to FILE.npy"),
        ("import", "write the documents of such files to an index, which must exist"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("url", metavar="URL", help="of the Redis, such as redis://localhost")
        command.add_argument("index", metavar="INDEX", help="its name, or an alias")
        command.add_argument("file", type=Path, metavar="FILE.jsonl")
    _add_latency(commands.add_parser("latency", help="drive a load; say where its time goes"))
    top = commands.add_parser("top", help="show the commands of a server as they run")
    top.add_argument("url", metavar="URL")
    top.add_argument("--interval", type=float, default=1.0, help="seconds (default 1)")
    top.add_argument("--count", type=int, metavar="N", help="end after so many (default: Ctrl-C)")
    compare = commands.add_parser("compare", help="what changed between two latency reports")
    compare.add_argument("before", type=Path, metavar="A.json")
    compare.add_argument("after", type=Path, metavar="B.json")
    return parser


def _add_latency(latency: argparse.ArgumentParser) -> None:
    add = latency.add_argument
    add("url", nargs="?", metavar="URL", help="default: redis://localhost:6379")
    what = "they take turns: PING, GET, SET, FT.SEARCH (KNN), ... (default GET,SET,HSET)"
    add("--commands", type=lambda text: text.split(","), metavar="A,B", help=what)
    tasks = "tasks of one AsyncClient instead of threads of one Client"
    add("--async", dest="asynchronous", action="store_true", help=tasks)
    add("--protocol", type=int, choices=(2, 3), help="of RESP (default 3)")
    options: tuple[tuple[str, type, str, str], ...] = (
        ("clients", int, "N", "threads or tasks (default 1)"),
        ("pipeline", int, "N", "so many of the same in one write (default 1)"),
        ("duration", float, "SECONDS", "default 5"),
        ("rate", float, "PER_SECOND", "writes of all together, on a schedule (default: none)"),
        ("size", int, "BYTES", "of values (default 64)"),
        ("dim", int, "N", "of FT.SEARCH's vectors (default 768); HSET writes such, too"),
        ("html", Path, "FILE", "write it as a page"),
    )
    text = "write the report; without FILE to standard output, and nothing else"
    add("--json", nargs="?", const="-", metavar="FILE", help=text)
    for name, kind, metavar, text in options:
        add(f"--{name}", type=kind, metavar=metavar, help=text)


def _demo(options: argparse.Namespace) -> int:
    from .demo import run  # noqa: PLC0415 - numpy and the embedders are the demo's

    return run(
        docs=options.docs, url=options.url, embedder=options.embedder, explain=options.explain
    )


def _serve(options: argparse.Namespace) -> int:
    from .server import EmbeddedServer  # noqa: PLC0415 - only this command needs it

    server = EmbeddedServer(options.path, persist_to=options.persist_to, port=options.port)
    try:
        with server:
            print(f"Redis with search at {server.url} (Ctrl-C stops it)", flush=True)
            server.wait()
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 0
    print("rawredis-llm: the server ended by itself", file=sys.stderr)
    return 1


def _transfer(options: argparse.Namespace) -> int:
    from .sync.client import Client  # noqa: PLC0415 - numpy is for this command
    from .vector_index import VectorIndex  # noqa: PLC0415

    with Client(options.url) as client:
        index = VectorIndex.open(client, options.index)
        move = index.export if options.command == "export" else index.import_
        count = move(options.file, progress=_bar if sys.stderr.isatty() else None)
    print(f"{options.command}ed {count} documents")
    return 0


def _bar(done: int, total: int | None) -> None:
    """Show on standard error how much is done."""
    share = min(done / total, 1.0) if total else 1.0
    end = "\n" if share == 1.0 else ""
    filled = round(40 * share)
    line = f"\r[{'#' * filled}{'.' * (40 - filled)}] {share:4.0%} {done}"
    print(line, end=end, file=sys.stderr, flush=True)


def _latency(options: argparse.Namespace) -> int:
    from .latency.live import display  # noqa: PLC0415 - numpy is for this command
    from .latency.load import Load, loaded  # noqa: PLC0415

    files = ("command", "json", "html")
    given = {name: one for name, one in vars(options).items() if one is not None}
    load = Load(**{name: one for name, one in given.items() if name not in files})
    alone = options.json == "-"
    for file in (None if alone else options.json, options.html):
        if file and not Path(file).parent.is_dir():  # said before the work, not after it
            raise FileNotFoundError(f"there is no folder for {file}")
    with _ended_by_signals(load), ExitStack() as stack:
        with display(_drawn, _tell, live=not alone) as show:
            report = stack.enter_context(loaded(load, show))
        print(report.to_json() if alone else report.table(), flush=True)
        if options.json and not alone:
            Path(options.json).write_text(report.to_json(), encoding="utf-8")
        if options.html:
            report.to_html(options.html)
        if load.missed:
            made = sum(one.count for one in report.commands.values())
            text = f"the rate was not reached: {made} calls of {made + load.missed} were made"
            print(_line(text), file=sys.stderr)
    return 0


@contextmanager
def _ended_by_signals(load: Load) -> Iterator[None]:
    """End a load by the first SIGINT or SIGTERM, with its report; by a second one the process."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        load.stopped = True  # and nothing else: no lock is free for certain here

    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _drawn(profile: Profile) -> str:
    """Return the first part of the table: what callers see."""
    return profile.table().partition("\n\n")[0]


def _tell(profile: Profile) -> None:
    """Print a line on standard error, if somebody looks at it."""
    if sys.stderr.isatty():
        report = profile.report()
        calls = sum(one.count for one in report.commands.values())
        errors = sum(sum(one.errors.values()) for one in report.commands.values())
        pace = f"{calls:,} calls, {calls / report.seconds:,.0f}/s, {errors:,} errors"
        print(f"{report.seconds:4.0f} s: {pace}", file=sys.stderr)


def _top(options: argparse.Namespace) -> int:
    from .latency.live import top  # noqa: PLC0415 - only this command needs it

    try:
        top(options.url, options.interval, options.count)
    except KeyboardInterrupt:
        print()  # behind the ^C
    return 0


def _compare(options: argparse.Namespace) -> int:
    before, after = _read(options.before), _read(options.after)
    print(after.compare(before))
    return 0


def _read(path: Path) -> Report:
    from .latency.report import Report  # noqa: PLC0415 - only this command needs it

    try:
        return Report.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


_COMMANDS = {
    "demo": _demo,
    "serve": _serve,
    "export": _transfer,
    "import": _transfer,
    "latency": _latency,
    "top": _top,
    "compare": _compare,
}
