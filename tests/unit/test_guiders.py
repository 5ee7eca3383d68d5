"""Guiders: acting equals judging all steps at once, agents see those before them, memory ends with the episode."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec
from hmarl.trainer.guiders.attention import AttentionNetwork
from hmarl.trainer.guiders.guider import Judged, TeamView
from hmarl.trainer.guiders.retention import RetentionNetwork
from hmarl.trainer.guiders.sequence import SequenceGuider
from hmarl.trainer.guiders.tokens import ActionTokens
from hmarl.trainer.networks.distributions import ActionHead, Categorical

pytestmark = pytest.mark.usefixtures("single_thread", "double_precision")
each_guider = pytest.mark.parametrize("network", [AttentionNetwork, RetentionNetwork])
each_encoder = pytest.mark.parametrize("value_encoder", ["shared", "own"])

Network = type[AttentionNetwork] | type[RetentionNetwork]

_CONTEXT = 2
_CHOOSER = ("chooser", 3, spaces.Discrete(3), True)
_ARM = ("arm", 4, spaces.Box(np.float32(-1.0), np.float32(1.0), (2,)), False)
_BRANCHER = ("brancher", 3, spaces.MultiDiscrete([2, 3]), True)
# Positions of a group's members do not follow one another.
UNLIKE = (_CHOOSER, _ARM, _CHOOSER, _BRANCHER, _ARM)
ALIKE = (_CHOOSER,) * 4
# More steps than fit into a chunk of a retention, and not a multiple of it.
STEPS, SEQUENCES = 47, 3


@pytest.fixture
def double_precision() -> Iterator[None]:
    """So that two forms of one formula agree to far more digits than any mistake would leave."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@dataclass(frozen=True)
class Structure:
    embedding_size: int = 8
    blocks: int = 1
    attention_heads: int = 1
    credit: Literal["team", "own"] = "team"
    initial_gains: Literal["unit", "small"] = "unit"
    value_encoder: Literal["shared", "own"] = "shared"
    team_value: bool = False


@dataclass
class Recorded:
    """Random steps of a team: [L, C, ...]."""

    view: TeamView
    actions: list[Tensor]
    begins: Tensor
    memory: Tensor


def new_guider(
    network: Network,
    agents: Sequence[tuple],
    blocks: int = 1,
    heads: int = 1,
    credit: Literal["team", "own"] = "team",
    value_encoder: Literal["shared", "own"] = "shared",
    team_value: bool = False,
) -> tuple[SequenceGuider, Tensor]:
    specs = tuple(
        AgentSpec(f"{name}_{i}", size, space, has_action_mask=masked)
        for i, (name, size, space, masked) in enumerate(agents)
    )
    groups = EnvironmentSpec("toy", specs, 1, None, "shared").groups
    group_heads = [ActionHead(group.example.action_space) for group in groups]
    structure = Structure(8, blocks, heads, credit, value_encoder=value_encoder, team_value=team_value)
    guider = SequenceGuider(network, groups, group_heads, structure, _CONTEXT)
    generator = torch.Generator().manual_seed(7)
    # Away from the start, where policies are near uniform and biases zero.
    theta = guider.initialise(generator) + 0.2 * torch.randn(guider.size, generator=generator)
    return guider, theta


def record(guider: SequenceGuider, theta: Tensor, steps: int, sequences: int, begin_rate: float = 0.1) -> Recorded:
    """Legal random actions, after a memory that random steps have left."""
    generator = torch.Generator().manual_seed(8)
    features, masks, actions = [], [], []
    for group, head in zip(guider.groups, guider.heads, strict=True):
        shape = (steps, sequences, len(group.agents))
        features.append(torch.randn(*shape, group.example.observation_size, generator=generator))
        mask = torch.rand(*shape, head.output_size, generator=generator) < 0.7
        mask[..., 0] = True
        if isinstance(head.space, spaces.MultiDiscrete):
            mask[..., 2] = True
        masks.append(mask if group.example.has_action_mask else None)
        perturbation = head.draw_perturbations(shape, generator)
        uniform = head.distribution(torch.zeros_like(perturbation), head.initialise(), masks[-1])
        actions.append(uniform.select(perturbation))
    view = TeamView(features, masks, torch.randn(steps, sequences, _CONTEXT, generator=generator))
    begins = torch.rand(steps, sequences, generator=generator) < begin_rate
    memory = torch.zeros(sequences, *guider.memory_shape)
    for t in range(min(steps, 2)):
        memory = guider.act(guider.named(theta), at(view, t), None, range(guider.agents), memory).memory
    return Recorded(view, actions, begins, memory)


