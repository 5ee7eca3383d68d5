"""Runs a recording again, in this process, and compares what comes out bit for bit.

A policy is a pure function of what was recorded: weights, seed, steps, observations and masks, and the recurrent state
that follows from them. Whatever differs has a cause: another bundle, another machine or library, or a fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.messages import choice_name
from hmarl.agent.v1.tensors import WireError, to_own_array
from hmarl.recording.v1 import recording_pb2 as pb
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.choices import checked_choice
from hmarl.runtime.errors import HmarlError, ObservationError, RecordingError, StepOrderError, UsageError, one_line
from hmarl.runtime.manifest import AgentModel, from_json
from hmarl.runtime.recording.reader import BoxFile, Entry
from hmarl.runtime.recording.recorder import CLIENT, step_after
from hmarl.runtime.session import Action, Policy, PolicySession

Array = npt.NDArray[Any]
OpenPolicy = Callable[[Bundle, str, str | None], Policy]
_Found = tuple[str, str, str, float | None]  # what differs: field, got, recorded, largest difference
# Why an act is not compared.
UNDESCRIBED = "their episode is not in the recording"
AFTER_GAP = "they follow a gap, after which the recurrent state is taken from the recording"
NO_INPUTS = "they were refused, and what was given has not even the form of an observation, or of a step"
NO_REPLY = "no fresh reply came, so that the fallback decided"
UNKNOWN_STATE = "a client is not told a recurrent policy's state, and may not know which steps it received"
BEFORE_FILE = "they repeat a step from before the recording"
_SHOWN = 6
_SHOWN_EPISODES = 100


@dataclass(frozen=True)
class Difference:
    """The first act of an episode that does not come out the same.

    Attributes:
        file: where it is recorded.
        agent_id: whose.
        episode: its number in the recording.
        seed: the episode's.
        step: which one.
        field: what differs: an output, ``missed_steps`` or ``refusal``.
        got: what came out now.
        recorded: what came out then.
        largest: the largest difference of two numbers; None where they are none.
        others: what else differs at this step.
    """

    file: str
    agent_id: str
    episode: int
    seed: int
    step: int
    field: str
    got: str
    recorded: str
    largest: float | None
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        by = "" if self.largest is None else f", largest difference {self.largest:.3g}"
        more = f"; {', '.join(self.others)} differ too" if self.others else ""
        return (
            f"agent '{self.agent_id}', episode {self.episode} (seed {self.seed}), step {self.step}: {self.field}: "
            f"got {self.got}, recorded {self.recorded}{by}{more}"
        )


@dataclass
class ReplayReport:
    """What came of it.

    Attributes:
        episodes: how many were run.
        acts: acts in the recording.
        compared: of these, those that were run again.
        skipped: the others, by why they were not.
        missing: acts that the recording says it left out.
        compared_bytes: of all outputs.
        differing_bytes: of these.
        differing_acts: of those that were compared.
        differences: of each episode that differs the first one; not of more than a hundred episodes.
    """

    episodes: int = 0
    acts: int = 0
    compared: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    compared_bytes: int = 0
    differing_bytes: int = 0
    differing_acts: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return self.differing_acts == 0


class _Live:
    """An episode that is being run again."""

    def __init__(self, said: pb.Episode, session: PolicySession, file: BoxFile) -> None:
        self.said = said
        self.session = session
        self.from_client = file.side == CLIENT
        self.key = said.session
        self.next_sequence: int | None = None
        self.lost = said.states_lost
        self.fresh = True  # it has not acted since it was started
        self.differs = False
        self.unanswered: list[pb.Act] = []

    @property
    def recurrent(self) -> bool:
        return self.session.policy.recurrent

    def start(self, first_step: int, states: Mapping[str, Array]) -> None:
        """Start the episode, or go on with it somewhere else."""
        start = self.said.start
        self.session.reset(
            start.seed,
            sample=start.sample,
            instruction_choice=checked_choice(choice_name(start.instruction_choice)),
            first_step=first_step,
            states=states,
            next_states=True,
        )
        self.fresh = True

    def go_on(self, first_step: int, states: Mapping[str, agent_pb2.Tensor]) -> None:
        """Go on in the middle; where the states that are given are none of this policy, its state is lost."""
        try:
            self.start(first_step, _states(states))
        except (WireError, ObservationError):
            self.lost = self.recurrent
            self.start(first_step, {})


class Replayer:
    """Runs entries of recordings again, one after the other.

    Args:
        bundles: on which they may have been played.
        any_bundle: run all episodes on the first one, whatever they were played on.
        open_policy: that of an agent, as ``Policy`` of bundle, agent and ``like``. Programs try the graphs first.

    Attributes:
        report: of all that was run so far.
    """

    def __init__(
        self, bundles: Sequence[Bundle], any_bundle: bool = False, open_policy: OpenPolicy | None = None
    ) -> None:
        self._bundles = {bundle.sha256: bundle for bundle in bundles}
        self._instead = bundles[0] if any_bundle else None
        self._open_policy = open_policy or _opened
        self._policies: dict[tuple[str, str, str], Policy] = {}
        self._live: dict[tuple[str, int], _Live] = {}
        self.report = ReplayReport()

    def run(self, entries: Iterable[Entry]) -> ReplayReport:
        """Run all of them.

        Raises:
            RecordingError: a file is damaged, or a bundle is needed that is not there.
            BundleError: a bundle's graph does not run.
        """
        for entry in entries:
            try:
                self._take(entry)
            except (WireError, UsageError, ObservationError) as error:
                raise RecordingError(f"{entry.file.path}: cannot be run again: {error}") from error
        return self.report

    def _take(self, entry: Entry) -> None:
        file, _, message = entry
        key = file.recording, message.episode
        if isinstance(message, pb.Episode):
            if key not in self._live:
                self._live[key] = self._begun(file, message)
        elif isinstance(message, pb.Gap):
            self.report.missing += message.acts
        elif isinstance(message, pb.End):
            self._live.pop(key, None)
        else:
            self.report.acts += 1
            live = self._live.get(key)
            why = UNDESCRIBED if live is None else self._act(file, live, message)
            if why is None:
                self.report.compared += 1
            else:
                self.report.skipped[why] += 1

    def _begun(self, file: BoxFile, said: pb.Episode) -> _Live:
        live = _Live(said, self._policy(file, said).session(), file)
        if said.goes_on:
            live.go_on(said.start.first_step, said.states)
        else:
            live.start(said.start.first_step, _states(said.states))
        self.report.episodes += 1
        return live

    def _policy(self, file: BoxFile, said: pb.Episode) -> Policy:
        bundle = self._instead or self._bundles.get(said.bundle_sha256)
        about = file.bundles.get(said.bundle_sha256, {})
        if bundle is None:
            name = f" ('{one_line(about['name'], 100)}')" if about.get("name") else ""
            raise RecordingError(
                f"{file.path}: episode {said.episode} of agent '{one_line(said.agent_id, 100)}': got bundle "
                f"{', '.join(self._bundles)}, expected {one_line(said.bundle_sha256, 100)}{name}, on which it was "
                "played: give that one too with --bundle, or run it on another one with --any-bundle"
            )
        key = bundle.sha256, said.agent_id, about.get("like", "")
        if key not in self._policies:
            self._policies[key] = self._open_policy(bundle, said.agent_id, _like(bundle, said.agent_id, about))
        return self._policies[key]

    def _act(self, file: BoxFile, live: _Live, act: pb.Act) -> str | None:
        """Run one act again and compare; returns why that is not possible."""
        gap = live.next_sequence is not None and act.sequence != live.next_sequence
        live.next_sequence = act.sequence + 1
        if gap and (live.recurrent or not live.from_client):
            live.lost = True
        if live.from_client:
            why = self._what_arrived(live, act)
        elif live.lost:
            why = self._after_gap(live, act)
        else:
            repeats = act.response.replayed or act.refusal.kind == StepOrderError.__name__
            why = BEFORE_FILE if repeats and live.fresh else None
        if why is not None:
            return why
        if act.HasField("refusal"):
            return self._refused(file, live, act)
        live.fresh = False
        try:
            action = _acted(live.session, act)
        except HmarlError as error:
            self._differ(file, live, act, [("refusal", f"{type(error).__name__}: {error}", "an action", None)])
            return None
        self._compare(file, live, act, action)
        return None

    def _after_gap(self, live: _Live, act: pb.Act) -> str | None:
        """Take up an episode of which acts are missing."""
        if not act.HasField("response") or act.response.replayed:
            return AFTER_GAP
        if not live.recurrent:
            live.lost = False
            live.start(act.request.step - act.response.missed_steps, {})
            return None
        outputs, states = act.response.diagnostics, live.session.policy.agent.states
        if all(state.output in outputs for state in states):
            live.lost = False
            live.go_on(step_after(act.request.step), {state.input: outputs[state.output] for state in states})
        return AFTER_GAP

    def _what_arrived(self, live: _Live, act: pb.Act) -> str | None:
        """Bring the session to where the agent's was when it got a request, as far as its client can know that."""
        if act.refusal.kind == ObservationError.__name__:
            return NO_REPLY  # the step is not used up
        if act.delivery.session not in ("", live.key):
            live.key, live.lost = act.delivery.session, False
            live.unanswered.clear()
            live.start(act.request.step, {})  # joined again
        if not act.delivery.fresh:
            live.unanswered.append(act)
            return NO_REPLY
        unanswered, live.unanswered = live.unanswered, []
        missed = act.response.missed_steps
        if live.recurrent and unanswered and missed not in (0, len(unanswered)):
            live.lost = True
        if live.lost:
            return UNKNOWN_STATE
        if not missed:
            try:
                for each in unanswered:
                    _acted(live.session, each)
            except (WireError, HmarlError):  # it was not even an observation: what the agent made of it is not known
                live.lost = live.recurrent
        return UNKNOWN_STATE if live.lost else None

    def _refused(self, file: BoxFile, live: _Live, act: pb.Act) -> str | None:
        if not act.request.HasField("observation") or act.refusal.kind == UsageError.__name__:  # of a step that is none
            return NO_INPUTS
        recorded = f"{act.refusal.kind}: {act.refusal.message}"
        try:
            action = _acted(live.session, act)
        except HmarlError as error:
            got = f"{type(error).__name__}: {one_line(error)}"
            if got != recorded:
                self._differ(file, live, act, [("refusal", got, recorded, None)])
        else:
            self._differ(file, live, act, [("refusal", f"action {_shown(np.asarray(action.action))}", recorded, None)])
        return None

    def _compare(self, file: BoxFile, live: _Live, act: pb.Act, action: Action) -> None:
        reply = act.response
        found: list[_Found] = []
        recorded = {"action": to_own_array(reply.action, "action")}
        recorded |= {name: to_own_array(tensor, name) for name, tensor in sorted(reply.diagnostics.items())}
        computed = {"action": np.asarray(action.action), **action.diagnostics}
        for name, then in recorded.items():
            now = computed.get(name)
            self.report.compared_bytes += then.nbytes
            if now is None or (now.dtype, now.shape) != (then.dtype, then.shape):
                self.report.differing_bytes += then.nbytes
                got = "no such output" if now is None else f"{now.dtype} {now.shape}"
                found.append((name, got, f"{then.dtype} {then.shape}", None))
            elif now.tobytes() != then.tobytes():
                bits = np.frombuffer(now.tobytes(), np.uint8) != np.frombuffer(then.tobytes(), np.uint8)
                self.report.differing_bytes += int(np.count_nonzero(bits))
                found.append((name, *_where_differ(now, then)))
        if action.missed_steps != reply.missed_steps and not live.from_client:
            found.append(("missed_steps", str(action.missed_steps), str(reply.missed_steps), None))
        if found:
            self._differ(file, live, act, found)

    def _differ(self, file: BoxFile, live: _Live, act: pb.Act, found: Sequence[_Found]) -> None:
        self.report.differing_acts += 1
        if live.differs or len(self.report.differences) >= _SHOWN_EPISODES:
            return
        live.differs = True
        name, got, recorded, largest = found[0]
        said = live.said
        self.report.differences.append(
            Difference(
                file=str(file.path),
                agent_id=one_line(said.agent_id, 100),
                episode=said.episode,
                seed=said.start.seed,
                step=act.request.step,
                field=one_line(name, 100),
                got=one_line(got),
                recorded=one_line(recorded),
                largest=largest,
                others=tuple(one_line(other, 100) for other, *_ in found[1:]),
            )
        )


