"""Teams of deployed policies: a bundle's graphs in this process, or a fleet of agent processes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from hmarl.runtime.bundle import AgentModel, Bundle, StateModel, from_json
from hmarl.runtime.choices import InstructionChoice, drawn_noises
from hmarl.runtime.session import Policy, noise_for
from hmarl.runtime.settings import PROVIDER
from hmarl.sdk.clients.agent import AgentStatistics, agent_spec, check_spec
from hmarl.sdk.clients.base import ClientOptions
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.clients.endpoints import (
    GRPC,
    at_once,
    bundle_of_endpoints,
    load_endpoints,
    load_security,
    nothing_listens,
    refusing,
    start_advice,
)
from hmarl.sdk.clients.security import Security
from hmarl.sdk.clients.together import on_one_bundle
from hmarl.sdk.clients.wires import is_frames
from hmarl.sdk.clock import now_s
from hmarl.sdk.environment import Observation
from hmarl.sdk.errors import UsageError
from hmarl.sdk.evaluation.annotation import TeamAnnotation
from hmarl.sdk.evaluation.assignment import assign
from hmarl.sdk.evaluation.instructions import instructed
from hmarl.sdk.fallback import Fallback
from hmarl.sdk.spaces import ActionSpace, AgentSpec, EnvironmentSpec

Block = npt.NDArray[Any]
_SETTLED_AFTER_S = 1.0  # a fleet that is given another bundle, and its endpoints file
_LOOK_AGAIN_S = 0.05


@dataclass(frozen=True)
class _Place:
    """Where one agent's data lie in the blocks of its group."""

    agent: AgentSpec
    index: int
    group: int
    position: int


def _places(spec: EnvironmentSpec) -> list[_Place]:
    return [
        _Place(spec.agents[index], index, group, position)
        for group, members in enumerate(spec.groups)
        for position, index in enumerate(members.agents)
    ]


def idle_actions(space: ActionSpace, leading: tuple[int, ...], mask: npt.NDArray[np.bool_] | None) -> Block:
    """Legal actions for rows whose action does not matter: 0 or the first legal one; the Box's point nearest to zero.

    Args:
        space: of the group.
        leading: leading dimensions of the block.
        mask: [*leading, mask_size] bool, or None.

    Returns:
        [*leading, *action_shape], int64 or float32.
    """
    if isinstance(space, spaces.Box):
        return np.broadcast_to(np.clip(np.float32(0), space.low, space.high), (*leading, *space.shape)).copy()
    if mask is None:
        return np.zeros((*leading, *(space.shape or ())), np.int64)
    if isinstance(space, spaces.Discrete):
        return np.asarray(mask.argmax(-1))
    branches = np.split(mask, np.cumsum(space.nvec)[:-1], axis=-1)
    return np.stack([branch.argmax(-1) for branch in branches], axis=-1)