def at(view: TeamView, step: int) -> TeamView:
    masks = [None if mask is None else mask[step] for mask in view.action_masks]
    return TeamView([x[step] for x in view.features], masks, None if view.context is None else view.context[step])


def judge(guider: SequenceGuider, theta: Tensor, seen: Recorded, order: Sequence[int]) -> Judged:
    return guider.judge(guider.named(theta), seen.view, seen.actions, torch.tensor(order), seen.memory, seen.begins)


def log_probs(guider: SequenceGuider, judged: Judged, actions: Sequence[Tensor]) -> Tensor:
    """[L, C, N] of the recorded actions, agents in natural order."""
    steps, sequences = actions[0].shape[:2]
    result = torch.empty(steps, sequences, guider.agents)
    for group, distribution, taken in zip(guider.groups, judged.distributions, actions, strict=True):
        of_group = distribution.log_prob(taken.flatten(0, 1).transpose(0, 1))
        result[..., list(group.agents)] = of_group.view(-1, steps, sequences).movedim(0, -1)
    return result


def probabilities(judged: Judged, steps: int, sequences: int) -> Tensor:
    """[L, C, N, A] of a team of choosers."""
    (distribution,) = judged.distributions
    assert isinstance(distribution, Categorical)
    return distribution.log_probs.exp().view(-1, steps, sequences, 3).movedim(0, 2)


@each_guider
@pytest.mark.parametrize(("blocks", "heads", "value_encoder"), [(1, 1, "shared"), (2, 4, "shared"), (2, 4, "own")])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (3, 0, 4, 2, 1)])
@torch.no_grad()
def test_acting_agrees_with_judging(
    network: Network, blocks: int, heads: int, value_encoder: Literal["shared", "own"], order: tuple[int, ...]
) -> None:
    guider, theta = new_guider(network, UNLIKE, blocks, heads, value_encoder=value_encoder)
    seen = record(guider, theta, STEPS, SEQUENCES)
    parameters, generator = guider.named(theta), torch.Generator().manual_seed(1)
    noise = [
        h.draw_perturbations((STEPS, len(g.agents), SEQUENCES), generator)
        for g, h in zip(guider.groups, guider.heads, strict=True)
    ]
    memory, memories, steps = seen.memory, [], []
    for t in range(STEPS):
        memory = memory.masked_fill(seen.begins[t].unsqueeze(-1), 0.0)
        memories.append(memory)
        steps.append(guider.act(parameters, at(seen.view, t), [n[t] for n in noise], order, memory))
        memory = steps[-1].memory
    seen.actions = [torch.stack([step.actions[g] for step in steps]) for g in range(len(guider.groups))]
    judged = judge(guider, theta, seen, order)
    log_prob = log_probs(guider, judged, seen.actions)
    torch.testing.assert_close(log_prob, torch.stack([step.log_prob for step in steps]))
    torch.testing.assert_close(judged.values, torch.stack([step.value for step in steps]))
    last = guider.value(parameters, at(seen.view, STEPS - 1), memories[-1])
    torch.testing.assert_close(judged.values[-1], last)
    half = STEPS // 2
    later = Recorded(
        TeamView(
            [x[half:] for x in seen.view.features],
            [None if mask is None else mask[half:] for mask in seen.view.action_masks],
            None if seen.view.context is None else seen.view.context[half:],
        ),
        [actions[half:] for actions in seen.actions],
        seen.begins[half:],
        memories[half],
    )
    again = judge(guider, theta, later, order)
    torch.testing.assert_close(log_probs(guider, again, later.actions), log_prob[half:])


@each_guider
@torch.no_grad()
def test_the_modes_are_the_most_probable_legal_actions(network: Network) -> None:
    guider, theta = new_guider(network, ALIKE)
    seen = record(guider, theta, 1, 50)
    acted = guider.act(guider.named(theta), at(seen.view, 0), None, (2, 0, 3, 1), seen.memory)
    seen.actions = [actions.unsqueeze(0) for actions in acted.actions]
    seen.begins[:] = False
    judged = judge(guider, theta, seen, (2, 0, 3, 1))
    best = probabilities(judged, 1, 50).argmax(-1)
    torch.testing.assert_close(best, seen.actions[0])
    mask = seen.view.action_masks[0]
    assert mask is not None
    assert mask.gather(-1, seen.actions[0].unsqueeze(-1)).all()


