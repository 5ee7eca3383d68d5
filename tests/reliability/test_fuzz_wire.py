"""`make fuzz`: mutated messages on every method. None may be INTERNAL, leak memory, or cost others anything."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest

from agent_process import AgentProcess
from healthy_client import AGENT, BUNDLE, HealthyClient
from hmarl.agent.v1 import agent_pb2 as pb
from hmarl.agent.v1.tensors import to_tensor
from processes import rss_mib

pytestmark = pytest.mark.reliability
MESSAGES = int(os.environ.get("HMARL_FUZZ_MESSAGES", "110000"))
SEED = int(os.environ.get("HMARL_FUZZ_SEED", "1"))
_SERVICE = "/hmarl.agent.v1.AgentService/"
_UNARY = {
    "Act": _SERVICE + "Act",
    "StartEpisode": _SERVICE + "StartEpisode",
    "EndEpisode": _SERVICE + "EndEpisode",
    "GetAgentInfo": _SERVICE + "GetAgentInfo",
    "Check": "/grpc.health.v1.Health/Check",
}
_STREAMED = {
    "StreamAct": _SERVICE + "StreamAct",
    "reflection": "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}
_REFUSALS = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"}
_PER_STREAM = 50
_PER_SESSION = 500


def raw(data: bytes) -> bytes:
    """Neither the client's nor the server's message classes touch what is sent."""
    return data


def seeds_of(session_id: str) -> dict[str, list[bytes]]:
    """Valid messages of each method, to be mutated."""
    observation = np.zeros(18, np.float32)
    act = pb.ActRequest(session_id=session_id, step=1, observation=to_tensor(observation))
    masked = pb.ActRequest(
        session_id=session_id, step=2, observation=to_tensor(observation), action_mask=to_tensor(np.ones(5, np.bool_))
    )
    start = pb.StartEpisodeRequest(seed=2**63, sample=True, first_step=5, instruction_choice=3, diagnostics=True)
    return {
        "Act": [act.SerializeToString(), masked.SerializeToString()],
        "StreamAct": [pb.StreamActRequest(act=each).SerializeToString() for each in (act, masked)],
        "StartEpisode": [start.SerializeToString()],
        "EndEpisode": [pb.EndEpisodeRequest(session_id="x" * 22).SerializeToString()],
        "GetAgentInfo": [b""],
        "Check": [b"", b"\n\x1ehmarl.agent.v1.AgentService"],
        "reflection": [b":\x00", b"\x1a\x1dhmarl.agent.v1.AgentService.x", b'"\x00'],
    }


def mutated(data: bytes, generator: random.Random) -> bytes:
    """One to four changes: flipped, cut, repeated or inserted bytes, long varints, huge lengths, unknown fields."""
    message = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        at = generator.randint(0, len(message))
        match generator.randint(0, 7):
            case 0 if message:
                message[min(at, len(message) - 1)] ^= 1 << generator.randint(0, 7)
            case 1:
                del message[at:]
            case 2:
                message[at:at] = generator.randbytes(generator.randint(1, 16))
            case 3:
                message[at:at] = message[: generator.randint(0, len(message))]
            case 4:
                message[at:at] = b"\xff" * generator.randint(1, 10) + b"\x01"
            case 5:  # an observation of many huge sizes
                sizes = b"\xff\xff\xff\xff\xff\xff\xff\xff\x3f" * generator.randint(1, 200)
                message += b"\x1a" + varint(len(sizes) + 4) + b"\x12" + varint(len(sizes)) + sizes
            case 6:
                message += bytes([generator.randint(0, 255), generator.randint(0, 255)]) + generator.randbytes(4)
            case _:
                message = bytearray(generator.randbytes(generator.randint(0, 200)))
    return bytes(message)


def varint(number: int) -> bytes:
    """Protobuf's variable-length integer."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def fill_sessions(channel: grpc.Channel) -> str:
    """Open as many sessions as there may be, so that their memory is not taken for a leak; returns the last one."""
    start = channel.unary_unary(_UNARY["StartEpisode"], raw, pb.StartEpisodeResponse.FromString)
    last = ""
    for _ in range(2000):
        try:
            last = start(b"", timeout=10).session_id
        except grpc.RpcError:
            return last
    raise AssertionError("there is no limit on sessions")


