"""The Open Inference Protocol over real gRPC: hmarl-agent --oip answers what its own protocol and LocalAgent answer."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from agent_process import AgentProcess
from hmarl.oip import open_inference_pb2 as pb
from hmarl.runtime import __version__
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.server import AgentServer
from hmarl.runtime.session import Policy, PolicySession
from hmarl.runtime.settings import ServerSettings
from hmarl.sdk import LocalAgent
from hmarl.sdk.clients.client import AgentClient
from inference_client import InferenceClient, infer_request, outputs_of, parameter
from processes import fleet_process, wait_for
from toy_bundle import write_toy_bundle
from wire_mutations import scrambled

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
FAILED = grpc.StatusCode.FAILED_PRECONDITION
LEGAL = np.array([True, True, False, True, True])
DRAWN = {"sample": True, "seed": 2**62 + 1}
STEPS = range(12)


@pytest.fixture(scope="module")
def agent(toy_bundle: Bundle) -> Iterator[AgentProcess]:
    with AgentProcess(toy_bundle.path, "agent_0", options=("--oip",)) as agent:
        yield agent


@pytest.fixture
def client(agent: AgentProcess) -> Iterator[InferenceClient]:
    with InferenceClient(agent.address) as client:
        yield client


def observation(step: int, size: int = 6) -> np.ndarray:
    return np.random.default_rng(step).normal(size=size).astype(np.float32)


def inputs(step: int, **more: np.ndarray) -> dict[str, np.ndarray]:
    return {"observation": observation(step)[None], "action_mask": LEGAL[None], **more}


def local(bundle: Bundle, seed: int, **options: Any) -> PolicySession:
    session = Policy(bundle, "agent_0").session()
    session.reset(seed, **options)
    return session


def same(got: dict[str, np.ndarray], session: PolicySession, step: int, mask: np.ndarray | None = LEGAL) -> None:
    """A reply's arrays are a local session's, bit for bit."""
    wanted = session.act(observation(step), mask, step=step)
    everything = {"action": np.asarray(wanted.action), **wanted.diagnostics}
    assert got.keys() - {"next_state"} == everything.keys()
    for name, array in everything.items():
        assert got[name].dtype == array.dtype
        assert got[name][0].tobytes() == array.tobytes(), name


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def test_live_ready_and_metadata(client: InferenceClient, toy_bundle: Bundle) -> None:
    stub = client.stub
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    ready = {
        (name, version): stub.ModelReady(pb.ModelReadyRequest(name=name, version=version)).ready
        for name in ("agent_0", "agent_1", toy_bundle.manifest.name)
        for version in ("", toy_bundle.sha256, "1")
    }
    assert [key for key, value in ready.items() if value] == [("agent_0", ""), ("agent_0", toy_bundle.sha256)]
    server = stub.ServerMetadata(pb.ServerMetadataRequest())
    assert (server.name, server.version) == ("hmarl", __version__)
    assert list(server.extensions) == ["parameters", "sequence", "sequence(string_id)"]
    model = stub.ModelMetadata(pb.ModelMetadataRequest(name="agent_0"))
    assert (model.name, list(model.versions), model.platform) == ("agent_0", [toy_bundle.sha256], "onnxruntime_onnx")
    assert [(each.name, each.datatype, list(each.shape)) for each in model.inputs] == [
        ("observation", "FP32", [-1, 6]),
        ("action_mask", "BOOL", [-1, 5]),
        ("state", "FP32", [-1, 8]),
    ]
    assert [(each.name, each.datatype, list(each.shape)) for each in model.outputs] == [
        ("action", "INT64", [-1]),
        ("next_state", "FP32", [-1, 8]),
        ("instruction", "INT64", [-1]),
        ("action_logits", "FP32", [-1, 5]),
    ]


@pytest.mark.parametrize(
    "options", [{}, DRAWN, {**DRAWN, "instruction_choice": "sample"}], ids=["best", "drawn", "own"]
)
def test_a_sequence_acts_as_a_local_agent_does(
    client: InferenceClient, toy_bundle: Bundle, options: dict[str, Any]
) -> None:
    session = local(toy_bundle, **{"seed": 0, **options})
    agent = LocalAgent(toy_bundle, "agent_0")
    agent.reset(**{"seed": 0, **options})
    for step in STEPS:
        start = {"sequence_start": True, **options} if step == 0 else {}
        reply = client.reply(inputs(step), sequence_id=5, sequence_end=step == STEPS[-1], **start)
        got = outputs_of(reply)
        same(got, session, step)
        assert got["action"][0] == agent.act(observation(step), LEGAL).action
        assert (reply.model_name, reply.model_version, reply.id) == ("agent_0", toy_bundle.sha256, "7")
        assert reply.parameters["step"].int64_param == step
    code, text = refused(lambda: client.infer(inputs(99), sequence_id=5))
    assert code == NOT_FOUND
    assert "sequence 5 is not open for this client" in text


def test_by_itself_the_caller_keeps_the_state(client: InferenceClient, toy_bundle: Bundle) -> None:
    session = local(toy_bundle, **DRAWN)
    state: dict[str, Any] = {}
    for step in STEPS:
        first = {"reset_state": True} if not state else {}
        got = client.infer(inputs(step, **state), step=step, **DRAWN, **first)
        same(got, session, step)
        state = {"state": got["next_state"]}


def test_the_programs_own_protocol_and_this_one_draw_alike(agent: AgentProcess, client: InferenceClient) -> None:
    with AgentClient(agent.address, timeout_s=20.0) as own:
        own.reset(9, sample=True)
        for step in STEPS:
            start = {"sequence_start": True, "sample": True, "seed": 9} if step == 0 else {}
            got = client.infer(inputs(step), sequence_id="a", **start)
            assert got["action"][0] == own.act(observation(step), LEGAL).action


def test_continuous_actions_are_the_same_to_the_bit(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Served in this process, typed contents as well as raw ones."""
    bundle = write_toy_bundle(tmp_path_factory.mktemp("box") / "bundle", action="box")
    server = AgentServer(ServerSettings(listen="127.0.0.1:0", oip=True))
    try:
        server.serve(Policy(bundle, "agent_0"))
        for raw in (True, False):
            session = local(bundle, **DRAWN)
            with InferenceClient(server.address) as client:
                for step in STEPS:
                    start = {"sequence_start": True, **DRAWN} if step == 0 else {}
                    reply = client.reply({"observation": observation(step)[None]}, raw=raw, sequence_id=1, **start)
                    assert bool(reply.raw_output_contents) == raw
                    same(outputs_of(reply), session, step, mask=None)
    finally:
        server.stop(grace_s=0.0)