@each_guider
@torch.no_grad()
def test_the_probabilities_of_all_joint_actions_sum_to_one(network: Network) -> None:
    guider, theta = new_guider(network, (_CHOOSER, _BRANCHER, _CHOOSER))
    one = record(guider, theta, 1, 1, begin_rate=0.0)
    joint = torch.tensor(list(itertools.product(range(3), range(2), range(3), range(3))))
    sequences = len(joint)
    actions = [joint[:, [0, 3]].view(1, -1, 2), joint[:, 1:3].view(1, -1, 1, 2)]

    def repeat(x: Tensor) -> Tensor:
        return x.expand(1, sequences, *x.shape[2:])

    view = TeamView(
        [repeat(x) for x in one.view.features],
        [None if mask is None else repeat(mask) for mask in one.view.action_masks],
        None if one.view.context is None else repeat(one.view.context),
    )
    seen = Recorded(view, actions, repeat(one.begins), one.memory.expand(sequences, -1))
    for order in itertools.permutations(range(3)):
        joint_probability = log_probs(guider, judge(guider, theta, seen, order), actions).sum(-1).exp()
        torch.testing.assert_close(joint_probability.sum(), torch.tensor(1.0))


@each_guider
@torch.no_grad()
def test_agents_are_told_apart_by_their_one_hots_alone(network: Network) -> None:
    guider, theta = new_guider(network, ALIKE, blocks=2)
    seen, order, places = record(guider, theta, STEPS, SEQUENCES), (1, 3, 0, 2), [2, 0, 3, 1]
    seen.memory.zero_()
    renamed, inputs = theta.clone(), _CHOOSER[1] + _CONTEXT
    parameters = guider.named(renamed)
    parameters["actor.weight"].copy_(parameters["actor.weight"][:, places])
    parameters["observation.0.weight"][:, inputs:] = parameters["observation.0.weight"][:, inputs:][:, places]
    mask = seen.view.action_masks[0]
    assert mask is not None
    permuted = Recorded(
        TeamView([seen.view.features[0][:, :, places]], [mask[:, :, places]], seen.view.context),
        [seen.actions[0][:, :, places]],
        seen.begins,
        seen.memory,
    )
    before = judge(guider, theta, seen, order)
    after = judge(guider, renamed, permuted, [places.index(agent) for agent in order])
    shape = (STEPS, SEQUENCES)
    torch.testing.assert_close(probabilities(after, *shape), probabilities(before, *shape)[:, :, places])
    torch.testing.assert_close(after.values, before.values)
    same_theta = judge(guider, theta, permuted, [places.index(agent) for agent in order])
    assert (same_theta.values - before.values).abs().max() > 1e-3


@each_guider
@pytest.mark.parametrize("changed", [0, 1, 2, 3])
@torch.no_grad()
def test_an_action_is_seen_by_the_agents_after_it_alone(network: Network, changed: int) -> None:
    guider, theta = new_guider(network, ALIKE)
    seen, order, step = record(guider, theta, STEPS, 1, begin_rate=0.0), (1, 3, 0, 2), 20
    ended = 40
    seen.begins[ended] = True
    before = judge(guider, theta, seen, order)
    other = seen.actions[0].clone()
    other[step, 0, order[changed]] = (other[step, 0, order[changed]] + 1) % 3
    seen.actions = [other]
    after = judge(guider, theta, seen, order)
    differs = (probabilities(after, STEPS, 1) - probabilities(before, STEPS, 1)).abs().amax(-1)[
        :, 0, list(order)
    ] > 1e-9
    expected = torch.zeros(STEPS, 4, dtype=torch.bool)
    expected[step, changed + 1 :] = True
    if network is RetentionNetwork:  # whoever acts in later steps of the episode, even if the last has changed
        expected[step + 1 : ended] = True
    legal = seen.view.action_masks[0]
    assert legal is not None
    expected &= legal[:, 0, list(order)].sum(-1) > 1  # without a choice nothing can differ
    assert torch.equal(differs, expected)
    torch.testing.assert_close(after.values, before.values)


