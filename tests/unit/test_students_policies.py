"""Students: the network step by step and over sequences, goals, sharing, and the contract of what is deployed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from following_teacher import FollowingTeacher
from hmarl.sdk.environment import Observation, as_numpy
from hmarl.sdk.environments.faulty import with_faults
from hmarl.sdk.errors import UsageError
from hmarl.sdk.faults import parse_faults
from hmarl.trainer.algorithms import find_algorithm
from hmarl.trainer.contract.local_team import LocalTeam
from hmarl.trainer.contract.teacher import GoalKind
from hmarl.trainer.experience.rollout import Collector, Decision, Rollout
from hmarl.trainer.networks.distributions import Categorical
from hmarl.trainer.networks.flat import Memory, RecurrentNetwork
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.students.demonstrations import Demonstrations, Demonstrator
from hmarl.trainer.students.learner import Learner
from hmarl.trainer.students.report import measure
from hmarl.trainer.students.settings import DistillationSettings
from hmarl.trainer.students.student import Students
from hmarl.trainer.students.teams import InformedTeam
from toy_environments import ToyEnvironment, leaving, masked_discrete
from training_runs import CPU, as_tensors, tiny_networks

pytestmark = pytest.mark.usefixtures("single_thread")
GOALS = [None, GoalKind(3), GoalKind(3, discrete=True)]
each_goal = pytest.mark.parametrize("goal", GOALS, ids=["none", "vectors", "choices"])
SMALL: dict[str, Any] = {"hidden_sizes": (6,), "memory_size": 5, "decision_sizes": (4,)}


def new_network(goal: GoalKind | None, decision_sizes: tuple[int, ...] = (6,)) -> RecurrentNetwork:
    return RecurrentNetwork(
        3, (5,), 2, "tanh", normalise_layers=True, memory=4, decision_sizes=decision_sizes, goal=goal
    )


def new_algorithm(environment: ToyEnvironment, name: str = "happo", **settings: Any) -> Any:
    algorithm_class = find_algorithm(name)
    checked = validate(algorithm_class.settings_class, {**tiny_networks(name), **settings}, "algorithm")
    algorithm = algorithm_class(environment.spec, checked, torch.Generator().manual_seed(3), CPU)
    for normaliser, group in zip(algorithm.observation_normalisers, environment.spec.groups, strict=True):
        normaliser.update(torch.randn(50, len(group.agents), 3, generator=torch.Generator().manual_seed(4)) * 2 + 1)
    return algorithm


def new_students(algorithm: Any, goal: GoalKind | None = None, **settings: Any) -> Students:
    checked = validate(DistillationSettings, {**SMALL, **settings}, "distillation")
    kinds = [goal] * len(algorithm.spec.groups)
    students = Students(algorithm, kinds, checked, torch.Generator().manual_seed(1))
    for policy in students.policies:
        policy.theta += 0.3 * torch.randn(policy.theta.shape, generator=torch.Generator().manual_seed(2))
    return students


@each_goal
@pytest.mark.parametrize("decision_sizes", [(), (6,), (6, 7)])
def test_step_by_step_and_over_sequences_a_student_is_the_same(
    goal: GoalKind | None, decision_sizes: tuple[int, ...]
) -> None:
    network, generator = new_network(goal, decision_sizes), torch.Generator().manual_seed(0)
    theta = torch.stack([network.initialise(generator) for _ in range(2)])
    theta += 0.3 * torch.randn(theta.shape, generator=generator)
    parameters = network.named(theta)
    x, held = torch.randn(2, 8, 3, 3, generator=generator), torch.randn(2, 3, 4, generator=generator)
    begins = torch.zeros(8, 3, dtype=torch.bool)
    begins[3, 0] = begins[5, 2] = True
    initial, outputs, goals = held, [], []
    for t in range(8):
        held = held.masked_fill(begins[t].view(1, 3, 1), 0.0)
        output, held = network.step(parameters, x[:, t], held)
        outputs.append(output)
        goals += [network.predicted_goal(parameters, held)] if goal else []
    memory = Memory(initial, (~begins).float().view(1, 8, 3, 1))
    remembered = network.remembered(parameters, x.flatten(1, 2), memory)
    together = network.sequence(parameters, x.flatten(1, 2), memory).view(2, 8, 3, 2)
    torch.testing.assert_close(together, torch.stack(outputs, 1), atol=1e-5, rtol=1e-5)
    if goal:
        predicted = network.predicted_goal(parameters, remembered).view(2, 8, 3, 3)
        torch.testing.assert_close(predicted, torch.stack(goals, 1), atol=1e-5, rtol=1e-5)
    assert set(network.shapes) >= {f"{network.decision.last}.weight", "memory.weight"}
    assert network.decision.last == 1 + len(decision_sizes)


@each_goal
def test_a_fresh_student_is_near_uniform_and_its_action_follows_the_predicted_goal(goal: GoalKind | None) -> None:
    network = new_network(goal)
    theta = network.initialise(torch.Generator().manual_seed(0))
    output, _ = network.step(network.named(theta), torch.randn(50, 3), torch.zeros(50, 4))
    assert output.abs().max() < 0.2
    if goal is None:
        return
    parameters = {name: value.clone().requires_grad_(True) for name, value in network.named(theta).items()}
    output, _ = network.step(parameters, torch.randn(50, 3), torch.zeros(50, 4))
    (gradient,) = torch.autograd.grad(output.square().sum(), parameters["goal.weight"])
    assert gradient.abs().max() > 0
    with torch.no_grad():
        parameters["goal.bias"][0] += 50.0
    changed, _ = network.step(parameters, torch.zeros(1, 3), torch.zeros(1, 4))
    before, _ = network.step(network.named(theta), torch.zeros(1, 3), torch.zeros(1, 4))
    assert (changed - before).abs().max() > 1e-4


def demonstrated(
    environment: ToyEnvironment, students: Students, algorithm: Any, goal: GoalKind | None = None, steps: int = 12
) -> Demonstrations:
    """What the students did, labelled by a teacher who follows what was seen before."""
    rollout = Rollout(environment.spec, steps, environment.batch_size, CPU)
    demonstrator = Demonstrator(algorithm, FollowingTeacher(algorithm, goal), students, sample=True)
    demonstrator.prepare(teacher_acts=False, seed=7)
    Collector(environment, rollout, np.arange(environment.batch_size) + 11).collect(demonstrator)
    return Demonstrations.of(rollout, students)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"share_parameters": True},
        {"share_parameters": True, "agent_identity": False},
    ],
    ids=["own", "shared", "interchangeable"],
)
@pytest.mark.parametrize("environment", [masked_discrete, leaving])
def test_what_is_deployed_acts_as_the_students_that_were_taught(environment: Any, settings: dict[str, Any]) -> None:
    """Batched students while teaching, one module an agent when deployed: whole episodes, equal actions."""
    vector = environment(4)
    algorithm = new_algorithm(vector, **settings)
    students = new_students(algorithm, GoalKind(3))
    expected = students.interchangeable
    assert expected == (settings.get("agent_identity") is False)
    team, memories = LocalTeam(students), students.no_memories(4)
    seeds = np.arange(4) + 3
    observation = vector.reset(seeds)
    team.reset(seeds)
    for _ in range(5):
        actions = team.act(observation, np.ones(4, np.bool_))
        raw, memories = students.act(as_tensors(observation), None, memories)
        for ours, theirs in zip(actions, algorithm.to_environment(raw), strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
        observation = vector.step(actions).observation
    assert [state.input for state in team.modules[0].states] == ["memory"]
    assert team.modules[0].memory_size == 5


def test_sharing_is_as_the_run_says_unless_the_settings_say_otherwise() -> None:
    vector = masked_discrete(2, agents=3)
    apart, together = new_algorithm(vector), new_algorithm(vector, share_parameters=True)

    def rows(algorithm: Any, **settings: Any) -> tuple[int, bool]:
        (policy,) = new_students(algorithm, **settings).policies
        return len(policy.theta), policy.told_apart

    assert rows(apart) == (3, False)
    assert rows(together) == (1, True)
    assert rows(apart, share_parameters=True) == (1, True)
    assert rows(together, share_parameters=False) == (3, False)
    alike = new_algorithm(vector, share_parameters=True, agent_identity=False)
    assert rows(alike) == (1, False)
    with pytest.raises(UsageError, match=r"distillation.share_parameters: got False, expected true or null"):
        new_students(alike, share_parameters=False)


@pytest.mark.parametrize("steps", [9, 10, 12])
def test_chunks_begin_with_what_the_students_remember(steps: int) -> None:
    """Cut into chunks, the students' distributions are those of the whole sequence, episode ends inside."""
    vector = leaving(3)
    algorithm = new_algorithm(vector)
    students = new_students(algorithm)
    rounds = demonstrated(vector, students, algorithm, steps=steps)
    assert rounds.begins.any()
    count = 3 if steps % 3 == 0 else 2
    learner = Learner(students, validate(DistillationSettings, SMALL, "distillation"), count, torch.Generator())
    chunks = rounds.in_chunks(count)
    assert chunks.sequences == 3 * count
    for g, policy in enumerate(students.policies):
        nothing = torch.zeros(policy.members, 3, 5)
        whole = policy.remembered(rounds.features(g), nothing, rounds.begins, policy.theta, rounds.there(g))
        units = torch.tensor([4, 0, 3])
        memory = learner.memories(policy, g, rounds)[:, units]
        part = chunks.take(units)
        cut = policy.remembered(part.features(g), memory, part.begins, policy.theta, part.there(g))
        length = steps // count
        whole, cut = whole.unflatten(1, (steps, 3)), cut.unflatten(1, (length, 3))
        for place, unit in enumerate(units.tolist()):
            first = unit // 3 * length
            torch.testing.assert_close(cut[:, :, place], whole[:, first : first + length, unit % 3])


