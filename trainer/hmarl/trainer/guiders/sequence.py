"""What all autoregressive guiders have in common: a team as a row of tokens, actions drawn one agent after the other.

    μ(a | o) = Π_m μ(a^{i_m} | o^{1:N}, a^{i_{1:m−1}}),   i_1, …, i_N any order of the agents

A guider sees all agents' observations and the actions of those before. Who an agent is it knows from a one-hot beside
the observation and beside the action alone, never from the place in the order: permuting agents, one-hots and order
together permutes the outputs.

Groups of agents with equal spaces have input and output layers of their own, and all that lies between is shared.

Source: Wen et al. 2022, "Multi-Agent Reinforcement Learning is a Sequence Modeling Problem" (MAT), section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional

from hmarl.sdk.spaces import AgentGroup
from hmarl.trainer.guiders.guider import Acted, GuiderStructure, Judged, TeamView
from hmarl.trainer.guiders.tokens import ActionTokens
from hmarl.trainer.networks.distributions import ActionHead, Distribution
from hmarl.trainer.networks.flat import FlatNetwork
from hmarl.trainer.networks.indices import on_device
from hmarl.trainer.networks.layers import Parameters, Shapes, dense, linear_shapes, norm, norm_shapes
from hmarl.trainer.networks.policies import GroupPolicy

# As the authors of MAT and Sable have it, what attention, retention, perceptrons and V put out.
_SMALL_GAIN = 0.01
_SMALL = (".inputs.weight", ".projection.weight", ".output.weight", "value.weight")
# What of a guider encodes; V's own encoder has the same once more, under names that begin as follows.
_ENCODING, _OF_VALUE = ("observation.", "encoder."), "value_encoder."


class TokenNetwork(Protocol):
    """What stands between the tokens and the output layers, as a part of a guider.

    Of the guider's parameters, which all methods are given, it reads those of ``shapes`` and ``start`` [E], the token
    before the first action.
    """

    @property
    def shapes(self) -> Shapes:
        """Its own parameters."""
        ...

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """What is remembered of an environment from step to step; (0,) without memory."""
        ...

    @property
    def encoder_memory_shape(self) -> tuple[int, ...]:
        """The same of a network whose ``encode`` alone is used, with the parameters ``encoder…``."""
        ...

    def gain(self, name: str) -> float:
        """Factor on the gain of the orthogonal initialisation of a weight."""
        ...

    def encode(self, parameters: Parameters, tokens: Tensor, memory: Tensor) -> tuple[Tensor, Any]:
        """All agents' representations at one step.

        Args:
            parameters: named.
            tokens: [B, N, E] of all agents' observations.
            memory: [B, *memory_shape] before the step.

        Returns:
            [B, N, E], and what ``decode`` starts from.
        """
        ...

    def decode(self, parameters: Parameters, query: Tensor, previous: Tensor, carried: Any) -> tuple[Tensor, Any]:
        """The next agent's output at one step.

        Args:
            parameters: named.
            query: [B, E] the agent's representation.
            previous: [B, E] token of the action before, or the start token.
            carried: from ``encode`` or from ``decode`` for the agent before.

        Returns:
            [B, E], and what the next agent's call takes.
        """
        ...

    def remembered(self, carried: Any, last: Tensor) -> Tensor:
        """[B, *memory_shape] after the step, from what the last ``decode`` left and the last action's token [B, E]."""
        ...

    def past(self, memory: Tensor, begins: Tensor) -> Any:
        """What many steps' encoding and decoding share: what was remembered before them, and how far back each sees.

        Args:
            memory: [C, *memory_shape] before the first step.
            begins: [L, C] bool, True where a step begins an episode: nothing before is remembered there.
        """
        ...

    def encode_steps(self, parameters: Parameters, tokens: Tensor, past: Any) -> Tensor:
        """``encode`` of many steps at once; agents in any order, which is of no matter.

        Args:
            parameters: named.
            tokens: [L, C, N, E] of all agents' observations.
            past: of these steps.

        Returns:
            Representations, laid out as ``decode_steps`` wants them.
        """
        ...

    def restored(self, encoded: Tensor, past: Any) -> Tensor:
        """[L, C, N, E] of what ``encode_steps`` returned."""
        ...

    def ordered(self, encoded: Tensor, order: Tensor) -> Tensor:
        """What ``encode_steps`` would have returned, had the agents been in ``order`` [N] int64."""
        ...

    def decode_steps(self, parameters: Parameters, encoded: Tensor, taken: ActionTokens, past: Any) -> Tensor:
        """``decode`` of many steps at once, their actions known; agents always in decoding order.

        Args:
            parameters: named.
            encoded: of ``encode_steps``.
            taken: of all agents' actions.
            past: of these steps.

        Returns:
            [L, C, N, E] outputs.
        """
        ...


