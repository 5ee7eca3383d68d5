"""Does to the observations and actions of B teams what a fault model says; knows arrays, not what steps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.sdk.environment import Observation
from hmarl.sdk.errors import UsageError
from hmarl.sdk.fallback import Fallback
from hmarl.sdk.faults.channel import Arrays, Channel
from hmarl.sdk.faults.draws import Chance, Draws
from hmarl.sdk.faults.model import AgentFaults, FaultModel, Outage
from hmarl.sdk.faults.stand_in import Situations, check_fallback, legal_rows, stand_ins
from hmarl.sdk.spaces import AgentGroup, AgentSpec

Block = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]


class _Outages:
    """Which of B x N agents are out at a step, for one reason."""

    def __init__(self, outages: Sequence[Outage], chance: Chance, batch_size: int) -> None:
        self._chance = chance
        self._first = np.array([each.first for each in outages])
        self._last = np.array([each.last for each in outages])
        self._probability = np.array([each.probability for each in outages], np.float32)
        self._length = np.array([each.steps for each in outages])
        self.left = np.zeros((batch_size, len(outages)), np.int64)

    @property
    def by_chance(self) -> bool:
        return bool(self._probability.any())

    def now(self, draws: Draws, rows: slice | npt.NDArray[np.intp]) -> Flags:
        """[R, N] at the present step; counts it."""
        steps, left = draws.steps[rows, None], self.left[rows]
        given: Flags = (steps >= self._first) & (steps <= self._last)
        if not self.by_chance:
            return given
        begins = (left == 0) & (draws.uniform(self._chance)[rows] < self._probability)
        left = np.where(begins, self._length, left)
        self.left[rows] = np.maximum(left - 1, 0)
        return given | (left > 0)


class _Lateness:
    """How late each message of B x N senders is, and whether it is lost."""

    def __init__(self, late: Sequence[tuple[int, int]], loss: Sequence[float], chances: tuple[Chance, Chance]) -> None:
        self._least = np.array([least for least, _ in late])
        self._most = np.array([most for _, most in late])
        self._loss = np.array(loss, np.float32)
        self._late_chance, self._loss_chance = chances

    @property
    def most(self) -> int:
        return int(self._most.max())

    @property
    def by_chance(self) -> bool:
        return bool(self._loss.any() or (self._least != self._most).any())

    def late(self, draws: Draws) -> npt.NDArray[np.int64]:
        """[B, N] steps."""
        if not self.by_chance:
            return np.broadcast_to(self._least, (len(draws.steps), len(self._least)))
        spread = self._most - self._least + 1
        drawn = self._least + (draws.uniform(self._late_chance).astype(np.float64) * spread).astype(np.int64)
        late: npt.NDArray[np.int64] = np.minimum(drawn, self._most)
        return late

    def lost(self, draws: Draws) -> Flags:
        """[B, N]."""
        if not self.by_chance:
            return np.zeros((len(draws.steps), len(self._loss)), np.bool_)
        lost: Flags = draws.uniform(self._loss_chance) < self._loss
        return lost


class _Hands:
    """What is done in one group: actions that have arrived in time and are legal, else what fallbacks decide.

    Attributes:
        columns: of the group's agents among all.
        age: [B, N_group] steps since a fresh action was done, infinite where none has been.
    """

    def __init__(self, group: AgentGroup, faults: Sequence[AgentFaults], batch_size: int, most_late: int) -> None:
        agent, lead = group.example, (batch_size, len(group.agents))
        self.columns = list(group.agents)
        self._space = agent.action_space_model
        self._channel = Channel([(agent.action_shape, agent.action_dtype)], lead, most_late)
        self._last = np.zeros((*lead, *agent.action_shape), agent.action_dtype)
        self.age = np.full(lead, np.inf)
        self._undisturbed = all(_leaves_actions_alone(each, agent.has_action_mask) for each in faults)
        self._deciding: list[tuple[Fallback, Flags]] = []
        for fallback in (each.fallback for each in faults):
            if not any(fallback == known for known, _ in self._deciding):
                self._deciding.append((fallback, np.array([each.fallback == fallback for each in faults])))

    def begin(self, begun: Flags) -> None:
        """Nothing has been done yet, nor is under way, where ``begun`` [B, N_group]."""
        self._channel.begin(begun, self._channel.held)
        self.age = np.where(begun, np.inf, self.age)

    def act(
        self,
        actions: Block,
        masks: Block | None,
        active: Flags,
        late: npt.NDArray[np.int64],
        lost: Flags,
        steps: npt.NDArray[np.int64],
    ) -> Block:
        """[B, N_group, *action_shape] what is done, given what was chosen; of agents that have left as it is."""
        if self._undisturbed:
            self.age = np.zeros_like(self.age)
            return actions
        arrived = self._channel.send([actions], late, lost)
        newest = self._channel.held[0]
        fresh = arrived & legal_rows(newest, self._space, masks)
        self.age = np.where(fresh, 0.0, self.age + 1.0)
        done = np.where(_like((active & fresh), actions), newest, actions)
        self._last = np.where(_like(fresh, actions), newest, self._last)
        for fallback, members in self._deciding:
            rows, columns = np.nonzero(active & ~fresh & members)
            if len(rows):
                legal = None if masks is None else masks[rows, columns]
                last, age = self._last[rows, columns], self.age[rows, columns]
                done[rows, columns] = stand_ins(fallback, Situations(self._space, steps[rows], legal, last, age))
        return done

    def idle(self) -> None:
        """A step passes at which nothing is chosen; what arrives is done."""
        arrived, newest = self._channel.pass_step(), self._channel.held[0]
        self.age = np.where(arrived, 0.0, self.age + 1.0)
        self._last = np.where(_like(arrived, newest), newest, self._last)

    def get_state(self) -> Arrays:
        return {"last": self._last.copy(), "age": self.age.copy(), **self._channel.get_state()}

    def set_state(self, state: Mapping[str, Block]) -> None:
        self._last, self.age = state["last"], state["age"]
        self._channel.set_state(state)


def _leaves_actions_alone(faults: AgentFaults, masked: bool) -> bool:
    """Whether whatever is chosen is done: nothing happens to it, and it was chosen by the mask of the same step."""
    unheard = (
        faults.action_delay != (0, 0) or faults.action_loss or faults.out != Outage() or faults.restart != Outage()
    )
    late_masks = masked and (faults.delay != (0, 0) or faults.loss or faults.freeze != Outage())
    return not unheard and not late_masks


class Injector:
    """Faults of B teams, step by step: ``begin``, then ``done`` (or ``idle``) and ``seen`` in turn, ``skip`` between.

    An observation carries its action mask with it; both are late or lost together. What arrives at an agent that is
    out, or whose senses are frozen, is lost, whenever it was sent; what it sent before it was out is still under way.
    What a lost action asks for is not done; neither is what has become illegal by the time it arrives. Then the agent's
    fallback decides, which knows what is legal now. An episode's first observation always arrives; so does that of an
    agent that was not there before.

    Args:
        model: what goes wrong.
        agents: all, in order.
        groups: as of ``EnvironmentSpec.groups``.
        batch_size: B.

    Raises:
        UsageError: faults of an agent that is not there, a fallback that cannot act, noise in a picture.
    """

    def __init__(
        self, model: FaultModel, agents: Sequence[AgentSpec], groups: Sequence[AgentGroup], batch_size: int
    ) -> None:
        model.check_agents(each.id for each in agents)
        faults = [model.of(each.id) for each in agents]
        for agent, its in zip(agents, faults, strict=True):
            check_fallback(its.fallback, agent)
        self._groups = groups
        self._senses = _Lateness(
            [each.delay for each in faults], [each.loss for each in faults], (Chance.DELAY, Chance.LOSS)
        )
        self._orders = _Lateness(
            [each.action_delay for each in faults],
            [each.action_loss for each in faults],
            (Chance.ACTION_DELAY, Chance.ACTION_LOSS),
        )
        self._freezes = _Outages([each.freeze for each in faults], Chance.FREEZE, batch_size)
        self._outs = _Outages([each.out for each in faults], Chance.OUT, batch_size)
        self._restarts = _Outages([each.restart for each in faults], Chance.RESTART, batch_size)
        chances = (self._senses, self._orders, self._freezes, self._outs, self._restarts)
        decides = any(each.by_chance for each in chances)
        self._draws = Draws([each.id for each in agents], batch_size, decides)
        self._noise = np.array([each.noise for each in faults], np.float32)
        for agent, noise in zip(agents, self._noise, strict=True):
            if noise and agent.image is not None:
                raise UsageError(
                    f"faults: noise: got {noise:g} for agent '{agent.id}', which observes {agent.image}; leave it out: "
                    "noise is added to the numbers of vectors only"
                )
        self._restarting = any(each.restart != Outage() for each in faults)
        lead = (batch_size, len(agents))
        self._gone, self._down, self._forgot = (np.zeros(lead, np.bool_) for _ in range(3))
        self._channels = [self._channel(group, batch_size) for group in groups]
        self._hands = [
            _Hands(group, [faults[index] for index in group.agents], batch_size, self._orders.most) for group in groups
        ]
        self._now: Observation | None = None

    def _channel(self, group: AgentGroup, batch_size: int) -> Channel:
        agent = group.example
        parts: list[tuple[tuple[int, ...], Any]] = [((agent.observation_size,), agent.observation_dtype)]
        parts += [((agent.mask_size,), np.bool_)] if agent.has_action_mask else []
        return Channel(parts, (batch_size, len(group.agents)), self._senses.most)

    # --- what is seen -------------------------------------------------------------------------------------------------

    def begin(
        self,
        seeds: npt.NDArray[np.int64] | npt.NDArray[np.uint64],
        observation: Observation,
        first_step: int = 0,
        skipped: int = 0,
    ) -> Observation:
        """The first observation of B new episodes, or of such as are joined at ``first_step``.

        Args:
            seeds: [B].
            observation: of NumPy's arrays.
            first_step: where the episodes begin.
            skipped: steps from there to the observation's, at which nothing was seen or done.
        """
        self._draws.begin(seeds, first_step)
        return self._begin(np.arange(len(seeds)), observation, skipped)

    def begin_next(self, rows: npt.NDArray[np.intp], observation: Observation) -> Observation:
        """The first observation of the next episodes of some teams; what all others see stays as it is."""
        self._draws.next_episode(rows)
        return self._begin(rows, observation)

    def seen(self, observation: Observation) -> Observation:
        """What agents see a step later, while ``observation`` [B, ...] is how things are."""
        self._draws.advance()
        assert self._now is not None
        appeared = np.asarray(observation.active & ~self._now.active)
        deaf = self._note_outages(slice(None))
        lost = self._senses.lost(self._draws) | ~observation.active
        late = self._senses.late(self._draws)
        messages = self._messages(observation)
        for channel, group, message in zip(self._channels, self._groups, messages, strict=True):
            columns = list(group.agents)
            channel.send(message, late[:, columns], lost[:, columns], deaf[:, columns])
        self._begin_agents(appeared, messages)
        return self._shown(observation)

    def skip(self, steps: int, away: bool = False) -> None:
        """Steps go by at which nothing is seen and nothing chosen; what goes wrong in them goes wrong all the same.

        Args:
            steps: how many.
            away: no agent was there; those that are at the next ``seen`` have just come.
        """
        if away:
            assert self._now is not None
            self._now = replace(self._now, active=np.zeros_like(self._now.active))
        for _ in range(steps):
            self._draws.advance()
            deaf = self._count_outages()
            for channel, group in zip(self._channels, self._groups, strict=True):
                channel.pass_step(deaf[:, list(group.agents)])
            self.idle()

    def _count_outages(self) -> Flags:
        """Those at the present step, which is skipped: who forgets in it is told so when it sees something again.

        Returns:
            [B, N] who hears nothing of what arrives.
        """
        down = self._restarts.now(self._draws, slice(None))
        self._down = self._down | down
        out, frozen = (each.now(self._draws, slice(None)) for each in (self._outs, self._freezes))
        return down | out | frozen

    def _begin(self, rows: npt.NDArray[np.intp], observation: Observation, skipped: int = 0) -> Observation:
        for outages in (self._freezes, self._outs, self._restarts):
            outages.left[rows] = 0
        self._down[rows] = False
        for _ in range(skipped):
            self._count_outages()
            self._draws.advance()
        self._note_outages(rows)
        begun = np.zeros(self._gone.shape, np.bool_)
        begun[rows] = True
        self._begin_agents(begun, self._messages(observation))
        return self._shown(observation)

    def _begin_agents(self, begun: Flags, messages: Sequence[Sequence[Block]]) -> None:
        """Agents [B, N] who have just come: they see how things are, and have done nothing yet."""
        if not begun.any():
            return
        for channel, hands, message in zip(self._channels, self._hands, messages, strict=True):
            channel.begin(begun[:, hands.columns], message)
            hands.begin(begun[:, hands.columns])

    def _note_outages(self, rows: slice | npt.NDArray[np.intp]) -> Flags:
        """Who is out at the present step of some teams, and who is back with nothing remembered.

        Returns:
            [R, N] who hears nothing of what arrives: those who are out, and whose senses are frozen.
        """
        down = self._restarts.now(self._draws, rows)
        self._forgot, self._gone = self._forgot.copy(), self._gone.copy()
        self._forgot[rows] = self._down[rows] & ~down
        self._gone[rows] = self._outs.now(self._draws, rows) | down
        self._down[rows] = down
        frozen = self._freezes.now(self._draws, rows)
        return self._gone[rows] | frozen

    def _messages(self, observation: Observation) -> list[list[Block]]:
        """Per group what is sent to its agents: the observation with its noise, and the mask where there is one."""
        noisy = [self._noisy(group, block) for group, block in zip(self._groups, observation.observations, strict=True)]
        masks = observation.action_masks
        return [[block] if mask is None else [block, mask] for block, mask in zip(noisy, masks, strict=True)]

    def _noisy(self, group: AgentGroup, block: Block) -> Block:
        noise = self._noise[list(group.agents)]
        members = np.flatnonzero(noise)
        if not len(members):
            return block
        noisy = block.copy()
        drawn = self._draws.normal(np.asarray(group.agents)[members], block.shape[-1])
        noisy[:, members] += noise[members, None] * drawn
        return noisy

    def _shown(self, observation: Observation) -> Observation:
        """What has arrived; of agents that have left what an environment says of them."""
        self._now = observation
        blocks, masks = [], []
        for channel, group, block, mask in zip(
            self._channels, self._groups, observation.observations, observation.action_masks, strict=True
        ):
            there = np.asarray(observation.active)[:, list(group.agents), None]
            blocks.append(np.where(there, channel.held[0], block))
            masks.append(None if mask is None else np.where(there, channel.held[1], mask))
        restarted = self._forgot.copy() if self._restarting else None
        return Observation(tuple(blocks), tuple(masks), observation.state, observation.active, restarted)

    @property
    def fresh(self) -> Flags:
        """[B, N] whether what was done last is what an agent has chosen, and not its fallback."""
        fresh = np.zeros(self._gone.shape, np.bool_)
        for hands in self._hands:
            fresh[:, hands.columns] = hands.age == 0
        return fresh

    @property
    def ages(self) -> npt.NDArray[np.int64]:
        """[B, N] steps since what each agent sees was so."""
        ages = np.zeros(self._gone.shape, np.int64)
        for channel, group in zip(self._channels, self._groups, strict=True):
            ages[:, list(group.agents)] = channel.age
        return ages

    # --- what is done -------------------------------------------------------------------------------------------------

    def done(self, actions: Sequence[Block]) -> tuple[Block, ...]:
        """Per group [B, N_group, *action_shape] what is done where agents have chosen ``actions``."""
        assert self._now is not None
        late, lost = self._orders.late(self._draws), self._orders.lost(self._draws) | self._gone
        steps, active = self._draws.steps, np.asarray(self._now.active)
        return tuple(
            hands.act(block, mask, active[:, hands.columns], late[:, hands.columns], lost[:, hands.columns], steps)
            for hands, block, mask in zip(self._hands, actions, self._now.action_masks, strict=True)
        )

    def idle(self) -> None:
        """Nothing is chosen at this step, by any agent; what is under way goes on."""
        for hands in self._hands:
            hands.idle()

    # --- saving -------------------------------------------------------------------------------------------------------

    def get_state(self) -> Arrays:
        """All that determines the future, as new arrays."""
        draws = self._draws
        state: Arrays = {
            "seeds": draws.seeds, "episodes": draws.episodes, "steps": draws.steps,
            "frozen_left": self._freezes.left, "out_left": self._outs.left, "restart_left": self._restarts.left,
            "gone": self._gone, "down": self._down, "forgot": self._forgot,
        }  # fmt: skip
        state = {name: array.copy() for name, array in state.items()}
        for group, (channel, hands) in enumerate(zip(self._channels, self._hands, strict=True)):
            state |= {f"senses.{group}.{name}": array for name, array in channel.get_state().items()}
            state |= {f"hands.{group}.{name}": array for name, array in hands.get_state().items()}
        return state

    def set_state(self, state: Mapping[str, Block], observation: Observation) -> Observation:
        """Go on where ``get_state`` was called, while ``observation`` is how things are; keeps the arrays."""
        self._draws.restore(state["seeds"], state["episodes"], state["steps"])
        self._freezes.left, self._outs.left = state["frozen_left"], state["out_left"]
        self._restarts.left = state["restart_left"]
        self._gone, self._down, self._forgot = state["gone"], state["down"], state["forgot"]
        for group, (channel, hands) in enumerate(zip(self._channels, self._hands, strict=True)):
            channel.set_state(_under(f"senses.{group}.", state))
            hands.set_state(_under(f"hands.{group}.", state))
        return self._shown(observation)


def _like(flags: Flags, block: Block) -> Flags:
    """Flags [B, N] with as many dimensions as a block [B, N, ...]."""
    return flags.reshape(*flags.shape, *(1,) * (block.ndim - 2))


def _under(prefix: str, state: Mapping[str, Block]) -> dict[str, Block]:
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
