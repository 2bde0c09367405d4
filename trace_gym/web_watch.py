"""How a connection is made and unmade: to an address that was checked, and never beyond its deadline.

Timeouts of sockets bound each wait, not their sum: a service that sends a byte a second is never late. So a watch holds a
twin of the connection's socket and shuts the connection down when time is up, whatever it waits for; looking up a name
alone has the resolver's own limits. `requests` is made to connect through the watch of the calling thread, which is what
`WatchedAdapter` is for.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import requests.adapters
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from trace_gym.errors import ExternalError

__all__ = ["Watch", "WatchedAdapter", "is_literal", "is_public", "same_host", "watched"]


# ---- hosts and addresses -------------------------------------------------------------------------------------------


def same_host(host: str) -> str:
    """A host in the form in which hosts are compared."""
    return host.strip().strip("[]").rstrip(".").lower()


def is_literal(host: str) -> bool:
    """Whether naming `host` already says that a private address is meant."""
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return host == "localhost"


def is_public(address: str) -> bool:
    """Whether `address` is one of the internet's; IPv6 addresses that wrap an IPv4 one are not."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    wrapped = isinstance(ip, ipaddress.IPv6Address) and any(ip in network for network in _WRAPPING)
    return ip.is_global and not ip.is_multicast and not wrapped


_WRAPPING = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96", "2002::/16", "2001::/32")))


# ---- watches -------------------------------------------------------------------------------------------------------


class Watch:
    """One request's connection. `allows(host, address)` says whether the one may stand for the other."""

    def __init__(self, allows: Callable[[str, str], bool], end: float) -> None:
        self._allows, self._end = allows, end
        self._twin: socket.socket | None = None  # TLS takes the connection's own socket away
        self._lock = threading.Lock()
        self.late = False

    @property
    def left_s(self) -> float:
        return max(0.01, self._end - time.monotonic())

    def connect(self, host: str, port: int, timeout_s: float | None) -> socket.socket:
        """A connection to `host`. Raises `ExternalError` where one of its addresses is not allowed, else `OSError`."""
        host = same_host(host)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for *_, address in found:
            if not self._allows(host, str(address[0])):
                raise ExternalError(
                    f"{host} stands for the private address {address[0]}; nothing was sent. "
                    "Where it is meant, list it under private_hosts"
                )
        failure = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in found:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(min(timeout_s or self.left_s, self.left_s))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._hold(sock)
                return sock
            except OSError as error:
                sock.close()
                failure = error
        raise failure

    def _hold(self, sock: socket.socket) -> None:
        with self._lock:
            if self.late:
                raise TimeoutError("no time left")
            self._drop()
            self._twin = sock.dup()

    def _drop(self) -> None:
        if self._twin is not None:
            self._twin.close()
            self._twin = None

    def stop(self) -> None:
        """Time is up."""
        with self._lock:
            self.late = True
            if self._twin is not None:
                with contextlib.suppress(OSError):
                    self._twin.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """The request is over."""
        with self._lock:
            self._drop()


@contextlib.contextmanager
def watched(allows: Callable[[str, str], bool], end: float) -> Iterator[Watch]:
    """A watch until `end` (of `time.monotonic`) through which this thread's connections are made meanwhile."""
    watch = Watch(allows, end)
    timer = threading.Timer(watch.left_s, watch.stop)
    timer.daemon = True
    timer.start()
    _HERE.watch = watch
    try:
        yield watch
    finally:
        del _HERE.watch
        timer.cancel()
        watch.close()
        timer.join()


_HERE = threading.local()


def _connect(connection: HTTPConnection) -> socket.socket:
    watch: Watch = _HERE.watch
    return watch.connect(connection.host, int(connection.port or 0), connection.timeout)


# ---- requests ------------------------------------------------------------------------------------------------------


class _Plain(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self)


class _Secure(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self)


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure


class WatchedAdapter(requests.adapters.HTTPAdapter):
    """Connects through the calling thread's watch."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}