def test_rows_are_independent(client: InferenceClient, toy_bundle: Bundle) -> None:
    """What a row gets does not depend on the rows beside it, to the bit."""
    rows = 128
    generator = np.random.default_rng(3)
    batch = {
        "observation": generator.normal(size=(rows, 6)).astype(np.float32),
        "action_mask": np.tile(LEGAL, (rows, 1)),
        "state": generator.normal(size=(rows, 8)).astype(np.float32),
    }
    together = client.infer(batch)
    assert together["action"].shape == (rows,)
    assert together["next_state"].shape == (rows, 8)
    for row in (0, 1, 77, 127):
        alone = client.infer({name: array[row : row + 1] for name, array in batch.items()})
        for name, array in alone.items():
            assert array[0].tobytes() == together[name][row].tobytes()
    more = {name: np.concatenate([array, array[:1]]) for name, array in batch.items()}
    code, text = refused(lambda: client.infer(more))
    assert (code, text) == (INVALID, "inputs.observation.shape: got 129 rows, expected 1 to 128")


def test_outputs_can_be_chosen(client: InferenceClient) -> None:
    got = client.infer(inputs(0), outputs=["next_state", "action"], reset_state=True)
    assert sorted(got) == ["action", "next_state"]


def test_steps_keep_the_rules_of_sessions(client: InferenceClient) -> None:
    reply = client.reply(inputs(0), sequence_id="s", sequence_start=True, step=4)
    assert reply.parameters["state_reset_mid_episode"].bool_param
    reply = client.reply(inputs(1), sequence_id="s", step=7)
    assert reply.parameters["missed_steps"].int64_param == 2
    again = client.reply(inputs(1), sequence_id="s", step=7)
    assert again.parameters["replayed"].bool_param
    assert again.raw_output_contents == reply.raw_output_contents
    code, text = refused(lambda: client.infer(inputs(2), sequence_id="s", step=7))
    assert (code, text) == (
        FAILED,
        "step: got 7 again with other content; repeat it unchanged, or go on with 8 or later",
    )
    code, _ = refused(lambda: client.infer(inputs(2), sequence_id="s", step=6))
    assert code == FAILED
    assert client.reply(inputs(3), sequence_id="s").parameters["step"].int64_param == 8
    large = client.reply(inputs(3), sequence_id="s", step=str(2**63 + 5))
    assert large.parameters["step"].uint64_param == 2**63 + 5