def test_students_act_by_what_they_have_seen_of_the_episode_and_by_nothing_before_it() -> None:
    """What they did step by step is what their distributions over the whole rollout say, episode ends inside."""
    vector = leaving(3)
    algorithm = new_algorithm(vector)
    students = new_students(algorithm)
    rollout = Rollout(vector.spec, 12, 3, CPU)
    demonstrator = Demonstrator(algorithm, FollowingTeacher(algorithm), students, sample=False)
    collector = Collector(vector, rollout, np.arange(3))
    for _ in range(2):
        demonstrator.prepare(teacher_acts=False, seed=7)
        collector.restart(np.arange(3) + 11, demonstrator)
        collector.collect(demonstrator)
    rounds = Demonstrations.of(rollout, students)
    for g, policy in enumerate(students.policies):
        nothing = torch.zeros(1, 3, 5)
        remembered = policy.remembered(rounds.features(g), nothing, rounds.begins, policy.theta, rounds.there(g))
        modes = policy.decided(remembered, rounds.mask(g), policy.theta)[0].mode()
        torch.testing.assert_close(modes, rollout.actions[g].flatten(0, 1).transpose(0, 1))


def restarting(batch_size: int) -> Any:
    """``masked_discrete``, episodes of five steps: the one comes back from a restart at the fifth, the other twice."""
    faults = "chooser_0:restart=2..3;chooser_1:restart=0.3:1"
    return with_faults(masked_discrete(batch_size), parse_faults(faults))


