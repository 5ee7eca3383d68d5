"""A program as a user writes it, typed strictly: a robot, an evaluation, an environment of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from hmarl.sdk import (
    VECTORISED,
    Action,
    Agent,
    AgentClient,
    AgentError,
    AgentSpec,
    AsyncAgentClient,
    BundleTeam,
    Call,
    EnvironmentSpec,
    Evaluation,
    Fail,
    Fallback,
    FleetTeam,
    Hold,
    InstructionChoice,
    LocalAgent,
    NoOp,
    Observation,
    RandomTeam,
    Situation,
    StaleActionError,
    StepResult,
    Team,
    VectorEnvironment,
    Zero,
    check_environment,
    evaluate,
    load_bundle,
    load_endpoints,
    make_environment,
)
from hmarl.sdk.environments.authoring import RandomStreams, at_least, checked_actions, checked_state, resolve_arguments

COPY_COST = VECTORISED
CHOICE: InstructionChoice = "common"


def brake(situation: Situation) -> int:
    if situation.age_steps > 10:
        raise StaleActionError(f"step {situation.step}: {situation.reason}")
    return 0 if isinstance(situation.action_space, spaces.Discrete) else 1


FALLBACKS: list[Fallback] = [Hold(expires_after_s=0.2, then=Zero()), NoOp(3), Call(brake), Fail()]


def play(agent: Agent, steps: int) -> list[Action]:
    agent.reset(seed=7, sample=True, instruction_choice=CHOICE)
    observation = np.zeros(agent.spec.observation_size, np.float32)
    return [agent.act(observation) for _ in range(steps)]


def robot(address: str) -> float:
    try:
        with AgentClient(address, timeout_s=0.05, fallback=FALLBACKS[0], stream=True) as agent:
            return max(action.latency_s for action in play(agent, 3))
    except AgentError as error:
        print(error)
        return float("nan")


async def asynchronous(address: str) -> bool:
    async with AsyncAgentClient(address, fallback=Zero()) as agent:
        await agent.reset(1)
        action = await agent.act(np.zeros(agent.spec.observation_size, np.float32))
        return action.fresh and action.step == 0


def figures(bundle_path: str, endpoints: str) -> dict[str, Evaluation]:
    bundle = load_bundle(bundle_path)
    local = LocalAgent(bundle, "agent_0")
    play(local, 2)
    environment: VectorEnvironment = make_environment("mpe/simple_spread", batch_size=4, N=3)
    addresses: dict[str, str] = load_endpoints(endpoints)
    teams: list[Team] = [
        RandomTeam(environment.spec),
        BundleTeam(bundle, environment.spec, sample=True, instruction_choice=CHOICE),
        FleetTeam(addresses, environment.spec),
    ]
    return {team.name: evaluate(environment, team, episodes=4, seed=0) for team in teams}


class Guess:
    """Two agents guess a bit; a ``VectorEnvironment``."""

    def __init__(self, batch_size: int, choices: int) -> None:
        agents = tuple(AgentSpec(f"guesser_{i}", 1, spaces.Discrete(choices)) for i in range(2))
        self.spec = EnvironmentSpec("guess:make", agents, 1, 1, "shared", arguments={"choices": choices})
        self.batch_size = batch_size
        self._streams = RandomStreams(np.zeros(batch_size, np.int64), batch_size)
        self._right = np.zeros(batch_size, np.int64)

    def reset(self, seeds: npt.NDArray[np.int64]) -> Observation:
        self._streams = RandomStreams(seeds, self.batch_size)
        return self._next()

    def step(self, actions: tuple[npt.NDArray[Any], ...]) -> StepResult:
        (guessed,) = checked_actions(actions, self.spec.groups, self.batch_size)
        rewards = (guessed == self._right[:, None]).all(axis=1, keepdims=True).repeat(2, axis=1).astype(np.float32)
        final, ended = self._seen(), np.ones(self.batch_size, np.bool_)
        return StepResult(self._next(), rewards, ended, ~ended, final)

    def get_state(self) -> Mapping[str, npt.NDArray[Any]]:
        return {"right": self._right.copy(), **self._streams.get_state()}

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> Observation:
        saved = checked_state(state, self.get_state())
        self._right, self._streams = saved["right"], RandomStreams.from_state(saved, self.batch_size)
        return self._seen()

    def render(self, index: int = 0) -> npt.NDArray[np.uint8] | None:
        return None

    def close(self) -> None:
        pass

    def _next(self) -> Observation:
        choices = self.spec.agents[0].mask_size
        self._right = self._streams.integers(np.arange(self.batch_size), choices, 1)[:, 0]
        return self._seen()

    def _seen(self) -> Observation:
        state = self._right[:, None].astype(np.float32)
        active = np.ones((self.batch_size, 2), np.bool_)
        return Observation((np.repeat(state[:, None], 2, axis=1),), (None,), state, active)


def make(batch_size: int, **arguments: Any) -> VectorEnvironment:
    return Guess(batch_size, **resolve_arguments("guess:make", arguments, {"choices": 2}, {"choices": at_least(2)}))


def main(bundle: str, endpoints: str) -> None:
    address = load_endpoints(endpoints)["agent_0"]
    assert robot(address) > 0.0
    assert asyncio.run(asynchronous(address))
    found = figures(bundle, endpoints)
    assert list(found) == ["random", "bundle", "gRPC fleet"]
    assert all(each.returns.shape == (4,) for each in found.values())
    assert all(result.passed for result in check_environment(make))


if __name__ == "__main__":
    main(*sys.argv[1:])
