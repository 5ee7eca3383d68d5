"""hmarl-agent as a real process, spoken to over real gRPC."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.agent.v1.tensors import to_array, to_tensor
from hmarl.runtime.access import parse_address
from hmarl.runtime.bundle import Bundle, UsageError
from hmarl.runtime.server import AgentServer
from hmarl.runtime.service import SERVICE
from hmarl.runtime.session import Policy, noise_for
from hmarl.runtime.settings import ServerSettings

LEGAL = np.ones(5, np.bool_)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
Start = Callable[..., "Agent"]


class Agent:
    """A running hmarl-agent and a client of it."""

    def __init__(self, bundle: Bundle, *options: str, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "hmarl.runtime.commands.agent", str(bundle.path), "--json", *options]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.address = json.loads(line)["address"]
        self.connect()

    def connect(self) -> None:
        self.channel = grpc.insecure_channel(self.address)
        self.stub = agent_pb2_grpc.AgentServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def start(self, seed: int = 1, **options: Any) -> str:
        start = agent_pb2.StartEpisodeRequest(**{"seed": seed, "diagnostics": True, **options})
        return str(self.stub.StartEpisode(start, timeout=20).session_id)

    def act(self, session_id: str, step: int, **changes: Any) -> agent_pb2.ActResponse:
        return self.stub.Act(request(session_id, step, **changes), timeout=20)

    def stop(self) -> tuple[int, str]:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=30)
        self.channel.close()
        return self.process.returncode, log


@pytest.fixture
def start_agent(toy_bundle: Bundle) -> Iterator[Start]:
    agents: list[Agent] = []

    def start(*options: str, **more: Any) -> Agent:
        listen = () if "--listen" in options else ("--listen", "127.0.0.1:0")
        agents.append(Agent(toy_bundle, "--agent", "agent_0", *listen, *options, **more))
        return agents[-1]

    yield start
    for agent in agents:
        agent.stop()


@pytest.fixture(scope="module")
def agent(toy_bundle: Bundle) -> Iterator[Agent]:
    agent = Agent(toy_bundle, "--agent", "agent_0", "--listen", "127.0.0.1:0")
    yield agent
    agent.stop()


def observation(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=6).astype(np.float32)


def request(session_id: str, step: int, **changes: Any) -> agent_pb2.ActRequest:
    fields = {"observation": to_tensor(observation(step)), "action_mask": to_tensor(LEGAL), **changes}
    return agent_pb2.ActRequest(session_id=session_id, step=step, **fields)


def content(reply: agent_pb2.ActResponse) -> tuple[Any, ...]:
    """Everything that a reply says but for the step's bookkeeping."""
    diagnostics = {name: tensor.data for name, tensor in reply.diagnostics.items()}
    return reply.action.data, diagnostics


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def expected(toy_bundle: Bundle, seed: int, steps: Iterable[int], **options: Any) -> list[tuple[Any, ...]]:
    """What an in-process session replies to the same steps."""
    session = Policy(toy_bundle, "agent_0").session()
    session.reset(seed, **options)
    replies = [session.act(observation(step), LEGAL, step=step) for step in steps]
    return [
        (to_tensor(reply.action).data, {name: array.tobytes() for name, array in reply.diagnostics.items()})
        for reply in replies
    ]


def test_the_agent_says_who_it_is(agent: Agent, toy_bundle: Bundle) -> None:
    info = agent.stub.GetAgentInfo(agent_pb2.GetAgentInfoRequest())
    assert (info.agent_id, info.bundle_name, info.algorithm) == ("agent_0", "toy", "toy")
    assert info.bundle_sha256 == toy_bundle.sha256
    assert info.execution_provider == "CPUExecutionProvider"
    assert info.control_period_seconds == 0.1
    assert json.loads(info.agent_manifest_json)["observation"]["shape"] == [6]
    assert json.loads(info.environment_json)["name"] == "toy/toy"


@pytest.mark.parametrize("sample", [False, True])
def test_interleaved_sessions_act_as_if_alone(agent: Agent, toy_bundle: Bundle, sample: bool) -> None:
    seeds = range(20)
    sessions = {seed: agent.start(seed, sample=sample) for seed in seeds}
    assert len(set(sessions.values())) == 20
    got: dict[int, list[Any]] = {seed: [] for seed in seeds}
    for step in range(8):
        for seed in np.random.default_rng(step).permutation(20).tolist():
            got[seed].append(content(agent.act(sessions[seed], step)))
    for seed in seeds:
        assert got[seed] == expected(toy_bundle, seed, range(8), sample=sample)


