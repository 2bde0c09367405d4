import gzip
import socket
import threading
import time
from typing import Any

import pytest
import requests

from tests.support.local_server import Told, free_port, serving, threads_end
from trace_gym.envs.naming import split_url
from trace_gym.envs.web import Client, Limits
from trace_gym.errors import ConfigError, ExternalError
from trace_gym.web_watch import is_public

PATIENT = Limits(total_s=20.0, first_wait_s=0.02, answer_bytes=10_000)  # a busy machine is no slow service
HASTY = Limits(total_s=0.35, first_wait_s=0.02, answer_bytes=10_000)


def client(**options: Any) -> Client:
    return Client(["127.0.0.1"], limits=options.pop("limits", PATIENT), **options)


def test_an_answer_is_an_answer_whatever_its_status() -> None:
    for status in (200, 204, 302, 400, 403, 404, 409, 422, 501):
        with serving(
            [Told(status, "" if status == 204 else "x", {"Content-Type": "Text/Plain; charset=utf-8"})]
        ) as service:
            reply = client().send("GET", service.url + "/a?b=c")
            assert (reply.status, reply.body, reply.content_type) == (
                status,
                b"" if status == 204 else b"x",
                "text/plain",
            )
            assert [asked.target for asked in service.asked] == ["/a?b=c"]


def test_what_is_sent() -> None:
    with serving([Told()]) as service:
        client(headers={"X-Key": "k", "User-Agent": "me/1"}).send("POST", service.url + "/a", body=b'{"b":1}')
        (asked,) = service.asked
        assert (asked.method, asked.body) == ("POST", b'{"b":1}')
        sent = {name.lower(): value for name, value in asked.headers.items()}
        assert sent["x-key"] == "k"
        assert sent["user-agent"] == "me/1"
        assert sent["content-type"] == "application/json"
        assert sent["accept-encoding"] == "identity"
        assert "cookie" not in sent
        assert "authorization" not in sent


def test_failures_that_may_pass_are_tried_again() -> None:
    with serving([Told(503), Told(429), Told(200, "fine")]) as service:
        assert client().send("GET", service.url).body == b"fine"
        assert len(service.asked) == 3
    with serving([Told(500)]) as service:
        with pytest.raises(ExternalError, match=r"no answer in 3 tries \(HTTP 500\)"):
            client().send("GET", service.url)
        assert len(service.asked) == 3


def test_a_request_with_effects_is_sent_once() -> None:
    with serving([Told(503), Told(200, "fine")]) as service:
        with pytest.raises(ExternalError, match=r"gave no answer \(HTTP 503\)"):
            client().send("POST", service.url, body=b"{}", retry=False)
        assert len(service.asked) == 1


def test_retry_after_is_kept_to_and_bounded() -> None:
    with serving([Told(429, "", {"Retry-After": "1"}), Told(200, "fine")]) as service:
        start = time.monotonic()
        assert client(limits=PATIENT).send("GET", service.url).body == b"fine"
        assert time.monotonic() - start >= 1
    for value in ("3600", "Fri, 31 Dec 2100 23:59:59 GMT", "9" * 400):
        with serving([Told(429, "", {"Retry-After": value})]) as service:
            start = time.monotonic()
            with pytest.raises(ExternalError, match=r"HTTP 429, asking to wait \d+ s"):
                client().send("GET", service.url)
            assert time.monotonic() - start < 5
            assert len(service.asked) == 1
    with serving([Told(429, "", {"Retry-After": "soon"}), Told(200, "fine")]) as service:
        assert client().send("GET", service.url).body == b"fine"


SLOW = {
    "silent": Told(wait_s=4),
    "body": Told(body=b"x" * 100, drip_s=0.1),
    "headers": Told(
        body=b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + b"X: y\r\n" * 50, raw=True, drip_s=0.05
    ),
    "no length": Told(body=b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100, raw=True, drip_s=0.05),
    "chunks": Told(
        body=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 50,
        raw=True,
        drip_s=0.05,
    ),
    "chunk line": Told(
        body=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 100, raw=True, drip_s=0.05
    ),
    "continue": Told(body=b"HTTP/1.1 100 Continue\r\n\r\n" * 50, raw=True, drip_s=0.01),
}


@pytest.mark.parametrize("kind", SLOW)
def test_a_slow_answer_ends_at_the_deadline(kind: str) -> None:
    before = set(threading.enumerate())
    with serving([SLOW[kind]]) as service:
        start = time.monotonic()
        with pytest.raises(ExternalError, match="no answer in time"):
            client(limits=HASTY).send("GET", service.url)
        assert 0.3 < time.monotonic() - start < 2.5
    assert threads_end(before)


