"""A TCP relay between a client and an agent, for tests of bad links: it can swallow, cut and delay."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self


class _Connection:
    """A client's connection and the one that it is passed on by; ``lost``: whether bytes of it have been lost."""

    def __init__(self, writer: asyncio.StreamWriter, lost: bool) -> None:
        self.writers = [writer]
        self.lost = lost

    def abort(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


class TcpRelay:
    """Passes connections to ``address`` on to ``target``.

    Attributes:
        address: where it listens.
        delay_s: how much later everything arrives that is sent from now on, each way.
        connections: how many it has taken so far.
    """

    def __init__(self, target: str) -> None:
        self._host, port = target.rsplit(":", 1)
        self._port = int(port)
        self.delay_s = 0.0
        self.connections = 0
        self._dead = False
        self._taken: list[_Connection] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.address = "127.0.0.1:" + str(self._server.sockets[0].getsockname()[1])

    def swallow(self) -> None:
        """From now on everything is lost without a word; new connections are taken and get no answer."""
        self._dead = True
        for connection in self._taken:
            connection.lost = True

    def restore(self) -> None:
        """New connections are passed on again; those that have lost something stay dead, as if their peer were gone."""
        self._dead = False

    def cut(self) -> None:
        """Reset all connections."""

        async def abort() -> None:
            for connection in self._taken:
                connection.abort()

        self._call(abort())

    def _call(self, work: object) -> asyncio.Server:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)  # type: ignore[arg-type, return-value]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = _Connection(writer, self._dead)
        self._taken.append(connection)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            there, back = await asyncio.open_connection(self._host, self._port)
            connection.writers.append(back)
            ways = [self._pass_on(reader, back, connection), self._pass_on(there, writer, connection)]
            await asyncio.wait([asyncio.create_task(way) for way in ways], return_when=asyncio.FIRST_COMPLETED)
        connection.abort()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: _Connection
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                self._loop.call_later(self.delay_s, self._write, writer, data, connection)
        if connection.lost:
            await asyncio.sleep(3600)  # neither side hears of the other's end

    def _write(self, writer: asyncio.StreamWriter, data: bytes, connection: _Connection) -> None:
        if not connection.lost and not writer.is_closing():
            writer.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        async def end() -> None:
            self._server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)

        self.cut()
        self._call(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
