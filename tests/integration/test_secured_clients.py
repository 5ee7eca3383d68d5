"""Clients behind TLS, certificates and tokens: what is wrong is said, and what changes loses no step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from agent_process import AgentProcess
from hmarl.runtime.authority import Authority
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.session import Policy
from hmarl.sdk import AgentClient, AgentError, AsyncAgentClient, Security, UsageError, Zero
from hmarl.sdk.clients.endpoints import refusing
from processes import wait_for
from secured import bare, security, server_options, write_tokens

OLD, NEW = "the-old-horse-battery-staple", "the-new-horse-battery-staple"
LIMIT_S = 4.0
MASK = np.ones(5, np.bool_)


class Team:
    """An authority, its agent, and a client."""

    def __init__(self, folder: Path, bundle: Bundle, *options: object, days: float = 30) -> None:
        self.authority = Authority.create(folder / "keys")
        self.agent = self.authority.issue_agent("agent_0", days=days)
        self.client = self.authority.issue_client("operator")
        self.process = AgentProcess(
            bundle.path, "agent_0", options=server_options(self.authority, self.agent, *options)
        )
        self.address = self.process.address


@pytest.fixture(scope="module")
def team(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    team = Team(tmp_path_factory.mktemp("team"), toy_bundle)
    with team.process:
        yield team


@pytest.fixture(scope="module")
def plain(toy_bundle: Bundle) -> Iterator[AgentProcess]:
    with AgentProcess(toy_bundle.path, "agent_0") as process:
        yield process


def connect(address: str, chosen: Security | None) -> str:
    """Why a client does not get through: the synchronous and the asyncio one say the same, sooner than they give up."""
    said = []
    begin = time.monotonic()
    with pytest.raises(AgentError) as caught:
        AgentClient(address, connect_timeout_s=60.0, security=chosen)
    said.append(str(caught.value))

    async def again() -> None:
        with pytest.raises(AgentError) as caught:
            await AsyncAgentClient(address, connect_timeout_s=60.0, security=chosen).connect()
        said.append(str(caught.value))

    asyncio.run(again())
    assert time.monotonic() - begin < 50.0, "long before it gives up"
    assert said[0] == said[1]
    assert said[0].startswith(f"{address}: connecting: ")
    return said[0].removeprefix(f"{address}: connecting: ")


def test_both_clients_play(team: Team) -> None:
    chosen = security(team.authority, team.client)
    for stream in (False, True):
        with AgentClient(team.address, security=chosen, stream=stream) as agent:
            agent.reset(1)
            assert [agent.act(np.zeros(6, np.float32), MASK).step for _ in range(3)] == [0, 1, 2]

    async def play(stream: bool) -> None:
        async with AsyncAgentClient(team.address, security=chosen, stream=stream) as agent:
            await agent.reset(1)
            assert [(await agent.act(np.zeros(6, np.float32), MASK)).step for _ in range(3)] == [0, 1, 2]

    asyncio.run(play(False))
    asyncio.run(play(True))


def test_tls_over_a_unix_socket(toy_bundle: Bundle, team: Team, tmp_path: Path) -> None:
    options = server_options(team.authority, team.agent)
    with AgentProcess(toy_bundle.path, "agent_0", f"unix:{tmp_path}/s", options=options) as process:
        with AgentClient(process.address, security=security(team.authority, team.client)) as agent:
            agent.reset(1)
            assert agent.act(np.zeros(6, np.float32), MASK).fresh
        assert "the client shows none" in connect(process.address, security(team.authority))


def test_another_authority_is_told(team: Team, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other")
    said = connect(team.address, security(other, team.client))
    assert said == (
        f"the agent's certificate is of another authority than {other.certificate}: give the client the ca.pem of the "
        "agent's authority"
    )
    said = connect(team.address, security(team.authority, other.issue_client("operator")))
    assert "the agent refuses the client's certificate" in said
    assert "it is of another authority than the agent's" in said


def test_a_missing_or_expired_client_certificate_is_told(team: Team) -> None:
    assert "the agent asks for a client certificate, and the client shows none: make one with 'hmarl-keys" in connect(
        team.address, security(team.authority)
    )
    late = team.authority.issue_client("late", days=-1)
    said = connect(team.address, security(team.authority, late))
    assert said == f"the client's certificate {late.certificate} has expired: renew it (hmarl-keys renew)"


def test_another_name_is_told(team: Team) -> None:
    said = connect(team.address, security(team.authority, team.client, server_name="other.local"))
    assert "the agent's certificate is not for 'other.local': issue one for that name" in said
    AgentClient(team.address, security=security(team.authority, team.client, server_name="localhost")).close()


def test_tls_on_one_side_only_is_told(team: Team, plain: AgentProcess) -> None:
    assert connect(team.address, None).startswith("the agent speaks TLS, the client does not: give the client security")
    said = connect(plain.address, security(team.authority, team.client))
    assert said == "the agent does not speak TLS, the client does: serve it with --tls-cert, or leave Security.ca out"


def test_an_agents_expired_certificate_is_told(toy_bundle: Bundle, tmp_path: Path) -> None:
    team = Team(tmp_path, toy_bundle, days=-1)
    with team.process:
        said = connect(team.address, security(team.authority, team.client))
        assert said == "the agent's certificate has expired: renew it there (hmarl-keys renew)"
        team.authority.issue_agent("agent_0")  # and that it does, without being started again
        AgentClient(team.address, security=security(team.authority, team.client)).close()


def test_an_agent_that_is_not_there_yet_is_waited_for(team: Team) -> None:
    assert refusing({"a": "127.0.0.1:1"}, security(team.authority, team.client)) == ["a"]
    with pytest.raises(AgentError, match=r"DEADLINE_EXCEEDED: no answer within 1\.5 s; is 'hmarl-agent'"):
        AgentClient("127.0.0.1:1", connect_timeout_s=1.5, security=security(team.authority, team.client))


def test_all_addresses_of_a_team_are_told_what_is_wrong(team: Team) -> None:
    with pytest.raises(AgentError, match="the agent speaks TLS, the client does not"):
        refusing({"a": team.address})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"cert": "c"}, "security: got one of cert and key"),
        ({"cert": "c", "key": "k"}, r"security\.ca: got none with cert"),
        ({}, "security: got neither ca nor token_file"),
        ({"ca": "nowhere.pem"}, r"security\.ca: cannot read 'nowhere\.pem': No such file"),
    ],
)
def test_what_does_not_go_together_is_told(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        AgentClient("127.0.0.1:1", security=Security(**fields))


def test_a_token_never_travels_readable(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens", OLD)
    with pytest.raises(UsageError, match="without TLS the token would travel readable") as caught:
        AgentClient("192.0.2.1:1", security=Security(token_file=tokens))
    assert OLD not in str(caught.value)


# --- what changes in the middle of an episode ------------------------------------------------------------------------


class Played:
    """An episode beside the same one in process: every action fresh, its own step's, and the policy's."""

    def __init__(self, bundle: Bundle) -> None:
        self._session = Policy(bundle, "agent_0").session()
        self._session.reset(3)
        self._random = np.random.default_rng(0)
        self.step = 0

    def observation(self) -> np.ndarray:
        return self._random.normal(size=6).astype(np.float32)

    def check(self, observation: np.ndarray, got: Any) -> None:
        wanted = self._session.act(observation, MASK, step=self.step)
        assert (got.fresh, got.step, got.missed_steps, got.replayed) == (True, self.step, 0, False)
        assert got.action == wanted.action
        self.step += 1


def play(agent: AgentClient, played: Played, steps: int = 40) -> None:
    for _ in range(steps):
        observation = played.observation()
        played.check(observation, agent.act(observation, MASK))
        time.sleep(0.005)


def play_until_changed(agent: AgentClient, played: Played, first: Any) -> None:
    wait_for(lambda: play(agent, played, 5) or agent._wire.connection is not first, "changing over")


@pytest.mark.parametrize("stream", [False, True])
def test_certificates_are_renewed_in_the_middle_of_an_episode(toy_bundle: Bundle, tmp_path: Path, stream: bool) -> None:
    """Both sides': the episode goes on over a connection that knows the new ones."""
    team, played = Team(tmp_path, toy_bundle), Played(toy_bundle)
    chosen = security(team.authority, team.client)
    with team.process, AgentClient(team.address, security=chosen, stream=stream, timeout_s=20.0) as agent:
        agent.reset(3)
        play(agent, played)
        for _ in range(2):
            first = agent._wire.connection
            team.authority.issue_agent("agent_0")
            team.authority.issue_client("operator")
            play_until_changed(agent, played, first)
        assert agent.statistics.rejoins == 0


