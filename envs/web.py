"""One request to a service, bounded in every way: the only place where environments reach a network.

Invariant: bytes go to a host that was named when the `Client` was made, at an address checked after the name was resolved
and before anything is sent; there is an answer, or an `ExternalError`, within `total_s`; an answer holds at most
`answer_bytes`. Redirects are not followed, compressed answers are refused (so none can swell), and proxies, `.netrc` and
cookies are not used.

A connection lasts for one request. That costs a handshake, and leaves nothing that threads, forks, other processes or
snapshots could share by mistake.
"""

from __future__ import annotations

import email.utils
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests
import urllib3

from trace_gym.envs.naming import split_url
from trace_gym.errors import ConfigError, ExternalError
from trace_gym.web_watch import Watch, WatchedAdapter, is_literal, is_public, same_host, watched

__all__ = ["Client", "Limits", "Reply"]

CHUNK_BYTES = 65_536
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})  # worth another try, and no answer
UNAUTHORISED = frozenset({401, 407})  # our credentials are wrong, whatever was asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call of `Client.send` may take, all tries and waits together."""

    connect_s: float = 5.0
    total_s: float = 30.0
    answer_bytes: int = 1 << 20
    request_bytes: int = 1 << 18  # URL and body
    tries: int = 3
    first_wait_s: float = 0.5  # doubled after each try; a longer Retry-After is kept to


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A service's answer. `body` is empty where the answer was `too_large`."""

    status: int
    content_type: str  # in lower case, without parameters
    location: str  # of a redirect, else empty
    body: bytes
    too_large: bool = False


class Client:
    """Sends requests to `hosts` with fixed `headers`.

    A host that is an IP address or `localhost` may be a private one; a name may stand for a private, loopback or
    link-local address only if it is in `private_hosts` too. Raises `ConfigError` for headers that cannot be sent.
    """

    def __init__(
        self,
        hosts: Collection[str],
        *,
        private_hosts: Collection[str] = (),
        headers: Mapping[str, str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._hosts = frozenset(map(same_host, hosts))
        self._private_hosts = frozenset(map(same_host, private_hosts))
        self._headers = {"User-Agent": "trace-gym", "Connection": "close", **(headers or {})}
        self._headers["Accept-Encoding"] = "identity"
        self.limits = limits or Limits()
        for name, value in self._headers.items():
            if not name or not (name + value).isascii() or not (name + value).isprintable():
                raise ConfigError(f"the header {name[:40]!a} cannot be sent: use printable ASCII on one line")

    def send(self, method: str, url: str, *, body: bytes | None = None, retry: bool = True) -> Reply:
        """The answer to one request; `body` is JSON.

        Failures that may pass are tried again where `retry` is set, which it must not be for a request with effects.
        Raises `ExternalError` when there is no answer.
        """
        place = split_url(url)
        service = f"{place.scheme}://{place.netloc}"
        if same_host(place.hostname or "") not in self._hosts:
            raise ExternalError(f"{service} is not among the hosts that were named; nothing was sent")
        if len(body or b"") + len(url) > self.limits.request_bytes:
            raise ExternalError(f"the request to {service} exceeds {self.limits.request_bytes:,} bytes")
        end = time.monotonic() + self.limits.total_s
        tries = self.limits.tries if retry else 1
        for number in range(tries):
            try:
                return self._send_once(method, url, body=body, end=end)
            except _Transient as failure:
                wait_s = max(self.limits.first_wait_s * 2**number, failure.retry_after_s)
                if number + 1 == tries or time.monotonic() + wait_s >= end:
                    raise ExternalError(_gave_up(service, failure, number + 1)) from failure
            time.sleep(wait_s)
        raise AssertionError("at least one try")

    def _send_once(self, method: str, url: str, *, body: bytes | None, end: float) -> Reply:
        headers = self._headers | ({} if body is None else {"Content-Type": "application/json"})
        with watched(self._allows, end) as watch, requests.Session() as session:
            session.trust_env = False  # no proxies, no .netrc
            session.mount("http://", WatchedAdapter())
            session.mount("https://", WatchedAdapter())
            try:
                with session.request(
                    method,
                    url,
                    data=body,
                    headers=headers,
                    timeout=(min(self.limits.connect_s, watch.left_s), watch.left_s),
                    allow_redirects=False,
                    stream=True,
                    verify=os.environ.get("REQUESTS_CA_BUNDLE") or True,
                ) as response:
                    return self._read(response, watch)
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                root = _innermost(error)
                late = watch.late or isinstance(error, requests.Timeout) or isinstance(root, TimeoutError)
                raise _Transient("no answer in time" if late else _told(root)) from error

    def _read(self, response: requests.Response, watch: Watch) -> Reply:
        status, headers = response.status_code, response.headers
        host = urlsplit(response.url).hostname
        if status in TRANSIENT:
            raise _Transient(f"HTTP {status}", _retry_after_s(headers.get("Retry-After", "")))
        if status in UNAUTHORISED:
            raise ExternalError(
                f"{host} wants other credentials (HTTP {status}); check the configured headers"
            )
        encoding = headers.get("Content-Encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            raise ExternalError(
                f"{host} compressed its answer ({encoding:.40}) though asked not to; it was not read"
            )
        body = self._body(response.raw, watch)
        return Reply(
            status=status,
            content_type=headers.get("Content-Type", "").partition(";")[0].strip().lower(),
            location=headers.get("Location", ""),
            body=body or b"",
            too_large=body is None,
        )

    def _body(self, raw: urllib3.BaseHTTPResponse, watch: Watch) -> bytes | None:
        """The body; None where it is larger than allowed."""
        parts, size = [], 0
        while chunk := raw.read(CHUNK_BYTES, decode_content=False):
            size += len(chunk)
            if size > self.limits.answer_bytes:
                return None
            parts.append(chunk)
        if watch.late:  # without a length, an answer ends where its connection does
            raise TimeoutError
        return b"".join(parts)

    def _allows(self, host: str, address: str) -> bool:
        return is_literal(host) or host in self._private_hosts or is_public(address)


# ---- failures ------------------------------------------------------------------------------------------------------


class _Transient(Exception):
    """Why there was no answer this time."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


def _retry_after_s(value: str) -> float:
    """Seconds of a Retry-After header, a number or a date; 0 where there is none that makes sense."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _gave_up(service: str, failure: _Transient, tries: int) -> str:
    asked = f", asking to wait {failure.retry_after_s:.0f} s" if failure.retry_after_s else ""
    times = "" if tries == 1 else f" in {tries} tries"
    return f"{service} gave no answer{times} ({failure}{asked}); check that it is up and its address right"


def _innermost(error: BaseException) -> BaseException:
    """The error at the root of `error`."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error


def _told(error: BaseException) -> str:
    """The reason without the URL, which may hold a key."""
    return str(getattr(error, "strerror", None) or type(error).__name__)
