"""A bad link on purpose: a relay between real clients and a real server, over TCP or Unix sockets.

It passes bytes on and knows nothing of what they mean. What it does to them follows from its settings and seed; when
bytes come is up to the machine, so two runs are alike, not equal.

    with FaultyLink("127.0.0.1:50051", LinkFaults(delay_s=0.02, jitter_s=0.01)) as link:
        client = AgentClient(link.address)
"""

from __future__ import annotations

import asyncio
import errno
import math
import random
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from hmarl.sdk.errors import UsageError

_UNIX = "unix:"
_PIECE = 65536
_MOST_WAITING = 16 << 20  # bytes on their way in one direction: then it reads no further
_LIMIT_S = 10.0
_NO_LINGERING = struct.pack("ii", 1, 0)  # a closed TCP connection is reset
Result = TypeVar("Result")


@dataclass(frozen=True)
class LinkFaults:
    """What goes wrong on a link; each way has its own.

    Attributes:
        delay_s: how much later bytes arrive.
        jitter_s: what is added to that at most, drawn for each piece; bytes never overtake each other.
        bandwidth_bytes_s: of each connection and way, infinite without a limit.
        cut_every_s: mean time between two moments at which all connections are reset; infinite for never.
        freeze_every_s: mean time between two moments from which on nothing passes for a while, infinite for never.
        freeze_s: how long nothing passes then. Nothing is lost.

    Raises:
        UsageError: a number out of range.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bandwidth_bytes_s: float = math.inf
    cut_every_s: float = math.inf
    freeze_every_s: float = math.inf
    freeze_s: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value, amount = getattr(self, each.name), each.default == 0.0
            if not (0.0 <= value < math.inf if amount else value > 0.0):
                expected = "a number of at least 0" if amount else "a number above 0"
                raise UsageError(f"{each.name}: got {value}, expected {expected}")
        if not math.isinf(self.freeze_every_s) and not self.freeze_s:
            raise UsageError(f"freeze_s: got 0 with freeze_every_s={self.freeze_every_s:g}, expected how long it lasts")


class FaultyLink:
    """Listens at ``address`` and passes each connection on to ``target``, as ``faults`` say.

    Args:
        target: ``HOST:PORT`` or ``unix:PATH``.
        faults: what goes wrong. Another value may be put in its place at any time, for what is sent from then on; only
            the times between cuts and freezes stay.
        listen: where; port 0 takes any that is free.
        seed: of all that is drawn.

    Attributes:
        address: where it listens, for clients.
        connections: how many it has taken so far.

    Raises:
        UsageError: no such address, or it cannot listen there.
    """

    def __init__(
        self, target: str, faults: LinkFaults | None = None, *, listen: str = "127.0.0.1:0", seed: int = 0
    ) -> None:
        self.faults = faults or LinkFaults()
        self.connections = 0
        self._target, self._listening, self._seed = _place("target", target), _place("listen", listen), seed
        self._dead = self._closed = False
        self._taken: set[_Connection] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hmarl-faulty-link", daemon=True)
        self._thread.start()
        try:
            self._server = self._call(self._listen())
        except OSError as error:
            self._stop()
            raise UsageError(
                f"listen: got {listen}, expected where one can listen ({error.strerror or error})"
            ) from None
        self.address = self._address()
        self._call(self._schedule())

    # --- what can be done to it -----------------------------------------------------------------------------------

    def cut(self) -> None:
        """Reset all connections."""
        self._soon(self._cut)

    def freeze(self) -> None:
        """Nothing passes until ``thaw``; nothing is lost."""
        self._soon(self._flowing.clear)

    def thaw(self) -> None:
        """What has waited passes."""
        self._soon(self._flowing.set)

    def swallow(self) -> None:
        """From now on everything is lost without a word; new connections are taken and get no answer."""

        def swallow() -> None:
            self._dead = True
            for connection in self._taken:
                connection.lost = True

        self._soon(swallow)

    def restore(self) -> None:
        """New connections are passed on again; those that have lost something stay dead, as if their peer were gone."""
        self._dead = False

    def close(self) -> None:
        """Reset all connections and listen no more; a second call does nothing."""
        if not self._closed:
            self._call(self._end())
            self._stop()
            if isinstance(self._listening, Path):
                with suppress(OSError):
                    self._listening.unlink()

    # --- in the loop's thread -------------------------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_LIMIT_S)

    def _soon(self, work: Callable[[], object]) -> None:
        async def run() -> None:
            work()

        self._call(run())

    def _stop(self) -> None:
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_LIMIT_S)
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        if not isinstance(self._listening, Path):
            return await asyncio.start_server(self._accept, *self._listening)
        if self._listening.exists():  # asyncio would delete a socket that may be another program's
            raise FileExistsError(errno.EEXIST, "it is there already")
        return await asyncio.start_unix_server(self._accept, self._listening)

    def _address(self) -> str:
        if isinstance(self._listening, Path):
            return f"{_UNIX}{self._listening}"
        host, port = self._listening[0], self._server.sockets[0].getsockname()[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def _schedule(self) -> None:
        happenings = [(self.faults.cut_every_s, self._cut_once), (self.faults.freeze_every_s, self._freeze_once)]
        self._tasks += [
            asyncio.create_task(self._now_and_then(number, every_s, work))
            for number, (every_s, work) in enumerate(happenings)
            if not math.isinf(every_s)
        ]

    async def _now_and_then(self, number: int, every_s: float, work: Callable[[], Awaitable[None]]) -> None:
        generator = random.Random(f"{self._seed} {number}")
        while True:
            await asyncio.sleep(generator.expovariate(1.0 / every_s))
            await work()

    async def _cut_once(self) -> None:
        self._cut()

    async def _freeze_once(self) -> None:
        self._flowing.clear()
        await asyncio.sleep(self.faults.freeze_s)
        self._flowing.set()

    def _cut(self) -> None:
        for connection in self._taken:
            connection.reset()

    async def _end(self) -> None:
        self._server.close()
        self._cut()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = _Connection(writer, self._dead)
        names = [f"{self._seed} {self.connections} {way}" for way in ("there", "back")]
        self._taken.add(connection)
        try:
            there, back = await self._open()
            connection.writers.append(back)
            async with asyncio.TaskGroup() as tasks:
                for name, source, sink in zip(names, (reader, there), (back, writer), strict=True):
                    way = _Way()
                    tasks.create_task(self._collect(source, way, random.Random(name)))
                    tasks.create_task(self._deliver(way, sink, connection))
            connection.close()
        except* (OSError, asyncio.CancelledError):
            connection.reset()  # nothing listens there, one side has reset its connection, or all is being closed
        finally:
            self._taken.discard(connection)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection(*self._target)

    async def _collect(self, reader: asyncio.StreamReader, way: _Way, generator: random.Random) -> None:
        while data := await reader.read(_PIECE):
            await way.put(data, self.faults, generator)
        await way.put(b"", self.faults, generator)

    async def _deliver(self, way: _Way, writer: asyncio.StreamWriter, connection: _Connection) -> None:
        while True:
            due_s, data = await way.next()
            await asyncio.sleep(due_s - self._loop.time())
            await self._flowing.wait()
            if connection.lost and not data:
                await asyncio.sleep(math.inf)  # neither side hears of the other's end
            elif not data:
                writer.write_eof()
                return
            elif not connection.lost:
                writer.write(data)
                await writer.drain()
            way.delivered(len(data))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Connection:
    """A client's connection and the one that it is passed on by; ``lost``: whether bytes of it have been lost."""

    def __init__(self, writer: asyncio.StreamWriter, lost: bool) -> None:
        self.writers = [writer]
        self.lost = lost

    def close(self) -> None:
        """What has been written arrives."""
        for writer in self.writers:
            writer.close()

    def reset(self) -> None:
        """What has not arrived is lost, and both sides are told at once (of a Unix socket they see the end)."""
        for writer in self.writers:
            with suppress(OSError):  # it is closed already
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)
            writer.transport.abort()


