"""Recurrent policies: the network against torch's own unit, memory across chunks and episode ends, exact replay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hmarl.runtime.errors import NonFiniteError
from hmarl.trainer.algorithms import ALGORITHMS
from hmarl.trainer.contract.local_team import LocalTeam
from hmarl.trainer.networks.flat import Memory, Mlp, RecurrentNetwork
from training_runs import new_algorithm, of_use, team_samples

pytestmark = pytest.mark.usefixtures("single_thread")
NETWORK = RecurrentNetwork(3, (5,), 2, "tanh", memory=4)


def random_theta(rows: int | None = None) -> Tensor:
    shape = (NETWORK.size,) if rows is None else (rows, NETWORK.size)
    return 0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def by_torch(theta: Tensor, x: Tensor, initial: Tensor) -> Tensor:
    """The same network made of torch's own layers, over a sequence [L, C, D] without episode ends."""
    parameters = NETWORK.named(theta)
    unit = nn.GRU(5, 4)
    unit.load_state_dict(
        {
            "weight_ih_l0": parameters["memory.input_weight"],
            "bias_ih_l0": parameters["memory.input_bias"],
            "weight_hh_l0": parameters["memory.weight"],
            "bias_hh_l0": parameters["memory.bias"],
        }
    )
    features = torch.tanh(nn.functional.linear(x, parameters["0.weight"], parameters["0.bias"]))
    remembered, _ = unit(features, initial.unsqueeze(0))
    return nn.functional.linear(remembered, parameters["1.weight"], parameters["1.bias"])


def test_a_sequence_equals_torchs_gated_recurrent_unit() -> None:
    theta, generator = random_theta(), torch.Generator().manual_seed(1)
    x = torch.randn(6, 7, 3, generator=generator)
    initial = torch.randn(7, 4, generator=generator)
    memory = Memory(initial, torch.ones(1, 6, 7, 1))
    mine = NETWORK.sequence(NETWORK.named(theta), x.flatten(0, 1), memory).view(6, 7, 2)
    torch.testing.assert_close(mine, by_torch(theta, x, initial))


def test_steps_sequence_and_stack_agree_across_chunks_and_episode_ends() -> None:
    theta, generator = random_theta(rows=2), torch.Generator().manual_seed(2)
    x = torch.randn(2, 6, 3, 3, generator=generator)  # two networks, six steps, three environments
    begins = torch.zeros(6, 3, dtype=torch.bool)
    begins[2, 0] = begins[3, 1] = begins[4, 1] = True
    held, outputs, recorded = torch.randn(2, 3, 4, generator=generator), [], []
    for t in range(6):
        held = held.masked_fill(begins[t].view(1, 3, 1), 0.0)
        if t % 3 == 0:
            recorded.append(held)
        output, held = NETWORK.step(NETWORK.named(theta), x[:, t], held)
        outputs.append(output)
    stepped = torch.stack(outputs, dim=1)
    memory = Memory(torch.stack(recorded, dim=1).flatten(1, 2), (~begins).float().view(2, 3, 3, 1))
    together = NETWORK.sequence(NETWORK.named(theta), x.flatten(1, 2), memory)
    torch.testing.assert_close(together.view(2, 6, 3, 2), stepped)
    chosen = torch.tensor([4, 0])  # chunk 4: second half of environment 1
    alone = NETWORK.sequence(
        NETWORK.named(theta[1]),
        x[1].flatten(0, 1)[memory.rows(chosen)],
        Memory(memory.initial[1], memory.kept).take(chosen),
    )
    torch.testing.assert_close(alone.view(3, 2, 2)[:, 0], stepped[1, 3:, 1])
    torch.testing.assert_close(alone.view(3, 2, 2)[:, 1], stepped[1, :3, 0])


def test_gradients_reach_back_to_the_chunks_first_step_but_not_past_an_episodes_begin() -> None:
    theta = random_theta()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(3)).requires_grad_(True)
    kept = torch.ones(1, 4, 1, 1)
    kept[0, 2] = 0.0
    output = NETWORK.sequence(NETWORK.named(theta), x, Memory(torch.zeros(1, 4), kept))
    (late,) = torch.autograd.grad(output[3].sum(), x, retain_graph=True)
    (early,) = torch.autograd.grad(output[1].sum(), x)
    assert (late[:2] == 0).all()
    assert (late[2] != 0).any()
    assert (early[0] != 0).any()


