"""What leaves the trainer: for each agent one pure function of what that agent alone can know."""

from __future__ import annotations

from functools import cached_property

import torch
from gymnasium import spaces
from torch import Tensor, nn

from hmarl.runtime.bundle import AgentModel, NoiseModel, StateModel, TensorModel
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import AgentSpec
from hmarl.trainer.learning.instructions import discrete_instructions, instruction_context
from hmarl.trainer.networks.distributions import ActionHead, DiagonalGaussian
from hmarl.trainer.networks.flat import Mlp, RecurrentNetwork
from hmarl.trainer.networks.normalisation import RunningNormaliser
from hmarl.trainer.networks.policies import GroupPolicy

# ONNX files are protocol buffers, which end below 2 GiB; the graph itself takes kilobytes.
LARGEST_GRAPH_BYTES = 2**31 - 2**20


class FixedNetwork(nn.Module):
    """One row of a ``GroupPolicy`` with its parameters copied, as an ordinary module."""

    chooses = "local conductor's preference, not normalised"

    def __init__(self, network: Mlp | RecurrentNetwork, theta: Tensor, identity: Tensor | None) -> None:
        super().__init__()
        self.network = network
        parameters = network.named(theta.detach().cpu().clone())
        self.weights = nn.ParameterDict(
            {key.replace(".", "_"): nn.Parameter(value.contiguous(), False) for key, value in parameters.items()}
        )
        self.identity: Tensor | None
        self.register_buffer("identity", identity)

    @classmethod
    def of(cls, policy: GroupPolicy, member: int) -> FixedNetwork:
        """The network of one member, its one-hot identity (where one network tells several apart) built in."""
        identity = torch.eye(policy.members)[member] if policy.told_apart else None
        return cls(policy.network, policy.row(member)[: policy.network.size], identity)

    @property
    def output_size(self) -> int:
        """Number of outputs."""
        return self.network.output_size

    def forward(self, x: Tensor) -> Tensor:
        """[batch, input_size without identity] -> [batch, output_size]; of a network without memory."""
        assert isinstance(self.network, Mlp)
        return self.network.apply(self._named(), self._with_identity(x))

    def step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The same for a recurrent network, which also takes and returns its memory [batch, H]."""
        assert isinstance(self.network, RecurrentNetwork)
        return self.network.step(self._named(), self._with_identity(x), memory)

    def _named(self) -> dict[str, Tensor]:
        return {name: self.weights[name.replace(".", "_")] for name in self.network.shapes}

    def _with_identity(self, x: Tensor) -> Tensor:
        return x if self.identity is None else torch.cat([x, self.identity.expand(x.shape[0], -1)], dim=-1)


class FixedPreference(nn.Module):
    """Chooses an instruction without looking: the same logits [K] whatever is observed."""

    chooses = "log-probabilities recorded at export, whatever is observed"

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits: Tensor
        self.register_buffer("logits", logits.detach().cpu().clone())

    @property
    def output_size(self) -> int:
        """K."""
        return self.logits.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ...] -> [batch, K]."""
        return self.logits.expand(x.shape[0], -1)


