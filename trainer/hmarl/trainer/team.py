"""The trainer's own policies as a team for ``evaluate``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hmarl.runtime.bundle import AgentModel
from hmarl.runtime.session import InstructionChoice, noise_for
from hmarl.sdk.agent import check_spec
from hmarl.sdk.annotation import TeamAnnotation
from hmarl.sdk.assignment import assign
from hmarl.sdk.environment import Observation
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.sdk.team import Team
from hmarl.sdk.teams import drawn_noises
from hmarl.trainer.algorithm import Algorithm
from hmarl.trainer.algorithms.himpo import Himpo
from hmarl.trainer.conducted import Conducted
from hmarl.trainer.deployable import DeployablePolicy
from hmarl.trainer.guided import GuidedTeam
from hmarl.trainer.hierarchy.hierarchy import Noise, Step
from hmarl.trainer.instructions import random_instructions
from hmarl.trainer.students.student import Students
from hmarl.trainer.students.teacher import Teacher

CONDUCTORS = ("central", "random", "none")


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

    Args:
        policies: whose agents.
        sample: draw actions (and, in common, instructions) instead of argmax or mean.
        instruction_choice: ``argmax``, ``sample`` or ``common``, see ``PolicySession.reset``; ignored by agents
            without instructions.
        spec: the environment's, if it is not that of training; an interchangeable agent acts for those that were not
            trained.

    Raises:
        UsageError: nobody's policy fits one of the environment's agents.
    """

    name = "local"

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
        """Everybody's action, one agent at a time, as the separate processes will do it."""
        groups = []
        for g, group in enumerate(self.spec.groups):
            mask = observation.action_masks[g]
            actions = [
                self._act(agent, observation.observations[g][:, m], None if mask is None else mask[:, m])
                for m, agent in enumerate(group.agents)
            ]
            groups.append(np.stack(actions, axis=1))
        self._step += 1
        return tuple(groups)

    @torch.no_grad()
    def _act(self, agent: int, observation: npt.NDArray[Any], mask: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        module = self.modules[agent]
        inputs = [torch.from_numpy(np.ascontiguousarray(observation, dtype=np.float32))]
        if module.agent.has_action_mask and mask is not None:
            inputs.append(torch.from_numpy(np.ascontiguousarray(mask)))
        inputs += self._states[agent]
        inputs += [torch.from_numpy(noise) for noise in self._noises(agent)]
        outputs = module(*inputs)
        self._states[agent] = list(outputs[1 : 1 + len(module.states)])
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


class ConductedTeam:
    """Local policies under one of the four conductors of the paper's Fig. 8(c).

    Args:
        algorithm: with a conductor.
        conductor: ``central`` (sees the state), ``random`` (uniform or standard normal instructions) or ``none`` (the
            instruction is withheld: an all-zero input). The fourth, ``local``, is ``LocalTeam``.
    """

    def __init__(self, algorithm: Conducted, conductor: str) -> None:
        self.name = conductor
        self._algorithm = algorithm
        self._generator = np.random.default_rng(0)
        self._step = 0
        self._instruction = torch.zeros(0, dtype=torch.int64)
        self._memories: list[Tensor] = []

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start episodes; random instructions are seeded by the episodes' seeds."""
        self._generator = np.random.default_rng(np.asarray(seeds, dtype=np.uint64))
        self._step = 0
        self._memories = self._algorithm.no_memories(len(seeds)) if self._algorithm.settings.recurrent else []

    @torch.no_grad()
    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """The modes of all actors given the conductor's instruction."""
        algorithm = self._algorithm
        seen = _as_tensors(observation, algorithm.device)
        if self._step % algorithm.settings.instruction_interval == 0:
            self._instruction = self._choose(seen.state)
        self._step += 1
        context = algorithm.conductor.seen_of(self._instruction)
        withheld = torch.zeros_like(context) if self.name == "none" else context
        decision, self._memories = algorithm.decide(seen, withheld, None, self._memories)
        return tuple(action.cpu().numpy() for action in decision.environment_actions)

    def _choose(self, state: Tensor) -> Tensor:
        if self.name == "central":
            return self._algorithm.conductor.distribution(self._algorithm.state_normaliser(state)).mode()
        return random_instructions(self._algorithm.conductor.head, len(state), self._generator).to(state.device)

    def close(self) -> None:
        """Nothing to free."""


class CentralTeam:
    """A guider acting for the whole team, agents in their natural order.

    Args:
        algorithm: whose guider.
        sample: draw actions, with noise seeded by the episodes' seeds, instead of taking the modes.
    """

    name = "guider"

    def __init__(self, algorithm: GuidedTeam, sample: bool = False) -> None:
        self._algorithm, self._sample = algorithm, sample
        self._generator = torch.Generator()
        self._memory = algorithm.guider.no_memory(0, algorithm.device)
        self._instruction: Tensor | None = None
        self._holds = 0

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start episodes with nothing remembered, and no instruction in force."""
        self._holds = 0
        self._generator.manual_seed(_joint_seed(seeds))
        self._memory = self._algorithm.guider.no_memory(len(seeds), self._algorithm.device)

    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """Everybody's action, one agent after the other."""
        algorithm = self._algorithm
        noise = _drawn(algorithm, len(running), self._generator) if self._sample else None
        seen = _as_tensors(observation, algorithm.device)
        if self._holds == 0:
            self._instruction, self._holds = algorithm.likeliest_instruction(seen)
        self._holds -= 1
        acted = algorithm.act_centrally(seen, self._instruction, noise, self._memory)
        self._memory = acted.memory
        return tuple(action.cpu().numpy() for action in algorithm.to_environment(acted.actions))

    def close(self) -> None:
        """Nothing to free."""


class HierarchyTeam:
    """A whole hierarchy: messages among the workers, goals from above.

    Args:
        algorithm: whose hierarchy.
        sample: draw goals and actions, with noise seeded by the episodes' seeds, instead of taking the modes.

    Attributes:
        last: what was decided at the last step, None before the first.
    """

    name = "hierarchy"

    def __init__(self, algorithm: Himpo, sample: bool = False) -> None:
        self._algorithm, self._sample = algorithm, sample
        self._generator = torch.Generator()
        self._standing = algorithm.hierarchy.nothing_in_force(0)
        self.last: Step | None = None

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start episodes with nothing in force."""
        self._generator.manual_seed(_joint_seed(seeds))
        self._standing, self.last = self._algorithm.hierarchy.nothing_in_force(len(seeds)), None

    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """Everybody's action, goals before it where they have run out."""
        algorithm, noise = self._algorithm, None
        if self._sample:
            goals = algorithm.hierarchy.draw_goal_noise((len(running),), self._generator)
            actions = _drawn(algorithm, len(running), self._generator)
            noise = Noise(actions, *(drawn.to(algorithm.device) for drawn in goals))
        self.last = algorithm.decide_together(_as_tensors(observation, algorithm.device), self._standing, noise)
        self._standing = self.last.standing
        return tuple(action.cpu().numpy() for action in algorithm.to_environment(self.last.actions))

    def explain(self, index: int = 0) -> TeamAnnotation | None:
        """Messages, clusters and goals at the last step."""
        if self.last is None:
            return None
        graph, record, settings = self.last.graph, self.last.record, self._algorithm.settings

        def told(goals: Tensor | None, decided: str) -> tuple[npt.NDArray[Any] | None, npt.NDArray[np.bool_] | None]:
            if goals is None:
                return None, None
            seen = goals[index].cpu().numpy()
            return seen, np.full(len(seen), bool(record[decided][index]))

        goals, goals_set = told(graph.goal, "decided")
        sub_goals, sub_goals_set = told(graph.sub_goal, "manager_decided")
        edges = graph.edges[index] & (settings.message_rounds > 0)
        return TeamAnnotation(
            edges.nonzero().cpu().numpy(), graph.active[index].cpu().numpy(),
            graph.cluster[index].cpu().numpy() if settings.levels > 1 else None,
            goals, goals_set, sub_goals, sub_goals_set, settings.goal_space == "discrete",
        )  # fmt: skip

    def close(self) -> None:
        """Nothing to free."""


class TeacherTeam:
    """A teacher acting by itself.

    Args:
        algorithm: whose teacher.
        teacher: who acts.
        sample: draw actions, with noise seeded by the episodes' seeds, instead of taking the modes.
    """

    def __init__(self, algorithm: Algorithm, teacher: Teacher, sample: bool = False) -> None:
        self.name = teacher.name
        self._algorithm, self._teacher, self._sample = algorithm, teacher, sample
        self._generator = torch.Generator()

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start episodes with nothing remembered."""
        self._generator.manual_seed(_joint_seed(seeds))
        self._teacher.begin(len(seeds))

    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """The teacher's actions; it remembers that they were taken."""
        algorithm, seen = self._algorithm, _as_tensors(observation, self._algorithm.device)
        noise = _drawn(algorithm, len(running), self._generator) if self._sample else None
        actions = self._teacher.act(seen, noise)
        self._teacher.label(seen, actions)
        return tuple(action.cpu().numpy() for action in algorithm.to_environment(actions))

    def close(self) -> None:
        """Nothing to free."""


class InformedTeam:
    """Students that see more than their agents will, which no deployable policy does.

    Args:
        algorithm: whose team they imitate.
        students: who act.
        sample: draw actions, with noise seeded by the episodes' seeds, instead of taking the modes.
    """

    name = "informed students"

    def __init__(self, algorithm: Algorithm, students: Students, sample: bool = False) -> None:
        self._algorithm, self._students, self._sample = algorithm, students, sample
        self._generator = torch.Generator()
        self._memories: list[Tensor] = []

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start episodes with nothing remembered."""
        self._generator.manual_seed(_joint_seed(seeds))
        self._memories = self._students.no_memories(len(seeds))

    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[Any], ...]:
        """Everybody's action."""
        algorithm, noise = self._algorithm, None
        if self._sample:
            noise = _drawn(algorithm, len(running), self._generator)
        actions, self._memories = self._students.act(_as_tensors(observation, algorithm.device), noise, self._memories)
        return tuple(action.cpu().numpy() for action in algorithm.to_environment(actions))

    def close(self) -> None:
        """Nothing to free."""


def _drawn(algorithm: Algorithm, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """One step's action noise, per group [N_group, B, A] on the training device; the generator is on the CPU."""
    return [
        head.draw_perturbations((len(group.agents), batch_size), generator).to(algorithm.device)
        for group, head in zip(algorithm.spec.groups, algorithm.heads, strict=True)
    ]


def _joint_seed(seeds: npt.NDArray[np.int64]) -> int:
    """One seed of all episodes' seeds."""
    seed = np.random.SeedSequence(np.asarray(seeds, dtype=np.uint64).tolist()).generate_state(1, np.uint64)[0]
    return int(seed >> np.uint64(1))


def _as_tensors(observation: Observation, device: torch.device) -> Observation:
    """The same observation as tensors on a device."""
    return Observation(
        tuple(torch.as_tensor(o, device=device) for o in observation.observations),
        tuple(None if m is None else torch.as_tensor(m, device=device) for m in observation.action_masks),
        torch.as_tensor(observation.state, device=device),
        torch.as_tensor(observation.active, device=device),
    )


def variants(algorithm: Algorithm) -> tuple[str, ...]:
    """The ways to play with what was learnt, the one it is judged by first; ``local`` is what is deployed."""
    names: tuple[str, ...] = ("local",) if algorithm.exportable else ()
    if isinstance(algorithm, Conducted):
        names += CONDUCTORS
    if isinstance(algorithm, GuidedTeam):
        names += ("guider",)
    if isinstance(algorithm, Himpo):
        names += ("hierarchy",)
    return names


def central_team(algorithm: Algorithm, name: str, sample: bool = False) -> ConductedTeam | CentralTeam | HierarchyTeam:
    """The team of a variant other than ``local``; ``sample`` is for ``guider`` and ``hierarchy`` alone."""
    if name == "hierarchy":
        assert isinstance(algorithm, Himpo)
        return HierarchyTeam(algorithm, sample)
    if name == "guider":
        assert isinstance(algorithm, GuidedTeam)
        return CentralTeam(algorithm, sample)
    assert isinstance(algorithm, Conducted)
    return ConductedTeam(algorithm, name)


def teams(algorithm: Algorithm, sample: bool = False) -> dict[str, Team]:
    """A team for each of the ``variants``; ``sample`` is for ``local``, ``guider`` and ``hierarchy``."""
    return {
        name: LocalTeam(algorithm, sample) if name == "local" else central_team(algorithm, name, sample)
        for name in variants(algorithm)
    }
