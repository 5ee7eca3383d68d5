"""Local conductors distilled once more at export, by hand: what they are told, when rounds end, what is kept."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hmarl.sdk.environment import Observation
from hmarl.sdk.environments import make
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.trainer.algorithms.hcpo import Hcpo
from hmarl.trainer.contract.local_team import LocalTeam
from hmarl.trainer.contract.stand_ins import Following, Visited
from hmarl.trainer.export.instruction_choice import beaten, decide_choice
from hmarl.trainer.export.redistillation import WatchedTeam, redistil, until_settled, verdict
from hmarl.trainer.learning.instructions import agreement
from hmarl.trainer.networks.distributions import Categorical
from hmarl.trainer.records.checkpoint import Checkpoint, Counters
from hmarl.trainer.runs.loaded_run import LoadedRun, load_run
from told_pair import SETTINGS, TASK, always, told_pair
from training_runs import new_hcpo, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")


def moments(algorithm: Hcpo, active: list[list[bool]]) -> Visited:
    """As many moments as rows of ``active``, of agents who see random numbers."""
    generator = torch.Generator().manual_seed(5)
    spec, count = algorithm.spec, len(active)
    blocks = (len(spec.groups[0].agents), spec.groups[0].example.observation_size)
    observations = (torch.randn(count, *blocks, generator=generator),)
    state = torch.randn(count, spec.state_size, generator=generator)
    return Visited(Observation(observations, (), state, torch.tensor(active)))


def test_divergence_and_agreement_by_hand() -> None:
    """The conductor says 0 with 0.7, each other with 0.1; one agent's is uniform, the other's says 1."""
    algorithm, _, _ = new_hcpo()
    local, stand_ins = algorithm.conductor.local, algorithm.stand_ins()
    assert local is not None
    assert stand_ins is not None
    always(algorithm.conductor.policy, 0, [math.log(0.7), *[math.log(0.1)] * 3])
    always(local.policies[0], 0, [0.0] * 4)
    always(local.policies[0], 1, [math.log(0.1), math.log(0.7), *[math.log(0.1)] * 2])
    of_uniform = 0.7 * math.log(0.7 / 0.25) + 0.3 * math.log(0.1 / 0.25)
    of_other = 0.7 * math.log(7.0) + 0.1 * math.log(1 / 7.0)
    both = stand_ins.compare(moments(algorithm, [[True, True], [True, True]]))
    assert both.kl == pytest.approx((of_uniform + of_other) / 2, rel=1e-5)
    assert both.agreement == pytest.approx(0.5)  # of equal preferences the first one is taken
    left = stand_ins.compare(moments(algorithm, [[True, False], [True, True]]))
    assert left.kl == pytest.approx((2 * of_uniform + of_other) / 3, rel=1e-5)
    assert left.agreement == pytest.approx(2 / 3)


def test_absent_agents_count_in_no_agreement() -> None:
    conductor = Categorical(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    local = Categorical(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    assert agreement(conductor, local) == 0.5
    assert agreement(conductor, local, torch.tensor([[1.0, 0.0]])) == 1.0
    assert agreement(conductor, local, torch.tensor([[0.0, 1.0]])) == 0.0


def test_they_learn_what_the_conductor_says_in_these_moments() -> None:
    algorithm, _, _ = new_hcpo(distillation_learning_rate=0.05)
    stand_ins = algorithm.stand_ins()
    assert stand_ins is not None
    always(algorithm.conductor.policy, 0, [0.0, 0.0, 3.0, 0.0])
    met = moments(algorithm, [[True, True]] * 60)
    before = stand_ins.compare(met)
    conductor = algorithm.conductor.policy.theta.clone()
    stand_ins.learn(met, torch.Generator().manual_seed(1))
    after = stand_ins.compare(met)
    assert before.kl > 0.5
    assert after.kl < 0.1 * before.kl
    assert after.agreement == 1.0
    assert torch.equal(conductor, algorithm.conductor.policy.theta)


class Scripted:
    """Stand-ins whose parameter counts the lessons, and that follow as the script says after each."""

    remember = False

    def __init__(self, script: list[float]) -> None:
        self.thetas, self._script = [torch.zeros(1)], iter(script)
        self.lessons: list[int] = []

    def learn(self, visited: Visited, generator: torch.Generator) -> None:
        self.thetas[0] += 1
        self.lessons.append(len(visited))

    def compare(self, visited: Visited) -> Following:
        return Following(next(self._script), 0.0)


@pytest.mark.parametrize(
    ("script", "rounds", "best"),
    [
        ([1.0, 0.5, 0.2, 0.199, 0.1], 3, 3),  # less than a hundredth: the last round
        ([1.0, 2.0, 0.1], 1, 0),  # it does harm: as they were
        ([1.0, 0.5, 0.6, 0.1], 2, 1),
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], 5, 5),  # the limit
        ([0.0, 0.0], 1, 0),
    ],
)
def test_rounds_go_on_while_they_help(script: list[float], rounds: int, best: int) -> None:
    algorithm, _, _ = new_hcpo()
    stand_ins = Scripted(script)
    played = []

    def visit(number: int) -> Visited:
        played.append((number, float(stand_ins.thetas[0])))
        return moments(algorithm, [[True, True]] * 3)

    learnt = until_settled(stand_ins, visit, torch.Generator())
    assert (learnt.rounds, float(stand_ins.thetas[0])) == (rounds, best)
    assert played == [(number, number) for number in range(rounds + 1)], "the team plays as it then is"
    assert stand_ins.lessons == [3 * number for number in range(1, rounds + 1)], "on all moments so far"
    assert (learnt.before.kl, learnt.after.kl, learnt.moments) == (script[0], script[best], 3 * rounds)


@pytest.mark.parametrize("remember", [False, True])
def test_what_is_kept_of_an_episode_is_what_the_agents_saw(remember: bool) -> None:
    """In episodes of five steps; the second one is not wanted any more after two."""
    algorithm, _, _ = new_hcpo(local_conductors_remember=remember, instruction_scale=2.0)
    watched = WatchedTeam(LocalTeam(algorithm, False, "common"), remember)
    environment, seeds = make("toy_environments:masked_discrete", 2), np.array([5, 6])
    seen = environment.reset(seeds)
    watched.reset(seeds)
    plain = LocalTeam(algorithm, False, "common")
    plain.reset(seeds)
    shown, states = [], []
    for step in range(4):
        running = np.array([True, step < 2])
        shown.append(np.asarray(seen.observations[0])[running])
        states.append(np.asarray(seen.state)[running])
        actions = watched.act(seen, running)
        np.testing.assert_array_equal(actions[0], plain.act(seen, running)[0])
        seen = environment.step(actions).observation
    visited = watched.visited()
    assert len(visited) == 6
    np.testing.assert_allclose(visited.seen.observations[0], np.concatenate(shown))
    np.testing.assert_allclose(visited.seen.state, np.concatenate(states))
    assert len(visited.last) == remember
    if remember:
        assert visited.last[0].shape == (6, 2, 4)
        assert bool((visited.last[0][:2] == 0).all()), "nothing before the first step"
        assert bool((visited.last[0][2:].sum(-1) == 2.0).all()), "one-hot, twice as loud"


# --- kept if playing is not worse ------------------------------------------------------------------------------------


def on_sum_to_ten(reversed_second: bool) -> LoadedRun:
    """A run of ``told_pair``."""
    config = tiny_config("hcpo", TASK, SETTINGS, {"evaluation_episodes": 16, "seed": 3})
    algorithm = told_pair(reversed_second)
    return LoadedRun(config, Checkpoint(Path(), Counters(), {}, ""), algorithm, algorithm.spec)


def test_a_distillation_after_which_the_team_plays_worse_is_not_kept() -> None:
    """They follow perfectly, and both say 4."""
    loaded = on_sum_to_ten(reversed_second=False)
    stand_ins, chosen = loaded.algorithm.stand_ins(), decide_choice(loaded)
    assert stand_ins is not None
    assert chosen is not None
    trained = [theta.clone() for theta in stand_ins.thetas]
    again = redistil(loaded, chosen)
    assert again is not None
    assert not again.kept
    assert again.after.kl < 0.2 * again.before.kl
    assert (again.before.agreement, again.after.agreement) == (0.5, 1.0)
    assert (again.before.return_mean, again.after.return_mean) == (1.0, 0.0)
    assert again.chosen is chosen
    assert verdict(again.plain()) == "not kept: the team plays worse with them"
    assert all(map(torch.equal, stand_ins.thetas, trained))


def test_one_after_which_it_plays_better_is_kept_and_follows_from_the_seed() -> None:
    learnt = []
    for _ in range(2):
        loaded = on_sum_to_ten(reversed_second=True)
        chosen = decide_choice(loaded)
        assert chosen is not None
        again = redistil(loaded, chosen)
        assert again is not None
        assert again.kept
        assert again.before.return_mean < 0.5 < again.after.return_mean == 1.0
        assert again.chosen.means[again.chosen.choice] == 1.0
        played = evaluate(make("coordsum/sum-to-10", 4), LocalTeam(loaded.algorithm, False, "argmax"), 20, 7)
        assert played.returns.mean() == 1.0, "it is in the policies that are exported"
        learnt.append(loaded.algorithm.stand_ins().thetas[0].clone())  # type: ignore[union-attr]
    assert torch.equal(*learnt)


def test_as_good_within_the_standard_error_is_not_worse() -> None:
    """Differences 1, −1, 1, 0: a quarter less on average, give or take 0.48; 1 less always is worse."""
    before = np.array([1.0, 2.0, 3.0, 4.0])
    assert not beaten(before - np.array([1.0, -1.0, 1.0, 0.0]), by=before)
    assert beaten(before - 1.0, by=before)
    assert not beaten(before, by=before)


@pytest.mark.parametrize("sees", ["common", "nothing"])
def test_copies_of_the_conductor_have_nothing_to_learn(sees: str) -> None:
    assert new_hcpo("coordsum/2x4-6", conductor_sees=sees)[0].stand_ins() is None


@pytest.mark.parametrize(("environment", "latent"), [("leaving", False), ("multi_discrete", True)])
def test_all_kinds_of_teams_learn_once_more(environment: str, latent: bool, tmp_path: Path) -> None:
    """Agents that leave, masks, several choices; one of four instructions, or vectors."""
    settings = {"instruction_space": "continuous", "instruction_size": 2} if latent else {"instructions": 4}
    known = {"conductor_hidden_sizes": [8], "distillation_learning_rate": 0.02, **settings}
    train(tiny_config("hcpo", f"toy_environments:{environment}", known, {"evaluation_episodes": 8}), tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    chosen = decide_choice(loaded)
    assert chosen is not None
    again = redistil(loaded, chosen)
    assert again is not None
    assert again.rounds >= 1
    assert 0.0 <= again.after.kl <= again.before.kl
    assert again.moments >= 8
