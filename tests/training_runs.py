"""Training runs that take a second, for tests of the trainer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmarl.sdk.environment import Observation
from hmarl.sdk.environments import make
from hmarl.trainer.algorithms import find_algorithm
from hmarl.trainer.algorithms.hcpo import Hcpo
from hmarl.trainer.experience.rollout import Collector, Rollout
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.runs.config import RunConfig, make_config
from hmarl.trainer.runs.run import Run
from hmarl.trainer.sequential.samples import AgentSamples, TeamSamples
from hmarl.trainer.sequential.turns import Turn

CPU = torch.device("cpu")
TINY_NETWORKS: dict[str, Any] = {"hidden_sizes": (8,), "critic_hidden_sizes": (8,)}
TINY_RUN: dict[str, Any] = {
    "steps": 160,
    "environments": 4,
    "rollout_length": 10,
    "threads": 1,
    "evaluation_episodes": 2,
    "checkpoint_interval": 2,
}


def of_use(algorithm: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that the algorithm has, and that change it."""
    model = find_algorithm(algorithm).settings_class
    known = model.model_fields.keys() - model.without_effect
    return {key: value for key, value in settings.items() if key in known}


def tiny_networks(algorithm: str) -> dict[str, Any]:
    """Those of ``TINY_NETWORKS`` that the algorithm has a use for."""
    return of_use(algorithm, TINY_NETWORKS)


def tiny_config(
    algorithm: str,
    environment: str,
    algorithm_settings: dict[str, Any] | None = None,
    run_settings: dict[str, Any] | None = None,
    environment_arguments: dict[str, Any] | None = None,
) -> RunConfig:
    """Small networks, four environments, four updates; a checkpoint at every second one."""
    return make_config(
        algorithm,
        environment,
        {**tiny_networks(algorithm), **(algorithm_settings or {})},
        {**TINY_RUN, **(run_settings or {})},
        environment_arguments or {},
    )


def train(config: RunConfig, directory: Path) -> dict[str, Any]:
    """A whole run in this process; returns its summary."""
    run = Run.create(config, directory)
    try:
        return run.train()
    finally:
        run.close()


def command_line(config: RunConfig, out: Path) -> list[str]:
    """What to type after ``hmarl-train`` for this run, every setting spelled out."""
    words = [config.algorithm, "--env", config.environment, "--out", str(out)]
    groups = {"algorithm": config.algorithm_settings, "run": config.run, "env": config.environment_arguments}
    for prefix, settings in groups.items():
        for key, value in settings.items():
            words += ["--set", f"{prefix}.{key}={json.dumps(value)}"]
    return words


def final_hash(run: Path) -> str:
    """SHA-256 of the newest checkpoint's tensors: networks, optimisers, random states, experience, environments."""
    newest = max(run.glob("checkpoints/step-*.safetensors"))
    return hashlib.sha256(newest.read_bytes()).hexdigest()


def new_algorithm(
    name: str, environment: str, batch_size: int, steps: int, arguments: dict[str, Any] | None = None, **settings: Any
) -> tuple[Any, Rollout, Collector]:
    """A fresh algorithm with a rollout and a collector for its environment, all seeded alike."""
    algorithm_class = find_algorithm(name)
    checked = validate(algorithm_class.settings_class, {**tiny_networks(name), **settings}, "algorithm")
    made = make(environment, batch_size, **(arguments or {}))
    algorithm = algorithm_class(made.spec, checked, torch.Generator().manual_seed(3), CPU)
    rollout = Rollout(made.spec, steps, batch_size, CPU)
    return algorithm, rollout, Collector(made, rollout, np.arange(batch_size) + 11)


def resumed(run: Path, steps: int | None = None) -> dict[str, Any]:
    """Goes on with a run to its end, or to another one; returns its summary."""
    again = Run.resume(run, steps)
    try:
        return again.train()
    finally:
        again.close()


def new_hcpo(
    environment: str = "toy_environments:masked_discrete", batch_size: int = 6, steps: int = 12, **settings: Any
) -> tuple[Hcpo, Rollout, Collector]:
    """A fresh HCPO with four instructions and a small conductor."""
    small = {"conductor_hidden_sizes": (8,), "instructions": 4, **settings}
    algorithm, rollout, collector = new_algorithm("hcpo", environment, batch_size, steps, None, **small)
    assert isinstance(algorithm, Hcpo)
    return algorithm, rollout, collector


def as_tensors(seen: Observation) -> Observation:
    """The same observation as tensors."""
    return Observation(
        tuple(torch.as_tensor(each) for each in seen.observations),
        tuple(None if mask is None else torch.as_tensor(mask) for mask in seen.action_masks),
        torch.as_tensor(seen.state),
        torch.as_tensor(seen.active),
    )


def team_samples(algorithm: Any, rollout: Rollout) -> TeamSamples:
    """The rollout as its agents' samples, as the algorithm's update takes them (but for a conductor's weights)."""
    features = algorithm.features(rollout)
    if isinstance(algorithm, Hcpo):
        return algorithm.samples(rollout, features)
    return TeamSamples(rollout, algorithm.policies, features)


def turn_of(algorithm: Any, agent: int, samples: AgentSamples, advantages: torch.Tensor, **known: Any) -> Turn:
    """One agent's turn with these samples, the first unless ``known`` says otherwise."""
    group, member = algorithm.position[agent]
    told = {"factor": torch.ones_like(advantages), "place": 1, "agents": len(algorithm.spec.agents), **known}
    return Turn(agent, group, member, algorithm.policies[group], samples, advantages, **told)