def test_a_sequence_can_be_begun_again(client: InferenceClient, toy_bundle: Bundle) -> None:
    for _ in range(2):
        session = local(toy_bundle, 3, sample=True)
        for step in range(3):
            start = {"sequence_start": True, "seed": 3, "sample": True} if step == 0 else {}
            same(client.infer(inputs(step), sequence_id=8, **start), session, step)


def test_another_client_has_sequences_of_its_own(agent: AgentProcess, toy_bundle: Bundle) -> None:
    """Two clients that happen to choose one id never act in each other's session."""
    with InferenceClient(agent.address) as one, InferenceClient(agent.address) as other:
        sessions = {one: local(toy_bundle, 1, sample=True), other: local(toy_bundle, 2, sample=True)}
        one.infer(inputs(100), sequence_id=3, sequence_start=True, seed=1, sample=True)
        code, _ = refused(lambda: other.infer(inputs(0), sequence_id=3))
        assert code == NOT_FOUND
        code, _ = refused(lambda: other.infer(inputs(0), sequence_id=3, sequence_end=True))
        assert code == NOT_FOUND
        for step in STEPS:
            for client, session in sessions.items():
                seed = 1 if client is one else 2
                start = {"sequence_start": True, "seed": seed, "sample": True} if step == 0 else {}
                same(client.infer(inputs(step), sequence_id=3, **start), session, step)


def test_sequences_take_places_as_sessions_do(toy_bundle: Bundle) -> None:
    """The agent may hold eight; both protocols share them. Begun again, a sequence takes no second place."""
    with (
        AgentProcess(toy_bundle.path, "agent_0", options=("--oip", "--max-sessions", "8")) as agent,
        InferenceClient(agent.address) as client,
        AgentClient(agent.address, timeout_s=20.0) as own,
    ):
        for number in range(1, 9):
            client.infer(inputs(0), sequence_id=number, sequence_start=True)
        client.infer(inputs(0), sequence_id=8, sequence_start=True)
        code, text = refused(lambda: client.infer(inputs(0), sequence_id=9, sequence_start=True))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "8 sessions are open, the limit is 8 (--max-sessions)" in text
        client.infer(inputs(0), reset_state=True)  # a request by itself takes none
        own.reset(1)  # another peer: the one that holds nearly all gives one up
        code, _ = refused(lambda: client.infer(inputs(1), sequence_id=1))
        assert code == NOT_FOUND
        for number in range(2, 9):
            client.infer(inputs(1), sequence_id=number, sequence_end=True)


OBSERVATION = observation(0)[None]
ALONE = {"reset_state": True}