def test_a_timeout_is_told_as_one_whatever_wraps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the socket's own limit may come before the watch's, inside a connection error."""

    def late(*_: Any, **__: Any) -> None:
        try:
            raise TimeoutError
        except TimeoutError as error:
            raise requests.ConnectionError("aborted") from error

    monkeypatch.setattr(requests.Session, "request", late)
    with pytest.raises(ExternalError, match="no answer in time"):
        client().send("GET", "http://127.0.0.1:9/", retry=False)


def test_a_large_answer_is_not_read() -> None:
    with serving([Told(body=b"x" * 10_000)]) as service:
        assert len(client().send("GET", service.url).body) == 10_000
    for told in (
        Told(body=b"x" * 10_001),
        Told(size=50 << 20),
        Told(body=b"HTTP/1.1 200 OK\r\n\r\n", raw=True, size=50 << 20),
    ):
        with serving([told]) as service:
            reply = client().send("GET", service.url)
            assert (reply.too_large, reply.body) == (True, b"")


@pytest.mark.parametrize(
    "told",
    [
        Told(body=b"not HTTP at all", raw=True),
        Told(body=b"", raw=True),
        Told(body=b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort", raw=True),
        Told(body=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", raw=True),
        Told(body=b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", raw=True),
        Told(body=b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", raw=True),
    ],
)
def test_a_broken_answer_is_none(told: Told) -> None:
    with serving([told]) as service, pytest.raises(ExternalError, match="gave no answer"):
        client().send("GET", service.url)


def test_a_compressed_answer_is_refused_so_that_none_can_swell() -> None:
    bomb = gzip.compress(bytes(10 << 20))
    told = Told(body=bomb, headers={"Content-Encoding": "gzip"})
    with serving([told]) as service, pytest.raises(ExternalError, match="compressed its answer"):
        client().send("GET", service.url)


def test_redirects_are_not_followed() -> None:
    with (
        serving([Told(200, "secret")]) as other,
        serving([Told(302, "", {"Location": other.url})]) as service,
    ):
        reply = client().send("GET", service.url)
        assert (reply.status, reply.location) == (302, other.url)
        assert other.asked == []


def test_nothing_is_sent_to_a_host_that_was_not_named() -> None:
    with serving([Told()]) as service:
        with pytest.raises(ExternalError, match="not among the hosts"):
            Client(["example.org"]).send("GET", service.url)
        assert service.asked == []


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"]
)
def test_a_name_that_stands_for_a_private_address_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with serving([Told()]) as service:

        def resolve(host: str, port: int, **_: Any) -> list[Any]:
            assert host == "rebound.example"
            good = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))
            return [good, (family, socket.SOCK_STREAM, 6, "", (address, port))]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        with pytest.raises(
            ExternalError, match=f"stands for the private address {address}; nothing was sent"
        ):
            Client(["rebound.example"], limits=PATIENT).send("GET", f"http://rebound.example:{service.port}/")
        assert service.asked == []


def test_a_private_host_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]
    with serving([Told(200, "fine")]) as service:
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda *_, **__: [(*found[0][:4], ("127.0.0.1", service.port))]
        )
        mine = Client(["api.internal"], private_hosts=["API.internal."], limits=PATIENT)
        assert mine.send("GET", f"http://api.internal:{service.port}/").body == b"fine"


@pytest.mark.parametrize(
    "address", ["0.0.0.0", "192.168.1.1", "100.64.0.1", "224.0.0.1", "fe80::1%eth0", "fc00::1", "ff02::1"]
)
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


def test_public_addresses() -> None:
    assert is_public("8.8.8.8")
    assert is_public("2620:0:862:ed1a::1")


@pytest.mark.parametrize("spelling", ["127.1", "2130706433", "0x7f.1", "0"])
def test_other_spellings_of_loopback_are_names_like_any(spelling: str) -> None:
    with serving([Told()]) as service:
        with pytest.raises(ExternalError, match=r"private address|gave no answer"):
            Client([spelling], limits=PATIENT).send("GET", f"http://{spelling}:{service.port}/")
        assert service.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://evil@127.0.0.1/", "http://127.0.0.1@evil.example/", "ftp://h/", "file:///etc/passwd", "//h/", "h", "",
        "http://", "http:///x", "http://h:0/", "http://h:99999/", "http://[::1/", "http://h/a b", "http://h/\r\nX: y",
        "http://h/ä", "http://h\\@evil/", "javascript:alert(1)",
    ],
)  # fmt: skip
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError):
        split_url(url)


@pytest.mark.parametrize(
    ("name", "value"), [("X", "a\r\nY: b"), ("X\n", "a"), ("", "a"), ("X", "ä"), ("X", "\0")]
)
def test_headers_that_cannot_be_sent(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match="cannot be sent"):
        Client(["h"], headers={name: value})


def test_no_service() -> None:
    with pytest.raises(
        ExternalError, match=r"gave no answer in 3 tries \(Connection refused\); check that it is up"
    ):
        client().send("GET", f"http://127.0.0.1:{free_port()}/?key=hunter22")


def test_a_request_is_bounded_too() -> None:
    with serving([Told()]) as service, pytest.raises(ExternalError, match="exceeds 262,144 bytes"):
        client().send("POST", service.url, body=b"x" * 262_144)


def test_proxies_and_netrc_are_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hunter22\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving([Told()]) as proxy, serving([Told(200, "fine")]) as service:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert client().send("GET", service.url).body == b"fine"
        assert "Authorization" not in service.asked[0].headers
        assert proxy.asked == []