class _Way:
    """Pieces on their way in one direction, and when each is due."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._waiting = 0
        self._room = asyncio.Event()
        self._room.set()
        self._sent_s = self._due_s = 0.0

    async def put(self, data: bytes, faults: LinkFaults, generator: random.Random) -> None:
        """Send a piece; empty for the end. Waits while too much is under way."""
        await self._room.wait()
        now_s = asyncio.get_running_loop().time()
        self._sent_s = max(self._sent_s, now_s) + len(data) / faults.bandwidth_bytes_s
        late_s = faults.delay_s + generator.uniform(0.0, faults.jitter_s)
        self._due_s = max(self._due_s, self._sent_s + late_s)
        self._pieces.put_nowait((self._due_s, data))
        self._count(len(data))

    async def next(self) -> tuple[float, bytes]:
        """When the next piece is due, in the loop's seconds, and its bytes."""
        return await self._pieces.get()

    def delivered(self, size: int) -> None:
        """So many bytes have arrived."""
        self._count(-size)

    def _count(self, size: int) -> None:
        self._waiting += size
        if self._waiting < _MOST_WAITING:
            self._room.set()
        else:
            self._room.clear()


_Place = Path | tuple[str, int]


def _place(name: str, address: str) -> _Place:
    """A path or a host and port.

    Raises:
        UsageError: neither.
    """
    if address.startswith(_UNIX):
        path = address.removeprefix(_UNIX)
        return Path(path.removeprefix("//") if path.startswith("///") else path)
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise UsageError(f"{name}: got '{address}', expected HOST:PORT or unix:PATH")
    return host.removeprefix("[").removesuffix("]"), int(port)