@each_guider
def test_what_was_seen_is_remembered_until_the_episode_ends(network: Network) -> None:
    guider, theta = new_guider(network, ALIKE, heads=2)
    seen = record(guider, theta, 2 * STEPS, 1, begin_rate=0.0)
    begin = STEPS + 3
    seen.begins[begin] = True
    features, memory = seen.view.features[0].requires_grad_(True), seen.memory.clone().requires_grad_(True)
    seen.memory = memory
    remembers = network is RetentionNetwork

    def reached(judged: Judged, step: int) -> list[bool]:
        """From which steps, and at last whether from the memory before the first, gradient flows into one step."""
        outputs = probabilities(judged, 2 * STEPS, 1)[step].square().sum() + judged.values[step].sum()
        gradients = torch.autograd.grad(outputs, [features, memory], retain_graph=True, allow_unused=True)
        of_memory = gradients[1] is not None and bool(gradients[1].any())
        return [*(gradients[0].flatten(1) != 0).any(1).tolist(), of_memory]

    judged = judge(guider, theta, seen, (2, 0, 1, 3))
    for step in (0, begin - 1, begin, 2 * STEPS - 1):
        first = (0 if step < begin else begin) if remembers else step
        expected = [first <= t <= step for t in range(2 * STEPS)]
        assert reached(judged, step) == [*expected, remembers and step < begin]


@torch.no_grad()
def test_a_retention_fades_by_the_decay_of_its_head() -> None:
    guider, theta = new_guider(RetentionNetwork, ALIKE, heads=2)
    seen = record(guider, theta, 1, SEQUENCES)
    states = 2 * 4 * 4  # of the encoder's only retention, the first in a memory
    faint = seen.memory.clone()
    faint[:, :states] += torch.randn(SEQUENCES, states, generator=torch.Generator().manual_seed(3))

    def after(memory: Tensor) -> Tensor:
        return guider.act(guider.named(theta), at(seen.view, 0), None, range(4), memory).memory

    left = (after(faint) - after(seen.memory))[:, :states].view(SEQUENCES, 2, -1)
    added = (faint - seen.memory)[:, :states].view(SEQUENCES, 2, -1)
    torch.testing.assert_close(left, added * torch.tensor([31 / 32, 511 / 512]).view(2, 1))


@torch.no_grad()
def test_steps_are_counted_from_the_episodes_begin() -> None:
    guider, theta = new_guider(RetentionNetwork, ALIKE)
    seen = record(guider, theta, 5, SEQUENCES)
    memory = torch.zeros(SEQUENCES, *guider.memory_shape)
    for t in range(5):
        torch.testing.assert_close(memory[:, -1], torch.full((SEQUENCES,), float(t)))
        memory = guider.act(guider.named(theta), at(seen.view, t), None, range(4), memory).memory


@each_guider
@each_encoder
@torch.no_grad()
def test_own_values_are_said_of_the_right_agents_whatever_the_order(
    network: Network, value_encoder: Literal["shared", "own"]
) -> None:
    """Acting says them in the agents' own order, judging group by group; their mean is the team's value."""
    guider, theta = new_guider(network, UNLIKE, blocks=2, heads=2, credit="own", value_encoder=value_encoder)
    team, _ = new_guider(network, UNLIKE, blocks=2, heads=2, value_encoder=value_encoder)
    seen = record(guider, theta, STEPS, SEQUENCES, begin_rate=0.0)
    acted, memory = [], seen.memory
    for t in range(STEPS):
        taken = [action[t] for action in seen.actions]
        step = guider.act(guider.named(theta), at(seen.view, t), None, range(5), memory, taken)
        torch.testing.assert_close(guider.value(guider.named(theta), at(seen.view, t), memory), step.value)
        acted.append(step.value)
        memory = step.memory
    acting = torch.stack(acted)
    assert acting.shape == (STEPS, SEQUENCES, 5)
    assert acting.std(dim=-1).min() > 1e-6
    order = torch.tensor([0, 1, 2, 3, 4])
    together = guider.judge_orders(guider.named(theta), seen.view, seen.actions, [order], seen.memory, seen.begins)
    for judged in (judge(guider, theta, seen, (0, 1, 2, 3, 4)), *together):
        torch.testing.assert_close(judged.values, acting[..., guider.grouped])
    torch.testing.assert_close(judge(team, theta, seen, (0, 1, 2, 3, 4)).values, acting.mean(-1))
    if network is AttentionNetwork:  # what a retention remembers depends on the order of the steps before
        shuffled = judge(guider, theta, seen, (3, 1, 4, 0, 2)).values
        torch.testing.assert_close(shuffled, acting[..., guider.grouped])


