"""What a report page shows of a recording: its episodes in short, and one of them, as all agents saw it, in full."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.tensors import WireError, to_own_array
from hmarl.recording.v1 import recording_pb2 as pb
from hmarl.runtime.errors import RecordingError
from hmarl.runtime.recording.reader import Entry
from hmarl.sdk.errors import UsageError

Array = npt.NDArray[Any]
_EXACT = 2**53  # up to which float64 holds every integer
Key = tuple[str, int]  # which process recorded it, and its number there


@dataclass
class EpisodeSummary:
    """One episode in short.

    Attributes:
        key: which.
        side: ``agent`` or ``client``.
        said: what the recording says of it.
        first_step: of its acts; None where there are none.
        last_step: likewise.
        latencies_us: of its acts, in order.
        fallbacks: acts of a client without a fresh action.
        refused: acts that ended with an error.
        missing: acts that were not recorded.
        reason: why it ended; empty: it had not ended.
    """

    key: Key
    side: str
    said: pb.Episode
    first_step: int | None = None
    last_step: int | None = None
    latencies_us: array[float] = field(default_factory=lambda: array("d"))
    fallbacks: int = 0
    refused: int = 0
    missing: int = 0
    reason: str = ""

    @property
    def who(self) -> str:
        """The agent, and the side when it is not the agent's own."""
        return self.said.agent_id if self.side == "agent" else f"{self.said.agent_id} ({self.side})"


@dataclass
class ShownEpisode:
    """One episode in full.

    Attributes:
        summary: the same in short.
        acts: all that were recorded.
    """

    summary: EpisodeSummary
    acts: list[pb.Act] = field(default_factory=list)

    @property
    def counted_from(self) -> int:
        """The step from which ``steps`` counts: 0, or the lowest where there are larger ones than a float64 holds."""
        steps = [act.request.step for act in self.acts]
        return min(steps) if max(steps, default=0) > _EXACT else 0

    @property
    def steps(self) -> npt.NDArray[np.float64]:
        """[acts] the step of each, less ``counted_from``."""
        begin = self.counted_from
        return np.array([act.request.step - begin for act in self.acts], np.float64)

    @property
    def latencies_us(self) -> npt.NDArray[np.float64]:
        """[acts] how long each took."""
        return np.array([act.latency_us for act in self.acts])

    @property
    def observations(self) -> Array:
        """[acts, D] float64; NaN where none was recorded; nothing of pictures."""
        seen = [act.request.observation if act.request.HasField("observation") else None for act in self.acts]
        return _stacked([None if each is None or len(each.shape) == 3 else _row(each) for each in seen])

    def pictures(self, most: int) -> dict[int, Array]:
        """By step, the pictures [height, width, channels] that were observed, ``most`` of them, evenly spread."""
        seen = [act.request for act in self.acts if len(act.request.observation.shape) == 3]
        places = np.unique(np.linspace(0, len(seen) - 1, min(most, len(seen))).astype(int))
        return {seen[place].step: _own(seen[place].observation) for place in places}

    @property
    def actions(self) -> Array:
        """[acts, branches or D] float64; NaN where there was none."""
        return _stacked([_row(act.response.action) if act.HasField("response") else None for act in self.acts])

    @property
    def fallbacks(self) -> npt.NDArray[np.bool_]:
        """[acts] whether a client's fallback chose the action."""
        return np.array([self.summary.side == "client" and not act.delivery.fresh for act in self.acts], bool)

    @property
    def refused(self) -> npt.NDArray[np.bool_]:
        """[acts] whether it ended with an error."""
        return np.array([act.HasField("refusal") for act in self.acts], bool)

    @property
    def timeout_us(self) -> float | None:
        """What a client waited for at most; None for an agent."""
        timeouts = [act.delivery.timeout_us for act in self.acts if act.HasField("delivery")]
        return max(timeouts) if timeouts else None

    def further(self) -> dict[str, Array]:
        """[acts, size] further outputs by name."""
        names = sorted({name for act in self.acts for name in act.response.diagnostics})
        return {
            name: _stacked(
                [
                    _row(act.response.diagnostics[name]) if name in act.response.diagnostics else None
                    for act in self.acts
                ]
            )
            for name in names
        }


