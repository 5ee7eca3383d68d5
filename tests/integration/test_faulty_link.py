"""A bad link on purpose, over real sockets: what is late, slow, frozen or cut, and that nothing else changes."""

from __future__ import annotations

import json
import math
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from hmarl.runtime.command_line import run
from hmarl.sdk import UsageError
from hmarl.sdk.commands.faults import faults as program
from hmarl.sdk.faults.link import FaultyLink, LinkFaults

LIMIT_S = 30.0


@contextmanager
def echo(path: Path | None = None) -> Iterator[str]:
    """A server that sends back what it is sent, and ends a connection whose client has: its address."""
    family = socket.AF_INET if path is None else socket.AF_UNIX
    with socket.socket(family) as server:
        server.bind(("127.0.0.1", 0) if path is None else str(path))
        server.listen()

        def serve(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                while data := connection.recv(65536):
                    connection.sendall(data)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}" if path is None else f"unix:{path}"
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def echoing() -> Iterator[str]:
    with echo() as address:
        yield address


def connected(address: str) -> socket.socket:
    if address.startswith("unix:"):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(LIMIT_S)
        client.connect(address.removeprefix("unix:"))
        return client
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), LIMIT_S)


def received(client: socket.socket, size: int = -1) -> bytes:
    """So many bytes; all until the end where it is negative."""
    data = b""
    while size < 0 or len(data) < size:
        piece = client.recv(65536)
        if not piece:
            break
        data += piece
    return data


def answered(client: socket.socket, data: bytes) -> float:
    """Seconds until it has come back."""
    begin = time.monotonic()
    client.sendall(data)
    assert received(client, len(data)) == data
    return time.monotonic() - begin


@pytest.mark.parametrize("unix", [False, True])
def test_every_byte_arrives_in_order_and_the_end_after_them(unix: bool, tmp_path: Path) -> None:
    sent = np.random.default_rng(0).bytes(1 << 20)
    listen = f"unix:{tmp_path / 'bad.sock'}" if unix else "127.0.0.1:0"
    with (
        echo(tmp_path / "good.sock" if unix else None) as target,
        FaultyLink(target, LinkFaults(delay_s=0.01, jitter_s=0.02), listen=listen) as link,
        connected(link.address) as client,
    ):
        sending = threading.Thread(target=lambda: (client.sendall(sent), client.shutdown(socket.SHUT_WR)))
        sending.start()
        assert received(client) == sent
        sending.join(LIMIT_S)
        assert link.connections == 1
    assert not (tmp_path / "bad.sock").exists()


def test_delay_counts_each_way_and_may_change() -> None:
    with echo() as target, FaultyLink(target, LinkFaults(delay_s=0.1)) as link, connected(link.address) as client:
        assert answered(client, b"late") >= 0.2
        link.faults = LinkFaults(jitter_s=0.2)
        assert sum(answered(client, b"?") for _ in range(10)) > 0.4, "two draws of 0.1 s on average, ten times"
        link.faults = LinkFaults()
        assert min(answered(client, b"!") for _ in range(20)) < 0.1


def test_a_narrow_link_takes_its_time() -> None:
    faults = LinkFaults(bandwidth_bytes_s=200_000)
    with echo() as target, FaultyLink(target, faults) as link, connected(link.address) as client:
        assert answered(client, bytes(60_000)) >= 0.3


def test_nothing_passes_while_it_is_frozen_and_nothing_is_lost() -> None:
    with echo() as target, FaultyLink(target) as link, connected(link.address) as client:
        answered(client, b"before")
        link.freeze()
        client.sendall(b"meanwhile")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(LIMIT_S)
        link.thaw()
        assert received(client, 9) == b"meanwhile"


def test_a_frozen_link_holds_its_sender_up() -> None:
    with echo() as target, FaultyLink(target) as link, connected(link.address) as client:
        answered(client, b"before")
        link.freeze()
        client.settimeout(1.0)
        sent = 0
        with suppress(TimeoutError):
            while sent < 1 << 28:
                sent += client.send(bytes(1 << 20))
        assert sent < 64 << 20


def test_a_cut_resets_all_connections_and_new_ones_are_taken() -> None:
    with echo() as target, FaultyLink(target) as link:
        with connected(link.address) as one, connected(link.address) as other:
            answered(one, b"a")
            answered(other, b"b")
            link.cut()
            for client in (one, other):
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
        with connected(link.address) as client:
            answered(client, b"c")
        assert link.connections == 3


