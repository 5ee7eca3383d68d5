"""A small HTTP server on which metrics are read: bounded in threads, time and what it takes in.

Prometheus' own client brings one that starts a thread for whoever connects, for as long as they please; a peer that
opens connections and says nothing must not cost an agent anything.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, NamedTuple

from hmarl.runtime.errors import ForbiddenError, HmarlError, QuotaError

if TYPE_CHECKING:
    from hmarl.runtime.page_door import PageDoor

CONNECTIONS = 8  # at once; one more and the oldest gives way
_SILENT_FOR_S = 5.0
_AGAIN_AFTER_S = 0.2
# What the system says that has no descriptor, or no memory, for one more connection.
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_STATUS: dict[type[HmarlError], int] = {ForbiddenError: 403, QuotaError: 429}


class Content(NamedTuple):
    """What is answered.

    Attributes:
        kind: its media type.
        body: it.
        status: of HTTP.
    """

    kind: str
    body: bytes
    status: int = 200


Render = Callable[[str], Content]


class MetricsPage:
    """Serves pages in threads of its own, from construction on.

    Args:
        host: where to listen, as in ``HOST:PORT``.
        port: likewise; 0 for a free one.
        pages: by path: what is answered, from the host by which the peer called it.
        health: likewise, of pages that tell no more than that; with ``open_health`` of the door to whoever asks.
        door: encrypts, and says who gets in; None for plaintext, and for all who reach it.

    Attributes:
        address: ``host:port``, with the real port.

    Raises:
        HmarlError: the address cannot be bound.
    """

    def __init__(
        self,
        host: str,
        port: int,
        pages: Mapping[str, Render],
        door: PageDoor | None = None,
        health: Mapping[str, Render] | None = None,
    ) -> None:
        try:
            self._server = _Server(host.strip("[]"), port, pages, health or {}, door)
        except OSError as error:
            raise HmarlError(
                f"--metrics: cannot listen on {host}:{port}: {error.strerror}; choose another address, or port 0 for "
                "any free one"
            ) from error
        self.address = f"{host}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, name="hmarl-metrics", daemon=True).start()

    def close(self) -> None:
        """Listen no longer."""
        self._server.shutdown()
        self._server.server_close()


class _Server(HTTPServer):
    request_queue_size = CONNECTIONS

    def __init__(
        self,
        host: str,
        port: int,
        pages: Mapping[str, Render],
        health: Mapping[str, Render],
        door: PageDoor | None,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.pages = {**pages, **health}
        self.open = frozenset(health) if door is None or door.open_health else frozenset()
        self.door = door
        self._open: deque[socket.socket] = deque()
        self._lock = threading.Lock()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Without looking up the host's name, which may take long."""
        TCPServer.server_bind(self)

    def get_request(self) -> tuple[Any, Any]:
        """The next connection; where there is no room for it, it waits, and is not asked for again at once."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in _NO_ROOM:
                time.sleep(_AGAIN_AFTER_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; the connection that has been open longest gives way where there are too many."""
        try:
            twin = request.dup()  # the connection by a name that outlives its being wrapped in TLS
        except OSError:  # no descriptor is left
            request.close()
            return
        with self._lock:
            self._open.append(twin)
            oldest = self._open.popleft() if len(self._open) > CONNECTIONS else None
        if oldest is not None:
            _hang_up(oldest)
        answering = threading.Thread(
            target=self._answer, args=(request, twin, client_address), name="hmarl-metrics-reply", daemon=True
        )
        try:
            answering.start()
        except RuntimeError:  # no thread is left
            self._end(request, twin)

    def _answer(self, request: socket.socket, twin: socket.socket, client_address: Any) -> None:
        try:
            request.settimeout(_SILENT_FOR_S)
            # A peer that has gone, is silent or speaks something else is no one's fault here.
            with contextlib.suppress(OSError):
                spoken = request if self.door is None else self.door.wrapped(request)
                with spoken:
                    self.finish_request(spoken, client_address)
        finally:
            self._end(request, twin)

    def _end(self, request: socket.socket, twin: socket.socket) -> None:
        with self._lock, contextlib.suppress(ValueError):  # it may have given way
            self._open.remove(twin)
        _hang_up(twin)
        twin.close()
        request.close()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _SILENT_FOR_S
    server_version, sys_version = "hmarl", ""

    def do_GET(self) -> None:
        """One page."""
        path = self.path.partition("?")[0]
        try:
            if self.server.door is not None and path not in self.server.open:
                self.server.door.admit(self.connection, self.headers.get("Authorization"), self.client_address[0])
        except HmarlError as error:
            status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 401)
            self._reply(status, "text/plain", f"{error}\n".encode())
            return
        page = self.server.pages.get(path)
        if page is None:
            known = ", ".join(self.server.pages)
            self._reply(404, "text/plain", f"expected one of {known}\n".encode())
        else:
            found = page(self.headers.get("Host", "").rpartition(":")[0])
            self._reply(found.status, found.kind, found.body)

    def _reply(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: whoever calls must not fill the log."""


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