class BundleTeam:
    """A bundle's policies in this process, each run once per step for all rows.

    What an agent remembers stands still while it is away, as in a session that is not asked. ``act`` raises
    ``NonFiniteError`` when a policy computes NaN or infinity in a row that matters, as a session does.

    Args:
        bundle: the verified bundle.
        spec: the environment's spec; every agent of it must be in the bundle, or fit an interchangeable one there.
        provider: ``cpu``, ``cuda`` or ``tensorrt``, the latter two optionally with ``:device``.
        sample: False for argmax or mean, True to draw actions with the numbers that served sessions draw.
        instruction_choice: see ``Agent.reset``; ignored by agents without instructions.
        name: for tables.

    Raises:
        UsageError: an agent is missing or does not fit the environment.
    """

    latency_of = "one agent's batched run"

    def __init__(
        self,
        bundle: Bundle,
        spec: EnvironmentSpec,
        *,
        provider: str = PROVIDER,
        sample: bool = False,
        instruction_choice: InstructionChoice | None = None,
        name: str = "bundle",
    ) -> None:
        self.name = name
        self._spec = spec
        self._places = _places(spec)
        source = f"bundle {bundle.path}"
        assigned = assign(source, spec, {agent.id: agent for agent in bundle.manifest.agents})
        likes = {name: None if name == own else own for name, own in assigned.items()}
        for agent in spec.agents:
            check_spec(agent_spec(bundle.agent(agent.id, likes[agent.id])), agent, source)
        self._policies = [Policy(bundle, place.agent.id, provider, likes[place.agent.id]) for place in self._places]
        self._noises = [drawn_noises(policy.agent, sample, instruction_choice) for policy in self._policies]
        self._states: list[dict[str, Block]] = [{} for _ in self._places]
        self._diagnostics: list[dict[str, Block]] = [{} for _ in self._places]
        self._asked: list[npt.NDArray[np.bool_]] = []  # [B] of each agent, at the last act
        self._seeds = np.zeros(0, np.int64)
        self._step = 0
        self._latencies_s: list[float] = []

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start B episodes: all recurrent state takes its reset value."""
        self._seeds = np.asarray(seeds)
        self._step = 0
        self._states = [{} for _ in self._places]  # left out of the feeds, states take their reset values
        self._asked = []

    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[Block, ...]:
        """Actions of all agents and rows; see ``Team.act``."""
        if observation.restarted is not None:
            self._forget(observation.restarted)
        self._asked = [running & observation.active[:, place.index] for place in self._places]
        columns = [self._run(number, observation, asked) for number, asked in enumerate(self._asked)]
        self._step += 1
        grouped: list[list[Block]] = [[] for _ in self._spec.groups]
        for place, column in zip(self._places, columns, strict=True):
            grouped[place.group].append(column)
        return tuple(np.stack(group, axis=1) for group in grouped)

    def _forget(self, restarted: npt.NDArray[np.bool_]) -> None:
        """All recurrent state of the agents ``restarted`` [B, N] takes its reset value."""
        for place, policy, states in zip(self._places, self._policies, self._states, strict=True):
            rows = restarted[:, place.index]
            for model in policy.agent.states if states and rows.any() else ():
                state = states[model.input].copy()
                state[rows] = np.asarray(model.reset, state.dtype).reshape(model.shape)
                states[model.input] = state

    def _run(self, number: int, observation: Observation, asked: npt.NDArray[np.bool_]) -> Block:
        """One agent's actions [B, *action_shape], of which those in the rows ``asked`` [B] matter."""
        place, policy, states = self._places[number], self._policies[number], self._states[number]
        observations, masks = observation.observations[place.group], observation.action_masks[place.group]
        model = policy.agent
        feeds = {model.observation.name: agent_spec(model).observed(observations[:, place.position]), **states}
        if model.action_mask is not None and masks is not None:
            feeds[model.action_mask.name] = np.ascontiguousarray(masks[:, place.position])
        if model.step is not None:
            feeds[model.step.name] = np.full(len(self._seeds), self._step, np.int64)
        for noise, stream in self._noises[number]:
            feeds[noise.name] = noise_for(noise, model.id, self._seeds, self._step, stream=stream)
        begin = time.perf_counter()
        outputs = policy.run_batch(feeds, finite=asked)
        self._latencies_s.append(time.perf_counter() - begin)
        self._states[number] = {state.input: self._carried(state, states, outputs, asked) for state in model.states}
        self._diagnostics[number] = {each.name: outputs[each.name] for each in model.diagnostics}
        return outputs[model.action.name]

    @staticmethod
    def _carried(
        state: StateModel, before: Mapping[str, Block], outputs: Mapping[str, Block], asked: npt.NDArray[np.bool_]
    ) -> Block:
        """[B, *shape] of a state: what follows in the rows ``asked`` [B], in others what was before."""
        after = outputs[state.output]
        reset = np.asarray(state.reset, after.dtype).reshape(state.shape)
        return np.where(asked.reshape(-1, *(1,) * len(state.shape)), after, before.get(state.input, reset))

    def explain(self, index: int = 0) -> TeamAnnotation | None:
        """Which instruction each agent followed in row ``index``, active those that were asked; None without any."""
        if not self._asked:
            return None
        told = [
            {name: rows[index] for name, rows in diagnostics.items()} if asked[index] else None
            for diagnostics, asked in zip(self._diagnostics, self._asked, strict=True)
        ]
        return instructed([policy.agent for policy in self._policies], told)

    def latencies_s(self) -> npt.NDArray[np.float64]:
        """[L] seconds of every batched run of one agent so far."""
        return np.asarray(self._latencies_s)

    def close(self) -> None:
        """Nothing to free."""


