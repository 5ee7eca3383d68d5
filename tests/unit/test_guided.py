"""Teams that collect with a guider: batches, advantages and memories are what was met step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from hmarl.sdk.environment import Observation, StepResult
from hmarl.sdk.errors import UsageError
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.spaces import AgentSpec
from hmarl.trainer.algorithms import find_algorithm
from hmarl.trainer.contract.local_team import LocalTeam
from hmarl.trainer.experience.rollout import Collector, Rollout
from hmarl.trainer.guiders import GUIDERS
from hmarl.trainer.guiders.batch import TeamBatch
from hmarl.trainer.guiders.guider import Acted
from hmarl.trainer.guiders.teams import CentralTeam
from hmarl.trainer.guiders.trained import Minibatch
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.sequential.estimates import Estimate
from toy_environments import ToyEnvironment
from training_runs import CPU, of_use, tiny_networks

pytestmark = pytest.mark.usefixtures("single_thread")

BATCH = 4
GROUPED = [0, 2, 1]  # agents group by group
SMALL = {"embedding_size": 8, "epochs": 2, "minibatches": 3, "memory_size": 5, "normalise_observations": True}
TEAMS = [
    pytest.param("magpo", {"guider": guider, "recurrent": recurrent}, id=f"{guider}-recurrent={recurrent}")
    for guider in GUIDERS
    for recurrent in (False, True)
] + [pytest.param("mat", {}, id="no local policies")]
OWN = [
    pytest.param("magpo", {"guider": guider, "recurrent": True, "credit": "own"}, id=f"{guider}-own credit")
    for guider in GUIDERS
]
# Episodes have five steps: rollouts that end with them, and in the middle of them.
LENGTHS = [(12, 4), (10, 5), (10, None)]


def toy(batch_size: int = BATCH) -> ToyEnvironment:
    """Two choosers and an arm between them; one chooser leaves after two steps, the arm after four. Episodes of odd
    seeds terminate, those of even ones are cut off.
    """
    chooser, box = spaces.Discrete(4), spaces.Box(np.full(2, -1.0, np.float32), np.full(2, 1.0, np.float32))
    agents = (
        AgentSpec("chooser_0", 3, chooser, has_action_mask=True),
        AgentSpec("arm", 3, box),
        AgentSpec("chooser_1", 3, chooser, has_action_mask=True),
    )
    return ToyEnvironment("toy/mixed", agents, batch_size, leaves={1: 4}, away={2: (2,)})


def new_team(name: str, **settings: Any) -> Any:
    algorithm_class = find_algorithm(name)
    checked = validate(
        algorithm_class.settings_class, of_use(name, {**tiny_networks(name), **SMALL, **settings}), "algorithm"
    )
    return algorithm_class(toy().spec, checked, torch.Generator().manual_seed(3), CPU)


def batch_of(algorithm: Any, rollout: Rollout) -> TeamBatch:
    """What an update would learn from."""
    guider = algorithm.guider
    return guider.batch(rollout, guider.estimate(rollout, algorithm.guided.remembered()), algorithm.guided.order)


def watch_minibatches(patch: pytest.MonkeyPatch, algorithm: Any, look: Callable[[Minibatch], None]) -> None:
    """Show every minibatch of an update before it is descended on."""
    inner = algorithm.guider.minibatches

    def shown(*given: Any) -> Iterator[Minibatch]:
        for minibatch in inner(*given):
            look(minibatch)
            yield minibatch

    patch.setattr(algorithm.guider, "minibatches", shown)


class Witness:
    """Collects rollouts and keeps what the guider and the local policies said, and what the environment did."""

    def __init__(self, algorithm: Any, steps: int) -> None:
        self.algorithm, self.steps = algorithm, steps
        environment = toy()
        self.rollout = Rollout(environment.spec, steps, BATCH, CPU)
        self.collector = Collector(environment, self.rollout, np.arange(BATCH) + 11)
        self.before: list[Tensor] = []
        self.acted: list[Acted] = []
        self.results: list[StepResult] = []
        self.local: list[list[tuple[Tensor | None, Tensor]]] = [[] for _ in algorithm.policies]

    def collect(self) -> None:
        self.before, self.acted, self.results = [], [], []
        self.local = [[] for _ in self.algorithm.policies]
        with pytest.MonkeyPatch.context() as patch:
            self._watch(patch, self.algorithm.guider.network, "act", self._heard)
            self._watch(patch, self.collector.environment, "step", lambda result, *_: self.results.append(result))
            for log, policy in zip(self.local, self.algorithm.policies, strict=True):
                self._watch(patch, policy, "step", lambda said, *given, log=log: log.append((given[2], said[0])))
            self.collector.collect(self.algorithm)

    @staticmethod
    def _watch(patch: pytest.MonkeyPatch, owner: Any, name: str, note: Callable[..., None]) -> None:
        inner = getattr(owner, name)

        def spy(*arguments: Any) -> Any:
            result = inner(*arguments)
            note(result, *arguments)
            return result

        patch.setattr(owner, name, spy)

    def _heard(self, acted: Acted, *given: Any) -> None:
        self.before.append(given[4].clone())
        self.acted.append(acted)

    def value(self, observation: Observation, memory: Tensor) -> Tensor:
        """[B], or [B, N], in the environment's units."""
        seen = [torch.as_tensor(each) for each in observation.observations]
        guider = self.algorithm.guider
        view = guider.view(seen, [None] * len(seen), torch.as_tensor(observation.state))
        parameters = guider.network.named(guider.theta)
        return guider.value_normaliser.denormalise(guider.network.value(parameters, view, memory))

    @torch.no_grad()
    def advantages(self) -> tuple[Tensor, Tensor]:
        """[T, B], or of agents with credit of their own [T, B, N] group by group, advantages and returns by the
        definition, one environment, one agent and one step at a time.
        """
        own = self.algorithm.settings.credit == "own"
        values = [self.algorithm.guider.value_normaliser.denormalise(acted.value) for acted in self.acted]
        values.append(self.value(self.collector.observation, self.acted[-1].memory))
        stacked = torch.stack(values)
        if not own:
            advantages = self._advantages(stacked, None)
            return advantages, advantages + stacked[:-1]
        each = torch.stack([self._advantages(stacked[..., agent], agent) for agent in GROUPED], dim=-1)
        return each, each + stacked[:-1][..., GROUPED]

    def _advantages(self, values: Tensor, agent: int | None) -> Tensor:
        """[T, B] of values [T + 1, B], the team's or an agent's."""
        settings = self.algorithm.settings
        advantages = torch.zeros(self.steps, BATCH)
        for b in range(BATCH):
            running = 0.0
            for t in reversed(range(self.steps)):
                result, memory = self.results[t], self.acted[t].memory
                following, ended, seen = float(values[t + 1][b]), False, result.observation
                if result.final is not None and result.truncated[b]:
                    final = self.value(result.final, memory)[b]
                    following, ended, seen = float(final if agent is None else final[agent]), True, result.final
                elif result.terminated[b] or (agent is not None and not seen.active[b, agent]):
                    following, ended = 0.0, True
                if agent is not None and not seen.active[b, agent]:
                    following = 0.0
                paid = result.rewards[b].sum() if agent is None else result.rewards[b, agent]
                delta = float(paid) + settings.gamma * following - float(values[t][b])
                running = delta + settings.gamma * settings.gae_lambda * (0.0 if ended else running)
                advantages[t, b] = running
        return advantages


