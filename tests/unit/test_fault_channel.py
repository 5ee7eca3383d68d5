"""What is sent through a faulty channel, and what arrives: held against one list of messages for each agent."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from hmarl.sdk.faults.channel import Channel

LEAD = (2, 3)
PARTS = [((2,), np.float32), ((), np.bool_)]
SHAPES = [(2, 3, 2), (2, 3)]


@dataclass
class Plain:
    """The messages of one agent in one environment: when each was sent, when it is due, and what it says."""

    sent: int = -1
    said: object = None
    under_way: list[tuple[int, int, object]] = field(default_factory=list)

    def step(self, clock: int, message: object, late: int, lost: bool, deaf: bool) -> bool:
        if not lost:
            self.under_way.append((clock, clock + late, message))
        if deaf:
            self.under_way = [each for each in self.under_way if each[1] > clock]
        due = [each for each in self.under_way if each[1] <= clock and each[0] > self.sent]
        if not due:
            return False
        self.sent, _, self.said = max(due)
        return True


def message(random: np.random.Generator) -> list[np.ndarray]:
    return [random.normal(size=(*LEAD, 2)).astype(np.float32), random.random(LEAD) < 0.5]


def of(parts: list[np.ndarray], row: int, agent: int) -> list[object]:
    return [part[row, agent].tolist() for part in parts]


@pytest.mark.parametrize("most_late", [0, 1, 4])
def test_what_is_held_is_the_newest_message_that_has_arrived(most_late: int) -> None:
    random, channel = np.random.default_rng(most_late), Channel(PARTS, LEAD, most_late)
    assert [(part.shape, part.dtype) for part in channel.held] == list(zip(SHAPES, (np.float32, np.bool_), strict=True))
    plain = {(row, agent): Plain(said=[[0.0, 0.0], False]) for row in range(LEAD[0]) for agent in range(LEAD[1])}
    copy = Channel(PARTS, LEAD, most_late)
    for clock in range(1, 200):
        sent, late, lost = message(random), random.integers(0, most_late + 1, LEAD), random.random(LEAD) < 0.3
        deaf = random.random(LEAD) < 0.2
        arrived = channel.send(sent, late, lost, deaf if clock % 3 else None)
        for (row, agent), own in plain.items():
            missed = bool(clock % 3 and deaf[row, agent])
            expected = own.step(clock, of(sent, row, agent), int(late[row, agent]), bool(lost[row, agent]), missed)
            assert arrived[row, agent] == expected
            assert of(channel.held, row, agent) == own.said
            assert channel.age[row, agent] == clock - own.sent
        if clock % 20 == 0:  # an episode begins for some: what was under way is forgotten
            begun, first = random.random(LEAD) < 0.5, message(random)
            channel.begin(begun, first)
            for (row, agent), own in plain.items():
                if begun[row, agent]:
                    own.sent, own.said = clock, of(first, row, agent)
                assert of(channel.held, row, agent) == own.said
                assert channel.age[row, agent] == clock - own.sent
        if clock % 33 == 0:  # another one goes on from here
            copy.set_state(channel.get_state())
            channel, copy = copy, channel


def test_a_state_that_was_read_stays_as_it_was() -> None:
    random, channel = np.random.default_rng(0), Channel(PARTS, LEAD, 2)
    now, never = np.zeros(LEAD, np.int64), np.zeros(LEAD, np.bool_)
    channel.send(message(random), now, never)
    state = channel.get_state()
    before = {name: array.copy() for name, array in state.items()}
    for _ in range(5):
        channel.send(message(random), now, never)
        channel.begin(~never, message(random))
    assert set(state) == {"clock", "due", "sent", "newest", "held.0", "held.1", "under_way.0", "under_way.1"}
    for number, (shape, dtype) in enumerate(PARTS):  # as many as may be under way
        kept = state[f"under_way.{number}"]
        assert (kept.shape, kept.dtype) == ((3, *LEAD, *shape), dtype)
    for name, array in state.items():
        np.testing.assert_array_equal(array, before[name])
    channel.set_state(state)
    assert channel.age.tolist() == [[0] * 3] * 2


def test_a_message_without_all_of_its_parts_is_refused() -> None:
    channel, never = Channel(PARTS, LEAD, 1), np.zeros(LEAD, np.bool_)
    short = message(np.random.default_rng(0))[:1]
    with pytest.raises(ValueError, match="zip"):
        channel.send(short, np.zeros(LEAD, np.int64), never)
    with pytest.raises(ValueError, match="zip"):
        channel.begin(~never, short)