@each_guider
@each_encoder
@torch.no_grad()
def test_own_values_with_a_part_of_the_team_by_definition(
    network: Network, value_encoder: Literal["shared", "own"]
) -> None:
    """V^i = 1/N sum_j v(x_j) + w(x_i): v and w are what guiders without such a part say, one of them each."""
    guider, theta = new_guider(network, UNLIKE, 2, 2, credit="own", value_encoder=value_encoder, team_value=True)
    each, _ = new_guider(network, UNLIKE, 2, 2, credit="own", value_encoder=value_encoder)
    named = guider.named(theta)

    def alone(part: int) -> dict[str, Tensor]:
        return {**named, **{name: named[name][part : part + 1] for name in ("value.weight", "value.bias")}}

    seen, order = record(guider, theta, STEPS, SEQUENCES), torch.tensor([3, 1, 4, 0, 2])
    of_team, own = (
        each.judge(alone(part), seen.view, seen.actions, order, seen.memory, seen.begins).values for part in (0, 1)
    )
    expected = of_team.mean(-1, keepdim=True) + own
    assert expected.std(dim=-1).min() > 1e-6
    torch.testing.assert_close(judge(guider, theta, seen, (3, 1, 4, 0, 2)).values, expected)
    first = at(seen.view, 0)
    acted = guider.value(named, first, seen.memory)
    parts = [each.value(alone(part), first, seen.memory) for part in (0, 1)]
    torch.testing.assert_close(acted, parts[0].mean(-1, keepdim=True) + parts[1])


@each_guider
@pytest.mark.parametrize("gains", ["unit", "small"])
@torch.no_grad()
def test_weights_begin_with_the_gains_that_are_asked_for(network: Network, gains: Literal["unit", "small"]) -> None:
    """Of a square matrix all singular values are the gain; those one below the other make a column √k times as long."""
    team, _ = new_guider(network, ALIKE)
    guider = SequenceGuider(network, team.groups, team.heads, Structure(8, 1, 1, "team", gains), _CONTEXT)
    named = guider.named(guider.initialise(torch.Generator().manual_seed(7)))
    out, hidden = (0.01, 2.0**0.5) if gains == "small" else (1.0, 1.0)
    stacked = 3**0.5 if network is AttentionNetwork else 1.0
    kind = "attention" if network is AttentionNetwork else "retention"
    expected = {
        f"encoder.0.{kind}0.inputs.weight": out * stacked,
        f"decoder.0.{kind}1.projection.weight": out,
        "encoder.0.hidden.weight": hidden,
        "decoder.0.output.weight": out,
        "value.hidden.weight": hidden,
        "value.weight": out,
        "policy.0.weight": 0.01,
        "policy_hidden.weight": hidden,
    }
    for name, gain in expected.items():
        values = torch.linalg.svdvals(named[name])
        torch.testing.assert_close(values, torch.full_like(values, gain), msg=name)
    assert ("value.norm.gain" in named) == (gains == "small")


@each_guider
@each_encoder
@torch.no_grad()
def test_several_orders_are_judged_as_each_by_itself(network: Network, value_encoder: Literal["shared", "own"]) -> None:
    guider, theta = new_guider(network, UNLIKE, blocks=2, heads=2, value_encoder=value_encoder)
    seen = record(guider, theta, STEPS, SEQUENCES)
    orders = [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 4, 0, 1, 3)]
    together = guider.judge_orders(
        guider.named(theta),
        seen.view,
        seen.actions,
        [torch.tensor(order) for order in orders],
        seen.memory,
        seen.begins,
    )
    for order, judged in zip(orders, together, strict=True):
        alone = judge(guider, theta, seen, order)
        torch.testing.assert_close(judged.values, alone.values)
        torch.testing.assert_close(log_probs(guider, judged, seen.actions), log_probs(guider, alone, seen.actions))


@each_guider
@each_encoder
def test_every_parameter_is_learnt(network: Network, value_encoder: Literal["shared", "own"]) -> None:
    guider, theta = new_guider(network, UNLIKE, blocks=2, heads=2, value_encoder=value_encoder)
    theta.requires_grad_(True)
    seen = record(guider, theta.detach(), 6, SEQUENCES)
    loss = torch.zeros(())
    for order in ((0, 1, 2, 3, 4), (4, 3, 2, 1, 0)):
        judged = judge(guider, theta, seen, order)
        loss = loss + log_probs(guider, judged, seen.actions).sum() + judged.values.square().sum()
    (gradient,) = torch.autograd.grad(loss, theta)
    idle = set()
    for name, part in guider.named(gradient).items():
        reached = part.abs() > 1e-9
        rows, columns = (reached.any(-1), reached.any(0)) if part.dim() == 2 else (reached, reached)
        if not rows.numel() or not rows.all():
            idle.add(name)
        # A group's layer has a column for the one-hots of other groups' agents.
        if not name.startswith(("observation", "value_encoder.observation")):
            assert columns.all() or name in idle, name
    assert idle == {"extra.0", "extra.2"}


