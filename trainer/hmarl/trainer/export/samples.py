"""Inputs on which an exported graph is compared with torch: random ones, and what agents saw; bounded in bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmarl.sdk.environment import VectorEnvironment, as_numpy
from hmarl.sdk.environments import make
from hmarl.sdk.environments.copies import few_copies
from hmarl.sdk.evaluation import episode_seeds
from hmarl.sdk.evaluation.finite import check_observations
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec, mask_branches
from hmarl.sdk.team import RandomTeam
from hmarl.trainer.learning.instructions import random_instructions

if TYPE_CHECKING:
    from hmarl.trainer.contract.deployable import DeployablePolicy

# Of what all agents saw, or of one random batch; and of what a bundle keeps per graph. Ordinary observations take less.
COMPARED_BYTES = 2**26
RECORDED_BYTES = 2**22
BATCH_SIZES = (1, 2, 7, 64, 256)
_RECORDED_ROWS = 64
_LONG_EPISODE = 1000  # steps
_ROLLOUT_STEPS, _ROLLOUT_ENVIRONMENTS = 64, 16


def batch_sizes(module: DeployablePolicy) -> tuple[int, ...]:
    """Sizes of the random batches: those that stay within ``COMPARED_BYTES``, and always one row and two."""
    return tuple(rows for rows in BATCH_SIZES if rows <= 2 or rows * _row_bytes(module) <= COMPARED_BYTES)


def recorded_rows(module: DeployablePolicy) -> int:
    """How many rows a bundle keeps of a graph's inputs and outputs: at least one, within ``RECORDED_BYTES``."""
    return max(1, min(_RECORDED_ROWS, RECORDED_BYTES // _row_bytes(module)))


def _row_bytes(module: DeployablePolicy) -> int:
    """About the size of one row of inputs and outputs."""
    entry = module.describe("")
    shapes = [tensor.shape for tensor in (entry.action, *entry.diagnostics)]
    shapes += [state.shape for state in entry.states] + [noise.shape for noise in entry.noises]
    return 4 * sum(map(math.prod, shapes)) + _seen_bytes(module.agent)


def _seen_bytes(agent: AgentSpec) -> int:
    """Of an observation and its mask."""
    return agent.observation_size * agent.observation_dtype.itemsize + agent.mask_size


def example_inputs(
    module: DeployablePolicy, rows: int, generator: np.random.Generator, given: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Random non-zero inputs, legal masks, and noise for half of the rows (the others are deterministic).

    Args:
        module: whose inputs.
        rows: of the batch.
        generator: draws them.
        given: inputs that are taken as they are.
    """
    entry, given = module.describe(""), given or {}
    inputs = {"observation": given.get("observation", torch.empty(0))}
    if "observation" not in given:
        inputs["observation"] = torch.from_numpy(_random_observations(module, rows, generator))
    if entry.action_mask is not None:
        masks = given.get("action_mask")
        inputs["action_mask"] = torch.from_numpy(_random_masks(module, rows, generator)) if masks is None else masks
    if entry.step is not None:
        inputs[entry.step.name] = torch.from_numpy(generator.integers(_LONG_EPISODE, size=rows))
    for state in entry.states:
        inputs[state.input] = _random_state(module, state.input, rows, generator)
    for noise in entry.noises:
        shape = (rows, *noise.shape)
        drawn = (
            generator.uniform(1e-6, 1 - 1e-6, shape)
            if noise.distribution == "uniform"
            else generator.normal(size=shape)
        )
        drawn[generator.random(rows) < 0.5] = 0.0
        inputs[noise.name] = torch.from_numpy(drawn.astype(np.float32))
    return inputs


def _random_state(module: DeployablePolicy, name: str, rows: int, generator: np.random.Generator) -> Tensor:
    """[rows, *shape] float32: any memory; any instruction, and none before half of the steps."""
    if name == "memory":
        return torch.from_numpy(generator.uniform(-1, 1, (rows, module.memory_size)).astype(np.float32))
    instruction = random_instructions(module.instruction_head, rows, generator)
    if name == "last_instruction":
        there = torch.from_numpy(generator.random((rows, 1)) < 0.5)
        return torch.where(there, module.seen_of(instruction), 0.0)
    chosen = torch.from_numpy(generator.integers(2, size=(rows, 1)))
    return torch.cat([instruction.view(rows, -1), chosen], dim=1).float()


def _random_observations(module: DeployablePolicy, rows: int, generator: np.random.Generator) -> npt.NDArray[Any]:
    image = module.agent.image
    if image is not None:
        shape = (rows, *image.shape)
        if image.dtype == "uint8":
            return generator.integers(256, size=shape, dtype=np.uint8)
        return generator.random(shape, np.float32)
    drawn = generator.normal(size=(rows, module.agent.observation_size))
    drawn *= 3.0 / module.normaliser.scale.numpy()
    drawn += module.normaliser.shift.numpy()
    return drawn.astype(np.float32)


def _random_masks(module: DeployablePolicy, rows: int, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    mask = generator.random((rows, module.agent.mask_size)) < 0.6
    for part in mask_branches(module.agent.action_space):
        mask[np.arange(rows), generator.integers(part.start, part.stop, size=rows)] = True
    return mask


def rollout_observations(
    environment: str, arguments: Mapping[str, Any], spec: EnvironmentSpec
) -> list[dict[str, Tensor]]:
    """Real inputs: per agent, what it saw (and its masks) while a random team played, [M, ...].

    Args:
        environment: its name.
        arguments: its arguments.
        spec: its spec, by which M is bounded: all agents' inputs stay within ``COMPARED_BYTES``.
    """
    team_bytes = sum(_seen_bytes(agent) for agent in spec.agents)
    rows = max(1, min(_ROLLOUT_STEPS * _ROLLOUT_ENVIRONMENTS, COMPARED_BYTES // team_bytes))
    batch = few_copies(environment, max(1, min(_ROLLOUT_ENVIRONMENTS, rows // 4)))
    played = make(environment, batch, **arguments)
    try:
        return _play(played, rows // batch)
    finally:
        played.close()


def _empty_rows(agent: AgentSpec, steps: int, batch: int) -> dict[str, npt.NDArray[Any]]:
    seen = np.empty((steps, batch, *agent.observation_shape), agent.observation_dtype)
    rows: dict[str, npt.NDArray[Any]] = {"observation": seen}
    if agent.has_action_mask:
        rows["action_mask"] = np.empty((steps, batch, agent.mask_size), np.bool_)
    return rows


def _when(step: int, row: int) -> str:
    return f"step {step} of a random play, environment {row}"


def _play(environment: VectorEnvironment, steps: int) -> list[dict[str, Tensor]]:
    spec, batch = environment.spec, environment.batch_size
    team = RandomTeam(spec)
    seeds = episode_seeds(17, batch)
    team.reset(seeds)
    observation = as_numpy(environment.reset(seeds))
    rows = [_empty_rows(agent, steps, batch) for agent in spec.agents]
    everywhere = np.ones(batch, dtype=np.bool_)
    for step in range(steps):
        check_observations(spec, observation, everywhere, partial(_when, step))
        for g, group in enumerate(spec.groups):
            for member, agent in enumerate(group.agents):
                rows[agent]["observation"][step] = spec.agents[agent].observed(observation.observations[g][:, member])
                mask = observation.action_masks[g]
                if mask is not None:
                    rows[agent]["action_mask"][step] = mask[:, member]
        if step + 1 < steps:
            actions = team.act(observation, everywhere)
            observation = as_numpy(environment.step(actions).observation)
    return [
        {name: torch.from_numpy(array.reshape(steps * batch, *array.shape[2:])) for name, array in row.items()}
        for row in rows
    ]
