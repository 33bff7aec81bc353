"""TLS: who is trusted, by whom, and that calls behave over it as they do without."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from conftest import Redis
from fake import Fake, script
from proxy import TO_CLIENT, Fault, Proxy
from rawredis_llm import EmbeddedServer, errors
from tls import TlsProxy

NOISE = 0.05 + 1.0  # by which a call may outlast its deadline; most of it for a busy machine
LIMIT = 1.0  # in which a busy machine shakes hands, too


class Papers(NamedTuple):
    """A certificate authority, its file, and a client's certificate by it with its key."""

    authority: trustme.CA
    ca: Path
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    """What a company issues for its servers and their clients."""
    folder = tmp_path_factory.mktemp("papers")
    papers = Papers(trustme.CA(), folder / "ca.pem", folder / "client.pem", folder / "client.key")
    client = papers.authority.issue_cert("ada@example.org")
    papers.authority.cert_pem.write_to_path(papers.ca)
    client.private_key_pem.write_to_path(papers.key)
    papers.certificate.write_bytes(b"".join(part.bytes() for part in client.cert_chain_pems))
    return papers


@contextmanager
def tls_server(upstream: str, papers: Papers, *, mutual: bool = False) -> Iterator[TlsProxy]:
    """Run a TLS server that is called `localhost`; a `mutual` one wants to see papers, too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    papers.authority.issue_cert("localhost").configure_cert(context)
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        papers.authority.configure_trust(context)
    with TlsProxy(upstream, context) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def tls(server: EmbeddedServer, papers: Papers) -> Iterator[TlsProxy]:
    """The real server behind TLS."""
    with tls_server(server.url, papers) as proxy:
        yield proxy


def trusting(papers: Papers, port: int) -> str:
    """Return the URL of a server that is verified by the company's certificate."""
    return f"rediss://localhost:{port}?tls_ca_cert_file={papers.ca}"


# -- who is trusted ----------------------------------------------------------------------------


def test_a_server_is_verified_by_a_file_in_the_url(
    redis: Redis, tls: TlsProxy, papers: Papers
) -> None:
    client = redis.connect(url=trusting(papers, tls.port))
    assert redis.do(client.call("SET", "k", "v")) == b"OK"
    assert redis.do(redis.client.call("GET", "k")) == b"v"
    assert redis.do(client.server_info).protocol == redis.protocol


def test_a_server_is_verified_by_a_context(redis: Redis, tls: TlsProxy, papers: Papers) -> None:
    context = ssl.create_default_context()
    papers.authority.configure_trust(context)
    client = redis.connect(url=f"rediss://localhost:{tls.port}/5", ssl_context=context)
    assert b" db=5 " in redis.do(client.call("CLIENT", "INFO"))


UNTRUSTED = "self.signed certificate|unable to get local issuer"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("rediss://localhost:{port}", UNTRUSTED),
        ("rediss://127.0.0.1:{port}", UNTRUSTED),
        ("rediss://127.0.0.1:{port}?tls_ca_cert_file={ca}", r"127\.0\.0\.1"),
    ],
)
def test_a_server_that_is_not_who_it_should_be_is_refused_once_and_for_all(
    redis: Redis, tls: TlsProxy, papers: Papers, url: str, reason: str
) -> None:
    accepted = tls.accepted
    client = redis.connect(url=url.format(port=tls.port, ca=papers.ca))
    with pytest.raises(errors.CertificateError, match=reason) as caught:
        redis.do(client.call("GET", "k"))
    assert "tls_ca_cert_file" in str(caught.value)
    assert tls.accepted == accepted + 1


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_whoever_wants_to_trusts_any_server(redis: Redis, tls: TlsProxy, host: str) -> None:
    client = redis.connect(url=f"rediss://{host}:{tls.port}?tls_verify=none")
    assert redis.do(client.call("ECHO", "x")) == b"x"


def test_a_file_that_cannot_be_read_is_an_error_of_the_url(redis: Redis, tls: TlsProxy) -> None:
    url = f"rediss://localhost:{tls.port}?tls_ca_cert_file=/no/such/file"
    with pytest.raises(ValueError, match=r"^url: .*tls_ca_cert_file.* cannot be loaded"):
        redis.do(redis.connect(url=url).call("GET", "k"))


def test_a_client_shows_its_papers_where_they_are_asked_for(redis: Redis, papers: Papers) -> None:
    with tls_server(redis.url, papers, mutual=True) as proxy:
        url = f"{trusting(papers, proxy.port)}&tls_cert_file={papers.certificate}"
        client = redis.connect(url=f"{url}&tls_key_file={papers.key}")
        assert redis.do(client.call("ECHO", "x")) == b"x"
        nobody = redis.connect(url=trusting(papers, proxy.port), retry=None)
        with pytest.raises(errors.ConnectError) as caught:
            redis.do(nobody.call("INCR", "n"))
        assert type(caught.value) is errors.ConnectError
    assert redis.do(redis.client.call("GET", "n")) is None


def test_a_server_that_does_not_speak_tls_is_a_connect_error(redis: Redis) -> None:
    with Fake(script()) as fake:
        client = redis.connect(url=f"rediss://127.0.0.1:{fake.port}?tls_verify=none", retry=None)
        with pytest.raises(errors.ConnectError):
            redis.do(client.call("GET", "k"))


