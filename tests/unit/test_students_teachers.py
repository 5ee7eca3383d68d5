"""Teachers: labels are the guider's given what was really done, and the conductor's actors'; memory follows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.trainer.algorithms import ALGORITHMS, find_algorithm
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.contract.teacher import GoalKind, Teacher
from hmarl.trainer.networks.distributions import Distribution
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.students.teams import TeacherTeam
from toy_environments import ToyEnvironment, leaving, masked_discrete
from training_runs import CPU, as_tensors, tiny_networks

pytestmark = pytest.mark.usefixtures("single_thread")
BATCH, STEPS = 3, 9  # episodes have five steps
GUIDED = {"embedding_size": 8, "normalise_observations": False}
CONDUCTED = {"conductor_hidden_sizes": (8,), "instructions": 4, "instruction_interval": 3, "recurrent": True}


def new_team(name: str, environment: ToyEnvironment, **settings: Any) -> Any:
    """Fresh, but away from the start, where all policies are near uniform."""
    algorithm_class = find_algorithm(name)
    checked = validate(algorithm_class.settings_class, {**tiny_networks(name), **settings}, "algorithm")
    generator = torch.Generator().manual_seed(3)
    algorithm = algorithm_class(environment.spec, checked, generator, CPU)
    thetas = [policy.theta for policy in algorithm.policies]
    thetas += [algorithm.guider.theta] if hasattr(algorithm, "guider") else []
    thetas += [algorithm.conductor.policy.theta] if hasattr(algorithm, "conductor") else []
    for theta in thetas:
        theta.add_(torch.randn(theta.shape, generator=generator), alpha=0.4)
    return algorithm


class Played:
    """Episodes in which the teacher labels random actions, or its own, or given ones."""

    def __init__(
        self, algorithm: Any, teacher: Teacher, environment: ToyEnvironment, own: bool = False, given: Any = None
    ) -> None:
        generator = torch.Generator().manual_seed(5)
        teacher.begin(BATCH)
        observation = as_tensors(environment.reset(np.arange(BATCH) + 11))
        self.seen: list[Observation] = []
        self.actions: list[tuple[Tensor, ...]] = []
        self.labels: list[list[Distribution]] = []
        self.begins = torch.zeros(STEPS, BATCH, dtype=torch.bool)
        for step in range(STEPS):
            groups = list(zip(algorithm.spec.groups, algorithm.heads, strict=True))
            noise = [head.draw_perturbations((len(group.agents), BATCH), generator) for group, head in groups]
            if given is not None:
                actions = given[step]
            elif own:
                actions = teacher.act(observation, noise)
                assert all(torch.equal(a, b) for a, b in zip(actions, teacher.act(observation, noise), strict=True))
            else:
                masks = [None if mask is None else mask.transpose(0, 1) for mask in observation.action_masks]
                uniform = [
                    head.distribution(torch.zeros_like(each), head.initialise(), mask)
                    for (_, head), each, mask in zip(groups, noise, masks, strict=True)
                ]
                actions = tuple(u.select(n).transpose(0, 1) for u, n in zip(uniform, noise, strict=True))
            self.seen.append(observation)
            self.actions.append(actions)
            self.labels.append(list(teacher.label(observation, actions).distributions))
            result = environment.step(tuple(each.numpy() for each in algorithm.to_environment(actions)))
            ended = torch.as_tensor(result.terminated | result.truncated)
            if result.final is not None:
                teacher.episodes_ended(ended)
            if step + 1 < STEPS:
                self.begins[step + 1] = ended
            observation = as_tensors(result.observation)

    def stacked(self, group: int, field: str) -> Tensor:
        return torch.stack([getattr(each, field)[group] for each in self.seen])


def numbers(distribution: Any) -> Tensor:
    """[..., P] what makes up a distribution."""
    if hasattr(distribution, "logits"):
        return distribution.logits
    return torch.cat([distribution.mean, distribution.log_std], dim=-1)


def close(label: Distribution, expected: Tensor) -> None:
    torch.testing.assert_close(numbers(label), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("environment", [leaving, masked_discrete])
@pytest.mark.parametrize("name", ["mat", "sable"])
def test_a_guiders_labels_are_what_it_judges_along_the_actions_that_were_taken(name: str, environment: Any) -> None:
    algorithm = new_team(name, environment(BATCH), **GUIDED)
    played = Played(algorithm, algorithm.teacher(), environment(BATCH))
    groups = range(len(algorithm.spec.groups))
    view = algorithm.guider.view(
        [played.stacked(g, "observations") for g in groups],
        [None if played.seen[0].action_masks[g] is None else played.stacked(g, "action_masks") for g in groups],
        torch.stack([each.state for each in played.seen]),
    )
    actions = [torch.stack([step[g] for step in played.actions]) for g in groups]
    order = torch.arange(len(algorithm.spec.agents))
    network = algorithm.guider.network
    memory = algorithm.guider.no_memory(BATCH)
    parameters = network.named(algorithm.guider.theta)
    judged = network.judge(parameters, view, actions, order, memory, played.begins).distributions
    for g, distribution in enumerate(judged):
        in_time = numbers(distribution).unflatten(1, (STEPS, BATCH))
        for step in range(STEPS):
            close(played.labels[step][g], in_time[:, step])


@pytest.mark.parametrize("name", ["hcpo", "guided-hcpo"])
def test_a_conductors_labels_are_its_actors_under_the_likeliest_instruction(name: str) -> None:
    algorithm = new_team(name, leaving(BATCH), **CONDUCTED)
    played = Played(algorithm, algorithm.teacher(), leaving(BATCH))
    for row in range(BATCH):
        age, memories, context = 0, algorithm.actors.no_memories(1), torch.zeros(1, 4)
        for step in range(STEPS):
            if played.begins[step, row]:
                age, memories = 0, algorithm.actors.no_memories(1)
            seen = played.seen[step]
            if age % 3 == 0:
                state = algorithm.state_normaliser(seen.state[row : row + 1])
                context = algorithm.conductor.seen_of(algorithm.conductor.distribution(state).mode())
            age += 1
            for g, policy in enumerate(algorithm.policies):
                features = algorithm.observation_normalisers[g](seen.observations[g][row : row + 1])
                mask, there = seen.action_masks[g], seen.active[row : row + 1, list(algorithm.spec.groups[g].agents)].T
                expected, memories[g] = policy.step(
                    policy.inputs(features, context).transpose(0, 1),
                    None if mask is None else mask[row : row + 1].transpose(0, 1),
                    memories[g],
                    there,
                )
                torch.testing.assert_close(
                    numbers(played.labels[step][g])[:, row], numbers(expected)[:, 0], atol=1e-5, rtol=1e-4
                )


@pytest.mark.parametrize(
    ("name", "variant", "sample"),
    [("mat", "guider", False), ("mat", "guider", True), ("sable", "guider", True), ("hcpo", "central", False)],
)
def test_a_teacher_plays_as_the_variant_that_it_is(name: str, variant: str, sample: bool) -> None:
    environment = leaving(BATCH)
    algorithm = new_team(name, environment, **(GUIDED if variant == "guider" else CONDUCTED))
    teacher = algorithm.teacher()
    played, expected = (
        evaluate(environment, team, 5, seed=2, record=True)
        for team in (TeacherTeam(algorithm, teacher, sample), algorithm.teams(sample)[variant])
    )
    assert played.actions is not None
    assert expected.actions is not None
    for ours, theirs in zip(played.actions, expected.actions, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    drawn = evaluate(environment, TeacherTeam(algorithm, teacher, not sample), 5, seed=2, record=True)
    assert drawn.actions is not None
    assert not all(np.array_equal(a, b) for a, b in zip(drawn.actions, played.actions, strict=True))


@pytest.mark.parametrize("name", ["mat", "sable", "hcpo"])
def test_acting_leaves_a_teacher_as_it_was(name: str) -> None:
    algorithm = new_team(name, masked_discrete(BATCH), **(CONDUCTED if name == "hcpo" else GUIDED))
    own = Played(algorithm, algorithm.teacher(), masked_discrete(BATCH), own=True)
    told = Played(algorithm, algorithm.teacher(), masked_discrete(BATCH), given=own.actions)
    for ours, theirs in zip(own.labels, told.labels, strict=True):
        assert torch.equal(numbers(ours[0]), numbers(theirs[0]))


def test_who_has_something_to_teach() -> None:
    teach = {name for name, algorithm in ALGORITHMS.items() if algorithm.teacher is not Algorithm.teacher}
    assert {"mat", "sable", "magpo", "ctds", "hcpo", "guided-hcpo"} <= teach
    assert not {"happo", "hatrpo", "mappo", "ippo", "maven"} & teach
    assert new_team("happo", masked_discrete(1)).teacher() is None


def test_goals_are_compared_as_their_kind_says() -> None:
    predicted = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    goals = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    vectors = GoalKind(2).errors(predicted, goals)
    torch.testing.assert_close(vectors, torch.tensor([0.5, 2.5]))
    choices = GoalKind(2, discrete=True).errors(predicted, goals)
    torch.testing.assert_close(choices, torch.tensor([np.log(2.0), np.log(1.0 + np.exp(-2.0))]).float())
