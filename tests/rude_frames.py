"""Peers that leave things unsent over frames, send too much, or vanish; see ``rude_peers``.

Each is a process of its own, as a peer is to an agent::

    rude_frames.py KIND ADDRESS
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from hmarl.agent.v1 import agent_pb2 as pb
from hmarl.agent.v1.frames_pb2 import FrameRequest
from hmarl.agent.v1.framing import framed
from raw_frames import RawFrames
from rude_peers import many_sizes

_HUGE = framed(FrameRequest(id=1, act=pb.ActRequest(session_id="x", action_mask=pb.Tensor(data=bytes(2**22)))))


def hold(address: str, number: int, first: bytes = b"") -> None:
    """Connections that send this and then nothing, made again when they are ended."""
    held: list[RawFrames] = []
    while True:
        with contextlib.suppress(OSError):
            client = RawFrames(address)
            client.socket.sendall(first)
            held.append(client)
        if len(held) > number:
            held.pop(0).close()
            time.sleep(0.01)


def again_and_again(rude: Callable[[RawFrames], object], address: str) -> None:
    """Connect again and again, and be rude each time; refusals are what is expected."""
    while True:
        with contextlib.suppress(OSError, EOFError), RawFrames(address, 18, 0) as client:
            client.socket.settimeout(1.0)
            rude(client)


def _undecodable(client: RawFrames) -> None:
    client.socket.sendall(b"\x03\xff\xff\xff")
    client.receive()


def _shape_bombs(client: RawFrames) -> None:
    """Shapes whose product is a number of many thousand digits, for a session that is open."""
    request = pb.ActRequest.FromString(many_sizes(2000))
    request.session_id = client.start()
    while True:
        client.ask(act=request)


def _never_reads(client: RawFrames) -> None:
    while True:
        client.send(get_agent_info={})


_KINDS: dict[str, Callable[[str], None]] = {
    "silent": lambda address: hold(address, 300),
    "partial": lambda address: hold(address, 300, framed(FrameRequest(id=1, check_health={}))[:-1]),
    "idle": lambda address: hold(address, 1100, framed(FrameRequest(id=1, get_agent_info={}))),
    "hoarding": lambda address: hold(address, 1024, framed(FrameRequest(id=1, start_episode={}))),
    "undecodable": lambda address: again_and_again(_undecodable, address),
    "huge": lambda address: again_and_again(lambda client: client.socket.sendall(_HUGE), address),
    "shape bombs": lambda address: again_and_again(_shape_bombs, address),
    "never reads": lambda address: again_and_again(_never_reads, address),
    "rapid": lambda address: again_and_again(lambda client: client.send(start_episode={}), address),
}


def rude(kind: str) -> Callable[[str], AbstractContextManager[None]]:
    """A peer of a kind, at an address, until the block ends."""
    assert kind in _KINDS

    @contextmanager
    def beside(address: str) -> Iterator[None]:
        process = subprocess.Popen([sys.executable, __file__, kind, address])
        try:
            yield
            assert process.poll() is None, "it has given up"
        finally:
            process.kill()
            process.wait()

    return beside


if __name__ == "__main__":
    _KINDS[sys.argv[1]](sys.argv[2])
