"""What clients sent, laid beside what agents received: what came late or not at all, and how long the way took.

Sessions are matched by a digest of their ids, acts by their steps. Times are compared by the time of day, which is the
same for both where they are on one machine, or their clocks are kept together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from hmarl.recording.v1 import recording_pb2 as pb
from hmarl.runtime.recording.reader import Entry
from hmarl.runtime.recording.recorder import CLIENT

_Key = tuple[str, int]  # session and step


@dataclass
class Beside:
    """What came of it.

    Attributes:
        acts: of clients, in sessions that an agent recorded.
        in_time: of these, those that had a fresh action.
        late: those that an agent received, while the client's fallback decided.
        not_received: those that are in no agent's recording: lost on the way, or with an agent that was killed.
        different_inputs: acts whose observation or mask is not what the client sent.
        different_actions: fresh actions that are not what the agent computed.
        way_us: by quantile: how much longer a fresh action took than the policy itself.
        there_us: by quantile: from a client's call to the agent's beginning, of late acts too.
    """

    acts: int = 0
    in_time: int = 0
    late: int = 0
    not_received: int = 0
    different_inputs: int = 0
    different_actions: int = 0
    way_us: dict[str, float] = field(default_factory=dict)
    there_us: dict[str, float] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether all that arrived is what was sent."""
        return not self.different_inputs and not self.different_actions


def laid_beside(entries: Iterable[Entry]) -> Beside | None:
    """Lay both sides beside each other; None where one of them is missing.

    Raises:
        RecordingError: a file is damaged.
    """
    sent: dict[_Key, pb.Act] = {}
    received: dict[_Key, pb.Act] = {}
    sessions: dict[tuple[str, int], str] = {}
    for file, _, message in entries:
        episode = file.recording, message.episode
        if isinstance(message, pb.Episode):
            sessions[episode] = message.session
        elif isinstance(message, pb.Act) and file.side == CLIENT:
            sent[message.delivery.session or sessions.get(episode, ""), message.request.step] = message
        elif isinstance(message, pb.Act) and message.HasField("response"):
            received.setdefault((sessions.get(episode, ""), message.request.step), message)
    known = {session for session, _ in received if session}
    return _judged({key: act for key, act in sent.items() if key[0] in known}, received)


def _judged(sent: dict[_Key, pb.Act], received: dict[_Key, pb.Act]) -> Beside | None:
    if not sent:
        return None
    found, way_us, there_us = Beside(acts=len(sent)), [], []
    for key, act in sent.items():
        theirs = received.get(key)
        found.in_time += act.delivery.fresh
        if theirs is None:
            found.not_received += not act.delivery.fresh
            continue
        found.different_inputs += not _same_inputs(act, theirs)
        there_us.append((theirs.wall_ns - act.wall_ns) / 1e3)
        if act.delivery.fresh:
            found.different_actions += act.response.action != theirs.response.action
            way_us.append(act.latency_us - theirs.latency_us)
        else:
            found.late += 1
    found.way_us, found.there_us = _quantiles(way_us), _quantiles(there_us)
    return found


def _same_inputs(ours: pb.Act, theirs: pb.Act) -> bool:
    given, got = ours.request, theirs.request
    return bool(given.observation == got.observation and given.action_mask == got.action_mask)


def _quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    found = np.quantile(values, [0.5, 0.99, 1.0])
    return {name: round(float(value), 1) for name, value in zip(("p50", "p99", "max"), found, strict=True)}
