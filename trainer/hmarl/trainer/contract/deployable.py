"""What leaves the trainer: for each agent one pure function of what that agent alone can know."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from gymnasium import spaces
from torch import Tensor, nn

from hmarl.runtime.bundle import AgentModel, NoiseModel, StateModel, TensorModel
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import AgentSpec
from hmarl.trainer.contract.fixed import CommonSight, FixedNetwork, FixedNormaliser, FixedPreference
from hmarl.trainer.learning.instructions import discrete_instructions, instruction_context
from hmarl.trainer.networks.distributions import ActionHead, DiagonalGaussian
from hmarl.trainer.networks.normalisation import RunningNormaliser
from hmarl.trainer.networks.policies import GroupPolicy

# ONNX files are protocol buffers, which end below 2 GiB; the graph itself takes kilobytes.
LARGEST_GRAPH_BYTES = 2**31 - 2**20
_STEP = TensorModel(name="step", shape=[], dtype="int64", meaning="steps of the episode that lie behind")


@dataclass(frozen=True)
class Instructing:
    """Who chooses an agent's instructions.

    Attributes:
        conductor: sees the normalised observation, or what ``sight`` shows; then, if it ``remembers``, the instruction
            before.
        head: what instructions are.
        log_std: [D] of instructions that are vectors, else empty.
        interval: steps for which an instruction holds; None: to the episode's end.
        scale: factor on an instruction where it is seen.
        sight: of a common-knowledge conductor, whose copies in all agents choose alike; None for an agent's own.
        remembers: whether the conductor sees the instruction before.
    """

    conductor: FixedNetwork | FixedPreference
    head: ActionHead
    log_std: Tensor
    interval: int | None = 1
    scale: float = 1.0
    sight: CommonSight | None = None
    remembers: bool = False

    def __post_init__(self) -> None:
        if self.interval is not None and self.interval < 1:
            raise ValueError(f"interval: got {self.interval}, expected at least 1")

    @classmethod
    def of(
        cls,
        conductor: GroupPolicy | FixedPreference,
        member: int = 0,
        interval: int | None = 1,
        scale: float = 1.0,
        sight: CommonSight | None = None,
        remembers: bool = False,
    ) -> Instructing:
        """By one member of a group of conductors, or always with the same preference."""
        if isinstance(conductor, FixedPreference):
            return cls(conductor, discrete_instructions(conductor.output_size), torch.zeros(0), interval)
        log_std = conductor.row(member)[conductor.network.size :]
        return cls(FixedNetwork.of(conductor, member), conductor.head, log_std, interval, scale, sight, remembers)


class DeployablePolicy(nn.Module):
    """(observation, action_mask?, step?, memory?, instruction_state?, last_instruction?, instruction_noise?,
    action_noise?) → (action, next states..., diagnostics...).

    Observation normalisation, the choice of the instruction, masking, squashing and rescaling are inside. All-zero
    noise gives the deterministic policy. With a conductor the instruction is chosen from what the agent alone knows and
    held for ``interval`` steps; the instruction in force, and whether one has been chosen, are then a state [2], or
    [D + 1] where instructions are vectors. It is renewed where the step, an input, is a multiple of ``interval``, as
    all agents' are in training: one that has missed steps, or comes late, is in step with the others again at the next
    one. A conductor that remembers sees the instruction before, a state too; one that is common knowledge sees the
    step. An ``interval`` of None holds the first instruction until the episode ends. What a recurrent policy remembers
    is the state ``memory`` [H]. A ``greedy`` policy takes its best action always and has no action noise.

    Args:
        agent: whose policy.
        normaliser: of its observations.
        actor: π(a | o, M).
        head: of its actions.
        log_std: [A] of continuous actions, else empty.
        instructing: who chooses its instructions, None without.
        greedy: whether it always takes its best action.
    """

    def __init__(
        self,
        agent: AgentSpec,
        normaliser: FixedNormaliser,
        actor: FixedNetwork,
        head: ActionHead,
        log_std: Tensor,
        instructing: Instructing | None = None,
        greedy: bool = False,
    ) -> None:
        super().__init__()
        self.agent, self.head, self.greedy = agent, head, greedy
        self.normaliser, self.actor = normaliser, actor
        self.log_std: Tensor
        self.register_buffer("log_std", log_std.detach().cpu().clone())
        self.conductor = None if instructing is None else instructing.conductor
        self.sight = None if instructing is None else instructing.sight
        self.interval = 1 if instructing is None else instructing.interval
        self.remembers = instructing is not None and instructing.remembers
        self.instruction_scale = 1.0 if instructing is None else instructing.scale
        self.instruction_head = discrete_instructions(1) if instructing is None else instructing.head
        self.instruction_log_std: Tensor
        extra = torch.zeros(0) if instructing is None else instructing.log_std
        self.register_buffer("instruction_log_std", extra.detach().cpu().clone())

    @classmethod
    def create(
        cls,
        agent: AgentSpec,
        *,
        normaliser: RunningNormaliser,
        policy: GroupPolicy,
        member: int,
        instructing: Instructing | None = None,
        greedy: bool = False,
    ) -> DeployablePolicy:
        """Copy one member's policy out of its group."""
        return cls(
            agent,
            FixedNormaliser.of(normaliser, policy.members, member),
            FixedNetwork.of(policy, member),
            policy.head,
            policy.row(member)[policy.network.size :],
            instructing,
            greedy,
        )

    @property
    def instructions(self) -> int:
        """K, the number of instructions, or D of an instruction's components; 0 without a conductor."""
        return 0 if self.conductor is None else self.conductor.output_size

    @property
    def holds_instruction(self) -> bool:
        """Whether an instruction is carried from step to step."""
        return self.conductor is not None and self.interval != 1

    @property
    def memory_size(self) -> int:
        """H, the width of what the policy remembers; 0 without memory."""
        return self.actor.network.memory_size

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors in the order of ``input_names`` to tensors in that of ``output_names``, all batched."""
        given = dict(zip(self.input_names, tensors, strict=True))
        outputs: dict[str, Tensor] = {}
        if self.agent.image is not None:
            given["observation"] = given["observation"].flatten(1).float()
        x = self.normaliser(given["observation"])
        if self.conductor is not None:
            chosen = self._instruct(self.conductor, x, given)
            outputs |= chosen
            x = torch.cat([x, self.seen_of(chosen["instruction"])], dim=-1)
        if self.memory_size:
            output, outputs["next_memory"] = self.actor.step(x, given["memory"])
        else:
            output = self.actor(x)
        distribution = self.head.distribution(output, self.log_std, given.get("action_mask"))
        raw = distribution.mode() if self.greedy else distribution.select(self.head.perturbation(given["action_noise"]))
        outputs["action"] = self.head.to_environment(raw)
        if isinstance(distribution, DiagonalGaussian):
            outputs["action_mean"] = distribution.mean
        else:
            outputs["action_logits"] = distribution.logits  # type: ignore[attr-defined]
        return tuple(outputs[name] for name in self.output_names)

    def _instruct(
        self, conductor: FixedNetwork | FixedPreference, x: Tensor, given: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The instruction in force, with the states and diagnostics that go with it; ``x`` normalised."""
        kind, outputs = self.instruction_head, {}
        seen = x if self.sight is None else self.sight(given["observation"], given["step"])
        preference = conductor(torch.cat([seen, given["last_instruction"]], dim=-1) if self.remembers else seen)
        choice = kind.distribution(preference, self.instruction_log_std)
        instruction = choice.select(kind.perturbation(given["instruction_noise"]))
        if self.holds_instruction:
            held, step = given["instruction_state"], given.get("step")
            instruction, outputs["next_instruction_state"] = self._hold(instruction, held, step)
        if self.remembers:
            outputs["next_last_instruction"] = self.seen_of(instruction)
        return outputs | {"instruction": instruction, self._preference_name: preference}

    def seen_of(self, instruction: Tensor) -> Tensor:
        """[batch, K] or [batch, D]: how actor and conductor see instructions."""
        return instruction_context(self.instruction_head, instruction, self.instruction_scale)

    @property
    def _preference_name(self) -> str:
        return "instruction_mean" if self.instruction_head.continuous else "instruction_logits"

    def _hold(self, drawn: Tensor, state: Tensor, step: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keep the instruction in force while it holds; ``state`` [batch, 2] or [batch, D + 1]: instruction, 1 once it
        has been chosen.
        """
        held, chosen = state[:, :-1], state[:, -1]
        renew = chosen < 0.5
        if step is not None and self.interval is not None:
            renew = renew | (step % self.interval == 0)
        if self.instruction_head.continuous:
            instruction = held = torch.where(renew.unsqueeze(-1), drawn, held)
        else:
            instruction = torch.where(renew, drawn, held.squeeze(-1).to(torch.int64))
            held = instruction.unsqueeze(-1).to(state.dtype)
        return instruction, torch.cat([held, torch.ones_like(chosen).unsqueeze(-1)], dim=-1)

    @property
    def told_the_step(self) -> bool:
        """Whether the step is an input: of a conductor that sees it, or renews its instructions by it."""
        return self.sight is not None or (self.holds_instruction and self.interval is not None)

    @cached_property
    def states(self) -> list[StateModel]:
        """What is carried from step to step."""
        size, held = self.memory_size, self.instructions if self.instruction_head.continuous else 1
        memory = StateModel(
            input="memory",
            output="next_memory",
            shape=[size],
            dtype="float32",
            reset=[0.0] * size,
            meaning="what the policy remembers of the episode",
        )
        instruction = StateModel(
            input="instruction_state",
            output="next_instruction_state",
            shape=[held + 1],
            dtype="float32",
            reset=[0.0] * (held + 1),
            meaning="instruction in force, 1 once it has been chosen",
        )
        last = StateModel(
            input="last_instruction",
            output="next_last_instruction",
            shape=[self.instructions],
            dtype="float32",
            reset=[0.0] * self.instructions,
            meaning="the instruction before"
            + ("" if self.instruction_head.continuous else ", one-hot")
            + f", times {self.instruction_scale:g}" * (self.instruction_scale != 1.0)
            + "; zeros where there is none",
        )
        return [memory] * (size > 0) + [instruction] * self.holds_instruction + [last] * self.remembers

    @property
    def input_names(self) -> list[str]:
        """Names of the graph's inputs, in order."""
        names = ["observation"]
        if self.agent.has_action_mask:
            names.append("action_mask")
        if self.told_the_step:
            names.append("step")
        names += [state.input for state in self.states]
        if self.conductor is not None:
            names.append("instruction_noise")
        return names if self.greedy else [*names, "action_noise"]

    @property
    def output_names(self) -> list[str]:
        """Names of the graph's outputs, in order."""
        names = ["action", *(state.output for state in self.states)]
        names.append("action_mean" if self.head.continuous else "action_logits")
        return names + (["instruction", self._preference_name] if self.conductor is not None else [])

    def describe(self, file: str, interchangeable: bool = False) -> AgentModel:
        """The agent's entry of the manifest."""
        agent, head = self.agent, self.head
        mask = TensorModel(name="action_mask", shape=[agent.mask_size], dtype="bool", meaning="True where legal")
        action_noise = NoiseModel(
            name="action_noise",
            shape=[head.action_size],
            distribution=head.noise_distribution,
            stream="private",
            purpose="action",
        )
        instruction_noise = NoiseModel(
            name="instruction_noise",
            shape=[self.instructions],
            distribution=self.instruction_head.noise_distribution,
            stream="common",
            purpose="instruction",
        )
        return AgentModel(
            id=agent.id,
            file=file,
            interchangeable=interchangeable,
            kind=f"{agent.observation_size} -> {_describe_space(agent)}",
            action_space=agent.action_space_model,
            observation=TensorModel(
                name="observation",
                shape=list(agent.observation_shape),
                dtype="float32" if agent.image is None else agent.image.dtype,
                meaning="raw observation in the environment's units; normalised inside the graph"
                if agent.image is None
                else "raw picture: height, width, channels; scaled inside the graph",
            ),
            observation_layout=list(agent.observation_layout),
            action_mask=mask if agent.has_action_mask else None,
            step=_STEP if self.told_the_step else None,
            states=self.states,
            noises=[instruction_noise] * (self.conductor is not None) + [action_noise] * (not self.greedy),
            instruction_choice=None if self.sight is None else "common",
            action=TensorModel(
                name="action",
                shape=list(agent.action_shape),
                dtype="float32" if head.continuous else "int64",
                meaning="in the environment's units, within the action space",
            ),
            diagnostics=self._diagnostics(),
        )

    @property
    def _preference_meaning(self) -> str:
        whose = "local" if self.sight is None else "common-knowledge"
        if self.instruction_head.continuous:
            return f"mean of the {whose} conductor's Gaussian"
        if isinstance(self.conductor, FixedPreference):
            return "log-probabilities recorded at export, whatever is observed"
        return f"{whose} conductor's preference, not normalised"

    def _diagnostics(self) -> list[TensorModel]:
        meaning = "mean of the Gaussian before bounding" if self.head.continuous else "masked, not normalised"
        rows = [
            TensorModel(
                name="action_mean" if self.head.continuous else "action_logits",
                shape=[self.head.action_size],
                dtype="float32",
                meaning=meaning,
            )
        ]
        if self.conductor is not None:
            latent = self.instruction_head.continuous
            rows += [
                TensorModel(
                    name="instruction",
                    shape=[self.instructions] if latent else [],
                    dtype="float32" if latent else "int64",
                    meaning="instruction in force",
                ),
                TensorModel(
                    name=self._preference_name,
                    shape=[self.instructions],
                    dtype="float32",
                    meaning=self._preference_meaning,
                ),
            ]
        return rows


def _describe_space(agent: AgentSpec) -> str:
    space = agent.action_space
    if isinstance(space, spaces.Discrete):
        return f"one of {space.n}"
    return f"{len(agent.action_shape) and agent.action_shape[0]} {'choices' if agent.mask_size else 'real numbers'}"


def check_size(agent: AgentSpec, weights: int, setting: str) -> None:
    """Refuse a policy that no ONNX file can hold, before any work on it.

    Args:
        agent: whose policy.
        weights: bytes of them.
        setting: the name of what makes them fewer, for the message.

    Raises:
        UsageError: names the agent, the size, and what it comes from.
    """
    if weights > LARGEST_GRAPH_BYTES:
        raise UsageError(
            f"agent '{agent.id}': its policy has {weights:,} bytes of weights, expected at most "
            f"{LARGEST_GRAPH_BYTES:,}, which an ONNX file holds; it observes {agent.observation_size:,} numbers: let "
            f"it observe fewer, or make {setting} smaller"
        )