def _like(bundle: Bundle, agent_id: str, about: Mapping[str, str]) -> str | None:
    """By whose graph an agent acts that was not trained; a client knows only what that graph's file is called."""
    if about.get("like") or agent_id in bundle.agent_ids:
        return about.get("like") or None
    try:
        file = from_json(AgentModel, about.get("agent_manifest", "")).file
    except ValueError:
        return None
    return next((known for known in bundle.agent_ids if bundle.agent(known).file == file), None)


def _opened(bundle: Bundle, agent_id: str, like: str | None) -> Policy:
    return Policy(bundle, agent_id, like=like)


def _acted(session: PolicySession, act: pb.Act) -> Action:
    """The act once more."""
    request = act.request
    mask = to_own_array(request.action_mask, "action_mask") if request.HasField("action_mask") else None
    return session.act(to_own_array(request.observation, "observation"), mask, step=request.step)


def _states(tensors: Mapping[str, agent_pb2.Tensor]) -> dict[str, Array]:
    return {name: to_own_array(tensor, name) for name, tensor in tensors.items()}


def _where_differ(now: Array, then: Array) -> tuple[str, str, float | None]:
    """What differs of two arrays of the same form, in words, and the largest difference of two numbers."""
    with np.errstate(all="ignore"):
        distance = np.abs(now.astype(np.float64) - then.astype(np.float64))
    largest = float(np.max(distance, initial=0.0)) if np.isfinite(distance).all() else None
    return _shown(now), _shown(then), largest


def _shown(array: Array) -> str:
    """A few numbers of an array."""
    if array.ndim == 0:
        return str(array.item())
    flat = [f"{value:.9g}" if array.dtype.kind == "f" else str(value) for value in array.reshape(-1)[:_SHOWN]]
    return f"[{', '.join(flat)}{', …' if array.size > _SHOWN else ''}]"
