"""What hmarl-export --leapp writes is read and run by NVIDIA's leapp, in a virtual environment of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmarl.runtime.bundle import Bundle, load_bundle, write_bundle
from hmarl.runtime.session import Policy
from hmarl.trainer.export.export import export_run
from hmarl.trainer.export.leapp import leapp_files
from toy_bundle import toy_agent, toy_graph, toy_manifest
from training_runs import tiny_config, train

pytestmark = pytest.mark.peers
PLAY = Path(__file__).with_name("leapp_playing.py")
STEPS, EPISODES = 12, 2
TRAINED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "recurrent, with masks": ("mappo", "toy_environments:masked_discrete", {"recurrent": True, "memory_size": 6}),
    "a common conductor": (
        "hcpo",
        "coordsum/3x10-30",
        {"conductor_sees": "common", "conductor_hidden_sizes": (8,), "instructions": 3},
    ),
    "continuous": ("happo", "vmas/navigation", {}),
}


@pytest.fixture(scope="module")
def leapp(peer_python: Callable[[str, Sequence[str]], Path]) -> Path:
    return peer_python("leapp", ("leapp==0.7.2",), beside_ours=True)  # type: ignore[call-arg]


def inputs_of(bundle: Bundle, agent_id: str) -> dict[str, np.ndarray]:
    """An episode's inputs from outside, noise too: [STEPS, ...] each."""
    agent = bundle.agent(agent_id)
    generator = np.random.default_rng(3)
    given = {agent.observation.name: generator.normal(size=(STEPS, *agent.observation.shape)).astype(np.float32)}
    if agent.action_mask is not None:
        mask = generator.random((STEPS, *agent.action_mask.shape)) < 0.6
        mask[:, 0] = True
        given[agent.action_mask.name] = mask
    if agent.step is not None:
        given[agent.step.name] = np.arange(STEPS)
    for noise in agent.noises:
        given[noise.name] = generator.uniform(0.01, 0.99, (STEPS, *noise.shape)).astype(np.float32)
    return given


def played_by_us(bundle: Bundle, agent_id: str, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What our runtime comes to in EPISODES equal episodes, state fed back."""
    policy = Policy(bundle, agent_id)
    rows: dict[str, list[np.ndarray]] = {}
    for _ in range(EPISODES):
        states: dict[str, np.ndarray] = {}  # left out, they take their reset values
        for step in range(STEPS):
            outputs = policy.run_batch({name: each[step : step + 1] for name, each in given.items()} | states)
            states = {state.input: outputs[state.output] for state in policy.agent.states}
            for each in (policy.agent.action, *policy.agent.diagnostics):
                rows.setdefault(each.name, []).append(outputs[each.name][0])
    return {name: np.stack(each) for name, each in rows.items()}


def hold_leapp_to_us(leapp: Path, bundle: Bundle, agent_id: str, folder: Path) -> None:
    given, found = inputs_of(bundle, agent_id), folder / "outputs.npz"
    np.savez(folder / "inputs.npz", **given)
    description = bundle.path / "leapp" / f"{agent_id}.yaml"
    words = [leapp, PLAY, description, folder / "inputs.npz", found, str(EPISODES)]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told["inputs"]) == {f"{agent_id}/{name}" for name in given}
    assert told["feedback"] == [f"{agent_id}/{state.input}" for state in bundle.agent(agent_id).states]
    expected, theirs = played_by_us(bundle, agent_id, given), dict(np.load(found))
    assert theirs.keys() == expected.keys()
    for name, rows in expected.items():
        assert theirs[name].dtype == rows.dtype
        np.testing.assert_allclose(theirs[name], rows, rtol=1e-5, atol=1e-5, err_msg=name)  # it optimises graphs less


@pytest.mark.parametrize("kind", TRAINED)
def test_exported_agents_play_in_leapp_as_in_our_runtime(kind: str, leapp: Path, tmp_path: Path) -> None:
    algorithm, environment, settings = TRAINED[kind]
    train(tiny_config(algorithm, environment, settings), tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "bundle", leapp=True)
    bundle = load_bundle(tmp_path / "bundle")
    hold_leapp_to_us(leapp, bundle, bundle.agent_ids[-1], tmp_path)


@pytest.mark.parametrize("action", ["discrete", "multi_discrete", "box"])
def test_whatever_a_policy_can_have_is_described(action: Any, leapp: Path, tmp_path: Path) -> None:
    """State that does not begin with zeros, instructions, masks, noises of both kinds, the number of the step."""
    shape: dict[str, Any] = {"observation_size": 6, "action": action, "sizes": (8,), "plain": False, "counts": True}
    graphs = {"agents/agent_0.onnx": toy_graph(**shape)}
    fields = toy_manifest([toy_agent("agent_0", **shape)])
    agents = write_bundle(tmp_path / "draft", fields, graphs).manifest.agents
    bundle = write_bundle(tmp_path / "bundle", fields, graphs | leapp_files(agents, graphs, 0.1, 18, "tests"))
    hold_leapp_to_us(leapp, bundle, "agent_0", tmp_path)