def test_diagnostics_are_sent_only_to_who_asks_for_them(agent: Agent) -> None:
    plain, full = (agent.act(agent.start(diagnostics=wanted), 0) for wanted in (False, True))
    assert not plain.diagnostics
    assert full.diagnostics
    assert plain.action == full.action


def test_a_stream_answers_in_order_and_survives_wrong_requests(agent: Agent, toy_bundle: Bundle) -> None:
    session = agent.start(3)
    requests = [
        request(session, 0),
        request("unknown", 1),
        request(session, 1, observation=to_tensor(np.full(6, np.nan, np.float32))),
        request(session, 1),
        request(session, 0),
        request(session, 4),
    ]
    replies = list(agent.stub.StreamAct(agent_pb2.StreamActRequest(act=each) for each in requests))
    kinds = [reply.WhichOneof("result") for reply in replies]
    assert kinds == ["act", "error", "error", "act", "error", "act"]
    codes = [reply.error.code for reply in replies if reply.WhichOneof("result") == "error"]
    assert codes == [
        code.value[0]
        for code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    ]
    assert "finite" in replies[2].error.message
    assert [replies[index].act.missed_steps for index in (0, 3, 5)] == [0, 0, 2]
    assert [content(replies[index].act) for index in (0, 3, 5)] == expected(toy_bundle, 3, [0, 1, 4])


FLOAT32 = agent_pb2.DATA_TYPE_FLOAT32
BAD_TENSORS: dict[str, tuple[dict[str, agent_pb2.Tensor], str]] = {
    "shape": ({"observation": to_tensor(np.zeros(7, np.float32))}, r"got float32 (7,), expected float32 (6,)"),
    "dtype": ({"observation": to_tensor(np.zeros(6, np.int64))}, "got int64, expected float32 (6,)"),
    "nan": ({"observation": to_tensor(np.full(6, np.nan, np.float32))}, "observation[0]: got nan"),
    "inf": ({"observation": to_tensor(np.full(6, np.inf, np.float32))}, "observation[0]: got inf"),
    "empty": ({"observation": agent_pb2.Tensor()}, "observation.data_type: got 0"),
    "unknown type": ({"observation": agent_pb2.Tensor(data_type=99, shape=[6])}, "observation.data_type: got 99"),
    "short": ({"observation": agent_pb2.Tensor(data_type=FLOAT32, shape=[6], data=b"123")}, "got 3 bytes"),
    "a byte too many": (
        {"observation": agent_pb2.Tensor(data_type=FLOAT32, shape=[6], data=bytes(25))},
        "got 25 bytes",
    ),
    "negative": ({"observation": agent_pb2.Tensor(data_type=FLOAT32, shape=[-6], data=b"")}, "sizes of at least 0"),
    "overflow": ({"observation": agent_pb2.Tensor(data_type=FLOAT32, shape=[2**62, 4], data=b"")}, "got 0 bytes"),
    "all-false mask": ({"action_mask": to_tensor(np.zeros(5, np.bool_))}, "no legal action"),
    "mask bytes": (
        {"action_mask": agent_pb2.Tensor(data_type=agent_pb2.DATA_TYPE_BOOL, shape=[5], data=b"\1\1\2\1\1")},
        "neither 0 nor 1",
    ),
}


@pytest.mark.parametrize("kind", list(BAD_TENSORS))
def test_wrong_observations_are_refused_and_the_episode_goes_on(agent: Agent, toy_bundle: Bundle, kind: str) -> None:
    changes, message = BAD_TENSORS[kind]
    session = agent.start(5)
    first = content(agent.act(session, 0))
    code, details = refused(lambda: agent.act(session, 1, **changes))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert message in details
    assert [first, content(agent.act(session, 1))] == expected(toy_bundle, 5, range(2))


def test_a_missing_mask_and_an_unknown_choice_are_refused(agent: Agent) -> None:
    session = agent.start()
    bare = agent_pb2.ActRequest(session_id=session, observation=to_tensor(observation(0)))
    assert refused(lambda: agent.stub.Act(bare))[0] == grpc.StatusCode.INVALID_ARGUMENT
    code, details = refused(lambda: agent.start(instruction_choice=17))
    assert (code, "instruction_choice: got 17" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)


