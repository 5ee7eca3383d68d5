"""A served policy that computes NaN: its client stands in, and goes on with the next observation."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import pytest

from agent_process import AgentProcess
from fragile_bundle import write_fragile_bundle
from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.agent.v1.tensors import write_tensor
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.fallback import Zero


def observation(step: int, first: float | None = None) -> np.ndarray:
    row = np.random.default_rng(step).normal(size=6).astype(np.float32)
    if first is not None:
        row[0] = first
    return row


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_stands_in_for_an_action_that_is_not_finite_and_goes_on(tmp_path: Path, stream: bool) -> None:
    bundle = write_fragile_bundle(tmp_path / "b", "box", "action")
    with (
        AgentProcess(bundle.path, "agent_0") as served,
        AgentClient(served.address, timeout_s=20, stream=stream, fallback=Zero()) as agent,
    ):
        agent.reset(seed=1)
        fresh = []
        for step in range(6):
            action = agent.act(observation(step, 2e38 if step in (1, 2, 4) else None))
            assert action.step == step
            assert np.isfinite(action.action).all()
            fresh.append(action.fresh)
        assert fresh == [True, False, False, True, False, True]


def test_the_status_names_agent_step_and_output(tmp_path: Path) -> None:
    bundle = write_fragile_bundle(tmp_path / "b", "box", "action")
    with AgentProcess(bundle.path, "agent_0") as served, grpc.insecure_channel(served.address) as channel:
        stub = agent_pb2_grpc.AgentServiceStub(channel)
        session = stub.StartEpisode(agent_pb2.StartEpisodeRequest(seed=1), timeout=20).session_id
        request = agent_pb2.ActRequest(session_id=session, step=3)
        write_tensor(request.observation, observation(0, 2e38))
        with pytest.raises(grpc.RpcError) as caught:
            stub.Act(request, timeout=20)
        assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
        assert "agent 'agent_0': step 3: the policy computed action[0] = nan" in caught.value.details()
