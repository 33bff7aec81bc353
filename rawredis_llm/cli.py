"""The command `rawredis-llm` (and `python -m rawredis_llm`).

Bad input: one line on standard error and exit code 2. An error of Redis: one line, exit code 1.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .errors import RedisError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    # As Ctrl-C: what was begun is cleaned up.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _COMMANDS[options.command](options)
    except (RedisError, ValueError, OSError) as error:
        print(f"rawredis-llm: {error}", file=sys.stderr)
        return 1 if isinstance(error, RedisError) else 2
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rawredis-llm", description="What an LLM application keeps in Redis."
    )
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
    return parser


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


_COMMANDS = {"demo": _demo, "serve": _serve, "export": _transfer, "import": _transfer}
