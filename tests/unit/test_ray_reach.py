"""Whether the parts of Ray answer without which a learner has none: two ports that are listened on here."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from hmarl.trainer.runs.ray_session import RayError, Reach


@pytest.fixture
def parts() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The machine's part, and the head."""
    here = ("127.0.0.1", 0)
    with socket.create_server(here, backlog=64) as raylet, socket.create_server(here, backlog=64) as head:
        yield raylet, head


def connected(raylet: socket.socket, head: socket.socket) -> Any:
    """What is asked of Ray."""
    host, port = head.getsockname()
    context = SimpleNamespace(get_node_id=lambda: "own", gcs_address=f"{host}:{port}")
    node = {"NodeID": "own", "NodeManagerAddress": host, "NodeManagerPort": raylet.getsockname()[1]}
    return SimpleNamespace(get_runtime_context=lambda: context, nodes=lambda: [node])


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock says, to be set."""
    told = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: told[0])
    return told


def calls(server: socket.socket) -> int:
    """How often somewhere was connected to it since it was last asked."""
    server.setblocking(False)
    count = 0
    try:
        while True:
            server.accept()[0].close()
            count += 1
    except BlockingIOError:
        return count


def test_the_head_is_looked_at_now_and_then_the_machines_part_always(
    parts: tuple[socket.socket, socket.socket], now: list[float]
) -> None:
    raylet, head = parts
    reach = Reach(connected(raylet, head))
    for _ in range(5):
        reach.check()
    assert (calls(raylet), calls(head)) == (5, 1)
    now[0] += 2.0
    reach.check()
    assert (calls(raylet), calls(head)) == (1, 1)


def test_a_head_that_is_silent_for_long_and_a_raylet_that_is_gone_are_told(
    parts: tuple[socket.socket, socket.socket], now: list[float]
) -> None:
    raylet, head = parts
    reach = Reach(connected(raylet, head))
    reach.check()
    head.close()
    for now[0] in (102.0, 110.0, 121.9):
        reach.check()
    now[0] = 124.0
    with pytest.raises(RayError, match=r"the head of the cluster \(its GCS\), 127\.0\.0\.1:\d+, does not answer"):
        reach.check()
    raylet.close()
    with pytest.raises(RayError, match=r"Ray in this machine \(its raylet\), 127\.0\.0\.1:\d+, does not answer"):
        reach.check()
