"""What training, evaluation and export need of an algorithm.

An algorithm derives from ``Algorithm`` directly, and from nothing else: what it shares with others are parts that it
composes (how its team acts, its critic, the steps that it takes) and functions that its ``update`` calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor

from hmarl.sdk.environment import Observation
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import AgentGroup, EnvironmentSpec, check_bounds
from hmarl.trainer.contract.acting import Acting, LocalActing, forgotten_where_broken
from hmarl.trainer.contract.actors import Actors
from hmarl.trainer.contract.deployable import DeployablePolicy, Instructing
from hmarl.trainer.contract.local_team import LocalTeam
from hmarl.trainer.contract.shown import EvaluatedTeam, ReturnGap
from hmarl.trainer.contract.stand_ins import StandIns
from hmarl.trainer.contract.teacher import Teacher
from hmarl.trainer.experience.rollout import Decision, Rollout
from hmarl.trainer.learning.critic import Critic
from hmarl.trainer.learning.twin_critic import TwinCritic
from hmarl.trainer.networks.indices import on_device
from hmarl.trainer.networks.normalisation import RunningNormaliser, seen_as_it_is
from hmarl.trainer.networks.optimiser import FlatAdam
from hmarl.trainer.networks.policies import GroupPolicy, group_head
from hmarl.trainer.networks.settings import AlgorithmSettings
from hmarl.trainer.records.plots import Plot, diagnostics

StateDict = dict[str, Any]


class Algorithm:
    """A team's policies, group by group, and how they act; an algorithm says how they learn (``update``).

    Args:
        spec: the environment.
        settings: of the algorithm's own class.
        generator: CPU generator of the initial weights and of what is drawn once an update.
        device: where networks and rollouts live.

    Raises:
        UsageError: an agent's actions are of a kind that the algorithm cannot learn (``discrete_only``).

    Attributes:
        actors: the local policies as pure functions.
        local_acting: how the local policies act.
        acting: how the team acts while it learns: so, unless the algorithm puts another part here.
        greedy: whether its deployed policies take their best action always, having learnt what each is worth.
        exportable: whether there are local policies, which can be exported.
        many_seeds: whether several seeds can be trained at once: the local policies act, and all steps are descents
            (``together.descent``).
        sees_images: whether its networks take observations and states that are pictures.
        distils: whether students of the ``teacher`` are exported instead, without being asked for.
        live_metrics: which of the metrics that its updates return are shown while it trains, after the return. Each of
            them must be returned, those of the defaults too.
        plots: what is drawn of its runs beside the returns; the same holds of their metrics.
        gaps: between its ``teams``, recorded with each evaluation.
    """

    settings_class: ClassVar[type[AlgorithmSettings]] = AlgorithmSettings
    discrete_only: ClassVar[bool] = False
    greedy: ClassVar[bool] = False
    exportable: ClassVar[bool] = True
    many_seeds: ClassVar[bool] = False
    distils: ClassVar[bool] = False
    sees_images: ClassVar[bool] = False
    live_metrics: ClassVar[tuple[str, ...]] = ("agent_kl", "explained_variance")
    plots: ClassVar[tuple[Plot, ...]] = (diagnostics(("agent_entropy",), ("agent_kl",)),)
    gaps: ClassVar[tuple[ReturnGap, ...]] = ()
    settings: AlgorithmSettings

    def __init__(
        self, spec: EnvironmentSpec, settings: AlgorithmSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        self.check_spaces(spec)
        self.spec, self.settings, self.device, self.generator = spec, settings, device, generator
        self.noise_generator = torch.Generator(device).manual_seed(int(torch.randint(2**31, (), generator=generator)))
        self.heads = [group_head(group, settings) for group in spec.groups]
        self.policies = self.create_policies() if self.exportable else []
        self.observation_normalisers = [self._observation_normaliser(group) for group in spec.groups]
        self.state_normaliser = (
            RunningNormaliser((spec.state_size,), device, settings.normalise_observations)
            if spec.state_image is None
            else seen_as_it_is((), device)
        )
        self.position = {
            agent: (g, member) for g, group in enumerate(spec.groups) for member, agent in enumerate(group.agents)
        }
        self.actors = Actors(spec, device, self.heads, self.policies, self.observation_normalisers, settings.recurrent)
        self.local_acting = LocalActing(self.actors, settings.chunk_length, self.noise_generator)
        self.acting: Acting = self.local_acting

    def _observation_normaliser(self, group: AgentGroup) -> RunningNormaliser:
        rows = 1 if self.settings.interchangeable else len(group.agents)
        if group.example.image is not None:
            return seen_as_it_is((rows,), self.device)
        shape = rows, group.example.observation_size
        return RunningNormaliser(shape, self.device, self.settings.normalise_observations)

    @classmethod
    def check_spaces(cls, spec: EnvironmentSpec) -> None:
        """Whether the algorithm can learn every agent's kind of observations and actions.

        Raises:
            UsageError: it cannot; names the algorithm, the agent, what it has and what is expected.
        """
        if spec.images and not cls.sees_images:
            raise UsageError(
                f"{cls.__name__.lower()}: {spec.name}: {spec.images[0]}, expected vectors (the networks of this "
                "algorithm take no pictures); choose another one, such as mappo, or --set env.images=false where the "
                "environment knows it"
            )
        for agent in spec.agents:
            if isinstance(agent.action_space, spaces.Box):
                check_bounds(agent.id, agent.action_space)
            if cls.discrete_only and not isinstance(agent.action_space, spaces.Discrete):
                raise UsageError(
                    f"{cls.__name__.lower()}: agent '{agent.id}' of {spec.name} has the action space "
                    f"{agent.action_space}, expected Discrete (the algorithm learns one value per choice); use "
                    "hasac, or happo, which take all kinds of actions"
                )

    def create_policies(self) -> list[GroupPolicy]:
        """Fresh local policies, one a group."""
        policies = [
            GroupPolicy.create(
                len(group.agents),
                group.example.observation_size + self.context_size,
                head,
                self.settings,
                self.generator,
                shared=self.settings.share_parameters,
                recurrent=self.settings.recurrent,
                image=group.example.image,
                roles=self.roles,
            )
            for group, head in zip(self.spec.groups, self.heads, strict=True)
        ]
        for policy in policies:
            policy.theta = policy.theta.to(self.device)
        return policies

    @property
    def context_size(self) -> int:
        """C, the width of what all agents see beside their observations (an instruction or a latent, one-hot)."""
        return 0

    @property
    def roles(self) -> int:
        """K, where the context hands out roles to agents who share a network; see ``role``. Else 0."""
        return 0

    # --- acting: the part's ------------------------------------------------------------------------------------------

    def begin_rollout(self, steps: int, batch_size: int) -> None:
        """Draw the rollout's noise."""
        self.acting.begin_rollout(steps, batch_size)

    def act(self, observation: Observation, step: int) -> Decision:
        """Choose all agents' actions."""
        return self.acting.act(observation, step)

    def episodes_ended(self, ended: Tensor) -> None:
        """[B] bool: forget what was remembered of the episodes that have just ended."""
        self.acting.episodes_ended(ended)

    def act_in_part(self, first: int, environments: int) -> None:
        """This copy acts in a part of a run's environments: in those from ``first`` on, of so many in all."""

    def acting_state(self) -> dict[str, Tensor]:
        """What ``act`` remembers from step to step, so that a resumed run acts on as if never stopped."""
        return self.acting.state()

    def load_acting_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``acting_state`` returned."""
        self.acting.load_state(state)

    def to_environment(self, actions: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Raw actions per group in the environment's units."""
        return self.actors.to_environment(actions)

    # --- learning ---------------------------------------------------------------------------------------------------

    def update(self, rollout: Rollout, progress: float) -> dict[str, float]:
        """Learn from a rollout.

        Args:
            rollout: full.
            progress: share of the training done, in [0, 1), for schedules.

        Returns:
            Metrics by name.
        """
        raise NotImplementedError

    def pass_over(self, rollout: Rollout) -> None:
        """A rollout is not learnt from, since something in it is not finite. The episodes in it go on all the same, and
        what was remembered of such numbers is forgotten: later rollouts would not be finite either.
        """
        self.load_acting_state(forgotten_where_broken(self.acting_state()))

    def advice(self, metrics: dict[str, float]) -> list[str]:
        """All that goes wrong in the update or evaluation that made these metrics and what would help; each piece is
        logged once.
        """
        return []

    def schedule(self, progress: float) -> float:
        """Factor on all step sizes."""
        return 1.0 - progress if self.settings.learning_rate_decay == "linear" else 1.0

    def features(self, rollout: Rollout) -> list[Tensor]:
        """Normalised observations per group, [T, B, N_group, observation_size]."""
        return self.normalised(rollout.observations)

    def normalised(self, observations: Sequence[Tensor]) -> list[Tensor]:
        """Observations per group [..., N_group, observation_size] as the networks see them."""
        return self.actors.normalised(observations)

    def update_normalisers(self, rollout: Rollout) -> None:
        """Take a rollout's observations and states into the running statistics."""
        for group, normaliser, observations in zip(
            self.spec.groups, self.observation_normalisers, rollout.observations, strict=True
        ):
            agents = on_device(group.agents, rollout.device)
            weight = None if rollout.all_active else rollout.active[:, :, agents].flatten(0, 1)
            normaliser.update(observations.flatten(0, 1), weight)
        self.state_normaliser.update(rollout.states[:-1].flatten(0, 1))

    # --- deployment and persistence ---------------------------------------------------------------------------------

    @classmethod
    def check_exportable(cls, settings: AlgorithmSettings) -> None:
        """Whether a run with these settings has local policies to export (``exportable``).

        Raises:
            UsageError: it has none; says what to train instead.
        """

    def instructing(self, agent: int) -> Instructing | None:
        """Who chooses an agent's instructions when deployed; none here."""
        return None

    @property
    def interchangeable(self) -> bool:
        """Whether the agents of a group are one policy, which does not know which of them it acts for."""
        return self.settings.interchangeable

    def teacher(self) -> Teacher | None:
        """The team as it is when it knows more than its agents can, to be distilled into students at export; None where
        it never does.
        """
        return None

    def stand_ins(self) -> StandIns | None:
        """What is deployed in the place of what only training has, to learn once more at export; None where there is
        nothing of the kind.
        """
        return None

    def teams(self, sample: bool = False) -> dict[str, EvaluatedTeam]:
        """The ways to play with what was learnt, by name, the one that it is judged by first; ``local`` is deployed.

        Args:
            sample: draw actions instead of taking the most likely ones, where a way has the choice.
        """
        return {LocalTeam.name: LocalTeam(self, sample)} if self.exportable else {}

    def deployable(self, agent: int) -> DeployablePolicy:
        """The agent's local policy as one module, with a copy of the parameters.

        Raises:
            UsageError: the algorithm acts for the whole team at once, and has no local policies (``exportable``).
        """
        self.check_exportable(self.settings)
        group, member = self.position[agent]
        return DeployablePolicy.create(
            self.spec.agents[agent],
            normaliser=self.observation_normalisers[group],
            policy=self.policies[group],
            member=member,
            instructing=self.instructing(agent),
            greedy=self.greedy,
        )

    def components(self) -> StateDict:
        """What a checkpoint holds, by name: tensors, or objects with ``state_dict`` and ``load_state_dict``.

        A diverged update is undone in all of it.
        """
        parts: StateDict = {"state_normaliser": self.state_normaliser}
        parts |= {f"policies.{g}": policy.theta for g, policy in enumerate(self.policies)}
        return parts | {
            f"observation_normalisers.{g}": normaliser for g, normaliser in enumerate(self.observation_normalisers)
        }

    def acting_components(self) -> StateDict:
        """Those of the components that acting may depend on: whoever acts elsewhere needs no critics and optimisers."""
        learns_only = (FlatAdam, Critic, TwinCritic)
        return {name: part for name, part in self.components().items() if not isinstance(part, learns_only)}

    def experience(self) -> StateDict:
        """Past rollouts that an off-policy algorithm still learns from: checkpointed, but no part of what is learnt,
        so that neither a rollback nor an export touches it. It must never hold what is not finite.
        """
        return {}