class DeployablePolicy(nn.Module):
    """(observation, action_mask?, memory?, instruction_state?, instruction_noise?, action_noise?) → (action, next
    states..., diagnostics...).

    Observation normalisation, the choice of the instruction, masking, squashing and rescaling are inside. All-zero
    noise gives the deterministic policy. With a local conductor the instruction is chosen from the agent's own
    observation and held for ``interval`` steps; the instruction in force and its remaining steps are then a state [2],
    or [D + 1] where instructions are vectors.
    An ``interval`` of None holds the first instruction until the episode ends. What a recurrent policy remembers is the
    state ``memory`` [H]. A ``greedy`` policy takes its best action always and has no action noise.

    Raises:
        ValueError: ``interval`` below 1.
    """

    def __init__(
        self,
        agent: AgentSpec,
        shift: Tensor,
        scale: Tensor,
        clip: float,
        actor: FixedNetwork,
        head: ActionHead,
        log_std: Tensor,
        conductor: FixedNetwork | FixedPreference | None = None,
        interval: int | None = 1,
        greedy: bool = False,
        instruction_head: ActionHead | None = None,
        instruction_log_std: Tensor | None = None,
    ) -> None:
        super().__init__()
        if interval is not None and interval < 1:
            raise ValueError(f"interval: got {interval}, expected at least 1")
        self.agent, self.head, self.clip, self.interval, self.greedy = agent, head, clip, interval, greedy
        self.shift: Tensor
        self.scale: Tensor
        self.log_std: Tensor
        self.register_buffer("shift", shift.detach().cpu().clone())
        self.register_buffer("scale", scale.detach().cpu().clone())
        self.register_buffer("log_std", log_std.detach().cpu().clone())
        self.actor, self.conductor = actor, conductor
        self.instruction_head = instruction_head or discrete_instructions(conductor.output_size if conductor else 1)
        self.instruction_log_std: Tensor
        extra = torch.zeros(0) if instruction_log_std is None else instruction_log_std
        self.register_buffer("instruction_log_std", extra.detach().cpu().clone())

    @classmethod
    def create(
        cls,
        agent: AgentSpec,
        *,
        normaliser: RunningNormaliser,
        policy: GroupPolicy,
        member: int,
        conductor: GroupPolicy | FixedPreference | None = None,
        interval: int | None = 1,
        greedy: bool = False,
    ) -> DeployablePolicy:
        """Copy one member's policy (and local conductor) out of its group."""
        enabled = normaliser.enabled
        size = agent.observation_size
        learnt = conductor if isinstance(conductor, GroupPolicy) else None
        return cls(
            agent,
            normaliser.shift.expand(policy.members, -1)[member] if enabled else torch.zeros(size),
            normaliser.scale.expand(policy.members, -1)[member] if enabled else torch.ones(size),
            normaliser.clip if enabled else float("inf"),
            FixedNetwork.of(policy, member),
            policy.head,
            policy.row(member)[policy.network.size :],
            FixedNetwork.of(conductor, member) if isinstance(conductor, GroupPolicy) else conductor,
            interval,
            greedy,
            None if learnt is None else learnt.head,
            None if learnt is None else learnt.row(member)[learnt.network.size :],
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
        x = (given["observation"] - self.shift) * self.scale
        if self.clip != float("inf"):
            x = x.clamp(-self.clip, self.clip)
        if self.conductor is not None:
            preference, kind = self.conductor(x), self.instruction_head
            choice = kind.distribution(preference, self.instruction_log_std)
            instruction = choice.select(kind.perturbation(given["instruction_noise"]))
            if self.holds_instruction:
                instruction, outputs["next_instruction_state"] = self._hold(instruction, given["instruction_state"])
            outputs |= {"instruction": instruction, self._preference_name: preference}
            x = torch.cat([x, instruction_context(kind, instruction)], dim=-1)
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

    @property
    def _preference_name(self) -> str:
        return "instruction_mean" if self.instruction_head.continuous else "instruction_logits"

    def _hold(self, drawn: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the instruction in force while steps of it remain; ``state`` [batch, 2] or [batch, D + 1]: instruction,
        steps left (or, where it holds to the end, 1 once it has been chosen).
        """
        held, left = state[:, :-1], state[:, -1]
        renew = left < 0.5
        if self.instruction_head.continuous:
            instruction = held = torch.where(renew.unsqueeze(-1), drawn, held)
        else:
            instruction = torch.where(renew, drawn, held.squeeze(-1).to(torch.int64))
            held = instruction.unsqueeze(-1).to(state.dtype)
        remaining = torch.ones_like(left)
        if self.interval is not None:
            remaining = torch.where(renew, float(self.interval), left) - 1.0
        return instruction, torch.cat([held, remaining.unsqueeze(-1)], dim=-1)

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
            meaning="instruction in force, "
            + ("1 once it has been chosen" if self.interval is None else "steps for which it still holds"),
        )
        return [memory] * (size > 0) + [instruction] * self.holds_instruction

    @property
    def input_names(self) -> list[str]:
        """Names of the graph's inputs, in order."""
        names = ["observation"]
        if self.agent.has_action_mask:
            names.append("action_mask")
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
            shape=[head.output_size],
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
                shape=[agent.observation_size],
                dtype="float32",
                meaning="raw observation in the environment's units; normalised inside the graph",
            ),
            observation_layout=list(agent.observation_layout),
            action_mask=mask if agent.has_action_mask else None,
            states=self.states,
            noises=[instruction_noise] * (self.conductor is not None) + [action_noise] * (not self.greedy),
            action=TensorModel(
                name="action",
                shape=list(agent.action_shape),
                dtype="float32" if head.continuous else "int64",
                meaning="in the environment's units, within the action space",
            ),
            diagnostics=self._diagnostics(),
        )

    def _diagnostics(self) -> list[TensorModel]:
        meaning = "mean of the Gaussian before bounding" if self.head.continuous else "masked, not normalised"
        rows = [
            TensorModel(
                name="action_mean" if self.head.continuous else "action_logits",
                shape=[self.head.output_size],
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
                    meaning="mean of the local conductor's Gaussian" if latent else self.conductor.chooses,
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
