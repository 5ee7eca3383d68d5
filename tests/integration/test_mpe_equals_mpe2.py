"""Our batched MPE port and the original ``mpe2`` package, driven side by side by the same seeds and actions."""

import importlib
from typing import Any

import numpy as np
import pytest

from hmarl.sdk.environments import make
from hmarl.sdk.environments.mpe import MpeEnvironment
from hmarl.sdk.team import sample_actions

pytest.importorskip("mpe2")

MODULES = {
    "simple_spread": "mpe2.simple_spread_v3",
    "simple_reference": "mpe2.simple_reference_v3",
    "simple_speaker_listener": "mpe2.simple_speaker_listener_v4",
}
SEEDS = np.array([0, 7, 123456, 2**31 - 1])
CASES: list[tuple[str, dict[str, Any]]] = [
    *((task, {"continuous_actions": continuous}) for task in MODULES for continuous in (False, True)),
    ("simple_spread", {"N": 1}),
    ("simple_spread", {"N": 2, "local_ratio": 0.0}),
    ("simple_spread", {"N": 5, "local_ratio": 1.0, "max_cycles": 40}),
    ("simple_spread", {"N": 10, "continuous_actions": True}),
    ("simple_spread", {"N": 2, "max_cycles": 60, "terminate_on_success": True}),
    ("simple_reference", {"local_ratio": 0.2, "max_cycles": 7}),
]


class Original:
    """One mpe2 environment that resets itself from its own generator, as ours do."""

    def __init__(self, task: str, arguments: dict[str, Any], seed: int) -> None:
        self.environment = importlib.import_module(MODULES[task]).parallel_env(**arguments)
        self.observations, _ = self.environment.reset(seed=seed)

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, float], bool, bool, np.ndarray]:
        self.observations, rewards, terminations, truncations, _ = self.environment.step(actions)
        terminated, truncated = any(terminations.values()), any(truncations.values())
        final_state = self.environment.state()
        if terminated or truncated:
            self.observations, _ = self.environment.reset()
        return rewards, terminated, truncated, final_state


def random_actions(ours: MpeEnvironment, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Random actions, moved together half of the time so that agents collide; continuous ones also beyond [0, 1]."""
    actions = []
    for group in ours.spec.groups:
        space = group.example.action_space
        drawn = sample_actions(space, (ours.batch_size, len(group.agents)), None, generator)
        if drawn.dtype == np.float32:
            drawn = (drawn * 1.4 - 0.2).astype(np.float32)
        actions.append(drawn)
    return tuple(actions)


def actions_of(ours: MpeEnvironment, actions: tuple[np.ndarray, ...], row: int) -> dict[str, Any]:
    """One environment's actions as mpe2 takes them."""
    named = {}
    for group, array in zip(ours.spec.groups, actions, strict=True):
        for place, agent in enumerate(group.agents):
            action = array[row, place]
            named[ours.spec.agent_ids[agent]] = action if action.ndim else int(action)
    return named


def observations_of(ours: MpeEnvironment, observations: tuple[np.ndarray, ...], row: int) -> dict[str, np.ndarray]:
    named = {}
    for group, array in zip(ours.spec.groups, observations, strict=True):
        for place, agent in enumerate(group.agents):
            named[ours.spec.agent_ids[agent]] = array[row, place]
    return named


def gather_at_the_origin(ours: MpeEnvironment, originals: list[Original]) -> None:
    """Put every agent near the origin in both, so that many touch."""
    state = ours.get_state()
    agents = state["velocities"].shape[1]
    state["positions"][:, :agents] *= 0.15
    ours.set_state(state)
    for row, original in enumerate(originals):
        for agent, entity in enumerate(original.environment.unwrapped.world.agents):
            entity.state.p_pos = state["positions"][row, agent].copy()


@pytest.mark.filterwarnings("ignore")  # mpe2 warns of every clipped action
@pytest.mark.parametrize(("task", "arguments"), CASES, ids=str)
def test_equals_mpe2_step_for_step(task: str, arguments: dict[str, Any]) -> None:
    ours = make(f"mpe/{task}", len(SEEDS), **arguments)
    assert isinstance(ours, MpeEnvironment)
    originals = [Original(task, arguments, int(seed)) for seed in SEEDS]
    observation = ours.reset(SEEDS)
    generator = np.random.default_rng(1)
    assert list(ours.spec.agent_ids) == originals[0].environment.possible_agents
    for agent in ours.spec.agents:
        assert agent.action_space == originals[0].environment.action_space(agent.id)
        assert (agent.observation_size,) == originals[0].environment.observation_space(agent.id).shape

    for step in range(3 * ours.spec.horizon + 1):
        if step == ours.spec.horizon:  # the second episode begins in a crowd
            gather_at_the_origin(ours, originals)
            observation = None
        for row, original in enumerate(originals):
            if observation is None:
                break
            for agent, seen in observations_of(ours, observation.observations, row).items():
                np.testing.assert_array_equal(seen, original.observations[agent], err_msg=f"{agent}, step {step}")
            np.testing.assert_array_equal(observation.state[row], original.environment.state())
        actions = random_actions(ours, generator)
        result = ours.step(actions)
        for row, original in enumerate(originals):
            rewards, terminated, truncated, final_state = original.step(actions_of(ours, actions, row))
            expected = np.array([rewards[agent] for agent in ours.spec.agent_ids], dtype=np.float32)
            np.testing.assert_array_equal(result.rewards[row], expected, err_msg=f"step {step}")
            assert (result.terminated[row], result.truncated[row]) == (terminated, truncated)
            last = result.observation if result.final is None else result.final
            np.testing.assert_array_equal(last.state[row], final_state, err_msg=f"step {step}")
        observation = result.observation


@pytest.mark.filterwarnings("ignore")
def test_success_and_termination_equal_mpe2() -> None:
    arguments = {"N": 1, "terminate_on_success": True}
    ours = make("mpe/simple_spread", 1, **arguments)
    original = Original("simple_spread", arguments, 3)
    observation = ours.reset(np.array([3]))
    terminations = 0
    for _ in range(100):
        away = observation.observations[0][0, 0, 4:6]
        axis = int(np.abs(away).argmax())
        move = 1 + 2 * axis + int(away[axis] > 0)
        result = ours.step((np.array([[move]]),))
        _, terminated, truncated, _ = original.step({"agent_0": move})
        assert (bool(result.terminated[0]), bool(result.truncated[0])) == (terminated, truncated)
        assert result.success is not None
        assert bool(result.success[0]) or not terminated
        terminations += terminated
        observation = result.observation
    assert terminations >= 3