def played(students: Students, steps: int, batch_size: int = 3) -> tuple[Rollout, Tensor, Tensor]:
    """A rollout in which the students as deployed act; [T, N, B, ...] what they carry away from each step, and the
    logits of their actions.
    """
    environment, team, seeds = restarting(batch_size), LocalTeam(students), np.arange(batch_size) + 11
    carried: list[Tensor] = []

    class Deployed:
        def begin_rollout(self, steps: int, batch_size: int) -> None:
            team.reset(seeds)

        def act(self, observation: Observation, step: int) -> Decision:
            actions = team.act(as_numpy(observation), np.ones(batch_size, np.bool_))
            carried.append(team.carried("memory")[0].transpose(0, 1).clone())
            return Decision((chosen := tuple(map(torch.from_numpy, actions))), chosen)

        def episodes_ended(self, ended: Tensor) -> None:
            team._states = [[torch.where(ended.view(-1, 1), 0.0, x) for x in states] for states in team._states]

    rollout = Rollout(environment.spec, steps, batch_size, CPU)
    Collector(environment, rollout, seeds).collect(Deployed())
    assert rollout.restarted is not None
    assert rollout.restarted[4].any(), "where a chunk begins"
    assert rollout.restarted[9].any(), "and within one"
    (policy,) = students.policies
    remembered = torch.stack(carried)
    mask = rollout.action_masks[0]
    assert mask is not None
    logits = [
        policy.decided(each, legal.transpose(0, 1), policy.theta)[0].logits  # type: ignore[attr-defined]
        for each, legal in zip(remembered, mask, strict=True)
    ]
    return rollout, remembered, torch.stack(logits)


