"""The names of the activations, for settings, which are checked before PyTorch is loaded."""

from typing import Literal

Activation = Literal["relu", "tanh", "elu", "silu"]
