"""Attacks on an agent behind TLS, client certificates and tokens: over real gRPC, with real certificates."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from agent_process import AgentProcess
from hmarl.agent.v1 import agent_pb2
from hmarl.runtime.authority import Authority
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.errors import UsageError
from hmarl.runtime.server import AgentServer
from hmarl.runtime.settings import SecuritySettings, ServerSettings
from processes import wait_for
from secured import bare, server_options, write_tokens

TOKEN, OTHER_TOKEN = "correct-horse-battery-staple", "another-horse-battery-staple"
Code = grpc.StatusCode


class Team:
    """An authority, an agent that asks for its clients' certificates, and two clients."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.authority = Authority.create(folder / "keys")
        self.agent = self.authority.issue_agent("agent_0")
        self.operator = self.authority.issue_client("operator")
        self.robot = self.authority.issue_client("robot")
        options = server_options(self.authority, self.agent, "--allow-file", self.authority.allowed)
        self.process = AgentProcess(bundle.path, "agent_0", options=options, log=folder / "log")
        self.address = self.process.address


@pytest.fixture(scope="module")
def team(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    team = Team(tmp_path_factory.mktemp("team"), toy_bundle)
    with team.process:
        yield team


def refused(call: Callable[..., Any], *arguments: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    return caught.value.code(), caught.value.details()


def test_a_client_of_the_authority_plays(team: Team) -> None:
    with bare(team.address, team.authority, team.operator) as client:
        assert client.describe().agent_id == "agent_0"
        session = client.start()
        assert [client.act(session, step).step for step in range(3)] == [0, 1, 2]
        assert client.end(session).steps == 3
        assert client.healthy()


def test_handshakes_that_fail_write_no_lines_of_grpcs_own(team: Team) -> None:
    host, port = team.address.rsplit(":", 1)
    for _ in range(5):
        with socket.create_connection((host, int(port)), timeout=10) as peer:
            peer.sendall(b"no handshake at all\r\n" * 10)
            while peer.recv(4096):
                pass
    assert "ssl_transport_security" not in team.process.log
    assert "Handshake failed" not in team.process.log


def test_without_a_certificate_no_call_gets_through(team: Team) -> None:
    with bare(team.address, team.authority) as client:
        for call in (client.describe, client.start, client.healthy):
            assert refused(call)[0] is Code.UNAVAILABLE
        assert refused(client.act, "x")[0] is Code.UNAVAILABLE


def test_certificates_of_another_authority_get_no_call_through(team: Team, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other")
    with bare(team.address, team.authority, other.issue_client("operator")) as client:
        assert refused(client.describe)[0] is Code.UNAVAILABLE
    with bare(team.address, other, team.operator) as client:  # and a client does not take the agent for one of its own
        code, said = refused(client.describe)
    assert code is Code.UNAVAILABLE
    assert "CERTIFICATE_VERIFY_FAILED" in said


def test_an_expired_certificate_gets_no_call_through(team: Team) -> None:
    with bare(team.address, team.authority, team.authority.issue_client("late", days=-1)) as client:
        assert refused(client.describe)[0] is Code.UNAVAILABLE


def test_an_agents_certificate_is_no_clients(team: Team) -> None:
    """No agent can talk to another with what it has."""
    with bare(team.address, team.authority, team.authority.issue_agent("operator")) as client:
        assert refused(client.describe)[0] is Code.UNAVAILABLE


def test_plaintext_gets_no_call_through(team: Team) -> None:
    with bare(team.address) as client:
        assert refused(client.describe)[0] is Code.UNAVAILABLE


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_versions_of_tls_are_refused(team: Team) -> None:
    host, port = team.address.split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(team.authority.certificate)
    context.load_cert_chain(team.operator.certificate, team.operator.key)
    context.set_alpn_protocols(["h2"])
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    for version, taken in (
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, version
        with socket.create_connection((host, int(port)), 20) as connection:
            try:
                with context.wrap_socket(connection, server_hostname="localhost") as secured:
                    got = secured.version() == version.name.replace("_", ".")
            except (ssl.SSLError, ConnectionError):
                got = False
        assert got == taken, version


def test_whoever_is_not_on_the_list_is_refused_everywhere(team: Team) -> None:
    stranger = team.authority.issue_client("stranger")
    team.authority.revoke("stranger")
    with bare(team.address, team.authority, stranger) as client:
        for call in (client.describe, client.start, client.healthy, lambda: client.act("x"), lambda: client.end("x")):
            code, said = refused(call)
            assert code is Code.PERMISSION_DENIED
            assert "got 'hmarl://client/stranger, stranger', which is not among the clients that are let in" in said
        assert refused(list, client.stream(iter(())))[0] is Code.PERMISSION_DENIED
        database = ProtoReflectionDescriptorDatabase(client.channel)
        assert refused(database.get_services)[0] is Code.PERMISSION_DENIED


def test_a_removed_client_is_shut_out_in_the_middle_of_a_stream(team: Team) -> None:
    leaver = team.authority.issue_client("leaver")
    requests: SimpleQueue[agent_pb2.StreamActRequest] = SimpleQueue()
    with bare(team.address, team.authority, leaver) as client:
        session = refused_after = client.start()
        replies = client.stream(iter(requests.get, None))
        requests.put(agent_pb2.StreamActRequest(act=client.request(session, 0)))
        assert next(replies).act.step == 0
        team.authority.revoke("leaver")

        def shut_out() -> bool:
            try:
                client.describe()
            except grpc.RpcError as error:
                return bool(error.code() is Code.PERMISSION_DENIED)
            return False

        wait_for(shut_out, "reading the list again")
        requests.put(agent_pb2.StreamActRequest(act=client.request(refused_after, 1)))
        assert refused(next, replies)[0] is Code.PERMISSION_DENIED


def test_a_foreign_session_is_an_unknown_one(team: Team) -> None:
    """Nothing tells whether there is such a session, and nothing that others send changes it."""
    with (
        bare(team.address, team.authority, team.operator) as owner,
        bare(team.address, team.authority, team.robot) as other,
    ):
        session = owner.start()
        assert owner.act(session, 0).step == 0
        for act in (lambda: other.act(session, 1), lambda: other.end(session)):
            code, said = refused(act)
            assert code is Code.NOT_FOUND
            assert said == refused(other.act, "x" * len(session))[1].replace("x" * len(session), session)
        (reply,) = other.stream(iter([agent_pb2.StreamActRequest(act=other.request(session, 1))]))
        assert reply.error.code == Code.NOT_FOUND.value[0]
        reply = owner.act(session, 1)
        assert (reply.step, reply.missed_steps, reply.replayed) == (1, 0, False)
        assert owner.end(session).steps == 2


def test_a_renewed_certificate_keeps_its_sessions(team: Team) -> None:
    with bare(team.address, team.authority, team.robot) as client:
        session = client.start()
        client.act(session, 0)
    with bare(team.address, team.authority, team.authority.issue_client("robot")) as client:
        reply = client.act(session, 1)
        assert (reply.step, reply.missed_steps) == (1, 0)


def test_time_goes_by(team: Team) -> None:
    """The agent's own probe gets through, for longer than the three that turn health; a certificate that expires on a
    connection that stands is refused from then on.
    """
    brief = team.authority.issue_client("brief", days=4.0 / 86400)
    with (
        bare(team.address, team.authority, team.operator) as client,
        bare(team.address, team.authority, brief) as leaving,
    ):
        leaving.describe()
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            assert client.healthy()
            time.sleep(0.3)
        code, said = refused(leaving.describe)
        assert code is Code.UNAUTHENTICATED
        assert "that of 'hmarl://client/brief' has expired since the connection was made: renew it" in said


def doors(process: int) -> set[str]:
    """Abstract sockets of a process."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return {line.split()[-1].removeprefix("@") for line in lines if f"@hmarl-{process}-" in line}


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_the_door_for_the_probe_takes_no_one_else(team: Team) -> None:
    (door,) = doors(team.process.process.pid)
    for token in (None, TOKEN):
        with bare(f"unix-abstract:{door}", token=token) as client:
            for call in (client.describe, client.start, client.healthy, lambda: client.act("x")):
                assert refused(call)[0] is Code.UNAUTHENTICATED


# --- certificates that change ----------------------------------------------------------------------------------------


def test_a_bad_certificate_changes_nothing_and_is_told(team: Team) -> None:
    good = team.agent.certificate.read_bytes()
    serial = served_certificate(team)
    team.agent.certificate.write_bytes(good[:200])
    wait_for(
        lambda: "the certificate cannot be used, the last good one stays: --tls-cert" in team.process.log, "telling"
    )
    assert served_certificate(team) == serial
    with bare(team.address, team.authority, team.operator) as client:
        client.describe()
    team.agent.certificate.write_bytes(good)
    renewed = team.authority.renew(team.agent)
    assert served_certificate(team) != serial
    assert renewed.certificate == team.agent.certificate


def served_certificate(team: Team) -> bytes:
    """What a new connection is shown, in DER."""
    host, port = team.address.split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(team.authority.certificate)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), 20) as connection,
        context.wrap_socket(connection, server_hostname="localhost") as secured,
    ):
        return secured.getpeercert(binary_form=True) or b""


# --- tokens and quotas -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens", f"robot {TOKEN}", f"operator {OTHER_TOKEN}")


@pytest.fixture(scope="module")
def told(toy_bundle: Bundle, tokens: Path) -> Iterator[AgentProcess]:
    """An agent that asks for a token, and lets each client have little."""
    quotas = ("--client-sessions", "2", "--client-streams", "1", "--client-rate", "40")
    log = tokens.with_name("log")
    options = ("--token-file", str(tokens), *quotas)
    with AgentProcess(toy_bundle.path, "agent_0", options=options, log=log) as process:
        yield process


@pytest.mark.parametrize(("token", "says"), [(None, "token: got none"), ("x" * 32, "none of this agent's")])
def test_a_missing_or_wrong_token_is_refused(told: AgentProcess, token: str | None, says: str) -> None:
    with bare(told.address, token=token) as client:
        for call in (client.describe, client.start, client.healthy, lambda: client.act("x"), lambda: client.end("x")):
            code, said = refused(call)
            assert code is Code.UNAUTHENTICATED
            assert says in said
        assert refused(list, client.stream(iter(())))[0] is Code.UNAUTHENTICATED
        assert refused(ProtoReflectionDescriptorDatabase(client.channel).get_services)[0] is Code.UNAUTHENTICATED
    assert "x" * 32 not in told.log, "no token in a log"


def test_sessions_belong_to_the_tokens_name(told: AgentProcess) -> None:
    with bare(told.address, token=TOKEN) as robot, bare(told.address, token=OTHER_TOKEN) as operator:
        session = robot.start()
        assert refused(operator.act, session)[0] is refused(operator.end, session)[0] is Code.NOT_FOUND
        assert robot.act(session).step == 0
        robot.end(session)


def test_a_client_at_its_quota_leaves_others_alone(told: AgentProcess) -> None:
    time.sleep(1.0)  # requests of the tests before count as well
    with bare(told.address, token=TOKEN) as greedy, bare(told.address, token=OTHER_TOKEN) as modest:
        sessions = [greedy.start(), greedy.start()]
        code, said = refused(greedy.start)
        assert code is Code.RESOURCE_EXHAUSTED
        assert "2, which is one client's limit (--client-sessions): end episodes with EndEpisode" in said
        session = modest.start()
        assert modest.act(session).step == 0
        greedy.end(sessions.pop())
        sessions.append(greedy.start())
        requests: SimpleQueue[agent_pb2.StreamActRequest] = SimpleQueue()
        stream = greedy.stream(iter(requests.get, None))
        requests.put(agent_pb2.StreamActRequest(act=greedy.request(sessions[0], 0)))
        assert next(stream).act.step == 0
        code, said = refused(next, greedy.stream(iter([agent_pb2.StreamActRequest()])))
        assert code is Code.RESOURCE_EXHAUSTED
        assert "which is one client's limit: close one" in said
        stream.cancel()  # type: ignore[attr-defined]
        for each in sessions:
            greedy.end(each)
        modest.end(session)


def test_too_many_requests_a_second_are_told_how_long_to_wait(told: AgentProcess) -> None:
    with bare(told.address, token=TOKEN) as greedy, bare(told.address, token=OTHER_TOKEN) as modest:

        def flood() -> None:
            for _ in range(500):
                greedy.describe()

        code, said = refused(flood)
        assert code is Code.RESOURCE_EXHAUSTED
        assert "more than 40 a second" in said
        assert "wait 0.0" in said
        assert modest.describe().agent_id == "agent_0"
        time.sleep(1.0)
        session = greedy.start()
        requests = [agent_pb2.StreamActRequest(act=greedy.request(session, step)) for step in range(200)]
        replies = list(greedy.stream(iter(requests)))
        assert len(replies) == 200, "refused one by one, the stream goes on"
        assert replies[0].act.step == 0
        refusals = [reply.error.code for reply in replies if reply.WhichOneof("result") == "error"]
        assert set(refusals) == {Code.RESOURCE_EXHAUSTED.value[0]}
    with bare(told.address, token=OTHER_TOKEN) as client:
        assert client.healthy(), "the process's own probe has no quota"


# --- where it listens ------------------------------------------------------------------------------------------------


def refusal(listen: str, **security: Any) -> str | None:
    """Why an agent does not listen there; None where it does."""
    try:
        server = AgentServer(ServerSettings(listen, security=SecuritySettings(**security)))
    except UsageError as error:
        return str(error)
    server.stop(0.0)
    return None


def tls(team: Team) -> dict[str, Path]:
    return {"tls_cert": team.agent.certificate, "tls_key": team.agent.key}


def test_a_public_address_needs_certificates_or_a_token_over_tls(team: Team, tokens: Path) -> None:
    for security, says in (
        ({}, "without encryption or authentication: anyone who can reach it can use it"),
        ({"token_file": tokens}, "without TLS its token would travel readable"),
        (tls(team), "anyone who can reach it could use it"),
    ):
        said = refusal("0.0.0.0:0", **security)
        assert said is not None
        assert said.startswith(f"listen: got 0.0.0.0, {says}: give --tls-cert"), said
        assert "--insecure" in said
        assert refusal("0.0.0.0:0", **security, insecure=True) is None
        assert refusal("127.0.0.1:0", **security) is None
    assert refusal("0.0.0.0:0", **tls(team), token_file=tokens) is None
    assert refusal("0.0.0.0:0", **tls(team), tls_client_ca=team.authority.certificate) is None


def test_the_command_says_so_in_one_line(toy_bundle: Bundle) -> None:
    command = [sys.executable, "-m", "hmarl.runtime.commands.agent", str(toy_bundle.path), "--agent", "agent_0"]
    done = subprocess.run([*command, "--listen", "0.0.0.0:0"], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("hmarl-agent: listen: got 0.0.0.0, without encryption or authentication")


def test_reflection_is_off_where_others_reach_it(toy_bundle: Bundle, team: Team) -> None:
    options = server_options(team.authority, team.agent, "--allow-client", "hmarl://client/robot")
    with AgentProcess(toy_bundle.path, "agent_0", "0.0.0.0:0", options=options) as process:
        address = process.address.replace("0.0.0.0", "localhost")
        with bare(address, team.authority, team.robot) as client:
            client.describe()
            assert refused(ProtoReflectionDescriptorDatabase(client.channel).get_services)[0] is Code.UNIMPLEMENTED
        with bare(address, team.authority, team.operator) as client:
            assert refused(client.describe)[0] is Code.PERMISSION_DENIED


def test_a_socket_that_others_may_open_is_refused(tmp_path: Path, tokens: Path) -> None:
    private, public = tmp_path / "private", Path("/tmp") / f"hmarl-test-{os.getpid()}"
    private.mkdir(0o700)
    public.mkdir()
    public.chmod(0o777)
    before = os.umask(0)
    try:
        said = refusal(f"unix:{public}/s")
        assert said is not None
        assert f"listen: got unix:{public}/s, other users may connect (its mode is 0777, and no folder" in said
        assert not (public / "s").exists()
        assert refusal(f"unix:{public}/s", token_file=tokens) is None
        assert refusal(f"unix:{private}/s") is None
        os.umask(0o022)
        assert refusal(f"unix:{public}/s") is None, "with a usual umask its user alone may connect"
    finally:
        os.umask(before)
        public.rmdir()


def test_files_that_others_may_read_are_refused(team: Team, tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens", TOKEN)
    tokens.chmod(0o644)
    said = refusal("127.0.0.1:0", token_file=tokens)
    assert said == (
        f"--token-file: got '{tokens}' with mode 0644, expected a file that its owner alone may read: "
        f"chmod go-rwx {tokens}"
    )
    key = tmp_path / "agent.key"
    key.write_bytes(team.agent.key.read_bytes())
    key.chmod(0o640)
    said = refusal("127.0.0.1:0", tls_cert=team.agent.certificate, tls_key=key)
    assert said is not None
    assert said.startswith(f"--tls-key: got '{key}' with mode 0640")
    assert "PRIVATE KEY" not in said


def test_options_that_do_not_go_together(team: Team, tmp_path: Path) -> None:
    agent, authority = team.agent, team.authority.certificate
    for security, says in (
        ({"tls_cert": agent.certificate}, "--tls-key: got nothing"),
        ({"tls_client_ca": authority}, "--tls-client-ca: got it without --tls-cert and --tls-key"),
        ({"allow_clients": ("x",)}, "--allow-client: got names without --tls-client-ca"),
        ({"tls_cert": agent.certificate, "tls_key": team.robot.key}, "is not the private key"),
        ({"tls_cert": tmp_path / "no", "tls_key": agent.key}, "--tls-cert: cannot read"),
        ({"tls_cert": agent.key, "tls_key": agent.key}, "got no certificate in PEM"),
    ):
        said = refusal("127.0.0.1:0", **security)
        assert said is not None
        assert says in said, said


def test_health_may_stay_open(toy_bundle: Bundle, tokens: Path) -> None:
    options = ("--token-file", str(tokens), "--open-health")
    with AgentProcess(toy_bundle.path, "agent_0", options=options) as process, bare(process.address) as client:
        assert client.healthy()
        assert refused(client.describe)[0] is Code.UNAUTHENTICATED


def test_both_a_certificate_and_a_token_may_be_asked_for(toy_bundle: Bundle, team: Team, tokens: Path) -> None:
    options = server_options(team.authority, team.agent, "--token-file", tokens)
    with AgentProcess(toy_bundle.path, "agent_0", options=options) as process:
        for client, token, works in (
            (team.robot, TOKEN, True),
            (team.robot, None, False),
            (team.robot, "x" * 32, False),
            (None, TOKEN, False),
        ):
            with bare(process.address, team.authority, client, token) as peer:
                if works:
                    session = peer.start()
                    assert peer.act(session).step == 0
                else:
                    refused(peer.describe)
        with bare(process.address, team.authority, team.robot, OTHER_TOKEN) as peer:
            assert refused(peer.act, session)[0] is Code.NOT_FOUND, "the token belongs to the name, too"
