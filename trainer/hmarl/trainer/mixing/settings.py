"""Settings that algorithms with mixed utilities have in common."""

from __future__ import annotations

from pydantic import BaseModel, Field

from hmarl.trainer.networks.settings import HiddenSizes


class UtilityFields(BaseModel):
    """Of algorithms that learn one utility per agent and action, off-policy."""

    share_parameters: bool = Field(
        True, description="agents of a group share one network, told apart by a one-hot input"
    )
    normalise_values: bool = Field(True, description="rewards are scaled, values count from the average")
    learning_rate: float = Field(1e-3, gt=0, description="Adam's step size for all that is learnt by its loss")
    gradient_steps: int = Field(16, ge=1, description="steps on replayed fragments per rollout")
    batch_fragments: int = Field(32, ge=1, description="fragments of episodes per gradient step")
    replay_capacity: int = Field(4096, ge=1, description="fragments that are kept; all are part of every checkpoint")
    td_lambda: float = Field(0.8, ge=0, le=1, description="λ of the targets; 0 is one-step Q-learning")
    target_rate: float = Field(0.01, gt=0, le=1, description="share of the networks that the targets take on per step")
    epsilon_start: float = Field(1.0, ge=0, le=1, description="share of random actions at first")
    epsilon_final: float = Field(0.05, ge=0, le=1, description="share of random actions at last")
    exploration_steps: int = Field(50_000, ge=1, description="environment steps over which that share falls")


class MixingFields(BaseModel):
    """Of those whose utilities are mixed by a network."""

    mixing_embedding: int = Field(32, ge=1, description="width of the mixing network's hidden layer")
    mixing_hidden_sizes: HiddenSizes = Field((64,), description="hidden layers of the mixing hypernetwork")
