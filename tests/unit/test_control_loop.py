"""A control loop with agents in this process: who is asked, what is done, what is counted, how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmarl.runtime.bundle import Bundle
from hmarl.sdk import (
    Action,
    ActionLimits,
    AsyncControlLoop,
    Call,
    Command,
    ControlLoop,
    Hold,
    LocalAgent,
    MisuseError,
    NoOp,
    ObservationError,
    OverrunError,
    StaleActionError,
    StampedObservation,
    UsageError,
    Zero,
)
from hmarl.sdk.clients.async_client import AsyncAgentClient
from hmarl.sdk.clients.faulty_agent import FaultyAgent
from toy_bundle import write_toy_bundle

RATE_HZ = 20.0
SEEN = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
Run = Callable[..., Any]
WHO: ContextVar[str] = ContextVar("WHO", default="outside")


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two agents with continuous actions in [-1, 1] x [0, 10]."""
    return write_toy_bundle(tmp_path_factory.mktemp("arms") / "bundle", action="box", plain=True)


class HeldUp(LocalAgent):
    """A policy in this process that does not answer as long as it is told so."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.may_answer = threading.Event()
        self.may_answer.set()

    def act(self, *arguments: Any) -> Action:
        action = super().act(*arguments)
        assert self.may_answer.wait(60)
        return action


class Robot:
    """Shows what it is given to show, and remembers what it is told."""

    def __init__(self, *ids: str, at: Mapping[int, Callable[[], object]] | None = None) -> None:
        self.ids, self.told, self.reads = ids, list[Mapping[str, Command]](), 0
        self._at = at or {}

    def read(self) -> Mapping[str, Any]:
        self.reads += 1
        return dict.fromkeys(self.ids, SEEN[self.reads - 1])

    def write(self, commands: Mapping[str, Command]) -> None:
        self._at.get(len(self.told), int)()
        self.told.append(commands)

    def reasons(self, agent_id: str) -> list[str | None]:
        return [commands[agent_id].reason for commands in self.told]


@pytest.fixture
def two(arms: Bundle) -> Iterator[tuple[HeldUp, LocalAgent]]:
    agents = HeldUp(arms, "agent_0"), LocalAgent(arms, "agent_1")
    for agent in agents:
        agent.reset(1)
    yield agents
    agents[0].may_answer.set()


def blocking(rate_hz: float, agents: Any, read: Any, write: Any, *, how: Any = None, **options: Any) -> Any:
    with ControlLoop(rate_hz, agents, read, write, **options) as loop:
        return loop.run(**(how or {}))


def awaited(rate_hz: float, agents: Any, read: Any, write: Any, *, how: Any = None, **options: Any) -> Any:
    async def later_read() -> Any:
        return read()

    async def play() -> Any:
        return await AsyncControlLoop(rate_hz, agents, later_read, write, **options).run(**(how or {}))

    return asyncio.run(play())


both = pytest.mark.parametrize("run", [blocking, awaited], ids=["blocking", "asyncio"])


@both
def test_agents_do_what_their_policies_say(run: Run, two: tuple[Any, ...], arms: Bundle) -> None:
    robot, expected = Robot("agent_0", "agent_1"), {}
    for agent_id in robot.ids:
        with LocalAgent(arms, agent_id) as alone:
            alone.reset(1)
            expected[agent_id] = [alone.act(each).action for each in SEEN[:5]]
    summary = run(RATE_HZ, two, robot.read, robot.write, fallback=Zero(), how={"ticks": 5})
    for number, commands in enumerate(robot.told):
        for agent_id, command in commands.items():
            if command.fresh:  # a busy machine may be too slow for some
                np.testing.assert_array_equal(command.action, expected[agent_id][number])
    assert summary.ticks == 5
    assert all(agent.ticks == agent.fresh + sum(agent.fallbacks.values()) == 5 for agent in summary.agents.values())
    assert sum(agent.fresh for agent in summary.agents.values()) >= 5
    assert json.loads(json.dumps(summary.as_dict()))["agents"]["agent_1"]["act_s"]["count"] > 0
    assert max(map(len, str(summary).splitlines())) <= 80


@both
def test_one_that_is_slow_costs_its_own_action_only(run: Run, two: tuple[Any, ...]) -> None:
    slow = two[0]
    robot = Robot("agent_0", "agent_1", at={3: slow.may_answer.clear, 13: slow.may_answer.set})
    summary = run(RATE_HZ, two, robot.read, robot.write, fallback=NoOp((0.5, 5.0)), how={"ticks": 24})
    reasons = robot.reasons("agent_0")
    first = reasons.index("busy", 4)  # a tick that begins too late is not asked at, and misses its deadline as well
    assert set(reasons[4:first]) == {"deadline"}
    assert set(reasons[first:13]) == {"busy"}
    assert None in reasons[14:]
    assert [each["agent_0"].action.tolist() for each in robot.told[4:13]] == [[0.5, 5.0]] * 9  # type: ignore[union-attr]
    assert None in robot.reasons("agent_1")[4:13]
    assert summary.agents["agent_0"].misses >= 9
    assert summary.deadline_misses >= 9


@both
def test_the_team_stays_in_step_with_one_that_was_not_asked(run: Run, tmp_path: Path) -> None:
    """What an agent draws at a step is drawn for that step, whatever it has missed before."""
    bundle = write_toy_bundle(tmp_path / "bundle")
    mask = np.ones(5, np.bool_)
    agent, alone = LocalAgent(bundle, "agent_0"), LocalAgent(bundle, "agent_0")
    agent.reset(7, sample=True)
    alone.reset(7, sample=True)
    acted: list[int] = []

    def read() -> Any:
        number = len(told)
        # Nothing at all, then something too old.
        if number in {2, 3, 8}:
            return {} if number == 3 else {"agent_0": None}
        stamp_s = time.monotonic() - 9.0 if number == 5 else None
        return {"agent_0": StampedObservation(SEEN[number], mask, stamp_s)}

    def noted(observation: Any, action_mask: Any) -> Action:
        action = act(observation, action_mask)
        acted.append(action.step)
        return action

    told: list[Mapping[str, Command]] = []
    act, agent.act = agent.act, noted  # type: ignore[method-assign]
    summary = run(RATE_HZ, agent, read, told.append, fallback=Zero(), max_observation_age_s=5.0, how={"ticks": 9})
    assert {number: told[number]["agent_0"].reason for number in (2, 3, 5, 8)} == {
        2: "no_observation", 3: "no_observation", 5: "old_observation", 8: "no_observation",
    }  # fmt: skip
    assert set(acted) <= {0, 1, 4, 6, 7}
    for number in range(9):
        if number in acted:
            alone.skip(number - alone._next_step)
            expected = alone.act(SEEN[number], mask).action
            if told[number]["agent_0"].fresh:
                assert told[number]["agent_0"].action == expected, number
    assert agent.act(SEEN[0], mask).step == 9  # the last step that it missed, it has been told of
    assert summary.agents["agent_0"].fallbacks["old_observation"] == 1
    assert summary.agents["agent_0"].observation_age_s.max_s > 8.0
    assert summary.agents["agent_0"].misses == summary.ticks - summary.agents["agent_0"].fresh - 4


@both
def test_stamps_from_the_future_are_of_another_clock(run: Run, two: tuple[Any, ...]) -> None:
    robot = Robot()
    readings = {"agent_1": StampedObservation(SEEN[0], stamp_s=time.time() + 1e6)}
    run(RATE_HZ, two[1], lambda: readings, robot.write, fallback=Zero(), how={"ticks": 2})
    assert robot.reasons("agent_1") == ["old_observation"] * 2


@both
def test_an_action_that_is_none_is_not_done(run: Run, two: tuple[Any, ...]) -> None:
    agent, robot = two[1], Robot("agent_1")
    act = agent.act

    def broken(*arguments: Any) -> Action:
        action = act(*arguments)
        action.action = np.array([np.nan, 1.0], np.float32)
        return action

    agent.act = broken
    run(RATE_HZ, agent, robot.read, robot.write, fallback=NoOp((0.5, 5.0)), how={"ticks": 3})
    assert set(robot.reasons("agent_1")) <= {"unusable", "deadline", "busy"}
    assert all(each["agent_1"].action.tolist() == [0.5, 5.0] for each in robot.told)  # type: ignore[union-attr]


@both
@pytest.mark.parametrize("chosen", [99, -1, 2, 1.5])
def test_a_choice_that_is_none_or_illegal_is_not_done(run: Run, toy_bundle: Bundle, chosen: Any) -> None:
    robot, mask = Robot(), np.array([True, True, False, True, True])
    with LocalAgent(toy_bundle, "agent_0") as agent:
        agent.reset(1)
        act = agent.act

        def broken(*arguments: Any) -> Action:
            action = act(*arguments)
            action.action = chosen
            return action

        agent.act = broken  # type: ignore[method-assign]
        seen = {"agent_0": StampedObservation(SEEN[0], mask)}
        hold = Hold(expires_after_s=60.0, then=NoOp(4))
        run(RATE_HZ, agent, lambda: seen, robot.write, fallback=hold, safe_action=hold, how={"ticks": 3})
    assert set(robot.reasons("agent_0")) <= {"unusable", "deadline", "busy", "end"}
    assert [each["agent_0"].action for each in robot.told] == [4] * 4


@both
def test_limits_hold_for_fallbacks_too_and_are_counted(run: Run, two: tuple[Any, ...]) -> None:
    limits = {"agent_1": ActionLimits(high=[0.5, 4.0], max_rate=20.0, initial=[0.0, 0.0])}
    robot = Robot("agent_1")
    summary = run(
        RATE_HZ, two[1], lambda: {}, robot.write, fallback=NoOp((1.0, 9.0)), limits=limits,
        safe_action=NoOp((-1.0, 9.0)), how={"ticks": 8},
    )  # fmt: skip
    reached = np.array([each["agent_1"].action for each in robot.told])
    assert (np.abs(np.diff(reached[:-1], axis=0)) <= 1.0 + 1e-5).all()
    assert (reached[0] <= 1.0 + 1e-6).all()
    assert (reached[-2] <= [0.5, 4.0]).all()
    assert reached[-1].tolist() == [-1.0, 4.0]  # at once, but within the bounds
    assert robot.told[0]["agent_1"].limited == ("bounds", "rate")
    agent = summary.agents["agent_1"]
    assert agent.bounds_limited == 8
    assert agent.rate_limited >= 1


@both
def test_without_a_fallback_the_loop_ends_and_says_who(run: Run, two: tuple[Any, ...]) -> None:
    robot = Robot("agent_1")
    with pytest.raises(StaleActionError, match=r"agent 'agent_0': step 0: nothing was read for it"):
        run(RATE_HZ, two, robot.read, robot.write, safe_action=NoOp((0.25, 2.5)))
    assert [each["agent_0"].action.tolist() for each in robot.told] == [[0.25, 2.5]]  # type: ignore[union-attr]


@both
def test_a_held_action_expires(run: Run, two: tuple[Any, ...]) -> None:
    robot = Robot()
    robot.read = lambda: {"agent_1": SEEN[0]} if len(robot.told) < 3 else {}  # type: ignore[method-assign]
    run(RATE_HZ, two[1], robot.read, robot.write, how={"ticks": 3}, fallback=NoOp((0.0, 1.0)))
    held = Hold(expires_after_steps=2, then=Call(lambda situation: (1.0, min(9.0, situation.age_steps))))
    two[1].reset(1)
    robot.told.clear()
    # No tick is left out, however slow the machine is: a held action's age counts those as well.
    run(RATE_HZ, two[1], robot.read, robot.write, how={"ticks": 6}, fallback=held, overrun="catch_up")
    actions = [each["agent_1"].action.tolist() for each in robot.told]  # type: ignore[union-attr]
    last = max(number for number, reason in enumerate(robot.reasons("agent_1")) if reason is None)
    assert actions[last + 1 : last + 3] == [actions[last]] * len(actions[last + 1 : last + 3])
    assert actions[last + 3 : last + 5] == [[1.0, 3.0], [1.0, 4.0]][: len(actions[last + 3 : last + 5])]


def test_nothing_of_an_earlier_run_is_held_on_to(two: tuple[Any, ...]) -> None:
    robot = Robot("agent_1")
    with ControlLoop(
        RATE_HZ, two[1], lambda: readings, robot.write, fallback=Hold(expires_after_s=1e6, then=NoOp((0.5, 5.0)))
    ) as loop:
        readings: Mapping[str, Any] = {"agent_1": SEEN[0]}
        while None not in robot.reasons("agent_1"):
            loop.run(ticks=1)
        readings = {}
        loop.run(ticks=1)
    assert robot.told[-1]["agent_1"].action.tolist() == [0.5, 5.0]  # type: ignore[union-attr]


@both
def test_a_run_ends_when_no_agent_is_at_a_step_any_more(run: Run, two: tuple[Any, ...]) -> None:
    slow = two[0]
    timer = threading.Timer(0.6, slow.may_answer.set)
    robot = Robot("agent_0", "agent_1", at={1: slow.may_answer.clear, 2: timer.start})
    run(RATE_HZ, two, robot.read, robot.write, fallback=Zero(), how={"ticks": 4})
    assert slow.may_answer.is_set()
    assert slow.act(SEEN[0]).step == 4


@both
def test_overruns_are_skipped_caught_up_with_or_end_the_loop(run: Run, two: tuple[Any, ...]) -> None:
    def play(overrun: str) -> tuple[Robot, Any]:
        robot = Robot("agent_1", at={2: lambda: time.sleep(5.5 / RATE_HZ)})
        return robot, run(
            RATE_HZ, two[1], robot.read, robot.write, fallback=Zero(), overrun=overrun, how={"ticks": 12},
            safe_action=Zero(),
        )  # fmt: skip

    robot, summary = play("skip")
    assert summary.skipped >= 5
    robot, summary = play("catch_up")
    assert (len(robot.told), summary.ticks, summary.skipped) == (13, 12, 0)
    assert summary.overruns >= 5
    with pytest.raises(OverrunError):
        play("stop")


@both
def test_an_error_of_the_program_is_raised_after_the_safe_action(run: Run, two: tuple[Any, ...]) -> None:
    robot = Robot("agent_0", "agent_1")
    robot.read = lambda: {"agent_0": SEEN[0][:3], "agent_1": SEEN[0]}  # type: ignore[method-assign]
    with pytest.raises(ObservationError, match="observation"):
        run(RATE_HZ, two, robot.read, robot.write, fallback=Zero(), safe_action=Zero())
    assert [each["agent_1"].reason for each in robot.told] == ["end"]
    with pytest.raises(ZeroDivisionError):
        run(RATE_HZ, two, lambda: 1 / 0, robot.write, safe_action=Zero())
    assert len(robot.told) == 2
    with pytest.raises(UsageError, match=r"read: got observations of \['agent_7'\], expected some of \['agent_0', 'ag"):
        run(RATE_HZ, two, lambda: {"agent_7": SEEN[0]}, robot.write)


def test_it_stops_after_the_tick_that_it_is_at(two: tuple[Any, ...]) -> None:
    robot = Robot("agent_0", "agent_1")
    with ControlLoop(RATE_HZ, two, robot.read, robot.write, fallback=Zero(), safe_action=Zero()) as loop:
        robot._at = {4: loop.stop}
        assert loop.run().ticks == 5
        assert robot.reasons("agent_0")[-1] == "end"
        loop.stop()  # before it begins: not lost
        assert (loop.run().ticks, len(robot.told)) == (5, 7)
        robot._at = {}
        assert loop.run(ticks=2).ticks == 7
        assert loop.run(duration_s=3.5 / RATE_HZ).ticks <= 11


def test_it_stops_soon_however_long_the_period(two: tuple[Any, ...]) -> None:
    robot = Robot("agent_1")
    with ControlLoop(1e-3, two[1], robot.read, robot.write, fallback=Zero()) as loop:
        thread = threading.Thread(target=loop.run)
        thread.start()
        while not robot.told:
            time.sleep(0.01)
        loop.stop()
        thread.join(20)
        assert not thread.is_alive()


def test_a_signal_may_stop_it(two: tuple[Any, ...]) -> None:
    robot = Robot("agent_1")
    with ControlLoop(1.0, two[1], robot.read, robot.write, fallback=Zero()) as loop:
        before = signal.signal(signal.SIGUSR1, lambda *_: loop.stop())
        try:
            threading.Timer(0.3, signal.raise_signal, (signal.SIGUSR1,)).start()
            assert loop.run().ticks <= 3
        finally:
            signal.signal(signal.SIGUSR1, before)


def test_an_interrupt_leaves_what_is_safe_and_no_agent_at_a_step(two: tuple[Any, ...]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    slow = two[0]
    robot = Robot("agent_0", "agent_1", at={1: slow.may_answer.clear, 3: interrupt})
    robot_after = threading.Timer(0.5, slow.may_answer.set)
    with ControlLoop(RATE_HZ, two, robot.read, robot.write, fallback=Zero(), safe_action=Zero()) as loop:
        robot_after.start()
        robot._at |= {4: int}
        with pytest.raises(KeyboardInterrupt):
            loop.run()
    assert slow.may_answer.is_set()  # it was waited for
    assert slow.act(SEEN[0]).step == 4  # also for the tick at which it was busy


def test_cancelling_leaves_what_is_safe(two: tuple[Any, ...]) -> None:
    robot = Robot("agent_0", "agent_1")

    async def play() -> None:
        loop = AsyncControlLoop(RATE_HZ, two, robot.read, robot.write, fallback=Zero(), safe_action=Zero())
        task = asyncio.create_task(loop.run())
        while len(robot.told) < 3:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(play())
    assert robot.reasons("agent_0")[-1] == "end"
    assert two[0].act(SEEN[0]).step == len(robot.told) - 1


def test_faults_on_purpose_are_met_in_a_loop(arms: Bundle) -> None:
    robot = Robot("agent_0", "agent_1")
    faulty = [FaultyAgent(LocalAgent(arms, agent_id), "action_loss=1,fallback=zero") for agent_id in robot.ids]
    for agent in faulty:
        agent.reset(1)
    summary = blocking(RATE_HZ, faulty, robot.read, robot.write, fallback=Zero(), how={"ticks": 5})
    assert all("agent" in agent.fallbacks and agent.fresh == 0 for agent in summary.agents.values())


def test_misuse_is_refused(two: tuple[Any, ...]) -> None:
    robot = Robot("agent_1")
    with ControlLoop(RATE_HZ, two[1], robot.read, robot.write, fallback=Zero()) as loop:
        robot._at = {0: loop.run}
        with pytest.raises(MisuseError, match="the control loop runs already"):
            loop.run()
        robot._at = {1: loop.close}
        with pytest.raises(MisuseError, match=r"the control loop runs: stop\(\) it first"):
            loop.run(ticks=3)
        for ticks in (0, 1.5, True):
            with pytest.raises(UsageError, match="ticks: got"):
                loop.run(ticks=ticks)  # type: ignore[arg-type]
    loop.close()
    with pytest.raises(MisuseError, match="the control loop is closed"):
        loop.run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fallback": {"agent_9": Zero()}}, r"fallback: got a value for \['agent_9'\], expected some of \['agent_1'\]"),
        ({"limits": {"arm": ActionLimits()}}, r"limits: got a value for \['arm'\]"),
        ({"max_observation_age_s": 0}, "max_observation_age_s: got 0"),
        ({"spin_s": -1.0}, r"spin_s: got -1\.0"),
        ({"deadline_s": 1.0}, r"deadline_s: got 1\.0 s, expected at most the period"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(two: tuple[Any, ...], arguments: dict[str, Any], message: str) -> None:
    for kind in (ControlLoop, AsyncControlLoop):
        with pytest.raises(UsageError, match=message):
            kind(RATE_HZ, two[1], dict, print, **arguments)


def test_agents_that_do_not_fit_are_refused(two: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError, match=r"agents: got \[\], expected at least one"):
        ControlLoop(RATE_HZ, [], dict, print)
    with pytest.raises(UsageError, match=r"agents: got \['agent_1', 'agent_1'\], expected at least one, and each once"):
        ControlLoop(RATE_HZ, [two[1], two[1]], dict, print)
    with pytest.raises(MisuseError, match="not connected yet"):
        AsyncControlLoop(RATE_HZ, AsyncAgentClient("127.0.0.1:1"), dict, print)


def test_several_robots_may_have_agents_of_one_id(arms: Bundle) -> None:
    agents = {name: LocalAgent(arms, "agent_0") for name in ("left", "right")}
    for agent in agents.values():
        agent.reset(1)
    robot = Robot("left", "right")
    limits = {"left": ActionLimits(high=[1.0, 0.0])}
    summary = blocking(RATE_HZ, agents, robot.read, robot.write, fallback=Zero(), limits=limits, how={"ticks": 3})
    assert list(summary.agents) == ["left", "right"]
    assert [each["left"].action[1] for each in robot.told] == [0.0] * 3  # type: ignore[index]
    with pytest.raises(StaleActionError, match="agent 'right': step 0: nothing was read for it"):
        blocking(RATE_HZ, agents, lambda: {"left": SEEN[0]}, robot.write, fallback={"left": Zero()})


@both
def test_agents_are_asked_in_the_context_of_the_program(run: Run, two: tuple[Any, ...]) -> None:
    """So a request id, or a span that is open, goes along with what agents are asked."""
    robot, found = Robot("agent_0", "agent_1"), set[str]()
    act = two[1].act

    def noted(*arguments: Any) -> Action:
        found.add(WHO.get())
        return act(*arguments)

    two[1].act = noted
    before = WHO.set("the program")
    run(RATE_HZ, two, robot.read, robot.write, fallback=Zero(), how={"ticks": 2})
    WHO.reset(before)
    assert found == {"the program"}


def test_threads_end_with_the_loop(two: tuple[Any, ...]) -> None:
    robot = Robot("agent_0", "agent_1")
    blocking(RATE_HZ, two, robot.read, robot.write, fallback=Zero(), how={"ticks": 2})
    deadline = time.monotonic() + 20
    while any(thread.name.startswith("hmarl-control-") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
