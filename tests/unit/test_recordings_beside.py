"""What clients sent, laid beside what agents received."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hmarl.agent.v1 import agent_pb2
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.manifest import to_json
from hmarl.runtime.recording.beside import Beside, laid_beside
from hmarl.runtime.recording.reader import open_recording
from hmarl.runtime.recording.settings import RecordSettings
from hmarl.runtime.session import Policy
from hmarl.sdk.clients.agent import Action
from hmarl.sdk.clients.recording import ClientRecorder
from hmarl.sdk.commands.replay import main
from recorded import inputs, recorded, run_again
from toy_bundle import write_toy_bundle


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle", plain=True)


def both_sides(toy: Bundle, box: Path, *, received: tuple[bool, ...], off: float = 0.0, other: int = 0) -> Beside:
    """Acts of which the agent receives some, with observations that are off by so much, and other actions."""
    info = agent_pb2.GetAgentInfoResponse(agent_id="agent_0", bundle_sha256=toy.sha256)
    with recorded(toy, box) as policy:
        session, generator = policy.session(), np.random.default_rng(0)
        session.reset(1)
        session.named("an id")
        client = ClientRecorder(RecordSettings(box), policy.agent, "a test")
        client.began(agent_pb2.StartEpisodeRequest(seed=1), "an id", info)
        for step, arrives in enumerate(received):
            began_ns, (observation, _) = client.asks(0.1), inputs(policy, generator)
            action = session.act(observation + np.float32(off), step=step).action if arrives else 0
            fresh = arrives and step != 1  # the second reply comes too late
            if not fresh:
                client.falls_back("DEADLINE_EXCEEDED")
            done = Action(action + other, step, fresh, 0, False, {}, 0.001)
            client.acted(began_ns, observation, None, done, "an id")
        client.close()
    found = laid_beside(open_recording(box))
    assert found is not None
    return found


def test_what_arrived_is_told_from_what_did_not(tmp_path: Path, toy: Bundle) -> None:
    found = both_sides(toy, tmp_path, received=(True, True, False, True))
    assert (found.acts, found.in_time, found.late, found.not_received) == (4, 2, 1, 1)
    assert found.same
    assert found.way_us["p50"] > 0


def test_what_was_changed_on_the_way_is_named(tmp_path: Path, toy: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    found = both_sides(toy, tmp_path, received=(True, True, True), off=1e-3, other=1)
    assert (found.different_inputs, found.different_actions) == (3, 2)
    assert main([str(tmp_path), "--html", str(tmp_path / "page.html")]) == 4
    assert "3 observations or masks are not what clients sent, 2 actions not what" in capsys.readouterr().err


def test_what_a_client_of_an_agent_that_was_not_trained_recorded_can_be_run_again(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "bundle", plain=True, interchangeable=("agent",))
    policy = Policy(bundle, "agent_7", like="agent_0")
    info = agent_pb2.GetAgentInfoResponse(
        agent_id="agent_7", bundle_sha256=bundle.sha256, agent_manifest_json=to_json(policy.agent)
    )
    client = ClientRecorder(RecordSettings(tmp_path / "box"), policy.agent, "a test")
    client.began(agent_pb2.StartEpisodeRequest(seed=1), "an id", info)
    session, (observation, _) = policy.session(), inputs(policy, np.random.default_rng(0))
    session.reset(1)
    began_ns = client.asks(0.1)
    client.acted(
        began_ns, observation, None, Action(session.act(observation).action, 0, True, 0, False, {}, 0.001), "an id"
    )
    client.close()
    report = run_again(tmp_path / "box", bundle)
    assert (report.compared, report.differing_bytes) == (1, 0)


def test_one_side_alone_has_nothing_beside_it(tmp_path: Path, toy: Bundle) -> None:
    with recorded(toy, tmp_path) as policy:
        session = policy.session()
        session.reset(0)
        session.act(*inputs(policy, np.random.default_rng(0)))
    assert laid_beside(open_recording(tmp_path)) is None