def test_a_client_that_does_not_speak_tls_is_a_connect_error(redis: Redis, tls: TlsProxy) -> None:
    client = redis.connect(url=f"redis://127.0.0.1:{tls.port}", retry=None)
    with pytest.raises(errors.ConnectError):
        redis.do(client.call("GET", "k"))


# -- what goes through it ----------------------------------------------------------------------


def test_big_values_go_both_ways(redis: Redis, tls: TlsProxy, papers: Papers) -> None:
    client = redis.connect(url=trusting(papers, tls.port))
    value = os.urandom(5_000_000)
    assert redis.do(client.call("SET", "k", value)) == b"OK"
    assert redis.do(client.call("GET", "k")) == value
    assert redis.do(client.pipeline([("ECHO", value[:1_000_000]), ("STRLEN", "k")])) == [
        value[:1_000_000],
        len(value),
    ]
    assert client.connections.created == 1


def test_pipelines_and_transactions_go_through(redis: Redis, tls: TlsProxy, papers: Papers) -> None:
    client = redis.connect(url=trusting(papers, tls.port))
    many = [("ECHO", i) for i in range(5000)]
    assert redis.do(client.pipeline(many)) == [b"%d" % i for i in range(5000)]
    found = redis.do(client.transaction([("INCR", "n"), ("INCRBY", "n", 2)]))
    assert found == [1, 3]
    with pytest.raises(errors.WrongTypeError):
        redis.do(client.call("LPUSH", "n", "x"))
    assert client.connections.created == 1


def test_a_connection_that_was_lost_is_made_again(redis: Redis, papers: Papers) -> None:
    with Fake(script(None, b"+v\r\n", None)) as fake, tls_server(fake.url, papers) as proxy:
        client = redis.connect(url=trusting(papers, proxy.port))
        assert redis.do(client.call("GET", "k")) == b"v"
        assert fake.accepted == 2
        with pytest.raises(errors.OutcomeUnknownError):
            redis.do(client.call("INCR", "k"))
        assert (fake.accepted, fake.sent("INCR")) == (2, 1)


# -- deadlines ---------------------------------------------------------------------------------


def test_an_answer_that_does_not_come_is_waited_for_until_the_deadline(
    redis: Redis, papers: Papers
) -> None:
    with Fake(script(b"")) as fake, tls_server(fake.url, papers) as proxy:
        client = redis.connect(url=trusting(papers, proxy.port), timeout=LIMIT)
        start = time.monotonic()
        with pytest.raises(errors.ReadTimeoutError):
            redis.do(client.call("GET", "k"))
        assert LIMIT / 2 < time.monotonic() - start < LIMIT + NOISE


def test_an_answer_that_stops_in_the_middle_of_a_record_is_too(
    redis: Redis, tls: TlsProxy, papers: Papers
) -> None:
    """The socket is readable then, but nothing can be read."""
    redis.do(redis.client.call("SET", "k", "x" * 100_000))
    with Proxy(trusting(papers, tls.port), Fault("stall", TO_CLIENT, 50_000)) as proxy:
        url = f"{proxy.url.replace('redis', 'rediss')}?tls_verify=none"
        client = redis.connect(url=url, timeout=LIMIT)
        start = time.monotonic()
        with pytest.raises(errors.ReadTimeoutError):
            redis.do(client.call("GET", "k"))
        assert LIMIT / 2 < time.monotonic() - start < LIMIT + NOISE
        assert proxy.fired
        another = redis.connect(url=url)
        assert len(redis.do(another.call("GET", "k"))) == 100_000
        for each in (client, another):
            redis.do(each.close())  # which the proxy waits for


def test_a_handshake_that_does_not_come_to_its_end_is_given_up(redis: Redis) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"rediss://127.0.0.1:{listener.getsockname()[1]}?tls_verify=none"
        start = time.monotonic()
        with pytest.raises(errors.ConnectTimeoutError):
            redis.do(redis.connect(url=url, timeout=LIMIT).call("GET", "k"))
        assert LIMIT / 2 < time.monotonic() - start < LIMIT + NOISE


def test_a_server_that_reads_slowly_does_not_prolong_a_call(redis: Redis, papers: Papers) -> None:
    done = threading.Event()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    papers.authority.issue_cert("localhost").configure_cert(context)

    def read_slowly() -> None:
        sock, _ = listener.accept()
        with context.wrap_socket(sock, server_side=True) as tls_sock:
            tls_sock.recv(65536)
            tls_sock.sendall(b"%0\r\n" + b"+OK\r\n" * 2)
            while not done.wait(0.02) and tls_sock.recv(65536):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        reading = threading.Thread(target=read_slowly)
        reading.start()
        client = redis.connect(url=trusting(papers, listener.getsockname()[1]), timeout=LIMIT)
        start = time.monotonic()
        with pytest.raises(errors.ReadTimeoutError):
            redis.do(client.call("SET", "k", b"x" * 12_000_000))
        assert LIMIT / 2 < time.monotonic() - start < LIMIT + NOISE
        done.set()
        reading.join()
