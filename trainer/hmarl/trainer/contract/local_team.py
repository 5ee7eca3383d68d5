"""The deployable policies in torch, as a team for ``evaluate``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmarl.runtime.bundle import AgentModel
from hmarl.runtime.choices import InstructionChoice, drawn_noises
from hmarl.runtime.session import check_finite, noise_for
from hmarl.sdk.clients.agent import check_spec
from hmarl.sdk.environment import Observation
from hmarl.sdk.evaluation.assignment import assign
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.deployable import DeployablePolicy


class LocalPolicies(Protocol):
    """Whoever has one deployable policy for each agent: an ``Algorithm``, or ``Students``."""

    spec: EnvironmentSpec
    position: dict[int, tuple[int, int]]

    @property
    def interchangeable(self) -> bool:
        """Whether the agents of a group are one policy, which does not know which of them it acts for."""
        ...

    def deployable(self, agent: int) -> DeployablePolicy:
        """The agent's local policy as one module."""
        ...


class LocalTeam:
    """The deployable policies in torch, each fed with its own agent's observation alone: what will be exported.

    What an agent remembers stands still while it is away. ``act`` raises ``NonFiniteError`` when a policy computes NaN
    or infinity in a row that matters.

    Args:
        policies: whose agents.
        sample: draw actions (and, in common, instructions) instead of argmax or mean.
        instruction_choice: ``argmax``, ``sample`` or ``common``, see ``PolicySession.reset``; ignored by agents
            without instructions.
        spec: the environment's, if it is not that of training; an interchangeable agent acts for those that were not
            trained.

    Raises:
        UsageError: no agent's policy fits one of the environment's agents.
    """

    name = "local"
    label = "deployed policies"
    colour = "#0072b2"

    def __init__(
        self,
        policies: LocalPolicies,
        sample: bool = False,
        instruction_choice: InstructionChoice | None = None,
        spec: EnvironmentSpec | None = None,
    ) -> None:
        self.spec = spec or policies.spec
        known = {agent.id: policies.deployable(index) for index, agent in enumerate(policies.spec.agents)}
        models = {
            agent.id: known[agent.id].describe(f"group {policies.position[index][0]}", policies.interchangeable)
            for index, agent in enumerate(policies.spec.agents)
        }
        assigned = assign("run", self.spec, models)
        self.modules = [known[assigned[agent.id]] for agent in self.spec.agents]
        self._models: list[AgentModel] = [models[assigned[agent.id]].named(agent.id) for agent in self.spec.agents]
        for agent, module in zip(self.spec.agents, self.modules, strict=True):
            check_spec(replace(module.agent, id=agent.id), agent, "run")
        self._streams = [
            {noise.name: stream for noise, stream in drawn_noises(model, sample, instruction_choice)}
            for model in self._models
        ]
        self._states: list[list[Tensor]] = []
        self._seeds = np.zeros(0, dtype=np.int64)
        self._step = 0

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start episodes with fresh states."""
        self._seeds, self._step = seeds, 0
        self._states = [
            [torch.tensor(state.reset).expand(len(seeds), -1) for state in module.states] for module in self.modules
        ]

    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """All agents' actions, one agent at a time, as the separate processes will do it."""
        if observation.restarted is not None:
            self._forget(torch.from_numpy(observation.restarted))
        groups = []
        for g, group in enumerate(self.spec.groups):
            mask = observation.action_masks[g]
            actions = [
                self._act(
                    agent,
                    observation.observations[g][:, m],
                    None if mask is None else mask[:, m],
                    running & observation.active[:, agent],
                )
                for m, agent in enumerate(group.agents)
            ]
            groups.append(np.stack(actions, axis=1))
        self._step += 1
        return tuple(groups)

    def _forget(self, restarted: Tensor) -> None:
        """All states of the agents ``restarted`` [B, N] are fresh."""
        for agent, module in enumerate(self.modules):
            rows = restarted[:, agent, None]
            self._states[agent] = [
                torch.where(rows, torch.tensor(model.reset), state)
                for model, state in zip(module.states, self._states[agent], strict=True)
            ]

    def carried(self, name: str) -> list[Tensor]:
        """Per group [B, N_group, ...] what its agents carry into the next step in the state of this name.

        Raises:
            KeyError: an agent has no such state.
        """
        held = [
            {state.input: value for state, value in zip(module.states, states, strict=True)}[name]
            for module, states in zip(self.modules, self._states, strict=True)
        ]
        return [torch.stack([held[agent] for agent in group.agents], dim=1) for group in self.spec.groups]

    @torch.no_grad()
    def _act(
        self, agent: int, observation: npt.NDArray[Any], mask: npt.NDArray[Any] | None, asked: npt.NDArray[np.bool_]
    ) -> npt.NDArray[Any]:
        module = self.modules[agent]
        inputs = [torch.from_numpy(module.agent.observed(observation))]
        if module.agent.has_action_mask:
            legal = np.ones((len(observation), module.agent.mask_size), dtype=bool) if mask is None else mask
            inputs.append(torch.from_numpy(np.ascontiguousarray(legal)))
        if self._models[agent].step is not None:
            inputs.append(torch.full((len(observation),), self._step))
        inputs += self._states[agent]
        inputs += [torch.from_numpy(noise) for noise in self._noises(agent)]
        outputs = module(*inputs)
        named = {name: output.numpy() for name, output in zip(module.output_names, outputs, strict=True)}
        check_finite(self.spec.agents[agent].id, named, observation, asked)
        rows = torch.from_numpy(asked).unsqueeze(-1)
        self._states[agent] = [
            torch.where(rows, after, before)
            for after, before in zip(outputs[1 : 1 + len(module.states)], self._states[agent], strict=True)
        ]
        return np.asarray(outputs[0].numpy())

    def _noises(self, agent: int) -> list[npt.NDArray[np.float32]]:
        """An agent's noise inputs [B, ...]: drawn as served sessions draw them, or zero where nothing is drawn."""
        model, streams = self._models[agent], self._streams[agent]
        return [
            noise_for(noise, model.id, self._seeds, self._step, stream=streams[noise.name])
            if noise.name in streams
            else np.zeros((len(self._seeds), *noise.shape), dtype=np.float32)
            for noise in model.noises
        ]

    def close(self) -> None:
        """Nothing to free."""