@pytest.mark.parametrize("share", [False, True])
def test_restarted_students_remember_what_deployed_ones_do(share: bool) -> None:
    """In the rounds in which they act, where they learn, at chunks' beginnings, and in what is reported."""
    algorithm = new_algorithm(restarting(1))
    students = new_students(algorithm, share_parameters=share)
    (policy,) = students.policies
    rollout, carried, logits = played(students, steps=12)
    # Acting in rounds.
    demonstrator = Demonstrator(algorithm, FollowingTeacher(algorithm), students, sample=False)
    demonstrator.prepare(teacher_acts=False, seed=7)
    acted = Rollout(rollout.spec, 12, 3, CPU)
    Collector(restarting(3), acted, np.arange(3) + 11).collect(demonstrator)
    assert torch.equal(acted.actions[0], rollout.actions[0])
    # Along sequences, whole ones and chunks.
    rollout.extras = {"label.0": logits.transpose(1, 2)}
    rounds = Demonstrations.of(rollout, students)
    along = policy.carried(rounds.features(0), torch.zeros(2, 3, 5), rounds.forgotten(0), policy.theta, rounds.there(0))
    torch.testing.assert_close(along.unflatten(1, (12, 3)).transpose(0, 1), carried, atol=1e-5, rtol=1e-5)
    for chunks in (1, 3):
        settings = validate(DistillationSettings, {**SMALL, "epochs": 1, "minibatches": 1}, "distillation")
        learner = Learner(students, settings, chunks, torch.Generator().manual_seed(0))
        starts = learner.memories(policy, 0, rounds).unflatten(1, (chunks, 3))
        for k in range(1, chunks):
            torch.testing.assert_close(starts[:, k], carried[4 * k - 1], atol=1e-5, rtol=1e-5)
        drawn = learner.learn(Demonstrations.join([rounds, rounds]))
        assert drawn["kl"] == pytest.approx(0.0, abs=1e-5), "the labels are what they do themselves"
        policy.theta.copy_(new_students(algorithm, share_parameters=share).policies[0].theta)
    fidelity = measure(students, rounds)
    assert fidelity.kl == pytest.approx(0.0, abs=1e-5)
    assert fidelity.action_agreement == 1.0
    # In some of the chunks alone.
    some = rounds.in_chunks(3).take(torch.tensor([1, 4, 8]))
    assert some.forgotten(0).shape == (4, 3, 2)