class SequenceGuider(FlatNetwork):
    """An autoregressive policy of a whole team and its value.

    Args:
        network: builds what stands between tokens and output layers, for a structure and N agents.
        groups: of agents with equal spaces.
        heads: how each group acts.
        structure: width E, number of blocks and of heads.
        context_size, instruction_size: C and K of the views.

    Raises:
        ValueError: the heads do not divide the width.
    """

    backtracks: ClassVar[bool] = False

    def __init__(
        self,
        network: Callable[[GuiderStructure, int], TokenNetwork],
        groups: Sequence[AgentGroup],
        heads: Sequence[ActionHead],
        structure: GuiderStructure,
        context_size: int = 0,
        instruction_size: int = 0,
    ) -> None:
        self.groups, self.heads, self.width = groups, heads, structure.embedding_size
        self.context_size, self.instruction_size = context_size, instruction_size
        self.grouped = [agent for group in groups for agent in group.agents]
        self.own_values, self.small_gains = structure.credit == "own", structure.initial_gains == "small"
        self.team_value = self.own_values and structure.team_value
        self.own_encoder = structure.value_encoder == "own"
        self.position = {agent: (g, m) for g, group in enumerate(groups) for m, agent in enumerate(group.agents)}
        self.agents = len(self.position)
        self.network = network(structure, self.agents)

    # --- structure --------------------------------------------------------------------------------------------------

    @cached_property
    def shapes(self) -> Shapes:
        """The layers of each group, those of the network between, and the value's."""
        shapes: Shapes = {"start": (self.width,), "actor.weight": (self.width, self.agents)}
        for g, (group, head) in enumerate(zip(self.groups, self.heads, strict=True)):
            seen = group.example.observation_size + self.context_size + self.agents
            shapes |= linear_shapes(f"observation.{g}", seen, self.width)
            shapes[f"action.{g}.weight"] = (self.width, head.output_size)
        shapes |= self.network.shapes
        shapes |= linear_shapes("policy_hidden", self.width + self.instruction_size, self.width)
        shapes |= norm_shapes("policy_norm", self.width)
        for g, head in enumerate(self.heads):
            shapes |= linear_shapes(f"policy.{g}", self.width, head.output_size)
            shapes[f"extra.{g}"] = (head.extra_size,)
        if self.own_encoder:
            shapes |= {_OF_VALUE + name: shape for name, shape in shapes.items() if name.startswith(_ENCODING)}
        if self.small_gains:
            shapes |= norm_shapes("value.norm", self.width)
        shapes |= linear_shapes("value.hidden", self.width, self.width)
        return shapes | linear_shapes("value", self.width, 2 if self.team_value else 1)

    def _gain(self, name: str) -> float:
        if name.startswith("policy."):
            return 0.01
        gain = 1.0
        if self.small_gains:
            gain = _SMALL_GAIN if name.endswith(_SMALL) else math.sqrt(2.0)
        return gain * self.network.gain(name)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """The network's, and beside it what V's own encoder remembers."""
        (policy,), (value,) = self.network.memory_shape, self.network.encoder_memory_shape
        return (policy + value * self.own_encoder,)

    def initialise(self, generator: torch.Generator) -> Tensor:
        """Fresh parameters [P]."""
        theta = super().initialise(generator)
        named = self.named(theta)
        for g, head in enumerate(self.heads):
            named[f"extra.{g}"].copy_(head.initialise())
        return theta

    # --- acting -----------------------------------------------------------------------------------------------------

    def act(
        self,
        parameters: Parameters,
        view: TeamView,
        perturbations: Sequence[Tensor] | None,
        order: Sequence[int],
        memory: Tensor,
        taken: Sequence[Tensor] | None = None,
    ) -> Acted:
        """Draw all agents' actions, one agent after the other, or follow what was done instead."""
        memory, of_value = self._memories(memory)
        representation, carried = self.network.encode(parameters, self.observation_tokens(parameters, view), memory)
        batch = len(representation)
        previous = parameters["start"].expand(batch, -1)
        actions: dict[int, Tensor] = {}
        log_prob = torch.zeros(batch, self.agents, device=representation.device)
        for agent in order:
            g, member = self.position[agent]
            output, carried = self.network.decode(parameters, representation[:, agent], previous, carried)
            mask = view.action_masks[g]
            output = self._finish(parameters, output, view.instruction)
            distribution = self._distribution(parameters, g, output, None if mask is None else mask[:, member])
            if taken is not None:
                chosen = taken[g][:, member]
            else:
                chosen = distribution.mode() if perturbations is None else distribution.select(perturbations[g][member])
            actions[agent], log_prob[:, agent] = chosen, distribution.log_prob(chosen)
            previous = self._action_token(parameters, g, chosen) + parameters["actor.weight"][:, agent]
        grouped = tuple(torch.stack([actions[agent] for agent in group.agents], dim=1) for group in self.groups)
        remembered = self.network.remembered(carried, previous)
        if self.own_encoder:
            representation, valued = self._encoded_for_value(parameters, view, of_value)
            remembered = torch.cat([remembered, valued], dim=1)
        return Acted(grouped, log_prob, self._value(parameters, representation), remembered)

    def value(self, parameters: Parameters, view: TeamView, memory: Tensor) -> Tensor:
        """[B] or [B, N] normalised value of what is seen, [B, ...], after ``memory``."""
        memory, of_value = self._memories(memory)
        if self.own_encoder:
            return self._value(parameters, self._encoded_for_value(parameters, view, of_value)[0])
        tokens = self.observation_tokens(parameters, view)
        return self._value(parameters, self.network.encode(parameters, tokens, memory)[0])

    def _memories(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """What policy and V's own encoder, if there is one, remember: [B, *memory_shape] of each."""
        (policy,) = self.network.memory_shape
        return memory[:, :policy], memory[:, policy:]

    def _encoded_for_value(self, parameters: Parameters, view: TeamView, memory: Tensor) -> tuple[Tensor, Tensor]:
        """By V's own encoder: representations [B, N, E], and what it remembers after the step."""
        own = _own_encoder(parameters)
        encoded, carried = self.network.encode(own, self.observation_tokens(own, view), memory)
        return encoded, self.network.remembered(carried, torch.zeros_like(encoded[:, 0]))

    # --- learning ---------------------------------------------------------------------------------------------------

    def judge(
        self,
        parameters: Parameters,
        view: TeamView,
        actions: Sequence[Tensor],
        order: Tensor,
        memory: Tensor,
        begins: Tensor,
    ) -> Judged:
        """Policies and values at recorded steps, all at once."""
        memory, of_value = self._memories(memory)
        tokens = self.observation_tokens(parameters, view).index_select(-2, order)
        taken = self.action_tokens(parameters, actions).ordered(order)
        past = self.network.past(memory, begins)
        encoded = self.network.encode_steps(parameters, tokens, past)
        outputs = self.network.decode_steps(parameters, encoded, taken, past)
        representations = self.network.restored(encoded, past)
        values = self._values(parameters, view, representations, torch.argsort(order), of_value, begins)
        return Judged(self._decided(parameters, view, outputs, order), values)

    def judge_orders(
        self,
        parameters: Parameters,
        view: TeamView,
        actions: Sequence[Tensor],
        orders: Sequence[Tensor],
        memory: Tensor,
        begins: Tensor,
    ) -> Iterator[Judged]:
        """``judge`` in each of several orders; the encoder, to which no order matters, once for all of them."""
        memory, of_value = self._memories(memory)
        past = self.network.past(memory, begins)
        encoded = self.network.encode_steps(parameters, self.observation_tokens(parameters, view), past)
        representations, natural = self.network.restored(encoded, past), torch.arange(self.agents, device=begins.device)
        values = self._values(parameters, view, representations, natural, of_value, begins)
        taken = self.action_tokens(parameters, actions)
        for order in orders:
            encoded_now = self.network.ordered(encoded, order)
            outputs = self.network.decode_steps(parameters, encoded_now, taken.ordered(order), past)
            yield Judged(self._decided(parameters, view, outputs, order), values)

    def _values(
        self,
        parameters: Parameters,
        view: TeamView,
        representations: Tensor,
        places: Tensor,
        memory: Tensor,
        begins: Tensor,
    ) -> Tensor:
        """[L, C], or [L, C, N] group by group, at recorded steps.

        Args:
            parameters: named.
            view: [L, C, ...].
            representations: [L, C, N, E] by the policy's encoder.
            places: [N] int64, where every agent stands in them.
            memory: [C, ...] of V's own encoder before the first step; with one, the representations are not used.
            begins: [L, C] bool.
        """
        if self.own_encoder:
            own, past = _own_encoder(parameters), self.network.past(memory, begins)
            encoded = self.network.encode_steps(own, self.observation_tokens(own, view), past)
            representations, places = self.network.restored(encoded, past), places.sort().values
        values = self._value(parameters, representations)
        return values.index_select(-1, places[on_device(self.grouped, places.device)]) if self.own_values else values

    def _decided(self, parameters: Parameters, view: TeamView, outputs: Tensor, order: Tensor) -> list[Distribution]:
        """Per group [N_group, L·C] of the decoder's outputs [L, C, N, E] in an order."""
        instruction = None if view.instruction is None else view.instruction.unsqueeze(-2)
        finished = self._finish(parameters, outputs, instruction).flatten(0, 1).transpose(0, 1)  # [N, L·C, E]
        places, distributions = torch.argsort(order), []
        for g, (group, mask) in enumerate(zip(self.groups, view.action_masks, strict=True)):
            theirs = finished.index_select(0, places[on_device(group.agents, places.device)])
            legal = None if mask is None else mask.flatten(0, 1).transpose(0, 1)
            distributions.append(self._distribution(parameters, g, theirs, legal))
        return distributions

    def backtrack(self, theta: Tensor, policies: Sequence[GroupPolicy]) -> None:
        """Not by a row of tokens.

        Raises:
            TypeError: always; it is not built as local policies are.
        """
        raise TypeError("a guider that takes a team as a row of tokens is not built as the local policies are")

    # --- tokens, policies and values --------------------------------------------------------------------------------

    def observation_tokens(self, parameters: Parameters, view: TeamView) -> Tensor:
        """[..., N, E] of all agents' observations, contexts and identities, in natural order."""
        tokens = []
        for g, (group, features) in enumerate(zip(self.groups, view.features, strict=True)):
            weight = parameters[f"observation.{g}.weight"]
            seen, context, identity = weight.split([features.shape[-1], self.context_size, self.agents], dim=1)
            agents = on_device(group.agents, features.device)
            token = functional.linear(features, seen, parameters[f"observation.{g}.bias"]) + identity.T[agents]
            if view.context is not None:
                token = token + functional.linear(view.context, context).unsqueeze(-2)
            tokens.append(token)
        return functional.gelu(self._natural(tokens))

    def action_tokens(self, parameters: Parameters, actions: Sequence[Tensor]) -> ActionTokens:
        """Of all agents' raw actions [L, C, N_group, ...] and identities, in natural order."""
        identities = parameters["actor.weight"].T
        if not all(isinstance(head.space, spaces.Discrete) for head in self.heads):
            tokens = [self._action_token(parameters, g, action) for g, action in enumerate(actions)]
            return ActionTokens(self._natural(tokens) + identities)
        groups = [self.position[agent][0] for agent in range(self.agents)]
        tables = [parameters[f"action.{g}.weight"].T + identity for g, identity in zip(groups, identities, strict=True)]
        sizes = on_device([0, *map(len, tables[:-1])], identities.device)
        chosen = self._natural([action.unsqueeze(-1) for action in actions]).squeeze(-1)
        return ActionTokens(torch.cat(tables), chosen + sizes.cumsum(0))

    def _action_token(self, parameters: Parameters, group: int, action: Tensor) -> Tensor:
        """[..., E] of raw actions of a group."""
        weight, space = parameters[f"action.{group}.weight"], self.heads[group].space
        if isinstance(space, spaces.Discrete):
            return functional.embedding(action, weight.T)
        if isinstance(space, spaces.MultiDiscrete):
            first = on_device([0, *space.nvec[:-1].tolist()], action.device).cumsum(0)
            return functional.embedding(action + first, weight.T).sum(-2)
        return functional.linear(action, weight)

    def _natural(self, per_group: Sequence[Tensor]) -> Tensor:
        """[..., N, E] from [..., N_group, E] of every group."""
        if len(per_group) == 1:
            return per_group[0]
        joined = torch.cat(list(per_group), dim=-2)
        natural = on_device([self.grouped.index(agent) for agent in range(self.agents)], joined.device)
        return joined.index_select(-2, natural)

    def _finish(self, parameters: Parameters, output: Tensor, instruction: Tensor | None) -> Tensor:
        """[..., E] of outputs [..., E], given what was instructed [..., K]."""
        if instruction is not None:
            output = torch.cat([output, instruction.expand(*output.shape[:-1], -1)], dim=-1)
        hidden = functional.gelu(dense(parameters, "policy_hidden", output))
        return norm(parameters, "policy_norm", hidden)

    def _distribution(self, parameters: Parameters, group: int, output: Tensor, mask: Tensor | None) -> Distribution:
        head = self.heads[group]
        return head.distribution(dense(parameters, f"policy.{group}", output), parameters[f"extra.{group}"], mask)

    def _value(self, parameters: Parameters, representation: Tensor) -> Tensor:
        """[..., N] of representations [..., N, E], each agent's own; or [...], the mean of what all of them say.

        Own ones with a part that is the team's: Vⁱ = 1/N Σⱼ v(xⱼ) + w(xᵢ).
        """
        hidden = functional.gelu(dense(parameters, "value.hidden", representation))
        hidden = norm(parameters, "value.norm", hidden) if self.small_gains else hidden
        values = dense(parameters, "value", hidden)
        if self.team_value:
            return values[..., 0].mean(-1, keepdim=True) + values[..., 1]
        return values.squeeze(-1) if self.own_values else values.squeeze(-1).mean(-1)


def _own_encoder(parameters: Parameters) -> Parameters:
    """The parameters of V's own encoder, called as the policy's are."""
    return {name.removeprefix(_OF_VALUE): each for name, each in parameters.items() if name.startswith(_OF_VALUE)}
