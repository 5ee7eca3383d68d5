"""Peers that leave things unsent, send too much, or vanish: trouble for a server, bounded in number and time."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from hmarl.agent.v1 import agent_pb2 as pb
from raw_http2 import ACT, GREETING, connected, headers, reset

SERVICE = "/hmarl.agent.v1.AgentService/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def raw(data: bytes) -> bytes:
    """Neither the client's nor the server's message classes touch what is sent."""
    return data


def _own_channel(address: str) -> grpc.Channel:
    """A channel with a connection of its own."""
    return grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])


@contextmanager
def silent_calls(address: str, method: str, number: int) -> Iterator[None]:
    """Calls whose first message never comes."""
    released = threading.Event()

    def nothing() -> Iterator[bytes]:
        released.wait()
        yield from ()

    with _own_channel(address) as channel:
        if method == REFLECTION or method.endswith("StreamAct"):
            calls = [channel.stream_stream(method, raw, raw)(nothing()) for _ in range(number)]
        else:
            calls = [channel.stream_unary(method, raw, raw).future(nothing()) for _ in range(number)]
        try:
            yield
        finally:
            released.set()
            for call in calls:
                call.cancel()


@contextmanager
def flood(send: Callable[[grpc.Channel], object], address: str) -> Iterator[None]:
    """One thread that calls ``send`` again and again; refusals are what is expected."""
    stop = threading.Event()

    def run() -> None:
        with _own_channel(address) as channel:
            while not stop.is_set():
                with contextlib.suppress(grpc.RpcError):
                    send(channel)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def many_sizes(number: int) -> bytes:
    """An act whose observation's shape is ``number`` sizes of 2**62."""
    request = pb.ActRequest(session_id="x" * 22)
    request.observation.data_type = pb.DATA_TYPE_FLOAT32
    request.observation.shape.extend([2**62] * number)
    return request.SerializeToString()


@contextmanager
def shape_bombs(address: str, number: int = 2000) -> Iterator[None]:
    """Shapes whose product is a number of many thousand digits, for a session that is open."""
    with _own_channel(address) as channel:
        start = channel.unary_unary(SERVICE + "StartEpisode", raw, pb.StartEpisodeResponse.FromString)
        request = pb.ActRequest.FromString(many_sizes(number))
        request.session_id = start(b"", timeout=5).session_id
    message = request.SerializeToString()
    with flood(lambda channel: channel.unary_unary(SERVICE + "Act", raw, raw)(message, timeout=30), address):
        yield


@contextmanager
def undecodable(address: str) -> Iterator[None]:
    """Bytes that are no message, in calls and in streams."""

    def send(channel: grpc.Channel) -> None:
        with contextlib.suppress(grpc.RpcError):
            channel.unary_unary(SERVICE + "Act", raw, raw)(b"\xff\xff", timeout=5)
        list(channel.stream_stream(SERVICE + "StreamAct", raw, raw)(iter([b"\xff\xff\xff"]), timeout=5))

    with flood(send, address):
        yield


@contextmanager
def huge_messages(address: str) -> Iterator[None]:
    """Acts of four million bytes."""
    message = bytes(4 * 2**20 - 100)
    with flood(lambda channel: channel.unary_unary(SERVICE + "Act", raw, raw)(message, timeout=5), address):
        yield


@contextmanager
def session_hoarder(address: str, number: int = 1024) -> Iterator[None]:
    """One connection that opens as many sessions as it gets, and never uses them."""
    with _own_channel(address) as channel:
        start = channel.unary_unary(SERVICE + "StartEpisode", raw, raw)
        for _ in range(number):
            with contextlib.suppress(grpc.RpcError):
                start(b"", timeout=5)
        yield


_STREAMS = """
import sys, time
import numpy as np
from hmarl.sdk.clients.client import AgentClient
clients = [AgentClient(sys.argv[1], timeout_s=5, stream=True) for _ in range(int(sys.argv[2]))]
for seed, client in enumerate(clients):
    try:
        client.reset(seed)
        client.act(np.zeros(client.spec.observation_size, np.float32))
    except Exception:
        pass
print("up", flush=True)
time.sleep(600)
"""


@contextmanager
def frozen_streams(address: str, number: int = 64, before: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """A process that opens streams and is then stopped; ``before`` are words that its command is put behind."""
    command = [*before, sys.executable, "-c", _STREAMS, address, str(number)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGSTOP)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@contextmanager
def idle_connections(address: str, number: int = 1100) -> Iterator[None]:
    """Connections over which nothing is said."""
    connections = []
    try:
        for _ in range(number):
            try:
                connections.append(connected(address))
            except OSError:
                break
        yield
    finally:
        for connection in connections:
            connection.close()


_RESETS = """
import sys, time
sys.path.insert(0, sys.argv[3])
from rude_peers import send_resets
send_resets(sys.argv[1], float(sys.argv[2]))
"""


def send_resets(address: str, seconds: float) -> None:
    """Open streams and reset each at once, as fast as the connection takes them; again when it is cut."""
    deadline, sent = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), connected(address) as connection:
            connection.settimeout(1.0)
            connection.sendall(GREETING)
            stream = 1
            while time.monotonic() < deadline and stream < 2**31 - 1000:
                batch = b"".join(headers(ACT, each) + reset(each) for each in range(stream, stream + 400, 2))
                connection.sendall(batch)
                stream += 400
                sent += 200
                with contextlib.suppress(BlockingIOError):
                    connection.recv(65536, socket.MSG_DONTWAIT)
    print(f"{sent:,} streams opened and reset in {seconds:g} s")


@contextmanager
def rapid_resets(address: str, seconds: float = 20.0) -> Iterator[None]:
    """HTTP/2 streams that are opened and reset at once, by a process of its own."""
    command = [sys.executable, "-c", _RESETS, address, str(seconds), str(Path(__file__).parent)]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.kill()
        process.wait()
