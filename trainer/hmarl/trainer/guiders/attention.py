"""MAT: an attention encoder over all agents' observations, an attention decoder over the actions taken so far.

Source: Wen et al. 2022, "Multi-Agent Reinforcement Learning is a Sequence Modeling Problem", section 4.1 and Fig. 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hmarl.trainer.guiders.guider import Parameters
from hmarl.trainer.guiders.sequence import SequenceGuider, Shapes, dense, linear_shapes, norm, norm_shapes

_PROJECTIONS = ("query", "key", "value", "projection")


@dataclass(frozen=True)
class _Seen:
    """Keys and values of the tokens before, per attention layer of the decoder, [B, heads, m, E / heads]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    memory: Tensor


class AttentionGuider(SequenceGuider):
    """Encoder blocks: attention, perceptron. Decoder blocks: masked attention among actions, masked attention from
    representations to those, perceptron. Each with a residual path and layer normalisation after it.

    Differs: identities are told by one-hots instead of by position, so that the agents may decide in any order.
    """

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """Nothing is remembered."""
        return (0,)

    def network_shapes(self) -> Shapes:
        """Encoder and decoder."""
        shapes = norm_shapes("encoder.norm", self.width) | norm_shapes("decoder.norm", self.width)
        for block in range(self.blocks):
            for name, attentions in ((f"encoder.{block}", 1), (f"decoder.{block}", 2)):
                for a in range(attentions):
                    for projection in _PROJECTIONS:
                        shapes |= linear_shapes(f"{name}.attention{a}.{projection}", self.width, self.width)
                    shapes |= norm_shapes(f"{name}.attention{a}.norm", self.width)
                shapes |= linear_shapes(f"{name}.hidden", self.width, self.width)
                shapes |= linear_shapes(f"{name}.output", self.width, self.width)
                shapes |= norm_shapes(f"{name}.norm", self.width)
        return shapes

    def encode(self, parameters: Parameters, tokens: Tensor, memory: Tensor) -> tuple[Tensor, _Seen]:
        """Attention among all agents' observations."""
        return self._encoder(parameters, tokens), _Seen((), (), memory)

    def decode(self, parameters: Parameters, query: Tensor, previous: Tensor, carried: _Seen) -> tuple[Tensor, _Seen]:
        """The decoder's newest row; keys and values of the rows before are kept."""
        keys, values = [], []
        x, represented = norm(parameters, "decoder.norm", functional.gelu(previous)).unsqueeze(-2), query.unsqueeze(-2)
        for block in range(self.blocks):
            for a, source in ((0, x), (1, represented)):
                name, layer = f"decoder.{block}.attention{a}", 2 * block + a
                key, value = self._keys_and_values(parameters, name, x)
                if carried.keys:
                    key = torch.cat([carried.keys[layer], key], dim=-2)
                    value = torch.cat([carried.values[layer], value], dim=-2)
                keys.append(key)
                values.append(value)
                x = self._attend(parameters, name, source, key, value, causal=False)
            x = _perceptron(parameters, f"decoder.{block}", x)
        return x.squeeze(-2), _Seen(tuple(keys), tuple(values), carried.memory)

    def remembered(self, carried: _Seen, last: Tensor) -> Tensor:
        """[B, 0]."""
        return carried.memory

    def parallel(
        self, parameters: Parameters, tokens: Tensor, taken: Tensor, order: Tensor, memory: Tensor, begins: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All steps and all agents at once, the decoder's attention masked."""
        representation = self._encoder(parameters, tokens)
        represented = representation[..., order, :]
        start = parameters["start"].expand(*taken.shape[:-2], 1, -1)
        previous = torch.cat([start, taken[..., :-1, :]], dim=-2)
        x = norm(parameters, "decoder.norm", functional.gelu(previous))
        for block in range(self.blocks):
            for a in range(2):
                name = f"decoder.{block}.attention{a}"
                key, value = self._keys_and_values(parameters, name, x)
                x = self._attend(parameters, name, represented if a else x, key, value, causal=True)
            x = _perceptron(parameters, f"decoder.{block}", x)
        return representation, x

    def _encoder(self, parameters: Parameters, tokens: Tensor) -> Tensor:
        x = norm(parameters, "encoder.norm", tokens)
        for block in range(self.blocks):
            name = f"encoder.{block}.attention0"
            key, value = self._keys_and_values(parameters, name, x)
            x = self._attend(parameters, name, x, key, value, causal=False)
            x = _perceptron(parameters, f"encoder.{block}", x)
        return x

    def _keys_and_values(self, parameters: Parameters, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(dense(parameters, f"{name}.key", x)), self._split(dense(parameters, f"{name}.value", x))

    def _attend(
        self, parameters: Parameters, name: str, source: Tensor, key: Tensor, value: Tensor, *, causal: bool
    ) -> Tensor:
        """[..., m, E]: ``source`` looks at keys and values [..., heads, n, E / heads]."""
        query = self._split(dense(parameters, f"{name}.query", source))
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        seen = dense(parameters, f"{name}.projection", seen.transpose(-2, -3).flatten(-2))
        return norm(parameters, f"{name}.norm", source + seen)

    def _split(self, x: Tensor) -> Tensor:
        """[..., m, E] -> [..., heads, m, E / heads]."""
        return x.unflatten(-1, (self.attention_heads, -1)).transpose(-2, -3)


def _perceptron(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    """Two layers on a residual path."""
    hidden = dense(parameters, f"{name}.output", functional.gelu(dense(parameters, f"{name}.hidden", x)))
    return norm(parameters, f"{name}.norm", x + hidden)