def test_certificates_are_renewed_beside_an_asyncio_client(toy_bundle: Bundle, tmp_path: Path) -> None:
    team, played = Team(tmp_path, toy_bundle), Played(toy_bundle)

    async def main() -> None:
        chosen = security(team.authority, team.client)
        async with AsyncAgentClient(team.address, security=chosen, stream=True, timeout_s=20.0) as agent:
            await agent.reset(3)
            first, deadline = agent._wire.connection, time.monotonic() + 30.0
            team.authority.issue_client("operator")
            while agent._wire.connection is first or played.step < 40:
                assert time.monotonic() < deadline
                observation = played.observation()
                played.check(observation, await agent.act(observation, MASK))
                await asyncio.sleep(0.005)
            assert agent.statistics.rejoins == 0

    with team.process:
        asyncio.run(main())


def test_a_certificate_that_cannot_be_used_leaves_the_episode_alone(
    toy_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    team, played = Team(tmp_path, toy_bundle), Played(toy_bundle)
    chosen = security(team.authority, team.client)
    with team.process, AgentClient(team.address, security=chosen, timeout_s=20.0) as agent:
        agent.reset(3)
        team.client.certificate.write_bytes(team.agent.certificate.read_bytes())
        told = "the client's files cannot be used, the last good one stays: security.key"
        wait_for(lambda: play(agent, played, 5) or told in caplog.text, "telling")
        assert agent.statistics.fallbacks == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_token_is_replaced_in_the_middle_of_an_episode(toy_bundle: Bundle, tmp_path: Path, stream: bool) -> None:
    own, agents = write_tokens(tmp_path / "own", OLD), write_tokens(tmp_path / "agents", f"robot {OLD}")
    played, chosen = Played(toy_bundle), Security(token_file=own)
    with (
        AgentProcess(toy_bundle.path, "agent_0", options=("--token-file", str(agents))) as process,
        AgentClient(process.address, security=chosen, stream=stream, timeout_s=20.0) as agent,
    ):
        agent.reset(3)
        play(agent, played, 5)
        write_tokens(agents, f"robot {OLD}", f"robot {NEW}")
        play(agent, played, 5)
        write_tokens(own, NEW)
        write_tokens(agents, f"robot {NEW}")
        with bare(process.address, token="a-guess-of-a-passer-by") as stranger, pytest.raises(grpc.RpcError):
            stranger.describe()  # and the agent reads its file at once, before the client has looked at its own
        play(agent, played)
        assert agent.statistics.rejoins == 0
        write_tokens(agents, f"robot {OLD}")
        with pytest.raises(AgentError, match="UNAUTHENTICATED: token: got one that is none of this agent's"):
            wait_for(lambda: agent.act(played.observation(), MASK) is None, "refusing")


def test_a_lost_token_is_told_by_reset_too(toy_bundle: Bundle, tmp_path: Path) -> None:
    own, agents = write_tokens(tmp_path / "own", OLD), write_tokens(tmp_path / "agents", NEW)
    with AgentProcess(toy_bundle.path, "agent_0", options=("--token-file", str(agents))) as process:
        with pytest.raises(AgentError, match="connecting: UNAUTHENTICATED: token: got one that is none"):
            AgentClient(process.address, security=Security(token_file=own))
        with pytest.raises(AgentError, match="connecting: UNAUTHENTICATED: token: got none, expected metadata"):
            AgentClient(process.address)
        write_tokens(agents, OLD)
        with AgentClient(process.address, security=Security(token_file=own), fallback=Zero()) as agent:
            agent.reset(1)
            write_tokens(agents, NEW)
            with pytest.raises(AgentError, match="starting an episode: UNAUTHENTICATED: token: got one"):
                wait_for(lambda: agent.reset(2), "refusing")
