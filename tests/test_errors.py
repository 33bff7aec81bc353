"""The tree of errors, and the table from a server's words to a class."""

from __future__ import annotations

import builtins
import copy
import inspect
import pickle

import pytest

from rawredis_llm import errors
from rawredis_llm.errors import RedisError, ReplyError, reply_error

CODES: list[tuple[str, type[ReplyError]]] = [
    ("ASK 3999 127.0.0.1:6381", errors.AskError),
    ("BUSY Redis is busy running a script.", errors.BusyError),
    ("CLUSTERDOWN Hash slot not served", errors.ClusterDownError),
    ("CROSSSLOT Keys in request don't hash to the same slot", errors.CrossSlotError),
    ("EXECABORT Transaction discarded because of previous errors.", errors.ExecAbortError),
    ("LOADING Redis is loading the dataset in memory", errors.LoadingError),
    ("MASTERDOWN Link with MASTER is down", errors.MasterDownError),
    ("MISCONF Redis is configured to save RDB snapshots", errors.MisconfiguredError),
    ("MOVED 3999 127.0.0.1:6381", errors.MovedError),
    ("NOAUTH Authentication required.", errors.AuthenticationError),
    ("NOPERM User x has no permissions to run the 'get' command", errors.NoPermissionError),
    ("NOSCRIPT No matching script.", errors.NoScriptError),
    ("OOM command not allowed when used memory > 'maxmemory'.", errors.OutOfMemoryError),
    ("READONLY You can't write against a read only replica.", errors.ReadOnlyError),
    ("TRYAGAIN Multiple keys request during rehashing of slot", errors.TryAgainError),
    ("WRONGPASS invalid username-password pair", errors.AuthenticationError),
    ("WRONGTYPE Operation against a key", errors.WrongTypeError),
    # These have no code of their own.
    ("ERR max number of clients reached", errors.MaxClientsError),
    ("ERR invalid password", errors.AuthenticationError),
    (
        "ERR AUTH <password> called without any password configured for the default user",
        errors.AuthenticationError,
    ),
    # A code is a whole word, and only the first.
    ("BUSYGROUP Consumer Group name already exists", ReplyError),
    ("ERR WRONGTYPE is not the first word here", ReplyError),
    ("wrongtype", ReplyError),
    ("", ReplyError),
]

# What RediSearch 2.10 to 8.4 say, by command; without a code word.
SEARCH: list[tuple[str, str, type[ReplyError]]] = [
    ("FT.SEARCH", "nope: no such index", errors.IndexNotFoundError),
    ("FT.SEARCH", "No such index nope", errors.IndexNotFoundError),
    ("FT.INFO", "Unknown index name", errors.IndexNotFoundError),
    ("FT.DROPINDEX", "Unknown Index name", errors.IndexNotFoundError),
    ("FT.DROPINDEX", "nope: no such index", errors.IndexNotFoundError),
    ("FT.CREATE", "Index already exists", errors.IndexExistsError),
    ("FT.SEARCH", "Timeout limit was reached", errors.SearchTimeoutError),
    (
        "FT.SEARCH",
        "query vector blob size (512) does not match index's expected size (256).",
        errors.VectorSizeError,
    ),
    ("FT.SEARCH", "ERR unknown command 'FT.SEARCH'", errors.SearchUnavailableError),
    ("FT.INFO", "ERR unknown command `ft.info`", errors.SearchUnavailableError),
    ("FT.SEARCH", "Syntax error at offset 3 near x", ReplyError),
    ("FT.SEARCH", "LOADING Redis is loading the dataset in memory", errors.LoadingError),
]

CLASSES = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize(("text", "kind"), CODES)
def test_the_first_word_decides(text: str, kind: type[ReplyError]) -> None:
    for command in ("", "GET", "FT.SEARCH"):
        error = reply_error(text, command, "host:1")
        assert type(error) is kind
        assert (error.message, error.command, error.address) == (text, command, "host:1")


@pytest.mark.parametrize(("command", "text", "kind"), SEARCH)
def test_search_errors_are_told_by_their_text(
    command: str, text: str, kind: type[ReplyError]
) -> None:
    assert type(reply_error(text, command)) is kind
    if text.partition(" ")[0] != "LOADING":
        assert type(reply_error(text.swapcase(), command)) is kind
        assert type(reply_error(text, "EVAL")) is ReplyError  # anyone may say such words
        assert type(reply_error(text)) is ReplyError


def test_every_kind_of_reply_error_is_in_the_tables() -> None:
    known = {kind for _, kind in CODES} | {kind for _, _, kind in SEARCH}
    assert set(ReplyError.__subclasses__()) == known - {ReplyError}


