"""Clients used as they must not be: closed, forked, copied, by two callers at once, with wrong arguments."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import json
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import forking_client
from agent_process import AgentProcess
from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.runtime.bundle import Bundle, ObservationError
from hmarl.sdk.clients.async_client import AsyncAgentClient
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.clients.local_agent import LocalAgent
from hmarl.sdk.errors import AgentError, MisuseError, UsageError
from hmarl.sdk.fallback import Hold, Situation, Zero
from toy_bundle import write_toy_bundle

MASK = np.array([True, True, False, True, True])
SEEN = np.random.default_rng(3).normal(size=(12, 6)).astype(np.float32)
BUSY = "the client is in use by another call"


@pytest.fixture(scope="module")
def served(toy_bundle: Bundle) -> Iterator[AgentProcess]:
    with AgentProcess(toy_bundle.path, "agent_0") as process:
        yield process


@pytest.fixture
def frozen(served: AgentProcess) -> Iterator[Callable[[], None]]:
    """Freezes the agent when called, until the test is over."""
    yield served.freeze
    served.thaw()


@pytest.mark.parametrize("stream", [False, True])
def test_a_second_thread_is_told_at_once(
    served: AgentProcess, frozen: Callable[[], None], toy_bundle: Bundle, stream: bool
) -> None:
    with AgentClient(served.address, timeout_s=20.0, stream=stream) as agent:
        agent.reset(7)
        frozen()
        actions: list[Any] = []
        other = threading.Thread(target=lambda: actions.append(agent.act(SEEN[0], MASK)))
        other.start()
        while not agent.statistics.acts:
            time.sleep(0.001)
        for use in (lambda: agent.act(SEEN[1], MASK), lambda: agent.reset(8), agent.close):
            with pytest.raises(MisuseError, match=BUSY):
                use()
        served.thaw()
        other.join(20)
        actions += [agent.act(seen, MASK) for seen in SEEN[1:4]]
    with LocalAgent(toy_bundle, "agent_0") as local:
        local.reset(7)
        assert [action.action for action in actions] == [local.act(seen, MASK).action for seen in SEEN[:4]]
    assert all(action.fresh for action in actions)


@pytest.mark.parametrize("stream", [False, True])
def test_a_second_task_is_told_at_once(served: AgentProcess, stream: bool) -> None:
    async def play() -> list[Any]:
        async with AsyncAgentClient(served.address, timeout_s=20.0, stream=stream) as agent:
            await agent.reset(7)
            outcomes = await asyncio.gather(*(agent.act(seen, MASK) for seen in SEEN), return_exceptions=True)
            return [*outcomes, await agent.act(SEEN[1], MASK)]

    first, *refused, after = asyncio.run(play())
    assert (first.step, first.fresh, after.step, after.fresh) == (0, True, 1, True)
    assert all(isinstance(error, MisuseError) and BUSY in str(error) for error in refused)


def test_cancelled_acts_leave_the_client_usable(served: AgentProcess) -> None:
    async def play() -> None:
        async with AsyncAgentClient(served.address, timeout_s=20.0, stream=True) as agent:
            await agent.reset(7)
            for _ in range(100):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(agent.act(SEEN[0], MASK), 0.0005)
            assert (await agent.act(SEEN[1], MASK)).step == 100

    asyncio.run(play())


def test_another_event_loop_is_told(served: AgentProcess) -> None:
    agent = AsyncAgentClient(served.address)
    with asyncio.Runner() as first:
        first.run(agent.connect())
        assert first.run(agent.connect()) is agent  # connected already
        first.run(agent.reset(7))
        with contextlib.closing(asyncio.new_event_loop()) as other, pytest.raises(MisuseError, match="another event"):
            other.run_until_complete(agent.act(SEEN[0], MASK))
        assert first.run(agent.act(SEEN[0], MASK)).fresh
        first.run(agent.close())


@pytest.mark.parametrize("kind", ["unary", "stream"])
def test_a_forked_process_is_told_and_its_parent_goes_on(served: AgentProcess, kind: str) -> None:
    program = [sys.executable, str(Path(forking_client.__file__)), served.address, kind]
    told = json.loads(subprocess.run(program, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert ["was forked" in line for line in told["child"]] == [True, True, True, False]
    assert told["after"] == [1, True, 0]


def test_after_close_everything_says_so(served: AgentProcess, toy_bundle: Bundle) -> None:
    agent = AgentClient(served.address)
    agent.reset(7)
    agent.close()
    agent.close()
    local = LocalAgent(toy_bundle, "agent_0")
    local.reset(7)
    local.close()
    for closed in (agent, local):
        for use in (lambda: closed.act(SEEN[0], MASK), lambda: closed.reset(7), closed.__enter__):  # noqa: B023
            with pytest.raises(MisuseError, match="closed: make a new one"):
                use()
    assert (agent.spec.id, agent.statistics.acts, agent.info.agent_id) == ("agent_0", 0, "agent_0")

    async def play() -> None:
        agent = AsyncAgentClient(served.address)
        for use in (lambda: agent.act(SEEN[0], MASK), lambda: agent.reset(7)):
            with pytest.raises(MisuseError, match="not connected yet"):
                await use()
        async with agent:
            await agent.reset(7)
        await agent.close()
        for use in (lambda: agent.act(SEEN[0], MASK), lambda: agent.reset(7), agent.connect, agent.__aenter__):
            with pytest.raises(MisuseError, match="closed: make a new one"):
                await use()

    asyncio.run(play())


def test_a_time_limit_is_a_positive_number(served: AgentProcess) -> None:
    with AgentClient(served.address) as agent:
        agent.reset(7)
        for wrong in (-1, 0, float("nan"), float("inf"), "x", None, True):
            with pytest.raises(UsageError, match=r"timeout_s: got .*, expected a positive number of seconds"):
                agent.timeout_s = wrong  # type: ignore[assignment]
            for name in ("timeout_s", "connect_timeout_s"):
                with pytest.raises(UsageError, match=f"{name}: got "):
                    AgentClient(served.address, **{name: wrong})  # type: ignore[arg-type]
        agent.timeout_s = np.float32(5)  # type: ignore[assignment]
        assert (agent.timeout_s, agent.act(SEEN[0], MASK).fresh) == (5.0, True)
    for address in (None, "", 50051):
        with pytest.raises(UsageError, match=r"address: got .*, expected HOST:PORT"):
            AgentClient(address)  # type: ignore[arg-type]


def test_seeds_and_choices_are_checked_before_anything_is_sent(served: AgentProcess) -> None:
    with AgentClient(served.address) as agent:
        agent.reset(np.uint64(7))  # type: ignore[arg-type]
        for name in ("seed", "first_step"):
            for wrong, message in ((1.5, "expected an integer"), (None, "expected an integer"), (-1, "expected 0 <= ")):
                with pytest.raises(UsageError, match=f"{name}: got {wrong}, {message}"):
                    agent.reset(**{"seed": 1, name: wrong})  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="sample: got 'yes', expected True or False"):
            agent.reset(1, sample="yes")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="instruction_choice: got 'best', expected one of"):
            agent.reset(1, instruction_choice="best")  # type: ignore[arg-type]
        assert agent.act(SEEN[0], MASK).step == 0  # the episode goes on


def test_what_holds_a_connection_is_neither_copied_nor_pickled(served: AgentProcess, toy_bundle: Bundle) -> None:
    with AgentClient(served.address) as agent, LocalAgent(toy_bundle, "agent_0") as local:
        for thing in (agent, local, AsyncAgentClient(served.address)):
            for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(MisuseError, match=f"{type(thing).__name__}: got an attempt to copy or pickle it"):
                    duplicate(thing)


class Subclass(np.ndarray):
    """An array of another class."""


def test_arrays_of_any_class_and_byte_order_are_the_same_numbers(
    served: AgentProcess, toy_bundle: Bundle, tmp_path: Path
) -> None:
    SEEN.tofile(tmp_path / "seen")
    mapped = np.memmap(tmp_path / "seen", np.float32, "r", shape=SEEN.shape)
    mask = MASK.view(Subclass)
    forms = [mapped[0], SEEN[1].astype(">f4"), SEEN[2].view(Subclass), np.repeat(SEEN[3], 2)[::2]]
    with AgentClient(served.address, timeout_s=20.0) as agent, LocalAgent(toy_bundle, "agent_0") as local:
        agent.reset(7)
        local.reset(7)
        assert [agent.act(form, mask).action for form in forms] == [local.act(seen, MASK).action for seen in SEEN[:4]]


WRONG: list[tuple[Any, Any, str]] = [
    (np.zeros(7, np.float32), MASK, r"observation: got float32 \(7,\), expected float32 \(6,\)"),
    (np.full(6, np.nan, np.float32), MASK, r"observation\[0\]: got nan, expected finite numbers"),
    (np.zeros(6, np.int64), MASK, "observation: got int64, expected float32"),
    (np.zeros(6), MASK, r"observation: got float64, expected float32 .*astype\(np.float32\)"),
    ([0.0] * 6, MASK, "observation: got a list, expected a NumPy array of float32"),
    (SEEN[0], np.ones(3, np.bool_), r"action_mask: got bool \(3,\), expected bool \(5,\)"),
    (SEEN[0], np.zeros(5, np.bool_), "action_mask: got no legal action, expected at least one True"),
    (SEEN[0], np.ones(5, np.int64), "action_mask: got int64, expected bool"),
    (SEEN[0], [True] * 5, "action_mask: got a list, expected a NumPy array of bool"),
    (SEEN[0], None, "action_mask: got nothing, expected a NumPy array of bool"),
]


@pytest.mark.parametrize("gone", [False, True])
def test_wrong_inputs_are_refused_whether_the_server_is_there_or_not(toy_bundle: Bundle, gone: bool) -> None:
    fallback = Hold(expires_after_steps=100, then=Zero())
    with (
        AgentProcess(toy_bundle.path, "agent_0") as process,
        AgentClient(process.address, timeout_s=5.0, fallback=fallback) as agent,
    ):
        agent.reset(7)
        agent.act(SEEN[0], MASK)
        if gone:
            process.kill()
            agent.timeout_s = 0.1
        for observation, mask, message in WRONG:
            with pytest.raises(ObservationError, match=message):
                agent.act(observation, mask)
        action = agent.act(SEEN[1], MASK)
        assert (action.step, action.fresh, action.missed_steps) == (1, not gone, 0)
        assert agent.statistics.acts == 2


def test_a_mask_for_a_policy_without_one_and_a_branch_without_choice(tmp_path: Path) -> None:
    plain = write_toy_bundle(tmp_path / "plain", plain=True)
    branches = write_toy_bundle(tmp_path / "branches", action="multi_discrete")
    for bundle, mask, message in (
        (plain, MASK, "action_mask: got one, but this policy has no mask input: leave it out"),
        (branches, np.array([True, True, True, False, False]), "action_mask: got no legal action in branch 1"),
    ):
        with AgentProcess(bundle.path, "agent_0") as process, AgentClient(process.address) as agent:
            agent.reset(7)
            with pytest.raises(ObservationError, match=message):
                agent.act(SEEN[0], mask)


def test_a_fallback_is_never_asked_about_a_wrong_mask(served: AgentProcess) -> None:
    with AgentClient(served.address) as agent:
        space = agent.spec.action_space
    for mask in (np.ones(3, np.bool_), np.ones(5, np.int64), [True] * 5):
        with pytest.raises(UsageError, match=r"action_mask: got .*, expected a NumPy array of bool \(5,\)"):
            Situation(step=0, action_space=space, action_mask=mask)  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", [False, True])
def test_after_a_refused_step_the_client_goes_on_with_the_next(served: AgentProcess, stream: bool) -> None:
    with (
        AgentClient(served.address, timeout_s=20.0, stream=stream) as agent,
        grpc.insecure_channel(served.address) as channel,
    ):
        agent.reset(7)
        agent.act(SEEN[0], MASK)
        # Another program has got hold of the session and uses step 1 up.
        request = agent_pb2.ActRequest(session_id=agent._episode.session_id, step=1)
        request.observation.data_type, request.observation.data = agent_pb2.DATA_TYPE_FLOAT32, SEEN[5].tobytes()
        request.observation.shape.append(6)
        request.action_mask.data_type, request.action_mask.data = agent_pb2.DATA_TYPE_BOOL, MASK.tobytes()
        request.action_mask.shape.append(5)
        agent_pb2_grpc.AgentServiceStub(channel).Act(request, timeout=20)
        with pytest.raises(AgentError, match=r"FAILED_PRECONDITION.*the next act goes on with step 2"):
            agent.act(SEEN[1], MASK)
        action = agent.act(SEEN[2], MASK)
        assert (action.step, action.fresh, action.missed_steps) == (2, True, 0)


def test_a_forgotten_client_leaves_no_threads(served: AgentProcess) -> None:
    before = set(threading.enumerate())
    agent = AgentClient(served.address, stream=True)
    agent.reset(7)
    agent.act(SEEN[0], MASK)
    (reader,) = (thread for thread in set(threading.enumerate()) - before if thread.name == "hmarl-stream")
    del agent
    gc.collect()
    reader.join(20)
    assert not reader.is_alive()


def test_an_interrupted_act_leaves_the_client_usable(served: AgentProcess, frozen: Callable[[], None]) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with AgentClient(served.address, timeout_s=20.0, stream=True) as agent:
            agent.reset(7)
            frozen()
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Interrupted):
                agent.act(SEEN[0], MASK)
            served.thaw()
            action = agent.act(SEEN[1], MASK)
            assert (action.step, action.fresh) == (1, True)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_close_that_is_cancelled_leaves_no_connection(toy_bundle: Bundle) -> None:
    async def open_and_cancel(process: AgentProcess) -> AsyncAgentClient:
        agent = await AsyncAgentClient(process.address, stream=True).connect()
        await agent.reset(1)
        await agent.act(SEEN[0], MASK)
        process.freeze()  # so that the end of the episode has to be waited for
        closing = asyncio.create_task(agent.close())
        await asyncio.sleep(0.05)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        process.thaw()
        return agent

    async def scenario(process: AgentProcess) -> None:
        await becomes(process, 1)  # the agent's own probe
        kept = [await open_and_cancel(process) for _ in range(3)]
        await becomes(process, 1)
        assert kept

    async def becomes(process: AgentProcess, number: int) -> None:
        deadline = time.monotonic() + 20
        while connections(process) != number and time.monotonic() < deadline:
            gc.collect()  # grpc.aio's calls refer to each other, and keep a connection until they are collected
            await asyncio.sleep(0.05)
        assert connections(process) == number

    def connections(process: AgentProcess) -> int:
        port = int(process.address.rpartition(":")[2])
        tables = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        rows = (line.split() for line in tables.splitlines())
        return sum(local.endswith(f":{port:04X}") and state == "01" for _, local, _, state, *_ in rows)

    with AgentProcess(toy_bundle.path, "agent_0") as process:
        asyncio.run(scenario(process))
