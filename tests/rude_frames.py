"""Peers that leave things unsent over frames, send too much, or vanish; see ``rude_peers``."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hmarl.agent.v1 import agent_pb2 as pb
from hmarl.agent.v1.frames_pb2 import FrameRequest
from hmarl.agent.v1.framing import framed
from raw_frames import RawFrames
from rude_peers import many_sizes


@contextmanager
def again_and_again(rude: Callable[[RawFrames], object], address: str) -> Iterator[None]:
    """One thread that connects again and again, and is rude each time; refusals are what is expected."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError, EOFError), RawFrames(address, 18, 0) as client:
                rude(client)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def held_connections(address: str, number: int, first: bytes = b"") -> Iterator[None]:
    """Connections that send this and then nothing, made again when they are ended."""
    held: list[RawFrames] = []

    def hold(client: RawFrames) -> None:
        client.socket.setblocking(False)
        with contextlib.suppress(OSError):
            client.socket.sendall(first)
        held.append(client)
        if len(held) > number:
            held.pop(0).close()

    @contextmanager
    def connecting() -> Iterator[None]:
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(0.01):
                with contextlib.suppress(OSError):
                    hold(RawFrames(address))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    for _ in range(number):
        with contextlib.suppress(OSError):
            hold(RawFrames(address))
    try:
        with connecting():
            yield
    finally:
        for client in held:
            client.close()


def silent_connections(address: str) -> contextlib.AbstractContextManager[None]:
    """Connections without a request."""
    return held_connections(address, 300)


def partial_frames(address: str) -> contextlib.AbstractContextManager[None]:
    """Connections whose first request never comes whole."""
    return held_connections(address, 300, framed(FrameRequest(id=1, check_health={}))[:-1])


def idle_connections(address: str) -> contextlib.AbstractContextManager[None]:
    """More connections than there may be, each of which has asked for something once."""
    return held_connections(address, 1100, framed(FrameRequest(id=1, get_agent_info={})))


def undecodable_frames(address: str) -> contextlib.AbstractContextManager[None]:
    """Bytes that are no message."""

    def send(client: RawFrames) -> None:
        client.socket.sendall(b"\x03\xff\xff\xff")
        client.receive()

    return again_and_again(send, address)


def huge_frames(address: str) -> contextlib.AbstractContextManager[None]:
    """Frames of four million bytes."""
    frame = framed(FrameRequest(id=1, act=pb.ActRequest(session_id="x", action_mask=pb.Tensor(data=bytes(2**22)))))

    def send(client: RawFrames) -> None:
        client.socket.settimeout(1.0)
        client.socket.sendall(frame)

    return again_and_again(send, address)


def shape_bombs_in_frames(address: str) -> contextlib.AbstractContextManager[None]:
    """Shapes whose product is a number of many thousand digits, for a session that is open."""

    def send(client: RawFrames) -> None:
        request = pb.ActRequest.FromString(many_sizes(2000))
        request.session_id = client.start()
        for _ in range(100):
            client.ask(act=request)

    return again_and_again(send, address)


def sessions_hoarded(address: str) -> contextlib.AbstractContextManager[None]:
    """As many connections as there may be, each with a session."""
    return held_connections(address, 1024, framed(FrameRequest(id=1, start_episode={})))


def one_that_never_reads(address: str) -> contextlib.AbstractContextManager[None]:
    """Requests without end, whose responses are left unread."""

    def send(client: RawFrames) -> None:
        client.socket.settimeout(1.0)
        while True:
            client.send(get_agent_info={})

    return again_and_again(send, address)


def rapid_connections(address: str) -> contextlib.AbstractContextManager[None]:
    """Connections that are closed as soon as they have asked for something."""
    return again_and_again(lambda client: client.send(start_episode={}), address)