@pytest.mark.parametrize("quote", ["'", "`"])
def test_arguments_that_the_server_quotes_are_cut(quote: str) -> None:
    text = f"ERR unknown command {quote}GTE{quote}"
    error = reply_error(f"{text}, with args beginning with: {quote}hunter2{quote} ", "GTE", "h:1")
    assert error.message == text
    assert "hunter2" not in str(error) + repr(error)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ReplyError("WRONGTYPE Operation"), "WRONGTYPE"),
        (ReplyError("ERR"), "ERR"),
        (ReplyError("No such index nope"), ""),
        (ReplyError("nope: no such index"), ""),
        (ReplyError(""), ""),
        (errors.ConnectError("ECONNREFUSED is no word of the server"), ""),
    ],
)
def test_the_code_is_the_servers_first_word_in_capitals(error: RedisError, code: str) -> None:
    assert error.code == code


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RedisError(), ""),
        (RedisError("gone"), "gone"),
        (RedisError("gone", command="GET"), "GET: gone"),
        (RedisError("gone", address="h:1"), "gone [h:1]"),
        (RedisError("gone", command="GET", address="h:1"), "GET: gone [h:1]"),
        (
            errors.PoolTimeoutError("no connection", command="GET", address="h:1"),
            f"GET: no connection [h:1]. {errors.PoolTimeoutError.hint}",
        ),
    ],
)
def test_the_text_is_command_message_address_and_hint(error: RedisError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_survive_pickling_and_copying(kind: type[RedisError]) -> None:
    error = kind("MSG some text", command="GET", address="host:1")
    error.__cause__ = OSError("the socket's own")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert twin is not error
        assert type(twin) is kind
        assert (twin.message, twin.command, twin.address) == ("MSG some text", "GET", "host:1")
        assert (str(twin), twin.code, twin.args) == (str(error), error.code, ("MSG some text",))


# An error, what catches it, and what must not.
TREE: list[tuple[type[RedisError], set[type[Exception]], set[type[Exception]]]] = [
    (
        errors.ReadTimeoutError,
        {
            errors.TimeoutError,
            builtins.TimeoutError,
            errors.OutcomeUnknownError,
            errors.ConnectionError,
            builtins.ConnectionError,
            OSError,
        },
        {errors.ConnectError, ReplyError},
    ),
    (
        errors.ConnectTimeoutError,
        {errors.TimeoutError, builtins.TimeoutError, errors.ConnectError, errors.ConnectionError},
        {errors.OutcomeUnknownError},
    ),
    (
        errors.PoolTimeoutError,
        {errors.TimeoutError, builtins.TimeoutError},
        {errors.ConnectionError, builtins.ConnectionError},
    ),
    (
        errors.ConnectError,
        {errors.ConnectionError, builtins.ConnectionError},
        {errors.OutcomeUnknownError, errors.TimeoutError, builtins.TimeoutError},
    ),
    (errors.OutcomeUnknownError, {errors.ConnectionError}, {errors.ConnectError}),
    (errors.ProtocolError, {errors.ConnectionError, builtins.ConnectionError}, {ReplyError}),
    (errors.WatchError, {RedisError}, {ReplyError, errors.ConnectionError}),
    (errors.UnexpectedReplyError, {RedisError}, {ReplyError, ValueError}),
    (errors.IndexMismatchError, {RedisError}, {ReplyError, ValueError}),
    (errors.IndexNotFoundError, {ReplyError}, {LookupError, errors.ConnectionError}),
    (errors.MovedError, {ReplyError}, {errors.ConnectionError, OSError}),
]


@pytest.mark.parametrize(("kind", "caught_by", "not_caught_by"), TREE)
def test_what_catches_an_error(
    kind: type[RedisError], caught_by: set[type[Exception]], not_caught_by: set[type[Exception]]
) -> None:
    assert {each for each in caught_by if not issubclass(kind, each)} == set()
    assert {each for each in not_caught_by if issubclass(kind, each)} == set()


@pytest.mark.parametrize("kind", CLASSES)
def test_nothing_the_server_said_is_a_fault_of_the_connection(kind: type[RedisError]) -> None:
    assert issubclass(kind, RedisError)
    assert not (issubclass(kind, ReplyError) and issubclass(kind, OSError))
    assert inspect.getdoc(kind)


def test_all_names_are_the_public_classes() -> None:
    public = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and not name.startswith("_")
    }
    assert sorted(errors.__all__) == sorted(public)