@each_guider
@torch.no_grad()
def test_an_encoder_of_its_own_with_the_same_weights_says_the_same_value(network: Network) -> None:
    """What tells the two apart is the weights alone: over steps and episodes, acting and judging."""
    shared, theta = new_guider(network, UNLIKE, blocks=2, heads=2)
    own, apart = new_guider(network, UNLIKE, blocks=2, heads=2, value_encoder="own")
    theirs, mine = shared.named(theta), own.named(apart)
    for name, values in mine.items():
        values.copy_(theirs[name.removeprefix("value_encoder.")])
    seen, alike = record(shared, theta, STEPS, SEQUENCES), record(own, apart, STEPS, SEQUENCES)
    judged, expected = judge(own, apart, alike, (3, 0, 4, 2, 1)), judge(shared, theta, seen, (0, 1, 2, 3, 4))
    torch.testing.assert_close(alike.memory[:, : shared.memory_shape[0]], seen.memory)
    torch.testing.assert_close(judged.values, expected.values)
    natural = judge(own, apart, alike, (0, 1, 2, 3, 4))
    torch.testing.assert_close(natural.values, expected.values)
    torch.testing.assert_close(log_probs(own, natural, alike.actions), log_probs(shared, expected, seen.actions))


@each_guider
@each_encoder
def test_an_encoder_of_its_own_is_bent_by_the_values_loss_alone(
    network: Network, value_encoder: Literal["shared", "own"]
) -> None:
    guider, theta = new_guider(network, UNLIKE, value_encoder=value_encoder)
    theta.requires_grad_(True)
    seen = record(guider, theta.detach(), 6, SEQUENCES)
    judged = judge(guider, theta, seen, (0, 1, 2, 3, 4))

    def bent(loss: Tensor) -> set[str]:
        (gradient,) = torch.autograd.grad(loss, theta, retain_graph=True)
        parts = {name: part.abs().sum() for name, part in guider.named(gradient).items()}
        return {name.partition(".")[0] for name, size in parts.items() if size > 0}

    by_value, by_policy = bent(judged.values.square().sum()), bent(log_probs(guider, judged, seen.actions).sum())
    assert {"observation", "encoder", "decoder", "policy"} <= by_policy
    if value_encoder == "own":
        assert by_value == {"value_encoder", "value"}
        assert not by_policy & by_value
    else:
        assert by_value == {"observation", "encoder", "value"}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_actions_looked_up_in_a_table_teach_what_each_by_itself_does(
    monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]
) -> None:
    """Two kinds of choosers, with tables of their own, that alternate: outputs and gradients are the same."""
    guider, theta = new_guider(AttentionNetwork, (_CHOOSER, ("picker", 4, spaces.Discrete(5), False), _CHOOSER), 2, 2)
    theta.requires_grad_(True)
    seen = record(guider, theta.detach(), 6, SEQUENCES)
    tokens = guider.action_tokens(guider.named(theta), seen.actions)
    assert tokens.rows.shape == (3 + 5 + 3, 8), "a table of all there are"
    choosers, pickers = seen.actions
    parameters = guider.named(theta)
    by_hand = [
        parameters[f"action.{g}.weight"].T[action] + parameters["actor.weight"][:, agent]
        for agent, (g, action) in enumerate([(0, choosers[:, :, 0]), (1, pickers[:, :, 0]), (0, choosers[:, :, 1])])
    ]
    torch.testing.assert_close(tokens.each, torch.stack(by_hand, dim=-2))

    def judged() -> tuple[Tensor, Tensor]:
        said = log_probs(guider, judge(guider, theta, seen, order), seen.actions)
        return said.detach(), torch.autograd.grad(said.square().sum(), theta)[0]

    said, gradient = judged()
    looked_up = guider.action_tokens
    monkeypatch.setattr(guider, "action_tokens", lambda *given: ActionTokens(looked_up(*given).each))
    each_said, each_gradient = judged()
    torch.testing.assert_close(said, each_said)
    torch.testing.assert_close(gradient, each_gradient)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="embedding_size: got 8, expected a multiple of attention_heads"):
        new_guider(RetentionNetwork, ALIKE, heads=3)
