"""The names of activations and encoders, for settings, which are checked before PyTorch is loaded."""

from typing import Literal

Activation = Literal["relu", "tanh", "elu", "silu"]
EncoderKind = Literal["auto", "nature", "impala", "small"]
