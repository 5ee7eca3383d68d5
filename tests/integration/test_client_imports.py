"""A client on a robot pays for protobuf, NumPy and perhaps gRPC: not for ONNX Runtime, Gymnasium or reports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agent_process import AgentProcess
from hmarl.runtime.bundle import Bundle

DONE_WITHOUT = {
    "gymnasium", "imageio", "jinja2", "matplotlib", "onnxruntime", "opentelemetry", "pandas", "prometheus_client",
    "rich", "torch", "typer",
}  # fmt: skip
BLOCKING = """
import sys
import numpy as np
from hmarl.sdk import AgentClient, Call, Hold, Zero

observation, mask = np.zeros(6, np.float32), np.ones(5, bool)
with AgentClient(sys.argv[1], fallback=Hold(expires_after_s=0.2, then=Zero())) as agent:
    agent.reset(1)
    assert agent.act(observation, mask).fresh
    assert (agent.spec.mask_size, agent.spec.action_shape) == (5, ())
for fallback in (Hold(expires_after_s=0.2, then=Zero()), Call(lambda situation: 3)):
    with AgentClient(sys.argv[1], timeout_s=1e-6, fallback=fallback) as late:
        late.reset(1)
        assert not late.act(observation, mask).fresh
"""
ASYNCIO = """
import asyncio, sys
import numpy as np
from hmarl.sdk import AsyncAgentClient, Zero

async def play():
    async with AsyncAgentClient(sys.argv[1], fallback=Zero()) as agent:
        await agent.reset(1)
        assert (await agent.act(np.zeros(6, np.float32), np.ones(5, bool))).fresh

asyncio.run(play())
"""
TELL = """
loaded = sorted({name.partition('.')[0] for name in sys.modules})
import json
print(json.dumps(loaded))
"""
ASK = """
from hmarl.sdk import AgentClient
import sys
with AgentClient(sys.argv[1]) as agent:
    before = "gymnasium" in sys.modules
    space = agent.spec.action_space
    assert (before, "gymnasium" in sys.modules) == (False, True)
import gymnasium
assert space == gymnasium.spaces.Discrete(5) and agent.spec.action_space is space
"""


def python(program: str, address: str) -> str:
    command = [sys.executable, "-c", program, address]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def served(toy_bundle: Bundle) -> Iterator[AgentProcess]:
    with AgentProcess(toy_bundle.path, "agent_0", door="both") as process:
        yield process


@pytest.mark.parametrize("door", ["unary", "frames"])
@pytest.mark.parametrize("program", [BLOCKING, ASYNCIO])
def test_a_client_imports_nothing_that_acting_can_do_without(served: AgentProcess, program: str, door: str) -> None:
    loaded = json.loads(python(program + TELL, served.at(door)))
    assert {"numpy", "google"} <= set(loaded)
    assert ("grpc" in loaded) == (door == "unary")
    assert not DONE_WITHOUT.intersection(loaded)


def test_a_space_of_gymnasium_is_made_when_it_is_asked_for(served: AgentProcess) -> None:
    python(ASK, served.address)
