"""`make fuzz`: changed messages and changed frames over a socket of frames. None is INTERNAL, leaks, or costs others.

Of ten, four are changed as bytes, four field by field, one is a frame whose own bytes are changed, and one is cut off.
"""

from __future__ import annotations

import os
import random
import socket
from collections import Counter

import numpy as np
import pytest

from agent_process import AgentProcess
from healthy_client import AGENT, BUNDLE, HealthyClient
from hmarl.agent.v1 import agent_pb2 as pb
from hmarl.agent.v1.frames_pb2 import CheckHealthRequest, FrameRequest
from hmarl.agent.v1.framing import framed
from hmarl.agent.v1.status import Code, code_of
from hmarl.agent.v1.tensors import to_tensor
from processes import descriptors, rss_mib, threads, wait_for
from raw_frames import RawFrames
from wire_mutations import mutated, scrambled, varint

pytestmark = pytest.mark.reliability
MESSAGES = int(os.environ.get("HMARL_FUZZ_FRAMES", "100000"))
SEED = int(os.environ.get("HMARL_FUZZ_SEED", "1"))
_ALLOWED = {
    "OK",
    "closed",
    *(
        code.name
        for code in (
            Code.INVALID_ARGUMENT,
            Code.NOT_FOUND,
            Code.FAILED_PRECONDITION,
            Code.RESOURCE_EXHAUSTED,
            Code.UNIMPLEMENTED,
            Code.DEADLINE_EXCEEDED,
        )
    ),
}
_PER_SESSION = 500


def seeds_of(session_id: str) -> list[FrameRequest]:
    """Requests of each kind, to be changed."""
    act = pb.ActRequest(session_id=session_id, step=1, observation=to_tensor(np.zeros(18, np.float32)))
    masked = pb.ActRequest(session_id=session_id, step=2, action_mask=to_tensor(np.ones(5, np.bool_)))
    start = pb.StartEpisodeRequest(seed=2**63, sample=True, first_step=5, instruction_choice=3, diagnostics=True)
    return [
        *(FrameRequest(id=7, act=each, metadata={"x-request-id": "a", "traceparent": "b"}) for each in (act, masked)),
        FrameRequest(id=8, act=act, deadline_ns=2**62),
        FrameRequest(id=9, start_episode=start),
        FrameRequest(id=10, end_episode=pb.EndEpisodeRequest(session_id="x" * 22)),
        FrameRequest(id=11, get_agent_info=pb.GetAgentInfoRequest()),
        FrameRequest(id=12, check_health=CheckHealthRequest(service="hmarl.agent.v1.AgentService")),
    ]


def changed(request: FrameRequest, number: int, generator: random.Random) -> bytes:
    """What is sent in its place."""
    match number % 10:
        case 0:
            return mutated(framed(request), generator)
        case 1:
            return framed(request)[: generator.randrange(len(framed(request)))]
        case kind if kind % 2:
            body = scrambled(request.SerializeToString(), FrameRequest, generator)
        case _:
            body = mutated(request.SerializeToString(), generator)
    return varint(len(body)) + body


def fill_sessions(address: str) -> None:
    """Open as many sessions as there may be, and act in each, so that their memory is not taken for a leak."""
    for _ in range(2000):
        with RawFrames(address, 18, 0) as client:
            response = client.ask(start_episode=pb.StartEpisodeRequest(sample=True, diagnostics=True))
            if response.error.code == Code.RESOURCE_EXHAUSTED:
                return
            client.act(response.start_episode.session_id, 0)
    raise AssertionError("there is no limit on sessions")


def said(client: RawFrames, data: bytes, whole: bool) -> list[str]:
    """The codes that come back, and ``closed`` where the connection is at its end.

    Args:
        client: over whose connection.
        data: what is sent.
        whole: whether it is one frame; otherwise how many requests it is, is not known, and nothing more is sent.
    """
    codes = []
    try:
        client.socket.sendall(data)
        if not whole:
            client.socket.shutdown(socket.SHUT_WR)
        while True:
            response = client.receive()
            codes.append(code_of(response.error.code).name)
            if whole and response.id:
                return codes
    except (EOFError, OSError):
        return [*codes, "closed"]


def test_mutated_frames(capsys: pytest.CaptureFixture[str]) -> None:
    generator, codes = random.Random(SEED), Counter[str]()
    with AgentProcess(BUNDLE, AGENT, door="frames") as agent, HealthyClient(agent.address) as healthy:
        pid, memory, before = agent.process.pid, 0.0, (0, 0)
        fill_sessions(agent.address)
        client = RawFrames(agent.address, 18, 0)
        for number in range(MESSAGES):
            if number % _PER_SESSION == 0:  # a session that is not used for long gives way to others
                with RawFrames(agent.address, 18, 0) as other:
                    seeds = seeds_of(other.start() or "x" * 22)
            if number == MESSAGES // 10:  # pools and caches fill during the first tenth
                memory, before = rss_mib(pid), (threads(pid), descriptors(pid))
            whole = number % 10 > 1
            got = said(client, changed(generator.choice(seeds), number, generator), whole)
            codes.update(got)
            if not whole or got[-1] == "closed":
                client.close()
                client = RawFrames(agent.address, 18, 0)
        client.close()
        wait_for(lambda: threads(pid) <= before[0] + 2 and descriptors(pid) <= before[1] + 2, "the end of connections")
        after = rss_mib(pid)
    with capsys.disabled():
        print(f"\n{MESSAGES:,} changed messages over frames, seed {SEED}: RSS {memory:.1f} -> {after:.1f} MiB")
        print(f"  {dict(codes.most_common())}")
        print(f"  beside them, 200 Hz, 50 ms: acts | missed | wrong | p50 ms | p99 ms: {healthy.tally.row()}")
    assert set(codes) <= _ALLOWED
    assert after <= 1.05 * memory
    assert healthy.tally.wrong == 0
    assert not healthy.tally.errors