@pytest.mark.parametrize(
    ("changes", "parameters", "said"),
    [
        ({"observation": OBSERVATION[0]}, ALONE, "inputs.observation.shape: got [6], expected [-1, 6], rows first"),
        (
            {"observation": np.zeros((1, 7), np.float32)},
            ALONE,
            "inputs.observation.shape: got [1, 7], expected [-1, 6]",
        ),
        ({"observation": np.zeros((0, 6), np.float32)}, ALONE, "got 0 rows, expected 1 to 128"),
        ({"observation": np.full((1, 6), np.nan, np.float32)}, ALONE, "observation[0]: got nan, expected finite"),
        ({"observation": np.zeros((2, 6), np.float32)}, ALONE, "'action_mask': 1} rows, expected as many of each"),
        ({"observation": np.zeros((1, 6), np.int64)}, ALONE, "inputs.observation.datatype: got 'INT64', expected FP32"),
        ({"action_mask": np.zeros((1, 5), np.bool_)}, ALONE, "action_mask: got no legal action"),
        ({"action_mask": None}, ALONE, "inputs: got observation, expected action_mask too"),
        ({"observatoin": OBSERVATION}, ALONE, "unknown input 'observatoin'; did you mean 'observation'?"),
        ({"action_noise": np.zeros((1, 5), np.float32)}, ALONE, "unknown input 'action_noise'"),
        ({"state": np.zeros((1, 8), np.float32)}, ALONE, "reset_state: got true beside states"),
        ({"state": np.full((1, 8), np.inf, np.float32)}, {}, "state: got NaN or infinity, expected finite numbers"),
        ({}, {}, "inputs: got no state, but agent 'agent_0' remembers: send the state that the step before returned"),
        ({}, {"sequence_start": True}, "sequence_start: got true without a sequence"),
        ({}, {"sequence_id": "", "sequence_end": True}, "sequence_end: got true without a sequence"),
        ({}, {"sequence_id": 1, "sequence_start": 1}, "sequence_start: got 1, expected true or false"),
        ({}, {"sequence_id": "x" * 257, "sequence_start": True}, "sequence_id: got 257 characters, expected at most"),
        ({}, {"sequence_id": 1.5, "sequence_start": True}, "sequence_id: got 1.5, expected an integer"),
        ({}, {**ALONE, "sample": True, "step": 0}, "seed: got none, but agent 'agent_0' draws its action and"),
        ({}, {**ALONE, "sample": True, "seed": 1}, "step: got none, but agent 'agent_0' acts by it"),
        ({}, {**ALONE, "seed": -1}, "seed: got -1, expected 0 <= seed < 2**64"),
        ({}, {**ALONE, "seed": "9" * 30}, "seed: got '999999999999999999999999999999', expected an integer"),
        ({}, {**ALONE, "sead": 1}, "unknown parameter 'sead'; did you mean 'seed'?"),
        ({}, {**ALONE, "instruction_choice": "best"}, "instruction_choice: got 'best', expected one of argmax, sample"),
        ({}, {"sequence_id": 1, "sequence_start": True, "sample": True}, "seed: got none"),
        ({}, {"sequence_id": 1, "sequence_start": True, "reset_state": True}, "reset_state: got one in a sequence"),
        ({}, {"sequence_id": 1, "seed": 1}, "seed: got one in the middle of a sequence"),
    ],
)
def test_what_is_wrong_is_named(
    client: InferenceClient, changes: dict[str, Any], parameters: dict[str, Any], said: str
) -> None:
    given = {name: array for name, array in {**inputs(0), **changes}.items() if array is not None}
    code, text = refused(lambda: client.infer(given, **parameters))
    assert code == INVALID
    assert said in text


def test_states_and_rows_are_for_requests_by_themselves(client: InferenceClient) -> None:
    start = {"sequence_id": 2, "sequence_start": True}
    code, text = refused(lambda: client.infer(inputs(0, state=np.zeros((1, 8), np.float32)), **start))
    assert (code, text) == (INVALID, "inputs.state: got a state in a sequence, whose state is kept here: leave it out")
    two = {name: np.repeat(array, 2, axis=0) for name, array in inputs(0).items()}
    code, text = refused(lambda: client.infer(two, **start))
    assert (code, text.partition(":")[2][:40]) == (INVALID, " got 2 rows, expected 1 in a sequence: e")
    code, text = refused(lambda: client.infer(two, reset_state=True, step=1, **DRAWN))
    assert code == INVALID
    assert "got 2 rows, expected 1 where agent 'agent_0' draws its action and instruction" in text


