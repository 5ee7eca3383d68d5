"""Whose session a client acts in: another agent is never obeyed, another bundle only when that is allowed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import numpy as np
import pytest

from agent_process import AgentProcess
from agent_proxy import AgentProxy
from hmarl.runtime.bundle import Bundle
from hmarl.sdk.clients.async_client import AsyncAgentClient
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.errors import AgentError
from hmarl.sdk.fallback import Zero
from toy_bundle import write_toy_bundle

MASK = np.ones(5, np.bool_)
SEEN = np.random.default_rng(3).normal(size=6).astype(np.float32)
ANOTHER_AGENT = "got agent 'agent_1', expected 'agent_0'"


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Another bundle of agents with the same spaces."""
    path = tmp_path_factory.mktemp("retrained") / "bundle"
    return write_toy_bundle(path, sizes=(9,))


@pytest.fixture(scope="module")
def wider(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Another bundle of agents with larger observations."""
    return write_toy_bundle(tmp_path_factory.mktemp("wider") / "bundle", observation_size=7)


def replaced(process: AgentProcess, bundle: Bundle, agent_id: str = "agent_0") -> AgentProcess:
    """Another agent process on the address of one, which is killed."""
    process.kill()
    return AgentProcess(bundle.path, agent_id, process.address)


@pytest.mark.parametrize("stream", [False, True])
def test_another_agent_is_never_obeyed(toy_bundle: Bundle, stream: bool) -> None:
    first = AgentProcess(toy_bundle.path, "agent_0")
    with AgentClient(first.address, timeout_s=5.0, fallback=Zero(), stream=stream) as agent:
        agent.reset(7)
        assert agent.act(SEEN, MASK).fresh
        with replaced(first, toy_bundle, "agent_1") as second:
            for _ in range(3):
                with pytest.raises(AgentError, match=ANOTHER_AGENT):
                    agent.act(SEEN, MASK)
            with pytest.raises(AgentError, match=ANOTHER_AGENT):
                agent.reset(7)
            with replaced(second, toy_bundle):
                agent.reset(7)
                assert agent.act(SEEN, MASK).fresh
    assert agent.statistics.rejoins == 0


def test_the_asyncio_client_never_obeys_another_agent(toy_bundle: Bundle) -> None:
    async def play(first: AgentProcess) -> None:
        async with AsyncAgentClient(first.address, timeout_s=5.0, fallback=Zero()) as agent:
            await agent.reset(7)
            await agent.act(SEEN, MASK)
            with replaced(first, toy_bundle, "agent_1"):
                with pytest.raises(AgentError, match=ANOTHER_AGENT):
                    await agent.act(SEEN, MASK)
                with pytest.raises(AgentError, match=ANOTHER_AGENT):
                    await agent.reset(7)

    asyncio.run(play(AgentProcess(toy_bundle.path, "agent_0")))


def test_another_bundle_is_an_error_unless_it_is_allowed(toy_bundle: Bundle, retrained: Bundle, wider: Bundle) -> None:
    first = AgentProcess(toy_bundle.path, "agent_0")
    with (
        AgentClient(first.address, timeout_s=5.0) as strict,
        AgentClient(first.address, timeout_s=5.0, allow_bundle_change=True) as willing,
    ):
        for agent in (strict, willing):
            agent.reset(7)
            agent.act(SEEN, MASK)
        with replaced(first, retrained) as second:
            with pytest.raises(AgentError, match=f"got bundle {retrained.sha256}, expected {toy_bundle.sha256}"):
                strict.act(SEEN, MASK)
            assert willing.act(SEEN, MASK).fresh
            assert willing.info.bundle_sha256 == retrained.sha256
            with replaced(second, wider):
                with pytest.raises(AgentError, match=r"observation size: got 7, .* expects 6"):
                    willing.act(SEEN, MASK)
                assert willing.info.bundle_sha256 == retrained.sha256


@pytest.mark.parametrize("identity", [False, True])
def test_a_server_that_does_not_say_whose_session_it_is_gets_asked(toy_bundle: Bundle, identity: bool) -> None:
    first = AgentProcess(toy_bundle.path, "agent_0")
    with AgentProxy(first.address) as proxy, AgentClient(proxy.address, timeout_s=5.0) as agent:
        proxy.identity = identity
        agent.reset(7)
        assert agent.act(SEEN, MASK).fresh
        first.kill()
        first.start()
        assert agent.act(SEEN, MASK).fresh
        with replaced(first, toy_bundle, "agent_1"):
            with pytest.raises(AgentError, match=ANOTHER_AGENT):
                agent.act(SEEN, MASK)
            # The session that was started there is not left behind.
            assert eventually(lambda: proxy.started[-1] in proxy.ended)


def test_an_episode_that_takes_longer_to_start_than_an_act_may_is_joined(toy_bundle: Bundle) -> None:
    with AgentProcess(toy_bundle.path, "agent_0") as process, AgentProxy(process.address) as proxy:
        with AgentClient(proxy.address, timeout_s=0.2, fallback=Zero()) as agent:
            agent.reset(7)
            agent.act(SEEN, MASK)
            process.kill()
            process.start()
            proxy.starts_s = 0.4
            actions = [agent.act(SEEN, MASK) for _ in range(10)]
        assert any(action.fresh for action in actions)
        assert agent.statistics.rejoins == 1
        # Asked for once, not in every act; all that were started have been ended.
        assert len(proxy.started) == 2
        assert eventually(lambda: set(proxy.started[1:]) <= set(proxy.ended))


def test_a_start_that_nothing_waits_for_any_longer_is_ended(toy_bundle: Bundle) -> None:
    with (
        AgentProcess(toy_bundle.path, "agent_0") as process,
        AgentProxy(process.address) as proxy,
        AgentClient(proxy.address, connect_timeout_s=0.5) as agent,
    ):
        proxy.starts_s = 0.8
        with pytest.raises(AgentError, match="starting an episode"):
            agent.reset(7)
        proxy.starts_s = 0.0
        assert eventually(lambda: len(proxy.started) == 1 and proxy.ended == proxy.started)
        agent.reset(7)
        assert agent.act(SEEN, MASK).fresh


def eventually(condition: Callable[[], bool], limit_s: float = 10.0) -> bool:
    end = time.monotonic() + limit_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()
