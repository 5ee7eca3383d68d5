"""Sable: retention over the tokens of all agents and all steps of an episode, so that the guider remembers.

Per head, with S the state, κ the decay, and Q_t, K_t, V_t the queries, keys and values of step t's tokens as rows,

    S_t = κ S_{t−1} + K_tᵀ V_t,   S = 0 before an episode,
    encoder:  O_t = Q_t S_t,   decoder:  o_{t,m} = q_{t,m} (κ S_{t−1} + Σ_{n ≤ m} k_{t,n}ᵀ v_{t,n}).

One step after the other when acting; when learning, chunks of several steps at once: (Q Kᵀ ⊙ D) V within a chunk, with
D_{(t,m),(t',n)} = κ^{t−t'}, or 0 where the one does not see the other, and states between chunks.

Source: Mahjoub et al. 2025, "Sable: a Performant, Efficient and Scalable Sequence Model for MARL", section 3; Sun et
al. 2023, "Retentive Network: A Successor to Transformer for Large Language Models", section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from hmarl.trainer.guiders.guider import GuiderStructure, head_width
from hmarl.trainer.guiders.tokens import ActionTokens
from hmarl.trainer.networks.layers import Parameters, Shapes, dense, linear_shapes, norm, norm_shapes

# Tokens a chunk: more of them cost arithmetic within chunks, fewer cost states between them.
_CHUNK_TOKENS = 48
# 1 − κ of the first and of the last head (RetNet's), so that half of a step is forgotten after 22 and 355 steps.
_FASTEST, _SLOWEST = 1 / 32, 1 / 512
_LONGEST_PERIOD = 10_000.0

# (layer, query, key, value), each [B, m, E] -> [B, m, heads, E / heads].
_Retain = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Step:
    """What is carried through a step of acting.

    Attributes:
        states: [B, heads, d, d] per layer, already decayed where the layer has not yet seen this step.
        position: [B, 1, E] of the step in its episode.
        step: [B, 1] its number.
        last: [B, E] token of the step before's last action; None once it has been fed.
    """

    states: tuple[Tensor, ...]
    position: Tensor
    step: Tensor
    last: Tensor | None


class RetentionNetwork:
    """Encoder blocks: retention, gated perceptron. Decoder blocks: retention among actions, retention from
    representations to those, gated perceptron. Each with a residual path and layer normalisation after it.

    An environment's memory lies in one row: the states of all layers, the token of the last action, and the number of
    steps since the episode's begin.

    Differs from Sable: the first agent of a step is fed the last action of the step before with the start token (Sable
    never feeds it, and so never knows what the last agent did); the step's position is added once, where encoder and
    decoder begin; layer instead of root-mean-square normalisation; a head's output that is small is not blown up
    (ε = 1), for the sign of one query times one key would make a jump of it; decays are not scaled down.

    Args:
        structure: width E, number of blocks and of heads.
        agents: N.
    """

    def __init__(self, structure: GuiderStructure, agents: int) -> None:
        self.width, self.blocks, self.heads = structure.embedding_size, structure.blocks, structure.attention_heads
        self.agents, self.head_width = agents, head_width(structure)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """States, last token, step number."""
        return self._row(3 * self.blocks)

    @property
    def encoder_memory_shape(self) -> tuple[int, ...]:
        """The same, of fewer states; the last token is zero."""
        return self._row(self.blocks)

    def _row(self, layers: int) -> tuple[int, ...]:
        return (layers * self.width * self.head_width + self.width + 1,)

    @cached_property
    def shapes(self) -> Shapes:
        """Encoder and decoder."""
        shapes = norm_shapes("encoder.norm", self.width) | norm_shapes("decoder.norm", self.width)
        for block in range(self.blocks):
            for name, retentions in ((f"encoder.{block}", 1), (f"decoder.{block}", 2)):
                for r in range(retentions):
                    # Query, gate, key and value in one.
                    shapes[f"{name}.retention{r}.inputs.weight"] = (4 * self.width, self.width)
                    shapes[f"{name}.retention{r}.projection.weight"] = (self.width, self.width)
                    shapes |= norm_shapes(f"{name}.retention{r}.norm", self.width)
                shapes |= linear_shapes(f"{name}.hidden", self.width, 2 * self.width)
                shapes |= linear_shapes(f"{name}.output", self.width, self.width)
                shapes |= norm_shapes(f"{name}.norm", self.width)
        return shapes

    def gain(self, name: str) -> float:
        """Factor on the gain of the orthogonal initialisation of a weight."""
        return 1.0

    # --- acting: step by step ---------------------------------------------------------------------------------------

    def encode(self, parameters: Parameters, tokens: Tensor, memory: Tensor) -> tuple[Tensor, _Step]:
        """All agents' observations into the states, then out of them."""
        remembered, last, step = self._parts(memory)
        position = self._position(step).unsqueeze(-2)
        states = list((remembered * self._decays(memory.device).unsqueeze(-1).unsqueeze(-1)).unbind(1))
        x = norm(parameters, "encoder.norm", tokens) + position
        representation = self._encoder(parameters, x, self._recurrently(states))
        return representation, _Step(tuple(states), position, step, last)

    def decode(self, parameters: Parameters, query: Tensor, previous: Tensor, carried: _Step) -> tuple[Tensor, _Step]:
        """One action into the states, then its successor's output out of them."""
        fed = previous if carried.last is None else previous + carried.last
        states = list(carried.states)
        x = norm(parameters, "decoder.norm", functional.gelu(fed)).unsqueeze(-2) + carried.position
        output = self._decoder(parameters, x, query.unsqueeze(-2), self._recurrently(states))
        return output.squeeze(-2), replace(carried, states=tuple(states), last=None)

    def remembered(self, carried: _Step, last: Tensor) -> Tensor:
        """[B, M]."""
        return torch.cat([torch.stack(carried.states, dim=1).flatten(1), last, carried.step + 1.0], dim=1)

    def _recurrently(self, states: list[Tensor]) -> _Retain:
        """Retention of tokens that all see one another and ``states``, which are replaced by those after them."""

        def retain(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
            states[layer] = states[layer] + k.mT @ v
            return (q @ states[layer]).transpose(1, 2)

        return retain

    # --- learning: chunk by chunk -----------------------------------------------------------------------------------

    def past(self, memory: Tensor, begins: Tensor) -> _Past:
        """Chunks, and what is remembered before them."""
        states, last, step = self._parts(memory)
        position = self._position(_steps_in_episode(step, begins)).unsqueeze(-2)
        return _Past(_Chunks.of(begins, self.agents, self._decays(memory.device)), states, last, position, begins)

    def encode_steps(self, parameters: Parameters, tokens: Tensor, past: _Past) -> Tensor:
        """[C, n·s·N, E]: all steps at once, chunk by chunk."""
        seen = past.chunks.lay(norm(parameters, "encoder.norm", tokens) + past.position)
        return self._encoder(parameters, seen, self._by_chunks(past))

    def restored(self, encoded: Tensor, past: _Past) -> Tensor:
        """[L, C, N, E] of [C, n·s·N, E]."""
        return past.chunks.restore(encoded)

    def ordered(self, encoded: Tensor, order: Tensor) -> Tensor:
        """[C, n·s·N, E] with other agents first in each step."""
        return encoded.unflatten(1, (-1, self.agents)).index_select(-2, order).flatten(1, 2)

    def decode_steps(self, parameters: Parameters, encoded: Tensor, taken: ActionTokens, past: _Past) -> Tensor:
        """All steps at once, chunk by chunk."""
        fed = past.chunks.lay(self._fed(parameters, taken.each, past))
        return past.chunks.restore(self._decoder(parameters, fed, encoded, self._by_chunks(past)))

    def _by_chunks(self, past: _Past) -> _Retain:
        """Retention of tokens chunk by chunk."""

        def retain(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return past.chunks.retain(query, key, value, past.states[:, layer], causal=layer >= self.blocks)

        return retain

    @staticmethod
    def _fed(parameters: Parameters, taken: Tensor, past: _Past) -> Tensor:
        """[L, C, N, E] what the decoder is fed: of each step the start token and the actions but for the last, with
        which the next step begins unless it begins an episode.
        """
        before = torch.cat([past.last.unsqueeze(0), taken[:-1, :, -1]]).masked_fill(past.begins.unsqueeze(-1), 0.0)
        first = (parameters["start"] + before).unsqueeze(-2)
        fed = functional.gelu(torch.cat([first, taken[..., :-1, :]], dim=-2))
        return norm(parameters, "decoder.norm", fed) + past.position

    # --- both -------------------------------------------------------------------------------------------------------

    def _encoder(self, parameters: Parameters, x: Tensor, retain: _Retain) -> Tensor:
        for block in range(self.blocks):
            x = self._retention(parameters, f"encoder.{block}.retention0", x, x, retain, block)
            x = _perceptron(parameters, f"encoder.{block}", x)
        return x

    def _decoder(self, parameters: Parameters, x: Tensor, represented: Tensor, retain: _Retain) -> Tensor:
        for block in range(self.blocks):
            layer = self.blocks + 2 * block
            x = self._retention(parameters, f"decoder.{block}.retention0", x, x, retain, layer)
            x = self._retention(parameters, f"decoder.{block}.retention1", represented, x, retain, layer + 1)
            x = _perceptron(parameters, f"decoder.{block}", x)
        return x

    def _retention(
        self, parameters: Parameters, name: str, source: Tensor, x: Tensor, retain: _Retain, layer: int
    ) -> Tensor:
        """[B, m, E]: ``source`` [B, m, E] looks at ``x`` [B, m, E]."""
        weight = parameters[f"{name}.inputs.weight"]
        if source is x:
            query, gate, key, value = functional.linear(x, weight).chunk(4, dim=-1)
        else:
            mine, theirs = weight.chunk(2)
            query, gate = functional.linear(source, mine).chunk(2, dim=-1)
            key, value = functional.linear(x, theirs).chunk(2, dim=-1)
        seen = functional.layer_norm(retain(layer, query, key, value), (self.head_width,), eps=1.0).flatten(-2)
        gated = functional.linear(functional.silu(gate) * seen, parameters[f"{name}.projection.weight"])
        return norm(parameters, f"{name}.norm", source + gated)

    def _parts(self, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, layers, heads, d, d] states, [B, E] token of the last action, [B, 1] number of the step."""
        states, last, step = memory.split([memory.shape[1] - self.width - 1, self.width, 1], dim=1)
        return states.unflatten(1, (-1, self.heads, self.head_width, self.head_width)), last, step

    def _decays(self, device: torch.device) -> Tensor:
        """[heads] κ, as RetNet's: 1 − κ falls geometrically."""
        return 1.0 - torch.logspace(math.log2(_FASTEST), math.log2(_SLOWEST), self.heads, 2.0, device=device)

    def _position(self, step: Tensor) -> Tensor:
        """[..., E] of step numbers [..., 1]: sines and cosines of geometrically falling frequency."""
        half = torch.arange((self.width + 1) // 2, device=step.device)
        phase = step * _LONGEST_PERIOD ** (-2.0 * half / self.width)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)[..., : self.width]


@dataclass(frozen=True)
class _Chunks:
    """How C sequences of L steps of N agents lie in n chunks of s steps; the last may be filled up with zeros.

    Attributes:
        agents: N.
        steps: L.
        full: [C·n·heads, s·N, s·N] D where the agents of a step see one another.
        causal: D where they see those before.
        entering: [C·n·heads, s·N, 1] decay of the state before the chunk.
        leaving: [C·n·heads, s·N, 1] decay until the chunk's end.
        between: [C, heads, n, n] decay of the state before the first chunk, and of what each chunk but the last adds,
            until each chunk's begin.
    """

    agents: int
    steps: int
    full: Tensor
    causal: Tensor
    entering: Tensor
    leaving: Tensor
    between: Tensor

    @classmethod
    def of(cls, begins: Tensor, agents: int, decays: Tensor) -> _Chunks:
        """From begins [L, C] and decays [heads]."""
        steps = begins.shape[0]
        length = math.ceil(steps / math.ceil(steps * agents / _CHUNK_TOKENS))
        count = math.ceil(steps / length)
        # Number of the episode before the first step and at every step; fillers may belong to any.
        episode = functional.pad(begins.T.long().cumsum(1), (1, count * length - steps))
        episodes = episode.unfold(1, length + 1, length)  # [C, n, 1 + s]: before a chunk and at its steps
        decay = _decay(episodes, decays)
        per_token = decay[..., 1:, :].repeat_interleave(agents, -2).flatten(0, 2)
        full = per_token[..., 1:].repeat_interleave(agents, -1)
        leaving = decay[..., -1, 1:].repeat_interleave(agents, -1).flatten(0, 2).unsqueeze(-1)
        return cls(
            agents,
            steps,
            full=full,
            causal=full.tril(),
            entering=per_token[..., :1],
            leaving=leaving,
            between=_decay(episodes[..., 0], decays**length),
        )

    def lay(self, x: Tensor) -> Tensor:
        """[L, C, N, E] -> [C, n·s·N, E]."""
        filled = self.between.shape[-1] * self.full.shape[-1] // self.agents
        return functional.pad(x.transpose(0, 1), (0, 0, 0, 0, 0, filled - self.steps)).flatten(1, 2)

    def restore(self, x: Tensor) -> Tensor:
        """[C, n·s·N, E] -> [L, C, N, E]."""
        return x.unflatten(1, (-1, self.agents))[:, : self.steps].transpose(0, 1)

    def retain(self, query: Tensor, key: Tensor, value: Tensor, state: Tensor, *, causal: bool) -> Tensor:
        """Retention of tokens [C, n·s·N, E] after a state [C, heads, d, d] -> [C, n·s·N, heads, d]."""
        sequences, heads, count, _ = self.between.shape

        def split(x: Tensor) -> Tensor:
            return x.unflatten(1, (count, -1)).unflatten(-1, (heads, -1)).transpose(2, 3).flatten(0, 2)

        q, k, v = split(query), split(key), split(value)
        added = (k.mT @ (v * self.leaving)).view(sequences, count, heads, -1)
        sources = torch.cat([state.flatten(2).unsqueeze(1), added[:, :-1]], dim=1).transpose(1, 2)
        states = (self.between @ sources).transpose(1, 2).reshape(len(q), q.shape[-1], -1)
        scores = (q @ k.mT).mul_(self.causal if causal else self.full)
        seen = torch.baddbmm((q @ states).mul_(self.entering), scores, v)
        return seen.view(sequences, count, heads, -1, q.shape[-1]).transpose(2, 3).flatten(1, 2)


@dataclass(frozen=True)
class _Past:
    """What C sequences of L steps share.

    Attributes:
        chunks: in which they lie.
        states: [C, layers, heads, d, d] before the first step.
        last: [C, E] token of the last action before it.
        position: [L, C, 1, E] of the steps in their episodes.
        begins: [L, C] bool, where a step begins an episode.
    """

    chunks: _Chunks
    states: Tensor
    last: Tensor
    position: Tensor
    begins: Tensor


def _decay(episodes: Tensor, decays: Tensor) -> Tensor:
    """[..., heads, m, m] κ^{i−j} from one place in time j to a later one i of the same episode, else 0.

    Args:
        episodes: [..., m] which episode each place in time belongs to.
        decays: [heads] κ.
    """
    places = torch.arange(episodes.shape[-1], device=episodes.device)
    age = places.unsqueeze(-1) - places
    seen = (episodes.unsqueeze(-1) == episodes.unsqueeze(-2)) & (age >= 0)
    return seen.unsqueeze(-3) * decays.view(-1, 1, 1) ** age.clamp(min=0)


def _steps_in_episode(step: Tensor, begins: Tensor) -> Tensor:
    """[L, C, 1] number of every step in its episode, the first of a sequence being ``step`` [C, 1] if none begins."""
    number = torch.arange(len(begins), device=begins.device).unsqueeze(-1)
    begun = torch.where(begins, number, -1).cummax(0).values
    return torch.where(begun < 0, number + step.T, number - begun).unsqueeze(-1)


def _perceptron(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    """Two layers, the first gated, on a residual path (Shazeer 2020, SwiGLU)."""
    gate, hidden = dense(parameters, f"{name}.hidden", x).chunk(2, dim=-1)
    output = dense(parameters, f"{name}.output", functional.silu(gate) * hidden)
    return norm(parameters, f"{name}.norm", x + output)