def test_bytes_that_are_no_message_leave_the_server_alive(agent: Agent) -> None:
    raw = agent.channel.unary_unary(f"/{SERVICE}/Act")
    with pytest.raises(grpc.RpcError):
        raw(b"\xff\xff\xff", timeout=20)
    agent.act(agent.start(), 0)


def test_step_rules_over_the_wire(agent: Agent) -> None:
    session = agent.start()
    agent.act(session, 0)
    first = agent.act(session, 3)
    again = agent.act(session, 3)
    assert (first.missed_steps, first.replayed, again.missed_steps, again.replayed) == (2, False, 2, True)
    assert content(first) == content(again)
    assert refused(lambda: agent.act(session, 2))[0] == grpc.StatusCode.FAILED_PRECONDITION
    other = to_tensor(observation(9))
    code, details = refused(lambda: agent.act(session, 3, observation=other))
    assert (code, "other content" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    ended = agent.stub.EndEpisode(agent_pb2.EndEpisodeRequest(session_id=session))
    assert (ended.steps, ended.missed_steps) == (2, 2)
    code, details = refused(lambda: agent.act(session, 4))
    assert (code, "first_step" in details) == (grpc.StatusCode.NOT_FOUND, True)
    assert refused(lambda: agent.stub.EndEpisode(agent_pb2.EndEpisodeRequest(session_id=session)))[0] == code


def test_rejoining_after_a_restart_draws_the_numbers_of_the_unbroken_episode(
    start_agent: Start, toy_bundle: Bundle
) -> None:
    policy = Policy(toy_bundle, "agent_0")

    def from_the_graph(step: int, state: np.ndarray) -> dict[str, np.ndarray]:
        """One step worked out by hand: the episode's numbers of that step, and a given recurrent state."""
        noises = {noise.name: noise_for(noise, "agent_0", np.array([11]), step) for noise in policy.agent.noises}
        return policy.run_batch({"observation": observation(step)[None], "state": state, **noises})

    agent = start_agent()
    session = agent.start(11, sample=True)
    state = reset = np.full((1, 8), 0.25, np.float32)
    for step in range(6):
        outputs = from_the_graph(step, state)
        state = outputs["next_state"]
        assert agent.act(session, step).diagnostics["instruction"].data == outputs["instruction"].tobytes()
    agent.process.kill()
    agent.process.wait()
    agent = start_agent("--listen", agent.address)
    code, details = refused(lambda: agent.act(session, 6))
    assert (code, "first_step" in details) == (grpc.StatusCode.NOT_FOUND, True)
    rejoin = agent_pb2.StartEpisodeRequest(seed=11, sample=True, first_step=6, diagnostics=True)
    answer = agent.stub.StartEpisode(rejoin)
    assert answer.state_reset_mid_episode
    state = reset
    for step in range(6, 20):
        outputs = from_the_graph(step, state)
        state = outputs["next_state"]
        reply = agent.act(answer.session_id, step)
        assert (reply.action.data, reply.missed_steps) == (outputs["action"].tobytes(), 0)
        assert reply.diagnostics["instruction"].data == outputs["instruction"].tobytes()


def test_a_plain_start_does_not_claim_a_lost_state(agent: Agent) -> None:
    assert not agent.stub.StartEpisode(agent_pb2.StartEpisodeRequest(seed=1)).state_reset_mid_episode


def test_the_session_limit_and_idle_expiry(start_agent: Start) -> None:
    agent = start_agent("--max-sessions", "2", "--session-ttl-s", "600")
    first = agent.start()
    agent.start()
    code, details = refused(agent.start)
    assert (code, "--max-sessions" in details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    agent.act(first, 0)
    agent.stub.EndEpisode(agent_pb2.EndEpisodeRequest(session_id=first))
    agent.start()


def test_idle_sessions_make_room(start_agent: Start) -> None:
    agent = start_agent("--max-sessions", "1", "--session-ttl-s", "1e-6")
    old = agent.start()
    agent.start()
    assert refused(lambda: agent.act(old, 0))[0] == grpc.StatusCode.NOT_FOUND


def test_open_streams_never_starve_unary_calls(start_agent: Start) -> None:
    agent = start_agent("--max-streams", "2")
    session = agent.start()
    streams = []
    for step in range(2):
        requests: Any = iter([agent_pb2.StreamActRequest(act=request(session, step))])
        streams.append(agent.stub.StreamAct(_then_wait(requests)))
        assert next(streams[-1]).act.step == step
    code, details = refused(lambda: next(agent.stub.StreamAct(iter([]))))
    assert (code, "--max-streams" in details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    assert agent.act(session, 2).step == 2
    assert agent.health.Check(health_pb2.HealthCheckRequest()).status == SERVING
    for stream in streams:
        stream.cancel()
    assert any(_stream_opens(agent) for _ in range(200))


def _stream_opens(agent: Agent) -> bool:
    """Whether one more stream may be opened; a cancelled one makes room within moments."""
    try:
        return list(agent.stub.StreamAct(iter([]))) == []
    except grpc.RpcError:
        time.sleep(0.05)
        return False


def _then_wait(requests: Iterator[Any]) -> Iterator[Any]:
    yield from requests
    threading.Event().wait(20)  # the stream stays open until it is cancelled


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health(agent: Agent, service: str) -> None:
    assert agent.health.Check(health_pb2.HealthCheckRequest(service=service)).status == SERVING
    assert next(agent.health.Watch(health_pb2.HealthCheckRequest(service=service))).status == SERVING


def test_health_of_an_unknown_service(agent: Agent) -> None:
    check = health_pb2.HealthCheckRequest(service="no.such.Service")
    assert refused(lambda: agent.health.Check(check))[0] == grpc.StatusCode.NOT_FOUND


def test_not_serving_until_the_policy_is_loaded_and_before_stopping(toy_bundle: Bundle) -> None:
    server = AgentServer(ServerSettings("127.0.0.1:0"))
    with grpc.insecure_channel(server.address) as channel:
        health, stub = health_pb2_grpc.HealthStub(channel), agent_pb2_grpc.AgentServiceStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == NOT_SERVING
        code, details = refused(lambda: stub.GetAgentInfo(agent_pb2.GetAgentInfoRequest()))
        assert (code, "being loaded" in details) == (grpc.StatusCode.UNAVAILABLE, True)
        server.serve(Policy(toy_bundle, "agent_0"))
        assert next(watch).status == SERVING
        server.stop(0.0)
        assert next(watch).status == NOT_SERVING


def test_reflection_can_be_had_and_left_out(agent: Agent, start_agent: Start) -> None:
    assert SERVICE in ProtoReflectionDescriptorDatabase(agent.channel).get_services()
    with pytest.raises(grpc.RpcError):
        ProtoReflectionDescriptorDatabase(start_agent("--no-reflection").channel).get_services()


def test_sigterm_lets_a_running_episode_end_and_starts_no_more(start_agent: Start) -> None:
    agent = start_agent("--grace-s", "20")
    session = agent.start()
    watch = agent.health.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == SERVING
    agent.act(session, 0)
    agent.process.send_signal(signal.SIGTERM)
    assert next(watch).status == NOT_SERVING
    code, details = refused(agent.start)
    assert (code, "stopping" in details) == (grpc.StatusCode.UNAVAILABLE, True)
    assert agent.act(session, 1).step == 1
    agent.stub.EndEpisode(agent_pb2.EndEpisodeRequest(session_id=session))
    watch.cancel()
    code_and_log = agent.stop()
    assert code_and_log[0] == 0
    assert "draining" in code_and_log[1]


def test_unix_sockets_are_served_and_removed(start_agent: Start, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    agent = start_agent("--listen", f"unix:{path}")
    assert agent.address == f"unix:{path}"
    agent.act(agent.start(), 0)
    assert agent.stop()[0] == 0
    assert not path.exists()


def run_agent(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "hmarl.runtime.commands.agent", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_a_port_in_use_is_an_error_that_names_it(agent: Agent, toy_bundle: Bundle, tmp_path: Path) -> None:
    code, message = run_agent(str(toy_bundle.path), "--agent", "agent_0", "--listen", agent.address)
    assert code == 4
    assert f"cannot listen on {agent.address}: the address is in use" in message
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        code, message = run_agent(str(toy_bundle.path), "--agent", "agent_0", "--listen", f"unix:{tmp_path}/s")
    assert (code, "in use" in message) == (4, True)
    agent.act(agent.start(), 0)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--agent", "agnt_0"], 2, "did you mean 'agent_0'"),
        (["--agent", "agent_0", "--listen", "nowhere"], 2, "expected HOST:PORT"),
        (["--agent", "agent_0", "--listen", "127.0.0.1:70000"], 2, "port must be between 0 and 65535, got 70000"),
        (["--agent", "agent_0", "--listen", "unix:/nowhere/at/all"], 2, "there is no directory"),
        (["--agent", "agent_0", "--listen", "127.0.0.1:0", "--provider", "gpu"], 2, "unknown provider 'gpu'"),
        (["--agent", "agent_0", "--max-sessions", "0"], 2, "expected an integer of at least 1"),
        (["--agent", "agent_0", "--core", "99999"], 2, "core: got 99999, expected one of "),
        ([], 2, "--agent"),
    ],
)
def test_bad_usage(toy_bundle: Bundle, arguments: list[str], code: int, message: str) -> None:
    got = run_agent(str(toy_bundle.path), *arguments)
    assert got[0] == code, got[1]
    assert message in got[1]
    assert "Traceback" not in got[1]


def test_a_damaged_bundle_ends_with_code_3(tmp_path: Path) -> None:
    code, message = run_agent(str(tmp_path), "--agent", "agent_0")
    assert (code, "is this a bundle" in message) == (3, True)


def test_options_may_come_from_the_environment(toy_bundle: Bundle, tmp_path: Path) -> None:
    environment = {"HMARL_AGENT": "agent_1", "HMARL_LISTEN": f"unix:{tmp_path}/a"}
    agent = Agent(toy_bundle, environment=environment)
    try:
        assert agent.stub.GetAgentInfo(agent_pb2.GetAgentInfoRequest()).agent_id == "agent_1"
        assert agent.address == f"unix:{tmp_path}/a"
    finally:
        agent.stop()


def test_systemd_is_told(toy_bundle: Bundle, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "40000"}
        agent = Agent(toy_bundle, "--agent", "agent_0", "--listen", "127.0.0.1:0", environment=environment)
        assert manager.recv(100) == b"READY=1"
        assert manager.recv(100) == b"WATCHDOG=1"
        assert agent.stop()[0] == 0
        manager.settimeout(0.1)
        messages = [b""]
        while messages[-1] != b"STOPPING=1":
            messages.append(manager.recv(100))


def test_a_public_address_that_is_insisted_on_is_warned_about(start_agent: Start) -> None:
    agent = start_agent("--listen", "0.0.0.0:0", "--insecure")
    assert "without encryption or authentication" in agent.stop()[1]


def test_unforeseen_errors_tell_a_correlation_id_only(toy_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    policy = Policy(toy_bundle, "agent_0")
    policy.session = lambda: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    server = AgentServer(ServerSettings("127.0.0.1:0"))
    server.serve(policy)
    with grpc.insecure_channel(server.address) as channel:
        stub = agent_pb2_grpc.AgentServiceStub(channel)
        code, details = refused(lambda: stub.StartEpisode(agent_pb2.StartEpisodeRequest()))
    server.stop(0.0)
    assert code == grpc.StatusCode.INTERNAL
    assert "division" not in details
    correlation_id = details.split()[2].rstrip(";")
    record = next(record for record in caplog.records if correlation_id in record.getMessage())
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize(
    ("listen", "want"),
    [("127.0.0.1:1", ("127.0.0.1", 1)), ("[::1]:0", ("[::1]", 0)), ("robot-1.lan:80", ("robot-1.lan", 80))],
)
def test_addresses(listen: str, want: tuple[str, int]) -> None:
    assert parse_address(listen) == want


@pytest.mark.parametrize("listen", ["", "127.0.0.1", ":1", "::1:1", "a:b", "a:1:2", "http://a:1", "a:-1"])
def test_malformed_addresses(listen: str) -> None:
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        parse_address(listen)


def test_the_agent_process_stays_light() -> None:
    code = (
        "import sys, hmarl.runtime.commands.agent, hmarl.runtime.server, hmarl.runtime.session\n"
        "print([m for m in ('gymnasium', 'torch', 'matplotlib', 'difflib', 'rich', 'onnx') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_tensors_survive_the_wire() -> None:
    for array in (observation(0), np.arange(3), LEGAL, np.array(5), np.zeros((0, 2), np.float32)):
        got = to_array(to_tensor(array), "x")
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(got, array)
    assert to_array(to_tensor(-3), "x") == -3