class FleetTeam:
    """Agents that other processes serve, over gRPC or frames; every agent and row has a session of its own.

    The agents' acts are sent at the same time, those of one agent's rows one after the other. An agent that is away is
    not asked, and told that its steps go by (``Agent.skip``): what it remembers stands still. When the fleet is given
    another bundle, running episodes end on the one before, and the next ``reset`` follows with all agents.

    Args:
        endpoints: address per agent, or the endpoints file that ``hmarl-fleet`` writes, whose bundle is then expected.
        spec: the environment's spec; every agent of it must have an endpoint. Where nothing private is drawn, an
            interchangeable agent that fits acts also for those without, in sessions of their own.
        sample: False for argmax or mean, True to draw actions.
        instruction_choice: see ``Agent.reset``.
        timeout_s: seconds that one act may take.
        fallback: decides when no fresh action arrives in time; by default that is an error.
        stream: send acts over streams instead of unary calls.
        wait: wait for agents that are being started, as clients do; False says within a second or so where nothing
            listens.
        security: how to reach the agents; by default as the endpoints file says.
        diagnostics: ask for the policies' further outputs, for ``explain``; acts take a bit longer.
        name: for tables.

    Attributes:
        bundles: how many episodes were started on each bundle, by its SHA-256.

    Raises:
        UsageError: an agent is missing or does not fit the environment, or is of another bundle than the file says, or
            than the other agents.
        AgentError: no agent answers at an address; names all such addresses.
    """

    def __init__(
        self,
        endpoints: Mapping[str, str] | Path | str,
        spec: EnvironmentSpec,
        *,
        sample: bool = False,
        instruction_choice: InstructionChoice | None = None,
        timeout_s: float = 5.0,
        fallback: Fallback | None = None,
        stream: bool = False,
        wait: bool = True,
        security: Security | None = None,
        diagnostics: bool = False,
        name: str = "gRPC fleet",
    ) -> None:
        self.name = name
        self.bundles: dict[str, int] = {}
        self._spec = spec
        self._places = _places(spec)
        door = None if security is None else GRPC  # frames need none
        self._addresses = endpoints if isinstance(endpoints, Mapping) else load_endpoints(endpoints, door)
        by_frames = all(map(is_frames, self._addresses.values()))
        self.latency_of = f"one agent's act over {'frames' if by_frames else 'gRPC'}"
        self._file = None if isinstance(endpoints, Mapping) else Path(endpoints)
        self._sha256 = ""
        if security is None and not isinstance(endpoints, Mapping):
            security = load_security(endpoints)
        self._security = security
        self._sample = sample
        self._instruction_choice = instruction_choice
        if not wait:
            self._check_listening(endpoints)
        self._assigned = self._assign()
        self._client_options: ClientOptions = {
            "timeout_s": timeout_s,
            "fallback": fallback,
            "stream": stream,
            "security": security,
            "diagnostics": diagnostics,
        }
        self._diagnostics: dict[tuple[int, int], Mapping[str, Block]] = {}  # by agent and row
        self._clients: list[list[AgentClient]] = [[] for _ in self._places]
        # Steps at which agents were away: by agent and row, of which the server has not said yet that they are missing
        # there; and by agent, of which it has.
        self._away: dict[tuple[int, int], int] = {}
        self._absences = [0 for _ in self._places]
        self._seeds = np.zeros(0, np.int64)
        self._step = 0
        self._playing = ""  # the bundle of the present episodes
        self._latencies_s: list[float] = []
        self._pool = ThreadPoolExecutor(max_workers=len(self._places), thread_name_prefix="hmarl-team")
        try:
            self._connect(1)
            self._sha256 = self._agreed()
        except Exception:
            self.close()
            raise

    def _check_listening(self, endpoints: Mapping[str, str] | Path | str) -> None:
        """Say at once when nothing listens where an agent of the environment is to be."""
        own = {name: self._addresses[name] for name in self._spec.agent_ids if name in self._addresses}
        absent = refusing(own or self._addresses, self._security)
        if absent:
            raise nothing_listens(absent, self._addresses, start_advice(endpoints))

    def _assign(self) -> dict[str, str]:
        """Who acts for whom: each agent for itself, or an interchangeable agent for one that has no endpoint."""
        if self._addresses.keys() >= set(self._spec.agent_ids):
            return {name: name for name in self._spec.agent_ids}
        models = at_once(self._model, self._addresses)
        assigned = assign("endpoints", self._spec, models)
        for name, server in assigned.items():
            drawn = drawn_noises(models[server], self._sample, self._instruction_choice)
            if name != server and any(stream == "private" for _, stream in drawn):
                raise UsageError(
                    f"endpoints: no agent '{name}', which the environment has; '{server}' could act for it, but its "
                    "random numbers would be those of both: serve one more (hmarl-fleet --count or --agents)"
                )
        return assigned

    def _model(self, name: str) -> AgentModel:
        """What is served at an agent's address."""
        with AgentClient(self._addresses[name], security=self._security) as client:
            return from_json(AgentModel, client.info.agent_manifest_json)

    def _connect(self, rows: int) -> None:
        """Make sure that every agent has a client for each of ``rows`` rows.

        Raises:
            AgentError: no agent answers at some addresses; names all of them.
            UsageError: an agent does not fit the environment.
        """
        rows_of = {place.agent.id: (place.agent, self._clients[number]) for number, place in enumerate(self._places)}

        def connect(agent_id: str) -> None:
            agent, clients = rows_of[agent_id]
            server = self._assigned[agent_id]
            options: ClientOptions = {**self._client_options, "expected": replace(agent, id=server)}
            while len(clients) < rows:
                clients.append(AgentClient(self._addresses[server], **options))

        at_once(connect, rows_of)

    def _agreed(self) -> str:
        """The bundle that all agents serve, and the endpoints file names; a fleet that changes it gets a moment.

        Agents of several bundles have not learnt to play together.

        Raises:
            UsageError: they do not agree.
        """
        deadline = now_s() + _SETTLED_AFTER_S
        firsts = {self._assigned[place.agent.id]: self._clients[number][0] for number, place in enumerate(self._places)}
        while True:
            got = at_once(lambda server: firsts[server].current_bundle(), firsts)
            named = None if self._file is None else bundle_of_endpoints(self._file)
            expected = named or next(iter(got.values()))
            stranger = next((server for server, sha256 in got.items() if sha256 != expected), None)
            if stranger is None:
                return expected
            if now_s() > deadline:
                raise UsageError(
                    f"endpoints: agent '{stranger}' at {firsts[stranger].address}: got bundle {got[stranger]}, "
                    f"expected {expected}, which the endpoints file names or the other agents are of: is the file that "
                    "of a fleet that has ended?"
                )
            time.sleep(_LOOK_AGAIN_S)

    @property
    def clients(self) -> dict[str, list[AgentClient]]:
        """The clients of every agent, one per row; for their statistics."""
        return {place.agent.id: list(self._clients[number]) for number, place in enumerate(self._places)}

    @property
    def statistics(self) -> AgentStatistics:
        """What all clients have counted so far, together; steps at which an agent was away are none that it missed."""
        total = AgentStatistics()
        for clients in self._clients:
            for client in clients:
                total.add(client.statistics)
        total.missed_steps -= sum(self._absences)
        return total

    def reset(self, seeds: npt.NDArray[np.int64]) -> None:
        """Start B episodes: one session per agent and row, all of one bundle."""
        self._connect(len(seeds))
        self._seeds, self._step = np.asarray(seeds), 0
        self._diagnostics = {}
        rows = range(len(seeds))

        def start_all(sha256: str) -> None:
            self._playing = sha256
            starts = [self._pool.submit(self._start, number, rows) for number in range(len(self._places))]
            wait(starts)  # for all: should one of them be refused, all are started anew
            for each in starts:
                each.result()

        played = on_one_bundle(self._clients[0][0], start_all)
        if played != self._sha256:
            self._sha256 = self._agreed()
        self.bundles[played] = self.bundles.get(played, 0) + len(seeds)

    def _start(self, number: int, rows: Iterable[int]) -> None:
        """One agent's episodes begin, or are joined at this step with nothing remembered; on the team's bundle."""
        for row in rows:
            self._away[number, row] = 0
            self._clients[number][row].reset(
                int(self._seeds[row]),
                sample=self._sample,
                instruction_choice=self._instruction_choice,
                first_step=self._step,
                bundle_sha256=self._playing,
            )

    def act(self, observation: Observation, running: npt.NDArray[np.bool_]) -> tuple[Block, ...]:
        """Actions of all agents and rows; only running rows, and agents that are still there, are asked."""
        self._diagnostics = {}
        blocks = tuple(
            idle_actions(group.example.action_space, block.shape[:2], mask)
            for group, block, mask in zip(
                self._spec.groups, observation.observations, observation.action_masks, strict=True
            )
        )

        def ask(number: int) -> list[float]:
            place = self._places[number]
            there = observation.active[:, place.index]
            rows = np.flatnonzero(running & there)
            if observation.restarted is not None:
                self._start(number, np.flatnonzero(running & observation.restarted[:, place.index]))
            for row in map(int, np.flatnonzero(running & ~there)):
                self._clients[number][row].skip(away=True)
                self._away[number, row] += 1
            return [self._act_row(number, int(row), observation, blocks[place.group]) for row in rows]

        for latencies in self._pool.map(ask, range(len(self._places))):
            self._latencies_s.extend(latencies)
        self._step += 1
        return blocks

    def _act_row(self, number: int, row: int, observation: Observation, actions: Block) -> float:
        """Ask one agent for one row's action and put it into its place; returns the latency in seconds."""
        place, client = self._places[number], self._clients[number][row]
        masks = observation.action_masks[place.group]
        mask = None
        if client.spec.has_action_mask:
            mask = np.ones(client.spec.mask_size, np.bool_) if masks is None else masks[row, place.position]
        missed = client.statistics.missed_steps
        action = client.act(client.spec.observed(observation.observations[place.group][row, place.position]), mask)
        missed = client.statistics.missed_steps - missed
        if action.fresh or missed:
            self._absences[number] += min(self._away[number, row], missed)
            self._away[number, row] = 0
        actions[row, place.position] = action.action
        self._diagnostics[number, row] = action.diagnostics
        return action.latency_s

    def explain(self, index: int = 0) -> TeamAnnotation | None:
        """Which instruction each agent followed in row ``index``, active those that were asked; None without any."""
        numbers = range(len(self._places))
        models = [from_json(AgentModel, self._clients[number][index].info.agent_manifest_json) for number in numbers]
        return instructed(models, [self._diagnostics.get((number, index)) for number in numbers])

    def latencies_s(self) -> npt.NDArray[np.float64]:
        """[L] seconds of every act of one agent so far."""
        return np.asarray(self._latencies_s)

    def close(self) -> None:
        """End all episodes and disconnect, once acts that are under way have ended."""
        self._pool.shutdown(cancel_futures=True)  # first: a client takes one call at a time
        clients = [client for row in self._clients for client in row]
        for row in self._clients:
            row.clear()
        # At the same time: an agent that does not answer costs each of its clients a moment.
        with ThreadPoolExecutor(max_workers=32, thread_name_prefix="hmarl-close") as closing:
            list(closing.map(AgentClient.close, clients))