def test_a_refused_step_leaves_the_sequence_as_it_was(client: InferenceClient, toy_bundle: Bundle) -> None:
    session = local(toy_bundle, 0)
    same(client.infer(inputs(0), sequence_id=4, sequence_start=True), session, 0)
    wrong = inputs(1) | {"observation": np.full((1, 6), np.nan, np.float32)}
    for more in ({}, {"sequence_end": True}):
        code, _ = refused(lambda more=more: client.infer(wrong, sequence_id=4, **more))
        assert code == INVALID
    same(client.infer(inputs(1), sequence_id=4), session, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda request: request.raw_input_contents.pop(), "raw_input_contents: got 1 for 2 inputs"),
        (lambda request: request.raw_input_contents.append(b""), "raw_input_contents: got 3 for 2 inputs"),
        (lambda request: request.inputs[0].contents.fp32_contents.append(1), "got them beside raw_input_contents"),
        (lambda request: request.raw_input_contents.__setitem__(0, b"x" * 23), "got 23 bytes in raw_input_contents"),
        (lambda request: request.raw_input_contents.__setitem__(1, b"\1\2\1\1\1"), "a byte that is neither 0 nor 1"),
        (lambda request: request.inputs[0].shape.extend([2**62] * 5000), "shape: got 5002 sizes, expected [-1, 6]"),
        (lambda request: request.inputs[0].shape.__setitem__(0, 2**62), f"got {2**62} rows, expected 1 to 128"),
        (lambda request: request.inputs[0].shape.__setitem__(0, -1), "got -1 rows, expected 1 to 128"),
        (lambda request: request.inputs[0].parameters["shared_memory_region"], "there is no shared memory"),
        (lambda request: request.inputs.append(request.inputs[0]), "raw_input_contents: got 2 for 3 inputs"),
        (lambda request: request.outputs.add(name="actoin"), "unknown output 'actoin'; did you mean 'action'?"),
        (
            lambda request: request.outputs.add(name="action").parameters["classification"].CopyFrom(parameter(3)),
            "neither classification nor shared memory is offered",
        ),
    ],
)
def test_messages_that_do_not_fit_themselves(
    client: InferenceClient, change: Callable[[pb.ModelInferRequest], object], said: str
) -> None:
    request = infer_request("agent_0", inputs(0), **ALONE)
    change(request)
    code, text = refused(lambda: client.stub.ModelInfer(request, timeout=20))
    assert code == INVALID
    assert said in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda request: request.inputs[0].contents.fp32_contents.append(1), "got 7 elements, expected 6"),
        (lambda request: request.inputs[0].contents.bytes_contents.append(b"1"), "fp32_contents, bytes_contents"),
        (lambda request: request.inputs[0].ClearField("contents"), "got 0 elements, expected 6"),
    ],
)
def test_typed_contents_that_do_not_fit(
    client: InferenceClient, change: Callable[[pb.ModelInferRequest], object], said: str
) -> None:
    request = infer_request("agent_0", inputs(0), raw=False, **ALONE)
    change(request)
    code, text = refused(lambda: client.stub.ModelInfer(request, timeout=20))
    assert code == INVALID
    assert said in text


def test_another_model_or_version_is_not_found(client: InferenceClient, toy_bundle: Bundle) -> None:
    request = infer_request("agent_1", inputs(0), **ALONE)
    assert refused(lambda: client.stub.ModelInfer(request)) == (
        NOT_FOUND,
        "model: got 'agent_1', expected 'agent_0': this process serves that agent alone",
    )
    code, text = refused(lambda: client.infer(inputs(0), version="1", **ALONE))
    assert code == NOT_FOUND
    assert f"expected none or the bundle's SHA-256, {toy_bundle.sha256}" in text
    client.infer(inputs(0), version=toy_bundle.sha256, **ALONE)


def test_hints_of_triton_are_taken_and_change_nothing(client: InferenceClient) -> None:
    hints = {"priority": 1, "timeout": 5, "triton_enable_empty_final_response": True}
    assert client.reply(inputs(0), **ALONE).outputs == client.reply(inputs(0), **ALONE, **hints).outputs


def test_requests_changed_field_by_field_are_answered_or_refused(client: InferenceClient) -> None:
    """More of this, on every method: `make fuzz`."""
    generator = random.Random(1)
    call = client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    requests = [
        infer_request("agent_0", inputs(0), **ALONE),
        infer_request("agent_0", inputs(0), raw=False, outputs=["action"], **ALONE),
        infer_request("agent_0", inputs(0), sequence_id=6, sequence_start=True, **DRAWN),
        infer_request("agent_0", inputs(1), sequence_id=6, step=9),
    ]
    codes = Counter[str]()
    for number in range(600):
        message = requests[number % len(requests)].SerializeToString()
        try:
            call(scrambled(message, pb.ModelInferRequest, generator), timeout=20)
            codes["OK"] += 1
        except grpc.RpcError as error:
            codes[error.code().name] += 1
    assert codes.keys() <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}
    assert min(codes["OK"], codes["INVALID_ARGUMENT"]) > 20