def fresh_seeds(channel: grpc.Channel) -> dict[str, list[bytes]]:
    """Messages for a new session; none where the server has no room for one just now."""
    start = channel.unary_unary(_UNARY["StartEpisode"], raw, pb.StartEpisodeResponse.FromString)
    try:
        return seeds_of(start(b"", timeout=10).session_id)
    except grpc.RpcError:
        return {}


def unary_codes(
    channel: grpc.Channel, path: str, messages: Iterator[bytes], codes: Counter[str], texts: dict[str, str]
) -> None:
    call = channel.unary_unary(path, raw, raw)
    for message in messages:
        try:
            call(message, timeout=10)
            codes["OK"] += 1
        except grpc.RpcError as error:
            codes[error.code().name] += 1
            texts.setdefault(error.code().name, (error.details() or "")[:200])


def stream_codes(
    channel: grpc.Channel, path: str, messages: Iterator[bytes], codes: Counter[str], texts: dict[str, str]
) -> None:
    """Many messages over each stream; an error in-band is counted by its code, the stream's own as well."""
    call = channel.stream_stream(path, raw, raw)
    while batch := [message for _, message in zip(range(_PER_STREAM), messages, strict=False)]:
        answered = 0
        try:
            for reply in call(iter(batch), timeout=10):
                answered += 1
                if path.endswith("StreamAct"):
                    code = pb.StreamActResponse.FromString(reply).error.code
                    codes[next(each.name for each in grpc.StatusCode if each.value[0] == code)] += 1
        except grpc.RpcError as error:
            codes[error.code().name] += 1
            texts.setdefault(error.code().name, (error.details() or "")[:200])


def test_mutated_messages(capsys: pytest.CaptureFixture[str]) -> None:
    generator = random.Random(SEED)
    shares = {name: MESSAGES // (len(_UNARY) + len(_STREAMED)) for name in (*_UNARY, *_STREAMED)}
    with AgentProcess(BUNDLE, AGENT) as agent, HealthyClient(agent.address) as healthy:
        pid = agent.process.pid
        with grpc.insecure_channel(agent.address) as channel:
            seeds = seeds_of(fill_sessions(channel))

            def messages(name: str, count: int) -> Iterator[bytes]:
                for number in range(count):
                    if number % _PER_SESSION == 0:  # a session that is not used for long gives way to others
                        seeds.update(fresh_seeds(channel))
                    yield mutated(generator.choice(seeds[name]), generator)

            everything: dict[str, Counter[str]] = {name: Counter() for name in shares}
            texts: dict[str, str] = {}
            run: Callable[..., None]
            memory = 0.0
            for part in (0.1, 0.9):  # pools and caches fill during the first tenth
                for name, share in shares.items():
                    run, path = (unary_codes, _UNARY[name]) if name in _UNARY else (stream_codes, _STREAMED[name])
                    run(channel, path, messages(name, int(share * part)), everything[name], texts)
                memory = memory or rss_mib(pid)
        after = rss_mib(pid)
    with capsys.disabled():
        print(f"\n{MESSAGES:,} mutated messages, seed {SEED}: RSS {memory:.1f} -> {after:.1f} MiB")
        for name, codes in everything.items():
            print(f"  {name}: {dict(codes.most_common())}")
        print(f"  beside them, 200 Hz, 50 ms: acts | missed | wrong | p50 ms | p99 ms: {healthy.tally.row()}")
    unexpected = {name: codes for name, codes in everything.items() if set(codes) - _REFUSALS}
    assert not unexpected, (unexpected, texts)
    assert after <= 1.05 * memory
    assert healthy.tally.wrong == 0
    assert not healthy.tally.errors