def test_rounds_of_before_restarts_were_kept_are_learnt_from_beside_newer_ones() -> None:
    algorithm = new_algorithm(restarting(1))
    students = new_students(algorithm)
    rollout, _, logits = played(students, steps=12)
    rollout.extras = {"label.0": logits.transpose(1, 2)}
    newer = Demonstrations.of(rollout, students)
    older = Demonstrations({name: x for name, x in newer.tensors.items() if "restarted" not in name})
    joined = Demonstrations.join([older, newer])
    assert torch.equal(joined.forgotten(0)[:, 3:], newer.forgotten(0))
    assert torch.equal(joined.forgotten(0)[:, :3], newer.begins.unsqueeze(-1).expand(-1, -1, 2))
    assert older.forgotten(0).equal(older.begins)


def test_informed_students_forget_when_they_are_restarted() -> None:
    environment, seeds = restarting(3), np.arange(3) + 11
    algorithm = new_algorithm(environment)
    students = new_students(algorithm, told="team")
    team = InformedTeam(algorithm, students)
    team.reset(seeds)
    observation, forgot = environment.reset(seeds), 0
    for _ in range(5):
        before = [memory.clone() for memory in team._memories]
        actions = team.act(observation, np.ones(3, np.bool_))
        back = torch.from_numpy(observation.restarted).T
        before[0][back] = 0.0
        _, expected = students.act(replace(as_tensors(observation), restarted=None), None, before)
        torch.testing.assert_close(team._memories[0], expected[0])
        forgot += int(back.sum())
        observation = environment.step(actions).observation
    assert forgot >= 3


@pytest.mark.parametrize("what", ["nothing", "team", "state"])
def test_students_see_what_they_are_told_after_what_they_observe(what: str) -> None:
    vector = leaving(3)
    algorithm = new_algorithm(vector)
    students = new_students(algorithm, told=what)
    sizes = [(len(group.agents), group.example.observation_size) for group in vector.spec.groups]
    seen = [torch.randn(4, 2, members, size, generator=torch.Generator().manual_seed(5)) for members, size in sizes]
    state = torch.randn(4, 2, vector.spec.state_size, generator=torch.Generator().manual_seed(6))
    algorithm.state_normaliser.update(3.0 * state.flatten(0, 1) + 1.0)
    own = algorithm.normalised(seen)
    told = {
        "nothing": torch.zeros(4, 2, 0),
        "team": torch.cat([x.flatten(-2) for x in own], dim=-1),
        "state": algorithm.state_normaliser(state),
    }[what]
    for g, features in enumerate(students.features(seen, state)):
        for member in range(sizes[g][0]):
            assert features[:, :, member].equal(torch.cat([own[g][:, :, member], told], dim=-1))


def test_what_only_team_mates_observe_is_learnt_by_those_that_are_told_it() -> None:
    """The teacher does what the first feature of the agent before says."""
    vector = masked_discrete(64)
    algorithm = new_algorithm(vector)
    agreed = {}
    for told in ("nothing", "team"):
        settings = validate(DistillationSettings, {"learning_rate": 0.01, "epochs": 30, "told": told}, "distillation")
        students = Students(algorithm, [None], settings, torch.Generator().manual_seed(1))
        rounds = demonstrated(vector, students, algorithm)
        label = rounds.tensors["label.0"]
        mates = rounds.features(0)[..., :1].roll(1, dims=2)
        wanted = torch.where(mates > 0, 4.0, -4.0) * torch.tensor([1.0, -1.0, 1.0, -1.0])
        label.copy_(torch.where(rounds.tensors["mask.0"], wanted, label))
        Learner(students, settings, 1, torch.Generator().manual_seed(2)).learn(rounds)
        agreed[told] = measure(students, rounds).kl
    assert agreed["team"] < 0.3 * agreed["nothing"]