def test_bytes_that_are_no_message(client: InferenceClient) -> None:
    call = client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    code, text = refused(lambda: call(b"\xff\xff\xff", timeout=20))
    assert (code, text) == (
        INVALID,
        "request: got 3 bytes that are no inference.ModelInferRequest; encode it with the service's own "
        "open_inference.proto",
    )


def test_it_is_described_and_is_off_unless_asked_for(client: InferenceClient, toy_bundle: Bundle) -> None:
    name = "inference.GRPCInferenceService"
    assert name in ProtoReflectionDescriptorDatabase(client.channel).get_services()
    with AgentProcess(toy_bundle.path, "agent_0") as agent, InferenceClient(agent.address) as plain:
        assert name not in ProtoReflectionDescriptorDatabase(plain.channel).get_services()
        code, _ = refused(lambda: plain.stub.ServerLive(pb.ServerLiveRequest(), timeout=20))
        assert code == grpc.StatusCode.UNIMPLEMENTED


def test_the_names_are_registered_only_where_the_protocol_is_asked_for() -> None:
    """A program that uses hmarl may use tritonclient too, which has the same protobuf names."""
    code = (
        "import sys; from hmarl.runtime.server import AgentServer; from hmarl.runtime.settings import ServerSettings; "
        "import hmarl.sdk, hmarl.sdk.clients.client; AgentServer(ServerSettings(listen='127.0.0.1:0')).stop(); "
        "print([name for name in sys.modules if name.startswith('hmarl.oip')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_fleet_passes_it_on(toy_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "endpoints.json"
    with fleet_process(toy_bundle, out, "--oip"):
        wait_for(out.exists, "starting the fleet")
        for name, address in json.loads(out.read_text())["agents"].items():
            with InferenceClient(address, name) as client:
                assert client.infer(inputs(0), **ALONE)["action"].shape == (1,)


def test_while_it_loads_and_while_it_drains(toy_bundle: Bundle) -> None:
    server = AgentServer(ServerSettings(listen="127.0.0.1:0", oip=True))
    with InferenceClient(server.address) as client:
        assert client.stub.ServerLive(pb.ServerLiveRequest()).live
        assert not client.stub.ServerReady(pb.ServerReadyRequest()).ready
        assert not client.stub.ModelReady(pb.ModelReadyRequest(name="agent_0")).ready
        code, _ = refused(lambda: client.stub.ModelMetadata(pb.ModelMetadataRequest(name="agent_0")))
        assert code == grpc.StatusCode.UNAVAILABLE
        code, _ = refused(lambda: client.infer(inputs(0), **ALONE))
        assert code == grpc.StatusCode.UNAVAILABLE
        server.serve(Policy(toy_bundle, "agent_0"))
        client.infer(inputs(0), sequence_id=1, sequence_start=True)
        server.sessions.drain()
        client.infer(inputs(1), sequence_id=1)
        code, _ = refused(lambda: client.infer(inputs(0), sequence_id=2, sequence_start=True))
        assert code == grpc.StatusCode.UNAVAILABLE
    server.stop(grace_s=0.0)


def test_a_reload_to_a_larger_memory_takes_as_many_rows_as_it_says(tmp_path: Path) -> None:
    """How large messages may be is settled once, when the process starts; states may differ from bundle to bundle."""
    link, larger = tmp_path / "link", write_toy_bundle(tmp_path / "larger", sizes=(1024,))
    link.symlink_to(write_toy_bundle(tmp_path / "small").path)
    with AgentProcess(link, "agent_0", options=("--oip",), log=tmp_path / "log") as agent:
        link.unlink()
        link.symlink_to(larger.path)
        agent.process.send_signal(signal.SIGHUP)
        wait_for(lambda: f"({larger.sha256}) is served to new episodes" in agent.log, "the reload")
        with InferenceClient(agent.address) as client:
            rows = {
                "observation": np.zeros((128, 6), np.float32),
                "action_mask": np.tile(LEGAL, (128, 1)),
                "state": np.zeros((128, 1024), np.float32),
            }
            assert client.infer(rows)["next_state"].shape == (128, 1024)