def in_time(values: Tensor, length: int) -> Tensor:
    """[T, B, ...] from sequences [L, n·B, ...]: sequence c is of environment c mod B, from step (c div B)·L on."""
    sequences = values.shape[1]
    rows = [
        values[t % length, (t // length) * BATCH : (t // length + 1) * BATCH]
        for t in range(length * sequences // BATCH)
    ]
    return torch.stack(rows)


def grouped_in_time(values: Tensor, length: int) -> Tensor:
    """[T, B, N] agents group by group, from [N, L·C]."""
    return in_time(values.unflatten(1, (length, -1)).movedim(0, -1), length)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


# --- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "chunk_length"), LENGTHS)
@pytest.mark.parametrize(("name", "settings"), [*TEAMS, *OWN])
def test_a_batch_is_what_was_met_step_by_step(
    name: str, settings: dict[str, Any], steps: int, chunk_length: int | None
) -> None:
    algorithm = new_team(name, chunk_length=chunk_length, **settings)
    length = (chunk_length or steps) if algorithm.guider.remembers else 1
    witness = Witness(algorithm, steps)
    for _ in range(2):
        witness.collect()
        rollout, batch = witness.rollout, batch_of(algorithm, witness.rollout)
        assert rollout.terminated.any()
        assert rollout.truncated.any()
        assert batch.sequences == steps // length * BATCH
        advantages, returns = witness.advantages()
        close(in_time(batch.advantages, length), advantages)
        close(in_time(batch.targets, length), algorithm.guider.value_normaliser.normalise(returns))
        assert batch.acting_order == tuple(algorithm.guided.order)
        drawn = torch.stack([acted.log_prob for acted in witness.acted])[..., GROUPED]
        close(grouped_in_time(batch.acting_log_prob, length), drawn)
        said = torch.stack([acted.value for acted in witness.acted])
        close(in_time(batch.values, length), said if said.dim() == 2 else said[..., GROUPED])
        for g, normaliser in enumerate(algorithm.observation_normalisers):
            close(in_time(batch.view.features[g], length), normaliser(rollout.observations[g]))
            acted = torch.stack([acted.actions[g] for acted in witness.acted])
            assert torch.equal(in_time(batch.actions[g], length), acted)
        assert batch.view.action_masks[1] is None
        assert torch.equal(in_time(batch.view.action_masks[0], length), rollout.action_masks[0])
        assert torch.equal(grouped_in_time(batch.active, length).bool(), rollout.active[:, :, GROUPED])
        begins = in_time(batch.begins, length)
        assert not begins[0].any()
        assert torch.equal(begins[1:], rollout.ended[:-1])
        starts = range(0, steps, length)
        assert torch.equal(batch.guider_memory, torch.cat([witness.before[t] for t in starts]))
        if algorithm.settings.recurrent:
            for memory, log in zip(batch.memories, witness.local, strict=True):
                assert torch.equal(memory, torch.cat([log[t][0] for t in starts], dim=1))
        else:
            assert all(memory.shape[1:] == (batch.sequences, 0) for memory in batch.memories)
        algorithm.update(rollout, 0.0)


@pytest.mark.parametrize(("steps", "chunk_length"), LENGTHS)
@pytest.mark.parametrize(("name", "settings"), TEAMS)
@torch.no_grad()
def test_judging_a_batch_gives_the_probabilities_of_acting(
    name: str, settings: dict[str, Any], steps: int, chunk_length: int | None
) -> None:
    """Of the guider in the rollout's order, and of the local policies that acted beside it for their memory's sake."""
    algorithm = new_team(name, chunk_length=chunk_length, **settings)
    length = (chunk_length or steps) if algorithm.guider.remembers else 1
    witness = Witness(algorithm, steps)
    for _ in range(3):
        witness.collect()
        batch, order = batch_of(algorithm, witness.rollout), torch.tensor(algorithm.guided.order)
        log_prob = batch.log_prob(algorithm.guider.judge(batch, order, algorithm.guider.theta).distributions)
        expected = torch.stack([acted.log_prob for acted in witness.acted])[..., GROUPED]
        close(grouped_in_time(log_prob, length), expected)
        if algorithm.settings.recurrent:
            for g, (mine, log) in enumerate(
                zip(algorithm.guidance.followers.distributions(batch), witness.local, strict=True)
            ):
                taken = [
                    said.log_prob(actions.transpose(0, 1)).T
                    for (_, said), actions in zip(log, witness.rollout.actions[g], strict=True)
                ]
                close(grouped_in_time(batch.group_log_prob(g, mine), length), torch.stack(taken))
        with torch.enable_grad():
            algorithm.update(witness.rollout, 0.0)


@pytest.mark.parametrize("guider", ["mat", "sable"])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_ratios_are_to_the_guider_that_collected_in_the_order_of_each_epoch(
    minibatches: int, guider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = new_team("magpo", guider=guider, epochs=6, minibatches=minibatches, learning_rate=0.01)
    witness = Witness(algorithm, 12)
    witness.collect()
    behaviour, orders = algorithm.guider.theta.clone(), []

    def look(minibatch: Minibatch) -> None:
        with torch.no_grad():
            judged = algorithm.guider.judge(minibatch.part, minibatch.order, behaviour)
        close(minibatch.old_log_prob, minibatch.part.log_prob(judged.distributions))
        orders.append(tuple(minibatch.order.tolist()))

    watch_minibatches(monkeypatch, algorithm, look)
    algorithm.update(witness.rollout, 0.0)
    assert len(orders) == 6 * minibatches
    assert len(set(orders)) > 2
    assert not torch.allclose(algorithm.guider.theta, behaviour, atol=0.01)


def test_without_reshuffling_all_epochs_keep_the_order_of_acting_and_nothing_is_judged_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for guider in GUIDERS:
        algorithm = new_team("magpo", guider=guider, epochs=6, minibatches=2, reshuffle=False)
        orders, judged, acted = [], [], set()
        watch_minibatches(monkeypatch, algorithm, lambda each, log=orders: log.append(tuple(each.order.tolist())))
        for name in ("judge", "judge_orders"):
            Witness._watch(monkeypatch, algorithm.guider.network, name, lambda *given, log=judged: log.append(given))
        witness = Witness(algorithm, 5)
        for update in range(1, 7):
            witness.collect()
            algorithm.update(witness.rollout, 0.0)
            acted.add(tuple(algorithm.guided.order))
            assert orders[-12:] == [tuple(algorithm.guided.order)] * 12
            assert len(judged) == update * 13, "once a minibatch, to descend, and one for what the update promises"
        assert len(acted) > 1, "it is drawn for every rollout"


@pytest.mark.parametrize(("name", "settings"), [*((team.values) for team in TEAMS[:-1]), ("ctds", {})])
def test_after_its_epochs_the_guider_is_fixed_and_the_local_policies_go_on(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = new_team(
        name, epochs=5, guider_epochs=2, chunk_length=4, learning_rate=1e-2, backtracking=False, **settings
    )
    witness, guiders, locals_, taught = Witness(algorithm, 12), [], [], []
    witness.collect()
    acting = torch.stack([acted.log_prob for acted in witness.acted]).flatten(0, 1)[:, GROUPED]

    def look(minibatch: Minibatch) -> None:
        guiders.append(algorithm.guider.theta.clone())
        locals_.append(torch.cat([policy.theta.flatten() for policy in algorithm.policies]))
        taught.append(minibatch)

    watch_minibatches(monkeypatch, algorithm, look)
    metrics = algorithm.update(witness.rollout, 0.0)
    assert len(taught) == 5 * 3
    assert [each.teachers is None for each in taught] == [True] * 6 + [False] * 9
    assert [torch.equal(*pair) for pair in pairwise(guiders)] == [False] * 6 + [True] * 8
    assert not any(torch.equal(*pair) for pair in pairwise(locals_))
    assert torch.equal(guiders[-1], algorithm.guider.theta)
    assert np.isfinite(list(metrics.values())).all()
    seen = []
    for each in taught[6:]:
        part = each.part
        with torch.no_grad():
            now = algorithm.guider.judge(part, each.order, algorithm.guider.theta).distributions
        assert each.order.tolist() == algorithm.guided.order
        close(part.log_prob(each.teachers), part.log_prob(now))
        seen.append(each.old_log_prob)
    for epoch in (seen[:3], seen[3:6], seen[6:]):
        close(torch.cat(epoch, dim=1).sum(1), acting.sum(0))  # every step once, as it was acted


def test_a_guider_cannot_learn_in_more_epochs_than_there_are() -> None:
    with pytest.raises(UsageError, match=r"algorithm\.guider_epochs: got 3, expected at most algorithm\.epochs \(2\)"):
        new_team("magpo", epochs=2, guider_epochs=3)


def test_value_targets_are_normalised_once_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the moments off the device."""
    algorithm, asked = new_team("magpo", epochs=4, minibatches=3), []
    witness = Witness(algorithm, 12)
    witness.collect()
    Witness._watch(monkeypatch, algorithm.guider.value_normaliser, "normalise", lambda *given: asked.append(given))
    algorithm.update(witness.rollout, 0.0)
    assert len(asked) == 1


@pytest.mark.parametrize(("name", "settings"), [*TEAMS, *OWN])
@torch.no_grad()
def test_a_part_is_some_of_the_sequences(name: str, settings: dict[str, Any]) -> None:
    algorithm = new_team(name, chunk_length=4, **settings)
    witness = Witness(algorithm, 12)
    witness.collect()
    batch = batch_of(algorithm, witness.rollout)
    batch = replace(batch, weight=torch.rand(*batch.begins.shape))
    units = torch.tensor([5, 0, 11, 7])
    part, length = batch.take(units), len(batch.begins)
    assert part.sequences == 4
    assert part.acting_order == batch.acting_order
    for field in ("weight", "begins", "advantages", "targets", "values"):
        assert torch.equal(getattr(part, field), getattr(batch, field)[:, units]), field
    for mine, whole in zip(part.actions + part.view.features, batch.actions + batch.view.features, strict=True):
        assert torch.equal(mine, whole[:, units])
    assert torch.equal(part.guider_memory, batch.guider_memory[units])
    for mine, whole in zip(part.memories, batch.memories, strict=True):
        assert torch.equal(mine, whole[:, units])
    rows = (torch.arange(length).unsqueeze(-1) * batch.sequences + units).flatten()
    assert torch.equal(part.active, batch.active[:, rows])
    assert torch.equal(part.acting_log_prob, batch.acting_log_prob[:, rows])
    order = torch.tensor([2, 0, 1])
    of_part, of_all = (
        b.log_prob(algorithm.guider.judge(b, order, algorithm.guider.theta).distributions) for b in (part, batch)
    )
    close(of_part, of_all[:, rows])
    if algorithm.policies:
        mine, whole = (b.log_prob(algorithm.guidance.followers.distributions(b)) for b in (part, batch))
        close(mine, whole[:, rows])
    instructed = torch.rand(*batch.begins.shape, 2)
    view = replace(batch.view, context=instructed, instruction=instructed + 1.0)
    taken = replace(batch, view=view).take(units).view
    assert torch.equal(taken.context, instructed[:, units])
    assert torch.equal(taken.instruction, instructed[:, units] + 1.0)
    assert {field.name for field in fields(TeamBatch)} == {
        "view",
        "actions",
        "active",
        "begins",
        "acting_order",
        "acting_log_prob",
        "advantages",
        "targets",
        "values",
        "guider_memory",
        "memories",
        "weight",
    }, "a new field: take it, and test it"


# --- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "settings"), TEAMS)
def test_every_minibatch_is_compared_with_the_guider_that_collected(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first with ratios of 1, and later ones, when the guider has moved, still with the probabilities of acting."""
    algorithm = new_team(name, chunk_length=4, shuffle_agents=False, learning_rate=1e-2, **settings)
    witness = Witness(algorithm, 12)
    witness.collect()
    acting = torch.stack([acted.log_prob for acted in witness.acted]).flatten(0, 1)[:, GROUPED].T
    length = 4 if algorithm.guider.remembers else 1
    inner_batch, seen, moved = algorithm.guider.batch, [], []

    def numbered(rollout: Rollout, estimate: Estimate, order: list[int]) -> TeamBatch:
        """With t·B + b in the place of the advantages."""
        batch = inner_batch(rollout, estimate, order)
        c = torch.arange(batch.sequences)
        step = torch.arange(length).unsqueeze(-1) + c // BATCH * length
        return replace(batch, advantages=(step * BATCH + c % BATCH).float())

    def look(minibatch: Minibatch) -> None:
        part, old_log_prob = minibatch.part, minibatch.old_log_prob
        numbers = part.advantages.flatten().long()
        close(old_log_prob, acting[:, numbers])
        with torch.no_grad():
            judged = algorithm.guider.judge(part, minibatch.order, algorithm.guider.theta)
        moved.append(float((part.log_prob(judged.distributions) - old_log_prob).abs().max()))
        seen.append(numbers)

    monkeypatch.setattr(algorithm.guider, "batch", numbered)
    watch_minibatches(monkeypatch, algorithm, look)
    algorithm.update(witness.rollout, 0.0)
    assert len(seen) == 2 * 3
    for epoch in (seen[:3], seen[3:]):
        assert torch.cat(epoch).sort().values.tolist() == list(range(12 * BATCH))
    assert not torch.equal(seen[0], seen[3]), "minibatches are drawn anew"
    assert moved[0] < 1e-5
    assert min(moved[1:]) > 1e-3


def test_the_agents_decide_in_an_order_of_its_own_in_every_rollout_and_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    for shuffle in (True, False):
        algorithm = new_team("magpo", shuffle_agents=shuffle, epochs=12, minibatches=2)
        witness, orders, acted = Witness(algorithm, 5), [], set()
        watch_minibatches(monkeypatch, algorithm, lambda each, log=orders: log.append(tuple(each.order.tolist())))
        for _ in range(8):
            witness.collect()
            acted.add(tuple(algorithm.guided.order))
        algorithm.update(witness.rollout, 0.0)
        assert orders[::2] == orders[1::2], "one order an epoch"
        assert {tuple(sorted(order)) for order in orders} == {(0, 1, 2)}
        for drawn in (acted, set(orders)):
            assert (len(drawn) > 3) if shuffle else drawn == {(0, 1, 2)}


def test_the_step_sizes_fall_as_told() -> None:
    algorithm = new_team("magpo", learning_rate_decay="linear", learning_rate=1e-3, learner_learning_rate=2e-3)
    witness = Witness(algorithm, 5)
    witness.collect()
    algorithm.update(witness.rollout, 0.75)
    rates = [each.step_size for each in (algorithm.guider.optimiser, *algorithm.guidance.followers.optimisers)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.5e-3])


@pytest.mark.parametrize(("backtracking", "share_parameters"), [(True, False), (True, True), (False, False)])
def test_a_guider_built_as_the_local_policies_are_becomes_them(backtracking: bool, share_parameters: bool) -> None:
    """After every update; until then it is a policy of its own, and nothing but the copying draws it to them."""
    settings = {"guider": "factorised", "backtracking": backtracking, "share_parameters": share_parameters}
    algorithm = new_team("magpo", recurrent=True, **settings)
    witness, apart = Witness(algorithm, 10), []
    for _ in range(2):
        witness.collect()
        algorithm.update(witness.rollout, 0.0)
        named = algorithm.guider.network.named(algorithm.guider.theta)
        pairs = [(named[f"policies.{g}"], policy.theta) for g, policy in enumerate(algorithm.policies)]
        assert [torch.equal(*pair) for pair in pairs] == [backtracking] * 2
        apart.append(algorithm.guider.theta.clone())
    assert not torch.equal(*apart)
    with torch.no_grad():
        batch = batch_of(algorithm, witness.rollout)
        batch = replace(
            batch, guider_memory=torch.zeros_like(batch.guider_memory), memories=[m * 0 for m in batch.memories]
        )
        judged = batch.log_prob(
            algorithm.guider.judge(batch, torch.tensor([0, 1, 2]), algorithm.guider.theta).distributions
        )
        same = torch.allclose(judged, batch.log_prob(algorithm.guidance.followers.distributions(batch)), atol=1e-5)
    assert same == backtracking


# --- who sees the state ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sees", [True, False])
@torch.no_grad()
def test_the_guider_alone_may_see_the_state(sees: bool) -> None:
    algorithm = new_team("magpo", guider_sees_state=sees)
    witness = Witness(algorithm, 10)
    witness.collect()
    said, values, local = [], [], []
    for disturbance in (0.0, 1.0):
        witness.rollout.states += disturbance
        batch = batch_of(algorithm, witness.rollout)
        judged = algorithm.guider.judge(batch, torch.tensor([2, 0, 1]), algorithm.guider.theta)
        said.append(batch.log_prob(judged.distributions))
        values.append(judged.values)
        local.append(batch.log_prob(algorithm.guidance.followers.distributions(batch)))
    assert torch.equal(local[0], local[1])
    assert torch.equal(values[0], values[1]) != sees
    assert torch.equal(said[0], said[1]) != sees


def test_heads_that_do_not_divide_the_width_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"algorithm\.attention_heads: got 3, expected a divisor of .* \(8\)"):
        new_team("mat", attention_heads=3)


# --- the guider as a team -------------------------------------------------------------------------------------------


def played(team: CentralTeam, seed: int) -> tuple[np.ndarray, ...]:
    """The actions of seven episodes."""
    result = evaluate(toy(), team, 7, seed, record=True)
    assert result.actions is not None
    assert np.isfinite(result.returns).all()
    return result.actions


@pytest.mark.parametrize("guider", list(GUIDERS))
def test_the_guiders_episodes_repeat_themselves_for_the_same_seeds(guider: str) -> None:
    algorithm = new_team("magpo", guider=guider)
    for sample in (False, True):
        team = CentralTeam(algorithm.guider, sample)
        first, again = played(team, 5), played(team, 5)
        for mine, theirs in zip(first, again, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    modes, drawn = (played(CentralTeam(algorithm.guider, sample), 5) for sample in (False, True))
    assert np.abs(modes[1]).max() < 0.1, "an untrained arm's mean is near zero, its standard deviation is not"
    assert np.abs(drawn[1]).max() > 0.5


def test_what_the_guider_draws_follows_from_all_the_episodes_seeds() -> None:
    team, seen = CentralTeam(new_team("magpo").guider, sample=True), toy().reset(np.arange(BATCH))
    drawn = []
    for seeds in ([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 5]):
        team.reset(np.array(seeds))
        drawn.append(team.act(seen, np.ones(BATCH, np.bool_))[1])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[2] != drawn[0]).any()


@pytest.mark.parametrize("guider", list(GUIDERS))
def test_evaluation_leaves_what_the_training_remembers_alone(guider: str) -> None:
    algorithm = new_team("magpo", guider=guider)
    Witness(algorithm, 7).collect()
    before = {key: value.clone() for key, value in algorithm.acting_state().items()}
    played(CentralTeam(algorithm.guider, sample=True), 1)
    evaluate(toy(), LocalTeam(algorithm, sample=True), 3, 1)
    after = algorithm.acting_state()
    assert set(after) == set(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_what_can_be_played_with() -> None:
    assert list(new_team("magpo").teams()) == list(new_team("ctds").teams()) == ["local", "guider"]
    mat = new_team("mat")
    assert list(mat.teams()) == ["guider"]
    with pytest.raises(UsageError, match=r"mat: acts for the whole team at once .* --distil .* algorithm\.guider=mat"):
        mat.deployable(0)
