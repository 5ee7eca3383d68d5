"""The Python client and runtime, held to the vectors that clients in all languages are held to."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format, text_format

from agent_process import AgentProcess
from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc
from hmarl.agent.v1.messages import INSTRUCTION_CHOICES, write_act
from hmarl.agent.v1.tensors import to_array
from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.manifest import NoiseModel
from hmarl.runtime.noise import noise_for
from hmarl.runtime.server import SERVICE
from hmarl.runtime.service import agent_info
from hmarl.runtime.session import Policy
from hmarl.sdk import AgentClient, AgentError, LocalAgent, Zero
from hmarl.sdk.clients.agent import Agent
from hmarl.sdk.clients.link import LinkWatch
from hmarl.sdk.clients.remote_episode import RemoteEpisode

VECTORS = Path(__file__).resolve().parents[2] / "proto" / "conformance"
BUNDLE = VECTORS / "bundle"
WORD = 2**64 - 1


def read(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


NAMES = "episodes", "messages", "noise", "errors", "actions"
EPISODES, MESSAGES, NOISE, ERRORS, ACTIONS = (read(f"{name}.json") for name in NAMES)


def by_name(case: dict[str, Any]) -> str:
    return str(case.get("name"))


@pytest.fixture(scope="module")
def sockets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where each agent of the bundle serves frames."""
    folder = tmp_path_factory.mktemp("frames")
    return {agent_id: folder / agent_id for agent_id in load_bundle(BUNDLE).agent_ids}


@pytest.fixture(scope="module")
def served(sockets: dict[str, Path]) -> Iterator[dict[str, str]]:
    """The address of each agent of the bundle."""
    agents = {name: AgentProcess(BUNDLE, name, options=["--frames", str(path)]) for name, path in sockets.items()}
    yield {name: agent.address for name, agent in agents.items()}
    for agent in agents.values():
        agent.kill()


