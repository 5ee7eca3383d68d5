"""An environment and teams whose returns are known by construction: what a team loses can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from gymnasium import spaces
from onnx import TensorProto, helper, numpy_helper

from hmarl.runtime.bundle import Bundle, write_bundle
from hmarl.sdk.environment import Observation, StepResult
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec
from toy_bundle import toy_manifest

AGENTS = ("left", "right")
CHOICES = 4
STEPS = 3


class RightOrWrong:
    """B episodes of ``STEPS`` steps. Each agent sees a choice, one-hot and never the first, and earns 1 by making it.

    The choice is (seed + step) mod 3 + 1 for both agents; the team's reward is the sum: 2 · ``STEPS`` at most.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        agents = tuple(AgentSpec(each, CHOICES, spaces.Discrete(CHOICES)) for each in AGENTS)
        self.spec = EnvironmentSpec("right_or_wrong:make", agents, 1, STEPS, "sum")
        self._seeds = self._steps = np.zeros(batch_size, np.int64)

    def _choice(self) -> npt.NDArray[np.int64]:
        return np.asarray((self._seeds + self._steps) % (CHOICES - 1) + 1)

    def reset(self, seeds: npt.NDArray[np.int64]) -> Observation:
        self._seeds, self._steps = np.array(seeds), np.zeros(self.batch_size, np.int64)
        return self._observe()

    def step(self, actions: tuple[Any, ...]) -> StepResult:
        rewards = (np.asarray(actions[0]) == self._choice()[:, None]).astype(np.float32)
        self._steps = self._steps + 1
        over = self._steps >= STEPS
        observation, final = self._observe(), None
        if over.any():
            final, self._steps = observation, np.where(over, 0, self._steps)
            observation = self._observe()
        return StepResult(observation, rewards, over, np.zeros_like(over), final)

    def _observe(self) -> Observation:
        seen = np.eye(CHOICES, dtype=np.float32)[self._choice()]
        both = np.stack([seen] * len(AGENTS), axis=1)
        state = np.zeros((self.batch_size, 1), np.float32)
        return Observation((both,), (None,), state, np.ones((self.batch_size, len(AGENTS)), np.bool_))

    def get_state(self) -> Mapping[str, npt.NDArray[Any]] | None:
        return None

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> Observation:
        raise NotImplementedError

    def render(self, index: int = 0) -> None:
        """There is nothing to draw."""

    def close(self) -> None:
        """Nothing to free."""


def make(batch_size: int = 1) -> RightOrWrong:
    return RightOrWrong(batch_size)


class KnowingTeam:
    """Makes the right choice but at ``wrong`` steps, at which the agents number ``who`` make the first one.

    Args:
        wrong: steps.
        who: which agents.
        only_odd: in episodes of odd seeds alone.
    """

    name = "knowing"

    def __init__(self, wrong: Sequence[int] = (), who: Sequence[int] = (0, 1), only_odd: bool = False) -> None:
        self._wrong, self._who, self._only_odd = wrong, list(who), only_odd
        self._seeds = np.zeros(0, np.int64)
        self._step = 0
        self.closed = False

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        self._seeds, self._step = np.asarray(seeds), 0

    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        chosen = np.asarray(observation.observations[0]).argmax(-1)
        if self._step in self._wrong:
            rows = np.flatnonzero(self._seeds % 2 == 1) if self._only_odd else np.arange(len(chosen))
            chosen[np.ix_(rows, self._who)] = 0
        self._step += 1
        return (chosen,)

    def close(self) -> None:
        self.closed = True


def write_choosing_bundle(path: Path, shift: Mapping[str, int] | None = None, trained: str | None = None) -> Bundle:
    """A bundle whose agents make the choice that they see, or the one so many places after it.

    Args:
        path: where to.
        shift: by agent, places; none makes every choice right, any other number none.
        trained: the faults that it says it was trained with.
    """
    entries = []
    files = {}
    for agent in AGENTS:
        entries.append(
            {
                "id": agent,
                "file": f"agents/{agent}.onnx",
                "kind": "toy",
                "action_space": {"type": "discrete", "n": CHOICES},
                "observation": {"name": "observation", "shape": [CHOICES], "dtype": "float32", "meaning": "choice"},
                "action": {"name": "action", "shape": [], "dtype": "int64", "meaning": "choice"},
            }
        )
        files[f"agents/{agent}.onnx"] = _choosing_graph((shift or {}).get(agent, 0))
    arguments = {} if trained is None else {"faults": trained}
    environment = {"name": "right_or_wrong:make", "arguments": arguments, "team_reward": "sum"}
    return write_bundle(path, toy_manifest(entries, environment), files)


def _choosing_graph(shift: int) -> bytes:
    """argmax(observation W), where W moves each choice on by ``shift``."""
    table = np.roll(np.eye(CHOICES, dtype=np.float32), shift, axis=1)
    nodes = [
        helper.make_node("MatMul", ["observation", "table"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["action"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "choosing",
        [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["batch", CHOICES])],
        [helper.make_tensor_value_info("action", TensorProto.INT64, ["batch"])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