def test_it_is_cut_and_frozen_now_and_then_by_itself() -> None:
    with echo() as target, FaultyLink(target, LinkFaults(cut_every_s=0.1)) as link, connected(link.address) as client:
        until = time.monotonic() + LIMIT_S
        with suppress(ConnectionError):
            while time.monotonic() < until:
                answered(client, b"?")
        assert time.monotonic() < until
    frozen = LinkFaults(freeze_every_s=0.05, freeze_s=0.3)
    with echo() as target, FaultyLink(target, frozen) as link, connected(link.address) as client:
        times = [answered(client, b"?") for _ in range(30) if time.sleep(0.005) is None]
        assert sum(each > 0.1 for each in times) >= 3


def test_what_is_drawn_follows_from_the_seed(echoing: str) -> None:
    moments: list[list[float]] = []
    for seed in (1, 1, 2):
        link = FaultyLink(echoing, LinkFaults(jitter_s=0.1), seed=seed)
        with link, connected(link.address) as client:
            moments.append([answered(client, b"?") for _ in range(8)])
    one, again, other = map(np.array, moments)
    # Medians: a machine that is busy adds much to a few of them.
    assert np.median(abs(one - again)) < np.median(abs(one - other)) / 2


def test_where_nothing_listens_the_connection_is_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        target = f"127.0.0.1:{closed.getsockname()[1]}"
    with FaultyLink(target) as link, suppress(ConnectionResetError), connected(link.address) as client:
        assert client.recv(1) == b""


def test_what_it_cannot_do_is_named(tmp_path: Path) -> None:
    for faults, said in (
        ({"delay_s": -1.0}, "delay_s: got -1.0, expected a number of at least 0"),
        ({"delay_s": math.inf}, "delay_s: got inf"),
        ({"bandwidth_bytes_s": 0.0}, "bandwidth_bytes_s: got 0.0, expected a number above 0"),
        ({"freeze_every_s": 1.0}, "freeze_s: got 0 with freeze_every_s=1, expected how long it lasts"),
    ):
        with pytest.raises(UsageError, match=said):
            LinkFaults(**faults)
    taken = tmp_path / "taken"
    taken.write_text("another program's")
    for target, listen, said in (
        ("nowhere", "127.0.0.1:0", "target: got 'nowhere', expected HOST:PORT or unix:PATH"),
        ("127.0.0.1:1", "127.0.0.1:99999", "listen: got '127.0.0.1:99999', expected HOST:PORT"),
        ("127.0.0.1:1", f"unix:{taken}", "expected where one can listen .it is there already"),
        ("127.0.0.1:1", f"unix:{tmp_path / 'no' / 'such'}", "expected where one can listen"),
    ):
        with pytest.raises(UsageError, match=said):
            FaultyLink(target, listen=listen)
    assert taken.read_text() == "another program's"


def test_the_command_is_a_link_until_it_is_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with echo() as target:
        words = [
            sys.executable,
            "-m",
            "hmarl.sdk.commands.faults",
            "127.0.0.1:0",
            target,
            "--delay-s",
            "0.05",
            "--json",
        ]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            with connected(json.loads(process.stdout.readline())["address"]) as client:
                assert answered(client, b"through a command") >= 0.1
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT_S) == 0
    assert run(program, ["127.0.0.1:0", "x"]) == 2
    assert capsys.readouterr().err == "hmarl-faults: target: got 'x', expected HOST:PORT or unix:PATH\n"


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", ":0", "192.0.2.7:0"])
def test_a_link_is_not_open_to_others_unless_it_is_said(listen: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It would lead to what listens on loopback, or on a private socket, because it asks no one who they are."""
    assert run(program, [listen, "unix:/run/private.sock"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"hmarl-faults: listen: got {listen}, from where anyone gets through to unix:/run/private")
    assert said.endswith("or say --insecure\n")
    assert said.count("\n") == 1


def test_a_link_may_be_open_to_others() -> None:
    words = [sys.executable, "-m", "hmarl.sdk.commands.faults", "0.0.0.0:0", "127.0.0.1:1", "--insecure"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("0.0.0.0:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