def test_committed_vectors_are_those_that_would_be_written() -> None:
    command = [sys.executable, VECTORS / "make_vectors.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hashes() -> None:
    hashes, bundle = read("hashes.json"), load_bundle(BUNDLE)
    assert bundle.sha256 == hashes["bundle_sha256"]
    assert {name: hashlib.sha256((BUNDLE / name).read_bytes()).hexdigest() for name in hashes["files"]} == hashes[
        "files"
    ]
    assert sum(each.stat().st_size for each in BUNDLE.rglob("*") if each.is_file()) <= 100_000


def philox(key: list[int], counter: list[int], count: int) -> list[int]:
    """Philox4x64-10 as Salmon et al. write it, the counter raised before each block."""
    words: list[int] = []
    while len(words) < count:
        counter = [counter[0] + 1, *counter[1:]]
        (k0, k1), (c0, c1, c2, c3) = key, counter
        for _ in range(10):
            first, second = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
            c0, c1, c2, c3 = (second >> 64) ^ c1 ^ k0, second & WORD, (first >> 64) ^ c3 ^ k1, first & WORD
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
        words += [c0, c1, c2, c3]
    return words[:count]


@pytest.mark.parametrize("case", NOISE)
def test_noise(case: dict[str, Any]) -> None:
    key, counter, words = ([int(word, 16) for word in case[name]] for name in ("key", "counter", "words"))
    assert philox(key, counter, len(words)) == words
    seed, step = int(case["seed"], 16), int(case["step"], 16)
    assert (key[0], counter[2]) == (seed, step)
    fields = {name: case[name] for name in ("name", "distribution", "stream")}
    noise = NoiseModel(**fields, shape=[len(case["values"])], purpose="action")
    drawn = noise_for(noise, case["agent"], np.array([seed], np.uint64), np.array([step], np.uint64))
    assert drawn[0].tolist() == pytest.approx(case["values"], rel=2e-7)


@pytest.mark.parametrize("case", MESSAGES, ids=by_name)
def test_messages(case: dict[str, Any]) -> None:
    kind = getattr(agent_pb2, case["type"])
    message = json_format.ParseDict(case["json"], kind())
    assert message.SerializeToString(deterministic=True).hex() == case["hex"]
    assert kind.FromString(bytes.fromhex(case["hex"])) == text_format.Parse(case["text"], kind()) == message


@pytest.mark.parametrize("case", ACTIONS, ids=by_name)
def test_actions_that_are_answered(case: dict[str, Any]) -> None:
    info = agent_info(Policy(load_bundle(BUNDLE), case["agent"]))
    options: dict[str, Any] = {"timeout_s": 10.0, "rejoin": True, "diagnostics": False, "allow_bundle_change": False}
    episode = RemoteEpisode(info, LinkWatch(), fallback=Zero(), source="here", **options)
    episode.session_id = "one"
    mask = np.array(case["action_mask"]) if "action_mask" in case else None
    asked = episode.act(np.zeros(6, np.float32), mask)
    next(asked)
    reply = agent_pb2.ActResponse.FromString(bytes.fromhex(case["hex"]))
    if "action" not in case:
        with pytest.raises(AgentError, match=r"step 0: invalid reply: (action|step)"):
            asked.send(reply)
        return
    with pytest.raises(StopIteration) as taken:
        asked.send(reply)
    action = taken.value.value
    assert (np.asarray(action.action).tolist(), action.fresh) == (case["action"], True)


def test_messages_cover_every_method() -> None:
    service = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
    types = {each.name for method in service.methods for each in (method.input_type, method.output_type)}
    assert {case["type"] for case in MESSAGES} == types


def check_episode(agent: Agent, episode: dict[str, Any]) -> None:
    start = episode["start"]
    choice, first = start["instruction_choice"], start["first_step"]
    agent.reset(int(start["seed"], 16), sample=start["sample"], instruction_choice=choice, first_step=first)
    for row in episode["steps"]:
        mask = row.get("action_mask")
        action = agent.act(np.array(row["observation"], np.float32), None if mask is None else np.array(mask))
        assert (action.step, action.missed_steps, action.replayed, action.fresh) == (row["step"], 0, False, True)
        assert action.action == pytest.approx(np.array(row["action"]), rel=1e-5, abs=1e-5)
        for name, expected in row["diagnostics"].items():
            assert action.diagnostics[name] == pytest.approx(np.array(expected), rel=1e-5, abs=1e-5)


def as_played(episode: dict[str, Any]) -> dict[str, Any]:
    """As an agent plays it that counts its steps itself: nothing twice, and up to the first gap."""
    rows = [row for row in episode["steps"] if not row["replayed"]]
    gaps = [index for index, row in enumerate(rows) if row["missed_steps"]]
    return {**episode, "steps": rows[: gaps[0] if gaps else len(rows)]}


@pytest.mark.parametrize("episode", EPISODES, ids=by_name)
def test_episodes_in_process(episode: dict[str, Any]) -> None:
    with LocalAgent(load_bundle(BUNDLE), episode["agent"]) as agent:
        check_episode(agent, as_played(episode))


@pytest.mark.parametrize("door", ["unary", "stream", "frames"])
@pytest.mark.parametrize("episode", EPISODES, ids=by_name)
def test_episodes_of_a_served_agent(
    episode: dict[str, Any], door: str, served: dict[str, str], sockets: dict[str, Path]
) -> None:
    name = episode["agent"]
    address = f"frames:{sockets[name]}" if door == "frames" else served[name]
    with AgentClient(address, stream=door == "stream", diagnostics=True, timeout_s=10) as agent:
        check_episode(agent, as_played(episode))


@pytest.mark.parametrize("episode", EPISODES, ids=by_name)
def test_every_request_of_an_episode_in_a_session(episode: dict[str, Any]) -> None:
    """Gaps and repetitions too, which no client makes by itself, and the state."""
    session = Policy(load_bundle(BUNDLE), episode["agent"]).session()
    start = {**episode["start"], "seed": int(episode["start"]["seed"], 16)}
    session.reset(**start, next_states=True)
    for row in episode["steps"]:
        mask = row.get("action_mask")
        observation = np.array(row["observation"], np.float32)
        action = session.act(observation, None if mask is None else np.array(mask), step=row["step"])
        assert (action.missed_steps, action.replayed) == (row["missed_steps"], row["replayed"])
        assert action.action == pytest.approx(np.array(row["action"]), rel=1e-5, abs=1e-5)
        for name, expected in {**row["next_states"], **row["diagnostics"]}.items():
            assert action.diagnostics[name] == pytest.approx(np.array(expected), rel=1e-5, abs=1e-5)
    assert {"steps": session.steps, "missed_steps": session.missed_steps} == episode["end"]


@pytest.mark.parametrize("episode", EPISODES, ids=by_name)
def test_every_request_of_an_episode_over_grpc(episode: dict[str, Any], served: dict[str, str]) -> None:
    start = {**episode["start"], "seed": int(episode["start"]["seed"], 16)}
    start["instruction_choice"] = INSTRUCTION_CHOICES[start["instruction_choice"]]
    with grpc.insecure_channel(served[episode["agent"]]) as channel:
        stub = agent_pb2_grpc.AgentServiceStub(channel)
        session_id = stub.StartEpisode(agent_pb2.StartEpisodeRequest(**start)).session_id
        for row in episode["steps"]:
            request, mask = agent_pb2.ActRequest(), row.get("action_mask")
            observation = np.array(row["observation"], np.float32)
            write_act(request, session_id, row["step"], observation, None if mask is None else np.array(mask))
            reply = stub.Act(request, timeout=10)
            assert (reply.step, reply.missed_steps, reply.replayed) == (
                row["step"], row["missed_steps"], row["replayed"],
            )  # fmt: skip
            assert to_array(reply.action, "action") == pytest.approx(np.array(row["action"]), rel=1e-5, abs=1e-5)
        ended = stub.EndEpisode(agent_pb2.EndEpisodeRequest(session_id=session_id))
    assert {"steps": ended.steps, "missed_steps": ended.missed_steps} == episode["end"]


@pytest.mark.parametrize("case", ERRORS["refused"], ids=by_name)
def test_errors(case: dict[str, Any], served: dict[str, str]) -> None:
    with grpc.insecure_channel(served[ERRORS["agent"]]) as channel:
        stub, before = agent_pb2_grpc.AgentServiceStub(channel), ERRORS["before"]
        session_id = stub.StartEpisode(
            agent_pb2.StartEpisodeRequest.FromString(bytes.fromhex(before["start"]))
        ).session_id

        def own(request: str) -> bytes:
            return bytes.fromhex(request).replace(ERRORS["placeholder"].encode(), session_id.encode())

        def call(method: str, request: str) -> bytes:
            reply: bytes = channel.unary_unary(f"/{SERVICE}/{method}")(own(request), timeout=10)
            return reply

        call("Act", before["act"])
        with pytest.raises(grpc.RpcError) as raised:
            call(case["method"], case["hex"])
        expected = case["message"].replace(ERRORS["placeholder"], session_id)
        assert (raised.value.code().name, raised.value.details()) == (case["code"], expected)
        assert raised.value.code().value[0] == case["number"]
        if case["method"] == "Act" and "text" in case:
            message = agent_pb2.StreamActRequest(act=agent_pb2.ActRequest.FromString(own(case["hex"])))
            reply = next(stub.StreamAct(iter([message]), timeout=10))
            assert (reply.error.code, reply.error.message) == (case["number"], expected)
