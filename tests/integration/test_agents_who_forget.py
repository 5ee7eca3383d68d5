"""An agent process that dies in mid-episode while a served team is evaluated: the figures say so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from agent_process import AgentProcess
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.command_line import run as run_program
from hmarl.sdk.commands.evaluate import evaluate_command
from hmarl.sdk.environment import Observation, StepResult
from hmarl.sdk.evaluation.closed_loop import evaluate, serving_remark
from hmarl.sdk.evaluation.deployed_teams import BundleTeam, FleetTeam
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec

BATCH = 2
LENGTH = 6
AGENTS: dict[str, AgentProcess] = {}  # for the environment, which a command makes by its name


class Deadly:
    """Two agents with choices and masks; ``agent_1`` comes late and is away for a step.

    Args:
        kills: agent_0's process dies after the third step of the first episode, and is started anew.
    """

    def __init__(self, batch_size: int, kills: bool = True) -> None:
        self.batch_size, self._kills = batch_size, kills
        agents = tuple(AgentSpec(name, 6, spaces.Discrete(5), has_action_mask=True) for name in ("agent_0", "agent_1"))
        self.spec = EnvironmentSpec("deadly", agents, 1, LENGTH, "sum")

    def reset(self, seeds: np.ndarray) -> Observation:
        self._step = 0
        return self._seen()

    def _seen(self) -> Observation:
        active = np.ones((self.batch_size, 2), np.bool_)
        active[:, 1] = self._step not in (0, 1, 4)
        seen = np.full((self.batch_size, 2, 6), 0.3 * self._step, np.float32) * active[..., None]
        return Observation(
            (seen,), (np.ones((self.batch_size, 2, 5), np.bool_),), np.zeros((self.batch_size, 1), np.float32), active
        )

    def step(self, actions: tuple[Any, ...]) -> StepResult:
        self._step += 1
        if self._step == 3 and self._kills:
            self._kills = False
            AGENTS["agent_0"].kill()
            AGENTS["agent_0"].start()
        over = np.full(self.batch_size, self._step >= LENGTH)
        final = self._seen() if over.any() else None
        if over.any():
            self._step = 0
        rewards = np.asarray(actions[0], np.float32)
        return StepResult(self._seen(), rewards, np.zeros(self.batch_size, np.bool_), over, final)

    def get_state(self) -> None:
        """Not saved."""

    def set_state(self, state: Any) -> Observation:
        raise NotImplementedError

    def render(self, index: int = 0) -> None:
        """Nothing to draw."""

    def close(self) -> None:
        """Nothing to free."""


def make(batch_size: int, kills: bool = True) -> Deadly:
    return Deadly(batch_size, kills)


@pytest.fixture(scope="module", autouse=True)
def served(toy_bundle: Bundle) -> Iterator[None]:
    with ExitStack() as stack:
        for name in ("agent_0", "agent_1"):
            AGENTS[name] = stack.enter_context(AgentProcess(Path(toy_bundle.path), name))
        yield


def addresses() -> dict[str, str]:
    return {name: agent.address for name, agent in AGENTS.items()}


def test_an_evaluation_counts_agents_that_were_joined_again_and_not_those_that_were_away(toy_bundle: Bundle) -> None:
    spec = Deadly(BATCH).spec
    team = FleetTeam(addresses(), spec, timeout_s=30.0)
    quiet = evaluate(Deadly(BATCH, kills=False), team, 2 * BATCH, seed=1)
    assert quiet.serving is not None
    counted = ("rejoins", "state_resets", "missed_steps")
    assert [getattr(quiet.serving, name) for name in counted] == [0, 0, 0]
    assert quiet.serving.acts == 2 * BATCH * (LENGTH + LENGTH - 3)
    assert serving_remark(quiet) is None
    killed = evaluate(Deadly(BATCH), team, 2 * BATCH, seed=1)
    assert killed.serving is not None
    assert [getattr(killed.serving, name) for name in counted] == [BATCH, BATCH, 0]
    assert {name: killed.summary()[name] for name in counted} == dict(zip(counted, (BATCH, BATCH, 0), strict=True))
    remark = serving_remark(killed)
    assert remark is not None
    assert "agents were joined again 2 times in mid-episode, 2 times with nothing remembered" in remark
    team.close()
    in_process = evaluate(Deadly(BATCH, kills=False), BundleTeam(toy_bundle, spec), BATCH, seed=1)
    assert in_process.serving is None
    assert [in_process.summary()[name] for name in counted] == [None] * 3


def test_the_command_says_it_in_table_json_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    endpoints = tmp_path / "endpoints.json"
    endpoints.write_text(json.dumps({"agents": addresses()}))
    words = ["--endpoints", str(endpoints), "--env", f"{__name__}:make", "--episodes", "2", "--batch-size", "2"]
    assert run_program(evaluate_command, [*words, "--json", "--out", str(tmp_path / "out"), "--no-video"]) == 0
    output = capsys.readouterr()
    told = json.loads(output.out.splitlines()[-1])
    assert (told["rejoins"], told["state_resets"], told["missed_steps"]) == (2, 2, 0)
    said = " ".join(output.err.split())
    assert "joined again / forgot / missed steps │ 2 / 2 / 0" in said
    assert "agents were joined again 2 times in mid-episode" in said
    assert "agents were joined again 2 times in mid-episode" in (tmp_path / "out" / "report.html").read_text()
    assert run_program(evaluate_command, [*words, "--set", "env.kills=false"]) == 0
    assert "joined again" not in capsys.readouterr().out
