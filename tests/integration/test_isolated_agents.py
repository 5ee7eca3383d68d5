"""Students of a hierarchy act alone: each in a process, a network namespace and a folder of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from agent_process import AgentProcess
from hmarl.runtime.bundle import Bundle
from hmarl.sdk.environments import make
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.evaluation.deployed_teams import BundleTeam, FleetTeam
from hmarl.trainer.export.export import export_run
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.students.settings import DistillationSettings
from isolation import ISOLATED, needs_isolation
from training_runs import tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")

SMALL = {"embedding_size": 8, "goal_size": 3, "epochs": 1, "minibatches": 1}
TINY = {"environments": 4, "steps": 10, "rounds": 1, "epochs": 1, "evaluation_episodes": 4, "memory_size": 8}


@pytest.fixture
def students(tmp_path: Path) -> Bundle:
    """A hierarchy that has hardly learnt, and students that hardly know it."""
    train(tiny_config("himpo", "mpe/simple_spread", SMALL), tmp_path / "run")
    settings = validate(DistillationSettings, TINY, "distillation")
    return export_run(tmp_path / "run", tmp_path / "bundle", "last", distillation=settings)


@pytest.fixture
def agents(students: Bundle, tmp_path: Path) -> Iterator[dict[str, AgentProcess]]:
    """Every agent with its socket in a folder that no other agent knows."""
    needs_isolation()
    with ExitStack() as stack:
        processes = {}
        for agent in students.manifest.agents:
            folder = tmp_path / agent.id
            folder.mkdir(mode=0o700)
            process = AgentProcess(students.path, agent.id, f"unix:{folder}/socket", ISOLATED)
            processes[agent.id] = stack.enter_context(process)
        yield processes


def test_alone_they_do_what_they_do_side_by_side(students: Bundle, agents: dict[str, AgentProcess]) -> None:
    spaces = {os.readlink(f"/proc/{agent.process.pid}/ns/net") for agent in agents.values()}
    assert len(spaces) == len(agents)
    assert os.readlink("/proc/self/ns/net") not in spaces
    for agent in agents.values():
        devices = Path(f"/proc/{agent.process.pid}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in devices] == ["lo"]
    environment = make("mpe/simple_spread", 1)
    endpoints = {name: agent.address for name, agent in agents.items()}
    played = []
    for team in (BundleTeam(students, environment.spec), FleetTeam(endpoints, environment.spec)):
        played.append(evaluate(environment, team, 3, seed=7, record=True))
        team.close()
    alone, together = played
    assert alone.actions is not None
    assert together.actions is not None
    for ours, theirs in zip(alone.actions, together.actions, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert alone.returns.tolist() == together.returns.tolist()
