"""MAT: an attention encoder over all agents' observations, an attention decoder over the actions taken so far.

Source: Wen et al. 2022, "Multi-Agent Reinforcement Learning is a Sequence Modeling Problem", section 4.1 and Fig. 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from hmarl.trainer.guiders.guider import GuiderStructure, head_width
from hmarl.trainer.guiders.tokens import ActionTokens
from hmarl.trainer.networks.layers import Parameters, Shapes, dense, linear_shapes, norm, norm_shapes


@dataclass(frozen=True)
class _Seen:
    """Keys and values of the tokens before, per attention layer of the decoder, [B, heads, m, E / heads]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    memory: Tensor


class AttentionNetwork:
    """Encoder blocks: attention, perceptron. Decoder blocks: masked attention among actions, masked attention from
    representations to those, perceptron. Each with a residual path and layer normalisation after it.

    Differs: identities are told by one-hots instead of by position, so that the agents may decide in any order.

    Args:
        structure: width E, number of blocks and of heads.
        agents: N.
    """

    def __init__(self, structure: GuiderStructure, agents: int) -> None:
        self.width, self.blocks, self.head_width = structure.embedding_size, structure.blocks, head_width(structure)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """Nothing is remembered."""
        return (0,)

    @property
    def encoder_memory_shape(self) -> tuple[int, ...]:
        """Nothing is remembered."""
        return (0,)

    @cached_property
    def shapes(self) -> Shapes:
        """Encoder and decoder."""
        shapes = norm_shapes("encoder.norm", self.width) | norm_shapes("decoder.norm", self.width)
        for block in range(self.blocks):
            for name, attentions in ((f"encoder.{block}", 1), (f"decoder.{block}", 2)):
                for a in range(attentions):
                    # Query, key and value in one. Softmax does not see a key's bias, and a value's would only add to
                    # the projection's.
                    shapes[f"{name}.attention{a}.inputs.weight"] = (3 * self.width, self.width)
                    shapes[f"{name}.attention{a}.query.bias"] = (self.width,)
                    shapes |= linear_shapes(f"{name}.attention{a}.projection", self.width, self.width)
                    shapes |= norm_shapes(f"{name}.attention{a}.norm", self.width)
                shapes |= linear_shapes(f"{name}.hidden", self.width, self.width)
                shapes |= linear_shapes(f"{name}.output", self.width, self.width)
                shapes |= norm_shapes(f"{name}.norm", self.width)
        return shapes

    def gain(self, name: str) -> float:
        """Factor on the gain of the orthogonal initialisation of a weight."""
        # Three orthogonal matrices one below the other have columns of this length.
        return math.sqrt(3.0) if name.endswith("inputs.weight") else 1.0

    def encode(self, parameters: Parameters, tokens: Tensor, memory: Tensor) -> tuple[Tensor, _Seen]:
        """Attention among all agents' observations."""
        return self._encoder(parameters, tokens), _Seen((), (), memory)

    def decode(self, parameters: Parameters, query: Tensor, previous: Tensor, carried: _Seen) -> tuple[Tensor, _Seen]:
        """The decoder's newest row; keys and values of the rows before are kept."""
        keys, values = [], []
        x, represented = norm(parameters, "decoder.norm", functional.gelu(previous)).unsqueeze(-2), query.unsqueeze(-2)
        for block in range(self.blocks):
            for a in range(2):
                name, layer = f"decoder.{block}.attention{a}", 2 * block + a
                source = represented if a else x
                asked, key, value = self._inputs(parameters, name, source, x)
                if carried.keys:
                    key = torch.cat([carried.keys[layer], key], dim=-2)
                    value = torch.cat([carried.values[layer], value], dim=-2)
                keys.append(key)
                values.append(value)
                x = self._attend(parameters, name, source, (asked, key, value), causal=False)
            x = _perceptron(parameters, f"decoder.{block}", x)
        return x.squeeze(-2), _Seen(tuple(keys), tuple(values), carried.memory)

    def remembered(self, carried: _Seen, last: Tensor) -> Tensor:
        """[B, 0]."""
        return carried.memory

    def past(self, memory: Tensor, begins: Tensor) -> torch.Size:
        """Steps know of no others: how many there are."""
        return begins.shape

    def encode_steps(self, parameters: Parameters, tokens: Tensor, past: torch.Size) -> Tensor:
        """[L·C, N, E]: steps in one dimension, for the attention is far faster in four dimensions than in five."""
        return self._encoder(parameters, tokens.flatten(0, 1))

    def restored(self, encoded: Tensor, past: torch.Size) -> Tensor:
        """[L, C, N, E] of [L·C, N, E]."""
        return encoded.unflatten(0, past)

    def ordered(self, encoded: Tensor, order: Tensor) -> Tensor:
        """[L·C, N, E] with other agents first."""
        return encoded.index_select(-2, order)

    def decode_steps(self, parameters: Parameters, encoded: Tensor, taken: ActionTokens, past: torch.Size) -> Tensor:
        """All steps and all agents at once, the attention masked."""
        name = "decoder.0.attention0"
        fed = taken.before(parameters["start"]).map(
            lambda tokens: norm(parameters, "decoder.norm", functional.gelu(tokens))
        )
        # What the first attention asks, and is asked for, follows from the tokens alone: it is mapped as well.
        inputs = fed.map(lambda tokens: self._own_inputs(parameters, name, tokens))
        x = self._attend(parameters, name, fed.each.flatten(0, 1), self._heads(inputs.each.flatten(0, 1)), causal=True)
        for block in range(self.blocks):
            if block:
                x = self._attention(parameters, f"decoder.{block}.attention0", x, x, causal=True)
            x = self._attention(parameters, f"decoder.{block}.attention1", encoded, x, causal=True)
            x = _perceptron(parameters, f"decoder.{block}", x)
        return x.unflatten(0, past)

    def _encoder(self, parameters: Parameters, tokens: Tensor) -> Tensor:
        x = norm(parameters, "encoder.norm", tokens)
        for block in range(self.blocks):
            x = self._attention(parameters, f"encoder.{block}.attention0", x, x, causal=False)
            x = _perceptron(parameters, f"encoder.{block}", x)
        return x

    def _attention(self, parameters: Parameters, name: str, source: Tensor, x: Tensor, *, causal: bool) -> Tensor:
        """[M, N, E]: ``source`` [M, N, E] looks at ``x`` [M, N, E]."""
        return self._attend(parameters, name, source, self._inputs(parameters, name, source, x), causal=causal)

    def _inputs(self, parameters: Parameters, name: str, source: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of ``source`` [M, m, E], keys and values of ``x`` [M, m, E]: [M, heads, m, E / heads]."""
        if source is x:
            return self._heads(self._own_inputs(parameters, name, x))
        mine, theirs = parameters[f"{name}.inputs.weight"].split([self.width, 2 * self.width])
        query = functional.linear(source, mine, parameters[f"{name}.query.bias"])
        key, value = functional.linear(x, theirs).chunk(2, dim=-1)
        return self._split(query), self._split(key), self._split(value)

    def _own_inputs(self, parameters: Parameters, name: str, x: Tensor) -> Tensor:
        """[..., 3 E] queries, keys and values of ``x`` [..., E]."""
        bias = functional.pad(parameters[f"{name}.query.bias"], (0, 2 * self.width))
        return functional.linear(x, parameters[f"{name}.inputs.weight"], bias)

    def _heads(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [M, heads, m, E / heads] of [M, m, 3 E]."""
        query, key, value = inputs.chunk(3, dim=-1)
        return self._split(query), self._split(key), self._split(value)

    def _attend(
        self, parameters: Parameters, name: str, source: Tensor, inputs: tuple[Tensor, Tensor, Tensor], *, causal: bool
    ) -> Tensor:
        """[M, m, E] what queries, keys and values [M, heads, ..., E / heads] add to ``source`` [M, m, E]."""
        seen = functional.scaled_dot_product_attention(*inputs, is_causal=causal)
        seen = dense(parameters, f"{name}.projection", seen.transpose(-2, -3).flatten(-2))
        return norm(parameters, f"{name}.norm", source + seen)

    def _split(self, x: Tensor) -> Tensor:
        """[M, m, E] -> [M, heads, m, E / heads]."""
        return x.unflatten(-1, (-1, self.head_width)).transpose(-2, -3)


def _perceptron(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    """Two layers on a residual path."""
    hidden = dense(parameters, f"{name}.output", functional.gelu(dense(parameters, f"{name}.hidden", x)))
    return norm(parameters, f"{name}.norm", x + hidden)
