"""A conductor that every agent has a copy of, inside the graphs: what the copies see, and that they choose alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from hmarl.runtime.bundle import write_bundle
from hmarl.runtime.noise import noise_for
from hmarl.runtime.session import Policy
from hmarl.sdk.spaces import AgentSpec
from hmarl.trainer.contract.deployable import DeployablePolicy, Instructing
from hmarl.trainer.contract.fixed import CommonSight, FixedNetwork, FixedNormaliser, clock
from hmarl.trainer.export.graphs import Graph, onnx_bytes
from hmarl.trainer.export.samples import example_inputs
from hmarl.trainer.learning.instructions import discrete_instructions, latent_instructions
from hmarl.trainer.networks.distributions import ActionHead
from hmarl.trainer.networks.flat import Mlp
from hmarl.trainer.networks.policies import GroupPolicy
from toy_bundle import toy_manifest

pytestmark = pytest.mark.usefixtures("single_thread")

# Both observe x and the target, in another order: the target alone is common.
PLACES = (1, 0)
HORIZON = 10


def agent(index: int) -> AgentSpec:
    return AgentSpec(f"agent_{index}", 2, spaces.Discrete(3))


def linear(weight: list[list[float]], bias: list[float]) -> GroupPolicy:
    """One conductor without hidden layers."""
    head = discrete_instructions(len(bias))
    network = Mlp(len(weight[0]), (), len(bias), "relu")
    theta = torch.cat([torch.tensor(weight).flatten(), torch.tensor(bias)]).unsqueeze(0)
    return GroupPolicy(network, head, theta, 1)


def actor(index: int, width: int) -> tuple[FixedNetwork, ActionHead]:
    head = ActionHead(spaces.Discrete(3))
    network = Mlp(2 + width, (4,), 3, "relu")
    theta = network.initialise(torch.Generator().manual_seed(index))
    return FixedNetwork(network, theta, None), head


def deployed(index: int, conductor: GroupPolicy, interval: int = 1, remembers: bool = True) -> DeployablePolicy:
    """Normalised observations are halves of the raw ones; the target is less one and doubled."""
    target = FixedNormaliser(torch.tensor([1.0]), torch.tensor([2.0]), 10.0)
    sight = CommonSight(torch.tensor([PLACES[index]]), torch.tensor([True]), target, HORIZON)
    normaliser = FixedNormaliser(torch.zeros(2), torch.full((2,), 0.5), float("inf"))
    network, head = actor(index, conductor.head.output_size)
    instructing = Instructing.of(conductor, 0, interval, 2.0, sight, remembers)
    return DeployablePolicy(agent(index), normaliser, network, head, torch.zeros(0), instructing)


def step(module: DeployablePolicy, **given: Tensor) -> dict[str, Tensor]:
    inputs = {"observation": torch.zeros(1, 2), "step": torch.zeros(1, dtype=torch.int64)}
    inputs |= {state.input: torch.tensor([state.reset]) for state in module.states}
    inputs |= {name: torch.zeros(1, size) for name, size in (("instruction_noise", 3), ("action_noise", 3))}
    inputs |= given
    return dict(zip(module.output_names, module(*(inputs[name] for name in module.input_names)), strict=True))


def test_the_clock_is_bounded_and_one_at_the_horizon() -> None:
    times = torch.tensor([0, 5, 10, 30, 2**62])
    torch.testing.assert_close(clock(times, 10), torch.tensor([0.0, 2 / 3, 1.0, 1.5, 2.0]))


def test_what_a_copy_sees_by_hand() -> None:
    """Inputs: (target − 1)·2, the clock 2t / (t + 10), twice the instruction before. One row an instruction."""
    conductor = linear([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 3, 2, 1]], [0.0, 0.0, 0.5])
    for index in range(2):
        module = deployed(index, conductor)
        observation = torch.full((1, 2), 9.0)
        observation[0, PLACES[index]] = 3.0
        at = torch.tensor([10])
        first = step(module, observation=observation, step=at)
        torch.testing.assert_close(first["instruction_logits"], torch.tensor([[4.0, 1.0, 0.5]]))
        assert first["instruction"].tolist() == [0]
        assert first["next_last_instruction"].tolist() == [[2.0, 0.0, 0.0]]
        then = step(module, observation=observation, step=at, last_instruction=first["next_last_instruction"])
        torch.testing.assert_close(then["instruction_logits"], torch.tensor([[4.0, 1.0, 6.5]]))


def test_what_is_not_known_to_be_common_is_not_seen() -> None:
    observation, at = torch.tensor([[2.0, 5.0]]), torch.tensor([10])
    for known, expected in (([True, False], [2.0, 0.0, 1.0]), ([], [1.0])):
        size = len(known)
        plain = FixedNormaliser(torch.zeros(size), torch.ones(size), 10.0)
        sight = CommonSight(torch.arange(size), torch.tensor(known, dtype=torch.bool), plain, HORIZON)
        torch.testing.assert_close(sight(observation, at), torch.tensor([expected]))


def test_instructions_are_renewed_in_step_also_after_missed_steps() -> None:
    """Interval 3, argmax follows the clock: 0 before the horizon, 1 after it."""
    conductor = linear([[0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], [1.0, 0.0, -9.0])
    module = deployed(0, conductor, interval=3)
    state = torch.zeros(1, 2)
    chosen = []
    for at in (8, 10, 11, 13, 15):  # joined at 8; 9, 12 and 14 are missed
        outputs = step(module, step=torch.tensor([at]), instruction_state=state)
        state = outputs["next_instruction_state"]
        assert state[0, 1] == 1.0
        chosen.append(int(outputs["instruction"]))
    assert chosen == [0, 0, 0, 0, 1]  # decided at once at 8, and at 15, a multiple of 3


@pytest.mark.parametrize("remembers", [False, True])
def test_a_copy_that_has_missed_steps_agrees_again(remembers: bool) -> None:
    """At once where its last instruction is not seen; where it is, equal noise brings the copies together."""
    stubborn = linear([[0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]], [0.0, 0.0, 0.0])  # likes its last one
    module = deployed(0, stubborn if remembers else linear([[1, 0], [0, 1], [0, 0]], [0.0, 0.0, 0.0]), 1, remembers)
    model = next(noise for noise in module.describe("").noises if noise.purpose == "instruction")
    instructions = []
    for missed in (range(0), range(3, 8)):  # one copy sees all steps, the other misses five
        states = {state.input: torch.tensor([state.reset]).expand(200, -1) for state in module.states}
        acted = []
        for at in (at for at in range(20) if at not in missed):
            noise = torch.from_numpy(noise_for(model, "any", np.arange(200), at, stream="common"))
            given = {"observation": torch.full((200, 2), 0.1 * at), "step": torch.full((200,), at)}
            outputs = step(module, **given, instruction_noise=noise, action_noise=torch.zeros(200, 3), **states)
            states = {state.input: outputs[state.output] for state in module.states}
            acted.append(outputs["instruction"])
        instructions.append(acted[-12:])
    parted = [int((mine != other).sum()) for mine, other in zip(*instructions, strict=True)]
    assert parted[0] > 20 if remembers else parted == [0] * 12
    assert parted[-1] <= parted[0] // 10


@pytest.mark.parametrize(("kind", "interval"), [("discrete", 4), ("continuous", 1)])
def test_copies_choose_alike_in_the_runtime_and_as_torch_does(kind: str, interval: int, tmp_path: Path) -> None:
    head = discrete_instructions(3) if kind == "discrete" else latent_instructions(3)
    network = Mlp(5, (8,), 3, "tanh")
    theta = torch.cat([3.0 * network.initialise(torch.Generator().manual_seed(0)), head.initialise()])
    conductor = GroupPolicy(network, head, theta.unsqueeze(0), 1)
    modules = [deployed(index, conductor, interval).eval() for index in range(2)]
    entries = [module.describe(f"agents/{module.agent.id}.onnx") for module in modules]
    files = {
        entry.file: onnx_bytes(Graph(entry.file, module, (index,), (entry,)))
        for index, (module, entry) in enumerate(zip(modules, entries, strict=True))
    }
    manifest = toy_manifest([]) | {"agents": entries}
    bundle = write_bundle(tmp_path / "b", manifest, files)
    assert [entry.instruction_choice for entry in bundle.manifest.agents] == ["common", "common"]
    sessions = [Policy(bundle, name).session() for name in bundle.agent_ids]
    for session in sessions:
        session.reset(7)
    generator, chosen = np.random.default_rng(0), []
    for _ in range(24):
        target = generator.normal()
        both = []
        for index, session in enumerate(sessions):
            observation = generator.normal(size=2).astype(np.float32)
            observation[PLACES[index]] = target
            both.append(session.act(observation).diagnostics["instruction"])
        np.testing.assert_array_equal(both[0], both[1])
        chosen.append(np.round(both[0], 4).tolist())
    different = {str(each) for each in chosen}
    assert len(different) == (3 if kind == "discrete" else 24 // interval)
    for module, session in zip(modules, sessions, strict=True):
        inputs = example_inputs(module, 65, generator)
        assert inputs["step"].dtype == torch.int64
        expected = dict(zip(module.output_names, module(*inputs.values()), strict=True))
        got = session.policy.run_batch({name: value.numpy() for name, value in inputs.items()})
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value.numpy(), atol=1e-5, err_msg=name)