def summaries(entries: Iterable[Entry]) -> dict[Key, EpisodeSummary]:
    """All episodes in short.

    Raises:
        RecordingError: a file is damaged.
    """
    found: dict[Key, EpisodeSummary] = {}
    for entry in entries:
        message, key = entry.message, (entry.file.recording, entry.message.episode)
        if isinstance(message, pb.Episode):
            found.setdefault(key, EpisodeSummary(key, entry.file.side, message))
        elif (summary := found.get(key)) is not None:
            _add(summary, message)
    return found


def _add(summary: EpisodeSummary, message: pb.Act | pb.Gap | pb.End) -> None:
    if isinstance(message, pb.Act):
        summary.last_step = message.request.step
        if summary.first_step is None:
            summary.first_step = message.request.step
        summary.latencies_us.append(message.latency_us)
        refused = message.HasField("refusal")
        summary.refused += refused
        summary.fallbacks += summary.side == "client" and not message.delivery.fresh and not refused
    elif isinstance(message, pb.Gap):
        summary.missing += message.acts
    else:
        summary.reason = message.reason


def chosen(found: dict[Key, EpisodeSummary], seed: int | None, differing: Sequence[int]) -> list[EpisodeSummary]:
    """The episode to be shown, as each agent, and each client, saw it.

    Args:
        found: all of them.
        seed: of the episode; None takes the first that differs when it is run again, or else the one with the most
            fallbacks and refusals.
        differing: seeds of those that differ.

    Raises:
        UsageError: there is none of this seed.
    """
    if seed is None and differing:
        seed = differing[0]
    if seed is None:
        most = max(found.values(), key=lambda each: each.fallbacks + each.refused, default=None)
        seed = None if most is None else most.said.start.seed
    of_seed = [each for each in found.values() if each.said.start.seed == seed]
    if not of_seed:
        seeds = sorted({each.said.start.seed for each in found.values()})
        shown = ", ".join(map(str, seeds[:20])) or "none"
        raise UsageError(f"--seed: got {seed}, expected one of an episode in the recording: {shown}")
    first: dict[str, EpisodeSummary] = {}
    for each in of_seed:  # rejoined, an episode has several sessions at the agent: the longest is shown
        if each.who not in first or len(each.latencies_us) > len(first[each.who].latencies_us):
            first[each.who] = each
    return [first[who] for who in sorted(first)]


def collected(entries: Iterable[Entry], wanted: Sequence[EpisodeSummary]) -> list[ShownEpisode]:
    """Episodes in full.

    Raises:
        RecordingError: a file is damaged.
    """
    shown = {summary.key: ShownEpisode(summary) for summary in wanted}
    for entry in entries:
        episode = shown.get((entry.file.recording, entry.message.episode))
        if episode is not None and isinstance(entry.message, pb.Act):
            episode.acts.append(entry.message)
    return list(shown.values())


def _row(tensor: agent_pb2.Tensor) -> Array:
    return _own(tensor).reshape(-1).astype(np.float64)


def _own(tensor: agent_pb2.Tensor) -> Array:
    try:
        return to_own_array(tensor, "a recorded tensor")
    except WireError as error:
        raise RecordingError(str(error)) from error


def _stacked(rows: Sequence[Array | None]) -> Array:
    """[rows, the longest's length]; NaN where a row is missing."""
    width = max((len(row) for row in rows if row is not None), default=0)
    table = np.full((len(rows), width), np.nan)
    for index, row in enumerate(rows):
        if row is not None:
            table[index, : len(row)] = row
    return table
