"""Control loops with agents in processes of their own, which are frozen, killed and started again meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import numpy as np
import pytest

from agent_process import AgentProcess
from hmarl.runtime.bundle import Bundle
from hmarl.sdk import (
    AgentClient,
    AsyncAgentClient,
    AsyncControlLoop,
    Command,
    ControlLoop,
    Hold,
    LocalAgent,
    LoopSummary,
    StaleActionError,
    StampedObservation,
    UsageError,
    Zero,
)
from hmarl.sdk.clients.faulty_agent import FaultyAgent

IDS = ("agent_0", "agent_1")
RATE_HZ = 10.0
SEEN = np.ones(6, np.float32)
MASK = np.ones(5, np.bool_)
Write = Callable[[Mapping[str, Command]], None]


@pytest.fixture(scope="module")
def processes(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[AgentProcess]]:
    folder = tmp_path_factory.mktemp("served")
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                AgentProcess(
                    toy_bundle.path,
                    agent_id,
                    listen=f"unix:{folder}/{agent_id}",
                    options=["--frames", f"{folder}/{agent_id}.frames"],
                )
            )
            for agent_id in IDS
        ]


@pytest.fixture
def served(processes: list[AgentProcess]) -> Iterator[list[AgentProcess]]:
    yield processes
    for process in processes:
        process.thaw()


def read() -> Mapping[str, StampedObservation]:
    return {agent_id: StampedObservation(SEEN, MASK) for agent_id in IDS}


def play(kind: str, served: list[AgentProcess], make_write: Callable[[Any], Write], **options: Any) -> LoopSummary:
    """Run a loop for at most half a minute; ``make_write`` is given the loop."""
    written: list[Write] = []
    options = {"fallback": Hold(expires_after_s=0.25, then=Zero()), **options}
    stream = kind.endswith("streamed")
    addresses = [
        f"frames:{each.address.removeprefix('unix:')}.frames" if kind.endswith("frames") else each.address
        for each in served
    ]

    def write(commands: Mapping[str, Command]) -> None:
        written[0](commands)

    async def awaited() -> LoopSummary:
        async with AsyncExitStack() as stack:
            clients = [AsyncAgentClient(each, stream=stream) for each in addresses]
            for client in clients:
                await stack.enter_async_context(client)
                await client.reset(1)
            loop = AsyncControlLoop(RATE_HZ, clients, read, write, **options)
            written.append(make_write(loop))
            return await loop.run(duration_s=30.0)

    if kind.startswith("asyncio"):
        return asyncio.run(awaited())
    with ExitStack() as stack:
        clients = [stack.enter_context(AgentClient(each, stream=stream)) for each in addresses]
        for client in clients:
            client.reset(1)
        loop = stack.enter_context(ControlLoop(RATE_HZ, clients, read, write, **options))
        written.append(make_write(loop))
        return loop.run(duration_s=30.0)


kinds = pytest.mark.parametrize("kind", ["blocking, frames", "blocking, streamed", "asyncio, streamed"])


@kinds
def test_a_frozen_agent_costs_its_own_actions_until_it_goes_on(kind: str, served: list[AgentProcess]) -> None:
    told: list[Mapping[str, Command]] = []
    frozen_at = 5

    def make_write(loop: Any) -> Write:
        def write(commands: Mapping[str, Command]) -> None:
            told.append(commands)
            if len(told) == frozen_at:
                served[1].freeze()
            if len(told) == frozen_at + 10:
                served[1].thaw()
            if len(told) > frozen_at + 10 and commands["agent_1"].fresh:
                loop.stop()

        return write

    summary = play(kind, served, make_write)
    meanwhile = told[frozen_at : frozen_at + 10]
    assert not any(commands["agent_1"].fresh for commands in meanwhile)
    assert {commands["agent_1"].reason for commands in meanwhile} <= {"deadline", "agent", "busy"}
    assert any(commands["agent_0"].fresh for commands in meanwhile)
    assert meanwhile[-1]["agent_1"].action == 0  # what was held has expired
    assert told[-1]["agent_1"].fresh
    agent = summary.agents["agent_1"]
    assert agent.misses == sum(agent.fallbacks.values()) >= 10
    assert summary.deadline_misses >= 10
    assert summary.ticks == len(told)


@kinds
def test_an_agent_that_is_killed_and_started_again_plays_on(kind: str, served: list[AgentProcess]) -> None:
    told: list[Mapping[str, Command]] = []
    restarting = threading.Thread(target=served[1].start)
    clients: list[Any] = []

    def make_write(loop: Any) -> Write:
        clients.extend(seat.agent for seat in loop._team.seats.values())

        def write(commands: Mapping[str, Command]) -> None:
            told.append(commands)
            if len(told) == 5:
                served[1].kill()
            if len(told) == 10:
                restarting.start()
            if len(told) > 10 and commands["agent_1"].fresh:
                loop.stop()

        return write

    summary = play(kind, served, make_write)
    restarting.join()
    assert not any(commands["agent_1"].fresh for commands in told[5:10])
    assert told[-1]["agent_1"].fresh
    assert summary.agents["agent_1"].misses >= 5
    assert clients[1].statistics.rejoins == 1


def test_without_a_fallback_a_frozen_agent_ends_the_loop_safely(served: list[AgentProcess]) -> None:
    told: list[Mapping[str, Command]] = []

    def make_write(loop: Any) -> Write:
        def write(commands: Mapping[str, Command]) -> None:
            told.append(commands)
            if len(told) == 3:
                served[1].freeze()

        return write

    with pytest.raises(StaleActionError, match="agent 'agent_1': step "):
        play("blocking", served, make_write, fallback={"agent_0": Zero()}, safe_action=Zero())
    assert {command.reason for command in told[-1].values()} == {"end"}
    assert {command.action for command in told[-1].values()} == {0}


def test_one_client_alone_is_given_its_deadline(served: list[AgentProcess]) -> None:
    """No thread stands between: the client itself comes back in time, also beneath faults on purpose."""
    for wrap in (lambda client: client, lambda client: FaultyAgent(client, "delay=1")):
        told: list[Mapping[str, Command]] = []
        with AgentClient(served[0].address, timeout_s=60.0) as client:
            client.reset(1)
            served[0].freeze()
            only = {"agent_0": StampedObservation(SEEN, MASK)}
            agent = wrap(client)
            if agent is not client:
                served[0].thaw()
                agent.reset(1)
                served[0].freeze()
            with ControlLoop(RATE_HZ, agent, lambda: only, told.append, fallback=Zero()) as loop:  # noqa: B023
                summary = loop.run(ticks=5)
            served[0].thaw()
        assert [commands["agent_0"].reason for commands in told] == ["agent"] * 5
        assert summary.execution_s.max_s < 30.0


def test_a_client_that_was_not_asked_for_some_steps_draws_what_belongs_to_the_next(
    toy_bundle: Bundle, served: list[AgentProcess]
) -> None:
    with AgentClient(served[0].address) as client, LocalAgent(toy_bundle, "agent_0") as local:
        actions = []
        for agent in (client, local):
            agent.reset(5, sample=True)
            found = [agent.act(SEEN, MASK)]
            agent.skip(3)
            found += [agent.act(SEEN, MASK) for _ in range(20)]
            assert [each.step for each in found] == [0, *range(4, 24)]
            assert [each.missed_steps for each in found][:3] == [0, 3, 0]
            assert agent.statistics.missed_steps == 3
            actions.append([each.action for each in found])
        assert actions[0] == actions[1]
        with pytest.raises(UsageError, match="steps: got -1"):
            client.skip(-1)


def test_each_loop_says_which_clients_it_takes(served: list[AgentProcess]) -> None:
    async def connected() -> None:
        async with AsyncAgentClient(served[0].address) as client:
            with pytest.raises(UsageError, match="agent 'agent_0': got one for asyncio, expected a blocking one"):
                ControlLoop(RATE_HZ, client, read, print)  # type: ignore[arg-type]

    asyncio.run(connected())


def test_the_loop_for_asyncio_asks_blocking_clients_too(served: list[AgentProcess]) -> None:
    told: list[Mapping[str, Command]] = []
    with AgentClient(served[0].address) as first, AgentClient(served[1].address) as second:
        for client in (first, second):
            client.reset(1)
        loop = AsyncControlLoop(RATE_HZ, [first, second], read, told.append, fallback=Zero())
        summary = asyncio.run(loop.run(ticks=10))
    assert all(agent.fresh > 0 for agent in summary.agents.values())