def test_the_memory_stands_still_while_an_agent_is_away_as_if_those_steps_were_not() -> None:
    theta, generator = random_theta(rows=2), torch.Generator().manual_seed(4)
    x = torch.randn(2, 6, 3, 3, generator=generator)  # two networks, six steps, three environments
    there = torch.ones(2, 6, 3, dtype=torch.bool)
    there[0, 2:4, 1] = there[1, :3, 2] = there[1, 5, 0] = False
    initial = torch.randn(2, 3, 4, generator=generator)
    held, outputs, recorded = initial, [], []
    for t in range(6):
        if t % 3 == 0:
            recorded.append(held)
        before = held
        output, held = NETWORK.step(NETWORK.named(theta), x[:, t], held, there[:, t])
        assert torch.equal(held[~there[:, t]], before[~there[:, t]])
        outputs.append(output)
    stepped = torch.stack(outputs, dim=1)
    for network, row in ((0, 1), (1, 2), (1, 0), (0, 0)):
        seen = x[network, there[network, :, row], row]
        alone = NETWORK.sequence(
            NETWORK.named(theta[network]), seen, Memory(initial[network, row : row + 1], torch.ones(1, len(seen), 1, 1))
        )
        torch.testing.assert_close(stepped[network, there[network, :, row], row], alone)
    memory = Memory(
        torch.stack(recorded, dim=1).flatten(1, 2), torch.ones(2, 3, 3, 1), there.view(2, 2, 3, 3).unsqueeze(-1)
    )
    together = NETWORK.sequence(NETWORK.named(theta), x.flatten(1, 2), memory)
    torch.testing.assert_close(together.view(2, 6, 3, 2), stepped)
    chosen = torch.tensor([4, 0, 2])  # chunk 4: second half of environment 1
    rows = memory.rows(chosen)
    part = NETWORK.sequence(NETWORK.named(theta), x.flatten(1, 2)[:, rows], memory.take(chosen))
    torch.testing.assert_close(part, together[:, rows])


def test_a_recurrent_network_cannot_be_asked_without_its_memory() -> None:
    assert not callable(NETWORK)
    assert (NETWORK.memory_size, Mlp(3, (5,), 2).memory_size) == (4, 0)


@pytest.mark.parametrize("chunk_length", [None, 7])
@pytest.mark.parametrize(
    "environment", ["mpe/simple_spread", "mpe/simple_speaker_listener", "toy_environments:returning"]
)
@pytest.mark.parametrize("faults", ["none", "delay=1,restart=0.1:2"])
def test_the_update_sees_what_the_agents_saw(environment: str, chunk_length: int | None, faults: str) -> None:
    """The recomputed probabilities are those with which the agents acted, over chunks, episode ends and restarts, and
    with agents who come back, and come late.
    """
    algorithm, rollout, collector = new_algorithm(
        "happo", environment, 3, 28, {"faults": faults}, recurrent=True, memory_size=6, chunk_length=chunk_length
    )
    for _ in range(2):
        acted: list[list[Tensor]] = [[] for _ in algorithm.policies]
        for g, policy in enumerate(algorithm.policies):
            inner = policy.step

            def spy(*arguments: Tensor, inner=inner, log=acted[g]):  # type: ignore[no-untyped-def]
                distribution, following = inner(*arguments)
                log.append(distribution.logits)
                return distribution, following

            policy.step = spy  # type: ignore[method-assign]
        collector.collect(algorithm)
        for policy in algorithm.policies:
            del policy.step  # type: ignore[method-assign]
        assert rollout.ended.any()
        assert (rollout.restarted is not None and bool(rollout.restarted.any())) == (faults != "none")
        for agent, (group, member) in algorithm.position.items():
            samples = team_samples(algorithm, rollout).of_agent(agent)
            expected = torch.stack(acted[group])[:, member].flatten(0, 1)
            torch.testing.assert_close(samples.old.logits, expected, atol=1e-5, rtol=1e-4)  # type: ignore[attr-defined]
            part = samples.take(torch.arange(samples.units - 1))
            torch.testing.assert_close(
                part.under(algorithm.policies[group], algorithm.policies[group].row(member)).log_prob(part.actions),
                part.old_log_prob,
                atol=1e-5,
                rtol=1e-4,
            )


def test_a_team_of_torch_refuses_what_is_no_number() -> None:
    """Of an agent that is there, in an episode that goes on."""
    algorithm, _, collector = new_algorithm("happo", "toy_environments:returning", 2, 5, recurrent=True)
    algorithm.policies[0].theta[2, -1] = float("nan")  # of the one that comes late
    team, seen = LocalTeam(algorithm), collector.environment.reset(np.arange(2))
    team.reset(np.arange(2))
    every = np.ones(2, np.bool_)
    for _ in range(2):
        seen = collector.environment.step(team.act(seen, every)).observation
    team.act(seen, ~every)
    with pytest.raises(NonFiniteError, match=r"agent 'chooser_2': row 0: the policy computed action_logits\[3\] = nan"):
        team.act(seen, every)


@pytest.mark.parametrize(
    "name", [name for name, each in ALGORITHMS.items() if each.exportable and of_use(name, {"recurrent": True})]
)
def test_every_algorithm_updates_recurrent_policies(name: str) -> None:
    algorithm, rollout, collector = new_algorithm(name, "mpe/simple_spread", 3, 10, recurrent=True, chunk_length=5)
    collector.collect(algorithm)
    before = [policy.theta.clone() for policy in algorithm.policies]
    metrics = algorithm.update(rollout, 0.0)
    assert metrics.get("agent_kl") != 0
    assert not torch.equal(before[0], algorithm.policies[0].theta)