def test_who_has_left_teaches_nothing() -> None:
    vector = leaving(3)
    algorithm = new_algorithm(vector)
    students = new_students(algorithm, GoalKind(3))
    rounds = demonstrated(vector, students, algorithm, GoalKind(3))
    absent = ~rounds.tensors["active.0"]
    assert absent.any()
    spoilt = dict(rounds.tensors)
    spoilt["label.0"] = torch.where(absent.unsqueeze(-1), 7.0 * torch.arange(3), spoilt["label.0"])
    spoilt["goal.0"] = torch.where(absent.unsqueeze(-1), 1e3, spoilt["goal.0"])
    assert measure(students, rounds) == measure(students, Demonstrations(spoilt))
    thetas = []
    for data in (rounds, Demonstrations(spoilt)):
        learners = new_students(algorithm, GoalKind(3))
        settings = validate(DistillationSettings, {**SMALL, "epochs": 2}, "distillation")
        Learner(learners, settings, 2, torch.Generator().manual_seed(0)).learn(data)
        thetas.append(learners.policies[0].theta)
    torch.testing.assert_close(thetas[0], thetas[1])


@pytest.mark.parametrize("goal", GOALS[1:], ids=["vectors", "choices"])
def test_students_learn_what_follows_from_what_they_remember(goal: GoalKind) -> None:
    """Nothing of it can be read off the present observation; chunks are shorter than episodes."""
    vector = masked_discrete(64)
    algorithm = new_algorithm(vector)
    settings = validate(DistillationSettings, {"learning_rate": 0.01, "epochs": 30, "minibatches": 4}, "distillation")
    students = Students(algorithm, [goal], settings, torch.Generator().manual_seed(1))
    rounds = demonstrated(vector, students, algorithm, goal)
    learner = Learner(students, settings, 3, torch.Generator().manual_seed(2))
    before, losses, after = measure(students, rounds), learner.learn(rounds), measure(students, rounds)
    assert after.kl < 0.15 * before.kl
    assert losses["kl"] < 0.3 * before.kl
    assert losses["goal_error"] < 0.5
    assert before.action_agreement is not None
    assert after.action_agreement is not None
    assert before.action_agreement < 0.6
    assert after.action_agreement > 0.9
    name = "goal_accuracy" if goal.discrete else "goal_variance_explained"
    missed = getattr(before, name), getattr(after, name)
    assert missed[0] < 0.6
    assert missed[1] > 0.85
    assert (after.goal_accuracy is None) != (after.goal_variance_explained is None)


def test_fidelity_by_hand() -> None:
    """Two steps of one agent: what is measured is what one would count."""
    vector = masked_discrete(1, agents=1)
    algorithm = new_algorithm(vector, normalise_observations=False)
    students = new_students(algorithm, GoalKind(1))
    (policy,) = students.policies
    features = torch.randn(4, 1, 1, 3, generator=torch.Generator().manual_seed(0))
    begins = torch.zeros(4, 1, dtype=torch.bool)
    active = torch.tensor([True, True, False, True]).view(4, 1, 1)
    remembered = policy.remembered(features, torch.zeros(1, 1, 5), begins, policy.theta, active)
    distribution, goals = policy.decided(remembered, None, policy.theta)
    assert isinstance(distribution, Categorical)
    assert goals is not None
    label = distribution.logits[0].clone()
    label[1] = label[1].flip(0) * -1.0  # another likeliest action at one of four steps, of which one does not count
    assert label[1].argmax() != distribution.logits[0, 1].argmax()
    true = goals[0].clone()
    true[0] += 0.5
    rounds = Demonstrations(
        {
            "begins": begins,
            "features.0": features,
            "active.0": active,
            "label.0": label.view(4, 1, 1, 4),
            "goal.0": true.view(4, 1, 1, 1),
        }
    )
    found = measure(students, rounds)
    there = true.flatten()[[0, 1, 3]]
    assert found.action_agreement == pytest.approx(2 / 3)
    assert found.kl == pytest.approx(
        float(Categorical(label[1]).kl(Categorical(distribution.logits[0, 1]))) / 3, rel=1e-4
    )
    assert found.goal_variance_explained == pytest.approx(
        1.0 - 0.25 / float((there - there.mean()).square().sum()), rel=1e-4
    )
    assert found.action_difference is found.goal_accuracy is None
